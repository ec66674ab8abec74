//! The time of a recording: nanoseconds of CLOCK_MONOTONIC since the plan began.
//!
//! systemd's `*Monotonic` properties, the tracer's `mono` clock and the proc connector all use the same clock,
//! so times from everywhere can be put in one order. The first two are cut to microseconds.

use rustix::time::{ClockId, clock_gettime};

/// When the plan began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began_ns: u64,
}

impl Clock {
    /// The plan begins now.
    pub(super) fn start() -> Self {
        Self { began_ns: monotonic_ns() }
    }

    /// When that was, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn began_ns(self) -> u64 {
        self.began_ns
    }

    /// Nanoseconds since the plan began.
    pub(super) fn now(self) -> u64 {
        self.at_ns(monotonic_ns())
    }

    /// The same for a reading of CLOCK_MONOTONIC in nanoseconds; 0 for one before the plan.
    pub(super) fn at_ns(self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_sub(self.began_ns)
    }

    /// The same for one in microseconds.
    pub(super) fn at_us(self, monotonic_us: u64) -> u64 {
        self.at_ns(monotonic_us.saturating_mul(1000))
    }

    #[cfg(test)]
    pub(super) fn began_at(began_ns: u64) -> Self {
        Self { began_ns }
    }
}

fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Counts from boot: neither part is negative.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
