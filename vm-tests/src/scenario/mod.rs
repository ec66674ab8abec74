//! A scenario: a directory with a manifest, and files that are laid over the guest.
//!
//! ```text
//! <name>/scenario.toml   what to deploy, what to run, what to watch, what to expect
//! <name>/files/          laid over the guest's /
//! <name>/outcome.snap    the snapshot that its outcome is compared with
//! ```
//!
//! Scenarios that differ in a line or two share the rest: `base` names a manifest that one begins with.
//!
//! A manifest goes through `inherit` (files to one `tree`), `decode` (the tree to values) and `rules` (what the values say
//! together). Each tells all that is wrong, with its place.

pub mod bundle;
mod commands;
mod decode;
mod execs;
mod expect;
mod expect_mount;
mod explore;
mod inherit;
mod keys;
mod manifest;
pub mod new;
mod outcome;
mod problem;
mod reset;
mod rules;
mod tree;
pub mod verdict;

#[cfg(test)]
mod examples;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_agent::recording::Plan;
use vm_perturb::{Line, PROGRAM};

use crate::image::suite::Suite;

pub use commands::{Check, During};
use decode::{Decoded, decode};
pub use execs::{ExecLine, ExpectedEnd, ExpectedExec, ExpectedExecs, ExpectedExit};
pub use expect::Expect;
pub use expect_mount::ExpectMount;
pub use explore::{Allowed, Explore, Phase};
pub use keys::keys;
pub use manifest::{DEFAULT_MEMORY_MIB, Deploy, History, Manifest};
pub use outcome::{ExpectedRemount, ExpectedUmount};
use problem::instead;
pub use problem::{Problem, WrongInput};
pub use reset::{GO_ON, KEEP_THE_JOURNAL, Reset, SHUTDOWN};
pub(crate) use rules::is_package_name;

/// A scenario as it lies on disk.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The directory's name.
    pub name: String,
    /// Where it is.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether the manifest is another one than lies there, by whoever changed it: nothing that is measured then becomes the
    /// scenario's snapshot.
    pub is_changed: bool,
}

impl Scenario {
    /// Reads a scenario's manifest and checks it.
    ///
    /// # Errors
    /// [`WrongInput`], with all that is wrong in it.
    pub fn load(directory: &Path) -> Result<Self> {
        Ok(Self::load_with(directory, None)?)
    }

    /// Whether it is for a guest of this name. An external image is as it is.
    #[must_use]
    pub fn is_for(&self, guest: &str) -> bool {
        let images = &self.manifest.images;
        guest.parse().map_or(true, |suite| images.is_empty() || images.contains(&suite))
    }

    /// The same; it may deploy these programs by name, if it is known which there are.
    fn load_with(directory: &Path, programs: Option<&[&str]>) -> Result<Self, WrongInput> {
        let file = directory.join("scenario.toml");
        let tree = match inherit::read(&file) {
            Ok(tree) => tree,
            Err(problems) => {
                WrongInput::of(problems)?;
                return Err(WrongInput::new(format!("{}: not read", file.display())));
            }
        };
        let Decoded { value, mut problems, without } = decode::<Manifest>(&tree, &keys());
        if let Some(manifest) = &value {
            for (path, what) in rules::problems(manifest, directory, programs) {
                // Of what is left out or filled in, and of what that is a part of, enough is said.
                if !without.iter().any(|one| is_part(&path, one) || is_part(one, &path)) {
                    problems.push(tree.place_of(&path).problem(format!("{path}: {what}")));
                }
            }
        }
        WrongInput::of(problems)?;
        let wrong = |why: String| WrongInput::new(format!("{}: {why}", directory.display()));
        let mut manifest = value.ok_or_else(|| wrong("no manifest".to_owned()))?;
        // One image for one set of packages.
        manifest.packages.sort();
        manifest.packages.dedup();
        manifest.expect.unit.clone_from(&manifest.unit);
        manifest.expect.mount_unit.clone_from(&manifest.mount_unit);
        if !manifest.explore.holds.is_empty() {
            manifest.expect = manifest.expect.untimed();
        }
        let directory = directory.canonicalize().map_err(|error| wrong(error.to_string()))?;
        let name =
            directory.file_name().ok_or_else(|| wrong("a scenario's directory has a name".to_owned()))?;
        Ok(Self { name: name.to_string_lossy().into_owned(), directory, manifest, is_changed: false })
    }

    /// The same with tasks held in its runs, of one cycle each. Nothing of it becomes the scenario's snapshot.
    #[must_use]
    pub fn held(&self, line: &Line) -> Self {
        let mut held = self.clone();
        held.manifest.explore.holds = line.clone();
        held.manifest.expect = self.manifest.expect.untimed();
        held.manifest.cycles = Some(1);
        held.is_changed = true;
        held
    }

    /// The commands of a shell that show its units, as each manager that has some says.
    #[must_use]
    pub fn show_units(&self) -> String {
        let Manifest { unit, user, mount_unit, .. } = &self.manifest;
        show_units(unit, user.as_deref(), mount_unit.as_deref())
    }

    /// The watched mount point; `/` for a scenario without.
    #[must_use]
    pub fn mount_or_root(&self) -> &str {
        self.manifest.mount.as_deref().unwrap_or("/")
    }

    /// The plan of a run; `cycles` overrides the manifest's.
    #[must_use]
    pub fn plan(&self, cycles: Option<u32>) -> Plan {
        let manifest = &self.manifest;
        let mut plan = Plan {
            unit: manifest.unit.clone(),
            user: manifest.user.clone(),
            mount_unit: manifest.mount_unit.clone(),
            mount: manifest.mount.clone(),
            other_mounts: manifest.other_mounts.clone(),
            removed: manifest.removed.clone(),
            free_devices: manifest.free_devices.clone(),
            // A machine shuts down once.
            cycles: cycles.filter(|_| manifest.reset != Reset::Shutdown).unwrap_or(manifest.cycles()),
            keeps_start_limit: manifest.start_limit,
            start: manifest.start.clone(),
            reset: manifest.reset.argv(),
            during: manifest.during.iter().map(During::planned).collect(),
            checks: manifest.check.iter().map(|check| check.run.clone()).collect(),
            boot_checks: manifest.boot_check.iter().map(|check| check.run.clone()).collect(),
            recover: manifest.recover.clone(),
            command_timeout_ms: manifest.command_timeout_secs.saturating_mul(1000),
            sample_us: manifest.sample_ms.saturating_mul(1000),
        };
        if !manifest.explore.holds.is_empty() {
            manifest.explored(&mut plan.start, &mut plan.reset).insert(0, PROGRAM.to_owned());
        }
        plan
    }
}

/// See [`Scenario::show_units`]: the unit under test, the user whose manager has it, the unit that makes its mount.
pub(crate) fn show_units(unit: &str, user: Option<&str>, mount_unit: Option<&str>) -> String {
    let mut of_system: Vec<&str> = mount_unit.into_iter().collect();
    let show = |systemctl: &str, units: &str| {
        format!("{systemctl} show {units}; echo; {systemctl} status --no-pager --full {units}; echo; ")
    };
    let of_user = match user {
        Some(user) => show(&format!("runuser -u {user} -- systemctl --user"), unit),
        None => {
            of_system.insert(0, unit);
            String::new()
        }
    };
    match of_system.as_slice() {
        [] => of_user,
        units => of_user + &show("systemctl", &units.join(" ")),
    }
}

/// Whether a key's path is another or lies below it.
fn is_part(path: &str, of: &str) -> bool {
    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A machine that a scenario asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The scenario's name; empty if it is none that asks.
    pub by: String,
    /// Debian packages that its image has beside the usual ones, in their order.
    pub packages: Vec<String>,
    /// The images that the scenario is for; empty: all.
    pub images: Vec<Suite>,
    /// Its RAM, in MiB.
    pub memory_mib: u32,
    /// Whether tasks are held in it.
    pub holds: bool,
}

impl Wanted {
    /// One of the usual image.
    #[must_use]
    pub fn of_size(memory_mib: u32) -> Self {
        Self { memory_mib, ..Self::default() }
    }

    /// One for each scenario.
    #[must_use]
    pub fn by(scenarios: &[Scenario]) -> Vec<Self> {
        let wanted = |scenario: &Scenario| Self {
            by: scenario.name.clone(),
            packages: scenario.manifest.packages.clone(),
            images: scenario.manifest.images.clone(),
            memory_mib: scenario.manifest.memory_mib,
            holds: !scenario.manifest.explore.holds.is_empty(),
        };
        scenarios.iter().map(wanted).collect()
    }
}

/// The scenarios that a user named: each a name in one of `roots`, or a path to a scenario's directory; all in `roots` if
/// there are no names. `programs` are those that a scenario can deploy by name, if that is known.
///
/// # Errors
/// [`WrongInput`], with all that is wrong: names that are not there, and manifests.
pub fn select(roots: &[PathBuf], names: &[String], programs: Option<&[&str]>) -> Result<Vec<Scenario>> {
    let mut problems = Vec::new();
    let mut scenarios = Vec::new();
    for directory in directories(roots, names, &mut problems) {
        match Scenario::load_with(&directory, programs) {
            Ok(scenario) => scenarios.push(scenario),
            Err(wrong) => problems.extend(wrong.problems().iter().cloned()),
        }
    }
    let once = distinct(scenarios, &mut problems);
    WrongInput::of(problems)?;
    Ok(once)
}

/// The directories of the scenarios that a user named, as a user would name them.
fn directories(roots: &[PathBuf], names: &[String], problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let wrong = |what: String| WrongInput::new(what).problems().to_vec();
    let mut known: Vec<(String, PathBuf)> = Vec::new();
    for root in roots {
        let before = known.len();
        match in_root(root) {
            Ok(found) => known.extend(found),
            // Who names a directory needs none of the roots.
            Err(_) if names.iter().all(|name| is_path(name)) && !names.is_empty() => {}
            Err(error) => problems.extend(wrong(format!("read {}: {error}", root.display()))),
        }
        if known.len() == before && names.is_empty() && problems.is_empty() {
            problems.extend(wrong(format!(
                "no scenario in {}: none of its directories has a scenario.toml",
                root.display()
            )));
        }
    }
    known.sort();
    if names.is_empty() {
        return known.into_iter().map(|(_, directory)| directory).collect();
    }
    let mut selected = Vec::new();
    for name in names {
        match known.iter().find(|(one, _)| one == name && !is_path(name)) {
            Some((_, directory)) => selected.push(directory.clone()),
            None if is_path(name) => selected.push(PathBuf::from(name)),
            None => {
                let names = known.iter().map(|(name, _)| name.as_str());
                let there_are = instead(name, names);
                problems.extend(wrong(format!(
                    "no scenario {name}: {there_are} (or give the path of a directory)"
                )));
            }
        }
    }
    selected
}

fn is_path(name: &str) -> bool {
    name.contains('/') || Path::new(name).join("scenario.toml").exists()
}

/// The scenarios in a directory: name and place of each.
fn in_root(root: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.path().join("scenario.toml").exists() {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    Ok(found)
}

/// Each once. Results have a scenario's name, so two of one name would have each other's.
fn distinct(scenarios: Vec<Scenario>, problems: &mut Vec<Problem>) -> Vec<Scenario> {
    let mut once: Vec<Scenario> = Vec::new();
    for scenario in scenarios {
        match once.iter().find(|other| other.name == scenario.name) {
            None => once.push(scenario),
            Some(same) if same.directory == scenario.directory => {}
            Some(other) => problems.extend(
                WrongInput::new(format!(
                    "two scenarios are named {}: {} and {}: rename one of the directories, or run one after the other",
                    scenario.name,
                    other.directory.display(),
                    scenario.directory.display()
                ))
                .problems()
                .iter()
                .cloned(),
            ),
        }
    }
    once
}
