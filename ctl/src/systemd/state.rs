//! What `l4d2ctl` asks of an instance's units, over the connection: jobs, states, and the wait until they are down.
//!
//! A job's end is the signal `JobRemoved`; what is sent for it, and whom it is believed of, is in `job.rs`. The match
//! asks for this unit only: a busy machine's other jobs wake nobody here. systemd sends that signal to whoever asked for
//! the job (`src/core/dbus-job.c:bus_job_send_removed_signal`), subscribed or not; to subscribe would have it tell of
//! every change of every unit.

use std::time::Instant;

use futures_lite::{StreamExt, future};
use futures_util::future::{try_join, try_join_all, try_join4};
use systemd_bus::{ExecStatus, ListedUnit, ServiceProxy, UNITS_PATH, UnitProxy, call, exec_statuses};
use zbus::fdo::PropertiesChanged;
use zbus::{Message, MessageStream};

use super::bus::gone;
use super::connection::{QUESTIONS_AT_ONCE, Systemd};
use super::job::{Heard, JobWatch, Question};
use crate::units::{
    Activity, Ended, ExecRun, Job, Lines, Names, Pair, UnitFiles, UnitState, Units, UnitsError, is_down,
};

/// The settings whose runs are reported, in the order of a unit's life.
const EXEC_LINES: [&str; 4] = ["ExecStartPre", "ExecStart", "ExecStop", "ExecStopPost"];

/// Which lines are asked about: of the server's unit, and of the overlay's, which has no `ExecStop=`. Each question is a way
/// through the bus daemon and back, so after a stop it is only what a stop runs, and how the server itself ended.
fn lines(asked: Lines) -> Pair<&'static [&'static str]> {
    const OF_OVERLAY: [&str; 3] = [EXEC_LINES[0], EXEC_LINES[1], EXEC_LINES[3]];
    match asked {
        Lines::All => Pair { server: &EXEC_LINES, overlay: &OF_OVERLAY },
        Lines::OfStop => Pair { server: &EXEC_LINES[1..], overlay: &OF_OVERLAY[2..] },
    }
}

impl Systemd {
    async fn run_job(&self, job: Job, names: &Names) -> Result<Ended, UnitsError> {
        let unit = job.unit(names);
        let mut messages = MessageStream::from(&self.connection);
        let mut watch = JobWatch::new(names, unit);
        let rule = call::job_ends(unit)?;
        self.keep(&names.each().map(String::as_str)).await?;
        let mut calls = Vec::new();
        // Without a bus in between everything comes anyway.
        if self.connection.is_bus() {
            calls.push((Question::Match, call::add_match(&rule)?));
        }
        calls.push((Question::Before, call::list_units_by_names(&names.each().map(String::as_str))?));
        for name in job.resets_failed(names) {
            calls.push((Question::Count, call::reset_failed_unit(name)?));
        }
        let queue = match job {
            Job::Start | Job::Mount => call::start_unit(unit)?,
            Job::Stop | Job::StopServer => call::stop_unit(unit)?,
        };
        calls.push((Question::Queue, queue));
        for (question, call) in &calls {
            watch.asked(*question, call.primary_header().serial_num());
            self.connection.send(call).await?;
        }
        let ended = loop {
            let message = messages.next().await.ok_or_else(gone)??;
            match watch.hear(&message)? {
                Heard::Nothing => {}
                Heard::Doubt if self.connection.is_bus() => {
                    let call = call::systemds_owner()?;
                    watch.asked(Question::Owner, call.primary_header().serial_num());
                    self.connection.send(&call).await?;
                }
                Heard::Doubt => {}
                Heard::Ended(ended) => break ended,
            }
        };
        if self.connection.is_bus() {
            // The bus lets a connection have only so many, and a reset of all has a job for each instance.
            self.connection.send(&call::remove_match(&rule)?).await?;
        }
        Ok(ended)
    }

    async fn active_states(&self, units: &[&str]) -> Result<Vec<String>, UnitsError> {
        let listed = self.manager().await?.list_units_by_names(units).await?;
        Ok(listed.into_iter().map(|unit| unit.active_state).collect())
    }

    async fn read_activity(&self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        let mut all = Vec::new();
        let names: Vec<_> = units.iter().map(String::as_str).collect();
        let states = self.active_states(&names).await?;
        for some in units.iter().zip(states).collect::<Vec<_>>().chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(unit, active_state)| async move {
                let active_state = active_state.clone();
                if is_down(&active_state) {
                    return Ok::<_, UnitsError>(Activity { active_state, since_us: 0 });
                }
                let unit: UnitProxy<'_> = self.of_unit(unit).await?;
                let since_us = unit.active_enter_timestamp_monotonic().await?;
                Ok(Activity { active_state, since_us })
            });
            all.extend(try_join_all(asked).await?);
        }
        Ok(all)
    }

    /// systemd tells of a unit's changes whoever keeps it (`src/core/dbus-unit.c:bus_unit_send_change_signal`). Who may
    /// not keep it hears nothing, and waits to the end.
    async fn watch_until_down(&self, units: &[String]) -> Result<(), UnitsError> {
        let mut messages = MessageStream::from(&self.connection);
        let rule = call::unit_changes()?;
        if self.connection.is_bus() {
            self.connection.send(&call::add_match(&rule)?).await?;
        }
        let names: Vec<_> = units.iter().map(String::as_str).collect();
        self.keep(&names).await?;
        let is_change = |message: &Message| {
            message.header().path().is_some_and(|path| path.as_str().starts_with(UNITS_PATH))
                && PropertiesChanged::from_message(message.clone()).is_some()
        };
        loop {
            let mut has_changed = false;
            // What is told meanwhile is taken off the queue, which would hold up the answer once it is full.
            let drain = async {
                while let Some(message) = messages.next().await {
                    has_changed |= message.as_ref().is_ok_and(is_change);
                }
                Err(gone())
            };
            let states = future::or(self.active_states(&names), drain).await?;
            if states.iter().all(|state| is_down(state)) {
                break;
            }
            // Whoever tells it: it is asked again, and systemd answers.
            while !has_changed {
                let message = messages.next().await.ok_or_else(gone)??;
                has_changed = is_change(&message);
            }
        }
        if self.connection.is_bus() {
            self.connection.send(&call::remove_match(&rule)?).await?;
        }
        Ok(())
    }

    /// `is_kept` says that the units stay loaded as they are.
    async fn read_state(
        &self,
        names: &Names,
        asked: Lines,
        is_kept: bool,
    ) -> Result<Pair<UnitState>, UnitsError> {
        let lines = lines(asked);
        if !is_kept {
            self.keep(&names.each().map(String::as_str)).await?;
        }
        let (server, overlay) = (self.of_unit(&names.server).await?, self.of_unit(&names.overlay).await?);
        // Asked at once: answers of one moment, or nearly.
        let (listed, restarts, of_server, of_overlay) = try_join4(
            self.listed(names),
            async { Ok(ServiceProxy::n_restarts(&server).await?) },
            read_runs(&server, lines.server),
            read_runs(&overlay, lines.overlay),
        )
        .await?;
        let state = |listed: ListedUnit, (result, exec): (String, Vec<ExecRun>), restarts| {
            let ListedUnit { load_state, active_state, sub_state, .. } = listed;
            UnitState { load_state, active_state, sub_state, result, restarts, exec }
        };
        Ok(Pair {
            server: state(listed.server, of_server, restarts),
            overlay: state(listed.overlay, of_overlay, 0),
        })
    }
}

/// A service's result and its commands' last runs.
async fn read_runs(
    service: &ServiceProxy<'_>,
    lines: &[&'static str],
) -> Result<(String, Vec<ExecRun>), UnitsError> {
    let runs = lines.iter().map(|line| exec_statuses(service, line));
    let (result, runs) = try_join(service.result(), try_join_all(runs)).await?;
    let of = |(line, runs): (&&'static str, Vec<ExecStatus>)| runs.into_iter().map(|run| exec_run(line, run));
    Ok((result, lines.iter().zip(runs).flat_map(of).collect()))
}

impl Units for Systemd {
    async fn run(&mut self, job: Job, names: &Names, deadline: Instant) -> Result<Ended, UnitsError> {
        let ended = self.ask(deadline, || self.run_job(job, names)).await;
        self.kept = ended.is_ok().then(|| names.clone());
        ended
    }

    async fn state(&mut self, names: &Names, asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        let is_kept = self.kept.as_ref() == Some(names);
        self.ask(self.deadline, || self.read_state(names, asked, is_kept)).await
    }

    async fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.ask(self.deadline, || async { Ok(self.manager().await?.reset_failed_unit(unit).await?) }).await
    }

    async fn requires_overlay(&mut self, names: &Names) -> Result<bool, UnitsError> {
        let required = || async {
            let server: UnitProxy<'_> = self.of_unit(&names.server).await?;
            Ok(server.requires().await?)
        };
        Ok(self.ask(self.deadline, required).await?.contains(&names.overlay))
    }

    async fn activity(&mut self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        self.ask(self.deadline, || self.read_activity(units)).await
    }

    async fn wait_until_down(&mut self, units: &[String], deadline: Instant) -> Result<(), UnitsError> {
        match self.ask(deadline, || self.watch_until_down(units)).await {
            Err(UnitsError::Deadline) => Ok(()),
            result => result,
        }
    }
}

impl UnitFiles for Systemd {
    async fn disable(&mut self, unit: &str) -> Result<Vec<String>, UnitsError> {
        let disable = || async {
            let manager = self.manager().await?;
            let changes = manager.disable_unit_files(&[unit], false).await?;
            let links = changes.into_iter().filter(|(what, ..)| what == "unlink");
            let links: Vec<_> = links.map(|(_what, link, _to)| link).collect();
            // As systemctl(1) does: what the links said is forgotten only then.
            if !links.is_empty() {
                manager.reload().await?;
            }
            Ok(links)
        };
        self.ask(self.deadline, disable).await
    }
}

pub(super) fn exec_run(line: &'static str, status: ExecStatus) -> ExecRun {
    let ExecStatus { argv, started_us, exited_us, code, status, .. } = status;
    ExecRun { line, argv, started_us, exited_us, code, status }
}
