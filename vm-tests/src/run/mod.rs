//! One run of one scenario: machine, deploy, plan, recording, verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vm_agent::recording::Recording;
use vm_agent::wire::{Body, Session};

use crate::host::accel::Clock;
use crate::host::events::{self, Event};
use crate::judge::baselines::Baselines;
use crate::judge::{Judgement, judge};
use crate::machine::base::Base;
use crate::machine::config::{Config, DEPLOY_BYTES, Ram};
use crate::machine::saved::Saved;
use crate::machine::{Cancel, Machine};
use crate::scenario::Scenario;
use crate::scenario::bundle::{self, Bundle};

/// From a restored machine's first instruction to the end of its set-up, in wall time.
const SETUP_DEADLINE: Duration = Duration::from_secs(300);

/// Everything that runs on one guest need and that must be there before them: made by `cargo xtask vm-test`, read by the
/// tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// The guest's short name: its Debian suite, or [`FOREIGN`](crate::image::FOREIGN).
    pub guest: String,
    /// What every machine is made of.
    pub base: Base,
    /// The booted machines that scenarios start from, by their RAM in MiB: one for each size that was asked for.
    pub saved: BTreeMap<u32, Saved>,
    /// What the image is, in one line.
    pub image: String,
    /// The programs that a scenario can deploy, by name.
    pub programs: BTreeMap<String, PathBuf>,
    /// The accelerator and the clock and why, in one line.
    pub choice: String,
    /// Overrides the manifests' number of cycles.
    pub cycles: Option<u32>,
    /// The longest a run of one scenario may take, in seconds of wall time.
    pub deadline_secs: u64,
    /// Where the guest's results go: one directory per scenario.
    pub results: PathBuf,
    /// The scenarios, by their directories.
    pub scenarios: Vec<PathBuf>,
}

/// The variable by which the tests find the file that holds a list of [`Prepared`] as JSON, one for each guest.
pub const PREPARED_VAR: &str = "VM_TESTS_PREPARED";

impl Prepared {
    /// Reads what [`PREPARED_VAR`] names.
    ///
    /// # Errors
    /// Says which command to type where nothing is prepared.
    pub fn from_env() -> Result<Vec<Self>> {
        let Some(path) = std::env::var_os(PREPARED_VAR) else {
            bail!("nothing is prepared for the VM suite: run it with `cargo xtask vm-test`");
        };
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {}: run `cargo xtask vm-test`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The same with machines of another size.
    #[must_use]
    pub fn of_size(&self, memory_mib: u32) -> Self {
        let mut other = self.clone();
        other.base.memory_mib = memory_mib;
        other
    }

    /// The saved machine of the base's size.
    ///
    /// # Errors
    /// Says which there are, where none of this size was prepared.
    pub fn saved(&self) -> Result<&Saved> {
        let wanted = self.base.memory_mib;
        let Some(saved) = self.saved.get(&wanted) else {
            let there: Vec<_> = self.saved.keys().map(u32::to_string).collect();
            bail!("no machine of {wanted} MiB is prepared for {}, but of {}", self.guest, there.join(", "));
        };
        Ok(saved)
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
    /// The verdict on it.
    pub judgement: Judgement,
    /// The host's time for each stage.
    pub stages: Stages,
}

/// Wall time of the stages of a run, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stages {
    /// From QEMU's start to a machine that runs.
    pub restore_ms: u64,
    /// Files, set-up and plan.
    pub session_ms: u64,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Restores the saved machine, paused, with a session on its deploy device, if there is one. [`session`] begins it.
///
/// # Errors
/// When the session is too large, or QEMU refuses.
pub async fn restore(
    prepared: &Prepared,
    session: Option<Session>,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = directory.join("deploy.img");
    bundle::write_deploy_image(&deploy, session)?;
    restore_with(prepared, deploy, false, directory, cancel).await
}

/// Restores the saved machine with a disk that outlives it in place of the deploy device, and lets it run a session that
/// it is given on the channel. The disk is a file of [`DEPLOY_BYTES`], and made where there is none. A guest must not
/// believe what it has cached of the device: the saved machine had another one (`blockdev --flushbufs`).
///
/// # Errors
/// As [`restore`] and [`session`].
pub async fn with_disk(
    prepared: &Prepared,
    wanted: Session,
    disk: &Path,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let make = || File::options().append(true).create(true).open(disk)?.set_len(DEPLOY_BYTES);
    make().with_context(|| format!("make {}", disk.display()))?;
    let mut machine = restore_with(prepared, disk.to_owned(), true, directory, cancel).await?;
    let prepared = async {
        machine.resume().await?;
        let guest = machine.guest();
        let answer = async { guest.begin_session(wanted).await?.next().await };
        machine.race("the set-up", SETUP_DEADLINE, answer).await
    }
    .await;
    match prepared {
        Ok(_done) => Ok(machine),
        Err(error) => give_up(machine, error.into(), None).await,
    }
}

async fn restore_with(
    prepared: &Prepared,
    deploy: PathBuf,
    keeps: bool,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let Saved { ram, state } = prepared.saved()?;
    let config = Config { keeps, ..prepared.base.config(Ram::Restoring(ram.clone()), deploy) };
    let mut machine = Machine::start(&prepared.base.qemu, config, directory, cancel).await?;
    let loaded = match File::open(state).with_context(|| format!("open {}", state.display())) {
        Ok(file) => machine.restore(file).await.context("restore the saved machine"),
        Err(error) => Err(error),
    };
    match loaded {
        Ok(()) => Ok(machine),
        Err(error) => give_up(machine, error, None).await,
    }
}

/// Lets a restored machine run the session that lies on its deploy device, and waits for the answer.
///
/// # Errors
/// As [`Machine::race`]; a set-up command that fails is in the agent's words.
pub async fn session(
    machine: &mut Machine,
    clock: Clock,
    waiting_for: &str,
    deadline: Duration,
) -> Result<Body> {
    let mut pending = machine.guest().deployed_session();
    match clock {
        // The ring is there before the first instruction, so no moment of the host's is in what follows. The wall clock
        // is a fixed one, and so is everything that is made from it.
        Clock::Virtual => {
            machine.ring().await?;
            machine.resume().await?;
        }
        Clock::Real => {
            machine.resume().await?;
            let guest = machine.guest();
            let realtime_ns = realtime_ns()?;
            let set = async { guest.set_clock(realtime_ns).await };
            machine.race("its clock to be set", deadline, set).await?;
            machine.ring().await?;
        }
    }
    Ok(machine.race(waiting_for, deadline, pending.next()).await?)
}

fn realtime_ns() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the host's clock is before 1970")?;
    u64::try_from(now.as_nanos()).context("the host's clock is beyond the year 2262")
}

/// Restores a machine for a shell: with a scenario's files and set-up, if one is given.
///
/// # Errors
/// As [`restore`] and [`session`].
pub async fn prepare_shell(
    prepared: &Prepared,
    scenario: Option<&Scenario>,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let wanted = match scenario {
        Some(scenario) => preparation(prepared, scenario)?,
        None => Session::default(),
    };
    let size = scenario.map_or(prepared.base.memory_mib, |scenario| scenario.manifest.memory_mib);
    let mut machine = restore(&prepared.of_size(size), Some(wanted), directory, cancel).await?;
    match session(&mut machine, prepared.base.clock, "the set-up", SETUP_DEADLINE).await {
        Ok(_done) => Ok(machine),
        Err(error) => give_up(machine, error, scenario).await,
    }
}

/// A scenario's files and set-up, without a plan.
///
/// # Errors
/// When a file can't be read, or a program is not known.
pub fn preparation(prepared: &Prepared, scenario: &Scenario) -> Result<Session> {
    Ok(Session { files: bundle(prepared, scenario)?.into_files(), setup: setup(scenario), plan: None })
}

/// Saves evidence, stops the machine and says all that went wrong.
async fn give_up<T>(mut machine: Machine, error: anyhow::Error, scenario: Option<&Scenario>) -> Result<T> {
    let units = scenario.map(Scenario::units).unwrap_or_default();
    let mount = scenario.map_or("/", |scenario| &scenario.manifest.mount);
    machine.save_evidence(&units, mount).await;
    let evidence = format!("evidence: {}", machine.directory().display());
    machine.finish(Err(error.context(evidence))).await
}

/// Runs a scenario on a machine of its own.
///
/// # Errors
/// Whatever kept the run from having a result. A result that is not as expected is no error: see
/// [`Judgement::why`].
pub async fn run(prepared: &Prepared, scenario: &Scenario, cancel: Cancel) -> Result<Run> {
    let baselines = Baselines::load(&scenario.directory, &prepared.guest, prepared.base.clock)?;
    let directory = prepared.results_of(&scenario.name);
    let mut stages = Stages::default();
    let begun = Instant::now();
    let test = format!("{}/{}", prepared.guest, scenario.name);
    events::tell(Event::Restoring { test: test.clone() });
    let plan = scenario.plan(prepared.cycles);
    let planned = plan.cycles;
    let wanted = Session { plan: Some(plan), ..preparation(prepared, scenario)? };
    let sized = prepared.of_size(scenario.manifest.memory_mib);
    let mut machine = restore(&sized, Some(wanted), &directory, cancel).await?;
    stages.restore_ms = millis(begun);

    let begun = Instant::now();
    events::tell(Event::Recording { test, cycles: planned });
    let deadline = Duration::from_secs(prepared.deadline_secs);
    let answer = session(&mut machine, prepared.base.clock, "the recording", deadline).await;
    stages.session_ms = millis(begun);
    let recording = match answer {
        Ok(Body::Recorded(recording)) => *recording,
        Ok(other) => {
            let error = anyhow::anyhow!("unexpected answer from the guest: {other:?}");
            return give_up(machine, error, Some(scenario)).await;
        }
        Err(error) => return give_up(machine, error, Some(scenario)).await,
    };
    let judgement = judge(&recording, scenario, &baselines);
    if !judgement.deviations.is_empty() {
        machine.save_evidence(&scenario.units(), &scenario.manifest.mount).await;
    }
    machine.stop().await?;
    Ok(Run { recording, judgement, stages })
}

/// A scenario's files: its trees, its own files, its programs.
fn bundle(prepared: &Prepared, scenario: &Scenario) -> Result<Bundle> {
    let mut bundle = Bundle::default();
    let deploy = &scenario.manifest.deploy;
    for tree in &deploy.trees {
        bundle.tree(&scenario.directory.join(tree), "/")?;
    }
    let own = scenario.directory.join("files");
    if own.exists() {
        bundle.tree(&own, "/")?;
    }
    for (to, name) in &deploy.programs {
        let from = match prepared.programs.get(name) {
            Some(path) => path.clone(),
            None if name.contains('/') => scenario.directory.join(name),
            None => {
                let known: Vec<_> = prepared.programs.keys().map(String::as_str).collect();
                bail!("{}: no program {name}; there are {}", scenario.name, known.join(", "));
            }
        };
        bundle.file(&from, to, Some(0o755))?;
    }
    deploy.text.iter().for_each(|(to, text)| bundle.text(to, text));
    Ok(bundle)
}

/// The commands that make a scenario's state, its state directory's file system first.
///
/// The files are there before it is mounted, so those that belong on it are moved over.
fn setup(scenario: &Scenario) -> Vec<Vec<String>> {
    let mut setup = Vec::new();
    if let Some(at) = &scenario.manifest.state_directory {
        let script = "set -e
            mkfs.ext4 -q /dev/ram0
            mkdir -p \"$1\" /run/vm-test/state
            mount /dev/ram0 /run/vm-test/state
            cp -a \"$1/.\" /run/vm-test/state
            umount /run/vm-test/state
            mount /dev/ram0 \"$1\"";
        setup.push(["sh", "-c", script, "sh", at].map(str::to_owned).to_vec());
    }
    setup.extend(scenario.manifest.setup.iter().cloned());
    setup
}
