//! One run of one scenario: machine, deploy, plan, recording, verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use vm_agent::recording::Recording;
use vm_agent::wire::{Body, Session};

use super::at::At;
use super::guest::{Guest, end_with, preparation, restore, restore_keeping, session};
use super::inputs::Inputs;
use super::reboot;
use super::remembered::Remembered;
use super::shutdown;
use crate::host::accel::Clock;
use crate::host::events::{self, Event};
use crate::judge::baselines::Baselines;
use crate::judge::{Judgement, judge};
use crate::machine::{Cancel, Machine, MachineError};
use crate::scenario::{GO_ON, Reset, Scenario};

/// What bounds a run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Bounds {
    /// Overrides the manifest's number of cycles.
    pub cycles: Option<u32>,
    /// The longest that all cycles may take together, in seconds of wall time.
    pub deadline_secs: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { cycles: None, deadline_secs: 900 }
    }
}

/// What a run gave.
#[derive(Debug, Clone)]
pub struct Run {
    /// What was recorded.
    pub recording: Recording,
    /// The same as JSON: what `recording.json` has, and what the run's name is the hash of.
    pub text: String,
    /// The verdict on it.
    pub judgement: Judgement,
    /// The host's time for each stage.
    pub stages: Stages,
    /// What it was made of, in virtual time.
    pub inputs: Option<Inputs>,
    /// For how long the recording has been known, where no machine ran.
    pub remembered: Option<Duration>,
}

impl Run {
    /// A run whose recording is known: judged as any other.
    ///
    /// # Errors
    /// Baselines that can't be read.
    pub fn of_known(guest: &Guest, scenario: &Scenario, inputs: Inputs, known: &Remembered) -> Result<Self> {
        let judgement = judge(&known.recording, scenario, &baselines(guest, scenario)?);
        let (recording, text) = (known.recording.clone(), known.text.clone());
        let (inputs, remembered) = (Some(inputs), Some(known.about.age()));
        Ok(Self { recording, text, judgement, stages: Stages::default(), inputs, remembered })
    }

    /// Where to look first if it is not as expected, as [`At`] reads it; `None` if no moment of it can be had.
    pub(crate) fn look(&self) -> Option<String> {
        self.inputs.as_ref().filter(|inputs| inputs.repeat())?;
        let cycle = self.judgement.deviations.iter().find_map(|deviation| deviation.cycle).unwrap_or(1);
        At::of_failure(&self.recording, cycle).map(|at| at.to_string())
    }
}

fn baselines(guest: &Guest, scenario: &Scenario) -> Result<Baselines> {
    let baselines = Baselines::load(&scenario.directory, &guest.name, guest.base.clock)?;
    Ok(baselines.on(guest.lock.as_deref()))
}

/// The session of a scenario's run.
///
/// # Errors
/// When a file can't be read, or a program is not known.
pub fn wanted(guest: &Guest, scenario: &Scenario, bounds: Bounds) -> Result<Session> {
    Ok(Session { plan: Some(scenario.plan(bounds.cycles)), ..preparation(guest, scenario)? })
}

/// What a scenario's run is made of; `None` in real time, where that is not all.
///
/// # Errors
/// As [`wanted`].
pub fn inputs(guest: &Guest, scenario: &Scenario, bounds: Bounds) -> Result<Option<Inputs>> {
    match guest.base.clock {
        Clock::Virtual => of_session(guest, scenario, &wanted(guest, scenario, bounds)?).map(Some),
        Clock::Real => Ok(None),
    }
}

/// In virtual time.
fn of_session(guest: &Guest, scenario: &Scenario, wanted: &Session) -> Result<Inputs> {
    let sized = guest.of_size(scenario.manifest.memory_mib);
    let inputs = Inputs::of(&sized, wanted)?;
    match scenario.manifest.reset {
        Reset::Shutdown => {
            let boots_again = !scenario.manifest.boot_check.is_empty();
            let words = GO_ON.into_iter().chain(boots_again.then_some(reboot::KEEP)).collect::<Vec<_>>();
            inputs.ended_by_the_host(&sized, "shutdown", &words)
        }
        Reset::Command(_) => Ok(inputs),
    }
}

/// Wall time of the stages of a run, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stages {
    /// From QEMU's start to a machine that runs.
    pub restore_ms: u64,
    /// Files, set-up and plan.
    pub session_ms: u64,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Says of an answer that did not come whose patience ended: a guest that is busy is as silent as one that hangs.
fn late(error: anyhow::Error, deadline: Duration) -> anyhow::Error {
    match error.downcast_ref() {
        Some(MachineError::Silent { after, .. }) if *after == deadline => error.context(format!(
            "the cycles took longer than --deadline allows, {} s of the host's time",
            deadline.as_secs()
        )),
        _ => error,
    }
}

/// Lets a restored machine run the session with a plan that lies on its deploy device.
///
/// # Errors
/// As [`session`]; an answer that is no recording.
pub(crate) async fn recorded(machine: &mut Machine, clock: Clock, deadline: Duration) -> Result<Recording> {
    match session(machine, clock, "the recording", deadline).await {
        Ok(Body::Recorded(recording)) => Ok(*recording),
        Ok(other) => bail!("unexpected answer from the guest: {other:?}"),
        Err(error) => Err(late(error, deadline)),
    }
}

/// Runs a scenario on a machine of its own.
///
/// # Errors
/// Whatever kept the run from having a result. A result that is not as expected is no error: see
/// [`Judgement::why`].
pub async fn run(
    guest: &Guest,
    scenario: &Scenario,
    bounds: Bounds,
    directory: &Path,
    cancel: Cancel,
) -> Result<Run> {
    let baselines = baselines(guest, scenario)?;
    let mut stages = Stages::default();
    let begun = Instant::now();
    let test = format!("{}/{}", guest.name, scenario.name);
    events::tell(Event::Restoring { test: test.clone() });
    let planned = scenario.plan(bounds.cycles).cycles;
    let wanted = wanted(guest, scenario, bounds)?;
    // Of the very bytes that the guest gets: a file may have changed since somebody asked for the inputs.
    let inputs = match guest.base.clock {
        Clock::Virtual => Some(of_session(guest, scenario, &wanted)?),
        Clock::Real => None,
    };
    let sized = guest.of_size(scenario.manifest.memory_mib);
    let boots_again = !scenario.manifest.boot_check.is_empty();
    let mut machine = match boots_again {
        true => restore_keeping(&sized, wanted, directory, cancel.clone()).await?,
        false => restore(&sized, Some(wanted), directory, cancel.clone()).await?,
    };
    stages.restore_ms = millis(begun);

    let begun = Instant::now();
    events::tell(Event::Recording { test, cycles: planned });
    let deadline = Duration::from_secs(bounds.deadline_secs);
    let recorded = recorded(&mut machine, guest.base.clock, deadline).await;
    stages.session_ms = millis(begun);
    let mut recording = match recorded {
        Ok(recording) => recording,
        Err(error) => {
            return end_with(machine, error, &scenario.show_units(), scenario.mount_or_root()).await;
        }
    };
    let mut judgement = judge(&recording, scenario, &baselines);
    let is_shutdown = scenario.manifest.reset == Reset::Shutdown;
    // After a shutdown there is nobody to ask, should the rest of it fail.
    if is_shutdown || !judgement.deviations.is_empty() {
        machine.save_evidence(&scenario.show_units(), scenario.mount_or_root()).await;
    }
    if is_shutdown && shutdown::waits(&recording) {
        if boots_again && let Err(error) = reboot::keep(&mut machine, scenario).await {
            return machine.finish(Err(error)).await;
        }
        if let Err(error) = shutdown::complete(&mut machine, &mut recording).await {
            return machine.finish(Err(error)).await;
        }
        machine.stop().await?;
        if boots_again {
            reboot::boot(&sized, scenario, directory, &mut recording, cancel).await?;
        }
        judgement = judge(&recording, scenario, &baselines);
    } else {
        machine.stop().await?;
    }
    let text = serde_json::to_string(&recording).context("a recording as JSON")?;
    Ok(Run { recording, text, judgement, stages, inputs, remembered: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::GUEST;

    #[test]
    fn patience_that_ended_is_told_as_such() {
        let silent = |secs| {
            let (waiting_for, after) = ("the recording".to_owned(), Duration::from_secs(secs));
            late(
                MachineError::Silent { who: GUEST, waiting_for, after, console: String::new() }.into(),
                Duration::from_secs(5),
            )
        };
        let words = "the cycles took longer than --deadline allows, 5 s of the host's time: the guest never answered: \
                     waited 5.0 s for the recording; console: nothing";
        assert_eq!(format!("{:#}", silent(5)), words);
        assert!(!format!("{:#}", silent(300)).contains("--deadline"), "that of the set-up");
    }
}
