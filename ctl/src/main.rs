//! `l4d2ctl`: the printing. The command line is `left4me_ctl::cli`, the work `left4me_ctl::control`, `fleet`, `create`,
//! `destroy` and `list`.
//!
//! Nothing that is printed stops what is being done: what cannot be printed is status 1 at the end.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;

use holders::chain::chain;
use left4me_ctl::actions::{Action, Host};
use left4me_ctl::cli::{
    Cli, Command, CreateTarget, DestroyTarget, How, ResetTarget, StatusTarget, StopTarget, Target,
};
use left4me_ctl::control;
use left4me_ctl::create::{self, Wish};
use left4me_ctl::destroy::{self, Destroyed};
use left4me_ctl::doctor::{self, Finding, Mountpoint, UnitSetup};
use left4me_ctl::fleet::{self, Times};
use left4me_ctl::list;
use left4me_ctl::neighbours::{self, Neighbours};
use left4me_ctl::report::{self, Diagnosis, Exit, Files, Problem, Report};
use left4me_ctl::systemd::Systemd;
use left4me_ctl::units::UnitsError;
use left4me_ctl::warning;
use left4me_helper::instance::{Instance, STATE_DIR};

/// What questions may take on top of the job itself.
const MARGIN: Duration = Duration::from_secs(10);

/// The longest answer to a question that is read, bytes.
const MAX_ANSWER: u64 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help for stdout, or what is wrong with the command line for stderr.
            let is_told = error.print().and_then(|()| std::io::stdout().flush()).is_ok();
            return ExitCode::from(match u8::try_from(error.exit_code()) {
                Ok(code) if is_told => code,
                _ => Exit::Failed.code(),
            });
        }
    };
    let mut output = Output::default();
    // One thread does it all.
    let exit = async_io::block_on(run(cli.command, &mut output));
    ExitCode::from(if output.has_failed { Exit::Failed.code() } else { exit.code() })
}

async fn run(command: Command, output: &mut Output) -> Exit {
    match command {
        Command::Start(target) => act(&Request::of(Action::Start, target), output).await,
        Command::Stop(StopTarget { target, before }) => {
            act(&Request { grace: before.grace, ..Request::of(Action::Stop, target) }, output).await
        }
        Command::Reset(ResetTarget { target, before, yes }) => {
            let request = Request { grace: before.grace, asks: !yes, ..Request::of(Action::Reset, target) };
            act(&request, output).await
        }
        Command::Status(StatusTarget { ids, how }) => {
            act(&Request::of(Action::Status, Target { ids, all: false, how }), output).await
        }
        Command::Create(wanted) => create(wanted, output),
        Command::Destroy(target) => destroy(&target, output).await,
        Command::List(how) => list(&how, output).await,
        Command::Doctor(target) => doctor(&target.ids, &target.how, output).await,
    }
}

/// What is printed, and whether that went well.
#[derive(Default)]
struct Output {
    has_failed: bool,
}

impl Output {
    /// To stdout: what was asked for.
    fn print(&mut self, text: impl Display) {
        if self.has_failed {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = write!(stdout, "{text}").and_then(|()| stdout.flush()) {
            self.has_failed = true;
            self.complain(format_args!("write to stdout: {error}"));
        }
    }

    /// To stderr: what went wrong. If that can't be said either, the status has it.
    fn complain(&mut self, problem: impl Display) {
        self.has_failed |= writeln!(std::io::stderr(), "l4d2ctl: {problem}").is_err();
    }

    /// An object for one, an array for several or for all.
    fn json<T: Serialize>(&mut self, all: &[T], is_one: bool) {
        let text = match (is_one, all) {
            (true, [only]) => serde_json::to_string_pretty(only),
            _ => serde_json::to_string_pretty(all),
        };
        self.print(format_args!("{}\n", text.expect("the reports hold no map and no odd key")));
    }

    /// That nothing was done, and why.
    fn problem(&mut self, action: &str, error: impl Display, how: &How, is_one: bool) -> Exit {
        if how.json {
            self.json(&[Problem::new(action, &error)], is_one);
        }
        self.complain(error);
        Exit::Failed
    }
}

/// What was asked for.
struct Request {
    action: Action,
    target: Target,
    grace: Option<Duration>,
    /// Whether it is asked before running servers lose what they wrote.
    asks: bool,
}

impl Request {
    fn of(action: Action, target: Target) -> Self {
        Self { action, target, grace: None, asks: false }
    }
}

async fn act(request: &Request, output: &mut Output) -> Exit {
    let Request { action, target, .. } = request;
    let (word, how) = (action.word(), &target.how);
    let is_overview = !target.all && target.ids.is_empty();
    let instances = match chosen(&target.ids, *action) {
        Ok(instances) => instances,
        Err(problem) => return output.problem(word, problem, how, false),
    };
    let is_one = instances.len() == 1 && !target.all && !is_overview;
    let reports = match reports(request, &instances).await {
        Ok(Some(reports)) => reports,
        Ok(None) => return output.problem(word, "nothing was stopped and nothing was deleted", how, is_one),
        Err(error) if instances.is_empty() => return output.problem(word, error, how, false),
        Err(error) => {
            instances.iter().map(|instance| control::not_begun(*action, instance, &error)).collect()
        }
    };
    if how.json {
        output.json(&reports, is_one);
    } else if let (true, [report]) = (is_one, reports.as_slice()) {
        output.print(report);
    } else {
        output.print(report::table(&reports));
    }
    for report in reports.iter().filter(|_| !how.json) {
        let of = if is_one { String::new() } else { format!("{}: ", report.instance) };
        // In a report of one they are rows.
        for note in report.notes.iter().filter(|_| !is_one) {
            output.print(format_args!("{of}{note}\n"));
        }
        if let Some(error) = &report.error {
            output.complain(format_args!("{of}{error}"));
        }
    }
    let exits = reports.iter().map(|report| report.exit);
    Exit::worst(exits.filter(|exit| !is_overview || *exit != Exit::NotRunning))
}

/// The instances that were named, each once, or all.
fn chosen(ids: &[Instance], action: Action) -> Result<Vec<Instance>, String> {
    if ids.is_empty() {
        return fleet::all_instances(Path::new(STATE_DIR), action).map_err(|error| chain(&error));
    }
    let mut seen = BTreeSet::new();
    Ok(ids.iter().filter(|id| seen.insert(id.to_string())).cloned().collect())
}

/// None if it was asked whether to do it, and it is not to be done.
async fn reports(request: &Request, instances: &[Instance]) -> Result<Option<Vec<Report>>, UnitsError> {
    let Request { action, target, grace, asks } = request;
    let timeout = Duration::from_secs(target.how.timeout);
    control::may(*action, rustix::process::geteuid().is_root())?;
    // Whoever answers may take their time, so the work has a connection of its own.
    if *asks && is_attended() && !agrees(&mut connect(timeout, 1).await?, instances).await? {
        return Ok(None);
    }
    let systemd = connect(timeout + grace.unwrap_or_default(), instances.len()).await?;
    let mut progress = Progress::new(instances);
    let times = Times { timeout, grace: *grace };
    let reports = fleet::run_all(&systemd, &Host::default(), *action, instances, times, &mut |report| {
        progress.ended(report);
    })
    .await;
    progress.clear();
    Ok(Some(reports))
}

/// Whether somebody is there to be asked.
fn is_attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks whether servers that run are to be reset; yes if none does.
async fn agrees(systemd: &mut Systemd, instances: &[Instance]) -> Result<bool, UnitsError> {
    let running = fleet::running(systemd, &Host::default(), instances).await?;
    if running.is_empty() {
        return Ok(true);
    }
    Ok(is_agreed(&warning::question(&running, instances.len())))
}

/// Asks a question and reads its answer. Who can't read the question, or not answer it, does not agree.
fn is_agreed(question: &str) -> bool {
    let mut answer = String::new();
    let is_answered = write!(std::io::stderr(), "{question}").is_ok()
        && std::io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer).is_ok();
    is_answered && warning::is_yes(&answer)
}

/// Each instance has its own time for its job; the connection lasts for as many as can follow one another.
async fn connect(timeout: Duration, instances: usize) -> Result<Systemd, UnitsError> {
    let turns = u32::try_from(instances).unwrap_or(u32::MAX).max(1);
    Systemd::connect(Instant::now() + timeout.saturating_mul(turns) + MARGIN).await
}

/// A line on a terminal that says who is waited for; nothing elsewhere.
struct Progress {
    waiting: Vec<String>,
    all: usize,
    shown: bool,
}

impl Progress {
    fn new(instances: &[Instance]) -> Self {
        let waiting: Vec<_> = instances.iter().map(ToString::to_string).collect();
        let mut progress = Self { all: waiting.len(), waiting, shown: std::io::stderr().is_terminal() };
        progress.show();
        progress
    }

    fn ended(&mut self, report: &Report) {
        self.waiting.retain(|instance| *instance != report.instance);
        self.show();
    }

    fn show(&mut self) {
        const NAMED: usize = 8;
        let mut waiting = self.waiting.iter().take(NAMED).cloned().collect::<Vec<_>>().join(" ");
        if self.waiting.len() > NAMED {
            waiting.push_str(" ...");
        }
        self.write(&format!("{} of {} done, waiting for {waiting}", self.all - self.waiting.len(), self.all));
    }

    fn clear(&mut self) {
        self.write("");
    }

    fn write(&mut self, text: &str) {
        // A terminal that is gone is no reason to stop: no more is shown.
        self.shown = self.shown && write!(std::io::stderr(), "\r\x1b[K{text}").is_ok();
    }
}

fn create(CreateTarget { id, layers, port, arguments, json }: CreateTarget, output: &mut Output) -> Exit {
    let created = create::create(&Wish { instance: id, layers, port, arguments }, &Host::default());
    if json {
        output.json(std::slice::from_ref(&created), true);
        return created.exit;
    }
    output.print(&created);
    for problem in created.problems.iter().chain(&created.error) {
        output.complain(problem);
    }
    created.exit
}

async fn list(how: &How, output: &mut Output) -> Exit {
    let host = Host::default();
    let mut systemd = connect(Duration::from_secs(how.timeout), 1).await;
    let (mut rows, unreachable) =
        match list::rows(systemd.as_mut().map_err(|error| error.clone()), &host).await {
            Ok(rows) => rows,
            Err(error) => return output.problem("list", chain(&error), how, false),
        };
    if let (true, Some(error)) = (rows.is_empty(), &unreachable) {
        return output.problem("list", error, how, false);
    }
    if how.json {
        unreachable.iter().for_each(|error| list::tell_each(&mut rows, error));
        output.json(&rows, false);
    } else if rows.is_empty() {
        output.print(list::none(&host.state_dir));
    } else {
        output.print(list::table(&rows));
    }
    if let Some(error) = &unreachable {
        output.complain(error);
    }
    for row in rows.iter().filter(|_| !how.json) {
        if let Some(error) = &row.error {
            output.complain(format_args!("{}: {error}", row.instance));
        }
    }
    if unreachable.is_none() && rows.iter().all(|row| row.ok) { Exit::Ok } else { Exit::Failed }
}

async fn destroy(target: &DestroyTarget, output: &mut Output) -> Exit {
    let destroyed = destroyed(target).await;
    if target.how.json {
        output.json(std::slice::from_ref(&destroyed), true);
    } else {
        output.print(&destroyed);
        if let Some(error) = &destroyed.error {
            output.complain(error);
        }
    }
    destroyed.exit
}

async fn destroyed(DestroyTarget { id, how, yes }: &DestroyTarget) -> Destroyed {
    let (host, timeout) = (Host::default(), Duration::from_secs(how.timeout));
    let looked = async { destroy::look(&mut connect(timeout, 1).await?, &host, id).await };
    let doomed = match looked.await {
        Ok(doomed) => doomed,
        Err(refusal) => return Destroyed::refused(id, &refusal),
    };
    let question = destroy::question(&doomed);
    let refusal = match (yes, is_attended()) {
        (true, _) => None,
        (false, true) => (!is_agreed(&question)).then_some(destroy::Refusal::No),
        (false, false) => Some(destroy::Refusal::Unasked),
    };
    if let Some(refusal) = refusal {
        return Destroyed::refused(id, &refusal);
    }
    // Whoever answers may take their time, so the work has a connection of its own.
    match connect(timeout, 1).await {
        Ok(mut systemd) => destroy::destroy(&mut systemd, &host, &doomed, timeout).await,
        Err(error) => Destroyed::refused(id, &error.into()),
    }
}

async fn doctor(ids: &[Instance], how: &How, output: &mut Output) -> Exit {
    const ACTION: &str = "doctor";
    let is_one = ids.len() == 1;
    let timeout = Duration::from_secs(how.timeout);
    let instances = match chosen(ids, Action::Status) {
        Ok(instances) => instances,
        Err(problem) => return output.problem(ACTION, problem, how, is_one),
    };
    let systemd = match connect(timeout, 1).await {
        Ok(systemd) => systemd,
        Err(error) => return output.problem(ACTION, error, how, is_one),
    };
    let state_dir = Path::new(STATE_DIR);
    let runtimes: Vec<_> = doctor::names(state_dir).iter().map(|name| name.join("runtime")).collect();
    let around = systemd.neighbours(&runtimes).await;
    if let Err(error) = &around {
        output.complain(format_args!("the other units: {error}"));
    }
    let mut diagnoses = Vec::new();
    for instance in &instances {
        let diagnosis = Diagnosis::of(instance.unit(), instance.overlay_unit());
        diagnoses.push(match systemd.setup(instance, Mountpoint::of(instance, state_dir)).await {
            Ok(setup) => Diagnosis {
                findings: findings(&setup, around.as_ref().ok()),
                fragment: setup.fragment,
                drop_ins: setup.drop_ins,
                overlay: Files {
                    unit: setup.overlay.unit,
                    fragment: setup.overlay.fragment,
                    drop_ins: setup.overlay.drop_ins,
                },
                ..diagnosis
            },
            Err(error) => Diagnosis { error: Some(error.to_string()), ..diagnosis },
        });
    }
    if how.json {
        output.json(&diagnoses, is_one);
    }
    for diagnosis in diagnoses.iter().filter(|_| !how.json) {
        let Files { fragment, drop_ins, .. } = &diagnosis.overlay;
        let all =
            [&diagnosis.fragment].into_iter().chain(&diagnosis.drop_ins).chain([fragment]).chain(drop_ins);
        let files: Vec<_> = all.filter(|file| !file.is_empty()).cloned().collect();
        let (unit, files) = (&diagnosis.unit, files.join(", "));
        match (&diagnosis.error, diagnosis.findings.as_slice()) {
            (Some(error), _) => output.print(format_args!("{unit}: {error}\n")),
            (None, []) => output.print(format_args!("{unit}: nothing found ({files})\n")),
            (None, findings) => {
                output.print(format_args!("{unit}: {} found ({files})\n", findings.len()));
                findings.iter().for_each(|finding| output.print(format_args!("  {finding}\n")));
            }
        }
    }
    let bad = |diagnosis: &Diagnosis| diagnosis.error.is_some() || !diagnosis.findings.is_empty();
    if around.is_err() || diagnoses.iter().any(bad) { Exit::Failed } else { Exit::Ok }
}

fn findings(setup: &UnitSetup, around: Option<&Neighbours>) -> Vec<Finding> {
    let others = around.map(|around| neighbours::lint(setup, around)).unwrap_or_default();
    doctor::lint(setup).into_iter().chain(others).collect()
}
