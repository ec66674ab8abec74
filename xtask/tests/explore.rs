//! A planted race is found that repetition never shows, told with a line that makes it again, and not found where it is mended.
//!
//! `xtask/tests/explore` has more of them, which docs/explore.md has measurements of: here is what a check has time for.

#[path = "../src/left4me.rs"]
mod left4me;
#[path = "support/trial.rs"]
mod trial;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Arguments;
use vm_perturb::Line;
use vm_tests::explore::found::Outcome;
use vm_tests::explore::strategy::Strategy;
use vm_tests::explore::{self, Options, Replayed};
use vm_tests::host::accel::{self, Clock};
use vm_tests::machine::Cancel;
use vm_tests::run::guest::Guest;
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::run::repro::Repro;
use vm_tests::scenario::{Scenario, Wanted};

use trial::trial;

/// Enough for the first hold that shows it, with a few to spare: points come in the order of the run.
const RUNS: usize = 10;

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let cases = vec![trial("a-child-that-leaves-late", a_child_that_leaves_late)];
    libtest_mimic::run(&arguments, cases).exit_code()
}

/// A scenario that is explored here, and its guest.
struct Ground {
    guest: Guest,
    scenario: Scenario,
}

impl Ground {
    async fn of(name: &str, scratch: &Path) -> Result<Self> {
        let workspace = left4me::workspace()?;
        let path = workspace.root.join("xtask/tests/explore").join(name);
        let path = path.to_str().context("a path as text")?.to_owned();
        let scenario = workspace.scenarios(&[path])?.pop().context("a scenario")?;
        let machines = Machines { clock: Some(Clock::Virtual), ..Machines::default() };
        let wanted = Wanted::by(std::slice::from_ref(&scenario));
        let guest = prepare_one(&workspace, &machines, &wanted, scratch, Cancel::new()).await?;
        Ok(Self { guest, scenario })
    }

    async fn replay(&self, line: &str, scratch: &Path) -> Result<Replayed> {
        let line: Line = line.parse()?;
        let workspace = left4me::workspace()?;
        explore::replay(&workspace, &self.guest, &self.scenario, &line, scratch, Cancel::new()).await
    }
}

async fn a_child_that_leaves_late(scratch: &Path) -> Result<()> {
    let planted = Ground::of("late-child", scratch).await?;
    let options = Options { runs: Some(RUNS), strategies: vec![Strategy::OneHold], ..Options::default() };
    let workspace = left4me::workspace()?;
    let cancel = Cancel::new();
    let explored =
        explore::explore(&workspace, &planted.guest, &planted.scenario, &options, scratch, cancel).await?;
    let failures: Vec<&Outcome> = explored.outcomes.iter().filter(|outcome| outcome.has_failed()).collect();
    let [found] = failures.as_slice() else { bail!("it was not found once:\n{}", explored.told()) };
    ensure!(found.why.iter().any(|why| why.contains("EBUSY")), "{:?}", found.why);
    let line: Line = found.line.parse()?;
    let [hold] = line.holds.as_slice() else { bail!("not one hold: {}", found.line) };
    ensure!((hold.point.task.as_str(), hold.point.event.as_str()) == ("sleep", "SIGTERM"), "{}", found.line);
    ensure!(explored.orders > 1, "all runs were one: nothing was perturbed");

    // Again, the same; and with nothing held, as expected.
    let again = planted.replay(&found.line, scratch).await?;
    ensure!(again.recording_sha256 == found.recording_sha256, "{}: another recording", found.line);
    let null = planted.replay("", scratch).await?;
    ensure!(null.why.is_empty(), "nothing was held: {:?}", null.why);
    let nowhere = planted.replay("nobody:exit=5ms", scratch).await;
    let error = nowhere.err().context("a hold that nobody comes to is no run")?.to_string();
    ensure!(error.contains("nothing was held"), "{error}");

    // A whole run with the line goes wrong in the same way: handed over, and kept as a scenario.
    let bundle = found.bundle.as_ref().context("no bundle")?;
    let repro = Repro::read(bundle)?;
    let replayed = repro.replay(&planted.guest, &scratch.join("repro"), Cancel::new()).await?;
    ensure!(replayed.recording_sha256 == repro.recording_sha256, "the bundle's run is another");
    ensure!(
        found.is_whole == Some(true) && found.look.as_deref().is_some_and(|at| at.contains("umount fails")),
        "{found:?}"
    );
    let kept = scratch.join("kept");
    let Ground { guest, scenario } = &planted;
    let same = explore::keep(&workspace, guest, scenario, &line, &again, &kept, Cancel::new()).await?;
    ensure!(same && Scenario::load(&kept)?.manifest.explore.holds == line, "kept as another");

    // Where the main process waits for its child, the same hold does nothing.
    let mended = Ground::of("child-is-waited-for", scratch).await?;
    let same = mended.replay(&line.to_string(), scratch).await?;
    ensure!(same.why.is_empty(), "the mended one fails: {:?}", same.why);
    Ok(())
}
