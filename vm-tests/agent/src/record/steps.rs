//! The plan's commands, one after the other, cycle by cycle.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use holders::mountinfo::{self, Mount};
use vm_agent::recording::{EndState, Plan, Step, StepEnd, What};
use vm_agent::wire::Exit;

use super::command;
use super::devices;
use super::during::DuringReset;
use super::end_state;
use super::events::Sink;
use super::evidence;
use super::kernel_log::KernelLog;
use super::units::Units;
use super::watcher::Watcher;

/// Runs all cycles. A start that fails ends the run, after its reset; a reset that fails does not, it is what is
/// searched for.
///
/// # Errors
/// If a command cannot be watched, a unit cannot be asked for, or mountinfo cannot be read.
pub(super) fn run(
    plan: &Plan,
    sink: &Sink,
    watcher: &Watcher,
    during: &DuringReset,
    units: &mut Units,
) -> Result<()> {
    let kernel_log = KernelLog::open().inspect_err(|error| sink.lost("kmsg", format!("{error:#}"))).ok();
    let mut steps = Steps { plan, sink, watcher, units, kernel_log };
    let mut failures = HashSet::new();
    for _ in 0..plan.cycles {
        if !plan.keeps_start_limit {
            sink.send_now(What::StartsForgotten);
            steps.units.forget_starts()?;
        }
        steps.units.let_go()?;
        let began = SystemTime::now();
        let started = steps.run(Step::Start, 0, &plan.start)?;
        if started.is_some_and(Exit::success) {
            steps.units.ensure_there()?;
        }
        let mounts = steps.read_the_mounts()?;
        during.reset_begins();
        let reset = steps.run(Step::Reset, 0, &plan.reset)?;
        during.reset_ended().context("run the commands during the reset")?;
        steps.find_leftovers();
        let is_clean = steps.read_the_end(&mounts)?;
        steps.find_kept_devices()?;
        let how = How { started, reset, is_clean, has_failed: steps.units.has_failed() };
        if !how.is_well() && failures.insert(how) {
            sink.send_now(What::Evidence(evidence::take(plan, began, sink.clock)?));
        }
        steps.run_all(Step::Check, &plan.checks)?;
        if !is_clean || how.has_failed {
            steps.run_all(Step::Recover, &plan.recover)?;
        }
        steps.record_kernel_warnings();
        if !started.is_some_and(Exit::success) {
            break;
        }
    }
    Ok(())
}

/// How a cycle went, as far as can be told here, where nobody knows what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct How {
    started: Option<Exit>,
    reset: Option<Exit>,
    is_clean: bool,
    has_failed: bool,
}

impl How {
    fn is_well(&self) -> bool {
        let succeeded = |exit: Option<Exit>| exit.is_some_and(Exit::success);
        succeeded(self.started) && succeeded(self.reset) && self.is_clean && !self.has_failed
    }
}

struct Steps<'a> {
    plan: &'a Plan,
    sink: &'a Sink,
    watcher: &'a Watcher,
    units: &'a mut Units,
    /// `None` if it can't be read, which was recorded as lost.
    kernel_log: Option<KernelLog>,
}

impl Steps<'_> {
    fn run_all(&mut self, step: Step, commands: &[Vec<String>]) -> Result<()> {
        for (index, command) in (0..).zip(commands) {
            self.run(step, index, command)?;
        }
        Ok(())
    }

    fn run(&mut self, step: Step, index: u32, argv: &[String]) -> Result<Option<Exit>> {
        // The watcher scans before the command begins and after it ended, not while it is timed.
        self.watcher.step_begins(step)?;
        let timeout = Duration::from_millis(self.plan.command_timeout_ms);
        let ended = command::run(argv, timeout, self.sink.clock).with_context(|| format!("run {argv:?}"))?;
        self.sink.send(ended.began, What::StepBegins(step));
        let end = StepEnd {
            step,
            index,
            exit: ended.exit,
            duration_ns: ended.ended - ended.began,
            stdout: ended.stdout,
            stderr: ended.stderr,
        };
        self.sink.send(ended.ended, What::StepEnds(end));
        self.watcher.step_ended(step)?;
        self.units.record()?;
        Ok(ended.exit)
    }

    fn find_leftovers(&self) {
        for path in &self.plan.removed {
            // Of the path itself: a dangling link is something, too.
            if Path::new(path).symlink_metadata().is_ok() {
                self.sink.send(self.sink.clock.now(), What::LeftOver { path: path.clone() });
            }
        }
    }

    fn find_kept_devices(&self) -> Result<()> {
        for device in &self.plan.free_devices {
            if let Some(by) = devices::kept(Path::new(device)).with_context(|| format!("look at {device}"))? {
                self.sink.send_now(What::DeviceKept { device: device.clone(), by });
            }
        }
        Ok(())
    }

    /// What the start has mounted at each of the plan's mounts.
    fn read_the_mounts(&self) -> Result<Vec<Option<Mount>>> {
        let read = |(number, path): (u32, &str)| {
            let mount = mountinfo::read_at(1, Path::new(path))?;
            if mount.is_none() {
                let elsewhere = end_state::mounted_at(Path::new(path)).context("look for the mount")?;
                self.sink.of_mount(number).send_now(What::NotMounted { elsewhere });
            }
            Ok(mount)
        };
        self.plan.mounts().map(read).collect()
    }

    /// Records what is left of what the start had mounted; true if nothing is mounted at the watched paths and no
    /// process is left in the units' cgroups.
    fn read_the_end(&mut self, mounts: &[Option<Mount>]) -> Result<bool> {
        // Before the remount, whose own warning is part of the end state.
        self.record_kernel_warnings();
        let mut end = end_state::read(self.units)?;
        let mut is_clean = end.processes.is_empty();
        for ((number, path), mount) in self.plan.mounts().zip(mounts) {
            let is_mounted = mountinfo::read_at(1, Path::new(path))?.is_some();
            is_clean &= !is_mounted;
            let log = self.kernel_log.as_mut();
            end_state::add_mount(&mut end, mount.as_ref(), is_mounted, log)?;
            if is_mounted || end.lives_on() {
                self.watcher.diagnose(number)?;
            }
            let next = EndState { processes: Vec::new(), failed_units: Vec::new(), ..end.clone() };
            self.sink.of_mount(number).send_now(What::EndState(std::mem::replace(&mut end, next)));
        }
        if mounts.is_empty() {
            self.sink.send_now(What::EndState(end));
        }
        Ok(is_clean)
    }

    fn record_kernel_warnings(&mut self) {
        let Some(log) = &mut self.kernel_log else { return };
        match log.read() {
            Ok(warnings) => {
                for text in warnings {
                    self.sink.send_now(What::KernelWarning { text });
                }
            }
            Err(error) => self.sink.lost("kmsg", format!("{error:#}")),
        }
    }
}
