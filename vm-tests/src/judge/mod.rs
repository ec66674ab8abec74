//! The one entry to a verdict: [`judge`], from a recording, a scenario and its baselines. Pure.

pub mod baselines;
mod commands;
mod contradictions;
pub mod cycle;
mod expect;
pub mod fold;
mod snapshot;
mod stretches;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::slice;

use vm_agent::recording::Recording;

use crate::scenario::Scenario;
use baselines::{Baselines, Durations, Outcome};
use cycle::Cycle;

/// The verdict on a run, and all that it is made of.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The recording's fold.
    pub cycles: Vec<Cycle>,
    /// What is not as the manifest expects; empty if all is.
    pub deviations: Vec<String>,
    /// The run's text beside its snapshot.
    pub outcome: Outcome,
    /// The durations that were compared; `None` where they can't be.
    pub measured: Option<Durations>,
    /// What they say against the accepted ones.
    pub durations: Vec<String>,
    /// Where the time of the resets went: who reads of a deviation in a job's log has no recording.
    pub stretches: Vec<String>,
}

impl Judgement {
    /// Why the run has not passed; empty if it has.
    #[must_use]
    pub fn why(&self) -> Vec<String> {
        let Outcome { mismatch, changes, .. } = &self.outcome;
        let mismatch =
            mismatch.iter().map(|words| [slice::from_ref(words), changes.as_slice()].concat().join("\n  "));
        self.deviations.iter().cloned().chain(mismatch).chain(self.durations.iter().cloned()).collect()
    }
}

/// Judges a run.
#[must_use]
pub fn judge(recording: &Recording, scenario: &Scenario, baselines: &Baselines) -> Judgement {
    let cycles = fold::cycles(recording);
    let mut deviations = expect::deviations(recording, &cycles, &scenario.manifest.expect);
    deviations.extend(commands::deviations(&cycles, &scenario.manifest));
    let outcome = baselines.compare_text(snapshot::snapshot(&cycles));
    // One cycle more or less moves a median: the first is not as the others. What deviates already has other durations,
    // which nobody wants accepted.
    let comparable = recording.plan.cycles == scenario.manifest.cycles && deviations.is_empty();
    let measured = Durations::of(&cycles).filter(|_| comparable && baselines.compares_durations());
    let durations = measured.iter().flat_map(|measured| baselines.compare_durations(measured)).collect();
    let stretches = cycles.iter().flat_map(|cycle| stretches::longest(recording, cycle.number)).collect();
    Judgement { cycles, deviations, outcome, measured, durations, stretches }
}
