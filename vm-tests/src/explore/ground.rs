//! What runs begin with: a scenario's machine up to the phase's command, all of it traced already, saved; and the run of one line
//! from there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use vm_agent::recording::{Recording, Step, StepEnd, What};
use vm_agent::wire::{Body, Put, Session};
use vm_perturb::{Line, PROGRAM, Report};

use crate::cache;
use crate::host::accel::Clock;
use crate::image::programs::{self, PERTURBER};
use crate::judge::baselines::Baselines;
use crate::judge::judge;
use crate::machine::{Cancel, Machine};
use crate::report::ScenarioReport;
use crate::run::given::Given;
use crate::run::guest::{Guest, restore};
use crate::run::moment::{self, Moment};
use crate::run::one::{self, Bounds};
use crate::run::repro;
use crate::scenario::{Allowed, Phase, Reset, Scenario, WrongInput};
use crate::workspace::Workspace;

/// Of one run, in wall time.
const DEADLINE: Duration = Duration::from_secs(300);

/// Where runs begin.
#[derive(Debug)]
pub(super) struct Ground {
    guest: Guest,
    /// Without bounds of time.
    scenario: Scenario,
    /// What the run is given that nobody traces.
    untraced: Session,
    baselines: Baselines,
    moment: Moment,
    directory: PathBuf,
    cancel: Cancel,
    /// How many runs were begun: each has a directory of its own.
    runs: AtomicUsize,
}

/// What bounds a whole run.
const WHOLE: Bounds = Bounds { cycles: Some(1), deadline_secs: DEADLINE.as_secs() };

/// A whole run of a line.
#[derive(Debug)]
pub(super) struct Whole {
    guest: Guest,
    scenario: Scenario,
    run: one::Run,
}

impl Whole {
    /// What deviates; see [`crate::judge::Judgement::shape`].
    pub(super) fn shape(&self) -> Vec<String> {
        self.run.judgement.shape()
    }

    /// Where to look first.
    pub(super) fn look(&self) -> Option<String> {
        self.run.look()
    }

    /// Writes its bundle into a directory.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn write(&self, commit: &str, directory: &Path) -> Result<Option<PathBuf>> {
        let Self { guest, scenario, run } = self;
        let report = ScenarioReport::of_run(&guest.name, scenario, run, directory);
        let report = ScenarioReport { look: run.look(), ..report };
        let report = serde_json::to_string_pretty(&report).context("a report as JSON")?;
        repro::write(guest, scenario, WHOLE, run, &report, commit, directory)
    }
}

/// A run of a line.
#[derive(Debug, Clone)]
pub(super) struct Tried {
    /// What is not as the manifest expects, in words.
    pub(super) why: Vec<String>,
    /// The same without numbers; see [`crate::judge::Judgement::shape`].
    pub(super) shape: Vec<String>,
    /// Why it is right all the same: the reason of what the manifest allows.
    pub(super) allowed: Option<String>,
    /// What happened, in lines.
    pub(super) story: Vec<String>,
    /// How long the phase's commands took, in microseconds of the guest's time.
    pub(super) phase_us: u64,
    /// The recording as JSON.
    pub(super) text: String,
    pub(super) recording_sha256: String,
    /// What the tracer has seen; empty of a run without it.
    pub(super) report: Report,
}

impl Tried {
    /// What two runs share that went the same way: what deviates, and how the second client ended.
    pub(super) fn outcome(&self) -> (&[String], Option<i32>) {
        (&self.shape, self.report.client)
    }

    /// Which points came after each other: another order is another schedule.
    pub(super) fn order(&self) -> String {
        let points: Vec<&str> = self.report.passed.iter().map(|passed| passed.point.as_str()).collect();
        cache::hash_bytes(points.join("\n").as_bytes())
    }

    /// Whether it is neither as expected nor allowed.
    pub(super) fn has_failed(&self) -> bool {
        !self.shape.is_empty() && self.allowed.is_none()
    }
}

/// Whether a scenario can be explored.
///
/// # Errors
/// [`WrongInput`], with the reason.
pub fn check(scenario: &Scenario) -> Result<(), WrongInput> {
    let manifest = &scenario.manifest;
    if manifest.reset == Reset::Shutdown {
        return Err(refused(scenario, "its reset shuts the machine down, and a tracer ends with it"));
    }
    match manifest.user {
        Some(_) => Err(refused(scenario, "its unit is a user's, and only what PID 1 starts is traced")),
        None => Ok(()),
    }
}

fn refused(scenario: &Scenario, why: &str) -> WrongInput {
    WrongInput::new(format!("{} is not explored: {why}", scenario.name))
}

impl Ground {
    /// Makes the machine that runs begin with, if it is not there.
    ///
    /// # Errors
    /// [`WrongInput`] for a scenario that can't be explored; a start or set-up that fails.
    pub(super) async fn prepare(
        workspace: &Workspace,
        guest: &Guest,
        scenario: &Scenario,
        results: &Path,
        cancel: Cancel,
    ) -> Result<Self> {
        check(scenario)?;
        if guest.base.clock != Clock::Virtual {
            let why = "runs repeat themselves in virtual time only: leave out --clock real and --accel kvm";
            return Err(refused(scenario, why).into());
        }
        let mut scenario = scenario.clone();
        scenario.manifest.expect = scenario.manifest.expect.untimed();
        scenario.manifest.explore.holds = Line::default();
        let program = programs::perturber(workspace).await?;
        let mut guest = guest.of_size(scenario.manifest.memory_mib);
        guest.programs.insert(PERTURBER.to_owned(), program.clone());
        let bytes = std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        let path = PROGRAM.to_owned();
        let program = Put { path, mode: 0o755, symlink: false, offset: 0, last: true, bytes };
        let mut given = Given::of(&guest, &scenario, Bounds::default())?;
        let session = &mut given.session;
        session.files.push(program);
        let mut plan = scenario.plan(Some(1));
        if scenario.manifest.explore.phase == Phase::Reset {
            session.setup.push(ending(&scenario.manifest.start, scenario.manifest.expect.start_exit));
            plan.start = status(scenario.manifest.expect.start_exit);
        }
        session.plan = Some(plan.clone());
        let untraced = session.clone();
        scenario.manifest.explored(&mut plan.start, &mut plan.reset).insert(0, PROGRAM.to_owned());
        session.plan = Some(plan);
        let order = scenario.manifest.order(&Line::default(), false);
        let cache = workspace.cache()?;
        let moment = moment::ensure_for_orders(&guest, &given, &order, &cache, cancel.clone()).await?;
        Ok(Self {
            baselines: Baselines::load(&scenario.directory, &guest.name, guest.base.clock)?,
            guest,
            scenario,
            untraced,
            moment,
            directory: results.join("run"),
            cancel,
            runs: AtomicUsize::new(0),
        })
    }

    /// Removes what an interrupted run has left.
    pub(super) fn clear(&self) -> Result<()> {
        cache::remove_tree(&self.directory)
    }

    /// What ends all runs.
    pub(super) const fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Makes a whole run with tasks held in it, from the saved machine on, with its logs in `directory`: as `vm-test` does of a
    /// scenario that has the line in its manifest.
    ///
    /// # Errors
    /// As [`one::run`].
    pub(super) async fn whole(&self, line: &Line, directory: &Path) -> Result<Whole> {
        let scenario = self.scenario.held(line);
        let run = one::run(&self.guest, &scenario, WHOLE, directory, self.cancel.clone()).await?;
        Ok(Whole { guest: self.guest.clone(), scenario, run })
    }

    /// Makes the run that nobody traces, from the saved machine on.
    ///
    /// # Errors
    /// Whatever keeps it from having a result.
    pub(super) async fn plain(&self) -> Result<Tried> {
        let (directory, cancel) = (self.next_directory(), self.cancel.clone());
        let guest = self.guest.of_size(self.scenario.manifest.memory_mib);
        let mut machine = restore(&guest, Some(self.untraced.clone()), &directory, cancel).await?;
        let recorded = one::recorded(&mut machine, self.guest.base.clock, DEADLINE).await;
        let recording = machine.finish(recorded).await?;
        cache::remove_tree(&directory)?;
        self.tried(&recording, Report::default())
    }

    /// Makes the run of a line.
    ///
    /// # Errors
    /// Whatever keeps it from having a result; a run whose report is missing, or in which nothing was held.
    pub(super) async fn run(&self, line: &Line) -> Result<Tried> {
        self.try_to_run(line, &self.cancel).await?.with_context(|| idle(line))
    }

    /// As [`Ground::run`], with an end of its own; `None` if the line has holds and none took place.
    pub(super) async fn try_to_run(&self, line: &Line, cancel: &Cancel) -> Result<Option<Tried>> {
        let directory = self.next_directory();
        let order = self.scenario.manifest.order(line, false);
        let mut machine =
            moment::restore_to(&self.guest, &self.moment, &order, &directory, cancel.clone()).await?;
        let recorded = outcome(&mut machine).await;
        let recording = machine.finish(recorded).await?;
        let report = moment::report_of(&directory)?;
        let report = report.with_context(|| format!("the report is missing: {}", stderr_of(&recording)))?;
        cache::remove_tree(&directory)?;
        let is_idle = !line.holds.is_empty() && report.held() == 0;
        let tried = self.tried(&recording, report)?;
        Ok((!is_idle).then_some(tried))
    }

    fn next_directory(&self) -> PathBuf {
        self.directory.join(self.runs.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn tried(&self, recording: &Recording, report: Report) -> Result<Tried> {
        let text = serde_json::to_string(recording).context("a recording as JSON")?;
        let judgement = judge(recording, &self.scenario, &self.baselines);
        let allowed = match judgement.deviations.is_empty() {
            true => None,
            false => self.allowed(recording, report.client),
        };
        Ok(Tried {
            allowed,
            why: judgement.deviations.iter().map(ToString::to_string).collect(),
            shape: judgement.shape(),
            story: judgement.story,
            phase_us: took_us(recording, self.scenario.manifest.explore.phase),
            recording_sha256: cache::hash_bytes(text.as_bytes()),
            text,
            report,
        })
    }

    /// The reason of the first of what the manifest allows that a run is.
    fn allowed(&self, recording: &Recording, client: Option<i32>) -> Option<String> {
        let is_one = |allowed: &&Allowed| {
            let mut scenario = self.scenario.clone();
            scenario.manifest.expect = self.scenario.manifest.expect.but(allowed);
            let ends = allowed.client_exit.is_none_or(|exit| client == Some(exit));
            ends && judge(recording, &scenario, &self.baselines).deviations.is_empty()
        };
        self.scenario.manifest.explore.allowed.iter().find(is_one).map(|allowed| allowed.reason.clone())
    }
}

/// How a run's commands ended.
fn ends(recording: &Recording) -> impl Iterator<Item = &StepEnd> {
    recording.events.iter().filter_map(|event| match &event.what {
        What::StepEnds(end) => Some(end),
        _ => None,
    })
}

/// How long a phase's commands took, in microseconds of the guest's time.
fn took_us(recording: &Recording, phase: Phase) -> u64 {
    let of_phase = ends(recording).filter(|end| match phase {
        Phase::Start => end.step == Step::Start,
        Phase::Reset => end.step == Step::Reset,
    });
    of_phase.map(|end| end.duration_ns).sum::<u64>() / 1000
}

/// What is said of a line whose run nothing was held in.
pub(super) fn idle(line: &Line) -> String {
    format!("nothing was held: no task came to a point of '{line}'")
}

/// What comes of a machine that was restored with an order.
async fn outcome(machine: &mut Machine) -> Result<Recording> {
    let mut pending = machine.guest().deployed_session();
    machine.resume().await?;
    match machine.race("the recording", DEADLINE, pending.next()).await? {
        Body::Recorded(recording) => Ok(*recording),
        other => bail!("unexpected answer from the guest: {other:?}"),
    }
}

/// A command of the set-up, which has to succeed, for one that is expected to end with this status.
fn ending(argv: &[String], expected: i32) -> Vec<String> {
    if expected == 0 {
        return argv.to_vec();
    }
    let script = format!("\"$@\"; test $? = {expected}");
    ["sh", "-c", &script, "sh"].into_iter().map(str::to_owned).chain(argv.iter().cloned()).collect()
}

/// A command that does nothing and ends with a status.
fn status(code: i32) -> Vec<String> {
    match code {
        0 => vec!["true".to_owned()],
        code => ["sh", "-c", &format!("exit {code}")].map(str::to_owned).to_vec(),
    }
}

/// What the tracer said, if it is the one that did.
fn stderr_of(recording: &Recording) -> String {
    let said = ends(recording).map(|end| end.stderr.trim());
    said.filter(|stderr| !stderr.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::Event;
    use vm_agent::wire::Exit;

    use super::*;

    #[test]
    fn a_phase_takes_as_long_as_its_commands() {
        let end = |step, duration_ns| {
            let (exit, text) = (Some(Exit::Code(0)), String::new);
            let end = StepEnd { step, index: 0, exit, duration_ns, stdout: text(), stderr: text() };
            Event { at: 0, cycle: 0, what: What::StepEnds(end) }
        };
        let ends = [
            (Step::Start, 7_000_000),
            (Step::Reset, 2_000_900),
            (Step::Reset, 1_000_200),
            (Step::Check, 9_000_000),
        ];
        let events = ends.map(|(step, ns)| end(step, ns)).to_vec();
        let recording = Recording { events, ..Recording::default() };
        assert_eq!(took_us(&recording, Phase::Start), 7000);
        assert_eq!(took_us(&recording, Phase::Reset), 3001);
    }
}
