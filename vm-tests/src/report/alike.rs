//! Whether two recordings are of the same happening at other moments: one scenario with its software at other paths, say, or
//! after more work of the machine.
//!
//! What has an order of its own is compared in it, stream by stream: the commands of the plan, each unit's states, each unit's
//! commands, the mount, what was left at the end. Numbers that the kernel gives out (pids, inodes, mount ids, devices) and times
//! are left out, and so are the scans: how many there are, and of which moment, follows from microseconds. What scans show is in
//! a scenario's snapshot, by which both were judged. How long the commands took may differ by the tolerance of baselines.

use std::collections::BTreeMap;

use vm_agent::recording::{EndState, Exec, MountCopy, Recording, StepEnd, UmountCall, UnitState, What};

use crate::judge::baselines::TOLERANCE;

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What is not the same, the first of each stream.
    pub differences: Vec<String>,
    /// How far apart the durations of one command are at most, as a part of the longer.
    pub furthest: f64,
}

/// Compares two recordings; a text of the first may have to be changed before, where paths differ.
#[must_use]
pub fn compare(one: &Recording, other: &Recording) -> Comparison {
    let mut differences = Vec::new();
    if one.plan != other.plan {
        differences.push("the plans are not the same".to_owned());
    }
    let (here, there) = (streams(one), streams(other));
    for stream in here.keys().chain(there.keys().filter(|stream| !here.contains_key(*stream))) {
        let [here, there] = [&here, &there].map(|of| of.get(stream).map_or(&[][..], Vec::as_slice));
        differences.extend(first_of(stream, here, there));
    }
    let mut furthest: f64 = 0.0;
    for ((step, here), (_, there)) in durations(one).into_iter().zip(durations(other)) {
        let apart = (here - there).abs() / here.max(there).max(1.0);
        furthest = furthest.max(apart);
        if apart > TOLERANCE {
            differences.push(format!(
                "{step} took {:.1} ms and {:.1} ms: further apart than {} %",
                here / 1e6,
                there / 1e6,
                TOLERANCE * 100.0
            ));
        }
    }
    Comparison { differences, furthest }
}

/// The first line in which a stream differs.
fn first_of(stream: &str, here: &[String], there: &[String]) -> Option<String> {
    let length = here.len().max(there.len());
    let at = (0..length).find(|&at| here.get(at) != there.get(at))?;
    let line = |of: &[String]| of.get(at).cloned().unwrap_or_else(|| "no more".to_owned());
    Some(format!("{stream}, number {}: {} -> {}", at + 1, line(here), line(there)))
}

/// What happened, by streams.
fn streams(recording: &Recording) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in &recording.events {
        let Some((stream, line)) = line(&event.what) else { continue };
        let lines = all.entry(stream.clone()).or_default();
        let line = format!("cycle {}: {line}", event.cycle);
        // A state is told again when a pid changes.
        if !stream.starts_with("states") || lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    all
}

/// An event's stream and what is compared of it.
fn line(what: &What) -> Option<(String, String)> {
    let (stream, line) = match what {
        What::StepBegins(step) => ("commands of the plan", format!("{step:?} begins")),
        What::StepEnds(end) => ("commands of the plan", ended(end)),
        What::StartsForgotten => ("commands of the plan", "starts are forgotten".to_owned()),
        What::Unit(unit) => ("states of the unit", state(unit)?),
        What::MountUnit(unit) => ("states of the mount's unit", state(unit)?),
        What::Exec(exec) => return Some((format!("commands of {}", exec.unit), executed(exec))),
        What::Mounted(mounted) => ("the mount", format!("mounted, {}", mounted.fstype)),
        What::Unmounted => ("the mount", "unmounted".to_owned()),
        What::NotMounted { elsewhere } => ("the mount", format!("not mounted, but in {}", copies(elsewhere))),
        What::UmountCall(call) => ("the mount", umount(call)),
        What::OfMount { mount, what } => {
            let (stream, line) = line(what)?;
            return Some((format!("{stream} {mount}"), line));
        }
        What::LeftOver { path } => ("the end", format!("left over: {path}")),
        What::DeviceKept { device, by } => ("the end", format!("{device} is kept by {}", by.join(", "))),
        What::EndState(end) => ("the end", left(end)),
        What::Evidence(_) => ("the end", "evidence".to_owned()),
        What::KernelWarning { text } => ("the kernel", text.clone()),
        What::Coredump { comm, .. } => ("the kernel", format!("core dump of {comm}")),
        What::Console { lines } => ("the console", lines.join("\n")),
        What::Lost { source, .. } => ("lost events", source.clone()),
        What::Scan(_) | What::Diagnosis(_) | What::Alive(_) => return None,
    };
    Some((stream.to_owned(), line))
}

fn ended(end: &StepEnd) -> String {
    let exit = end.exit.map_or("no exit".to_owned(), |exit| exit.to_string());
    let StepEnd { step, index, stdout, stderr, .. } = end;
    format!("{step:?} {index} ended: {exit}, {:?}, {:?}", without_times(stdout), without_times(stderr))
}

/// A unit's state; none of those in which systemd waits for the last of its processes, which may be over before they are told.
fn state(unit: &UnitState) -> Option<String> {
    let UnitState { active, sub, result, restarts, .. } = unit;
    let passes = sub == "final-sigterm" || sub == "final-sigkill";
    (!passes).then(|| format!("{active}/{sub}, {result}, {restarts} restarts"))
}

fn executed(exec: &Exec) -> String {
    let exit = exec.exit.map_or("runs".to_owned(), |exit| exit.to_string());
    format!("{} {:?}: {exit}", exec.line, exec.argv)
}

fn umount(call: &UmountCall) -> String {
    let UmountCall { comm, role, result, target, .. } = call;
    format!("umount of {target:?} by {comm} ({role:?}): {result}")
}

fn copies(all: &[MountCopy]) -> String {
    let copies =
        all.iter().map(|one| format!("{} of {} at {}", one.comm, one.unit, one.mount_points.join(", ")));
    copies.collect::<Vec<_>>().join("; ")
}

fn left(end: &EndState) -> String {
    let EndState { mounted_in, processes, failed_units, remount } = end;
    let processes: Vec<_> = processes.iter().map(|(_pid, comm)| comm.as_str()).collect();
    format!(
        "mounted in [{}], processes {processes:?}, failed {failed_units:?}, remount {remount:?}",
        copies(mounted_in)
    )
}

/// How long each command of the plan took, in nanoseconds.
fn durations(recording: &Recording) -> Vec<(String, f64)> {
    let ends = recording.events.iter().filter_map(|event| match &event.what {
        What::StepEnds(end) => Some((format!("{:?} {} of cycle {}", end.step, end.index, event.cycle), end)),
        _ => None,
    });
    #[expect(clippy::cast_precision_loss, reason = "durations of minutes, compared by parts of a hundred")]
    ends.map(|(step, end)| (step, end.duration_ns as f64)).collect()
}

/// A text in which each number before `ms` or `s` is the same one, and however many spaces one.
fn without_times(text: &str) -> String {
    let is_number =
        |word: &str| !word.is_empty() && word.bytes().all(|one| one.is_ascii_digit() || one == b'.');
    let is_unit = |word: &str| matches!(word.trim_end_matches([',', ';', ')', ':', '\n']), "ms" | "s");
    let words: Vec<&str> = text.split([' ', '\n']).filter(|word| !word.is_empty()).collect();
    let follows = words.iter().skip(1).map(Some).chain([None]);
    let plain = words.iter().zip(follows).map(|(word, next)| {
        let is_time = is_number(word) && next.is_some_and(|next| is_unit(next));
        if is_time { "N" } else { *word }
    });
    plain.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::{Event, Exit, Mounted, Role, Step, Target};

    use super::*;

    fn unit(active: &str, sub: &str, main_pid: u32) -> UnitState {
        let [active, sub, result] = [active, sub, "success"].map(str::to_owned);
        UnitState { active, sub, result, main_pid, ..UnitState::default() }
    }

    fn end(stdout: &str, duration_ns: u64) -> What {
        let (stdout, stderr) = (stdout.to_owned(), String::new());
        let exit = Some(Exit::Code(0));
        What::StepEnds(StepEnd { step: Step::Reset, index: 0, exit, duration_ns, stdout, stderr })
    }

    fn umount_call(pid: u32, result: i64) -> What {
        let comm = "left4me-overlay".to_owned();
        What::UmountCall(UmountCall {
            pid,
            comm,
            role: Role::Control,
            returned: 0,
            result,
            target: Target::Mount,
        })
    }

    fn recording(pid: u32, argv: &str, events: Vec<What>) -> Recording {
        let exec = Exec {
            unit: "o.service".into(),
            line: "ExecStopPost".into(),
            argv: vec![argv.to_owned()],
            pid,
            ended: Some(u64::from(pid)),
            exit: Some(Exit::Code(0)),
        };
        let mounted =
            Mounted { mount_id: u64::from(pid), device: format!("0:{pid}"), fstype: "overlay".into() };
        let first = [
            What::StepBegins(Step::Reset),
            What::Unit(unit("active", "running", pid)),
            What::Exec(exec),
            What::Mounted(mounted),
        ];
        let all = first.into_iter().chain(events);
        let events = (0_u64..).zip(all).map(|(at, what)| Event { at: at * u64::from(pid), cycle: 1, what });
        Recording { events: events.collect(), ..Recording::default() }
    }

    fn said(one: &Recording, other: &Recording) -> String {
        compare(one, other).differences.join("\n")
    }

    #[test]
    fn what_only_moments_and_numbers_make_different_is_the_same() {
        let stopping = || What::Unit(unit("deactivating", "stop-sigterm", 0));
        let one = recording(
            7,
            "/a",
            vec![
                stopping(),
                umount_call(7, 0),
                What::Unmounted,
                What::Unit(unit("deactivating", "final-sigterm", 0)),
                What::Unit(unit("inactive", "dead", 0)),
                end("total   82.627 ms\n", 82_000_000),
            ],
        );
        let other = recording(
            1000,
            "/a",
            vec![
                stopping(),
                What::Unit(unit("deactivating", "stop-sigterm", 9)),
                What::Alive(Vec::new()),
                What::Unit(unit("inactive", "dead", 0)),
                umount_call(1000, 0),
                What::Unmounted,
                end("total  102.1 ms\n", 85_000_000),
            ],
        );
        assert_eq!(said(&one, &other), "");
        let furthest = compare(&one, &other).furthest;
        assert!((0.035..0.036).contains(&furthest), "{furthest}");
    }

    #[test]
    fn what_is_not_the_same_is_named() {
        let one = recording(7, "/a", vec![umount_call(7, 0), What::Unmounted, end("done in 3 ms", 100)]);
        let others = [
            recording(7, "/b", vec![umount_call(7, 0), What::Unmounted, end("done in 3 ms", 100)]),
            recording(7, "/a", vec![umount_call(7, -16), What::Unmounted, end("done in 3 ms", 100)]),
            recording(7, "/a", vec![umount_call(7, 0), end("done in 3 ms", 100)]),
            recording(7, "/a", vec![umount_call(7, 0), What::Unmounted, end("3 are left", 100)]),
            recording(7, "/a", vec![umount_call(7, 0), What::Unmounted, end("done in 3 ms", 120)]),
            recording(
                7,
                "/a",
                vec![
                    What::Unit(unit("failed", "failed", 0)),
                    umount_call(7, 0),
                    What::Unmounted,
                    What::LeftOver { path: "/x".into() },
                    end("done in 3 ms", 100),
                ],
            ),
        ];
        let mut texts: Vec<_> = others.iter().map(|other| said(&one, other)).collect();
        let mut planned = one.clone();
        planned.plan.cycles = 3;
        texts.push(said(&one, &planned));
        insta::assert_snapshot!(texts.join("\n"));
    }
}
