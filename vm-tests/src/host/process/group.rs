//! Process groups and identities of processes: who is in one, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use holders::stat::Stat;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::events::{self, Event};

/// How long processes may take to vanish after SIGKILL. Longer means that the kernel cannot let go of them.
const AFTER_KILL: Duration = Duration::from_secs(5);

pub(super) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// A pidfd becomes readable when its process ends; see pidfd_open(2).
pub(super) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "tokio has no safe way to watch a descriptor that it does not know the kind of"
    )]
    // SAFETY: an OwnedFd is one open descriptor for as long as it lives, and nothing takes it out of the AsyncFd.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

/// Signals a group. A group that is gone already is what the caller wants.
pub(super) fn kill_all(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        // Somebody changed identity (sudo): the bounded wait that follows says who is left.
        Err(errno) => events::tell(Event::Warning(format!("kill {signal} process group {group}: {errno}"))),
    }
}

/// SIGKILL until no live process of a group is left; returns who is there after [`AFTER_KILL`] nevertheless.
pub(super) async fn end_group(group: Pid) -> io::Result<Vec<i32>> {
    let deadline = tokio::time::Instant::now() + AFTER_KILL;
    loop {
        let members = live_members(group)?;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        kill_all(group, Signal::SIGKILL);
        for &pid in &members {
            // No pidfd: it is gone already, which the next look at /proc confirms.
            let Ok(fd) = open_pidfd(pid) else { continue };
            if tokio::time::timeout_at(deadline, watch(fd)?.readable()).await.is_err() {
                return Ok(members.iter().map(|pid| pid.as_raw()).collect());
            }
        }
    }
}

/// Ends what a run of ours that was killed has left of a program's group.
///
/// The caller knows that the number still means that group: one of its processes holds something of ours.
///
/// # Errors
/// If `/proc` cannot be read, or somebody is there after SIGKILL.
pub async fn end_orphans(group: u32) -> io::Result<()> {
    let group = i32::try_from(group).ok().filter(|group| *group > 1).ok_or(io::ErrorKind::InvalidInput)?;
    match end_group(Pid::from_raw(group)).await?.as_slice() {
        [] => Ok(()),
        left => Err(io::Error::other(format!("still there after SIGKILL: {left:?}"))),
    }
}

/// One process and no other that gets its number later: told apart by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub started: u64,
}

impl Identity {
    /// Ours.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// That of the process which has this id now.
    ///
    /// # Errors
    /// If there is none, or `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        let line = std::fs::read(format!("/proc/{pid}/stat"))?;
        let started = Stat::parse(&line).and_then(Stat::start_time).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, started })
    }

    /// Waits until that process has ended; returns at once if it has already.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        let fd = match open_pidfd(Pid::from_raw(pid)) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Looked at after the descriptor is there: both then mean the same process, or it is gone.
        match Self::of(self.pid) {
            Ok(same) if same == self => {
                let fd = watch(fd)?;
                let _guard = fd.readable().await?;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The processes of a group that are not zombies.
fn live_members(group: Pid) -> io::Result<Vec<Pid>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ends while we look is not a member any more.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/stat")) else { continue };
        let is_member =
            |stat: Stat<'_>| stat.group() == Some(group.as_raw().unsigned_abs()) && !stat.has_ended();
        if Stat::parse(&line).is_some_and(is_member) {
            members.push(Pid::from_raw(pid));
        }
    }
    Ok(members)
}
