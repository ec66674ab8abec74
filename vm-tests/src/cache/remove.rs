//! Deleting a tree without crossing a mount.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Deletes a directory and all in it, and stops at a mount instead of emptying it.
///
/// Every step down is an openat2(2) with `RESOLVE_NO_XDEV`, which sees bind mounts too; a comparison of device
/// numbers does not.
///
/// # Errors
/// If something cannot be deleted, or a mount is in the way; what was deleted before that is gone. A tree that is
/// not there is no error.
pub fn remove_tree(path: &Path) -> anyhow::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => bail!("delete {}: it is the root directory", path.display()),
    };
    let name = path.file_name().with_context(|| format!("delete {}: not a name", path.display()))?;
    let parent =
        match rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("open {}", parent.display())),
        };
    match remove_at(parent.as_fd(), Path::new(name), path) {
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &Path, shown: &Path) -> anyhow::Result<()> {
    let what = || match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => format!("delete {} (owner {}, mode {:o})", shown.display(), stat.st_uid, stat.st_mode),
        Err(_gone) => format!("delete {}", shown.display()),
    };
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno).with_context(what),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::BUSY) => bail!("delete {}: it is a mount; unmount it first", shown.display()),
        Err(errno) => return Err(errno).with_context(what),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
        Ok(dir) => dir,
        Err(Errno::XDEV) => bail!("delete {}: it is a mount; unmount it first", shown.display()),
        Err(errno) => return Err(errno).with_context(what),
    };
    for entry in rustix::fs::Dir::read_from(&dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            use std::os::unix::ffi::OsStrExt as _;
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            remove_at(dir.as_fd(), name, &shown.join(name))?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).with_context(what)
}
