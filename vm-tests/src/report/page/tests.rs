//! What is drawn of a recording.

use vm_agent::recording::{
    EBUSY, Event, Exec, Exit, Found, Kind, MAIN, Mounted, Recording, Reference, Role, Scan, Step, Target,
    Task, Trigger, UmountCall, UnitState, What, Why,
};

use super::rows::*;
use super::{ScenarioReport, Shown, page, trace};
use crate::judge::samples;

const MS: u64 = 1_000_000;

fn task(pid: u32, comm: &str, role: Role, kinds: &[Kind]) -> Task {
    let references = kinds.iter().map(|kind| Reference { kind: *kind, path: format!("/m/{pid}") }).collect();
    Task { private_copy: true, references, ..samples::task(pid, comm, role) }
}

fn scan(whole_proc: bool, tasks: Vec<Task>) -> What {
    What::Scan(Scan { trigger: Trigger::Tick, whole_proc, cost_ns: 0, mounted: true, tasks })
}

fn unit(active: &str, sub: &str, main_pid: u32) -> What {
    let (active, sub) = (active.to_owned(), sub.to_owned());
    What::Unit(UnitState { active, sub, result: "success".to_owned(), main_pid, ..UnitState::default() })
}

fn exec(line: &str, pid: u32, ended: Option<u64>, exit: Option<Exit>) -> What {
    let argv = if line == MAIN { Vec::new() } else { vec!["/bin/x".to_owned(), line.to_owned()] };
    What::Exec(Exec { unit: "x.service".to_owned(), line: line.to_owned(), argv, pid, ended, exit })
}

fn umount(result: i64) -> What {
    let (comm, role) = ("umount".to_owned(), Role::ControlChild);
    What::UmountCall(UmountCall { pid: 9, comm, role, returned: 61 * MS, result, target: Target::Mount })
}

/// A reset that is refused, with all that a page can draw.
fn refused() -> Recording {
    use Role::{Child, Control, Main, Outside};
    let mounted = Mounted { mount_id: 55, device: "0:36".to_owned(), fstype: "overlay".to_owned() };
    let held = samples::holder(8, "helper", Control);
    let said = samples::diagnosis(Why::UmountFailed, Found::HeldByProcess, std::slice::from_ref(&held));
    let both = vec![
        task(5, "game", Main, &[Kind::Cwd, Kind::File, Kind::Cwd]),
        task(6, "sleep", Outside, &[Kind::Cwd]),
        task(7, "udevd", Outside, &[]),
    ];
    samples::recording(
        None,
        [
            (0, What::StepBegins(Step::Start)),
            (MS, exec("ExecStart", 5, Some(30 * MS), Some(Exit::Signal(15)))),
            (MS, exec(MAIN, 5, Some(30 * MS), Some(Exit::Signal(15)))),
            (2 * MS, What::Mounted(mounted)),
            (3 * MS, unit("active", "running", 0)),
            (4 * MS, unit("active", "running", 5)),
            (5 * MS, samples::ends(Step::Start)),
            (10 * MS, scan(true, both)),
            (20 * MS, What::StepBegins(Step::Reset)),
            (21 * MS, unit("deactivating", "stop-sigterm", 5)),
            (
                25 * MS,
                scan(
                    false,
                    vec![task(5, "game", Child, &[Kind::Cwd]), task(6, "sleep", Outside, &[Kind::Cwd])],
                ),
            ),
            (30 * MS, exec("ExecStopPost", 8, Some(70 * MS), Some(Exit::Code(32)))),
            (40 * MS, scan(false, vec![task(8, "helper", Control, &[Kind::Cwd])])),
            (60 * MS, umount(EBUSY)),
            (62 * MS, What::Diagnosis(said)),
            (71 * MS, unit("failed", "failed", 0)),
            (
                80 * MS,
                What::StepEnds(vm_agent::recording::StepEnd {
                    step: Step::Reset,
                    index: 0,
                    exit: Some(Exit::Code(1)),
                    duration_ns: 60 * MS,
                    stdout: "failed\n".to_owned(),
                    stderr: "busy\n".to_owned(),
                }),
            ),
            (81 * MS, What::LeftOver { path: "/m".to_owned() }),
            (82 * MS, What::StepBegins(Step::Recover)),
        ],
    )
}

fn text(cycle: &CycleView) -> String {
    let at = |ns: u64| ns / MS;
    let mut text = format!("{} to {}, zero {}\n", at(cycle.from), at(cycle.to), at(cycle.zero));
    if let Some(failing) = &cycle.failing {
        text.push_str(&format!("failing at {}: {} | {}\n", at(failing.at), failing.text, failing.detail));
    }
    for row in &cycle.rows {
        text.push_str(&format!("{:?} {}\n", row.lane, row.name));
        for span in &row.spans {
            let parts =
                [&span.text, &span.detail, &span.end, &span.end_detail].map(|part| part.replace('\n', "; "));
            text.push_str(&format!(
                "  {} to {} {:?} {}\n",
                at(span.from),
                at(span.to),
                span.look,
                parts.join(" | ")
            ));
        }
        for mark in &row.marks {
            let detail = mark.detail.replace('\n', "; ");
            text.push_str(&format!("  {} {:?} {} | {detail}\n", at(mark.at), mark.look, mark.text));
        }
    }
    text
}

#[test]
fn a_refused_reset_is_drawn_with_who_held_it_and_from_when_to_when() {
    let all = cycles(&refused());
    assert_eq!(all.len(), 1);
    insta::assert_snapshot!("rows", text(&all[0]));
}

#[test]
fn what_went_wrong_first_is_the_refusal_then_the_unit_then_a_command() {
    let failing = |without: fn(&What) -> bool| {
        let mut recording = refused();
        recording.events.retain(|event| !without(&event.what));
        cycles(&recording).pop().and_then(|cycle| cycle.failing).map(|mark| (mark.at / MS, mark.text))
    };
    let is_call = |what: &What| matches!(what, What::UmountCall(_));
    assert_eq!(failing(|_| false), Some((60, "umount fails: EBUSY".to_owned())));
    assert_eq!(failing(is_call), Some((71, "the unit fails: Result=success".to_owned())));
    let no_unit = |what: &What| matches!(what, What::UmountCall(_) | What::Unit(_));
    assert_eq!(failing(no_unit), Some((80, "reset fails: exit status 1".to_owned())));
    let fine = |what: &What| matches!(what, What::UmountCall(_) | What::Unit(_) | What::StepEnds(_));
    assert_eq!(failing(fine), None);
}

#[test]
fn a_line_of_the_journal_has_its_place_on_the_recordings_time() {
    let line = |text| journal_line(text, 5_000_000_000).map(|line| (line.at, line.text));
    let stopping = "[    5.168357] systemd[1]: Stopping x.service...";
    assert_eq!(line(stopping), Some((168_357_000, "systemd[1]: Stopping x.service...".to_owned())));
    // Before the plan began, and what is no line of it.
    assert_eq!(line("[    1.000001] a: b"), Some((0, "a: b".to_owned())));
    for no in ["", "-- No entries --", "[x] a", "[1] a", "[    5.1x] a"] {
        assert_eq!(line(no), None, "{no}");
    }
}

/// What a guest wrote stays text, wherever it is put.
#[test]
fn a_page_has_no_tag_from_a_guest() {
    let evil = "</script><img src=x onerror=alert(1)>\u{2028}&\"";
    let mut recording = refused();
    recording.events.push(Event {
        at: 90 * MS,
        cycle: 1,
        what: What::KernelWarning { text: evil.to_owned() },
    });
    let report = report(evil);
    let text = page(&[Shown { report: &report, recording: &recording }]);
    assert!(!text.contains("<img"), "a tag of the guest's");
    assert_eq!(text.matches("</script>").count(), 2, "the page's own two");
    assert!(text.contains("&lt;img src=x"), "in the description");
    assert!(text.contains("\\u003cimg src=x"), "in the data");
}

/// A page stays below its size, keeps what went wrong, and says what is left out.
#[test]
fn of_too_many_cycles_those_that_went_wrong_are_shown() {
    let mut recording = refused();
    let last = recording.events.clone();
    for cycle in 2..=2000 {
        let fine = |what: &What| !matches!(what, What::UmountCall(_) | What::Unit(_) | What::StepEnds(_));
        let wanted = last.iter().filter(|event| cycle == 2000 || fine(&event.what));
        recording.events.extend(wanted.map(|event| Event { cycle, ..event.clone() }));
    }
    let report = report("many");
    let text = page(&[Shown { report: &report, recording: &recording }]);
    assert!(text.len() < 1_000_000, "{} bytes", text.len());
    let data =
        text.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>")).expect("data").0;
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    let run = &data["runs"][0];
    let numbers: Vec<u64> =
        run["cycles"].as_array().into_iter().flatten().filter_map(|cycle| cycle["number"].as_u64()).collect();
    assert!(numbers.len() > 2 && numbers.first() == Some(&1) && numbers.last() == Some(&2000), "{numbers:?}");
    assert_eq!(run["left_out"].as_u64(), u64::try_from(2000 - numbers.len()).ok());
}

#[test]
fn a_trace_has_a_thread_for_each_row_and_its_spans_in_microseconds() {
    let trace: serde_json::Value = serde_json::from_str(&trace(&refused())).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let reset = events.iter().find(|event| event["name"] == "exit status 1").expect("the reset");
    assert_eq!(
        (&reset["ph"], reset["ts"].as_f64(), reset["dur"].as_f64()),
        (&"X".into(), Some(20_000.0), Some(60_000.0))
    );
    let thread =
        events.iter().find(|event| event["ph"] == "M" && event["tid"] == reset["tid"]).expect("its row");
    assert_eq!(thread["args"]["name"], "reset");
    let refused = events.iter().find(|event| event["name"] == "umount: EBUSY").expect("the call");
    assert_eq!((&refused["ph"], refused["ts"].as_f64()), (&"i".into(), Some(60_000.0)));
}

fn report(description: &str) -> ScenarioReport {
    serde_json::from_value(serde_json::json!({
        "guest": "trixie", "name": "x", "description": description, "verdict": "passed", "why": [], "kernel": "6.12",
        "systemd": "257", "os": "Debian", "stages": { "restore_ms": 0, "session_ms": 0 }, "cycles": [],
    }))
    .expect("a report")
}
