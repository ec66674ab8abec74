//! A lock that says who has it, and is taken from the dead.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::host::events::{self, Event};
use crate::host::process::{self, Identity};
use crate::host::signals::{Interrupted, Interrupts};

/// An flock(2) on a file, held until this and all its duplicates are closed.
///
/// The file says who has it. It stays: deleting it would let two holders lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for whoever has it; `on_wait` is told who that is, once, before the wait.
    ///
    /// A holder that was killed may have left processes that hold the lock for it ([`Lock::share`]) and never
    /// end. They are ended here: that the lock is taken while its holder is dead shows that they are there.
    ///
    /// # Errors
    /// [`Interrupted`] if we are told to stop while waiting; else if the file cannot be made or locked.
    pub async fn exclusive(path: &Path, on_wait: impl FnOnce(&str)) -> anyhow::Result<Self> {
        let dir = path.parent().expect("a lock file is in a directory");
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let what = || format!("lock {}", path.display());
        let file = Self::open(path).with_context(what)?;
        let lock = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Self { file },
            Err(Errno::WOULDBLOCK) => {
                let holder = Holder::parse(&std::fs::read_to_string(path).with_context(what)?);
                on_wait(&holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string()));
                Self { file: wait_for(file, path).await.with_context(what)? }
            }
            Err(errno) => return Err(errno).with_context(what),
        };
        lock.sign(None).with_context(what)?;
        Ok(lock)
    }

    fn open(path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub fn if_free(path: &Path) -> anyhow::Result<Option<Self>> {
        let what = || format!("lock {}", path.display());
        let file = Self::open(path).with_context(what)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = Self { file };
                lock.sign(None).with_context(what)?;
                Ok(Some(lock))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).with_context(what),
        }
    }

    /// A second handle to hold the lock by, to be passed to a child: the lock then lasts until it is gone too.
    /// Tell [`Lock::note_group`] of the child.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn share(&self) -> anyhow::Result<OwnedFd> {
        Ok(self.file.try_clone().context("duplicate a lock's descriptor")?.into())
    }

    /// Notes the process group that shares the lock, for whoever finds it without us; `None` once it is gone,
    /// since the number may then come to mean somebody else.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_group(&self, group: Option<u32>) -> io::Result<()> {
        self.sign(group)
    }

    /// Writes who holds the lock into its file.
    fn sign(&self, group: Option<u32>) -> io::Result<()> {
        let holder = Holder { process: Identity::own()?, group };
        self.file.set_len(0)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, holder.line().as_bytes(), 0)
    }
}

/// Who has a lock, as its file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) process: Identity,
    /// The process group of a child that shares the lock.
    pub(super) group: Option<u32>,
}

impl Holder {
    pub(super) fn line(self) -> String {
        format!("{} {} {}\n", self.process.pid, self.process.started, self.group.unwrap_or(0))
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let process = Identity { pid: u32::try_from(next()?).ok()?, started: next()? };
        let group = u32::try_from(next()?).ok()?;
        Some(Self { process, group: (group > 1).then_some(group) })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.process.pid)
    }
}

/// Waits for a lock that somebody has, and ends what is left of a holder that died.
///
/// It blocks in flock(2) on a thread of its own. Not on the runtime's pool: a runtime waits for its pool at its
/// end, and an interrupted wait must not. The thread ends with the process, or gives the lock back when it gets it.
async fn wait_for(file: File, path: &Path) -> anyhow::Result<File> {
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let (done, mut locked) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("flock".to_owned())
        .spawn(move || {
            let result = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            // Nobody waits any more: the file is closed and with it the lock.
            drop(done.send(result.map(|()| file)));
        })
        .context("start a thread to wait for a lock")?;
    let mut dead = None;
    loop {
        // Read anew, since another one may have got it, who waited as we do. One who does not sign before we
        // look is waited for without being watched.
        let holder = Holder::parse(&std::fs::read_to_string(path)?).filter(|holder| Some(*holder) != dead);
        let died = async {
            match holder {
                Some(holder) => holder.process.ended().await.map(|()| holder),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            got = &mut locked => return Ok(got.context("the thread that waits for a lock ended")??),
            signal = interrupts.next() => return Err(Interrupted::by(signal).into()),
            holder = died => {
                let holder = holder.context("watch who has the lock")?;
                if let Some(group) = holder.group {
                    events::tell(Event::Orphans { holder: holder.to_string(), group });
                    process::end_orphans(group).await?;
                }
                dead = Some(holder);
            }
        }
    }
}
