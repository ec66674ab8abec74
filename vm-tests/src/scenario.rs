//! A scenario: a directory with a manifest, and files that are laid over the guest.
//!
//! ```text
//! <name>/scenario.toml   what to deploy, what to run, what to watch, what to expect
//! <name>/files/          laid over the guest's /
//! <name>/outcome.snap    the snapshot that its outcome is compared with
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use vm_agent::recording::Plan;

/// `scenario.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// One line: what this scenario shows.
    pub description: String,
    /// The unit under test.
    pub unit: String,
    /// The mount point under watch, absolute.
    pub mount: String,
    /// Where the machine gets an empty ext4 of its own (a RAM disk), because an overlay's upper layer can't lie
    /// on the machine's root, which is an overlay itself.
    #[serde(default)]
    pub state_directory: Option<String>,
    /// How many cycles, unless `--cycles` says otherwise.
    #[serde(default = "default_cycles")]
    pub cycles: u32,
    /// What the guest gets.
    #[serde(default)]
    pub deploy: Deploy,
    /// Commands that bring the guest into its state after the files are there; each must succeed.
    #[serde(default)]
    pub setup: Vec<Vec<String>>,
    /// Paths that a reset is meant to remove; none inside the mount.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Brings the unit up.
    pub start: Vec<String>,
    /// Brings it down again.
    pub reset: Vec<String>,
    /// Run after a cycle that left something mounted or the unit failed.
    #[serde(default)]
    pub recover: Vec<Vec<String>>,
    /// The longest a command of a cycle may take, in seconds of guest time.
    #[serde(default = "default_command_timeout")]
    pub command_timeout_secs: u64,
    /// How often the unit's tasks are looked at while it stops, in milliseconds of guest time.
    #[serde(default = "default_sample")]
    pub sample_ms: u64,
    /// What every cycle must be, whatever the snapshot says.
    pub expect: Expect,
}

/// What the guest gets, in this order.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// Trees of the host, relative to the scenario's directory, laid over the guest's `/`; then `files/`.
    #[serde(default)]
    pub trees: Vec<PathBuf>,
    /// Programs: where each goes in the guest, and its name among those that the harness builds
    /// (`left4me-overlay`, `l4d2ctl`, `vm-game`) or, with a `/` in it, its path from the scenario's directory.
    #[serde(default)]
    pub programs: BTreeMap<String, String>,
}

/// What every cycle must be. The numbers are bounds; the shape is also in the snapshot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The reset command's exit status.
    pub reset_exit: i32,
    /// The longest a reset may take, in milliseconds of guest time.
    pub reset_under_ms: u64,
    /// The unit's ActiveState afterwards.
    pub active_state: String,
    /// The exit status of the last ExecStopPost; left out for a unit that has none.
    #[serde(default)]
    pub exec_stop_post: Option<i32>,
    /// Whether the watched path is still a mount point afterwards.
    pub mounted: bool,
    /// Which paths of `removed` are still there afterwards.
    #[serde(default)]
    pub left_over: Vec<String>,
    /// Who holds the mount when it is unmounted, as `<role> <comm> (<kind>, …)`; empty: nobody.
    pub holders: Vec<String>,
}

fn default_cycles() -> u32 {
    10
}

fn default_command_timeout() -> u64 {
    120
}

fn default_sample() -> u64 {
    10
}

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
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!("read {}: a scenario is a directory with a scenario.toml", file.display())
        })?;
        let manifest: Manifest =
            toml::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        check(&manifest).with_context(|| format!("check {}", file.display()))?;
        let directory = directory.canonicalize().with_context(|| format!("find {}", directory.display()))?;
        let name = directory
            .file_name()
            .context("a scenario's directory has a name")?
            .to_string_lossy()
            .into_owned();
        Ok(Self { name, directory, manifest })
    }

    /// The plan of a run; `cycles` overrides the manifest's.
    #[must_use]
    pub fn plan(&self, cycles: Option<u32>) -> Plan {
        let manifest = &self.manifest;
        Plan {
            unit: manifest.unit.clone(),
            mount: manifest.mount.clone(),
            removed: manifest.removed.clone(),
            cycles: cycles.unwrap_or(manifest.cycles),
            start: manifest.start.clone(),
            reset: manifest.reset.clone(),
            recover: manifest.recover.clone(),
            command_timeout_ms: manifest.command_timeout_secs.saturating_mul(1000),
            sample_us: manifest.sample_ms.saturating_mul(1000),
        }
    }
}

fn check(manifest: &Manifest) -> Result<()> {
    let absolute = |key: &str, path: &str| {
        ensure!(
            path.starts_with('/') && !path.ends_with('/'),
            "{key} = {path:?}: give an absolute path without a final slash"
        );
        Ok(())
    };
    absolute("mount", &manifest.mount)?;
    manifest.state_directory.as_deref().map_or(Ok(()), |path| absolute("state_directory", path))?;
    for path in &manifest.removed {
        absolute("removed", path)?;
        let inside =
            path.strip_prefix(&manifest.mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        ensure!(!inside, "removed: {path} is the mount or lies in it: looking there would hold it");
    }
    for path in manifest.deploy.programs.keys() {
        absolute("deploy.programs", path)?;
    }
    ensure!(manifest.unit.contains('.'), "unit = {:?}: give the full name, with .service", manifest.unit);
    ensure!(manifest.cycles > 0, "cycles = 0: nothing would be run");
    ensure!(manifest.sample_ms > 0, "sample_ms = 0: give at least 1");
    let commands = [("start", &manifest.start), ("reset", &manifest.reset)];
    let lists = manifest
        .setup
        .iter()
        .map(|argv| ("setup", argv))
        .chain(manifest.recover.iter().map(|argv| ("recover", argv)));
    for (key, argv) in commands.into_iter().chain(lists) {
        ensure!(!argv.is_empty(), "{key}: an empty command");
    }
    Ok(())
}

/// The scenarios below a directory, in the order of their names.
///
/// # Errors
/// When the directory can't be read, a manifest is wrong, or there is none at all.
pub fn discover(root: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("read {}", root.display()))? {
        let path = entry.with_context(|| format!("read {}", root.display()))?.path();
        if path.join("scenario.toml").exists() {
            scenarios.push(Scenario::load(&path)?);
        }
    }
    if scenarios.is_empty() {
        bail!("no scenario in {}: none of its directories has a scenario.toml", root.display());
    }
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(scenarios)
}

/// The scenarios that a user named: each a name in `root`, or a path to a scenario's directory.
///
/// # Errors
/// Names what is not there and lists what is.
pub fn select(root: &Path, names: &[String]) -> Result<Vec<Scenario>> {
    if names.is_empty() {
        return discover(root);
    }
    let mut selected = Vec::new();
    for name in names {
        let path = Path::new(name);
        if name.contains('/') || path.join("scenario.toml").exists() {
            selected.push(Scenario::load(path)?);
            continue;
        }
        let known = discover(root)?;
        match known.iter().find(|scenario| scenario.name == *name) {
            Some(scenario) => selected.push(scenario.clone()),
            None => {
                let names: Vec<_> = known.iter().map(|scenario| scenario.name.as_str()).collect();
                bail!("no scenario {name}: there are {}, or give the path of a directory", names.join(", "));
            }
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
description = "d"
unit = "x.service"
mount = "/m"
start = ["true"]
reset = ["true"]
[expect]
reset_exit = 0
reset_under_ms = 1000
active_state = "inactive"
exec_stop_post = 0
mounted = false
holders = []
"#;

    #[test]
    fn manifests() {
        let parse = |text: &str| -> Result<()> { check(&toml::from_str(text)?) };
        parse(GOOD).expect("the plain one");
        let cases = [
            (GOOD.replace("\"/m\"", "\"m\""), "absolute"),
            (GOOD.replace("\"/m\"", "\"/m/\""), "absolute"),
            (GOOD.replace("x.service", "x"), "full name"),
            (GOOD.replace("reset = [\"true\"]", "reset = []"), "empty command"),
            (GOOD.replace("unit =", "unti ="), "unti"),
            (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\nremoved = [\"/m/x\"]"), "looking there"),
            (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\ncycles = 0"), "nothing would be run"),
        ];
        for (text, words) in cases {
            let error = format!("{:#}", parse(&text).expect_err(words));
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }

    #[test]
    fn a_name_that_is_not_there_lists_what_is() {
        let root = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(root.path().join("one")).expect("mkdir");
        std::fs::write(root.path().join("one/scenario.toml"), GOOD).expect("write");
        let error = select(root.path(), &["two".into()]).expect_err("no such scenario").to_string();
        assert!(error.contains("there are one"), "{error}");
        assert_eq!(select(root.path(), &[]).expect("all").len(), 1);
    }
}
