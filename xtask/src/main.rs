//! The commands people type: `cargo xtask …`. One file a subcommand; here only the match.

// First: its macros are known in what follows.
#[macro_use]
mod out;

mod bench;
mod check;
mod cli;
mod copied;
mod costs;
mod deploy;
mod dist;
mod docs;
mod doctor;
mod exit;
mod explore;
mod first;
mod image;
mod junit;
mod left4me;
mod machine;
mod mutants;
mod new;
mod nixos;
mod packaged;
mod page_test;
mod programs;
mod report;
mod repro;
mod shell;
mod show;
mod vm_test;
mod watch;
mod why;
mod workflow;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use vm_tests::host::tools;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::run::entry;

use cli::{Cli, Command};
use exit::{FAILED, PASSED};

fn main() -> ExitCode {
    show::events();
    match entry::block_on(async |cancel| run(Cli::parse(), cancel).await) {
        Ok(code) => code.into(),
        Err(error) => {
            match Verdict::of_error(&error) {
                Verdict::Interrupted => eprintln!("{error:#}"),
                _ => eprintln!("error: {}", tools::explain(&error)),
            }
            Verdict::of_error(&error).exit_code().into()
        }
    }
}

async fn run(cli: Cli, cancel: Cancel) -> anyhow::Result<u8> {
    match cli.command {
        Command::New(args) => new::run(args).map(|()| PASSED),
        Command::VmTest(args) => vm_test::run(&args, cancel).await,
        Command::Watch(args) => watch::run(&args, cancel).await,
        Command::Why(args) => why::run(&args, cancel).await,
        Command::Report(args) => report::run(&args).map(|()| PASSED),
        Command::Repro(args) => repro::run(&args, cancel).await,
        Command::Costs(args) => costs::run(&args).map(|()| PASSED),
        Command::Explore(args) => explore::run(&args, cancel).await,
        Command::Shell(args) => shell::run(&args, cancel).await,
        Command::Image(args) => image::run(&args).await,
        Command::Programs(args) => programs::run(&args).await,
        Command::Dist(args) => dist::run(&args).await.map(|()| PASSED),
        Command::Deploy(args) => deploy::run(&args, cancel).await,
        Command::Doctor(args) => doctor::run(&args).await.map(|well| if well { PASSED } else { FAILED }),
        Command::PageTest(args) => page_test::run(&args).await,
        Command::Check(args) => check::run(&args, Cli::command()).await,
        Command::Bench(args) => bench::run(args, cancel).await,
    }
}
