//! The owner of a program that was started.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::error::{Argv, Error};
use super::group::{end_group, kill_all};
use crate::host::events::{self, Event};

/// How long a program may take to answer SIGTERM before SIGKILL follows.
///
/// mmdebstrap unmounts and deletes a tree of 250 MB in it; under a loaded disk that is seconds.
pub const GRACE: Duration = Duration::from_secs(10);

/// A started program and its process group. Dropping it ends the group with SIGKILL.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    argv: Argv,
    reaped: Option<ExitStatus>,
}

impl Child {
    pub(super) fn new(inner: std::process::Child, pid: Pid, pidfd: AsyncFd<OwnedFd>, argv: Argv) -> Self {
        Self { inner, pid, pidfd, argv, reaped: None }
    }

    /// The process id of the leader, which is the group's id too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// What was started.
    #[must_use]
    pub fn argv(&self) -> &Argv {
        &self.argv
    }

    /// The reading end of standard output, once, if it is [`Sink::Piped`].
    ///
    /// # Errors
    /// If the pipe cannot be registered with the runtime.
    pub fn take_stdout(&mut self) -> io::Result<Option<pipe::Receiver>> {
        self.inner.stdout.take().map(|out| pipe::Receiver::from_owned_fd(out.into())).transpose()
    }

    /// The reading end of standard error, once, if it is [`Sink::Piped`].
    ///
    /// # Errors
    /// If the pipe cannot be registered with the runtime.
    pub fn take_stderr(&mut self) -> io::Result<Option<pipe::Receiver>> {
        self.inner.stderr.take().map(|err| pipe::Receiver::from_owned_fd(err.into())).transpose()
    }

    /// Waits until the leader has ended, and leaves it unreaped. Can be cancelled and called again.
    ///
    /// # Errors
    /// If the runtime cannot poll the pidfd.
    pub async fn exited(&self) -> io::Result<()> {
        if self.reaped.is_none() {
            let _guard = self.pidfd.readable().await?;
        }
        Ok(())
    }

    /// Waits until the leader has ended, ends what is left of its group, and reaps it.
    ///
    /// Can be cancelled and called again.
    ///
    /// # Errors
    /// [`Error::Io`] from the runtime, [`Error::Unkillable`] if a member of the group outlives SIGKILL.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.exited().await.map_err(|source| self.io("wait for", source))?;
        self.finish().await
    }

    /// Waits until the leader has ended, and reaps it; what it has left of its group lives on: of ssh, what the connection goes
    /// through that its user shares (ControlPersist).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn wait_for_leader(&mut self) -> Result<ExitStatus, Error> {
        self.exited().await.map_err(|source| self.io("wait for", source))?;
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        let status = self.inner.wait().map_err(|source| self.io("reap", source))?;
        self.reaped = Some(status);
        Ok(status)
    }

    /// Ends the whole group: SIGTERM, `grace` for the leader to follow, SIGKILL, and a bounded wait for all.
    ///
    /// A group that ended by itself is fine: the leader's status comes back either way.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub async fn kill_group(&mut self, grace: Duration) -> Result<ExitStatus, Error> {
        if self.reaped.is_none() {
            kill_all(self.pid, Signal::SIGTERM);
            match tokio::time::timeout(grace, self.exited()).await {
                Ok(ended) => ended.map_err(|source| self.io("wait for", source))?,
                Err(_elapsed) => {} // SIGKILL follows.
            }
        }
        self.finish().await
    }

    /// SIGKILL until no live process of the group is left, then reap.
    async fn finish(&mut self) -> Result<ExitStatus, Error> {
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        let left = end_group(self.pid).await.map_err(|source| self.io("end the process group of", source))?;
        if !left.is_empty() {
            return Err(Error::Unkillable { argv: self.argv.clone(), pids: left });
        }
        let status = self.inner.wait().map_err(|source| self.io("reap", source))?;
        self.reaped = Some(status);
        Ok(status)
    }

    pub(super) fn io(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, argv: self.argv.clone(), source }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped.is_some() {
            return;
        }
        kill_all(self.pid, Signal::SIGKILL);
        let timeout = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(self.pidfd.get_ref(), rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(1..) => match self.inner.try_wait() {
                Ok(_) => {}
                Err(error) => events::tell(Event::Warning(format!("reap {}: {error}", self.argv))),
            },
            Ok(0) | Err(_) => {
                let what = format!("{} (pid {}) is still there after SIGKILL", self.argv, self.pid);
                events::tell(Event::Warning(what));
            }
        }
    }
}
