//! The plan's commands in the middle of a reset: each is run once a cycle, at a state of the unit or at a time, beside the
//! reset's own command.
//!
//! The thread sleeps until a cue comes or a time is there. A state is known as soon as systemd has announced it, which the
//! stop does not wait for: a command that comes too late for a state of a few milliseconds is run all the same.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use vm_agent::recording::{During, Moment, Plan, Step, StepEnd, UnitState, What};

use super::command;
use super::cues::Cue;
use super::events::Sink;

/// The thread's handle; without one, where the plan has no such command.
#[derive(Debug)]
pub(super) struct DuringReset(Option<(Sender<Cue>, JoinHandle<()>)>);

impl DuringReset {
    /// Starts the thread, and gives a sink that cues it.
    ///
    /// # Errors
    /// If no thread can be made.
    pub(super) fn start(plan: &Plan, sink: Sink) -> Result<(Self, Sink)> {
        if plan.during.is_empty() {
            return Ok((Self(None), sink));
        }
        let (cues, heard) = channel();
        let runner = Runner {
            commands: plan.during.clone(),
            timeout: Duration::from_millis(plan.command_timeout_ms),
            sink: sink.clone(),
            state: UnitState::default(),
            began: None,
            pending: Vec::new(),
            running: Vec::new(),
        };
        let thread = thread::Builder::new().name("during".to_owned()).spawn(move || runner.listen(&heard))?;
        Ok((Self(Some((cues.clone(), thread))), sink.cueing(cues)))
    }

    /// The reset is about to begin.
    pub(super) fn reset_begins(&self) {
        if let Some((cues, _)) = &self.0 {
            // Fails only when the thread has ended, which `reset_ended` tells.
            drop(cues.send(Cue::ResetBegins));
        }
    }

    /// Begins no command any more, and waits for those that have begun.
    ///
    /// # Errors
    /// As [`command::run`].
    pub(super) fn reset_ended(&self) -> Result<()> {
        let Some((cues, _)) = &self.0 else { return Ok(()) };
        let (answer, answered) = channel();
        cues.send(Cue::ResetEnded(answer)).map_err(|_gone| anyhow!("the thread has ended"))?;
        answered.recv().context("the thread has ended")?
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// If it has panicked.
    pub(super) fn finish(self) -> Result<()> {
        let Some((cues, thread)) = self.0 else { return Ok(()) };
        // Fails only when it has ended already.
        drop(cues.send(Cue::Finish));
        thread.join().map_err(|panic| anyhow!("it panicked: {panic:?}"))
    }
}

struct Runner {
    commands: Vec<During>,
    timeout: Duration,
    sink: Sink,
    state: UnitState,
    /// When the reset began that is under way.
    began: Option<Instant>,
    /// The commands that were not run in it, by their places in the plan.
    pending: Vec<usize>,
    running: Vec<JoinHandle<Result<()>>>,
}

impl Runner {
    fn listen(mut self, heard: &Receiver<Cue>) {
        loop {
            let cue = match self.next_time() {
                Some(at) => match heard.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(cue) => Some(cue),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match heard.recv() {
                    Ok(cue) => Some(cue),
                    Err(_nobody) => return,
                },
            };
            match cue {
                Some(Cue::State(state)) => self.state = state,
                Some(Cue::ResetBegins) => {
                    self.began = Some(Instant::now());
                    self.pending = (0..self.commands.len()).collect();
                }
                Some(Cue::ResetEnded(answer)) => {
                    self.began = None;
                    // Fails only when the asker has given up.
                    drop(answer.send(self.end()));
                }
                Some(Cue::Finish) => return,
                None => {}
            }
            self.run_what_is_due();
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let times = self.pending.iter().filter_map(|index| match self.commands.get(*index)?.when {
            Moment::After { ms } => Some(self.began? + Duration::from_millis(ms)),
            Moment::State { .. } => None,
        });
        times.min()
    }

    fn run_what_is_due(&mut self) {
        let Some(began) = self.began else { return };
        let elapsed = began.elapsed();
        let (due, pending): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|index| {
                self.commands.get(*index).is_some_and(|one| is_due(&one.when, &self.state, elapsed))
            });
        self.pending = pending;
        for index in due {
            let Some(During { run, .. }) = self.commands.get(index) else { continue };
            let (argv, timeout, sink) = (run.clone(), self.timeout, self.sink.clone());
            // Each in a thread of its own: one that takes long keeps no other from its moment.
            self.running.push(thread::spawn(move || run_one(index, &argv, timeout, &sink)));
        }
    }

    /// Waits for the commands that were begun.
    fn end(&mut self) -> Result<()> {
        let ended = std::mem::take(&mut self.running).into_iter().map(|thread| {
            thread.join().map_err(|panic| anyhow!("a command's thread panicked: {panic:?}"))?
        });
        // All are waited for, whatever came of the first.
        ended.collect::<Vec<Result<()>>>().into_iter().collect()
    }
}

fn is_due(when: &Moment, state: &UnitState, elapsed: Duration) -> bool {
    match when {
        Moment::After { ms } => elapsed >= Duration::from_millis(*ms),
        Moment::State { active, sub } => {
            state.active == *active && sub.as_ref().is_none_or(|sub| state.sub == *sub)
        }
    }
}

fn run_one(index: usize, argv: &[String], timeout: Duration, sink: &Sink) -> Result<()> {
    let ended = command::run(argv, timeout, sink.clock).with_context(|| format!("run {argv:?}"))?;
    sink.send(ended.began, What::StepBegins(Step::During));
    let end = StepEnd {
        step: Step::During,
        index: u32::try_from(index).context("too many commands")?,
        exit: ended.exit,
        duration_ns: ended.ended - ended.began,
        stdout: ended.stdout,
        stderr: ended.stderr,
    };
    sink.send(ended.ended, What::StepEnds(end));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::clock::Clock;
    use super::*;

    fn unit(active: &str, sub: &str) -> UnitState {
        UnitState { active: active.to_owned(), sub: sub.to_owned(), ..UnitState::default() }
    }

    fn during(when: Moment, script: &str) -> During {
        During { when, run: ["sh", "-c", script].map(str::to_owned).to_vec() }
    }

    fn at(active: &str, sub: Option<&str>) -> Moment {
        Moment::State { active: active.to_owned(), sub: sub.map(str::to_owned) }
    }

    /// The commands that were run in each of two resets, by their places, with what they wrote.
    #[test]
    fn each_is_run_once_in_a_reset_when_its_moment_is_there() {
        let plan = Plan {
            during: vec![
                during(at("deactivating", None), "echo state"),
                during(at("deactivating", Some("stop-post")), "echo sub"),
                during(Moment::After { ms: 0 }, "echo time"),
                during(Moment::After { ms: 3_600_000 }, "echo never"),
                during(at("active", None), "echo already"),
            ],
            command_timeout_ms: 60_000,
            ..Plan::default()
        };
        let (sink, events) = Sink::new(Clock::start());
        let (commands, sink) = DuringReset::start(&plan, sink).unwrap();
        let send = |active, sub| sink.send_now(What::Unit(unit(active, sub)));
        send("deactivating", "stop");
        send("active", "running");
        for _ in 0..2 {
            commands.reset_begins();
            send("deactivating", "stop");
            send("deactivating", "stop-sigterm");
            send("inactive", "dead");
            commands.reset_ended().unwrap();
            send("deactivating", "stop-post");
            send("active", "running");
        }
        commands.finish().unwrap();
        drop(sink);
        let mut ran: Vec<(u32, String)> = Vec::new();
        for event in events.in_order() {
            if let What::StepEnds(end) = event.what {
                ran.push((end.index, end.stdout.trim_end().to_owned()));
            }
        }
        ran.sort();
        let once = [(0, "state"), (2, "time"), (4, "already")].map(|(index, text)| (index, text.to_owned()));
        let mut twice = [once.clone(), once].concat();
        twice.sort();
        assert_eq!(ran, twice);
    }

    #[test]
    fn without_a_command_there_is_no_thread() {
        let (sink, _events) = Sink::new(Clock::start());
        let (none, _sink) = DuringReset::start(&Plan::default(), sink).unwrap();
        none.reset_begins();
        none.reset_ended().unwrap();
        assert!(none.0.is_none());
    }
}
