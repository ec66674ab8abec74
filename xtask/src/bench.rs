//! `cargo xtask bench`: how long the harness takes, beside what it is meant to take.
//!
//! The measurements are [`vm_tests::bench`]; here is what is measured how often, in which order, and how it is shown
//! and kept. What is compared is taken by turns (A B A B), so that a host whose load changes changes both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use vm_tests::bench::holders::{self, Rounds};
use vm_tests::bench::{self, Boot, BusyHost, Channel, Host, IDLE_SECS, Report, Requests, Row, Samples, Unit};
use vm_tests::cache::{self, Lock};
use vm_tests::host::accel::{Accel, Clock, Wish};
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::signals::Interrupted;
use vm_tests::host::tools;
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::run::Prepared;
use vm_tests::scenario::{DEFAULT_MEMORY_MIB, Scenario};

use crate::exit::{FAILED, PASSED};
use crate::prepare::{self, MachineArgs, Wanted};

/// The scenario whose Reset is measured.
const SCENARIO: &str = "5eac51a";
/// What the whole of `vm-test` is measured with.
const SUITE: [&str; 4] = ["--cycles", "10", "5eac51a", "936c8bb"];
/// Cycles of a run of it.
const CYCLES: u32 = 2;
/// The longest a run of it may take, in seconds.
const RUN_DEADLINE_SECS: u64 = 900;
/// The longest a whole `vm-test`, or a peer's job, may take.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(1800);
/// How long `vm-test` may take to end its machines after an interrupt.
const STOP_GRACE: Duration = Duration::from_secs(40);
/// How often 100,000 files are made and purged, at most: a minute or two of the host each.
const PURGES: usize = 2;
/// How many machines are restored side by side.
const SIDE_BY_SIDE: [usize; 4] = [1, 2, 4, 8];

/// How often `holders` is measured: in virtual time one run is as the next, so these are for what is different within
/// one.
const TRUTH_ROUNDS: Rounds = Rounds { scans: 5, events: 20 };
/// The same with `--quick`.
const QUICK_TRUTH_ROUNDS: Rounds = Rounds { scans: 1, events: 3 };

/// The targets, of the medians: seconds, but for those whose name says otherwise.
mod target {
    pub(super) const RESTORE: f64 = 0.4;
    pub(super) const RESTORE_RATIO: f64 = 1.0 / 20.0;
    pub(super) const BOOT_REAL: f64 = 8.0;
    pub(super) const BOOT_VIRTUAL: f64 = 18.0;
    pub(super) const PING: f64 = 0.001;
    pub(super) const COMMAND: f64 = 0.015;
    pub(super) const PUT: f64 = 1.0;
    pub(super) const IDLE: f64 = 0.7;
    pub(super) const SPREAD_PERCENT: f64 = 0.1;
    pub(super) const MEDIANS_PERCENT: f64 = 0.01;
    pub(super) const SAVED_MIB: f64 = 200.0;
    pub(super) const SUITE: f64 = 20.0;
    pub(super) const RESET_RATIO: f64 = 1.5;
    pub(super) const UMOUNT: f64 = 0.002;
    pub(super) const PURGE_RATIO: f64 = 1.2;
}

/// Measures the harness: boots, restores, requests, guest time, resets. Or, by `holders`, the truth.
///
/// Prints minimum, median and maximum of each beside its target, and writes all samples to
/// target/vm-bench/bench.json (`holders`: target/vm-bench/holders.json). Measures real time and virtual time, unless --clock names one. The exit status says
/// nothing of targets: a benchmark is no test. The host should do nothing else meanwhile.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure; everything but `holders` if nothing is given
    #[arg(value_name = "WHAT", value_enum)]
    what: Vec<What>,

    /// How many samples of everything that is not a single request [default: 20 runs of the scenario, 5 of the rest]
    #[arg(long, value_name = "N", value_parser = runs, conflicts_with = "quick")]
    runs: Option<usize>,

    /// Few samples: to see that it works, not to compare with
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

fn runs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("there is no median of nothing".to_owned()),
        Ok(runs) => Ok(runs),
        Err(error) => Err(format!("{error}")),
    }
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Cold boot to the agent, and where its time goes
    Boot,
    /// The saved machine to its first answer, 1, 2, 4 and 8 at once, against a cold boot
    Restore,
    /// A null request, a command, a file of 10 MiB
    Channel,
    /// What an idle and a busy guest second cost in virtual time
    Idle,
    /// How much a Reset's guest time differs from run to run, with the host idle and busy
    Spread,
    /// A Reset against a `systemctl stop` of a service that does nothing
    Reset,
    /// What the helper's unmount costs
    Helper,
    /// Deleting 100,000 files by a Reset, and by `rm -rf`; some minutes
    Purge,
    /// The whole of `cargo xtask vm-test`, everything cached
    Suite,
    /// Other tools that boot machines, where they are installed
    Peers,
    /// A mount pinned in every way there is: what holders, fuser, lsof and lsns say; what a scan costs; how soon the
    /// watch tells. On each --image, by itself
    Holders,
}

/// How many samples.
#[derive(Debug, Clone, Copy)]
struct Counts {
    machines: usize,
    spread: usize,
    requests: Requests,
}

impl Counts {
    fn of(args: &BenchArgs) -> Self {
        let (machines, spread) = match (args.quick, args.runs) {
            (true, _) => (2, 3),
            (false, Some(runs)) => (runs, runs),
            (false, None) => (5, 20),
        };
        Self { machines, spread, requests: Requests { pings: 1000, commands: 30, puts: machines } }
    }
}

/// What is the same for all measurements.
struct Bench {
    what: Vec<What>,
    counts: Counts,
    /// Machines' directories, runs and the report.
    results: PathBuf,
    /// A clock's machine, in the order real, virtual; one where `--clock` or the accelerator leaves one.
    clocks: Vec<Arc<Prepared>>,
    machine: MachineArgs,
    cancel: Cancel,
    report: Report,
    /// How many of the report's rows and notes were shown.
    shown: (usize, usize),
}

/// Measures all that is asked for.
///
/// # Errors
/// The first measurement that can't be made; what was measured before is shown and kept.
pub(crate) async fn run(args: BenchArgs) -> Result<u8> {
    let results = cache::workspace()?.join("target/vm-bench");
    std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    let _ours = Lock::exclusive(&results.join("lock"), |who| {
        eprintln!("{}: waiting for {who}, which measures", results.display());
    })
    .await?;
    if args.what.contains(&What::Holders) {
        ensure!(
            args.what.len() == 1,
            "bench holders: by itself, as it takes several guests and other programs"
        );
        return truth(&args, &results).await;
    }
    let mut bench = Bench::prepare(args, results).await?;
    let measured = bench.all().await;
    bench.report.complete = measured.is_ok();
    bench.report.host.load_after = load()?;
    let path = bench.write()?;
    measured?;
    println!(
        "\nload average before: {}, after: {}",
        bench.report.host.load_before, bench.report.host.load_after
    );
    println!("report: {}", path.display());
    Ok(PASSED)
}

impl Bench {
    async fn prepare(args: BenchArgs, results: PathBuf) -> Result<Self> {
        let counts = Counts::of(&args);
        let cancel = prepare::cancel_on_interrupt()?;
        let mut clocks = Vec::new();
        for clock in [Clock::Real, Clock::Virtual] {
            let wanted = args.machine.clock.is_none_or(|only| only == clock);
            // KVM has no virtual time.
            if !wanted || (clock == Clock::Virtual && args.machine.accel == Wish::Kvm) {
                continue;
            }
            let machine = MachineArgs { clock: Some(clock), ..args.machine.clone() };
            let directory = results.join(word(clock));
            let wanted = Wanted {
                scenarios: &[],
                memory_mib: BTreeSet::from([DEFAULT_MEMORY_MIB, scenario()?.manifest.memory_mib]),
                cycles: Some(CYCLES),
                deadline_secs: RUN_DEADLINE_SECS,
                results: &directory,
            };
            clocks.push(Arc::new(prepare::prepare_one(&machine, wanted, cancel.clone()).await?));
        }
        let first = clocks.first().context("KVM has no virtual time: nothing is left to measure")?;
        let version =
            process::output(&[first.base.qemu.as_os_str(), "--version".as_ref()], Duration::from_secs(10))
                .await?
                .text();
        let accelerators: BTreeMap<String, String> =
            clocks.iter().map(|one| (one.base.clock.to_string(), one.choice.clone())).collect();
        let report = Report {
            complete: false,
            quick: args.quick,
            host: Host {
                cpu: cpu()?,
                cores: bench::cores(),
                load_before: load()?,
                load_after: String::new(),
            },
            image: first.image.clone(),
            qemu: version.lines().next().unwrap_or_default().to_owned(),
            accelerators,
            rows: Vec::new(),
            notes: Vec::new(),
        };
        let mut what = args.what;
        if what.is_empty() {
            what.extend(What::value_variants().iter().filter(|&&what| what != What::Holders));
        }
        let machine = args.machine;
        Ok(Self { what, counts, results, clocks, machine, cancel, report, shown: (0, 0) })
    }

    async fn all(&mut self) -> Result<()> {
        let report = &self.report;
        println!(
            "{}, {} cores, load average {}",
            report.host.cpu, report.host.cores, report.host.load_before
        );
        println!("{}; {}", report.qemu, report.image);
        for line in report.accelerators.values() {
            println!("{line}");
        }
        println!("\n{:8} {:48} {:>4} {:>9} {:>9} {:>9}", "", "", "n", "min", "median", "max");
        self.boot_and_restore().await.context("measure boot and restore")?;
        self.show()?;
        if self.wants(What::Channel) {
            self.channel().await.context("measure channel")?;
            self.show()?;
        }
        for what in [What::Idle, What::Spread, What::Reset, What::Helper, What::Purge] {
            if !self.wants(what) {
                continue;
            }
            let Some(prepared) = self.clock(Clock::Virtual) else {
                self.report.notes.push(format!("{what:?}: not measured: it is about virtual time"));
                continue;
            };
            match what {
                What::Idle => self.idle(&prepared).await.context("measure idle")?,
                What::Spread => self.spread(&prepared).await.context("measure spread")?,
                What::Helper => self.helper(&prepared).await.context("measure helper")?,
                What::Purge => self.purge(&prepared).await.context("measure purge")?,
                _ => self.reset(&prepared).await.context("measure reset")?,
            }
            self.show()?;
        }
        if self.wants(What::Suite) {
            self.suite().await.context("measure suite")?;
            self.show()?;
        }
        if self.wants(What::Peers) {
            self.peers().await.context("measure peers")?;
            self.show()?;
        }
        Ok(())
    }

    fn wants(&self, what: What) -> bool {
        self.what.contains(&what)
    }

    fn clock(&self, clock: Clock) -> Option<Arc<Prepared>> {
        self.clocks.iter().find(|prepared| prepared.base.clock == clock).map(Arc::clone)
    }

    /// Both in one loop, as each restore is compared with the boot before it.
    async fn boot_and_restore(&mut self) -> Result<()> {
        let (wants_boot, wants_restore) = (self.wants(What::Boot), self.wants(What::Restore));
        if !wants_boot && !wants_restore {
            return Ok(());
        }
        let directory = self.machines("boot");
        let clocks = self.clocks.clone();
        let mut boots: Vec<Vec<Boot>> = vec![Vec::new(); clocks.len()];
        let mut restores: Vec<[Samples; 4]> = vec![Default::default(); clocks.len()];
        for round in 0..self.counts.machines {
            for (at, prepared) in clocks.iter().enumerate() {
                eprintln!("boot: {}, {} of {}", prepared.base.clock, round + 1, self.counts.machines);
                let boot = bench::boot(&prepared.base, &directory, self.cancel.clone()).await?;
                boots.get_mut(at).context("a clock")?.push(boot);
                if !wants_restore {
                    continue;
                }
                for (machines, samples) in
                    SIDE_BY_SIDE.into_iter().zip(restores.get_mut(at).context("a clock")?)
                {
                    let times = bench::restore(prepared, machines, &directory, &self.cancel).await?;
                    let last = times.last().context("a machine that was restored")?;
                    samples.0.push(last.as_secs_f64());
                }
            }
        }
        cache::remove_tree(&directory)?;
        for (prepared, boots) in clocks.iter().zip(&boots) {
            if wants_boot {
                self.report.rows.extend(boot_rows(prepared, boots));
            }
        }
        if wants_restore {
            for ((prepared, boots), restores) in clocks.iter().zip(&boots).zip(restores) {
                self.report.rows.extend(restore_rows(prepared, boots, restores)?);
            }
        }
        Ok(())
    }

    async fn channel(&mut self) -> Result<()> {
        let directory = self.machines("channel");
        for prepared in self.clocks.clone() {
            eprintln!("channel: {}", prepared.base.clock);
            let requests = self.counts.requests;
            let channel = bench::channel(&prepared, requests, &directory, self.cancel.clone()).await?;
            self.report.rows.extend(channel_rows(&prepared, channel));
        }
        cache::remove_tree(&directory)
    }

    async fn idle(&mut self, prepared: &Prepared) -> Result<()> {
        eprintln!("idle");
        let directory = self.machines("idle");
        let idle = bench::idle(prepared, self.counts.machines, &directory, self.cancel.clone()).await?;
        let per_second = idle.asleep.0.iter().map(|wall| wall / f64::from(IDLE_SECS)).collect::<Samples>();
        let ratio = per_second.over(&idle.busy);
        let what = format!("{IDLE_SECS} idle guest seconds");
        self.report.rows.extend([
            Row::new("idle", what, Unit::Seconds, idle.asleep).target(target::IDLE),
            Row::new("idle", "a busy guest second", Unit::Seconds, idle.busy),
            Row::new("idle", "an idle guest second / a busy one", Unit::Ratio, ratio),
        ]);
        cache::remove_tree(&directory)
    }

    async fn spread(&mut self, prepared: &Prepared) -> Result<()> {
        let scenario = scenario()?;
        let mut idle: Vec<Vec<u64>> = Vec::new();
        let mut busy: Vec<Vec<u64>> = Vec::new();
        for round in 0..self.counts.spread {
            eprintln!("spread: {} of {}, host idle", round + 1, self.counts.spread);
            idle.push(bench::resets(prepared, &scenario, self.cancel.clone()).await?);
            eprintln!("spread: {} of {}, host busy", round + 1, self.counts.spread);
            let threads = BusyHost::start()?;
            let resets = bench::resets(prepared, &scenario, self.cancel.clone()).await;
            drop(threads);
            busy.push(resets?);
        }
        self.report.rows.extend(spread_rows(&idle, &busy)?);
        Ok(())
    }

    async fn reset(&mut self, prepared: &Prepared) -> Result<()> {
        eprintln!("reset");
        let directory = self.machines("reset");
        let both = bench::reset_and_stop(
            prepared,
            &scenario()?,
            self.counts.machines,
            &directory,
            self.cancel.clone(),
        )
        .await?;
        let ratio = both.reset.over(&both.stop);
        self.report.rows.extend([
            Row::new("reset", "a Reset (guest time)", Unit::Seconds, both.reset),
            Row::new("reset", "stop of an empty service (guest time)", Unit::Seconds, both.stop),
            Row::new(
                "reset",
                "stop of one with an ExecStopPost=+ (guest time)",
                Unit::Seconds,
                both.stop_post,
            ),
            Row::new("reset", "the same by l4d2ctl (guest time)", Unit::Seconds, both.stop_post_by_ctl),
            Row::new("reset", "a Reset / the stop", Unit::Ratio, ratio).target(target::RESET_RATIO),
        ]);
        cache::remove_tree(&directory)
    }

    async fn helper(&mut self, prepared: &Prepared) -> Result<()> {
        eprintln!("helper");
        let (directory, rounds) = (self.machines("helper"), self.counts.machines);
        let cancel = self.cancel.clone();
        let programs = bench::programs(prepared, &scenario()?, rounds, &directory, cancel).await?;
        self.report.rows.extend([
            Row::new(
                "helper",
                "umount, but for the system call (guest time)",
                Unit::Seconds,
                programs.umount,
            )
            .target(target::UMOUNT),
            Row::new("helper", "--version (guest time)", Unit::Seconds, programs.nothing),
        ]);
        cache::remove_tree(&directory)
    }

    async fn purge(&mut self, prepared: &Prepared) -> Result<()> {
        eprintln!("purge");
        let (directory, rounds) = (self.machines("purge"), self.counts.machines.min(PURGES));
        let cancel = self.cancel.clone();
        let purges = bench::purges(prepared, &scenario()?, rounds, &directory, cancel).await?;
        let ratio = purges.purge.over(&purges.rm);
        let files = bench::PURGED_FILES;
        self.report.rows.extend([
            Row::new("purge", format!("{files} files by a Reset (guest time)"), Unit::Seconds, purges.purge),
            Row::new("purge", "rm -rf of the same (guest time)", Unit::Seconds, purges.rm),
            Row::new("purge", "the Reset's part / rm -rf", Unit::Ratio, ratio).target(target::PURGE_RATIO),
        ]);
        cache::remove_tree(&directory)
    }

    async fn suite(&mut self) -> Result<()> {
        let mut samples = Samples::default();
        let runs = if self.report.quick { 1 } else { self.counts.machines };
        for round in 0..=runs {
            match round {
                0 => eprintln!("suite: not counted, it fills the caches"),
                _ => eprintln!("suite: {round} of {runs}"),
            }
            let (wall, code) = self.vm_test().await?;
            ensure!(
                code == PASSED || code == FAILED,
                "vm-test: exit code {code}, see {}",
                self.suite_log().display()
            );
            if round > 0 {
                samples.0.push(wall.as_secs_f64());
            }
            if code == FAILED {
                self.report.notes.push("suite: a scenario has failed, which has another duration".to_owned());
            }
        }
        self.report.rows.push(
            Row::new("suite", "vm-test, two scenarios of 10 cycles", Unit::Seconds, samples)
                .target(target::SUITE),
        );
        Ok(())
    }

    fn suite_log(&self) -> PathBuf {
        self.results.join("suite.log")
    }

    /// Runs ourselves as `vm-test`; returns its wall time and exit code.
    async fn vm_test(&self) -> Result<(Duration, u8)> {
        let path = self.suite_log();
        let log = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let both = log.try_clone().with_context(|| format!("open {}", path.display()))?;
        let mut program = Program::new(std::env::current_exe().context("find our own program")?)
            .args(["vm-test", "--accel", wish(self.machine.accel)])
            .args(SUITE)
            .arg("--results")
            .arg(self.results.join("suite"))
            .stdout(Sink::File(log))
            .stderr(Sink::File(both));
        if let Some(clock) = self.machine.clock {
            program = program.args(["--clock", word(clock)]);
        }
        if let Some(qemu) = &self.machine.qemu {
            program = program.arg("--qemu").arg(qemu);
        }
        match (&self.machine.kernel, &self.machine.modules, &self.machine.root) {
            (Some(kernel), Some(modules), Some(root)) => {
                for (flag, path) in [("--kernel", kernel), ("--modules", modules), ("--root", root)] {
                    program = program.arg(flag).arg(path);
                }
            }
            _ => {
                for image in &self.machine.image {
                    program = program.args(["--image", image.as_str()]);
                }
            }
        }
        if let Some(mirror) = &self.machine.mirror {
            program = program.args(["--mirror", mirror]);
        }
        let begun = Instant::now();
        let status = self.ended(program).await?;
        let wall = begun.elapsed();
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok((wall, code.with_context(|| format!("vm-test: {}", process::describe(status)))?))
    }

    /// Runs a program to its end, an interrupt or its deadline.
    async fn ended(&self, program: Program) -> Result<std::process::ExitStatus> {
        let mut child = program.spawn()?;
        let mut cancel = self.cancel.clone();
        let ended = tokio::select! {
            ended = tokio::time::timeout(PROGRAM_DEADLINE, child.wait()) => Some(ended),
            _cancelled = cancel.wait_for(|cancelled| *cancelled) => None,
        };
        match ended {
            Some(Ok(status)) => Ok(status?),
            Some(Err(elapsed)) => {
                child.kill_group(STOP_GRACE).await?;
                Err(elapsed).with_context(|| child.argv().to_string())
            }
            None => {
                child.kill_group(STOP_GRACE).await?;
                Err(Interrupted::default().into())
            }
        }
    }

    /// `true` on a machine of ours and of each peer's, by turns.
    async fn peers(&mut self) -> Result<()> {
        let ours = self.clocks.first().map(Arc::clone).context("a clock")?;
        let directory = self.machines("peers");
        for (name, argv) in peers(&ours) {
            if tools::which(name).is_none() {
                self.report.notes.push(format!("peers: {name} is not on PATH: not measured"));
                continue;
            }
            eprintln!("peers: {name}");
            let (mut own, mut peer) = (Samples::default(), Samples::default());
            let mut refused = None;
            for _ in 0..self.counts.machines {
                let wall = bench::one_true(&ours, &directory, self.cancel.clone()).await?;
                own.0.push(wall.as_secs_f64());
                let begun = Instant::now();
                let log = self.results.join(format!("{name}.log"));
                let file =
                    std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
                let both = file.try_clone().with_context(|| format!("open {}", log.display()))?;
                let program =
                    Program::new(name).args(&argv).stdout(Sink::File(file)).stderr(Sink::File(both));
                let status = self.ended(program).await?;
                peer.0.push(begun.elapsed().as_secs_f64());
                if !status.success() {
                    let why = process::describe(status);
                    refused = Some(format!("peers: {name}: {why}, see {}", log.display()));
                    break;
                }
            }
            if let Some(refused) = refused {
                self.report.notes.push(refused);
                continue;
            }
            let ratio = own.over(&peer);
            self.report.rows.extend([
                Row::new("peers", format!("{name}: true on a machine"), Unit::Seconds, peer),
                Row::new("peers", format!("ours, {}: the same", ours.base.clock), Unit::Seconds, own),
                Row::new("peers", format!("ours / {name}"), Unit::Ratio, ratio),
            ]);
        }
        cache::remove_tree(&directory)
    }

    /// Where a measurement's machines have their logs; removed when it is done, left when it fails.
    fn machines(&self, measurement: &str) -> PathBuf {
        self.results.join("machines").join(measurement)
    }

    /// Prints what is new and keeps all.
    fn show(&mut self) -> Result<()> {
        for row in self.report.rows.iter().skip(self.shown.0) {
            println!("{}", line(row));
        }
        for note in self.report.notes.iter().skip(self.shown.1) {
            println!("{note}");
        }
        self.shown = (self.report.rows.len(), self.report.notes.len());
        self.write().map(|_path| ())
    }

    fn write(&self) -> Result<PathBuf> {
        let path = self.results.join("bench.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.report)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// The benchmark of truth: three tables, what is kept of the bounds, and what is wrong with `holders`.
async fn truth(args: &BenchArgs, results: &Path) -> Result<u8> {
    let cancel = prepare::cancel_on_interrupt()?;
    let programs = programs::truth_binaries().await?;
    let wanted = Wanted {
        scenarios: &[],
        memory_mib: BTreeSet::from([DEFAULT_MEMORY_MIB]),
        cycles: Some(CYCLES),
        deadline_secs: RUN_DEADLINE_SECS,
        results: &results.join("holders"),
    };
    let guests = prepare::prepare(&args.machine, wanted, cancel.clone()).await?;
    let rounds = if args.quick { QUICK_TRUTH_ROUNDS } else { TRUTH_ROUNDS };
    let mut truths = Vec::new();
    for prepared in &guests {
        truths.push(holders::measure(prepared, &programs, rounds, &prepared.results, cancel.clone()).await?);
    }
    let path = results.join("holders.json");
    std::fs::write(&path, serde_json::to_string_pretty(&truths)?)
        .with_context(|| format!("write {}", path.display()))?;
    println!("{}, {} cores; durations are of the guest's clock", cpu()?, bench::cores());
    for truth in &truths {
        println!(
            "{}: {}; {} of {} cases planted",
            truth.guest,
            truth.image,
            truth.planted(),
            truth.cases.len()
        );
    }
    println!(
        "\n{}\n\n{}\n\n{}\n",
        holders::cases(&truths),
        holders::summary(&truths),
        holders::costs(&truths)
    );
    for truth in &truths {
        for bound in holders::bounds(truth) {
            let verdict = if bound.is_kept() { "reached" } else { "not reached" };
            println!(
                "{}: {}: {:.3}, target ≤ {}: {verdict}",
                truth.guest, bound.what, bound.is, bound.at_most
            );
        }
        for case in &truth.cases {
            if let Some(why) = &case.not_planted {
                println!("{}: {} could not be planted: {why}", truth.guest, case.case);
            }
        }
    }
    let faults: Vec<String> = truths.iter().flat_map(|truth| truth.faults()).collect();
    faults.iter().for_each(|fault| println!("{fault}"));
    println!("report: {}", path.display());
    // A target is no test; a tool that is wrong is.
    Ok(if faults.is_empty() { PASSED } else { FAILED })
}

fn scenario() -> Result<Scenario> {
    Scenario::load(&prepare::scenarios_root()?.join(SCENARIO))
}

fn boot_rows(prepared: &Prepared, boots: &[Boot]) -> Vec<Row> {
    let clock = prepared.base.clock;
    let row = |what: &str, of: fn(&Boot) -> f64| {
        Row::new("boot", format!("{clock}: {what}"), Unit::Seconds, boots.iter().map(of).collect())
    };
    let target = match clock {
        Clock::Real => target::BOOT_REAL,
        Clock::Virtual => target::BOOT_VIRTUAL,
    };
    let mut rows = vec![
        row("QEMU's start to the agent", |boot| boot.agent.as_secs_f64()).target(target),
        row("QEMU's start to its greeting", |boot| boot.greeting.as_secs_f64()),
        row("QEMU's start to systemd running", |boot| boot.running.as_secs_f64()),
        row("guest time: kernel", |boot| boot.guest.kernel_secs),
        row("guest time: initramfs", |boot| boot.guest.initramfs_secs),
        row("guest time: systemd to the agent", |boot| boot.guest.agent_secs),
        row("guest time: the agent to the end", |boot| boot.guest.rest_secs),
    ];
    if clock == Clock::Real {
        // Its clock runs as the host's does, so the rest is what came before it.
        rows.push(row("firmware and decompression", |boot| {
            let guest = boot.guest;
            boot.agent.as_secs_f64() - guest.kernel_secs - guest.initramfs_secs - guest.agent_secs
        }));
    }
    rows
}

fn restore_rows(prepared: &Prepared, boots: &[Boot], restores: [Samples; 4]) -> Result<Vec<Row>> {
    let clock = prepared.base.clock;
    let cold: Samples = boots.iter().map(|boot| boot.agent.as_secs_f64()).collect();
    let mut rows = Vec::new();
    for (machines, samples) in SIDE_BY_SIDE.into_iter().zip(restores) {
        let ratio = samples.over(&cold);
        let name = match machines {
            1 => format!("{clock}: one machine to its answer"),
            _ => format!("{clock}: {machines} at once, to the last answer"),
        };
        let time = Row::new("restore", name, Unit::Seconds, samples);
        let ratio = Row::new("restore", "  / a cold boot to the agent", Unit::Ratio, ratio);
        rows.extend(match machines {
            1 => [time.target(target::RESTORE), ratio.target(target::RESTORE_RATIO)],
            _ => [time, ratio],
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "a file's size is far below 2^52")]
    let mib = bench::disk_bytes(prepared.saved()?)? as f64 / f64::from(1 << 20);
    let saved =
        Row::new("restore", format!("{clock}: saved machine on disk"), Unit::Mebibytes, Samples(vec![mib]));
    rows.push(saved.target(target::SAVED_MIB));
    Ok(rows)
}

fn channel_rows(prepared: &Prepared, channel: Channel) -> [Row; 4] {
    let clock = prepared.base.clock;
    let row = |what, samples, target| {
        Row::new("channel", format!("{clock}: {what}"), Unit::Seconds, samples).target(target)
    };
    [
        row("null request", channel.ping, target::PING),
        row("/bin/true", channel.truth, target::COMMAND),
        row("echo and its output", channel.echo, target::COMMAND),
        row("a file of 10 MiB", channel.put, target::PUT),
    ]
}

/// Durations in nanoseconds, a list of cycles for each run.
fn spread_rows(idle: &[Vec<u64>], busy: &[Vec<u64>]) -> Result<Vec<Row>> {
    let seconds = |runs: &[Vec<u64>]| -> Samples {
        runs.iter().flatten().map(|ns| Duration::from_nanos(*ns).as_secs_f64()).collect()
    };
    let row = |what: String, unit, sample: f64| Row::new("spread", what, unit, Samples(vec![sample]));
    let (quiet, loaded) = (seconds(idle), seconds(busy));
    let all: Vec<Vec<u64>> = idle.iter().chain(busy).cloned().collect();
    let together = seconds(&all);
    let medians = (loaded.median() - quiet.median()).abs() / quiet.median();
    let mut rows = vec![
        Row::new("spread", "Reset, host idle (guest time)", Unit::Seconds, quiet),
        Row::new("spread", "Reset, host busy (guest time)", Unit::Seconds, loaded),
        // The cycles of a run differ by what they find done already: the target is a cycle's, over the runs.
        row("(max - min) / median, all cycles as one".to_owned(), Unit::Percent, together.spread() * 100.0),
        row("difference of the two medians".to_owned(), Unit::Percent, medians * 100.0)
            .target(target::MEDIANS_PERCENT),
    ];
    let cycles = all.iter().map(Vec::len).min().context("a run")?;
    for cycle in 0..cycles {
        let mut values: Vec<u64> = all.iter().filter_map(|run| run.get(cycle)).copied().collect();
        let of_cycle = seconds(&[values.clone()]).spread();
        let n = values.len();
        values.sort_unstable();
        values.dedup();
        let distinct = f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX));
        let number = cycle + 1;
        let spread = row(format!("cycle {number}: (max - min) / median"), Unit::Percent, of_cycle * 100.0);
        rows.push(spread.target(target::SPREAD_PERCENT));
        rows.push(row(format!("cycle {number}: distinct values to the ns, of {n}"), Unit::Count, distinct));
    }
    Ok(rows)
}

/// Other tools, and how they are asked for the same: `true` on a machine with our kernel.
fn peers(ours: &Prepared) -> [(&'static str, Vec<String>); 2] {
    let kernel = ours.base.kernel.display().to_string();
    let memory = format!("{}M", ours.base.memory_mib);
    // Without it vng is silent about what went wrong.
    let mut vng =
        ["--verbose", "--run", &kernel, "--memory", &memory, "--exec", "true"].map(str::to_owned).to_vec();
    if ours.base.accel == Accel::Tcg {
        vng.push("--disable-kvm".to_owned());
    }
    [("vng", vng), ("vmtest", ["--kernel", &kernel, "true"].map(str::to_owned).to_vec())]
}

fn word(clock: Clock) -> &'static str {
    match clock {
        Clock::Real => "real",
        Clock::Virtual => "virtual",
    }
}

fn wish(wish: Wish) -> &'static str {
    match wish {
        Wish::Auto => "auto",
        Wish::Kvm => "kvm",
        Wish::Tcg => "tcg",
    }
}

/// One row of the table.
fn line(row: &Row) -> String {
    let number = |value| number(value, row.unit);
    let numbers = format!(
        "{:8} {:48} {:>4} {:>9} {:>9} {:>9}",
        row.measurement,
        row.what,
        row.samples.0.len(),
        number(row.min),
        number(row.median),
        number(row.max)
    );
    match (row.target, row.reached) {
        (Some(target), Some(reached)) => {
            let verdict = if reached { "reached" } else { "not reached" };
            format!("{numbers}  target ≤ {}: {verdict}", number(target))
        }
        _ => numbers,
    }
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value.abs() >= 1.0 => format!("{value:.2} s"),
        Unit::Seconds if value.abs() >= 0.001 => format!("{:.1} ms", value * 1e3),
        Unit::Seconds => format!("{:.0} µs", value * 1e6),
        Unit::Mebibytes => format!("{value:.0} MiB"),
        Unit::Ratio if value < 10.0 => format!("{value:.3}"),
        Unit::Ratio => format!("{value:.1}"),
        Unit::Percent => format!("{value:.4} %"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// The load averages of /proc/loadavg; see proc_loadavg(5).
fn load() -> Result<String> {
    let text = read("/proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

fn cpu() -> Result<String> {
    let text = read("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or("a processor without a name", |(_, name)| name).to_owned())
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(path)).with_context(|| format!("read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_whether_their_target_is_reached() {
        let row = Row::new("channel", "null request", Unit::Seconds, Samples(vec![0.0004, 0.0006, 0.002]));
        let shown = line(&row.clone().target(0.001));
        assert!(shown.ends_with("400 µs    600 µs    2.0 ms  target ≤ 1.0 ms: reached"), "{shown}");
        let shown = line(&row.target(0.000_5));
        assert!(shown.ends_with("target ≤ 500 µs: not reached"), "{shown}");
    }

    #[test]
    fn the_spread_is_of_all_runs_together() {
        let rows = spread_rows(&[vec![100, 200], vec![100, 200]], &[vec![110, 200]]).expect("rows");
        let of = |what: &str| rows.iter().find(|row| row.what.starts_with(what)).expect(what).median;
        assert!((of("(max - min)") - 100.0 * 100.0 / 155.0).abs() < 1e-6);
        assert!((of("cycle 1: (max") - 10.0).abs() < 1e-6);
        assert!((of("cycle 1: distinct") - 2.0).abs() < 1e-6);
        assert!((of("cycle 2: distinct") - 1.0).abs() < 1e-6);
    }
}
