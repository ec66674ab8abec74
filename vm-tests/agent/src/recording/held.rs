//! Who holds the mount, by a scan or by `holders`, and what that process is.

use serde::{Deserialize, Serialize};

/// Who holds the mount, as of one moment.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Scan {
    /// Why it was taken.
    pub trigger: Trigger,
    /// Whether the scan read all of /proc, or the tasks of the units' cgroups and of those processes outside that the last
    /// whole scan had seen with a reference.
    pub whole_proc: bool,
    /// How long it took, in nanoseconds.
    pub cost_ns: u64,
    /// Whether the watched path was a mount point at that moment.
    pub mounted: bool,
    /// Those with a reference inside, and those whose mount namespace has a copy of the mount.
    pub tasks: Vec<Task>,
}

/// What caused the scan.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// The stop began.
    Stop,
    /// A task of one of the units called execve (proc connector).
    Exec,
    /// A task of one of the units ended (proc connector).
    Exit,
    /// The clock of [`Plan::sample_us`].
    Tick,
    /// The watched path was mounted or unmounted.
    Mount,
    /// A umount(2) failed.
    UmountFailed,
    /// The command of the step ended.
    End,
}

/// The answer of `holders` at one moment.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Diagnosis {
    /// Why it was asked.
    pub why: Why,
    /// How long it took, in nanoseconds.
    pub cost_ns: u64,
    /// What it found.
    pub found: Found,
    /// The verdict in a line (`holders::Report::line`).
    pub line: String,
    /// What to do about it, with who it is (`holders::Report::told`).
    pub advice: Vec<String>,
    /// The processes that block the unmount; where the mount is gone, those that keep its file system.
    pub blockers: Vec<Blocker>,
}

/// Why a diagnosis was asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// A umount2(2) of the watched mount was EBUSY.
    UmountFailed,
    /// The stop has lasted long, and the mount is still there.
    Late,
    /// The reset has ended, and the mount is still there, or its file system is.
    Left,
}

/// The verdicts of `holders` (`holders::Verdict`), without what they name. One that holds it by itself is among the
/// processes: the recorder asks, and is none of them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// Processes block it.
    HeldByProcess,
    /// The kernel does: a loop device, a swap file.
    HeldByKernel,
    /// Other mounts lie on it.
    Submounts,
    /// It was refused, and nothing that `/proc` shows is the reason.
    NotVisible,
    /// Nothing blocks it, and the file system would live on.
    Outlives,
    /// It is not mounted, and the file system lives on.
    AliveElsewhere,
    /// Nothing blocks it; other namespaces have copies.
    OnlyListed,
    /// It is not mounted, and nothing is left of it.
    NotMounted,
    /// Nobody refers to it.
    Free,
}

/// A process that holds the mount, as a person is told of it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Blocker {
    /// Process id.
    pub pid: u32,
    /// comm of the thread that was found first.
    pub comm: String,
    /// Its place in the unit.
    pub role: Role,
    /// The unit its cgroup belongs to; empty if none.
    pub unit: String,
    /// Its mount namespace; 0 if it was gone before that was asked.
    pub namespace: Namespace,
    /// What it holds, each kind once.
    pub kinds: Vec<Kind>,
    /// Its command line, escaped, at most some 200 characters; empty if it was gone before that was asked.
    pub command: String,
    /// Its user.
    pub user: String,
    /// How long it had been there, in seconds.
    pub age_secs: u64,
}

/// A task that has to do with the mount.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Thread id; the process id for its first thread.
    pub tid: u32,
    /// comm.
    pub comm: String,
    /// Its place in the unit: from ControlPID, MainPID and its cgroup.
    pub role: Role,
    /// The unit its cgroup belongs to; empty if none.
    pub unit: String,
    /// The mount namespace it is in.
    pub namespace: Namespace,
    /// Whether that namespace is another one than PID 1's and has a copy of the mount.
    pub private_copy: bool,
    /// What it holds inside the mount. Empty: it is listed for its namespace only, which blocks nothing.
    pub references: Vec<Reference>,
}

/// A task's place in the unit under test. In the unit that makes and unmakes the mount all are control processes and
/// their children, its ExecStart included: they work on the mount, and none of them is what is mounted for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The main process.
    Main,
    /// Another process of the unit, while the main process or its descendants are meant.
    Child,
    /// The process of an Exec line other than ExecStart (systemd's ControlPID), or of any of the mount's unit.
    Control,
    /// A descendant of the control process.
    ControlChild,
    /// In neither unit's cgroup.
    Outside,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Main, Self::Child, Self::Control, Self::ControlChild, Self::Outside];

    /// The word for manifests, tables and snapshots.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Child => "child",
            Self::Control => "control",
            Self::ControlChild => "control-child",
            Self::Outside => "outside",
        }
    }
}

/// A mount namespace.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct Namespace {
    /// The inode number of `/proc/PID/ns/mnt`. The kernel reuses it: never take it for identity.
    pub inode: u64,
    /// The unique id (`NS_GET_MNTNS_ID`, Linux 6.11 and newer), where the kernel has one.
    pub id: Option<u64>,
}

/// One reference inside the mount.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reference {
    /// What kind.
    pub kind: Kind,
    /// The path as /proc shows it.
    pub path: String,
}

/// The kinds of reference that /proc shows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Working directory.
    Cwd,
    /// Root directory.
    Root,
    /// The program it runs.
    Exe,
    /// An open file.
    File,
    /// A memory mapping.
    Mapping,
    /// A Unix socket that is bound to a path.
    Socket,
    /// A call under way that was given a path.
    Call,
    /// A file that is registered with io_uring.
    IoUring,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cwd,
        Self::Root,
        Self::Exe,
        Self::File,
        Self::Mapping,
        Self::Socket,
        Self::Call,
        Self::IoUring,
    ];

    /// The word for tables and snapshots.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cwd => "cwd",
            Self::Root => "root",
            Self::Exe => "exe",
            Self::File => "file",
            Self::Mapping => "mapping",
            Self::Socket => "socket",
            Self::Call => "call",
            Self::IoUring => "io_uring",
        }
    }

    /// As `holders` says it to a person.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Cwd => "working directory",
            Self::Root => "root directory",
            Self::Exe => "program",
            Self::Socket => "bound socket",
            Self::Call => "call under way",
            Self::File | Self::Mapping | Self::IoUring => self.word(),
        }
    }
}
