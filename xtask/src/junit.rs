//! The report of a suite as JUnit's XML, for whoever shows tests on a page of his own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};
use vm_tests::report::page::PAGE_FILE;
use vm_tests::report::{Report, ScenarioReport, Verdict};

/// Writes it.
///
/// # Errors
/// Names the file.
pub(crate) fn write(file: &Path, report: &Report) -> Result<()> {
    let text = of(report).to_string().context("a report as XML")?;
    std::fs::write(file, text).with_context(|| format!("--junit: write {}", file.display()))
}

/// A suite for each guest. A scenario without a result is an error and no failure.
fn of(report: &Report) -> Junit {
    let mut junit = Junit::new("vm-test");
    for guest in report.guests.keys() {
        let mut suite = TestSuite::new(guest.as_str());
        suite.add_test_cases(report.scenarios.iter().filter(|one| one.guest == *guest).map(case));
        junit.add_test_suite(suite);
    }
    junit
}

fn case(one: &ScenarioReport) -> TestCase {
    let status = match one.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        verdict => {
            let kind = match verdict {
                Verdict::Failed | Verdict::New => NonSuccessKind::Failure,
                _no_result => NonSuccessKind::Error,
            };
            let mut status = TestCaseStatus::non_success(kind);
            status.set_message(one.why.first().map_or("no reason is known", String::as_str));
            status.set_type(verdict.words()).set_description(one.told());
            status
        }
    };
    let mut case = TestCase::new(one.name.as_str(), status);
    case.set_classname(format!("vm-test.{}", one.guest));
    case.set_time(Duration::from_millis(one.stages.restore_ms + one.stages.session_ms));
    if !one.evidence.as_os_str().is_empty() {
        // As Jenkins and GitLab know attachments.
        let attached = [PAGE_FILE, "probe.txt", "recording.json"].map(|file| one.evidence.join(file));
        let lines = attached.iter().filter(|path| path.exists());
        let lines: String = lines.map(|path| format!("[[ATTACHMENT|{}]]\n", path.display())).collect();
        case.set_system_out(lines);
    }
    case
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scenario(guest: &str, name: &str, verdict: &str, why: &[&str]) -> Value {
        json!({
            "guest": guest, "name": name, "description": "", "verdict": verdict, "why": why, "kernel": "", "systemd": "",
            "os": "", "stages": { "restore_ms": 100, "session_ms": 1900 }, "cycles": [],
        })
    }

    #[test]
    fn what_failed_and_what_has_no_result_are_told_apart() {
        let report: Report = serde_json::from_value(json!({
            "schema": 2, "accelerator": "", "clock": "virtual", "guests": { "sid": "", "trixie": "" },
            "scenarios": [
                scenario("trixie", "fine", "passed", &[]),
                scenario("trixie", "bad", "failed", &["reset: exit status 1 <&> \u{1b}[31mred\u{0}"]),
                scenario("sid", "gone", "infrastructure", &["the guest never answered"]),
                scenario("sid", "first", "new", &["no snapshot yet"]),
            ],
        }))
        .expect("a report");
        insta::assert_snapshot!("junit", of(&report).to_string().expect("XML"));
    }
}
