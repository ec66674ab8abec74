//! What a search for races costs: a run, many of them at once, a whole sweep, a failing line made again and made smaller.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use vm_perturb::Line;
use vm_tests::bench::{Row, Samples, Unit};
use vm_tests::explore::strategy::Strategy;
use vm_tests::explore::{self, Options};
use vm_tests::machine::Cancel;
use vm_tests::run::guest::Guest;
use vm_tests::scenario::{Scenario, Wanted};
use vm_tests::workspace::Workspace;

use super::counts::What;
use super::rows::target;
use crate::left4me;

/// A planted race, how many lines are tried until it is found, and one that fails.
const PLANTED: &str = "xtask/tests/explore/late-child";
const RUNS: usize = 10;
const FAILS: &str = "sleep:SIGTERM=60ms";
/// Whose reset is swept: the units as they are shipped.
const SHIPPED: &str = "overlay-unit";

/// Takes all samples, a failing line being made again `count` times one by one and as often side by side; gives rows as far as it comes.
///
/// # Errors
/// Those of a search; a race that is not found.
pub(super) async fn measure(
    workspace: &Workspace,
    guest: &Guest,
    count: usize,
    directory: &Path,
    cancel: Cancel,
    rows: &mut Vec<Row>,
) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let planted = scenario(workspace, PLANTED)?;
    let line: Line = FAILS.parse()?;
    eprintln!("explore: a failing line, {count} times and {count} times");
    let replays =
        explore::replays(workspace, guest, &planted, &line, count, directory, cancel.clone()).await?;
    #[expect(clippy::cast_precision_loss, reason = "a benchmark has far fewer runs than 2^52")]
    let [count, recordings] = [count, replays.recordings].map(|number| number as f64);
    let made = format!("recordings of a failing line, made {} times", 2.0 * count);
    rows.extend([
        of("a run (processor time)", Unit::Seconds, Samples(replays.processor_secs)).target(target::EXPLORED),
        of("runs at once, / their number", Unit::Seconds, one(replays.at_once_secs / count))
            .target(target::EXPLORED_AT_ONCE),
        of(&made, Unit::Count, one(recordings)).target(1.0),
    ]);

    eprintln!("explore: the search for it");
    let options = Options { runs: Some(RUNS), strategies: vec![Strategy::OneHold], ..Options::default() };
    let found = explore::explore(workspace, guest, &planted, &options, directory, cancel.clone()).await?;
    let smaller: Samples = found
        .outcomes
        .iter()
        .filter(|outcome| outcome.has_failed())
        .map(|outcome| outcome.smaller_secs)
        .collect();
    ensure!(!smaller.0.is_empty(), "{PLANTED}: not found:\n{}", found.told());
    rows.push(of("a failing line made smaller", Unit::Seconds, smaller).target(target::SMALLER));

    let shipped = scenario(workspace, SHIPPED)?;
    eprintln!("explore: a sweep of {SHIPPED}");
    let options = Options { strategies: vec![Strategy::OneHold], ..Options::default() };
    let swept = explore::explore(workspace, guest, &shipped, &options, directory, cancel).await?;
    ensure!(swept.ended_by.is_none() && !swept.is_interrupted, "{SHIPPED}: {}", swept.told());
    let tried: usize = swept.tried.values().sum();
    let row = of(&format!("sweep of {SHIPPED}'s reset, {tried} runs"), Unit::Seconds, one(swept.took_secs));
    rows.push(row.target(target::SWEEP));
    Ok(())
}

/// These sizes of machines, and that of the sweep's if it is asked for.
pub(super) fn and_its(sizes: &[u32], what: &[What]) -> Result<Vec<Wanted>> {
    let is_asked_for = what.contains(&What::Explore);
    let own = is_asked_for.then(|| scenario(&left4me::workspace()?, SHIPPED)).transpose()?;
    let own = own.map(|scenario| scenario.manifest.memory_mib);
    Ok(sizes.iter().copied().chain(own).map(Wanted::of_size).collect())
}

fn of(what: &str, unit: Unit, samples: Samples) -> Row {
    Row::new("explore", what, unit, samples)
}

fn one(value: f64) -> Samples {
    Samples(vec![value])
}

fn scenario(workspace: &Workspace, name: &str) -> Result<Scenario> {
    let path = workspace.root.join(name);
    let named = if path.exists() { path.display().to_string() } else { name.to_owned() };
    workspace.scenarios(&[named])?.pop().context("no scenario")
}
