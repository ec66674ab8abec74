//! The plan's commands, one after the other, cycle by cycle.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use vm_agent::recording::{Plan, Step, StepEnd, What};
use vm_agent::wire::Exit;

use super::command;
use super::events::Sink;
use super::unit::UnitWatch;
use super::watcher::Watcher;

/// Runs all cycles. A start that fails ends the run; a reset that fails does not, it is what is looked for.
///
/// # Errors
/// If a command cannot be watched, the unit cannot be asked for, or mountinfo cannot be read.
pub(super) fn run(plan: &Plan, sink: &Sink, watcher: &Watcher, unit: &mut UnitWatch) -> Result<()> {
    let mut steps = Steps { plan, sink, watcher, unit };
    for _ in 0..plan.cycles {
        let started = steps.run(Step::Start, &plan.start)?;
        if !started.is_some_and(Exit::success) {
            break;
        }
        steps.run(Step::Reset, &plan.reset)?;
        steps.look_for_leftovers();
        if steps.left_something()? {
            for command in &plan.recover {
                steps.run(Step::Recover, command)?;
            }
        }
    }
    Ok(())
}

struct Steps<'a> {
    plan: &'a Plan,
    sink: &'a Sink,
    watcher: &'a Watcher,
    unit: &'a mut UnitWatch,
}

impl Steps<'_> {
    fn run(&mut self, step: Step, argv: &[String]) -> Result<Option<Exit>> {
        // The watcher looks before the command begins and after it ended, not while it is timed.
        self.watcher.step_begins(step)?;
        let timeout = Duration::from_millis(self.plan.command_timeout_ms);
        let ended = command::run(argv, timeout, self.sink.clock).with_context(|| format!("run {argv:?}"))?;
        self.sink.send(ended.began, What::StepBegins(step));
        let end = StepEnd {
            step,
            exit: ended.exit,
            duration_ns: ended.ended - ended.began,
            stdout: ended.stdout,
            stderr: ended.stderr,
        };
        self.sink.send(ended.ended, What::StepEnds(end));
        self.watcher.step_ended(step)?;
        self.unit.record()?;
        Ok(ended.exit)
    }

    fn look_for_leftovers(&self) {
        for path in &self.plan.removed {
            // Of the path itself: a dangling link is something, too.
            if Path::new(path).symlink_metadata().is_ok() {
                self.sink.send(self.sink.clock.now(), What::LeftOver { path: path.clone() });
            }
        }
    }

    fn left_something(&mut self) -> Result<bool> {
        let mounted = holders::mountinfo::read_at(1, Path::new(&self.plan.mount))?.is_some();
        Ok(mounted || self.unit.state().active == "failed")
    }
}
