//! One [`Cycle`]: the result of folding its events. Tables, probe lines, JSON and snapshots are all made from this.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vm_agent::recording::{Blocker, Diagnosis};
use vm_agent::recording::{EndState, Kind, MountCopy, Remount, Role, Task, UnitState};
use vm_agent::wire::Exit;

use crate::scenario::verdict::MountVerdict;

/// One cycle, as far as it was recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cycle {
    /// From 1.
    pub number: u32,
    /// How the start command ended; `None` if it ran into its deadline.
    pub start_exit: Option<Exit>,
    /// From fork to wait, nanoseconds of guest time.
    pub start_ns: u64,
    /// What the start command wrote to stderr.
    #[serde(default)]
    pub start_stderr: String,
    /// What there was when the reset began.
    #[serde(default)]
    pub before: Before,
    /// How the reset command ended; `None` if it ran into its deadline or never ran.
    pub reset_exit: Option<Exit>,
    /// From fork to wait, nanoseconds of guest time.
    pub reset_ns: u64,
    /// The unit after the reset.
    pub unit: UnitState,
    /// The unit that makes and unmakes the mount, after the reset; `None` where the unit under test does that itself.
    #[serde(default)]
    pub mount_unit: Option<MountUnit>,
    /// The unit's states from the start on, `ActiveState/SubState`, repetitions left out.
    pub states: Vec<String>,
    /// The runs of Exec lines, in order.
    pub execs: Vec<ExecOutcome>,
    /// The main processes of the two units, in order: `line` is `main`, and there is no `program`.
    #[serde(default)]
    pub mains: Vec<ExecOutcome>,
    /// The calls of umount2(2), up to the reset's end.
    pub umounts: Vec<Umount>,
    /// Who held the mount when the reset began.
    pub holders_at_stop: Vec<Holder>,
    /// Who held it at the last moment before each umount2.
    pub holders_at_umount: Vec<Holder>,
    /// Units, in the order of their names, whose processes were in a mount namespace of their own that had a copy of
    /// the mount, and held nothing in it, at the last scan of all of `/proc` that saw the mount.
    pub listed: Vec<String>,
    /// What kept the mount, in one word.
    pub verdict: MountVerdict,
    /// What `holders` said when it mattered most: of the first unmount that was refused, else of what the reset left, else
    /// when the stop took long. `None` where nothing was wrong.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
    /// Whether the watched path was a mount point when the reset had ended.
    pub mounted: bool,
    /// What was left when the reset had ended; `None` for one that never ran.
    pub end: Option<EndState>,
    /// What the kernel logged of level warning or worse.
    pub kernel_warnings: Vec<String>,
    /// comm of each process that died of a signal that dumps core.
    pub core_dumps: Vec<String>,
    /// Paths that the reset was meant to remove and that are still there.
    pub left_over: Vec<String>,
    /// Block devices that had to be free after the reset and are not, each with what keeps it.
    #[serde(default)]
    pub kept_devices: Vec<String>,
    /// What sources of events lost, and where the one says what the other should have said, too.
    pub lost: Vec<String>,
    /// Duration of the recorder's own scans during the reset, nanoseconds of guest time.
    pub probe_ns: u64,
    /// What the reset command wrote to stderr.
    pub reset_stderr: String,
    /// The manifest's commands during the reset, as far as they were run, in the order of their ends.
    #[serde(default)]
    pub during: Vec<Ran>,
    /// What became of each of `other_mounts`, in its order.
    #[serde(default)]
    pub other_mounts: Vec<MountOutcome>,
    /// What systemd-shutdown and the kernel complained of at the end of a shutdown; `None` of a cycle without one.
    #[serde(default)]
    pub shutdown_log: Option<Vec<String>>,
    /// The manifest's checks, as far as they were run, in its order.
    #[serde(default)]
    pub checks: Vec<Ran>,
    /// The same of its checks of the boot after a shutdown.
    #[serde(default)]
    pub boot_checks: Vec<Ran>,
}

/// What became of one of the mounts of a cycle. That of the first one is in the [`Cycle`] itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountOutcome {
    /// Where it is watched.
    pub path: String,
    /// Whether it was a mount point in PID 1's mount namespace when the reset began.
    pub mounted_before: bool,
    /// Where it was one if not there, as `unit: path`.
    pub elsewhere_before: Vec<String>,
    /// The calls of umount2(2), up to the reset's end.
    pub umounts: Vec<Umount>,
    /// Who held it at the last moment before each umount2.
    pub holders_at_umount: Vec<Holder>,
    /// Units that were in a mount namespace with a copy of it and held nothing in it.
    pub listed: Vec<String>,
    /// What kept it, in one word.
    pub verdict: MountVerdict,
    /// What `holders` said when it mattered most, as [`Cycle::diagnosis`].
    pub diagnosis: Option<Diagnosis>,
    /// Whether it was a mount point when the reset had ended.
    pub mounted: bool,
    /// Where its file system was still mounted, as `unit: path`.
    pub mounted_elsewhere: Vec<String>,
    /// How the next mount of the same layers went.
    pub remount: String,
}

impl MountOutcome {
    /// That of a cycle's first mount.
    pub(crate) fn of(path: &str, cycle: &Cycle) -> Self {
        Self {
            path: path.to_owned(),
            mounted_before: cycle.before.mounted,
            elsewhere_before: cycle.before.elsewhere.clone(),
            umounts: cycle.umounts.clone(),
            holders_at_umount: cycle.holders_at_umount.clone(),
            listed: cycle.listed.clone(),
            verdict: cycle.verdict,
            diagnosis: cycle.diagnosis.clone(),
            mounted: cycle.mounted,
            mounted_elsewhere: cycle.mounted_elsewhere(),
            remount: cycle.remount(),
        }
    }

    /// How the last umount2 went, `ok` or the name of its errno; `none` if there was none.
    pub(super) fn umount_result(&self) -> &str {
        self.umounts.last().map_or("none", |umount| &umount.result)
    }
}

/// A command of the manifest that was run beside start and reset, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Which of the manifest's list, from 0.
    pub index: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How it ended; `None` if it ran into its deadline.
    pub exit: Option<Exit>,
    /// From fork to wait, nanoseconds of guest time.
    pub duration_ns: u64,
    /// What it wrote to stdout, at most 64 KiB.
    pub stdout: String,
    /// What it wrote to stderr, at most 64 KiB.
    pub stderr: String,
}

/// What there is when a reset begins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Before {
    /// The unit's ActiveState.
    pub active: String,
    /// Whether the watched path is a mount point in PID 1's mount namespace.
    pub mounted: bool,
    /// Where it is one if not there, as `unit: path`.
    pub elsewhere: Vec<String>,
}

/// The unit that makes and unmakes the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountUnit {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: UnitState,
}

/// One run of one Exec line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// The unit that has the line.
    #[serde(default)]
    pub unit: String,
    /// `ExecStopPost` and the like.
    pub line: String,
    /// The first argument's last path component.
    pub program: String,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
    /// How long it ran, in nanoseconds of guest time (systemd measures microseconds).
    pub duration_ns: Option<u64>,
    /// How much of that was within the reset, in nanoseconds; `None` if nothing was.
    #[serde(default)]
    pub in_reset_ns: Option<u64>,
    /// Whether systemd ended it because its time was over (`TimeoutStopSec=` and the like).
    #[serde(default)]
    pub timed_out: bool,
    /// Which processes the units had when last looked while it ran in the reset, as `control-child tail`; empty if it
    /// took less than a second.
    #[serde(default)]
    pub alive: Vec<String>,
}

/// A call of umount2(2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Umount {
    /// The caller's comm.
    pub comm: String,
    /// `ok` or the name of the errno.
    pub result: String,
    /// How long it took, nanoseconds of guest time.
    pub duration_ns: u64,
}

/// A task that holds the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// comm.
    pub comm: String,
    /// Its place in the unit.
    pub role: Role,
    /// Kinds of its references.
    pub kinds: Vec<Kind>,
    /// The inode number of its mount namespace, which the kernel reuses.
    pub namespace_inode: u64,
    /// The unique id of its mount namespace, where the kernel has one.
    pub namespace_id: Option<u64>,
    /// The unit its cgroup belongs to; empty if none.
    #[serde(default)]
    pub unit: String,
    /// Its unit, command line, kinds, pid, user and age in a line, if `holders` was asked; else empty.
    #[serde(default)]
    pub named: String,
}

impl Holder {
    /// `None` for a task that is listed for its namespace only: it blocks nothing.
    pub(super) fn of(task: &Task) -> Option<Self> {
        let kinds: BTreeSet<Kind> = task.references.iter().map(|reference| reference.kind).collect();
        (!kinds.is_empty()).then(|| Self {
            pid: task.pid,
            comm: task.comm.clone(),
            role: task.role,
            kinds: kinds.into_iter().collect(),
            namespace_inode: task.namespace.inode,
            namespace_id: task.namespace.id,
            unit: task.unit.clone(),
            named: String::new(),
        })
    }

    pub(super) fn of_blocker(blocker: &Blocker) -> Self {
        Self {
            pid: blocker.pid,
            comm: blocker.comm.clone(),
            role: blocker.role,
            kinds: blocker.kinds.clone(),
            namespace_inode: blocker.namespace.inode,
            namespace_id: blocker.namespace.id,
            unit: blocker.unit.clone(),
            named: blocker.named(),
        }
    }

    /// As a person wants to be told of it: `scratch-indexer.service: sleep 600 (working directory), pid 181 of root for
    /// 12 s`, or `scratch-indexer.service: sleep 181 (working directory)` where a scan alone has seen it.
    #[must_use]
    pub fn in_words(&self) -> String {
        if !self.named.is_empty() {
            return self.named.clone();
        }
        let unit = if self.unit.is_empty() { String::new() } else { format!("{}: ", self.unit) };
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.in_words()).collect();
        format!("{unit}{} {} ({})", self.comm, self.pid, kinds.join(", "))
    }

    /// `control left4me-overlay (cwd)`: without the pid, which is another one in every run.
    #[must_use]
    pub fn words(&self) -> String {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.word()).collect();
        format!("{} {} ({})", self.role.word(), self.comm, kinds.join(", "))
    }
}

pub(super) fn remount_words(remount: &Remount) -> String {
    match remount {
        Remount::NotTried { why } => format!("not tried: {why}"),
        Remount::Tried { result: 0, in_use: false } => "silent".to_owned(),
        Remount::Tried { result: 0, in_use: true } => "in use".to_owned(),
        Remount::Tried { result, .. } => result_words(*result),
    }
}

/// `ok`, or the name of a negative errno.
pub(crate) fn result_words(result: i64) -> String {
    match i32::try_from(-result) {
        Ok(0) => "ok".to_owned(),
        Ok(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
        Err(_) => result.to_string(),
    }
}

/// Where something is mounted, as `unit: path`, each once.
pub(super) fn places(copies: &[MountCopy]) -> Vec<String> {
    let words = copies.iter().flat_map(|copy| {
        let who = if copy.unit.is_empty() { &copy.comm } else { &copy.unit };
        copy.mount_points.iter().map(move |path| format!("{who}: {path}"))
    });
    words.collect::<BTreeSet<_>>().into_iter().collect()
}

impl Cycle {
    /// How the last umount2 went, `ok` or the name of its errno; `None` if there was none.
    #[must_use]
    pub fn umount_result(&self) -> Option<&str> {
        self.umounts.last().map(|umount| umount.result.as_str())
    }

    /// Where the file system is still mounted, as `unit: path`, each once. Empty while it is still mounted at the
    /// watched path: then every namespace that copied it has it, and says nothing of its own.
    #[must_use]
    pub fn mounted_elsewhere(&self) -> Vec<String> {
        let copies = match &self.end {
            Some(end) if !self.mounted => end.mounted_in.as_slice(),
            _ => &[],
        };
        places(copies)
    }

    /// comm of each process that is left in the unit's cgroup, or in that of the mount's unit.
    #[must_use]
    pub fn left_processes(&self) -> Vec<String> {
        let mut comms: Vec<String> =
            self.end.iter().flat_map(|end| &end.processes).map(|(_, comm)| comm.clone()).collect();
        comms.sort();
        comms
    }

    pub(super) fn failed_units(&self) -> Vec<String> {
        self.end.as_ref().map(|end| end.failed_units.clone()).unwrap_or_default()
    }

    /// How the next mount of the same layers went: `silent`, `in use`, the name of an errno, or `not tried: <why>`.
    #[must_use]
    pub fn remount(&self) -> String {
        self.end
            .as_ref()
            .map_or_else(|| "not tried: no end state".to_owned(), |end| remount_words(&end.remount))
    }

    /// How the last ExecStopPost of either unit ended.
    #[must_use]
    pub fn exec_stop_post(&self) -> Option<Exit> {
        self.execs.iter().rev().find(|exec| exec.line == "ExecStopPost").and_then(|exec| exec.exit)
    }
}
