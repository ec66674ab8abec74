//! A guest that has the product installed already, in a way of its own, as NixOS has it: what of a scenario's files it is not
//! given, where it gets the others, and which scenarios are none for it.
//!
//! Such a guest has no `/usr/local` and no `/usr/bin`. Its programs are below a store, its `/etc/systemd/system` is a link
//! into it, and the units there win over those in `/run`. So the product's own files are left out, drop-ins and units of the
//! scenario's own go to `/run`, and a scenario that brings another product than the shipped one is not run: it would be
//! judged by units that it did not bring.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::scenario::{Reset, Scenario};
use crate::workspace::Workspace;

/// Where such a guest gets what a scenario has for `/usr/local/bin`. The agent looks for commands there.
const PROGRAMS: &str = "/run/vm-test/bin/";

/// Where units are on a usual system, and where it gets them.
const UNITS: [&str; 4] =
    ["/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/", UNITS_HERE];
const UNITS_HERE: &str = "/run/systemd/system/";

/// Where a scenario's own units find programs without a path: systemd has the place of its own alone compiled in there. A unit
/// of the product's gets no such help.
const SEARCH_PATH: &str = "[Service]\nExecSearchPath=/run/current-system/sw/bin:/run/vm-test/bin\n";

/// Directories of a usual system that it has not, or only what is its own in.
const FOREIGN: [&str; 7] = ["/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/opt/", "/nix/"];

/// What it has there even so.
const SHELL: &str = "/bin/sh";

/// Where its own units are, in place of the scenario's.
const UNITS_THERE: &str = "/etc/systemd/system";

/// The harness's programs that name a usual system's paths themselves.
const USUAL: [&str; 2] = ["vm-hostile", "vm-kill"];

/// Commands of a scenario's set-up that it has run at boot, with what it was configured with.
const AT_BOOT: [&str; 2] = ["systemd-sysusers", "systemd-tmpfiles"];

/// What such a guest has of the workspace's product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The trees that the product ships.
    trees: Vec<PathBuf>,
    /// Its programs.
    programs: Vec<String>,
}

impl Installed {
    /// All that a workspace ships.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Self {
        let programs = workspace.packages.iter().flat_map(|package| package.binaries);
        Self { trees: workspace.shipped.clone(), programs: programs.map(|name| (*name).to_owned()).collect() }
    }

    /// Whether a tree is one that the product ships.
    #[must_use]
    pub fn has_tree(&self, tree: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        self.trees.iter().any(|one| real(one).is_some_and(|one| Some(one) == real(tree)))
    }

    /// Whether a program that is deployed at this path is the product's in its usual place.
    #[must_use]
    pub fn has_program(&self, name: &str, at: &str) -> bool {
        at.starts_with("/usr/") && self.programs.iter().any(|program| program == name)
    }

    /// Whether it has run a command of a scenario's set-up itself. Again it would write instances' files as it is configured,
    /// over those of the scenario.
    #[must_use]
    pub fn has_run(&self, argv: &[String]) -> bool {
        argv.first().is_some_and(|name| AT_BOOT.contains(&name.as_str()))
    }

    /// Where it gets a file.
    ///
    /// # Errors
    /// If it can get it nowhere, in words that follow its path.
    pub fn place(&self, path: &str) -> Result<String> {
        if let Some(unit) = UNITS.iter().find_map(|directory| path.strip_prefix(directory)) {
            ensure!(!self.ships_unit(unit), "{path}, and the guest has that unit itself");
            return Ok(format!("{UNITS_HERE}{unit}"));
        }
        if let Some(name) =
            ["/usr/local/bin/", "/usr/local/sbin/"].iter().find_map(|at| path.strip_prefix(at))
        {
            return Ok(format!("{PROGRAMS}{name}"));
        }
        let foreign = FOREIGN.iter().find(|directory| path.starts_with(*directory));
        ensure!(foreign.is_none(), "{path}, where the guest is no system with files");
        Ok(path.to_owned())
    }

    /// What it gets beside the files at these paths, which are its own: path and text.
    #[must_use]
    pub fn beside<'a>(&self, paths: impl Iterator<Item = &'a str>) -> Vec<(String, &'static str)> {
        let is_service = |path: &&str| {
            path.strip_prefix(UNITS_HERE)
                .is_some_and(|unit| !unit.contains('/') && unit.ends_with(".service"))
        };
        paths.filter(is_service).map(|path| (format!("{path}.d/vm-test.conf"), SEARCH_PATH)).collect()
    }

    fn ships_unit(&self, unit: &str) -> bool {
        let is_there = |tree: &PathBuf, directory: &str| {
            tree.join(directory.trim_start_matches('/')).join(unit).is_file()
        };
        self.trees.iter().any(|tree| UNITS.iter().any(|directory| is_there(tree, directory)))
    }

    /// Why a scenario is not run on it; `None` if it is.
    ///
    /// # Errors
    /// A tree that can't be listed.
    pub fn refusal(&self, scenario: &Scenario) -> Result<Option<String>> {
        let manifest = &scenario.manifest;
        if !manifest.packages.is_empty() {
            return Ok(Some(format!("its guest needs Debian's {}", manifest.packages.join(", "))));
        }
        let mut paths = Vec::new();
        let own = scenario.directory.join("files");
        let trees = manifest.deploy.trees.iter().map(|tree| scenario.directory.join(tree));
        for tree in trees.chain(own.exists().then_some(own)).filter(|tree| !self.has_tree(tree)) {
            list(&tree, "", &mut paths)?;
        }
        if let Some(name) = manifest.deploy.programs.values().find(|name| USUAL.contains(&name.as_str())) {
            return Ok(Some(format!("{name} names paths of such a host")));
        }
        let programs = manifest.deploy.programs.iter().filter(|(at, name)| !self.has_program(name, at));
        paths.extend(programs.map(|(at, _)| at.clone()));
        paths.extend(manifest.deploy.text.keys().cloned());
        paths.extend(manifest.reset.files().iter().map(|(at, _)| (*at).to_owned()));
        if let Some(wrong) = paths.iter().find_map(|path| self.place(path).err()) {
            return Ok(Some(format!("it deploys {wrong}")));
        }
        let reset = match &manifest.reset {
            Reset::Command(argv) => argv.as_slice(),
            Reset::Shutdown => &[],
        };
        let commands = [&manifest.setup, &manifest.recover].into_iter().flatten().flatten();
        let during = manifest.during.iter().flat_map(|one| &one.run);
        let check = manifest.check.iter().flat_map(|one| &one.run);
        let words = commands.chain(&manifest.start).chain(reset).chain(during).chain(check);
        let named = words.chain(manifest.deploy.text.values()).find_map(|text| foreign_path(text));
        Ok(named.map(|path| format!("it names {path}")))
    }
}

/// The first path in a text that such a system has not.
fn foreign_path(text: &str) -> Option<&str> {
    let paths = text.split(|c: char| !c.is_alphanumeric() && !"._-+/@%".contains(c));
    // A command's prefixes, systemd.service(5).
    let mut paths = paths.map(|path| path.trim_start_matches(['-', '+', '@']));
    let is_foreign =
        |path: &str| path.starts_with(UNITS_THERE) || FOREIGN.iter().any(|one| path.starts_with(one));
    paths.find(|path| *path != SHELL && is_foreign(path))
}

/// The files below a directory of the host, by the paths that they get in the guest.
fn list(directory: &Path, at: &str, paths: &mut Vec<String>) -> Result<()> {
    let what = || format!("list {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(what)? {
        let entry = entry.with_context(what)?;
        let path = format!("{at}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().with_context(what)?.is_dir() {
            list(&entry.path(), &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::samples::MINIMAL;

    /// A guest with one unit and one program, and where its tree is.
    fn installed() -> (tempfile::TempDir, Installed) {
        let directory = tempfile::tempdir().expect("tempdir");
        let tree = directory.path().join("shipped");
        let units = tree.join("usr/local/lib/systemd/system");
        std::fs::create_dir_all(&units).expect("mkdir");
        std::fs::write(units.join("ours@.service"), "").expect("write");
        (directory, Installed { trees: vec![tree], programs: vec!["oursctl".to_owned()] })
    }

    #[test]
    fn a_file_is_put_where_such_a_guest_reads_it() {
        let (_directory, installed) = installed();
        for (path, place) in [
            ("/var/lib/x", "/var/lib/x"),
            ("/run/vm-test/x", "/run/vm-test/x"),
            ("/etc/x.conf", "/etc/x.conf"),
            ("/usr/local/bin/vm-game", "/run/vm-test/bin/vm-game"),
            ("/etc/systemd/system/ours@.service.d/x.conf", "/run/systemd/system/ours@.service.d/x.conf"),
            ("/usr/local/lib/systemd/system/other.service", "/run/systemd/system/other.service"),
            ("/run/systemd/system/other.service", "/run/systemd/system/other.service"),
        ] {
            assert_eq!(installed.place(path).expect(path), place);
        }
        for (path, words) in [
            ("/etc/systemd/system/ours@.service", "the guest has that unit"),
            ("/run/systemd/system/ours@.service", "the guest has that unit"),
            ("/usr/local/libexec/ours", "no system with files"),
            ("/usr/lib/systemd/system-shutdown/x", "no system with files"),
            ("/nix/store/x", "no system with files"),
        ] {
            let wrong = installed.place(path).expect_err(path).to_string();
            assert!(wrong.starts_with(path) && wrong.contains(words), "{wrong}");
        }
    }

    #[test]
    fn a_scenario_of_another_product_is_not_run_and_why_is_said() {
        let (directory, installed) = installed();
        let refusal = |name: &str, more: &str, tree: Option<&str>| {
            let scenario = directory.path().join(name);
            std::fs::create_dir(&scenario).expect("mkdir");
            std::fs::write(scenario.join("scenario.toml"), format!("{MINIMAL}{more}")).expect("write");
            if let Some(path) = tree {
                let file = scenario.join("files").join(path);
                std::fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
                std::fs::write(file, "/usr/bin/x is nobody's to read").expect("write");
            }
            let scenario = Scenario::load(&scenario).expect("a right one");
            installed.refusal(&scenario).expect("it can be listed")
        };
        let shipped =
            "[deploy]\ntrees = [\"../shipped\"]\n[deploy.programs]\n\"/usr/libexec/oursctl\" = \"oursctl\"\n";
        assert_eq!(refusal("shipped-one", shipped, Some("var/lib/x")), None);
        let shell = "[deploy.text]\n\"/run/x\" = \"#!/bin/sh\\ncd /var/lib/usr/bin\"\n";
        assert_eq!(refusal("shell", shell, None), None);
        assert_eq!(refusal("drop-in", "", Some("etc/systemd/system/ours@.service.d/x.conf")), None);
        for (name, more, tree, words) in [
            (
                "unit",
                "",
                Some("etc/systemd/system/ours@.service"),
                "it deploys /etc/systemd/system/ours@.service,",
            ),
            (
                "program",
                "[deploy.programs]\n\"/usr/libexec/x\" = \"other\"\n",
                None,
                "it deploys /usr/libexec/x,",
            ),
            (
                "text",
                "[deploy.text]\n\"/run/x\" = \"exec '/usr/bin/env' x\"\n",
                None,
                "it names /usr/bin/env",
            ),
            (
                "in-bin",
                "[deploy.text]\n\"/run/x\" = \"#!/bin/sh\\nExecStart=-/bin/sleep 1\"\n",
                None,
                "it names /bin/sleep",
            ),
            ("packages", "packages = [\"zz\", \"xx\"]\n", None, "its guest needs Debian's xx, zz"),
            ("usual", "[deploy.programs]\n\"/run/x\" = \"vm-kill\"\n", None, "vm-kill names paths"),
            ("units", "setup = [[\"ls\", \"/etc/systemd/system\"]]\n", None, "it names /etc/systemd/system"),
            ("set-up", "setup = [[\"/usr/bin/x\", \"y\"]]\n", None, "it names /usr/bin/x"),
        ] {
            let why = refusal(name, more, tree).expect(name);
            assert!(why.starts_with(words), "{name}: {why}");
        }
    }

    #[test]
    fn a_scenarios_own_service_finds_programs_without_a_path() {
        let (_directory, installed) = installed();
        let paths =
            ["/run/systemd/system/x.service", "/run/systemd/system/y.service.d/x.conf", "/run/x.service"];
        let beside = installed.beside(paths.into_iter());
        let [(path, text)] = beside.as_slice() else { panic!("{beside:?}") };
        assert_eq!(path, "/run/systemd/system/x.service.d/vm-test.conf");
        assert!(text.starts_with("[Service]\nExecSearchPath=/run/current-system/"), "{text}");
    }

    #[test]
    fn what_it_did_at_boot_is_not_done_again() {
        let (_directory, installed) = installed();
        let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(installed.has_run(&argv(&["systemd-tmpfiles", "--create"])));
        assert!(!installed.has_run(&argv(&["systemctl", "daemon-reload"])));
    }
}
