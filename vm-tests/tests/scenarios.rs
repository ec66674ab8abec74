//! The VM suite as tests: one scenario on one guest, one test, one machine. A door to [`vm_tests::run::suite`].
//!
//! `cargo xtask vm-test` prepares what it needs (tools, image, guest programs) and says in prepared.json what that is. Run
//! without it, every test fails with the command to type. Being a libtest-like binary, filters, `--list`, cargo-nextest
//! and JUnit work as with any other test.

use std::process::ExitCode;
use std::sync::mpsc;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use vm_tests::host::events;
use vm_tests::host::signals::Interrupts;
use vm_tests::host::tools;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::run::suite::Prepared;
use vm_tests::workspace::Workspace;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    events::listen_to_lines(|line| eprintln!("{line}"));
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
    let mut workspace = Workspace::find(env!("CARGO_MANIFEST_DIR"))?;
    workspace.scenario_roots = vec![workspace.root.join("vm-tests/scenarios")];
    let prepared = match Prepared::from_env() {
        Ok(prepared) => prepared,
        Err(error) => {
            let why = tools::explain(&error);
            let unprepared = |name: String| {
                let why = why.clone();
                Trial::test(name, move || Err(Failed::from(why)))
            };
            let names = Prepared::names_without(&workspace.scenario_roots)?;
            return Ok(names.into_iter().map(unprepared).collect());
        }
    };
    let mut trials = prepared.trials()?;
    // The longest first: one that began last would have the machine to itself.
    trials.sort_by(|one, other| other.expected_secs.total_cmp(&one.expected_secs));
    let tests = trials.into_iter().map(|trial| {
        let cancel = cancel.clone();
        Trial::test(trial.name(), move || {
            let report = trial.run(cancel);
            match report.verdict {
                Verdict::Passed => Ok(()),
                _ => Err(report.told().into()),
            }
        })
    });
    Ok(tests.collect())
}

/// Turns a signal into a cancellation: the machines see it, end within their bounds, and their tests fail as
/// interrupted. Returns when signals are heard.
fn listen(cancel: Cancel) -> Result<()> {
    let (ready, heard) = mpsc::channel();
    let wait = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let waited = runtime.context("start a runtime").and_then(|runtime| {
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
