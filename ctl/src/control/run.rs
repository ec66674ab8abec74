//! One action under way: its systemd, its deadline and the report that it fills, and what every action does with them.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holders::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;
use left4me_helper::purge;
use left4me_helper::state::InstanceDir;

use crate::actions::Host;
use crate::report::{Exec, Exit, Report};
use crate::units::{
    CLD_DUMPED, CLD_EXITED, CLD_KILLED, Ended, ExecRun, Job, Lines, Names, Pair, UnitState, Units, UnitsError,
};

/// Why an action is not ok. No text: what is in the report says it all.
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) text: Option<String>,
}

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, text: Some(text.into()) }
    }
}

impl From<UnitsError> for Failure {
    fn from(error: UnitsError) -> Self {
        let exit = if matches!(error, UnitsError::NoSuchUnit(_)) { Exit::NoSuchUnit } else { Exit::Failed };
        Self { exit, text: Some(error.to_string()) }
    }
}

impl From<HelperError> for Failure {
    fn from(error: HelperError) -> Self {
        Self::new(chain(&error))
    }
}

pub(super) struct Run<'a, U> {
    pub(super) units: &'a mut U,
    pub(super) host: &'a Host,
    pub(super) instance: &'a Instance,
    pub(super) names: Names,
    pub(super) place: OnceCell<Arc<InstanceDir>>,
    /// What is reported of the units.
    pub(super) asked: Lines,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    pub(super) report: Report,
}

impl<U: Units> Run<'_, U> {
    pub(super) fn still_mounted(&self) -> Result<Vec<PathBuf>, HelperError> {
        purge::still_mounted(&self.place()?.paths, &self.host.mount_tables)
    }

    /// The instance's place, opened once.
    pub(super) fn place(&self) -> Result<&Arc<InstanceDir>, HelperError> {
        match self.place.get() {
            Some(place) => Ok(place),
            None => {
                let place = InstanceDir::open(&self.host.state_dir, self.instance)?;
                Ok(self.place.get_or_init(|| Arc::new(place)))
            }
        }
    }

    pub(super) async fn job(&mut self, job: Job) -> Result<Ended, Failure> {
        let ended = self.units.run(job, &self.names, self.deadline).await;
        // The state it is in belongs to the report; why it cannot be had does not add to the error.
        if ended.as_ref().is_err_and(|error| !error.is_out_of_reach()) {
            drop(self.look().await);
        }
        Ok(ended?)
    }

    /// Reads the units' states into the report.
    pub(super) async fn look(&mut self) -> Result<Pair<UnitState>, UnitsError> {
        let state = self.units.state(&self.names, self.asked).await?;
        let Pair { server, overlay } = &state;
        self.report.active_state.clone_from(&server.active_state);
        self.report.sub_state.clone_from(&server.sub_state);
        self.report.result.clone_from(&server.result);
        self.report.restarts = server.restarts;
        self.report.overlay.active_state.clone_from(&overlay.active_state);
        self.report.overlay.sub_state.clone_from(&overlay.sub_state);
        self.report.overlay.result.clone_from(&overlay.result);
        let of_overlay = |is_of_start| {
            let runs = overlay.exec.iter().filter(move |run| run.is_of_start() == is_of_start);
            runs.map(|run| reported(&self.names.overlay, run))
        };
        let of_server = server.exec.iter().map(|run| reported(&self.names.server, run));
        self.report.exec = of_overlay(true).chain(of_server).chain(of_overlay(false)).collect();
        Ok(state)
    }
}

/// What is said of a job that another request took the place of. Nothing went wrong, and the journals have nothing of it.
pub(super) fn superseded(job: &str, example: &str, now: &str) -> String {
    format!(
        "{job} ended \"canceled\", as somebody asked for something else meanwhile, {example} for example; {now}"
    )
}

/// Whether a place is known to have nothing. What may not be looked at is left to systemd and the helper to judge.
pub(crate) fn is_missing(place: &Path) -> bool {
    std::fs::symlink_metadata(place).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn reported(unit: &str, run: &ExecRun) -> Exec {
    Exec {
        unit: unit.to_owned(),
        line: run.line.to_owned(),
        argv: run.argv.clone(),
        status: (run.code == CLD_EXITED).then_some(run.status),
        signal: matches!(run.code, CLD_KILLED | CLD_DUMPED).then_some(run.status),
        duration_us: (run.started_us > 0 && run.exited_us > 0)
            .then(|| run.exited_us.saturating_sub(run.started_us)),
    }
}
