//! The plan of a run and what comes back: one list of timestamped events.
//!
//! Everything that is shown later (probe lines, tables, JSON, snapshots) is a fold over [`Recording::events`].
//! Times are nanoseconds of the guest's CLOCK_MONOTONIC since the plan began.

mod held;

use serde::{Deserialize, Serialize};

pub use held::{Blocker, Diagnosis, Found, Kind, Namespace, Reference, Role, Scan, Task, Trigger, Why};

/// What to run and what to watch. Handed to the guest as a whole before it starts, so that nothing the host
/// does falls between two steps.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Plan {
    /// The unit under test, `left4me-server@3.service`.
    pub unit: String,
    /// The user whose manager has that unit; `None`: it is one of the system.
    #[serde(default)]
    pub user: Option<String>,
    /// The unit of the system whose commands make and unmake the mount, where that is not the unit under test:
    /// `left4me-overlay@3.service`.
    pub mount_unit: Option<String>,
    /// The mount point under watch, an absolute path without symbolic links; `None`: there is none.
    pub mount: Option<String>,
    /// More of them: what happens to one is a [`What::OfMount`], by its place here, from 1.
    pub other_mounts: Vec<String>,
    /// Paths, absolute, that a reset is meant to remove; those that are there after one are [`What::LeftOver`].
    /// None may lie inside the mount: reading it would hold the mount.
    pub removed: Vec<String>,
    /// Block devices that must be free after a reset; those that are not are [`What::DeviceKept`].
    #[serde(default)]
    pub free_devices: Vec<String>,
    /// How many cycles to run.
    pub cycles: u32,
    /// Whether systemd's count of the units' starts goes on from cycle to cycle, and with it their start limits
    /// (systemd.unit(5), `StartLimitIntervalSec=`). Else it is taken back before each cycle.
    #[serde(default)]
    pub keeps_start_limit: bool,
    /// Brings the unit up; a status other than 0 ends the run after this cycle.
    pub start: Vec<String>,
    /// Brings it down again; its status is part of the recording.
    pub reset: Vec<String>,
    /// Run during each reset, each once, when its moment is there.
    #[serde(default)]
    pub during: Vec<During>,
    /// Run, in this order, after each reset and what is read of its end, before [`Plan::recover`]; not timed. How they
    /// ended is part of the recording.
    #[serde(default)]
    pub checks: Vec<Vec<String>>,
    /// Run by the host, in this order, when the machine that the reset has shut down has booted again.
    #[serde(default)]
    pub boot_checks: Vec<Vec<String>>,
    /// Run, in this order, after a cycle that left something mounted, a process of one of the units, or one of them
    /// failed; not timed.
    pub recover: Vec<Vec<String>>,
    /// The longest a single command may take, in milliseconds of guest time; it is ended then.
    pub command_timeout_ms: u64,
    /// Period of the scans of the units' tasks while a stop is in flight, in microseconds.
    pub sample_us: u64,
}

/// A command that is run during a reset.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct During {
    /// When.
    pub when: Moment,
    /// The program and its arguments.
    pub run: Vec<String>,
}

/// A moment of a reset.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// The unit under test is in this state, or comes to it.
    State {
        /// ActiveState.
        active: String,
        /// SubState, if not any.
        sub: Option<String>,
    },
    /// So many milliseconds of guest time after the reset's begin.
    After {
        /// How many.
        ms: u64,
    },
}

impl Plan {
    /// Each mount point under watch, with its number: 0 is [`Plan::mount`].
    pub fn mounts(&self) -> impl Iterator<Item = (u32, &str)> {
        let first = self.mount.iter().map(|path| (0, path.as_str()));
        first.chain((1..).zip(self.other_mounts.iter().map(String::as_str)))
    }
}

/// What a run was and what happened.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Recording {
    /// The plan that was run.
    pub plan: Plan,
    /// `uname -r`.
    pub kernel: String,
    /// systemd's own version, as its D-Bus property `Version` says.
    pub systemd: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// When the plan began: nanoseconds of CLOCK_MONOTONIC, the time that the journal and the kernel's log have too.
    #[serde(default)]
    pub began_ns: u64,
    /// In the order of [`Event::at`].
    pub events: Vec<Event>,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC since the plan began.
    pub at: u64,
    /// Which cycle it belongs to, from 1; 0 is before the first.
    pub cycle: u32,
    /// What.
    pub what: What,
}

/// The kinds of event.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A command of the plan begins.
    StepBegins(Step),
    /// A command of the plan has ended.
    StepEnds(StepEnd),
    /// What systemd knows of failed starts, and how many there were, is about to be taken back: the cycle is over.
    StartsForgotten,
    /// The unit's state changed, from PropertiesChanged on D-Bus. `at` is systemd's StateChangeTimestampMonotonic
    /// where the change has one.
    Unit(UnitState),
    /// The same of [`Plan::mount_unit`].
    MountUnit(UnitState),
    /// One run of one Exec line of either unit, from its `Exec*Ex` properties, or of its main process, from `ExecMain*`;
    /// read after the command ended. `at` is its start.
    Exec(Exec),
    /// Every process that is in the cgroups of the two units at this moment, while a stop takes long.
    Alive(Vec<Alive>),
    /// The watched path became a mount point (mountinfo of PID 1's namespace).
    Mounted(Mounted),
    /// The watched path is no mount point any more.
    Unmounted,
    /// The start has ended, and the watched path is no mount point in PID 1's mount namespace.
    NotMounted {
        /// The mount namespaces in which it is one: that of a unit with `PrivateTmp=` or the like, say.
        elsewhere: Vec<MountCopy>,
    },
    /// A umount(2) by anyone, from the tracepoint `sys_exit_umount`. `at` is its entry.
    UmountCall(UmountCall),
    /// Who holds the mount, as of this moment: by paths alone, and no verdict.
    Scan(Scan),
    /// Why the mount is busy, or what is left of it, as `holders` says it.
    Diagnosis(Diagnosis),
    /// One of the kinds above, or [`What::EndState`], of one of [`Plan::other_mounts`].
    OfMount {
        /// Which, from 1.
        mount: u32,
        /// What.
        what: Box<What>,
    },
    /// A path of [`Plan::removed`] is still there after the reset.
    LeftOver {
        /// Which.
        path: String,
    },
    /// A device of [`Plan::free_devices`] is not free after the reset.
    DeviceKept {
        /// Which.
        device: String,
        /// What keeps it, in words; never empty.
        by: Vec<String>,
    },
    /// What is left when a reset has ended, before anything recovers from it.
    EndState(EndState),
    /// What systemd and the journal say of a cycle that has failed or needs recovery, before anything recovers from it. Once
    /// for each way to fail: cycles with the same exits and the same need have one.
    Evidence(Evidence),
    /// The kernel logged something of level warning or worse. `at` is when it was read, at the end of a step.
    KernelWarning {
        /// The message.
        text: String,
    },
    /// A process died of a signal that dumps core, whether or not one was written.
    Coredump {
        /// The process.
        pid: u32,
        /// Its comm.
        comm: String,
    },
    /// What the console said after the recording, when the machine that was shut down had stopped all units: from
    /// systemd-shutdown and the kernel. Added by the host.
    Console {
        /// Its lines.
        lines: Vec<String>,
    },
    /// A source of events lost some: what is recorded is not all that happened.
    Lost {
        /// `proc-connector`, `tracefs`, `d-bus`, `mountinfo`, `kmsg` or `scan`.
        source: String,
        /// What the source said.
        why: String,
    },
}

/// A command of the plan.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// [`Plan::start`].
    Start,
    /// [`Plan::reset`].
    Reset,
    /// One of [`Plan::during`].
    During,
    /// One of [`Plan::checks`].
    Check,
    /// One of [`Plan::recover`].
    Recover,
    /// One of [`Plan::boot_checks`]: it has no begin, and a duration of 0, as the recorder's clock has ended with the
    /// machine.
    BootCheck,
}

/// How a command of the plan ended.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct StepEnd {
    /// Which.
    pub step: Step,
    /// Of a step with several commands: which of the plan's list, from 0.
    #[serde(default)]
    pub index: u32,
    /// Its status; `None` if it ran into [`Plan::command_timeout_ms`].
    pub exit: Option<Exit>,
    /// From before its fork to after its wait, in nanoseconds.
    pub duration_ns: u64,
    /// What it wrote, at most 64 KiB of each, lossily as UTF-8.
    pub stdout: String,
    /// See `stdout`.
    pub stderr: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether the status is 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The unit as systemd sees it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, Default)]
pub struct UnitState {
    /// ActiveState.
    pub active: String,
    /// SubState.
    pub sub: String,
    /// Result of the service.
    pub result: String,
    /// MainPID, 0 if none.
    pub main_pid: u32,
    /// ControlPID, 0 if none.
    pub control_pid: u32,
    /// NRestarts.
    pub restarts: u32,
}

/// One run of one Exec line (org.freedesktop.systemd1(5), `a(sasasttttuii)`).
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exec {
    /// The unit that has the line.
    #[serde(default)]
    pub unit: String,
    /// `ExecStartPre`, `ExecStart`, `ExecStop` and so on, or [`MAIN`].
    pub line: String,
    /// The command and its arguments; empty of the main process.
    pub argv: Vec<String>,
    /// The process it ran as.
    pub pid: u32,
    /// When it ended, nanoseconds since the plan began; `None` while it runs.
    pub ended: Option<u64>,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
}

/// The [`Exec::line`] of a service's main process.
pub const MAIN: &str = "main";

/// The lines of a service whose runs are recorded (systemd.service(5)), in the order in which it comes to them.
pub const EXEC_LINES: [&str; 7] =
    ["ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"];

/// A process of one of the units.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Alive {
    /// Process id.
    pub pid: u32,
    /// comm.
    pub comm: String,
    /// Its place in the unit.
    pub role: Role,
}

/// A line of mountinfo.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Mounted {
    /// The mount id; reused by the kernel after an unmount.
    pub mount_id: u64,
    /// `major:minor` of the superblock.
    pub device: String,
    /// The file system's type.
    pub fstype: String,
}

/// A call of umount2(2).
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct UmountCall {
    /// The caller's thread id.
    pub pid: u32,
    /// Its comm.
    pub comm: String,
    /// The caller's place in the unit.
    pub role: Role,
    /// When it returned, nanoseconds since the plan began.
    pub returned: u64,
    /// 0, or a negative errno.
    pub result: i64,
    /// Which mount it was about.
    #[serde(default)]
    pub target: Target,
}

/// Which mount a call of umount2(2) was about, by the path that it named.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The watched one, in PID 1's mount namespace.
    Mount,
    /// The watched path in another mount namespace.
    Copy,
    /// Another path. Such a call is recorded if the watched path ceased to be a mount point during it: a mount above it
    /// that went lazily, say.
    Other,
    /// The kernel did not show the path, or it has a link in it.
    #[default]
    Unknown,
}

/// What is left when a reset has ended. Clean is: nothing, and a silent remount.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct EndState {
    /// Where the file system that the start had mounted is still mounted: one for each mount namespace that has a
    /// process and a mount of that device number. Empty too if the start had mounted nothing.
    pub mounted_in: Vec<MountCopy>,
    /// What is still in the cgroups of the unit and of the mount's unit: each process's pid and comm.
    pub processes: Vec<(u32, String)>,
    /// Every unit of the machine that is `failed`.
    pub failed_units: Vec<String>,
    /// Whether the same layers can be mounted again.
    pub remount: Remount,
}

/// What systemd and the journal say at the end of a cycle, as text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Evidence {
    /// `systemctl status` and `systemctl show` of the units, at most 64 KiB.
    pub units: String,
    /// The units' part of the journal since the cycle began, its last 200 lines, each with the time since the machine's
    /// boot in seconds.
    pub journal: String,
}

impl EndState {
    /// Whether the file system that the start had mounted is alive, here or elsewhere.
    #[must_use]
    pub fn lives_on(&self) -> bool {
        let is_in_use = match self.remount {
            Remount::Tried { result, in_use } => in_use || result == EBUSY,
            Remount::NotTried { .. } => false,
        };
        is_in_use || !self.mounted_in.is_empty()
    }
}

/// A result of a system call that is busy (errno(3)), on every architecture.
pub const EBUSY: i64 = -16;

/// A mount namespace in which a file system is mounted.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct MountCopy {
    /// The first process found in it.
    pub pid: u32,
    /// Its comm.
    pub comm: String,
    /// The unit its cgroup belongs to; empty if none.
    pub unit: String,
    /// Which namespace.
    pub namespace: Namespace,
    /// Where it is mounted, as that namespace has it.
    pub mount_points: Vec<String>,
}

/// What making an overlay's file system again, of the layers that the start had mounted, says. Nothing is attached
/// anywhere: fsopen(2), fsconfig(2), close.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Remount {
    /// It was not tried.
    NotTried {
        /// Why: one of [`Remount::WHY_NOT`].
        why: String,
    },
    /// It was tried.
    Tried {
        /// 0, or a negative errno.
        result: i64,
        /// Whether the kernel logged that upper or work layer are in use (`fs/overlayfs/super.c:ovl_report_in_use`).
        in_use: bool,
    },
}

impl Remount {
    /// All reasons not to try, which a manifest may name.
    pub const WHY_NOT: [&str; 5] =
        ["nothing was mounted", "no overlay", "still mounted", "upper or work is gone", "no kernel log"];
}
