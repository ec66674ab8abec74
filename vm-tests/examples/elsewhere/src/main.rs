//! Runs the scenarios of this workspace on real machines: all of them, or those that are named.

use std::process::ExitCode;

use vm_tests::host::events;
use vm_tests::report::{self, Verdict};
use vm_tests::run::{entry, suite};
use vm_tests::workspace::Workspace;

fn main() -> ExitCode {
    events::listen_to_lines(|line| eprintln!("{line}"));
    let ran = entry::block_on(async |cancel| {
        let workspace = Workspace::find(env!("CARGO_MANIFEST_DIR"))?;
        let scenarios = workspace.scenarios(&std::env::args().skip(1).collect::<Vec<_>>())?;
        suite::run(&workspace, &scenarios, &suite::Options::default(), cancel).await
    });
    let (text, verdict) = match &ran {
        Ok(ran) => (ran.report.text(report::table), ran.report.verdict()),
        Err(error) => (format!("error: {error:#}\n"), Verdict::of_error(error)),
    };
    print!("{text}");
    verdict.exit_code().into()
}
