//! Start, stop, reset and status of an instance: the decisions, and the report they end in.
//!
//! systemd is behind the trait [`Units`], so that a page can call this and a test can play systemd. Nothing here
//! waits, sleeps or asks twice: a job is sent and its end awaited, once, with a deadline.
//!
//! An instance has two units. The overlay's mounts and unmounts; the server's requires it. What is stopped is the
//! overlay: systemd stops the server first, and the job ends when the overlay is unmounted. Were it the server, systemd
//! would stop the overlay because nothing needs it any more, some time later, and whoever waits for the server's job
//! looks too early.

use std::cell::OnceCell;
use std::path::Path;
use std::time::{Duration, Instant};

use holders::chain::chain;
use holders::shown;
use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;

use crate::actions::{Action, Host};
use crate::report::{Exit, OverlayUnit, Phases, Report, SCHEMA_VERSION};
use crate::units::{Ended, ExecRun, Job, Lines, Names, UnitState, Units, UnitsError};
pub(crate) use run::is_missing;
use run::{Failure, Run, superseded};

mod run;
mod stop;
#[cfg(test)]
mod tests;

/// Does `action` to `instance` and says how it went. Every failure is in the report.
pub async fn run<U: Units>(
    units: &mut U,
    host: &Host,
    action: Action,
    instance: &Instance,
    timeout: Duration,
) -> Report {
    let mut run = Run {
        units,
        host,
        instance,
        names: Names::of(instance),
        place: OnceCell::new(),
        asked: match action {
            Action::Stop | Action::Reset => Lines::OfStop,
            Action::Start | Action::Status => Lines::All,
        },
        timeout,
        deadline: Instant::now() + timeout,
        report: empty(action, instance),
    };
    let begun = (host.now_us)();
    let outcome = match action {
        Action::Start => run.start().await,
        Action::Stop => run.stop().await,
        Action::Reset => run.reset().await,
        Action::Status => run.status().await,
    };
    let mut report = run.report;
    if let Err(failure) = outcome {
        report.exit = failure.exit;
        report.error = failure.text;
    }
    report.ok = report.exit == Exit::Ok;
    report.phases.total_us = (host.now_us)().saturating_sub(begun);
    report
}

/// Whether it makes sense to begin at all. systemd says itself who may start and stop, and asks polkit; a reset deletes
/// root's directories too, and to find that out after the stop would be late.
///
/// # Errors
/// [`UnitsError::Denied`].
pub fn may(action: Action, is_root: bool) -> Result<(), UnitsError> {
    match action {
        Action::Reset if !is_root => {
            Err(UnitsError::Denied("a reset deletes directories of root; nothing was stopped".into()))
        }
        _ => Ok(()),
    }
}

/// The report of an action that could not begin.
#[must_use]
pub fn not_begun(action: Action, instance: &Instance, error: &UnitsError) -> Report {
    let mut report = empty(action, instance);
    report.error = Some(error.to_string());
    report.exit = Exit::Failed;
    report
}

fn empty(action: Action, instance: &Instance) -> Report {
    Report {
        schema_version: SCHEMA_VERSION,
        action,
        instance: instance.to_string(),
        unit: instance.unit(),
        ok: false,
        active_state: String::new(),
        sub_state: String::new(),
        result: String::new(),
        restarts: 0,
        overlay: OverlayUnit { unit: instance.overlay_unit(), ..OverlayUnit::default() },
        exec: Vec::new(),
        phases: Phases::default(),
        still_mounted: Vec::new(),
        mounted: None,
        notes: Vec::new(),
        error: None,
        exit: Exit::Ok,
    }
}

impl<U: Units> Run<'_, U> {
    async fn start(&mut self) -> Result<(), Failure> {
        let file = self.instance.paths(&self.host.state_dir).file;
        if is_missing(&file) {
            let text = Some(chain(&HelperError::NoInstanceFile(file)));
            return Err(Failure { exit: Exit::NoSuchUnit, text });
        }
        let Ended { result, .. } = self.job(Job::Start).await?;
        let state = self.look().await?;
        if result == "done" && state.server.active_state == "active" {
            return Ok(());
        }
        if is_missing(&file) {
            // A failed unit of an instance that there is not would be failed for ever.
            let overlay = self.names.overlay.clone();
            if state.overlay.active_state == "failed" {
                drop(self.clear_failed(&overlay).await);
            }
            let text = format!("somebody has destroyed it meanwhile: {} is gone", file.display());
            return Err(Failure { exit: Exit::NoSuchUnit, text: Some(text) });
        }
        let Names { server, overlay } = &self.names;
        let now = &state.server.active_state;
        if result == "canceled" && state.overlay.active_state != "failed" {
            let now = format!("{server} is {now}");
            return Err(Failure::new(superseded("the start job", "a stop or a reset", &now)));
        }
        let mut text = format!("the start job ended \"{result}\" and {server} is {now}");
        if result == "done" && now == "inactive" {
            text.push_str(": somebody has stopped it since, or it has ended by itself");
        }
        // systemd did not even try to start the server if what it requires has failed.
        let (unit, of) = if result == "dependency" || state.overlay.active_state == "failed" {
            let UnitState { load_state, active_state, .. } = &state.overlay;
            let loaded = if load_state == "loaded" { "" } else { load_state };
            let separator = if loaded.is_empty() { "" } else { ", " };
            text.push_str(&format!("; it needs {overlay}, which is {loaded}{separator}{active_state}"));
            (overlay, &state.overlay)
        } else {
            (server, &state.server)
        };
        if let Some(failed) = of.exec.iter().find(|run| run.is_of_start() && run.has_failed()) {
            text.push_str(&format!("; {} ({}) ended with {}", failed.line, program(failed), failed.ending()));
        }
        text.push_str(&format!("; its journal says why: `journalctl -u {unit}`"));
        Err(Failure::new(text))
    }

    async fn status(&mut self) -> Result<(), Failure> {
        let state = self.look().await?.server;
        // Not everybody may read PID 1's mount table; then it is not known, which is no failure.
        self.report.mounted = self.still_mounted().ok().map(|mounts| !mounts.is_empty());
        if state.load_state == "not-found" {
            return Err(
                UnitsError::NoSuchUnit(format!("Unit {} could not be found.", self.names.server)).into()
            );
        }
        match state.active_state.as_str() {
            "active" | "reloading" | "refreshing" => Ok(()),
            _ => Err(Failure { exit: Exit::NotRunning, text: None }),
        }
    }
}

/// The name of a command's program, as it can be printed.
fn program(run: &ExecRun) -> String {
    let path = Path::new(run.argv.first().map_or("", String::as_str));
    shown(Path::new(path.file_name().unwrap_or(path.as_os_str())))
}
