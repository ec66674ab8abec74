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
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use vm_agent::recording::Plan;
use vm_agent::wire::Exit;

use crate::scenario::verdict::MountVerdict;

/// The RAM of a machine that is asked for no other, in MiB. A guest with systemd, journald, udev, D-Bus and a scenario
/// uses 120 MiB of it.
pub const DEFAULT_MEMORY_MIB: u32 = 512;

/// What a guest needs to boot, in MiB, its initramfs and the tmpfs over its root included.
const LEAST_MEMORY_MIB: u32 = 256;

/// `scenario.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// One line: what this scenario shows.
    pub description: String,
    /// The unit under test.
    pub unit: String,
    /// The unit whose commands make and unmake the mount, where that is not the unit under test.
    #[serde(default)]
    pub mount_unit: Option<String>,
    /// The mount point under watch, absolute.
    pub mount: String,
    /// Where the machine gets an empty ext4 of its own (a RAM disk), because an overlay's upper layer can't lie
    /// on the machine's root, which is an overlay itself.
    #[serde(default)]
    pub state_directory: Option<String>,
    /// The machine's RAM, in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
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
    /// Run after a cycle that left something mounted, a process of one of the units, or one of them failed.
    #[serde(default)]
    pub recover: Vec<Vec<String>>,
    /// The longest a command of a cycle may take, in seconds of guest time.
    #[serde(default = "default_command_timeout")]
    pub command_timeout_secs: u64,
    /// How often the units' tasks are looked at while one stops, in milliseconds of guest time.
    #[serde(default = "default_sample")]
    pub sample_ms: u64,
    /// What every cycle must be, whatever the snapshot says.
    pub expect: Expect,
    /// Its place in a history that is told as one table.
    #[serde(default)]
    pub history: Option<History>,
}

/// A step of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Its number: the order of the table's lines.
    pub step: u32,
    /// What the step was, in a few words.
    pub what: String,
    /// What was written of it at the time.
    pub told: String,
}

/// What the guest gets, in this order.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// Trees of the host, relative to the scenario's directory, laid over the guest's `/`; then `files/`.
    #[serde(default)]
    pub trees: Vec<PathBuf>,
    /// Programs: where each goes in the guest, and its name among those that the harness builds
    /// (`left4me-overlay`, `l4d2ctl`, `vm-game`, `vm-attack`, `vm-hostile`, `vm-kill`) or, with a `/` in it, its path
    /// from the scenario's directory.
    #[serde(default)]
    pub programs: BTreeMap<String, String>,
    /// Small files, after all others: where each goes in the guest, and what is in it. Drop-ins of a unit, say, so
    /// that what a scenario changes is seen in its manifest.
    #[serde(default)]
    pub text: BTreeMap<String, String>,
}

/// What every cycle must be. The numbers are bounds; the shape is also in the snapshot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The start command's exit status.
    #[serde(default)]
    pub start_exit: i32,
    /// The reset command's exit status.
    pub reset_exit: i32,
    /// The shortest a reset must take, in milliseconds of guest time.
    #[serde(default)]
    pub reset_from_ms: u64,
    /// The longest a reset may take, in milliseconds of guest time.
    pub reset_under_ms: u64,
    /// The unit's ActiveState afterwards.
    pub active_state: String,
    /// The ActiveState of the mount's unit afterwards. Left out: `inactive`.
    #[serde(default)]
    pub mount_unit_state: Option<String>,
    /// How the last ExecStopPost of either unit ended; left out where neither has one.
    #[serde(default)]
    pub exec_stop_post: Option<ExpectedExit>,
    /// How the last umount2(2) went: `ok`, `none`, or the name of an errno. Left out: `ok` or none at all, and if the
    /// mount is meant to stay, anything.
    #[serde(default)]
    pub umount: Option<String>,
    /// The verdict on who kept the mount, in [`MountVerdict::words`]. Left out: nobody.
    #[serde(default, deserialize_with = "MountVerdict::from_words")]
    pub verdict: Option<MountVerdict>,
    /// Units that must be seen in a namespace with a copy of the mount, and nothing held in it.
    #[serde(default)]
    pub listed: Vec<String>,
    /// Whether the watched path is still a mount point afterwards.
    pub mounted: bool,
    /// Which paths of `removed` are still there afterwards.
    #[serde(default)]
    pub left_over: Vec<String>,
    /// Who holds the mount when it is unmounted, as `<role> <comm> (<kind>, …)`; empty: nobody.
    pub holders: Vec<String>,
    /// Where the file system is still mounted after it was unmounted, as `<unit>: <path>`.
    #[serde(default)]
    pub mounted_elsewhere: Vec<String>,
    /// The next mount of the same layers: `silent`, `in use`, the name of an errno, or `not tried: <why>`. Left out:
    /// silent or not tried.
    #[serde(default)]
    pub remount: Option<String>,
    /// comm of each process that is left in the cgroup of the unit, or of the mount's unit.
    #[serde(default)]
    pub left_processes: Vec<String>,
    /// Failed units besides the one under test and the mount's, whose states are `active_state` and `mount_unit_state`.
    #[serde(default)]
    pub other_failed_units: Vec<String>,
    /// What the kernel logs of level warning or worse.
    #[serde(default)]
    pub kernel_warnings: Vec<String>,
    /// comm of each process that dies of a signal that dumps core.
    #[serde(default)]
    pub core_dumps: Vec<String>,
    /// Words that the reset command must write to stderr, each anywhere in it. `{pid}` stands for the process id of one
    /// that held the mount when it was unmounted.
    #[serde(default)]
    pub reset_stderr: Vec<String>,
    /// The unit under test, for [`Expect::failed_units`].
    #[serde(skip)]
    unit: String,
    /// The mount's unit, where there is one, for [`Expect::mount_unit_state`].
    #[serde(skip)]
    mount_unit: Option<String>,
}

/// How a process is meant to end: an exit status, or the name of a signal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ExpectedExit {
    /// Its exit status.
    Code(i32),
    /// The signal that ends it, as `SIGTERM`.
    Signal(String),
}

impl ExpectedExit {
    /// `None` for a name that is no signal's.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        match self {
            Self::Code(code) => Some(Exit::Code(*code)),
            Self::Signal(name) => name.parse::<Signal>().ok().map(|signal| Exit::Signal(signal as i32)),
        }
    }
}

impl Expect {
    /// The shortest a reset must take.
    #[must_use]
    pub fn reset_from(&self) -> Duration {
        Duration::from_millis(self.reset_from_ms)
    }

    /// The longest a reset may take.
    #[must_use]
    pub fn reset_under(&self) -> Duration {
        Duration::from_millis(self.reset_under_ms)
    }

    /// The ActiveState that the mount's unit must have afterwards; `None` where the scenario has no such unit.
    #[must_use]
    pub fn mount_unit_state(&self) -> Option<&str> {
        self.mount_unit.as_ref().map(|_| self.mount_unit_state.as_deref().unwrap_or("inactive"))
    }

    /// All units that are meant to be failed, in the order of their names.
    #[must_use]
    pub fn failed_units(&self) -> Vec<String> {
        let own = (self.active_state == "failed").then(|| self.unit.clone());
        let mounts = self.mount_unit.clone().filter(|_| self.mount_unit_state() == Some("failed"));
        let mut units: Vec<String> =
            self.other_failed_units.iter().cloned().chain(own).chain(mounts).collect();
        units.sort();
        units
    }
}

fn default_cycles() -> u32 {
    10
}

fn default_memory() -> u32 {
    DEFAULT_MEMORY_MIB
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
            recover: manifest.recover.clone(),
            command_timeout_ms: manifest.command_timeout_secs.saturating_mul(1000),
            sample_us: manifest.sample_ms.saturating_mul(1000),
        }
    }
}

/// Reads a manifest and the one that it begins with.
fn read(file: &Path) -> Result<Manifest> {
    let text = std::fs::read_to_string(file).with_context(|| {
        format!("read {}: a scenario is a directory with a scenario.toml", file.display())
    })?;
    let what = || format!("parse {}", file.display());
    let own: toml::Table = toml::from_str(&text).with_context(what)?;
    if own.contains_key(BASE) {
        let whole = with_base(own, file)?;
        whole.try_into().with_context(|| format!("{}, with its base", what()))
    } else {
        // From the text, so that an error names the line.
        toml::from_str(&text).with_context(what)
    }
}

const BASE: &str = "base";

/// What a base may itself begin with is bounded, so that two that name each other are an error.
const BASES: usize = 4;

/// A manifest laid over its base. Tables are merged, `deploy.trees` of the base come first, any other key replaces the
/// base's. The base's paths are relative to where it lies.
fn with_base(mut own: toml::Table, file: &Path) -> Result<toml::Table> {
    let mut file = file.to_owned();
    for _ in 0..BASES {
        let Some(base) = own.remove(BASE) else { return Ok(own) };
        let base = base.as_str().with_context(|| format!("{}: base: give a path", file.display()))?;
        let directory = file.parent().context("a manifest lies in a directory")?.to_owned();
        file = directory.join(base);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read base {}", file.display()))?;
        let mut base: toml::Table =
            toml::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        let directory = file.parent().context("a manifest lies in a directory")?;
        make_absolute(&mut base, &std::path::absolute(directory)?);
        merge(&mut base, own);
        own = base;
    }
    bail!("{}: more than {BASES} bases in a row", file.display())
}

fn make_absolute(base: &mut toml::Table, directory: &Path) {
    let join = |value: &mut toml::Value| {
        if let toml::Value::String(path) = value {
            *path = directory.join(&path).to_string_lossy().into_owned();
        }
    };
    let Some(toml::Value::Table(deploy)) = base.get_mut("deploy") else { return };
    if let Some(toml::Value::Array(trees)) = deploy.get_mut("trees") {
        trees.iter_mut().for_each(join);
    }
    if let Some(toml::Value::Table(programs)) = deploy.get_mut("programs") {
        let is_path = |value: &&mut toml::Value| value.as_str().is_some_and(|name| name.contains('/'));
        programs.iter_mut().map(|(_, value)| value).filter(is_path).for_each(join);
    }
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (Some(toml::Value::Array(base)), toml::Value::Array(over)) if key == "trees" => base.extend(over),
            (_, value) => drop(base.insert(key, value)),
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
    for path in manifest.deploy.text.keys() {
        absolute("deploy.text", path)?;
    }
    if let Some(ExpectedExit::Signal(name)) = &manifest.expect.exec_stop_post {
        let signal = manifest.expect.exec_stop_post.as_ref().and_then(ExpectedExit::exit);
        ensure!(
            signal.is_some(),
            "exec_stop_post = {name:?}: give an exit status or a signal, as \"SIGTERM\""
        );
    }
    ensure!(manifest.unit.contains('.'), "unit = {:?}: give the full name, with .service", manifest.unit);
    ensure!(
        manifest.memory_mib >= LEAST_MEMORY_MIB,
        "memory_mib = {}: a guest needs {LEAST_MEMORY_MIB} to boot",
        manifest.memory_mib
    );
    match &manifest.mount_unit {
        Some(mount_unit) => {
            // Exec lines and a cgroup of its own, which a .mount unit has in other properties.
            ensure!(
                mount_unit.ends_with(".service"),
                "mount_unit = {mount_unit:?}: give the full name of a service, with .service"
            );
            ensure!(
                *mount_unit != manifest.unit,
                "mount_unit = {mount_unit:?}: that is the unit under test; leave it out where that mounts itself"
            );
        }
        None => ensure!(
            manifest.expect.mount_unit_state.is_none(),
            "mount_unit_state: whose? give mount_unit, or leave it out"
        ),
    }
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

/// The sizes of machine that scenarios ask for, in MiB of RAM.
#[must_use]
pub fn memory_sizes(scenarios: &[Scenario]) -> BTreeSet<u32> {
    scenarios.iter().map(|scenario| scenario.manifest.memory_mib).collect()
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
            (GOOD.replace("mount =", "memory_mib = 64\nmount ="), "needs 256 to boot"),
            (GOOD.replace("mount =", "mount_unit = \"x\"\nmount ="), "a service"),
            (GOOD.replace("mount =", "mount_unit = \"m.mount\"\nmount ="), "a service"),
            (GOOD.replace("mount =", "mount_unit = \"x.service\"\nmount ="), "the unit under test"),
            (format!("{GOOD}mount_unit_state = \"failed\""), "whose?"),
            (GOOD.replace("reset = [\"true\"]", "reset = []"), "empty command"),
            (GOOD.replace("unit =", "unti ="), "unti"),
            (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\nremoved = [\"/m/x\"]"), "looking there"),
            (GOOD.replace("mount = \"/m\"", "mount = \"/m\"\ncycles = 0"), "nothing would be run"),
            (
                GOOD.replace("exec_stop_post = 0", "exec_stop_post = \"SIGNOT\""),
                "give an exit status or a signal",
            ),
            (
                GOOD.replace("holders = []", "holders = []\nverdict = \"held\""),
                "there are held by a process, ",
            ),
            (format!("{GOOD}\n[deploy.text]\nx = \"y\""), "deploy.text"),
        ];
        for (text, words) in cases {
            let error = format!("{:#}", parse(&text).expect_err(words));
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }

    #[test]
    fn a_manifest_begins_with_its_base() {
        let root = tempfile::tempdir().expect("tempdir");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        write(
            "shared/one.toml",
            &format!(
                "{GOOD}\n[deploy]\ntrees = [\"a\"]\n[deploy.programs]\n\"/x\" = \"./x\"\n\"/y\" = \"y\""
            ),
        );
        write("shared/two.toml", "base = \"one.toml\"\ncycles = 3\n[deploy]\ntrees = [\"b\"]");
        write(
            "mine/scenario.toml",
            "base = \"../shared/two.toml\"\ndescription = \"mine\"\n[deploy]\ntrees = [\"c\"]\n\
             [expect]\nactive_state = \"failed\"\nexec_stop_post = \"SIGTERM\"",
        );
        let Manifest { description, unit, cycles, deploy, expect, .. } =
            Scenario::load(&root.path().join("mine")).expect("a good one").manifest;
        assert_eq!((description.as_str(), unit.as_str(), cycles), ("mine", "x.service", 3));
        let shared = |name: &str| root.path().join("mine/../shared").join(name);
        let trees = [shared("a"), shared("b"), PathBuf::from("c")];
        assert_eq!(deploy.trees.len(), 3);
        for (tree, expected) in deploy.trees.iter().zip(trees) {
            let plain = |path: &Path| path.components().collect::<PathBuf>();
            assert_eq!(plain(tree), plain(&expected));
        }
        assert!(deploy.programs["/x"].ends_with("shared/./x"), "{:?}", deploy.programs);
        assert_eq!(deploy.programs["/y"], "y", "a program by name is nobody's path");
        assert_eq!(expect.failed_units(), ["x.service"]);
        assert_eq!(expect.exec_stop_post.and_then(|exit| exit.exit()), Some(Exit::Signal(15)));

        write("loop/scenario.toml", "base = \"scenario.toml\"");
        let error = Scenario::load(&root.path().join("loop")).expect_err("a loop").to_string();
        assert!(error.contains("bases in a row"), "{error}");
    }

    #[test]
    fn a_mount_unit_is_inactive_unless_something_else_is_expected() {
        let root = tempfile::tempdir().expect("tempdir");
        let load = |more: &str| {
            let text = GOOD.replace("mount =", "mount_unit = \"m.service\"\nmount =");
            std::fs::write(root.path().join("scenario.toml"), format!("{text}{more}")).expect("write");
            Scenario::load(root.path()).expect("a good one")
        };
        let left_out = load("");
        assert_eq!(left_out.units(), "x.service m.service");
        assert_eq!(left_out.plan(None).mount_unit.as_deref(), Some("m.service"));
        let expect = left_out.manifest.expect;
        assert_eq!((expect.mount_unit_state(), expect.failed_units()), (Some("inactive"), Vec::new()));

        let expect =
            load("mount_unit_state = \"failed\"\nother_failed_units = [\"o.service\"]").manifest.expect;
        assert_eq!(expect.mount_unit_state(), Some("failed"));
        assert_eq!(expect.failed_units(), ["m.service", "o.service"]);
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
