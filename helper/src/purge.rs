//! Deleting an instance's runtime directory, and the checks that come before.
//!
//! The order is the point. First both mount tables (PID 1's and our own) must list nothing at or below it; then
//! `rmdir(merged)` must succeed, which the kernel refuses for a mountpoint; then the directory is renamed out of the
//! way, so that a crash half-way never leaves a half-deleted upper layer where the next start would use it; only
//! then is anything in it deleted. A delete that starts before the check empties `upper` and then trips over
//! `merged`.
//!
//! The delete itself takes hostile trees: the server's user could make anything in `upper`. It needs two open
//! directories and one buffer however wide or deep the tree is: a directory found inside another is first renamed to
//! the top of the tree, so nothing recurses. Every step is relative to an open directory; symlinks are removed and
//! never followed; a directory on another mount is an error (openat2(2), RESOLVE_NO_XDEV, which sees bind mounts of
//! the same file system too).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::HelperError;
use crate::instance::Paths;
use crate::lock::RuntimeLock;
use crate::mountinfo;

/// The tables that must not list the directory: what the system has mounted, and what we would delete through. They
/// differ if this process runs in a namespace of its own, where `rmdir` would not see PID 1's mount.
pub const MOUNT_TABLES: [&str; 2] = ["/proc/1/mountinfo", "/proc/self/mountinfo"];

/// What is mounted at or below an instance's runtime directory, or what an earlier reset left of it.
///
/// # Errors
/// A table cannot be read, so nothing is known.
pub fn still_mounted(paths: &Paths, tables: &[PathBuf]) -> Result<Vec<PathBuf>, HelperError> {
    let mut found = Vec::new();
    for table in tables {
        let mounts = mountinfo::read(table)?;
        found.extend(mountinfo::at_or_below(&mounts, &paths.runtime));
        found.extend(mountinfo::at_or_below(&mounts, &paths.trash));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Deletes `runtime/<id>`, if it is there, and what an interrupted reset left behind.
///
/// # Errors
/// [`HelperError::StillMounted`], [`HelperError::Gate`] and [`HelperError::Locked`] say that nothing was deleted.
/// Later ones leave the rest as `runtime/.purge-<id>`, which the next reset deletes.
pub fn purge(paths: &Paths, tables: &[PathBuf]) -> Result<(), HelperError> {
    let lock = RuntimeLock::take(&paths.runtime)?;
    let mounted = still_mounted(paths, tables)?;
    if !mounted.is_empty() {
        return Err(HelperError::StillMounted(mounted));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(&paths.all_runtimes, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) if lock.is_none() => return Ok(()),
        Err(source) => return Err(HelperError::call("open directory", &paths.all_runtimes)(source)),
    };
    let trash = format!(".purge-{}", paths.name);
    let trash = CString::new(trash).expect("an instance name holds no NUL");
    if let Some(lock) = &lock {
        match rustix::fs::unlinkat(lock, c"merged", AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                return Err(HelperError::Gate { path: paths.merged.clone(), source });
            }
            Err(source) => return Err(HelperError::call("rmdir", &paths.merged)(source)),
        }
    }
    remove_tree(&parent, &trash, &paths.trash)?;
    if lock.is_some() {
        rustix::fs::renameat_with(&parent, paths.name.as_str(), &parent, &trash, RenameFlags::NOREPLACE)
            .map_err(HelperError::call("rename", &paths.runtime))?;
        remove_tree(&parent, &trash, &paths.trash)?;
    }
    Ok(())
}

/// Deletes the directory `name` in `parent` with all it holds; no such directory is success. `path` is its name in
/// messages.
///
/// # Errors
/// [`HelperError::Crossing`] at a mount or another file system, or the system call that failed. What is left can be
/// given to this function again.
pub fn remove_tree(parent: impl AsFd, name: &CStr, path: &Path) -> Result<(), HelperError> {
    let parent = parent.as_fd();
    let top = match enter(parent, name, None) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(refused(errno, path)),
    };
    let tree = Tree { device: device(&top, path)?, path, top };
    tree.empty()?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(|errno| refused(errno, path))
}

/// The tree that is being deleted.
struct Tree<'a> {
    top: OwnedFd,
    device: u64,
    path: &'a Path,
}

impl Tree<'_> {
    /// Deletes everything in the top directory, which meanwhile receives the directories found further down. Each
    /// pass deletes all it finds, so there are at most as many passes as the tree has levels.
    fn empty(&self) -> Result<(), HelperError> {
        let mut moved = 0;
        for_all_until_empty(&self.top, self.path, |name, file_type| {
            let failed = |errno| refused(errno, &self.path.join(display(name)));
            if file_type != FileType::Directory && !self.unlink(&self.top, name).map_err(failed)? {
                return Ok(());
            }
            let inner = enter(self.top.as_fd(), name, Some(self.device)).map_err(failed)?;
            self.flatten(&inner, name, &mut moved)?;
            rustix::fs::unlinkat(&self.top, name, AtFlags::REMOVEDIR).map_err(failed)
        })
    }

    /// Empties one directory: files are unlinked, directories are renamed into the top directory.
    fn flatten(&self, inner: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), HelperError> {
        let path = self.path.join(display(name));
        for_all_until_empty(inner, &path, |entry, file_type| {
            let failed = |errno| refused(errno, &path.join(display(entry)));
            if file_type != FileType::Directory && !self.unlink(inner, entry).map_err(failed)? {
                return Ok(());
            }
            loop {
                let free = CString::new(format!(".moved-{moved}")).expect("digits hold no NUL");
                *moved += 1;
                match rustix::fs::renameat_with(inner, entry, &self.top, &free, RenameFlags::NOREPLACE) {
                    // A name the server's user, or an interrupted delete, has taken: the next number.
                    Err(Errno::EXIST) => {}
                    result => return result.map_err(failed),
                }
            }
        })
    }

    /// Unlinks what the directory says is not a directory; `true` if it turns out to be one (file systems without
    /// types in their directories say 'unknown').
    fn unlink(&self, directory: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

/// Calls `take_away` for every entry until a pass finds none. A directory that changes while it is read may hide an
/// entry from that pass (readdir(3)), not from the next.
fn for_all_until_empty(
    directory: &OwnedFd,
    path: &Path,
    mut take_away: impl FnMut(&CStr, FileType) -> Result<(), HelperError>,
) -> Result<(), HelperError> {
    let mut entries = Dir::read_from(directory).map_err(HelperError::call("open directory", path))?;
    loop {
        let mut found = false;
        entries.rewind();
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(HelperError::call("read directory", path))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                found = true;
                take_away(name, entry.file_type())?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Opens a directory without following a link or crossing a mount; EXDEV if it would, or if its device is not the
/// one expected.
fn enter(parent: BorrowedFd<'_>, name: &CStr, expected: Option<u64>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let directory = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
    match expected {
        Some(device) if rustix::fs::fstat(&directory)?.st_dev != device => Err(Errno::XDEV),
        _ => Ok(directory),
    }
}

fn device(directory: &OwnedFd, path: &Path) -> Result<u64, HelperError> {
    Ok(rustix::fs::fstat(directory).map_err(HelperError::call("fstat", path))?.st_dev)
}

/// EXDEV and EBUSY are how the kernel says 'a mount' to openat2, rename, rmdir and unlink.
fn refused(errno: Errno, path: &Path) -> HelperError {
    match errno {
        Errno::XDEV | Errno::BUSY => HelperError::Crossing(path.to_owned()),
        source => HelperError::Call { call: "delete", path: path.to_owned(), source },
    }
}

fn display(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;
    use crate::instance::Instance;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn delete(parent: &Path, name: &CStr) -> Result<(), HelperError> {
        remove_tree(open(parent), name, &parent.join(display(name)))
    }

    #[test]
    fn deep_wide_and_oddly_named() {
        let parent = tempfile::tempdir().unwrap();
        let tree = parent.path().join("t");
        fs::create_dir(&tree).unwrap();
        // Deeper than a path can say and than descriptors would last: made step by step.
        let mut at = open(&tree);
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        for name in [".moved-0", ".moved-1", "a b", "-x", "wide"] {
            fs::create_dir(tree.join(name)).unwrap();
            fs::create_dir(tree.join(name).join(".moved-2")).unwrap();
        }
        for index in 0..2000 {
            fs::write(tree.join("wide").join(index.to_string()), "").unwrap();
        }
        fs::set_permissions(tree.join("wide/.moved-2"), fs::Permissions::from_mode(0o0)).unwrap();
        delete(parent.path(), c"t").unwrap();
        assert!(!tree.exists());
        delete(parent.path(), c"t").unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        symlink("other", parent.path().join("t")).unwrap();
        assert!(delete(parent.path(), c"t").is_err());
        assert!(parent.path().join("other").is_dir());
    }

    /// An instance with files in its upper layer, below a temporary directory.
    fn instance(state: &Path) -> Paths {
        let paths = "3".parse::<Instance>().unwrap().paths(state);
        for directory in [&paths.upper, &paths.work, &paths.merged] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(paths.upper.join("precious"), "").unwrap();
        paths
    }

    fn table(state: &Path, text: &str) -> Vec<PathBuf> {
        let table = state.join("mountinfo");
        fs::write(&table, text).unwrap();
        vec![table, "/proc/self/mountinfo".into()]
    }

    #[test]
    fn the_whole_runtime_directory_goes() {
        let state = tempfile::tempdir().unwrap();
        let paths = instance(state.path());
        fs::create_dir_all(paths.trash.join("left/over")).unwrap();
        fs::create_dir(paths.all_runtimes.join("30")).unwrap();
        purge(&paths, &table(state.path(), "")).unwrap();
        let left: Vec<_> =
            fs::read_dir(&paths.all_runtimes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["30"]);
        purge(&paths, &table(state.path(), "")).unwrap();
    }

    #[test]
    fn nothing_goes_while_a_table_lists_a_mount() {
        let state = tempfile::tempdir().unwrap();
        let paths = instance(state.path());
        let mounted = format!("1 2 0:3 / {} rw - overlay overlay rw\n", paths.merged.display());
        let error = purge(&paths, &table(state.path(), &mounted)).unwrap_err();
        assert!(
            matches!(&error, HelperError::StillMounted(what) if *what == [paths.merged.clone()]),
            "{error}"
        );
        assert!(paths.upper.join("precious").exists() && paths.merged.exists());
        let error = purge(&paths, &table(state.path(), "garbage\n")).unwrap_err();
        assert!(matches!(error, HelperError::Mountinfo { .. }), "{error}");
        assert!(paths.upper.join("precious").exists());
    }

    #[test]
    fn nothing_goes_while_the_mountpoint_is_not_empty_or_the_instance_is_locked() {
        let state = tempfile::tempdir().unwrap();
        let paths = instance(state.path());
        fs::write(paths.merged.join("stray"), "").unwrap();
        let error = purge(&paths, &table(state.path(), "")).unwrap_err();
        assert!(matches!(error, HelperError::Gate { source: Errno::NOTEMPTY, .. }), "{error}");
        fs::remove_file(paths.merged.join("stray")).unwrap();
        let lock = RuntimeLock::take(&paths.runtime).unwrap();
        assert!(matches!(purge(&paths, &table(state.path(), "")), Err(HelperError::Locked(_))));
        assert!(paths.upper.join("precious").exists());
        drop(lock);
        purge(&paths, &table(state.path(), "")).unwrap();
        assert!(!paths.runtime.exists());
    }

    /// One step of making a tree: where, and what. Links point outside, at a directory, a file and up.
    #[derive(Debug, Clone)]
    enum Make {
        Directory(Vec<u8>),
        File(Vec<u8>),
        Link(Vec<u8>, &'static str),
    }

    fn make() -> impl Strategy<Value = Make> {
        let path = prop::collection::vec(0u8..3, 1..6);
        let outside = prop::sample::select(vec!["../..", "..", "/", "../../outside", "../outside/file", "."]);
        prop_oneof![
            path.clone().prop_map(Make::Directory),
            path.clone().prop_map(Make::File),
            (path, outside).prop_map(|(path, target)| Make::Link(path, target)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_never_leaves_its_directory(steps in prop::collection::vec(make(), 0..40)) {
            let parent = tempfile::tempdir().unwrap();
            let (tree, outside) = (parent.path().join("t"), parent.path().join("outside"));
            fs::create_dir(&tree).unwrap();
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("file"), "kept").unwrap();
            let absolute = |path: &[u8]| path.iter().fold(tree.clone(), |at, step| at.join(step.to_string()));
            let through_link = |path: &Path| path.ancestors().skip(1).take_while(|at| *at != tree).any(Path::is_symlink);
            for step in &steps {
                let (Make::Directory(path) | Make::File(path) | Make::Link(path, _)) = step;
                let path = absolute(path);
                if through_link(&path) || path.is_symlink() || path.exists() {
                    continue;
                }
                // A file may be in the way of a directory: such a step makes nothing.
                if fs::create_dir_all(path.parent().unwrap()).is_err() {
                    continue;
                }
                match step {
                    Make::Directory(_) => fs::create_dir(&path).unwrap(),
                    Make::File(_) => fs::write(&path, "").unwrap(),
                    Make::Link(_, target) => symlink(target, &path).unwrap(),
                }
            }
            delete(parent.path(), c"t").unwrap();
            prop_assert!(!tree.exists());
            prop_assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
            prop_assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        }
    }
}
