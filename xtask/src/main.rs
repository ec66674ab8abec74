//! The commands people type: `cargo xtask …`. One file a subcommand; here only the match.

mod bench;
mod check;
mod cli;
mod docs;
mod doctor;
mod exit;
mod image;
mod mutants;
mod prepare;
mod shell;
mod show;
mod vm_test;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use vm_tests::host::accel;
use vm_tests::host::process;
use vm_tests::host::signals::Interrupts;
use vm_tests::host::tools;

use cli::{Cli, Command};
use exit::{FAILED, INFRASTRUCTURE, INTERRUPTED, PASSED};

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let cli = Cli::parse();
    show::events();
    // Programs are spawned by this thread, and it lives as long as they do: a parent-death signal follows it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start a runtime: {error}");
            return INFRASTRUCTURE.into();
        }
    };
    let outcome = runtime.block_on(run(cli));
    // A thread may still wait for the terminal's next key.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code.into(),
        Err(error) if process::is_interrupt(&error) => {
            eprintln!("{error:#}");
            INTERRUPTED.into()
        }
        Err(error) => {
            eprintln!("error: {}", tools::explain(&error));
            INFRASTRUCTURE.into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    watch_for_a_second_interrupt()?;
    match cli.command {
        Command::VmTest(args) => vm_test::run(&args).await,
        Command::Shell(args) => shell::run(&args).await,
        Command::Image(args) => image::run(&args).await.map(|()| PASSED),
        Command::Doctor(args) => doctor::run(&args).await.map(|well| if well { PASSED } else { FAILED }),
        Command::Check(args) => check::run(&args, Cli::command()).await,
        Command::Bench(args) => bench::run(args).await,
    }
}

/// The first interrupt is seen by whoever is waiting, who cleans up; the second one ends us at once.
fn watch_for_a_second_interrupt() -> anyhow::Result<()> {
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    tokio::spawn(async move {
        interrupts.next().await;
        eprintln!("\ninterrupted: cleaning up; once more ends it at once");
        interrupts.next().await;
        eprintln!("ended without cleaning up: a machine's directory may be left in target/vm-test");
        #[expect(
            clippy::exit,
            reason = "the user asked twice; children die with us by their parent-death signal"
        )]
        std::process::exit(INTERRUPTED.into());
    });
    Ok(())
}
