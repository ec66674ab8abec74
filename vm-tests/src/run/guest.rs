//! A guest: its machines, restored and given a session.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vm_agent::wire::{Body, Session, Stop};
use vm_perturb::{ORDER, PROGRAM};

use super::input::Input;
use super::installed::Installed;
use crate::host::accel::Clock;
use crate::image::Suite;
use crate::image::programs::PERTURBER;
use crate::machine::base::Base;
use crate::machine::config::{Config, DEPLOY_BYTES, Ram};
use crate::machine::saved::{self, Saved};
use crate::machine::{Cancel, Machine};
use crate::scenario::bundle::{self, Bundle};
use crate::scenario::{KEEP_THE_JOURNAL, Scenario};

/// From a restored machine's first instruction to the end of its set-up, in wall time.
const SETUP_DEADLINE: Duration = Duration::from_secs(300);

/// A system that machines are made of, with all that they need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guest {
    /// Its short name: its Debian suite, an installed guest's own, or [`EXTERNAL`](crate::image::EXTERNAL).
    pub name: String,
    /// Debian packages that its image has beside the usual ones. Guests that differ in these alone have one name.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The name of all its packages by their versions, as a lock file has it; none of an external image.
    #[serde(default)]
    pub lock: Option<String>,
    /// What every machine is made of.
    pub base: Base,
    /// The booted machines that scenarios start from, by their RAM in MiB: one for each size that was asked for.
    pub saved: BTreeMap<u32, Saved>,
    /// What the image is, in one line.
    pub image: String,
    /// The packages of its image and the harness's own programs in its machines: what explains another image, another
    /// machine.
    #[serde(default)]
    pub explained: Vec<Input>,
    /// The accelerator and the clock and why, in one line.
    pub choice: String,
    /// What it brings itself, where the product is installed in it.
    #[serde(default)]
    pub installed: Option<Installed>,
    /// The programs that a scenario can deploy, by name.
    pub programs: BTreeMap<String, PathBuf>,
}

impl Guest {
    /// The same with machines of another size.
    #[must_use]
    pub fn of_size(&self, memory_mib: u32) -> Self {
        let mut other = self.clone();
        other.base.memory_mib = memory_mib;
        other
    }

    /// Whether a scenario is run on it: its image has the packages, and is one of those that the scenario is for. An
    /// external image has what it has.
    #[must_use]
    pub fn runs(&self, scenario: &Scenario) -> bool {
        let is_external = self.name.parse::<Suite>().is_err();
        scenario.is_for(&self.name) && (is_external || self.packages == scenario.manifest.packages)
    }

    /// The saved machine of the base's size.
    ///
    /// # Errors
    /// Says which there are, where none of this size was prepared.
    pub fn saved(&self) -> Result<&Saved> {
        let wanted = self.base.memory_mib;
        let Some(saved) = self.saved.get(&wanted) else {
            let there: Vec<_> = self.saved.keys().map(u32::to_string).collect();
            bail!("no machine of {wanted} MiB is prepared for {}, but of {}", self.name, there.join(", "));
        };
        Ok(saved)
    }
}

/// Restores the saved machine, paused, with a session on its deploy device, if there is one. [`session`] begins it.
///
/// # Errors
/// When the session is too large, or QEMU refuses.
pub async fn restore(
    guest: &Guest,
    session: Option<Session>,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = deploy_image(directory);
    bundle::write_deploy_image(&deploy, session)?;
    restore_with(guest, deploy, false, directory, cancel).await
}

/// Restores the saved machine with a disk that outlives it in place of the deploy device, and lets it run a session that
/// it is given on the channel. The disk is a file of [`DEPLOY_BYTES`], and made where there is none. A guest must not
/// believe what it has cached of the device: the saved machine had another one (`blockdev --flushbufs`).
///
/// # Errors
/// As [`restore`] and [`session`].
pub async fn with_disk(
    guest: &Guest,
    wanted: Session,
    disk: &Path,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let make = || File::options().append(true).create(true).open(disk)?.set_len(DEPLOY_BYTES);
    make().with_context(|| format!("make {}", disk.display()))?;
    let mut machine = restore_with(guest, disk.to_owned(), true, directory, cancel).await?;
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

/// As [`restore`], and what the guest writes to its deploy device is in its file.
///
/// # Errors
/// As [`restore`].
pub(super) async fn restore_keeping(
    guest: &Guest,
    session: Session,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = deploy_image(directory);
    bundle::write_deploy_image(&deploy, Some(session))?;
    restore_with(guest, deploy, true, directory, cancel).await
}

/// The file of a machine's deploy device.
pub(super) fn deploy_image(directory: &Path) -> PathBuf {
    directory.join("deploy.img")
}

async fn restore_with(
    guest: &Guest,
    deploy: PathBuf,
    keeps: bool,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let Saved { ram, state, .. } = guest.saved()?;
    restore_from(guest, Ram::Restoring(ram.clone()), state, deploy, keeps, directory, cancel).await
}

/// Restores a machine of a guest from these files.
pub(super) async fn restore_from(
    guest: &Guest,
    ram: Ram,
    state: &Path,
    deploy: PathBuf,
    keeps: bool,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    // A run has its files open; the next one of a long search has yet to open them.
    saved::mark_used(state.parent().context("a saved machine's directory")?)?;
    let config = Config { keeps, ..guest.base.config(ram, deploy) };
    let mut machine = Machine::start(&guest.base.qemu, config, directory, cancel).await?;
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

/// Restores a machine for a shell: with a scenario's files and set-up, if one is given, and this build of `holders` on its
/// `PATH`.
///
/// # Errors
/// As [`restore`] and [`session`].
pub async fn prepare_shell(
    guest: &Guest,
    scenario: Option<&Scenario>,
    holders: Option<&Path>,
    directory: &Path,
    cancel: Cancel,
) -> Result<Machine> {
    let mut wanted = match scenario {
        Some(scenario) => preparation(guest, scenario)?,
        None => Session::default(),
    };
    if let Some(holders) = holders {
        let mut tool = Bundle::default();
        tool.file(holders, "/usr/local/bin/holders", Some(0o755))?;
        if let Some(installed) = &guest.installed {
            tool = tool.placed(|path| installed.place(path))?;
        }
        // First: a scenario may deploy one of its own there.
        wanted.files.splice(0..0, tool.into_files());
    }
    let size = scenario.map_or(guest.base.memory_mib, |scenario| scenario.manifest.memory_mib);
    let mut machine = restore(&guest.of_size(size), Some(wanted), directory, cancel).await?;
    match session(&mut machine, guest.base.clock, "the set-up", SETUP_DEADLINE).await {
        Ok(_done) => Ok(machine),
        Err(error) => give_up(machine, error, scenario).await,
    }
}

/// A scenario's files and set-up, without a plan.
///
/// # Errors
/// When a file can't be read, or a program is not known.
pub fn preparation(guest: &Guest, scenario: &Scenario) -> Result<Session> {
    let files = bundle(guest, scenario)?.into_files();
    Ok(Session {
        files,
        user: scenario.manifest.user.clone(),
        setup: setup(guest, scenario),
        plan: None,
        stop: Stop::default(),
    })
}

/// Saves evidence, stops the machine and says all that went wrong, and where the evidence is.
async fn give_up<T>(machine: Machine, error: anyhow::Error, scenario: Option<&Scenario>) -> Result<T> {
    let evidence = format!("evidence: {}", machine.directory().display());
    let units = scenario.map(Scenario::show_units).unwrap_or_default();
    end_with(machine, error.context(evidence), &units, scenario.map_or("/", Scenario::mount_or_root)).await
}

/// Saves evidence, of these units ([`Scenario::show_units`]) and of this mount, stops the machine and says all that went wrong.
pub(super) async fn end_with<T>(
    mut machine: Machine,
    error: anyhow::Error,
    units: &str,
    mount: &str,
) -> Result<T> {
    machine.save_evidence(units, mount).await;
    machine.finish(Err(error)).await
}

/// A scenario's files: its trees, its own files, its programs.
fn bundle(guest: &Guest, scenario: &Scenario) -> Result<Bundle> {
    let mut bundle = Bundle::default();
    let deploy = &scenario.manifest.deploy;
    let installed = guest.installed.as_ref();
    for tree in deploy.trees.iter().map(|tree| scenario.directory.join(tree)) {
        if installed.is_none_or(|one| !one.has_tree(&tree)) {
            bundle.tree(&tree, "/")?;
        }
    }
    let own = scenario.directory.join("files");
    if own.exists() {
        bundle.tree(&own, "/")?;
    }
    let brings = |to: &str, name: &str| installed.is_some_and(|one| one.has_program(name, to));
    for (to, name) in deploy.programs.iter().filter(|(to, name)| !brings(to, name)) {
        let from = match guest.programs.get(name) {
            Some(path) => path.clone(),
            None if name.contains('/') => scenario.directory.join(name),
            None => {
                let known: Vec<_> = guest.programs.keys().map(String::as_str).collect();
                bail!("{}: no program {name}; there are {}", scenario.name, known.join(", "));
            }
        };
        bundle.file(&from, to, Some(0o755))?;
    }
    deploy.text.iter().for_each(|(to, text)| bundle.text(to, text));
    scenario.manifest.reset.files().iter().for_each(|(to, text)| bundle.text(to, text));
    let holds = &scenario.manifest.explore.holds;
    if !holds.is_empty() {
        let program = guest.programs.get(PERTURBER);
        let program = program.with_context(|| format!("{}: no {PERTURBER} was built", scenario.name))?;
        bundle.file(program, PROGRAM, Some(0o755))?;
        bundle.text(ORDER, &scenario.manifest.order(holds, true).to_text()?);
    }
    match installed {
        Some(installed) => {
            let what = || format!("{} is for no guest like {}", scenario.name, guest.name);
            let mut bundle = bundle.placed(|path| installed.place(path)).with_context(what)?;
            for (to, text) in installed.beside(bundle.paths()) {
                bundle.text(&to, text);
            }
            Ok(bundle)
        }
        None => Ok(bundle),
    }
}

/// The commands that make a scenario's state, its state directory's file system first.
///
/// The files are there before it is mounted, so those that belong on it are moved over.
fn setup(guest: &Guest, scenario: &Scenario) -> Vec<Vec<String>> {
    let mut setup = scenario.manifest.reset.setup();
    if !scenario.manifest.boot_check.is_empty() {
        setup.extend(KEEP_THE_JOURNAL.map(|argv| argv.iter().map(|word| (*word).to_owned()).collect()));
    }
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
    let own = scenario.manifest.setup.iter();
    setup.extend(own.filter(|argv| guest.installed.as_ref().is_none_or(|one| !one.has_run(argv))).cloned());
    setup
}
