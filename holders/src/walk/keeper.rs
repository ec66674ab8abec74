//! What a walk keeps of what it meets: which links, how many of a kind, until when, and nothing twice that tasks share.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::found::{Carrier, CarrierKind, Found, Link, NamespaceFile, OnMount, Walk};
use super::wanted::Wanted;
use crate::kernel::{self, InCommon};
use crate::mount::Device;

/// `STATX_MNT_ID_UNIQUE` of `include/uapi/linux/stat.h`, Linux 6.8.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// The most links of one kind and on one mount that are kept of a process: enough to be shown.
const MOST_OF_A_KIND: usize = 64;
/// The same once [`MANY_KEPT`] are kept of all: enough to tell that it holds something, and how.
const FEW_OF_A_KIND: usize = 2;
const MANY_KEPT: usize = 16 << 10;
/// How long all paths may be together before a further one is kept without its text: its mount is what counts.
const MOST_PATH_BYTES: usize = 4 << 20;
/// The most descriptors of namespaces, sockets and rings that are kept.
pub(super) const MOST_CARRIERS: usize = 64 << 10;
/// The most tables of a kind that others are compared with. Each is a descriptor.
const MOST_TABLES: usize = 64;
/// So many steps cost much more than to ask the clock.
const STEPS_A_CLOCK: u32 = 32;

/// What a walk has, and what it may still take.
pub(super) struct Keeper<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) walk: Walk,
    pub(super) deadline: Option<Instant>,
    /// Descriptors, mappings and threads since the clock was asked.
    steps: u32,
    /// The deadline has come, and something was left out.
    pub(super) is_late: bool,
    /// How many links of one process were kept, by kind and mount; of sockets by superblock, as no more is known.
    kept: HashMap<(u8, Option<u64>), usize>,
    /// The length of all paths that were kept.
    path_bytes: usize,
    /// What took much work and may be another task's, too: at most [`MOST_TABLES`] of a kind, the newest last.
    tables: Vec<SeenTable>,
    pub(super) has_kcmp: bool,
    /// Something of the process that is looked at may not be.
    pub(super) denied: bool,
    /// The process that is looked at has a socket, or may have.
    pub(super) has_socket: bool,
    /// Its memory may not be looked at, nor may it be compared with others.
    pub(super) is_stuck: bool,
}

/// The mappings or descriptors of a task, which tasks may share however many they are.
struct SeenTable {
    what: InCommon,
    /// The task's directory, by which it is known that its id is still its own.
    task: OwnedFd,
    tid: u32,
    found: Vec<Found>,
    namespace_files: Vec<NamespaceFile>,
    rings: Vec<Carrier>,
    not_kept: usize,
}

/// How much a walk had seen at one moment.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) found: usize,
    pub(super) namespace_files: usize,
    pub(super) carriers: usize,
    pub(super) members: usize,
    pub(super) not_kept: usize,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(wanted: &'a Wanted, deadline: Option<Instant>) -> Self {
        Self {
            wanted,
            walk: Walk::default(),
            deadline,
            steps: 0,
            is_late: false,
            kept: HashMap::new(),
            path_bytes: 0,
            tables: Vec::new(),
            has_kcmp: true,
            denied: false,
            has_socket: false,
            is_stuck: false,
        }
    }

    /// To be said before the links of the next process.
    pub(super) fn begin_process(&mut self) {
        self.denied = false;
        self.has_socket = false;
        self.is_stuck = false;
        self.kept.clear();
    }

    /// To be asked before something is scanned that is left out then.
    pub(super) fn is_past_deadline(&mut self) -> bool {
        self.steps = 0;
        self.is_late |= self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        self.is_late
    }

    /// The same, for what costs little: the clock is asked now and then.
    pub(super) fn is_over(&mut self) -> bool {
        self.steps += 1;
        if self.steps < STEPS_A_CLOCK { self.is_late } else { self.is_past_deadline() }
    }

    /// Keeps a link; of one kind and on one mount only so many of a process, the rest is counted.
    pub(super) fn keep(&mut self, mut found: Found) {
        let most = if self.walk.found.len() < MANY_KEPT { MOST_OF_A_KIND } else { FEW_OF_A_KIND };
        let on = match found.link {
            Link::Socket(_) => socket_inode(&found.path)
                .and_then(|inode| self.wanted.sockets.get(&inode))
                .map(|device| (u64::from(device.major) << 32) | u64::from(device.minor)),
            _ => found.mount.map(|mount| mount.id),
        };
        let kept = self.kept.entry((kind_of(found.link), on)).or_default();
        if *kept >= most {
            self.walk.not_kept += 1;
            return;
        }
        *kept += 1;
        self.path_bytes += found.path.len();
        if self.path_bytes > MOST_PATH_BYTES && found.mount.is_some() {
            found.path = Vec::new();
        }
        self.walk.found.push(found);
    }

    pub(super) fn in_common(&mut self, one: u32, other: u32, what: InCommon) -> bool {
        if !self.has_kcmp {
            return false;
        }
        match kernel::have_in_common(one, other, what) {
            Ok(common) => common,
            // One of the two is gone: if it is the other, a scan of it costs nothing.
            Err(Errno::SRCH) => false,
            Err(_) => {
                self.has_kcmp = false;
                false
            }
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            found: self.walk.found.len(),
            namespace_files: self.walk.namespace_files.len(),
            carriers: self.walk.carriers.len(),
            members: self.walk.members.len(),
            not_kept: self.walk.not_kept,
        }
    }

    /// Whether the task has one of these tables in common with one that was scanned; then all that was found there is
    /// its own, too, in place of what was found of it since `begin`.
    pub(super) fn has_been_seen(&mut self, what: InCommon, (pid, tid): (u32, u32), begin: Mark) -> bool {
        if self.is_stuck {
            return false;
        }
        let tables = std::mem::take(&mut self.tables);
        let seen = tables.iter().rev().filter(|table| table.what == what).find(|table| {
            self.in_common(table.tid, tid, what)
                && rustix::fs::statat(&table.task, c"stat", AtFlags::empty()).is_ok()
        });
        if let Some(seen) = seen {
            self.walk.found.truncate(begin.found);
            self.walk.not_kept = begin.not_kept;
            if what == InCommon::Memory {
                self.kept.retain(|(kind, _), _| *kind != kind_of(Link::Mapping));
            }
            for found in &seen.found {
                self.keep(Found { pid, tid, ..found.clone() });
            }
            let namespaces = seen.namespace_files.iter();
            self.walk.namespace_files.extend(namespaces.map(|file| NamespaceFile { pid, tid, ..*file }));
            self.walk.carriers.extend(seen.rings.iter().map(|ring| Carrier { pid, ..*ring }));
            self.walk.not_kept += seen.not_kept;
        }
        let is_seen = seen.is_some();
        self.tables = tables;
        is_seen
    }

    /// Remembers what was found since `begin` in a table of this task's that took much work.
    pub(super) fn remember(&mut self, what: InCommon, task: BorrowedFd<'_>, tid: u32, begin: Mark) {
        if self.is_late || !self.has_kcmp || self.is_stuck {
            return;
        }
        // Without a descriptor to spare the next one that shares it is scanned by itself.
        let Ok(task) = task.try_clone_to_owned() else { return };
        let mut of_the_kind = self.tables.iter().enumerate().filter(|(_, table)| table.what == what);
        let oldest = of_the_kind.next().map(|(at, _)| at);
        if let Some(oldest) = oldest
            && of_the_kind.count() + 1 >= MOST_TABLES
        {
            self.tables.remove(oldest);
        }
        let namespace_files = self.walk.namespace_files[begin.namespace_files..].iter();
        let rings =
            self.walk.carriers[begin.carriers..].iter().filter(|carrier| carrier.kind == CarrierKind::Ring);
        self.tables.push(SeenTable {
            what,
            task,
            tid,
            found: self.walk.found[begin.found..].to_vec(),
            // A few, as each of these is kept for each process that has it.
            namespace_files: namespace_files.take(MOST_OF_A_KIND).copied().collect(),
            rings: rings.take(FEW_OF_A_KIND).copied().collect(),
            not_kept: self.walk.not_kept - begin.not_kept,
        });
    }

    /// Keeps a link that shows this, if it is of interest.
    pub(super) fn consider(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        (pid, tid): (u32, u32),
        link: Link,
        shown: &[u8],
    ) {
        let is_too_long = shown.is_empty();
        let by_path = self.wanted.mount_points.have(shown);
        if !by_path && !is_too_long && !self.wanted.detached {
            return;
        }
        let mount = self.mount_of(directory, name);
        // Before Linux 5.8 nothing tells where it leads.
        self.denied |= is_too_long && mount.is_none();
        if by_path
            || (is_too_long && mount.is_some())
            || mount.is_some_and(|mount| self.wanted.devices.contains(&mount.device))
        {
            self.keep(Found { pid, tid, link, path: shown.to_vec(), mount });
        }
    }

    /// The mount that the link leads to, without asking its file system anything (AT_STATX_DONT_SYNC).
    pub(super) fn mount_of(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Option<OnMount> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        // An empty mask: FUSE refuses a foreign user who asks for more, and the mount is told in any case
        // (fs/stat.c:vfs_statx).
        let told = rustix::fs::statx(directory, name, flags, StatxFlags::empty());
        let told = self.allowed(told)?;
        if told.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return None;
        }
        let mask = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
        let unique = rustix::fs::statx(directory, name, flags, mask)
            .ok()
            .filter(|unique| unique.stx_mask & STATX_MNT_ID_UNIQUE != 0)
            .map(|unique| unique.stx_mnt_id);
        let device = Device { major: told.stx_dev_major, minor: told.stx_dev_minor };
        Some(OnMount { id: told.stx_mnt_id, unique, device })
    }

    /// `None` for what cannot be seen: gone is normal (a closed descriptor, an ended task, a kernel thread's
    /// program), anything else is noted as denied.
    pub(super) fn allowed<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Errno::NOENT | Errno::SRCH) => None,
            Err(_) => {
                self.denied = true;
                None
            }
        }
    }
}

/// A number for what is counted together.
fn kind_of(link: Link) -> u8 {
    match link {
        Link::Cwd => 0,
        Link::Root => 1,
        Link::Exe => 2,
        Link::File(_) => 3,
        Link::Mapping => 4,
        Link::Socket(_) => 5,
    }
}

/// The number in `socket:[123]`.
pub(crate) fn socket_inode(shown: &[u8]) -> Option<u64> {
    inode_in(shown, b"socket:[")
}

/// The number behind such a beginning, before the `]` at the end.
pub(super) fn inode_in(shown: &[u8], beginning: &[u8]) -> Option<u64> {
    let digits = shown.strip_prefix(beginning)?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
