//! An instance: a checked name, and every path and unit name that follows from it.
//!
//! The name ends up in paths that root writes to, in overlayfs options and in a unit name, so its characters are
//! few: `[a-z0-9][a-z0-9_-]{0,22}`. That also shuts out `..`, a slash, an option separator and a leading dash.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where everything of left4me lies.
pub const STATE_DIR: &str = "/var/lib/left4me";

/// The longest instance name, bytes. `left4me-` and it make the name of a user, which has 31 at most (sysusers.d(5)).
pub const MAX_NAME: usize = 31 - USER_PREFIX.len();

/// What the name of an instance's user begins with.
const USER_PREFIX: &str = "left4me-";

/// The name of an instance. It cannot hold anything that leaves its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance(String);

/// Why a text is not an instance name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "instance name {name:?}: must be 1 to {} characters of a-z, 0-9, _ and -, the first a letter or a digit",
    MAX_NAME
)]
pub struct NameError {
    name: String,
}

impl FromStr for Instance {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let well_formed = name.bytes().next().is_some_and(plain)
            && name.bytes().all(|byte| plain(byte) || byte == b'_' || byte == b'-')
            && name.len() <= MAX_NAME;
        if well_formed { Ok(Self(name.to_owned())) } else { Err(NameError { name: name.to_owned() }) }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Instance {
    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The systemd unit. None of the name's characters needs escaping (systemd.unit(5)).
    #[must_use]
    pub fn unit(&self) -> String {
        format!("left4me-server@{}.service", self.0)
    }

    /// The unit that mounts the overlay before the server starts and unmounts it after it stops.
    #[must_use]
    pub fn overlay_unit(&self) -> String {
        format!("left4me-overlay@{}.service", self.0)
    }

    /// The user and the group that the server runs as; also in both units.
    #[must_use]
    pub fn user(&self) -> String {
        format!("{USER_PREFIX}{}", self.0)
    }

    /// The instance's paths below `state_dir`, which is [`STATE_DIR`] outside of tests.
    #[must_use]
    pub fn paths(&self, state_dir: &Path) -> Paths {
        let all_runtimes = state_dir.join("runtime");
        let runtime = all_runtimes.join(&self.0);
        Paths {
            file: state_dir.join("instances").join(format!("{}.toml", self.0)),
            upper: runtime.join("upper"),
            work: runtime.join("work"),
            merged: runtime.join("merged"),
            trash: all_runtimes.join(format!(".purge-{}", self.0)),
            name: self.0.clone(),
            user: self.user(),
            all_runtimes,
            runtime,
        }
    }
}

/// Where an instance's things lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The instance's name, the last component of `runtime`.
    pub name: String,
    /// The user that the server runs as.
    pub user: String,
    /// `instances/<id>.toml`: the list of overlays.
    pub file: PathBuf,
    /// `runtime`, the parent of every instance's runtime directory; root's.
    pub all_runtimes: PathBuf,
    /// `runtime/<id>`; root's, so that the server cannot swap what lies in it.
    pub runtime: PathBuf,
    /// `runtime/<id>/upper`: what the server wrote; the server's.
    pub upper: PathBuf,
    /// `runtime/<id>/work`: overlayfs' own.
    pub work: PathBuf,
    /// `runtime/<id>/merged`: the mountpoint.
    pub merged: PathBuf,
    /// `runtime/.purge-<id>`: what a reset deletes, out of everybody's way. No instance name starts with a dot.
    pub trash: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for good in ["3", "a", "eu-1", "x_y", "0-", &"a".repeat(23)] {
            assert_eq!(good.parse::<Instance>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/a",
            "-a",
            "_a",
            "A",
            "a b",
            "a\n",
            "a:b",
            "a,b",
            "a\\b",
            "a\\x2d",
            "a.toml",
            "é",
            "a\0",
            "%i",
            &"a".repeat(24),
        ] {
            let error = bad.parse::<Instance>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn paths() {
        let paths = "3".parse::<Instance>().unwrap().paths(Path::new(STATE_DIR));
        assert_eq!(paths.file, Path::new("/var/lib/left4me/instances/3.toml"));
        assert_eq!(paths.runtime, Path::new("/var/lib/left4me/runtime/3"));
        assert_eq!(paths.merged, Path::new("/var/lib/left4me/runtime/3/merged"));
        assert_eq!(paths.trash, Path::new("/var/lib/left4me/runtime/.purge-3"));
    }

    proptest! {
        #[test]
        fn no_accepted_name_leaves_the_directory(name in "[a-z0-9_./\\\\:,@%\\-\\x00-\\x20A-Zé]{0,40}|[a-z0-9_.-]{1,34}") {
            if let Ok(instance) = name.parse::<Instance>() {
                let paths = instance.paths(Path::new(STATE_DIR));
                let below: Vec<_> = paths.runtime.strip_prefix("/var/lib/left4me/runtime").unwrap().components().collect();
                prop_assert_eq!(below, vec![Component::Normal(name.as_ref())]);
                prop_assert_eq!(paths.file.parent().unwrap(), Path::new("/var/lib/left4me/instances"));
                prop_assert!(!paths.merged.to_str().unwrap().contains([':', ',', '\\']));
                prop_assert_ne!(paths.runtime, paths.trash);
            }
        }
    }
}
