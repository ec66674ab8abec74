//! Tests of the tables and of what a report comes to.

use super::*;
use crate::judge::cycle::{ExecOutcome, MountUnit, Umount};
use crate::judge::samples;
use crate::run::shard::Share;
use crate::scenario::verdict::MountVerdict;
use vm_agent::recording::{Event, Remount, Role, UnitState};

fn cycle(reset_ns: u64, stop_post: Exit, umount: &str) -> Cycle {
    let busy = umount == "EBUSY";
    let holder = samples::holder(442, "left4me-overlay", Role::Control);
    let state = if busy { "failed" } else { "inactive" };
    let mut cycle = Cycle {
        reset_exit: Some(Exit::Code(i32::from(busy))),
        reset_ns,
        unit: UnitState { active: state.to_owned(), ..UnitState::default() },
        execs: vec![ExecOutcome {
            unit: "x.service".to_owned(),
            line: "ExecStopPost".to_owned(),
            program: "left4me-overlay".to_owned(),
            exit: Some(stop_post),
            duration_ns: Some(1),
            in_reset_ns: Some(1),
            timed_out: false,
            alive: Vec::new(),
        }],
        umounts: vec![Umount { comm: "umount".to_owned(), result: umount.to_owned(), duration_ns: 1 }],
        ..samples::clean()
    };
    if busy {
        cycle.holders_at_umount = vec![holder];
        cycle.verdict = MountVerdict::HeldByYourself;
        cycle.mounted = true;
        let end = cycle.end.as_mut().expect("a clean cycle has an end state");
        end.remount = Remount::NotTried { why: "still mounted".to_owned() };
    }
    cycle
}

pub(super) fn scenario(
    name: &str,
    history: Option<(u32, &str)>,
    verdict: Verdict,
    cycles: Vec<Cycle>,
) -> ScenarioReport {
    ScenarioReport {
        guest: "trixie".to_owned(),
        name: name.to_owned(),
        description: String::new(),
        history: history.map(|(step, reported)| History {
            step,
            what: format!("what {name} was"),
            reported: reported.to_owned(),
        }),
        verdict,
        why: Vec::new(),
        story: Vec::new(),
        evidence: PathBuf::new(),
        kernel: String::new(),
        systemd: String::new(),
        os: String::new(),
        recording_sha256: "eb9ea95ae404".repeat(6)[..64].to_owned(),
        inputs_sha256: "x".to_owned(),
        remembered_s: None,
        stages: Stages::default(),
        cycles,
        first: None,
        look: None,
    }
}

#[test]
fn a_mount_unit_that_did_not_come_down_is_beside_the_unit() {
    let with = |active: &str| {
        let state = UnitState { active: active.to_owned(), ..UnitState::default() };
        Cycle { mount_unit: Some(MountUnit { name: "m.service".to_owned(), state }), ..samples::clean() }
    };
    assert_eq!(unit_state(&samples::clean()), "inactive");
    assert_eq!(unit_state(&with("inactive")), "inactive");
    assert_eq!(unit_state(&with("failed")), "inactive, the mount's failed");
}

#[test]
fn evidence_lies_with_its_cycle() {
    let directory = tempfile::tempdir().expect("tempdir");
    let evidence = Evidence { units: "failed".to_owned(), journal: "it says why".to_owned() };
    let events = vec![Event { at: 1, cycle: 2, what: What::Evidence(evidence) }];
    write_evidence(directory.path(), &Recording { events, ..Recording::default() }).expect("write");
    let text = |name: &str| std::fs::read_to_string(directory.path().join("cycle-2").join(name));
    assert_eq!(text("unit.txt").expect("read"), "failed");
    assert_eq!(text("journal.txt").expect("read"), "it says why");
    assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "no other cycle has any");
}

#[test]
fn what_has_not_passed_is_told_by_its_story_or_else_by_its_reasons() {
    let mut failed = scenario("red", None, Verdict::Failed, Vec::new());
    (failed.why, failed.story) =
        (vec!["cycle 1: stuck".to_owned()], vec!["cycle 1:".to_owned(), "  stuck\n  for long".to_owned()]);
    failed.evidence = PathBuf::from("target/vm-test/trixie/red");
    let mut without = scenario("dead", None, Verdict::Infrastructure, Vec::new());
    without.why = vec!["QEMU died".to_owned()];
    let told = failed.told() + &without.told();
    let expected = "trixie/red: FAILED\n  cycle 1:\n    stuck\n    for long\n  evidence: target/vm-test/trixie/red\n\
                    trixie/dead: no result\n  QEMU died\n";
    assert_eq!(told, expected);
}

#[test]
fn tables() {
    let (ok, busy) = (Exit::Code(0), Exit::Code(32));
    let fixed = vec![cycle(120_000_000, ok, "ok"), cycle(115_000_000, ok, "ok")];
    let report = Report {
        schema: SCHEMA,
        accelerator: String::new(),
        clock: "virtual".to_owned(),
        guests: BTreeMap::new(),
        scenarios: vec![
            scenario("fixed", Some((9, "~0.5 s, inactive, 0")), Verdict::Passed, fixed),
            scenario("bystander", None, Verdict::Passed, vec![cycle(100_000_000, ok, "ok")]),
            scenario("bug", Some((2, "EBUSY")), Verdict::Passed, vec![cycle(121_000_000, busy, "EBUSY")]),
            scenario(
                "killed",
                Some((5, "works sometimes")),
                Verdict::Failed,
                vec![cycle(15_100_000_000, Exit::Signal(15), "EBUSY")],
            ),
            scenario("none", Some((6, "~25 s")), Verdict::Infrastructure, Vec::new()),
        ],
        shard: None,
    };
    insta::assert_snapshot!("table", table(&report, "trixie"));
    insta::assert_snapshot!("history", history(&report, "trixie"));
    assert!(!table(&report, "sid").contains("fixed"), "each guest has its own");
    let mut many = report;
    let counted = |report: &Report| report.text(table).lines().last().map(str::to_owned);
    assert_eq!(counted(&many).as_deref(), Some("3 passed, 1 failed, 1 without result"));
    let passed = |report: &Report| Report {
        scenarios: report.scenarios.iter().filter(|one| one.verdict == Verdict::Passed).cloned().collect(),
        ..report.clone()
    };
    let mut new = passed(&many);
    assert_eq!(new.verdict().exit_code(), 0);
    new.scenarios.push(scenario("first", None, Verdict::New, vec![cycle(100_000_000, ok, "ok")]));
    assert_eq!((new.verdict(), new.verdict().exit_code()), (Verdict::New, 1), "nothing passes without a pin");
    assert_eq!(counted(&new).as_deref(), Some("3 passed, 0 failed, 1 new"));
    let shard = Some(Share { number: 2, of: 4, runs_of_all: 17 });
    assert_eq!(
        counted(&Report { shard, ..new }).as_deref(),
        Some("3 passed, 0 failed, 1 new; shard 2 of 4, of 17 runs in all")
    );
    many.scenarios.push(scenario("more", None, Verdict::Passed, vec![cycle(100_000_000, ok, "ok")]));
    insta::assert_snapshot!("table-of-many", table(&many, "trixie"));
}

/// The first failure is told first, before what has no result, and all of it fits.
#[test]
fn a_summary_is_short_and_begins_with_what_failed_first() {
    let with = |name: &str, verdict, why: &str| {
        let story = why.lines().map(str::to_owned).collect();
        ScenarioReport { why: vec![why.to_owned()], story, ..scenario(name, None, verdict, Vec::new()) }
    };
    let mut scenarios = vec![
        with("broken", Verdict::Infrastructure, "the guest never answered"),
        scenario("fine", None, Verdict::Passed, Vec::new()),
        with("first", Verdict::Failed, &(0..30).map(|line| format!("line {line}\n")).collect::<String>()),
    ];
    scenarios
        .extend((0..40).map(|number| with(&format!("more-{number}"), Verdict::Failed, "as well\nand so on")));
    let report = Report {
        schema: SCHEMA,
        accelerator: String::new(),
        clock: "virtual".to_owned(),
        guests: BTreeMap::new(),
        scenarios,
        shard: None,
    };
    insta::assert_snapshot!("summary", summary::summary(&report));
    let passed = Report { scenarios: vec![scenario("fine", None, Verdict::Passed, Vec::new())], ..report };
    assert_eq!(summary::summary(&passed), "### vm-test: 1 passed\n");
}
