//! What tests that run the real `xtask` share.

mod all;
mod trial;

use std::path::{Path, PathBuf};

use anyhow::Result;
use vm_tests::workspace::Workspace;

pub(crate) use all::has_time_for_all;
pub(crate) use trial::trial;

/// A cache of our own, with the usual one's images.
pub(crate) fn own_cache(scratch: &Path) -> Result<PathBuf> {
    let images = Workspace::find(env!("CARGO_MANIFEST_DIR"))?.cache()?.join("images");
    std::fs::create_dir_all(&images)?;
    let own = scratch.join("cache");
    std::fs::create_dir(&own)?;
    std::os::unix::fs::symlink(images, own.join("images"))?;
    Ok(own)
}
