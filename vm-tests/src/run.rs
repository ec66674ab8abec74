//! One run of one scenario: machine, deploy, plan, recording, verdict.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vm_agent::recording::Recording;

use crate::accel::{Accel, Clock};
use crate::machine::{Cancel, Machine};
use crate::outcome::{self, Cycle};
use crate::qemu::Config;
use crate::scenario::Scenario;

/// From QEMU's start to an agent that answers. A cold boot takes 5 to 30 s of wall time; virtual time on a busy
/// host is the slowest.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// From the agent's answer to a machine without pending jobs.
const SETTLE_DEADLINE: Duration = Duration::from_secs(300);
/// One command of a scenario's set-up, or one file.
const SETUP_DEADLINE: Duration = Duration::from_secs(120);

/// Everything a run needs that must be there before it: made by `cargo xtask vm-test`, read by the tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// QEMU.
    pub qemu: PathBuf,
    /// The guest's root file system.
    pub root: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Our initramfs for it.
    pub initramfs: PathBuf,
    /// What the image is, in one line.
    pub image: String,
    /// The programs that a scenario can deploy, by name.
    pub programs: BTreeMap<String, PathBuf>,
    /// What executes the guest's instructions.
    pub accel: Accel,
    /// What its time is.
    pub clock: Clock,
    /// The accelerator and the clock and why, in one line.
    pub choice: String,
    /// Guest RAM.
    pub memory_mib: u32,
    /// Overrides the manifests' number of cycles.
    pub cycles: Option<u32>,
    /// The longest a run of one scenario may take, in seconds of wall time.
    pub deadline_secs: u64,
    /// Where the results go: one directory per scenario.
    pub results: PathBuf,
    /// The scenarios, by their directories.
    pub scenarios: Vec<PathBuf>,
}

/// The variable by which the tests find the file that holds a [`Prepared`] as JSON.
pub const PREPARED_VAR: &str = "VM_TESTS_PREPARED";

impl Prepared {
    /// Reads what [`PREPARED_VAR`] names.
    ///
    /// # Errors
    /// Says which command to type where nothing is prepared.
    pub fn from_env() -> Result<Self> {
        let Some(path) = std::env::var_os(PREPARED_VAR) else {
            bail!("nothing is prepared for the VM suite: run it with `cargo xtask vm-test`");
        };
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {}: run `cargo xtask vm-test`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn config(&self) -> Config {
        Config {
            accel: self.accel,
            clock: self.clock,
            memory_mib: self.memory_mib,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            root: self.root.clone(),
            serial_log: PathBuf::new(),
            kernel_args: Vec::new(),
        }
    }

    /// Where a scenario's results go.
    #[must_use]
    pub fn results_of(&self, scenario: &str) -> PathBuf {
        self.results.join(scenario)
    }
}

/// What a run gave.
#[derive(Debug, Clone)]
pub struct Run {
    /// What was recorded.
    pub recording: Recording,
    /// Its fold.
    pub cycles: Vec<Cycle>,
    /// What is not as the manifest expects; empty if all is.
    pub deviations: Vec<String>,
    /// The host's time for each stage.
    pub stages: Stages,
}

/// Wall time of the stages of a run, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stages {
    /// From QEMU's start to a settled machine.
    pub boot_ms: u64,
    /// Files and set-up commands.
    pub deploy_ms: u64,
    /// The plan.
    pub plan_ms: u64,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Boots a machine and waits until it has settled.
///
/// # Errors
/// As [`Machine::race`]; a machine that settles in another state than `running` names the failed units. The
/// machine is stopped then and its logs are kept in `directory`.
pub async fn boot(prepared: &Prepared, directory: &Path, cancel: Cancel) -> Result<Machine> {
    let mut machine = Machine::start(&prepared.qemu, prepared.config(), directory, cancel).await?;
    match settle(&mut machine).await {
        Ok(()) => Ok(machine),
        Err(error) => Err(give_up(machine, error, None).await),
    }
}

async fn settle(machine: &mut Machine) -> Result<()> {
    machine.hello(BOOT_DEADLINE).await?;
    let state = machine.run(&["systemctl", "is-system-running", "--wait"], SETTLE_DEADLINE).await?.text();
    if state != "running" {
        let failed =
            machine.run(&["systemctl", "--failed", "--no-legend", "--plain"], SETUP_DEADLINE).await?;
        bail!("the guest is {state} after boot, not running; failed units: {}", failed.text());
    }
    Ok(())
}

/// Saves evidence, stops the machine and says all that went wrong.
async fn give_up(mut machine: Machine, error: anyhow::Error, scenario: Option<&Scenario>) -> anyhow::Error {
    let (unit, mount) =
        scenario.map_or(("", "/"), |scenario| (&scenario.manifest.unit, &scenario.manifest.mount));
    machine.save_evidence(unit, mount).await;
    let evidence = format!("evidence: {}", machine.directory().display());
    match machine.stop().await {
        Ok(()) => error.context(evidence),
        Err(left) => error.context(evidence).context(format!("and cleaning up failed: {left:#}")),
    }
}

/// Runs a scenario on a machine of its own.
///
/// # Errors
/// Whatever kept the run from having a result. A result that is not as expected is no error: see
/// [`Run::deviations`].
pub async fn run(prepared: &Prepared, scenario: &Scenario, cancel: Cancel) -> Result<Run> {
    let directory = prepared.results_of(&scenario.name);
    let mut stages = Stages::default();
    let begun = Instant::now();
    let mut machine = boot(prepared, &directory, cancel).await?;
    stages.boot_ms = millis(begun);
    match deploy_and_record(prepared, scenario, &mut machine, &mut stages).await {
        Ok(recording) => {
            let cycles = outcome::cycles(&recording);
            let deviations = outcome::deviations(&recording, &cycles, &scenario.manifest.expect);
            if !deviations.is_empty() {
                machine.save_evidence(&scenario.manifest.unit, &scenario.manifest.mount).await;
            }
            machine.stop().await?;
            Ok(Run { recording, cycles, deviations, stages })
        }
        Err(error) => Err(give_up(machine, error, Some(scenario)).await),
    }
}

async fn deploy_and_record(
    prepared: &Prepared,
    scenario: &Scenario,
    machine: &mut Machine,
    stages: &mut Stages,
) -> Result<Recording> {
    let begun = Instant::now();
    deploy(prepared, scenario, machine).await?;
    stages.deploy_ms = millis(begun);
    let begun = Instant::now();
    let guest = machine.guest();
    let plan = guest.record(scenario.plan(prepared.cycles));
    let recording = machine.race("the recording", Duration::from_secs(prepared.deadline_secs), plan).await?;
    stages.plan_ms = millis(begun);
    Ok(recording)
}

/// Puts a scenario's files and programs into the guest and runs its set-up commands.
///
/// # Errors
/// As [`Machine::race`]; a set-up command that fails is shown with its output.
pub async fn deploy(prepared: &Prepared, scenario: &Scenario, machine: &mut Machine) -> Result<()> {
    if let Some(at) = &scenario.manifest.state_directory {
        succeed(machine, &["mkfs.ext4", "-q", "/dev/ram0"]).await?;
        succeed(machine, &["mkdir", "-p", at]).await?;
        succeed(machine, &["mount", "/dev/ram0", at]).await?;
    }
    let guest = machine.guest();
    let mut trees: Vec<PathBuf> =
        scenario.manifest.deploy.trees.iter().map(|tree| scenario.directory.join(tree)).collect();
    let own = scenario.directory.join("files");
    if own.exists() {
        trees.push(own);
    }
    for tree in trees {
        let put = guest.put_tree(&tree, "/");
        machine.race(&format!("the files of {}", tree.display()), SETUP_DEADLINE, put).await?;
    }
    for (to, name) in &scenario.manifest.deploy.programs {
        let from = match prepared.programs.get(name) {
            Some(path) => path.clone(),
            None if name.contains('/') => scenario.directory.join(name),
            None => {
                let known: Vec<_> = prepared.programs.keys().map(String::as_str).collect();
                bail!("{}: no program {name}; there are {}", scenario.name, known.join(", "));
            }
        };
        let put = guest.put_file(&from, to, Some(0o755));
        machine.race(&format!("the program {to}"), SETUP_DEADLINE, put).await?;
    }
    for argv in &scenario.manifest.setup {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        succeed(machine, &argv).await?;
    }
    Ok(())
}

async fn succeed(machine: &mut Machine, argv: &[&str]) -> Result<()> {
    let output = machine.run(argv, SETUP_DEADLINE).await?;
    if !output.exit.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!(
            "set-up in the guest: {}: {}\n{}",
            argv.join(" "),
            output.exit,
            String::from_utf8_lossy(&text).trim()
        );
    }
    Ok(())
}
