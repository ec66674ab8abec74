//! `cargo xtask page-test`: the operator's page, used as people use it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::tools;

use crate::exit::{FAILED, PASSED};
use crate::{check, left4me};

/// Uses the operator's page in Debian's chromium: with a machine that is played, and in booted ones.
///
/// Pictures of each page, light and dark, are in target/tmp/page afterwards. A trial that fails leaves what it had: a picture, the
/// page's text, the machine's logs.
#[derive(Debug, Args)]
pub(crate) struct PageTestArgs {
    /// Only trials with this in their names
    #[arg(value_name = "TRIAL")]
    trial: Option<String>,

    /// Those that take minutes, too: the unit of 936c8bb and a deploy, a mount that somebody keeps, the package, two proxies with TLS, and
    /// how late the page is
    #[arg(long)]
    all: bool,

    /// axe.min.js of axe-core, which looks for what keeps people out; without it that is not tried
    #[arg(long, value_name = "FILE", env = "AXE")]
    axe: Option<PathBuf>,

    /// Only say which trials there are
    #[arg(long)]
    list: bool,
}

/// Returns the exit code: a trial that fails has said why.
pub(crate) async fn run(args: &PageTestArgs) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let arguments = ["test", "--quiet", "--locked", "-p", "xtask", "--test", "page", "--"];
    let mut program = Program::new(tools::cargo()).args(arguments).current_dir(&workspace.root);
    if args.list {
        program = program.arg("--list");
    }
    if let Some(trial) = &args.trial {
        program = program.arg(trial);
    }
    if args.all {
        program = program.env("VM_TESTS_ALL", "1");
    }
    if let Some(axe) = &args.axe {
        program = program.env("AXE", std::path::absolute(axe)?);
    }
    match check::ends("page-test", program.stdout(Sink::Inherit).stderr(Sink::Inherit)).await {
        Ok(()) => Ok(PASSED),
        Err(error) if process::is_interrupt(&error) => Err(error),
        Err(error) => {
            eprintln!("{error:#}");
            Ok(FAILED)
        }
    }
}
