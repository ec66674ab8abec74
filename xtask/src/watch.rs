//! `cargo xtask watch`: the verdict of a scenario, again at each save.

mod saves;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use vm_tests::host::{process, tools};
use vm_tests::image::programs::Mode;
use vm_tests::machine::Cancel;
use vm_tests::report::{self, Verdict};
use vm_tests::run::one::Bounds;
use vm_tests::run::prepare::Machines;
use vm_tests::run::recall::Again;
use vm_tests::run::suite::{self, Options};
use vm_tests::workspace::Workspace;

use self::saves::Saves;
use crate::left4me;
use crate::machine::MachineArgs;

/// Runs a scenario, and again each time that a file of it is saved, or a source of what it deploys.
///
/// It runs what `vm-test` runs, of one cycle: what has changed is built, and a saved machine is restored and given the scenario. From the
/// first edit of a program on, programs are built so that an edit takes seconds; they are other bytes then than those that vm-test
/// runs. Edits of the harness itself are seen when the command is started again. Ctrl-C ends it.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Scenarios: names, or paths of directories with a scenario.toml
    #[arg(value_name = "SCENARIO", required = true)]
    scenarios: Vec<String>,

    /// Number of cycles. Durations are compared only of as many as the scenario has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,

    /// Build programs as a host gets them: the run is the same as vm-test's, and comes later
    #[arg(long)]
    as_shipped: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Returns the exit code, which is that of an interrupt: it has no other end.
pub(crate) async fn run(args: &WatchArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    // What can't be right by an edit of a file that is watched ends it: a name that is not there.
    let mut places = places(&workspace, &args.scenarios)?;
    let mut mode = Mode::Shipped;
    let mut saved = None;
    loop {
        // From before the run on, so that no save during it is missed.
        let mut saves = Saves::watch(&places)?;
        round(&workspace, args, mode, saved, &cancel).await;
        // A tree that a manifest names by now is watched from the next round on.
        places = self::places(&workspace, &args.scenarios).unwrap_or(places);
        let ended = cancel.clone();
        let path = tokio::select! {
            path = saves.next() => path?,
            () = ended.cancelled() => return Ok(Verdict::Interrupted.exit_code()),
        };
        saved = Some(Instant::now());
        let shown = path.strip_prefix(&workspace.root).unwrap_or(&path);
        println!("\nsaved: {}", shown.display());
        if mode == Mode::Shipped
            && !args.as_shipped
            && args.machine.programs.is_none()
            && is_of_a_program(&path)
        {
            mode = Mode::Quick;
            println!(
                "programs are built for quick edits from now on, once from the beginning: their bytes, and so the recordings, are not \
                 those of vm-test (--as-shipped: the same ones, later)"
            );
        }
    }
}

/// Whether cargo may have to build a program anew: a source or a manifest.
fn is_of_a_program(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == "rs")
        || path.file_name().is_some_and(|name| name == "Cargo.toml")
}

/// Where what a scenario is made of lies: the checkout, and what it has elsewhere.
fn places(workspace: &Workspace, names: &[String]) -> Result<Vec<PathBuf>> {
    let mut places = vec![workspace.root.clone()];
    for scenario in workspace.scenarios(names)? {
        let trees = scenario.manifest.deploy.trees.iter().map(|tree| scenario.directory.join(tree));
        // As a person would name it, if it is there.
        let trees = trees.map(|tree| tree.canonicalize().unwrap_or(tree));
        places.extend(trees.chain([scenario.directory.clone()]));
    }
    Ok(places)
}

/// One run, and what came of it. An error is one of a file that is being edited: it is told, and the next save may mend it.
async fn round(workspace: &Workspace, args: &WatchArgs, mode: Mode, saved: Option<Instant>, cancel: &Cancel) {
    let ran = async {
        let scenarios = workspace.scenarios(&args.scenarios)?;
        let options = Options {
            machines: Machines { mode, ..args.machine.machines().await? },
            bounds: Bounds { cycles: Some(args.cycles), ..Bounds::default() },
            results: Some(workspace.target.join("vm-watch")),
            again: Again::Never,
            ..Options::default()
        };
        suite::run(workspace, &scenarios, &options, cancel.clone()).await
    }
    .await;
    let after = saved
        .map_or_else(String::new, |saved| format!(", {:.1} s after the save", saved.elapsed().as_secs_f64()));
    match ran {
        Ok(ran) => {
            print!("{}", ran.report.text(report::table));
            println!("{}{after}; waiting for the next save", ran.report.verdict().words());
        }
        Err(error) if process::is_interrupt(&error) => {}
        Err(error) => {
            eprintln!("error: {}", tools::explain(&error));
            println!("no verdict{after}; waiting for the next save");
        }
    }
}
