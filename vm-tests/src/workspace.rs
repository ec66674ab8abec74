//! The workspace that uses the harness: where it lies, and what it has for machines. No path of a repository is built in.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::scenario::{self, Scenario};

/// What a program of a workspace tells the harness of it.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Its root: cargo is run here.
    pub root: PathBuf,
    /// Cargo's target directory: results, guest programs and the cache lie in it.
    pub target: PathBuf,
    /// Directories of scenarios, which are found in them by name.
    pub scenario_roots: Vec<PathBuf>,
    /// The directory of the lock files of guests' images (`trixie.lock`), where there are some.
    pub images: PathBuf,
    /// What scenarios can deploy by name, beside the harness's own stand-ins.
    pub packages: &'static [Package],
    /// The trees that the product ships, which scenarios deploy: a guest that has it installed has these in a way of its own.
    pub shipped: Vec<PathBuf>,
}

/// A package of the workspace whose programs go into machines: they are linked statically for it.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// The names of its binaries.
    pub binaries: &'static [&'static str],
}

/// The harness's own programs for machines.
pub(crate) const OWN: Package = Package {
    name: "vm-agent",
    binaries: &[
        "vm-agent",
        "vm-init",
        "vm-game",
        "vm-attack",
        "vm-hostile",
        "vm-kill",
        "vm-fault",
        "vm-time",
    ],
};

impl Workspace {
    /// The workspace that this is run in: the one that cargo says (`CARGO_MANIFEST_DIR`, at run time), or the one around
    /// the working directory; elsewhere, the one that it was built from. Its scenarios are in `scenarios`, its lock files in
    /// `images`, it has no packages, and ships nothing.
    ///
    /// `package` is the directory of the program's own package: `env!("CARGO_MANIFEST_DIR")`.
    ///
    /// # Errors
    /// If it was built from another one than it is run in: a checkout that is copied or moved with its `target` has the
    /// programs of the old place, which cargo takes for fresh. If it was built from one that is gone, and is run in none.
    pub fn find(package: &str) -> Result<Self> {
        let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let here = std::env::current_dir().context("find the working directory")?;
        let root = root_of(Path::new(package), said.as_deref(), &here)?;
        let target = match std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
            Some(target) => std::path::absolute(target).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self {
            scenario_roots: vec![root.join("scenarios")],
            images: root.join("images"),
            packages: &[],
            shipped: Vec::new(),
            root,
            target,
        })
    }

    /// Where images and saved machines are kept. Nothing is created by looking.
    ///
    /// # Errors
    /// As [`cache::root`].
    pub fn cache(&self) -> Result<PathBuf> {
        cache::root(&self.target)
    }

    /// Whether a file is of a package of it.
    pub(crate) fn has(&self, file: &Path) -> bool {
        around(file).is_some_and(|root| is_same(root, &self.root))
    }

    /// The scenarios of these names or directories; all of the workspace if there are none.
    ///
    /// # Errors
    /// As [`scenario::select`].
    pub fn scenarios(&self, names: &[String]) -> Result<Vec<Scenario>> {
        let own = OWN.binaries.iter().chain(self.packages.iter().flat_map(|package| package.binaries));
        let programs: Vec<&str> = own.copied().collect();
        scenario::select(&self.scenario_roots, names, Some(&programs))
    }
}

/// The root of the workspace that a package is run in.
fn root_of(package: &Path, said: Option<&Path>, here: &Path) -> Result<PathBuf> {
    let built = around(package);
    let inside = match built {
        Some(root) => package.strip_prefix(root)?,
        None => Path::new(package.file_name().context("a package has a directory")?),
    };
    let name = |package: &Path| name(&std::fs::read_to_string(package.join("Cargo.toml")).ok()?);
    // A checkout of ours, and not another one that cargo or a working directory may speak of.
    let has_it = |root: &&Path| {
        name(&root.join(inside)).is_some_and(|its| name(package).is_none_or(|ours| ours == its))
    };
    let run = said.and_then(around).filter(has_it).or_else(|| around(here).filter(has_it));
    match (run, built) {
        (Some(run), Some(built)) if is_same(run, built) => Ok(run.to_owned()),
        (Some(run), _) => bail!(
            "this is run in {} and was built from {}, whose files it would use: build it anew, with `cargo clean -p vm-tests -p {}`",
            run.display(),
            built.or(package.parent()).unwrap_or(package).display(),
            name(&run.join(inside)).unwrap_or_default()
        ),
        (None, Some(built)) => Ok(built.to_owned()),
        (None, None) => {
            bail!("the package that this was built from is not at {} any more", package.display())
        }
    }
}

/// The root of the workspace around a directory.
pub(crate) fn around(directory: &Path) -> Option<&Path> {
    directory.ancestors().find(|root| {
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
        manifest.lines().any(|line| line.trim() == "[workspace]")
    })
}

/// The package's name in a manifest.
fn name(manifest: &str) -> Option<String> {
    let line = manifest.lines().find_map(|line| line.trim().strip_prefix("name"))?;
    Some(line.trim_start().strip_prefix('=')?.trim().trim_matches('"').to_owned())
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_checkout_is_not_run_by_the_programs_of_the_other() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let checkout = |name: &str, xtask: &str| {
            let root = scratch.path().join(name);
            for (package, text) in [("", "[workspace]"), ("library", "name = \"library\""), ("xtask", xtask)]
            {
                let package = root.join(package);
                std::fs::create_dir_all(&package).expect("mkdir");
                std::fs::write(package.join("Cargo.toml"), text).expect("write");
            }
            root
        };
        let (one, copy) = (checkout("one", "name = \"xtask\""), checkout("copy", "name = \"xtask\""));
        let elsewhere = checkout("elsewhere", "name = \"another\"");
        std::os::unix::fs::symlink(&one, scratch.path().join("link")).expect("symlink");
        let built = one.join("xtask");
        let found = |said: Option<PathBuf>, here: &Path| {
            root_of(&built, said.as_deref(), here).map_err(|error| format!("{error:#}"))
        };

        assert_eq!(found(None, &one), Ok(one.clone()));
        assert_eq!(found(Some(one.join("library")), &elsewhere), Ok(one.clone()));
        assert_eq!(found(None, &elsewhere), Ok(one.clone()), "taken along, it has its own files");
        assert_eq!(
            found(Some(elsewhere.clone()), &elsewhere),
            Ok(one.clone()),
            "a test of another project's"
        );
        let link = scratch.path().join("link");
        assert_eq!(found(None, &link.join("library")), Ok(link));
        for (said, here) in [(None, copy.join("library")), (Some(copy.join("xtask")), one.clone())] {
            let error = found(said, &here).expect_err("a copy");
            let (built, run) =
                (format!("built from {}", one.display()), format!("run in {}", copy.display()));
            assert!(error.contains(&built) && error.contains(&run), "{error}");
            assert!(error.contains("cargo clean -p vm-tests -p xtask"), "{error}");
        }

        // Moved, and run at its new place or at none.
        let moved = scratch.path().join("moved");
        std::fs::rename(&one, &moved).expect("rename");
        assert!(found(None, &moved).expect_err("moved").contains("build it anew"));
        let nowhere = scratch.path().join("nowhere");
        assert!(found(None, &nowhere).expect_err("gone").contains("not at"));
    }
}
