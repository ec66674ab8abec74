//! `report.html`: a run that one can look at. One file for each scenario, and an index of a suite.
//!
//! A page is made of the recording and its report alone, and has all that it needs in it: it opens from a disk, asks nobody for
//! anything, and its script only draws (see `page.js`). What is drawn is decided in [`rows`].

mod html;
mod index;
mod rows;
#[cfg(test)]
mod tests;
mod trace;

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use vm_agent::recording::Recording;
use vm_agent::wire::Exit;

pub use html::PAGE_FILE;
pub(crate) use html::{drawn, escaped};
pub use index::index;
pub use trace::trace;

use self::html::{class, filled, json};
use self::rows::CycleView;
use super::{ScenarioReport, Verdict};
use crate::run::at::At;
use crate::scenario::verdict::MountVerdict;

/// The most that a page has of rows and lines, in bytes of JSON. With all else it stays below 1 MB.
const MOST_BYTES: usize = 900_000;

/// All that the script gets.
#[derive(Debug, Serialize)]
struct Data {
    runs: Vec<RunView>,
}

/// One run, as it is drawn.
#[derive(Debug, Serialize)]
struct RunView {
    label: String,
    cycles: Vec<CycleView>,
    /// How many cycles are not here, as the page would be too large.
    left_out: usize,
}

/// A run and what it is called where two of them are laid over each other.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its report.
    pub report: &'a ScenarioReport,
    /// What was recorded.
    pub recording: &'a Recording,
}

/// The page of one run, or of two that are laid over each other, aligned at the begin of the reset.
#[must_use]
pub fn page(shown: &[Shown<'_>]) -> String {
    let room = MOST_BYTES / shown.len().max(1);
    let runs = shown.iter().map(|one| run_view(one, shown.len() > 1, room)).collect();
    let title = shown.iter().map(|one| title(one.report)).collect::<Vec<_>>().join(" and ");
    let heads: String = shown.iter().map(|one| head(*one)).collect();
    filled(&title, &heads, &json(&Data { runs }))
}

/// Writes the page of one run beside its report.
///
/// # Errors
/// Names the file that can't be written.
pub fn write(directory: &Path, report: &ScenarioReport, recording: &Recording) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let file = directory.join(PAGE_FILE);
    std::fs::write(&file, page(&[Shown { report, recording }]))
        .with_context(|| format!("write {}", file.display()))
}

/// Reads what [`super::write_scenario`] wrote, for a page.
///
/// # Errors
/// Names the file that can't be read.
pub fn read(directory: &Path) -> anyhow::Result<(ScenarioReport, Recording)> {
    let report = super::read_scenario(directory).with_context(|| {
        format!("{} is no result of a scenario: there is no report.json of this version", directory.display())
    })?;
    let path = directory.join("recording.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let recording = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok((report, recording))
}

fn title(report: &ScenarioReport) -> String {
    format!("{}/{}", report.guest, report.name)
}

/// As many cycles as there is room for. Those that went wrong come first.
fn run_view(shown: &Shown<'_>, is_one_of_two: bool, room: usize) -> RunView {
    let cycles = rows::cycles(shown.recording);
    let all = cycles.len();
    let mut sized: Vec<(usize, CycleView)> =
        cycles.into_iter().map(|cycle| (json(&cycle).len(), cycle)).collect();
    sized.sort_by_key(|(_, cycle)| (cycle.failing.is_none(), cycle.number));
    let mut used = 0;
    // The first one is there, whatever its size.
    sized.retain(|(bytes, _)| {
        let fits = used == 0 || used + bytes <= room;
        used += if fits { *bytes } else { 0 };
        fits
    });
    let mut cycles: Vec<CycleView> = sized.into_iter().map(|(_, cycle)| cycle).collect();
    cycles.sort_by_key(|cycle| cycle.number);
    let label = if is_one_of_two { title(shown.report) } else { String::new() };
    RunView { label, left_out: all - cycles.len(), cycles }
}

/// What is known without looking at a picture.
fn head(shown: Shown<'_>) -> String {
    let report = shown.report;
    let class = class(report.verdict);
    let mut text = format!(
        "<section class=\"head {class}\"><h1>{} <span class=\"verdict\">{}</span></h1><p class=\"what\">{}</p>\n",
        escaped(&title(report)),
        escaped(verdict(report)),
        escaped(&report.description),
    );
    let told = if report.story.is_empty() { &report.why } else { &report.story };
    if !told.is_empty() {
        text.push_str(&format!("<pre class=\"story\">{}</pre>\n", escaped(&told.join("\n"))));
    }
    let known = [
        ("Reset", super::durations(&report.cycles)),
        ("Unit afterwards", super::distinct(&report.cycles, super::unit_state)),
        ("ExecStopPost", super::distinct(&report.cycles, super::exec_stop_post)),
        ("Held at the umount by", super::distinct(&report.cycles, super::holders)),
        ("Who kept the mount", super::distinct(&report.cycles, |cycle| who(cycle.verdict))),
        ("Kernel", report.kernel.clone()),
        ("systemd", report.systemd.clone()),
        ("Recording", report.recording()),
        ("Look into it", look_into(shown)),
    ];
    text.push_str("<dl>");
    for (name, value) in known.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("<div><dt>{name}</dt><dd>{}</dd></div>", escaped(value)));
    }
    text.push_str("</dl></section>\n");
    text
}

/// A verdict, for whoever has not read what it is called.
fn who(verdict: MountVerdict) -> String {
    let words = verdict.words().to_owned();
    match verdict {
        // Not by the reader.
        MountVerdict::HeldByYourself => format!("a command of the stop itself ({words})"),
        _said => words,
    }
}

/// The command that opens a shell where the page opens, if a moment of such a run can be had.
fn look_into(shown: Shown<'_>) -> String {
    let Shown { report, recording } = shown;
    let at = report.look.clone().or_else(|| Some(At::of_failure(recording, 1)?.to_string()));
    let at = at.filter(|_| !report.inputs_sha256.is_empty());
    let at = at.map_or_else(String::new, |at| format!(" --at '{at}'"));
    format!("cargo xtask shell --image {} {}{at}", report.guest, report.name)
}

/// In a few words. A scenario of a bug passes if the bug is there.
fn verdict(report: &ScenarioReport) -> &'static str {
    let goes_wrong = report.cycles.iter().any(|cycle| cycle.reset_exit != Some(Exit::Code(0)));
    match report.verdict {
        Verdict::Passed if goes_wrong => "goes wrong, just as its manifest expects",
        Verdict::Passed => "as its manifest expects",
        verdict => verdict.words(),
    }
}
