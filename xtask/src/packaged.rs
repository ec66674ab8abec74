//! `vm-test --deploy`: the product in a machine as the archive has it, which is what scenarios say, or as the .deb does, installed
//! by dpkg; and whether both give the same recording.
//!
//! Of a scenario that deploys the product, the files that the package has are taken away, and the package is installed in their
//! place as the first command of the set-up. All else is as the manifest says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use vm_agent::recording::Recording;
use vm_tests::report::alike::{self, Comparison};
use vm_tests::run::suite::Ran;
use vm_tests::scenario::{Scenario, WrongInput};
use vm_tests::workspace::Workspace;

use crate::dist;

/// How the product gets into a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Deploy {
    /// File by file at the archive's paths, as manifests say
    #[default]
    Tree,
    /// The .deb, installed by dpkg in the machine before the first cycle
    Deb,
    /// Both, one after the other, and whether the recordings are the same but for the paths
    Both,
}

/// Where a machine finds the package.
const PACKAGE: &str = "/run/vm-test/left4me.deb";

/// Each path of the archive with the one that the package has in its place.
pub(crate) type Paths = BTreeMap<String, String>;

/// The scenarios as they are with the package; those that do not deploy the product are left out, unless they were named: then
/// that is wrong input.
///
/// # Errors
/// The package cannot be made; [`WrongInput`].
pub(crate) async fn packaged(
    workspace: &Workspace,
    scenarios: Vec<Scenario>,
    are_named: bool,
) -> Result<Vec<Scenario>> {
    let (mut with_package, mut without) = (Vec::new(), Vec::new());
    let paths = dist::paths(&workspace.root)?;
    let tree = workspace.target.join("deploy/deb");
    for mut scenario in scenarios {
        match replace(&mut scenario, &workspace.root, &tree, &paths) {
            Ok(()) => with_package.push(scenario),
            Err(why) => without.push(format!("{}: {why}", scenario.name)),
        }
    }
    // Of names that were typed none is left out.
    if with_package.is_empty() || (are_named && !without.is_empty()) {
        return Err(WrongInput::new(format!(
            "--deploy deb is for scenarios that deploy the product: {}",
            without.join("; ")
        ))
        .into());
    }
    let file = tree.join(PACKAGE.trim_start_matches('/'));
    let directory = file.parent().unwrap_or(&tree);
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let package = dist::package(workspace).await?;
    std::fs::write(&file, package).with_context(|| format!("write {}", file.display()))?;
    Ok(with_package)
}

/// What comparing the runs of both came to, a line each, and whether each was the same.
///
/// # Errors
/// A recording that can't be read.
pub(crate) fn compare(workspace: &Workspace, tree: &Ran, deb: &Ran) -> Result<(String, bool)> {
    let paths = dist::paths(&workspace.root)?;
    let (mut text, mut all_same) = (String::new(), true);
    for one in &deb.report.scenarios {
        let name = format!("{}/{}", one.guest, one.name);
        let path = |of: &Ran| {
            let directory = of.path.parent().unwrap_or(&of.path);
            directory.join(&one.guest).join(&one.name).join("recording.json")
        };
        let files = [tree, deb].map(path);
        if let Some(none) = files.iter().find(|file| !file.exists()) {
            all_same = false;
            text.push_str(&format!("{name}: not compared, as there is no {}\n", none.display()));
            continue;
        }
        let read =
            |file: &Path| std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
        let parse = |text: &str| -> Result<Recording> { Ok(serde_json::from_str(text)?) };
        let (archive, package) = (in_package(&paths, &read(&files[0])?), read(&files[1])?);
        let Comparison { differences, furthest } = alike::compare(&parse(&archive)?, &parse(&package)?);
        all_same &= differences.is_empty();
        if differences.is_empty() {
            let percent = furthest * 100.0;
            text.push_str(&format!(
                "{name}: the same but for paths; durations differ by {percent:.1} % at most\n"
            ));
        } else {
            text.push_str(&format!("{name}: archive and package differ:\n"));
            differences.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    }
    Ok((text, all_same))
}

/// A text with the package's paths in place of the archive's.
fn in_package(paths: &Paths, text: &str) -> String {
    // A longer one first: one may begin another.
    let mut all: Vec<_> = paths.iter().collect();
    all.sort_by_key(|(archive, _)| std::cmp::Reverse(archive.len()));
    all.iter().fold(text.to_owned(), |text, (archive, deb)| text.replace(*archive, deb))
}

/// Puts the package in place of the product's files, or says why that can't be.
fn replace(scenario: &mut Scenario, root: &Path, package: &Path, paths: &Paths) -> Result<(), String> {
    let deploy = &mut scenario.manifest.deploy;
    let directory = &scenario.directory;
    let product = root.join(dist::TREE).canonicalize().map_err(|error| error.to_string())?;
    let is_product = |tree: &PathBuf| directory.join(tree).canonicalize().is_ok_and(|tree| tree == product);
    let Some(at) = deploy.trees.iter().position(is_product) else {
        return Err(format!("it does not deploy {}", dist::TREE));
    };
    for program in dist::PROGRAMS {
        // The package has them by these names; one of another path is a program of an earlier time.
        let found = deploy.programs.iter().find(|(to, name)| *name == program && paths.contains_key(*to));
        let Some(to) = found.map(|(to, _)| to.clone()) else {
            return Err(format!("it does not deploy this build's {program} where a host has it"));
        };
        deploy.programs.remove(&to);
    }
    deploy.trees[at] = package.to_owned();
    // What a scenario puts in the place of the product's files the package would put its own over.
    let others =
        deploy.trees.iter().enumerate().filter(|(tree, _)| *tree != at).map(|(_, tree)| directory.join(tree));
    let trees: Vec<_> = others.chain([directory.join("files")]).collect();
    for path in paths.iter().flat_map(|(archive, deb)| [archive, deb]) {
        let is_text = deploy.text.contains_key(path) || deploy.programs.contains_key(path);
        if is_text || trees.iter().any(|tree| tree.join(path.trim_start_matches('/')).exists()) {
            return Err(format!("it deploys a {path} of its own"));
        }
    }
    let manifest = &mut scenario.manifest;
    scenario.is_changed = true;
    manifest.setup.insert(0, ["dpkg", "--install", PACKAGE].map(str::to_owned).to_vec());
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_tests::scenario::Manifest;

    use super::*;
    use crate::left4me;

    #[test]
    fn those_that_deploy_what_a_host_gets_have_the_package_in_its_place() {
        let workspace = left4me::workspace().expect("the workspace");
        let paths = dist::paths(&workspace.root).expect("the list");
        let package = Path::new("/package");
        let scenarios = workspace.scenarios(&[]).unwrap_or_else(|error| panic!("{error}"));
        let mut without = BTreeMap::new();
        for mut scenario in scenarios {
            let before = scenario.manifest.setup.clone();
            let result = replace(&mut scenario, &workspace.root, package, &paths);
            assert_eq!(scenario.is_changed, result.is_ok());
            if let Err(why) = result {
                without.insert(scenario.name, why);
                continue;
            }
            assert_eq!(scenario.manifest.setup[0], ["dpkg", "--install", PACKAGE]);
            assert_eq!(scenario.manifest.setup[1..], before);
            let Manifest { deploy, .. } = &scenario.manifest;
            assert!(deploy.trees.iter().any(|tree| tree == package));
            assert!(!deploy.programs.keys().any(|to| paths.contains_key(to)), "{deploy:?}");
        }
        // All that are about what a host has now.
        let product =
            without.keys().find(|name| name.starts_with("product-") || name.starts_with("overlay-"));
        assert_eq!(product, None);
        for (name, why) in [
            ("shutdown", "it does not deploy deploy/files"),
            ("936c8bb", "it does not deploy this build's left4me-overlay where a host has it"),
            ("5eac51a", "it deploys a /usr/local/lib/systemd/system/left4me-server@.service of its own"),
        ] {
            assert_eq!(without.get(name).map(String::as_str), Some(why), "{name}");
        }
    }

    #[test]
    fn a_recordings_paths_are_those_of_the_package() {
        let workspace = left4me::workspace().expect("the workspace");
        let paths = dist::paths(&workspace.root).expect("the list");
        let text = "/usr/local/libexec/left4me/left4me-overlay umount 3; /usr/local/bin/l4d2ctl; /usr/local/bin/vm-game";
        let expected =
            "/usr/libexec/left4me/left4me-overlay umount 3; /usr/bin/l4d2ctl; /usr/local/bin/vm-game";
        assert_eq!(in_package(&paths, text), expected);
    }
}
