//! A copy of the checkout in another directory: for mutants, for edits that are measured, and to see that a directory's name
//! changes nothing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::host::process;
use xshell::{Shell, cmd};

/// What git knows of in a checkout, and what it would add.
pub(crate) async fn files_of(checkout: &Path) -> Result<BTreeSet<PathBuf>> {
    let shell = Shell::new()?;
    shell.change_dir(checkout);
    let list = cmd!(shell, "git ls-files -z --cached --others --exclude-standard").into();
    let listed = process::output(list, Duration::from_secs(60)).await.context("list the checkout")?;
    let names = listed.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let files: BTreeSet<PathBuf> = names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect();
    // One that is deleted and not committed is still listed.
    Ok(files.into_iter().filter(|file| checkout.join(file).symlink_metadata().is_ok()).collect())
}

/// Makes the copy what the checkout is, uncommitted changes included. A file that is the same stays as it is, with its time:
/// cargo builds what is newer.
pub(crate) fn sync(checkout: &Path, tree: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    remove_others(tree, files)?;
    files.iter().try_for_each(|file| {
        let (from, to) = (checkout.join(file), tree.join(file));
        copy(&from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))
    })
}

/// Deletes what is in the tree and not among the files; what is built there stays.
pub(crate) fn remove_others(tree: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    remove_others_below(tree, Path::new(""), files)
}

fn remove_others_below(tree: &Path, below: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    let directory = tree.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let (path, below) = (entry.path(), below.join(entry.file_name()));
        let is_directory = entry.file_type().with_context(|| format!("stat {}", path.display()))?.is_dir();
        if below == Path::new("target") {
            continue;
        } else if is_directory {
            remove_others_below(tree, &below, files)?;
        } else if !files.contains(&below) {
            fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
        }
    }
    Ok(())
}

/// Copies a file or a link, unless it is the same already.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_symlink() {
        let target = fs::read_link(from)?;
        if fs::read_link(to).is_ok_and(|is| is == target) {
            return Ok(());
        }
        make_way(to)?;
        return std::os::unix::fs::symlink(target, to);
    }
    let is_same = |to_metadata: fs::Metadata| {
        to_metadata.is_file() && to_metadata.permissions() == metadata.permissions()
    };
    if to.symlink_metadata().is_ok_and(is_same) && fs::read(from)? == fs::read(to)? {
        return Ok(());
    }
    make_way(to)?;
    fs::copy(from, to).map(|_bytes| ())
}

fn make_way(to: &Path) -> std::io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    remove_if_there(to)
}

pub(crate) fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _gone => Ok(()),
    }
}
