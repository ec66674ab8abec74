//! The instance file: which overlays a server runs with, and in which order.
//!
//! ```toml
//! # /var/lib/left4me/instances/3.toml
//! overlays = ["competitive", "maps"]   # the first is topmost: its files hide those of the next
//! ```
//!
//! The lowest layer is the shared game installation, the topmost is the server's own upper layer. An unknown key
//! is an error: a misspelt key would silently start a server without its overlays.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Deserialize;

use crate::error::HelperError;
use crate::state::{InstanceDir, StateDir};

/// The longest overlay name, bytes.
pub const MAX_NAME: usize = 64;

/// The name of an overlay: a directory in `overlays/`. Letters, digits, `.`, `_` and `-`, the first a letter or a
/// digit: overlayfs splits its options at `:` and `,` and takes `\` as an escape, so none of them may occur.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct OverlayName(String);

impl OverlayName {
    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for OverlayName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let well_formed = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && name.len() <= MAX_NAME;
        if well_formed {
            Ok(Self(name))
        } else {
            Err(format!(
                "overlay name {name:?}: must be 1 to {MAX_NAME} characters of A-Z, a-z, 0-9, ., _ and -, \
                 the first a letter or a digit"
            ))
        }
    }
}

/// What an instance file says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceFile {
    /// The overlays, topmost first.
    pub overlays: Vec<OverlayName>,
}

/// The longest instance file, bytes: far more than 500 overlays need.
const MAX_FILE: u64 = 256 * 1024;

/// Reads an instance's file.
///
/// # Errors
/// No such file, one that lies behind a link or is none, or one that does not parse or lists an overlay twice.
pub fn read(InstanceDir { state, paths }: &InstanceDir) -> Result<InstanceFile, HelperError> {
    let path = &paths.file;
    let relative = path.strip_prefix(state.path()).unwrap_or(path);
    state.require_roots_above(relative)?;
    let file = state.file(relative).map_err(|errno| match errno {
        Errno::NOENT => HelperError::NoInstanceFile(path.clone()),
        source => HelperError::call("open", path)(source),
    })?;
    let failed = |error: std::io::Error| {
        HelperError::call("read", path)(Errno::from_io_error(&error).unwrap_or(Errno::ILSEQ))
    };
    let file = fs::File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(HelperError::call("read", path)(Errno::INVAL));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(HelperError::call("read", path)(Errno::FBIG));
    }
    parse(&text, path)
}

/// Parses the text of an instance file; `path` is for the messages.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<InstanceFile, HelperError> {
    let file: InstanceFile = toml::from_str(text)
        .map_err(|source| HelperError::InstanceFile { path: path.to_owned(), source: Box::new(source) })?;
    let mut seen = HashSet::new();
    match file.overlays.iter().find(|overlay| !seen.insert(overlay.as_str())) {
        Some(twice) => Err(HelperError::Twice { path: path.to_owned(), overlay: twice.0.clone() }),
        None => Ok(file),
    }
}

/// The lower layers of an instance, topmost first: its overlays, then the installation.
#[must_use]
pub fn lower(file: &InstanceFile, state_dir: &Path) -> Vec<PathBuf> {
    let overlays = state_dir.join("overlays");
    let mut layers: Vec<_> = file.overlays.iter().map(|name| overlays.join(name.as_str())).collect();
    layers.push(state_dir.join("installation"));
    layers
}

/// Opens a layer's directory, through no link and by no name that somebody else could give to another directory: what root
/// mounts into a server is what lies there.
///
/// # Errors
/// [`HelperError::NoLayer`], [`HelperError::LinkedLayer`], [`HelperError::NotRoots`], or it is no directory.
pub fn open(state: &StateDir, path: &Path) -> Result<OwnedFd, HelperError> {
    let relative = path.strip_prefix(state.path()).unwrap_or(path);
    state.require_roots_above(relative)?;
    state.directory(relative).map_err(|errno| match errno {
        Errno::NOENT => HelperError::NoLayer {
            path: path.to_owned(),
            hint: if path.ends_with("installation") {
                "install the game there first"
            } else {
                "create the overlay, or take it off the list in the instance file"
            },
        },
        Errno::LOOP => HelperError::LinkedLayer(path.to_owned()),
        source => HelperError::call("open directory", path)(source),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use holders::chain::chain;

    #[test]
    fn the_order_of_the_file_is_the_order_of_the_layers() {
        let file = parse("overlays = [\"b\", \"a.1\"]", Path::new("3.toml")).unwrap();
        let expected = ["/s/overlays/b", "/s/overlays/a.1", "/s/installation"].map(PathBuf::from);
        assert_eq!(lower(&file, Path::new("/s")), expected);
        let none = parse("overlays = []", Path::new("3.toml")).unwrap();
        assert_eq!(lower(&none, Path::new("/s")), [PathBuf::from("/s/installation")]);
    }

    #[test]
    fn a_file_is_read_from_where_it_belongs() {
        let directory = tempfile::tempdir().unwrap();
        let place = InstanceDir::open(directory.path(), &"3".parse().unwrap()).unwrap();
        let paths = &place.paths;
        let instances = directory.path().join("instances");
        fs::create_dir(&instances).unwrap();
        assert!(matches!(read(&place), Err(HelperError::NoInstanceFile(_))));
        fs::write(instances.join("x"), "overlays = []").unwrap();
        let mode = |mode| fs::set_permissions(&instances, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        assert!(matches!(read(&place), Err(HelperError::NotRoots { .. })));
        mode(0o755);
        std::os::unix::fs::symlink("x", &paths.file).unwrap();
        assert!(matches!(read(&place), Err(HelperError::Call { source: Errno::LOOP, .. })));
        fs::rename(instances.join("x"), &paths.file).unwrap();
        assert!(read(&place).unwrap().overlays.is_empty());
        fs::write(&paths.file, " ".repeat(300_000)).unwrap();
        assert!(matches!(read(&place), Err(HelperError::Call { source: Errno::FBIG, .. })));
        fs::remove_file(&paths.file).unwrap();
        fs::create_dir(&paths.file).unwrap();
        assert!(matches!(read(&place), Err(HelperError::Call { source: Errno::INVAL, .. })));
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_lists_only_checked_names(text in "(overlays = \\[)?[\"a-z.:,\\\\/ \n\\]=]{0,40}") {
            if let Ok(file) = parse(&text, Path::new("3.toml")) {
                for layer in lower(&file, Path::new("/s")) {
                    proptest::prop_assert!(layer.components().count() <= 4);
                    proptest::prop_assert!(!layer.to_str().unwrap().contains([':', ',', '\\']));
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_listed_is_layered_in_its_order_or_refused(
            names in proptest::collection::vec("[a-c][a-c._-]{0,1}|[a-c:,./\\\\ é-]{0,3}", 0..5)
        ) {
            let quoted: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
            let text = format!("# mine\noverlays = [{}]", quoted.join(", "));
            let plain = |name: &String| {
                name.starts_with(|first: char| first.is_ascii_alphanumeric())
                    && name.chars().all(|one| one.is_ascii_alphanumeric() || "._-".contains(one))
            };
            let once = names.iter().collect::<HashSet<_>>().len() == names.len();
            match parse(&text, Path::new("3.toml")) {
                Ok(file) => {
                    proptest::prop_assert!(once && names.iter().all(plain), "{}", text);
                    let mut expected: Vec<_> = names.iter().map(|name| Path::new("/s/overlays").join(name)).collect();
                    expected.push("/s/installation".into());
                    proptest::prop_assert_eq!(lower(&file, Path::new("/s")), expected);
                }
                Err(error) => proptest::prop_assert!(!once || !names.iter().all(plain), "{}", error),
            }
        }
    }

    #[test]
    fn bad_files_say_where() {
        for (text, expected) in [
            ("", "missing field `overlays`"),
            ("overlay = []", "unknown field `overlay`, expected `overlays`"),
            ("overlays = []\nx = 1", "unknown field `x`"),
            ("overlays = [\"a\", \"a\"]", "overlay \"a\" is listed twice"),
            ("overlays = [\"..\"]", "overlay name \"..\""),
            ("overlays = [\"a:b\"]", "overlay name \"a:b\""),
            ("overlays = [\"a,b\"]", "overlay name \"a,b\""),
            ("overlays = [\"a\\\\b\"]", "overlay name \"a\\\\b\""),
            ("overlays = [\"a/b\"]", "overlay name \"a/b\""),
            ("overlays = [\"\"]", "overlay name \"\""),
            ("overlays = \"a\"", "invalid type"),
            ("overlays = [", "line 1"),
        ] {
            let text = chain(&parse(text, Path::new("/i/3.toml")).unwrap_err());
            assert!(text.starts_with("read /i/3.toml: ") && text.contains(expected), "{text}");
        }
    }
}
