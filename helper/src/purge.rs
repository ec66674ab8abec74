//! The gates before an instance's runtime directory is deleted, and their order; `tree` deletes.
//!
//! The order is the point. First both mount tables (PID 1's and our own) must list nothing at or below it; then
//! `rmdir(merged)` must succeed, which the kernel refuses for a mountpoint; then the directory is renamed out of the
//! way, so that a crash half-way never leaves a half-deleted upper layer where the next start would use it; only
//! then is anything in it deleted, and the instance's lock let go before: a start waits for no delete. A delete that
//! starts before the check empties `upper` and then trips over `merged`. Whatever a killed reset leaves is
//! `runtime/.purge-<id>`, or `.purge-<id>.1` and so on where that name was taken, for the next reset or mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::HelperError;
use crate::instance::Paths;
use crate::lock::RuntimeLock;
use crate::mountinfo;
use crate::state::{InstanceDir, require_roots};
use crate::tree::remove_tree;
use holders::chain::chain;

/// The tables that must not list the directory: what the system has mounted, and what we would delete through. They
/// differ if this process runs in a namespace of its own, where `rmdir` would not see PID 1's mount.
pub const MOUNT_TABLES: [&str; 2] = ["/proc/1/mountinfo", "/proc/self/mountinfo"];

/// How long a mount goes on deleting what a killed reset has left. The server waits for it.
const SWEEP: Duration = Duration::from_secs(5);

/// How many runtime directories of an instance can wait to be deleted. More than one takes resets that were killed or
/// could not delete something, one after the other.
const MAX_TRASHES: usize = 8;

/// What is mounted at or below an instance's runtime directory, or what an earlier reset left of it.
///
/// # Errors
/// A table cannot be read, so nothing is known.
pub fn still_mounted(paths: &Paths, tables: &[PathBuf]) -> Result<Vec<PathBuf>, HelperError> {
    let mut found = Vec::new();
    let trashes: Vec<_> = trashes(paths).collect();
    let places: Vec<&Path> =
        trashes.iter().map(|trash| &*trash.path).chain([paths.runtime.as_path()]).collect();
    for table in tables {
        found.extend(mountinfo::at_or_below(table, &places)?);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Deletes `runtime/<id>`, if it is there, and what an interrupted reset left behind. It waits for others who work on
/// the instance, and stops deleting, at `deadline`.
///
/// # Errors
/// [`HelperError::StillMounted`], [`HelperError::Gate`] and [`HelperError::Locked`] say that nothing was deleted.
/// Later ones leave the rest as `runtime/.purge-<id>`, or another of its names, which the next reset deletes.
pub fn purge(place: &InstanceDir, tables: &[PathBuf], deadline: Instant) -> Result<(), HelperError> {
    let InstanceDir { state, paths } = place;
    let Some(runtimes) = state.runtime()? else { return Ok(()) };
    let lock = RuntimeLock::take(&runtimes, &paths.name, &paths.runtime, deadline)?;
    let mounted = still_mounted(paths, tables)?;
    if !mounted.is_empty() {
        return Err(HelperError::StillMounted(mounted));
    }
    if let Some(lock) = lock {
        require_roots(&lock, &paths.runtime)?;
        match rustix::fs::unlinkat(&lock, c"merged", AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                return Err(HelperError::Gate { path: paths.merged.clone(), source });
            }
            Err(source) => return Err(HelperError::call("rmdir", &paths.merged)(source)),
        }
        move_away(&runtimes, paths, deadline)?;
        // Here the lock is let go: a start that waits for it sees that this directory is nobody's now, and makes another.
    }
    delete_trashes(&runtimes, paths, deadline)
}

/// Renames the runtime directory, which the caller has locked, to the first free name of what is to be deleted.
fn move_away(runtimes: &OwnedFd, paths: &Paths, deadline: Instant) -> Result<(), HelperError> {
    let rename = |trash: &Trash| {
        rustix::fs::renameat_with(runtimes, &paths.name, runtimes, &trash.name, RenameFlags::NOREPLACE)
    };
    let failed = HelperError::call("rename", &paths.runtime);
    for trash in trashes(paths) {
        match rename(&trash) {
            Err(Errno::EXIST) => {}
            result => return result.map_err(failed),
        }
    }
    // All names are taken: now they have to go first.
    delete_trashes(runtimes, paths, deadline)?;
    trashes(paths).next().map_or(Ok(()), |first| rename(&first)).map_err(failed)
}

/// Deletes all that is to be deleted of the instance. What is in the way of one does not keep the others from going; the
/// first error is returned.
fn delete_trashes(runtimes: &OwnedFd, paths: &Paths, deadline: Instant) -> Result<(), HelperError> {
    let mut result = Ok(());
    for Trash { name, path } in trashes(paths) {
        // Another reset, or a mount, may be deleting it.
        let deleted = match RuntimeLock::take(runtimes, &name, &path, deadline) {
            Ok(Some(_lock)) => remove_tree(runtimes, &name, &path, deadline),
            Ok(None) => Ok(()),
            Err(HelperError::Locked(path)) => Err(HelperError::OutOfTime(path)),
            Err(error) => Err(error),
        };
        result = result.and(deleted);
    }
    result
}

/// Deletes what a killed reset has left of the instance, for a mount: not for long, not if somebody is at it, and
/// nothing that fails here keeps the server from starting. `note` gets a line about that.
pub fn sweep(InstanceDir { state, paths }: &InstanceDir, note: &mut dyn FnMut(String)) {
    let mut report = |error: &HelperError| {
        note(format!("what an interrupted reset left stays for the next one: {}", chain(error)));
    };
    let runtimes = match state.runtime() {
        Ok(Some(runtimes)) => runtimes,
        Ok(None) => return,
        Err(error) => return report(&error),
    };
    let deadline = Instant::now() + SWEEP;
    for Trash { name, path } in trashes(paths) {
        match RuntimeLock::take(&runtimes, &name, &path, Instant::now()) {
            Ok(Some(_lock)) => {
                if let Err(error) = remove_tree(&runtimes, &name, &path, deadline) {
                    report(&error);
                }
            }
            Ok(None) | Err(HelperError::Locked(_)) => {}
            Err(error) => report(&error),
        }
    }
}

/// A place for a runtime directory that is to be deleted.
struct Trash {
    name: String,
    path: PathBuf,
}

/// All of them, in the order in which they are used: `.purge-<id>`, `.purge-<id>.1` and so on. No instance's name has a
/// dot, so none of these is another instance's.
fn trashes(paths: &Paths) -> impl Iterator<Item = Trash> {
    (0..MAX_TRASHES).map(|number| {
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        let name = format!(".purge-{}{suffix}", paths.name);
        Trash { path: paths.all_runtimes.join(&name), name }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::instance::Instance;

    /// An instance with files in its upper layer, below a temporary directory.
    fn instance(state: &Path) -> Paths {
        let paths = "3".parse::<Instance>().unwrap().paths(state);
        for directory in [&paths.upper, &paths.work, &paths.merged] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(paths.upper.join("precious"), "").unwrap();
        paths
    }

    fn place(paths: &Paths) -> InstanceDir {
        InstanceDir::open(paths.all_runtimes.parent().unwrap(), &paths.name.parse().unwrap()).unwrap()
    }

    fn open(path: &Path) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// Far beyond what anything here takes.
    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(120)
    }

    fn reset(paths: &Paths, tables: &[PathBuf]) -> Result<(), HelperError> {
        purge(&place(paths), tables, soon())
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
        reset(&paths, &table(state.path(), "")).unwrap();
        let left: Vec<_> =
            fs::read_dir(&paths.all_runtimes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["30"]);
        reset(&paths, &table(state.path(), "")).unwrap();
    }

    #[test]
    fn nothing_goes_while_a_table_lists_a_mount() {
        let state = tempfile::tempdir().unwrap();
        let paths = instance(state.path());
        let mounted = format!("1 2 0:3 / {} rw - overlay overlay rw\n", paths.merged.display());
        let error = reset(&paths, &table(state.path(), &mounted)).unwrap_err();
        assert!(
            matches!(&error, HelperError::StillMounted(what) if *what == [paths.merged.clone()]),
            "{error}"
        );
        assert!(paths.upper.join("precious").exists() && paths.merged.exists());
        let error = reset(&paths, &table(state.path(), "garbage\n")).unwrap_err();
        assert!(matches!(error, HelperError::Mountinfo { .. }), "{error}");
        assert!(paths.upper.join("precious").exists());
    }

    #[test]
    fn nothing_goes_while_the_mountpoint_is_not_empty_or_the_instance_is_locked() {
        let state = tempfile::tempdir().unwrap();
        let paths = instance(state.path());
        fs::write(paths.merged.join("stray"), "").unwrap();
        let error = reset(&paths, &table(state.path(), "")).unwrap_err();
        assert!(matches!(error, HelperError::Gate { source: Errno::NOTEMPTY, .. }), "{error}");
        fs::remove_file(paths.merged.join("stray")).unwrap();
        let lock = RuntimeLock::take(open(&paths.all_runtimes), "3", &paths.runtime, Instant::now()).unwrap();
        let held =
            purge(&place(&paths), &table(state.path(), ""), Instant::now() + Duration::from_millis(20));
        assert!(matches!(held, Err(HelperError::Locked(_))));
        assert!(paths.upper.join("precious").exists());
        drop(lock);
        reset(&paths, &table(state.path(), "")).unwrap();
        assert!(!paths.runtime.exists());
    }

    #[test]
    fn what_an_interrupted_reset_left_is_swept_unless_somebody_is_at_it() {
        let directory = tempfile::tempdir().unwrap();
        let paths = instance(directory.path());
        let mut notes = Vec::new();
        fs::create_dir_all(paths.trash.join("upper/d")).unwrap();
        let busy = RuntimeLock::take(open(&paths.all_runtimes), ".purge-3", &paths.trash, soon()).unwrap();
        sweep(&place(&paths), &mut |note| notes.push(note));
        assert!(paths.trash.exists());
        drop(busy);
        sweep(&place(&paths), &mut |note| notes.push(note));
        assert!(!paths.trash.exists() && paths.upper.join("precious").exists());
        assert_eq!(notes, Vec::<String>::new());
    }

    /// While a killed reset's remains are being deleted, which can take long, a reset and a start get on.
    #[test]
    fn a_start_waits_for_no_delete() {
        let directory = tempfile::tempdir().unwrap();
        let paths = instance(directory.path());
        let tables = table(directory.path(), "");
        fs::create_dir_all(paths.trash.join("left/over")).unwrap();
        let runtimes = open(&paths.all_runtimes);
        let busy = RuntimeLock::take(&runtimes, ".purge-3", &paths.trash, soon()).unwrap();
        let reset = {
            let paths = paths.clone();
            std::thread::spawn(move || reset(&paths, &tables))
        };
        // What a start does first. It may come before the reset.
        let start =
            || RuntimeLock::take(&runtimes, "3", &paths.runtime, Instant::now() + Duration::from_secs(5));
        let waited = loop {
            match start() {
                Ok(Some(_)) => std::thread::yield_now(),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let instances = fs::read_dir(&paths.all_runtimes).unwrap().count();
        drop(busy);
        reset.join().unwrap().unwrap();
        waited.unwrap();
        assert_eq!(instances, 2, "what is deleted has a name of its own each");
        assert_eq!(fs::read_dir(&paths.all_runtimes).unwrap().count(), 0);
    }

    #[test]
    fn every_name_of_what_is_to_be_deleted_counts() {
        let directory = tempfile::tempdir().unwrap();
        let paths = instance(directory.path());
        let left = || fs::read_dir(&paths.all_runtimes).unwrap().count();
        let fill = || {
            for trash in trashes(&paths) {
                fs::create_dir_all(trash.path.join("upper/d")).unwrap();
            }
        };
        // A mount below one of them: nothing goes.
        fill();
        let below = paths.all_runtimes.join(".purge-3.7/upper");
        let mounted = format!("1 2 0:3 / {} rw - overlay overlay rw\n", below.display());
        let error = reset(&paths, &table(directory.path(), &mounted)).unwrap_err();
        assert!(matches!(&error, HelperError::StillMounted(what) if *what == [below]), "{error}");
        assert_eq!(left(), MAX_TRASHES + 1);
        // A mount sweeps them all, and leaves another instance's.
        fs::create_dir(paths.all_runtimes.join(".purge-30")).unwrap();
        sweep(&place(&paths), &mut |note| panic!("{note}"));
        assert_eq!(left(), 2);
        // A reset finds a name though all are taken, and deletes them all.
        fill();
        reset(&paths, &table(directory.path(), "")).unwrap();
        assert_eq!(left(), 1);
    }

    /// Something in the way of one, here a file that has its name, is reported, and the others go all the same.
    #[test]
    fn what_can_not_be_deleted_keeps_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let paths = instance(directory.path());
        fs::write(&paths.trash, "").unwrap();
        fs::create_dir(paths.all_runtimes.join(".purge-3.2")).unwrap();
        let error = reset(&paths, &table(directory.path(), "")).unwrap_err();
        assert!(chain(&error).contains("runtime/.purge-3: "), "{error}");
        let left: Vec<_> =
            fs::read_dir(&paths.all_runtimes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".purge-3"]);
    }
}
