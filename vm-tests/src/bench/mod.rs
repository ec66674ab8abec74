//! Measures the harness: each function takes samples of one thing and ends every machine it started, also on errors.
//!
//! Nothing here prints, compares with a target or decides the number of samples: `cargo xtask bench` does. Times are the
//! host's (CLOCK_MONOTONIC) unless a name says that they are the guest's.

mod boot;
mod busy;
mod channel;
mod guest;
pub mod holders;
mod moment;
mod product;
mod samples;

#[cfg(test)]
mod tests;

pub use boot::{Boot, Phases, boot, disk_bytes, restore};
pub use busy::BusyHost;
pub use channel::{Channel, IDLE_SECS, Idle, PUT_BYTES, Requests, channel, idle};
pub use moment::{Moments, moments};
pub use product::{PURGED_FILES, Programs, Purges, ResetAndStop, programs, purges, reset_and_stop, resets};
pub use samples::{Host, Report, Row, Samples, Unit};
