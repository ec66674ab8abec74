//! `cargo xtask why`: what makes the runs of one report other ones than those of another.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::report::why::{Results, Why};
use vm_tests::run::now;

use crate::left4me;
use crate::machine::MachineArgs;

/// Says why two runs differ: the first input that is not the same, or else the first event.
///
/// For two reports (say, CI's and your own) it compares each scenario that is in both: QEMU, its arguments, the image's
/// packages, the programs, the scenario's files, set-up and plan; if all are the same, the recordings. For one report it
/// compares with what would be run now, and runs nothing. Exit status 0 if nothing differs, 1 if something does.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// A directory of results, or its report.json
    #[arg(value_name = "A")]
    one: PathBuf,

    /// Another one [default: what would be run now]
    #[arg(value_name = "B")]
    other: Option<PathBuf>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Returns the exit code.
pub(crate) async fn run(args: &WhyArgs, cancel: Cancel) -> Result<u8> {
    let one = Results::read(&args.one)?;
    let (why, what) = match &args.other {
        Some(other) => (Why::between(&one, &Results::read(other)?)?, "recording"),
        None => (
            now::compare(&left4me::workspace()?, &args.machine.machines().await?, &one, cancel).await?,
            "inputs",
        ),
    };
    print!("{}", why.text(what));
    let verdict = if why.is_same() { Verdict::Passed } else { Verdict::Failed };
    Ok(verdict.exit_code())
}
