//! A planted race is found that repetition never shows, told with a line that makes it again, and not found where it is mended.
//!
//! A check has time for one of them. `VM_TESTS_ALL=1` has all those of docs/explore.md's table found, each by its strategy and within
//! its budget, prints that table, and repeats one of them as often as its text says; and the product's scenarios with two clients searched.

#[path = "support/all.rs"]
mod all;
#[path = "../src/left4me.rs"]
mod left4me;
#[path = "support/trial.rs"]
mod trial;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Arguments;
use vm_agent::recording::{Event, Recording, Step, What};
use vm_perturb::Line;
use vm_tests::explore::found::{Explored, Outcome};
use vm_tests::explore::strategy::Strategy;
use vm_tests::explore::{self, Options, Replayed};
use vm_tests::host::accel::{self, Clock};
use vm_tests::machine::Cancel;
use vm_tests::run::guest::Guest;
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::run::repro::Repro;
use vm_tests::scenario::{Scenario, Wanted};

use all::has_time_for_all;
use trial::trial;

/// Enough for the first hold that shows it, with a few to spare: points come in the order of the run.
const RUNS: usize = 10;

/// The planted races, what finds each, and within how many runs.
const PLANTED: &[(&str, Strategy, usize)] = &[
    ("late-child", Strategy::OneHold, RUNS),
    ("check-then-rm", Strategy::OneHold, 15),
    ("pid-file", Strategy::OneHold, 25),
    ("socket-and-stop", Strategy::Offsets, 20),
    ("naive-lock", Strategy::OneHold, 40),
    ("notify-early", Strategy::OneHold, 8),
    ("post-and-late", Strategy::OneHold, 6),
    ("missing-after", Strategy::OneHold, 6),
    ("reload-returns-early", Strategy::OneHold, 8),
    ("stop-in-start", Strategy::Offsets, 18),
    ("bind-then-listen", Strategy::OneHold, 6),
    ("exec-stop-does-not-wait", Strategy::OneHold, 12),
    ("fifo-writer", Strategy::OneHold, 6),
    ("flag-file", Strategy::OneHold, 8),
    ("kill-process-left", Strategy::OneHold, 6),
    ("lost-update", Strategy::OneHold, 25),
    ("mount-seen-early", Strategy::OneHold, 8),
    ("rename-in-two", Strategy::OneHold, 20),
    ("restart-old-pid", Strategy::OneHold, 20),
    ("type-simple", Strategy::OneHold, 8),
    ("two-savers", Strategy::Pairs, 80),
    ("two-savers", Strategy::Pct, 100),
    ("late-child", Strategy::Random, 40),
];

/// Where nothing fails, however it is held: controls, and the product with two people at it. A budget is each point at the longest
/// length, or 20 of the second client's offsets, at which outcomes differ most.
const RIGHT: &[(&str, Strategy, usize)] = &[
    ("child-is-waited-for", Strategy::OneHold, 18),
    ("start-beside-stop", Strategy::Offsets, 20),
    ("product-start-beside-reset", Strategy::Offsets, 20),
    ("product-reset-beside-start", Strategy::Offsets, 20),
    ("product-two-resets", Strategy::Offsets, 20),
    ("product-crash-beside-reset", Strategy::Offsets, 20),
    ("product-start-beside-destroy", Strategy::Offsets, 20),
    ("product-reexec-beside-reset", Strategy::Offsets, 10),
    ("product-reload-beside-reset", Strategy::Offsets, 10),
];

/// How often one of them is repeated with nothing held.
const REPETITIONS: usize = 100;

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let mut cases = vec![trial("a-child-that-leaves-late", a_child_that_leaves_late)];
    if has_time_for_all() {
        cases.extend(PLANTED.iter().map(|(name, strategy, runs)| {
            let called = format!("{name}-{}", strategy.word());
            trial(&called, async |scratch: &Path| found(name, *strategy, *runs, scratch).await)
        }));
        cases.extend(RIGHT.iter().map(|(name, strategy, runs)| {
            let called = format!("{name}-{}-finds-nothing", strategy.word());
            trial(&called, async |scratch: &Path| found_nothing(name, *strategy, *runs, scratch).await)
        }));
        cases.push(trial("what-is-left-out-is-known", what_is_left_out_is_known));
        cases.push(trial("repetition-finds-nothing", repetition_finds_nothing));
    }
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

    async fn explored(&self, strategy: Strategy, runs: usize, scratch: &Path) -> Result<Explored> {
        let options = Options { runs: Some(runs), strategies: vec![strategy], ..Options::default() };
        let (workspace, Self { guest, scenario }) = (left4me::workspace()?, self);
        explore::explore(&workspace, guest, scenario, &options, scratch, Cancel::new()).await
    }

    async fn replay(&self, line: &str, scratch: &Path) -> Result<Replayed> {
        let line: Line = line.parse()?;
        let workspace = left4me::workspace()?;
        explore::replay(&workspace, &self.guest, &self.scenario, &line, scratch, Cancel::new()).await
    }
}

async fn a_child_that_leaves_late(scratch: &Path) -> Result<()> {
    let planted = Ground::of("late-child", scratch).await?;
    let workspace = left4me::workspace()?;
    let explored = planted.explored(Strategy::OneHold, RUNS, scratch).await?;
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
    let held_at = times(&again)?;
    let null = planted.replay("", scratch).await?;
    ensure!(null.why.is_empty(), "nothing was held: {:?}", null.why);
    one_up_to_the_hold((&again, &held_at), (&null, &times(&null)?))?;
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

/// When the events of a recording were, in nanoseconds, and when the phase began.
fn times(replayed: &Replayed) -> Result<(Vec<u64>, u64)> {
    let text = std::fs::read_to_string(&replayed.recording)?;
    let recording: Recording = serde_json::from_str(&text)?;
    let is_reset = |event: &&Event| event.what == What::StepBegins(Step::Reset);
    let began = recording.events.iter().find(is_reset).context("no reset")?.at;
    Ok((recording.events.iter().map(|event| event.at).collect(), began))
}

/// That the runs of two lines are one up to the first hold: what tasks came to, and all that was recorded, to the nanosecond.
fn one_up_to_the_hold(
    (held, (at, began)): (&Replayed, &(Vec<u64>, u64)),
    (null, (null_at, _)): (&Replayed, &(Vec<u64>, u64)),
) -> Result<()> {
    let passed = &held.report.passed;
    let first = passed.iter().position(|passed| passed.held_us > 0).context("nothing held")?;
    let (before, of_null) = (&passed[..first], &null.report.passed[..first]);
    ensure!(before == of_null, "before the hold tasks came to {before:?}, and with none to {of_null:?}");
    let until = began + passed[first].at_us * 1000;
    let early = |at: &[u64]| at.iter().copied().filter(|at| *at <= until).collect::<Vec<u64>>();
    ensure!(early(at) == early(null_at), "{:?} and {:?}, before {until}", early(at), early(null_at));
    ensure!(early(at).last() > Some(began), "nothing was recorded between the begin and the hold");
    Ok(())
}

/// Found within its budget, and told as a row of the table.
async fn found(name: &str, strategy: Strategy, runs: usize, scratch: &Path) -> Result<()> {
    let explored = Ground::of(name, scratch).await?.explored(strategy, runs, scratch).await?;
    ensure!(explored.ended_by.is_none(), "{:?}", explored.ended_by);
    let found = explored.outcomes.iter().find(|outcome| outcome.has_failed());
    let found = found.with_context(|| format!("not within {runs} runs: {}", explored.told()))?;
    eprintln!("{}", row(&explored, strategy, found));
    let has_bundle =
        explored.outcomes.iter().any(|outcome| outcome.has_failed() && outcome.is_whole == Some(true));
    ensure!(has_bundle, "whole runs go another way: {}", explored.told());
    Ok(())
}

/// Nothing is found, and schedules were others.
async fn found_nothing(name: &str, strategy: Strategy, runs: usize, scratch: &Path) -> Result<()> {
    let explored = Ground::of(name, scratch).await?.explored(strategy, runs, scratch).await?;
    ensure!(explored.ended_by.is_none(), "{:?}", explored.ended_by);
    ensure!(!explored.has_failed(), "{}", explored.told());
    ensure!(explored.orders > 1, "all runs were one: nothing was perturbed");
    Ok(())
}

/// As the table of docs/explore.md has it.
fn row(explored: &Explored, strategy: Strategy, found: &Outcome) -> String {
    let Explored { scenario, phase, phase_us, points, outcomes, .. } = explored;
    let failed: usize = outcomes.iter().filter(|one| one.has_failed()).map(|one| one.runs).sum();
    let tried: usize = explored.tried.values().sum();
    let (ms, first, line) = (phase_us / 1000, found.first_run, &found.line);
    format!(
        "| `{scenario}` | {phase} {ms} ms, {} | {} | {first} | {failed} of {tried} | `{line}` |",
        points.len(),
        strategy.word()
    )
}

/// Each hold that a sweep leaves out is made, and has the outcome that a longer one has shown: here that is not so of each shorter hold, as
/// one length alone fails.
async fn what_is_left_out_is_known(scratch: &Path) -> Result<()> {
    let planted = Ground::of("naive-lock", scratch).await?;
    let explored = planted.explored(Strategy::EachLength, usize::MAX, scratch).await?;
    let Explored { points, held, thought, .. } = &explored;
    ensure!(explored.has_failed(), "it was not found: {}", explored.told());
    ensure!(held.values().all(|count| *count == points.len()), "not each length: {}", explored.told());
    ensure!(thought.wrongly.is_empty(), "another outcome: {}", explored.told());
    ensure!(thought.rightly > points.len(), "next to none would be left out: {}", explored.told());
    Ok(())
}

async fn repetition_finds_nothing(scratch: &Path) -> Result<()> {
    let planted = Ground::of("late-child", scratch).await?;
    let (workspace, line) = (left4me::workspace()?, Line::default());
    let Ground { guest, scenario } = &planted;
    // Each is made twice: by itself, and beside others.
    let half = REPETITIONS / 2;
    let cancel = Cancel::new();
    let replays = explore::replays(&workspace, guest, scenario, &line, half, scratch, cancel).await?;
    ensure!(replays.recordings == 1, "{} recordings of {REPETITIONS} runs", replays.recordings);
    let one = planted.replay("", scratch).await?;
    ensure!(one.why.is_empty(), "the one run of {REPETITIONS} fails: {:?}", one.why);
    Ok(())
}
