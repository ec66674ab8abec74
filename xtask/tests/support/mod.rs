//! What tests that run the real `xtask` share.

mod trial;

use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_tests::workspace::Workspace;

pub(crate) use trial::trial;

/// Whether a check has time for all trials: `cargo xtask check --all` sets the variable.
pub(crate) fn has_time_for_all() -> bool {
    std::env::var_os("VM_TESTS_ALL").is_some()
}

/// A cache of our own, with the usual one's images.
pub(crate) fn own_cache(scratch: &Path) -> Result<PathBuf> {
    let images = Workspace::find(env!("CARGO_MANIFEST_DIR"))?.cache()?.join("images");
    std::fs::create_dir_all(&images)?;
    let own = scratch.join("cache");
    std::fs::create_dir(&own)?;
    std::os::unix::fs::symlink(images, own.join("images"))?;
    Ok(own)
}
