//! The index of a suite: what failed first, then what is new or has no result, then the slowest; what passed is folded.

use super::super::{Report, ScenarioReport, Verdict, durations};
use super::html::{PAGE_FILE, class, drawn, escaped};

/// How many of those that passed are shown unfolded, the slowest first.
const SLOWEST: usize = 5;

/// The page of a suite, with links to those of its scenarios, which lie in `<guest>/<scenario>/`.
#[must_use]
pub fn index(report: &Report) -> String {
    let counts = Some(report.counts()).filter(|counts| !counts.is_empty());
    let mut text = format!(
        "<section class=\"head {}\"><h1>{}</h1><p class=\"what\">{}; durations are {} time of the guest</p></section>\n",
        class(report.verdict()),
        escaped(counts.as_deref().unwrap_or("nothing was run")),
        escaped(&report.accelerator),
        escaped(&report.clock),
    );
    let (passed, others): (Vec<_>, Vec<_>) =
        report.scenarios.iter().partition(|one| one.verdict == Verdict::Passed);
    let mut others = others;
    others.sort_by_key(|one| one.verdict != Verdict::Failed);
    if !others.is_empty() {
        text.push_str(&table("What did not pass", &others));
    }
    let mut slowest = passed.clone();
    slowest.sort_by_key(|one| std::cmp::Reverse(longest(one)));
    slowest.truncate(SLOWEST);
    if !slowest.is_empty() {
        text.push_str(&table("The longest resets", &slowest));
        text.push_str(&format!(
            "<details><summary>All {} that passed</summary>{}</details>\n",
            passed.len(),
            table("", &passed)
        ));
    }
    drawn("vm-test", &text)
}

fn longest(one: &ScenarioReport) -> u64 {
    one.cycles.iter().map(|cycle| cycle.reset_ns).max().unwrap_or(0)
}

fn table(caption: &str, rows: &[&ScenarioReport]) -> String {
    let mut text = String::new();
    if !caption.is_empty() {
        text.push_str(&format!("<h2>{caption}</h2>"));
    }
    text.push_str(
        "<table><tr><th>Scenario</th><th>Verdict</th><th>Reset</th><th>Why, or what it is</th></tr>\n",
    );
    for one in rows {
        let name = format!("{}/{}", one.guest, one.name);
        let link = format!("{name}/{PAGE_FILE}");
        let what = one.why.first().unwrap_or(&one.description);
        text.push_str(&format!(
            "<tr class=\"{}\"><td><a href=\"{}\">{}</a></td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            class(one.verdict),
            escaped(&link),
            escaped(&name),
            escaped(one.verdict.words()),
            escaped(&if one.cycles.is_empty() { String::new() } else { durations(&one.cycles) }),
            escaped(what),
        ));
    }
    text.push_str("</table>\n");
    text
}
