//! Who is there at all while a stop takes long: that a stop waits for a `tail` is seen by the `tail` that is alive.
//!
//! Looked at when a second of the stop is over and then each time it has lasted twice as long. A stop that is quick, which
//! is measured to the millisecond, is not looked at, and one of a minute six times. At the first look the stop is late.

use vm_agent::recording::{Alive, Role};

use super::processes::comm;
use super::roles::Watched;
use super::unit_cgroup;

/// From the stop's beginning to the first look.
const FIRST_NS: u64 = 1_000_000_000;

/// When to look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    began: u64,
    next: Option<u64>,
}

/// A look that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Whether it is the first of this stop.
    pub(super) is_first: bool,
}

impl Looks {
    pub(super) fn stop_begins(&mut self, now: u64) {
        *self = Self { began: now, next: Some(now + FIRST_NS) };
    }

    pub(super) fn stop_ends(&mut self) {
        self.next = None;
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    /// The look for which it is time, if it is; the next time is later.
    pub(super) fn due(&mut self, now: u64) -> Option<Look> {
        let next = self.next.filter(|next| *next <= now)?;
        self.next = Some(self.began + 2 * (now - self.began));
        Some(Look { is_first: next == self.began + FIRST_NS })
    }
}

/// The processes of these cgroups, each of a unit.
pub(super) fn processes(cgroups: [(&str, Watched); 2], role: impl Fn(u32, Watched) -> Role) -> Vec<Alive> {
    let of_unit = |(cgroup, watched): (&str, Watched)| {
        let pids = unit_cgroup::processes(cgroup).into_iter();
        // One that has no comm any more is gone.
        let alive = pids.filter_map(|pid| Some(Alive { pid, comm: comm(pid)?, role: role(pid, watched) }));
        alive.collect::<Vec<_>>()
    };
    cgroups.into_iter().flat_map(of_unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_stop_is_looked_at_less_and_less() {
        const SECOND: u64 = 1_000_000_000;
        let mut looks = Looks::default();
        assert_eq!(looks.due(9 * SECOND), None, "no stop has begun");
        for began in [10, 50] {
            looks.stop_begins(began * SECOND);
            let seen: Vec<_> = (0..30)
                .filter_map(|after| Some((after, looks.due((began + after) * SECOND)?.is_first)))
                .collect();
            assert_eq!(seen, [(1, true), (2, false), (4, false), (8, false), (16, false)]);
            looks.stop_ends();
            assert_eq!((looks.due(100 * SECOND), looks.next()), (None, None));
        }
    }
}
