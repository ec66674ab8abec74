//! What the harness costs, measured: each function takes samples of one thing and ends every machine it started, on
//! errors too.
//!
//! Nothing here prints, compares with a target or decides how often: that is `cargo xtask bench`. Times are the
//! host's (CLOCK_MONOTONIC) unless a name says that they are the guest's.

pub mod holders;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use vm_agent::recording::{Plan, Recording, Step, What};
use vm_agent::wire::{Body, Session};

use crate::judge::cycle::Cycle;
use crate::judge::{Judgement, fold};
use crate::machine::base::Base;
use crate::machine::config::Ram;
use crate::machine::saved::Saved;
use crate::machine::{Cancel, Machine};
use crate::run::{self, Prepared};
use crate::scenario::Scenario;
use crate::scenario::bundle;

/// The longest a boot, or a guest's command, may take. A measurement is no deadline: this ends what hangs.
const DEADLINE: Duration = Duration::from_secs(300);

/// The size of the file that [`channel`] puts, in bytes.
pub const PUT_BYTES: usize = 10 << 20;

/// How long the guest of [`idle`] sleeps, in seconds of its own time.
pub const IDLE_SECS: u32 = 25;

/// The service that does nothing, for [`reset_and_stop`].
const EMPTY_SERVICE: &str = "vm-bench-empty.service";
/// The same with an `ExecStopPost=`.
const STOP_POST_SERVICE: &str = "vm-bench-stop-post.service";
/// The same as an instance that `l4d2ctl` stops, by its number.
const STOP_POST_SERVER: (&str, &str) = ("left4me-server@990.service", "990");

/// Samples of one thing, in one unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The smallest; NaN if there is none.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest; NaN if there is none.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// The middle one, or the mean of the two in the middle; NaN if there is none.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match (sorted.get(half), half.checked_sub(1).and_then(|before| sorted.get(before))) {
            (Some(high), Some(low)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
            (Some(middle), _) => *middle,
            (None, _) => f64::NAN,
        }
    }

    /// `(max - min) / median`; NaN if there is none.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.max() - self.min()) / self.median()
    }

    /// Each sample divided by the one of the other that was taken with it.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// A cold boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// From QEMU's start to its monitor's greeting. The guest runs already.
    pub greeting: Duration,
    /// From QEMU's start to the agent's hello.
    pub agent: Duration,
    /// From QEMU's start to the end of the boot: systemd is `running` and has no job left.
    pub running: Duration,
    /// Its parts by the guest's own clock.
    pub guest: Phases,
}

/// The parts of a boot by the guest's CLOCK_MONOTONIC, one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phases {
    /// From the kernel's start to its `Run /init`, in seconds.
    pub kernel_secs: f64,
    /// From there to systemd's start, in seconds: modules, root, agent.
    pub initramfs_secs: f64,
    /// From there to the agent's unit being active, in seconds.
    pub agent_secs: f64,
    /// From there to systemd's end of the boot, in seconds.
    pub rest_secs: f64,
}

/// Boots a machine whose RAM is kept nowhere, and asks it where its time went.
///
/// # Errors
/// As [`Machine::race`]; a guest whose clocks can't be read.
pub async fn boot(base: &Base, directory: &Path, cancel: Cancel) -> Result<Boot> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = directory.join("deploy.img");
    bundle::write_deploy_image(&deploy, None)?;
    let begun = Instant::now();
    let mut machine = Machine::start(&base.qemu, base.config(Ram::Fresh, deploy), directory, cancel).await?;
    let greeting = begun.elapsed();
    let measured = async {
        machine.hello(DEADLINE).await?;
        let agent = begun.elapsed();
        let state = text(&mut machine, &["systemctl", "is-system-running", "--wait"]).await?;
        let running = begun.elapsed();
        ensure!(state == "running", "the guest is {state} after boot, not running");
        Ok(Boot { greeting, agent, running, guest: phases(&mut machine).await? })
    }
    .await;
    stop(machine, measured).await
}

async fn phases(machine: &mut Machine) -> Result<Phases> {
    let manager = text(
        machine,
        &["systemctl", "show", "--property=UserspaceTimestampMonotonic,FinishTimestampMonotonic"],
    )
    .await?;
    let agent =
        text(machine, &["systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "vm-agent.service"])
            .await?;
    let log = text(machine, &["dmesg"]).await?;
    let init = init_secs(&log).context("the kernel's log has no `Run /init`")?;
    let userspace = property_secs(&manager, "UserspaceTimestampMonotonic")?;
    let active = property_secs(&agent, "ActiveEnterTimestampMonotonic")?;
    let finish = property_secs(&manager, "FinishTimestampMonotonic")?;
    Ok(Phases {
        kernel_secs: init,
        initramfs_secs: userspace - init,
        agent_secs: active - userspace,
        rest_secs: finish - active,
    })
}

/// The time of `[    0.771544] Run /init as init process`, in seconds.
fn init_secs(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains("] Run /init"))?;
    line.trim_start_matches('[').split(']').next()?.trim().parse().ok()
}

/// A `…TimestampMonotonic` as `systemctl show` prints it: microseconds.
fn property_secs(shown: &str, name: &str) -> Result<f64> {
    let value = shown
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("no {name} in {shown:?}"))?;
    let micros: u64 = value.parse().with_context(|| format!("{name}={value}"))?;
    ensure!(micros > 0, "{name} is not set");
    Ok(Duration::from_micros(micros).as_secs_f64())
}

/// Restores machines side by side; returns the time from the start of the first QEMU to the first answer (to a ping)
/// of each, the earliest first. A machine that has answered is paused, so that only restoring is measured.
///
/// # Errors
/// As [`run::restore`] and [`Machine::race`].
pub async fn restore(
    prepared: &Arc<Prepared>,
    machines: usize,
    directory: &Path,
    cancel: &Cancel,
) -> Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..machines {
        let (prepared, cancel) = (Arc::clone(prepared), cancel.clone());
        let directory = directory.join(number.to_string());
        tasks.spawn(async move {
            let mut machine = run::restore(&prepared, None, &directory, cancel).await?;
            let answered = async {
                answer(&mut machine).await?;
                let elapsed = begun.elapsed();
                machine.monitor("stop", json!({})).await?;
                Ok(elapsed)
            }
            .await;
            anyhow::Ok((machine, answered))
        });
    }
    // All are waited for before the first is ended, so that no end is in another one's time.
    let joined = tasks.join_all().await;
    let mut times = Vec::new();
    let mut wrong = None;
    for started in joined {
        let ended = match started {
            Ok((machine, answered)) => stop(machine, answered).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(elapsed) => times.push(elapsed),
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    times.sort_unstable();
    wrong.map_or(Ok(times), Err)
}

async fn answer(machine: &mut Machine) -> Result<()> {
    machine.resume().await?;
    let guest = machine.guest();
    Ok(machine.race("the answer to a ping", DEADLINE, guest.ping()).await?)
}

/// Restores a machine that runs and has answered.
async fn restored(prepared: &Prepared, directory: &Path, cancel: Cancel) -> Result<Machine> {
    let mut machine = run::restore(prepared, None, directory, cancel).await?;
    match answer(&mut machine).await {
        Ok(()) => Ok(machine),
        Err(error) => stop(machine, Err(error)).await,
    }
}

/// What a saved machine takes of the disk, in bytes: blocks, not lengths, since its files have holes.
///
/// # Errors
/// When a file is not there.
pub fn disk_bytes(saved: &Saved) -> Result<u64> {
    let blocks = |path: &Path| {
        let metadata = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
        // stat(2): a block of st_blocks is 512 bytes on every file system.
        anyhow::Ok(metadata.blocks() * 512)
    };
    Ok(blocks(&saved.ram)? + blocks(&saved.state)?)
}

/// Times of requests, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Channel {
    /// A ping.
    pub ping: Samples,
    /// `/bin/true` to its exit status.
    pub truth: Samples,
    /// `echo` to its output and exit status.
    pub echo: Samples,
    /// [`PUT_BYTES`] into a file.
    pub put: Samples,
}

/// How often each request of [`channel`] is made.
#[derive(Debug, Clone, Copy)]
pub struct Requests {
    /// Pings.
    pub pings: usize,
    /// Commands of each kind.
    pub commands: usize,
    /// Files.
    pub puts: usize,
}

/// Measures the channel in one machine, a request after the other.
///
/// # Errors
/// As [`Machine::race`]; a command or a file that is not what it should be.
pub async fn channel(
    prepared: &Prepared,
    requests: Requests,
    directory: &Path,
    cancel: Cancel,
) -> Result<Channel> {
    let mut machine = restored(prepared, directory, cancel).await?;
    let guest = machine.guest();
    let measured = async {
        let mut channel = Channel::default();
        for _ in 0..requests.pings {
            let begun = Instant::now();
            machine.race("the answer to a ping", DEADLINE, guest.ping()).await?;
            channel.ping.0.push(begun.elapsed().as_secs_f64());
        }
        // Interleaved: the two differ by the output alone.
        for _ in 0..requests.commands {
            let begun = Instant::now();
            let output = machine.run(&["/bin/true"], DEADLINE).await?;
            channel.truth.0.push(begun.elapsed().as_secs_f64());
            ensure!(output.exit.success(), "/bin/true: {}", output.exit);
            let begun = Instant::now();
            let output = machine.run(&["/bin/echo", "hello"], DEADLINE).await?;
            channel.echo.0.push(begun.elapsed().as_secs_f64());
            ensure!(output.stdout == b"hello\n", "echo wrote {:?}", output.text());
        }
        // No two pages are the same, so that nothing is saved by noticing it.
        let bytes: Vec<u8> = (0..PUT_BYTES).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
        for _ in 0..requests.puts {
            let begun = Instant::now();
            let put = guest.put_bytes("/run/vm-bench/file", 0o600, &bytes);
            machine.race("the file to be put", DEADLINE, put).await?;
            channel.put.0.push(begun.elapsed().as_secs_f64());
            let size = text(&mut machine, &["stat", "--format=%s", "/run/vm-bench/file"]).await?;
            ensure!(size == PUT_BYTES.to_string(), "a file of {PUT_BYTES} bytes arrived as {size}");
        }
        Ok(channel)
    }
    .await;
    stop(machine, measured).await
}

/// The host's seconds for guest time in virtual time.
#[derive(Debug, Clone, Default)]
pub struct Idle {
    /// For [`IDLE_SECS`] guest seconds of sleep.
    pub asleep: Samples,
    /// For one guest second of a shell's loop.
    pub busy: Samples,
}

/// Measures what a guest second costs the host, asleep and busy by turns, in one machine.
///
/// # Errors
/// As [`Machine::race`].
pub async fn idle(prepared: &Prepared, rounds: usize, directory: &Path, cancel: Cancel) -> Result<Idle> {
    /// Loops until /proc/uptime, in hundredths, is a second further; prints how much it has become.
    const LOOP: &str = "now() { read -r up _ </proc/uptime; now=$((${up%.*} * 100 + 1${up#*.} - 100)); }
        now; begun=$now
        while [ $now -lt $((begun + 100)) ]; do
            i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done
            now
        done
        echo $((now - begun))";
    let mut machine = restored(prepared, directory, cancel).await?;
    let measured = async {
        let mut idle = Idle::default();
        for _ in 0..rounds {
            let begun = Instant::now();
            text(&mut machine, &["sleep", &IDLE_SECS.to_string()]).await?;
            idle.asleep.0.push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            let hundredths = text(&mut machine, &["sh", "-c", LOOP]).await?;
            let wall = begun.elapsed().as_secs_f64();
            let guest: f64 = hundredths.parse().with_context(|| format!("the loop wrote {hundredths:?}"))?;
            idle.busy.0.push(wall / (guest / 100.0));
        }
        Ok(idle)
    }
    .await;
    stop(machine, measured).await
}

/// Runs a scenario as `cargo xtask vm-test` does, and returns each cycle's Reset in nanoseconds of guest time.
///
/// # Errors
/// As [`run::run`]; a run that is not as its manifest expects has other durations, and is one too.
pub async fn resets(prepared: &Prepared, scenario: &Scenario, cancel: Cancel) -> Result<Vec<u64>> {
    let run = run::run(prepared, scenario, cancel).await?;
    let Judgement { cycles, deviations, .. } = run.judgement;
    ensure!(deviations.is_empty(), "{}: {}", scenario.name, deviations.join("; "));
    Ok(cycles.iter().map(|cycle| cycle.reset_ns).collect())
}

/// Guest times of ways to bring a unit down, in seconds, taken by turns, without umount2(2) and the recorder's looks.
#[derive(Debug, Clone, Default)]
pub struct ResetAndStop {
    /// The scenario's Reset.
    pub reset: Samples,
    /// `systemctl stop` of a service that does nothing.
    pub stop: Samples,
    /// The same of one that has an `ExecStopPost=+` that does nothing, too: what systemd takes for the line by itself.
    pub stop_post: Samples,
    /// The same by `l4d2ctl stop`: what is left for the unit's settings, the unmount and the delete is beyond this.
    pub stop_post_by_ctl: Samples,
}

/// Measures a scenario's Reset and a `systemctl stop` of an empty service in one machine by turns, each recorded in the
/// same way. A first round of both is not counted: it loads programs.
///
/// # Errors
/// As [`run::run`].
pub async fn reset_and_stop(
    prepared: &Prepared,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<ResetAndStop> {
    let mut machine = run::prepare_shell(prepared, Some(scenario), directory, cancel).await?;
    let measured = async {
        let services = "set -e
            printf '[Service]\\nType=exec\\nExecStart=sleep infinity\\n' >/run/systemd/system/$1
            (cat /run/systemd/system/$1; echo ExecStopPost=+true) >/run/systemd/system/$2
            cp /run/systemd/system/$2 /run/systemd/system/$3
            systemctl daemon-reload";
        let (server, instance) = STOP_POST_SERVER;
        text(&mut machine, &["sh", "-c", services, "sh", EMPTY_SERVICE, STOP_POST_SERVICE, server]).await?;
        let reset = scenario.plan(Some(1));
        let stop = |service: &str, by: &[&str]| Plan {
            unit: service.to_owned(),
            mount_unit: None,
            mount: "/run/vm-bench/nothing".to_owned(),
            ..plan(scenario, &["systemctl", "start", service], by)
        };
        let systemctl = |service: &str| stop(service, &["systemctl", "stop", service]);
        let (empty, stop_post) = (systemctl(EMPTY_SERVICE), systemctl(STOP_POST_SERVICE));
        let by_ctl = stop(server, &["l4d2ctl", "stop", instance]);
        let mut both = ResetAndStop::default();
        for round in 0..=rounds {
            for (plan, samples) in [
                (&reset, &mut both.reset),
                (&empty, &mut both.stop),
                (&stop_post, &mut both.stop_post),
                (&by_ctl, &mut both.stop_post_by_ctl),
            ] {
                let took = Duration::from_nanos(one_cycle(&mut machine, plan).await?.own_ns);
                if round > 0 {
                    samples.0.push(took.as_secs_f64());
                }
            }
        }
        Ok(both)
    }
    .await;
    stop(machine, measured).await
}

/// Runs a plan of one cycle and returns its Reset's guest time.
async fn one(machine: &mut Machine, plan: &Plan) -> Result<Duration> {
    Ok(Duration::from_nanos(one_cycle(machine, plan).await?.cycle.reset_ns))
}

/// A cycle, what its reset command wrote to stdout, and its reset's guest time without what is not its own.
struct Recorded {
    cycle: Cycle,
    stdout: String,
    own_ns: u64,
}

/// Runs a plan of one cycle, whose Reset must succeed.
async fn one_cycle(machine: &mut Machine, plan: &Plan) -> Result<Recorded> {
    let guest = machine.guest();
    let session = Session { plan: Some(plan.clone()), ..Session::default() };
    let recorded = async { guest.begin_session(session).await?.next().await };
    let recording: Recording = match machine.race("the recording", DEADLINE, recorded).await? {
        Body::Recorded(recording) => *recording,
        other => bail!("unexpected answer from the guest: {other:?}"),
    };
    let mut cycles = fold::cycles(&recording);
    let (Some(cycle), true) = (cycles.pop(), cycles.is_empty()) else {
        bail!("not one cycle was recorded");
    };
    ensure!(
        cycle.reset_exit.is_some_and(|exit| exit.success()),
        "{}: {:?}: {}",
        plan.reset.join(" "),
        cycle.reset_exit,
        cycle.reset_stderr
    );
    let own_ns = own_ns(&recording).context("no reset was recorded")?;
    let stdout = recording.events.into_iter().find_map(|event| match event.what {
        What::StepEnds(end) if end.step == Step::Reset => Some(end.stdout),
        _ => None,
    });
    Ok(Recorded { cycle, stdout: stdout.unwrap_or_default(), own_ns })
}

/// The reset's time, from fork to wait, without its calls of umount2(2) and without the recorder's looks. A look can
/// come while a call is not done yet, so what both cover is taken away once.
fn own_ns(recording: &Recording) -> Option<u64> {
    let events = &recording.events;
    let begun = events.iter().find_map(|event| match event.what {
        What::StepBegins(Step::Reset) => Some(event.at),
        _ => None,
    })?;
    let ended = events.iter().find_map(|event| match &event.what {
        What::StepEnds(end) if end.step == Step::Reset => Some(event.at),
        _ => None,
    })?;
    let others = events.iter().filter_map(|event| match &event.what {
        What::UmountCall(call) => Some((event.at, call.returned)),
        What::Scan(scan) => Some((event.at, event.at + scan.cost_ns)),
        _ => None,
    });
    Some(uncovered(begun, ended, others.collect()))
}

/// How much of the time from `begun` to `ended` no span covers.
fn uncovered(begun: u64, ended: u64, mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut own, mut at) = (0, begun);
    for (from, to) in spans {
        own += from.min(ended).saturating_sub(at);
        at = at.max(to.min(ended));
    }
    own + ended.saturating_sub(at)
}

/// Guest times of the deployed programs, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// `left4me-overlay umount` from fork to wait, without umount2(2) itself and the recorder's looks.
    pub umount: Samples,
    /// `left4me-overlay --version`, from fork to wait: what a program costs that does nothing.
    pub nothing: Samples,
}

/// Guest times of deleting [`PURGED_FILES`], in seconds.
#[derive(Debug, Clone, Default)]
pub struct Purges {
    /// Deleting a runtime directory of [`PURGED_FILES`] by a reset, as it says itself.
    pub purge: Samples,
    /// `rm -rf` of another such directory, from fork to wait.
    pub rm: Samples,
}

/// How many files are purged: 100 directories of so many hundredths.
pub const PURGED_FILES: u32 = 100_000;

const HELPER: &str = "/usr/local/libexec/left4me/left4me-overlay";

/// A scenario's plan with other commands, of one cycle.
fn plan(scenario: &Scenario, start: &[&str], reset: &[&str]) -> Plan {
    let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Plan {
        start: argv(start),
        reset: argv(reset),
        removed: Vec::new(),
        recover: Vec::new(),
        ..scenario.plan(Some(1))
    }
}

/// Measures the helper's unmount in one machine with a scenario's files. A first round is not counted: it loads programs.
///
/// # Errors
/// As [`run::run`].
pub async fn programs(
    prepared: &Prepared,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Programs> {
    let mut machine = run::prepare_shell(prepared, Some(scenario), directory, cancel).await?;
    let measured = async {
        let mut programs = Programs::default();
        let umount = plan(scenario, &[HELPER, "mount", "3"], &[HELPER, "umount", "3"]);
        let nothing = plan(scenario, &["true"], &[HELPER, "--version"]);
        for round in 0..=rounds {
            let (umount, nothing) =
                (one_cycle(&mut machine, &umount).await?, one_cycle(&mut machine, &nothing).await?);
            ensure!(umount.cycle.umount_result() == Some("ok"), "no umount2 was recorded");
            if round > 0 {
                programs.umount.0.push(Duration::from_nanos(umount.own_ns).as_secs_f64());
                programs.nothing.0.push(Duration::from_nanos(nothing.own_ns).as_secs_f64());
            }
        }
        Ok(programs)
    }
    .await;
    stop(machine, measured).await
}

/// Measures a purge beside `rm -rf`, by turns in one machine with a scenario's files.
///
/// # Errors
/// As [`run::run`].
pub async fn purges(
    prepared: &Prepared,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Purges> {
    let mut machine = run::prepare_shell(prepared, Some(scenario), directory, cancel).await?;
    let measured = async {
        // A file system with room for so many names: the usual one has 65,536 inodes.
        let room = "set -e
            umount /var/lib/left4me
            mkfs.ext4 -q -F -N 150000 /dev/ram0
            mount /dev/ram0 /var/lib/left4me
            systemd-tmpfiles --create";
        text(&mut machine, &["sh", "-c", room]).await?;
        let files = format!(
            "set -e
            run=/var/lib/left4me/runtime/3
            mkdir -p $run/upper $run/work $run/merged
            cd $run/upper
            for directory in $(seq 100); do
                mkdir $directory
                (cd $directory && seq {} | xargs touch)
            done",
            PURGED_FILES / 100
        );
        let make = ["sh", "-c", &files];
        let purge = plan(scenario, &make, &["l4d2ctl", "reset", "--json", "3"]);
        let rm = plan(scenario, &make, &["rm", "-rf", "/var/lib/left4me/runtime/3"]);
        let mut purges = Purges::default();
        for _round in 0..rounds {
            let report = one_cycle(&mut machine, &purge).await?.stdout;
            let report: serde_json::Value = serde_json::from_str(&report).context("the reset's report")?;
            let micros =
                report.pointer("/phases/purge_us").and_then(serde_json::Value::as_u64).context("purge_us")?;
            purges.purge.0.push(Duration::from_micros(micros).as_secs_f64());
            purges.rm.0.push(one(&mut machine, &rm).await?.as_secs_f64());
        }
        Ok(purges)
    }
    .await;
    stop(machine, measured).await
}

/// Restores a machine, runs `true` in it and ends it: the whole of the job, with the machine's end.
///
/// # Errors
/// As [`Machine::race`].
pub async fn one_true(prepared: &Prepared, directory: &Path, cancel: Cancel) -> Result<Duration> {
    let begun = Instant::now();
    let mut machine = restored(prepared, directory, cancel).await?;
    let ran = text(&mut machine, &["true"]).await;
    stop(machine, ran).await?;
    Ok(begun.elapsed())
}

/// Threads that keep every core of the host busy until this is dropped.
#[derive(Debug)]
pub struct BusyHost {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BusyHost {
    /// Starts one thread for each core.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start() -> Result<Self> {
        let mut busy = Self { over: Arc::default(), threads: Vec::new() };
        for number in 0..cores() {
            let over = Arc::clone(&busy.over);
            let spin = move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name(format!("busy {number}"));
            busy.threads.push(thread.spawn(spin).context("start a busy thread")?);
        }
        Ok(busy)
    }
}

impl Drop for BusyHost {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                // It has panicked, and is not busy any more.
            }
        }
    }
}

/// How many cores this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs a command that must succeed and returns what it wrote to stdout.
async fn text(machine: &mut Machine, argv: &[&str]) -> Result<String> {
    let output = machine.run(argv, DEADLINE).await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.exit.success(), "{}: {}: {}", argv.join(" "), output.exit, complaint.trim());
    Ok(output.text())
}

/// Ends a machine whatever was measured; says both if both went wrong.
async fn stop<T>(machine: Machine, measured: Result<T>) -> Result<T> {
    match (measured, machine.stop().await) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.context(format!("and cleaning up failed: {left:#}"))),
    }
}

/// All that was measured, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Whether all that was asked for is in; false in the file of a run that was ended.
    pub complete: bool,
    /// Whether the numbers of samples are those of `--quick`.
    pub quick: bool,
    /// Where.
    pub host: Host,
    /// Debian suite and kernel of the guest.
    pub image: String,
    /// `qemu-system-x86_64 --version`, its first line.
    pub qemu: String,
    /// What executes instructions and what time is, a line for each clock that was measured.
    pub accelerators: BTreeMap<String, String>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// What was not measured, and why.
    pub notes: Vec<String>,
}

/// The machine that the harness runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// `model name` of /proc/cpuinfo.
    pub cpu: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Load averages over 1, 5 and 15 minutes before the first measurement.
    pub load_before: String,
    /// The same after the last one, our own machines included.
    pub load_after: String,
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// `boot`, `restore` and so on.
    pub measurement: String,
    /// What of it.
    pub what: String,
    /// What the numbers are.
    pub unit: Unit,
    /// The smallest sample.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// All, in the order in which they were taken.
    pub samples: Samples,
    /// What the median should be at most, in `unit`.
    pub target: Option<f64>,
    /// Whether it is.
    pub reached: Option<bool>,
}

impl Row {
    /// A row without a target.
    #[must_use]
    pub fn new(measurement: &str, what: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self {
            measurement: measurement.to_owned(),
            what: what.into(),
            unit,
            min: samples.min(),
            median: samples.median(),
            max: samples.max(),
            samples,
            target: None,
            reached: None,
        }
    }

    /// The same row with what its median should be at most.
    #[must_use]
    pub fn target(mut self, at_most: f64) -> Self {
        self.target = Some(at_most);
        self.reached = Some(self.median <= at_most);
        self
    }
}

/// What a [`Row`]'s numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// 2^20 bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// One thing divided by another of the same unit.
    #[serde(rename = "ratio")]
    Ratio,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// A number of things.
    #[serde(rename = "count")]
    Count,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        let median = |samples: &[f64]| Samples(samples.to_vec()).median();
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(Samples(vec![9.0, 10.0, 11.0]).spread(), 0.2);
        assert_eq!(Samples(vec![2.0, 9.0]).over(&Samples(vec![4.0, 3.0])), Samples(vec![0.5, 3.0]));
    }

    #[test]
    fn a_guest_tells_its_boot_s_times() {
        let log = "[    0.000000] Linux version 6.12\n[    0.771544] Run /init as init process\n";
        assert_eq!(init_secs(log), Some(0.771_544));
        assert_eq!(init_secs("nothing"), None);
        let shown = "UserspaceTimestampMonotonic=1500000\nFinishTimestampMonotonic=0";
        assert_eq!(property_secs(shown, "UserspaceTimestampMonotonic").expect("a time"), 1.5);
        property_secs(shown, "FinishTimestampMonotonic").expect_err("not yet");
        property_secs(shown, "Nothing").expect_err("not there");
    }

    #[test]
    fn what_two_spans_cover_is_taken_away_once() {
        assert_eq!(uncovered(10, 20, vec![]), 10);
        for (spans, own) in [
            (vec![(12, 14), (13, 16)], 6),
            (vec![(13, 14), (12, 16)], 6),
            (vec![(5, 11), (19, 30)], 8),
            (vec![(1, 2), (30, 40)], 10),
            (vec![(0, 40), (15, 16)], 0),
        ] {
            assert_eq!(uncovered(10, 20, spans.clone()), own, "{spans:?}");
        }
    }

    #[test]
    fn busy_threads_end() {
        let busy = BusyHost::start().expect("threads");
        assert_eq!(busy.threads.len(), cores());
        drop(busy);
    }
}
