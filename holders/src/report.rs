//! What a diagnosis found, as values: the mount, its copies, who refers to them, and what each of these does.

#[cfg(any(test, feature = "checks"))]
#[cfg_attr(not(test), expect(dead_code, reason = "the checks need some of them, the tests all"))]
pub(crate) mod samples;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags};

use crate::mountinfo::{Device, Mount, in_context};
use crate::namespace::MountNamespace;
pub use crate::person::Person;
use crate::printable::{printable, shown};
use crate::propagation::Fate;
pub use crate::stuck::Stuck;
pub use crate::task::{Phase, Relation};

/// All that [`crate::diagnose`] found out about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The path that was asked about.
    pub path: PathBuf,
    /// What it was meant as.
    pub asked: Asked,
    /// The mount namespace in which it was looked up: the caller's.
    pub namespace: MountNamespace,
    /// The mount that is visible there; `None` if the path is no mount point.
    pub mount: Option<Mount>,
    /// If it is no mount point: the mount that it lies on.
    pub lies_on: Option<Mount>,
    /// How many more mounts lie at the same path below the visible one; each takes an unmount of its own.
    pub stacked: usize,
    /// The file systems that the report is about: that of the mount; for a path that is no mount point, those
    /// that were asked about or are mounted at the same path in another namespace, and nowhere in this one.
    pub devices: Vec<Device>,
    /// All other mounts of these file systems, in every namespace that can be seen.
    pub copies: Vec<MountCopy>,
    /// Mounts that lie on the mount or below it, in the same namespace. One is enough for EBUSY.
    pub submounts: Vec<Mount>,
    /// Tasks with a reference, by process id, then thread id.
    pub holders: Vec<Holder>,
    /// References that no process has.
    pub kernel_holders: Vec<KernelHolder>,
    /// What may carry further files, which nothing shows. Looked for only after an unmount was refused
    /// ([`Report::refused`]) and where nothing else blocks: each has to be asked by itself.
    pub suspects: Vec<Suspect>,
    /// The namespaces with a mount of these file systems, but for the caller's.
    pub namespaces: Vec<NamespaceUse>,
    /// What could not be seen.
    pub unseen: Unseen,
    /// Whether the caller said that an unmount was just refused ([`crate::Query::after_ebusy`]).
    pub refused: bool,
    /// How many processes were scanned, kernel threads not counted.
    pub processes: usize,
}

/// What a path was meant as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Asked {
    /// A mount point, or what was one.
    #[default]
    MountPoint,
    /// A layer of overlays: who makes a new mount of it say EBUSY.
    Layer,
    /// A block device that is not mounted here: who makes whatever wants it alone say EBUSY.
    BlockDevice,
}

/// Another mount of the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountCopy {
    /// The mount, its mount point as seen from its namespace's root.
    pub mount: Mount,
    /// Where it lies.
    pub namespace: MountNamespace,
    /// What an unmount does with it; `None` if the path is no mount point, so that there is none to come.
    pub fate: Option<Fate>,
}

/// A task with a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Thread id; the process id for the first thread.
    pub tid: u32,
    /// The thread's name, at most 15 bytes, lossily as UTF-8, with control characters escaped.
    pub comm: String,
    /// When the process started, in clock ticks since boot (proc_pid_stat(5), `starttime`); with the process id
    /// it names the process for good.
    pub start_time: u64,
    /// Its cgroup in the v2 hierarchy, as `/system.slice/x.service`; empty if it has none.
    pub cgroup: String,
    /// The systemd unit that the cgroup belongs to. Of systemd itself, where all that it holds are sockets and FIFOs of
    /// `.socket` units: those, with spaces between them.
    pub unit: Option<String>,
    /// What systemd started it for, as far as the task itself shows.
    pub phase: Phase,
    /// Whether it is the caller's own.
    pub relation: Relation,
    /// The mount namespace it is in; `None` if the caller may not know.
    pub namespace: Option<MountNamespace>,
    /// More of it, if it blocks: asked last, so that it can be gone.
    pub person: Option<Person>,
    /// What it holds.
    pub references: Vec<Reference>,
}

/// A reference of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What kind.
    pub kind: Kind,
    /// The path as `/proc` shows it, so as seen from the root of the namespace it lies in, and possibly with
    /// ` (deleted)` at its end. For a socket the path that it is bound to. Of a path that is longer than a link can
    /// show (4,096 bytes) the mount point that it lies below, and `...`.
    pub path: PathBuf,
    /// The id of the mount it lies on, as mountinfo shows it; `None` if the kernel does not say.
    pub mount_id: Option<u64>,
    /// The id of that mount that is never reused; `None` before Linux 6.8.
    pub unique_mount_id: Option<u64>,
    /// The namespace in which that mount lies; `None` if it is in none (it was detached) or can't be told.
    pub mount_namespace: Option<MountNamespace>,
    /// What it does.
    pub effect: Effect,
}

/// The kinds of reference that a task can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Working directory.
    Cwd,
    /// Root directory.
    Root,
    /// The program it runs.
    Exe,
    /// An open file or directory, O_PATH ones too.
    File {
        /// Its descriptor.
        fd: u32,
    },
    /// A mapped file; the program's own mapping is not repeated.
    Mapping,
    /// A Unix socket that is bound to a path.
    Socket {
        /// Its descriptor.
        fd: u32,
    },
    /// A call under way that was given a path there: it holds what it has found of that, and has no descriptor yet.
    Call {
        /// The call's name, `openat`.
        name: &'static str,
    },
    /// A file that is registered with io_uring, whether or not it is also open.
    RegisteredFile {
        /// The descriptor of the io_uring instance.
        ring: u32,
    },
}

/// What a reference does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Unmounting fails with EBUSY while it lasts.
    BlocksUmount,
    /// It is on a mount that lies on this one: that has to be unmounted first, which this blocks.
    BlocksSubmount,
    /// It blocks nothing, but the file system lives on after the unmount while it lasts.
    KeepsSuperblock,
    /// It shows the same path, and blocks nothing: it is on another mount, in another namespace or older than
    /// the mount.
    Harmless,
    /// It shows the same path, and nothing says which mount it is on.
    Unclear,
}

/// A reference that no process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHolder {
    /// What it is.
    pub kind: KernelKind,
    /// The file, as the kernel shows it.
    pub path: PathBuf,
    /// What it does.
    pub effect: Effect,
    /// Where the device that the file backs, or one on top of that, is mounted in the caller's namespace.
    pub mounted_at: Vec<PathBuf>,
    /// The devices on top of it that have to go first, the topmost first: names of device-mapper, else of the kernel.
    pub above: Vec<String>,
}

/// What can have a file without a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelKind {
    /// A loop device, by its name: `loop0`.
    Loop(String),
    /// A swap file.
    Swap,
    /// The interpreter of a binfmt_misc entry with the flag F, by the entry's name.
    BinfmtMisc(String),
    /// A uprobe that tracefs lists, by its group and name.
    Uprobe(String),
    /// An export of the kernel's NFS server, by the client that it is for.
    NfsExport(String),
    /// A file that LIO serves as a disk, by the back store's name.
    LioFile(String),
    /// A layer of an overlay, by the overlay's mount point. Overlayfs keeps a private copy of the mount, so this
    /// blocks nothing.
    OverlayLayer(PathBuf),
}

/// What may carry files which no link shows: a descriptor, or a process in its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Process id.
    pub pid: u32,
    /// The process's name.
    pub comm: String,
    /// The descriptor of the socket or io_uring instance; `None` for what is no descriptor.
    pub fd: Option<u32>,
    /// What it carries.
    pub carries: Carries,
}

/// What a suspect carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Descriptors that were sent over a Unix socket (SCM_RIGHTS) and are not received yet; how many.
    InFlight(u32),
    /// Files registered with io_uring; how many.
    Registered(u32),
    /// Events of fanotify that are not read yet: how many is not told.
    Events,
    /// What a process had mapped or open that is ending, and shows neither any more before it lets go of both.
    Rest,
}

/// A namespace with a mount of the file system, and what keeps that namespace alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceUse {
    /// Which one.
    pub namespace: MountNamespace,
    /// How many processes are in it.
    pub processes: usize,
    /// One of them, with its name and unit.
    pub member: Option<Member>,
    /// Open descriptors of it: process id, descriptor.
    pub files: Vec<(u32, u32)>,
    /// Where it is bind mounted (`mount --bind /proc/PID/ns/mnt FILE`), in the namespaces that can be seen.
    pub binds: Vec<PathBuf>,
}

/// A process of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The systemd unit of its cgroup.
    pub unit: Option<String>,
}

/// Why `/proc` has not all processes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartialView {
    /// It is that of a pid namespace, as in a container: it has the processes in it and no others.
    PidNamespace,
    /// It is mounted with `hidepid=`, and hides those of other users.
    Hidden,
}

/// What the caller may not or the kernel can't show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Other processes of the machine are not even listed.
    pub view: Option<PartialView>,
    /// Processes that could not be inspected, wholly or in part.
    pub processes: usize,
    /// Namespaces that something keeps alive, but whose mounts this kernel lists to nobody outside (before Linux
    /// 6.11) or not to this user.
    pub namespaces: Vec<MountNamespace>,
    /// Whether namespaces that no process shows could be looked for at all.
    pub namespace_list: bool,
    /// The deadline came before the end.
    pub cut_short: Option<CutShort>,
    /// It could not be asked which sockets are bound to a file: this kernel has no unix_diag, or not for this user. Then no
    /// socket is accused.
    pub bound_sockets: bool,
    /// Network namespaces whose sockets could not be asked for.
    pub networks: usize,
    /// Processes that were not looked at, wholly or in part, as the look would not have come back.
    pub stuck: Vec<Stuck>,
    /// How many references were found and are not listed, since the list has enough of the same kind, on the same mount
    /// and of the same process.
    pub references: usize,
}

impl Unseen {
    /// Whether a process may have been missed, wholly or in part, so that one that blocks the unmount can be among those.
    #[must_use]
    pub fn hides_processes(&self) -> bool {
        self.view.is_some() || self.processes > 0 || !self.stuck.is_empty() || self.cut_short.is_some()
    }
}

/// How far a scan came that had no time left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutShort {
    /// How many processes were scanned, the last perhaps in part.
    pub processes: usize,
    /// How many were not, or not to their end; some kernel threads may be among them.
    pub left: usize,
}

/// A process that makes the unmount fail, as one who wants to wait for it or to end it needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Process id.
    pub pid: u32,
    /// See [`Holder::start_time`].
    pub start_time: u64,
    /// The name of the thread that was found first.
    pub comm: String,
    /// See [`Holder::cgroup`].
    pub cgroup: String,
    /// See [`Holder::unit`].
    pub unit: Option<String>,
    /// See [`Holder::phase`].
    pub phase: Phase,
    /// See [`Holder::relation`].
    pub relation: Relation,
    /// By what it blocks, each once.
    pub kinds: Vec<Kind>,
}

impl Report {
    /// The question as a command line, for somebody who may see more: another user, or the host of a container. It names the
    /// file system, which may be mounted elsewhere there.
    #[must_use]
    pub fn command(&self) -> String {
        let busy = if self.refused { "--busy " } else { "" };
        let layer = if self.asked == Asked::Layer { "--layer " } else { "" };
        let devices = self.devices.iter().map(|device| format!("--device {device} ")).collect::<String>();
        let path = shown(&self.path);
        let is_plain = |one: char| one.is_ascii_alphanumeric() || "/._-@:+,".contains(one);
        let path =
            if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) };
        format!("holders {busy}{layer}{devices}{path}")
    }

    /// The processes that make the unmount fail, each once, by process id. Threads count as their process, whose
    /// pidfd says when the last of them has ended.
    #[must_use]
    pub fn blockers(&self) -> Vec<Blocker> {
        let mut blockers: BTreeMap<u32, Blocker> = BTreeMap::new();
        for holder in &self.holders {
            let blocking = holder.references.iter().filter(|held| held.effect == Effect::BlocksUmount);
            for reference in blocking {
                let blocker = blockers.entry(holder.pid).or_insert_with(|| Blocker {
                    pid: holder.pid,
                    start_time: holder.start_time,
                    comm: holder.comm.clone(),
                    cgroup: holder.cgroup.clone(),
                    unit: holder.unit.clone(),
                    phase: holder.phase,
                    relation: holder.relation,
                    kinds: Vec::new(),
                });
                if !blocker.kinds.iter().any(|kind| kind.word() == reference.kind.word()) {
                    blocker.kinds.push(reference.kind);
                }
            }
        }
        blockers.into_values().collect()
    }
}

impl Blocker {
    /// A pidfd of the process, to poll for its end; `None` if it has ended, even if its id is in use again.
    ///
    /// # Errors
    /// What pidfd_open(2) says but ESRCH.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(file) => Ok(crate::task::start_time(self.pid)
                .is_some_and(|start_time| start_time == self.start_time)
                .then_some(file)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(in_context("pidfd_open", &self.pid.to_string(), error.into())),
        }
    }
}

impl Kind {
    /// A short word, the same in texts and in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cwd => "cwd",
            Self::Root => "root",
            Self::Exe => "exe",
            Self::File { .. } => "file",
            Self::Mapping => "mapping",
            Self::Socket { .. } => "socket",
            Self::Call { .. } => "call",
            Self::RegisteredFile { .. } => "io_uring",
        }
    }
}

impl Effect {
    /// A few words, the same in texts and in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::BlocksUmount => "blocks umount",
            Self::BlocksSubmount => "blocks umount of a submount",
            Self::KeepsSuperblock => "only keeps the superblock alive",
            Self::Harmless => "harmless",
            Self::Unclear => "unclear",
        }
    }
}

impl fmt::Display for PartialView {
    /// `/proc has the processes of this pid namespace only`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PidNamespace => "/proc has the processes of this pid namespace only",
            Self::Hidden => "/proc hides the processes of other users (hidepid=)",
        })
    }
}

impl fmt::Display for CutShort {
    /// `the scan was cut short after 312 processes, 40 not reached`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, left } = self;
        write!(
            f,
            "the scan was cut short after {processes} process{}",
            if *processes == 1 { "" } else { "es" }
        )?;
        if *left > 0 { write!(f, ", {left} not reached") } else { Ok(()) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cwd => f.write_str("working directory"),
            Self::Root => f.write_str("root directory"),
            Self::Exe => f.write_str("program"),
            Self::File { fd } => write!(f, "file {fd}"),
            Self::Mapping => f.write_str("mapping"),
            Self::Socket { fd } => write!(f, "bound socket {fd}"),
            Self::Call { name } => write!(f, "{name} under way"),
            Self::RegisteredFile { ring } => write!(f, "file registered with io_uring {ring}"),
        }
    }
}

impl fmt::Display for Blocker {
    /// `35259 (left4me-overlay) of left4me-server@3.service, stop command: working directory`, or
    /// `35300 (srcds_linux) of left4me-server@3.service, which is ending: working directory`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.comm)?;
        if let Some(unit) = &self.unit {
            write!(f, " of {unit}")?;
        }
        if let Some(phase) = self.phase.clause() {
            write!(f, ", {phase}")?;
        }
        for (at, kind) in self.kinds.iter().enumerate() {
            write!(f, "{}{kind}", if at == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop(name) => write!(f, "loop device /dev/{name}"),
            Self::Swap => f.write_str("swap file"),
            Self::BinfmtMisc(name) => write!(f, "binfmt_misc interpreter of {}", printable(name)),
            Self::Uprobe(name) => write!(f, "uprobe {}", printable(name)),
            Self::NfsExport(client) => write!(f, "NFS export to {}", printable(client)),
            Self::LioFile(name) => write!(f, "LIO back store {}", printable(name)),
            Self::OverlayLayer(at) => write!(f, "layer of the overlay at {}", shown(at)),
        }
    }
}
