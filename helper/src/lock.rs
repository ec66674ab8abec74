//! A lock for an instance: the helper and a reset lock `runtime/<id>` itself.
//!
//! Without it two helpers could both see nothing mounted and stack two overlays, and a reset could delete an upper layer
//! that is being mounted. The lock is flock(2) on the directory's open file description: it ends with its owner, however
//! that dies; no lock file can be stale; two instances have two locks. It takes no reference inside `merged`.
//!
//! The second program waits for the first, up to a deadline. flock(2) has no deadline, so while another program has the
//! lock, a second thread waits in it, and the first waits for that thread. The helper has no other thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;

use crate::error::HelperError;
use crate::state::directory_beneath;

/// An exclusive lock on a runtime directory, let go on drop.
#[derive(Debug)]
pub struct RuntimeLock {
    directory: OwnedFd,
}

impl RuntimeLock {
    /// Locks the directory `name` in `parent`, waiting for its owner up to `deadline`; `None` if there is no such
    /// directory, be it that its owner was a reset that took it away. `path` is its name in messages.
    ///
    /// # Errors
    /// [`HelperError::Locked`] if somebody else still has it at the deadline.
    pub fn take(
        parent: impl AsFd,
        name: &str,
        path: &Path,
        deadline: Instant,
    ) -> Result<Option<Self>, HelperError> {
        // A reset moves the directory away under its lock, and the next mount makes another one. Each turn of this
        // loop means that this has happened, so whoever waits here waits for others' work and not for a clock.
        loop {
            let directory = match directory_beneath(&parent, Path::new(name)) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => return Ok(None),
                Err(source) => return Err(HelperError::call("open directory", path)(source)),
            };
            let Some(directory) = lock_by(directory, path, deadline)? else {
                return Err(HelperError::Locked(path.to_owned()));
            };
            let held = rustix::fs::fstat(&directory).map_err(HelperError::call("fstat", path))?;
            match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => {
                    return Ok(Some(Self { directory }));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(source) => return Err(HelperError::call("stat", path)(source)),
            }
        }
    }
}

/// Locks an open directory; `None` if somebody else still has the lock at `deadline`.
fn lock_by(directory: OwnedFd, path: &Path, deadline: Instant) -> Result<Option<OwnedFd>, HelperError> {
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => {}
        Err(source) => return Err(HelperError::call("flock", path)(source)),
    }
    let (locked, wait) = mpsc::sync_channel(1);
    // If nobody listens any more the descriptor is closed, and with it the lock that came too late is gone.
    thread::Builder::new()
        .name("flock".into())
        .spawn(move || {
            let result = loop {
                match rustix::fs::flock(&directory, FlockOperation::LockExclusive) {
                    Err(Errno::INTR) => {}
                    result => break result,
                }
            };
            drop(locked.send(result.map(|()| directory)));
        })
        .map_err(|error| {
            HelperError::call("start a thread to lock", path)(
                Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            )
        })?;
    match wait.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(directory)) => Ok(Some(directory)),
        Ok(Err(source)) => Err(HelperError::call("flock", path)(source)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(HelperError::call("flock", path)(Errno::IO)),
    }
}

impl AsFd for RuntimeLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    fn take(parent: &Path, within: Duration) -> Result<Option<RuntimeLock>, HelperError> {
        let directory = fs::File::open(parent).unwrap();
        RuntimeLock::take(directory, "3", &parent.join("3"), Instant::now() + within)
    }

    #[test]
    fn the_second_one_waits_for_the_first_and_no_longer_than_it_may() {
        let parent = tempfile::tempdir().unwrap();
        assert!(take(parent.path(), Duration::ZERO).unwrap().is_none());
        fs::create_dir(parent.path().join("3")).unwrap();
        fs::create_dir(parent.path().join("4")).unwrap();
        let first = take(parent.path(), Duration::ZERO).unwrap();
        assert!(first.is_some());
        assert!(matches!(take(parent.path(), Duration::from_millis(20)), Err(HelperError::Locked(_))));
        let other = fs::File::open(parent.path()).unwrap();
        assert!(RuntimeLock::take(other, "4", Path::new("4"), Instant::now()).unwrap().is_some());
        let path = parent.path().to_owned();
        let second = thread::spawn(move || take(&path, Duration::from_secs(30)).map(|lock| lock.is_some()));
        drop(first);
        assert!(second.join().unwrap().unwrap());
        // The one that gave up above has left nothing locked behind.
        assert!(take(parent.path(), Duration::from_secs(30)).unwrap().is_some());
    }

    #[test]
    fn who_waited_for_a_reset_finds_no_directory_or_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        for next in [false, true] {
            let (runtime, gone) = (parent.path().join("3"), parent.path().join("gone"));
            fs::create_dir(&runtime).unwrap();
            let reset = take(parent.path(), Duration::ZERO).unwrap();
            let path = parent.path().to_owned();
            let waiting = thread::spawn(move || take(&path, Duration::from_secs(30)).unwrap());
            if next {
                // At once, since the waiting one may come as late as between two calls.
                fs::create_dir(&gone).unwrap();
                renameat_with(CWD, &runtime, CWD, &gone, RenameFlags::EXCHANGE).unwrap();
            } else {
                fs::rename(&runtime, &gone).unwrap();
            }
            drop(reset);
            let lock = waiting.join().unwrap();
            assert_eq!(lock.is_some(), next);
            fs::remove_dir(&gone).unwrap();
        }
    }

    #[test]
    fn of_many_one_has_it_also_while_resets_take_the_directory_away() {
        const THREADS: u32 = 6;
        const ROUNDS: u32 = 30;
        let parent = tempfile::tempdir().unwrap();
        let runtime = parent.path().join("3");
        fs::create_dir(&runtime).unwrap();
        let (busy, turns) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (parent, runtime, busy, turns) = (parent.path(), &runtime, &busy, &turns);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // Without a directory a reset is just about to make the next one.
                        let lock = loop {
                            match take(parent, Duration::from_secs(60)).unwrap() {
                                Some(lock) => break lock,
                                None => thread::yield_now(),
                            }
                        };
                        assert!(!busy.swap(true, Ordering::SeqCst), "two have it");
                        thread::yield_now();
                        turns.fetch_add(1, Ordering::SeqCst);
                        busy.store(false, Ordering::SeqCst);
                        if (thread + round) % 3 == 0 {
                            fs::rename(runtime, parent.join(format!("gone-{thread}-{round}"))).unwrap();
                            fs::create_dir(runtime).unwrap();
                        }
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(turns.load(Ordering::SeqCst), THREADS * ROUNDS, "each got it each time");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a process that the test kills and waits for")]
    fn it_ends_with_its_owner_however_that_dies() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("3")).unwrap();
        let lock = take(parent.path(), Duration::ZERO).unwrap().unwrap();
        // The child has the same open file description, and after the drop it alone.
        let held = Stdio::from(lock.directory.try_clone().unwrap());
        let mut owner = Command::new("sleep").arg("1000").stdin(held).spawn().unwrap();
        drop(lock);
        let while_it_lives = take(parent.path(), Duration::from_millis(20));
        owner.kill().unwrap();
        assert!(matches!(while_it_lives, Err(HelperError::Locked(_))));
        assert!(take(parent.path(), Duration::from_secs(30)).unwrap().is_some());
        owner.wait().unwrap();
    }

    /// What one of several may do to the directory.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// Lock it.
        Take,
        /// Let the lock go that was taken first.
        Drop,
        /// As a reset does: move it away, its lock with it.
        Rename,
        Make,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_lock_is_had_by_one_and_is_of_the_directory_that_has_the_name(
            steps in prop::collection::vec(prop::sample::select(vec![Step::Take, Step::Take, Step::Drop, Step::Rename, Step::Make]), 0..24)
        ) {
            let parent = tempfile::tempdir().unwrap();
            let runtime = parent.path().join("3");
            // The directory that has the name, by a number; and the locks, each with the number of its directory.
            let (mut there, mut next) = (None, 0);
            let mut held: Vec<(u32, RuntimeLock)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take => {
                        let is_held = held.iter().any(|(of, _)| Some(*of) == there);
                        // One that waited for nothing may be at the end of its wait just now.
                        let within = if is_held { Duration::from_millis(1) } else { Duration::from_secs(30) };
                        match (take(parent.path(), within), there) {
                            (Ok(None), None) => {}
                            (Err(HelperError::Locked(path)), Some(_)) if is_held => prop_assert_eq!(path, runtime.clone()),
                            (Ok(Some(lock)), Some(of)) if !is_held => held.push((of, lock)),
                            (other, there) => prop_assert!(false, "{:?} of {:?}, held: {:?}", other, there, held),
                        }
                    }
                    Step::Drop if !held.is_empty() => drop(held.remove(0)),
                    Step::Rename if there.is_some() => {
                        fs::rename(&runtime, parent.path().join(format!("gone-{next}"))).unwrap();
                        there = None;
                    }
                    Step::Make if there.is_none() => {
                        fs::create_dir(&runtime).unwrap();
                        next += 1;
                        there = Some(next);
                    }
                    Step::Drop | Step::Rename | Step::Make => {}
                }
            }
        }
    }
}
