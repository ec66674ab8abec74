//! The one place of the harness that starts programs, and the owner of every one it started.
//!
//! Each program runs in a process group of its own, dies with the thread that spawned it, and is owned by a
//! [`Child`]: whoever drops it ends the whole group. The leader stays a zombie until its group is empty, so the
//! number that signals go to cannot have been given to somebody else meanwhile.
//!
//! A program that leaves its group (`setsid`) is out of reach of this module; none that we start does.
//! What programs there are, and which package has them, is [`crate::host::tools`]' business.

mod capture;
mod child;
mod error;
mod group;
mod program;

#[cfg(test)]
mod tests;

pub use capture::{Output, Stream, output, run, run_noted};
pub use child::{Child, GRACE};
pub use error::{Argv, Error, describe, is_interrupt};
pub use group::{Identity, end_orphans};
pub use program::{Program, Sink};
