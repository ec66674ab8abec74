//! Deletes a directory with everything in it; `purge` decides when that is allowed.
//!
//! The tree may be hostile: the server's user could make anything in `upper`, and may still be active. Every step is
//! relative to an open directory. Symlinks are removed and never followed. A directory on another mount is an error
//! (openat2(2), RESOLVE_NO_XDEV, which sees bind mounts of the same file system too). An entry that has changed its type
//! since it was listed is left to the next pass. There is a deadline, because a user may add files faster than they can be
//! deleted. However deep the tree is, at most [`MAX_DEPTH`] directories are open at once: a deeper one is renamed to the
//! top of the tree and deleted from there.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;

use crate::error::HelperError;

/// How many directories are entered one in another; each takes a descriptor and a buffer.
pub const MAX_DEPTH: usize = 32;

/// Deletes the directory `name` in `parent` with all it holds; no such directory is success. `path` is its name in
/// messages.
///
/// # Errors
/// [`HelperError::Crossing`] at a mount, [`HelperError::Protected`] at what not even root may delete,
/// [`HelperError::OutOfTime`], or the system call that failed. What is left can be given to this function again.
pub fn remove_tree(parent: impl AsFd, name: &str, path: &Path, deadline: Instant) -> Result<(), HelperError> {
    remove_tree_by(Lookup::SAFE, parent.as_fd(), name, path, deadline)
}

/// The same, with a lookup that a test may make careless.
pub(crate) fn remove_tree_by(
    lookup: Lookup,
    parent: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    deadline: Instant,
) -> Result<(), HelperError> {
    let name = CString::new(name).map_err(|_nul| HelperError::call("delete", path)(Errno::INVAL))?;
    let top = match lookup.enter(parent, &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(refused(errno, path)),
    };
    let mut tree = Tree { lookup, top, path, trail: Vec::new(), moved: 0, deadline };
    loop {
        let top = tree.top.try_clone().map_err(|error| {
            HelperError::call("dup", path)(Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
        })?;
        let seen = tree.pass(&top)?;
        match rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if seen > 0 => {}
            Err(errno) => return Err(tree.explain(parent, &name, errno)),
        }
    }
}

/// The tree that is being deleted.
struct Tree<'a> {
    lookup: Lookup,
    top: OwnedFd,
    path: &'a Path,
    /// The names of the directories that are entered now, outermost first; for messages.
    trail: Vec<CString>,
    moved: u64,
    deadline: Instant,
}

impl Tree<'_> {
    /// Takes away every entry that one reading of a directory shows, and says how many that were. A directory that
    /// changes while it is read may hide an entry (readdir(3)): the caller's rmdir(2) knows.
    fn pass(&mut self, directory: &OwnedFd) -> Result<u64, HelperError> {
        let failed = |call, errno, tree: &Self| HelperError::Call { call, path: tree.here(), source: errno };
        rustix::fs::seek(directory, SeekFrom::Start(0)).map_err(|errno| failed("rewind", errno, self))?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut seen = 0;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // Somebody has removed this directory meanwhile.
                Err(Errno::NOENT) => break,
                entry => entry.map_err(|errno| failed("read directory", errno, self))?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            seen += 1;
            if seen % 64 == 0 && Instant::now() >= self.deadline {
                return Err(HelperError::OutOfTime(self.path.to_owned()));
            }
            self.take_away(directory.as_fd(), name, entry.file_type() == FileType::Directory)?;
        }
        Ok(seen)
    }

    /// Takes one entry away. What has become something else, or is gone, since it was listed is left as it is.
    fn take_away(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        is_directory: bool,
    ) -> Result<(), HelperError> {
        if !is_directory {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // A file system without types in its directories, or a file that was swapped for a directory.
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(self.explain(directory, name, errno)),
            }
        }
        if self.trail.len() >= MAX_DEPTH {
            return self.move_up(directory, name);
        }
        let inner = match self.lookup.enter(directory, name) {
            Ok(inner) => inner,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(self.explain(directory, name, errno)),
        };
        self.trail.push(name.to_owned());
        let mut is_parent_ours = false;
        loop {
            if Instant::now() >= self.deadline {
                return Err(HelperError::OutOfTime(self.path.to_owned()));
            }
            let seen = self.pass(&inner)?;
            match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => break,
                Err(Errno::NOTEMPTY | Errno::EXIST) if seen > 0 => take_possession(&inner),
                // Another directory was put in its place: the next pass over its parent enters that one.
                Err(Errno::NOTEMPTY | Errno::EXIST) if !same(directory, name, &inner) => break,
                // It was empty, and has its name: another one had it meanwhile. Nobody swaps names in a directory of root's.
                Err(Errno::NOTEMPTY | Errno::EXIST) if !is_parent_ours => {
                    take_possession(directory);
                    is_parent_ours = true;
                }
                Err(errno) => {
                    self.trail.pop();
                    return Err(self.explain(directory, name, errno));
                }
            }
        }
        self.trail.pop();
        Ok(())
    }

    /// Renames a directory that lies too deep to the top of the tree, where the next pass finds it.
    fn move_up(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), HelperError> {
        loop {
            let free = CString::new(format!(".moved-{}", self.moved)).expect("digits hold no NUL");
            self.moved += 1;
            match rustix::fs::renameat_with(directory, name, &self.top, &free, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // A name the server's user, or an interrupted delete, has taken: the next number.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.explain(directory, name, errno)),
            }
        }
    }

    /// Where the delete is, for messages.
    fn here(&self) -> PathBuf {
        self.trail.iter().fold(self.path.to_owned(), |path, name| path.join(display(name)))
    }

    /// The error of an entry that cannot be taken away, `name` in `directory`.
    fn explain(&self, directory: BorrowedFd<'_>, name: &CStr, errno: Errno) -> HelperError {
        let path = self.here().join(display(name));
        let protected = |name: &CStr, flags| {
            let attributes = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
            rustix::fs::statx(directory, name, flags, StatxFlags::empty())
                .is_ok_and(|stat| stat.stx_attributes.intersects(attributes))
        };
        if errno == Errno::PERM
            && (protected(name, AtFlags::SYMLINK_NOFOLLOW) || protected(c"", AtFlags::EMPTY_PATH))
        {
            return HelperError::Protected(path);
        }
        refused(errno, &path)
    }
}

/// How a directory is entered. It is a value so that a test can take a flag away and see what is lost by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) flags: OFlags,
    pub(crate) resolve: ResolveFlags,
}

impl Lookup {
    /// Through no link and over no mount.
    pub(crate) const SAFE: Self = Self {
        flags: OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC),
        resolve: ResolveFlags::NO_XDEV.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::BENEATH),
    };

    /// Opens a directory. EXDEV is a mount that would be crossed.
    fn enter(self, parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        rustix::fs::openat2(parent, name, self.flags, Mode::empty(), self.resolve)
    }
}

/// Makes a directory root's alone. Somebody may add to it as fast as it is emptied; from here on only root may.
fn take_possession(directory: impl AsFd) {
    let root = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    let taken = rustix::fs::fchown(&directory, Some(root.0), Some(root.1))
        .and_then(|()| rustix::fs::fchmod(directory, Mode::RWXU));
    match taken {
        // If it can't be done, as by a test that is not root, what is tried next says so, or the deadline does.
        Ok(()) | Err(_) => {}
    }
}

/// Whether `name` is still the directory that was opened as `held`.
fn same(parent: BorrowedFd<'_>, name: &CStr, held: &OwnedFd) -> bool {
    let Ok(named) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    rustix::fs::fstat(held).is_ok_and(|held| (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino))
}

/// EXDEV and EBUSY are how the kernel says 'a mount' to openat2, rename, rmdir and unlink.
fn refused(errno: Errno, path: &Path) -> HelperError {
    match errno {
        Errno::XDEV | Errno::BUSY => HelperError::Crossing(path.to_owned()),
        source => HelperError::Call { call: "delete", path: path.to_owned(), source },
    }
}

/// A name as it can be printed: it may hold anything but a slash and a NUL.
fn display(name: &CStr) -> String {
    holders::shown(Path::new(OsStr::from_bytes(name.to_bytes())))
}
