//! One walk over the tasks under `/proc`: every link that `/proc` shows of them, those of interest kept.
//!
//! Fast, since it is to be run on a busy machine: links are read without an allocation, relative to a task's directory,
//! and compared as text; only a link whose text is of interest costs more. That is then asked for the mount that
//! it lies on, which no text can say: a path may be one of another mount namespace, or older than the mount.
//!
//! Nothing inside a mount is opened or looked up. A readlink of `/proc/PID/cwd` and a statx of it take the same
//! reference (`fs/proc/base.c:proc_pid_readlink`, `proc_pid_get_link`): one more on what that task holds anyway,
//! for the length of the call.
//!
//! A thread is compared with its process by kcmp(2), and scanned by itself only where it has a working
//! directory, a root directory or descriptors of its own.
//!
//! Kernel threads are passed over, by their flag PF_KTHREAD or as children of kthreadd. That a task has no program says
//! nothing: one that ends gives back its memory first, which takes a tenth of a second for a gigabyte, and only then
//! its descriptors and directories (`kernel/exit.c:do_exit`).
//!
//! Before all that a child finds out whose memory can't be looked at: see [`stuck`].

mod files;
mod found;
mod keeper;
mod life;
mod mappings;
mod stuck;
mod wanted;

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::path::DecInt;

use self::files::Files;
pub(crate) use self::found::{CarrierKind, Found, Link, MetNamespace, OnMount, Walk};
pub(crate) use self::keeper::socket_inode;
use self::keeper::{Keeper, Mark, inode_in};
use self::life::{Life, kernel_threads, life};
use self::mappings::Mappings;
#[cfg(any(test, feature = "checks"))]
pub(crate) use self::mappings::mapped_paths;
pub(crate) use self::stuck::{StuckProcess, waits_in};
pub(crate) use self::wanted::{Members, MountPoints, Wanted};
use crate::kernel::InCommon;
use crate::namespace;
use crate::proc::{LINK_ROOM, numbers, open_directory, open_proc, open_task, read_link};
use crate::task::{Detail, Known};

/// In place of what lies below a mount point in a path that is longer.
pub(crate) const TOO_LONG: &str = "...";

/// Walks over all processes, or over those with the given ids, until the deadline. However many links there are, few of
/// a process are kept: see [`Keeper::keep`].
///
/// # Errors
/// If `/proc` cannot be listed. A task that vanishes is no error, one that may not be looked at is counted.
pub(crate) fn walk(wanted: &Wanted, pids: Option<&[u32]>, deadline: Option<Instant>) -> Result<Walk, Errno> {
    let proc_dir = open_proc()?;
    let mut walker = Walker {
        keeper: Keeper::new(wanted, deadline),
        files: Files::new(),
        mappings: Mappings::new(wanted),
        proc_dir: proc_dir.as_fd(),
        entries: Box::new([MaybeUninit::uninit(); 32 << 10]),
        tids: Vec::new(),
        kernel_threads: Vec::new(),
        last_namespace: 0,
    };
    match pids {
        Some(pids) => {
            walker.look_for_stuck(pids);
            walker.processes(pids);
        }
        None => {
            walker.kernel_threads = kernel_threads(proc_dir.as_fd());
            let mut all = Vec::with_capacity(512);
            numbers(proc_dir.as_fd(), &mut walker.entries[..], &mut all)?;
            walker.look_for_stuck(&all);
            walker.processes(&all);
        }
    }
    Ok(walker.keeper.walk)
}

struct Walker<'a> {
    keeper: Keeper<'a>,
    files: Files,
    mappings: Mappings<'a>,
    proc_dir: BorrowedFd<'a>,
    entries: Box<[MaybeUninit<u8>; 32 << 10]>,
    tids: Vec<u32>,
    /// In order; see [`kernel_threads`].
    kernel_threads: Vec<u32>,
    last_namespace: usize,
}

/// What of a task is to be scanned.
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

impl Walker<'_> {
    /// Those that are known are not asked again.
    fn look_for_stuck(&mut self, pids: &[u32]) {
        let mut known = self.keeper.wanted.stuck.clone();
        known.retain(|stuck| pids.contains(&stuck.pid));
        let others = pids.iter().copied().filter(|pid| {
            self.kernel_threads.binary_search(pid).is_err() && !known.iter().any(|stuck| stuck.pid == *pid)
        });
        known.extend(stuck::find(self.proc_dir, others, self.keeper.deadline));
        self.keeper.walk.stuck = known;
    }

    fn processes(&mut self, pids: &[u32]) {
        for (at, &pid) in pids.iter().enumerate() {
            if !self.keeper.is_past_deadline() {
                self.process(pid);
            }
            if self.keeper.is_late {
                let left = pids[at..].iter();
                let left = left.filter(|&pid| self.kernel_threads.binary_search(pid).is_err());
                self.keeper.walk.left = Some(left.count());
                return;
            }
        }
    }

    fn process(&mut self, pid: u32) {
        self.keeper.begin_process();
        match self.keeper.walk.stuck.iter().find(|stuck| stuck.pid == pid) {
            Some(stuck) if stuck.is_whole => {
                self.keeper.walk.pids.push(pid);
                return;
            }
            stuck => self.keeper.is_stuck = stuck.is_some(),
        }
        let Ok(leader) = open_task(self.proc_dir, DecInt::new(pid).as_c_str()) else { return };
        let leader = leader.as_fd();
        let mut room = LINK_ROOM;
        let program = read_link(leader, c"exe", &mut room);
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
        self.keeper.walk.pids.push(pid);
        let program = self.keeper.allowed(program);
        let has_program = program.is_some();
        let mut first = None;
        let begin = self.keeper.mark();
        if let Some(shown) = program {
            self.keeper.consider(leader, c"exe", (pid, pid), Link::Exe, shown);
        }
        if is_alive && !self.keeper.denied {
            let parts = Parts { directories: true, files: true, memory: has_program };
            let has_directories = self.task(leader, (pid, pid), parts);
            first = (has_program || has_directories).then_some(pid);
        }
        self.note(leader, leader, (pid, pid), begin);
        if !self.keeper.denied {
            self.other_threads(leader, pid, Met { first, has_program, is_alive });
        }
        if self.keeper.wanted.networks && self.keeper.has_socket && !self.keeper.denied {
            let network = read_link(leader, c"ns/net", &mut room);
            let networks = &mut self.keeper.walk.networks;
            if let Some(inode) = network.ok().and_then(|shown| inode_in(shown, b"net:["))
                && networks.last().is_none_or(|(last, _)| *last != inode)
                && !networks.iter().any(|(known, _)| *known == inode)
            {
                networks.push((inode, pid));
            }
        }
        self.keeper.walk.denied += usize::from(self.keeper.denied);
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
            if let Some(directory) = self.keeper.allowed(listed) {
                for &tid in tids.iter().filter(|&&tid| tid != pid) {
                    if self.keeper.is_over() {
                        break;
                    }
                    self.keeper.walk.threads.push((pid, tid));
                    self.other_thread(leader, directory.as_fd(), (pid, tid), &mut met);
                }
            }
            self.tids = tids;
        }
        if met.is_alive && !met.has_program && !self.keeper.denied {
            self.keeper.walk.ending.insert(pid);
            self.know(leader, leader, (pid, pid));
        }
    }

    /// Notes who it is, if something was found of it since `begin`.
    fn note(&mut self, leader: BorrowedFd<'_>, task: BorrowedFd<'_>, of: (u32, u32), begin: Mark) {
        let walk = &self.keeper.walk;
        let has_ring =
            walk.carriers[begin.carriers..].iter().any(|carrier| carrier.kind == CarrierKind::Ring);
        let is_member = walk.members.len() > begin.members;
        let has_namespace = walk.namespace_files[begin.namespace_files..]
            .iter()
            .any(|file| self.keeper.wanted.members == Members::Of(file.inode));
        if walk.found.len() > begin.found || has_ring || is_member || has_namespace {
            self.know(leader, task, of);
        }
        // A ring is its process's, through whichever thread it is seen.
        if has_ring && of.0 != of.1 {
            self.know(leader, leader, (of.0, of.0));
        }
    }

    fn know(&mut self, leader: BorrowedFd<'_>, task: BorrowedFd<'_>, (pid, tid): (u32, u32)) {
        let detail = match self.keeper.wanted.detail {
            Detail::All if self.keeper.is_stuck => Detail::AllButPhase,
            detail => detail,
        };
        let tasks = &mut self.keeper.walk.tasks;
        if !tasks.contains_key(&(pid, tid)) {
            tasks.extend(Known::of(leader, task, pid, detail).map(|known| ((pid, tid), known)));
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
                directories: !self.keeper.in_common(first, tid, InCommon::WorkingAndRootDirectory),
                files: self.keeper.has_kcmp && !self.keeper.in_common(first, tid, InCommon::Files),
                memory: false,
            },
            None => Parts { directories: true, files: true, memory: false },
        };
        if met.has_program && !parts.directories && !parts.files {
            return;
        }
        let Ok(thread) = open_task(threads, DecInt::new(tid).as_c_str()) else { return };
        let thread = thread.as_fd();
        let begin = self.keeper.mark();
        // The memory is the process's: through which thread it is seen does not matter.
        if !met.has_program {
            let mut room = LINK_ROOM;
            if let Ok(shown) = read_link(thread, c"exe", &mut room) {
                self.keeper.consider(thread, c"exe", (pid, tid), Link::Exe, shown);
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

    /// Says whether it has directories, of which one that has ended has none; false if they were not asked for.
    fn task(&mut self, task: BorrowedFd<'_>, of: (u32, u32), parts: Parts) -> bool {
        let mut has_directories = false;
        if parts.directories {
            let (mut room, mut other_room) = (LINK_ROOM, LINK_ROOM);
            let cwd = read_link(task, c"cwd", &mut room);
            if let Some(shown) = self.keeper.allowed(cwd) {
                has_directories = true;
                self.keeper.consider(task, c"cwd", of, Link::Cwd, shown);
            }
            let root = read_link(task, c"root", &mut room);
            if let Some(root) = self.keeper.allowed(root) {
                self.keeper.consider(task, c"root", of, Link::Root, root);
                let namespace = read_link(task, c"ns/mnt", &mut other_room);
                if let Some(inode) = self.keeper.allowed(namespace).and_then(namespace::parse_link) {
                    self.met_namespace(of, inode, root);
                }
            }
        }
        if parts.files {
            self.files.scan(&mut self.keeper, task, of);
        }
        if parts.memory && !self.keeper.is_stuck && !self.keeper.wanted.devices.is_empty() {
            self.mappings.scan(&mut self.keeper, task, of);
        }
        has_directories
    }

    /// Notes that a task with this root directory is in the namespace of this number.
    fn met_namespace(&mut self, (pid, tid): (u32, u32), inode: u64, root: &[u8]) {
        let is_member = match self.keeper.wanted.members {
            Members::OfNone => false,
            Members::Of(wanted) => inode == wanted,
            Members::OfAllBut(other) => inode != other,
        };
        if is_member {
            self.keeper.walk.members.push((pid, tid));
        }
        let first_thread = usize::from(pid == tid);
        let known = match self.keeper.walk.namespaces.get_mut(self.last_namespace) {
            Some(last) if last.inode == inode => Some(last),
            _ => {
                let at = self.keeper.walk.namespaces.iter().position(|known| known.inode == inode);
                self.last_namespace = at.unwrap_or(self.keeper.walk.namespaces.len());
                at.map(|at| &mut self.keeper.walk.namespaces[at])
            }
        };
        match known {
            Some(known) => {
                known.processes += first_thread;
                if known.root != b"/" && root == b"/" {
                    known.member = (pid, tid);
                    known.root = root.to_vec();
                }
            }
            None => self.keeper.walk.namespaces.push(MetNamespace {
                inode,
                member: (pid, tid),
                root: root.to_vec(),
                processes: first_thread,
            }),
        }
    }
}
