//! Who holds a mount or a mount namespace, and by what kind of reference.
//!
//! Three small parts, each usable alone: [`mountinfo`] reads the mount table of a namespace, [`namespace`]
//! says which mount namespace a process is in, [`scan`] lists the tasks that have a reference inside a mount.
//! Nothing here judges: whether a reference blocks an unmount is for the caller to say.
//!
//! The one rule of this crate: it reads `/proc` and never resolves a path inside the mount it looks at. A stat
//! or an open of such a path is itself a reference while it lasts, and makes the unmount fail that it was
//! meant to explain; a readlink under `/proc/PID` does not.

pub mod mountinfo;
pub mod namespace;
pub mod scan;
