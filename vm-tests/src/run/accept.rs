//! Writes a run's text as its scenario's snapshot, where `INSTA_UPDATE` says so, in insta's format: `cargo insta review`
//! shows what waits for a decision.
//!
//! By no assertion of insta's: that prints, panics and gives advice of its own around each difference, and the story of a
//! failed run has its place elsewhere (`judge::story`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::guest::Guest;
use crate::host::accel::Clock;
use crate::judge::Judgement;
use crate::judge::baselines::{Baselines, Durations, Outcome, lock};
use crate::scenario::Scenario;

/// What `INSTA_UPDATE` says of a text that is not its snapshot's, in insta's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Update {
    /// `always`, `force`: it becomes the snapshot.
    Accept,
    /// `new`, `auto`, not set: it lies beside the snapshot, as `.snap.new`.
    Offer,
    /// `no`, and in a CI job that says nothing else.
    Leave,
}

impl Update {
    fn from_env() -> Self {
        Self::of(std::env::var("INSTA_UPDATE").ok().as_deref(), std::env::var_os("CI").is_some())
    }

    /// As [`Self::from_env`]; a scenario that somebody has changed keeps what it has.
    fn for_scenario(scenario: &Scenario) -> Self {
        if scenario.is_changed { Self::Leave } else { Self::from_env() }
    }

    fn of(variable: Option<&str>, is_ci: bool) -> Self {
        match variable {
            Some("always" | "force") => Self::Accept,
            Some("no") => Self::Leave,
            Some("new") => Self::Offer,
            _ if is_ci => Self::Leave,
            _ => Self::Offer,
        }
    }
}

/// A first snapshot: what a run gave of a scenario of which none was ever accepted. Whoever ran it may accept it.
#[derive(Debug, Clone)]
pub struct First {
    directory: PathBuf,
    description: String,
    guest: String,
    /// The name of its image's packages.
    lock: Option<String>,
    clock: Clock,
    /// The run's text.
    pub text: String,
    measured: Option<Durations>,
}

impl First {
    /// What a run that is accepted would pin; `None` if it may not be, since it deviates, had not the manifest's number of
    /// cycles, or `INSTA_UPDATE` says no.
    #[must_use]
    pub fn of(guest: &Guest, scenario: &Scenario, judgement: &Judgement) -> Option<Self> {
        let clock = guest.base.clock;
        let whole = judgement.measured.is_some() || clock != Clock::Virtual;
        let offered = judgement.is_new() && whole && Update::for_scenario(scenario) == Update::Offer;
        offered.then(|| Self {
            directory: scenario.directory.clone(),
            description: scenario.manifest.description.clone(),
            guest: guest.name.clone(),
            lock: guest.lock.clone(),
            clock,
            text: judgement.outcome.text.clone(),
            measured: judgement.measured,
        })
    }

    /// Writes it. Another guest's may have been written by now: one that says the same is enough.
    ///
    /// # Errors
    /// Files that can't be read or written.
    pub fn accept(&self) -> Result<()> {
        let load = || {
            let baselines = Baselines::load(&self.directory, &self.guest, self.clock)?;
            Ok(baselines.on(self.lock.as_deref()))
        };
        accept_text(&self.directory, &self.description, &self.text, load)?;
        match &self.measured {
            Some(measured) => load()?.accept_durations(measured),
            None => Ok(()),
        }
    }
}

/// Writes a run's text as a snapshot, where none that is there by now says the same: guests of one scenario may be accepted
/// at once, and each has the directory for itself meanwhile, so that none takes another's place.
fn accept_text(
    directory: &Path,
    description: &str,
    text: &str,
    load: impl FnOnce() -> Result<Baselines>,
) -> Result<()> {
    let _held = lock(directory)?;
    let outcome = load()?.compare_text(text.to_owned());
    match outcome.mismatch {
        Some(_) if !outcome.redundant => write(directory, description, &outcome, Update::Accept),
        _same => Ok(()),
    }
}

/// Takes from the judgement what is accepted: nothing of a run that is not as the manifest expects. Its text can be offered,
/// for somebody to decide.
pub(super) fn accept(guest: &Guest, scenario: &Scenario, judgement: &mut Judgement) -> Result<()> {
    let (directory, description) = (&scenario.directory, &scenario.manifest.description);
    let load = || {
        let baselines = Baselines::load(directory, &guest.name, guest.base.clock)?;
        Ok(baselines.on(guest.lock.as_deref()))
    };
    accept_as(Update::for_scenario(scenario), directory, description, load, judgement)
}

fn accept_as(
    update: Update,
    directory: &Path,
    description: &str,
    load: impl Fn() -> Result<Baselines>,
    judgement: &mut Judgement,
) -> Result<()> {
    let outcome = &mut judgement.outcome;
    let differs = !outcome.redundant && outcome.mismatch.is_some();
    if update != Update::Accept {
        return if differs { write(directory, description, outcome, update) } else { Ok(()) };
    }
    let measured = judgement.measured.filter(|_| !judgement.durations.is_empty());
    if !judgement.deviations.is_empty() {
        judgement.is_refused = differs || measured.is_some();
        return Ok(());
    }
    if differs {
        accept_text(directory, description, &outcome.text, &load)?;
        (outcome.mismatch, outcome.changes) = (None, Vec::new());
        judgement.is_first = false;
    }
    if let Some(measured) = measured {
        load()?.accept_durations(&measured)?;
        judgement.durations.clear();
    }
    Ok(())
}

fn write(directory: &Path, description: &str, outcome: &Outcome, update: Update) -> Result<()> {
    let file = match update {
        Update::Accept => directory.join(format!("{}.snap", outcome.accepted)),
        Update::Offer => directory.join(format!("{}.snap.new", outcome.accepted)),
        Update::Leave => return Ok(()),
    };
    // A string of JSON is one of YAML, too.
    let description = serde_json::to_string(description).context("write the description")?;
    let text = outcome.text.trim_end();
    let snapshot =
        format!("---\nsource: vm-tests/tests/scenarios.rs\ndescription: {description}\n---\n{text}\n");
    std::fs::write(&file, snapshot).with_context(|| format!("write {}", file.display()))?;
    let offered = directory.join(format!("{}.snap.new", outcome.accepted));
    if update == Update::Offer {
        return Ok(());
    }
    // What was offered before is decided.
    match std::fs::remove_file(&offered) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", offered.display()))
        }
        _gone => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::judge::Deviation;

    #[test]
    fn the_variable_says_what_becomes_of_a_text() {
        let cases = [
            (Some("always"), true, Update::Accept),
            (Some("force"), false, Update::Accept),
            (Some("no"), false, Update::Leave),
            (Some("new"), true, Update::Offer),
            (Some("auto"), false, Update::Offer),
            (Some(""), true, Update::Leave),
            (None, true, Update::Leave),
            (None, false, Update::Offer),
        ];
        for (variable, is_ci, update) in cases {
            assert_eq!(Update::of(variable, is_ci), update, "{variable:?}, CI {is_ci}");
        }
    }

    #[test]
    fn of_a_changed_scenario_nothing_is_accepted() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/936c8bb");
        let mut scenario = Scenario::load(&directory).expect("a right one");
        assert_eq!(Update::for_scenario(&scenario), Update::from_env());
        scenario.is_changed = true;
        assert_eq!(Update::for_scenario(&scenario), Update::Leave);
    }

    #[test]
    fn a_first_snapshot_is_every_guests_unless_one_differs() {
        let directory = tempfile::tempdir().expect("tempdir");
        let first = |guest: &str, text: &str| First {
            directory: directory.path().to_owned(),
            description: "d".to_owned(),
            guest: guest.to_owned(),
            lock: None,
            clock: Clock::Virtual,
            text: text.to_owned(),
            measured: Some(Durations { start_ms: 10.0, reset_ms: 20.0 }),
        };
        for (guest, text) in [("trixie", "one"), ("bookworm", "one"), ("sid", "another")] {
            first(guest, text).accept().expect("accept");
            let baselines = Baselines::load(directory.path(), guest, Clock::Virtual).expect("load");
            assert_eq!(baselines.compare_text(text.to_owned()).mismatch, None, "{guest}");
            assert!(baselines.durations.is_some(), "{guest}");
        }
        let there = |name: &str| directory.path().join(name).exists();
        assert!(there("outcome.snap") && there("outcome.sid.snap") && !there("outcome.bookworm.snap"));
    }

    #[test]
    fn guests_that_are_accepted_at_once_take_nobodys_place() {
        let guests: Vec<String> = (0..16).map(|number| format!("guest{number}")).collect();
        // Who comes second is chance.
        for _ in 0..20 {
            let directory = tempfile::tempdir().expect("tempdir");
            let directory = directory.path();
            let load = |guest: &str| Baselines::load(directory, guest, Clock::Real);
            let together = &std::sync::Barrier::new(guests.len());
            std::thread::scope(|scope| {
                for guest in &guests {
                    scope.spawn(move || {
                        together.wait();
                        accept_text(directory, "d", guest, || load(guest)).expect("accept");
                    });
                }
            });
            for guest in &guests {
                let outcome = load(guest).expect("load").compare_text(guest.clone());
                assert_eq!(outcome.mismatch, None, "{guest}");
            }
        }
    }

    /// A run whose text and durations nobody has accepted yet.
    pub(in crate::run) fn judgement(
        load: impl Fn() -> Result<Baselines>,
        deviations: Vec<Deviation>,
    ) -> Judgement {
        Judgement {
            cycles: Vec::new(),
            deviations,
            outcome: load().expect("load").compare_text("every cycle\nstart: exit status 0\n".to_owned()),
            measured: Some(Durations { start_ms: 10.0, reset_ms: 20.0 }),
            durations: vec!["no baseline".to_owned()],
            story: Vec::new(),
            is_first: true,
            is_refused: false,
        }
    }

    #[test]
    fn a_run_that_is_not_as_expected_is_not_accepted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let load = || Baselines::load(directory.path(), "trixie", Clock::Virtual);
        let files = || std::fs::read_dir(directory.path()).expect("list").count();
        let accept = |judgement: &mut Judgement| {
            accept_as(Update::Accept, directory.path(), "d", load, judgement).expect("accept");
            judgement.why().join("\n")
        };

        let deviation = Deviation { cycle: Some(1), words: "reset took too long".to_owned() };
        let mut wrong = judgement(load, vec![deviation.clone()]);
        let why = accept(&mut wrong);
        assert_eq!(files(), 0, "{why}");
        assert!(wrong.outcome.mismatch.is_some() && !wrong.durations.is_empty(), "it has not passed");
        assert!(why.contains("reset took too long") && why.contains("nothing of it was accepted"), "{why}");
        assert!(wrong.told().iter().any(|line| line.contains("nothing of it was accepted")));

        let mut right = judgement(load, Vec::new());
        assert_eq!((accept(&mut right).as_str(), load().expect("load").durations.is_some()), ("", true));
        let known = files();
        let mut still_wrong = judgement(load, vec![deviation]);
        (still_wrong.durations, still_wrong.is_first) = (Vec::new(), false);
        let why = accept(&mut still_wrong);
        assert_eq!(
            (files(), why.as_str()),
            (known, "cycle 1: reset took too long"),
            "there was nothing to accept"
        );
    }

    #[test]
    fn what_is_written_is_read_by_insta() {
        let directory = tempfile::tempdir().expect("tempdir");
        let outcome = Outcome {
            text: "every cycle\nstart: exit status 0\n".to_owned(),
            compared: "outcome".to_owned(),
            accepted: "outcome.sid".to_owned(),
            redundant: false,
            mismatch: Some("another".to_owned()),
            changes: Vec::new(),
        };
        let written = |update| {
            write(directory.path(), "A \"quote\": and\na line", &outcome, update).expect("write");
            ["outcome.sid.snap", "outcome.sid.snap.new"].map(|name| directory.path().join(name).exists())
        };
        assert_eq!(written(Update::Leave), [false, false]);
        assert_eq!(written(Update::Offer), [false, true]);
        assert_eq!(written(Update::Accept), [true, false], "what was offered is decided");
        let snapshot =
            insta::Snapshot::from_file(&directory.path().join("outcome.sid.snap")).expect("insta's");
        assert_eq!(snapshot.as_text().expect("text").to_string(), outcome.text.trim_end());
        assert_eq!(snapshot.metadata().description(), Some("A \"quote\": and\na line"));
    }
}
