//! What the control command `l4d2ctl` is made of: it makes instances and deletes them, starts, stops and
//! resets their servers through systemd, and says what in their units defeats the design.
//!
//! Paths, names, the lock and the delete are the root helper's ([`left4me_helper`]). What is decided is pure values over
//! [`units::Units`], with tests beside them; only `systemd` speaks D-Bus.

pub mod actions;
pub mod cli;
pub mod control;
pub mod create;
pub mod destroy;
pub mod doctor;
pub mod fleet;
pub mod list;
pub mod neighbours;
pub mod ports;
pub mod report;
#[cfg(feature = "dbus")]
pub mod systemd;
pub mod units;
pub mod variables;
pub mod warning;
