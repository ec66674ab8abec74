//! What `l4d2ctl` asks of an instance's units, over the connection: jobs, states, and the wait until they are down.
//!
//! A job's end is the signal `JobRemoved`; what is sent for it, and whom it is believed of, is in `job.rs`. The match
//! asks for this unit only: a busy machine's other jobs wake nobody here. systemd sends that signal to whoever asked for
//! the job (`src/core/dbus-job.c:bus_job_send_removed_signal`), subscribed or not; to subscribe would have it tell of
//! every change of every unit.

use std::time::Instant;

use futures_lite::{StreamExt, future};
use futures_util::future::{try_join, try_join_all, try_join5};
use zbus::zvariant::OwnedObjectPath;
use zbus::{Message, MessageStream};

use super::bus::{
    ExecEntry, Listed, ListedUnit, MANAGER, MANAGER_PATH, PROPERTIES, SERVICE, SYSTEMD, UNIT, UNITS_PATH,
    bus_call, gone, manager_call, unit_path,
};
use super::connection::{QUESTIONS_AT_ONCE, Systemd};
use super::job::{Heard, JobWatch, Question};
use crate::units::{
    Activity, Ended, ExecRun, Job, Lines, Names, Pair, UnitState, Units, UnitsError, is_down,
};

/// The settings whose runs are reported, in the order of a unit's life, each with its property.
const EXEC_PROPERTIES: [(&str, &str); 4] = [
    ("ExecStartPre", "ExecStartPreEx"),
    ("ExecStart", "ExecStartEx"),
    ("ExecStop", "ExecStopEx"),
    ("ExecStopPost", "ExecStopPostEx"),
];

/// Which lines are asked about: of the server's unit, and of the overlay's, which has no `ExecStop=`. Each question is a way
/// through the bus daemon and back, so after a stop it is only what a stop runs, and how the server itself ended.
fn lines(asked: Lines) -> Pair<&'static [(&'static str, &'static str)]> {
    const OF_OVERLAY: [(&str, &str); 3] = [EXEC_PROPERTIES[0], EXEC_PROPERTIES[1], EXEC_PROPERTIES[3]];
    match asked {
        Lines::All => Pair { server: &EXEC_PROPERTIES, overlay: &OF_OVERLAY },
        Lines::OfStop => Pair { server: &EXEC_PROPERTIES[1..], overlay: &OF_OVERLAY[2..] },
    }
}

impl Systemd {
    async fn run_job(&self, job: Job, names: &Names) -> Result<Ended, UnitsError> {
        let unit = job.unit(names);
        let mut messages = MessageStream::from(&self.connection);
        let mut watch = JobWatch::new(names, unit);
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{MANAGER_PATH}',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
        );
        let mut calls = Vec::new();
        // Without a bus in between everything comes anyway.
        if self.connection.is_bus() {
            calls.push((Question::Match, bus_call("AddMatch", &rule)?));
        }
        for name in names.each() {
            calls.push((Question::Keep, manager_call("RefUnit", name)?));
        }
        calls.push((Question::Before, manager_call("ListUnitsByNames", &(names.each().to_vec()))?));
        for name in job.resets_failed(names) {
            calls.push((Question::Count, manager_call("ResetFailedUnit", &name)?));
        }
        calls.push((Question::Queue, manager_call(job.method(), &(unit, "replace"))?));
        for (question, call) in &calls {
            watch.asked(*question, call.primary_header().serial_num());
            self.send(call).await?;
        }
        let ended = loop {
            let message = messages.next().await.ok_or_else(gone)??;
            match watch.hear(&message)? {
                Heard::Nothing => {}
                Heard::Doubt if self.connection.is_bus() => {
                    let call = bus_call("GetNameOwner", &SYSTEMD)?;
                    watch.asked(Question::Owner, call.primary_header().serial_num());
                    self.send(&call).await?;
                }
                Heard::Doubt => {}
                Heard::Ended(ended) => break ended,
            }
        };
        if self.connection.is_bus() {
            // The bus lets a connection have only so many, and a reset of all has a job for each instance.
            self.send(&bus_call("RemoveMatch", &rule)?).await?;
        }
        Ok(ended)
    }

    async fn active_states(&self, units: &[String]) -> Result<Vec<String>, UnitsError> {
        let reply = self.manager("ListUnitsByNames", &(units)).await?;
        let listed: Vec<ListedUnit> = reply.body().deserialize()?;
        Ok(listed.into_iter().map(|(_, _, _, active_state, ..)| active_state).collect())
    }

    async fn read_activity(&self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        let mut all = Vec::new();
        let states = self.active_states(units).await?;
        for some in units.iter().zip(states).collect::<Vec<_>>().chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(unit, active_state)| async move {
                let active_state = active_state.clone();
                if is_down(&active_state) {
                    return Ok::<_, UnitsError>(Activity { active_state, since_us: 0 });
                }
                let path = unit_path(unit)?;
                let since_us = self.property(&path, UNIT, "ActiveEnterTimestampMonotonic").await?;
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
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path_namespace='/org/freedesktop/systemd1/unit',interface='{PROPERTIES}',\
             member='PropertiesChanged',arg0='{UNIT}'"
        );
        if self.connection.is_bus() {
            self.send(&bus_call("AddMatch", &rule)?).await?;
        }
        for unit in units {
            self.send(&manager_call("RefUnit", unit)?).await?;
        }
        let is_change = |message: &Message| {
            let header = message.header();
            header.member().is_some_and(|member| member.as_str() == "PropertiesChanged")
                && header.path().is_some_and(|path| path.as_str().starts_with(UNITS_PATH))
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
            let states = future::or(self.active_states(units), drain).await?;
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
            self.send(&bus_call("RemoveMatch", &rule)?).await?;
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
        let paths = Pair { server: unit_path(&names.server)?, overlay: unit_path(&names.overlay)? };
        let kept = async {
            if !is_kept {
                try_join(self.keep(&names.server), self.keep(&names.overlay)).await?;
            }
            Ok(())
        };
        // Asked at once: answers of one moment, or nearly.
        let restarts = self.property(&paths.server, SERVICE, "NRestarts");
        let (_, listed, server, overlay, restarts) = try_join5(
            kept,
            self.listed(names),
            self.read_runs(&paths.server, lines.server),
            self.read_runs(&paths.overlay, lines.overlay),
            restarts,
        )
        .await?;
        let state = |listed: Listed, (result, exec): (String, Vec<ExecRun>), restarts| {
            let Listed { load_state, active_state, sub_state } = listed;
            UnitState { load_state, active_state, sub_state, result, restarts, exec }
        };
        Ok(Pair {
            server: state(listed.server, server, restarts),
            overlay: state(listed.overlay, overlay, 0),
        })
    }

    /// A service's result and its commands' last runs.
    async fn read_runs(
        &self,
        path: &OwnedObjectPath,
        properties: &[(&'static str, &str)],
    ) -> Result<(String, Vec<ExecRun>), UnitsError> {
        let runs = properties.iter().map(|&(line, property)| async move {
            let entries: Vec<ExecEntry> = self.property(path, SERVICE, property).await?;
            Ok(entries.into_iter().map(move |entry| exec_run(line, entry)))
        });
        let (result, runs) =
            try_join(self.property::<String>(path, SERVICE, "Result"), try_join_all(runs)).await?;
        Ok((result, runs.into_iter().flatten().collect()))
    }
}

impl Units for Systemd {
    fn run(&mut self, job: Job, names: &Names, deadline: Instant) -> Result<Ended, UnitsError> {
        let ended = self.wait(deadline, self.run_job(job, names));
        self.kept = ended.is_ok().then(|| names.clone());
        ended
    }

    fn state(&mut self, names: &Names, asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        let is_kept = self.kept.as_ref() == Some(names);
        self.wait(self.deadline, self.read_state(names, asked, is_kept))
    }

    fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.wait(self.deadline, self.manager("ResetFailedUnit", &(unit))).map(drop)
    }

    fn requires_overlay(&mut self, names: &Names) -> Result<bool, UnitsError> {
        let path = unit_path(&names.server)?;
        let required: Vec<String> = self.wait(self.deadline, self.property(&path, UNIT, "Requires"))?;
        Ok(required.contains(&names.overlay))
    }

    fn activity(&mut self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        self.wait(self.deadline, self.read_activity(units))
    }

    fn wait_until_down(&mut self, units: &[String], deadline: Instant) -> Result<(), UnitsError> {
        match self.wait(deadline, self.watch_until_down(units)) {
            Err(UnitsError::Deadline) => Ok(()),
            result => result,
        }
    }
}

pub(super) fn exec_run(line: &'static str, entry: ExecEntry) -> ExecRun {
    let (_path, argv, _flags, _start, started_us, _exit, exited_us, _pid, code, status) = entry;
    ExecRun { line, argv, started_us, exited_us, code, status }
}
