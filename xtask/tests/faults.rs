//! Breaks machines and what runs them, in each way that is known, and looks at how `cargo xtask vm-test` takes it:
//! its exit code, its own message, the evidence it keeps, how long it takes, and that nothing of the run is left.
//!
//! The cases run the real `xtask`, one after the other, against the scenarios in `faults/`. They wait for lines and
//! for processes to end, never for time to pass, so they do not depend on how a machine comes up or how fast.
//! Scenarios that go wrong as expected are no matter of this file: see `vm-tests/scenarios`.

mod support;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Arguments;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;
use vm_tests::cache;
use vm_tests::host::process::{self, Child, Identity, Program, describe};
use vm_tests::host::tools;
use vm_tests::report::{Report, ScenarioReport, Verdict};

use support::{has_time_for_all, own_cache, trial};

/// From the start of `xtask` to a machine at work: the first run builds the guest's programs, the image.
const READY: Duration = Duration::from_secs(1800);
/// What a process takes to follow the one it depends on.
const FOLLOW: Duration = Duration::from_secs(10);
/// What a run takes to see a fault, save what the guest still tells, end its machine and report. Its parts are
/// bounded by 5 s for a guest that tells nothing, 25 s for one that does, and 9 s; see `vm_tests::machine`.
const REPORTED: Duration = Duration::from_secs(40);

/// The guest of all cases, and its directory in the results.
const GUEST: &str = "trixie";

/// The exit codes of `xtask --help`.
const PASSED: i32 = 0;
const FAILED: i32 = 1;
const INFRASTRUCTURE: i32 = 69;
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case has a machine of its own to itself, and its bounds with it.
    arguments.test_threads.get_or_insert(1);
    let mut cases = vec![
        trial("guest-panics", guest_panics),
        trial("a-red-cycle-tells-its-story", a_red_cycle_tells_its_story),
        trial("a-first-snapshot-is-offered", a_first_snapshot_is_offered),
        trial("silence-of-the-guest", guest_falls_silent),
        trial("qemu-is-killed", qemu_is_killed),
        trial("silence-of-qemu", qemu_hangs),
        trial("qemu-refuses-to-start", qemu_refuses_to_start),
        trial("qemu-refuses-to-boot", qemu_refuses_to_boot),
        trial("silence-of-qemu-from-the-start", qemu_never_answers),
        trial("xtask-is-killed", xtask_is_killed),
        trial("ctrl-c", ctrl_c),
        trial("ctrl-c-before-the-machine-answers", ctrl_c_before_the_machine_answers),
        trial("ctrl-c-while-it-boots", ctrl_c_while_it_boots),
        trial("ctrl-c-twice", ctrl_c_twice),
        trial("saved-machine-is-damaged", saved_machine_is_damaged),
        trial("saved-by-another-qemu", saved_by_another_qemu),
        trial("disk-full-before-saving", disk_full_before_saving),
        trial("disk-full-while-saving", disk_full_while_saving),
        trial("xtask-is-killed-at-any-moment", xtask_is_killed_at_any_moment),
        trial("two-runs-at-once", two_runs_at_once),
    ];
    if has_time_for_all() {
        cases.push(trial("host-has-no-time", host_has_no_time));
    }
    libtest_mimic::run(&arguments, cases).exit_code()
}

async fn guest_panics(scratch: &Path) -> Result<()> {
    let mut run = Run::start("guest-panics", scratch, &[], Vec::new())?;
    run.is_recording().await?;
    let ended = run.ends(REPORTED).await?;
    ended.is(INFRASTRUCTURE, &["the guest's kernel panicked", "sysrq triggered crash"])?;
    ended.reports(Verdict::Infrastructure, "the guest's kernel panicked")?;
    ended.keeps("serial.log", "Kernel panic - not syncing")?;
    ended.keeps("qmp.log", "GUEST_PANICKED")
}

/// Who reads the terminal knows what happened, and the evidence is of before the recovery, after which all looks well.
async fn a_red_cycle_tells_its_story(scratch: &Path) -> Result<()> {
    let run = Run::start("fails-to-start", scratch, &[], Vec::new())?;
    let ended = run.ends(READY).await?;
    let story = [
        "exit status 203/EXEC",
        "the program could not be executed",
        "rmdir: failed to remove '/srv/typo': Device or resource busy",
        "nobody tried to unmount /srv/typo, and it is still mounted",
        "Unable to locate executable '/usr/bin/slepe'",
        "to look into it: cargo xtask shell",
    ];
    ended.is(FAILED, &story)?;
    ensure!(!ended.text.contains("panicked"), "a failed comparison panics:\n{}", ended.text);
    ended.reports(Verdict::Failed, "the mount is still there after the reset")?;
    ended.names_evidence("cycle-1/unit.txt", "Result=exit-code")?;
    ended.names_evidence("cycle-1/journal.txt", "status=203/EXEC")?;
    ended.keeps("unit.txt", "Result=success")
}

/// A newcomer's first hour, as docs/scenarios.md has it.
async fn a_first_snapshot_is_offered(scratch: &Path) -> Result<()> {
    let name = "demo-leaves";
    let directory = scratch.join(name);
    let new = Program::new(env!("CARGO_BIN_EXE_xtask")).arg("new").arg(&directory);
    let written = process::output(new.args(["--unit", "demo.service"]), FOLLOW).await?.text();
    let next = format!("cargo xtask vm-test {}", directory.display());
    ensure!(written.contains(&next), "it does not say what to type next:\n{written}");
    // The bound of its reset is one of the guest's time.
    const VIRTUAL: [&str; 2] = ["--clock", "virtual"];
    let run = async |update: &str| {
        let environment = vec![("INSTA_UPDATE", OsString::from(update))];
        Run::start_at(&[], &directory, name, scratch, &VIRTUAL, environment)?.ends(READY).await
    };

    let offered = run("new").await?;
    offered.is(
        FAILED,
        &["0 passed, 0 failed, 1 new", "to accept what is new", "INSTA_UPDATE=always cargo xtask vm-test"],
    )?;
    offered.reports(Verdict::New, "no snapshot yet")?;
    ensure!(directory.join("outcome.snap.new").exists(), "there is nothing to look at");
    let none = run("no").await?;
    none.is(FAILED, &["1 new"])?;
    run("always").await?.is(PASSED, &["1 passed, 0 failed"])?;
    ensure!(!directory.join("outcome.snap.new").exists(), "what was offered is decided");
    run("no").await?.reports_passed()
}

async fn guest_falls_silent(scratch: &Path) -> Result<()> {
    let deadline = Duration::from_secs(5);
    let mut run = Run::start("guest-falls-silent", scratch, &["--deadline", "5"], Vec::new())?;
    run.is_recording().await?;
    let ended = run.ends(deadline + REPORTED).await?;
    let words = "the guest never answered: waited 5.0 s for the recording";
    ended.is(INFRASTRUCTURE, &[words, "longer than --deadline allows, 5 s"])?;
    ended.reports(Verdict::Infrastructure, words)?;
    ended.keeps("serial.log", "")?;
    ended.keeps("qmp.log", "quit")
}

async fn qemu_is_killed(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Qemu, Signal::KILL)?;
    let ended = run.ends(FOLLOW).await?;
    ended.is(INFRASTRUCTURE, &["QEMU died: killed by SIGKILL"])?;
    ended.reports(Verdict::Infrastructure, "QEMU died: killed by SIGKILL")?;
    ended.keeps("serial.log", "")?;
    ended.keeps("qmp.log", "qmp_capabilities")
}

/// A stopped QEMU is a machine that neither runs nor answers its monitor, and that SIGTERM does not end.
async fn qemu_hangs(scratch: &Path) -> Result<()> {
    let deadline = Duration::from_secs(5);
    let mut run = Run::start("waits", scratch, &["--deadline", "5"], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Qemu, Signal::STOP)?;
    let ended = run.ends(deadline + REPORTED).await?;
    // The guest, for the recording; or QEMU, already for its word on letting the guest run.
    let words = "never answered: waited";
    ended.is(INFRASTRUCTURE, &[words])?;
    ended.reports(Verdict::Infrastructure, words)?;
    ended.keeps("qmp.log", "quit")
}

/// For as long, its kernel would say that a clock was not compared with another one: no fault of what runs there.
async fn host_has_no_time(scratch: &Path) -> Result<()> {
    let mut run = Run::start("quick", scratch, &["--cycles", "40"], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Qemu, Signal::STOP)?;
    let stood = timeout(Duration::from_millis(1600), run.xtask.wait()).await;
    ensure!(stood.is_err(), "it ended while its machine stood");
    run.signal(Who::Qemu, Signal::CONT)?;
    run.ends(REPORTED).await?.is(0, &["1 passed"])
}

async fn qemu_refuses_to_start(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], fake_qemu(scratch, ITS_OWN, NO_MACHINE)?)?;
    run.says("/waits: restoring", READY).await?;
    let ended = run.ends(FOLLOW).await?;
    ended.is(INFRASTRUCTURE, &["QEMU died: exit code 1; its stderr", "-machine q35: no such machine"])?;
    ended.reports(Verdict::Infrastructure, "-machine q35: no such machine")?;
    ended.keeps("qemu.stderr", "-machine q35: no such machine")
}

/// Before any scenario runs, so there is no report.
async fn qemu_refuses_to_boot(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], nothing_saved(scratch, NO_MACHINE)?)?;
    run.says("booting it, once", READY).await?;
    let ended = run.ends(FOLLOW).await?;
    let boot = "boot the machine that is saved";
    ended.is(INFRASTRUCTURE, &[boot, "QEMU died: exit code 1; its stderr", "no such machine"])?;
    ended.names_evidence("qemu.stderr", "-machine q35: no such machine")
}

async fn qemu_never_answers(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], fake_qemu(scratch, ITS_OWN, STUCK)?)?;
    run.says("/waits: restoring", READY).await?;
    let ended = run.ends(REPORTED).await?;
    ended.is(INFRASTRUCTURE, &["QEMU never answered: waited 20.0 s for its monitor"])?;
    ended.reports(Verdict::Infrastructure, "QEMU never answered: waited 20.0 s for its monitor")
}

/// Nobody is left to tell; what matters is that the machine does not stay.
async fn xtask_is_killed(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Xtask, Signal::KILL)?;
    let ended = run.ends(FOLLOW).await?;
    ensure!(describe(ended.status) == "killed by SIGKILL", "{}", describe(ended.status));
    ended.keeps("qmp.log", "qmp_capabilities")
}

async fn ctrl_c(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Xtask, Signal::INT)?;
    let ended = run.ends(REPORTED).await?;
    ended.is(INTERRUPTED, &["interrupted: cleaning up"])?;
    ended.reports(Verdict::Interrupted, "interrupted")?;
    ended.keeps("qmp.log", "quit")
}

async fn ctrl_c_before_the_machine_answers(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], fake_qemu(scratch, ITS_OWN, STUCK)?)?;
    run.says("/waits: restoring", READY).await?;
    run.signal(Who::Xtask, Signal::INT)?;
    let ended = run.ends(FOLLOW).await?;
    ended.is(INTERRUPTED, &["interrupted: cleaning up"])?;
    ended.reports(Verdict::Interrupted, "interrupted")
}

/// Before any scenario runs, so there is no report.
async fn ctrl_c_while_it_boots(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], nothing_saved(scratch, STUCK)?)?;
    run.says("booting it, once", READY).await?;
    run.signal(Who::Xtask, Signal::INT)?;
    let ended = run.ends(FOLLOW).await?;
    ended
        .is(INTERRUPTED, &["interrupted: cleaning up", "boot the machine that is saved", ": interrupted"])?;
    ended.names_evidence("qemu.pid", "")
}

/// QEMU is stopped first, so that the clean-up cannot be over before the second interrupt.
async fn ctrl_c_twice(scratch: &Path) -> Result<()> {
    let mut run = Run::start("waits", scratch, &[], Vec::new())?;
    run.is_recording().await?;
    run.signal(Who::Qemu, Signal::STOP)?;
    run.signal(Who::Xtask, Signal::INT)?;
    run.says("once more ends it at once", FOLLOW).await?;
    run.signal(Who::Xtask, Signal::INT)?;
    let ended = run.ends(FOLLOW).await?;
    ended.is(INTERRUPTED, &["ended without cleaning up"])?;
    ended.keeps("qmp.log", "qmp_capabilities")
}

/// One bit of the saved RAM is another: it is noticed, told, and mended by booting anew.
async fn saved_machine_is_damaged(scratch: &Path) -> Result<()> {
    let own = own_cache(scratch)?;
    let environment = || vec![(cache::CACHE_VAR, own.clone().into_os_string())];
    let run = Run::start("quick", scratch, &[], environment())?;
    run.ends(READY).await?.is(0, &["booting it, once"])?;
    let ram = only_machine(&own)?.join("ram");
    flip_a_bit(&ram)?;
    let run = Run::start("quick", scratch, &[], environment())?;
    let damaged = format!("is damaged, making it anew: {} has changed", ram.display());
    run.ends(READY).await?.is(0, &[&damaged, "booting it, once"])?;
    let ended = Run::start("quick", scratch, &[], environment())?.ends(READY).await?;
    ended.is(0, &[])?;
    ensure!(!ended.text.contains("booting it, once"), "it was booted again:\n{}", ended.text);
    nothing_half_made(&own)
}

/// The version is part of what a saved machine is named by, so that of another QEMU is not found.
async fn saved_by_another_qemu(scratch: &Path) -> Result<()> {
    let own = own_cache(scratch)?;
    let cache = || (cache::CACHE_VAR, own.clone().into_os_string());
    Run::start("quick", scratch, &[], vec![cache()])?.ends(READY).await?.is(0, &["booting it, once"])?;
    let mut environment = fake_qemu(scratch, "--version", "echo 'QEMU emulator version 99.0.1'")?;
    environment.push(cache());
    let mut run = Run::start("quick", scratch, &[], environment)?;
    run.says("booting it, once", READY).await?;
    run.ends(READY).await?.is(0, &["1 passed"])?;
    let machines = machines(&own)?;
    ensure!(machines.len() == 2, "one machine for each QEMU, not {machines:?}");
    nothing_half_made(&own)
}

/// The room is taken before the boot, so that a full disk is an error and no SIGBUS in QEMU.
async fn disk_full_before_saving(scratch: &Path) -> Result<()> {
    disk_full(scratch, "64m", "no room for a saved machine").await
}

/// There is room for the RAM and not for the state of the devices.
async fn disk_full_while_saving(scratch: &Path) -> Result<()> {
    disk_full(scratch, "525056k", "save the machine").await
}

/// A run whose cache is a file system of this size. It is mounted in a mount namespace that ends with the run.
async fn disk_full(scratch: &Path, size: &str, words: &str) -> Result<()> {
    let own = own_cache(scratch)?;
    let machines = own.join("machines");
    std::fs::create_dir(&machines)?;
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs '{0}' && \"$@\"; code=$?; ls -A '{0}' >'{1}'; exit $code",
        machines.display(),
        scratch.join("left").display()
    );
    let before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
    let environment = vec![(cache::CACHE_VAR, own.into_os_string())];
    let run = Run::start_by(&before, "quick", scratch, &["--accel", "tcg"], environment)?;
    run.ends(READY).await?.is(INFRASTRUCTURE, &[words])?;
    let left = std::fs::read_to_string(scratch.join("left"))?;
    // Logs of a boot that failed are kept; nothing else is.
    let rest: Vec<&str> =
        left.lines().filter(|name| !name.ends_with(".lock") && !name.ends_with(".failed")).collect();
    ensure!(rest.is_empty(), "left on the full disk: {rest:?}");
    Ok(())
}

/// SIGKILL at moments drawn at random, over the whole of a run, and then while the machine is booted and saved. Nothing of the
/// run is left, and the next one makes do with the cache as it is.
async fn xtask_is_killed_at_any_moment(scratch: &Path) -> Result<()> {
    let kills: u32 = match std::env::var(KILLS_VAR) {
        Ok(text) => text.parse().with_context(|| format!("{KILLS_VAR}={text}"))?,
        // Their moments are others each time.
        Err(_unset) if has_time_for_all() => ALL_KILLS,
        Err(_unset) => KILLS,
    };
    let own = own_cache(scratch)?;
    let environment = || vec![(cache::CACHE_VAR, own.clone().into_os_string())];
    let forget = || machines(&own)?.iter().try_for_each(|machine| cache::remove_tree(machine));
    let whole = async || -> Result<Duration> {
        let begun = Instant::now();
        Run::start("quick", scratch, &[], environment())?.ends(READY).await?.is(0, &["1 passed"])?;
        Ok(begun.elapsed())
    };
    // Or the first run may build them, and most moments would be the compiler's.
    process::output(Program::new(env!("CARGO_BIN_EXE_xtask")).arg("programs"), READY).await?;
    let (cold, warm) = (whole().await?, whole().await?);
    let seed = std::env::var(SEED_VAR).ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
    eprintln!(
        "{kills} kills over {:.1} s, or {:.1} s with a boot; {SEED_VAR}={seed}",
        warm.as_secs_f64(),
        cold.as_secs_f64()
    );
    let mut random = fastrand::Rng::with_seed(seed);
    // The last fifth while there is no machine: a run that is killed then leaves none to the next.
    for number in 1..=kills {
        let boots = number > kills - kills / 5;
        if boots {
            forget()?;
        }
        let within = if boots { cold } else { warm };
        let moment = within.mul_f64(random.f64());
        let mut run = Run::start("quick", scratch, &[], environment())?;
        // Its end may come first, at a moment near the end.
        if timeout(moment, run.xtask.wait()).await.is_err() {
            run.seen = processes(&run.results)?;
            let pid = Pid::from_raw(i32::try_from(run.xtask.pid())?).context("a process id is not 0")?;
            kill_process(pid, Signal::KILL).context("kill xtask")?;
        }
        run.since = Instant::now();
        // What is killed in fsync(2) ends when the disk has answered.
        run.ends(REPORTED).await.with_context(|| format!("kill {number}, {moment:?} after the start"))?;
    }
    whole().await?;
    nothing_half_made(&own)?;
    ensure!(sockets(scratch)?.is_empty(), "sockets are left: {:?}", sockets(scratch)?);
    Ok(())
}

/// Neither waits for the other where each has results of its own, and both have their verdict.
async fn two_runs_at_once(scratch: &Path) -> Result<()> {
    let (first, second) = (scratch.join("first"), scratch.join("second"));
    for directory in [&first, &second] {
        std::fs::create_dir(directory)?;
    }
    let mut waits = Run::start("waits", &first, &[], Vec::new())?;
    waits.is_recording().await?;
    let quick = Run::start("quick", &second, &[], Vec::new())?.ends(READY).await?;
    quick.is(0, &["1 passed"])?;
    quick.reports_passed()?;
    // The other one is as it was.
    waits.signal(Who::Xtask, Signal::INT)?;
    let ended = waits.ends(REPORTED).await?;
    ended.is(INTERRUPTED, &["interrupted: cleaning up"])?;
    ended.reports(Verdict::Interrupted, "interrupted")
}

/// How many kills, unless this variable of the environment says otherwise.
const KILLS_VAR: &str = "VM_TESTS_KILLS";
const KILLS: u32 = 10;
/// The same where a check has the time for all.
const ALL_KILLS: u32 = 25;
/// Repeats the moments of an earlier run.
const SEED_VAR: &str = "VM_TESTS_SEED";

/// The saved machines of a cache.
fn machines(cache: &Path) -> Result<Vec<PathBuf>> {
    let directory = cache.join("machines");
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let all: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    Ok(all.iter().map(std::fs::DirEntry::path).filter(|path| path.join("manifest.json").exists()).collect())
}

fn only_machine(cache: &Path) -> Result<PathBuf> {
    match machines(cache)?.as_slice() {
        [one] => Ok(one.clone()),
        all => bail!("not one saved machine in {}: {all:?}", cache.display()),
    }
}

/// Flips a bit in the middle of a file's data.
fn flip_a_bit(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(file.metadata()?.len() / 2))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&byte.map(|byte| byte ^ 16), at)?;
    Ok(())
}

/// No entry of the cache is left in the making.
fn nothing_half_made(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache.join("machines"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(!name.contains(".building-"), "half made and left: {name}");
    }
    Ok(())
}

/// The sockets below a directory.
fn sockets(directory: &Path) -> Result<Vec<PathBuf>> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_socket() {
            found.push(entry.path());
        } else if kind.is_dir() {
            found.extend(sockets(&entry.path())?);
        }
    }
    Ok(found)
}

/// The command line of the machine that runs the scenario.
const ITS_OWN: &str = "*/waits/serial.log*";
/// That of the machine which is booted once and saved.
const SAVED: &str = "*/boot/serial.log*";
/// What a QEMU does that does not know what it is asked for.
const NO_MACHINE: &str = "echo \"$0: -machine q35: no such machine\" >&2; exit 1";
/// What a QEMU does that is stuck before it answers.
const STUCK: &str = "sleep 3600";

/// The environment in which QEMU is a shell script where its command line matches, and the real one for all else.
fn fake_qemu(scratch: &Path, matches: &str, script: &str) -> Result<Vec<(&'static str, OsString)>> {
    let real = tools::which("qemu-system-x86_64").context("find qemu-system-x86_64 on PATH")?;
    let directory = scratch.join("bin");
    std::fs::create_dir(&directory)?;
    let program = directory.join("qemu-system-x86_64");
    let real = real.display();
    let text =
        format!("#!/bin/sh\ncase \"$*\" in\n{matches}) {script} ;;\n*) exec '{real}' \"$@\" ;;\nesac\n");
    std::fs::write(&program, text)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(directory).chain(std::env::split_paths(&path)))?;
    Ok(vec![("PATH", path)])
}

/// The environment with a fake QEMU and a cache in which an image is, and no saved machine.
fn nothing_saved(scratch: &Path, script: &str) -> Result<Vec<(&'static str, OsString)>> {
    let own = own_cache(scratch)?;
    let mut environment = fake_qemu(scratch, SAVED, script)?;
    environment.push((cache::CACHE_VAR, own.into()));
    Ok(environment)
}

/// The processes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Xtask,
    Qemu,
}

/// One process that belongs to a run.
#[derive(Debug)]
struct Process {
    identity: Identity,
    /// Its command's name: at most 15 bytes, see proc_pid_comm(5).
    comm: String,
}

/// A `cargo xtask vm-test` under way.
struct Run {
    xtask: Child,
    scenario: &'static str,
    results: PathBuf,
    lines: mpsc::UnboundedReceiver<String>,
    /// All lines so far.
    text: String,
    /// The processes of this run that were seen.
    seen: Vec<Process>,
    /// When the fault began.
    since: Instant,
}

impl Run {
    /// Starts `xtask vm-test` for a scenario of `faults/`, with some variables of the environment set.
    fn start(
        scenario: &'static str,
        scratch: &Path,
        arguments: &[&str],
        environment: Vec<(&str, OsString)>,
    ) -> Result<Self> {
        Self::start_by(&[], scenario, scratch, arguments, environment)
    }

    /// The same, by a program that runs its last arguments.
    fn start_by(
        before: &[&str],
        scenario: &'static str,
        scratch: &Path,
        arguments: &[&str],
        environment: Vec<(&str, OsString)>,
    ) -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(scenario);
        let arguments = [&["--clock", "real"], arguments].concat();
        Self::start_at(before, &directory, scenario, scratch, &arguments, environment)
    }

    /// The same, for a scenario that lies elsewhere, on any clock.
    fn start_at(
        before: &[&str],
        directory: &Path,
        scenario: &'static str,
        scratch: &Path,
        arguments: &[&str],
        environment: Vec<(&str, OsString)>,
    ) -> Result<Self> {
        let results = scratch.join("results");
        let xtask = env!("CARGO_BIN_EXE_xtask");
        let (program, rest) = before.split_first().unwrap_or((&xtask, &[]));
        let mut program = Program::new(program).args(rest);
        if !before.is_empty() {
            program = program.arg(xtask);
        }
        program = program.arg("vm-test").args(arguments).arg("--results").arg(&results).arg(directory);
        for (name, value) in environment {
            program = program.env(name, value);
        }
        let mut xtask = program.spawn()?;
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(relay(xtask.take_stdout()?.context("its stdout is a pipe")?, sender.clone()));
        tokio::spawn(relay(xtask.take_stderr()?.context("its stderr is a pipe")?, sender));
        let (text, seen, since) = (String::new(), Vec::new(), Instant::now());
        Ok(Self { xtask, scenario, results, lines, text, seen, since })
    }

    /// Waits for a line with these words in it.
    async fn says(&mut self, words: &str, within: Duration) -> Result<()> {
        let said = timeout(within, async {
            while let Some(line) = self.lines.recv().await {
                self.text.push_str(&line);
                self.text.push('\n');
                if line.contains(words) {
                    return true;
                }
            }
            false
        })
        .await;
        match said {
            Ok(true) => {
                self.since = Instant::now();
                Ok(())
            }
            Ok(false) => bail!("it ended and did not say {words:?}; it said:\n{}", self.text),
            Err(_elapsed) => bail!("no {words:?} within {within:?}; it said:\n{}", self.text),
        }
    }

    /// Waits until the plan runs in the guest.
    async fn is_recording(&mut self) -> Result<()> {
        self.says(&format!("{GUEST}/{}: recording", self.scenario), READY).await?;
        self.seen = processes(&self.results)?;
        Ok(())
    }

    /// Sends a signal to one of the run's processes: the fault begins.
    fn signal(&mut self, who: Who, signal: Signal) -> Result<()> {
        let pid = match who {
            Who::Xtask => self.xtask.pid(),
            Who::Qemu => {
                let file = self.results.join(GUEST).join(self.scenario).join("qemu.pid");
                let noted =
                    std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                let pid = self.pid_of("qemu")?;
                ensure!(noted.trim() == pid.to_string(), "{}: {noted}, but QEMU is {pid}", file.display());
                pid
            }
        };
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is not 0")?;
        kill_process(pid, signal).with_context(|| format!("send {signal:?} to {who:?}"))?;
        self.since = Instant::now();
        Ok(())
    }

    fn pid_of(&self, comm: &str) -> Result<u32> {
        let mut matching = self.seen.iter().filter(|process| process.comm.starts_with(comm));
        match (matching.next(), matching.next()) {
            (Some(process), None) => Ok(process.identity.pid),
            _ => bail!("not exactly one {comm}* in {:?}", self.seen),
        }
    }

    /// Waits for the end of `xtask` and of every process of the run, all within a bound from the fault on.
    async fn ends(mut self, within: Duration) -> Result<Ended> {
        let deadline = tokio::time::Instant::from_std(self.since) + within;
        let status = match tokio::time::timeout_at(deadline, self.xtask.wait()).await {
            Ok(status) => status?,
            Err(_elapsed) => bail!("xtask is there {within:?} after the fault; it said:\n{}", self.rest()),
        };
        let exit = self.since.elapsed();
        let left = processes(&self.results)?;
        for process in self.seen.iter().chain(&left) {
            if tokio::time::timeout_at(deadline, process.identity.ended()).await.is_err() {
                let process = format!("{process:?}");
                bail!("{process} is there {within:?} after the fault; xtask said:\n{}", self.rest());
            }
        }
        let all = self.since.elapsed();
        // With the last process, the last that could write is gone.
        while let Ok(Some(line)) = tokio::time::timeout_at(deadline, self.lines.recv()).await {
            self.text.push_str(&line);
            self.text.push('\n');
        }
        let name = self.results.ancestors().nth(1).and_then(Path::file_name).unwrap_or_default();
        eprintln!(
            "{}: {} {:.2} s after the fault, all gone at {:.2} s",
            name.display(),
            describe(status),
            exit.as_secs_f64(),
            all.as_secs_f64()
        );
        Ok(Ended { status, text: self.text, scenario: self.scenario, results: self.results })
    }

    fn rest(&mut self) -> &str {
        while let Ok(line) = self.lines.try_recv() {
            self.text.push_str(&line);
            self.text.push('\n');
        }
        &self.text
    }
}

/// Hands out a stream's lines, until its end.
async fn relay(stream: impl AsyncRead + Unpin, lines: mpsc::UnboundedSender<String>) {
    let mut stream = BufReader::new(stream).lines();
    while let Ok(Some(line)) = stream.next_line().await {
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// Every process but us that has a run's directory in its command line.
fn processes(results: &Path) -> Result<Vec<Process>> {
    let results = results.as_os_str().as_encoded_bytes();
    let contains = |text: io::Result<Vec<u8>>| {
        text.is_ok_and(|text| text.windows(results.len()).any(|at| at == results))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // What can't be read is another user's, or gone.
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}"));
        if contains(read("cmdline")) {
            let (Ok(identity), Ok(comm)) = (Identity::of(pid), read("comm")) else { continue };
            let comm = String::from_utf8_lossy(&comm).trim_end().to_owned();
            found.push(Process { identity, comm });
        }
    }
    Ok(found)
}

/// A run that is over, with nothing of it left.
struct Ended {
    status: ExitStatus,
    /// What it wrote to stdout and stderr.
    text: String,
    scenario: &'static str,
    results: PathBuf,
}

impl Ended {
    /// The exit code, and what was said.
    fn is(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(
            self.status.code() == Some(code),
            "{}, not exit code {code}; it said:\n{}",
            describe(self.status),
            self.text
        );
        for words in words {
            ensure!(self.text.contains(words), "it did not say {words:?}, but:\n{}", self.text);
        }
        Ok(())
    }

    /// The one verdict, and why.
    fn reports(&self, verdict: Verdict, why: &str) -> Result<()> {
        let file = self.results.join("report.json");
        let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let report: Report =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        let [ScenarioReport { verdict: its, why: reasons, .. }] = report.scenarios.as_slice() else {
            bail!("not exactly one scenario in {}", file.display());
        };
        ensure!(*its == verdict, "the verdict is {its:?}, not {verdict:?}: {reasons:?}");
        ensure!(reasons.iter().any(|reason| reason.contains(why)), "no {why:?} in {reasons:?}");
        Ok(())
    }

    /// The one verdict is that it passed.
    fn reports_passed(&self) -> Result<()> {
        let text = std::fs::read(self.results.join("report.json")).context("read report.json")?;
        let report: Report = serde_json::from_slice(&text).context("parse report.json")?;
        let passed = report.scenarios.iter().filter(|one| one.verdict == Verdict::Passed).count();
        ensure!(passed == 1 && report.scenarios.len() == 1, "not one that passed: {:?}", report.scenarios);
        Ok(())
    }

    /// A directory of evidence that is named in the message, with a file that has these words in it.
    fn names_evidence(&self, file: &str, words: &str) -> Result<()> {
        let (_, named) = self.text.split_once("evidence: ").context("no evidence is named")?;
        let directory = named.split([':', '\n']).next().unwrap_or_default();
        has(&Path::new(directory).join(file), words)
    }

    /// A file of evidence, with these words in it.
    fn keeps(&self, file: &str, words: &str) -> Result<()> {
        has(&self.results.join(GUEST).join(self.scenario).join(file), words)
    }
}

fn has(path: &Path, words: &str) -> Result<()> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    ensure!(text.contains(words), "no {words:?} in {}:\n{text}", path.display());
    Ok(())
}
