//! What an action does of a systemd that is played, and what it says.

use std::fs;
use std::path::PathBuf;

use futures_lite::future::block_on;

use super::stop::{ran_since, umount_us};
use super::*;
use crate::actions::DEFAULT_TIMEOUT;
use crate::units::{Activity, CLD_EXITED, Pair};

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
    /// The instance's file, which somebody deletes during a job.
    deleted: Option<PathBuf>,
    asked: Vec<String>,
}

fn next<T: Clone>(of: &mut Vec<T>) -> T {
    if of.len() > 1 { of.remove(0) } else { of[0].clone() }
}

impl Units for Play {
    async fn run(&mut self, job: Job, names: &Names, _deadline: Instant) -> Result<Ended, UnitsError> {
        self.asked.push(format!("{job:?} {}", job.unit(names)));
        if let Some((table, jobs)) = &self.unmounted
            && self.asked.len() == *jobs
        {
            fs::write(table, "").unwrap();
        }
        if let Some(file) = &self.deleted {
            fs::remove_file(file).unwrap();
        }
        let result = next(&mut self.results)?.to_owned();
        Ok(Ended { before: self.before.clone(), result })
    }

    async fn state(&mut self, _names: &Names, _asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        Ok(next(&mut self.looks))
    }

    async fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.asked.push(format!("reset-failed {unit}"));
        Ok(())
    }

    async fn requires_overlay(&mut self, _names: &Names) -> Result<bool, UnitsError> {
        Ok(self.requires)
    }

    async fn activity(&mut self, _units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        unreachable!("asked for several instances at once")
    }

    async fn wait_until_down(&mut self, _units: &[String], _deadline: Instant) -> Result<(), UnitsError> {
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
        deleted: None,
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
        block_on(run(self, host, action, &"3".parse().unwrap(), DEFAULT_TIMEOUT))
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
    let told: Vec<_> = report.exec.iter().map(|exec| (exec.unit.as_str(), exec.line.as_str())).collect();
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
    contains_all(&report.error.unwrap(), &["ended with status 32", "still mounted and nothing was deleted"]);
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
        &["unmount first what is not the overlay itself: `sudo umount ", "runtime/3/upper/a`"],
    );
    assert!(has_upper(&host));
}

#[test]
fn the_advice_runs_nothing_that_a_mount_is_called() {
    let (_directory, host) = host(false);
    let below = host.state_dir.join("runtime/3/merged/$(reboot) now");
    // As in mountinfo: a blank is \040.
    let place = below.display().to_string().replace(' ', "\\040");
    fs::write(&host.mount_tables[0], format!("1 2 0:3 / {place} rw - fuse.sshfs x rw\n")).unwrap();
    let error = stopped().act(Action::Reset, &host).error.unwrap();
    contains_all(&error, &[&format!("`sudo umount '{}'`", below.display())]);
}

#[test]
fn what_covers_the_overlay_is_unmounted_by_the_advice() {
    let (_directory, host) = host(false);
    let merged = host.state_dir.join("runtime/3/merged");
    let line = |fstype| format!("1 2 0:3 / {} rw - {fstype} x rw\n", merged.display());
    for (table, is_covered) in [(line("overlay"), false), (line("overlay") + &line("tmpfs"), true)] {
        fs::write(&host.mount_tables[0], table).unwrap();
        let error = stopped().act(Action::Reset, &host).error.unwrap();
        let advice = format!("what is not the overlay itself: `sudo umount {}`", merged.display());
        assert_eq!(error.contains(&advice), is_covered, "{error}");
    }
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
    let mut play =
        play(state("failed", "signal", &[]), state("inactive", "success", &[])).before("failed", "inactive");
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
    let mut play =
        play(state("active", "success", &[]), never()).then(state("inactive", "success", &[NOW]), never());
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
        let report = block_on(run(&mut play, &host, Action::Reset, &"3".parse().unwrap(), short));
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
        block_on(run(play, &host, Action::Reset, &name.parse().unwrap(), DEFAULT_TIMEOUT))
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
fn a_start_of_what_somebody_destroys_leaves_no_failed_unit() {
    for (overlay, result) in [("failed", "dependency"), ("inactive", "canceled")] {
        let (_directory, host) = host(false);
        let mut play =
            play(state("inactive", "success", &[]), state(overlay, "exit-code", &[])).ends(&[result]);
        play.deleted = Some(host.state_dir.join("instances/3.toml"));
        let report = play.act(Action::Start, &host);
        assert_eq!(report.exit, Exit::NoSuchUnit);
        contains_all(
            &report.error.unwrap(),
            &["somebody has destroyed it meanwhile", "instances/3.toml is gone"],
        );
        assert_eq!(
            play.asked.last().unwrap().starts_with("reset-failed"),
            overlay == "failed",
            "{:?}",
            play.asked
        );
    }
}

#[test]
fn a_start_that_somebody_else_ends_says_so_and_sends_nobody_to_the_journal() {
    let (_directory, host) = host(false);
    let down = || state("inactive", "success", &[]);
    let told = |overlay, result| {
        let report = play(down(), overlay).ends(&[result]).act(Action::Start, &host);
        assert_eq!(report.exit, Exit::Failed);
        report.error.unwrap()
    };
    let cancelled = told(down(), "canceled");
    contains_all(&cancelled, &["ended \"canceled\", as somebody asked", &format!("{SERVER} is inactive")]);
    assert!(!cancelled.contains("journal"), "{cancelled}");
    let stopped = told(down(), "done");
    contains_all(
        &stopped,
        &["is inactive: somebody has stopped it since", &format!("journalctl -u {SERVER}")],
    );
    // What failed is told, whoever cancelled the job.
    let failed = told(state("failed", "exit-code", &[("ExecStart", 1, 1)]), "canceled");
    contains_all(&failed, &["which is failed", "ended with status 1", &format!("journalctl -u {OVERLAY}")]);
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
