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

fn remove_tree_by(
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
struct Lookup {
    flags: OFlags,
    resolve: ResolveFlags,
}

impl Lookup {
    /// Through no link and over no mount.
    const SAFE: Self = Self {
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

#[cfg(test)]
#[path = "../tests/support/playground.rs"]
mod playground;

#[cfg(test)]
#[path = "../tests/support/swapper.rs"]
mod swapper;

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// Far beyond what anything here takes.
    pub(crate) fn soon() -> Instant {
        Instant::now() + Duration::from_secs(120)
    }

    fn delete(parent: &Path, name: &str) -> Result<(), HelperError> {
        remove_tree(open(parent), name, &parent.join(name), soon())
    }

    #[test]
    fn deep_wide_and_oddly_named() {
        // For root alone no mode is in the way.
        playground::run("tree::tests::deep_wide_and_oddly_named", || {
            let parent = tempfile::tempdir().unwrap();
            let tree = parent.path().join("t");
            fs::create_dir(&tree).unwrap();
            // Deeper than a path can say and than descriptors would last: made step by step.
            let mut at = open(&tree);
            for _ in 0..10_000 {
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
            delete(parent.path(), "t").unwrap();
            assert!(!tree.exists());
            delete(parent.path(), "t").unwrap();
        });
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        symlink("other", parent.path().join("t")).unwrap();
        assert!(delete(parent.path(), "t").is_err());
        assert!(parent.path().join("other").is_dir());
    }

    #[test]
    fn a_delete_without_end_meets_its_deadline_and_the_next_one_goes_on() {
        let parent = tempfile::tempdir().unwrap();
        for index in 0..200 {
            fs::create_dir_all(parent.path().join(format!("t/{index}/a"))).unwrap();
        }
        let past = remove_tree(open(parent.path()), "t", Path::new("/x/t"), Instant::now());
        assert!(matches!(past, Err(HelperError::OutOfTime(_))), "{past:?}");
        delete(parent.path(), "t").unwrap();
        assert!(!parent.path().join("t").exists());
    }

    /// A delete of one tree while somebody swaps what is in it.
    struct Fight {
        result: Result<(), HelperError>,
        /// How often the attacker has put a link in the place of a directory.
        links: u64,
        is_victim_whole: bool,
    }

    /// Deletes a tree of names that are a directory in one moment and a link to another tree in the next.
    fn fight(lookup: Lookup) -> Fight {
        let parent = tempfile::tempdir().unwrap();
        let (tree, victim) = (parent.path().join("t"), parent.path().join("victim"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "kept").unwrap();
        let targets = [victim.to_str().unwrap().to_owned(), "../victim".to_owned()];
        let names = (0..NAMES).map(|name| name.to_string());
        let mut swapper = swapper::Swapper::new(open(&tree), names, &targets);
        assert_eq!(swapper.plant(), NAMES);
        let (began, begin) = std::sync::mpsc::sync_channel(0);
        let attacker = std::thread::spawn(move || {
            swapper.swap();
            began.send(()).unwrap();
            // Until none of the names is there any more.
            while swapper.swap() > 0 {}
            swapper.shown
        });
        begin.recv().unwrap();
        let result = remove_tree_by(lookup, open(parent.path()).as_fd(), "t", &tree, soon());
        if result.is_err() {
            // It has given up: nothing takes the names away, so the tree goes.
            fs::rename(&tree, parent.path().join("lost")).unwrap();
            delete(parent.path(), "lost").unwrap();
        }
        let links = attacker.join().unwrap();
        let is_victim_whole = fs::read(victim.join("file")).is_ok_and(|content| content == b"kept");
        Fight { result, links, is_victim_whole }
    }

    #[test]
    fn links_in_the_place_of_directories_are_followed_by_none_but_a_delete_without_its_flags() {
        let name = "links_in_the_place_of_directories_are_followed_by_none_but_a_delete_without_its_flags";
        playground::run(&format!("tree::tests::{name}"), || {
            // As it was built wrong: the attacker wins at once, so he really shows links to a delete.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let careless = Lookup { flags, resolve: ResolveFlags::empty() };
            let lost = until(careless, &|fight| !fight.is_victim_whole);
            let lost = lost.expect("an attacker who never wins is none");
            // With what keeps it beneath the tree alone he makes it give up.
            let beneath = Lookup { flags, resolve: ResolveFlags::BENEATH };
            let stopped = until(beneath, &|fight| {
                assert!(fight.is_victim_whole);
                matches!(fight.result, Err(HelperError::Crossing(_)))
            });
            let stopped = stopped.expect("an attacker who never shows a link is none");
            // As it is: nothing is lost, and each delete is done.
            let mut links = 0;
            for _ in 0..FIGHTS {
                let fight = fight(Lookup::SAFE);
                fight.result.unwrap();
                assert!(fight.is_victim_whole);
                links += fight.links;
            }
            assert!(links >= 10_000, "{links} links are no attack");
            eprintln!(
                "lost in fight {lost} without flags, given up in fight {stopped} with BENEATH alone; {links} links \
                 in {FIGHTS} fights as it is"
            );
        });
    }

    /// The first one is lost without the flags, on one core as on two.
    const FIGHTS: u32 = 50;

    /// Enough for a delete to be interrupted on its way through them, where attacker and delete share a core.
    const NAMES: usize = 500;

    /// The number of the first fight that ends so; `None` if none does for a long time.
    fn until(lookup: Lookup, is_over: &dyn Fn(Fight) -> bool) -> Option<u32> {
        let deadline = soon();
        (1..).take_while(|_| Instant::now() < deadline).find(|_| is_over(fight(lookup)))
    }

    /// What no lookup flag but NO_XDEV sees: no link leads there.
    #[test]
    fn a_mount_in_the_tree_is_emptied_by_none_but_a_delete_that_crosses_mounts() {
        let name = "a_mount_in_the_tree_is_emptied_by_none_but_a_delete_that_crosses_mounts";
        playground::run(&format!("tree::tests::{name}"), || {
            let crossing =
                Lookup { resolve: Lookup::SAFE.resolve.difference(ResolveFlags::NO_XDEV), ..Lookup::SAFE };
            for (lookup, is_kept) in [(Lookup::SAFE, true), (crossing, false)] {
                let parent = tempfile::tempdir().unwrap();
                let (inside, victim) = (parent.path().join("t/d"), parent.path().join("victim"));
                fs::create_dir_all(&inside).unwrap();
                fs::create_dir(&victim).unwrap();
                fs::write(victim.join("file"), "kept").unwrap();
                rustix::mount::mount_bind(&victim, &inside).unwrap();
                let result = remove_tree_by(
                    lookup,
                    open(parent.path()).as_fd(),
                    "t",
                    &parent.path().join("t"),
                    soon(),
                );
                assert!(matches!(result, Err(HelperError::Crossing(_))), "{result:?}");
                assert_eq!(victim.join("file").exists(), is_kept, "{lookup:?}");
                rustix::mount::unmount(&inside, rustix::mount::UnmountFlags::empty()).unwrap();
            }
        });
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

    #[test]
    fn it_never_leaves_its_directory() {
        playground::run("tree::tests::it_never_leaves_its_directory", || {
            let config = ProptestConfig {
                cases: 64,
                // The failing input is in the message; there is nowhere to write it.
                failure_persistence: None,
                ..ProptestConfig::default()
            };
            let ran = proptest::test_runner::TestRunner::new(config)
                .run(&prop::collection::vec(make(), 0..40), |steps| stays_in_its_directory(&steps));
            ran.unwrap_or_else(|error| panic!("{error}"));
        });
    }

    fn stays_in_its_directory(steps: &[Make]) -> Result<(), TestCaseError> {
        let parent = tempfile::tempdir().unwrap();
        let (tree, outside) = (parent.path().join("t"), parent.path().join("outside"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        let absolute = |path: &[u8]| path.iter().fold(tree.clone(), |at, step| at.join(step.to_string()));
        let through_link =
            |path: &Path| path.ancestors().skip(1).take_while(|at| *at != tree).any(Path::is_symlink);
        for step in steps {
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
        delete(parent.path(), "t").unwrap();
        prop_assert!(!tree.exists());
        prop_assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
        prop_assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        Ok(())
    }
}
