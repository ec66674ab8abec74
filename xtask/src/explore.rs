//! `cargo xtask explore`: one phase of a scenario, each time with another schedule.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Args;
use vm_perturb::Line;
use vm_tests::cache;
use vm_tests::explore::page::page;
use vm_tests::explore::strategy::Strategy;
use vm_tests::explore::{self, Options, Replayed};
use vm_tests::host::accel::Clock;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::report::page::PAGE_FILE;
use vm_tests::run::guest::Guest;
use vm_tests::run::prepare::prepare_one;
use vm_tests::run::results::Results;
use vm_tests::scenario::{Scenario, Wanted, WrongInput};
use vm_tests::workspace::Workspace;

use crate::exit::{FAILED, PASSED};
use crate::left4me;
use crate::machine::MachineArgs;
use crate::repro::commit;
use crate::shell::quoted;
use crate::vm_test::jobs;

/// Searches a scenario for races: runs one phase again and again, each time with tasks held at other points.
///
/// The machine is saved before the phase (the reset; or what [explore] of the manifest says), and each run begins there. The second
/// client, if the manifest has one, is moved along the phase; then each task is held at each point of its run (before it mounts,
/// unmounts, renames, forks, exits, ...), four times as long as the phase takes, as long, and a quarter, unless a longer hold there has shown
/// what comes; then, if there is --for or --runs, two points together, and draws: of one to three points, and of an order of priority of
/// the tasks (PCT). Each run is judged by the manifest's `expect`, times apart. A failure is made as small as it can be and told with a
/// line for --holds, which makes that run again, the same each time. In virtual time. Results are in target/vm-explore.
/// Exit status 0 if all runs were as expected, 1 if one was not.
#[derive(Debug, Args)]
pub(crate) struct ExploreArgs {
    /// Scenario: a name or a path
    #[arg(value_name = "SCENARIO")]
    scenario: String,

    /// Begin no run after this time, with its unit: 10m, 90s
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,

    /// Try at most so many schedules
    #[arg(long, value_name = "N")]
    runs: Option<usize>,

    /// Only these: offsets, one-hold, each-length (as one-hold, and nothing left out), pairs, random, pct; with commas
    #[arg(long, value_name = "STRATEGY", value_delimiter = ',')]
    strategy: Vec<Strategy>,

    /// What draws come from: a number that an earlier search has said [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How many machines run at once; what is found is the same [default: as many as cores and memory bear]
    #[arg(long, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,

    /// Make one run, with these holds, as a failure tells them
    #[arg(long, value_name = "LINE", conflicts_with_all = ["time", "runs", "strategy", "seed", "jobs"])]
    holds: Option<Line>,

    /// Make a scenario of its own of the line, in this directory: a test that fails until what is wrong is mended
    #[arg(long, value_name = "DIR", requires = "holds")]
    keep: Option<PathBuf>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// A time with its unit.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let read = units.iter().find_map(|(unit, secs)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*secs).map(Duration::from_secs)
    });
    read.ok_or_else(|| format!("{text:?} is no time: 90s, 10m, 1h"))
}

/// Returns the exit code.
pub(crate) async fn run(args: &ExploreArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let scenarios = workspace.scenarios(std::slice::from_ref(&args.scenario))?;
    let scenario = scenarios.first().context("no scenario")?;
    explore::check(scenario)?;
    let machine = MachineArgs { clock: args.machine.clock.or(Some(Clock::Virtual)), ..args.machine.clone() };
    let machines = machine.machines().await?;
    let root = workspace.target.join("vm-explore");
    std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let wanted = Wanted::by(&scenarios);
    let guest = prepare_one(&workspace, &machines, &wanted, &root, cancel.clone()).await?;
    let directory = root.join(&guest.name).join(&scenario.name);
    std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let results = Results::at(&directory).await?;
    match &args.holds {
        Some(line) => replay(args, &workspace, &guest, scenario, line, &results.directory, cancel).await,
        None => all(args, &workspace, &guest, scenario, &results.directory, cancel).await,
    }
}

async fn all(
    args: &ExploreArgs,
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    directory: &Path,
    cancel: Cancel,
) -> Result<u8> {
    remove_failures(directory)?;
    let ExploreArgs { time, runs, strategy, seed, jobs, .. } = args;
    let seed = seed.unwrap_or_else(another);
    if let Some(draws) = strategy.iter().find(|strategy| strategy.draws()) {
        if time.is_none() && runs.is_none() {
            let word = draws.word();
            let why = format!("--strategy {word} has no last draw: say --runs or --for, too");
            return Err(WrongInput::new(why).into());
        }
        eprintln!("draws: --seed {seed}");
    }
    let (strategies, commit) = (strategy.clone(), commit(&workspace.root).await);
    let options = Options { time: *time, runs: *runs, strategies, jobs: *jobs, seed, commit };
    let explored = explore::explore(workspace, guest, scenario, &options, directory, cancel).await?;
    let path = directory.join("explore.json");
    let json = serde_json::to_vec_pretty(&explored).context("what was explored as JSON")?;
    std::fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    let picture = directory.join(PAGE_FILE);
    std::fs::write(&picture, page(&explored)).with_context(|| format!("write {}", picture.display()))?;
    print!("{}", explored.told());
    println!("all of it: {}; drawn: {}", path.display(), picture.display());
    if explored.ended_by.is_some() {
        return Ok(Verdict::Infrastructure.exit_code());
    }
    Ok(match (explored.has_failed(), explored.is_interrupted) {
        (_, true) => Verdict::Interrupted.exit_code(),
        (true, false) => FAILED,
        (false, false) => PASSED,
    })
}

/// A seed of few digits.
fn another() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() % 1_000_000
}

async fn replay(
    args: &ExploreArgs,
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    line: &Line,
    directory: &Path,
    cancel: Cancel,
) -> Result<u8> {
    let replayed = explore::replay(workspace, guest, scenario, line, directory, cancel.clone()).await?;
    let Replayed { why, allowed, recording_sha256, report, recording, .. } = &replayed;
    for passed in report.passed.iter().filter(|passed| passed.held_us > 0) {
        let (at, held) = (passed.at_us, passed.held_us);
        println!("{} {} held for {held} us from {at} us on", passed.point, passed.of);
    }
    println!("recording {}: {}", recording_sha256.get(..12).unwrap_or_default(), recording.display());
    for line in why {
        println!("{line}");
    }
    let is_right = why.is_empty() || allowed.is_some();
    println!(
        "{}",
        match allowed {
            Some(reason) => format!("allowed, as {reason}"),
            None if is_right => "as expected".to_owned(),
            None => "FAILED".to_owned(),
        }
    );
    let Some(keep) = &args.keep else { return Ok(if is_right { PASSED } else { FAILED }) };
    if explore::keep(workspace, guest, scenario, line, &replayed, keep, cancel).await? {
        println!("kept, and it fails as here: cargo xtask vm-test {}", quoted(&keep.display().to_string()));
        return Ok(PASSED);
    }
    println!("not kept: a whole run with this line goes another way, so as a scenario it would test nothing");
    Ok(FAILED)
}

/// Removes what an earlier search has found.
fn remove_failures(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("failure-") || name == "run" {
            cache::remove_tree(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        for text in ["10", "m", "-5s", "1.5h"] {
            assert!(time(text).expect_err(text).contains("90s, 10m, 1h"));
        }
    }
}
