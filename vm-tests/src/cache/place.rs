//! Where the cache is.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The variable that moves the cache elsewhere.
pub const CACHE_VAR: &str = "VM_TESTS_CACHE";

/// The directory that all caches live in: `$VM_TESTS_CACHE`, else `vm-cache` in a target directory. Nothing is created by
/// looking.
///
/// # Errors
/// A relative path while the working directory is gone.
pub fn root(target: &Path) -> anyhow::Result<PathBuf> {
    match std::env::var_os(CACHE_VAR).filter(|value| !value.is_empty()) {
        Some(dir) => std::path::absolute(dir).context(CACHE_VAR),
        None => Ok(target.join("vm-cache")),
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
