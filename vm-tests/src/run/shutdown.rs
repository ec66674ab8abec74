//! The end of a machine that a scenario shuts down, from the end of what systemd does with its units.

use std::time::Duration;

use anyhow::Result;
use vm_agent::recording::{Event, Recording, Step, What};

use crate::judge::without_time;
use crate::machine::Machine;
use crate::scenario::GO_ON;

/// systemd-shutdown waits 90 s for processes after SIGTERM and as long after SIGKILL (DefaultTimeoutStopSec=), of the
/// guest's time.
const DEADLINE: Duration = Duration::from_secs(300);

/// Whether the machine of this recording waits at `final.target` for a word of the host's. One that did not get there in
/// time is left as it is.
pub(super) fn waits(recording: &Recording) -> bool {
    recording.events.iter().any(|event| match &event.what {
        What::StepEnds(end) => {
            end.step == Step::Reset && end.exit.is_some_and(vm_agent::recording::Exit::success)
        }
        _ => false,
    })
}

/// Has the machine go on until it is off, and adds what its console said meanwhile to the recording.
///
/// # Errors
/// If it does not go off, with its console's last lines.
pub(super) async fn complete(machine: &mut Machine, recording: &mut Recording) -> Result<()> {
    let lines = machine.go_off(&GO_ON, DEADLINE).await?;
    // Their times are counted from a moment of the host's, and no two runs have them alike.
    let lines = lines.iter().map(|line| without_time(line).to_owned()).collect();
    let at = recording.events.last().map_or(0, |event| event.at);
    let cycle = recording.plan.cycles;
    recording.events.push(Event { at, cycle, what: What::Console { lines } });
    Ok(())
}
