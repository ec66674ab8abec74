//! The built programs on the machine's own kernel: real overlays, real kills. `attacker.rs` has who fights back.
//!
//! Each test runs its second half in namespaces of its own (mount and PID), made by unshare(1), in which
//! `/var/lib/left4me` is a directory below `target/`. So that half is PID 1 there, the helper finds itself in PID 1's
//! mount namespace, as it demands, and whatever a test leaves goes with the namespaces. All else of the machine is
//! read-only in there. That takes root; without it a test says that it did not run.

mod at_once;
#[path = "../support/built.rs"]
mod built;
mod killed;
mod mounting;
mod resetting;
#[path = "../support/sealed.rs"]
mod sealed;
mod stage;
mod strangers;
mod waiting;
