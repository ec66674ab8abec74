//! A test that has a directory of its own.

use std::path::Path;

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

/// A test with a directory of its own, which a failure leaves behind.
pub(crate) fn trial(name: &str, case: impl AsyncFnOnce(&Path) -> Result<()> + Send + 'static) -> Trial {
    let name = name.to_owned();
    Trial::test(name.clone(), move || {
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
