//! `cargo xtask check`: exactly what CI runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use vm_tests::host::process::{Program, Sink, describe};
use vm_tests::host::signals::{Interrupted, Interrupts};
use vm_tests::host::tools;

use crate::exit::{FAILED, PASSED};
use crate::{docs, left4me, mutants};

/// Runs what CI runs: format, lints, documents, all tests, the VM suite.
///
/// The last line is how many of these steps passed and failed.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Leave out what boots machines
    #[arg(long)]
    no_vm: bool,

    /// Instead, make changes that the tests must notice, each in a copy of the checkout, and say which notice: all of
    /// them, or those of these names
    #[arg(long, value_name = "NAME", num_args = 0.., conflicts_with = "no_vm")]
    mutants: Option<Vec<String>>,
}

/// A step's name and its cargo arguments.
const STEPS: [(&str, &[&str]); 7] = [
    ("format", &["fmt", "--all", "--check"]),
    (
        "lints",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
    ),
    // --all-targets leaves out the suites that cargo is told not to run by itself.
    (
        "lints of the VM suites",
        &[
            "clippy",
            "--quiet",
            "--locked",
            "-p",
            "vm-tests",
            "-p",
            "xtask",
            "--test",
            "scenarios",
            "--test",
            "faults",
            "--test",
            "power_cut",
            "--",
            "--deny",
            "warnings",
        ],
    ),
    // A workspace of its own, so that neither step above sees them. Without libFuzzer, which is C++: that they compile, by
    // the lock file that they have, is what is asked. Their corpus is a test of `ctl`.
    (
        "lints of the fuzz targets",
        &[
            "clippy",
            "--quiet",
            "--manifest-path",
            "helper/fuzz/Cargo.toml",
            "--no-default-features",
            "--target-dir",
            "target/fuzz",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
    ),
    ("format of the example", &["fmt", "--manifest-path", ELSEWHERE, "--check"]),
    (
        "lints of the example",
        &["clippy", "--quiet", "--manifest-path", ELSEWHERE, "--locked", "--", "--deny", "warnings"],
    ),
    ("tests", &["test", "--quiet", "--workspace", "--all-features", "--locked"]),
];

/// What boots machines: the example's scenario; those of this repository; how a machine's death is told, from a panic to a
/// killed QEMU; what the deployed software finds after one.
const SUITES: [(&str, &[&str]); 4] = [
    // Before vm-test, which has its results in the same place.
    ("the example", &["run", "--quiet", "--locked", "--manifest-path", ELSEWHERE]),
    (
        "vm-test",
        &["run", "--quiet", "--locked", "-p", "xtask", "--", "vm-test", "--image", "bookworm,trixie,sid"],
    ),
    ("faults", &["test", "--quiet", "--locked", "-p", "xtask", "--test", "faults"]),
    ("power cuts", &["test", "--quiet", "--locked", "-p", "xtask", "--test", "power_cut"]),
];

/// A workspace that uses the harness from outside.
const ELSEWHERE: &str = "vm-tests/examples/elsewhere/Cargo.toml";

/// Runs every step, then says which failed: one bad step does not hide another.
///
/// `commands` is the parser that the documents' commands are checked with.
pub(crate) async fn run(args: &CheckArgs, commands: clap::Command) -> Result<u8> {
    if let Some(names) = &args.mutants {
        return mutants::run(names).await;
    }
    let mut tally = Tally::default();
    step("docs", async { docs::check(&commands) }, &mut tally).await?;
    for (name, arguments) in STEPS {
        step(name, cargo(arguments), &mut tally).await?;
    }
    if !args.no_vm {
        for (name, arguments) in SUITES {
            step(name, cargo(arguments), &mut tally).await?;
        }
    }
    if !tally.failed.is_empty() {
        println!("check: failed: {}", tally.failed.join(", "));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    Ok(if tally.failed.is_empty() { PASSED } else { FAILED })
}

/// How the steps went so far.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
}

/// Runs one step; only an interrupt ends the whole check.
async fn step(name: &'static str, work: impl Future<Output = Result<()>>, tally: &mut Tally) -> Result<()> {
    println!("check: {name}");
    let begun = Instant::now();
    match work.await {
        Ok(()) => {
            println!("check: {name} passed in {:.1} s", begun.elapsed().as_secs_f64());
            tally.passed += 1;
        }
        Err(error) if vm_tests::host::process::is_interrupt(&error) => return Err(error),
        Err(error) => {
            println!("check: {name} failed: {}", tools::explain(&error));
            tally.failed.push(name);
        }
    }
    Ok(())
}

async fn cargo(arguments: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = left4me::workspace()?;
    let mut child = Program::new(program)
        .args(arguments)
        // A snapshot is never accepted by a check.
        .env("INSTA_UPDATE", "no")
        // Of the example too: what it needs for machines is there then.
        .env("CARGO_TARGET_DIR", workspace.target)
        .current_dir(workspace.root)
        .stdout(Sink::Inherit)
        .stderr(Sink::Inherit)
        .spawn()?;
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let status = tokio::select! {
        status = child.wait() => status?,
        signal = interrupts.next() => {
            child.kill_group(Duration::from_secs(60)).await?;
            return Err(Interrupted::by(signal).into());
        }
    };
    anyhow::ensure!(status.success(), "cargo {}: {}", arguments.join(" "), describe(status));
    Ok(())
}
