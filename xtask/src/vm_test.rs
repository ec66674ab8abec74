//! `cargo xtask vm-test`: prepares everything, runs the scenarios as tests, prints and writes what was measured.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use vm_tests::cache::{self, Lock};
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::signals::{Interrupted, Interrupts};
use vm_tests::report::{self, Report, Verdict};
use vm_tests::run::{PREPARED_VAR, Prepared};
use vm_tests::scenario::{self, Scenario};

use crate::exit::{FAILED, INFRASTRUCTURE, INTERRUPTED, PASSED};
use crate::prepare::{self, MachineArgs, Wanted};

/// How many runs a checkout bears at once before something is wrong.
const MOST_RUNS: u32 = 16;

/// How long the tests may take to end their machines after an interrupt: each step of a machine's stop is bounded
/// by 3 s, its evidence by 20 s.
const STOP_GRACE: Duration = Duration::from_secs(40);

/// Boots a machine for each scenario, runs its cycles and compares them with its snapshot.
///
/// Installs QEMU and mmdebstrap and builds the guest's image first, if they are missing. Prints a table of the
/// measurements, and writes report.json and, for each scenario, probe.txt (who held the mount, over time), recording.json
/// and the machine's logs.
#[derive(Debug, Args)]
pub(crate) struct VmTestArgs {
    /// Scenarios to run: names, or paths of directories with a scenario.toml [default: all of vm-tests/scenarios]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// Run the scenarios that are steps of the history, and print them as one table
    #[arg(long, conflicts_with = "scenarios")]
    history: bool,

    /// Number of Start/Reset cycles, in place of the scenario's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cycles: Option<u32>,

    /// Number of machines that run at once [default: as cores and memory allow]
    #[arg(long, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,

    #[command(flatten)]
    machine: MachineArgs,

    /// Time limit for one scenario's cycles, in seconds of the host's time
    #[arg(long, value_name = "SECS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    deadline: u64,

    /// Directory for the results [default: target/vm-test]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one machine has to run".to_owned()),
        Ok(jobs) => Ok(jobs),
        Err(error) => Err(format!("{error}")),
    }
}

/// Whether a new or changed snapshot may be accepted, if the environment says so (`INSTA_UPDATE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accept {
    AsAsked,
    Never,
}

/// Returns the exit code; an error is one of the preparation.
pub(crate) async fn run(args: &VmTestArgs) -> Result<u8> {
    run_with(args, Accept::AsAsked).await
}

/// How the suite is run.
#[derive(Debug, Clone, Copy)]
struct How {
    accept: Accept,
    jobs: usize,
}

async fn run_with(args: &VmTestArgs, accept: Accept) -> Result<u8> {
    // From here on no interrupt is lost, whatever is under way when it comes.
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let mut scenarios = scenario::select(&prepare::scenarios_root()?, &args.scenarios)?;
    scenarios.retain(|one| !args.history || one.manifest.history.is_some());
    let jobs = args.jobs.unwrap_or_else(|| default_jobs(&scenarios, args.machine.guests()));
    let how = How { accept, jobs };
    let (results, _ours) = results_of_our_own(args.results.as_deref()).await?;
    let wanted = Wanted {
        scenarios: &scenarios,
        memory_mib: scenario::memory_sizes(&scenarios),
        cycles: args.cycles,
        deadline_secs: args.deadline,
        results: &results,
    };
    let guests = prepare::prepare(&args.machine, wanted, prepare::cancel_on_interrupt()?).await?;
    forget(&results, &guests, &scenarios)?;
    let tests = build_tests().await?;
    let ended = run_tests(&tests, &results, &guests, how, &mut interrupts).await?;
    let report = report::collect(&guests, &scenarios, &ended.without_verdict())?;
    let path = results.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", path.display()))?;
    show(&report, &path, if args.history { report::history } else { report::table });
    Ok(exit_code(&report, ended.status))
}

/// A machine is one busy thread and what its guest has written to its RAM: a quarter of a gigabyte for most, and never
/// more than all of it.
fn default_jobs(scenarios: &[Scenario], guests: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let sizes = scenarios.iter().map(|scenario| u64::from(scenario.manifest.memory_mib));
    let sizes = sizes.flat_map(|size| std::iter::repeat_n(size, guests)).collect();
    let available_mib = crate::doctor::memory_available_mb().map_or(0, |mb| (mb * 1_000_000) >> 20);
    cores.min(fitting(sizes, available_mib)).max(1)
}

/// How many machines of these sizes fit in what is available, whichever of them run at once.
fn fitting(mut sizes: Vec<u64>, available: u64) -> usize {
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let sums = sizes.into_iter().scan(0_u64, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= available).count()
}

/// The directory for the results of this run and no other at the same time, and the lock that makes it so. A run that
/// names none and finds the usual one in use takes the next.
async fn results_of_our_own(named: Option<&Path>) -> Result<(PathBuf, Lock)> {
    let create = |results: &Path| {
        std::fs::create_dir_all(results).with_context(|| format!("create {}", results.display()))
    };
    if let Some(named) = named {
        let results = std::path::absolute(named).context("--results")?;
        create(&results)?;
        let lock = Lock::exclusive(&results.join("lock"), |who| {
            eprintln!("{}: waiting for {who}, which writes its results there", results.display());
        })
        .await?;
        return Ok((results, lock));
    }
    let usual = cache::workspace()?.join("target/vm-test");
    for number in 1..=MOST_RUNS {
        let results =
            if number == 1 { usual.clone() } else { usual.with_file_name(format!("vm-test-{number}")) };
        create(&results)?;
        if let Some(lock) = Lock::if_free(&results.join("lock"))? {
            if number > 1 {
                eprintln!(
                    "{} is in use by another run; results go to {}",
                    usual.display(),
                    results.display()
                );
            }
            return Ok((results, lock));
        }
    }
    bail!("{MOST_RUNS} runs at once in this checkout: wait for one, or name a directory with --results")
}

/// A result of an earlier run must not be taken for one of this run.
fn forget(results: &Path, guests: &[Prepared], scenarios: &[Scenario]) -> Result<()> {
    for (prepared, scenario) in guests.iter().flat_map(|guest| scenarios.iter().map(move |one| (guest, one)))
    {
        let directory = prepared.results_of(&scenario.name);
        if directory.exists() {
            cache::remove_tree(&directory)?;
        }
    }
    let report = results.join("report.json");
    match std::fs::remove_file(&report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", report.display()))
        }
        _gone => Ok(()),
    }
}

/// Builds the suite and returns its binary, so that it can be started as our own child: cargo in between would
/// neither pass signals on nor die with us.
async fn build_tests() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let program = Program::new(cargo)
        .args([
            "test",
            "--no-run",
            "--quiet",
            "-p",
            "vm-tests",
            "--test",
            "scenarios",
            "--message-format=json-render-diagnostics",
        ])
        .current_dir(cache::workspace()?)
        .stderr(Sink::Inherit);
    let output =
        process::run(program, Duration::from_secs(1800), |_, _| ()).await.context("build the VM suite")?;
    let text = output.text();
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| {
            let test = message.get("target")?.get("name")? == "scenarios";
            test.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
        })
        .context("cargo built the VM suite and named no executable")
}

/// How the suite's process ended.
struct Ended {
    status: ExitStatus,
    interrupted: bool,
}

impl Ended {
    /// What a scenario is that the suite has left without a verdict, and why.
    fn without_verdict(&self) -> (Verdict, String) {
        let why = format!("the test process ended without a verdict: {}", process::describe(self.status));
        match self.interrupted {
            true => (Verdict::Interrupted, format!("interrupted; {why}")),
            false => (Verdict::Infrastructure, why),
        }
    }
}

/// Runs the suite to its end, or to an interrupt that it is told of.
async fn run_tests(
    tests: &Path,
    results: &Path,
    guests: &[Prepared],
    how: How,
    interrupts: &mut Interrupts,
) -> Result<Ended> {
    let file = results.join("prepared.json");
    std::fs::write(&file, serde_json::to_string_pretty(guests)?)
        .with_context(|| format!("write {}", file.display()))?;
    let mut program = Program::new(tests);
    if how.accept == Accept::Never {
        program = program.env("INSTA_UPDATE", "no");
    }
    let mut child = program
        .arg(format!("--test-threads={}", how.jobs))
        .env(PREPARED_VAR, &file)
        // A snapshot that differs is no crash.
        .env("RUST_BACKTRACE", "0")
        .current_dir(cache::workspace()?.join("vm-tests"))
        .stdout(Sink::Inherit)
        .stderr(Sink::Inherit)
        .spawn()?;
    tokio::select! {
        status = child.wait() => Ok(Ended { status: status?, interrupted: false }),
        _signal = interrupts.next() => {
            Ok(Ended { status: child.kill_group(STOP_GRACE).await?, interrupted: true })
        }
    }
}

fn show(report: &Report, path: &Path, table: fn(&Report, &str) -> String) {
    println!("\n{}", report.accelerator);
    println!("durations are {} time of the guest", report.clock);
    for (guest, image) in &report.guests {
        println!("\n{image}");
        if report.scenarios.iter().any(|scenario| scenario.guest == *guest && !scenario.cycles.is_empty()) {
            println!("\n{}", table(report, guest));
        }
    }
    for scenario in &report.scenarios {
        for why in &scenario.why {
            println!("{}/{}: {why}", scenario.guest, scenario.name);
        }
    }
    println!("report: {}", path.display());
}

/// One bad scenario does not hide another: a failure is told before a missing result.
fn exit_code(report: &Report, status: ExitStatus) -> u8 {
    let any = |verdict| report.scenarios.iter().any(|scenario| scenario.verdict == verdict);
    if any(Verdict::Interrupted) {
        INTERRUPTED
    } else if any(Verdict::Failed) {
        FAILED
    } else if any(Verdict::Infrastructure) || !status.success() {
        INFRASTRUCTURE
    } else {
        PASSED
    }
}

/// Runs the whole suite as `cargo xtask check` does.
pub(crate) async fn all(machine: MachineArgs) -> Result<()> {
    let args = VmTestArgs {
        scenarios: Vec::new(),
        history: false,
        cycles: None,
        jobs: None,
        machine,
        deadline: 900,
        results: None,
    };
    match run_with(&args, Accept::Never).await? {
        PASSED => Ok(()),
        INTERRUPTED => Err(Interrupted::by(Signal::SIGINT).into()),
        code => bail!("vm-test: exit code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_machines_may_run_at_once() {
        let small = vec![512; 10];
        let mixed = [vec![2048, 1024], small.clone()].concat();
        let cases = [
            (small.clone(), 5120, 10),
            (small.clone(), 1100, 2),
            (small, 100, 0),
            (mixed.clone(), 2047, 0),
            (mixed.clone(), 3071, 1),
            (mixed.clone(), 3072, 2),
            (mixed, 3072 + 1024, 4),
        ];
        for (sizes, available, expected) in cases {
            assert_eq!(fitting(sizes.clone(), available), expected, "{sizes:?} in {available}");
        }
    }
}
