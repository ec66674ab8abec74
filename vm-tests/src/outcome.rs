//! What a recording says: a fold over its events into one [`Cycle`] per cycle, and the verdict on it.
//!
//! Pure: tables, probe lines, JSON and snapshots are all made from what is here.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_agent::recording::{
    EndState, Event, Exec, Kind, Recording, Remount, Role, Scan, Step, StepEnd, Target, Task, Trigger,
    UmountCall, UnitState, What,
};
use vm_agent::wire::Exit;

use crate::scenario::{Expect, ExpectedExit};
use crate::verdict::MountVerdict;

/// One cycle, as far as it was recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cycle {
    /// From 1.
    pub number: u32,
    /// How the start command ended; `None` if it ran into its deadline.
    pub start_exit: Option<Exit>,
    /// From fork to wait, nanoseconds of guest time.
    pub start_ns: u64,
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
    /// The calls of umount2(2), up to the reset's end.
    pub umounts: Vec<Umount>,
    /// Who held the mount when the reset began.
    pub holders_at_stop: Vec<Holder>,
    /// Who held it at the last moment before each umount2.
    pub holders_at_umount: Vec<Holder>,
    /// Units, in the order of their names, whose processes were in a mount namespace of their own that had a copy of
    /// the mount, and held nothing in it, at the last look at all of `/proc` that saw the mount.
    pub listed: Vec<String>,
    /// What kept the mount, in one word.
    pub verdict: MountVerdict,
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
    /// What sources of events lost, and where the one says what the other should have said, too.
    pub lost: Vec<String>,
    /// What the recorder's own looks took during the reset, nanoseconds of guest time.
    pub probe_ns: u64,
    /// What the reset command wrote to stderr.
    pub reset_stderr: String,
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
}

impl Holder {
    /// `None` for a task that is listed for its namespace only: it blocks nothing.
    fn of(task: &Task) -> Option<Self> {
        let kinds: BTreeSet<Kind> = task.references.iter().map(|reference| reference.kind).collect();
        (!kinds.is_empty()).then(|| Self {
            pid: task.pid,
            comm: task.comm.clone(),
            role: task.role,
            kinds: kinds.into_iter().collect(),
            namespace_inode: task.namespace.inode,
            namespace_id: task.namespace.id,
        })
    }

    /// `control left4me-overlay (cwd)`: without the pid, which is another one in every run.
    #[must_use]
    pub fn words(&self) -> String {
        let role = match self.role {
            Role::Main => "main",
            Role::Child => "child",
            Role::Control => "control",
            Role::ControlChild => "control-child",
            Role::Outside => "outside",
        };
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.word()).collect();
        format!("{role} {} ({})", self.comm, kinds.join(", "))
    }
}

/// One holder per process: threads and repeated looks say the same again.
fn holders<'a>(scans: impl IntoIterator<Item = &'a Scan>) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    for holder in scans.into_iter().flat_map(|scan| &scan.tasks).filter_map(Holder::of) {
        match holders.iter_mut().find(|known| known.pid == holder.pid && known.comm == holder.comm) {
            Some(known) => {
                known.kinds.extend(holder.kinds);
                known.kinds.sort_unstable();
                known.kinds.dedup();
            }
            None => holders.push(holder),
        }
    }
    holders.sort_by(|one, other| (one.role, &one.comm).cmp(&(other.role, &other.comm)));
    holders
}

/// Folds a recording into its cycles.
#[must_use]
pub fn cycles(recording: &Recording) -> Vec<Cycle> {
    let last = recording.events.iter().map(|event| event.cycle).max().unwrap_or(0);
    let contradictions = contradictions(&recording.events);
    (1..=last)
        .map(|number| {
            let events: Vec<&Event> = recording.events.iter().filter(|event| event.cycle == number).collect();
            let mut cycle = cycle(number, recording.plan.mount_unit.as_deref(), &events);
            let of_it = contradictions.iter().filter(|(cycle, _)| *cycle == number);
            cycle.lost.extend(of_it.map(|(_, words)| words.clone()));
            cycle
        })
        .collect()
}

fn cycle(number: u32, mount_unit: Option<&str>, events: &[&Event]) -> Cycle {
    let step = |step: Step| {
        events.iter().find_map(|event| match &event.what {
            What::StepEnds(end) if end.step == step => Some(end),
            _ => None,
        })
    };
    let begin = |wanted: Step| {
        events
            .iter()
            .find(|event| matches!(event.what, What::StepBegins(step) if step == wanted))
            .map(|event| event.at)
    };
    // The reset's window: from its begin to the first recovery, if there is one.
    let from = begin(Step::Reset).unwrap_or(u64::MAX);
    let until = begin(Step::Recover).unwrap_or(u64::MAX);
    let window: Vec<&Event> =
        events.iter().copied().filter(|event| (from..until).contains(&event.at)).collect();
    let scans: Vec<(u64, &Scan)> = window.iter().filter_map(|event| scan_of(event)).collect();
    // A start that fails stops the unit by itself, and unmounts.
    let before_recovery: Vec<&Event> = events.iter().copied().filter(|event| event.at < until).collect();
    let calls: Vec<(u64, &UmountCall)> = before_recovery
        .iter()
        .filter_map(|event| match &event.what {
            // The recorder keeps what the unit's own processes call; what they unmount elsewhere is not this mount's.
            What::UmountCall(call) if call.target != Target::Other => Some((event.at, call)),
            _ => None,
        })
        .collect();
    let at_umount = match calls.as_slice() {
        // Without any call (no tracefs): the last look that still saw the mount.
        [] => scans.iter().rev().find(|(_, scan)| scan.mounted).map(|(_, scan)| *scan).into_iter().collect(),
        calls => {
            let scans: Vec<(u64, &Scan)> =
                before_recovery.iter().filter_map(|event| scan_of(event)).collect();
            scans_at_umount(&scans, calls)
        }
    };
    let start: Option<&StepEnd> = step(Step::Start);
    let reset: Option<&StepEnd> = step(Step::Reset);
    let holders_at_umount = holders(at_umount);
    let listed = listed(&before_recovery);
    let mounted = scans
        .iter()
        .rev()
        .find(|(_, scan)| scan.trigger == Trigger::End)
        .is_some_and(|(_, scan)| scan.mounted);
    let end = events.iter().find_map(|event| match &event.what {
        What::EndState(end) => Some(end.clone()),
        _ => None,
    });
    let lives_on = !mounted && end.as_ref().is_some_and(lives_on);
    Cycle {
        number,
        start_exit: start.and_then(|end| end.exit),
        start_ns: start.map_or(0, |end| end.duration_ns),
        reset_exit: reset.and_then(|end| end.exit),
        reset_ns: reset.map_or(0, |end| end.duration_ns),
        unit: last_unit(&before_recovery),
        mount_unit: mount_unit
            .map(|name| MountUnit { name: name.to_owned(), state: last_mount_unit(&before_recovery) }),
        states: states(&before_recovery),
        execs: execs(&before_recovery),
        umounts: calls.iter().map(|(at, call)| umount(*at, call)).collect(),
        holders_at_stop: holders(scan_at_stop(events, from)),
        verdict: verdict(&calls, &holders_at_umount, &listed, lives_on),
        holders_at_umount,
        listed,
        mounted,
        end,
        kernel_warnings: kernel_warnings(events),
        core_dumps: core_dumps(events),
        left_over: left_over(&before_recovery),
        lost: lost(events),
        probe_ns: scans.iter().map(|(_, scan)| scan.cost_ns).sum(),
        reset_stderr: reset.map(|end| end.stderr.clone()).unwrap_or_default(),
    }
}

/// Taken before the reset begins, so not in its window. A start command may have stopped the unit before, which is looked
/// at as well, at a moment that systemd has chosen.
fn scan_at_stop<'a>(events: &[&'a Event], reset: u64) -> Option<&'a Scan> {
    let stops = events.iter().filter_map(|event| match &event.what {
        What::Scan(scan) if scan.trigger == Trigger::Stop => Some((event.at, scan)),
        _ => None,
    });
    let (before, after): (Vec<_>, Vec<_>) = stops.partition(|(at, _)| *at <= reset);
    before.last().or(after.first()).map(|(_, scan)| *scan)
}

fn scan_of(event: &Event) -> Option<(u64, &Scan)> {
    match &event.what {
        What::Scan(scan) => Some((event.at, scan)),
        _ => None,
    }
}

/// The looks that tell who held the mount at the moment of each umount2: the last one before the call and, if
/// it failed, the first one after it. If it succeeded, a look during the call is the later one: of a process that ends
/// while the caller is on its way the kernel knows before its end is told.
fn scans_at_umount<'a>(scans: &[(u64, &'a Scan)], calls: &[(u64, &UmountCall)]) -> Vec<&'a Scan> {
    let mut chosen = Vec::new();
    for (at, call) in calls {
        let before = |(scanned, scan): &&(u64, &Scan)| {
            scanned <= at || (call.result >= 0 && scan.mounted && *scanned <= call.returned)
        };
        chosen.extend(scans.iter().rev().find(before).map(|(_, scan)| *scan));
        if call.result < 0 {
            let failed = |scan: &Scan| scan.trigger == Trigger::UmountFailed;
            chosen.extend(
                scans.iter().find(|(scanned, scan)| *scanned >= *at && failed(scan)).map(|(_, scan)| *scan),
            );
        }
    }
    chosen
}

/// Those who are listed for their namespace alone.
fn listed(events: &[&Event]) -> Vec<String> {
    let last = events.iter().rev().find_map(|event| match &event.what {
        What::Scan(scan) if scan.whole_proc && scan.mounted => Some(scan),
        _ => None,
    });
    let tasks = last.map(|scan| scan.tasks.as_slice()).unwrap_or_default();
    let bare = tasks
        .iter()
        .filter(|task| task.role == Role::Outside && task.private_copy && task.references.is_empty());
    let units: BTreeSet<String> = bare.map(|task| task.unit.clone()).collect();
    units.into_iter().collect()
}

/// Whether the file system outlives the mount that is gone.
fn lives_on(end: &EndState) -> bool {
    let remount_in_use = match end.remount {
        Remount::Tried { result, in_use } => in_use || result == -i64::from(nix::libc::EBUSY),
        Remount::NotTried { .. } => false,
    };
    remount_in_use || !end.mounted_in.is_empty()
}

fn verdict(
    calls: &[(u64, &UmountCall)],
    holders: &[Holder],
    listed: &[String],
    lives_on: bool,
) -> MountVerdict {
    let is_busy = |call: &UmountCall| call.result == -i64::from(nix::libc::EBUSY);
    let is_control = |role: Role| matches!(role, Role::Control | Role::ControlChild);
    match calls.iter().find(|(_, call)| is_busy(call)) {
        Some(_) if holders.is_empty() => MountVerdict::NotVisible,
        Some((_, call)) => {
            let is_caller = |holder: &Holder| {
                holder.pid == call.pid || (is_control(holder.role) && is_control(call.role))
            };
            if holders.iter().all(is_caller) {
                MountVerdict::HeldByYourself
            } else {
                MountVerdict::HeldByProcess
            }
        }
        None => {
            let unmounted = calls.iter().any(|(_, call)| call.result == 0);
            match () {
                () if lives_on || (unmounted && !holders.is_empty()) => MountVerdict::AliveElsewhere,
                () if !listed.is_empty() => MountVerdict::OnlyListed,
                () => MountVerdict::None,
            }
        }
    }
}

fn kernel_warnings(events: &[&Event]) -> Vec<String> {
    let warnings = events.iter().filter_map(|event| match &event.what {
        What::KernelWarning { text } => Some(text.clone()),
        _ => None,
    });
    warnings.collect()
}

fn core_dumps(events: &[&Event]) -> Vec<String> {
    let dumped = events.iter().filter_map(|event| match &event.what {
        What::Coredump { comm, .. } => Some(comm.clone()),
        _ => None,
    });
    dumped.collect()
}

fn last_unit(events: &[&Event]) -> UnitState {
    let state = events.iter().rev().find_map(|event| match &event.what {
        What::Unit(state) => Some(state.clone()),
        _ => None,
    });
    state.unwrap_or_default()
}

fn last_mount_unit(events: &[&Event]) -> UnitState {
    let state = events.iter().rev().find_map(|event| match &event.what {
        What::MountUnit(state) => Some(state.clone()),
        _ => None,
    });
    state.unwrap_or_default()
}

/// The states as a snapshot has them: without those in which systemd waits for the last of a unit's processes. Whether it
/// still finds one that is ending in the cgroup, and sends it SIGTERM, or none, or goes on at once, is a matter of
/// microseconds, and another one with each build of what runs there. That it had to kill is in the unit's Result.
fn settled_states(states: &[String]) -> String {
    const LAST: [&str; 2] = ["deactivating/final-sigterm", "deactivating/final-sigkill"];
    let settled: Vec<&str> =
        states.iter().map(String::as_str).filter(|state| !LAST.contains(state)).collect();
    settled.join(" -> ")
}

fn states(events: &[&Event]) -> Vec<String> {
    let mut states: Vec<String> = Vec::new();
    for event in events {
        if let What::Unit(state) = &event.what {
            let words = format!("{}/{}", state.active, state.sub);
            if states.last() != Some(&words) {
                states.push(words);
            }
        }
    }
    states
}

fn execs(events: &[&Event]) -> Vec<ExecOutcome> {
    let mut execs: Vec<(u64, &Exec)> = Vec::new();
    for event in events {
        if let What::Exec(exec) = &event.what {
            // A line that was still running when first read is read again: the later reading counts.
            execs.retain(|(at, known)| (*at, known.pid) != (event.at, exec.pid));
            execs.push((event.at, exec));
        }
    }
    execs.sort_by_key(|(at, _)| *at);
    execs
        .into_iter()
        .map(|(at, exec)| ExecOutcome {
            unit: exec.unit.clone(),
            line: exec.line.clone(),
            program: exec.argv.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path)).to_owned(),
            exit: exec.exit,
            duration_ns: exec.ended.map(|ended| ended.saturating_sub(at)),
        })
        .collect()
}

fn umount(at: u64, call: &UmountCall) -> Umount {
    let result = result_words(call.result);
    Umount { comm: call.comm.clone(), result, duration_ns: call.returned.saturating_sub(at) }
}

/// `ok`, or the name of a negative errno.
fn result_words(result: i64) -> String {
    match i32::try_from(-result) {
        Ok(0) => "ok".to_owned(),
        Ok(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
        Err(_) => result.to_string(),
    }
}

fn remount_words(remount: &Remount) -> String {
    match remount {
        Remount::NotTried { why } => format!("not tried: {why}"),
        Remount::Tried { result: 0, in_use: false } => "silent".to_owned(),
        Remount::Tried { result: 0, in_use: true } => "in use".to_owned(),
        Remount::Tried { result, .. } => result_words(*result),
    }
}

fn left_over(events: &[&Event]) -> Vec<String> {
    let left = events.iter().filter_map(|event| match &event.what {
        What::LeftOver { path } => Some(path.clone()),
        _ => None,
    });
    left.collect()
}

fn lost(events: &[&Event]) -> Vec<String> {
    let lost = events.iter().filter_map(|event| match &event.what {
        What::Lost { source, why } => Some(format!("{source}: {why}")),
        _ => None,
    });
    lost.collect()
}

/// Where mountinfo and the tracer do not bear each other out, each with its cycle: then one of the two has lost
/// something and does not know it. A mount goes by a umount2 that succeeds, of whatever path (`mount --move` apart, which
/// nobody who is recorded does); and such a call of the watched path takes a mount away.
fn contradictions(events: &[Event]) -> Vec<(u32, String)> {
    let mut wrong = Vec::new();
    let mut calls: Vec<(&Event, &UmountCall)> = Vec::new();
    for event in events {
        if let What::UmountCall(call) = &event.what
            && call.result == 0
        {
            calls.push((event, call));
        }
    }
    let mut mounts = 0_u32;
    for event in events {
        match &event.what {
            What::Mounted(_) => mounts += 1,
            What::Unmounted => {
                match mounts.checked_sub(1) {
                    Some(left) => mounts = left,
                    None => {
                        wrong.push((event.cycle, "mountinfo: an unmount, and no mount before it".to_owned()));
                    }
                }
                // The last one before, and one of this path if there is any.
                let rank = |(_, (began, call)): &(usize, &(&Event, &UmountCall))| {
                    (call.target == Target::Mount, began.at)
                };
                let before = calls.iter().enumerate().filter(|(_, (began, _))| began.at <= event.at);
                match before.max_by_key(rank).map(|(index, _)| index) {
                    Some(index) => drop(calls.remove(index)),
                    None => wrong.push((
                        event.cycle,
                        "tracefs: the mount went away, and no umount2 was seen that did it".to_owned(),
                    )),
                }
            }
            _ => {}
        }
    }
    let unseen = calls.into_iter().filter(|(_, call)| call.target == Target::Mount);
    wrong.extend(unseen.map(|(event, call)| {
        let words = format!("mountinfo: {} unmounted the mount, and no change of it was seen", call.comm);
        (event.cycle, words)
    }));
    wrong
}

fn exit_words(exit: Option<Exit>) -> String {
    exit.map_or_else(|| "no end".to_owned(), |exit| exit.to_string())
}

/// The class of a duration, for snapshots.
#[must_use]
pub fn duration_class(ns: u64) -> &'static str {
    match Duration::from_nanos(ns) {
        duration if duration < Duration::from_secs(1) => "under 1 s",
        duration if duration < Duration::from_secs(5) => "1 to 5 s",
        duration if duration < Duration::from_secs(20) => "5 to 20 s",
        _ => "20 s or more",
    }
}

/// Items in their order, and one that comes several times in a row once.
fn runs(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut runs: Vec<(String, usize)> = Vec::new();
    for item in items {
        match runs.last_mut() {
            Some((last, times)) if *last == item => *times += 1,
            _ => runs.push((item, 1)),
        }
    }
    let words = |(item, times)| if times > 1 { format!("{item}, again and again") } else { item };
    runs.into_iter().map(words).collect()
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
        let words = copies.iter().flat_map(|copy| {
            let who = if copy.unit.is_empty() { &copy.comm } else { &copy.unit };
            copy.mount_points.iter().map(move |path| format!("{who}: {path}"))
        });
        words.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// comm of each process that is left in the unit's cgroup, or in that of the mount's unit.
    #[must_use]
    pub fn left_processes(&self) -> Vec<String> {
        let mut comms: Vec<String> =
            self.end.iter().flat_map(|end| &end.processes).map(|(_, comm)| comm.clone()).collect();
        comms.sort();
        comms
    }

    fn failed_units(&self) -> Vec<String> {
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

    /// Shape and order, no numbers that differ from run to run.
    #[must_use]
    pub fn shape(&self) -> String {
        let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        let words = |holders: &[Holder]| list(holders.iter().map(Holder::words).collect());
        let execs = self.execs.iter().map(|exec| {
            let whose = if self.is_of_mount_unit(exec) { "mount unit's " } else { "" };
            format!("{whose}{} {}: {}", exec.line, exec.program, exit_words(exec.exit))
        });
        let mount_unit = self.mount_unit.as_ref().map(|MountUnit { state, .. }| {
            let UnitState { active, sub, result, .. } = state;
            ("mount unit after reset", format!("{active} ({sub}), Result {result}"))
        });
        let umounts = runs(self.umounts.iter().map(|umount| format!("{}: {}", umount.comm, umount.result)));
        let UnitState { active, sub, result, restarts, .. } = &self.unit;
        let mut shape = String::new();
        let rows = [
            ("start", exit_words(self.start_exit)),
            ("reset", format!("{}, {}", exit_words(self.reset_exit), duration_class(self.reset_ns))),
            ("unit after reset", format!("{active} ({sub}), Result {result}, NRestarts {restarts}")),
            ("states", settled_states(&self.states)),
            ("exec", list(execs.collect())),
            ("holders at stop", words(&self.holders_at_stop)),
            ("holders at umount", words(&self.holders_at_umount)),
            ("umount", list(umounts)),
            ("verdict", self.verdict.words().to_owned()),
            ("mounted after reset", if self.mounted { "yes" } else { "no" }.to_owned()),
            ("mounted elsewhere", list(self.mounted_elsewhere())),
            ("remount", self.remount()),
            ("left over after reset", list(self.left_over.clone())),
            ("left in the cgroup", list(self.left_processes())),
            ("failed units", list(self.failed_units())),
            ("kernel warnings", list(runs(self.kernel_warnings.iter().cloned()))),
            ("core dumps", list(self.core_dumps.clone())),
            ("lost events", list(self.lost.clone())),
        ];
        let (before, after) = rows.split_at(3);
        for (name, value) in before.iter().chain(&mount_unit).chain(after) {
            shape.push_str(&format!("{name}: {value}\n"));
        }
        shape
    }

    fn is_of_mount_unit(&self, exec: &ExecOutcome) -> bool {
        self.mount_unit.as_ref().is_some_and(|unit| unit.name == exec.unit)
    }

    /// Whether the reset command wrote these words to stderr; see [`Expect::reset_stderr`].
    fn reset_says(&self, words: &str) -> bool {
        if !words.contains("{pid}") {
            return self.reset_stderr.contains(words);
        }
        let mut holders = self.holders_at_umount.iter();
        holders.any(|holder| self.reset_stderr.contains(&words.replace("{pid}", &holder.pid.to_string())))
    }

    /// What is not as expected, in words; empty if all is.
    #[must_use]
    pub fn deviations(&self, expect: &Expect) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |right: bool, words: String| {
            if !right {
                wrong.push(format!("cycle {}: {words}", self.number));
            }
        };
        let mut equal = |what: &str, is: &[String], expected: &[String]| {
            check(is == expected, format!("{what}: {is:?} instead of {expected:?}"));
        };
        let holders: Vec<String> = self.holders_at_umount.iter().map(Holder::words).collect();
        equal("holders at umount", &holders, &expect.holders);
        equal("left over after the reset", &self.left_over, &expect.left_over);
        equal("still mounted elsewhere", &self.mounted_elsewhere(), &expect.mounted_elsewhere);
        equal("left in the cgroup", &self.left_processes(), &expect.left_processes);
        equal("failed units", &self.failed_units(), &expect.failed_units());
        equal("kernel warnings", &self.kernel_warnings, &expect.kernel_warnings);
        equal("core dumps", &self.core_dumps, &expect.core_dumps);
        equal("lost events", &self.lost, &[]);

        check(self.end.is_some(), "what the reset left was not looked at".to_owned());
        let start = Some(Exit::Code(expect.start_exit));
        check(self.start_exit == start, wrong_exit("start", self.start_exit, start));
        let reset = Some(Exit::Code(expect.reset_exit));
        check(self.reset_exit == reset, wrong_exit("reset", self.reset_exit, reset));
        let (took, from, under) =
            (Duration::from_nanos(self.reset_ns), expect.reset_from(), expect.reset_under());
        check(
            (from..under).contains(&took),
            format!(
                "reset took {:.3} s, not {:.3} to {:.3} s",
                took.as_secs_f64(),
                from.as_secs_f64(),
                under.as_secs_f64()
            ),
        );
        check(
            self.unit.active == expect.active_state,
            format!("the unit is {} after the reset, not {}", self.unit.active, expect.active_state),
        );
        let mount_unit = self.mount_unit.as_ref().map(|unit| unit.state.active.as_str());
        let expected = expect.mount_unit_state();
        check(
            mount_unit == expected,
            format!(
                "the mount's unit is {} after the reset, not {}",
                mount_unit.unwrap_or("not there"),
                expected.unwrap_or("there")
            ),
        );
        check(self.unit.restarts == 0, format!("the unit was restarted: NRestarts {}", self.unit.restarts));
        let stop_post = expect.exec_stop_post.as_ref().and_then(ExpectedExit::exit);
        check(
            self.exec_stop_post() == stop_post,
            wrong_exit("ExecStopPost", self.exec_stop_post(), stop_post),
        );
        let umount = self.umount_result();
        match &expect.umount {
            Some(expected) => check(
                umount.unwrap_or("none") == expected,
                format!("umount2: {} instead of {expected}", umount.unwrap_or("none")),
            ),
            None => check(
                expect.mounted || umount.is_none_or(|result| result == "ok"),
                format!("umount2: {} instead of ok", umount.unwrap_or("none")),
            ),
        }
        match expect.verdict {
            Some(expected) => check(
                self.verdict == expected,
                format!("verdict: {} instead of {}", self.verdict.words(), expected.words()),
            ),
            None => check(
                self.verdict.is_clean(),
                format!("verdict: {}, and nobody was expected to hold the mount", self.verdict.words()),
            ),
        }
        for unit in &expect.listed {
            check(
                self.listed.contains(unit),
                format!("{unit} was not in a namespace with a copy of the mount; listed: {:?}", self.listed),
            );
        }
        check(
            self.mounted == expect.mounted,
            format!("the mount is {} after the reset", if self.mounted { "still there" } else { "gone" }),
        );
        for words in &expect.reset_stderr {
            check(
                self.reset_says(words),
                format!("the reset's stderr has no {words:?}: {:?}", self.reset_stderr.trim_end()),
            );
        }
        let remount = self.remount();
        match &expect.remount {
            Some(expected) => {
                check(remount == *expected, format!("remount: {remount} instead of {expected}"));
            }
            None => check(
                remount == "silent" || remount.starts_with("not tried"),
                format!("the next mount of the same layers: {remount}"),
            ),
        }
        wrong
    }
}

fn wrong_exit(what: &str, is: Option<Exit>, expected: Option<Exit>) -> String {
    match expected {
        Some(_) => format!("{what}: {} instead of {}", exit_words(is), exit_words(expected)),
        None => format!("{what}: {}, and none was expected", exit_words(is)),
    }
}

/// The text that a snapshot holds: cycles of one shape are told once.
#[must_use]
pub fn snapshot(cycles: &[Cycle]) -> String {
    let mut text = String::new();
    let mut start = 0;
    while let Some(first) = cycles.get(start) {
        let shape = first.shape();
        let alike = cycles.iter().skip(start).take_while(|cycle| cycle.shape() == shape).count();
        let whole = alike == cycles.len();
        let title = if whole {
            "every cycle".to_owned()
        } else {
            format!("cycles {} to {}", first.number, start + alike)
        };
        text.push_str(&format!("{}{title}\n{shape}", if start == 0 { "" } else { "\n" }));
        start += alike;
    }
    text
}

/// What is not as expected in a whole run, in words; empty if all is.
#[must_use]
pub fn deviations(recording: &Recording, cycles: &[Cycle], expect: &Expect) -> Vec<String> {
    let mut deviations: Vec<String> = cycles.iter().flat_map(|cycle| cycle.deviations(expect)).collect();
    let planned = recording.plan.cycles as usize;
    if cycles.len() != planned {
        deviations.push(format!("{} of {planned} cycles were run", cycles.len()));
    }
    deviations
}

/// The probe's lines of one cycle, in the postmortem's form: seconds since the reset began.
#[must_use]
pub fn probe_lines(recording: &Recording, cycle: u32) -> String {
    let events = || recording.events.iter().filter(|event| event.cycle == cycle);
    let begin = events()
        .find(|event| matches!(event.what, What::StepBegins(Step::Reset)))
        .map_or(0, |event| event.at);
    let mut text = String::new();
    for event in events() {
        if let What::Scan(scan) = &event.what {
            // The first look is taken just before the reset begins.
            let seconds = Duration::from_nanos(event.at.saturating_sub(begin)).as_secs_f64();
            let mounted = if scan.mounted { 'Y' } else { 'N' };
            let holders: Vec<String> =
                holders([scan]).iter().map(|holder| format!("{}({})", holder.pid, holder.comm)).collect();
            text.push_str(&format!("[t={seconds:5.2}] mounted={mounted} holders=[{}]\n", holders.join(" ")));
        }
    }
    text
}

/// Cycles for the tests of what is made of them.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A cycle in which all went well.
    pub(crate) fn clean() -> Cycle {
        Cycle {
            number: 1,
            start_exit: Some(Exit::Code(0)),
            start_ns: 1,
            reset_exit: Some(Exit::Code(0)),
            reset_ns: 100_000_000,
            unit: UnitState { active: "inactive".to_owned(), ..UnitState::default() },
            mount_unit: None,
            states: Vec::new(),
            execs: Vec::new(),
            umounts: vec![Umount { comm: "umount".to_owned(), result: "ok".to_owned(), duration_ns: 1 }],
            holders_at_stop: Vec::new(),
            holders_at_umount: Vec::new(),
            listed: Vec::new(),
            verdict: MountVerdict::OnlyListed,
            mounted: false,
            end: Some(EndState {
                mounted_in: Vec::new(),
                processes: Vec::new(),
                failed_units: Vec::new(),
                remount: Remount::Tried { result: 0, in_use: false },
            }),
            kernel_warnings: Vec::new(),
            core_dumps: Vec::new(),
            left_over: Vec::new(),
            lost: Vec::new(),
            probe_ns: 0,
            reset_stderr: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::clean;
    use super::*;
    use vm_agent::recording::{MountCopy, Namespace, Reference};

    const BUSY: i64 = -16;

    fn call(pid: u32, role: Role, result: i64) -> (u64, UmountCall) {
        (10, UmountCall { pid, comm: "umount".to_owned(), role, returned: 11, result, target: Target::Mount })
    }

    fn holder(pid: u32, role: Role) -> Holder {
        Holder {
            pid,
            comm: "x".to_owned(),
            role,
            kinds: vec![Kind::Cwd],
            namespace_inode: 1,
            namespace_id: None,
        }
    }

    #[test]
    fn what_systemd_does_with_who_is_just_ending_is_not_in_the_snapshot() {
        let states = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let settled = "active/running -> deactivating/stop-sigterm -> inactive/dead";
        for last in [
            &[][..],
            &["deactivating/final-sigterm"],
            &["deactivating/final-sigterm", "deactivating/final-sigkill"],
        ] {
            let all =
                [&["active/running", "deactivating/stop-sigterm"][..], last, &["inactive/dead"]].concat();
            assert_eq!(settled_states(&states(&all)), settled, "{all:?}");
        }
        let stop_post = states(&["deactivating/stop-post", "failed/failed"]);
        assert_eq!(settled_states(&stop_post), "deactivating/stop-post -> failed/failed");
    }

    #[test]
    fn verdicts() {
        let (helper, its_child) = (holder(5, Role::Control), holder(6, Role::ControlChild));
        let (server, stranger) = (holder(7, Role::Child), holder(8, Role::Outside));
        let failed = call(9, Role::ControlChild, BUSY);
        let ok = call(9, Role::ControlChild, 0);
        let listed = vec!["udevd.service".to_owned()];
        let none: Vec<String> = Vec::new();
        let cases = [
            (
                "the helper's own",
                vec![&failed],
                vec![helper.clone()],
                &listed,
                false,
                MountVerdict::HeldByYourself,
            ),
            (
                "and its child's",
                vec![&failed],
                vec![helper.clone(), its_child],
                &none,
                false,
                MountVerdict::HeldByYourself,
            ),
            (
                "the server's child",
                vec![&failed],
                vec![server.clone()],
                &listed,
                false,
                MountVerdict::HeldByProcess,
            ),
            (
                "both",
                vec![&failed],
                vec![helper.clone(), server.clone()],
                &none,
                false,
                MountVerdict::HeldByProcess,
            ),
            ("nobody is seen", vec![&failed], vec![], &listed, false, MountVerdict::NotVisible),
            (
                "lazily in the end",
                vec![&failed, &ok],
                vec![helper.clone()],
                &none,
                false,
                MountVerdict::HeldByYourself,
            ),
            (
                "a copy that does not block",
                vec![&ok],
                vec![helper.clone()],
                &none,
                false,
                MountVerdict::AliveElsewhere,
            ),
            ("a copy that stays", vec![&ok], vec![], &listed, true, MountVerdict::AliveElsewhere),
            ("bare namespaces", vec![&ok], vec![], &listed, false, MountVerdict::OnlyListed),
            ("nothing at all", vec![&ok], vec![], &none, false, MountVerdict::None),
            ("no umount seen", vec![], vec![server.clone()], &none, false, MountVerdict::None),
        ];
        for (what, calls, holders, listed, lives_on, expected) in cases {
            let calls: Vec<(u64, &UmountCall)> = calls.iter().map(|(at, call)| (*at, call)).collect();
            assert_eq!(verdict(&calls, &holders, listed, lives_on), expected, "{what}");
        }
        // A person at a prompt in the mount, and one elsewhere.
        let (_, by_hand) = call(8, Role::Outside, BUSY);
        assert_eq!(verdict(&[(1, &by_hand)], &[stranger], &none, false), MountVerdict::HeldByYourself);
        assert_eq!(verdict(&[(1, &by_hand)], &[helper], &none, false), MountVerdict::HeldByProcess);
    }

    #[test]
    fn the_look_of_an_unmount_is_the_last_that_can_have_been_so() {
        let scan = |trigger, mounted, pid: u32| Scan {
            trigger,
            whole_proc: false,
            cost_ns: 0,
            mounted,
            tasks: vec![Task {
                pid,
                tid: pid,
                comm: "x".to_owned(),
                role: Role::Child,
                unit: String::new(),
                namespace: Namespace { inode: 1, id: None },
                private_copy: false,
                references: Vec::new(),
            }],
        };
        let looks = [
            (10, scan(Trigger::Tick, true, 1)),
            (21, scan(Trigger::Exit, true, 2)),
            (23, scan(Trigger::Mount, false, 3)),
            (31, scan(Trigger::UmountFailed, true, 4)),
        ];
        let scans: Vec<(u64, &Scan)> = looks.iter().map(|(at, scan)| (*at, scan)).collect();
        let call = |result| UmountCall {
            pid: 9,
            comm: "umount".to_owned(),
            role: Role::Control,
            returned: 30,
            result,
            target: Target::Mount,
        };
        let pids = |at, result| -> Vec<u32> {
            scans_at_umount(&scans, &[(at, &call(result))]).iter().map(|scan| scan.tasks[0].pid).collect()
        };
        assert_eq!(pids(20, 0), [2], "one during the call, and not the one after the unmount");
        assert_eq!(pids(20, BUSY), [1, 4]);
        assert_eq!(pids(25, 0), [3]);
        assert_eq!(pids(5, BUSY), [4]);
    }

    #[test]
    fn listed_are_strangers_with_a_copy_and_nothing_in_it() {
        let namespace = Namespace { inode: 1, id: None };
        let task = |unit: &str, role, private_copy, held: bool| Task {
            pid: 1,
            tid: 1,
            comm: "x".to_owned(),
            role,
            unit: unit.to_owned(),
            namespace,
            private_copy,
            references: held
                .then(|| Reference { kind: Kind::Cwd, path: "/m".to_owned() })
                .into_iter()
                .collect(),
        };
        let tasks = vec![
            task("b.service", Role::Outside, true, false),
            task("a.service", Role::Outside, true, false),
            task("a.service", Role::Outside, true, false),
            task("same-namespace.service", Role::Outside, false, false),
            task("holds.service", Role::Outside, true, true),
            task("own.service", Role::Child, true, false),
        ];
        let scan = |mounted, whole_proc, tasks: Vec<Task>| Event {
            at: 0,
            cycle: 1,
            what: What::Scan(Scan { trigger: Trigger::Stop, whole_proc, cost_ns: 0, mounted, tasks }),
        };
        let events = [scan(true, true, tasks.clone()), scan(true, false, vec![]), scan(false, true, vec![])];
        assert_eq!(listed(&events.iter().collect::<Vec<_>>()), ["a.service", "b.service"]);
        assert!(listed(&[]).is_empty());
    }

    #[test]
    fn a_file_system_lives_on() {
        let clean = EndState {
            mounted_in: Vec::new(),
            processes: Vec::new(),
            failed_units: Vec::new(),
            remount: Remount::Tried { result: 0, in_use: false },
        };
        let copy = MountCopy {
            pid: 1,
            comm: "x".to_owned(),
            unit: "x.service".to_owned(),
            namespace: Namespace { inode: 1, id: None },
            mount_points: vec!["/mnt".to_owned()],
        };
        let not_tried = Remount::NotTried { why: "gone".to_owned() };
        let with = |remount: Remount| EndState { remount, ..clean.clone() };
        let cases = [
            (clean.clone(), false, "silent"),
            (with(not_tried), false, "not tried: gone"),
            (with(Remount::Tried { result: 0, in_use: true }), true, "in use"),
            (with(Remount::Tried { result: BUSY, in_use: true }), true, "EBUSY"),
            (with(Remount::Tried { result: -2, in_use: false }), false, "ENOENT"),
            (EndState { mounted_in: vec![copy], ..clean.clone() }, true, "silent"),
        ];
        for (end, expected, words) in cases {
            assert_eq!(lives_on(&end), expected, "{end:?}");
            assert_eq!(remount_words(&end.remount), words);
        }
    }

    const EXPECT: &str = "reset_exit = 0\nreset_under_ms = 1000\nactive_state = \"inactive\"\n\
                          mounted = false\nholders = []\n";

    fn expect(more: &str) -> Expect {
        toml::from_str(&format!("{EXPECT}{more}")).expect("a good one")
    }

    /// What a manifest leaves out has to be clean: each thing alone makes the cycle red.
    #[test]
    fn one_thing_that_is_not_declared_is_a_deviation() {
        let mutate = |change: fn(&mut Cycle)| {
            let mut cycle = clean();
            change(&mut cycle);
            cycle
        };
        let with_end = |change: fn(&mut EndState)| {
            let mut cycle = clean();
            change(cycle.end.as_mut().expect("an end"));
            cycle
        };
        let copy = || MountCopy {
            pid: 1,
            comm: "x".to_owned(),
            unit: "x.service".to_owned(),
            namespace: Namespace { inode: 1, id: None },
            mount_points: vec!["/mnt".to_owned()],
        };
        let mut copied = clean();
        copied.end.as_mut().expect("an end").mounted_in.push(copy());
        let cases = [
            (mutate(|cycle| cycle.start_exit = Some(Exit::Code(1))), "start: exit status 1"),
            (mutate(|cycle| cycle.reset_exit = None), "reset: no end"),
            (mutate(|cycle| cycle.reset_ns = 1_000_000_000), "reset took 1.000 s"),
            (mutate(|cycle| cycle.unit.active = "failed".to_owned()), "the unit is failed"),
            (mutate(|cycle| cycle.unit.restarts = 1), "NRestarts 1"),
            (mutate(|cycle| cycle.umounts[0].result = "EBUSY".to_owned()), "umount2: EBUSY"),
            (mutate(|cycle| cycle.verdict = MountVerdict::NotVisible), "verdict: not visible"),
            (mutate(|cycle| cycle.holders_at_umount = vec![holder(1, Role::Main)]), "main x (cwd)"),
            (mutate(|cycle| cycle.mounted = true), "still there"),
            (mutate(|cycle| cycle.left_over = vec!["/x".to_owned()]), "left over"),
            (mutate(|cycle| cycle.kernel_warnings = vec!["BUG".to_owned()]), "kernel warnings"),
            (mutate(|cycle| cycle.core_dumps = vec!["x".to_owned()]), "core dumps"),
            (mutate(|cycle| cycle.lost = vec!["d-bus".to_owned()]), "lost events"),
            (mutate(|cycle| cycle.end = None), "not looked at"),
            (with_end(|end| end.processes = vec![(1, "x".to_owned())]), "left in the cgroup"),
            (with_end(|end| end.failed_units = vec!["y.service".to_owned()]), "failed units"),
            (with_end(|end| end.remount = Remount::Tried { result: 0, in_use: true }), "in use"),
            (with_end(|end| end.remount = Remount::Tried { result: BUSY, in_use: true }), "EBUSY"),
            (copied, "x.service: /mnt"),
        ];
        assert_eq!(clean().deviations(&expect("")), [""; 0]);
        for (cycle, words) in cases {
            let deviations = cycle.deviations(&expect(""));
            assert_eq!(deviations.len(), 1, "{words}: {deviations:?}");
            assert!(deviations[0].contains(words), "{words} is not in {deviations:?}");
        }
    }

    /// A declared failure that comes for another reason is red, and so is one that does not come.
    #[test]
    fn another_failure_than_the_declared_one_is_a_deviation() {
        let declared = "umount = \"EBUSY\"\nverdict = \"held by yourself\"\nlisted = [\"b.service\"]\n\
                        remount = \"in use\"\nexec_stop_post = \"SIGTERM\"\nreset_from_ms = 50\n\
                        reset_stderr = [\"held by {pid} (x)\", \"EBUSY\"]";
        let mut cycle = clean();
        cycle.verdict = MountVerdict::HeldByYourself;
        cycle.listed = vec!["a.service".to_owned(), "b.service".to_owned()];
        cycle.umounts[0].result = "EBUSY".to_owned();
        cycle.reset_stderr = "EBUSY: held by 7 (x) of y.service".to_owned();
        cycle.holders_at_umount = vec![holder(6, Role::Main), holder(7, Role::Outside)];
        cycle.end.as_mut().expect("an end").remount = Remount::Tried { result: 0, in_use: true };
        cycle.execs.push(ExecOutcome {
            unit: "x.service".to_owned(),
            line: "ExecStopPost".to_owned(),
            program: "x".to_owned(),
            exit: Some(Exit::Signal(15)),
            duration_ns: None,
        });
        let mut expect = expect(declared);
        expect.holders = vec!["main x (cwd)".to_owned(), "outside x (cwd)".to_owned()];
        assert_eq!(cycle.deviations(&expect), [""; 0]);
        type Change = fn(&mut Cycle);
        let changes: [(Change, &str); 8] = [
            (|cycle| cycle.verdict = MountVerdict::HeldByProcess, "verdict: held by a process instead of"),
            (|cycle| cycle.verdict = MountVerdict::OnlyListed, "verdict: only listed instead of"),
            (|cycle| cycle.umounts[0].result = "EINVAL".to_owned(), "umount2: EINVAL instead of EBUSY"),
            (|cycle| cycle.umounts.clear(), "umount2: none instead of EBUSY"),
            (|cycle| cycle.listed.truncate(1), "b.service was not"),
            (|cycle| cycle.reset_ns = 10_000_000, "reset took 0.010 s"),
            (|cycle| cycle.reset_stderr = "EBUSY: held by 8 (x)".to_owned(), "no \"held by {pid} (x)\""),
            (|cycle| cycle.reset_stderr = "held by 7 (x)".to_owned(), "no \"EBUSY\""),
        ];
        for (change, words) in changes {
            let mut other = cycle.clone();
            change(&mut other);
            let deviations = other.deviations(&expect);
            assert_eq!(deviations.len(), 1, "{words}: {deviations:?}");
            assert!(deviations[0].contains(words), "{words} is not in {deviations:?}");
        }
    }

    /// A recording of one cycle that is over, with a mount unit if it has one.
    fn recorded(mount_unit: Option<&str>, whats: Vec<What>) -> Recording {
        let end = |step| {
            let (stdout, stderr) = (String::new(), String::new());
            What::StepEnds(StepEnd { step, exit: Some(Exit::Code(0)), duration_ns: 1, stdout, stderr })
        };
        let around = [What::StepBegins(Step::Start), end(Step::Start), What::StepBegins(Step::Reset)];
        let whats = around.into_iter().chain(whats).chain([end(Step::Reset)]);
        let plan = vm_agent::recording::Plan {
            unit: "x.service".to_owned(),
            mount_unit: mount_unit.map(str::to_owned),
            mount: "/m".to_owned(),
            removed: Vec::new(),
            cycles: 1,
            start: Vec::new(),
            reset: Vec::new(),
            recover: Vec::new(),
            command_timeout_ms: 1,
            sample_us: 1,
        };
        let events = (0..).zip(whats).map(|(at, what)| Event { at, cycle: 1, what }).collect();
        let (kernel, systemd, os) = (String::new(), String::new(), String::new());
        Recording { plan, kernel, systemd, os, events }
    }

    #[test]
    fn the_mounts_unit_has_a_line_of_its_own_and_is_no_part_of_the_units() {
        let state = |active: &str, sub: &str, result: &str| UnitState {
            active: active.to_owned(),
            sub: sub.to_owned(),
            result: result.to_owned(),
            ..UnitState::default()
        };
        let exec = |unit: &str, line: &str, code| {
            What::Exec(Exec {
                unit: unit.to_owned(),
                line: line.to_owned(),
                argv: vec![format!("/bin/{line}")],
                pid: 7,
                ended: Some(9),
                exit: Some(Exit::Code(code)),
            })
        };
        let whats = vec![
            What::Unit(state("inactive", "dead", "success")),
            exec("x.service", "ExecStart", 0),
            What::MountUnit(state("failed", "failed", "exit-code")),
            exec("m.service", "ExecStopPost", 32),
        ];
        let own = cycles(&recorded(Some("m.service"), whats.clone())).remove(0);
        assert_eq!(own.exec_stop_post(), Some(Exit::Code(32)));
        let shape = own.shape();
        for line in [
            "unit after reset: inactive (dead), Result success, NRestarts 0\n\
             mount unit after reset: failed (failed), Result exit-code\nstates: inactive/dead\n",
            "exec: ExecStart ExecStart: exit status 0, mount unit's ExecStopPost ExecStopPost: exit status 32\n",
        ] {
            assert!(shape.contains(line), "{line} is not in {shape}");
        }

        // What the unit under test does by itself has no such line.
        let without = cycles(&recorded(None, whats)).remove(0).shape();
        assert!(!without.contains("mount unit"), "{without}");
        // One that was never heard of is not taken for one that is down.
        let silent = cycles(&recorded(Some("m.service"), Vec::new())).remove(0);
        assert_eq!(silent.mount_unit.expect("it has one").state.active, "");
    }

    #[test]
    fn the_mounts_unit_is_checked_where_there_is_one() {
        let load = |more: &str| {
            let root = tempfile::tempdir().expect("tempdir");
            let text = format!(
                "description = \"d\"\nunit = \"x.service\"\nmount_unit = \"m.service\"\nmount = \"/m\"\n\
                 start = [\"true\"]\nreset = [\"true\"]\n[expect]\n{EXPECT}{more}"
            );
            std::fs::write(root.path().join("scenario.toml"), text).expect("write");
            crate::scenario::Scenario::load(root.path()).expect("a good one").manifest.expect
        };
        let with = |active: &str| {
            let state = UnitState { active: active.to_owned(), ..UnitState::default() };
            let mut cycle = clean();
            cycle.mount_unit = Some(MountUnit { name: "m.service".to_owned(), state });
            if active == "failed" {
                cycle.end.as_mut().expect("an end").failed_units = vec!["m.service".to_owned()];
            }
            cycle
        };
        let failed = load("mount_unit_state = \"failed\"");
        assert_eq!(with("inactive").deviations(&load("")), [""; 0]);
        assert_eq!(with("failed").deviations(&failed), [""; 0], "it is told once, and here as expected");
        for (cycle, expect, words) in [
            (with("active"), load(""), "the mount's unit is active after the reset, not inactive"),
            (with("failed"), load(""), "the mount's unit is failed after the reset, not inactive"),
            (with("inactive"), failed, "the mount's unit is inactive after the reset, not failed"),
            (clean(), load(""), "the mount's unit is not there after the reset, not inactive"),
        ] {
            let deviations = cycle.deviations(&expect);
            assert!(deviations.concat().contains(words), "{words} is not in {deviations:?}");
        }
    }

    #[test]
    fn a_mount_and_its_unmount_bear_each_other_out() {
        let mounted = || {
            What::Mounted(vm_agent::recording::Mounted {
                mount_id: 1,
                device: "0:1".to_owned(),
                fstype: "overlay".to_owned(),
            })
        };
        let call =
            |target, result| What::UmountCall(UmountCall { target, ..call(7, Role::Control, result).1 });
        let ours = || call(Target::Mount, 0);
        let cases: [(&str, Vec<What>, &[&str]); 12] = [
            ("as it is", vec![mounted(), ours(), What::Unmounted], &[]),
            ("nothing at all", vec![], &[]),
            ("refused", vec![mounted(), call(Target::Mount, BUSY)], &[]),
            (
                "the one below goes by the one above",
                vec![mounted(), call(Target::Other, 0), What::Unmounted],
                &[],
            ),
            ("an old kernel shows no path", vec![mounted(), call(Target::Unknown, 0), What::Unmounted], &[]),
            ("a private copy goes", vec![mounted(), call(Target::Copy, 0)], &[]),
            ("twice", vec![mounted(), ours(), What::Unmounted, mounted(), ours(), What::Unmounted], &[]),
            ("no tracer", vec![mounted(), What::Unmounted], &["tracefs: the mount went away"]),
            (
                "a tracer that failed later",
                vec![mounted(), ours(), What::Unmounted, mounted(), What::Unmounted],
                &["tracefs:"],
            ),
            ("no mount changes", vec![ours()], &["mountinfo: umount unmounted the mount, and no change"]),
            ("one change missed", vec![mounted(), ours(), What::Unmounted, ours()], &["mountinfo:"]),
            ("the mount missed", vec![ours(), What::Unmounted], &["mountinfo: an unmount, and no mount"]),
        ];
        for (what, whats, expected) in cases {
            let lost = cycles(&recorded(None, whats)).remove(0).lost;
            assert_eq!(lost.len(), expected.len(), "{what}: {lost:?}");
            for (lost, words) in lost.iter().zip(expected) {
                assert!(lost.starts_with(words), "{what}: {lost}");
            }
        }
    }

    #[test]
    fn a_retry_is_told_once() {
        let told = |items: &[&str]| runs(items.iter().map(|&item| item.to_owned())).join(", ");
        assert_eq!(told(&["a", "b", "b", "b", "a"]), "a, b, again and again, a");
        assert_eq!(told(&[]), "");
    }
}
