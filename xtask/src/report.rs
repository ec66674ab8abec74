//! `cargo xtask report`: the page of a run, or of two that are laid over each other.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use vm_tests::report::page::{self, PAGE_FILE, Shown};

/// Writes the page of a run, or of two runs laid over each other: before and after a fix, say.
///
/// Every vm-test writes report.html for each scenario and one for the whole. This makes one from results that are there: each is
/// a directory <GUEST>/<SCENARIO> in a directory of results. Two runs are aligned at the begin of their resets.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The results of a scenario, as target/vm-test/trixie/936c8bb
    #[arg(value_name = "A")]
    one: PathBuf,

    /// Those of another run
    #[arg(value_name = "B")]
    other: Option<PathBuf>,

    /// Write a trace for Perfetto (ui.perfetto.dev) instead: trace.json in A
    #[arg(long, conflicts_with = "other")]
    trace: bool,

    /// Where to write it [default: report.html in A, or report-2.html if there are two]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Prints where the page is.
pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let directories: Vec<&Path> =
        [Some(&args.one), args.other.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
    let runs = directories.iter().map(|directory| page::read(directory)).collect::<Result<Vec<_>>>()?;
    let shown: Vec<Shown<'_>> = runs.iter().map(|(report, recording)| Shown { report, recording }).collect();
    let (name, text) = match shown.as_slice() {
        [one] if args.trace => ("trace.json", page::trace(one.recording)),
        [_one] => (PAGE_FILE, page::page(&shown)),
        _two => ("report-2.html", page::page(&shown)),
    };
    let file = args.out.clone().unwrap_or_else(|| args.one.join(name));
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
