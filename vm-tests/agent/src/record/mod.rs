//! The recorder: runs a [`Plan`] in the guest and records what happens.
//!
//! Three threads, or a few more, and nothing that waits for a clock:
//!
//! - the caller runs the plan's commands ([`steps`], [`command`]) and reads what they leave ([`end_state`], [`devices`],
//!   [`evidence`], [`kernel_log`], [`processes`]);
//! - the watcher ([`watcher`]) sleeps in one poll over mountinfo ([`mounts`]), the proc connector
//!   ([`proc_connector`]), the umount tracepoints ([`umounts`], [`umount_target`]) and orders from the others ([`orders`]), and scans the
//!   units' tasks while a stop is in flight ([`alive`]: who is there at all, if it takes long). It is SCHED_FIFO: on one processor, what it is woken for cannot go
//!   on before it has scanned;
//! - a thread for the commands during a reset ([`during`], [`cues`]), where the plan has some;
//! - what stands still while somebody looks ([`stand`]);
//! - a D-Bus thread for each unit ([`units`], [`unit`], [`execs`]) turns systemd's signals into events and tells the watcher.
//!
//! All of them send to one channel ([`events`]). Nothing here resolves a path inside the watched mount, since
//! that would make the unmount fail which is being recorded.

mod alive;
mod clock;
mod command;
mod cues;
mod devices;
mod during;
mod end_state;
mod events;
mod evidence;
mod execs;
mod fair_share;
mod kernel_log;
mod managers;
mod mounts;
mod orders;
mod proc_connector;
mod processes;
mod roles;
mod stand;
mod steps;
mod umount_target;
mod umounts;
mod unit;
mod unit_cgroup;
mod units;
mod watcher;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_agent::recording::{Plan, Recording};
use vm_agent::wire::Stop;

use self::clock::Clock;
use self::during::DuringReset;
use self::events::Sink;
use self::stand::Stand;
pub(crate) use self::stand::go;
use self::units::Units;
use self::watcher::Watcher;

/// Executes the plan. A command that fails is part of the recording; all threads have ended and the trace
/// instance is gone when this returns.
///
/// # Errors
/// What keeps a recording from being made at all: a plan without commands, no system bus, no mountinfo.
pub(crate) fn run(plan: &Plan, stop: Stop) -> Result<Recording> {
    record(plan, stop).map_err(|error| match is_shutting_down() {
        // All fails then in its own way, at the bus that is gone or the next step.
        true => error.context(
            "the machine is shutting down, which start, reset or something else has begun: a reset that is a shutdown is \
             written as reset = \"shutdown\"",
        ),
        false => error,
    })
}

/// Whether systemd stops all units, or has become systemd-shutdown. What can't be asked is no answer.
fn is_shutting_down() -> bool {
    // The kernel keeps 15 bytes of a name.
    let has_stopped =
        fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim_end() == "systemd-shutdow");
    let argv = ["systemctl", "is-system-running"].map(str::to_owned);
    has_stopped
        || command::run(&argv, Duration::from_secs(5), Clock::start())
            .is_ok_and(|ended| ended.stdout.trim_end() == "stopping")
}

fn record(plan: &Plan, stop: Stop) -> Result<Recording> {
    check(plan)?;
    let clock = Clock::start();
    let (sink, events) = Sink::new(clock);
    let (during, sink) =
        DuringReset::start(plan, sink).context("start the thread of the commands during a reset")?;
    let stand = Stand::new(stop, sink.wanted());
    let watcher = Watcher::start(plan, sink.clone(), stand).context("start the watcher")?;
    let mut units = Units::start(plan, &sink, &watcher.orders())?;
    let systemd = units.systemd_version()?;

    let ran = steps::run(plan, &sink, &watcher, &during, &mut units);
    let during_ended = during.finish();
    let units_ended = units.finish();
    let watcher_ended = watcher.finish();
    ran.context("run the plan")?;
    during_ended.context("end the thread of the commands during a reset")?;
    units_ended.context("end the watch on D-Bus")?;
    watcher_ended.context("end the watcher")?;

    drop(sink);
    Ok(Recording {
        plan: plan.clone(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        systemd,
        os: os_name(),
        began_ns: clock.began_ns(),
        events: events.in_order(),
    })
}

fn check(plan: &Plan) -> Result<()> {
    for (number, path) in plan.mounts() {
        ensure!(path.starts_with('/'), "the mount {path:?} is not an absolute path");
        ensure!(number == 0 || plan.mount.is_some(), "other mounts than the watched one, and there is none");
    }
    ensure!(plan.sample_us > 0, "sample_us is 0: the watcher would never sleep");
    let commands = [&plan.start, &plan.reset].into_iter().chain(&plan.checks).chain(&plan.recover);
    for command in commands.chain(plan.during.iter().map(|during| &during.run)) {
        ensure!(!command.is_empty(), "a command of the plan is empty");
    }
    Ok(())
}

/// PRETTY_NAME of os-release(5); the fallback is the one that page names.
fn os_name() -> String {
    let texts = ["/etc/os-release", "/usr/lib/os-release"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.into_iter().find_map(|text| pretty_name(&text)).unwrap_or_else(|| "Linux".to_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_pretty_name() {
        let debian = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n";
        assert_eq!(pretty_name(debian).as_deref(), Some("Debian GNU/Linux 13 (trixie)"));
        assert_eq!(pretty_name("PRETTY_NAME=Alpine\n").as_deref(), Some("Alpine"));
        assert_eq!(pretty_name("NAME=x\n"), None);
    }
}
