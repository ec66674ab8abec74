//! What must hold for `l4d2ctl` whatever systemd answers and whatever lies on the disk: a scene that bytes say, played
//! once, and looked at afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use left4me_ctl::actions::{Action, Host};
use left4me_ctl::control;
use left4me_ctl::report::{self, Exit, Report};
use left4me_ctl::units::{Activity, Ended, ExecRun, Job, Lines, Names, Pair, UnitState, Units, UnitsError};

const SERVER: &str = "left4me-server@3.service";
const OVERLAY: &str = "left4me-overlay@3.service";

/// What systemd says of itself in an error.
const ITS_WORDS: &str = "its own words";

/// Picks by one byte after another; when they are used up the first of everything, so that no byte is the plainest
/// scene.
struct Picks<'a>(&'a [u8]);

impl Picks<'_> {
    fn byte(&mut self) -> usize {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first.into()
    }

    fn of<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.byte() % options.len()].clone()
    }

    fn answer<T>(&mut self, good: impl FnOnce(&mut Self) -> T) -> Result<T, UnitsError> {
        let why = || ITS_WORDS.to_owned();
        match self.byte() % 16 {
            11 => Err(UnitsError::Unreachable(why())),
            12 => Err(UnitsError::Denied(why())),
            13 => Err(UnitsError::NoSuchUnit(why())),
            14 => Err(UnitsError::Deadline),
            15 => Err(UnitsError::Other(why())),
            _ => Ok(good(self)),
        }
    }

    fn active_state(&mut self) -> String {
        let all =
            ["inactive", "active", "failed", "activating", "deactivating", "reloading", "refreshing", "?"];
        self.of(&all).into()
    }

    fn state(&mut self) -> UnitState {
        let load_state = self.of(&["loaded", "not-found", "masked", "bad-setting"]).into();
        let active_state = self.active_state();
        let result = self.of(&["success", "exit-code", "timeout"]).into();
        let runs = self.byte() % 4;
        let exec = (0..runs).map(|_| self.run()).collect();
        let restarts = self.byte() as u32;
        UnitState { load_state, active_state, sub_state: "x".into(), result, restarts, exec }
    }

    fn ended(&mut self) -> Ended {
        let results = ["done", "canceled", "timeout", "failed", "dependency"];
        let before = Pair { server: self.active_state(), overlay: self.active_state() };
        Ended { before, result: self.of(&results).into() }
    }

    fn pair(&mut self) -> Pair<UnitState> {
        Pair { server: self.state(), overlay: self.state() }
    }

    fn run(&mut self) -> ExecRun {
        // Long ago, and at any time after now.
        let times = [0, 1, u64::MAX / 2, u64::MAX];
        ExecRun {
            line: self.of(&["ExecStopPost", "ExecStartPre", "ExecStart", "ExecStop"]),
            argv: vec!["/x".into()],
            started_us: self.of(&times),
            exited_us: self.of(&times),
            code: self.of(&[1, 0, 2, 3, 9]),
            status: self.of(&[0, 32, 1, 9]),
        }
    }
}

/// What a mount table lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounts {
    Nothing,
    /// At `runtime/3` or below it, or at what an earlier reset left of it.
    Ours(&'static str),
    /// Somewhere else, however like ours its name is.
    Others(&'static str),
    /// It can't be understood, or not be read.
    Unknown(Option<&'static str>),
}

const MOUNTS: [Mounts; 14] = [
    Mounts::Nothing,
    Mounts::Ours("runtime/3/merged"),
    Mounts::Nothing,
    Mounts::Others("runtime/30/merged"),
    Mounts::Ours("runtime/3"),
    Mounts::Ours("runtime/3/upper/a"),
    Mounts::Ours("runtime/.purge-3/merged"),
    Mounts::Others("runtime/3x"),
    Mounts::Others("runtime"),
    Mounts::Unknown(Some("garbage")),
    Mounts::Unknown(Some("1 2 0:3 /")),
    Mounts::Unknown(None),
    Mounts::Ours("runtime/3/merged/\\012l4d2ctl:\\033[2J"),
    Mounts::Ours("runtime/3/\\377"),
];

/// Two tables: PID 1's and our own.
type Tables = [Mounts; 2];

/// What is asked of systemd, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Run(Job),
    State,
    Requires,
    Clear(String),
}

/// What systemd says: to a job, and to each look, of which the last stays; and to whatever else it is asked.
#[derive(Debug, Clone)]
struct Answers {
    jobs: [Result<Ended, UnitsError>; 3],
    looks: [Result<Pair<UnitState>, UnitsError>; 3],
    requires: Result<bool, UnitsError>,
    clear: Result<(), UnitsError>,
}

/// Plays systemd, and the helper that it runs: the first job that ends leaves the mounts as they are `after` it, every
/// other one as they are `later`.
struct Play<'a> {
    answers: &'a Answers,
    directory: &'a Path,
    now: Tables,
    after: Tables,
    later: Tables,
    calls: Vec<Call>,
    /// What was answered to each call: whether it was, and the state that a look has shown.
    seen: Vec<Result<Option<Pair<UnitState>>, UnitsError>>,
}

impl Play<'_> {
    fn count(&self, is: fn(&Call) -> bool) -> usize {
        self.calls.iter().filter(|call| is(call)).count()
    }

    fn asked(&mut self, call: Call, answer: Result<Option<Pair<UnitState>>, UnitsError>) {
        let is_lost = matches!(self.seen.last(), Some(Err(UnitsError::Unreachable(_))));
        assert!(!is_lost, "{call:?} after systemd was out of reach: {:?}", self.calls);
        self.calls.push(call);
        self.seen.push(answer);
    }
}

impl Units for Play<'_> {
    async fn run(&mut self, job: Job, names: &Names, deadline: Instant) -> Result<Ended, UnitsError> {
        assert_eq!(names, &Pair { server: SERVER.to_owned(), overlay: OVERLAY.to_owned() });
        assert!(deadline > Instant::now());
        let number = self.count(|call| matches!(call, Call::Run(_)));
        let answer = self.answers.jobs[number.min(2)].clone();
        if answer.is_ok() {
            self.now = if number == 0 { self.after } else { self.later };
            write_tables(self.directory, self.now);
        }
        self.asked(Call::Run(job), answer.clone().map(|_ended| None));
        answer
    }

    async fn state(&mut self, names: &Names, _asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        assert_eq!(names.each(), [SERVER, OVERLAY]);
        let look = self.answers.looks[self.count(|call| *call == Call::State).min(2)].clone();
        self.asked(Call::State, look.clone().map(Some));
        look
    }

    async fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.asked(Call::Clear(unit.to_owned()), self.answers.clear.clone().map(|()| None));
        self.answers.clear.clone()
    }

    async fn requires_overlay(&mut self, _names: &Names) -> Result<bool, UnitsError> {
        self.asked(Call::Requires, self.answers.requires.clone().map(|_requires| None));
        self.answers.requires.clone()
    }

    async fn activity(&mut self, _units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        unreachable!("asked for several instances at once")
    }

    async fn wait_until_down(&mut self, _units: &[String], _deadline: Instant) -> Result<(), UnitsError> {
        unreachable!("asked for several instances at once")
    }
}

fn table(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("mountinfo-{number}"))
}

fn write_tables(directory: &Path, tables: Tables) {
    for (number, mounts) in tables.into_iter().enumerate() {
        let file = table(directory, number);
        let text = match mounts {
            Mounts::Nothing => "1 1 8:1 / / rw - ext4 s rw\n".into(),
            Mounts::Ours(path) | Mounts::Others(path) => {
                format!("9 1 0:3 / {}/{path} rw - overlay o rw\n", state_of(directory).display())
            }
            Mounts::Unknown(Some(text)) => text.to_owned(),
            Mounts::Unknown(None) => {
                drop(fs::remove_file(&file));
                continue;
            }
        };
        fs::write(&file, text).expect("write a table");
    }
}

fn state_of(directory: &Path) -> PathBuf {
    directory.join("state")
}

/// What is on the disk of instance 3; the first of each is as a stopped server leaves it.
#[derive(Debug, Clone, Copy)]
struct Disk {
    /// `runtime/3` itself.
    runtime: &'static str,
    merged: &'static str,
    trash: &'static str,
    /// The note of a refused unmount.
    note: Option<&'static str>,
    mode: u32,
    /// Whether the instance's file is there.
    has_file: bool,
}

fn make(directory: &Path, disk: Disk) {
    let state = state_of(directory);
    let create = |path: &Path, mode: u32| {
        fs::create_dir(path).expect("mkdir");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for path in ["", "instances", "runtime", "runtime/30", "runtime/30/upper"] {
        create(&state.join(path), 0o755);
    }
    let outside = directory.join("outside");
    create(&outside, 0o755);
    for file in [state.join("runtime/30/upper/theirs"), outside.join("file")] {
        fs::write(file, "kept").expect("write");
    }
    if disk.has_file {
        fs::write(state.join("instances/3.toml"), "kept").expect("write");
    }
    // A directory, a link to one outside, a file, or nothing.
    let put = |path: &Path, what: &str, mode: u32| match what {
        "directory" | "full" => {
            create(path, mode);
            if what == "full" {
                fs::write(path.join("stray"), "").expect("write");
            }
        }
        "link" => symlink(&outside, path).expect("symlink"),
        "file" => fs::write(path, "").expect("write"),
        _ => {}
    };
    let runtime = state.join("runtime/3");
    put(&runtime, disk.runtime, disk.mode);
    put(&state.join("runtime/.purge-3"), disk.trash, 0o755);
    if disk.runtime == "directory" {
        create(&runtime.join("upper"), 0o755);
        fs::write(runtime.join("upper/precious"), "").expect("write");
        put(&runtime.join("merged"), disk.merged, 0o755);
        if let Some(note) = disk.note {
            fs::write(runtime.join("busy"), note).expect("write");
        }
    }
}

/// Every name below a directory, with what it is.
fn listing(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut to_do = vec![directory.to_owned()];
    while let Some(at) = to_do.pop() {
        for entry in fs::read_dir(&at).expect("list") {
            let path = entry.expect("entry").path();
            let kind = fs::symlink_metadata(&path).expect("lstat").file_type();
            let what = if kind.is_dir() {
                to_do.push(path.clone());
                "directory".into()
            } else if kind.is_symlink() {
                format!("link to {}", fs::read_link(&path).expect("readlink").display())
            } else {
                fs::read_to_string(&path).expect("read")
            };
            found.insert(path, what);
        }
    }
    found
}

/// One action on a scene: what systemd says, what is mounted before and after the jobs, and what is on the disk.
pub fn control(data: &[u8]) {
    let mut picks = Picks(data);
    let action = picks.of(&[Action::Reset, Action::Stop, Action::Start, Action::Status]);
    let mut tables = || [picks.of(&MOUNTS), picks.of(&MOUNTS)];
    let [before, after, later]: [Tables; 3] = [tables(), tables(), tables()];
    let disk = Disk {
        runtime: picks.of(&["directory", "none", "link", "file"]),
        merged: picks.of(&["directory", "none", "full", "link", "file"]),
        trash: picks.of(&["none", "directory", "full", "link", "file"]),
        note: picks.of(&[
            None,
            Some("1\nheld by 7 (x)\n"),
            Some("nonsense"),
            Some("18446744073709551615\ny\n"),
        ]),
        mode: picks.of(&[0o755, 0o755, 0o775]),
        has_file: picks.of(&[true, true, false]),
    };
    let answers = Answers {
        jobs: [(); 3].map(|()| picks.answer(Picks::ended)),
        looks: [(); 3].map(|()| picks.answer(Picks::pair)),
        requires: picks.answer(|picks| picks.of(&[true, false])),
        clear: picks.answer(|_picks| ()),
    };

    let directory = super::place();
    // By the name that the kernel has for it, as a mount table would.
    let place = directory.path().canonicalize().expect("its name");
    make(&place, disk);
    write_tables(&place, before);
    let state = state_of(&place);
    let tables = [table(&place, 0), table(&place, 1)];
    let host = Host { state_dir: state.clone(), mount_tables: tables.to_vec(), ..Host::default() };
    let (inside, outside) = (listing(&state), listing(&place.join("outside")));
    let (answers, directory, now) = (&answers, &*place, before);
    let mut play = Play { answers, directory, now, after, later, calls: Vec::new(), seen: Vec::new() };
    let instance = "3".parse().expect("a name");
    let run = control::run(&mut play, &host, action, &instance, Duration::from_secs(60));
    // The play answers at once, and nothing else is waited for.
    let Poll::Ready(report) = pin!(run).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits")
    };
    let left = listing(&state);

    // Of what there is nothing of, it is asked first whether it runs.
    let is_nothing = !disk.has_file && disk.runtime == "none" && disk.trash == "none";
    let is_refused = is_nothing && !play.calls.iter().any(|call| matches!(call, Call::Run(_)));
    what_is_asked(action, &play.calls, is_nothing);
    what_is_reported(action, &report, &play.calls, &place);
    what_was_answered(action, &report, &play);

    // Somebody else's is nobody's to touch, whatever happens.
    assert_eq!(listing(&place.join("outside")), outside);
    let is_ours =
        |path: &Path| ["runtime/3", "runtime/.purge-3"].iter().any(|own| path.starts_with(state.join(own)));
    let others = |all: &BTreeMap<PathBuf, String>| -> Vec<_> {
        all.iter()
            .filter(|(path, _)| !is_ours(path))
            .map(|(path, what)| (path.clone(), what.clone()))
            .collect()
    };
    assert_eq!(others(&inside), others(&left));

    let is_mounted = play.now.iter().any(|mounts| matches!(mounts, Mounts::Ours(_)));
    let is_known = !play.now.iter().any(|mounts| matches!(mounts, Mounts::Unknown(_)));
    // Whose directory it is, and whether the mountpoint is an empty one: the last gate.
    let is_gate_open = match disk.runtime {
        "directory" => disk.mode == 0o755 && ["directory", "none"].contains(&disk.merged),
        runtime => runtime == "none",
    };
    let is_stopped =
        last_job(&play).is_some_and(|(ended, state)| ended.result == "done" && is_all_down(&state));
    let may_delete = action == Action::Reset && is_stopped && is_known && !is_mounted && is_gate_open;
    assert!(may_delete || inside == left, "deleted from {disk:?} with {:?}: {report:?}", play.now);
    // As long as the instance is there, what its server wrote is.
    let precious = state.join("runtime/3/upper/precious");
    assert!(!left.contains_key(&state.join("runtime/3/upper")) || left.contains_key(&precious), "{report:?}");
    match action {
        Action::Reset | Action::Stop => {
            assert!(
                !report.ok || (is_known && !is_mounted && is_stopped),
                "well with {:?}: {report:?}",
                play.now
            );
        }
        Action::Status if matches!(play.seen.first(), Some(Ok(_))) => {
            let expected = (is_known && !is_mounted).then_some(false);
            let told = if is_known && is_mounted { Some(true) } else { expected };
            assert_eq!(report.mounted, told);
        }
        Action::Status | Action::Start => assert_eq!(report.mounted, None),
    }
    // A reset that may delete does, and what an earlier one left as well; and so it is one.
    let must_delete = may_delete && ["none", "directory", "full"].contains(&disk.trash);
    let is_answered = !play.seen.iter().any(Result::is_err);
    assert!(!must_delete || !is_answered || report.ok, "{report:?}");
    assert!(!is_refused || !report.ok || [Action::Stop, Action::Status].contains(&action), "{report:?}");
    if (must_delete && is_answered) || (action == Action::Reset && report.ok) {
        assert!(!left.keys().any(|path| is_ours(path)), "{report:?}: {left:?}");
        assert!(answers.clear.is_err() || report.active_state == "inactive", "{report:?}");
    }
}

/// How the last job ended, and what was seen then.
fn last_job(play: &Play<'_>) -> Option<(Ended, Pair<UnitState>)> {
    let is_run = |call: &Call| matches!(call, Call::Run(_));
    let at = play.calls.iter().rposition(is_run)?;
    let ended = play.answers.jobs[(play.count(is_run) - 1).min(2)].clone().ok()?;
    let state = play.seen[at + 1..].iter().find_map(|seen| seen.clone().ok().flatten())?;
    Some((ended, state))
}

fn is_all_down(state: &Pair<UnitState>) -> bool {
    state.each().iter().all(|state| ["inactive", "failed"].contains(&state.active_state.as_str()))
}

/// What follows what: a stop, a second one of a server that does not require its overlay, one try to unmount what an
/// earlier stop has left, and a look after each. After the last look it may be deleted; then failed states are cleared,
/// or it is looked again.
fn what_is_asked(action: Action, calls: &[Call], is_nothing: bool) {
    let letter = |call: &Call| match call {
        Call::Run(Job::Start) => 'A',
        Call::Run(Job::Stop) => 'S',
        Call::Run(Job::StopServer) => 'V',
        Call::Run(Job::Mount) => 'M',
        Call::State => 'T',
        Call::Requires => 'Q',
        Call::Clear(_) => 'C',
    };
    let asked: String = calls.iter().map(letter).collect();
    let expected: &[&str] = match action {
        Action::Start => &["", "A", "AT"],
        Action::Status => &["T"],
        Action::Stop | Action::Reset => {
            let asked = match asked.strip_prefix('T') {
                Some("") if is_nothing && action == Action::Reset => return,
                Some(rest) if is_nothing && action == Action::Reset => rest,
                _ => &asked,
            };
            assert!(asked.starts_with('S'), "{asked}");
            let count = |one| asked.matches(one).count();
            assert!(count('M') <= 1 && count('S') <= 1 + count('M'), "{asked}");
            assert!(count('V') <= count('Q') && count('Q') <= 1 && count('T') <= 4, "{asked}");
            let follows = ["ST", "TQ", "QV", "QM", "VT", "TM", "MS", "MT", "TT", "TC", "CC", "CT"];
            for at in 1..asked.len() {
                assert!(follows.contains(&&asked[at - 1..=at]), "{asked}");
            }
            return;
        }
    };
    assert!(expected.contains(&asked.as_str()), "{action:?}: {asked}");
}

/// The report does not contradict itself, and its texts are lines.
fn what_is_reported(action: Action, report: &Report, calls: &[Call], place: &Path) {
    assert_eq!(report.ok, report.exit == Exit::Ok);
    assert!(action == Action::Status || report.exit != Exit::NotRunning);
    let says_why = !report.ok && report.exit != Exit::NotRunning;
    assert_eq!(report.error.is_some(), says_why, "{report:?}");
    for sentence in report.error.iter().chain(&report.notes) {
        assert!(!sentence.is_empty() && !sentence.contains(char::is_control), "{sentence}");
    }
    if let Some(error) = &report.error {
        // A unit, a path, a command, or what systemd said, which has the unit in it.
        let names = [SERVER, OVERLAY, place.to_str().expect("a name"), "systemctl list-jobs", ITS_WORDS];
        assert!(names.iter().any(|name| error.contains(name)), "{error}");
        let is_failed = [&report.active_state, &report.overlay.active_state].contains(&&"failed".to_owned());
        assert!(!error.contains("reset-failed") || is_failed, "{error}");
    }
    let has_ended = |part: Option<u64>| part.is_none_or(|part| part <= report.phases.total_us);
    assert!(has_ended(report.phases.stop_us) && has_ended(report.phases.purge_us), "{report:?}");
    let is_stop = calls.contains(&Call::Run(Job::Stop));
    assert!(is_stop || report.phases.stop_us.is_none());
    assert!(report.phases.purge_us.is_none() || (action == Action::Reset && report.phases.stop_us.is_some()));
    assert!(is_stop || report.still_mounted.is_empty());
    assert!(report.still_mounted.iter().all(|path| path.starts_with(place)));
    let text = report.to_string();
    assert!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text}");
    assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
    let json = serde_json::to_string(report).expect("JSON");
    let back: Report = serde_json::from_str(&json).expect("a report");
    // JSON has text only, and a mount's place may be other bytes.
    assert_eq!(Report { still_mounted: report.still_mounted.clone(), ..back }, *report);
    assert!(text.starts_with(&format!("{} {SERVER}: ", report.action.word())));
    assert_eq!(report::table(std::slice::from_ref(report)).lines().count(), 2);
}

/// What systemd answered last is what is reported, an error in its own words.
fn what_was_answered(action: Action, report: &Report, play: &Play<'_>) {
    let cleared = |unit: &str| {
        play.answers.clear.is_ok() && play.calls.iter().any(|call| *call == Call::Clear(unit.to_owned()))
    };
    let last = play.seen.iter().rev().find_map(|seen| seen.clone().ok().flatten()).unwrap_or_default();
    // What was cleared is inactive, unless it was looked at since.
    let is_last = matches!(play.calls.last(), Some(Call::Clear(_)));
    for (unit, now, state) in
        [(SERVER, &report.active_state, &last.server), (OVERLAY, &report.overlay.active_state, &last.overlay)]
    {
        let expected = if is_last && cleared(unit) { "inactive" } else { &state.active_state };
        assert_eq!(now, expected, "{unit}: {:?}", play.calls);
    }
    assert_eq!(report.exec.len(), last.server.exec.len() + last.overlay.exec.len());
    // The first error is what it failed for; that of a look after a delete that failed, or of a state that could not be
    // cleared, is none.
    let is_aside = |at: usize| match (&play.calls[at], at.checked_sub(1).map(|before| &play.calls[before])) {
        (Call::Clear(_), _) => !matches!(play.seen[at], Err(UnitsError::Unreachable(_))),
        (Call::State, Some(Call::State | Call::Clear(_))) => true,
        _ => false,
    };
    let first = play.seen.iter().enumerate().find(|(at, seen)| seen.is_err() && !is_aside(*at));
    if let Some((at, Err(error))) = first {
        let is_clear = matches!(play.calls[at], Call::Clear(_));
        assert!(is_clear || !report.ok);
        assert!(is_clear || report.error.as_deref() == Some(&*error.to_string()), "{report:?}");
        let is_no_unit = matches!(error, UnitsError::NoSuchUnit(_));
        assert!(is_clear || (report.exit == Exit::NoSuchUnit) == is_no_unit);
    }
    let is_running = ["active", "reloading", "refreshing"].contains(&report.active_state.as_str());
    match action {
        Action::Start => {
            let is_done = play.answers.jobs[0].as_ref().is_ok_and(|ended| ended.result == "done");
            assert!(!report.ok || (!play.calls.is_empty() && is_done && is_running), "{report:?}");
        }
        // What these are is said by what was mounted and deleted.
        Action::Stop | Action::Reset => {}
        Action::Status => assert!(!report.ok || is_running, "{report:?}"),
    }
}
