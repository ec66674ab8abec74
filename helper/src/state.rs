//! The state directory, and the one way to reach what lies in it: from an open directory, with `openat2(2)`.
//!
//! The kernel resolves a path that root passes as text again each time, and each time another user may have put a symlink
//! into it. So `/var/lib/left4me` is opened once, and everything below is opened relative to an open directory, with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`. A link on the way is ELOOP, a way out is EXDEV. Each
//! directory on the way down to `upper` must belong to root and be writable by root only: otherwise its names could be
//! swapped between the check and the system call.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::HelperError;
use crate::instance::{Instance, Paths};

/// The place of one instance: the state directory, open, and the names of what is the instance's in it, for messages and to
/// compare with the mount table.
#[derive(Debug)]
pub struct InstanceDir {
    /// The state directory.
    pub state: StateDir,
    /// The instance's names, without links in them.
    pub paths: Paths,
}

impl InstanceDir {
    /// Opens `state_dir`, as [`StateDir::open`] does, for `instance`.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn open(state_dir: &Path, instance: &Instance) -> Result<Self, HelperError> {
        let state = StateDir::open(state_dir)?;
        Ok(Self { paths: state.paths(instance), state })
    }
}

/// The state directory, open.
#[derive(Debug)]
pub struct StateDir {
    directory: OwnedFd,
    path: PathBuf,
}

impl StateDir {
    /// Opens `path`, [`STATE_DIR`](crate::instance::STATE_DIR) outside of tests. The way to it is the administrator's,
    /// so links in it are followed: `/var/lib/left4me` may be one to another disk.
    ///
    /// # Errors
    /// It is not there, no directory, or somebody else may write in it.
    pub fn open(path: &Path) -> Result<Self, HelperError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .map_err(HelperError::call("open directory", path))?;
        require_roots(&directory, path)?;
        // The name that the mount table will have for what is mounted below.
        let link = rustix::fs::readlink(proc_path(&directory), Vec::new())
            .map_err(HelperError::call("readlink /proc/self/fd of", path))?;
        let path = PathBuf::from(OsString::from_vec(link.into_bytes()));
        Ok(Self { directory, path })
    }

    /// Its name without links in it, as in the mount table.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of what belongs to `instance`, for messages and to compare with the mount table.
    #[must_use]
    pub fn paths(&self, instance: &Instance) -> Paths {
        instance.paths(&self.path)
    }

    /// Opens `runtime`, the parent of all runtime directories; `None` if there is none.
    ///
    /// # Errors
    /// It is a link, no directory, or somebody else may write in it.
    pub fn runtime(&self) -> Result<Option<OwnedFd>, HelperError> {
        let path = self.path.join("runtime");
        match directory_beneath(&self.directory, Path::new("runtime")) {
            Ok(directory) => require_roots(&directory, &path).map(|()| Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(HelperError::call("open directory", path)(source)),
        }
    }

    /// Refuses what lies at `relative` if somebody else could swap names in a directory on the way to it.
    ///
    /// # Errors
    /// [`HelperError::NotRoots`], or such a directory cannot be opened. One that is not there is left to who opens it.
    pub fn require_roots_above(&self, relative: &Path) -> Result<(), HelperError> {
        let above = relative.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        for above in above {
            let path = self.path.join(above);
            match self.directory(above) {
                Ok(directory) => require_roots(&directory, &path)?,
                Err(Errno::NOENT) => {}
                Err(Errno::LOOP) => return Err(HelperError::LinkedLayer(path)),
                Err(source) => return Err(HelperError::call("open directory", path)(source)),
            }
        }
        Ok(())
    }

    /// Opens the directory at `relative`.
    ///
    /// # Errors
    /// As openat2(2): ELOOP for a link anywhere in `relative`, EXDEV for a way out of the state directory.
    pub fn directory(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        directory_beneath(&self.directory, relative)
    }

    /// Opens the file at `relative` to read it.
    ///
    /// # Errors
    /// As openat2(2): ELOOP for a link anywhere in `relative`, EXDEV for a way out of the state directory.
    pub fn file(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        // NONBLOCK: the open of a FIFO waits for its other end.
        beneath(self.directory.as_fd(), relative, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }
}

/// Opens `relative` below `parent`, through no link of any kind and with no way out.
///
/// # Errors
/// As openat2(2).
pub fn beneath(parent: BorrowedFd<'_>, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(parent, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// [`beneath`], for a directory.
///
/// # Errors
/// As openat2(2).
pub fn directory_beneath(parent: impl AsFd, relative: &Path) -> Result<OwnedFd, Errno> {
    beneath(parent.as_fd(), relative, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Refuses a directory in which somebody else could swap names.
///
/// # Errors
/// [`HelperError::NotRoots`].
pub fn require_roots(directory: impl AsFd, path: &Path) -> Result<(), HelperError> {
    let stat = rustix::fs::fstat(directory).map_err(HelperError::call("fstat", path))?;
    // Root's, or ours: a test need not be root, and outside of tests we are.
    let ours = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    if ours && stat.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(HelperError::NotRoots { path: path.to_owned(), uid: stat.st_uid, mode: stat.st_mode & 0o7777 })
}

/// A text that leads the kernel to an open descriptor and to nothing else, for system calls that take only text.
#[must_use]
pub fn proc_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_reached_through_a_link_or_outside() {
        let parent = tempfile::tempdir().unwrap();
        let outside = parent.path().join("outside");
        let state = parent.path().join("state");
        fs::create_dir_all(outside.join("d")).unwrap();
        fs::create_dir_all(state.join("a/b")).unwrap();
        fs::write(state.join("a/f"), "").unwrap();
        symlink(&outside, state.join("absolute")).unwrap();
        symlink("a", state.join("relative")).unwrap();
        symlink("../../outside", state.join("a/up")).unwrap();
        let state = StateDir::open(&state).unwrap();
        assert!(state.directory(Path::new("a/b")).is_ok());
        assert!(state.file(Path::new("a/f")).is_ok());
        for (path, errno) in [
            ("absolute", Errno::LOOP),
            ("absolute/d", Errno::LOOP),
            ("relative", Errno::LOOP),
            ("relative/b", Errno::LOOP),
            ("a/up/d", Errno::LOOP),
            ("..", Errno::XDEV),
            ("a/../../outside", Errno::XDEV),
            ("/", Errno::XDEV),
            ("a/f", Errno::NOTDIR),
        ] {
            // EAGAIN: somebody on the machine renames or mounts at this moment, and whether `..` leads out is not known;
            // openat2(2) has the caller ask again. No path of the helper's has a `..`.
            let errors = std::iter::repeat_with(|| state.directory(Path::new(path)).unwrap_err());
            assert_eq!(errors.take(1000).find(|error| *error != Errno::AGAIN), Some(errno), "{path}");
        }
    }

    #[test]
    fn a_link_to_the_state_directory_is_the_administrators_and_gets_its_real_name() {
        let parent = tempfile::tempdir().unwrap();
        let real = parent.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, parent.path().join("link")).unwrap();
        assert_eq!(StateDir::open(&parent.path().join("link")).unwrap().path(), real);
    }

    #[test]
    fn a_directory_that_others_may_write_in_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let runtime = parent.path().join("runtime");
        fs::create_dir(&runtime).unwrap();
        let state = StateDir::open(parent.path()).unwrap();
        for (mode, fine) in [(0o755, true), (0o700, true), (0o775, false), (0o757, false), (0o1777, false)] {
            fs::set_permissions(&runtime, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(state.runtime().is_ok(), fine, "{mode:o}");
        }
        fs::remove_dir(&runtime).unwrap();
        assert!(state.runtime().unwrap().is_none());
        symlink("/", &runtime).unwrap();
        assert!(matches!(state.runtime(), Err(HelperError::Call { source: Errno::LOOP, .. })));
    }

    #[test]
    fn a_directory_on_the_way_that_others_may_write_in_is_refused_wherever_it_is() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir_all(parent.path().join("overlays/maps/x")).unwrap();
        let state = StateDir::open(parent.path()).unwrap();
        let layer = Path::new("overlays/maps");
        assert!(state.require_roots_above(layer).is_ok());
        assert!(
            state.require_roots_above(Path::new("none/maps")).is_ok(),
            "who opens it says that it is not there"
        );
        let open =
            |path: &str| fs::set_permissions(parent.path().join(path), fs::Permissions::from_mode(0o777));
        open("overlays/maps").unwrap();
        assert!(state.require_roots_above(layer).is_ok(), "what lies in a layer is its owner's affair");
        assert!(state.require_roots_above(Path::new("overlays/maps/x")).is_err());
        open("overlays").unwrap();
        let refused = state.require_roots_above(layer).unwrap_err().to_string();
        assert!(refused.contains("/overlays belongs to uid"), "{refused}");
    }

    /// Names of which some are links, and a way through them.
    fn component() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "f", "up", "out", "loop", "proc", "..", ".", ""])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn whatever_is_opened_lies_below_and_was_reached_through_no_link(
            directories in prop::collection::vec(prop::collection::vec(component(), 1..4), 0..6),
            links in prop::collection::vec(prop::collection::vec(component(), 1..4), 0..4),
            asked in prop::collection::vec(prop::collection::vec(component(), 1..6), 1..12),
            absolute: bool,
        ) {
            let parent = tempfile::tempdir().unwrap();
            let root = parent.path().canonicalize().unwrap().join("state");
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::create_dir(parent.path().join("outside")).unwrap();
            let is_plain = |path: &[&str]| !path.iter().any(|name| ["..", ".", ""].contains(name));
            for path in directories.iter().filter(|path| is_plain(path)) {
                // What has a name already keeps it.
                drop(fs::create_dir_all(root.join(path.join("/"))));
            }
            // Not below a link that was made before: that would be outside, `/` itself perhaps.
            let lies_below = |path: &Path| path.parent().unwrap().canonicalize().is_ok_and(|real| real.starts_with(&root));
            for path in links.iter().filter(|path| is_plain(path) && lies_below(&root.join(path.join("/")))) {
                let target = match path.last() {
                    Some(&"up") => "..",
                    Some(&"out") => "../../outside",
                    Some(&"proc") => "/proc/self/root",
                    Some(&"loop") => "loop",
                    _ if absolute => "/",
                    _ => "a",
                };
                drop(symlink(target, root.join(path.join("/"))));
            }
            let state = StateDir::open(&root).unwrap();
            for path in asked {
                let path = PathBuf::from(path.join("/"));
                for opened in [state.directory(&path), state.file(&path)] {
                    let Ok(opened) = opened else { continue };
                    let real = fs::read_link(proc_path(&opened)).unwrap();
                    prop_assert!(real.starts_with(&root), "{} led to {}", path.display(), real.display());
                    let through = (1..=path.components().count())
                        .map(|count| path.components().take(count).collect::<PathBuf>())
                        .find(|part| root.join(part).is_symlink());
                    prop_assert_eq!(through, None, "{} led to {}", path.display(), real.display());
                }
            }
        }
    }
}
