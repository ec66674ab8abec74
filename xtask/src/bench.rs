//! `cargo xtask bench`: how long the harness takes, against its targets.
//!
//! [`vm_tests::bench`] has the measurements; this file decides how often and in which order they run, and shows and stores
//! the results. Compared things are measured by turns (A B A B), so that a change of the host's load affects both.

mod counts;
mod edit;
mod explore;
mod page;
mod program;
mod rows;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use vm_tests::bench::holders;
use vm_tests::bench::{self, Boot, BusyHost, Host, IDLE_SECS, Report, Row, Samples, Unit};
use vm_tests::cache::{self, Lock};
use vm_tests::host::accel::{Clock, Wish};
use vm_tests::host::cores;
use vm_tests::host::process::Program;
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::run::guest::Guest;
use vm_tests::run::one::Bounds;
use vm_tests::run::prepare::{prepare, prepare_one};
use vm_tests::scenario::{DEFAULT_MEMORY_MIB, Scenario, Wanted, WrongInput};
use vm_tests::workspace::Workspace;

use counts::{ACCURACY_ROUNDS, CYCLES, Counts, PURGES, QUICK_ACCURACY_ROUNDS, SIDE_BY_SIDE, What, runs};
use edit::Edits;
use program::Ended;
use rows::{
    Shells, boot_rows, channel_rows, cpu, edit_notes, edit_rows, line, load, moment_rows, restore_rows,
    spread_rows, target, watch_rows,
};

use crate::copied::remove_if_there;
use crate::exit::{FAILED, PASSED};
use crate::left4me;
use crate::machine::{MachineArgs, word};

/// The scenario whose Reset is measured.
const SCENARIO: &str = "5eac51a";
/// The scenario that one looks at, and the instant of it.
const FAILS: &str = "936c8bb";
const AT: &str = "umount fails";
/// What the whole of `vm-test` is measured with: both are run, whatever is remembered.
const SUITE: [&str; 5] = ["--fresh", "--cycles", "10", "5eac51a", "936c8bb"];
/// What bounds a run of the scenario.
const RUN: Bounds = Bounds { cycles: Some(CYCLES), deadline_secs: 900 };

/// Measures the harness: boots, restores, requests, guest time, resets.
///
/// `bench holders` measures how accurate holders, fuser, lsof and lsns are.
///
/// Prints minimum, median and maximum of each beside its target, and writes all samples to
/// target/vm-bench/bench.json (`holders`: target/vm-bench/holders.json). Measures real time and virtual time, unless
/// --clock names one. A missed target does not change the exit status: a benchmark is no test. Keep the host idle
/// meanwhile.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure [default: everything except `holders`, `edit`, `watch`, `explore` and `page`]
    #[arg(value_name = "WHAT", value_enum)]
    what: Vec<What>,

    /// Number of samples, except of single requests [default: 20 runs of the scenario and of a failing line, 3 edits, 5 of the rest]
    #[arg(long, value_name = "N", value_parser = runs, conflicts_with = "quick")]
    runs: Option<usize>,

    /// Take few samples: to see that it works, not to compare
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

/// What is the same for all measurements.
struct Bench {
    what: Vec<What>,
    counts: Counts,
    /// Machines' directories, runs and the report.
    results: PathBuf,
    /// A clock's machine, in the order real, virtual; one where `--clock` or the accelerator leaves one.
    clocks: Vec<Arc<Guest>>,
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
pub(crate) async fn run(args: BenchArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let results = workspace.target.join("vm-bench");
    std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    let _ours = Lock::exclusive(&results.join("lock"), |who| {
        eprintln!("{}: waiting for {who}, which measures", results.display());
    })
    .await?;
    if args.what.contains(&What::Holders) {
        if args.what.len() != 1 {
            let what = "bench holders: by itself, as it takes several guests and other programs";
            return Err(WrongInput::new(what).into());
        }
        return accuracy(&workspace, &args, &results, cancel).await;
    }
    if [What::Edit, What::Watch].iter().any(|what| args.what.contains(what))
        && args.machine.programs.is_some()
    {
        let what = "bench edit and bench watch: without --programs, as they edit and build them";
        return Err(WrongInput::new(what).into());
    }
    let mut bench = Bench::prepare(&workspace, args, results, cancel).await?;
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
    async fn prepare(
        workspace: &Workspace,
        args: BenchArgs,
        results: PathBuf,
        cancel: Cancel,
    ) -> Result<Self> {
        let counts = Counts::of(args.quick, args.runs);
        let mut clocks = Vec::new();
        for clock in [Clock::Real, Clock::Virtual] {
            let wanted = args.machine.clock.is_none_or(|only| only == clock);
            // Edits are measured in virtual time alone, which KVM has not, and the page in real time alone.
            let are_all =
                |of: &[What]| !args.what.is_empty() && args.what.iter().all(|what| of.contains(what));
            let is_for_others = match clock {
                Clock::Real => are_all(&[What::Edit, What::Watch, What::Explore]),
                Clock::Virtual => are_all(&[What::Page]) || args.machine.accel == Wish::Kvm,
            };
            if !wanted || is_for_others {
                continue;
            }
            let machine = MachineArgs { clock: Some(clock), ..args.machine.clone() };
            let machines = machine.machines().await?;
            let sizes = [DEFAULT_MEMORY_MIB, scenario()?.manifest.memory_mib];
            let wanted = explore::and_its(&sizes, &args.what)?;
            let directory = results.join(word(clock));
            let guest = prepare_one(workspace, &machines, &wanted, &directory, cancel.clone()).await?;
            clocks.push(Arc::new(guest));
        }
        let first = clocks.first().context("KVM has no virtual time: nothing is left to measure")?;
        let accelerators: BTreeMap<String, String> =
            clocks.iter().map(|one| (one.base.clock.to_string(), one.choice.clone())).collect();
        let report = Report {
            complete: false,
            quick: args.quick,
            host: Host { cpu: cpu()?, cores: cores(), load_before: load()?, load_after: String::new() },
            image: first.image.clone(),
            qemu: first.base.build.version.clone(),
            accelerators,
            rows: Vec::new(),
            notes: Vec::new(),
        };
        let mut what = args.what;
        if what.is_empty() {
            let named_only = [What::Holders, What::Edit, What::Watch, What::Explore, What::Page];
            what.extend(What::value_variants().iter().filter(|what| !named_only.contains(what)));
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
        let before = [What::Idle, What::Spread, What::Reset, What::Helper, What::Purge, What::Moment];
        self.in_virtual_time(&before).await?;
        if self.wants(What::Page) {
            self.page().await.context("measure page")?;
        }
        if self.wants(What::Suite) {
            self.suite().await.context("measure suite")?;
            self.show()?;
        }
        self.in_virtual_time(&[What::Edit, What::Watch, What::Explore]).await
    }

    /// Those of these that are asked for.
    async fn in_virtual_time(&mut self, these: &[What]) -> Result<()> {
        for what in these {
            if !self.wants(*what) {
                continue;
            }
            let Some(guest) = self.clock(Clock::Virtual) else {
                self.report.notes.push(format!("{what:?}: not measured: it is about virtual time"));
                continue;
            };
            match what {
                What::Idle => self.idle(&guest).await.context("measure idle")?,
                What::Spread => self.spread(&guest).await.context("measure spread")?,
                What::Helper => self.helper(&guest).await.context("measure helper")?,
                What::Purge => self.purge(&guest).await.context("measure purge")?,
                What::Moment => self.moment(&guest).await.context("measure moment")?,
                What::Edit => self.edit().await.context("measure edit")?,
                What::Watch => self.watch().await.context("measure watch")?,
                What::Explore => self.explore(&guest).await.context("measure explore")?,
                _ => self.reset(&guest).await.context("measure reset")?,
            }
            self.show()?;
        }
        Ok(())
    }

    fn wants(&self, what: What) -> bool {
        self.what.contains(&what)
    }

    fn clock(&self, clock: Clock) -> Option<Arc<Guest>> {
        self.clocks.iter().find(|guest| guest.base.clock == clock).map(Arc::clone)
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
            for (at, guest) in clocks.iter().enumerate() {
                eprintln!("boot: {}, {} of {}", guest.base.clock, round + 1, self.counts.machines);
                let boot = bench::boot(&guest.base, &directory, self.cancel.clone()).await?;
                boots.get_mut(at).context("a clock")?.push(boot);
                if !wants_restore {
                    continue;
                }
                for (machines, samples) in
                    SIDE_BY_SIDE.into_iter().zip(restores.get_mut(at).context("a clock")?)
                {
                    let times = bench::restore(guest, machines, &directory, &self.cancel).await?;
                    let last = times.last().context("a machine that was restored")?;
                    samples.0.push(last.as_secs_f64());
                }
            }
        }
        cache::remove_tree(&directory)?;
        for (guest, boots) in clocks.iter().zip(&boots) {
            if wants_boot {
                self.report.rows.extend(boot_rows(guest, boots));
            }
        }
        if wants_restore {
            for ((guest, boots), restores) in clocks.iter().zip(&boots).zip(restores) {
                self.report.rows.extend(restore_rows(guest, boots, restores)?);
            }
        }
        Ok(())
    }

    async fn channel(&mut self) -> Result<()> {
        let directory = self.machines("channel");
        for guest in self.clocks.clone() {
            eprintln!("channel: {}", guest.base.clock);
            let requests = self.counts.requests;
            let channel = bench::channel(&guest, requests, &directory, self.cancel.clone()).await?;
            self.report.rows.extend(channel_rows(&guest, channel));
        }
        cache::remove_tree(&directory)
    }

    async fn idle(&mut self, guest: &Guest) -> Result<()> {
        eprintln!("idle");
        let directory = self.machines("idle");
        let idle = bench::idle(guest, self.counts.machines, &directory, self.cancel.clone()).await?;
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

    async fn spread(&mut self, guest: &Guest) -> Result<()> {
        let scenario = scenario()?;
        let directory = self.machines("spread");
        let resets = || bench::resets(guest, &scenario, RUN, &directory, self.cancel.clone());
        let mut idle: Vec<Vec<u64>> = Vec::new();
        let mut busy: Vec<Vec<u64>> = Vec::new();
        for round in 0..self.counts.spread {
            eprintln!("spread: {} of {}, host idle", round + 1, self.counts.spread);
            idle.push(resets().await?);
            eprintln!("spread: {} of {}, host busy", round + 1, self.counts.spread);
            let threads = BusyHost::start()?;
            let resets = resets().await;
            drop(threads);
            busy.push(resets?);
        }
        self.report.rows.extend(spread_rows(&idle, &busy)?);
        cache::remove_tree(&directory)
    }

    async fn reset(&mut self, guest: &Guest) -> Result<()> {
        eprintln!("reset");
        let directory = self.machines("reset");
        let both =
            bench::reset_and_stop(guest, &scenario()?, self.counts.machines, &directory, self.cancel.clone())
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

    async fn helper(&mut self, guest: &Guest) -> Result<()> {
        eprintln!("helper");
        let (directory, rounds) = (self.machines("helper"), self.counts.machines);
        let cancel = self.cancel.clone();
        let programs = bench::programs(guest, &scenario()?, rounds, &directory, cancel).await?;
        self.report.rows.extend([
            Row::new(
                "helper",
                "umount, but for the system call (guest time)",
                Unit::Seconds,
                programs.umount,
            )
            .target(target::UMOUNT),
            Row::new("helper", "umount2(2) alone (guest time)", Unit::Seconds, programs.call),
            Row::new("helper", "--version (guest time)", Unit::Seconds, programs.nothing),
        ]);
        cache::remove_tree(&directory)
    }

    async fn purge(&mut self, guest: &Guest) -> Result<()> {
        eprintln!("purge");
        let (directory, rounds) = (self.machines("purge"), self.counts.machines.min(PURGES));
        let cancel = self.cancel.clone();
        let purges = bench::purges(guest, &scenario()?, rounds, &directory, cancel).await?;
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
            let Ended { wall, code } = self.vm_test().await?;
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

    async fn moment(&mut self, guest: &Guest) -> Result<()> {
        eprintln!("moment");
        let (directory, rounds) = (self.machines("moment"), self.counts.machines);
        let (scenario, at) = (named(FAILS)?, AT.parse()?);
        let cancel = self.cancel.clone();
        let moments = bench::moments(guest, &scenario, &at, rounds, &directory, cancel).await?;
        // A cache of its own, where nothing is remembered and no moment is there.
        let (cache, usual) = (directory.join("cache"), left4me::workspace()?.cache()?);
        let mut shells = Shells::default();
        for round in 1..=rounds {
            std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
            for shared in ["images", "machines"] {
                let (link, to) = (cache.join(shared), usual.join(shared));
                std::os::unix::fs::symlink(&to, &link)
                    .with_context(|| format!("link {} to {}", link.display(), to.display()))?;
            }
            eprintln!("moment: {round} of {rounds}, shell --at");
            shells.first.0.push(self.shell(&cache).await?);
            cache::remove_tree(&cache.join("moments"))?;
            shells.recalled.0.push(self.shell(&cache).await?);
            shells.again.0.push(self.shell(&cache).await?);
            cache::remove_tree(&cache)?;
        }
        self.report.rows.extend(moment_rows(moments, shells));
        cache::remove_tree(&directory)
    }

    /// Runs ourselves as `shell --at`, with nothing to type.
    async fn shell(&self, cache: &Path) -> Result<f64> {
        let log = self.results.join("shell.log");
        let machine = MachineArgs { clock: Some(Clock::Virtual), ..self.machine.clone() };
        let program = Program::new(std::env::current_exe().context("find our own program")?)
            .args(["shell", FAILS, "--at", AT])
            .args(machine.flags()?)
            .env(cache::CACHE_VAR, cache);
        let Ended { wall, code } = program::run(program, &log, &self.cancel).await?;
        ensure!(code == PASSED, "shell --at: exit code {code}, see {}", log.display());
        Ok(wall.as_secs_f64())
    }

    fn suite_log(&self) -> PathBuf {
        self.results.join("suite.log")
    }

    /// Runs ourselves as `vm-test`.
    async fn vm_test(&self) -> Result<Ended> {
        let path = self.suite_log();
        remove_if_there(&path).with_context(|| format!("delete {}", path.display()))?;
        let program = Program::new(std::env::current_exe().context("find our own program")?)
            .arg("vm-test")
            .args(SUITE)
            .args(self.machine.flags()?)
            .arg("--results")
            .arg(self.results.join("suite"));
        program::run(program, &path, &self.cancel).await
    }

    /// In a copy of the checkout, by the commands that a person types.
    async fn edit(&mut self) -> Result<()> {
        // What is remembered is of virtual time.
        let machine = MachineArgs { clock: Some(Clock::Virtual), ..self.machine.clone() };
        let (workspace, place) = (left4me::workspace()?, self.results.join("edit"));
        let (rounds, cancel) = (self.counts.edits, self.cancel.clone());
        let mut edits = Edits::default();
        let measured = edit::measure(&workspace, &place, machine.flags()?, rounds, cancel, &mut edits).await;
        self.report.rows.extend(edit_rows(&edits));
        self.report.notes.extend(edit_notes(&edits));
        // It takes half an hour: what is measured is shown.
        self.show()?;
        measured
    }

    /// In the same copy.
    async fn watch(&mut self) -> Result<()> {
        let machine = MachineArgs { clock: Some(Clock::Virtual), ..self.machine.clone() };
        let (workspace, place) = (left4me::workspace()?, self.results.join("edit"));
        let (rounds, cancel) = (self.counts.edits, self.cancel.clone());
        let saves = watch::measure(&workspace, &place, machine.flags()?, rounds, cancel).await?;
        self.report.rows.extend(watch_rows(&saves));
        self.show()
    }

    async fn explore(&mut self, guest: &Guest) -> Result<()> {
        let directory = self.machines("explore");
        let (workspace, count, cancel) = (left4me::workspace()?, self.counts.replays, self.cancel.clone());
        let rows = &mut self.report.rows;
        let measured = explore::measure(&workspace, guest, count, &directory, cancel, rows).await;
        // It takes minutes: what is measured is shown.
        self.show()?;
        measured?;
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

/// The accuracy benchmark: three tables, what is kept of the bounds, and what is wrong with `holders`.
async fn accuracy(workspace: &Workspace, args: &BenchArgs, results: &Path, cancel: Cancel) -> Result<u8> {
    let programs = programs::accuracy_binaries(workspace).await?;
    let (wanted, directory) = ([Wanted::of_size(DEFAULT_MEMORY_MIB)], results.join("holders"));
    let guests =
        prepare(workspace, &args.machine.machines().await?, &wanted, &directory, cancel.clone()).await?;
    let rounds = if args.quick { QUICK_ACCURACY_ROUNDS } else { ACCURACY_ROUNDS };
    let mut accuracies = Vec::new();
    for guest in &guests {
        let directory = directory.join(&guest.name);
        accuracies.push(holders::measure(guest, &programs, rounds, &directory, cancel.clone()).await?);
    }
    let path = results.join("holders.json");
    std::fs::write(&path, serde_json::to_string_pretty(&accuracies)?)
        .with_context(|| format!("write {}", path.display()))?;
    println!("{}, {} cores; durations are of the guest's clock", cpu()?, cores());
    for accuracy in &accuracies {
        println!(
            "{}: {}; {} of {} cases planted",
            accuracy.guest,
            accuracy.image,
            accuracy.planted(),
            accuracy.cases.len()
        );
    }
    println!(
        "\n{}\n\n{}\n\n{}\n",
        holders::cases(&accuracies),
        holders::summary(&accuracies),
        holders::costs(&accuracies)
    );
    for accuracy in &accuracies {
        for bound in holders::bounds(accuracy) {
            let verdict = if bound.is_kept() { "reached" } else { "not reached" };
            println!(
                "{}: {}: {:.3}, target ≤ {}: {verdict}",
                accuracy.guest, bound.what, bound.is, bound.at_most
            );
        }
        for case in &accuracy.cases {
            if let Some(why) = &case.not_planted {
                println!("{}: {} could not be planted: {why}", accuracy.guest, case.case);
            }
        }
    }
    let faults: Vec<String> = accuracies.iter().flat_map(|accuracy| accuracy.faults()).collect();
    faults.iter().for_each(|fault| println!("{fault}"));
    println!("report: {}", path.display());
    // A target is no test; a tool that is wrong is.
    Ok(if faults.is_empty() { PASSED } else { FAILED })
}

fn scenario() -> Result<Scenario> {
    named(SCENARIO)
}

fn named(name: &'static str) -> Result<Scenario> {
    left4me::workspace()?.scenarios(&[name.to_owned()])?.pop().context(name)
}
