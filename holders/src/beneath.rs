//! What lies beneath a mount: whether a file of which only the path is known can be one in the directory that the mount
//! covers.
//!
//! The directory is looked at through a clone of the mount it is on, without what lies on that: nothing on the watched
//! mount is opened or looked up, and a clone that was made without its submounts keeps none of them busy.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::mount::Mount;
use crate::propagation;

/// Opens the file at `path` as it would be without the mount `on` of this table, which is the caller's; `None` if there is
/// none.
///
/// # Errors
/// PERM without CAP_SYS_ADMIN, NOSYS before Linux 5.6; BUSY where the directory can't be reached; whatever openat2(2) says.
fn open(mounts: &[Mount], on: usize, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let mount = &mounts[on];
    let Some(below) = mounts.iter().position(|other| other.id == mount.parent && other.id != mount.id) else {
        return Ok(None);
    };
    let point = &mounts[below].mount_point;
    let is_in_the_way = *point == mount.mount_point || propagation::visible_at(mounts, point) != Some(below);
    if is_in_the_way || mounts[below].may_hang() {
        return Err(Errno::BUSY);
    }
    let name = path.strip_prefix(point).map_err(|_elsewhere| Errno::XDEV)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, point, clone)?;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&tree, name, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether such a file is there.
///
/// # Errors
/// If that can't be known.
pub(crate) fn is_there(mounts: &[Mount], on: usize, path: &Path) -> Result<bool, Errno> {
    Ok(open(mounts, on, path, OFlags::PATH)?.is_some())
}

/// Whether such a file is there and is swapped to. The kernel refuses to allocate room in one that is before it looks at
/// how much is asked for (`fs/open.c:vfs_fallocate`), and so much there is nowhere: nothing is changed.
///
/// # Errors
/// If that can't be known.
pub(crate) fn is_swapped_to(mounts: &[Mount], on: usize, path: &Path) -> Result<bool, Errno> {
    const ENDLESS: u64 = i64::MAX as u64;
    let Some(file) = open(mounts, on, path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY)? else {
        return Ok(false);
    };
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, ENDLESS, ENDLESS) {
        Err(Errno::TXTBSY) => Ok(true),
        Err(Errno::FBIG) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Err(Errno::IO),
    }
}
