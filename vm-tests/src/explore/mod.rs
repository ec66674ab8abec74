//! One phase of a scenario, again and again from one moment, each time with another schedule; each run is judged as any other.
//!
//! In virtual time a scenario gives the same run for ever, so a race that does not show in that one never shows. Here tasks are
//! held at points of their run, on purpose ([`vm_perturb`]): [`strategy`] says which lines are tried, `ground` makes a run of
//! one, `ahead` makes some at once, `longer` knows which would be no others, [`found`] collects what came, `told` says it and [`page`]
//! draws it. docs/explore.md describes it.

mod ahead;
mod draws;
pub mod found;
mod ground;
mod kept;
mod least;
mod longer;
pub mod page;
pub mod strategy;
mod told;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vm_perturb::Line;

use crate::cache;
use crate::host::events::{self, Event, Progress};
use crate::host::process::is_interrupt;
use crate::host::{cores, processor};
use crate::machine::Cancel;
use crate::run::guest::Guest;
use crate::run::jobs::jobs;
use crate::run::pace::about;
use crate::scenario::{Scenario, WrongInput};
use crate::workspace::Workspace;

use ahead::{Ahead, Runs};
use found::{Explored, Found};
pub use ground::check;
use ground::{Ground, Tried, Whole};
use kept::alike;
pub use kept::{Replayed, keep};
use least::{Runner, least};
pub use strategy::Options;
use strategy::{Strategy, lines};

/// How many runs may hold nobody, however few held somebody.
const IDLE: usize = 5;
/// How often what is going on is told where nothing is found.
const QUIET: Duration = Duration::from_secs(10);

/// Explores a scenario. What it finds is no error: see [`Explored::has_failed`].
///
/// # Errors
/// A scenario that can't be explored: [`WrongInput`]. Of the first two runs, what keeps them from having a result. Later an interrupt,
/// a run without a result or one in which nothing was perturbed ends the search: what was found until then is returned, with the error.
pub async fn explore(
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    options: &Options,
    results: &Path,
    cancel: Cancel,
) -> Result<Explored> {
    let begun = Instant::now();
    let ground = Ground::prepare(workspace, guest, scenario, results, cancel).await?;
    let size = u64::from(scenario.manifest.memory_mib);
    let jobs = options.jobs.unwrap_or_else(|| jobs(vec![size; cores()]));
    let mut runs = Runs::new(ground, jobs);
    let progress = Progress::start(&format!("exploring {}/{}", guest.name, scenario.name));
    let (prepared, used) = (Instant::now(), processor::used()?);
    let (null, took_us) = controls(&mut runs, scenario).await?;
    let found = Explored::new(workspace, guest, scenario, took_us, options.seed, &null);
    let lines = lines(options, &found.points, took_us, !scenario.manifest.explore.client.is_empty());
    let now = Instant::now();
    let mut search =
        Search { runs, found, options, results, progress, left: lines.len(), begun, since: now, told: now };
    let went = search.all(&lines).await;
    let Search { runs, mut found, .. } = search;
    runs.clear()?;
    match went {
        Err(error) if is_interrupt(&error) => found.is_interrupted = true,
        // Hours of runs are not lost for one that a busy host has not ended in time.
        Err(error) => found.ended_by = Some(format!("{error:#}")),
        Ok(()) => {}
    }
    found.took_secs = prepared.elapsed().as_secs_f64();
    found.processor_secs = processor::used()?.saturating_sub(used).as_secs_f64();
    found.jobs = jobs;
    found.runs_with_controls = runs.taken();
    Ok(found)
}

/// A search that goes on.
struct Search<'a> {
    runs: Runs,
    found: Explored,
    options: &'a Options,
    results: &'a Path,
    progress: Progress,
    /// How many lines are known that are to be tried.
    left: usize,
    begun: Instant,
    since: Instant,
    told: Instant,
}

impl Search<'_> {
    /// Tries lines until they, the time or the number of runs are over.
    async fn all(&mut self, lines: &[(Strategy, Line)]) -> Result<()> {
        for (strategy, mut lines) in strategy::steps(lines) {
            match strategy {
                _ if self.is_over() => break,
                Strategy::OneHold => {
                    let all = lines.len();
                    lines.retain(|line| !self.found.leaves_out(line));
                    self.left = self.left.saturating_sub(all - lines.len());
                    self.batch(strategy, lines).await?;
                }
                Strategy::Offsets => {
                    self.batch(strategy, lines).await?;
                    self.closer().await?;
                }
                _ => self.batch(strategy, lines).await?,
            }
        }
        Ok(())
    }

    /// Looks where between two offsets the outcome changes: all such places in turn, until none is left.
    async fn closer(&mut self) -> Result<()> {
        loop {
            let between = strategy::between(&self.found.offsets);
            if between.is_empty() || self.is_over() {
                return Ok(());
            }
            self.left += between.len();
            let line = |client_us| Line { client_us, holds: Vec::new() };
            self.batch(Strategy::Offsets, between.into_iter().map(line).collect()).await?;
        }
    }

    fn is_over(&self) -> bool {
        let Options { time, runs, .. } = self.options;
        time.is_some_and(|time| self.begun.elapsed() >= time)
            || runs.is_some_and(|runs| self.found.lines_tried() >= runs)
    }

    /// Tries these lines, as far as there are time and runs.
    async fn batch(&mut self, strategy: Strategy, mut lines: Vec<Line>) -> Result<()> {
        if let Some(runs) = self.options.runs {
            lines.truncate(runs.saturating_sub(self.found.lines_tried()));
        }
        let mut ahead = self.runs.ahead(lines);
        let went = self.one_by_one(strategy, &mut ahead).await;
        ahead.end().await;
        went
    }

    async fn one_by_one(&mut self, strategy: Strategy, ahead: &mut Ahead) -> Result<()> {
        let (time, begun) = (self.options.time, self.begun);
        let goes_on = || time.is_none_or(|time| begun.elapsed() < time);
        while let Some((line, tried)) = self.runs.next(ahead, goes_on).await? {
            match tried {
                Some(tried) => self.take(strategy, &line, &tried).await?,
                None => self.nothing_held(&line)?,
            }
        }
        Ok(())
    }

    /// Takes note of a line that has held nobody: where somebody else is held first or the second client is moved, tasks go other ways,
    /// and two that are as good as simultaneous have each other's numbers. If that is the rule, nothing is searched.
    fn nothing_held(&mut self, line: &Line) -> Result<()> {
        self.found.idle += 1;
        self.left = self.left.saturating_sub(1);
        let most = self.found.lines_tried().max(IDLE);
        ensure!(self.found.idle <= most, "in {} runs {}", self.found.idle, ground::idle(line));
        Ok(())
    }

    /// Takes the result of a line.
    async fn take(&mut self, strategy: Strategy, line: &Line, tried: &Tried) -> Result<()> {
        if let Found::Failure(class) = self.found.add(strategy, line, tried) {
            let first = self.found.told_of(class);
            events::tell(Event::Note(format!("{first}\n  making it smaller")));
            let begun = Instant::now();
            let directory = self.results.join(format!("failure-{}", class + 1));
            let failure = tried.clone();
            let mut like = Like { runs: &mut self.runs, failure, directory: directory.join("run") };
            let least = least(&mut like, line.clone(), tried.clone()).await?;
            let (look, bundle) = match &least.whole {
                Some(whole) => (whole.look(), whole.write(&self.options.commit, &directory)?),
                None => (None, None),
            };
            self.found.minimised(class, &least.line, &least.tried);
            self.found.took_to_minimise(class, begun.elapsed());
            self.found.handed_over(class, &least, look, bundle);
            write(&self.found.told_of(class), &directory, &least.tried)?;
        }
        self.left = self.left.saturating_sub(1);
        if self.told.elapsed() >= QUIET {
            self.told = Instant::now();
            self.tell();
        }
        Ok(())
    }

    fn tell(&self) {
        let Options { time, runs, .. } = self.options;
        let tried = self.found.lines_tried();
        let left = runs.map_or(self.left, |runs| self.left.min(runs.saturating_sub(tried)));
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let needed = self.since.elapsed() / number(tried).max(1) * number(left);
        let needed = time.map_or(needed, |time| needed.min(time.saturating_sub(self.begun.elapsed())));
        self.progress.now(&format!("{}, {} left", self.found.so_far(tried, tried + left), about(needed)));
    }
}

/// Makes the run of one line.
///
/// # Errors
/// As [`explore`].
pub async fn replay(
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    line: &Line,
    results: &Path,
    cancel: Cancel,
) -> Result<Replayed> {
    let ground = Ground::prepare(workspace, guest, scenario, results, cancel).await?;
    let tried = ground.run(line).await?;
    let recording = results.join("recording.json");
    std::fs::write(&recording, &tried.text).with_context(|| format!("write {}", recording.display()))?;
    let (why, allowed) = (tried.why.clone(), tried.allowed.clone());
    let words = words::in_words(line, &tried.report.passed);
    Ok(Replayed {
        why,
        shape: tried.shape,
        words,
        allowed,
        recording_sha256: tried.recording_sha256,
        report: tried.report,
        recording,
    })
}

/// The runs of one line, so many, as [`replays`] makes them.
#[derive(Debug, Clone, Default)]
pub struct Replays {
    /// Processor time of each, in seconds.
    pub processor_secs: Vec<f64>,
    /// How many recordings came that are not each other's.
    pub recordings: usize,
    /// Wall time of as many, as many at once as the host bears.
    pub at_once_secs: f64,
}

/// Makes the run of one line so many times, one after the other, and as many again side by side.
///
/// # Errors
/// As [`explore`].
pub async fn replays(
    workspace: &Workspace,
    guest: &Guest,
    scenario: &Scenario,
    line: &Line,
    count: usize,
    results: &Path,
    cancel: Cancel,
) -> Result<Replays> {
    let ground = Ground::prepare(workspace, guest, scenario, results, cancel).await?;
    let size = u64::from(scenario.manifest.memory_mib);
    let mut runs = Runs::new(ground, jobs(vec![size; cores()]));
    let mut recordings = BTreeSet::new();
    let mut processor_secs = Vec::new();
    for _ in 0..count {
        let before = processor::used()?;
        recordings.insert(runs.run(line).await?.recording_sha256);
        processor_secs.push(processor::used()?.saturating_sub(before).as_secs_f64());
    }
    let begun = Instant::now();
    let mut ahead = runs.ahead(vec![line.clone(); count]);
    while let Some((line, tried)) = runs.next(&mut ahead, || true).await? {
        let tried = tried.with_context(|| ground::idle(&line))?;
        recordings.insert(tried.recording_sha256);
    }
    let at_once_secs = begun.elapsed().as_secs_f64();
    ahead.end().await;
    runs.clear()?;
    Ok(Replays { processor_secs, recordings: recordings.len(), at_once_secs })
}

/// Two runs in which nothing is held: without the tracer, which must be as expected, and with it, which must give the same, or with a
/// second client what is allowed: that client perturbs by itself.
async fn controls(runs: &mut Runs, scenario: &Scenario) -> Result<(Tried, u64)> {
    let plain = runs.plain().await.context("the run that nothing perturbs")?;
    if !plain.shape.is_empty() {
        return Err(WrongInput::new(format!(
            "{} is not explored: its run is not as its manifest expects, although nothing perturbs it: {}",
            scenario.name,
            plain.why.join("; ")
        ))
        .into());
    }
    let null = runs.run(&Line::default()).await.context("the run that is traced, and nothing held")?;
    if null.shape != plain.shape && (scenario.manifest.explore.client.is_empty() || null.has_failed()) {
        bail!(
            "{}: a run that is traced gives another outcome although nothing is held, so nothing can be said of held ones: {}",
            scenario.name,
            null.why.join("; ")
        );
    }
    ensure!(!null.report.passed.is_empty(), "{}: no task came to a point", scenario.name);
    let took_us = null.report.took_us.context("the run that is traced did not end in time")?;
    // A second client can end the phase early.
    Ok((null, took_us.max(plain.phase_us)))
}

/// Runs that are compared with a failure.
struct Like<'a> {
    runs: &'a mut Runs,
    failure: Tried,
    /// Where a whole run's machine leaves its logs.
    directory: PathBuf,
}

impl Runner for Like<'_> {
    type Tried = Tried;
    type Whole = Whole;

    async fn search(&mut self, line: &Line) -> Result<Option<Tried>> {
        let tried = self.runs.try_to_run(line).await?;
        Ok(tried.filter(|tried| tried.outcome() == self.failure.outcome()))
    }

    async fn whole(&mut self, line: &Line) -> Result<Option<Whole>> {
        cache::remove_tree(&self.directory)?;
        let whole = self.runs.whole(line, &self.directory).await?;
        Ok(Some(whole).filter(|whole| alike(&whole.shape(), &self.failure.shape)))
    }
}

/// Keeps a failure: as it was told, its recording, and where its tasks came by.
fn write(told: &str, directory: &Path, tried: &Tried) -> Result<()> {
    let what = || format!("write {}", directory.display());
    std::fs::create_dir_all(directory).with_context(what)?;
    std::fs::write(directory.join("recording.json"), &tried.text).with_context(what)?;
    let points = serde_json::to_vec_pretty(&tried.report).context("a report as JSON")?;
    std::fs::write(directory.join("points.json"), points).with_context(what)?;
    std::fs::write(directory.join("failure.txt"), format!("{told}\n")).with_context(what)
}
