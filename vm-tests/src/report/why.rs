//! Why two runs differ: the first input that is not the same, or else the first event.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use vm_agent::recording::{Event, Recording};

use super::{Report, ScenarioReport};
use crate::run::input::Difference;
use crate::run::inputs::Inputs;
use crate::run::remembered::first_difference;
use crate::scenario::WrongInput;

/// More inputs than these are counted, not named.
const NAMED: usize = 4;
/// So many scenarios are named of those that share a reason.
const SCENARIOS: usize = 6;

/// The results of a suite, on disk.
#[derive(Debug)]
pub struct Results {
    report: Report,
    directory: PathBuf,
}

impl Results {
    /// Reads them; the path is that of the results or of their `report.json`.
    ///
    /// # Errors
    /// A path that is not there, or a report of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
        if !file.exists() {
            let what =
                format!("{}: no report; give the directory of --results, or its report.json", file.display());
            return Err(WrongInput::new(what).into());
        }
        let report = json(&file)?;
        Ok(Self { report, directory: file.parent().map(Path::to_owned).unwrap_or_default() })
    }

    /// The scenarios that were run, each with its guest.
    pub fn scenarios(&self) -> impl Iterator<Item = (&str, &str)> {
        self.report.scenarios.iter().map(|one| (one.guest.as_str(), one.name.as_str()))
    }

    /// What a run was made of; `None` of one in real time.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn inputs(&self, guest: &str, name: &str) -> Result<Option<Inputs>> {
        let file = self.file(guest, name, "inputs.json");
        if file.exists() { json(&file).map(Some) } else { Ok(None) }
    }

    fn file(&self, guest: &str, name: &str, file: &str) -> PathBuf {
        self.directory.join(guest).join(name).join(file)
    }

    fn find(&self, guest: &str, name: &str) -> Option<&ScenarioReport> {
        self.report.scenarios.iter().find(|one| one.guest == guest && one.name == name)
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
}

/// Why runs differ, those of one reason together.
#[derive(Debug, Default)]
pub struct Why {
    same: usize,
    different: BTreeMap<String, Vec<String>>,
    only: Vec<String>,
}

impl Why {
    /// Compares the runs of two suites.
    ///
    /// # Errors
    /// Files that can't be read; no run in both.
    pub fn between(one: &Results, other: &Results) -> Result<Self> {
        let mut why = Self::default();
        for (guest, name) in one.scenarios() {
            let (Some(here), Some(there)) = (one.find(guest, name), other.find(guest, name)) else {
                why.only.push(format!("{guest}/{name}"));
                continue;
            };
            if !here.recording_sha256.is_empty() && here.recording_sha256 == there.recording_sha256 {
                why.same += 1;
                continue;
            }
            let reason = reason(one, other, guest, name)?;
            why.different.entry(reason).or_default().push(format!("{guest}/{name}"));
        }
        if why.same == 0 && why.different.is_empty() {
            bail!(WrongInput::new("the two have no run in common".to_owned()));
        }
        Ok(why)
    }

    /// Adds a run of which only the inputs are known.
    pub fn add(&mut self, name: String, differences: &[Difference<'_>]) {
        match of_inputs(differences) {
            None => self.same += 1,
            Some(reason) => self.different.entry(reason).or_default().push(name),
        }
    }

    /// Whether there is no difference.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.different.is_empty()
    }

    /// For a person. `what` is what is the same of those that are: recording, inputs.
    #[must_use]
    pub fn text(&self, what: &str) -> String {
        let mut text = format!("the same {what}: {}\n", self.same);
        for (reason, names) in &self.different {
            text.push_str(&format!("{}:\n", some_of(names)));
            reason.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        if !self.only.is_empty() {
            text.push_str(&format!("not in the second: {}\n", some_of(&self.only)));
        }
        text
    }
}

/// The first few names, and how many more there are.
fn some_of(names: &[String]) -> String {
    let named = names.iter().take(SCENARIOS).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SCENARIOS) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn reason(one: &Results, other: &Results, guest: &str, name: &str) -> Result<String> {
    let inputs = (one.inputs(guest, name)?, other.inputs(guest, name)?);
    let (Some(here), Some(there)) = inputs else {
        return Ok("no result, or one in real time: there are no inputs to compare".to_owned());
    };
    if let Some(reason) = of_inputs(&here.differences(&there)) {
        return Ok(reason);
    }
    let recording = |all: &Results| json::<Recording>(&all.file(guest, name, "recording.json"));
    Ok(of_recordings(&recording(one)?, &recording(other)?))
}

/// Why two recordings of the same inputs are not the same.
#[must_use]
pub fn of_recordings(here: &Recording, there: &Recording) -> String {
    match first_difference(here, there) {
        Some(at) => format!(
            "the same inputs, and another recording from event {at} on: {} -> {}",
            event(here.events.get(at)),
            event(there.events.get(at))
        ),
        None => "the same inputs and events; the recordings' heads differ".to_owned(),
    }
}

/// The first differences, a line each; `None` if there is none.
#[must_use]
pub fn of_inputs(differences: &[Difference<'_>]) -> Option<String> {
    let mut lines: Vec<String> = differences.iter().take(NAMED).map(ToString::to_string).collect();
    let more = differences.len().saturating_sub(NAMED);
    if more > 0 {
        lines.push(format!("and {more} more inputs"));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn event(event: Option<&Event>) -> String {
    let Some(Event { at, cycle, what }) = event else { return "no event".to_owned() };
    let what = serde_json::to_string(what).unwrap_or_else(|error| error.to_string());
    format!("at {at} ns of cycle {cycle} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;
    use crate::run::input::{Input, Kind};
    use vm_agent::recording::What;

    /// Results of some runs: name, a file's hash, the moment of the one event.
    fn results(directory: &Path, runs: &[(&str, Option<&str>, u64)]) -> Results {
        let sample = crate::report::tests::scenario("x", None, Verdict::Passed, Vec::new());
        let mut scenarios = Vec::new();
        for (name, file, at) in runs {
            let own = directory.join("trixie").join(name);
            std::fs::create_dir_all(&own).expect("mkdir");
            let write = |name: &str, text: String| std::fs::write(own.join(name), text).expect("write");
            if let Some(file) = file {
                let input = |kind, name: &str, value: &str| Input {
                    kind,
                    name: name.to_owned(),
                    value: value.to_owned(),
                };
                let all = vec![input(Kind::Qemu, "version", "7.2"), input(Kind::File, "/a", file)];
                write("inputs.json", serde_json::to_string(&Inputs(all)).expect("json"));
            }
            let event = Event { at: *at, cycle: 1, what: What::Console { lines: Vec::new() } };
            let recording = Recording { events: vec![event], ..Recording::default() };
            write("recording.json", serde_json::to_string(&recording).expect("json"));
            scenarios.push(ScenarioReport {
                name: (*name).to_owned(),
                recording_sha256: format!("{file:?}{at}"),
                ..sample.clone()
            });
        }
        let report = Report {
            schema: crate::report::SCHEMA,
            accelerator: String::new(),
            clock: String::new(),
            guests: BTreeMap::new(),
            scenarios,
            shard: None,
        };
        std::fs::write(directory.join("report.json"), serde_json::to_string(&report).expect("json"))
            .expect("write");
        Results::read(directory).expect("read")
    }

    #[test]
    fn the_first_input_is_named_or_else_the_first_event() {
        let (one, other) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let here = [
            ("same", Some("a"), 1),
            ("file", Some("a"), 1),
            ("also", Some("a"), 1),
            ("event", Some("a"), 1),
            ("real", None, 1),
            ("gone", None, 1),
        ];
        let there = [
            ("same", Some("a"), 1),
            ("file", Some("b"), 1),
            ("also", Some("b"), 1),
            ("event", Some("a"), 2),
            ("real", None, 2),
        ];
        let why = Why::between(&results(one.path(), &here), &results(other.path(), &there)).expect("why");
        assert!(!why.is_same());
        insta::assert_snapshot!("why", why.text("recording"));
        let same = Why::between(&results(one.path(), &here), &results(other.path(), &here)).expect("why");
        assert!(same.is_same());
    }

    #[test]
    fn what_is_not_there_is_wrong_input() {
        let nowhere = tempfile::tempdir().expect("tempdir");
        let error = Results::read(nowhere.path()).expect_err("no report");
        assert!(
            error.is::<WrongInput>() && error.to_string().contains("report.json: no report"),
            "{error:#}"
        );
    }
}
