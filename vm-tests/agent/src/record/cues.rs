//! What the thread of the commands during a reset waits for.

use std::sync::mpsc::Sender;

use anyhow::Result;
use vm_agent::recording::UnitState;

/// Something that happened.
#[derive(Debug)]
pub(super) enum Cue {
    /// The unit under test is in this state.
    State(UnitState),
    /// The reset is about to begin.
    ResetBegins,
    /// The reset's command has ended; answered when the commands that were begun have.
    ResetEnded(Sender<Result<()>>),
    /// The plan is over.
    Finish,
}
