//! `l4d2ctl start|stop|reset|status|doctor <id>...`: the printing. The command line is `left4me_helper::cli`, the work
//! `left4me_helper::control`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;

use left4me_helper::cli::{Cli, Command, How};
use left4me_helper::control::{self, Action, Host};
use left4me_helper::doctor::{self, Finding, UnitSetup};
use left4me_helper::error::chain;
use left4me_helper::fleet;
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::neighbours::{self, Neighbours};
use left4me_helper::report::{self, Exit, Report};
use left4me_helper::systemd::Systemd;
use left4me_helper::units::UnitsError;

/// What questions may take on top of the job itself.
const MARGIN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let (action, ids, all, how) = match Cli::parse().command {
        Command::Start(target) => (Action::Start, target.ids, target.all, target.how),
        Command::Stop(target) => (Action::Stop, target.ids, target.all, target.how),
        Command::Reset(target) => (Action::Reset, target.ids, target.all, target.how),
        Command::Status(target) => (Action::Status, target.ids, false, target.how),
        Command::Doctor(target) => return finish(doctor(target.ids, &target.how)),
    };
    let overview = !all && ids.is_empty();
    let instances = match chosen(ids, action) {
        Ok(instances) => instances,
        Err(problem) => return fail(&problem),
    };
    let reports = reports(action, &instances, &how);
    let one = instances.len() == 1 && !all && !overview;
    if how.json {
        print_json(&reports, one);
    } else if let (true, [report]) = (one, reports.as_slice()) {
        print!("{report}");
    } else {
        print!("{}", report::table(&reports));
    }
    if !how.json {
        for report in &reports {
            for note in report.notes.iter().filter(|_| !one) {
                println!("{}: {note}", report.instance);
            }
            if let Some(error) = &report.error {
                let of = if one { String::new() } else { format!("{}: ", report.instance) };
                eprintln!("l4d2ctl: {of}{error}");
            }
        }
    }
    let exits = reports.iter().map(|report| report.exit);
    finish(Exit::worst(exits.filter(|exit| !overview || *exit != Exit::NotRunning)))
}

fn finish(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code())
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("l4d2ctl: {problem}");
    finish(Exit::Failed)
}

/// The instances that were named, each once, or all.
fn chosen(ids: Vec<Instance>, action: Action) -> Result<Vec<Instance>, String> {
    if ids.is_empty() {
        return fleet::all_instances(Path::new(STATE_DIR), action).map_err(|error| chain(&error));
    }
    let mut seen = BTreeSet::new();
    Ok(ids.into_iter().filter(|id| seen.insert(id.to_string())).collect())
}

fn reports(action: Action, instances: &[Instance], how: &How) -> Vec<Report> {
    let timeout = Duration::from_secs(how.timeout);
    let systemd = control::may(action, rustix::process::geteuid().is_root())
        .and_then(|()| connect(timeout, instances.len()));
    match systemd {
        Ok(systemd) => {
            let mut progress = Progress::new(instances);
            let reports =
                fleet::run_all(&systemd, &Host::default(), action, instances, timeout, &mut |report| {
                    progress.ended(report);
                });
            progress.clear();
            reports
        }
        Err(error) => instances.iter().map(|instance| control::not_begun(action, instance, &error)).collect(),
    }
}

/// Each instance has its own time for its job; the connection lasts for as many as can follow one another.
fn connect(timeout: Duration, instances: usize) -> Result<Systemd, UnitsError> {
    let turns = u32::try_from(instances).unwrap_or(u32::MAX).max(1);
    Systemd::connect(Instant::now() + timeout.saturating_mul(turns) + MARGIN)
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

/// The JSON of one instance's doctor.
#[derive(Serialize)]
struct Diagnosis {
    unit: String,
    fragment: String,
    drop_ins: Vec<String>,
    findings: Vec<Finding>,
    error: Option<String>,
}

fn doctor(ids: Vec<Instance>, how: &How) -> Exit {
    let one = ids.len() == 1;
    let timeout = Duration::from_secs(how.timeout);
    let (instances, systemd) = match (chosen(ids, Action::Status), connect(timeout, 1)) {
        (Ok(instances), Ok(systemd)) => (instances, systemd),
        (Err(problem), _) => {
            eprintln!("l4d2ctl: {problem}");
            return Exit::Failed;
        }
        (_, Err(error)) => {
            eprintln!("l4d2ctl: {error}");
            return Exit::Failed;
        }
    };
    let around = systemd.neighbours(&Path::new(STATE_DIR).join("runtime"));
    if let Err(error) = &around {
        eprintln!("l4d2ctl: the other units: {error}");
    }
    let diagnoses: Vec<_> = instances
        .iter()
        .map(|instance| {
            let merged = instance.paths(Path::new(STATE_DIR)).merged;
            match systemd.setup(&instance.unit(), &merged) {
                Ok(setup) => Diagnosis {
                    findings: findings(&setup, around.as_ref().ok()),
                    unit: setup.unit,
                    fragment: setup.fragment,
                    drop_ins: setup.drop_ins,
                    error: None,
                },
                Err(error) => Diagnosis {
                    unit: instance.unit(),
                    fragment: String::new(),
                    drop_ins: Vec::new(),
                    findings: Vec::new(),
                    error: Some(error.to_string()),
                },
            }
        })
        .collect();
    if how.json {
        print_json(&diagnoses, one);
    }
    for diagnosis in diagnoses.iter().filter(|_| !how.json) {
        let files: Vec<_> =
            std::iter::once(&diagnosis.fragment).chain(&diagnosis.drop_ins).cloned().collect();
        match (&diagnosis.error, diagnosis.findings.as_slice()) {
            (Some(error), _) => println!("{}: {error}", diagnosis.unit),
            (None, []) => println!("{}: nothing found ({})", diagnosis.unit, files.join(", ")),
            (None, findings) => {
                println!("{}: {} found ({})", diagnosis.unit, findings.len(), files.join(", "));
                findings.iter().for_each(|finding| println!("  {finding}"));
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

/// An object for one, an array for several or for all.
fn print_json<T: Serialize>(all: &[T], one: bool) {
    let text = match (one, all) {
        (true, [only]) => serde_json::to_string_pretty(only),
        _ => serde_json::to_string_pretty(all),
    };
    println!("{}", text.expect("the reports hold no map and no odd key"));
}
