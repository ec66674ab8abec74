//! `cargo xtask costs`: renews what runs cost, by which a suite is divided.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use vm_tests::run::costs::Costs;
use vm_tests::scenario::WrongInput;

use crate::left4me;

/// Writes vm-tests/scenarios/costs.toml, by which `vm-test --shard` divides the suite, from the results of a suite.
///
/// Takes each run that had a verdict and was not remembered (so `vm-test --fresh` gives all), and keeps what the file says of
/// the others. The results of several shards can be given at once.
#[derive(Debug, Args)]
pub(crate) struct CostsArgs {
    /// Directories of results; of a run that is in several, the last counts [default: target/vm-test]
    #[arg(value_name = "DIR")]
    results: Vec<PathBuf>,
}

pub(crate) fn run(args: &CostsArgs) -> Result<()> {
    let workspace = left4me::workspace()?;
    let usual = [workspace.target.join("vm-test")];
    let results = if args.results.is_empty() { usual.as_slice() } else { &args.results };
    let mut costs = Costs::load(&workspace.scenario_roots)?;
    let mut taken = 0;
    for directory in results {
        taken += costs.take(directory).map_err(|error| WrongInput::new(format!("{error:#}")))?;
    }
    if taken == 0 {
        let what =
            "no run there had a verdict and was not remembered: `cargo xtask vm-test --fresh` makes some";
        return Err(WrongInput::new(what).into());
    }
    let scenarios = workspace.scenarios(&[])?;
    costs.retain(&scenarios.iter().map(|one| one.name.as_str()).collect::<Vec<_>>());
    let root = workspace.scenario_roots.first().context("a directory of scenarios")?;
    println!("{}: of {taken} runs", costs.write(root)?.display());
    Ok(())
}
