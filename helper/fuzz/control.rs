//! What must hold for `l4d2ctl` whatever systemd answers and whatever lies on the disk: a scene that bytes say, played
//! once, and looked at afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use left4me_helper::control::{self, Action, Ended, ExecRun, Host, Job, UnitState, Units, UnitsError};
use left4me_helper::report::{self, Exit, Report};

const UNIT: &str = "left4me-server@3.service";

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
        Ended { before: self.active_state(), result: self.of(&results).into() }
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
    Run(Job, String),
    State(String),
}

/// What systemd says: to a job, and to each look, of which the last stays.
#[derive(Debug, Clone)]
struct Answers {
    job: Result<Ended, UnitsError>,
    looks: [Result<UnitState, UnitsError>; 2],
}

/// Plays systemd, and the helper that it runs: a job that ends leaves the mounts as they are `after`.
struct Play<'a> {
    answers: &'a Answers,
    looks: usize,
    directory: &'a Path,
    after: Tables,
    calls: Vec<Call>,
    /// Whether some answer was that systemd is out of reach.
    is_lost: bool,
}

impl Play<'_> {
    fn asked<T>(&mut self, call: Call, answer: Result<T, UnitsError>) -> Result<T, UnitsError> {
        assert!(!self.is_lost, "{call:?} after systemd was out of reach: {:?}", self.calls);
        self.calls.push(call);
        self.is_lost = matches!(answer, Err(UnitsError::Unreachable(_)));
        answer
    }
}

impl Units for Play<'_> {
    fn run(&mut self, job: Job, unit: &str, deadline: Instant) -> Result<Ended, UnitsError> {
        assert!(deadline > Instant::now());
        if self.answers.job.is_ok() {
            write_tables(self.directory, self.after);
        }
        self.asked(Call::Run(job, unit.to_owned()), self.answers.job.clone())
    }

    fn state(&mut self, unit: &str) -> Result<UnitState, UnitsError> {
        let look = self.answers.looks[self.looks.min(1)].clone();
        self.looks += 1;
        self.asked(Call::State(unit.to_owned()), look)
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
    for file in [state.join("runtime/30/upper/theirs"), state.join("instances/3.toml"), outside.join("file")]
    {
        fs::write(file, "kept").expect("write");
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

/// One action on a scene: what systemd says, what is mounted before and after the job, and what is on the disk.
pub fn control(data: &[u8]) {
    let mut picks = Picks(data);
    let action = picks.of(&[Action::Reset, Action::Stop, Action::Start, Action::Status]);
    let before: Tables = [picks.of(&MOUNTS), picks.of(&MOUNTS)];
    let after: Tables = [picks.of(&MOUNTS), picks.of(&MOUNTS)];
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
    };
    let answers = Answers {
        job: picks.answer(Picks::ended),
        looks: [picks.answer(Picks::state), picks.answer(Picks::state)],
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
    let mut play =
        Play { answers: &answers, looks: 0, directory: &place, after, calls: Vec::new(), is_lost: false };
    let instance = "3".parse().expect("a name");
    let report = control::run(&mut play, &host, action, &instance, Duration::from_secs(60));
    let (calls, left) = (play.calls, listing(&state));

    what_is_asked(action, &calls);
    what_is_reported(action, &report, &calls, &place);
    what_was_answered(action, &report, &calls, &answers);

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

    let ran = calls.iter().any(|call| matches!(call, Call::Run(..)));
    let last = calls.iter().filter(|call| matches!(call, Call::State(_))).count().checked_sub(1);
    let state_now = last.and_then(|last| answers.looks[last.min(1)].clone().ok());
    let mounts_now = if ran && answers.job.is_ok() { after } else { before };
    let is_mounted = mounts_now.iter().any(|mounts| matches!(mounts, Mounts::Ours(_)));
    let is_known = !mounts_now.iter().any(|mounts| matches!(mounts, Mounts::Unknown(_)));
    let is_down = state_now.is_some_and(|now| ["inactive", "failed"].contains(&now.active_state.as_str()));
    // Whose directory it is, and whether the mountpoint is an empty one: the last gate.
    let is_gate_open = match disk.runtime {
        "directory" => disk.mode == 0o755 && ["directory", "none"].contains(&disk.merged),
        runtime => runtime == "none",
    };
    let is_stopped = ran && answers.job.is_ok() && is_down;
    let may_delete = action == Action::Reset && is_stopped && is_known && !is_mounted && is_gate_open;
    assert!(may_delete || inside == left, "deleted from {disk:?} with {mounts_now:?}: {report:?}");
    // As long as the instance is there, what its server wrote is.
    let precious = state.join("runtime/3/upper/precious");
    assert!(!left.contains_key(&state.join("runtime/3/upper")) || left.contains_key(&precious), "{report:?}");
    match action {
        Action::Reset | Action::Stop => {
            assert!(!report.ok || (is_known && !is_mounted), "well with {mounts_now:?}: {report:?}");
        }
        Action::Status if !calls.is_empty() && last.is_some() && answers.looks[0].is_ok() => {
            let expected = (is_known && !is_mounted).then_some(false);
            let told = if is_known && is_mounted { Some(true) } else { expected };
            assert_eq!(report.mounted, told);
        }
        Action::Status | Action::Start => assert_eq!(report.mounted, None),
    }
    // A reset that may delete does, and what an earlier one left as well.
    let must_delete = may_delete && ["none", "directory", "full"].contains(&disk.trash);
    if must_delete || (action == Action::Reset && report.ok) {
        assert!(!left.keys().any(|path| is_ours(path)), "{report:?}: {left:?}");
    }
}

/// One job at most, the right one, and at most one look after it; all of the right unit.
fn what_is_asked(action: Action, calls: &[Call]) {
    let jobs: Vec<_> = calls.iter().filter(|call| matches!(call, Call::Run(..))).cloned().collect();
    let expected = match action {
        Action::Start => vec![Call::Run(Job::Start, UNIT.into())],
        Action::Stop | Action::Reset => vec![Call::Run(Job::Stop, UNIT.into())],
        Action::Status => vec![],
    };
    assert_eq!(jobs, expected, "{calls:?}");
    assert!(calls.len() <= jobs.len() + 1, "{calls:?}");
    for call in calls {
        let (Call::Run(_, unit) | Call::State(unit)) = call;
        assert_eq!(unit, UNIT);
    }
}

/// The report does not contradict itself, and its texts are lines.
fn what_is_reported(action: Action, report: &Report, calls: &[Call], place: &Path) {
    assert_eq!(report.ok, report.exit == Exit::Ok);
    assert!(action == Action::Status || report.exit != Exit::NotRunning);
    let says_why = !report.ok && report.exit != Exit::NotRunning;
    assert_eq!(report.error.is_some(), says_why, "{report:?}");
    if let Some(error) = &report.error {
        assert!(!error.is_empty() && !error.contains(char::is_control), "{error}");
        // The unit, a path, a command, or what systemd said, which has the unit in it.
        let names = [UNIT, place.to_str().expect("a name"), "systemctl list-jobs", ITS_WORDS];
        assert!(names.iter().any(|name| error.contains(name)), "{error}");
        assert!(!error.contains("reset-failed") || report.active_state == "failed", "{error}");
    }
    let has_ended = |part: Option<u64>| part.is_none_or(|part| part <= report.phases.total_us);
    assert!(has_ended(report.phases.stop_us) && has_ended(report.phases.purge_us), "{report:?}");
    let is_stop = calls.iter().any(|call| matches!(call, Call::Run(Job::Stop, _)));
    assert!(is_stop || report.phases.stop_us.is_none());
    assert!(report.phases.purge_us.is_none() || (action == Action::Reset && report.phases.stop_us.is_some()));
    assert!(is_stop || report.still_mounted.is_empty());
    assert!(report.still_mounted.iter().all(|path| path.starts_with(place)));
    let text = report.to_string();
    assert!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text}");
    assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
    assert!(serde_json::to_string(report).is_ok());
    assert!(text.starts_with(&format!("{} {UNIT}: ", report.action)));
    assert_eq!(report::table(std::slice::from_ref(report)).lines().count(), 2);
}

/// What systemd answered last is what is reported, an error in its own words.
fn what_was_answered(action: Action, report: &Report, calls: &[Call], answers: &Answers) {
    let Answers { job, looks } = answers;
    let mut seen = 0;
    let mut errors = Vec::new();
    let (mut active, mut runs) = (String::new(), 0);
    for call in calls {
        match call {
            Call::Run(..) => errors.extend(job.as_ref().err()),
            Call::State(_) => {
                match &looks[seen] {
                    Ok(state) => {
                        active.clone_from(&state.active_state);
                        runs = state.exec.len();
                    }
                    Err(error) => errors.push(error),
                }
                seen += 1;
            }
        }
    }
    assert_eq!((&report.active_state, report.exec.len()), (&active, runs), "{calls:?}");
    // The first is what it failed for.
    if let Some(error) = errors.first() {
        assert!(!report.ok);
        assert_eq!(report.error.as_deref(), Some(&*error.to_string()));
        assert_eq!(report.exit == Exit::NoSuchUnit, matches!(error, UnitsError::NoSuchUnit(_)));
    }
    let is_done = job.as_ref().is_ok_and(|ended| ended.result == "done");
    let is_running = ["active", "reloading", "refreshing"].contains(&active.as_str());
    match action {
        Action::Start => assert!(!report.ok || (is_done && is_running), "{report:?}"),
        Action::Stop | Action::Reset => {
            assert!(
                !report.ok || (is_done && ["inactive", "failed"].contains(&active.as_str())),
                "{report:?}"
            );
        }
        Action::Status => assert!(!report.ok || is_running, "{report:?}"),
    }
}
