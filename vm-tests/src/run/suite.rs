//! The suite: each scenario on each guest, some of them side by side. What `cargo xtask vm-test` does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::accept::{First, accept};
use super::costs::Costs;
use super::guest::Guest;
use super::jobs::jobs;
use super::left_out::{not_run, other_cycles, those_for};
use super::one::{self, Bounds};
use super::pace::{Pace, about};
use super::part::{Breadth, Part};
use super::prepare::{Machines, make_sure, prepare};
use super::recall::{self, Again, Asked, Known};
use super::remembered::Store;
use super::repro::{self, Keep};
use super::results::{REPORT_FILE, Results};
use super::shard::Shard;
use crate::host::events::{self, Event};
use crate::host::signals::Interrupted;
use crate::image::Suite;
use crate::judge::baselines::Baselines;
use crate::machine::Cancel;
use crate::report::page::{self, PAGE_FILE};
use crate::report::{self, Report, ScenarioReport};
use crate::scenario::{self, Scenario, Wanted};
use crate::workspace::Workspace;

/// How long the machines may take to end after an interrupt: each step of a machine's stop is bounded by 3 s, its evidence
/// by 20 s.
const STOP_GRACE: Duration = Duration::from_secs(40);

/// None has ended for so long: then it is told what runs.
const QUIET: Duration = Duration::from_secs(30);

/// How the suite is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// On which machines.
    pub machines: Machines,
    /// How many cycles, how long.
    pub bounds: Bounds,
    /// How many machines run side by side; `None` is what cores and memory bear.
    pub jobs: Option<usize>,
    /// Where the results go; `None` is `vm-test` in the target directory.
    pub results: Option<PathBuf>,
    /// Which runs whose recording is remembered are run all the same.
    pub again: Again,
    /// Which part of the suite is run; `None` is all of it.
    pub shard: Option<Shard>,
    /// On how many of the machines a scenario is run.
    pub breadth: Breadth,
    /// Which runs are handed over as a bundle.
    pub keep: Keep,
    /// How many cycles at most a run has that is not remembered, for whoever wants no verdict on it; `None` is all.
    pub cycles_of_unknown: Option<u32>,
}

/// A suite that has run.
#[derive(Debug, Clone)]
pub struct Ran {
    /// All that was measured, and the verdicts.
    pub report: Report,
    /// Where the report was written.
    pub path: PathBuf,
    /// On what it has run.
    pub guests: Vec<Guest>,
}

/// Prepares all that is not there, runs the scenarios, and writes the report. `cancel` turns true when the user interrupts:
/// the machines are ended then, and what they did not get to is reported as interrupted.
///
/// # Errors
/// [`WrongInput`](scenario::WrongInput) for a number of cycles that none of them can have, for more shards than runs, and for
/// machines that are for none of them; those of the preparation, and of writing the report. A scenario that fails or has no result is no error: see
/// [`Report::verdict`].
pub async fn run(
    workspace: &Workspace,
    scenarios: &[Scenario],
    options: &Options,
    cancel: Cancel,
) -> Result<Ran> {
    let scenarios = &those_for(workspace, &options.machines, scenarios)?;
    let (mut prepared, results) = ready(workspace, scenarios, options, cancel.clone()).await?;
    let store = Store::open(&workspace.cache()?)?;
    let mut trials = prepared.plan.trials(&prepared.guests, scenarios)?;
    let recall = |trials: &[Trial]| {
        let asked: Vec<_> = trials.iter().map(Trial::asked).collect();
        recall::recall(&asked, store.as_ref(), options.again)
    };
    let mut known = recall(&trials)?;
    if let Some(most) = options.cycles_of_unknown {
        let unknown = trials.iter_mut().zip(&known.of_trials).filter(|(_, known)| known.is_none());
        unknown.for_each(|(trial, _)| trial.shorten(most));
        // The shorter run is another one, and may be remembered.
        known = recall(&trials)?;
    }
    // What is made anew lies where the trials look for it.
    prepared.make_sure(&known.machines, &workspace.cache()?, cancel.clone()).await?;
    prepared.write()?;
    let path = results.directory.join(REPORT_FILE);
    let costs = Costs::load(&workspace.scenario_roots)?;
    for (trial, known) in trials.iter_mut().zip(known.of_trials) {
        (trial.known, trial.store) = (known, store.clone());
        trial.keep = options.keep.clone();
        // Idle time of a guest costs nothing, so this says more.
        if let Some(tenths) = costs.of(&trial.guest.name, &trial.scenario.name) {
            trial.expected_secs = Duration::from_millis(tenths * 100).as_secs_f64();
        }
    }
    let mut pace = Pace::of(trials.iter().map(|trial| trial.directory.as_path()));
    for (number, known) in
        trials.iter().enumerate().filter_map(|(number, trial)| Some((number, trial.known.as_ref()?)))
    {
        let took = if known.again { known.remembered.about.took_ms } else { 0 };
        pace.known(number, Duration::from_millis(took));
    }
    results.forget(trials.iter().map(|trial| trial.directory.as_path()))?;
    let sizes = trials.iter().map(|trial| u64::from(trial.scenario.manifest.memory_mib)).collect();
    let jobs = options.jobs.unwrap_or_else(|| jobs(sizes));
    let mut report = Report::new(&prepared.guests, run_all(trials, pace, jobs, cancel).await)?;
    report.shard = prepared.plan.part.as_ref().and_then(|part| part.share);
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", path.display()))?;
    let page = results.directory.join(PAGE_FILE);
    std::fs::write(&page, page::index(&report)).with_context(|| format!("write {}", page.display()))?;
    Ok(Ran { report, path, guests: prepared.guests })
}

/// Prepares all that is not there, and runs nothing: for whoever runs the tests of what is prepared with a runner of his own.
/// Returns where `prepared.json` is.
///
/// # Errors
/// Those of [`run`].
pub async fn prepare_only(
    workspace: &Workspace,
    scenarios: &[Scenario],
    options: &Options,
    cancel: Cancel,
) -> Result<PathBuf> {
    let scenarios = &those_for(workspace, &options.machines, scenarios)?;
    let (mut prepared, _results) = ready(workspace, scenarios, options, cancel.clone()).await?;
    let sizes =
        |(number, guest): (usize, &Guest)| guest.saved.keys().map(|size| (number, *size)).collect::<Vec<_>>();
    let machines = prepared.guests.iter().enumerate().flat_map(sizes).collect();
    prepared.make_sure(&machines, &workspace.cache()?, cancel).await?;
    prepared.write()
}

/// The guests of a suite, or of the part of it that is asked for, and where its results go. Their machines are there, and were
/// not looked at.
async fn ready(
    workspace: &Workspace,
    scenarios: &[Scenario],
    options: &Options,
    cancel: Cancel,
) -> Result<(Prepared, Results)> {
    let note = other_cycles(scenarios, options.bounds.cycles)?;
    let costs = Costs::load(&workspace.scenario_roots)?;
    let part = Part::of(options.shard, options.breadth, &options.machines, scenarios, &costs)?;
    let results = match &options.results {
        Some(named) => Results::at(named).await?,
        None => Results::next_free(&workspace.target)?,
    };
    let (machines, wanted) = match &part {
        Some(part) => (part.machines(&options.machines), part.wanted(scenarios)),
        None => (options.machines.clone(), Wanted::by(scenarios)),
    };
    let guests = prepare(workspace, &machines, &wanted, &results.directory, cancel).await?;
    not_run(&guests, scenarios).into_iter().chain(note).map(Event::Note).for_each(events::tell);
    let plan = SuitePlan {
        bounds: options.bounds,
        results: results.directory.clone(),
        scenarios: scenarios.iter().map(|scenario| scenario.directory.clone()).collect(),
        part,
    };
    Ok((Prepared { guests, plan }, results))
}

/// What a suite runs on its guests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SuitePlan {
    /// Of each run.
    pub bounds: Bounds,
    /// Where the results go: a directory per guest, and in it one per scenario.
    pub results: PathBuf,
    /// The scenarios, by their directories.
    pub scenarios: Vec<PathBuf>,
    /// Which of them on which guests; `None` is all.
    #[serde(default)]
    pub part: Option<Part>,
}

/// A suite for which all is there: what `prepared.json` in the results says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// On what it runs.
    pub guests: Vec<Guest>,
    /// What it runs.
    pub plan: SuitePlan,
}

/// The variable by which a test of this suite finds the file that holds a [`Prepared`] as JSON.
pub const PREPARED_VAR: &str = "VM_TESTS_PREPARED";

impl Prepared {
    /// Reads what [`PREPARED_VAR`] names.
    ///
    /// # Errors
    /// Says which command to type where nothing is prepared.
    pub fn from_env() -> Result<Self> {
        let Some(path) = std::env::var_os(PREPARED_VAR) else {
            bail!("nothing is prepared for the VM suite: run it with `cargo xtask vm-test`");
        };
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {}: run `cargo xtask vm-test`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The names of the trials as far as they are known where nothing is prepared: of all scenarios, on the default suite.
    ///
    /// # Errors
    /// Manifests that can't be read. Whether they deploy programs that are there is another's question: the workspace's are
    /// not known here.
    pub fn names_without(scenario_roots: &[PathBuf]) -> Result<Vec<String>> {
        let scenarios = scenario::select(scenario_roots, &[], None)?;
        Ok(scenarios.iter().map(|one| format!("{}/{}", Suite::default(), one.name)).collect())
    }

    fn write(&self) -> Result<PathBuf> {
        let file = self.plan.results.join("prepared.json");
        std::fs::write(&file, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Makes machines anew that are not as they were saved: of a guest's number, of a size.
    async fn make_sure(
        &mut self,
        machines: &BTreeSet<(usize, u32)>,
        cache: &Path,
        cancel: Cancel,
    ) -> Result<()> {
        for (number, memory_mib) in machines {
            if let Some(guest) = self.guests.get_mut(*number) {
                make_sure(guest, *memory_mib, cache, cancel.clone()).await?;
            }
        }
        Ok(())
    }

    /// Each scenario on each guest, in the order of the report.
    ///
    /// # Errors
    /// A manifest or durations that can't be read.
    pub fn trials(&self) -> Result<Vec<Trial>> {
        let loaded = self.plan.scenarios.iter().map(|directory| Scenario::load(directory));
        self.plan.trials(&self.guests, &loaded.collect::<Result<Vec<Scenario>, _>>()?)
    }
}

impl SuitePlan {
    /// Of scenarios that are loaded: a manifest that somebody changes meanwhile is not what was prepared for.
    fn trials(&self, guests: &[Guest], scenarios: &[Scenario]) -> Result<Vec<Trial>> {
        let mut trials = Vec::new();
        for (number, guest) in guests.iter().cloned().map(Arc::new).enumerate() {
            let is_ours = |one: &str| self.part.as_ref().is_none_or(|part| part.has(&guest.name, one));
            for scenario in scenarios.iter().filter(|one| guest.runs(one) && is_ours(&one.name)) {
                let baselines = Baselines::load(&scenario.directory, &guest.name, guest.base.clock)?;
                let cycle = baselines.durations.map_or(0.0, |median| median.start_ms + median.reset_ms);
                trials.push(Trial {
                    expected_secs: cycle * f64::from(scenario.manifest.cycles()) / 1000.0,
                    directory: self.results.join(&guest.name).join(&scenario.name),
                    bounds: self.bounds,
                    guest: Arc::clone(&guest),
                    number,
                    scenario: scenario.clone(),
                    known: None,
                    store: None,
                    keep: Keep::default(),
                });
            }
        }
        Ok(trials)
    }
}

/// One scenario on one guest.
#[derive(Debug)]
pub struct Trial {
    guest: Arc<Guest>,
    /// The guest's place in the suite.
    number: usize,
    scenario: Scenario,
    bounds: Bounds,
    /// Gets the results.
    directory: PathBuf,
    /// What it costs the host, where that is known; else the guest time of all cycles, by the durations of an earlier run; 0 if
    /// there are none.
    pub expected_secs: f64,
    /// What is remembered of it.
    known: Option<Known>,
    /// Where its recording is kept.
    store: Option<Store>,
    /// Whether it is handed over.
    keep: Keep,
}

impl Trial {
    /// Has it end after so many cycles, if it would have more.
    fn shorten(&mut self, most: u32) {
        let cycles = self.bounds.cycles.unwrap_or_else(|| self.scenario.manifest.cycles());
        self.bounds.cycles = Some(cycles.min(most));
    }

    fn asked(&self) -> Asked<'_> {
        let Self { guest, number, scenario, bounds, .. } = self;
        Asked { guest, number: *number, scenario, bounds: *bounds }
    }

    /// `<guest>/<scenario>`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.guest.name, self.scenario.name)
    }

    /// Runs it and writes its results.
    ///
    /// It blocks, on a runtime of its own: the thread that spawns QEMU is there as long as the machine, which the
    /// parent-death signal needs.
    #[must_use]
    pub fn run(&self, cancel: Cancel) -> ScenarioReport {
        // Nothing that a panic leaves half done is looked at again.
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| self.run_and_write(cancel)));
        ran.unwrap_or_else(|_told| Err(anyhow!("the harness panicked: its message is above")))
            .unwrap_or_else(|error| ScenarioReport::of_error(&self.guest.name, &self.scenario, &error))
    }

    fn run_and_write(&self, cancel: Cancel) -> Result<ScenarioReport> {
        let Self { guest, scenario, .. } = self;
        let ran = self.run_or_recall(cancel).and_then(|mut run| {
            accept(guest, scenario, &mut run.judgement)?;
            Ok(run)
        });
        let report = match &ran {
            Ok(run) => {
                let report = ScenarioReport::of_run(&guest.name, scenario, run, &self.directory);
                let look = run.look().filter(|_| report.verdict == report::Verdict::Failed);
                ScenarioReport { first: First::of(guest, scenario, &run.judgement), look, ..report }
            }
            Err(error) => ScenarioReport {
                evidence: self.directory.clone(),
                ..ScenarioReport::of_error(&guest.name, scenario, error)
            },
        };
        if let Ok(run) = &ran {
            page::write(&self.directory, &report, &run.recording)?;
            if self.keep.all || report.verdict == report::Verdict::Failed {
                let text = serde_json::to_string_pretty(&report)?;
                let Self { bounds, keep, directory, .. } = self;
                repro::write(guest, scenario, *bounds, run, &text, &keep.commit, directory)?;
            }
        }
        // Last, so that a report that is there means that all is.
        report::write_scenario(&self.directory, &report, ran.as_ref().ok())?;
        Ok(report)
    }

    /// Runs it, or takes what is remembered for its recording.
    fn run_or_recall(&self, cancel: Cancel) -> Result<one::Run> {
        if let Some(known) = self.known.as_ref().filter(|known| !known.again) {
            return one::Run::of_known(&self.guest, &self.scenario, known.inputs.clone(), &known.remembered);
        }
        let run = self.run_on_a_runtime(cancel)?;
        if let Some(store) = &self.store {
            recall::remember(store, self.known.as_ref(), &run, &self.name(), &self.directory)?;
        }
        Ok(run)
    }

    fn run_on_a_runtime(&self, cancel: Cancel) -> Result<one::Run> {
        if cancel.is_cancelled() {
            return Err(Interrupted::default().into());
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let run = one::run(&self.guest, &self.scenario, self.bounds, &self.directory, cancel);
        let ran = runtime.block_on(run);
        runtime.shutdown_timeout(Duration::from_secs(1));
        ran
    }
}

/// Runs all, so many at once, and tells of each that has ended. The reports are in the order of the trials.
async fn run_all(trials: Vec<Trial>, mut pace: Pace, jobs: usize, cancel: Cancel) -> Vec<ScenarioReport> {
    let trials: Vec<Arc<Trial>> = trials.into_iter().map(Arc::new).collect();
    let mut reports: Vec<Option<ScenarioReport>> = vec![None; trials.len()];
    let mut waiting: Vec<(usize, &Arc<Trial>)> = trials.iter().enumerate().collect();
    // The longest first, at the end: one that began last would have the machine to itself.
    waiting.sort_by(|(_, one), (_, other)| one.expected_secs.total_cmp(&other.expected_secs));
    let mut running = JoinSet::new();
    let mut since: BTreeMap<usize, Instant> = BTreeMap::new();
    let (mut number, of) = (0, trials.len());
    let left = |pace: &Pace, waiting: &[(usize, &Arc<Trial>)], since: &BTreeMap<usize, Instant>| {
        let waiting: Vec<usize> = waiting.iter().map(|(at, _)| *at).collect();
        let running: Vec<_> = since.iter().map(|(at, begun)| (*at, begun.elapsed())).collect();
        pace.left(&waiting, &running, jobs).map(about).unwrap_or_default()
    };
    if of > 1 {
        let left = left(&pace, &waiting, &since);
        let as_before = if left.is_empty() { String::new() } else { format!(": {left}, as the last time") };
        events::tell(Event::Note(format!("{of} runs, {} at once{as_before}", jobs.min(of))));
    }
    let each_its_own = cancel.clone();
    let mut overdue = pin!(async {
        cancel.cancelled().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "a deadline beside the trials' ends, which are the events"
        )]
        tokio::time::sleep(STOP_GRACE).await;
    });
    loop {
        while running.len() < jobs
            && let Some((at, trial)) = waiting.pop()
        {
            let (trial, cancel) = (Arc::clone(trial), each_its_own.clone());
            since.insert(at, Instant::now());
            running.spawn_blocking(move || (at, Instant::now(), trial.run(cancel)));
        }
        let ended = tokio::select! {
            ended = timeout(QUIET, running.join_next()) => ended,
            () = &mut overdue => Ok(None),
        };
        let Ok(ended) = ended else {
            let left = left(&pace, &waiting, &since);
            let name = |at: usize| trials.get(at).map(|trial| trial.name()).unwrap_or_default();
            let running = since.iter().map(|(at, begun)| (name(*at), begun.elapsed())).collect();
            events::tell(Event::Still { running, number, of, left });
            continue;
        };
        let Some(ended) = ended else { break };
        if let Ok((at, begun, report)) = ended {
            number += 1;
            since.remove(&at);
            pace.ended(at, &report);
            events::tell(Event::Finished {
                test: format!("{}/{}", report.guest, report.name),
                verdict: report.verdict.words(),
                recording: report.recording(),
                took: begun.elapsed(),
                number,
                of,
                left: left(&pace, &waiting, &since),
            });
            if let Some(place) = reports.get_mut(at) {
                *place = Some(report);
            }
        }
    }
    let without = |trial: &Trial| {
        let error = anyhow::Error::from(Interrupted::default())
            .context(format!("its machine did not end within {} s", STOP_GRACE.as_secs()));
        ScenarioReport::of_error(&trial.guest.name, &trial.scenario, &error)
    };
    trials.iter().zip(reports).map(|(trial, report)| report.unwrap_or_else(|| without(trial))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::saved::MANIFEST;
    use crate::report::Verdict;
    use crate::scenario::samples::MINIMAL;

    /// A suite whose QEMU is a program that ends at once.
    fn without_qemu(directory: &Path, scenarios: &[&str]) -> Prepared {
        let scenarios: Vec<PathBuf> = scenarios.iter().map(|name| directory.join(name)).collect();
        for scenario in &scenarios {
            std::fs::create_dir(scenario).expect("mkdir");
            std::fs::write(scenario.join("scenario.toml"), MINIMAL).expect("write");
        }
        let mut guest = crate::run::inputs::tests::guest();
        let machine = directory.join("machine");
        std::fs::create_dir(&machine).expect("mkdir");
        std::fs::write(machine.join(MANIFEST), "{}").expect("write");
        guest.saved.values_mut().for_each(|saved| saved.state = machine.join("state"));
        let plan = SuitePlan {
            bounds: Bounds::default(),
            results: directory.join("results"),
            scenarios,
            part: None,
        };
        Prepared { guests: vec![guest], plan }
    }

    #[test]
    fn the_scenarios_of_a_workspace_with_programs_of_its_own_are_listed_without_them() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let names = Prepared::names_without(&[root]).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(names.contains(&"trixie/5eac51a".to_owned()), "{names:?}");
    }

    #[test]
    fn every_trial_is_reported_in_its_place() {
        let directory = tempfile::tempdir().expect("tempdir");
        let prepared = without_qemu(directory.path(), &["b", "a", "c"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let cancel = Cancel::new();
        for (words, verdict) in
            [("QEMU died: exit code 1", Verdict::Infrastructure), ("interrupted", Verdict::Interrupted)]
        {
            let trials = prepared.trials().expect("trials");
            let mut pace = Pace::of(trials.iter().map(|trial| trial.directory.as_path()));
            for (number, known) in
                trials.iter().enumerate().filter_map(|(number, trial)| Some((number, trial.known.as_ref()?)))
            {
                let took = if known.again { known.remembered.about.took_ms } else { 0 };
                pace.known(number, Duration::from_millis(took));
            }
            let reports = runtime.block_on(run_all(trials, pace, 2, cancel.clone()));
            let report = Report::new(&prepared.guests, reports).expect("a guest");
            let names: Vec<&str> = report.scenarios.iter().map(|one| one.name.as_str()).collect();
            assert_eq!((names, report.verdict()), (vec!["b", "a", "c"], verdict));
            for one in &report.scenarios {
                assert!(one.verdict == verdict && one.why.concat().contains(words), "{one:?}");
                let file = prepared.plan.results.join("trixie").join(&one.name).join("report.json");
                assert!(std::fs::read_to_string(&file).expect("read").contains(words), "{}", file.display());
            }
            cancel.cancel();
        }
    }

    #[test]
    fn a_scenario_runs_where_it_is_for_and_has_its_packages() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut prepared = without_qemu(directory.path(), &["plain", "with", "sids"]);
        let write = |name: &str, more: &str| {
            std::fs::write(directory.path().join(name).join("scenario.toml"), format!("{MINIMAL}{more}"))
                .expect("write");
        };
        write("with", "packages = [\"yy\", \"xx\"]\nimages = [\"trixie\"]");
        write("sids", "images = [\"sid\"]");
        let plain = prepared.guests[0].clone();
        let with = Guest { packages: vec!["xx".to_owned(), "yy".to_owned()], ..plain.clone() };
        let sid = Guest { name: "sid".to_owned(), ..plain.clone() };
        prepared.guests = vec![plain, with, sid];
        let names: Vec<String> = prepared.trials().expect("trials").iter().map(Trial::name).collect();
        assert_eq!(names, ["trixie/plain", "trixie/with", "sid/plain", "sid/sids"]);
        let load = |directory: &PathBuf| Scenario::load(directory).expect("a good one");
        let scenarios: Vec<Scenario> = prepared.plan.scenarios.iter().map(load).collect();
        let not = not_run(&prepared.guests, &scenarios);
        assert_eq!(
            not,
            ["sid: 1 not run, for other images: with", "trixie: 1 not run, for other images: sids"]
        );
        // Of those that machines were prepared for, whatever the files say by now.
        let changed = directory.path().join("plain/scenario.toml");
        std::fs::write(&changed, "unit = 1").expect("write");
        let trials = prepared.plan.trials(&prepared.guests, &scenarios).expect("they are loaded");
        assert_eq!(trials.iter().map(Trial::name).collect::<Vec<_>>(), names);
        std::fs::write(&changed, MINIMAL).expect("write");
        // And those of a shard alone, also for whoever reads what is prepared.
        let machines = Machines { suites: vec![Suite::Trixie, Suite::Sid], ..Machines::default() };
        let of = |shard: &str| {
            let shard = shard.parse().expect("a shard");
            let costs = Costs::default();
            let part = Part::of(Some(shard), Breadth::All, &machines, &scenarios, &costs);
            let part = part.expect("enough runs").expect("a part");
            let plan = SuitePlan { part: Some(part), ..prepared.plan.clone() };
            let text = serde_json::to_string(&Prepared { plan, ..prepared.clone() }).expect("json");
            let read: Prepared = serde_json::from_str(&text).expect("what was written");
            read.trials().expect("trials").iter().map(Trial::name).collect::<Vec<_>>()
        };
        assert_eq!(of("1/2"), ["trixie/plain", "sid/plain"]);
        assert_eq!(of("2/2"), ["trixie/with", "sid/sids"]);
        let report = Report::new(&prepared.guests, Vec::new()).expect("guests");
        assert_eq!(report.guests["trixie"], "Debian; another with xx, yy");
        prepared.guests.truncate(1);
        prepared.guests[0].name = crate::image::EXTERNAL.to_owned();
        assert_eq!(prepared.trials().expect("trials").len(), 3, "it is as it is");
    }
}
