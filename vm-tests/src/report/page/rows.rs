//! What the page draws of a cycle: rows of spans and marks on the guest's time, in three lanes. Pure.
//!
//! The script on the page knows rows, spans and marks, and nothing of units or mounts: what is drawn, and in which words, is
//! decided here.

use std::collections::BTreeMap;

use serde::Serialize;
use vm_agent::recording::{
    Diagnosis, EBUSY, Event, Evidence, Exec, Exit, MAIN, Mounted, Recording, Role, Scan, Step, Task,
    UmountCall, UnitState, What, Why,
};

use crate::judge::cycle::result_words;

/// A cycle, as it is drawn. Times are nanoseconds since the plan began.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CycleView {
    pub(super) number: u32,
    pub(super) from: u64,
    /// Where the time axis has its zero: the begin of the reset; that of the cycle, if there was none.
    pub(super) zero: u64,
    pub(super) to: u64,
    /// The instant that decided it, if something went wrong.
    pub(super) failing: Option<Mark>,
    pub(super) rows: Vec<Row>,
    pub(super) log: Vec<Line>,
}

/// A row of one of the lanes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) lane: Lane,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) spans: Vec<Span>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) marks: Vec<Mark>,
}

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Lane {
    /// The commands of the scenario, the units' states, the Exec lines.
    Systemd,
    /// Who was there, and what each held in the mount.
    Processes,
    /// The mounts, and the calls that unmount them.
    Mounts,
}

/// Something that lasted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
    /// What it is while it lasts.
    pub(super) text: String,
    pub(super) look: Look,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) detail: String,
    /// How it ended, where that is known only then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) end: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) end_detail: String,
}

impl Span {
    /// One whose end says nothing.
    fn new(from: u64, to: u64, text: impl Into<String>, look: Look, detail: String) -> Self {
        Self { from, to, text: text.into(), look, detail, end: String::new(), end_detail: String::new() }
    }
}

/// Something that happened at an instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Mark {
    pub(super) at: u64,
    pub(super) text: String,
    pub(super) look: Look,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) detail: String,
}

/// How it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Look {
    /// As it should be.
    Good,
    /// Under way.
    Busy,
    /// Wrong.
    Bad,
    /// Holds the mount.
    Holds,
    /// Is there, and no more.
    Idle,
    /// A moment at which somebody looked: between two of them, what the first saw is what is drawn.
    Tick,
}

/// A line of the journal or of the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) at: u64,
    pub(super) from: &'static str,
    pub(super) text: String,
}

/// All cycles of a recording.
pub(super) fn cycles(recording: &Recording) -> Vec<CycleView> {
    let last = recording.events.iter().map(|event| event.cycle).max().unwrap_or(0);
    (1..=last).map(|number| cycle(recording, number)).collect()
}

fn cycle(recording: &Recording, number: u32) -> CycleView {
    let events: Vec<&Event> = recording.events.iter().filter(|event| event.cycle == number).collect();
    let from = events.first().map_or(0, |event| event.at);
    let to = events.iter().map(|event| end_of(event)).max().unwrap_or(from);
    let zero = events
        .iter()
        .find(|event| matches!(event.what, What::StepBegins(Step::Reset)))
        .map_or(from, |event| event.at);
    let mut rows = steps(&events, to);
    let plan = &recording.plan;
    rows.push(states(&plan.unit, &events, to, |what| match what {
        What::Unit(state) => Some(state),
        _ => None,
    }));
    if let Some(unit) = &plan.mount_unit {
        rows.push(states(unit, &events, to, |what| match what {
            What::MountUnit(state) => Some(state),
            _ => None,
        }));
    }
    rows.extend(execs(&events, to, plan.mount_unit.is_none()));
    rows.extend(processes(&events, to));
    for (mount, path) in plan.mounts() {
        rows.extend(mount_rows(mount, path, &events, to));
    }
    rows.extend(others(&events));
    rows.retain(|row| !row.spans.is_empty() || !row.marks.is_empty());
    // One that is in its first mount's lane has its place by the order in which it was made.
    rows.sort_by_key(|row| row.lane);
    let failing = failing(&events);
    CycleView { number, from, zero, to, failing, rows, log: log(recording, &events) }
}

/// The last moment that an event tells of.
fn end_of(event: &Event) -> u64 {
    match &event.what {
        What::Exec(exec) => exec.ended.unwrap_or(event.at),
        What::UmountCall(call) => call.returned,
        _ => event.at,
    }
}

/// The first unmount that was refused; else the unit's failure; else the first command that failed.
fn failing(events: &[&Event]) -> Option<Mark> {
    let mark =
        |event: &Event, text: String| Mark { at: event.at, text, look: Look::Bad, detail: String::new() };
    let refused = events.iter().enumerate().find_map(|(index, event)| {
        let call = call(&event.what).filter(|call| call.result < 0)?;
        // What was said of it comes right after it.
        let said = events.iter().skip(index).find_map(|event| match &event.what {
            What::Diagnosis(diagnosis) if diagnosis.why == Why::UmountFailed => Some(diagnosis),
            _ => None,
        });
        let detail = said.map_or_else(String::new, |said| {
            [std::slice::from_ref(&said.line), &said.advice[..]].concat().join("\n")
        });
        Some(Mark { detail, ..mark(event, format!("umount fails: {}", result_words(call.result))) })
    });
    let failed = || {
        events.iter().find_map(|event| match &event.what {
            What::Unit(state) | What::MountUnit(state) if state.active == "failed" => {
                Some(mark(event, format!("the unit fails: Result={}", state.result)))
            }
            _ => None,
        })
    };
    let ended = || {
        events.iter().find_map(|event| match &event.what {
            What::StepEnds(end) if !matches!(end.step, Step::Recover) && !is_success(end.exit) => {
                Some(mark(event, format!("{} fails: {}", name(end.step), how(end.exit))))
            }
            _ => None,
        })
    };
    refused.or_else(failed).or_else(ended)
}

fn call(what: &What) -> Option<&UmountCall> {
    match what {
        What::UmountCall(found) => Some(found),
        What::OfMount { what, .. } => call(what),
        _ => None,
    }
}

fn is_success(exit: Option<Exit>) -> bool {
    exit.is_some_and(Exit::success)
}

fn how(exit: Option<Exit>) -> String {
    exit.map_or_else(|| "its time was over".to_owned(), |exit| exit.to_string())
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Start => "start",
        Step::Reset => "reset",
        Step::During => "during",
        Step::Check => "check",
        Step::Recover => "recover",
        Step::BootCheck => "check of the next boot",
    }
}

/// The scenario's commands, a row for each kind.
fn steps(events: &[&Event], to: u64) -> Vec<Row> {
    let mut rows: BTreeMap<Step, Row> = BTreeMap::new();
    let mut open: BTreeMap<Step, u64> = BTreeMap::new();
    let row = |rows: &mut BTreeMap<Step, Row>, step, span| {
        let row = rows.entry(step).or_insert_with(|| Row::new(Lane::Systemd, name(step)));
        row.spans.push(span);
    };
    for event in events {
        match &event.what {
            What::StepBegins(step) => {
                open.insert(*step, event.at);
            }
            What::StepEnds(end) => {
                let from = open.remove(&end.step).unwrap_or(event.at.saturating_sub(end.duration_ns));
                let said =
                    [&end.stdout, &end.stderr].map(|text| text.trim_end()).join("\n").trim().to_owned();
                let look = if is_success(end.exit) { Look::Good } else { Look::Bad };
                let span = Span::new(from, event.at, "runs", look, String::new());
                row(&mut rows, end.step, Span { end: how(end.exit), end_detail: said, ..span });
            }
            _ => {}
        }
    }
    for (step, from) in open {
        row(&mut rows, step, Span::new(from, to, "has no end", Look::Bad, String::new()));
    }
    rows.into_values().collect()
}

impl Row {
    fn new(lane: Lane, name: impl Into<String>) -> Self {
        Self { lane, name: name.into(), spans: Vec::new(), marks: Vec::new() }
    }

    /// A span begins; the one before ends here, and goes on if it is the same.
    fn then(&mut self, at: u64, text: String, look: Look, detail: String) {
        if let Some(last) = self.spans.last_mut() {
            if last.text == text && last.detail == detail && last.to >= at {
                return;
            }
            last.to = last.to.min(at);
        }
        self.spans.push(Span::new(at, u64::MAX, text, look, detail));
    }

    /// What still lasts ends here.
    fn ends(&mut self, at: u64) {
        if let Some(last) = self.spans.last_mut() {
            last.to = last.to.min(at);
        }
    }
}

/// A unit's states, and how it came to them.
fn states(unit: &str, events: &[&Event], to: u64, state_of: impl Fn(&What) -> Option<&UnitState>) -> Row {
    let mut row = Row::new(Lane::Systemd, unit);
    for (at, state) in events.iter().filter_map(|event| Some((event.at, state_of(&event.what)?))) {
        let UnitState { active, sub, result, main_pid, control_pid, .. } = state;
        let text = if active == sub { active.clone() } else { format!("{active} ({sub})") };
        let pids = [("MainPID", main_pid), ("ControlPID", control_pid)].map(|(name, pid)| match pid {
            0 => String::new(),
            pid => format!("{name}={pid} "),
        });
        let look = match active.as_str() {
            "active" => Look::Good,
            "inactive" => Look::Idle,
            "failed" => Look::Bad,
            _ => Look::Busy,
        };
        let detail = format!("{}Result={result}", pids.concat());
        // The same state with another process is the same bar.
        if let Some(last) = row.spans.last_mut().filter(|last| last.text == text && last.to == u64::MAX) {
            last.detail = detail;
        } else {
            row.then(at, text, look, detail);
        }
    }
    row.ends(to);
    row
}

/// The Exec lines, each a row, and each of its runs a span; main processes too.
fn execs(events: &[&Event], to: u64, is_one_unit: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (at, exec) in events.iter().filter_map(|event| match &event.what {
        What::Exec(exec) => Some((event.at, exec)),
        _ => None,
    }) {
        let is_main = exec.line == MAIN;
        let line = if is_main { "main process" } else { exec.line.as_str() };
        // The main process is its ExecStart, unless that is of another Type=.
        if is_main && rows.iter().any(|row| row.spans.iter().any(|span| span.from == at && is_of(span, exec)))
        {
            continue;
        }
        let name = if is_one_unit {
            line.to_owned()
        } else {
            format!("{line} of {}", exec.unit.trim_end_matches(".service"))
        };
        let index = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            rows.push(Row::new(Lane::Systemd, name));
            rows.len() - 1
        });
        let (end, look) = match exec.exit {
            None => (String::new(), Look::Busy),
            Some(exit) if exit.success() => (exit.to_string(), Look::Good),
            // A stop ends it by a signal.
            Some(exit @ Exit::Signal(_)) => (exit.to_string(), Look::Idle),
            Some(exit) => (exit.to_string(), Look::Bad),
        };
        let detail = format!("pid {} {}", exec.pid, exec.argv.join(" "));
        let span = Span { end, ..Span::new(at, exec.ended.unwrap_or(to), "runs", look, detail) };
        rows.get_mut(index).expect("it was found or pushed").spans.push(span);
    }
    rows
}

fn is_of(span: &Span, exec: &Exec) -> bool {
    span.detail.starts_with(&format!("pid {} ", exec.pid))
}

/// Of copies of the mount in other mount namespaces (kernel: propagate_mount_busy asks none of a private one).
const HARMLESS: &str = ": no unmount here fails for that";

/// Every process that a scan saw with something in the mount: what it held, from the scan that saw it to the first that did
/// not. Those that have a copy of the mount and hold nothing share a row.
fn processes(events: &[&Event], to: u64) -> Vec<Row> {
    let scans: Vec<(u64, &Scan)> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Scan(scan) => Some((event.at, scan)),
            _ => None,
        })
        .collect();
    let mut rows: BTreeMap<u32, (String, Row)> = BTreeMap::new();
    let mut looked = Row::new(Lane::Processes, "scans of the recorder");
    let mut copies = Row::new(Lane::Processes, "only have a copy of the mount");
    for (at, scan) in &scans {
        let of = if scan.whole_proc { "all processes" } else { "the units' processes" };
        let text = format!("looked at {of}");
        looked.marks.push(Mark { at: *at, text, look: Look::Tick, detail: String::new() });
        let mut held: BTreeMap<u32, Vec<&Task>> = BTreeMap::new();
        for task in scan.tasks.iter().filter(|task| !task.references.is_empty()) {
            held.entry(task.pid).or_default().push(task);
        }
        for (_, (_, row)) in rows.iter_mut().filter(|(pid, _)| !held.contains_key(pid)) {
            row.ends(*at);
        }
        for (pid, tasks) in held {
            let Some(task) = tasks.first() else { continue };
            let (role, row) =
                rows.entry(pid).or_insert_with(|| (whose(task), Row::new(Lane::Processes, String::new())));
            // It may have called execve since. What it was at first says more than what it is while it ends.
            row.name = format!("{pid} {} ({role})", task.comm);
            let (text, detail) = held_by(&tasks);
            row.then(*at, text, Look::Holds, detail);
        }
        if scan.whole_proc {
            let listed: Vec<String> = scan
                .tasks
                .iter()
                .filter(|task| task.references.is_empty() && task.private_copy)
                .map(|task| format!("{} {} of {}", task.pid, task.comm, task.unit))
                .collect();
            match listed.len() {
                0 => copies.ends(*at),
                1 => copies.then(*at, format!("1 process{HARMLESS}"), Look::Idle, listed.join("\n")),
                some => {
                    copies.then(*at, format!("{some} processes{HARMLESS}"), Look::Idle, listed.join("\n"))
                }
            }
        }
    }
    for row in rows.values_mut().map(|(_, row)| row).chain([&mut copies]) {
        row.ends(to);
    }
    for (pid, at, exit) in events.iter().filter_map(|event| match &event.what {
        What::Exec(Exec { pid, ended: Some(ended), exit: Some(exit), .. }) => Some((pid, *ended, *exit)),
        _ => None,
    }) {
        if let Some((_, row)) =
            rows.get_mut(pid).filter(|(_, row)| !row.marks.iter().any(|mark| mark.at == at))
        {
            row.ends(at);
            row.marks.push(Mark {
                at,
                text: format!("ends: {exit}"),
                look: Look::Idle,
                detail: String::new(),
            });
        }
    }
    let mut all: Vec<Row> = rows.into_values().map(|(_, row)| row).collect();
    all.sort_by_key(|row| row.spans.first().map_or(u64::MAX, |span| span.from));
    all.extend([copies, looked]);
    all
}

fn whose(task: &Task) -> String {
    match task.role {
        Role::Outside if task.unit.is_empty() => "of no unit".to_owned(),
        Role::Outside => format!("of {}", task.unit),
        role => role.word().to_owned(),
    }
}

/// What a process's tasks hold: each kind in words, and the paths.
fn held_by(tasks: &[&Task]) -> (String, String) {
    let (mut kinds, mut paths) = (Vec::new(), Vec::new());
    for reference in tasks.iter().flat_map(|task| &task.references) {
        let kind = reference.kind.in_words();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
        let path = format!("{kind}: {}", reference.path);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    (kinds.join(", "), paths.join("\n"))
}

/// A watched mount: when it was there, who tried to unmount it, and what `holders` said.
fn mount_rows(mount: u32, path: &str, events: &[&Event], to: u64) -> [Row; 2] {
    let mut row = Row::new(Lane::Mounts, path);
    let mut said = Row::new(Lane::Mounts, "holders says");
    let mut is_mounted = false;
    for (at, what) in events.iter().filter_map(|event| {
        let what = match &event.what {
            What::OfMount { mount: of, what } => Some(&**what).filter(|_| *of == mount),
            what => Some(what).filter(|_| mount == 0),
        };
        Some((event.at, what?))
    }) {
        match what {
            What::Mounted(Mounted { mount_id, device, fstype }) => {
                let detail = format!("mount {mount_id}, device {device}");
                row.then(at, format!("{fstype} mounted"), Look::Good, detail);
                is_mounted = true;
            }
            What::Unmounted => {
                row.ends(at);
                is_mounted = false;
            }
            // One that a cycle before left mounted.
            What::Scan(Scan { mounted: true, .. }) if !is_mounted && row.spans.is_empty() => {
                row.then(at, "mounted".into(), Look::Good, String::new());
                is_mounted = true;
            }
            What::UmountCall(call) => row.marks.push(unmount(at, call)),
            What::Diagnosis(diagnosis) => said.marks.push(verdict(at, diagnosis)),
            _ => {}
        }
    }
    if is_mounted {
        row.ends(to);
    }
    [row, said]
}

fn unmount(at: u64, call: &UmountCall) -> Mark {
    let (text, look) = match call.result {
        0 => ("umount: ok".to_owned(), Look::Good),
        EBUSY => ("umount: EBUSY".to_owned(), Look::Bad),
        result => (format!("umount: {}", result_words(result)), Look::Bad),
    };
    let micros = call.returned.saturating_sub(at) / 1000;
    let detail = format!("umount2(2) by {} {} ({}), {micros} µs", call.pid, call.comm, call.role.word());
    Mark { at, text, look, detail }
}

fn verdict(at: u64, diagnosis: &Diagnosis) -> Mark {
    let asked = match diagnosis.why {
        Why::UmountFailed => "asked as the unmount was refused",
        Why::Late => "asked as the stop took long",
        Why::Left => "asked after the reset",
    };
    let look = if diagnosis.blockers.is_empty() { Look::Idle } else { Look::Bad };
    let detail = [&[asked.to_owned()], &diagnosis.advice[..]].concat().join("\n");
    Mark { at, text: diagnosis.line.clone(), look, detail }
}

/// What belongs to no mount: what was left over, what died, what was lost.
fn others(events: &[&Event]) -> Option<Row> {
    let mut row = Row::new(Lane::Mounts, "what is left behind");
    for event in events {
        let (text, detail) = match &event.what {
            What::LeftOver { path } => (format!("{path} is still there"), String::new()),
            What::DeviceKept { device, by } => (format!("{device} is not free"), by.join("\n")),
            What::Coredump { pid, comm } => (format!("{pid} {comm} dumped core"), String::new()),
            What::Lost { source, why } => (format!("{source} lost events"), why.clone()),
            What::EndState(end) if end.lives_on() => {
                let places = end.mounted_in.iter().map(|copy| {
                    format!("{} {} of {}: {}", copy.pid, copy.comm, copy.unit, copy.mount_points.join(", "))
                });
                ("the file system lives on".to_owned(), places.collect::<Vec<_>>().join("\n"))
            }
            _ => continue,
        };
        row.marks.push(Mark { at: event.at, text, look: Look::Bad, detail });
    }
    Some(row).filter(|row| !row.marks.is_empty())
}

/// The journal, where it was kept, and what the kernel and the console said.
fn log(recording: &Recording, events: &[&Event]) -> Vec<Line> {
    let mut lines = Vec::new();
    for event in events {
        match &event.what {
            What::Evidence(Evidence { journal, .. }) => {
                lines.extend(journal.lines().filter_map(|line| journal_line(line, recording.began_ns)));
            }
            What::KernelWarning { text } => {
                lines.push(Line { at: event.at, from: "kernel", text: text.clone() });
            }
            What::Console { lines: console } => lines.extend(console.iter().map(|text| Line {
                at: event.at,
                from: "console",
                text: text.clone(),
            })),
            _ => {}
        }
    }
    lines.sort_by_key(|line| line.at);
    lines
}

/// `[    5.168357] systemd[1]: Starting ...`: seconds since the boot, of CLOCK_MONOTONIC as the recording's.
pub(super) fn journal_line(line: &str, began_ns: u64) -> Option<Line> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (secs, micros) = time.trim().split_once('.')?;
    let (secs, micros): (u64, u64) = (secs.parse().ok()?, format!("{micros:0<6}").parse().ok()?);
    let at = (secs * 1_000_000 + micros) * 1000;
    Some(Line { at: at.saturating_sub(began_ns), from: "journal", text: text.to_owned() })
}
