//! The VM suite: one scenario on one guest, one test, one machine.
//!
//! `cargo xtask vm-test` prepares what it needs (tools, image, guest programs) and runs it; run without that,
//! every test fails with the command to type. Being a libtest-like binary, filters, `--list`, cargo-nextest
//! and JUnit work as with any other test.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use vm_tests::cache;
use vm_tests::host::events::{self, Event};
use vm_tests::host::signals::{Interrupted, Interrupts};
use vm_tests::host::tools;
use vm_tests::image::Suite;
use vm_tests::judge::Judgement;
use vm_tests::judge::baselines::Baselines;
use vm_tests::machine::Cancel;
use vm_tests::report::{self, ScenarioReport, Verdict};
use vm_tests::run::{self, Prepared};
use vm_tests::scenario::{self, Scenario};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    events::listen(|event| match event {
        Event::Over => {}
        _ => eprintln!("{event}"),
    });
    let cancel = Cancel::new();
    let tests = match tests(&cancel) {
        Ok(tests) => tests,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = listen(cancel) {
        eprintln!("error: listen for signals: {error:#}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// What is prepared; else the scenarios of the repository, so that `--list` works without preparation.
fn tests(cancel: &Cancel) -> Result<Vec<Trial>> {
    // Before anything is run: a copy of a checkout may have the suite of the other one.
    let workspace = cache::workspace()?;
    let mut tests = Vec::new();
    match Prepared::from_env() {
        Ok(guests) => {
            let mut expected = Vec::new();
            for prepared in guests.into_iter().map(Arc::new) {
                for directory in &prepared.scenarios {
                    let scenario = Scenario::load(directory)?;
                    let (prepared, cancel) = (Arc::clone(&prepared), cancel.clone());
                    let name = format!("{}/{}", prepared.guest, scenario.name);
                    let secs = expected_secs(&scenario, &prepared)?;
                    let test = Trial::test(name, move || test(&prepared, &scenario, cancel));
                    expected.push((secs, test));
                }
            }
            // The longest first: one that began last would have the machine to itself.
            expected.sort_by(|(one, _), (other, _)| other.total_cmp(one));
            tests.extend(expected.into_iter().map(|(_, test)| test));
        }
        Err(error) => {
            let why = tools::explain(&error);
            for scenario in scenario::discover(&workspace.join("vm-tests/scenarios"))? {
                let (name, why) = (format!("{}/{}", Suite::default(), scenario.name), why.clone());
                tests.push(Trial::test(name, move || Err(Failed::from(why))));
            }
        }
    }
    Ok(tests)
}

/// Guest time of all cycles, by the durations of an earlier run; 0 if there are none.
fn expected_secs(scenario: &Scenario, prepared: &Prepared) -> Result<f64> {
    let baselines = Baselines::load(&scenario.directory, &prepared.guest, prepared.base.clock)?;
    let cycle = baselines.durations.map_or(0.0, |median| median.start_ms + median.reset_ms);
    Ok(cycle * f64::from(scenario.manifest.cycles) / 1000.0)
}

/// Turns a signal into a cancellation: the machines see it, end within their bounds, and their tests fail as
/// interrupted. Returns when signals are heard.
fn listen(cancel: Cancel) -> Result<()> {
    let (ready, heard) = mpsc::channel();
    let wait = move || {
        let waited = runtime().and_then(|runtime| {
            runtime.block_on(async {
                let mut interrupts = Interrupts::listen().context("install the handlers")?;
                ready.send(Ok(()))?;
                loop {
                    interrupts.next().await;
                    cancel.cancel();
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

fn test(prepared: &Prepared, scenario: &Scenario, cancel: Cancel) -> Result<(), Failed> {
    let directory = prepared.results_of(&scenario.name);
    let ran = runtime().and_then(|runtime| {
        if cancel.is_cancelled() {
            return Err(Interrupted::default().into());
        }
        let ran = runtime.block_on(run::run(prepared, scenario, cancel));
        runtime.shutdown_timeout(Duration::from_secs(1));
        ran
    });
    let (report, run) = match ran {
        Ok(mut run) => {
            accept(prepared, scenario, &mut run.judgement).map_err(|error| tools::explain(&error))?;
            (ScenarioReport::of_run(&prepared.guest, scenario, &run), Some(run))
        }
        Err(error) => (ScenarioReport::of_error(&prepared.guest, scenario, &error), None),
    };
    report::write_scenario(&directory, &report, run.as_ref()).map_err(|error| tools::explain(&error))?;
    if report.verdict == Verdict::Passed {
        return Ok(());
    }
    for line in run.iter().flat_map(|run| &run.judgement.stretches) {
        eprintln!("{}/{}: {line}", prepared.guest, scenario.name);
    }
    Err(report.why.join("\n").into())
}

/// Shows how a run's text differs from its snapshot, by insta, and takes from the judgement what is accepted.
fn accept(prepared: &Prepared, scenario: &Scenario, judgement: &mut Judgement) -> Result<()> {
    let accepting = std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always" || how == "force");
    let outcome = &mut judgement.outcome;
    if !outcome.redundant {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&scenario.directory);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.set_description(scenario.manifest.description.clone());
        let name = if accepting { &outcome.accepted } else { &outcome.compared };
        // Nothing that a failed comparison leaves half done is looked at again.
        let compare =
            AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!(name.clone(), &outcome.text)));
        if std::panic::catch_unwind(compare).is_ok() {
            outcome.mismatch = None;
        }
    }
    if let Some(measured) = judgement.measured.filter(|_| accepting && !judgement.durations.is_empty()) {
        Baselines::load(&scenario.directory, &prepared.guest, prepared.base.clock)?
            .accept_durations(&measured)?;
        judgement.durations.clear();
    }
    Ok(())
}
