//! What puts the old version back when nobody confirms the new one: a unit that two timers start, and every boot.
//!
//! It is there before anything is changed. It does nothing unless the file of the deploy on trial is there, and that is the
//! last thing that is written before the first change, and the first that a confirmation removes. The timers are monotonic: a
//! clock that is set moves them by nothing. The unit lies in /etc, and is a part of sysinit.target, so a boot puts back what was on
//! trial when the power failed, before a server starts.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::facts::QUICK;
use crate::host::{Host, STATE, command, durable};
use crate::state::PENDING;

/// The unit.
pub const SERVICE: &str = "left4me-deploy-guard.service";
/// Starts it when the deploy itself takes too long: its program was killed, or hangs.
pub const LIMIT: &str = "left4me-deploy-limit.timer";
/// Starts it when nobody confirms in time.
pub const CONFIRM: &str = "left4me-deploy-confirm.timer";

/// The guard's program: a copy of the one that deploys, beside the versions, as it must outlive them.
const PROGRAM: &str = "left4me-deploy";

const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "/etc/systemd/system/sysinit.target.wants";
const TIMERS: &str = "/run/systemd/system";

fn service() -> String {
    format!(
        "# Made by `cargo xtask deploy`, and removed when a deploy is confirmed or put back.
[Unit]
Description=Puts back the version of left4me before a deploy that nobody confirms
ConditionPathExists={STATE}/{PENDING}
DefaultDependencies=no
Conflicts=shutdown.target
After=local-fs.target
Before=sysinit.target shutdown.target
# It tries again until the disk may be written.
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart={STATE}/{PROGRAM} guard
Restart=on-failure
RestartSec=5s
TimeoutStartSec=150s
"
    )
}

fn timer(what: &str, secs: u64) -> String {
    format!(
        "[Unit]
Description={what}

[Timer]
OnActiveSec={secs}s
AccuracySec=100ms
Unit={SERVICE}
"
    )
}

/// Arms it: from now on, for so many seconds. Nothing is put back by it before there is a [`crate::state::Pending`].
///
/// # Errors
/// Its files can't be stored, or systemd does not start the timer.
pub fn arm(host: &Host, limit_secs: u64, confirm_secs: u64) -> Result<()> {
    durable::directories(&host.at(STATE))?;
    let program = fs::read("/proc/self/exe").context("read /proc/self/exe")?;
    let at = host.state(PROGRAM);
    if fs::read(&at).ok().as_ref() != Some(&program) {
        durable::file(&at, 0o755, &program)?;
    }
    for directory in [UNITS, WANTS, TIMERS] {
        durable::directories(&host.at(directory))?;
    }
    durable::file(&host.at(UNITS).join(SERVICE), 0o644, service().as_bytes())?;
    durable::link(&host.at(WANTS).join(SERVICE), std::path::Path::new("..").join(SERVICE).as_path())?;
    let limit = timer("Time limit of a deploy of left4me", limit_secs + confirm_secs);
    durable::file(&host.at(TIMERS).join(LIMIT), 0o644, limit.as_bytes())?;
    let confirm = timer("Time in which a deploy of left4me is to be confirmed", confirm_secs);
    durable::file(&host.at(TIMERS).join(CONFIRM), 0o644, confirm.as_bytes())?;
    systemctl(&["daemon-reload"])?;
    // Of an earlier deploy that was broken off: it has another time.
    systemctl(&["stop", LIMIT, CONFIRM])?;
    start(LIMIT)
}

/// The new version is on trial from now on.
///
/// # Errors
/// systemd does not start the timer.
pub fn begin_trial() -> Result<()> {
    start(CONFIRM)
}

fn start(timer: &str) -> Result<()> {
    systemctl(&["start", timer])?;
    let state =
        command::ok(&["systemctl", "show", "--value", "--property=SubState", timer], Instant::now() + QUICK)?;
    match state.trim() {
        "waiting" | "running" => Ok(()),
        other => bail!("{timer} is {other} after its start: nothing would put the old version back"),
    }
}

/// Takes it away. Without a [`crate::state::Pending`] it does nothing any more, so this may fail in part.
///
/// # Errors
/// What could not be taken away.
pub fn disarm(host: &Host) -> Result<()> {
    // What was never made can't be stopped.
    let made: Vec<&str> =
        [LIMIT, CONFIRM].into_iter().filter(|name| host.at(TIMERS).join(name).exists()).collect();
    let stopped =
        if made.is_empty() { Ok(String::new()) } else { systemctl(&[&["stop"], &made[..]].concat()) };
    for (directory, name) in [(WANTS, SERVICE), (UNITS, SERVICE), (TIMERS, LIMIT), (TIMERS, CONFIRM)] {
        let at = host.at(directory).join(name);
        if at.is_symlink() || at.exists() {
            durable::remove(&at)?;
        }
    }
    stopped?;
    let program = host.state(PROGRAM);
    if program.exists() {
        durable::remove(&program)?;
    }
    Ok(())
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    command::ok(&[&["systemctl"], arguments].concat(), Instant::now() + QUICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_unit_and_timers_are_as_documented() {
        let service = service();
        assert!(
            service.contains("\nConditionPathExists=/usr/local/lib/left4me/deploy/pending.json\n"),
            "{service}"
        );
        assert!(
            service.contains("\nExecStart=/usr/local/lib/left4me/deploy/left4me-deploy guard\n"),
            "{service}"
        );
        // A start limit once kept a rollback from being tried again.
        assert!(service.contains("\nStartLimitIntervalSec=0\n"), "{service}");
        let timer = timer("x", 30);
        assert!(timer.contains("\nOnActiveSec=30s\n") && !timer.contains("OnCalendar"), "{timer}");
    }
}
