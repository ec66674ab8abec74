//! What tests that run the real `xtask` share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use libtest_mimic::{Failed, Trial};
use vm_tests::workspace::Workspace;

/// A test with a directory of its own, which a failure leaves behind.
pub(crate) fn trial(
    name: &'static str,
    case: impl AsyncFnOnce(&Path) -> Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let scratch = tempfile::Builder::new()
            .prefix(&format!("{}-{name}-", env!("CARGO_CRATE_NAME")))
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory for {name}: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match runtime.block_on(case(scratch.path())) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failed::from(format!("{error:#}\nkept: {}", scratch.keep().display()))),
        }
    })
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
