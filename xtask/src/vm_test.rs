//! `cargo xtask vm-test`: the flags of the VM suite, and how its report is shown.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use vm_tests::image::{EXTERNAL, Suite};
use vm_tests::machine::Cancel;
use vm_tests::report::page::PAGE_FILE;
use vm_tests::report::{self, Report, ScenarioReport, Verdict, summary};
use vm_tests::run::one::Bounds;
use vm_tests::run::part::Breadth;
use vm_tests::run::recall::Again;
use vm_tests::run::repro::Keep;
use vm_tests::run::shard::Shard;
use vm_tests::run::suite;
use vm_tests::scenario::{Scenario, WrongInput};

use crate::exit::{FAILED, PASSED};
use crate::first;
use crate::junit;
use crate::left4me;
use crate::machine::MachineArgs;
use crate::packaged::{self, Deploy};
use crate::repro;

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

    /// Run one part of the suite, for so many runners: 2/4 is the second of four. Who has which runs follows from the
    /// scenarios, the images and costs.toml, the costliest runs first
    #[arg(long, value_name = "K/N", conflicts_with = "history")]
    shard: Option<Shard>,

    /// Run each scenario on the first image and on one of the others, for each scenario always the same one: what `check` does
    /// where it is not given --all
    #[arg(long, conflicts_with = "history")]
    spread: bool,

    /// Write the verdicts as JUnit's XML too
    #[arg(long, value_name = "FILE", conflicts_with = "no_run")]
    junit: Option<PathBuf>,

    /// Prepare machines and prepared.json, and run nothing: for cargo-nextest
    #[arg(long, conflicts_with_all = ["history", "fresh", "verify"])]
    no_run: bool,

    /// Number of Start/Reset cycles, in place of the scenario's; one whose machine shuts down has one
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

    /// Run everything, also what is remembered of earlier runs with the same inputs, and compare
    #[arg(long)]
    fresh: bool,

    /// How many of the remembered runs are run again and compared
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "fresh", value_parser = clap::value_parser!(u32).range(1..))]
    verify: u32,

    /// How left4me gets into a machine. But for tree, scenarios that do not deploy it are left out, and no run with the
    /// package changes a snapshot
    #[arg(long, value_enum, default_value_t, conflicts_with_all = ["history", "shard", "no_run"])]
    deploy: Deploy,

    /// Write repro.tar.zst for each run, by which it is made again elsewhere (cargo xtask repro), and not only for those that fail
    #[arg(long, conflicts_with = "no_run")]
    repro: bool,

    /// Directory for the results [default: target/vm-test]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

pub(crate) fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one machine has to run".to_owned()),
        Ok(jobs) => Ok(jobs),
        Err(error) => Err(format!("{error}")),
    }
}

/// So many failed scenarios are given a command to look into them.
const NEXT: usize = 3;

/// A scenario that has failed.
#[derive(Debug, Clone, Copy)]
struct Failed<'a> {
    guest: &'a str,
    scenario: &'a str,
    /// Where to look first, if it repeats.
    look: Option<&'a str>,
}

impl<'a> Failed<'a> {
    fn of(report: &'a ScenarioReport) -> Self {
        Self { guest: &report.guest, scenario: &report.name, look: report.look.as_deref() }
    }
}

/// What to type about the scenarios that have failed, each with its guest.
fn next<'a>(failed: impl Iterator<Item = Failed<'a>>, named: &[String]) -> String {
    let mut text = String::new();
    for Failed { guest, scenario, look } in failed.take(NEXT) {
        // One that was named by its path has to be named so again.
        let is_it = |path: &&String| Path::new(path).file_name().is_some_and(|name| *name == *scenario);
        let name = named.iter().find(is_it).map_or(scenario, String::as_str);
        let image = match guest.parse::<Suite>() {
            Ok(suite) if suite == Suite::default() => String::new(),
            Ok(suite) => format!(" --image {suite}"),
            // These are named by paths, which whoever typed them still has.
            Err(_) if guest == EXTERNAL => " --kernel FILE --modules DIR --root FILE".to_owned(),
            Err(_) => " --image nixos --guest DIR".to_owned(),
        };
        let at = look.map_or_else(String::new, |look| format!(" --at '{look}'"));
        text.push_str(&format!("to look into it: cargo xtask shell{image} {name}{at}\n"));
    }
    text
}

/// Where the results of the package's runs go: beside those of the archive's.
fn beside(report: &Path) -> PathBuf {
    let mut directory = report.parent().unwrap_or(report).to_owned().into_os_string();
    directory.push("-deb");
    directory.into()
}

/// Returns the exit code; an error is one of the preparation.
pub(crate) async fn run(args: &VmTestArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let mut scenarios = workspace.scenarios(&args.scenarios)?;
    scenarios.retain(|one| !args.history || one.manifest.history.is_some());
    let machines = args.machine.machines().await?;
    let as_written = scenarios.clone();
    if args.deploy != Deploy::Tree {
        if machines.external.is_some() || machines.programs.is_some() {
            let what = "--deploy deb: the package is made of this checkout, and for Debian's suites; not with --programs, nor \
                        with another guest than these";
            return Err(WrongInput::new(what.to_owned()).into());
        }
        scenarios = packaged::packaged(&workspace, scenarios, !args.scenarios.is_empty()).await?;
    }
    let mut options = suite::Options {
        machines,
        bounds: Bounds { cycles: args.cycles, deadline_secs: args.deadline },
        jobs: args.jobs,
        results: args.results.clone(),
        again: if args.fresh { Again::All } else { Again::Some(args.verify) },
        shard: args.shard,
        breadth: if args.spread { Breadth::Two } else { Breadth::All },
        keep: Keep { all: args.repro, commit: repro::commit(&workspace.root).await },
        cycles_of_unknown: None,
    };
    if args.no_run {
        let prepared = suite::prepare_only(&workspace, &scenarios, &options, cancel).await?;
        println!("prepared: {}", prepared.display());
        return Ok(PASSED);
    }
    let tree = if args.deploy == Deploy::Both {
        let is_both = |one: &Scenario| scenarios.iter().any(|other| other.name == one.name);
        let both: Vec<_> = as_written.into_iter().filter(is_both).collect();
        Some(suite::run(&workspace, &both, &options, cancel.clone()).await?)
    } else {
        None
    };
    if let Some(tree) = &tree {
        print!("{}", tree.report.text(report::table));
        options.results = Some(beside(&tree.path));
    }
    let mut ran = suite::run(&workspace, &scenarios, &options, cancel.clone()).await?;
    print!("{}", ran.report.text(if args.history { report::history } else { report::table }));
    let failed = ran.report.scenarios.iter().filter(|one| one.verdict == Verdict::Failed);
    print!("{}", next(failed.map(Failed::of), &args.scenarios));
    for bundle in ran.report.scenarios.iter().filter_map(ScenarioReport::bundle).take(NEXT) {
        println!("to hand it over: cargo xtask repro {}", bundle.display());
    }
    println!("report: {}", ran.path.display());
    if let Some(file) = std::env::var_os(SUMMARY_VAR).filter(|file| !file.is_empty()) {
        summarize(Path::new(&file), &ran.report)?;
    }
    if let Some(file) = &args.junit {
        junit::write(file, &ran.report)?;
    }
    println!("page: {}", ran.path.with_file_name(PAGE_FILE).display());
    if let Some(tree) = &tree {
        let verdict = tree.report.verdict().exit_code();
        if verdict != PASSED {
            return Ok(verdict);
        }
        let (text, is_same) = packaged::compare(&workspace, tree, &ran)?;
        print!("{text}");
        return Ok(if is_same { ran.report.verdict().exit_code() } else { FAILED });
    }
    first::offer(&mut ran.report, !args.scenarios.is_empty() || args.history, &cancel).await?;
    Ok(ran.report.verdict().exit_code())
}

/// Where GitHub's runner takes a summary of a step from.
const SUMMARY_VAR: &str = "GITHUB_STEP_SUMMARY";

/// Adds to what steps before have said.
fn summarize(file: &Path, report: &Report) -> Result<()> {
    let text = summary::summary(report);
    let open = File::options().append(true).create(true).open(file);
    open.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("{SUMMARY_VAR}: write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_next_names_guest_and_scenario_as_they_were_typed() {
        let of = |(guest, scenario)| Failed { guest, scenario, look: None };
        let failed =
            [("trixie", "demo"), ("sid", "5eac51a"), ("external", "demo"), ("trixie", "many")].map(of);
        let installed = [("nixos", "demo")].map(of);
        let look = Some("cycle 2: umount fails");
        assert_eq!(
            next([Failed { guest: "trixie", scenario: "demo", look }].into_iter(), &[]),
            "to look into it: cargo xtask shell demo --at 'cycle 2: umount fails'\n"
        );
        assert_eq!(
            next(installed.into_iter(), &[]),
            "to look into it: cargo xtask shell --image nixos --guest DIR demo\n"
        );
        let expected = "to look into it: cargo xtask shell /tmp/demo\n\
                        to look into it: cargo xtask shell --image sid 5eac51a\n\
                        to look into it: cargo xtask shell --kernel FILE --modules DIR --root FILE /tmp/demo\n";
        assert_eq!(next(failed.into_iter(), &["/tmp/demo".to_owned()]), expected);
    }
}
