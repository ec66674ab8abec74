//! Where the workspace is, and the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The variable that moves the cache elsewhere.
pub const CACHE_VAR: &str = "VM_TESTS_CACHE";

/// The directory of the workspace that this is run in: the one that cargo says (`CARGO_MANIFEST_DIR`, at run time), or the
/// one around the working directory; elsewhere, the one that it was built from.
///
/// # Errors
/// If it was built from another one than it is run in: a checkout that is copied or moved with its `target` has the
/// programs of the old place, which cargo takes for fresh. If it was built from one that is gone, and is run in none.
pub fn workspace() -> anyhow::Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().context("find the working directory")?;
    workspace_of(built, said.as_deref(), &here)
}

pub(super) fn workspace_of(built: &Path, said: Option<&Path>, here: &Path) -> anyhow::Result<PathBuf> {
    let around = |path: &Path| path.ancestors().find(|root| is_workspace(root)).map(Path::to_owned);
    let built = built.parent().context("a package lies in its workspace")?;
    match said.and_then(around).or_else(|| around(here)) {
        Some(root) if is_same(&root, built) => Ok(root),
        Some(root) => bail!(
            "this is run in {} and was built from {}, whose files it would use: build it anew, with `cargo clean -p vm-tests -p xtask`",
            root.display(),
            built.display()
        ),
        None if is_workspace(built) => Ok(built.to_owned()),
        None => bail!("the workspace this was built from is not at {} any more", built.display()),
    }
}

/// Whether this is a checkout of ours, and not another one that cargo or a working directory may speak of.
fn is_workspace(root: &Path) -> bool {
    root.join("Cargo.toml").is_file() && root.join("vm-tests/agent/Cargo.toml").is_file()
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// The directory that all caches live in. Nothing is created by looking.
///
/// # Errors
/// If `$VM_TESTS_CACHE` is not set and the workspace is gone.
pub fn root() -> anyhow::Result<PathBuf> {
    match std::env::var_os(CACHE_VAR).filter(|value| !value.is_empty()) {
        Some(dir) => std::path::absolute(dir).context(CACHE_VAR),
        None => Ok(workspace()
            .with_context(|| format!("set {CACHE_VAR} to a directory"))?
            .join("target/vm-cache")),
    }
}

/// What is free for us on the file system of a path, in bytes.
///
/// # Errors
/// If the path is not there.
pub fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(path).with_context(|| format!("statvfs {}", path.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}
