//! `cargo xtask programs`: what machines and hosts get, built; with `--twice`, the proof that its bytes are of its sources alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use vm_tests::cache::{self, Lock};
use vm_tests::host::tools::{self, Need};
use vm_tests::image::programs::{self, GuestBinaries, Which};
use vm_tests::workspace::Workspace;

use crate::exit::{FAILED, PASSED};
use crate::{copied, deploy, dist, left4me};

/// Builds the static programs that machines run, those for a host among them, and prints their SHA-256.
///
/// The bytes do not depend on the directory, the user or CARGO_HOME: a program that names one of them is an error. They do depend on the compiler
/// (rust-toolchain.toml) and on the libc.a of the system that builds.
#[derive(Debug, Args)]
pub(crate) struct ProgramsArgs {
    /// Build them once more, from a copy of the checkout in another directory with another CARGO_HOME, and compare
    #[arg(long)]
    twice: bool,

    /// All that a host can get, too: `holders`, what a deploy leaves there, the operator's page. Takes minutes
    #[arg(long)]
    all: bool,
}

/// What is built by itself, a package's binary: what a deploy leaves on a host, and the operator's page with its broker.
const ALONE: [(&str, &str); 3] = [
    deploy::PROGRAM,
    (dist::PAGE_PROGRAMS[0], dist::PAGE_PROGRAMS[0]),
    (dist::PAGE_PROGRAMS[1], dist::PAGE_PROGRAMS[1]),
];

/// Builds and prints; the exit status says whether both builds are the same.
pub(crate) async fn run(args: &ProgramsArgs) -> Result<u8> {
    let workspace = left4me::workspace()?;
    tools::ensure(&[Need::GuestBinaries], None, &workspace.target).await?;
    let which = if args.all { Which::All(&ALONE) } else { Which::Guests };
    let built = programs::build(&workspace, which).await?;
    let first = hashes(&built)?;
    for (name, path) in built.iter() {
        println!("{}  {}", first.get(name).map_or("", String::as_str), path.display());
    }
    let named = programs::named_directories(&workspace, &built).await?;
    if !named.is_empty() {
        println!("programs: other bytes elsewhere: {}", named.join(", "));
        println!("programs: a directory gets its name in vm-tests/src/image/flags.rs");
        return Ok(FAILED);
    }
    if !args.twice {
        return Ok(PASSED);
    }
    let again = again(&workspace, which).await?;
    let differ = differ(&first, &hashes(&again)?);
    let there = again.iter().next().and_then(|(_, path)| path.parent()).unwrap_or(Path::new(""));
    if differ.is_empty() {
        println!("programs: {} are the same in {}", first.len(), there.display());
        return Ok(PASSED);
    }
    println!("programs: not the same in {}: {}", there.display(), differ.join(", "));
    println!(
        "programs: none names a directory of this build; where they differ: `cmp -l` of two, or `objdump -d` of both"
    );
    Ok(FAILED)
}

/// Where the second build is made. It stays: the next one costs only what has changed.
fn place(workspace: &Workspace) -> PathBuf {
    workspace.target.join("another-directory")
}

/// The same programs from a copy of the checkout.
async fn again(workspace: &Workspace, which: Which<'_>) -> Result<GuestBinaries> {
    let place = place(workspace);
    let (tree, home) = (place.join("checkout"), place.join("cargo-home"));
    for directory in [&tree, &home] {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let _ours = Lock::exclusive(&place.join("lock"), |who| {
        eprintln!("programs: waiting for {who}, which builds them");
    })
    .await?;
    copied::sync(&workspace.root, &tree, &copied::files_of(&workspace.root).await?)?;
    // What cargo has fetched, and the settings it was fetched by.
    let theirs = programs::cargo_home()?;
    for name in ["registry", "git", "config", "config.toml"] {
        link(&theirs.join(name), &home.join(name))?;
    }
    let copy = Workspace { root: tree, target: place.join("target"), ..workspace.clone() };
    programs::build_copy(workspace, which, &copy, &home).await
}

/// Links what is there.
fn link(to: &Path, link: &Path) -> Result<()> {
    copied::remove_if_there(link).with_context(|| format!("delete {}", link.display()))?;
    match to.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _there => symlink(to, link).with_context(|| format!("link {} to {}", link.display(), to.display())),
    }
}

fn hashes(programs: &GuestBinaries) -> Result<BTreeMap<String, String>> {
    programs.iter().map(|(name, path)| Ok((name.to_owned(), cache::hash_file(path)?))).collect()
}

/// Which have other bytes in the second build, or are in one only.
fn differ(first: &BTreeMap<String, String>, again: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = first.keys().chain(again.keys()).collect();
    names.into_iter().filter(|&name| first.get(name) != again.get(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_one_build_only_differs() {
        let build = |programs: &[(&str, &str)]| -> BTreeMap<String, String> {
            programs.iter().map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned())).collect()
        };
        let first = build(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(differ(&first, &first), [""; 0]);
        assert_eq!(differ(&first, &build(&[("a", "1"), ("b", "3"), ("d", "4")])), ["b", "c", "d"]);
    }
}
