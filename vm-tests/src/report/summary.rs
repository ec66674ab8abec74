//! At most 20 lines of Markdown for the page of a CI job (`GITHUB_STEP_SUMMARY`): what failed first comes first.

use crate::run::repro;

use super::{Report, ScenarioReport, Verdict};

/// The most lines that there are, so that several jobs fit on a page.
const MOST_LINES: usize = 20;

/// How many lines there are of the first failure.
const OF_FIRST: usize = 10;

/// The summary of a suite.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut lines = vec![format!("### vm-test: {}", report.counts())];
    let mut bad: Vec<&ScenarioReport> =
        report.scenarios.iter().filter(|one| one.verdict != Verdict::Passed).collect();
    // What failed has a cause of its own; what has no result may be a broken machine.
    bad.sort_by_key(|one| one.verdict != Verdict::Failed);
    if let Some(first) = bad.first() {
        lines.push(String::new());
        lines.push("```".to_owned());
        let told = first.told();
        let told: Vec<&str> = told.lines().collect();
        lines.extend(told.iter().take(OF_FIRST).map(|line| line.replace("```", "'''")));
        lines.push("```".to_owned());
    }
    if let Some(one) = bad.iter().find(|one| one.bundle().is_some()) {
        let file = format!("{}/{}/{}", one.guest, one.name, repro::FILE);
        lines.push(format!(
            "The same run elsewhere, with the results of this job: `cargo xtask repro {file}`"
        ));
    }
    let room = MOST_LINES.saturating_sub(lines.len() + 1);
    let rest = bad.get(1..).unwrap_or_default();
    for one in rest.iter().take(room) {
        let why = one.why.first().and_then(|why| why.lines().next()).unwrap_or_default();
        lines.push(format!("- {}/{}: {}, {why}", one.guest, one.name, one.verdict.words()));
    }
    if rest.len() > room {
        lines.push(format!("- and {} more: report.html has all", rest.len() - room));
    }
    lines.join("\n") + "\n"
}
