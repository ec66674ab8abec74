//! One at a time for an instance: the helper and a reset take a lock on `runtime/<id>` itself.
//!
//! Without it two helpers could both see nothing mounted and stack two overlays, and a reset could delete an upper
//! layer that is just being mounted. The lock is on the directory's open file description, so it ends with its
//! holder, and no lock file is left behind. It takes no reference inside `merged`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::HelperError;

/// An exclusive lock on a runtime directory, let go on drop.
#[derive(Debug)]
pub struct RuntimeLock {
    directory: OwnedFd,
}

impl RuntimeLock {
    /// Locks `runtime`; `None` if there is no such directory. It does not wait: the other holder is a mount or a
    /// reset in progress, and neither is something to queue behind unseen.
    ///
    /// # Errors
    /// [`HelperError::Locked`] if somebody else holds it, or has put another directory in its place meanwhile.
    pub fn take(runtime: &Path) -> Result<Option<Self>, HelperError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(runtime, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(source) => return Err(HelperError::call("open", runtime)(source)),
        };
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(HelperError::Locked(runtime.to_owned())),
            Err(source) => return Err(HelperError::call("flock", runtime)(source)),
        }
        // A reset moves the directory away under its lock: whoever opened it before then holds the wrong one.
        let held = rustix::fs::fstat(&directory).map_err(HelperError::call("fstat", runtime))?;
        match rustix::fs::lstat(runtime) {
            Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => {
                Ok(Some(Self { directory }))
            }
            Ok(_) | Err(Errno::NOENT) => Err(HelperError::Locked(runtime.to_owned())),
            Err(source) => Err(HelperError::call("stat", runtime)(source)),
        }
    }
}

impl AsFd for RuntimeLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = RuntimeLock::take(directory.path()).unwrap();
        assert!(first.is_some());
        assert!(matches!(RuntimeLock::take(directory.path()), Err(HelperError::Locked(_))));
        drop(first);
        assert!(RuntimeLock::take(directory.path()).unwrap().is_some());
        assert!(RuntimeLock::take(&directory.path().join("none")).unwrap().is_none());
    }
}
