//! Start, stop, reset and status of an instance: the decisions, and the report they end in.
//!
//! systemd is behind the trait [`Units`], so that a page can call this and a test can play systemd. Nothing here
//! waits, sleeps or asks twice: a job is sent and its end awaited, once, with a deadline.
//!
//! An instance has two units. The overlay's mounts and unmounts; the server's requires it. What is stopped is the
//! overlay: systemd stops the server first, and the job ends when the overlay is unmounted. Were it the server, systemd
//! would stop the overlay because nothing needs it any more, some time later, and whoever waits for the server's job
//! looks too early.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holders::shown;
use left4me_helper::busy_note;
use left4me_helper::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::purge;
use left4me_helper::state::{StateDir, directory_beneath};

use crate::report::{Exec, Exit, OverlayUnit, Phases, Report, SCHEMA_VERSION};
use crate::units::{
    CLD_DUMPED, CLD_EXITED, CLD_KILLED, Ended, ExecRun, Job, Lines, Names, Pair, UnitState, Units, UnitsError,
};

/// How long a job may take unless told otherwise: the stop timeouts of both units, and as much in hand as a slow machine
/// may want.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// What is asked of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Mount the overlay and start the server.
    Start,
    /// Stop the server and unmount the overlay.
    Stop,
    /// Stop and delete `runtime/<id>`.
    Reset,
    /// Say how it is.
    Status,
}

impl Action {
    /// Its name on the command line and in a report.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reset => "reset",
            Self::Status => "status",
        }
    }
}

/// The machine's own places; a test has others.
#[derive(Debug, Clone)]
pub struct Host {
    /// [`STATE_DIR`].
    pub state_dir: PathBuf,
    /// [`purge::MOUNT_TABLES`].
    pub mount_tables: Vec<PathBuf>,
    /// CLOCK_MONOTONIC now, microseconds: what systemd's monotonic times are compared with.
    pub now_us: fn() -> u64,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            state_dir: STATE_DIR.into(),
            mount_tables: purge::MOUNT_TABLES.map(PathBuf::from).to_vec(),
            now_us: monotonic_us,
        }
    }
}

fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// Does `action` to `instance` and says how it went. Every failure is in the report.
pub fn run(
    units: &mut dyn Units,
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
        Action::Start => run.start(),
        Action::Stop => run.stop(),
        Action::Reset => run.reset(),
        Action::Status => run.status(),
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
        action: action.word(),
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

/// Why an action is not ok. No text: what is in the report says it all.
struct Failure {
    exit: Exit,
    text: Option<String>,
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
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

/// What a stop came to, besides what the report has.
struct Stop {
    /// When it began.
    begun: u64,
    /// Why it is none: then nothing may be deleted, whatever seems to be down and unmounted.
    refused: Option<String>,
    /// What went wrong in a stop that is one: the server had to be killed, or an unmount failed. Only what *this* stop
    /// did counts; a unit that was failed before is failed still.
    failed: Vec<String>,
    /// The units when it had ended.
    state: Pair<UnitState>,
}

struct Run<'a> {
    units: &'a mut dyn Units,
    host: &'a Host,
    instance: &'a Instance,
    names: Names,
    /// What is reported of the units.
    asked: Lines,
    timeout: Duration,
    deadline: Instant,
    report: Report,
}

impl Run<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let file = self.instance.paths(&self.host.state_dir).file;
        if is_missing(&file) {
            let text = Some(chain(&HelperError::NoInstanceFile(file)));
            return Err(Failure { exit: Exit::NoSuchUnit, text });
        }
        let Ended { result, .. } = self.job(Job::Start)?;
        let state = self.look()?;
        if result == "done" && state.server.active_state == "active" {
            return Ok(());
        }
        let Names { server, overlay } = &self.names;
        let mut text =
            format!("the start job ended \"{result}\" and {server} is {}", state.server.active_state);
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
        let is_of_start = |run: &&ExecRun| ["ExecStartPre", "ExecStart"].contains(&run.line);
        if let Some(failed) = of.exec.iter().filter(is_of_start).find(|run| run.has_failed()) {
            text.push_str(&format!("; {} ({}) ended with {}", failed.line, program(failed), failed.ending()));
        }
        text.push_str(&format!("; its journal says why: `journalctl -u {unit}`"));
        Err(Failure::new(text))
    }

    fn status(&mut self) -> Result<(), Failure> {
        let state = self.look()?.server;
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

    fn stop(&mut self) -> Result<(), Failure> {
        let stop = self.stop_units()?;
        if let Some(refused) = stop.refused {
            return Err(Failure::new(refused));
        }
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(&stop, "", "unmounts it"));
        }
        if stop.failed.is_empty() {
            return Ok(());
        }
        let mut text = stop.failed.join("; ");
        if stop.state.server.active_state == "failed" {
            text.push_str("; what the server was saving may be lost");
        }
        let failed: Vec<_> = self
            .names
            .each()
            .into_iter()
            .zip(stop.state.each())
            .filter_map(|(unit, state)| (state.active_state == "failed").then_some(unit.as_str()))
            .collect();
        text.push_str(&format!(
            "; `sudo systemctl reset-failed {}` clears the failed state",
            failed.join(" ")
        ));
        Err(Failure::new(text))
    }

    fn reset(&mut self) -> Result<(), Failure> {
        self.require_something()?;
        let stop = self.stop_units()?;
        if let Some(refused) = stop.refused {
            // A server can run on an overlay that no table here lists: one that only its own namespace has left.
            return Err(Failure::new(format!("{refused}; nothing was deleted")));
        }
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(&stop, " and nothing was deleted", "unmounts it and deletes"));
        }
        let begun = (self.host.now_us)();
        let purged = self.purge();
        self.report.phases.purge_us = Some((self.host.now_us)().saturating_sub(begun));
        match purged {
            Ok(()) => {
                self.forgive(stop);
                Ok(())
            }
            Err(error) => {
                let mut sentences = stop.failed;
                sentences.push(self.not_purged(&error));
                Err(Failure::new(sentences.join("; ")))
            }
        }
    }

    /// Refuses an instance that there is nothing of: its name is a slip of the pen, and another one was meant.
    fn require_something(&mut self) -> Result<(), Failure> {
        let paths = self.instance.paths(&self.host.state_dir);
        let places = [&paths.file, &paths.runtime, &paths.trash];
        if !places.iter().all(|place| is_missing(place)) || !is_all_down(&self.look()?) {
            return Ok(());
        }
        let [file, runtime, trash] = places.map(|place| place.display());
        let text = format!(
            "there is no instance {}: neither {file} nor {runtime} nor {trash} is there, and {} does not run",
            self.instance, self.names.server
        );
        Err(Failure { exit: Exit::NoSuchUnit, text: Some(text) })
    }

    /// Stops both units and looks at what is left.
    ///
    /// The job is sent to units that do not run, too: it is a no-op there, ends at once, and takes back a start that is
    /// queued or about to be retried.
    fn stop_units(&mut self) -> Result<Stop, Failure> {
        let begun = (self.host.now_us)();
        let Ended { before, mut result } = self.job(Job::Stop)?;
        self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
        let mut state = self.look()?;
        let mut job = Job::Stop;
        if result == "done" && !state.server.is_down() && !self.units.requires_overlay(&self.names)? {
            let Names { server, overlay } = &self.names;
            self.report.notes.push(format!(
                "{server} does not require {overlay} (an older unit, or one that systemd has not read again since: \
                 `sudo systemctl daemon-reload`), so it was stopped by itself"
            ));
            job = Job::StopServer;
            result = self.job(job)?.result;
            self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
            state = self.look()?;
        }
        self.report.still_mounted = self.still_mounted()?;
        if result == "done" && is_all_down(&state) && self.is_left_from_before(&state, begun) {
            job = Job::Stop;
            (state, result) = self.unmount_what_is_left()?;
            self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
        }
        self.report.phases.umount_us = umount_us(&state, begun);
        let refused = self.refusal(job, &result, &state);
        let failed = self.failures(&before, &state, begun);
        Ok(Stop { begun, refused, failed, state })
    }

    /// Why a stop is none.
    fn refusal(&self, job: Job, result: &str, state: &Pair<UnitState>) -> Option<String> {
        let Names { server, overlay } = &self.names;
        let unit = job.unit(&self.names);
        let now = format!(
            "{server} is {} and {overlay} is {}",
            state.server.active_state, state.overlay.active_state
        );
        match result {
            "done" if is_all_down(state) => None,
            "done" => Some(format!(
                "the stop job of {unit} has ended, and now {now}: somebody has started it meanwhile"
            )),
            "canceled" => Some(format!(
                "the stop job of {unit} ended \"canceled\", as somebody asked for something else meanwhile, a start for \
                 example; {now}"
            )),
            _ => Some(format!(
                "the stop job of {unit} ended \"{result}\" and {now} (`systemctl status {server} {overlay}` says more)"
            )),
        }
    }

    /// What this stop made fail, a sentence each.
    fn failures(&self, before: &Pair<String>, state: &Pair<UnitState>, begun: u64) -> Vec<String> {
        let mut failures = Vec::new();
        for ((unit, before), state) in self.names.each().into_iter().zip(before.each()).zip(state.each()) {
            if state.active_state != "failed" || before == "failed" {
                continue;
            }
            let why = match state.result.as_str() {
                "timeout" => ": it did not end within its stop timeout and was killed",
                "signal" | "core-dump" => ": a signal has ended it",
                "exit-code" => ": it ended with an error",
                _ => "",
            };
            let mut text = format!("{unit} failed (result {}){why}", state.result);
            if let Some(run) = ran_since(state, begun).find(|run| run.has_failed()) {
                text.push_str(&format!("; {}", self.refused_unmount(unit, run)));
            }
            failures.push(text);
        }
        failures
    }

    /// Whether what is mounted was left by an earlier stop: all is down, the overlay is still there, and no unmount was
    /// tried since this stop began. One that was tried and refused is not tried again.
    fn is_left_from_before(&self, state: &Pair<UnitState>, begun: u64) -> bool {
        let Ok(merged) = self.state().map(|state| state.paths(self.instance).merged) else { return false };
        let was_tried = state.each().into_iter().any(|state| ran_since(state, begun).next().is_some());
        self.report.still_mounted.contains(&merged) && !was_tried
    }

    /// Unmounts, once, what an earlier stop has left: the overlay's unit, which is down, is started and stopped. That
    /// also is the way of an upgrade, where the server was started by a unit that mounted by itself.
    fn unmount_what_is_left(&mut self) -> Result<(Pair<UnitState>, String), Failure> {
        // How this ends does not matter: its ExecStopPost runs after a start that failed as well.
        self.job(Job::Mount)?;
        let Ended { result, .. } = self.job(Job::Stop)?;
        let mut state = self.look()?;
        self.report.still_mounted = self.still_mounted()?;
        if self.report.still_mounted.is_empty() {
            let note = "an earlier stop had left the overlay mounted; it is unmounted now";
            self.report.notes.push(note.into());
            if state.overlay.active_state == "failed" {
                // Of a start that could not mount anew, which nobody wanted.
                self.clear_failed(&self.names.overlay.clone())?;
                state.overlay.active_state = "inactive".into();
            }
        }
        Ok((state, result))
    }

    /// How an ExecStopPost run of this stop failed, and why, as far as the helper has left a note.
    fn refused_unmount(&self, unit: &str, run: &ExecRun) -> String {
        let is_refused = run.code == CLD_EXITED && run.status == 32;
        let why = match self.busy_note(run) {
            Some(verdict) if is_refused => format!("the umount failed: EBUSY: {verdict}"),
            _ => format!("its journal says why: `journalctl -u {unit}`"),
        };
        format!("ExecStopPost ended with {}: {why}", run.ending())
    }

    /// What the helper found out when its unmount was refused, if it was this run of it.
    fn busy_note(&self, run: &ExecRun) -> Option<String> {
        let state = self.state().ok()?;
        let runtime = directory_beneath(state.runtime().ok()??, Path::new(self.instance.as_str())).ok()?;
        busy_note::note_of(runtime, &(run.started_us..=run.exited_us))
    }

    /// Makes a success of a reset that did all it is for: that the server failed in it, or before, is a note, and the
    /// units end inactive. What a kill may have lost was to be deleted anyway.
    fn forgive(&mut self, stop: Stop) {
        for failure in &stop.failed {
            self.report.notes.push(format!("{failure}; all it wrote was deleted anyway"));
        }
        let names = self.names.clone();
        for (unit, state) in names.each().into_iter().zip(stop.state.each()) {
            if state.active_state != "failed" {
                continue;
            }
            if !stop.failed.iter().any(|failure| failure.starts_with(unit)) {
                self.report.notes.push(format!("{unit} had failed before (result {})", state.result));
            }
            if self.clear_failed(unit).is_err() {
                return;
            }
        }
    }

    /// Takes a unit's failed state back, or notes why it stays. The report keeps the result of the stop.
    ///
    /// # Errors
    /// systemd is out of reach, so that nothing more can be asked of it.
    fn clear_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        if let Err(error) = self.units.reset_failed(unit) {
            self.report.notes.push(format!("the failed state of {unit} could not be cleared: {error}"));
            return if matches!(error, UnitsError::Unreachable(_)) { Err(error) } else { Ok(()) };
        }
        let (active, sub) = ("inactive".into(), "dead".into());
        if unit == self.names.server {
            (self.report.active_state, self.report.sub_state) = (active, sub);
        } else {
            (self.report.overlay.active_state, self.report.overlay.sub_state) = (active, sub);
        }
        Ok(())
    }

    /// Why nothing, or not all, was deleted.
    fn not_purged(&mut self, error: &HelperError) -> String {
        if let HelperError::StillMounted(mounts) = error {
            self.report.still_mounted.clone_from(mounts);
        }
        let mut text = chain(error);
        if matches!(error, HelperError::Locked(_)) {
            text.insert_str(0, "nothing was deleted: ");
        }
        // Who comes between the stop and the delete has the lock, or has mounted already.
        if let Ok(state) = self.look()
            && !is_all_down(&state)
        {
            text.push_str(&format!(
                "; {} is {} and {} is {}: somebody has started it meanwhile",
                self.names.server, state.server.active_state, self.names.overlay, state.overlay.active_state
            ));
        }
        text
    }

    fn still_mounted(&self) -> Result<Vec<PathBuf>, HelperError> {
        purge::still_mounted(&self.state()?.paths(self.instance), &self.host.mount_tables)
    }

    fn purge(&self) -> Result<(), HelperError> {
        let state = self.state()?;
        let deadline = Instant::now() + self.timeout;
        purge::purge(&state, &state.paths(self.instance), &self.host.mount_tables, deadline)
    }

    fn state(&self) -> Result<StateDir, HelperError> {
        StateDir::open(&self.host.state_dir)
    }

    fn job(&mut self, job: Job) -> Result<Ended, Failure> {
        self.units.run(job, &self.names, self.deadline).map_err(|error| {
            // The state it is in belongs to the report; why it cannot be had does not add to the error.
            if !matches!(error, UnitsError::Unreachable(_)) {
                drop(self.look());
            }
            error.into()
        })
    }

    /// Reads the units' states into the report.
    fn look(&mut self) -> Result<Pair<UnitState>, UnitsError> {
        let state = self.units.state(&self.names, self.asked)?;
        let Pair { server, overlay } = &state;
        self.report.active_state.clone_from(&server.active_state);
        self.report.sub_state.clone_from(&server.sub_state);
        self.report.result.clone_from(&server.result);
        self.report.restarts = server.restarts;
        self.report.overlay.active_state.clone_from(&overlay.active_state);
        self.report.overlay.sub_state.clone_from(&overlay.sub_state);
        self.report.overlay.result.clone_from(&overlay.result);
        // The server lives between the overlay's start and its stop.
        let is_of_start = |run: &&ExecRun| ["ExecStartPre", "ExecStart"].contains(&run.line);
        let of = |unit: &str, run: &ExecRun| reported(unit, run);
        self.report.exec = overlay
            .exec
            .iter()
            .filter(is_of_start)
            .map(|run| of(&self.names.overlay, run))
            .chain(server.exec.iter().map(|run| of(&self.names.server, run)))
            .chain(
                overlay.exec.iter().filter(|run| !is_of_start(run)).map(|run| of(&self.names.overlay, run)),
            )
            .collect();
        Ok(state)
    }

    /// The failure of a stop that left something mounted: what went wrong with it, if anything else did, and what to do.
    fn left_mounted(&self, stop: &Stop, and: &str, what_it_does: &str) -> Failure {
        let mounts: Vec<_> = self.report.still_mounted.iter().map(|path| shown(path)).collect();
        let merged = self.state().map(|state| state.paths(self.instance).merged);
        let others: Vec<_> = self
            .report
            .still_mounted
            .iter()
            .filter(|mount| merged.as_ref().is_ok_and(|merged| merged != *mount))
            .map(|mount| shown(mount))
            .collect();
        let mut sentences = stop.failed.clone();
        // A unit that was failed before is failed still, and is no failure of this stop; its unmount may be one.
        let overlay = &self.names.overlay;
        if !sentences.iter().any(|sentence| sentence.starts_with(overlay))
            && let Some(run) = ran_since(&stop.state.overlay, stop.begun).find(|run| run.has_failed())
        {
            sentences.push(format!("{overlay}: {}", self.refused_unmount(overlay, run)));
        }
        sentences.push(match mounts.as_slice() {
            [one] => format!("{one} is still mounted{and}"),
            more => format!("{} are still mounted{and}", more.join(", ")),
        });
        if !others.is_empty() {
            sentences.push(format!("unmount first what is not the overlay itself: {}", others.join(", ")));
        }
        sentences.push(format!(
            "once nobody uses it, `sudo l4d2ctl {} {}` {what_it_does}",
            self.report.action, self.instance
        ));
        Failure::new(sentences.join("; "))
    }
}

fn is_all_down(state: &Pair<UnitState>) -> bool {
    state.server.is_down() && state.overlay.is_down()
}

/// Whether a place is known to have nothing. What may not be looked at is left to systemd and the helper to judge.
fn is_missing(place: &Path) -> bool {
    std::fs::symlink_metadata(place).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// The name of a command's program, as it can be printed.
fn program(run: &ExecRun) -> String {
    let path = Path::new(run.argv.first().map_or("", String::as_str));
    shown(Path::new(path.file_name().unwrap_or(path.as_os_str())))
}

fn reported(unit: &str, run: &ExecRun) -> Exec {
    Exec {
        unit: unit.to_owned(),
        line: run.line,
        argv: run.argv.clone(),
        status: (run.code == CLD_EXITED).then_some(run.status),
        signal: matches!(run.code, CLD_KILLED | CLD_DUMPED).then_some(run.status),
        duration_us: (run.started_us > 0 && run.exited_us > 0)
            .then(|| run.exited_us.saturating_sub(run.started_us)),
    }
}

/// The unit's ExecStopPost runs that ended since `since_us`; an older one is of an earlier stop.
fn ran_since(state: &UnitState, since_us: u64) -> impl Iterator<Item = &ExecRun> {
    state.exec.iter().filter(move |run| run.line == "ExecStopPost" && run.exited_us >= since_us)
}

/// The time of the ExecStopPost runs that began since `since_us`.
fn umount_us(state: &Pair<UnitState>, since_us: u64) -> Option<u64> {
    state
        .each()
        .into_iter()
        .flat_map(|state| ran_since(state, since_us))
        .filter(|run| run.started_us >= since_us)
        .map(|run| run.exited_us.saturating_sub(run.started_us))
        .reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::units::Activity;

    const SERVER: &str = "left4me-server@3.service";
    const OVERLAY: &str = "left4me-overlay@3.service";

    /// Plays systemd: what it says at each look and to each job, in order, of which the last stays.
    #[derive(Clone)]
    struct Play {
        before: Pair<String>,
        looks: Vec<Pair<UnitState>>,
        results: Vec<Result<&'static str, UnitsError>>,
        /// Whether the server's unit requires the overlay's.
        requires: bool,
        /// The mount table, and after how many jobs nothing is mounted any more.
        unmounted: Option<(PathBuf, usize)>,
        asked: Vec<String>,
    }

    fn next<T: Clone>(of: &mut Vec<T>) -> T {
        if of.len() > 1 { of.remove(0) } else { of[0].clone() }
    }

    impl Units for Play {
        fn run(&mut self, job: Job, names: &Names, _deadline: Instant) -> Result<Ended, UnitsError> {
            self.asked.push(format!("{job:?} {}", job.unit(names)));
            if let Some((table, jobs)) = &self.unmounted
                && self.asked.len() == *jobs
            {
                fs::write(table, "").unwrap();
            }
            let result = next(&mut self.results)?.to_owned();
            Ok(Ended { before: self.before.clone(), result })
        }

        fn state(&mut self, _names: &Names, _asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
            Ok(next(&mut self.looks))
        }

        fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
            self.asked.push(format!("reset-failed {unit}"));
            Ok(())
        }

        fn requires_overlay(&mut self, _names: &Names) -> Result<bool, UnitsError> {
            Ok(self.requires)
        }

        fn activity(&mut self, _units: &[String]) -> Result<Vec<Activity>, UnitsError> {
            unreachable!("asked for several instances at once")
        }

        fn wait_until_down(&mut self, _units: &[String], _deadline: Instant) -> Result<(), UnitsError> {
            unreachable!("asked for several instances at once")
        }
    }

    /// The plain play: units that were active are both as given now, after a job that is done.
    fn play(server: UnitState, overlay: UnitState) -> Play {
        Play {
            before: Pair { server: "active".into(), overlay: "active".into() },
            looks: vec![Pair { server, overlay }],
            results: vec![Ok("done")],
            requires: true,
            unmounted: None,
            asked: Vec::new(),
        }
    }

    fn stopped() -> Play {
        play(state("inactive", "success", &[]), state("inactive", "success", &[NOW]))
    }

    impl Play {
        fn before(mut self, server: &str, overlay: &str) -> Self {
            self.before = Pair { server: server.into(), overlay: overlay.into() };
            self
        }

        fn then(mut self, server: UnitState, overlay: UnitState) -> Self {
            self.looks.push(Pair { server, overlay });
            self
        }

        fn ends(mut self, results: &[&'static str]) -> Self {
            self.results = results.iter().map(|result| Ok(*result)).collect();
            self
        }

        fn unmounts(mut self, host: &Host, jobs: usize) -> Self {
            self.unmounted = Some((host.mount_tables[0].clone(), jobs));
            self
        }

        fn act(&mut self, action: Action, host: &Host) -> Report {
            run(self, host, action, &"3".parse().unwrap(), DEFAULT_TIMEOUT)
        }
    }

    /// A run of a command: the setting, its status, when it started.
    type Ran = (&'static str, i32, u64);
    /// An unmount in this stop, and one in an earlier one.
    const NOW: Ran = ("ExecStopPost", 0, u64::MAX - 500);
    const REFUSED: Ran = ("ExecStopPost", 32, u64::MAX - 500);
    const REFUSED_BEFORE: Ran = ("ExecStopPost", 32, 1);

    fn state(active: &str, result: &str, exec: &[Ran]) -> UnitState {
        let exec = exec.iter().map(|&(line, status, started_us)| ExecRun {
            line,
            argv: vec!["/x/left4me-overlay".into()],
            started_us,
            exited_us: started_us + 500,
            code: CLD_EXITED,
            status,
        });
        UnitState {
            load_state: "loaded".into(),
            active_state: active.into(),
            sub_state: "x".into(),
            result: result.into(),
            restarts: 0,
            exec: exec.collect(),
        }
    }

    fn host(mounted: bool) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().canonicalize().unwrap();
        let runtime = state_dir.join("runtime/3");
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(runtime.join(name)).unwrap();
        }
        fs::write(runtime.join("upper/precious"), "").unwrap();
        fs::create_dir(state_dir.join("instances")).unwrap();
        fs::write(state_dir.join("instances/3.toml"), "").unwrap();
        let line = format!("1 2 0:3 / {}/merged rw - overlay overlay rw\n", runtime.display());
        let table = directory.path().join("mountinfo");
        fs::write(&table, if mounted { line } else { String::new() }).unwrap();
        (directory, Host { state_dir, mount_tables: vec![table], ..Host::default() })
    }

    fn has_upper(host: &Host) -> bool {
        host.state_dir.join("runtime/3/upper/precious").exists()
    }

    fn contains_all(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_clean_reset_stops_the_overlay_and_deletes() {
        let (_directory, host) = host(false);
        let mut play = stopped();
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, report.ok, &report.error), (Exit::Ok, true, &None));
        assert_eq!((report.phases.umount_us, report.notes.len()), (Some(500), 0));
        assert!(report.phases.stop_us.is_some() && report.phases.purge_us.is_some());
        assert!(!host.state_dir.join("runtime/3").exists());
        assert_eq!(play.asked, [format!("Stop {OVERLAY}")]);
        let told: Vec<_> = report.exec.iter().map(|exec| (exec.unit.as_str(), exec.line)).collect();
        assert_eq!(told, [(OVERLAY, "ExecStopPost")]);
    }

    #[test]
    fn a_refused_unmount_deletes_nothing_and_is_not_tried_again() {
        let (_directory, host) = host(true);
        let mut play = play(state("inactive", "success", &[]), state("failed", "exit-code", &[REFUSED]));
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, report.ok), (Exit::Failed, false));
        contains_all(
            &report.error.unwrap(),
            &[
                &format!("{OVERLAY} failed (result exit-code)"),
                "ExecStopPost ended with status 32",
                &format!("journalctl -u {OVERLAY}"),
                "merged is still mounted and nothing was deleted",
                "once nobody uses it, `sudo l4d2ctl reset 3` unmounts it and deletes",
            ],
        );
        assert_eq!(play.asked, [format!("Stop {OVERLAY}")]);
        assert_eq!(report.still_mounted, [host.state_dir.join("runtime/3/merged")]);
        assert_eq!(report.phases.purge_us, None);
        assert!(has_upper(&host));
        // With what the helper left, if that was this time.
        for (time, is_told) in [(u64::MAX - 100, true), (7, false)] {
            let note = host.state_dir.join("runtime/3/busy");
            fs::write(&note, format!("{time}\nheld by 7 (bash): working directory\n")).unwrap();
            // A unit that was failed before is no failure of this stop, and its unmount is.
            for before in ["active", "failed"] {
                let error = play.clone().before("active", before).act(Action::Stop, &host).error.unwrap();
                let told = "status 32: the umount failed: EBUSY: held by 7 (bash): working directory; ";
                assert_eq!(error.contains(told), is_told, "{error}");
                contains_all(&error, &["once nobody uses it, `sudo l4d2ctl stop 3` unmounts it"]);
            }
        }
    }

    #[test]
    fn what_an_earlier_stop_left_mounted_is_unmounted_once() {
        let down = || state("inactive", "success", &[]);
        // The overlay's unit as an earlier refusal leaves it, and as one that never ran, as after an upgrade.
        for left in [state("failed", "exit-code", &[REFUSED_BEFORE]), state("inactive", "success", &[])] {
            for action in [Action::Stop, Action::Reset] {
                let (_directory, host) = host(true);
                let before = left.active_state.clone();
                let healed = state("inactive", "success", &[NOW]);
                let mut play = play(down(), left.clone())
                    .before("inactive", &before)
                    .then(down(), healed)
                    .unmounts(&host, 3);
                let report = play.act(action, &host);
                let jobs = [format!("Stop {OVERLAY}"), format!("Mount {OVERLAY}"), format!("Stop {OVERLAY}")];
                assert_eq!(play.asked, jobs);
                assert_eq!((report.exit, report.error), (Exit::Ok, None));
                contains_all(&report.notes.join("; "), &["an earlier stop had left the overlay mounted"]);
                assert_eq!(has_upper(&host), action == Action::Stop);
            }
        }
        // A start that fails, since a layer is gone, runs ExecStopPost as well.
        let (_directory, host) = host(true);
        let mut play = play(down(), down())
            .then(down(), state("failed", "exit-code", &[("ExecStart", 1, 1), NOW]))
            .ends(&["done", "failed", "done"])
            .unmounts(&host, 2);
        let report = play.act(Action::Stop, &host);
        assert_eq!((report.exit, report.overlay.active_state.as_str()), (Exit::Ok, "inactive"));
        assert_eq!(play.asked.last().unwrap(), &format!("reset-failed {OVERLAY}"));
    }

    #[test]
    fn what_cannot_be_unmounted_then_either_is_told() {
        let (_directory, host) = host(true);
        let down = state("inactive", "success", &[]);
        let mut play = play(down.clone(), state("failed", "exit-code", &[REFUSED_BEFORE]))
            .before("inactive", "failed")
            .then(down, state("failed", "exit-code", &[REFUSED]));
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, play.asked.len(), report.notes.len()), (Exit::Failed, 3, 0));
        contains_all(
            &report.error.unwrap(),
            &["ended with status 32", "still mounted and nothing was deleted"],
        );
        assert!(has_upper(&host));
    }

    #[test]
    fn what_lies_over_the_overlay_is_named_and_no_overlay_is_left() {
        let (_directory, host) = host(false);
        let below = host.state_dir.join("runtime/3/upper/a");
        fs::write(&host.mount_tables[0], format!("1 2 0:3 / {} rw - tmpfs t rw\n", below.display())).unwrap();
        let mut play = stopped();
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, play.asked.len()), (Exit::Failed, 1));
        contains_all(
            &report.error.unwrap(),
            &["unmount first what is not the overlay itself: ", "runtime/3/upper/a"],
        );
        assert!(has_upper(&host));
    }

    #[test]
    fn a_killed_server_fails_a_stop_and_not_a_reset() {
        let killed = || state("failed", "timeout", &[]);
        let unmounted = || state("inactive", "success", &[NOW]);
        let (_directory, host) = host(false);
        let mut play = play(killed(), unmounted());
        let report = play.act(Action::Stop, &host);
        assert_eq!((report.exit, report.active_state.as_str()), (Exit::Failed, "failed"));
        contains_all(
            &report.error.unwrap(),
            &[
                &format!(
                    "{SERVER} failed (result timeout): it did not end within its stop timeout and was killed"
                ),
                "what the server was saving may be lost",
                &format!("`sudo systemctl reset-failed {SERVER}` clears"),
            ],
        );
        assert!(has_upper(&host));
        let mut play = self::play(killed(), unmounted());
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, report.ok, &report.error), (Exit::Ok, true, &None));
        assert_eq!((report.active_state.as_str(), report.result.as_str()), ("inactive", "timeout"));
        assert_eq!(play.asked, [format!("Stop {OVERLAY}"), format!("reset-failed {SERVER}")]);
        contains_all(&report.notes.join("\n"), &["result timeout", "all it wrote was deleted anyway"]);
        assert!(!host.state_dir.join("runtime/3").exists());
    }

    #[test]
    fn an_old_failure_is_not_this_stops_and_a_reset_clears_it() {
        let (_directory, host) = host(false);
        let mut play = play(state("failed", "signal", &[]), state("inactive", "success", &[]))
            .before("failed", "inactive");
        let report = play.clone().act(Action::Stop, &host);
        assert_eq!((report.exit, report.active_state.as_str()), (Exit::Ok, "failed"));
        let report = play.act(Action::Reset, &host);
        assert_eq!((report.exit, report.active_state.as_str()), (Exit::Ok, "inactive"));
        contains_all(&report.notes.join("\n"), &[&format!("{SERVER} had failed before (result signal)")]);
    }

    #[test]
    fn refusals_come_through_and_delete_nothing() {
        for (error, exit, part) in [
            (UnitsError::Denied("Interactive authentication required.".into()), Exit::Failed, "use sudo"),
            (UnitsError::Deadline, Exit::Failed, "deadline"),
            (UnitsError::NoSuchUnit("Unit x not loaded.".into()), Exit::NoSuchUnit, "Unit x not loaded."),
        ] {
            let (_directory, host) = host(false);
            let mut play = Play { results: vec![Err(error)], ..stopped() };
            let report = play.act(Action::Reset, &host);
            assert_eq!(report.exit, exit);
            assert!(report.error.unwrap().contains(part));
            assert!(has_upper(&host));
        }
    }

    #[test]
    fn only_a_stop_that_is_done_with_all_down_deletes() {
        let states = ["active", "activating", "deactivating", "reloading", "inactive", "failed"];
        for result in ["done", "canceled", "timeout", "dependency", "failed", "skipped"] {
            for (server, overlay) in states.iter().flat_map(|one| states.map(|other| (*one, other))) {
                let (_directory, host) = host(false);
                let is_stopped = result == "done"
                    && [server, overlay].iter().all(|state| ["inactive", "failed"].contains(state));
                let mut play =
                    play(state(server, "success", &[]), state(overlay, "success", &[NOW])).ends(&[result]);
                let report = play.act(Action::Reset, &host);
                assert_eq!((report.exit == Exit::Ok, has_upper(&host)), (is_stopped, !is_stopped));
                if !is_stopped {
                    assert_eq!(report.phases.purge_us, None);
                    let error = report.error.unwrap();
                    contains_all(&error, &["nothing was deleted", OVERLAY, &format!("{SERVER} is {server}")]);
                    let report = play.act(Action::Stop, &host);
                    assert_eq!(report.exit, Exit::Failed, "a stop is none either");
                }
            }
        }
    }

    #[test]
    fn a_server_that_does_not_require_its_overlay_is_stopped_by_itself() {
        let (_directory, host) = host(false);
        let never = || state("inactive", "success", &[]);
        let mut play = play(state("active", "success", &[]), never())
            .then(state("inactive", "success", &[NOW]), never());
        play.requires = false;
        let report = play.act(Action::Reset, &host);
        assert_eq!(play.asked, [format!("Stop {OVERLAY}"), format!("StopServer {SERVER}")]);
        assert_eq!((report.exit, report.phases.umount_us), (Exit::Ok, Some(500)));
        contains_all(&report.notes.join("\n"), &["does not require", "systemctl daemon-reload"]);
    }

    #[test]
    fn who_starts_it_between_stop_and_delete_keeps_what_is_there() {
        // Who holds the lock, and who has mounted.
        for is_locked in [true, false] {
            let (_directory, host) = host(false);
            let runtime = host.state_dir.join("runtime/3");
            let running = state("active", "success", &[]);
            let mut play = stopped().then(running.clone(), running);
            let held = fs::File::open(&runtime).unwrap();
            if is_locked {
                rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
            } else {
                // A file in the mountpoint plays the mount that the last gate would meet.
                fs::write(runtime.join("merged/mounted"), "").unwrap();
            }
            let short = Duration::from_millis(20);
            let report = run(&mut play, &host, Action::Reset, &"3".parse().unwrap(), short);
            assert_eq!(report.exit, Exit::Failed);
            let started =
                format!("{SERVER} is active and {OVERLAY} is active: somebody has started it meanwhile");
            contains_all(&report.error.unwrap(), &["nothing was deleted", &started]);
            assert!(has_upper(&host));
        }
    }

    #[test]
    fn a_reset_of_what_there_is_nothing_of_is_an_error() {
        let (_directory, host) = host(false);
        let act = |play: &mut Play, name: &str| {
            run(play, &host, Action::Reset, &name.parse().unwrap(), DEFAULT_TIMEOUT)
        };
        let mut play = stopped();
        let report = act(&mut play, "33");
        assert_eq!((report.exit, play.asked.len()), (Exit::NoSuchUnit, 0));
        contains_all(
            &report.error.unwrap(),
            &["no instance 33", "instances/33.toml", "runtime/33", "left4me-server@33.service does not run"],
        );
        // Something of it is there: what a reset was killed over, or a server without any file.
        fs::create_dir(host.state_dir.join("runtime/.purge-34")).unwrap();
        assert_eq!(act(&mut stopped(), "34").exit, Exit::Ok);
        assert!(!host.state_dir.join("runtime/.purge-34").exists());
        let active = state("active", "success", &[]);
        let down = state("inactive", "success", &[]);
        let mut play = self::play(active.clone(), active).then(down.clone(), down);
        assert_eq!(act(&mut play, "35").exit, Exit::Ok);
        assert_eq!(play.asked, ["Stop left4me-overlay@35.service"]);
    }

    #[test]
    fn a_start_needs_the_instances_file() {
        let (_directory, host) = host(false);
        fs::remove_file(host.state_dir.join("instances/3.toml")).unwrap();
        let mut play = stopped();
        let report = play.act(Action::Start, &host);
        assert_eq!((report.exit, play.asked.len()), (Exit::NoSuchUnit, 0));
        contains_all(&report.error.unwrap(), &["no instance file", "instances/3.toml"]);
    }

    #[test]
    fn a_reset_without_rights_does_not_begin() {
        assert!(may(Action::Reset, true).is_ok() && may(Action::Stop, false).is_ok());
        let refusal = may(Action::Reset, false).unwrap_err().to_string();
        assert!(refusal.contains("use sudo") && refusal.contains("nothing was stopped"), "{refusal}");
    }

    #[test]
    fn starts() {
        let (_directory, host) = host(false);
        let active = || state("active", "success", &[]);
        let mut play = play(active(), active());
        let report = play.act(Action::Start, &host);
        assert_eq!((report.exit, report.error), (Exit::Ok, None));
        assert_eq!(play.asked, [format!("Start {SERVER}")]);
        let table = [
            (
                state("failed", "exit-code", &[("ExecStart", 203, 1)]),
                active(),
                "failed",
                [SERVER, "; ExecStart (left4me-overlay) ended with status 203", SERVER],
            ),
            (
                state("inactive", "success", &[]),
                state("failed", "exit-code", &[("ExecStart", 0, 1), ("ExecStart", 1, 1), NOW]),
                "dependency",
                [
                    "it needs left4me-overlay@3.service, which is failed",
                    "; ExecStart (left4me-overlay) ended with status 1",
                    OVERLAY,
                ],
            ),
            (
                state("inactive", "success", &[]),
                UnitState { load_state: "not-found".into(), ..state("inactive", "success", &[]) },
                "dependency",
                ["which is not-found, inactive", "", OVERLAY],
            ),
        ];
        for (server, overlay, result, [first, second, journal]) in table {
            let report = self::play(server, overlay).ends(&[result]).act(Action::Start, &host);
            assert_eq!(report.exit, Exit::Failed);
            let journal = format!("journalctl -u {journal}");
            contains_all(&report.error.unwrap(), &[&format!("ended \"{result}\""), first, second, &journal]);
        }
    }

    #[test]
    fn statuses_exit_as_systemctls() {
        let (_directory, host) = host(false);
        let missing = UnitState { load_state: "not-found".into(), ..state("inactive", "success", &[]) };
        for (server, exit) in [
            (state("active", "success", &[]), Exit::Ok),
            (state("inactive", "success", &[]), Exit::NotRunning),
            (state("failed", "timeout", &[]), Exit::NotRunning),
            (state("activating", "success", &[]), Exit::NotRunning),
            (missing, Exit::NoSuchUnit),
        ] {
            let mut play = play(server, state("active", "success", &[]));
            assert_eq!(play.act(Action::Status, &host).exit, exit);
            assert_eq!(play.asked, [""; 0]);
        }
    }

    #[test]
    fn only_the_runs_of_this_stop_count_as_its_umount() {
        let one = |mut run: ExecRun, change: fn(&mut ExecRun)| {
            change(&mut run);
            UnitState { exec: vec![run], ..UnitState::default() }
        };
        let run = state("inactive", "success", &[NOW]).exec.remove(0);
        let both = |state: &UnitState| Pair { server: state.clone(), overlay: state.clone() };
        let plain = one(run.clone(), |_run| ());
        assert_eq!(umount_us(&both(&plain), u64::MAX - 500), Some(1000));
        assert_eq!(umount_us(&both(&plain), u64::MAX - 499), None, "it began before");
        assert_eq!(ran_since(&plain, u64::MAX - 499).count(), 1, "and ended since");
        assert_eq!(umount_us(&both(&one(run.clone(), |run| run.exited_us = 0)), 1), None);
        let endless = one(run, |run| (run.started_us, run.exited_us) = (0, u64::MAX));
        assert_eq!(umount_us(&both(&endless), 0), Some(u64::MAX), "and none is too long");
    }
}
