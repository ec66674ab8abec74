//! Files, links and directories that are there whole or not at all, whenever the power fails: written beside, stored, renamed,
//! and the directory stored (fsync(2): a file's entry in its directory needs one of its own).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Begins the name of what is not in its place yet.
pub const BESIDE: &str = ".left4me-new-";

/// The path beside another one, on which it is made.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{BESIDE}{name}"))
}

/// Stores a directory's entries.
///
/// # Errors
/// Of open(2) and fsync(2), with the path.
pub fn store(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("fsync {}", directory.display()))
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent().with_context(|| format!("{} has no directory", path.display()))
}

/// Makes a directory and those above it, with mode 0755 whatever the umask, and stores their entries.
///
/// # Errors
/// Of mkdir(2), with the path.
pub fn directories(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path)?;
    directories(above)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
    .with_context(|| format!("mkdir {}", path.display()))?;
    store(above)
}

/// Writes a file that nobody looks at before its directory is renamed: stored, but not its entry.
///
/// # Errors
/// Of the calls, with the path.
pub fn fill(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Has a file at a path, in place of what is there.
///
/// # Errors
/// Of the calls, with the path.
pub fn file(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let new = beside(path);
    fill(&new, mode, bytes)?;
    rename(&new, path)
}

/// Has a link at a path, in place of what is there.
///
/// # Errors
/// Of the calls, with the path.
pub fn link(path: &Path, target: &Path) -> Result<()> {
    let new = beside(path);
    make_link(&new, target)?;
    rename(&new, path)
}

/// A link, where there may be one of an earlier, broken off deploy; its entry is not stored.
///
/// # Errors
/// Of the calls, with the path.
pub fn make_link(path: &Path, target: &Path) -> Result<()> {
    if fs::read_link(path).is_ok_and(|there| there == target) {
        return Ok(());
    }
    remove(path)?;
    symlink(target, path).with_context(|| format!("symlink {}", path.display()))
}

/// Renames and stores the entry.
///
/// # Errors
/// Of the calls, with the path.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    store(parent(to)?)
}

/// Removes a file or a link, if it is there, and stores that.
///
/// # Errors
/// Of the calls, with the path.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => store(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unlink {}", path.display())),
    }
}

/// Removes a directory of ours with files and directories in it: a version, or what was to be one. Nothing is ever mounted there
/// by a deploy, and rmdir(2) and unlink(2) refuse a mountpoint.
///
/// # Errors
/// Of the calls, with the path.
pub fn remove_tree(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        let kind = entry.file_type().with_context(|| format!("stat {}", entry.path().display()))?;
        if kind.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path()).with_context(|| format!("unlink {}", entry.path().display()))?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("rmdir {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_link_replace_what_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("one");
        file(&path, 0o644, b"old").expect("written");
        link(&path, Path::new("/nowhere")).expect("linked");
        assert_eq!(fs::read_link(&path).expect("a link"), Path::new("/nowhere"));
        file(&path, 0o755, b"new").expect("written");
        let about = fs::symlink_metadata(&path).expect("there");
        assert_eq!(
            (about.permissions().mode() & 0o7777, fs::read(&path).expect("read")),
            (0o755, b"new".to_vec())
        );
        let left: Vec<_> = fs::read_dir(directory.path()).expect("read").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_tree_is_removed_and_what_a_link_names_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let (tree, kept) = (directory.path().join("tree"), directory.path().join("kept"));
        directories(&tree.join("a/b")).expect("made");
        fs::write(&kept, "kept").expect("written");
        symlink(&kept, tree.join("a/link")).expect("linked");
        remove_tree(&tree).expect("removed");
        remove_tree(&tree).expect("removed already");
        assert_eq!(fs::read_to_string(&kept).expect("there"), "kept");
        assert!(!tree.exists());
    }
}
