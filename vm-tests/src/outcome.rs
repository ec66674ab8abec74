//! What a recording says: a fold over its events into one [`Cycle`] per cycle, and the verdict on it.
//!
//! Pure: tables, probe lines, JSON and snapshots are all made from what is here.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_agent::recording::{
    Event, Exec, Kind, Recording, Role, Scan, Step, StepEnd, Task, Trigger, UmountCall, UnitState, What,
};
use vm_agent::wire::Exit;

use crate::scenario::Expect;

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
    /// The unit's states from the start on, `ActiveState/SubState`, repetitions left out.
    pub states: Vec<String>,
    /// The runs of Exec lines, in order.
    pub execs: Vec<ExecOutcome>,
    /// The calls of umount2(2) during the reset.
    pub umounts: Vec<Umount>,
    /// Who held the mount when the reset began.
    pub holders_at_stop: Vec<Holder>,
    /// Who held it at the last moment before each umount2.
    pub holders_at_umount: Vec<Holder>,
    /// Whether the watched path was a mount point when the reset had ended.
    pub mounted: bool,
    /// Paths that the reset was meant to remove and that are still there.
    pub left_over: Vec<String>,
    /// What sources of events lost.
    pub lost: Vec<String>,
    /// What the recorder's own looks took during the reset, nanoseconds of guest time.
    pub probe_ns: u64,
    /// What the reset command wrote to stderr.
    pub reset_stderr: String,
}

/// One run of one Exec line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOutcome {
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
    (1..=last)
        .map(|number| {
            let events: Vec<&Event> = recording.events.iter().filter(|event| event.cycle == number).collect();
            cycle(number, &events)
        })
        .collect()
}

fn cycle(number: u32, events: &[&Event]) -> Cycle {
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
    let scans: Vec<(u64, &Scan)> = window
        .iter()
        .filter_map(|event| match &event.what {
            What::Scan(scan) => Some((event.at, scan)),
            _ => None,
        })
        .collect();
    let calls: Vec<(u64, &UmountCall)> = window
        .iter()
        .filter_map(|event| match &event.what {
            What::UmountCall(call) => Some((event.at, call)),
            _ => None,
        })
        .collect();
    let before_recovery: Vec<&Event> = events.iter().copied().filter(|event| event.at < until).collect();
    let start: Option<&StepEnd> = step(Step::Start);
    let reset: Option<&StepEnd> = step(Step::Reset);
    Cycle {
        number,
        start_exit: start.and_then(|end| end.exit),
        start_ns: start.map_or(0, |end| end.duration_ns),
        reset_exit: reset.and_then(|end| end.exit),
        reset_ns: reset.map_or(0, |end| end.duration_ns),
        unit: last_unit(&before_recovery),
        states: states(&before_recovery),
        execs: execs(&before_recovery),
        umounts: calls.iter().map(|(at, call)| umount(*at, call)).collect(),
        holders_at_stop: holders(scan_at_stop(events)),
        holders_at_umount: holders(scans_at_umount(&scans, &calls)),
        mounted: scans
            .iter()
            .rev()
            .find(|(_, scan)| scan.trigger == Trigger::End)
            .is_some_and(|(_, scan)| scan.mounted),
        left_over: left_over(&before_recovery),
        lost: lost(events),
        probe_ns: scans.iter().map(|(_, scan)| scan.cost_ns).sum(),
        reset_stderr: reset.map(|end| end.stderr.clone()).unwrap_or_default(),
    }
}

/// Taken before the reset begins, so not in its window.
fn scan_at_stop<'a>(events: &[&'a Event]) -> Option<&'a Scan> {
    events.iter().find_map(|event| match &event.what {
        What::Scan(scan) if scan.trigger == Trigger::Stop => Some(scan),
        _ => None,
    })
}

/// The looks that tell who held the mount at the moment of each umount2: the last one before the call and, if
/// it failed, the first one after it. Without any call (no tracefs), the last one that still saw the mount.
fn scans_at_umount<'a>(scans: &[(u64, &'a Scan)], calls: &[(u64, &UmountCall)]) -> Vec<&'a Scan> {
    let mut chosen = Vec::new();
    for (at, call) in calls {
        chosen.extend(scans.iter().rev().find(|(scanned, _)| scanned <= at).map(|(_, scan)| *scan));
        if call.result < 0 {
            let failed = |scan: &Scan| scan.trigger == Trigger::UmountFailed;
            chosen.extend(
                scans.iter().find(|(scanned, scan)| *scanned >= *at && failed(scan)).map(|(_, scan)| *scan),
            );
        }
    }
    if calls.is_empty() {
        chosen.extend(scans.iter().rev().find(|(_, scan)| scan.mounted).map(|(_, scan)| *scan));
    }
    chosen
}

fn last_unit(events: &[&Event]) -> UnitState {
    let state = events.iter().rev().find_map(|event| match &event.what {
        What::Unit(state) => Some(state.clone()),
        _ => None,
    });
    state.unwrap_or_default()
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
            line: exec.line.clone(),
            program: exec.argv.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path)).to_owned(),
            exit: exec.exit,
            duration_ns: exec.ended.map(|ended| ended.saturating_sub(at)),
        })
        .collect()
}

fn umount(at: u64, call: &UmountCall) -> Umount {
    let result = match i32::try_from(-call.result) {
        Ok(0) => "ok".to_owned(),
        Ok(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
        Err(_) => call.result.to_string(),
    };
    Umount { comm: call.comm.clone(), result, duration_ns: call.returned.saturating_sub(at) }
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

impl Cycle {
    /// How the last ExecStopPost ended.
    #[must_use]
    pub fn exec_stop_post(&self) -> Option<Exit> {
        self.execs.iter().rev().find(|exec| exec.line == "ExecStopPost").and_then(|exec| exec.exit)
    }

    /// Shape and order, no numbers that differ from run to run.
    #[must_use]
    pub fn shape(&self) -> String {
        let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        let words = |holders: &[Holder]| list(holders.iter().map(Holder::words).collect());
        let execs = self
            .execs
            .iter()
            .map(|exec| format!("{} {}: {}", exec.line, exec.program, exit_words(exec.exit)));
        let umounts = self.umounts.iter().map(|umount| format!("{}: {}", umount.comm, umount.result));
        let UnitState { active, sub, result, restarts, .. } = &self.unit;
        let mut shape = String::new();
        let rows = [
            ("start", exit_words(self.start_exit)),
            ("reset", format!("{}, {}", exit_words(self.reset_exit), duration_class(self.reset_ns))),
            ("unit after reset", format!("{active} ({sub}), Result {result}, NRestarts {restarts}")),
            ("states", self.states.join(" -> ")),
            ("exec", list(execs.collect())),
            ("holders at stop", words(&self.holders_at_stop)),
            ("holders at umount", words(&self.holders_at_umount)),
            ("umount", list(umounts.collect())),
            ("mounted after reset", if self.mounted { "yes" } else { "no" }.to_owned()),
            ("left over after reset", list(self.left_over.clone())),
            ("lost events", list(self.lost.clone())),
        ];
        for (name, value) in rows {
            shape.push_str(&format!("{name}: {value}\n"));
        }
        shape
    }

    /// What is not as expected, in words; empty if all is.
    #[must_use]
    pub fn deviations(&self, expect: &Expect) -> Vec<String> {
        let holders: Vec<String> = self.holders_at_umount.iter().map(Holder::words).collect();
        let reset = Duration::from_nanos(self.reset_ns);
        let checks = [
            (self.start_exit == Some(Exit::Code(0)), format!("start: {}", exit_words(self.start_exit))),
            (
                self.reset_exit == Some(Exit::Code(expect.reset_exit)),
                format!(
                    "reset: {} instead of exit status {}",
                    exit_words(self.reset_exit),
                    expect.reset_exit
                ),
            ),
            (
                reset < Duration::from_millis(expect.reset_under_ms),
                format!(
                    "reset took {:.3} s, not under {:.3} s",
                    reset.as_secs_f64(),
                    Duration::from_millis(expect.reset_under_ms).as_secs_f64()
                ),
            ),
            (
                self.unit.active == expect.active_state,
                format!("the unit is {} after the reset, not {}", self.unit.active, expect.active_state),
            ),
            (
                self.exec_stop_post() == expect.exec_stop_post.map(Exit::Code),
                match expect.exec_stop_post {
                    Some(code) => {
                        format!(
                            "ExecStopPost: {} instead of exit status {code}",
                            exit_words(self.exec_stop_post())
                        )
                    }
                    None => {
                        format!("ExecStopPost: {}, and none was expected", exit_words(self.exec_stop_post()))
                    }
                },
            ),
            (
                self.mounted == expect.mounted,
                format!("the mount is {} after the reset", if self.mounted { "still there" } else { "gone" }),
            ),
            (
                self.left_over == expect.left_over,
                format!("left over after the reset: {:?} instead of {:?}", self.left_over, expect.left_over),
            ),
            (self.lost.is_empty(), format!("events were lost: {}", self.lost.join("; "))),
            (
                holders == expect.holders,
                format!("holders at umount: {holders:?} instead of {:?}", expect.holders),
            ),
        ];
        checks
            .into_iter()
            .filter(|(right, _)| !right)
            .map(|(_, words)| format!("cycle {}: {words}", self.number))
            .collect()
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
