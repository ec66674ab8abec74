//! A scenario: a directory with a manifest, and files that are laid over the guest.
//!
//! ```text
//! <name>/scenario.toml   what to deploy, what to run, what to watch, what to expect
//! <name>/files/          laid over the guest's /
//! <name>/outcome.snap    the snapshot that its outcome is compared with
//! ```
//!
//! Scenarios that differ in a line or two share the rest: `base` names a manifest that one begins with.

pub mod bundle;
mod commands;
mod expect;
mod inherit;
mod manifest;
mod outcome;
pub mod verdict;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vm_agent::recording::Plan;

pub use commands::Check;
pub use expect::{Expect, ExpectedExit};
use inherit::read;
use manifest::check;
pub use manifest::{DEFAULT_MEMORY_MIB, Deploy, History, Manifest};
pub use outcome::{ExpectedRemount, ExpectedUmount};

/// What was asked for can't be run as it is written: wrong usage, and no fault of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing was run")]
pub struct WrongInput;

/// A scenario as it lies on disk.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The directory's name.
    pub name: String,
    /// Where it is.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Scenario {
    /// Reads a scenario's manifest and checks it.
    ///
    /// # Errors
    /// Names the file and the key, with what to do.
    pub fn load(directory: &Path) -> Result<Self> {
        let file = directory.join("scenario.toml");
        let mut manifest = read(&file)?;
        manifest.expect.unit.clone_from(&manifest.unit);
        manifest.expect.mount_unit.clone_from(&manifest.mount_unit);
        check(&manifest).with_context(|| format!("check {}", file.display()))?;
        let directory = directory.canonicalize().with_context(|| format!("find {}", directory.display()))?;
        let name = directory
            .file_name()
            .context("a scenario's directory has a name")?
            .to_string_lossy()
            .into_owned();
        Ok(Self { name, directory, manifest })
    }

    /// The names of its units, with a space between, as systemctl takes them.
    #[must_use]
    pub fn units(&self) -> String {
        let Manifest { unit, mount_unit, .. } = &self.manifest;
        [Some(unit), mount_unit.as_ref()].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ")
    }

    /// The plan of a run; `cycles` overrides the manifest's.
    #[must_use]
    pub fn plan(&self, cycles: Option<u32>) -> Plan {
        let manifest = &self.manifest;
        Plan {
            unit: manifest.unit.clone(),
            mount_unit: manifest.mount_unit.clone(),
            mount: manifest.mount.clone(),
            removed: manifest.removed.clone(),
            cycles: cycles.unwrap_or(manifest.cycles),
            start: manifest.start.clone(),
            reset: manifest.reset.clone(),
            checks: manifest.check.iter().map(|check| check.run.clone()).collect(),
            recover: manifest.recover.clone(),
            command_timeout_ms: manifest.command_timeout_secs.saturating_mul(1000),
            sample_us: manifest.sample_ms.saturating_mul(1000),
        }
    }
}

/// The sizes of machine that scenarios ask for, in MiB of RAM.
#[must_use]
pub fn memory_sizes(scenarios: &[Scenario]) -> BTreeSet<u32> {
    scenarios.iter().map(|scenario| scenario.manifest.memory_mib).collect()
}

/// The scenarios below directories, in the order of their names.
///
/// # Errors
/// When a directory can't be read, a manifest is wrong, or there is none at all.
pub fn discover(roots: &[PathBuf]) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for root in roots {
        let before = scenarios.len();
        for entry in std::fs::read_dir(root).with_context(|| format!("read {}", root.display()))? {
            let path = entry.with_context(|| format!("read {}", root.display()))?.path();
            if path.join("scenario.toml").exists() {
                scenarios.push(Scenario::load(&path)?);
            }
        }
        if scenarios.len() == before {
            bail!("no scenario in {}: none of its directories has a scenario.toml", root.display());
        }
    }
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(scenarios)
}

/// The scenarios that a user named: each a name in one of `roots`, or a path to a scenario's directory.
///
/// # Errors
/// [`WrongInput`]; names what is not there and lists what is, or what is wrong in a manifest.
pub fn select(roots: &[PathBuf], names: &[String]) -> Result<Vec<Scenario>> {
    named(roots, names).context(WrongInput)
}

fn named(roots: &[PathBuf], names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return distinct(discover(roots)?);
    }
    let mut selected = Vec::new();
    for name in names {
        let path = Path::new(name);
        if name.contains('/') || path.join("scenario.toml").exists() {
            selected.push(Scenario::load(path)?);
            continue;
        }
        let known = discover(roots)?;
        match known.iter().find(|scenario| scenario.name == *name) {
            Some(scenario) => selected.push(scenario.clone()),
            None => {
                let names: Vec<_> = known.iter().map(|scenario| scenario.name.as_str()).collect();
                bail!("no scenario {name}: there are {}, or give the path of a directory", names.join(", "));
            }
        }
    }
    distinct(selected)
}

/// Each once. Results have a scenario's name, so two of one name would have each other's.
fn distinct(scenarios: Vec<Scenario>) -> Result<Vec<Scenario>> {
    let mut once: Vec<Scenario> = Vec::new();
    for scenario in scenarios {
        match once.iter().find(|other| other.name == scenario.name) {
            None => once.push(scenario),
            Some(same) if same.directory == scenario.directory => {}
            Some(other) => bail!(
                "two scenarios are named {}: {} and {}: rename one of the directories, or run one after the other",
                scenario.name,
                other.directory.display(),
                scenario.directory.display()
            ),
        }
    }
    Ok(once)
}
