//! The one entry to a verdict: [`judge`], from a recording, a scenario and its baselines. Pure.

pub mod baselines;
mod commands;
mod contradictions;
pub mod cycle;
mod execs;
mod expect;
pub mod fold;
pub(crate) mod keepers;
mod moment;
pub mod mount;
mod shutdown;
mod snapshot;
mod story;
mod stretches;
mod words;
mod wrong;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use vm_agent::recording::Recording;

use crate::scenario::{Manifest, Reset, Scenario};
use baselines::{Baselines, Durations, Outcome};
use cycle::Cycle;
pub use expect::Deviation;
pub(crate) use shutdown::without_time;

/// The verdict on a run, and all that it is made of.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The recording's fold.
    pub cycles: Vec<Cycle>,
    /// What is not as the manifest expects; empty if all is.
    pub deviations: Vec<Deviation>,
    /// The run's text beside its snapshot.
    pub outcome: Outcome,
    /// The durations that were compared; `None` where they can't be.
    pub measured: Option<Durations>,
    /// What they say against the accepted ones.
    pub durations: Vec<String>,
    /// What happened in the cycles that deviate, in lines; empty if none does.
    pub story: Vec<String>,
    /// Whether no run of the scenario was ever accepted: there is nothing to compare with.
    pub is_first: bool,
    /// Whether it was to be accepted and is not, since it deviates.
    pub is_refused: bool,
}

/// Said of a run for which `INSTA_UPDATE` says that it becomes the snapshot.
const REFUSED: &str =
    "nothing of it was accepted (INSTA_UPDATE), as the run is not what the manifest expects";

impl Judgement {
    /// Why the run has not passed; empty if it has. What cycles have in common is said once.
    #[must_use]
    pub fn why(&self) -> Vec<String> {
        let mut why: Vec<(Vec<u32>, &str)> = Vec::new();
        for Deviation { cycle, words } in &self.deviations {
            match why.iter_mut().find(|(_, known)| story::shape(known) == story::shape(words)) {
                Some((cycles, _)) => cycles.extend(cycle),
                None => why.push((cycle.iter().copied().collect(), words)),
            }
        }
        let deviations = why.into_iter().map(|(cycles, words)| match cycles.as_slice() {
            [] => words.to_owned(),
            cycles => format!("{}: {words}", story::of_cycles(cycles)),
        });
        deviations.chain(self.compared()).collect()
    }

    /// What deviates, without the numbers by which two runs differ that went wrong in the same way; empty if nothing does.
    #[must_use]
    pub fn shape(&self) -> Vec<String> {
        let shapes = self.deviations.iter().map(|deviation| story::shape(&deviation.words));
        shapes.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// What the baselines say. Of a first run, nothing about durations; and if it deviates, only that it was not accepted.
    fn compared(&self) -> Vec<String> {
        let mut lines: Vec<String> = match (self.is_first, self.deviations.is_empty()) {
            (true, false) => Vec::new(),
            (true, true) => self.outcome.words().into_iter().collect(),
            (false, _) => self.outcome.words().into_iter().chain(self.durations.iter().cloned()).collect(),
        };
        lines.extend(self.is_refused.then(|| REFUSED.to_owned()));
        lines
    }

    /// Whether all is as the manifest expects, and only a first snapshot is missing.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_first && self.deviations.is_empty()
    }

    /// The same for who reads it on a terminal: what happened, instead of all that deviates.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.story.iter().cloned().chain(self.compared()).collect();
        if self.deviations.is_empty() && !self.is_first && !lines.is_empty() {
            lines.push(
                "if it is right as it is now: INSTA_UPDATE=always, the same command, and git diff".to_owned(),
            );
        }
        lines
    }
}

/// Judges a run.
#[must_use]
pub fn judge(recording: &Recording, scenario: &Scenario, baselines: &Baselines) -> Judgement {
    let cycles = fold::cycles(recording);
    let mut deviations = expect::deviations(recording, &cycles, &scenario.manifest.expect);
    let Manifest { unit, expect, .. } = &scenario.manifest;
    deviations.extend(execs::deviations(&cycles, expect, unit));
    deviations.extend(commands::deviations(&cycles, &scenario.manifest));
    let outcome = baselines.compare_text(snapshot::snapshot(&cycles));
    // One cycle more or less moves a median: the first is not as the others. What deviates already has other durations,
    // which nobody wants accepted. In a shutdown all units of the machine stop side by side: how long the one takes is
    // another number with each build.
    let is_shutdown = scenario.manifest.reset == Reset::Shutdown;
    let comparable =
        recording.plan.cycles == scenario.manifest.cycles() && deviations.is_empty() && !is_shutdown;
    let measured = Durations::of(&cycles).filter(|_| comparable && baselines.compares_durations());
    let durations = measured.iter().flat_map(|measured| baselines.compare_durations(measured)).collect();
    let story = story::tell(recording, &cycles, &deviations);
    let is_first = baselines.none_yet;
    Judgement { cycles, deviations, outcome, measured, durations, story, is_first, is_refused: false }
}
