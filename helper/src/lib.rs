//! What the root helper `left4me-overlay` is made of, and what `l4d2ctl` shares with it: names and paths of an instance,
//! the lock, and the delete.
//!
//! The rule of the crate: text and plans are pure values with tests beside them; a system call is made in one
//! short function that says why it is safe. Nothing here waits by the clock, retries a mount, or deletes a path
//! by name without holding its directory.

pub mod account;
pub mod arguments;
pub mod busy;
pub mod busy_note;
pub mod cgroup;
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
pub mod tree;
pub mod unit_end;
