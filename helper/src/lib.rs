//! What the root helper `left4me-overlay` and the control command `l4d2ctl` are made of.
//!
//! The rule of the crate: text and plans are pure values with tests beside them; a system call is made in one
//! short function that says why it is safe. Nothing here waits by the clock, retries a mount, or deletes a path
//! by name without holding its directory.
//!
//! The feature `control` adds what `l4d2ctl` decides, `dbus` (on by default) what talks to systemd; the helper is built
//! without either.

pub mod account;
pub mod arguments;
pub mod busy;
pub mod busy_note;
pub mod cgroup;
pub mod chain;
pub mod error;
pub mod instance;
pub mod journal;
pub mod layers;
pub mod lock;
pub mod mountinfo;
pub mod namespace;
pub mod overlay;
pub mod privileges;
pub mod purge;
pub mod state;
pub mod unit_end;

#[cfg(feature = "control")]
pub mod cli;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "control")]
pub mod doctor;
#[cfg(feature = "control")]
pub mod fleet;
#[cfg(feature = "dbus")]
mod job;
#[cfg(feature = "control")]
pub mod neighbours;
#[cfg(feature = "control")]
pub mod report;
#[cfg(feature = "dbus")]
pub mod systemd;
#[cfg(feature = "control")]
pub mod units;
#[cfg(feature = "control")]
pub mod warning;
