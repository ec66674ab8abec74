//! Tests of the fold, of what is made of it, and of the verdict.

use vm_agent::recording::{
    EBUSY, EndState, Event, Exec, Kind, MountCopy, Namespace, Recording, Reference, Remount, Role, Scan,
    Step, Target, Task, Trigger, UmountCall, UnitState, What,
};
use vm_agent::recording::{Found, Why};
use vm_agent::wire::Exit;

use super::cycle::{Cycle, ExecOutcome, Holder, MountUnit, remount_words};
use super::expect::of_cycle;
use super::fold::{cycles, listed};
use super::keepers::Moments;
use super::samples::{self, clean, diagnosis, ends, recording};
use super::snapshot::{runs, settled_states, shape};
use crate::scenario::verdict::MountVerdict;
use crate::scenario::{Expect, ExpectMount};

fn call(pid: u32, role: Role, result: i64) -> (u64, UmountCall) {
    (10, UmountCall { pid, comm: "umount".to_owned(), role, returned: 11, result, target: Target::Mount })
}

fn holder(pid: u32, role: Role) -> Holder {
    samples::holder(pid, "x", role)
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
        let all = [&["active/running", "deactivating/stop-sigterm"][..], last, &["inactive/dead"]].concat();
        assert_eq!(settled_states(&states(&all)), settled, "{all:?}");
    }
    let stop_post = states(&["deactivating/stop-post", "failed/failed"]);
    assert_eq!(settled_states(&stop_post), "deactivating/stop-post -> failed/failed");
}

#[test]
fn verdicts() {
    let (helper, its_child) = (holder(5, Role::Control), holder(6, Role::ControlChild));
    let (server, stranger) = (holder(7, Role::Child), holder(8, Role::Outside));
    let failed = call(9, Role::ControlChild, EBUSY);
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
        let moments = Moments::new(calls, &[]);
        assert_eq!(moments.verdict(&holders, listed, lives_on), expected, "{what}");
    }
    // A person at a prompt in the mount, and one elsewhere.
    let (_, by_hand) = call(8, Role::Outside, EBUSY);
    let moments = Moments::new(vec![(1, &by_hand)], &[]);
    assert_eq!(moments.verdict(&[stranger], &none, false), MountVerdict::HeldByYourself);
    assert_eq!(moments.verdict(&[helper], &none, false), MountVerdict::HeldByProcess);
}

/// The harness has no diagnosis of its own: whom a scan has seen counts for nothing once `holders` was asked.
#[test]
fn of_a_refused_unmount_holders_has_the_word() {
    let (at, refused) = call(9, Role::Control, EBUSY);
    let (stranger, server) = (holder(8, Role::Outside), holder(7, Role::Child));
    let cases = [
        (Found::HeldByProcess, vec![stranger.clone()], MountVerdict::HeldByProcess),
        (Found::HeldByProcess, vec![holder(5, Role::Control)], MountVerdict::HeldByYourself),
        (Found::HeldByKernel, vec![], MountVerdict::HeldByKernel),
        (Found::Submounts, vec![], MountVerdict::Submounts),
        (Found::NotVisible, vec![], MountVerdict::NotVisible),
    ];
    for (found, holders, expected) in cases {
        let said = What::Diagnosis(diagnosis(Why::UmountFailed, found, &holders));
        let events = [
            (at - 1, What::Scan(scan(Trigger::Tick, true, &server))),
            (at + 1, said),
            (at + 2, What::Scan(scan(Trigger::End, true, &server))),
        ];
        let events = events.map(|(at, what)| Event { at, cycle: 1, what });
        let events: Vec<&Event> = events.iter().collect();
        let moments = Moments::new(vec![(at, &refused)], &events);
        let seen = moments.holders();
        let pids = |holders: &[Holder]| holders.iter().map(|holder| holder.pid).collect::<Vec<_>>();
        assert_eq!(pids(&seen), pids(&holders), "{found:?}");
        assert_eq!(moments.verdict(&seen, &[], false), expected, "{found:?}");
        assert!(seen.iter().all(|holder| holder.in_words().contains("x 600 (working directory), pid ")));
        assert_eq!(moments.most_telling().map(|told| told.found), Some(found));
    }
}

/// One that sees somebody.
fn scan(trigger: Trigger, mounted: bool, holder: &Holder) -> Scan {
    let task = Task {
        pid: holder.pid,
        tid: holder.pid,
        comm: holder.comm.clone(),
        role: holder.role,
        unit: holder.unit.clone(),
        namespace: Namespace { inode: 1, id: None },
        private_copy: false,
        references: vec![Reference { kind: Kind::Cwd, path: "/m".to_owned() }],
    };
    Scan { trigger, whole_proc: false, cost_ns: 0, mounted, tasks: vec![task] }
}

#[test]
fn the_scan_of_an_unmount_is_the_last_that_can_have_been_so() {
    let scan = |trigger, mounted, pid| scan(trigger, mounted, &holder(pid, Role::Child));
    let events = [
        (10, scan(Trigger::Tick, true, 1)),
        (21, scan(Trigger::Exit, true, 2)),
        (23, scan(Trigger::Mount, false, 3)),
        (31, scan(Trigger::UmountFailed, true, 4)),
    ];
    let events = events.map(|(at, scan)| Event { at, cycle: 1, what: What::Scan(scan) });
    let events: Vec<&Event> = events.iter().collect();
    let call = |result| UmountCall {
        pid: 9,
        comm: "umount".to_owned(),
        role: Role::Control,
        returned: 30,
        result,
        target: Target::Mount,
    };
    let pids = |at, result| -> Vec<u32> {
        let call = call(result);
        let holders = Moments::new(vec![(at, &call)], &events).holders();
        holders.iter().map(|holder| holder.pid).collect()
    };
    assert_eq!(pids(20, 0), [2], "one during the call, and not the one after the unmount");
    assert_eq!(pids(20, EBUSY), [1, 4]);
    assert_eq!(pids(25, 0), [3]);
    assert_eq!(pids(5, EBUSY), [4]);
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
        references: held.then(|| Reference { kind: Kind::Cwd, path: "/m".to_owned() }).into_iter().collect(),
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
        (with(Remount::Tried { result: EBUSY, in_use: true }), true, "EBUSY"),
        (with(Remount::Tried { result: -2, in_use: false }), false, "ENOENT"),
        (EndState { mounted_in: vec![copy], ..clean.clone() }, true, "silent"),
    ];
    for (end, expected, words) in cases {
        assert_eq!(end.lives_on(), expected, "{end:?}");
        assert_eq!(remount_words(&end.remount), words);
    }
}

const EXPECT: &str = "reset_max_ms = 1000\n";

fn expect(more: &str) -> Expect {
    toml::from_str(&format!("{EXPECT}{more}")).expect("a good one")
}

fn stop_post(exit: Exit) -> ExecOutcome {
    ExecOutcome {
        unit: "x.service".to_owned(),
        line: "ExecStopPost".to_owned(),
        program: "x".to_owned(),
        exit: Some(exit),
        duration_ns: None,
        in_reset_ns: Some(1),
        timed_out: false,
        alive: Vec::new(),
    }
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
        (
            mutate(|cycle| (cycle.start_exit, cycle.start_stderr) = (None, "a\nno such unit\n".to_owned())),
            "start: no end within 0 s (command_timeout_secs), so it was killed, instead of exit status 0: no such unit",
        ),
        (
            mutate(|cycle| cycle.execs = vec![stop_post(Exit::Code(32))]),
            "ExecStopPost: exit status 32 instead of exit status 0",
        ),
        (
            mutate(|cycle| cycle.before.active = "inactive".to_owned()),
            "the unit is inactive when the reset begins, not active",
        ),
        (mutate(|cycle| cycle.before.mounted = false), "nothing is mounted at the watched path when"),
        (
            mutate(|cycle| {
                cycle.start_exit = Some(Exit::Code(1));
                cycle.unit.result = "start-limit-hit".to_owned();
            }),
            "start: exit status 1 instead of exit status 0; systemd's start limit was hit",
        ),
        (mutate(|cycle| cycle.reset_exit = None), "reset: no end"),
        (mutate(|cycle| cycle.reset_ns = 1_000_000_000), "reset took 1.000 s"),
        (mutate(|cycle| cycle.unit.active = "failed".to_owned()), "the unit is failed"),
        (mutate(|cycle| cycle.unit.restarts = 1), "NRestarts 1"),
        (mutate(|cycle| cycle.umounts[0].result = "EBUSY".to_owned()), "umount2: EBUSY"),
        (mutate(|cycle| cycle.verdict = MountVerdict::NotVisible), "verdict: not visible"),
        (mutate(|cycle| cycle.holders_at_umount = vec![holder(1, Role::Main)]), "main x (cwd)"),
        (mutate(|cycle| cycle.mounted = true), "still there"),
        (
            mutate(|cycle| cycle.kept_devices = vec!["/dev/loop0: mounted at /x for y.service".to_owned()]),
            "devices that are not free: [\"/dev/loop0: mounted at /x for y.service\"] instead of []",
        ),
        (mutate(|cycle| cycle.left_over = vec!["/x".to_owned()]), "left over"),
        (mutate(|cycle| cycle.kernel_warnings = vec!["BUG".to_owned()]), "kernel warnings"),
        (mutate(|cycle| cycle.core_dumps = vec!["x".to_owned()]), "core dumps"),
        (mutate(|cycle| cycle.lost = vec!["d-bus".to_owned()]), "lost events"),
        (mutate(|cycle| cycle.end = None), "not inspected"),
        (with_end(|end| end.processes = vec![(1, "x".to_owned())]), "left in the cgroup"),
        (with_end(|end| end.failed_units = vec!["y.service".to_owned()]), "failed units"),
        (with_end(|end| end.remount = Remount::Tried { result: 0, in_use: true }), "in use"),
        (with_end(|end| end.remount = Remount::Tried { result: EBUSY, in_use: true }), "EBUSY"),
        (copied, "x.service: /mnt"),
    ];
    assert_eq!(of_cycle(&clean(), &expect("")), [""; 0]);
    let with_line = mutate(|cycle| cycle.execs = vec![stop_post(Exit::Code(0))]);
    assert_eq!(of_cycle(&with_line, &Expect::default()), [""; 0], "all has a default");
    for (cycle, words) in cases {
        let deviations = of_cycle(&cycle, &expect(""));
        assert_eq!(deviations.len(), 1, "{words}: {deviations:?}");
        assert!(deviations[0].contains(words), "{words} is not in {deviations:?}");
    }
}

/// A declared failure that comes for another reason is red, and so is one that does not come.
#[test]
fn another_failure_than_the_declared_one_is_a_deviation() {
    let declared = "umount = \"EBUSY\"\nverdict = \"held by yourself\"\nlisted = [\"b.service\"]\n\
                    remount = \"in use\"\nexec_stop_post = \"SIGTERM\"\nreset_min_ms = 50\n\
                    reset_stderr = [\"held by {pid} (x)\", \"EBUSY\"]";
    let mut cycle = clean();
    cycle.verdict = MountVerdict::HeldByYourself;
    cycle.listed = vec!["a.service".to_owned(), "b.service".to_owned()];
    cycle.umounts[0].result = "EBUSY".to_owned();
    cycle.reset_stderr = "EBUSY: held by 7 (x) of y.service".to_owned();
    cycle.holders_at_umount = vec![holder(6, Role::Main), holder(7, Role::Outside)];
    cycle.end.as_mut().expect("an end").remount = Remount::Tried { result: 0, in_use: true };
    cycle.execs.push(stop_post(Exit::Signal(15)));
    cycle.diagnosis = Some(diagnosis(Why::UmountFailed, Found::HeldByProcess, &cycle.holders_at_umount));
    let mut expect = expect(declared);
    expect.holders = vec!["main x (cwd)".to_owned(), "outside x (cwd)".to_owned()];
    expect.advice = vec!["held by 6 (x), 7 (x)".to_owned(), "have it leave".to_owned()];
    assert_eq!(of_cycle(&cycle, &expect), [""; 0]);
    type Change = fn(&mut Cycle);
    let said = |cycle: &mut Cycle| cycle.diagnosis.as_mut().expect("a diagnosis").advice.clear();
    let changes: [(Change, &str); 9] = [
        (said, "holders did not say \"have it leave\""),
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
        let deviations = of_cycle(&other, &expect);
        assert_eq!(deviations.len(), 1, "{words}: {deviations:?}");
        assert!(deviations[0].contains(words), "{words} is not in {deviations:?}");
    }
}

#[test]
fn what_there_was_before_the_reset_is_of_its_own_cycle_and_of_pid_1s_namespace() {
    let state = |active: &str| What::Unit(UnitState { active: active.to_owned(), ..UnitState::default() });
    let begun = || What::StepBegins(Step::Reset);
    let of = |whats: Vec<What>| cycles(&recording(None, (0..).zip(whats))).remove(0).before;
    let up = of(vec![state("inactive"), state("active"), begun(), state("inactive"), ends(Step::Reset)]);
    assert_eq!(up, clean().before);
    let copy = MountCopy {
        pid: 1,
        comm: "x".to_owned(),
        unit: "x.service".to_owned(),
        namespace: Namespace { inode: 1, id: None },
        mount_points: vec!["/m".to_owned()],
    };
    let private = of(vec![state("active"), What::NotMounted { elsewhere: vec![copy] }, begun()]);
    assert_eq!(
        (private.mounted, private.elsewhere.as_slice()),
        (false, ["x.service: /m".to_owned()].as_slice())
    );
    assert_eq!(of(vec![begun(), state("active")]).active, "");
}

/// A recording of one cycle that is over, with a mount unit if it has one.
fn recorded(mount_unit: Option<&str>, whats: Vec<What>) -> Recording {
    let around = [What::StepBegins(Step::Start), ends(Step::Start), What::StepBegins(Step::Reset)];
    let whats = around.into_iter().chain(whats).chain([ends(Step::Reset)]);
    recording(mount_unit, (0..).zip(whats))
}

#[test]
fn that_starts_are_forgotten_is_after_the_cycle() {
    let state = |active: &str| What::Unit(UnitState { active: active.to_owned(), ..UnitState::default() });
    let mut recording = recorded(None, vec![state("failed")]);
    let after = [What::StartsForgotten, state("inactive")];
    recording.events.extend((10..).zip(after).map(|(at, what)| Event { at, cycle: 1, what }));
    let cycle = cycles(&recording).remove(0);
    assert_eq!(
        (cycle.unit.active.as_str(), cycle.states.as_slice()),
        ("failed", ["failed/".to_owned()].as_slice())
    );
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
    let whole = shape(&own);
    for line in [
        "unit after reset: inactive (dead), Result success, NRestarts 0\n\
         mount unit after reset: failed (failed), Result exit-code\nstates: inactive/dead\n",
        "exec: ExecStart ExecStart: exit status 0, mount unit's ExecStopPost ExecStopPost: exit status 32\n",
    ] {
        assert!(whole.contains(line), "{line} is not in {whole}");
    }

    // What the unit under test does by itself has no such line.
    let without = shape(&cycles(&recorded(None, whats)).remove(0));
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
    assert_eq!(of_cycle(&with("inactive"), &load("")), [""; 0]);
    assert_eq!(of_cycle(&with("failed"), &failed), [""; 0], "it is reported once, and here as expected");
    for (cycle, expect, words) in [
        (with("active"), load(""), "the mount's unit is active after the reset, not inactive"),
        (with("failed"), load(""), "the mount's unit is failed after the reset, not inactive"),
        (with("inactive"), failed, "the mount's unit is inactive after the reset, not failed"),
        (clean(), load(""), "the mount's unit is not there after the reset, not inactive"),
    ] {
        let deviations = of_cycle(&cycle, &expect);
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
    let call = |target, result| What::UmountCall(UmountCall { target, ..call(7, Role::Control, result).1 });
    let ours = || call(Target::Mount, 0);
    let cases: [(&str, Vec<What>, &[&str]); 12] = [
        ("as it is", vec![mounted(), ours(), What::Unmounted], &[]),
        ("nothing at all", vec![], &[]),
        ("refused", vec![mounted(), call(Target::Mount, EBUSY)], &[]),
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
fn a_retry_is_shown_once() {
    let text = |items: &[&str]| runs(items.iter().map(|&item| item.to_owned())).join(", ");
    assert_eq!(text(&["a", "b", "b", "b", "a"]), "a, b, again and again, a");
    assert_eq!(text(&[]), "");
}

#[test]
fn what_was_never_accepted_is_new_if_it_is_as_expected() {
    let outcome = |mismatch: Option<&str>| super::baselines::Outcome {
        text: String::new(),
        compared: "outcome".to_owned(),
        accepted: "outcome".to_owned(),
        redundant: false,
        mismatch: mismatch.map(str::to_owned),
        changes: Vec::new(),
    };
    let judgement = |is_first, deviates: bool| super::Judgement {
        cycles: Vec::new(),
        deviations: Vec::from_iter(
            deviates.then(|| super::expect::Deviation { cycle: None, words: "bad".to_owned() }),
        ),
        outcome: outcome(Some("no snapshot")),
        measured: None,
        durations: vec!["no baseline".to_owned()],
        story: Vec::new(),
        is_first,
        is_refused: false,
    };
    for (is_first, deviates, is_new, why) in [
        (true, false, true, &["no snapshot"][..]),
        (true, true, false, &["bad"]),
        (false, false, false, &["no snapshot", "no baseline"]),
        (false, true, false, &["bad", "no snapshot", "no baseline"]),
    ] {
        let judgement = judgement(is_first, deviates);
        assert_eq!(
            (judgement.is_new(), judgement.why()),
            (is_new, why.iter().map(|one| (*one).to_owned()).collect())
        );
    }
}

/// What happens to one mount says nothing of the other, and what is of neither is in both.
#[test]
fn two_mounts_are_judged_apart() {
    let refused = UmountCall {
        pid: 9,
        comm: "umount".to_owned(),
        role: Role::Control,
        returned: 21,
        result: EBUSY,
        target: Target::Mount,
    };
    let gone = UmountCall { result: 0, returned: 31, ..refused.clone() };
    let of_other = |what| What::OfMount { mount: 1, what: Box::new(what) };
    let said = diagnosis(Why::UmountFailed, Found::HeldByProcess, &[holder(8, Role::Outside)]);
    let end = clean().end.expect("an end");
    let mut recording = recording(
        None,
        [
            (0, What::StepBegins(Step::Start)),
            (10, What::StepBegins(Step::Reset)),
            (20, of_other(What::UmountCall(refused))),
            (21, of_other(What::Diagnosis(said))),
            (30, What::UmountCall(gone)),
            (40, ends(Step::Reset)),
            (41, of_other(What::Scan(scan(Trigger::End, true, &holder(8, Role::Outside))))),
            (50, What::EndState(end.clone())),
            (51, of_other(What::EndState(end))),
        ],
    );
    recording.plan.other_mounts = vec!["/other".to_owned()];
    let cycles = cycles(&recording);
    let [cycle] = cycles.as_slice() else { panic!("{cycles:?}") };
    assert_eq!(
        (cycle.verdict, cycle.umount_result(), cycle.mounted),
        (MountVerdict::None, Some("ok"), false)
    );
    let [other] = cycle.other_mounts.as_slice() else { panic!("{cycle:?}") };
    assert_eq!((other.verdict, other.umount_result()), (MountVerdict::HeldByProcess, "EBUSY"));
    assert!(other.mounted && other.mounted_before);
    let wrong = other.deviations(&ExpectMount::default());
    assert!(wrong.iter().any(|words| words.contains("x.service: x 600 (working directory), pid 8 of root")));
    let expected: ExpectMount = toml::from_str(
        "umount = \"EBUSY\"\nverdict = \"held by a process\"\nmounted = true\nholders = [\"outside x (cwd)\"]",
    )
    .expect("a good one");
    assert_eq!(other.deviations(&expected), [""; 0]);
}
