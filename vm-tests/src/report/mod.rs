//! The output of a run: `report.json`, the postmortem's table, the whole history as one table, the probe's lines.

pub mod alike;
pub mod page;
mod probe;
#[cfg(test)]
mod schema;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod why;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::host::{process, tools};
use crate::judge::cycle::{Cycle, Holder};
use crate::run::accept::First;
use crate::run::guest::Guest;
use crate::run::one::{Run, Stages};
use crate::run::remembered::ago;
use crate::run::repro;
use crate::run::shard::Share;
use crate::scenario::{History, Scenario, WrongInput};
use vm_agent::recording::{Evidence, Recording, What};
use vm_agent::wire::Exit;

/// Goes up when a key of [`Report`] changes its meaning or goes away.
pub const SCHEMA: u32 = 2;

/// `target/vm-test/report.json`.
///
/// docs/report.md has each key.
///
/// Beside it, per guest and scenario, `<guest>/<name>/recording.json` (every event), `inputs.json` (what the run was made of),
/// `probe.txt` (the probe's lines of
/// every cycle), `cycle-<n>/unit.txt` and `journal.txt` (of a cycle that went wrong) and the machine's logs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The accelerator and the clock and why, in one line.
    pub accelerator: String,
    /// `virtual` or `real`.
    pub clock: String,
    /// What each guest is, in one line, by its name.
    pub guests: BTreeMap<String, String>,
    /// Each scenario on each guest, in the order they were asked for.
    pub scenarios: Vec<ScenarioReport>,
    /// Which part of a suite this is; `null` if it is all of it.
    #[serde(default)]
    pub shard: Option<Share>,
}

/// One scenario's part of the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// The guest's name.
    pub guest: String,
    /// The scenario's name.
    pub name: String,
    /// Its manifest's description.
    pub description: String,
    /// Its place in a history, if it has one.
    #[serde(default)]
    pub history: Option<History>,
    /// Exactly one.
    pub verdict: Verdict,
    /// Why it is not `passed`.
    pub why: Vec<String>,
    /// The same as about ten lines for a terminal: what happened in cycles that failed. Empty without a result.
    #[serde(default)]
    pub story: Vec<String>,
    /// Where the rest is: a directory in the results. Empty of a scenario that was not run.
    #[serde(default)]
    pub evidence: PathBuf,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// The guest's systemd.
    pub systemd: String,
    /// The guest's `PRETTY_NAME`.
    pub os: String,
    /// Wall time.
    pub stages: Stages,
    /// The SHA-256 of `recording.json`: the run's name. Two hosts that have the same have the same recording. Empty without a
    /// result.
    #[serde(default)]
    pub recording_sha256: String,
    /// The hash of all that the run was made of, which `inputs.json` lists: runs of the same have the same recording. Empty
    /// where it has no such name: in real time, of a shutdown, without a result.
    #[serde(default)]
    pub inputs_sha256: String,
    /// For how many seconds the recording has been known, where it is remembered and no machine ran; else `null`.
    #[serde(default)]
    pub remembered_s: Option<u64>,
    /// Every cycle that was recorded.
    pub cycles: Vec<Cycle>,
    /// Its first snapshot, where there is none yet.
    #[serde(skip)]
    pub first: Option<First>,
    /// Where to look first, of one that has failed and that repeats: a name for `shell --at`; else `null`.
    #[serde(default)]
    pub look: Option<String>,
}

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As expected, and as the snapshot says.
    Passed,
    /// It ran, and is not as expected.
    Failed,
    /// It ran, and is as expected; no snapshot was ever accepted that pins the rest.
    New,
    /// There is no result: the machine, the guest or the harness failed.
    Infrastructure,
    /// There is no result: the user interrupted.
    Interrupted,
    /// There is no result: what was asked for can't be run as it is written. Of a whole suite, and no scenario's.
    WrongInput,
}

impl Verdict {
    /// The verdict on something that ended with an error.
    #[must_use]
    pub fn of_error(error: &anyhow::Error) -> Self {
        match error {
            error if process::is_interrupt(error) => Self::Interrupted,
            error if error.is::<WrongInput>() => Self::WrongInput,
            _ => Self::Infrastructure,
        }
    }

    /// A program's exit status: 0, 1, 2 (wrong usage), 69 (sysexits.h: EX_UNAVAILABLE) or 130 (128 + SIGINT).
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            // Without a snapshot anything that `expect` does not name would pass.
            Self::Failed | Self::New => 1,
            Self::Infrastructure => 69,
            Self::Interrupted => 130,
            Self::WrongInput => 2,
        }
    }

    /// In a word or two.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::New => "new",
            Self::Infrastructure => "no result",
            Self::Interrupted => "interrupted",
            Self::WrongInput => "wrong input",
        }
    }
}

impl Report {
    /// Of a suite's scenarios on its guests.
    ///
    /// # Errors
    /// Without a guest.
    pub fn new(guests: &[Guest], scenarios: Vec<ScenarioReport>) -> Result<Self> {
        let first = guests.first().context("no guest was prepared")?;
        Ok(Self {
            schema: SCHEMA,
            accelerator: first.choice.clone(),
            clock: serde_json::to_value(first.base.clock)?.as_str().unwrap_or_default().to_owned(),
            guests: images(guests),
            scenarios,
            shard: None,
        })
    }

    /// The verdict on all. One bad scenario does not hide another: a failure is told before a missing result.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        [Verdict::Interrupted, Verdict::Failed, Verdict::Infrastructure, Verdict::New]
            .into_iter()
            .find(|verdict| self.count(*verdict) > 0)
            .unwrap_or(Verdict::Passed)
    }

    /// How many are which, what is wrong first: `1 FAILED, 2 passed`; empty if nothing was run.
    pub(crate) fn counts(&self) -> String {
        let verdicts =
            [Verdict::Failed, Verdict::New, Verdict::Infrastructure, Verdict::Interrupted, Verdict::Passed];
        let parts = verdicts
            .map(|verdict| (self.count(verdict), verdict))
            .into_iter()
            .filter(|(count, _)| *count > 0);
        let words = parts.map(|(count, verdict)| match verdict {
            Verdict::Passed => format!("{count} passed"),
            verdict => format!("{count} {}", verdict.words()),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.scenarios.iter().filter(|scenario| scenario.verdict == verdict).count()
    }

    /// All of it for a person: what it was measured on, a table for each guest (see [`table`], [`history`]), why what has
    /// not passed has not, and how many are which.
    #[must_use]
    pub fn text(&self, table: fn(&Self, &str) -> String) -> String {
        let mut text = format!("\n{}\ndurations are {} time of the guest\n", self.accelerator, self.clock);
        for (guest, image) in &self.guests {
            text.push_str(&format!("\n{image}\n"));
            if self.scenarios.iter().any(|scenario| scenario.guest == *guest && !scenario.cycles.is_empty()) {
                text.push_str(&format!("\n{}\n", table(self, guest)));
            }
        }
        for scenario in self.scenarios.iter().filter(|scenario| !scenario.why.is_empty()) {
            text.push_str(&scenario.told());
        }
        let [passed, failed, new] =
            [Verdict::Passed, Verdict::Failed, Verdict::New].map(|verdict| self.count(verdict));
        let without = self.scenarios.len() - passed - failed - new;
        text.push_str(&format!("{passed} passed, {failed} failed"));
        if new > 0 {
            text.push_str(&format!(", {new} new"));
        }
        if without > 0 {
            text.push_str(&format!(", {without} without result"));
        }
        let remembered = self.scenarios.iter().filter(|scenario| scenario.remembered_s.is_some()).count();
        if remembered > 0 {
            text.push_str(&format!("; {remembered} remembered, --fresh runs all"));
        }
        if let Some(Share { number, of, runs_of_all }) = self.shard {
            text.push_str(&format!("; shard {number} of {of}, of {runs_of_all} runs in all"));
        }
        text.push('\n');
        text
    }
}

/// What each guest is, by its name; those of one name differ in their packages.
fn images(guests: &[Guest]) -> BTreeMap<String, String> {
    let mut images: BTreeMap<String, String> = BTreeMap::new();
    for guest in guests {
        let also = format!("; another with {}", guest.packages.join(", "));
        let known = images.entry(guest.name.clone()).and_modify(|image| image.push_str(&also));
        known.or_insert_with(|| guest.image.clone());
    }
    images
}

impl ScenarioReport {
    /// What became of one that has not passed, as a block of lines.
    #[must_use]
    pub fn told(&self) -> String {
        let mut text = format!("{}/{}: {}\n", self.guest, self.name, self.verdict.words());
        let lines = if self.story.is_empty() { &self.why } else { &self.story };
        for line in lines.iter().flat_map(|line| line.lines()) {
            text.push_str(&format!("  {line}\n"));
        }
        if !self.evidence.as_os_str().is_empty() {
            text.push_str(&format!("  evidence: {}\n", self.evidence.display()));
        }
        if let Some(remembered) = self.remembered() {
            text.push_str(&format!("  {remembered}: no machine ran; with --fresh one does\n"));
        }
        text
    }

    /// The report of a run that has a result.
    #[must_use]
    pub fn of_run(guest: &str, scenario: &Scenario, run: &Run, evidence: &Path) -> Self {
        let why = run.judgement.why();
        let verdict = match run.judgement.is_new() {
            true => Verdict::New,
            false if why.is_empty() => Verdict::Passed,
            false => Verdict::Failed,
        };
        Self {
            verdict,
            why,
            kernel: run.recording.kernel.clone(),
            systemd: run.recording.systemd.clone(),
            os: run.recording.os.clone(),
            stages: run.stages,
            cycles: run.judgement.cycles.clone(),
            story: run.judgement.told(),
            evidence: evidence.to_owned(),
            recording_sha256: cache::hash_bytes(run.text.as_bytes()),
            inputs_sha256: run
                .inputs
                .as_ref()
                .filter(|inputs| inputs.repeat())
                .and_then(|inputs| inputs.key().ok())
                .map_or_else(String::new, |key| key.as_str().to_owned()),
            remembered_s: run.remembered.map(|age| age.as_secs()),
            ..Self::without_result(guest, scenario, Verdict::Infrastructure, Vec::new())
        }
    }

    /// The first digits of the recording's hash, and whether it is remembered: `eb9ea95ae404, remembered, 3 h ago`.
    #[must_use]
    pub fn recording(&self) -> String {
        let hash = self.recording_sha256.get(..12).unwrap_or("none");
        match self.remembered() {
            Some(remembered) => format!("{hash}, {remembered}"),
            None => hash.to_owned(),
        }
    }

    /// The bundle that hands its run over, if there is one.
    #[must_use]
    pub fn bundle(&self) -> Option<PathBuf> {
        let file = self.evidence.join(repro::FILE);
        (!self.evidence.as_os_str().is_empty() && file.exists()).then_some(file)
    }

    /// `remembered, 3 h ago`; `None` if a machine ran.
    #[must_use]
    pub fn remembered(&self) -> Option<String> {
        Some(format!("remembered, {}", ago(Duration::from_secs(self.remembered_s?))))
    }

    /// The report of a run that has no result.
    #[must_use]
    pub fn of_error(guest: &str, scenario: &Scenario, error: &anyhow::Error) -> Self {
        let why = vec![tools::explain(error)];
        Self::without_result(guest, scenario, Verdict::of_error(error), why)
    }

    fn without_result(guest: &str, scenario: &Scenario, verdict: Verdict, why: Vec<String>) -> Self {
        Self {
            guest: guest.to_owned(),
            name: scenario.name.clone(),
            description: scenario.manifest.description.clone(),
            history: scenario.manifest.history.clone(),
            verdict,
            why,
            story: Vec::new(),
            evidence: PathBuf::new(),
            kernel: String::new(),
            systemd: String::new(),
            os: String::new(),
            stages: Stages::default(),
            recording_sha256: String::new(),
            inputs_sha256: String::new(),
            remembered_s: None,
            cycles: Vec::new(),
            first: None,
            look: None,
        }
    }
}

/// The file of one scenario's [`ScenarioReport`], in its results directory.
const SCENARIO_FILE: &str = "report.json";

/// Writes one scenario's report and, where there is one, its recording and its probe's lines.
///
/// # Errors
/// Names the file that can't be written.
pub fn write_scenario(directory: &Path, report: &ScenarioReport, run: Option<&Run>) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    if let Some(run) = run {
        write("recording.json", &run.text)?;
        if let Some(inputs) = &run.inputs {
            write("inputs.json", &serde_json::to_string_pretty(inputs)?)?;
        }
        let mut lines = probe::LEGEND.to_owned();
        for cycle in &run.judgement.cycles {
            lines.push_str(&format!(
                "# cycle {}\n{}",
                cycle.number,
                probe::probe_lines(&run.recording, cycle.number)
            ));
        }
        write("probe.txt", &lines)?;
        write_evidence(directory, &run.recording)?;
    }
    // Last, so that a report that is there means that all is.
    write(SCENARIO_FILE, &serde_json::to_string_pretty(report)?)
}

/// Reads what [`write_scenario`] wrote last; `None` if it is not there, or of another version.
pub(crate) fn read_scenario(directory: &Path) -> Option<ScenarioReport> {
    serde_json::from_slice(&std::fs::read(directory.join(SCENARIO_FILE)).ok()?).ok()
}

/// What systemd and the journal said of a cycle that went wrong, before anything recovered from it: `cycle-<n>/unit.txt` and
/// `cycle-<n>/journal.txt`.
fn write_evidence(directory: &Path, recording: &Recording) -> Result<()> {
    for event in &recording.events {
        if let What::Evidence(Evidence { units, journal }) = &event.what {
            let directory = directory.join(format!("cycle-{}", event.cycle));
            std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
            for (name, text) in [("unit.txt", units), ("journal.txt", journal)] {
                let path = directory.join(name);
                std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// More scenarios than this are a line each, since their columns would be wider than any terminal.
const COLUMNS: usize = 4;

/// The postmortem's table for one guest: a column for each scenario that has cycles, in the order of the report; a line
/// for each if there are many.
#[must_use]
pub fn table(report: &Report, guest: &str) -> String {
    let measured: Vec<&ScenarioReport> =
        report.scenarios.iter().filter(|one| one.guest == guest && !one.cycles.is_empty()).collect();
    if measured.len() > COLUMNS {
        return lines(&["Scenario"], measured.into_iter().map(|one| (vec![one.name.clone()], one)));
    }
    let mut rows = vec![
        vec!["Metric".to_owned()],
        vec!["Reset duration".to_owned()],
        vec!["Holders at the umount".to_owned()],
        vec!["Unit state after Stop".to_owned()],
        vec!["ExecStopPost exit code".to_owned()],
        vec!["Cycles".to_owned()],
        vec!["Recording".to_owned()],
    ];
    for scenario in measured {
        let column = [
            scenario.name.clone(),
            durations(&scenario.cycles),
            distinct(&scenario.cycles, holders),
            distinct(&scenario.cycles, unit_state),
            distinct(&scenario.cycles, exec_stop_post),
            scenario.cycles.len().to_string(),
            scenario.recording(),
        ];
        for (row, cell) in rows.iter_mut().zip(column) {
            row.push(cell);
        }
    }
    aligned(&rows)
}

/// A history as one table for one guest: a line for each scenario that has a place in one, in the order of their steps.
#[must_use]
pub fn history(report: &Report, guest: &str) -> String {
    let of_guest = report.scenarios.iter().filter(|one| one.guest == guest);
    let mut steps: Vec<(&History, &ScenarioReport)> =
        of_guest.filter_map(|one| Some((one.history.as_ref()?, one))).collect();
    steps.sort_by_key(|(history, _)| history.step);
    lines(
        &["Step", "Reported at the time"],
        steps.into_iter().map(|(history, one)| (vec![history.what.clone(), history.reported.clone()], one)),
    )
}

/// A line for each scenario: some cells that say which it is, then what was measured.
fn lines<'a>(head: &[&str], scenarios: impl Iterator<Item = (Vec<String>, &'a ScenarioReport)>) -> String {
    let measured = [
        "Reset duration",
        "`holders=`",
        "Unit state",
        "ExecStopPost exit code",
        "Who kept the mount",
        "Next mount",
        "As expected",
        "Recording",
    ];
    let mut rows = vec![head.iter().chain(&measured).map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    for (mut row, scenario) in scenarios {
        let cycles = &scenario.cycles;
        let as_expected = match scenario.verdict {
            Verdict::Passed => "yes",
            Verdict::Failed => "NO",
            Verdict::New => "new",
            Verdict::Infrastructure | Verdict::Interrupted | Verdict::WrongInput => "no result",
        };
        row.extend([
            durations(cycles),
            distinct(cycles, holders),
            distinct(cycles, unit_state),
            distinct(cycles, exec_stop_post),
            distinct(cycles, |cycle| cycle.verdict.words().to_owned()),
            // Why not is in the snapshot.
            distinct(cycles, |cycle| cycle.remount().split(':').next().unwrap_or_default().to_owned()),
            as_expected.to_owned(),
            scenario.recording(),
        ]);
        rows.push(row);
    }
    aligned(&rows)
}

fn holders(cycle: &Cycle) -> String {
    let holders: Vec<_> = cycle.holders_at_umount.iter().map(holder).collect();
    format!("[{}]", holders.join(", "))
}

fn holder(holder: &Holder) -> String {
    let kinds: Vec<_> = holder.kinds.iter().map(|kind| kind.word()).collect();
    format!("{} ({})", holder.comm, kinds.join(", "))
}

/// The unit's state, and that of the mount's unit where there is one that did not come down.
fn unit_state(cycle: &Cycle) -> String {
    let unit = cycle.unit.active.clone();
    match &cycle.mount_unit {
        Some(mount_unit) if mount_unit.state.active != "inactive" => {
            format!("{unit}, the mount's {}", mount_unit.state.active)
        }
        _ => unit,
    }
}

fn exec_stop_post(cycle: &Cycle) -> String {
    let busy = cycle.umounts.iter().any(|umount| umount.result == "EBUSY");
    match cycle.exec_stop_post() {
        Some(Exit::Code(code)) if busy && code != 0 => format!("{code} (EBUSY)"),
        Some(Exit::Code(code)) => code.to_string(),
        Some(Exit::Signal(signal)) => format!("signal {signal}"),
        None => "none".to_owned(),
    }
}

/// The median and, of more than one, the range; and whether the command succeeded.
fn durations(cycles: &[Cycle]) -> String {
    let mut sorted: Vec<u64> = cycles.iter().map(|cycle| cycle.reset_ns).filter(|ns| *ns > 0).collect();
    if sorted.is_empty() {
        return "never ran".to_owned();
    }
    sorted.sort_unstable();
    let at = |index: usize| Duration::from_nanos(sorted.get(index).copied().unwrap_or(0)).as_secs_f64();
    let failed = cycles.iter().filter(|cycle| cycle.reset_exit != Some(Exit::Code(0))).count();
    let outcome = match failed {
        0 => String::new(),
        all if all == cycles.len() => "fails after ".to_owned(),
        some => format!("fails in {some} of {}: ", cycles.len()),
    };
    let last = sorted.len().saturating_sub(1);
    if last == 0 {
        return format!("{outcome}{:.3} s", at(0));
    }
    format!("{outcome}{:.3} s ({:.3} to {:.3})", at(last / 2), at(0), at(last))
}

/// Each value once, in order of appearance.
fn distinct(cycles: &[Cycle], value: impl Fn(&Cycle) -> String) -> String {
    let mut values: Vec<String> = Vec::new();
    for value in cycles.iter().map(value) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values.join("; ")
}

/// A table in Markdown whose columns are aligned in plain text too.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                text.push_str(&format!("|-{:-<width$}-", ""));
            }
            text.push_str("|\n");
        }
    }
    text
}
