//! The fold over a recording's events, into one [`Cycle`] per cycle. Pure.

use std::collections::BTreeSet;

use vm_agent::recording::{
    EndState, Event, MAIN, Plan, Recording, Role, Scan, Step, StepEnd, Target, Trigger, UmountCall,
    UnitState, What,
};

use super::commands;
use super::contradictions::contradictions;
use super::cycle::MountOutcome;
use super::cycle::{Before, Cycle, MountUnit, Umount, places, result_words};
use super::execs;
use super::keepers::{Moments, of_scans, scan_of};
use super::moment::named_last;
use super::mount::recording_of;
use super::shutdown;

/// Folds a recording into its cycles.
#[must_use]
pub fn cycles(recording: &Recording) -> Vec<Cycle> {
    let mut cycles = of_one_mount(recording);
    for (number, path) in recording.plan.mounts().filter(|(number, _)| *number > 0) {
        // All that is not of a mount is in both.
        for (cycle, other) in cycles.iter_mut().zip(of_one_mount(&recording_of(recording, number, path))) {
            let lost = other.lost.iter().filter(|lost| !cycle.lost.contains(lost)).cloned();
            cycle.lost.extend(lost.collect::<Vec<_>>());
            cycle.probe_ns += other.probe_ns;
            cycle.other_mounts.push(MountOutcome::of(path, &other));
        }
    }
    cycles
}

fn of_one_mount(recording: &Recording) -> Vec<Cycle> {
    let last = recording.events.iter().map(|event| event.cycle).max().unwrap_or(0);
    let contradictions = contradictions(&recording.events);
    (1..=last)
        .map(|number| {
            let events: Vec<&Event> = recording.events.iter().filter(|event| event.cycle == number).collect();
            let mut cycle = cycle(number, &recording.plan, &events);
            let of_it = contradictions.iter().filter(|(cycle, _)| *cycle == number);
            cycle.lost.extend(of_it.map(|(_, words)| words.clone()));
            cycle
        })
        .collect()
}

fn cycle(number: u32, plan: &Plan, events: &[&Event]) -> Cycle {
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
    let forgotten = events.iter().find(|event| event.what == What::StartsForgotten).map(|event| event.at);
    // The reset's window: from its begin to the first check or recovery, if there is one, or the end of the cycle.
    let from = begin(Step::Reset).unwrap_or(u64::MAX);
    let until =
        [Step::Check, Step::Recover].into_iter().filter_map(begin).chain(forgotten).min().unwrap_or(u64::MAX);
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
    let moments = Moments::new(calls.clone(), if calls.is_empty() { &window } else { &before_recovery });
    let start: Option<&StepEnd> = step(Step::Start);
    let reset: Option<&StepEnd> = step(Step::Reset);
    let ended = reset.map_or(u64::MAX, |end| from.saturating_add(end.duration_ns));
    let holders_at_umount = moments.holders();
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
    let runs = execs::runs(&before_recovery, &plan.unit, (from, ended));
    let (mains, execs) = runs.into_iter().partition(|run| run.line == MAIN);
    let lives_on = !mounted && end.as_ref().is_some_and(EndState::lives_on);
    Cycle {
        number,
        start_exit: start.and_then(|end| end.exit),
        start_ns: start.map_or(0, |end| end.duration_ns),
        start_stderr: start.map(|end| end.stderr.clone()).unwrap_or_default(),
        before: before(events, from),
        reset_exit: reset.and_then(|end| end.exit),
        reset_ns: reset.map_or(0, |end| end.duration_ns),
        unit: last_unit(&before_recovery),
        mount_unit: plan
            .mount_unit
            .as_ref()
            .map(|name| MountUnit { name: name.clone(), state: last_mount_unit(&before_recovery) }),
        states: states(&before_recovery),
        execs,
        mains,
        umounts: calls.iter().map(|(at, call)| umount(*at, call)).collect(),
        holders_at_stop: named_last(of_scans(scan_at_stop(events, from)), events),
        verdict: moments.verdict(&holders_at_umount, &listed, lives_on),
        diagnosis: moments.most_telling().cloned(),
        holders_at_umount,
        listed,
        mounted,
        end,
        kernel_warnings: kernel_warnings(events),
        core_dumps: core_dumps(events),
        left_over: left_over(&before_recovery),
        kept_devices: kept_devices(&before_recovery),
        lost: lost(events),
        probe_ns: window.iter().filter(|event| event.at < ended).map(|event| cost_ns(event)).sum(),
        reset_stderr: reset.map(|end| end.stderr.clone()).unwrap_or_default(),
        during: commands::ran(Step::During, plan.during.iter().map(|during| &during.run), events),
        other_mounts: Vec::new(),
        shutdown_log: shutdown::complaints(events),
        checks: commands::ran(Step::Check, &plan.checks, events),
        boot_checks: commands::ran(Step::BootCheck, &plan.boot_checks, events),
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

fn before(events: &[&Event], reset: u64) -> Before {
    let not_mounted = events.iter().find_map(|event| match &event.what {
        What::NotMounted { elsewhere } => Some(elsewhere),
        _ => None,
    });
    let earlier: Vec<&Event> = events.iter().copied().filter(|event| event.at <= reset).collect();
    Before {
        active: last_unit(&earlier).active,
        mounted: not_mounted.is_none(),
        elsewhere: not_mounted.map(|copies| places(copies)).unwrap_or_default(),
    }
}

/// Those who are listed for their namespace alone.
pub(super) fn listed(events: &[&Event]) -> Vec<String> {
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

/// What the recorder took of the reset's time.
fn cost_ns(event: &Event) -> u64 {
    match &event.what {
        What::Scan(scan) => scan.cost_ns,
        What::Diagnosis(diagnosis) => diagnosis.cost_ns,
        _ => 0,
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

fn umount(at: u64, call: &UmountCall) -> Umount {
    let result = result_words(call.result);
    Umount { comm: call.comm.clone(), result, duration_ns: call.returned.saturating_sub(at) }
}

fn left_over(events: &[&Event]) -> Vec<String> {
    let left = events.iter().filter_map(|event| match &event.what {
        What::LeftOver { path } => Some(path.clone()),
        _ => None,
    });
    left.collect()
}

fn kept_devices(events: &[&Event]) -> Vec<String> {
    let kept = events.iter().filter_map(|event| match &event.what {
        What::DeviceKept { device, by } => Some(format!("{device}: {}", by.join("; "))),
        _ => None,
    });
    kept.collect()
}

fn lost(events: &[&Event]) -> Vec<String> {
    let lost = events.iter().filter_map(|event| match &event.what {
        What::Lost { source, why } => Some(format!("{source}: {why}")),
        _ => None,
    });
    lost.collect()
}
