//! The VM suite: one scenario, one test, one machine.
//!
//! `cargo xtask vm-test` prepares what it needs (tools, image, guest programs) and runs it; run without that,
//! every test fails with the command to type. Being a libtest-like binary, filters, `--list`, cargo-nextest
//! and JUnit work as with any other test.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::watch;
use vm_tests::machine::{Cancel, MachineError};
use vm_tests::report::{self, ScenarioReport, Verdict};
use vm_tests::run::{self, Prepared};
use vm_tests::scenario::{self, Scenario};
use vm_tests::{outcome, process};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let (cancel, cancelled) = watch::channel(false);
    let prepared = Prepared::from_env().map(Arc::new).map_err(|error| format!("{error:#}"));
    let scenarios = match scenarios(prepared.as_deref().ok()) {
        Ok(scenarios) => scenarios,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let tests = scenarios
        .into_iter()
        .map(|scenario| {
            let (prepared, cancelled) = (prepared.clone(), cancelled.clone());
            Trial::test(scenario.name.clone(), move || {
                let prepared = prepared.map_err(Failed::from)?;
                judge(&prepared, &scenario, cancelled)
            })
        })
        .collect();
    if let Err(error) = listen(cancel) {
        eprintln!("error: listen for signals: {error:#}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// The prepared ones, or those of the repository, so that `--list` works without preparation.
fn scenarios(prepared: Option<&Prepared>) -> Result<Vec<Scenario>> {
    match prepared {
        Some(prepared) => prepared.scenarios.iter().map(|directory| Scenario::load(directory)).collect(),
        None => scenario::discover(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")),
    }
}

/// Turns a signal into a cancellation: the machines see it, end within their bounds, and their tests fail as
/// interrupted. Returns when signals are heard.
fn listen(cancel: watch::Sender<bool>) -> Result<()> {
    let (ready, heard) = mpsc::channel();
    let wait = move || {
        let waited = runtime().and_then(|runtime| {
            runtime.block_on(async {
                let mut interrupts = process::Interrupts::listen().context("install the handlers")?;
                ready.send(Ok(()))?;
                loop {
                    interrupts.next().await;
                    cancel.send_replace(true);
                }
            })
        });
        match ready.send(waited) {
            // Whoever listens no more has been told already.
            Ok(()) | Err(_) => (),
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("start a thread")?;
    heard.recv().context("the thread ended")?
}

/// A current-thread runtime keeps the thread that spawned QEMU alive as long as the machine, which the
/// parent-death signal needs.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}

fn judge(prepared: &Prepared, scenario: &Scenario, cancelled: Cancel) -> Result<(), Failed> {
    let directory = prepared.results_of(&scenario.name);
    let outcome = runtime().and_then(|runtime| {
        if *cancelled.borrow() {
            return Err(MachineError::Interrupted.into());
        }
        let outcome = runtime.block_on(run::run(prepared, scenario, cancelled));
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    });
    let (report, run) = match outcome {
        Ok(run) => {
            let mismatch = compare(scenario, &outcome::snapshot(&run.cycles));
            (ScenarioReport::of_run(scenario, &run, mismatch), Some(run))
        }
        Err(error) => (ScenarioReport::of_error(scenario, &error), None),
    };
    report::write_scenario(&directory, &report, run.as_ref()).map_err(|error| format!("{error:#}"))?;
    if report.verdict == Verdict::Passed { Ok(()) } else { Err(report.why.join("\n").into()) }
}

/// Compares with `outcome.snap` in the scenario's directory; insta prints the difference.
fn compare(scenario: &Scenario, snapshot: &str) -> Option<String> {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&scenario.directory);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_description(scenario.manifest.description.clone());
    // Nothing that a failed comparison leaves half done is looked at again.
    let compare = AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!("outcome", snapshot)));
    let mismatch = std::panic::catch_unwind(compare).err();
    mismatch.map(|_panic| format!("the outcome is not that of {}/outcome.snap", scenario.directory.display()))
}
