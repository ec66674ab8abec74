//! Which runs of a suite are remembered, which of those are run all the same, and what becomes of a run's recording.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use super::guest::Guest;
use super::inputs::Inputs;
use super::one::{self, Bounds, Run};
use super::remembered::{self, Remembered, Store};
use crate::host::events::{self, Event};
use crate::scenario::Scenario;

/// Which runs whose recording is remembered are run all the same, and compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// None: of a run that is wanted for something else than its verdict, as for the way to an instant of it.
    Never,
    /// So many, those first whose turn it is. No fewer than one: what is remembered is tried by every suite.
    Some(u32),
    /// All.
    All,
}

impl Default for Again {
    fn default() -> Self {
        Self::Some(1)
    }
}

/// A run that is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) guest: &'a Guest,
    /// The guest's place in the suite.
    pub(super) number: usize,
    pub(super) scenario: &'a Scenario,
    pub(super) bounds: Bounds,
}

/// What is known of the runs of a suite.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// In the order of the trials.
    pub(super) of_trials: Vec<Option<Known>>,
    /// The machines that are restored: a guest's number, a size.
    pub(super) machines: BTreeSet<(usize, u32)>,
}

/// What is known of a run.
#[derive(Debug)]
pub(super) struct Known {
    /// What it is made of.
    pub(super) inputs: Inputs,
    pub(super) remembered: Remembered,
    /// It is run all the same.
    pub(super) again: bool,
}

/// Looks for the recordings of runs, and chooses those that are run again.
pub(super) fn recall(trials: &[Asked<'_>], store: Option<&Store>, again: Again) -> Result<Recalled> {
    let mut recalled = Recalled::default();
    for trial in trials {
        let inputs = match store {
            // Without its machine a run has no name yet.
            Some(_) => one::inputs(trial.guest, trial.scenario, trial.bounds)?,
            None => None,
        };
        let known = match (store, inputs) {
            (Some(store), Some(inputs)) => store.recall(&inputs.key()?).map(|remembered| Known {
                inputs,
                remembered,
                again: again == Again::All,
            }),
            _ => None,
        };
        recalled.of_trials.push(known);
    }
    if let Again::Some(number) = again {
        choose(&mut recalled.of_trials, usize::try_from(number.max(1))?);
    }
    let runs = trials.iter().zip(&recalled.of_trials);
    let runs = runs.filter(|(_, known)| known.as_ref().is_none_or(|known| known.again));
    recalled.machines = runs.map(|(trial, _)| (trial.number, trial.scenario.manifest.memory_mib)).collect();
    Ok(recalled)
}

/// Has so many runs run again: of the half that takes less time, those that were not tried for the longest time, and then of
/// the others. So a suite that knows all is quick, and each has its turn.
fn choose(known: &mut [Option<Known>], number: usize) {
    let mut all: Vec<&mut Known> = known.iter_mut().flatten().collect();
    all.sort_by_key(|known| known.remembered.about.took_ms);
    let quick = all.len().div_ceil(2).max(number).min(all.len());
    let (quick, _slow) = all.split_at_mut(quick);
    quick.sort_by(|one, other| one.remembered.about.turn().cmp(&other.remembered.about.turn()));
    quick.iter_mut().take(number).for_each(|known| known.again = true);
}

/// Keeps a run's recording, and compares it with what is known of the same inputs.
///
/// # Errors
/// Two recordings of the same inputs: nothing is remembered from then on, and both are kept in `directory`. Of a machine that is
/// shut down only what was before the host had it go on.
pub(super) fn remember(
    store: &Store,
    known: Option<&Known>,
    run: &Run,
    name: &str,
    directory: &Path,
) -> Result<()> {
    let Some(inputs) = &run.inputs else { return Ok(()) };
    // A file that has changed since it was recalled makes it another run.
    let mut known = known.filter(|known| known.inputs == *inputs).map(|known| &known.remembered);
    if let Some(before) = known
        && let Err(difference) = remembered::compare(&before.recording, &run.recording)
    {
        if inputs.repeat() || remembered::compare_without_end(&before.recording, &run.recording).is_err() {
            return Err(contradiction(store, before, &run.text, &difference, name, directory));
        }
        // Judged anew, as each is; and it is new, so it has the age of this run.
        events::tell(Event::Note(format!(
            "{name} had another end than {}, which the host makes at a moment of its own: {difference}",
            before.ago()
        )));
        known = None;
    }
    store.keep(&inputs.key()?, &run.text, run.stages.restore_ms + run.stages.session_ms, known)
}

fn contradiction(
    store: &Store,
    known: &Remembered,
    text: &str,
    difference: &anyhow::Error,
    name: &str,
    directory: &Path,
) -> anyhow::Error {
    let why = format!("{name} had another recording than {} with the same inputs", known.ago());
    let keep = || {
        store.switch_off(&why)?;
        for (file, text) in [("remembered.json", known.text.as_str()), ("recording.json", text)] {
            let path = directory.join(file);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    };
    let kept = match keep() {
        Ok(()) => "both are kept: remembered.json, recording.json".to_owned(),
        Err::<(), anyhow::Error>(error) => format!("{error:#}"),
    };
    anyhow!("{why}: {difference}; {kept}; no recording is remembered any more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::accel::Clock;
    use crate::judge::baselines::Baselines;
    use crate::run::inputs::tests::guest;
    use vm_agent::recording::{Event, Recording, What};
    use vm_agent::wire::Session;

    fn event(at: u64) -> Event {
        Event { at, cycle: 1, what: What::StartsForgotten }
    }

    fn run(recording: Recording, inputs: Option<Inputs>, cache: &Path) -> Run {
        let load = || Baselines::load(cache, "trixie", Clock::Virtual);
        let judgement = crate::run::accept::tests::judgement(load, Vec::new());
        let text = serde_json::to_string(&recording).expect("json");
        Run { recording, text, judgement, stages: one::Stages::default(), inputs, remembered: None }
    }

    fn known(store: &Store, number: u32, took_ms: u64) -> Option<Known> {
        let setup = vec![vec![number.to_string()]];
        let inputs = Inputs::of(&guest(), &Session { setup, ..Session::default() }).expect("inputs");
        let key = inputs.key().expect("key");
        let text = serde_json::to_string(&Recording::default()).expect("json");
        store.keep(&key, &text, took_ms, None).expect("keep");
        Some(Known { inputs, remembered: store.recall(&key).expect("known"), again: false })
    }

    #[test]
    fn as_many_as_asked_for_run_again_and_the_quick_half_first() {
        let cache = tempfile::tempdir().expect("tempdir");
        let store = Store::open(cache.path()).expect("open").expect("on");
        let again = |number: usize| {
            let mut all: Vec<_> =
                [900, 10, 800, 20].iter().zip(1..).map(|(took, at)| known(&store, at, *took)).collect();
            all.push(None);
            choose(&mut all, number);
            all.iter().map(|known| known.as_ref().is_some_and(|known| known.again)).collect::<Vec<_>>()
        };
        let one = again(1);
        assert!(one[1] != one[3] && !one[0] && !one[2], "{one:?}");
        assert_eq!(again(2), [false, true, false, true, false]);
        assert_eq!(again(9), [true, true, true, true, false]);
    }

    #[test]
    fn another_recording_of_the_same_inputs_is_an_error_that_keeps_both_and_ends_remembering() {
        let cache = tempfile::tempdir().expect("tempdir");
        let store = Store::open(cache.path()).expect("open").expect("on");
        let known = known(&store, 1, 10);
        let inputs = known.as_ref().map(|known| known.inputs.clone());
        let run = |events, inputs| run(Recording { events, ..Recording::default() }, inputs, cache.path());
        let event = event(7);
        let remember = |run: &Run| remember(&store, known.as_ref(), run, "trixie/x", cache.path());
        remember(&run(Vec::new(), inputs.clone())).expect("the same once more");
        // Of another run, since a file has changed meanwhile: no contradiction.
        let other = Inputs::of(&guest(), &Session::default()).expect("inputs");
        remember(&run(vec![event.clone()], Some(other))).expect("another run");
        remember(&run(vec![event.clone()], None)).expect("a run without a name");
        assert!(Store::open(cache.path()).expect("open").is_some(), "nothing was wrong");

        let error = remember(&run(vec![event], inputs)).expect_err("another recording").to_string();
        for words in ["trixie/x had another recording", "event 0 was none and is", "both are kept"] {
            assert!(error.contains(words), "{error}");
        }
        for file in ["remembered.json", "recording.json"] {
            assert!(cache.path().join(file).exists(), "{file}");
        }
        assert!(Store::open(cache.path()).expect("open").is_none(), "it is off");
    }

    #[test]
    fn an_end_that_the_host_makes_is_remembered_and_may_be_another_and_what_is_before_it_may_not() {
        let cache = tempfile::tempdir().expect("tempdir");
        let store = Store::open(cache.path()).expect("open").expect("on");
        let ended = |guest: &Guest, words: &[&str]| {
            let inputs = Inputs::of(guest, &Session::default()).expect("inputs");
            inputs.ended_by_the_host(guest, "shutdown", words).expect("inputs")
        };
        let inputs = ended(&guest(), &["go"]);
        assert!(!inputs.repeat() && Inputs::of(&guest(), &Session::default()).expect("inputs").repeat());
        let key = |inputs: &Inputs| inputs.key().expect("key").as_str().to_owned();
        assert_ne!(key(&inputs), key(&ended(&guest(), &["go on"])));
        let end =
            |line: &str| Event { at: 9, cycle: 1, what: What::Console { lines: vec![line.to_owned()] } };
        let ran =
            |events| run(Recording { events, ..Recording::default() }, Some(inputs.clone()), cache.path());
        let key = inputs.key().expect("key");
        let recall =
            || store.recall(&key).map(|remembered| Known { inputs: inputs.clone(), remembered, again: true });
        let remember = |run: &Run| remember(&store, recall().as_ref(), run, "trixie/x", cache.path());

        remember(&ran(vec![event(7), end("waiting")])).expect("the first");
        remember(&ran(vec![event(7), end("power down")])).expect("another end");
        let known = recall().expect("known").remembered.recording;
        assert_eq!(known.events[1], end("power down"), "the last that was seen");
        remember(&ran(vec![event(8), end("power down")])).expect_err("another run");
        assert!(Store::open(cache.path()).expect("open").is_none(), "it is off");
    }
}
