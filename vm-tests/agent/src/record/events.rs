//! The one channel that all threads of the recorder send to, and the order that its events come in.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

#[cfg(doc)]
use vm_agent::recording::Plan;
use vm_agent::recording::{Event, Step, What};

use super::clock::Clock;
use super::cues::Cue;
use super::stand::Wanted;

/// Where events go.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    pub(super) clock: Clock,
    sender: Sender<(u64, What)>,
    /// Who is told of the states of the unit under test as they are recorded.
    cues: Option<Sender<Cue>>,
    /// What somebody waits for.
    wanted: Arc<Wanted>,
    /// Whose events these are: [`Plan::mounts`]' number.
    mount: u32,
}

/// What has been sent.
#[derive(Debug)]
pub(super) struct Events(Receiver<(u64, What)>);

impl Sink {
    /// A channel without events.
    pub(super) fn new(clock: Clock) -> (Self, Events) {
        let (sender, receiver) = channel();
        (Self { clock, sender, cues: None, wanted: Arc::default(), mount: 0 }, Events(receiver))
    }

    /// The same, and the states of the unit under test are cues as well.
    pub(super) fn cueing(self, cues: Sender<Cue>) -> Self {
        Self { cues: Some(cues), ..self }
    }

    /// What somebody waits for, of all that is recorded.
    pub(super) fn wanted(&self) -> Arc<Wanted> {
        Arc::clone(&self.wanted)
    }

    /// The same for what happens to another of the plan's mounts.
    pub(super) fn of_mount(&self, mount: u32) -> Self {
        Self { mount, ..self.clone() }
    }

    /// Records what happened at `at`, in nanoseconds since the plan began.
    pub(super) fn send(&self, at: u64, what: What) {
        if let (Some(cues), What::Unit(state)) = (&self.cues, &what) {
            // Fails only when the thread has ended, which whoever waits for it is told.
            drop(cues.send(Cue::State(state.clone())));
        }
        let what = match (self.mount, what) {
            (0, what) | (_, what @ What::Lost { .. }) => what,
            (mount, what) => What::OfMount { mount, what: Box::new(what) },
        };
        self.wanted.see(at, &what);
        // Fails only when the recording has been given up; then nobody misses the event.
        drop(self.sender.send((at, what)));
    }

    /// Records what happened just now.
    pub(super) fn send_now(&self, what: What) {
        self.send(self.clock.now(), what);
    }

    /// Records that a source of events has lost some.
    pub(super) fn lost(&self, source: &str, why: impl std::fmt::Display) {
        self.send_now(What::Lost { source: source.to_owned(), why: why.to_string() });
    }
}

impl Events {
    /// All events, by time and where that is equal as they were sent. Call it when every [`Sink`] is gone;
    /// otherwise it waits for that.
    pub(super) fn in_order(self) -> Vec<Event> {
        in_order(self.0.into_iter().collect())
    }
}

/// A cycle begins with its start command, so that an event's cycle follows from its time alone, whichever
/// thread sent it and however late.
fn in_order(mut sent: Vec<(u64, What)>) -> Vec<Event> {
    sent.sort_by_key(|(at, _)| *at);
    let mut cycle = 0;
    let events = sent.into_iter().map(|(at, what)| {
        if matches!(what, What::StepBegins(Step::Start)) {
            cycle += 1;
        }
        Event { at, cycle, what }
    });
    events.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_time_then_as_sent_and_counts_cycles() {
        let begins = |step| What::StepBegins(step);
        let sent = vec![
            (5, begins(Step::Start)),
            (9, begins(Step::Reset)),
            (20, begins(Step::Start)),
            (2, What::Unmounted),
            (9, What::Unmounted),
        ];
        let shape: Vec<_> =
            in_order(sent).into_iter().map(|event| (event.at, event.cycle, event.what)).collect();
        let expected = [
            (2, 0, What::Unmounted),
            (5, 1, begins(Step::Start)),
            (9, 1, begins(Step::Reset)),
            (9, 1, What::Unmounted),
            (20, 2, begins(Step::Start)),
        ];
        assert_eq!(shape, expected);
    }
}
