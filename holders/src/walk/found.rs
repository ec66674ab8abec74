//! What a walk saw.

use std::collections::{HashMap, HashSet};

use super::stuck::StuckProcess;
use crate::mount::Device;
use crate::task::Known;

/// What one walk saw.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) found: Vec<Found>,
    /// See [`super::Wanted::detail`]; by process and thread id. The processes in [`Walk::ending`] are among them.
    pub(crate) tasks: HashMap<(u32, u32), Known>,
    /// One for each mount namespace, in the order they were met.
    pub(crate) namespaces: Vec<MetNamespace>,
    /// See [`super::Wanted::networks`]: inode number, a process that is in it.
    pub(crate) networks: Vec<(u64, u32)>,
    /// Open descriptors of mount namespaces.
    pub(crate) namespace_files: Vec<NamespaceFile>,
    /// See [`super::Wanted::carriers`]. io_uring instances are always kept.
    pub(crate) carriers: Vec<Carrier>,
    /// See [`super::Wanted::members`]: process and thread ids. Threads only where they differ from their process.
    pub(crate) members: Vec<(u32, u32)>,
    /// Processes that are ending: no thread has its memory any more, and one at least has not come to its end.
    pub(crate) ending: HashSet<u32>,
    /// Which processes were scanned, kernel threads left out.
    pub(crate) pids: Vec<u32>,
    /// Their threads but for the first: process id, thread id.
    pub(crate) threads: Vec<(u32, u32)>,
    /// How many of them the caller was not allowed to look at, wholly or in part.
    pub(crate) denied: usize,
    /// How many were not scanned, or not to their end, when the deadline had come; the kernel threads that are not
    /// known as such among them. `None` if all were.
    pub(crate) left: Option<usize>,
    /// Whose memory was not looked at, or nothing of them, as that would not have come back.
    pub(crate) stuck: Vec<StuckProcess>,
    /// How many links of interest are not in [`Walk::found`], since their process has enough of the kind there.
    pub(crate) not_kept: usize,
}

/// A link of interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) link: Link,
    /// As the link shows it; empty if that is longer than a link can show. Then nothing but the mount is known, and it
    /// is kept whatever mount that is.
    pub(crate) path: Vec<u8>,
    /// `None` if the kernel does not say (before Linux 5.8) or not to this user.
    pub(crate) mount: Option<OnMount>,
}

/// Which link it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Cwd,
    Root,
    Exe,
    File(u32),
    Mapping,
    Socket(u32),
}

/// The mount that a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OnMount {
    /// The id that mountinfo shows; reused after an unmount, unambiguous at any one moment.
    pub(crate) id: u64,
    /// The id that is never reused; `None` before Linux 6.8.
    pub(crate) unique: Option<u64>,
    /// `st_dev`, which on some file systems (btrfs, overlayfs) is another one than the superblock's.
    pub(crate) device: Device,
}

/// A mount namespace that a task is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetNamespace {
    pub(crate) inode: u64,
    /// A task through which its mount table can be read; one whose root directory is `/`, if there is one.
    pub(crate) member: (u32, u32),
    /// That task's root directory; empty if its path is longer than a link can show.
    pub(crate) root: Vec<u8>,
    /// How many processes are in it, by their first threads.
    pub(crate) processes: usize,
}

/// An open descriptor of a mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NamespaceFile {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) fd: u32,
    pub(crate) inode: u64,
}

/// A descriptor that can hold further files which no link shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Carrier {
    pub(crate) pid: u32,
    pub(crate) fd: u32,
    pub(crate) kind: CarrierKind,
}

/// What a [`Carrier`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CarrierKind {
    Socket,
    Ring,
    /// A fanotify group.
    Watch,
}

impl Walk {
    pub(crate) fn is_stuck(&self, pid: u32) -> bool {
        self.stuck.iter().any(|stuck| stuck.pid == pid)
    }

    /// Adds what an earlier walk saw of processes that this one did not reach.
    pub(crate) fn add(&mut self, before: Self) {
        let seen: HashSet<u32> = self.found.iter().map(|found| found.pid).collect();
        self.found.extend(before.found.into_iter().filter(|found| !seen.contains(&found.pid)));
        let known: HashSet<u64> = self.namespaces.iter().map(|met| met.inode).collect();
        self.namespaces.extend(before.namespaces.into_iter().filter(|met| !known.contains(&met.inode)));
        self.ending.extend(before.ending);
        for (task, known) in before.tasks {
            self.tasks.entry(task).or_insert(known);
        }
    }
}
