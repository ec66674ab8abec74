//! What runs begin with: a scenario's machine up to the phase, saved; and the run of one line from there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use vm_agent::recording::{Plan, Recording};
use vm_agent::wire::{Put, Session};
use vm_perturb::{Line, ORDER, PROGRAM, REPORT, Report};

use crate::cache;
use crate::host::accel::Clock;
use crate::image::programs::{self, PERTURBER};
use crate::judge::baselines::Baselines;
use crate::judge::judge;
use crate::machine::{Cancel, Machine};
use crate::report::ScenarioReport;
use crate::run::given::Given;
use crate::run::guest::Guest;
use crate::run::moment::{self, Moment};
use crate::run::one::{self, Bounds};
use crate::run::repro;
use crate::scenario::{Allowed, Phase, Reset, Scenario, WrongInput};
use crate::workspace::Workspace;

/// Of one run, in wall time.
const DEADLINE: Duration = Duration::from_secs(300);
/// Of a question to a guest whose run is over.
const ASK_DEADLINE: Duration = Duration::from_secs(60);

/// Where runs begin.
#[derive(Debug)]
pub(super) struct Ground {
    guest: Guest,
    /// Without bounds of time.
    scenario: Scenario,
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
        let mut given = Given::of(&guest, &scenario, Bounds::default())?;
        let session = &mut given.session;
        session.plan = None;
        session.files.push(file(PROGRAM, 0o755, bytes));
        if scenario.manifest.explore.phase == Phase::Reset {
            session.setup.push(ending(&scenario.manifest.start, scenario.manifest.expect.start_exit));
        }
        let moment = moment::ensure_done(&guest, &given, &workspace.cache()?, cancel.clone()).await?;
        Ok(Self {
            baselines: Baselines::load(&scenario.directory, &guest.name, guest.base.clock)?,
            guest,
            scenario,
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

    /// Makes a run: with the tracer and a line, or without either.
    ///
    /// # Errors
    /// Whatever keeps it from having a result; a run whose report is missing, or in which nothing was held.
    pub(super) async fn run(&self, line: Option<&Line>) -> Result<Tried> {
        self.run_until(line, &self.cancel).await
    }

    /// The same, with an end of its own.
    pub(super) async fn run_until(&self, line: Option<&Line>, cancel: &Cancel) -> Result<Tried> {
        let tried = self.try_to_run(line, cancel).await?;
        tried.with_context(|| {
            let line = line.map(Line::to_string).unwrap_or_default();
            format!("nothing was held: no task came to a point of '{line}'")
        })
    }

    /// As [`Ground::run`]; `None` if the line has holds and none took place.
    pub(super) async fn try_to_run(&self, line: Option<&Line>, cancel: &Cancel) -> Result<Option<Tried>> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.join(number.to_string());
        let session = self.session(line)?;
        let mut machine =
            moment::restore_to(&self.guest, &self.moment, session, &directory, cancel.clone()).await?;
        let ran = self.outcome(&mut machine, line.is_some()).await;
        let (recording, report) = machine.finish(ran).await?;
        let text = serde_json::to_string(&recording).context("a recording as JSON")?;
        let judgement = judge(&recording, &self.scenario, &self.baselines);
        cache::remove_tree(&directory)?;
        let allowed = match judgement.deviations.is_empty() {
            true => None,
            false => self.allowed(&recording, report.client),
        };
        let tried = Tried {
            allowed,
            why: judgement.deviations.iter().map(ToString::to_string).collect(),
            shape: judgement.shape(),
            story: judgement.story,
            recording_sha256: cache::hash_bytes(text.as_bytes()),
            text,
            report,
        };
        let is_idle = line.is_some_and(|line| !line.holds.is_empty()) && tried.report.held() == 0;
        Ok((!is_idle).then_some(tried))
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

    async fn outcome(&self, machine: &mut Machine, is_traced: bool) -> Result<(Recording, Report)> {
        let recording = one::recorded(machine, self.guest.base.clock, DEADLINE).await?;
        if !is_traced {
            return Ok((recording, Report::default()));
        }
        let text = machine.run(&["cat", REPORT], ASK_DEADLINE).await?;
        let said = || format!("{REPORT} is missing: {}", stderr_of(&recording));
        let report = serde_json::from_slice(&text.stdout).with_context(said)?;
        Ok((recording, report))
    }

    fn session(&self, line: Option<&Line>) -> Result<Session> {
        let manifest = &self.scenario.manifest;
        let order = manifest.order(line.unwrap_or(&Line::default()), false);
        let mut plan = self.scenario.plan(Some(1));
        let Plan { start, reset, .. } = &mut plan;
        let phase = match manifest.explore.phase {
            Phase::Start => start,
            Phase::Reset => {
                *start = status(manifest.expect.start_exit);
                reset
            }
        };
        if line.is_some() {
            phase.insert(0, PROGRAM.to_owned());
        }
        let files = vec![file(ORDER, 0o644, order.to_text()?.into_bytes())];
        Ok(Session { files, plan: Some(plan), ..Session::default() })
    }
}

fn file(path: &str, mode: u32, bytes: Vec<u8>) -> Put {
    Put { path: path.to_owned(), mode, symlink: false, offset: 0, last: true, bytes }
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
    let ends = recording.events.iter().filter_map(|event| match &event.what {
        vm_agent::recording::What::StepEnds(end) => Some(end.stderr.trim()),
        _ => None,
    });
    ends.filter(|stderr| !stderr.is_empty()).collect::<Vec<_>>().join("; ")
}
