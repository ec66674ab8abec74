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
use tokio::sync::watch;
use vm_tests::accel::Clock;
use vm_tests::image::Suite;
use vm_tests::machine::Cancel;
use vm_tests::pins::{self, Pins, Update};
use vm_tests::process::{self, Interrupted};
use vm_tests::report::{self, ScenarioReport, Verdict};
use vm_tests::run::{self, Prepared, Run};
use vm_tests::scenario::{self, Scenario};
use vm_tests::{cache, outcome, stretches, tools};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let (cancel, cancelled) = watch::channel(false);
    let tests = match tests(&cancelled) {
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
fn tests(cancelled: &Cancel) -> Result<Vec<Trial>> {
    // Before anything is run: a copy of a checkout may have the suite of the other one.
    let workspace = cache::workspace()?;
    let mut tests = Vec::new();
    match Prepared::from_env() {
        Ok(guests) => {
            let mut expected = Vec::new();
            for prepared in guests.into_iter().map(Arc::new) {
                for directory in &prepared.scenarios {
                    let scenario = Scenario::load(directory)?;
                    let (prepared, cancelled) = (Arc::clone(&prepared), cancelled.clone());
                    let name = format!("{}/{}", prepared.guest, scenario.name);
                    let secs = expected_secs(&scenario, &prepared.guest)?;
                    let test = Trial::test(name, move || judge(&prepared, &scenario, cancelled));
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

/// Guest time of all cycles, as pinned; 0 if it is not.
fn expected_secs(scenario: &Scenario, guest: &str) -> Result<f64> {
    let pins = pins::read(&scenario.directory)?;
    let cycle = pins.get(guest).map_or(0.0, |pins| pins.start_ms + pins.reset_ms);
    Ok(cycle * f64::from(scenario.manifest.cycles) / 1000.0)
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
            return Err(Interrupted::default().into());
        }
        let outcome = runtime.block_on(run::run(prepared, scenario, cancelled));
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    });
    let (report, run) = match outcome {
        Ok(run) => {
            let mut mismatches: Vec<String> =
                compare(scenario, &prepared.guest, &outcome::snapshot(&run.cycles)).into_iter().collect();
            mismatches.extend(durations(prepared, scenario, &run)?);
            (ScenarioReport::of_run(&prepared.guest, scenario, &run, mismatches), Some(run))
        }
        Err(error) => (ScenarioReport::of_error(&prepared.guest, scenario, &error), None),
    };
    report::write_scenario(&directory, &report, run.as_ref()).map_err(|error| tools::explain(&error))?;
    if report.verdict == Verdict::Passed {
        return Ok(());
    }
    for line in run.iter().flat_map(where_the_time_went) {
        eprintln!("{}/{}: {line}", prepared.guest, scenario.name);
    }
    Err(report.why.join("\n").into())
}

/// Of every cycle: who reads of it in a job's log has no recording.
fn where_the_time_went(run: &Run) -> Vec<String> {
    run.cycles.iter().flat_map(|cycle| stretches::longest(&run.recording, cycle.number)).collect()
}

/// Compares the medians with the pinned ones, where the clock is virtual.
fn durations(prepared: &Prepared, scenario: &Scenario, run: &Run) -> Result<Vec<String>, Failed> {
    // One cycle more or less moves a median: the first is not as the others.
    let as_pinned = prepared.cycles.is_none_or(|cycles| cycles == scenario.manifest.cycles);
    match Pins::of(&run.cycles) {
        // What deviates already has other durations, which nobody wants pinned.
        Some(measured) if prepared.base.clock == Clock::Virtual && as_pinned && run.deviations.is_empty() => {
            let update = if accepting() { Update::Always } else { Update::Never };
            pins::compare(&scenario.directory, &prepared.guest, &measured, update)
                .map_err(|error| Failed::from(format!("{error:#}")))
        }
        _ => Ok(Vec::new()),
    }
}

/// Whether whoever runs this asks for what is new to be accepted.
fn accepting() -> bool {
    std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always" || how == "force")
}

/// Compares with the snapshot in the scenario's directory: the guest's own `outcome.<guest>.snap` if there is one, else
/// the one that all guests share, `outcome.snap`. insta prints the difference.
fn compare(scenario: &Scenario, guest: &str, snapshot: &str) -> Option<String> {
    let shared = scenario.directory.join("outcome.snap");
    let own = scenario.directory.join(format!("outcome.{guest}.snap"));
    // The text of a snapshot has no white space at its end.
    let as_shared = insta::Snapshot::from_file(&shared)
        .is_ok_and(|shared| shared.as_text().is_some_and(|text| text.to_string() == snapshot.trim_end()));
    let reference = guest == Suite::default().as_str();
    // One that is accepted becomes the shared one if there is none yet, or if it is the reference's.
    let name = if own.exists() || (accepting() && !reference && shared.exists() && !as_shared) {
        format!("outcome.{guest}")
    } else {
        "outcome".to_owned()
    };
    if own.exists() && as_shared {
        return Some(format!("{} says what outcome.snap says: delete it", own.display()));
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&scenario.directory);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_description(scenario.manifest.description.clone());
    // Nothing that a failed comparison leaves half done is looked at again.
    let compare = AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!(name.clone(), snapshot)));
    let mismatch = std::panic::catch_unwind(compare).err();
    mismatch.map(|_panic| format!("the outcome is not that of {}/{name}.snap", scenario.directory.display()))
}
