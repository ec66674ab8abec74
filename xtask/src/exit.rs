//! The exit codes of every command.

/// All is well.
pub(crate) const PASSED: u8 = 0;
/// It ran, and something is not as it should be.
pub(crate) const FAILED: u8 = 1;
/// There is no result: a tool, the machine, the guest or the harness failed (sysexits.h: EX_UNAVAILABLE).
pub(crate) const INFRASTRUCTURE: u8 = 69;
/// Interrupted by the user (128 + SIGINT). Wrong usage is 2, by clap.
pub(crate) const INTERRUPTED: u8 = 130;
