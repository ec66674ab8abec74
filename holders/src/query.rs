//! The question: which mount, and what is known of it already; and why there may be no answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::effect::Mounts;
use crate::mountinfo::{self, Device};
use crate::namespace::{self, MountNamespace};
use crate::proc;
use crate::propagation::{self, Table};
use crate::report::{Asked, Report};
use crate::survey::Survey;
use crate::view;
use crate::walk::Walk;

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    path: PathBuf,
    devices: Vec<Device>,
    asked: Asked,
    refused: bool,
    detached: bool,
    among: Option<Vec<u32>>,
    deadline: Option<Instant>,
}

/// How long a scan takes at most if nothing else is asked for ([`Query::deadline`]).
pub const LONGEST_SCAN: Duration = Duration::from_secs(30);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path is relative, or has a `..` in it.
    #[error("{} is not an absolute path without \"..\": give the mount point", .0.display())]
    Path(PathBuf),
    /// The path is no mount namespace's file.
    #[error("{} is no mount namespace: give a process id, /proc/PID/ns/mnt, or a place where one is bound", .0.display())]
    NoNamespace(PathBuf),
    /// `/proc` could not be read.
    #[error("{call} {}", .path.display())]
    Proc {
        /// What was to be done.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Query {
    /// Asks about the mount at `path`, an absolute path without symbolic links, in the caller's mount namespace.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Says that an unmount was just refused with EBUSY. If nothing is found that blocks it, the verdict is then
    /// that something blocks which `/proc` does not show, not that nothing does.
    #[must_use]
    pub fn after_ebusy(mut self) -> Self {
        self.refused = true;
        self
    }

    /// Names the file system, by the device number that mountinfo showed while it was mounted: what of it is left
    /// once the path is no mount point any more. Without this only what lies at the same path in other
    /// namespaces is found. The kernel gives the number of a file system that has ended to the next one, so this is
    /// for the time right after an unmount.
    #[must_use]
    pub fn of_device(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Says that the path is a layer of overlays, as they were told it when they were mounted, and asks who keeps them.
    #[must_use]
    pub fn of_layer(mut self) -> Self {
        self.asked = Asked::Layer;
        self
    }

    /// Says that the path is the file of this block device, and asks who keeps that: mounts of it and who has it open.
    #[must_use]
    pub fn of_block_device(mut self, device: Device) -> Self {
        self.asked = Asked::BlockDevice;
        self.devices.push(device);
        self
    }

    /// Also finds references to mounts of the file system that lie in no namespace: a clone (`OPEN_TREE_CLONE`), or
    /// one that was unmounted lazily. They block no unmount and show no path that tells them, so every link has
    /// to be asked for its mount. Done in any case if the path is no mount point and the device is known.
    #[must_use]
    pub fn with_detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Scans these processes only, and at the namespaces they are in: a sample that costs next to nothing beside
    /// a walk over all. Nothing else is looked for, so a verdict that nothing blocks is one on these processes,
    /// and a copy that is reached through a namespace which none of them is in counts as private.
    #[must_use]
    pub fn among(mut self, pids: impl Into<Vec<u32>>) -> Self {
        self.among = Some(pids.into());
        self
    }

    /// Ends the scan at this moment, [`LONGEST_SCAN`] from its beginning without. What it has found until then is
    /// reported, and that it was cut short is in [`Report::unseen`] and the verdict. The clock is asked at each process
    /// and every few descriptors and mappings; one call of the kernel's that takes longer is waited for.
    #[must_use]
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// Scans `/proc`, and says what was found.
    ///
    /// Takes one walk over `/proc` (a few milliseconds for 100 processes) and reads the mount table of each mount
    /// namespace once; a second walk only if a namespace turned out to have the mount at a path of its own. Needs
    /// CAP_SYS_PTRACE to see other users' processes; what it could not see is in [`Report::unseen`]. Opens and
    /// resolves no path inside a mount.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that is not absolute; [`Error::Proc`] without a readable `/proc`. Whatever
    /// vanishes meanwhile is no error.
    pub fn run(&self) -> Result<Report, Error> {
        let is_plain = |part| !matches!(part, std::path::Component::ParentDir);
        if !self.path.is_absolute() || !self.path.components().all(is_plain) {
            return Err(Error::Path(self.path.clone()));
        }
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + LONGEST_SCAN);
        let proc_dir = proc::open_proc().map_err(proc_error("open", "/proc"))?;
        let own = own_table(proc_dir.as_fd())?;
        let target = match self.asked {
            Asked::MountPoint => propagation::visible_at(&own.mounts, &self.path),
            Asked::Layer | Asked::BlockDevice => None,
        };
        let devices = match target {
            Some(at) => vec![own.mounts[at].device],
            None => self.devices.clone(),
        };
        let mut survey = Survey {
            proc_dir: proc_dir.as_fd(),
            path: &self.path,
            mounts: Mounts { target, devices, tables: vec![own], ..Mounts::default() },
            is_device_given: !self.devices.is_empty(),
            detached: self.detached,
            asked: self.asked,
            refused: self.refused,
            listed: if self.among.is_none() { namespace::listed().ok() } else { None },
            among: self.among.as_deref(),
            deadline,
            unlisted: Vec::new(),
            sockets: None,
            networks_unseen: 0,
            view: if self.among.is_none() { view::partial(proc_dir.as_fd()) } else { None },
            walk: Walk::default(),
        };
        survey.scan().map_err(proc_error("list", "/proc"))?;
        Ok(survey.report())
    }
}

/// Says why the mount at `path` is busy, or what of it is left: [`Query::new`] and [`Query::run`].
///
/// ```no_run
/// let report = holders::diagnose("/var/lib/left4me/runtime/3/merged".as_ref())?;
/// println!("{}", report.verdict().line());
/// for blocker in report.blockers() {
///     println!("waiting for {} of {:?}", blocker.pid, blocker.unit);
/// }
/// # Ok::<(), holders::Error>(())
/// ```
///
/// # Errors
/// As [`Query::run`].
pub fn diagnose(path: &Path) -> Result<Report, Error> {
    Query::new(path).run()
}

pub(crate) fn proc_error(call: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    let path = PathBuf::from(path);
    move |errno| Error::Proc { call, path, source: errno.into() }
}

/// The table of the calling thread's namespace, as that thread sees it.
pub(crate) fn own_table(proc_dir: BorrowedFd<'_>) -> Result<Table, Error> {
    let own = proc::open_task(proc_dir, c"thread-self").map_err(proc_error("open", "/proc/thread-self"))?;
    let mounts = mountinfo::of_task(own.as_fd()).map_err(|source| {
        let call = if source.kind() == io::ErrorKind::InvalidData { "parse" } else { "read" };
        Error::Proc { call, path: "/proc/thread-self/mountinfo".into(), source }
    })?;
    let inode = namespace::inode(own.as_fd()).map_err(proc_error("readlink", "/proc/thread-self/ns/mnt"))?;
    let id = namespace::unique_id(own.as_fd()).ok().flatten();
    Ok(Table { namespace: MountNamespace { inode, id }, mounts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_mount_point_by_its_looks() {
        for path in ["relative", "/a/../b", ""] {
            assert!(matches!(diagnose(Path::new(path)), Err(Error::Path(_))), "{path}");
        }
    }
}
