//! Deploys to machines as `cargo xtask deploy` does to hosts, and breaks that at every step.
//!
//! The steps are those that the program tells (`left4me_deployer::apply`), so one that is added is in the matrix by itself. The
//! harm is done in the machine, by `vm-fault`, after a step was told and before the next system call that changes something.

#[path = "../src/left4me.rs"]
mod left4me;

#[path = "support/all.rs"]
mod all;
#[path = "deploy/ends.rs"]
mod ends;
#[path = "deploy/host.rs"]
mod host;
#[path = "deploy/matrix.rs"]
mod matrix;
#[path = "deploy/over_ssh.rs"]
mod over_ssh;
#[path = "deploy/version.rs"]
mod version;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use vm_tests::host::accel::{self, Clock};
use vm_tests::host::events;
use vm_tests::image::{Suite, programs};
use vm_tests::machine::Cancel;
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::scenario::{Scenario, Wanted};

use host::Lab;

/// The directory of the machine's scenario.
const DEPLOY: &str = "deploy";

fn main() -> ExitCode {
    accel::child_main_if_asked();
    if let [_, argument, socket] = &std::env::args().collect::<Vec<_>>()[..]
        && argument == over_ssh::PROXY
    {
        return match over_ssh::proxy(socket) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::from_args();
    events::listen_to_lines(|line| eprintln!("{line}"));
    let ends = Suite::ALL
        .map(|suite| trial(format!("ends-{suite}"), suite, DEPLOY, async |lab| ends::run(lab).await));
    let mut trials: Vec<Trial> = ends.into();
    trials.push(trial("matrix-trixie".to_owned(), Suite::Trixie, DEPLOY, async |lab| {
        matrix::in_one_machine(lab, matrix::wanted(&matrix::FAULTS)?).await
    }));
    trials.push(trial("power-trixie".to_owned(), Suite::Trixie, DEPLOY, async |lab| {
        matrix::power_cuts(lab, matrix::wanted(&[matrix::POWER])?).await
    }));
    trials.push(trial("ssh-trixie".to_owned(), Suite::Trixie, "deploy-ssh", async |lab| {
        over_ssh::run(lab).await
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(
    name: String,
    suite: Suite,
    directory: &'static str,
    work: impl AsyncFnOnce(&Lab) -> Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let scratch = tempfile::Builder::new()
            .prefix("deploy-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ran = runtime.block_on(async { work(&prepare(suite, directory, scratch.path()).await?).await });
        match ran {
            Ok(()) => Ok(()),
            Err(error) => Err(Failed::from(format!("{error:#}\nkept: {}", scratch.keep().display()))),
        }
    })
}

/// A machine of an image, and the program that deploys.
async fn prepare(suite: Suite, directory: &str, scratch: &Path) -> Result<Lab> {
    let workspace = left4me::workspace()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let scenario = Scenario::load(&here)?;
    let machines = Machines { suites: vec![suite], clock: Some(Clock::Real), ..Machines::default() };
    let wanted = [Wanted {
        packages: scenario.manifest.packages.clone(),
        ..Wanted::of_size(scenario.manifest.memory_mib)
    }];
    let guest = prepare_one(&workspace, &machines, &wanted, &scratch.join("results"), Cancel::new()).await?;
    let deployer = programs::program(&workspace, "left4me-deployer", "left4me-deploy").await?;
    Ok(Lab { guest, scenario, scratch: scratch.to_owned(), deployer })
}
