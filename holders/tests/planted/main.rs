//! Each way to hold a mount, natively: the verdict of `holders` against the answer of umount2(2).
//!
//! Every trial has a thread with a mount namespace of its own, in which it mounts an overlay on a shared tmpfs, and
//! starts the fixture (this same program) as a child. All of it ends with the thread and the child. Needs root;
//! without, the trials are ignored and the reason is printed.

mod bounds;
mod calls;
#[path = "../../examples/fixture/cases.rs"]
mod cases;
#[path = "../../examples/fixture/disk.rs"]
mod disk;
mod ending;
#[path = "../../examples/fixture/fuse.rs"]
mod fuse;
mod innocent;
mod kernel;
#[path = "../../examples/fixture/kernel_side.rs"]
mod kernel_side;
mod names;
mod sharing;
mod sockets;
#[path = "../../examples/fixture/stage.rs"]
mod stage;
mod stuck;
mod victim;
mod view;

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cases::{CASES, Case, Umount};
use holders::report::{Carries, Relation, Suspect};
use holders::{Query, Report, Verdict};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use stage::Stage;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "fixture") {
        return cases::run(args);
    }
    if let [first, path] = args.as_slice()
        && first == "observer"
    {
        return observe(Path::new(path));
    }
    if let [first, rest @ ..] = args.as_slice()
        && first == victim::WORD
    {
        return victim::run(rest);
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: to plant mounts takes root");
    }
    let mut trials: Vec<_> = CASES
        .iter()
        .map(|case| {
            let trial = Trial::test(case.name, move || on_a_stage(move |stage| planted(stage, case)));
            trial.with_ignored_flag(!cases::can_be_planted(case.name))
        })
        .collect();
    trials.push(Trial::test("underlying", || on_a_stage(underlying)));
    trials.push(Trial::test("self", || on_a_stage(held_by_the_caller)));
    trials.push(Trial::test("ancestor", || on_a_stage(held_by_an_ancestor)));
    trials.push(Trial::test("told-to-a-person", || on_a_stage(told_to_a_person)));
    trials.push(Trial::test("stacked", || on_a_stage(stacked)));
    trials.push(Trial::test("the-observer-holds-nothing", || on_a_stage(the_observer_holds_nothing)));
    trials.push(Trial::test("the-observer-leaves-no-trace", || on_a_stage(the_observer_leaves_no_trace)));
    trials.push(Trial::test("watch", || on_a_stage(watch)));
    trials.push(Trial::test("bound-directory", || on_a_stage(bound_directory)));
    trials.push(Trial::test("socket-forged", || on_a_stage(sockets::forged)));
    trials.push(Trial::test("socket-in-another-network", || on_a_stage(sockets::in_another_network)));
    trials.push(Trial::test("deep", || on_a_stage(deep)));
    trials.push(Trial::test("gone", || on_a_stage(gone)));
    trials.push(Trial::test("deadline", || on_a_stage(bounds::deadline)));
    trials.push(Trial::test("deadline-within-a-process", || on_a_stage(bounds::deadline_within_a_process)));
    trials.push(Trial::test("many-descriptors", || on_a_stage(bounds::many_descriptors)));
    trials.push(Trial::test("many-harmless-descriptors", || on_a_stage(bounds::many_harmless_descriptors)));
    trials.push(Trial::test("shared-memory", || on_a_stage(sharing::memory)));
    trials.push(Trial::test("shared-descriptors", || on_a_stage(sharing::descriptors)));
    for threads in [0, 31] {
        let name = format!("heavy-and-ending-{threads}-threads");
        trials.push(Trial::test(name, move || on_a_stage(move |stage| ending::heavy(stage, threads))));
    }
    trials.push(Trial::test("layer-older", || on_a_stage(innocent::older_layer)));
    trials.push(Trial::test("copy-as-root", || on_a_stage(innocent::copy_as_root)));
    trials.push(Trial::test("bind-of-dev", || on_a_stage(innocent::bind_of_dev)));
    trials.push(Trial::test("mounted-twice", || on_a_stage(names::twice)));
    trials.push(Trial::test("by-layer", || on_a_stage(names::layer)));
    for how in ["fifo", "fifo-at"] {
        trials.push(Trial::test(format!("call-{how}"), move || {
            on_a_stage(move |stage| calls::fifo(stage, how))
        }));
    }
    trials.push(Trial::test("pid-namespace", || on_a_stage(view::pid_namespace)));
    trials.push(Trial::test("pid-namespace-with-the-whole-proc", || {
        on_a_stage(view::pid_namespace_with_the_whole_proc)
    }));
    trials.push(Trial::test("hidden-processes", || on_a_stage(view::hidden)));
    trials.push(Trial::test("root-without-ptrace", || on_a_stage(view::unprivileged_root)));
    let mut trials: Vec<_> = trials
        .into_iter()
        .map(|trial| {
            let is_ignored = trial.has_ignored_flag();
            trial.with_ignored_flag(is_ignored || !is_root)
        })
        .collect();
    let hanging = [
        Trial::test("hangs-in-its-end", || on_a_stage(ending::hangs)),
        Trial::test("hangs-in-its-end-as-a-thread", || on_a_stage(ending::hangs_as_a_thread)),
        Trial::test("waits-for-a-server", || on_a_stage(ending::waits_for_a_server)),
        Trial::test("hangs-in-its-end-with-a-file", || on_a_stage(ending::hangs_with_a_file)),
        Trial::test("stuck", || on_a_stage(stuck::holder)),
        Trial::test("stuck-in-exec", || on_a_stage(stuck::in_exec)),
        Trial::test("stuck-elsewhere", || on_a_stage(stuck::elsewhere)),
    ];
    let has_cgroups = is_root && cgroup_root().is_ok_and(|root| root.is_some());
    if is_root && !has_cgroups {
        println!("skipped: no cgroup v2 to make a unit's cgroup in");
    }
    let watch_a_unit = Trial::test("watch-a-unit", || on_a_stage(watch_a_unit));
    trials.push(watch_a_unit.with_ignored_flag(!has_cgroups));
    let has_ext4 = is_root && disk::has_ext4();
    if is_root && !has_ext4 {
        println!("skipped: no mkfs.ext4 to make a file system on a device");
    }
    let by_device = Trial::test("by-block-device", || on_a_stage(names::block_device));
    trials.push(by_device.with_ignored_flag(!has_ext4));
    trials.push(Trial::test("swap", || on_a_stage(innocent::swap)).with_ignored_flag(!has_ext4));
    let can_probe = is_root && kernel_side::uprobe_events().is_some();
    if is_root && !can_probe {
        println!("skipped: no tracefs to plant a uprobe by");
    }
    trials.push(Trial::test("uprobe-advice", || on_a_stage(kernel::uprobe)).with_ignored_flag(!can_probe));
    let can_hang = is_root && fuse::has_fuse();
    if is_root && !can_hang {
        println!("skipped: no /dev/fuse to stop a process in its end");
    }
    trials.extend(hanging.into_iter().map(|trial| trial.with_ignored_flag(!can_hang)));
    let mut arguments = Arguments::from_args();
    // One after the other: the device number of an overlay that has ended goes to the next trial's.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

impl Stage {
    fn ask(&self) -> Result<Report, holders::Error> {
        Query::new(&self.merged).run()
    }
}

fn on_a_stage(
    trial: impl FnOnce(&Stage) -> Result<(), Box<dyn Error>> + Send + 'static,
) -> Result<(), Failed> {
    let thread = std::thread::spawn(move || {
        let stage = Stage::set_up().map_err(|error| format!("set up: {error}"))?;
        let base = stage.base.clone();
        let done = trial(&stage).map_err(|error| error.to_string());
        drop(stage);
        done.map(|()| base)
    });
    match thread.join() {
        Ok(Ok(base)) if base.exists() => Err(format!("{} is left", base.display()).into()),
        Ok(done) => done.map(drop).map_err(Failed::from),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The verdict on what can be seen: a sandbox may have a process that not even root may inspect.
fn seen(report: &Report) -> Verdict {
    match report.verdict() {
        Verdict::NotAllowed { .. } | Verdict::PartialView { .. } => {
            report.verdict().of_what_was_seen().clone()
        }
        verdict => verdict,
    }
}

fn planted(stage: &Stage, case: &Case) -> Result<(), Box<dyn Error>> {
    stage.is_plain.set(case.is_plain());
    let older = case.is_older.then(|| stage.plant(case.name)).transpose()?;
    stage.mount()?;
    let device = stage.ask()?.mount.ok_or("the overlay is not seen")?.device;
    let fixture = older.map_or_else(|| stage.plant(case.name), Ok)?;
    let before = stage.ask()?;
    let thorough = Query::new(&stage.merged).with_detached().run()?;
    let umount = match stage.umount() {
        Ok(()) => Umount::Done,
        Err(Errno::BUSY) => Umount::Busy,
        Err(Errno::INVAL) => Umount::NotMounted,
        Err(error) => return Err(error.into()),
    };
    assert_eq!(umount, case.umount, "the kernel does not do what the table of cases says");
    let verdict = seen(&before);
    for blocker in before.blockers() {
        assert_eq!(blocker.pid, fixture.holder, "accused the wrong one: {before:#?}");
        assert!(blocker.pidfd()?.is_some(), "{blocker:?} has ended");
    }
    // Older kernels show the last component of a registered file only (io_uring/fdinfo.c).
    let visible = case.visible && (case.name != "io-uring" || shows_registered_paths(fixture.holder)?);
    match (umount, visible) {
        (Umount::Busy, true) => {
            // The directory that is covered may be what is exported: the refusal tells.
            let verdict = match case.name {
                "nfs-export" => seen(&Query::new(&stage.merged).after_ebusy().run()?),
                _ => verdict,
            };
            assert_eq!(verdict.blocks_umount(), Some(true), "{verdict:#?}: {before:#?}");
        }
        (Umount::Busy, false) => {
            assert_eq!(verdict, Verdict::Free, "{before:#?}");
            let after = Query::new(&stage.merged).after_ebusy().run()?;
            let Verdict::NotVisible { suspects } = seen(&after) else { panic!("{after:#?}") };
            let expected = match case.name {
                "scm-rights" => Some(Carries::InFlight(1)),
                "io-uring" => Some(Carries::Registered(1)),
                "fanotify" => Some(Carries::Events),
                _ => None,
            };
            if let Some(carries) = expected {
                let is_it = |suspect: &Suspect| suspect.pid == fixture.holder && suspect.carries == carries;
                assert!(suspects.iter().any(is_it), "{after:#?}");
            }
        }
        (Umount::Done, _) => {
            assert_eq!(verdict.blocks_umount(), Some(false), "{before:#?}");
            assert!(before.blockers().is_empty(), "{before:#?}");
            let outlives = matches!(seen(&thorough), Verdict::Outlives { .. });
            // Before Linux 6.11 nobody outside can list the mounts of a namespace that no process is in; that is said.
            let is_unseen = !thorough.unseen.namespaces.is_empty();
            assert_eq!(outlives, case.outlives && !is_unseen, "{thorough:#?}");
            assert!(!is_unseen || case.name.starts_with("nsfs-"), "{thorough:#?}");
        }
        (Umount::NotMounted, _) => {}
    }
    if umount != Umount::Busy {
        let after = Query::new(&stage.merged).of_device(device).run()?;
        let is_alive = matches!(seen(&after), Verdict::AliveElsewhere { .. });
        let is_unseen = !after.unseen.namespaces.is_empty();
        // Which file system the other overlay's layer was on can't be told once it is not mounted any more.
        assert_eq!(is_alive, case.outlives && case.name != "overlay-layer" && !is_unseen, "{after:#?}");
        // The kernel's word for it.
        let again = stage.mount();
        assert_eq!(again, if case.outlives { Err(Errno::BUSY) } else { Ok(()) }, "{after:#?}");
    }
    Ok(())
}

/// Whether the kernel shows the registered files of this process's io_uring instance with their paths.
fn shows_registered_paths(pid: u32) -> Result<bool, Box<dyn Error>> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        if let Some((_, files)) = text.split_once("UserFiles:") {
            return Ok(files.lines().nth(1).is_some_and(|file| file.contains(": /")));
        }
    }
    Ok(false)
}

/// A working directory in what the overlay covers: it shows the same path and blocks nothing.
fn underlying(stage: &Stage) -> Result<(), Box<dyn Error>> {
    let _fixture = stage.plant("cwd")?;
    stage.mount()?;
    let report = stage.ask()?;
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}

fn held_by_the_caller(stage: &Stage) -> Result<(), Box<dyn Error>> {
    stage.mount()?;
    // This thread's alone, like its namespace.
    std::env::set_current_dir(&stage.merged)?;
    let report = stage.ask()?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let Verdict::HeldByYourself { blockers } = report.verdict() else { panic!("{report:#?}") };
    assert_eq!(blockers[0].relation, Relation::Caller, "{report:#?}");
    std::env::set_current_dir("/")?;
    assert_eq!(seen(&stage.ask()?), Verdict::Free);
    Ok(stage.umount()?)
}

fn held_by_an_ancestor(stage: &Stage) -> Result<(), Box<dyn Error>> {
    // The verdict of a child whose parent holds: asked by this program's own copy of the command.
    stage.mount()?;
    let _directory = Cwd::enter(&stage.merged)?;
    let verdict = ask_the_command(&[&stage.merged])?;
    assert!(verdict.contains("held by yourself"), "{verdict}");
    assert!(verdict.contains("started this process"), "{verdict}");
    Ok(())
}

/// What somebody at a terminal is told of a holder; what is harmless is left out.
fn told_to_a_person(stage: &Stage) -> Result<(), Box<dyn Error>> {
    let _harmless = stage.plant("cwd")?;
    stage.mount()?;
    let planter = stage.plant("cwd")?;
    let told = ask_the_command(&[&stage.merged])?;
    let command = format!(
        "fixture cwd {} (working directory), pid {} of root for ",
        stage.merged.display(),
        planter.holder
    );
    assert!(told.lines().any(|line| line.starts_with("  - ") && line.contains(&command)), "{told}");
    assert!(
        told.contains("\n1 more on another mount, which does not block the unmount")
            && !told.contains(": harmless"),
        "{told}"
    );
    Ok(())
}

/// The kernel keeps count: a mount that is marked with MNT_EXPIRE loses the mark with the first reference that
/// anybody drops (umount(2)), so that the second such call only unmounts what nobody touched, however shortly.
fn the_observer_leaves_no_trace(stage: &Stage) -> Result<(), Box<dyn Error>> {
    let expire = || rustix::mount::unmount(&stage.merged, UnmountFlags::EXPIRE);
    stage.mount()?;
    let _bystander = stage.plant("slave-nothing")?;
    assert_eq!(expire(), Err(Errno::AGAIN), "the first call marks");
    // That this sees what it is meant to see: the scan of an ordinary tool.
    std::fs::metadata(&stage.merged)?;
    assert_eq!(expire(), Err(Errno::AGAIN), "a stat has touched it");

    for query in [
        Query::new(&stage.merged),
        Query::new(&stage.merged).after_ebusy(),
        Query::new(&stage.merged).with_detached(),
    ] {
        assert!(query.run()?.mount.is_some());
    }
    ask_the_command(&[&stage.merged])?;
    assert_eq!(expire(), Ok(()), "the diagnosis has touched the mount");
    Ok(())
}

/// Mounts and unmounts while another process asks without a pause: a single EBUSY would be the observer's doing.
fn the_observer_holds_nothing(stage: &Stage) -> Result<(), Box<dyn Error>> {
    const ROUNDS: usize = 4000;
    // Beside busy programs so many rounds were over before the observer had its turn.
    const AT_LEAST: Duration = Duration::from_secs(4);
    // Something to read in every scan: a copy in another namespace, and a task that lives in it.
    let bystander = stage.plant("slave-nothing")?;
    let observer = Observer::start(&stage.merged)?;
    let (mut refused, mut rounds, began) = (0, 0, Instant::now());
    while rounds < ROUNDS || began.elapsed() < AT_LEAST {
        rounds += 1;
        rustix::mount::mount("holders-test", &stage.merged, "tmpfs", MountFlags::empty(), None)?;
        // Some time for it to be scanned.
        for _ in 0..4 {
            std::fs::read("/proc/thread-self/mountinfo")?;
        }
        match stage.umount() {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                refused += 1;
                rustix::mount::unmount(&stage.merged, UnmountFlags::DETACH)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let scans = observer.stop()?;
    drop(bystander);
    assert_eq!(refused, 0, "unmounts refused in {rounds} rounds, during {scans} scans");
    // It was really scanning: not once at the beginning, and while the mount was there.
    assert!(scans > 20, "the observer scanned {scans} times only");
    Ok(())
}

/// A child that diagnoses a path over and over, and says at its end how often it did.
struct Observer {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Observer {
    #[expect(clippy::disallowed_methods, reason = "the test's own child; it ends with its stdin")]
    fn start(merged: &Path) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("observer")
            .arg(merged)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        stdout.read_line(&mut String::new())?;
        Ok(Self { child, stdout })
    }

    fn stop(mut self) -> Result<usize, Box<dyn Error>> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        self.child.wait()?;
        Ok(line.trim().parse()?)
    }
}

fn observe(path: &Path) -> ExitCode {
    let end = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let input_ended = end.clone();
    std::thread::spawn(move || {
        let read = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
        input_ended.store(read.is_ok(), std::sync::atomic::Ordering::Relaxed);
    });
    println!("scanning");
    let mut scans = 0_usize;
    let mut seen = 0_usize;
    while !end.load(std::sync::atomic::Ordering::Relaxed) {
        let report = match Query::new(path).with_detached().run() {
            Ok(report) => report,
            Err(error) => {
                eprintln!("observer: {error}");
                return ExitCode::FAILURE;
            }
        };
        scans += 1;
        seen += usize::from(report.mount.is_some_and(|mount| mount.fstype == "tmpfs"));
    }
    println!("{}", if seen > 0 { scans } else { 0 });
    ExitCode::SUCCESS
}

/// `holders watch`, ended when dropped.
struct Watching {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watching {
    #[expect(clippy::disallowed_methods, reason = "the command under test; ended with the guard")]
    fn start(stage: &Stage, options: &[&str]) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holders"))
            .arg("watch")
            .args(options)
            .arg(&stage.merged)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        Ok(Self { child, lines })
    }

    /// The next line without its time.
    fn next(&mut self) -> Result<String, Box<dyn Error>> {
        let line = self.lines.next().ok_or("the watch has ended")??;
        Ok(line.split_once("] ").ok_or("no time")?.1.to_owned())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().and_then(|()| self.child.wait()).expect("end the watch");
    }
}

fn watch(stage: &Stage) -> Result<(), Box<dyn Error>> {
    stage.mount()?;
    let mut watching = Watching::start(stage, &["--until-unmounted", "--rate", "50"])?;
    assert_eq!(watching.next()?, "mounted=Y holders=[]");
    let fixture = stage.plant("cwd")?;
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", fixture.holder))?;
    assert_eq!(watching.next()?, format!("mounted=Y holders=[{}({})]", fixture.holder, comm.trim()));
    drop(fixture);
    assert_eq!(watching.next()?, "mounted=Y holders=[]");
    stage.umount()?;
    assert_eq!(watching.next()?, "mounted=N holders=[]");
    assert!(watching.lines.next().is_none(), "it ends by itself");
    Ok(())
}

/// Without a clock: what is seen is seen by events.
fn watch_a_unit(stage: &Stage) -> Result<(), Box<dyn Error>> {
    let root = cgroup_root()?.ok_or("no cgroup v2")?;
    let unit = format!("holders-test-{}.service", std::process::id());
    let cgroup = Cgroup::make(root.join(&unit))?;
    stage.mount()?;
    let fixture = stage.plant("cwd")?;
    std::fs::write(cgroup.0.join("cgroup.procs"), fixture.holder.to_string())?;
    let mut watching = Watching::start(stage, &["--json", "--rate", "0", "--unit", &unit])?;
    let mut next = || -> Result<serde_json::Value, Box<dyn Error>> {
        let line = watching.lines.next().ok_or("the watch has ended")??;
        Ok(serde_json::from_str(&line)?)
    };
    let first = next()?;
    assert_eq!((&first["event"], &first["holders"][0]["pid"]), (&"start".into(), &fixture.holder.into()));
    assert_eq!(first["holders"][0]["unit"], unit.as_str(), "{first}");
    drop(fixture);
    let second = next()?;
    assert_eq!(second["holders"], serde_json::json!([]), "{second}");
    assert!(["exit", "cgroup"].contains(&second["event"].as_str().unwrap_or_default()), "{second}");
    stage.umount()?;
    let third = next()?;
    // One end is two events, of the task and of its control group. The later one can come after the unmount, and a line
    // names the event that its change was seen by.
    let other = if second["event"] == "exit" { "cgroup" } else { "exit" };
    assert!(["mounts", other].contains(&third["event"].as_str().unwrap_or_default()), "{third}");
    assert_eq!((&third["mounted"], &third["holders"]), (&false.into(), &serde_json::json!([])), "{third}");
    Ok(())
}

fn cgroup_root() -> Result<Option<PathBuf>, Box<dyn Error>> {
    let mounts = holders::mountinfo::read(std::process::id())?;
    Ok(mounts.into_iter().find(|mount| mount.fstype == "cgroup2").map(|mount| mount.mount_point))
}

/// A cgroup, removed when dropped; its processes have ended by then.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("remove the test's cgroup");
    }
}

struct Cwd;

impl Cwd {
    fn enter(path: &Path) -> std::io::Result<Self> {
        std::env::set_current_dir(path)?;
        Ok(Self)
    }
}

impl Drop for Cwd {
    fn drop(&mut self) {
        std::env::set_current_dir("/").expect("chdir /");
    }
}

#[expect(clippy::disallowed_methods, reason = "the command under test; waited for")]
fn ask_the_command(args: &[&Path]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_holders")).args(args).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn stacked(stage: &Stage) -> Result<(), Box<dyn Error>> {
    stage.mount()?;
    rustix::mount::mount("holders-test", &stage.merged, "tmpfs", MountFlags::empty(), None)?;
    let _fixture = stage.plant("cwd")?;
    let report = stage.ask()?;
    assert_eq!(report.mount.as_ref().map(|mount| mount.fstype.as_str()), Some("tmpfs"));
    assert_eq!(report.stacked, 1);
    assert_eq!(report.verdict().blocks_umount(), Some(true), "{report:#?}");
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    Ok(())
}

/// The mount is a directory of a file system that is mounted for itself and in use elsewhere.
fn bound_directory(stage: &Stage) -> Result<(), Box<dyn Error>> {
    let lower = stage.base.join("lower");
    let _elsewhere = std::fs::File::create(stage.base.join("upper/file"))?;
    let _the_same_by_its_own_path = std::fs::File::create(lower.join("file"))?;
    rustix::mount::mount_bind(&lower, &stage.merged)?;
    assert_eq!(seen(&stage.ask()?), Verdict::Free);
    for case in ["cwd", "mmap"] {
        let fixture = stage.plant(case)?;
        let report = stage.ask()?;
        let pids: Vec<_> = report.blockers().iter().map(|blocker| blocker.pid).collect();
        assert_eq!(pids, [fixture.holder], "{case}: {report:#?}");
        assert_eq!(stage.umount(), Err(Errno::BUSY));
    }
    Ok(stage.umount()?)
}

/// Deeper than a path can be long: no link's text can be had, and each is on the mount all the same.
fn deep(stage: &Stage) -> Result<(), Box<dyn Error>> {
    stage.mount()?;
    let own = std::process::id();
    let name = "d".repeat(250);
    // This thread's alone, like its namespace.
    std::env::set_current_dir(&stage.merged)?;
    for _ in 0..20 {
        std::fs::create_dir(&name)?;
        std::env::set_current_dir(&name)?;
    }
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open("file")?;
    std::io::Write::write_all(&mut &file, &[0; 4096])?;
    let holds = |kind: &str| -> Result<(), Box<dyn Error>> {
        let report = stage.ask()?;
        let kinds: Vec<_> = report.blockers().iter().flat_map(|blocker| blocker.kinds.clone()).collect();
        assert!(report.blockers().iter().all(|blocker| blocker.pid == own), "{report:#?}");
        assert!(kinds.iter().any(|known| known.word() == kind), "{kind}: {report:#?}");
        let held = report.holders.iter().flat_map(|holder| &holder.references);
        assert!(held.into_iter().all(|held| held.path == stage.merged.join("...")), "{report:#?}");
        assert_eq!(stage.umount(), Err(Errno::BUSY));
        Ok(())
    };
    holds("cwd")?;
    let scan = holders::scan::scan(
        &stage.merged,
        stage.ask()?.mount.map(|mount| mount.device),
        holders::scan::Scope::Pids(&[own]),
    )?;
    assert!(
        scan.tasks
            .iter()
            .any(|task| task.references.iter().any(|held| held.kind == holders::scan::Kind::Cwd))
    );
    std::env::set_current_dir("/")?;
    holds("file")?;
    let mapped = Mapped::of(&file)?;
    drop(file);
    holds("mapping")?;
    drop(mapped);
    assert_eq!(seen(&stage.ask()?), Verdict::Free);
    Ok(stage.umount()?)
}

/// A page of a file, mapped until dropped.
struct Mapped(*mut std::ffi::c_void);

impl Mapped {
    #[expect(unsafe_code, reason = "a mapping that nobody scans at")]
    fn of(file: &std::fs::File) -> Result<Self, Errno> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping at a place of the kernel's choice; it is never dereferenced.
        unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, file, 0) }.map(Self)
    }
}

impl Drop for Mapped {
    #[expect(unsafe_code, reason = "a mapping that nobody scans at")]
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, to which nothing points.
        unsafe { rustix::mm::munmap(self.0, 4096) }.expect("munmap");
    }
}

fn gone(stage: &Stage) -> Result<(), Box<dyn Error>> {
    assert_eq!(seen(&stage.ask()?), Verdict::NotMounted { devices: vec![] });
    stage.mount()?;
    let device = stage.ask()?.mount.ok_or("not seen")?.device;
    stage.umount()?;
    let report = Query::new(&stage.merged).of_device(device).run()?;
    assert_eq!(seen(&report), Verdict::NotMounted { devices: vec![device] }, "{report:#?}");
    Ok(())
}
