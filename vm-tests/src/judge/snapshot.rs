//! The text of a run that its snapshot is compared with: shape and order, no numbers that differ from run to run. Pure.

use std::time::Duration;

use vm_agent::recording::UnitState;
use vm_agent::wire::Exit;

use super::cycle::{Cycle, ExecOutcome, Holder, MountUnit, Umount};

/// The text that a snapshot holds: cycles of one shape are shown once.
pub(super) fn snapshot(cycles: &[Cycle]) -> String {
    let mut text = String::new();
    let mut start = 0;
    while let Some(first) = cycles.get(start) {
        let shape = self::shape(first);
        let alike = cycles.iter().skip(start).take_while(|cycle| self::shape(cycle) == shape).count();
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

/// Shape and order, no numbers that differ from run to run.
pub(super) fn shape(cycle: &Cycle) -> String {
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let words = |holders: &[Holder]| list(holders.iter().map(Holder::words).collect());
    let execs = cycle.execs.iter().map(|exec| {
        let whose = if is_of_mount_unit(cycle, exec) { "mount unit's " } else { "" };
        format!("{whose}{} {}: {}", exec.line, exec.program, exit_words(exec.exit))
    });
    let mount_unit = cycle.mount_unit.as_ref().map(|MountUnit { state, .. }| {
        let UnitState { active, sub, result, .. } = state;
        ("mount unit after reset", format!("{active} ({sub}), Result {result}"))
    });
    let umounts = umount_runs(&cycle.umounts);
    let UnitState { active, sub, result, restarts, .. } = &cycle.unit;
    let mut shape = String::new();
    let rows = [
        ("start", exit_words(cycle.start_exit)),
        ("reset", format!("{}, {}", exit_words(cycle.reset_exit), duration_class(cycle.reset_ns))),
        ("unit after reset", format!("{active} ({sub}), Result {result}, NRestarts {restarts}")),
        ("states", settled_states(&cycle.states)),
        ("exec", list(execs.collect())),
        ("holders at stop", words(&cycle.holders_at_stop)),
        ("holders at umount", words(&cycle.holders_at_umount)),
        ("umount", list(umounts)),
        ("verdict", cycle.verdict.words().to_owned()),
        ("mounted after reset", if cycle.mounted { "yes" } else { "no" }.to_owned()),
        ("mounted elsewhere", list(cycle.mounted_elsewhere())),
        ("remount", cycle.remount()),
        ("left over after reset", list(cycle.left_over.clone())),
        ("left in the cgroup", list(cycle.left_processes())),
        ("failed units", list(cycle.failed_units())),
        ("kernel warnings", list(runs(cycle.kernel_warnings.iter().cloned()))),
        ("core dumps", list(cycle.core_dumps.clone())),
        ("lost events", list(cycle.lost.clone())),
    ];
    if !cycle.before.mounted {
        shape.push_str(&format!(
            "mounted before reset: no; elsewhere: {}\n",
            list(cycle.before.elsewhere.clone())
        ));
    }
    let (before, after) = rows.split_at(3);
    for (name, value) in before.iter().chain(&mount_unit).chain(after) {
        shape.push_str(&format!("{name}: {value}\n"));
    }
    if let Some(log) = &cycle.shutdown_log {
        shape.push_str(&format!("shutdown log: {}\n", list(log.clone())));
    }
    for mount in &cycle.other_mounts {
        let rows = [
            ("holders at umount", words(&mount.holders_at_umount)),
            ("umount", list(umount_runs(&mount.umounts))),
            ("verdict", mount.verdict.words().to_owned()),
            ("mounted after reset", if mount.mounted { "yes" } else { "no" }.to_owned()),
            ("mounted elsewhere", list(mount.mounted_elsewhere.clone())),
            ("remount", mount.remount.clone()),
        ];
        for (name, value) in rows {
            shape.push_str(&format!("{} {name}: {value}\n", mount.path));
        }
    }
    shape
}

fn umount_runs(umounts: &[Umount]) -> Vec<String> {
    runs(umounts.iter().map(|umount| format!("{}: {}", umount.comm, umount.result)))
}

fn is_of_mount_unit(cycle: &Cycle, exec: &ExecOutcome) -> bool {
    cycle.mount_unit.as_ref().is_some_and(|unit| unit.name == exec.unit)
}

pub(super) fn exit_words(exit: Option<Exit>) -> String {
    exit.map_or_else(|| "no end".to_owned(), |exit| exit.to_string())
}

/// The class of a duration, for snapshots.
fn duration_class(ns: u64) -> &'static str {
    match Duration::from_nanos(ns) {
        duration if duration < Duration::from_secs(1) => "under 1 s",
        duration if duration < Duration::from_secs(5) => "1 to 5 s",
        duration if duration < Duration::from_secs(20) => "5 to 20 s",
        _ => "20 s or more",
    }
}

/// Items in their order, and one that comes several times in a row once.
pub(super) fn runs(items: impl Iterator<Item = String>) -> Vec<String> {
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

/// The states as a snapshot has them: without those in which systemd waits for the last of a unit's processes. Whether it
/// still finds one that is ending in the cgroup, and sends it SIGTERM, or none, or goes on at once, is a matter of
/// microseconds, and another one with each build of what runs there. That it had to kill is in the unit's Result.
pub(super) fn settled_states(states: &[String]) -> String {
    const LAST: [&str; 2] = ["deactivating/final-sigterm", "deactivating/final-sigkill"];
    let settled: Vec<&str> =
        states.iter().map(String::as_str).filter(|state| !LAST.contains(state)).collect();
    settled.join(" -> ")
}
