//! One walk over the tasks under `/proc`: every link that `/proc` shows of them, those of interest kept.
//!
//! Fast, since it is to be run on a busy machine: links are read into one buffer, relative to a task's directory,
//! and compared as text; only a link whose text is of interest costs more. That is then asked for the mount that
//! it lies on, which no text can say: a path may be one of another mount namespace, or older than the mount.
//!
//! Nothing inside a mount is opened or looked up. A readlink of `/proc/PID/cwd` and a statx of it take the same
//! reference (`fs/proc/base.c:proc_pid_readlink`, `proc_pid_get_link`): one more on what that task holds anyway,
//! for the length of the call.
//!
//! A thread is compared with its process by kcmp(2), and looked at by itself only where it has a working
//! directory, a root directory or descriptors of its own.
//!
//! Kernel threads are passed over, by their flag PF_KTHREAD or as children of kthreadd. That a task has no program says
//! nothing: one that ends gives back its memory first, which takes a tenth of a second for a gigabyte, and only then
//! its descriptors and directories (`kernel/exit.c:do_exit`).

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use memchr::memmem;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::kernel::{self, InCommon};
use crate::mountinfo::Device;
use crate::proc::{
    PATH_MAX, number, numbers, open_directory, open_proc, open_task, read_file, read_link, read_some,
    some_numbers,
};
use crate::stat::Stat;
use crate::task::Known;

/// What a walk keeps.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Mount points; a link is kept if it shows a path at or below one of them.
    pub(crate) mount_points: MountPoints,
    /// Superblocks; a mapping of a file on one of them is kept.
    pub(crate) devices: Vec<Device>,
    /// Inode numbers of sockets that are bound to a file, and the superblock that it is on.
    pub(crate) sockets: HashMap<u64, Device>,
    /// The devices have other mounts that are of no interest: a mapping is kept only if its path is, too.
    pub(crate) devices_are_shared: bool,
    /// Also keep links, whatever they show, that lie on one of `devices`: those of a mount that was detached
    /// show a path from its own root. Costs a statx for every link.
    pub(crate) detached: bool,
    /// Keep all sockets and io_uring instances, in [`Walk::carriers`].
    pub(crate) carriers: bool,
    /// Say in [`Walk::tasks`] who has a link that is kept, or a ring.
    pub(crate) tasks: bool,
    /// Which tasks to keep in [`Walk::members`].
    pub(crate) members: Members,
}

/// Tasks by the inode number of the mount namespace that they are in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Members {
    #[default]
    OfNone,
    Of(u64),
    OfAllBut(u64),
}

/// Some absolute paths, and whether another one lies at or below them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct MountPoints(Vec<Vec<u8>>);

/// What one walk saw.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) found: Vec<Found>,
    /// See [`Wanted::tasks`]; by process and thread id. The processes in [`Walk::ending`] are among them.
    pub(crate) tasks: HashMap<(u32, u32), Known>,
    /// One for each mount namespace, in the order they were met.
    pub(crate) namespaces: Vec<MetNamespace>,
    /// Open descriptors of mount namespaces.
    pub(crate) namespace_files: Vec<NamespaceFile>,
    /// See [`Wanted::carriers`]. io_uring instances are always kept.
    pub(crate) carriers: Vec<Carrier>,
    /// See [`Wanted::members`]: process and thread ids. Threads only where they differ from their process.
    pub(crate) members: Vec<(u32, u32)>,
    /// Processes that are ending: no thread has its memory any more, and one at least has not come to its end.
    pub(crate) ending: HashSet<u32>,
    /// How many processes were looked at, kernel threads not counted.
    pub(crate) processes: usize,
    /// How many of them the caller was not allowed to look at, wholly or in part.
    pub(crate) denied: usize,
    /// How many were not looked at, or not to their end, when the deadline had come; the kernel threads that are not
    /// known as such among them. `None` if all were.
    pub(crate) left: Option<usize>,
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
    pub(crate) is_ring: bool,
}

impl MountPoints {
    /// Adds a path unless it is there; true if it was new.
    pub(crate) fn add(&mut self, path: &Path) -> bool {
        let mut bytes = path.as_os_str().as_bytes();
        while let [rest @ .., b'/'] = bytes {
            bytes = rest;
        }
        let is_new = !self.0.iter().any(|known| known == bytes);
        if is_new {
            self.0.push(bytes.to_vec());
        }
        is_new
    }

    /// Whether a path, with or without ` (deleted)` at its end, is at or below one of them.
    pub(crate) fn have(&self, shown: &[u8]) -> bool {
        shown.first() == Some(&b'/')
            && self.0.iter().any(|point| {
                shown
                    .strip_prefix(&**point)
                    .is_some_and(|rest| matches!(rest, [] | [b'/', ..]) || rest == b" (deleted)")
            })
    }
}

impl Walk {
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

/// Walks over all processes, or over those with the given ids, until the deadline. However many links there are, few of
/// a process are kept: see [`Walker::keep`].
///
/// # Errors
/// If `/proc` cannot be listed. A task that vanishes is no error, one that may not be looked at is counted.
pub(crate) fn walk(wanted: &Wanted, pids: Option<&[u32]>, deadline: Option<Instant>) -> Result<Walk, Errno> {
    let proc_dir = open_proc()?;
    let mut walker = Walker {
        wanted,
        proc_dir: proc_dir.as_fd(),
        entries: Box::new([MaybeUninit::uninit(); 32 << 10]),
        fds: Vec::new(),
        tids: Vec::new(),
        link: Vec::with_capacity(PATH_MAX),
        root: Vec::with_capacity(PATH_MAX),
        maps_text: Vec::new(),
        needles: wanted.mount_points.0.iter().map(memmem::Finder::new).collect(),
        deadline,
        steps: 0,
        is_late: false,
        kept: HashMap::new(),
        path_bytes: 0,
        tables: Vec::new(),
        has_procmap_query: true,
        has_kcmp: true,
        kernel_threads: Vec::new(),
        denied: false,
        last_namespace: 0,
        walk: Walk::default(),
    };
    match pids {
        Some(pids) => walker.processes(pids),
        None => {
            walker.kernel_threads = kernel_threads(proc_dir.as_fd());
            let mut all = Vec::with_capacity(512);
            numbers(proc_dir.as_fd(), &mut walker.entries[..], &mut all)?;
            walker.processes(&all);
        }
    }
    Ok(walker.walk)
}

/// In place of what lies below a mount point in a path that is longer.
pub(crate) const TOO_LONG: &str = "...";

/// `STATX_MNT_ID_UNIQUE` of `include/uapi/linux/stat.h`, Linux 6.8.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// kthreadd's process id, outside of containers.
const KTHREADD: u32 = 2;

struct Walker<'a> {
    wanted: &'a Wanted,
    proc_dir: BorrowedFd<'a>,
    entries: Box<[MaybeUninit<u8>; 32 << 10]>,
    fds: Vec<u32>,
    tids: Vec<u32>,
    link: Vec<u8>,
    root: Vec<u8>,
    maps_text: Vec<u8>,
    /// The mount points, as what to search a text for.
    needles: Vec<memmem::Finder<'a>>,
    deadline: Option<Instant>,
    /// Descriptors, mappings and threads since the clock was asked.
    steps: u32,
    /// The deadline has come, and something was left out.
    is_late: bool,
    /// How many links of one process were kept, by kind and mount; of sockets by superblock, as no more is known.
    kept: HashMap<(u8, Option<u64>), usize>,
    /// The length of all paths that were kept.
    path_bytes: usize,
    /// What took much work and may be another task's, too: at most [`MOST_TABLES`] of a kind, the newest last.
    tables: Vec<SeenTable>,
    has_procmap_query: bool,
    has_kcmp: bool,
    /// In order; see [`kernel_threads`].
    kernel_threads: Vec<u32>,
    denied: bool,
    last_namespace: u64,
    walk: Walk,
}

/// What of a task is to be looked at.
#[derive(Clone, Copy)]
struct Parts {
    directories: bool,
    files: bool,
    memory: bool,
}

/// What the threads of a process have shown so far.
#[derive(Clone, Copy)]
struct Met {
    /// The one that the others are compared with; `None` while each has come to its end.
    first: Option<u32>,
    /// One has its memory.
    has_program: bool,
    /// One has not come to its end.
    is_alive: bool,
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
struct Mark {
    found: usize,
    namespace_files: usize,
    carriers: usize,
    not_kept: usize,
}

/// How far a task is, whose program is not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    KernelThread,
    /// It may have everything, or in its end everything but its memory.
    Alive,
    /// It is a zombie, and has nothing any more.
    Ended,
}

/// The most links of one kind and on one mount that are kept of a process: enough to be shown.
const MOST_OF_A_KIND: usize = 64;
/// The same once [`MANY_KEPT`] are kept of all: enough to tell that it holds something, and how.
const FEW_OF_A_KIND: usize = 2;
const MANY_KEPT: usize = 16 << 10;
/// How long all paths may be together before a further one is kept without its text: its mount is what counts.
const MOST_PATH_BYTES: usize = 4 << 20;
/// The most descriptors of namespaces, sockets and rings that are kept.
const MOST_CARRIERS: usize = 64 << 10;
/// The most text of mappings that is read before it is looked at, bytes.
const MAPS_AT_ONCE: usize = 256 << 10;
/// So many mappings or descriptors cost more to look at than a few calls of kcmp(2) and what is kept of them.
const MANY_MAPPINGS: usize = 1024;
const MANY_FILES: usize = 256;
/// The most tables of a kind that others are compared with. Each is a descriptor.
const MOST_TABLES: usize = 64;
/// So many steps cost much more than to ask the clock.
const STEPS_A_CLOCK: u32 = 32;

impl Walker<'_> {
    fn processes(&mut self, pids: &[u32]) {
        for (at, &pid) in pids.iter().enumerate() {
            if !self.is_past_deadline() {
                self.process(pid);
            }
            if self.is_late {
                let left = pids[at..].iter();
                let left = left.filter(|&pid| self.kernel_threads.binary_search(pid).is_err());
                self.walk.left = Some(left.count());
                return;
            }
        }
    }

    /// To be asked before something is looked at that is left out then.
    fn is_past_deadline(&mut self) -> bool {
        self.steps = 0;
        self.is_late |= self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        self.is_late
    }

    /// The same, for what costs little: the clock is asked now and then.
    fn is_over(&mut self) -> bool {
        self.steps += 1;
        if self.steps < STEPS_A_CLOCK { self.is_late } else { self.is_past_deadline() }
    }

    /// Keeps a link; of one kind and on one mount only so many of a process, the rest is counted.
    fn keep(&mut self, mut found: Found) {
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

    fn process(&mut self, pid: u32) {
        self.denied = false;
        self.kept.clear();
        let Ok(leader) = open_task(self.proc_dir, DecInt::new(pid).as_c_str()) else { return };
        let leader = leader.as_fd();
        let program = self.read_link(leader, c"exe");
        let mut is_alive = true;
        if program.is_err() {
            // By far the most common of those without a program.
            if self.kernel_threads.binary_search(&pid).is_ok() {
                return;
            }
            let Some(life) = life(leader) else { return };
            if life == Life::KernelThread {
                return;
            }
            is_alive = life == Life::Alive;
        }
        self.walk.processes += 1;
        let has_program = self.allowed(program).is_some();
        let mut first = None;
        let begin = self.mark();
        if has_program {
            self.consider(leader, c"exe", (pid, pid), Link::Exe);
        }
        if is_alive && !self.denied {
            let parts = Parts { directories: true, files: true, memory: has_program };
            let has_directories = self.task(leader, (pid, pid), parts);
            first = (has_program || has_directories).then_some(pid);
        }
        self.note(leader, leader, (pid, pid), begin);
        if !self.denied {
            self.other_threads(leader, pid, Met { first, has_program, is_alive });
        }
        self.walk.denied += usize::from(self.denied);
    }

    fn other_threads(&mut self, leader: BorrowedFd<'_>, pid: u32, mut met: Met) {
        // The number of links of `task` is two and one for each thread (fs/proc/base.c:proc_task_getattr).
        let is_alone =
            || rustix::fs::statat(leader, c"task", AtFlags::empty()).is_ok_and(|stat| stat.st_nlink == 3);
        if !is_alone() {
            let mut tids = std::mem::take(&mut self.tids);
            tids.clear();
            let listed = open_directory(leader, c"task").and_then(|directory| {
                numbers(directory.as_fd(), &mut self.entries[..], &mut tids)?;
                Ok(directory)
            });
            if let Some(directory) = self.allowed(listed) {
                for &tid in tids.iter().filter(|&&tid| tid != pid) {
                    if self.is_over() {
                        break;
                    }
                    self.other_thread(leader, directory.as_fd(), (pid, tid), &mut met);
                }
            }
            self.tids = tids;
        }
        if met.is_alive && !met.has_program && !self.denied {
            self.walk.ending.insert(pid);
            self.know(leader, leader, (pid, pid));
        }
    }

    /// Notes who it is, if something was found of it since `begin`.
    fn note(&mut self, leader: BorrowedFd<'_>, task: BorrowedFd<'_>, of: (u32, u32), begin: Mark) {
        let has_ring = self.walk.carriers[begin.carriers..].iter().any(|carrier| carrier.is_ring);
        if self.walk.found.len() > begin.found || has_ring {
            self.know(leader, task, of);
        }
        // A ring is its process's, through whichever thread it is seen.
        if has_ring && of.0 != of.1 {
            self.know(leader, leader, (of.0, of.0));
        }
    }

    fn know(&mut self, leader: BorrowedFd<'_>, task: BorrowedFd<'_>, (pid, tid): (u32, u32)) {
        if self.wanted.tasks && !self.walk.tasks.contains_key(&(pid, tid)) {
            self.walk.tasks.extend(Known::of(leader, task, pid).map(|known| ((pid, tid), known)));
        }
    }

    fn other_thread(
        &mut self,
        leader: BorrowedFd<'_>,
        threads: BorrowedFd<'_>,
        (pid, tid): (u32, u32),
        met: &mut Met,
    ) {
        let mut parts = match met.first {
            Some(first) => Parts {
                directories: !self.in_common(first, tid, InCommon::WorkingAndRootDirectory),
                files: self.has_kcmp && !self.in_common(first, tid, InCommon::Files),
                memory: false,
            },
            None => Parts { directories: true, files: true, memory: false },
        };
        if met.has_program && !parts.directories && !parts.files {
            return;
        }
        let Ok(thread) = open_task(threads, DecInt::new(tid).as_c_str()) else { return };
        let thread = thread.as_fd();
        let begin = self.mark();
        // The memory is the process's: through which thread it is seen does not matter.
        if !met.has_program {
            if self.read_link(thread, c"exe").is_ok() {
                self.consider(thread, c"exe", (pid, tid), Link::Exe);
                (met.has_program, met.is_alive, parts.memory) = (true, true, true);
            } else if life(thread) == Some(Life::Alive) {
                met.is_alive = true;
            }
        }
        let has_directories = self.task(thread, (pid, tid), parts);
        self.note(leader, thread, (pid, tid), begin);
        if met.first.is_none() && (parts.memory || has_directories) {
            met.first = Some(tid);
        }
    }

    fn in_common(&mut self, one: u32, other: u32, what: InCommon) -> bool {
        if !self.has_kcmp {
            return false;
        }
        match kernel::have_in_common(one, other, what) {
            Ok(common) => common,
            // One of the two is gone: if it is the other, a look at it costs nothing.
            Err(Errno::SRCH) => false,
            Err(_) => {
                self.has_kcmp = false;
                false
            }
        }
    }

    /// Says whether it has directories, of which one that has ended has none; false if they were not asked for.
    fn task(&mut self, task: BorrowedFd<'_>, (pid, tid): (u32, u32), parts: Parts) -> bool {
        let mut has_directories = false;
        if parts.directories {
            let cwd = self.read_link(task, c"cwd");
            if self.allowed(cwd).is_some() {
                has_directories = true;
                self.consider(task, c"cwd", (pid, tid), Link::Cwd);
            }
            let root = self.read_link(task, c"root");
            if self.allowed(root).is_some() {
                self.consider(task, c"root", (pid, tid), Link::Root);
                std::mem::swap(&mut self.root, &mut self.link);
                let namespace = read_link(task, c"ns/mnt", &mut self.link);
                if self.allowed(namespace).is_some() {
                    self.met_namespace(pid, tid);
                }
            }
        }
        if parts.files {
            self.files(task, pid, tid);
        }
        if parts.memory && !self.wanted.devices.is_empty() {
            self.mappings(task, pid, tid);
        }
        has_directories
    }

    /// The link buffer has what `ns/mnt` shows, the root buffer the task's root directory.
    fn met_namespace(&mut self, pid: u32, tid: u32) {
        let Some(inode) = crate::namespace::parse_link(&self.link) else { return };
        let is_member = match self.wanted.members {
            Members::OfNone => false,
            Members::Of(wanted) => inode == wanted,
            Members::OfAllBut(other) => inode != other,
        };
        if is_member {
            self.walk.members.push((pid, tid));
        }
        let first_thread = usize::from(pid == tid);
        let known = match self.walk.namespaces.get_mut(self.last_namespace as usize) {
            Some(last) if last.inode == inode => Some(last),
            _ => {
                let at = self.walk.namespaces.iter().position(|known| known.inode == inode);
                self.last_namespace = at.unwrap_or(self.walk.namespaces.len()) as u64;
                at.map(|at| &mut self.walk.namespaces[at])
            }
        };
        match known {
            Some(known) => {
                known.processes += first_thread;
                if known.root != b"/" && self.root == b"/" {
                    known.member = (pid, tid);
                    known.root.clone_from(&self.root);
                }
            }
            None => self.walk.namespaces.push(MetNamespace {
                inode,
                member: (pid, tid),
                root: self.root.clone(),
                processes: first_thread,
            }),
        }
    }

    fn files(&mut self, task: BorrowedFd<'_>, pid: u32, tid: u32) {
        let directory = open_directory(task, c"fd");
        let Some(directory) = self.allowed(directory) else { return };
        let mut fds = std::mem::take(&mut self.fds);
        let begin = self.mark();
        let (mut is_at_end, mut count) = (false, 0);
        while !is_at_end {
            fds.clear();
            let listed = some_numbers(directory.as_fd(), &mut self.entries[..], &mut fds);
            is_at_end = self.allowed(listed).unwrap_or(true);
            // The first that are listed are more already, if there are many.
            if count == 0 && fds.len() > MANY_FILES && self.has_been_seen(InCommon::Files, (pid, tid), begin)
            {
                break;
            }
            count += fds.len();
            for &fd in &fds {
                if self.is_over() {
                    is_at_end = true;
                    break;
                }
                self.file(directory.as_fd(), (pid, tid), fd);
            }
            if is_at_end && count > MANY_FILES {
                self.remember(InCommon::Files, task, tid, begin);
            }
        }
        self.fds = fds;
    }

    fn mark(&self) -> Mark {
        Mark {
            found: self.walk.found.len(),
            namespace_files: self.walk.namespace_files.len(),
            carriers: self.walk.carriers.len(),
            not_kept: self.walk.not_kept,
        }
    }

    /// Whether the task has one of these tables in common with one that was looked at; then all that was found there is
    /// its own, too, in place of what was found of it since `begin`.
    fn has_been_seen(&mut self, what: InCommon, (pid, tid): (u32, u32), begin: Mark) -> bool {
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
    fn remember(&mut self, what: InCommon, task: BorrowedFd<'_>, tid: u32, begin: Mark) {
        if self.is_late || !self.has_kcmp {
            return;
        }
        // Without a descriptor to spare the next one that shares it is looked at by itself.
        let Ok(task) = task.try_clone_to_owned() else { return };
        let mut of_the_kind = self.tables.iter().enumerate().filter(|(_, table)| table.what == what);
        let oldest = of_the_kind.next().map(|(at, _)| at);
        if let Some(oldest) = oldest
            && of_the_kind.count() + 1 >= MOST_TABLES
        {
            self.tables.remove(oldest);
        }
        let namespace_files = self.walk.namespace_files[begin.namespace_files..].iter();
        let rings = self.walk.carriers[begin.carriers..].iter().filter(|carrier| carrier.is_ring);
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

    fn file(&mut self, directory: BorrowedFd<'_>, (pid, tid): (u32, u32), fd: u32) {
        let name = DecInt::new(fd);
        let done = self.read_link(directory, name.as_c_str());
        if self.allowed(done).is_none() {
            return;
        }
        let may_keep = |kept: usize| kept < MOST_CARRIERS;
        if matches!(self.link.first(), None | Some(b'/')) {
            self.consider(directory, name.as_c_str(), (pid, tid), Link::File(fd));
        } else if let Some(inode) = crate::namespace::parse_link(&self.link) {
            if may_keep(self.walk.namespace_files.len()) {
                self.walk.namespace_files.push(NamespaceFile { pid, tid, fd, inode });
            }
        } else if self.link == b"anon_inode:[io_uring]" {
            if may_keep(self.walk.carriers.len()) {
                self.walk.carriers.push(Carrier { pid, fd, is_ring: true });
            }
        } else if let Some(inode) = socket_inode(&self.link) {
            if self.wanted.sockets.contains_key(&inode) {
                let (path, link) = (self.link.clone(), Link::Socket(fd));
                self.keep(Found { pid, tid, link, path, mount: None });
            }
            if self.wanted.carriers && may_keep(self.walk.carriers.len()) {
                self.walk.carriers.push(Carrier { pid, fd, is_ring: false });
            }
        }
    }

    fn mappings(&mut self, task: BorrowedFd<'_>, pid: u32, tid: u32) {
        let maps = rustix::fs::openat(task, c"maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let Some(maps) = self.allowed(maps) else { return };
        let begin = self.mark();
        let mut count = None;
        if self.has_procmap_query {
            match self.query_mappings(task, maps.as_fd(), pid, tid) {
                Err(Errno::NOTTY | Errno::INVAL) => self.has_procmap_query = false,
                done => count = Some(self.allowed(done).unwrap_or_default()),
            }
        }
        let count = match count {
            Some(count) => count,
            None => self.read_mappings(task, maps.as_fd(), pid, tid),
        };
        if count > MANY_MAPPINGS {
            self.remember(InCommon::Memory, task, tid, begin);
        }
    }

    /// Says how many mappings were looked at; 0 if another task's are the same.
    fn read_mappings(&mut self, task: BorrowedFd<'_>, maps: BorrowedFd<'_>, pid: u32, tid: u32) -> usize {
        let mut count = 0;
        let mut text = std::mem::take(&mut self.maps_text);
        text.clear();
        loop {
            let read = read_some(maps, &mut text);
            let is_at_end = self.allowed(read).is_none_or(|length| length == 0);
            if is_at_end || text.len() >= MAPS_AT_ONCE {
                // The first piece of many.
                if !is_at_end && count == 0 && self.has_been_seen(InCommon::Memory, (pid, tid), self.mark()) {
                    break;
                }
                let whole = memchr::memrchr(b'\n', &text).map_or(0, |last| last + 1);
                self.mapped_in(task, &text[..whole], pid, tid);
                count += memchr::memchr_iter(b'\n', &text[..whole]).count();
                text.drain(..whole);
            }
            if is_at_end || self.is_over() {
                break;
            }
        }
        self.maps_text = text;
        count
    }

    fn mapped_in(&mut self, task: BorrowedFd<'_>, text: &[u8], pid: u32, tid: u32) {
        // Of most processes' text no line is of interest, and one search over all of it tells.
        if !self.needles.iter().any(|needle| needle.find(text).is_some()) {
            return;
        }
        let mut last: &[u8] = &[];
        for (range, path) in mapped_paths(text) {
            if path != last && self.wanted.mount_points.have(path) {
                if self.is_over() {
                    return;
                }
                self.mapping(task, pid, tid, range);
            }
            last = path;
        }
    }

    /// Says how many mappings of files were looked at; 0 if another task's are the same.
    fn query_mappings(
        &mut self,
        task: BorrowedFd<'_>,
        maps: BorrowedFd<'_>,
        pid: u32,
        tid: u32,
    ) -> Result<usize, Errno> {
        let begin = self.mark();
        let mut count = 0;
        let mut address = 0;
        let mut last = None;
        while let Some(mapped) = kernel::mapped_file(maps, address)? {
            if self.is_over() {
                break;
            }
            let file = (mapped.device, mapped.inode);
            if last != Some(file) && self.wanted.devices.contains(&mapped.device) {
                self.mapping(task, pid, tid, (mapped.start, mapped.end));
            }
            last = Some(file);
            address = mapped.end;
            count += 1;
            if count == MANY_MAPPINGS && self.has_been_seen(InCommon::Memory, (pid, tid), begin) {
                return Ok(0);
            }
        }
        Ok(count)
    }

    /// Keeps a mapping, unless it is the program's own or one that the process has already.
    fn mapping(&mut self, task: BorrowedFd<'_>, pid: u32, tid: u32, (start, end): (u64, u64)) {
        let mut name = Vec::with_capacity(64);
        // Writing to a Vec does not fail.
        let Ok(()) = write!(name, "map_files/{start:x}-{end:x}\0") else { return };
        let Ok(name) = CStr::from_bytes_with_nul(&name) else { return };
        let done = self.read_link(task, name);
        if self.allowed(done).is_none() {
            return;
        }
        // Without other mounts the device number says enough, whatever path is shown.
        if self.wanted.devices_are_shared
            && !self.link.is_empty()
            && !self.wanted.mount_points.have(&self.link)
        {
            return;
        }
        let mount = self.mount_of(task, name);
        if self.link.is_empty() && mount.is_none() {
            self.denied = true;
            return;
        }
        let known = self.walk.found.iter().rev().take_while(|found| found.pid == pid);
        let is_known = known.into_iter().any(|found| {
            matches!(found.link, Link::Exe | Link::Mapping) && found.path == self.link && found.mount == mount
        });
        if !is_known {
            let path = self.link.clone();
            self.keep(Found { pid, tid, link: Link::Mapping, path, mount });
        }
    }

    /// Reads a link into the link buffer, which is empty if there is more than a link can show.
    fn read_link(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        match read_link(directory, name, &mut self.link) {
            // The buffer has room for a page, which is where the kernel gives up (fs/proc/base.c:do_proc_readlink).
            Err(Errno::NAMETOOLONG) => {
                self.link.clear();
                Ok(())
            }
            done => done,
        }
    }

    /// Keeps the link that the link buffer has, if it is of interest.
    fn consider(&mut self, directory: BorrowedFd<'_>, name: &CStr, (pid, tid): (u32, u32), link: Link) {
        let is_too_long = self.link.is_empty();
        let by_path = self.wanted.mount_points.have(&self.link);
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
            let path = self.link.clone();
            self.keep(Found { pid, tid, link, path, mount });
        }
    }

    /// The mount that the link leads to, without asking its file system anything (AT_STATX_DONT_SYNC).
    fn mount_of(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Option<OnMount> {
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
    fn allowed<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
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
    let digits = shown.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Range and path of the lines of `/proc/PID/maps` that have one: the path is what follows the first slash, since
/// no column before it has one.
pub(crate) fn mapped_paths(maps: &[u8]) -> impl Iterator<Item = ((u64, u64), &[u8])> {
    maps.split(|&byte| byte == b'\n').filter_map(|line| {
        let path = &line[line.iter().position(|&byte| byte == b'/')?..];
        let range = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
        let (start, end) = range.split_once('-')?;
        Some(((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?), path))
    })
}

/// `None` if it is gone.
fn life(task: BorrowedFd<'_>) -> Option<Life> {
    let mut stat = Vec::new();
    read_file(task, c"stat", &mut stat).ok()?;
    life_of(&stat)
}

fn life_of(stat: &[u8]) -> Option<Life> {
    let stat = Stat::parse(stat)?;
    Some(match stat.is_kernel_thread()? {
        true => Life::KernelThread,
        false if stat.has_ended() => Life::Ended,
        false => Life::Alive,
    })
}

/// Kernel threads by process id, in order, asked for at once: each is a child of kthreadd, and so is a program that the
/// kernel starts (`kernel/umh.c`), which has a program. A list that lacks some costs a look at these, no more: without
/// `CONFIG_PROC_CHILDREN`, in a container, or while one of them ends (proc_pid_task_children(5)).
fn kernel_threads(proc_dir: BorrowedFd<'_>) -> Vec<u32> {
    let mut text = Vec::new();
    let listed = open_task(proc_dir, DecInt::new(KTHREADD).as_c_str()).and_then(|kthreadd| {
        // In a container it is anybody's process.
        if life(kthreadd.as_fd()) != Some(Life::KernelThread) {
            return Err(Errno::SRCH);
        }
        let threads = open_task(kthreadd.as_fd(), c"task")?;
        let thread = open_task(threads.as_fd(), DecInt::new(KTHREADD).as_c_str())?;
        read_file(thread.as_fd(), c"children", &mut text)
    });
    if listed.is_err() {
        return Vec::new();
    }
    let children = text.split(|&byte| byte == b' ').filter_map(number);
    let mut all: Vec<u32> = std::iter::once(KTHREADD).chain(children).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_inside_by_whole_components() {
        let cases = [
            ("/m", "/m", true),
            ("/m", "/m/", true),
            ("/m", "/m/a", true),
            ("/m", "/m (deleted)", true),
            ("/m", "/m/a (deleted)", true),
            ("/m/", "/m/a", true),
            ("/", "/a", true),
            ("/", "/", true),
            ("/", "socket:[1]", false),
            ("/m", "/mm", false),
            ("/m", "/n/m", false),
            ("/m", "/", false),
            ("/m", "", false),
            ("/m", "anon_inode:/m", false),
        ];
        for (mount, shown, expected) in cases {
            let mut points = MountPoints::default();
            points.add(Path::new(mount));
            assert_eq!(points.have(shown.as_bytes()), expected, "{shown} in {mount}");
        }
    }

    #[test]
    fn a_state_and_a_flag_say_how_far_a_task_is() {
        let cases: [(&[u8], Option<Life>); 6] = [
            (b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0", Some(Life::KernelThread)),
            (b"7 (a) Z 0) S 1 7 7 0 -1 4194304 0 0", Some(Life::Alive)),
            (b"7 (a) D 1 7 7 0 -1 4228356 0 0", Some(Life::Alive)),
            (b"7 (a) Z 1 7 7 0 -1 4228364 0 0", Some(Life::Ended)),
            (b"7 (a) S 1 7 7 0 -1", None),
            (b"", None),
        ];
        for (stat, expected) in cases {
            assert_eq!(life_of(stat), expected, "{}", String::from_utf8_lossy(stat));
        }
    }

    #[test]
    fn kernel_threads_are_listed_where_there_are_any() {
        let proc_dir = open_proc().unwrap();
        let listed = kernel_threads(proc_dir.as_fd());
        assert!(listed.is_sorted());
        assert!(!listed.contains(&std::process::id()) && !listed.contains(&1));
        for &pid in &listed {
            let task = open_task(proc_dir.as_fd(), DecInt::new(pid).as_c_str());
            assert_eq!(
                task.ok().and_then(|task| life(task.as_fd())).unwrap_or(Life::KernelThread),
                Life::KernelThread
            );
        }
    }
}
