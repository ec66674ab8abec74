//! Who holds a mount or a mount namespace, and by what kind of reference.
//!
//! [`diagnose`] says why a mount is busy, or what of it is left after an unmount: a [`Report`] of all that refers
//! to it, and a [`Verdict`] that names the pattern. It is quick enough to be called when an unmount has just been
//! refused, by a process of one thread, as root:
//!
//! ```no_run
//! # let merged = "/var/lib/left4me/runtime/3/merged";
//! let report = holders::Query::new(merged).after_ebusy().run()?;
//! eprintln!("umount {merged}: EBUSY, {}", report.verdict().line());
//! for blocker in report.blockers() {
//!     let ends = blocker.pidfd()?; // readable when the process has ended; None if it has already
//!     # drop(ends);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Its parts are usable alone: [`mountinfo`] reads the mount table of a namespace, [`propagation`] says which
//! mounts an unmount asks, [`namespace`] which mount namespace a process is in, and [`scan`] shows some
//! processes' references by path alone, which judges nothing.
//!
//! The one rule of this crate: it reads `/proc` and never resolves a path inside the mount it looks at. A stat
//! or an open of such a path is itself a reference while it lasts, and makes the unmount fail that it was
//! meant to explain; a readlink under `/proc/PID` does not.

mod beneath;
mod calls;
pub mod cgroup;
pub mod chain;
#[cfg(any(test, feature = "checks"))]
pub mod checks;
#[cfg(feature = "cli")]
pub mod cli;
mod effect;
mod fdinfo;
#[cfg(feature = "json")]
mod json;
mod kernel;
mod kernel_holders;
mod listening;
mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod ns;
mod person;
mod printable;
mod proc;
pub mod propagation;
mod query;
pub mod report;
pub mod scan;
pub mod stat;
mod stuck;
mod survey;
mod task;
mod text;
mod unix_diag;
mod verdict;
mod view;
mod walk;

pub use printable::{pasted, shown};
pub use query::{Error, LONGEST_SCAN, Query, diagnose};
pub use report::{Blocker, Effect, Report};
pub use verdict::Verdict;
pub use verdict::advice::NOT_VISIBLE_HINTS;
