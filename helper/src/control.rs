//! Start, stop, reset and status of an instance: the decisions, and the report they end in.
//!
//! systemd is behind the trait [`Units`], so that a page can call this and a test can play systemd. Nothing here
//! waits, sleeps or asks twice: a job is sent and its end awaited, once, with a deadline.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use holders::shown;

use crate::busy;
use crate::error::{HelperError, chain};
use crate::instance::{Instance, STATE_DIR};
use crate::purge;
use crate::report::{Exec, Exit, Phases, Report};
use crate::state::{StateDir, directory_beneath};

/// How long a job may take unless told otherwise: the unit's stop timeout (15 s) for the server, the same again for
/// ExecStopPost, and as much in hand as a slow machine may want.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// What is asked of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the unit.
    Start,
    /// Stop the unit.
    Stop,
    /// Stop the unit and delete `runtime/<id>`.
    Reset,
    /// Say how it is.
    Status,
}

/// A job for systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// `StartUnit`.
    Start,
    /// `StopUnit`.
    Stop,
}

/// A unit as systemd sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found`, `bad-setting` and so on.
    pub load_state: String,
    /// `active`, `inactive`, `failed`, `activating` and so on.
    pub active_state: String,
    /// The finer state.
    pub sub_state: String,
    /// The service's result.
    pub result: String,
    /// NRestarts.
    pub restarts: u32,
    /// Every command's last run.
    pub exec: Vec<ExecRun>,
}

/// One entry of `ExecStartPreEx` and its like, org.freedesktop.systemd1(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRun {
    /// The setting.
    pub line: &'static str,
    /// The command with its arguments.
    pub argv: Vec<String>,
    /// When it started, microseconds of CLOCK_MONOTONIC; 0 if it has not run.
    pub started_us: u64,
    /// When it ended; 0 if it has not.
    pub exited_us: u64,
    /// How it ended: CLD_EXITED (1), CLD_KILLED (2) or CLD_DUMPED (3), sigaction(2); 0 if it has not.
    pub code: i32,
    /// The exit status or the signal.
    pub status: i32,
}

/// Why systemd did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitsError {
    /// It cannot be reached.
    Unreachable(String),
    /// We have not the rights.
    Denied(String),
    /// It has no such unit.
    NoSuchUnit(String),
    /// The job had not ended by the deadline.
    Deadline,
    /// Anything else, in its own words.
    Other(String),
}

impl fmt::Display for UnitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "systemd cannot be reached over D-Bus: {why}"),
            Self::Denied(why) => write!(
                f,
                "no rights to do this: use sudo, or let a polkit rule allow org.freedesktop.systemd1.manage-units to \
                 start and stop ({why})"
            ),
            Self::NoSuchUnit(why) | Self::Other(why) => write!(f, "systemd: {why}"),
            Self::Deadline => {
                write!(
                    f,
                    "the job has not ended by the deadline; systemd goes on with it (`systemctl list-jobs`)"
                )
            }
        }
    }
}

impl std::error::Error for UnitsError {}

/// How a job went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The unit's ActiveState when the job was queued.
    pub before: String,
    /// The job's result: `done` if it went well.
    pub result: String,
}

/// What is needed of systemd.
pub trait Units {
    /// Queues a job in mode `replace` and waits for its end.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn run(&mut self, job: Job, unit: &str, deadline: Instant) -> Result<Ended, UnitsError>;

    /// The unit's state now.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn state(&mut self, unit: &str) -> Result<UnitState, UnitsError>;
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
        unit: instance.unit(),
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

/// How many instances are worked on at once. A stop is systemd's work and a delete the disk's; more at once only wait
/// for each other. And each asks eight questions at a time, of which dbus-daemon answers 128 to a connection
/// (`max_replies_per_connection`, dbus-daemon(1)).
const AT_ONCE: usize = 12;

/// Does `action` to all of `instances`, several at once, and says how each went, in their order. `done` hears of each
/// end as it comes.
pub fn run_all<U: Units + Clone + Send>(
    units: &U,
    host: &Host,
    action: Action,
    instances: &[Instance],
    timeout: Duration,
    done: &mut dyn FnMut(&Report),
) -> Vec<Report> {
    if let [only] = instances {
        // The usual case, which is worth no thread.
        let report = run(&mut units.clone(), host, action, only, timeout);
        done(&report);
        return vec![report];
    }
    let next = AtomicUsize::new(0);
    let (sender, reports) = mpsc::channel();
    let mut ended: Vec<Option<Report>> = vec![None; instances.len()];
    thread::scope(|scope| {
        for _ in 0..instances.len().min(AT_ONCE) {
            let (sender, next, mut units) = (sender.clone(), &next, units.clone());
            scope.spawn(move || {
                while let Some((index, instance)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    instances.get(index).map(|instance| (index, instance))
                } {
                    let report = run(&mut units, host, action, instance, timeout);
                    // Nobody listens any more only if the whole has failed already.
                    if sender.send((index, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (index, report) in reports {
            done(&report);
            ended[index] = Some(report);
        }
    });
    ended.into_iter().map(|report| report.expect("every instance was worked on")).collect()
}

/// All instances, numbers first: those with a file in `instances/`, and, unless they are to be started, those that
/// have a runtime directory only.
///
/// # Errors
/// The state directory cannot be read.
pub fn all_instances(state_dir: &Path, action: Action) -> Result<Vec<Instance>, HelperError> {
    let mut names = names_in(&state_dir.join("instances"))?
        .into_iter()
        .filter_map(|name| name.strip_suffix(".toml")?.parse().ok())
        .collect::<Vec<Instance>>();
    if action != Action::Start {
        names.extend(names_in(&state_dir.join("runtime"))?.into_iter().filter_map(|name| name.parse().ok()));
    }
    names.sort_by_key(|name| (name.as_str().parse::<u64>().unwrap_or(u64::MAX), name.to_string()));
    names.dedup();
    Ok(names)
}

fn names_in(directory: &Path) -> Result<Vec<String>, HelperError> {
    let failed = |error: std::io::Error| {
        HelperError::call("read directory", directory)(
            rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        )
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().unwrap_or_default()))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
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
        action: match action {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Reset => "reset",
            Action::Status => "status",
        },
        instance: instance.to_string(),
        unit: instance.unit(),
        ok: false,
        active_state: String::new(),
        sub_state: String::new(),
        result: String::new(),
        restarts: 0,
        exec: Vec::new(),
        phases: Phases::default(),
        still_mounted: Vec::new(),
        mounted: None,
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

struct Run<'a> {
    units: &'a mut dyn Units,
    host: &'a Host,
    instance: &'a Instance,
    unit: String,
    timeout: Duration,
    deadline: Instant,
    report: Report,
}

impl Run<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let Ended { result, .. } = self.job(Job::Start)?;
        let state = self.look()?;
        if result == "done" && state.active_state == "active" {
            return Ok(());
        }
        let mut text = format!("the start job ended \"{result}\" and the unit is {}", state.active_state);
        if let Some(failed) = first_failed(&state, "ExecStartPre") {
            text.push_str(&format!("; ExecStartPre ended with {}", ending(failed)));
        }
        text.push_str(&format!("; its journal says why: `journalctl -u {}`", self.unit));
        Err(Failure::new(text))
    }

    fn status(&mut self) -> Result<(), Failure> {
        let state = self.look()?;
        // Not everybody may read PID 1's mount table; then it is not known, which is no failure.
        self.report.mounted = self.still_mounted().ok().map(|mounts| !mounts.is_empty());
        if state.load_state == "not-found" {
            return Err(UnitsError::NoSuchUnit(format!("Unit {} could not be found.", self.unit)).into());
        }
        match state.active_state.as_str() {
            "active" | "reloading" | "refreshing" => Ok(()),
            _ => Err(Failure { exit: Exit::NotRunning, text: None }),
        }
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let problem = self.stop_unit()?;
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(problem, "", ""));
        }
        match problem {
            None => Ok(()),
            Some(problem) => Err(Failure::new(format!("{problem}{}", self.reset_failed_hint()))),
        }
    }

    fn reset(&mut self) -> Result<(), Failure> {
        let problem = self.stop_unit()?;
        if !self.report.still_mounted.is_empty() {
            return Err(self.left_mounted(problem, " and nothing was deleted", ", then reset again"));
        }
        if let Some(problem) = &problem
            && !is_down(&self.report.active_state)
        {
            // A server can run on an overlay that no table here lists: one that only its own namespace has left.
            return Err(Failure::new(format!(
                "{problem}; nothing was deleted, as a server may still run there; reset again once it is down \
                 (`systemctl status {}` says what it waits for)",
                self.unit
            )));
        }
        let begun = (self.host.now_us)();
        let purged = self.purge();
        self.report.phases.purge_us = Some((self.host.now_us)().saturating_sub(begun));
        if let Err(HelperError::StillMounted(mounts)) = &purged {
            self.report.still_mounted.clone_from(mounts);
        }
        match (purged, problem) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(problem)) => Err(Failure::new(format!(
                "{problem}; nothing is mounted any more and the runtime directory was deleted{}",
                self.reset_failed_hint()
            ))),
            (Err(error), None) => Err(error.into()),
            (Err(error), Some(problem)) => Err(Failure::new(format!("{problem}; {}", chain(&error)))),
        }
    }

    /// Stops the unit and looks at what is left: `Some` says what went wrong with the stop.
    ///
    /// The job is sent to a unit that does not run, too: it is a no-op there, ends at once, and takes back a start
    /// that is queued or about to be retried. Only what *this* stop did counts: a unit that was failed before is
    /// failed still.
    fn stop_unit(&mut self) -> Result<Option<String>, Failure> {
        let begun = (self.host.now_us)();
        let Ended { before, result } = self.job(Job::Stop)?;
        self.report.phases.stop_us = Some((self.host.now_us)().saturating_sub(begun));
        let after = self.look()?;
        self.report.phases.umount_us = umount_us(&after.exec, begun);
        self.report.still_mounted = self.still_mounted()?;
        let stopped = is_down(&after.active_state) && (after.active_state != "failed" || before == "failed");
        if result == "done" && stopped {
            return Ok(None);
        }
        let mut text = format!(
            "the stop job of {} ended \"{result}\" and the unit is {} (result {})",
            self.unit, after.active_state, after.result
        );
        if let Some(failed) = first_failed(&after, "ExecStopPost") {
            text.push_str(&format!("; ExecStopPost ended with {}", ending(failed)));
            if failed.code == CLD_EXITED && failed.status == 32 && !self.report.still_mounted.is_empty() {
                text.push_str(&match self.busy_note(failed) {
                    Some(verdict) => format!(": the umount failed: EBUSY: {verdict}"),
                    None => format!(": the umount failed; why is in `journalctl -u {}`", self.unit),
                });
            }
        }
        Ok(Some(text))
    }

    /// What the helper found out when its unmount was refused, if it was this run of it.
    fn busy_note(&self, run: &ExecRun) -> Option<String> {
        let state = self.state().ok()?;
        let runtime = directory_beneath(state.runtime().ok()??, Path::new(self.instance.as_str())).ok()?;
        busy::note_of(runtime, &(run.started_us..=run.exited_us))
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
        self.units.run(job, &self.unit, self.deadline).map_err(|error| {
            // The state it is in belongs to the report; why it cannot be had does not add to the error.
            if !matches!(error, UnitsError::Unreachable(_)) {
                drop(self.look());
            }
            error.into()
        })
    }

    /// Reads the unit's state into the report.
    fn look(&mut self) -> Result<UnitState, UnitsError> {
        let state = self.units.state(&self.unit)?;
        self.report.active_state.clone_from(&state.active_state);
        self.report.sub_state.clone_from(&state.sub_state);
        self.report.result.clone_from(&state.result);
        self.report.restarts = state.restarts;
        self.report.exec = state.exec.iter().map(reported).collect();
        Ok(state)
    }

    /// The failure of a stop that left something mounted: what went wrong with it, if anything else did, and what to do.
    fn left_mounted(&self, problem: Option<String>, and: &str, then: &str) -> Failure {
        let mounts: Vec<_> = self.report.still_mounted.iter().map(|path| shown(path)).collect();
        Failure::new(format!(
            "{}{} still mounted{and}; once nobody uses it: `left4me-overlay umount {}`{then}{}",
            problem.map_or(String::new(), |problem| format!("{problem}; ")),
            match mounts.as_slice() {
                [one] => format!("{one} is"),
                more => format!("{} are", more.join(", ")),
            },
            self.instance,
            self.reset_failed_hint(),
        ))
    }

    /// For the end of an error: a unit that failed stays so until it is started again, or told.
    fn reset_failed_hint(&self) -> String {
        if self.report.active_state != "failed" {
            return String::new();
        }
        format!("; `systemctl reset-failed {}` clears the failed state", self.unit)
    }
}

/// Whether a unit in this ActiveState has no process of its own any more, org.freedesktop.systemd1(5).
pub(crate) fn is_down(active_state: &str) -> bool {
    matches!(active_state, "inactive" | "failed")
}

/// `si_code` of SIGCHLD, sigaction(2).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

fn reported(run: &ExecRun) -> Exec {
    Exec {
        line: run.line,
        argv: run.argv.clone(),
        status: (run.code == CLD_EXITED).then_some(run.status),
        signal: matches!(run.code, CLD_KILLED | CLD_DUMPED).then_some(run.status),
        duration_us: (run.started_us > 0 && run.exited_us > 0)
            .then(|| run.exited_us.saturating_sub(run.started_us)),
    }
}

fn ending(run: &ExecRun) -> String {
    match run.code {
        CLD_EXITED => format!("status {}", run.status),
        _ => format!("signal {}", run.status),
    }
}

fn first_failed<'a>(state: &'a UnitState, line: &str) -> Option<&'a ExecRun> {
    state
        .exec
        .iter()
        .find(|run| run.line == line && run.code != 0 && (run.code, run.status) != (CLD_EXITED, 0))
}

/// The time of the ExecStopPost runs that began since `since_us`; an older run is of an earlier stop.
fn umount_us(exec: &[ExecRun], since_us: u64) -> Option<u64> {
    exec.iter()
        .filter(|run| run.line == "ExecStopPost" && run.started_us >= since_us && run.exited_us > 0)
        .map(|run| run.exited_us.saturating_sub(run.started_us))
        .reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// Plays systemd: a state before the job and for each look, in order (the last one stays), and one answer to a job.
    #[derive(Clone)]
    struct Play {
        states: Vec<UnitState>,
        job: Result<&'static str, UnitsError>,
        jobs: Vec<(Job, String)>,
    }

    impl Units for Play {
        fn run(&mut self, job: Job, unit: &str, _deadline: Instant) -> Result<Ended, UnitsError> {
            self.jobs.push((job, unit.to_owned()));
            let before = self.state(unit)?.active_state;
            Ok(Ended { before, result: self.job.clone()?.to_owned() })
        }

        fn state(&mut self, _unit: &str) -> Result<UnitState, UnitsError> {
            Ok(if self.states.len() > 1 { self.states.remove(0) } else { self.states[0].clone() })
        }
    }

    fn state(active: &str, result: &str, exec: &[(&'static str, i32)]) -> UnitState {
        let exec = exec.iter().map(|&(line, status)| ExecRun {
            line,
            argv: vec![line.to_owned()],
            started_us: u64::MAX - 500,
            exited_us: u64::MAX,
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
        let runtime = directory.path().join("runtime/3");
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(runtime.join(name)).unwrap();
        }
        fs::write(runtime.join("upper/precious"), "").unwrap();
        let line = format!("1 2 0:3 / {}/merged rw - overlay overlay rw\n", runtime.display());
        let table = directory.path().join("mountinfo");
        fs::write(&table, if mounted { line } else { String::new() }).unwrap();
        let state_dir = directory.path().to_owned();
        (directory, Host { state_dir, mount_tables: vec![table], ..Host::default() })
    }

    fn act(
        action: Action,
        host: &Host,
        states: &[UnitState],
        job: Result<&'static str, UnitsError>,
    ) -> Report {
        let mut play = Play { states: states.to_vec(), job, jobs: Vec::new() };
        let report = run(&mut play, host, action, &"3".parse().unwrap(), DEFAULT_TIMEOUT);
        let expected = match action {
            Action::Start => Some(Job::Start),
            Action::Stop | Action::Reset => Some(Job::Stop),
            Action::Status => None,
        };
        for (job, unit) in play.jobs {
            assert_eq!((Some(job), unit.as_str()), (expected, "left4me-server@3.service"));
        }
        report
    }

    fn has_upper(host: &Host) -> bool {
        host.state_dir.join("runtime/3/upper/precious").exists()
    }

    #[test]
    fn a_clean_reset_deletes() {
        let (_directory, host) = host(false);
        let states = [state("active", "success", &[]), state("inactive", "success", &[("ExecStopPost", 0)])];
        let report = act(Action::Reset, &host, &states, Ok("done"));
        assert_eq!((report.exit, report.ok, &report.error), (Exit::Ok, true, &None));
        assert_eq!(report.phases.umount_us, Some(500));
        assert!(report.phases.stop_us.is_some() && report.phases.purge_us.is_some());
        assert!(!host.state_dir.join("runtime/3").exists());
    }

    #[test]
    fn a_busy_umount_deletes_nothing() {
        let (_directory, host) = host(true);
        let states = [state("active", "success", &[]), state("failed", "exit-code", &[("ExecStopPost", 32)])];
        let report = act(Action::Reset, &host, &states, Ok("done"));
        assert_eq!((report.exit, report.ok), (Exit::Failed, false));
        let error = report.error.unwrap();
        for part in [
            "unit is failed",
            "ExecStopPost ended with status 32",
            "journalctl -u left4me-server@3.service",
            "merged is still mounted",
            "nothing was deleted",
            "left4me-overlay umount 3",
            "systemctl reset-failed left4me-server@3.service",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(report.still_mounted, [host.state_dir.join("runtime/3/merged")]);
        assert_eq!(report.phases.purge_us, None);
        assert!(has_upper(&host));
        // With what the helper left, if that was this time.
        for (time, is_told) in [(u64::MAX - 100, true), (7, false)] {
            let note = host.state_dir.join("runtime/3/busy");
            fs::write(&note, format!("{time}\nheld by 7 (bash): working directory\n")).unwrap();
            let error = act(Action::Reset, &host, &states, Ok("done")).error.unwrap();
            let told = "status 32: the umount failed: EBUSY: held by 7 (bash): working directory; ";
            assert_eq!(error.contains(told), is_told, "{error}");
        }
    }

    #[test]
    fn a_stop_that_failed_otherwise_still_resets_and_says_so() {
        let (_directory, host) = host(false);
        let states = [state("active", "success", &[]), state("failed", "timeout", &[("ExecStopPost", 0)])];
        let report = act(Action::Reset, &host, &states, Ok("done"));
        assert_eq!(report.exit, Exit::Failed);
        let error = report.error.unwrap();
        assert!(
            error.contains("result timeout")
                && error.contains("was deleted")
                && error.contains("reset-failed"),
            "{error}"
        );
        assert!(!host.state_dir.join("runtime/3").exists());
    }

    #[test]
    fn an_old_failure_is_not_this_stops() {
        let (_directory, host) = host(false);
        let report =
            act(Action::Reset, &host, &[state("failed", "signal", &[("ExecStopPost", 32)])], Ok("done"));
        assert_eq!((report.exit, report.active_state.as_str()), (Exit::Ok, "failed"));
        let (_directory, host) = self::host(true);
        let report =
            act(Action::Reset, &host, &[state("failed", "signal", &[("ExecStopPost", 32)])], Ok("done"));
        assert_eq!(report.exit, Exit::Failed);
        assert!(report.error.unwrap().contains("still mounted and nothing was deleted"));
        assert!(has_upper(&host));
    }

    #[test]
    fn refusals_come_through_and_delete_nothing() {
        let running = [state("active", "success", &[])];
        for (error, exit, part) in [
            (UnitsError::Denied("Interactive authentication required.".into()), Exit::Failed, "use sudo"),
            (UnitsError::Deadline, Exit::Failed, "deadline"),
            (UnitsError::NoSuchUnit("Unit x not loaded.".into()), Exit::NoSuchUnit, "Unit x not loaded."),
        ] {
            let (_directory, host) = host(false);
            let report = act(Action::Reset, &host, &running, Err(error));
            assert_eq!(report.exit, exit);
            assert!(report.error.unwrap().contains(part));
            assert!(has_upper(&host));
        }
    }

    #[test]
    fn a_server_that_did_not_stop_keeps_its_directory() {
        for now in ["active", "activating", "deactivating", "reloading"] {
            let (_directory, host) = host(false);
            let states = [state("active", "success", &[]), state(now, "success", &[])];
            let report = act(Action::Reset, &host, &states, Ok("canceled"));
            assert_eq!((report.exit, report.phases.purge_us), (Exit::Failed, None));
            let error = report.error.unwrap();
            assert!(error.contains(now) && error.contains("nothing was deleted"), "{error}");
            assert!(has_upper(&host));
        }
    }

    #[test]
    fn a_stop_that_leaves_the_overlay_mounted_is_none() {
        let (_directory, host) = host(true);
        for before in ["active", "inactive", "failed"] {
            let after = if before == "active" { "inactive" } else { before };
            let states = [state(before, "success", &[]), state(after, "success", &[])];
            let report = act(Action::Stop, &host, &states, Ok("done"));
            assert_eq!((report.exit, report.still_mounted.len()), (Exit::Failed, 1));
            let error = report.error.unwrap();
            assert!(error.contains("merged is still mounted; once nobody uses it"), "{error}");
        }
        let (_directory, host) = self::host(false);
        let states = [state("active", "success", &[]), state("inactive", "success", &[])];
        assert_eq!(act(Action::Stop, &host, &states, Ok("done")).exit, Exit::Ok);
    }

    #[test]
    fn several_are_reset_and_reported_in_their_order() {
        let (_directory, host) = host(false);
        for name in 10..60 {
            fs::create_dir_all(host.state_dir.join(format!("runtime/{name}/upper/d"))).unwrap();
        }
        fs::create_dir(host.state_dir.join("runtime/.purge-9")).unwrap();
        fs::create_dir(host.state_dir.join("instances")).unwrap();
        fs::write(host.state_dir.join("instances/b.toml"), "").unwrap();
        fs::write(host.state_dir.join("instances/2.toml"), "").unwrap();
        fs::write(host.state_dir.join("instances/2.env"), "").unwrap();
        let names = |action| {
            all_instances(&host.state_dir, action)
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Action::Start), ["2", "b"]);
        let expected: Vec<_> =
            [2, 3].into_iter().chain(10..60).map(|name| name.to_string()).chain(["b".into()]).collect();
        assert_eq!(names(Action::Reset), expected);
        let play =
            Play { states: vec![state("inactive", "success", &[])], job: Ok("done"), jobs: Vec::new() };
        let all = all_instances(&host.state_dir, Action::Reset).unwrap();
        let mut heard = 0;
        let reports = run_all(&play, &host, Action::Reset, &all, DEFAULT_TIMEOUT, &mut |_| heard += 1);
        assert_eq!(heard, all.len());
        assert!(reports.iter().all(|report| report.ok), "{reports:?}");
        assert!(reports.iter().map(|report| &report.instance).eq(&expected));
        let left: Vec<_> = fs::read_dir(host.state_dir.join("runtime"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".purge-9"]);
        assert_eq!(run_all(&play, &host, Action::Reset, &[], DEFAULT_TIMEOUT, &mut |_| ()), []);
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
        let report = act(Action::Start, &host, &[state("active", "success", &[])], Ok("done"));
        assert_eq!((report.exit, report.error), (Exit::Ok, None));
        let failed = state("failed", "exit-code", &[("ExecStartPre", 1)]);
        let report = act(Action::Start, &host, &[failed], Ok("failed"));
        assert_eq!(report.exit, Exit::Failed);
        let error = report.error.unwrap();
        assert!(
            error.contains("ended \"failed\"") && error.contains("ExecStartPre ended with status 1"),
            "{error}"
        );
    }

    #[test]
    fn statuses_exit_as_systemctls() {
        let (_directory, host) = host(false);
        let missing = UnitState { load_state: "not-found".into(), ..state("inactive", "success", &[]) };
        for (state, exit) in [
            (state("active", "success", &[]), Exit::Ok),
            (state("inactive", "success", &[]), Exit::NotRunning),
            (state("failed", "timeout", &[]), Exit::NotRunning),
            (state("activating", "success", &[]), Exit::NotRunning),
            (missing, Exit::NoSuchUnit),
        ] {
            assert_eq!(act(Action::Status, &host, &[state], Ok("done")).exit, exit);
        }
    }

    #[test]
    fn only_the_runs_of_this_stop_count_as_its_umount() {
        let mut runs = state("inactive", "success", &[("ExecStopPost", 0), ("ExecStart", 0)]).exec;
        assert_eq!(umount_us(&runs, u64::MAX - 500), Some(500));
        assert_eq!(umount_us(&runs, u64::MAX - 499), None);
        runs[0].exited_us = 0;
        assert_eq!(umount_us(&runs, 0), None);
        let run = ExecRun { started_us: 0, exited_us: u64::MAX, ..runs[0].clone() };
        assert_eq!(umount_us(&[run.clone(), run], 0), Some(u64::MAX), "and none is too long");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever else lies there: half-deleted, hidden, from an editor, or in another encoding.
        #[test]
        fn all_instances_are_those_that_have_something_each_once(
            files in prop::collection::vec("(\\.|A)?[ab12]{0,2}(\\.toml|\\.toml|\\.toml~|\\.env|\\.d)?", 0..8),
            directories in prop::collection::vec("(\\.purge-|é)?[ab12]{1,2}", 0..8),
        ) {
            let state = tempfile::tempdir().unwrap();
            for (place, names) in [("instances", &files), ("runtime", &directories)] {
                fs::create_dir(state.path().join(place)).unwrap();
                for name in names.iter().filter(|name| !["", "."].contains(&name.as_str())) {
                    fs::write(state.path().join(place).join(name), "").unwrap();
                }
            }
            let found = |action| -> Vec<String> {
                all_instances(state.path(), action).unwrap().iter().map(ToString::to_string).collect()
            };
            let to_start = found(Action::Start);
            for action in [Action::Stop, Action::Reset, Action::Status] {
                let all = found(action);
                prop_assert!(to_start.iter().all(|name| all.contains(name)), "{:?} of {:?}", to_start, all);
                for (at, name) in all.iter().enumerate() {
                    prop_assert!(!all[..at].contains(name), "{} twice in {:?}", name, all);
                    let has_file = files.contains(&format!("{name}.toml"));
                    prop_assert_eq!(to_start.contains(name), has_file);
                    prop_assert!(has_file || directories.contains(name), "{} is nowhere", name);
                }
                let numbers: Vec<u64> = all.iter().map_while(|name| name.parse().ok()).collect();
                prop_assert!(numbers.is_sorted());
                prop_assert_eq!(numbers.len(), all.iter().filter(|name| name.parse::<u64>().is_ok()).count());
                let is_name = |name: &&String| name.parse::<Instance>().is_ok();
                prop_assert!(directories.iter().filter(is_name).all(|name| all.contains(name)));
            }
        }
    }
}
