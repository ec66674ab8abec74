//! The host: where things are on it, what is written so that a power cut can't halve it, and the programs of it that are run.

pub mod command;
pub mod durable;

use std::path::{Path, PathBuf};

/// A host by its root directory: `/`, or a test's.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

/// All that a deploy keeps, on one file system, so that what is stored first is there first.
pub const HOME: &str = "/usr/local/lib/left4me";
/// The link that says which version the host has.
pub const CURRENT: &str = "/usr/local/lib/left4me/current";
/// A directory for each version.
pub const VERSIONS: &str = "/usr/local/lib/left4me/versions";
/// The pending deploy, the log, the lock, the guard's program.
pub const STATE: &str = "/usr/local/lib/left4me/deploy";

impl Host {
    /// The host whose root this is.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a path of the host is.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A version's directory.
    #[must_use]
    pub fn version(&self, id: &str) -> PathBuf {
        self.at(VERSIONS).join(id)
    }

    /// Where a file of a version lies.
    #[must_use]
    pub fn in_version(&self, id: &str, path: &str) -> PathBuf {
        self.version(id).join(path.trim_start_matches('/'))
    }

    /// What a link at a path of the host says: through `current`.
    #[must_use]
    pub fn through_current(path: &str) -> PathBuf {
        Path::new(CURRENT).join(path.trim_start_matches('/'))
    }

    /// A file of the deploys' state.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        self.at(STATE).join(name)
    }
}
