//! A machine that the guest has paused: waits that end with a pause.

use std::time::Duration;

use vm_agent::wire::{Body, Stream};

use super::guest::{GuestError, Pending};
use super::qmp::QmpEvent;
use super::{Machine, MachineError, STOP_STEP};

impl Machine {
    /// Waits until the guest has had the machine paused; what it answers before goes to `pending`'s reader. `None` if it is paused
    /// and has not answered.
    ///
    /// # Errors
    /// See [`Machine::race`].
    pub async fn paused_or_answered(
        &mut self,
        waiting_for: &str,
        deadline: Duration,
        pending: &mut Pending,
    ) -> Result<Option<Body>, MachineError> {
        let answer = async { Ok(Some(pending.next().await?)) };
        self.race_with_event(waiting_for, deadline, answer, |event| event.is_stop().then_some(None)).await
    }

    /// Waits until the guest has answered and has had the machine paused after it, as [`Call::ThenPause`] asks for. Output goes to
    /// `show` as it comes.
    ///
    /// # Errors
    /// See [`Machine::race`]; [`MachineError::Guest`] if the request failed, with the machine paused.
    pub async fn answered_and_paused(
        &mut self,
        waiting_for: &str,
        deadline: Duration,
        pending: &mut Pending,
        mut show: impl FnMut(Stream, &[u8]),
    ) -> Result<Body, MachineError> {
        let mut last = None;
        let answers = async {
            last = Some(last_answer(pending, &mut show).await);
            match &last {
                // The guest is gone, and does not pause any more.
                Some(Err(GuestError::Closed)) => Err(GuestError::Closed),
                _answered => std::future::pending().await,
            }
        };
        let stops = |event: &QmpEvent| event.is_stop().then_some(());
        self.race_with_event(waiting_for, deadline, answers, stops).await?;
        // Answers and events come on different sockets.
        match last {
            Some(answer) => Ok(answer?),
            None => self.race(waiting_for, STOP_STEP, last_answer(pending, &mut show)).await,
        }
    }
}

/// The answer after all output.
async fn last_answer(
    pending: &mut Pending,
    show: &mut impl FnMut(Stream, &[u8]),
) -> Result<Body, GuestError> {
    loop {
        match pending.next().await? {
            Body::Output { stream, bytes } => show(stream, &bytes),
            last => return Ok(last),
        }
    }
}
