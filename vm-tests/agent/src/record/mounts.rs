//! The watched path in PID 1's mount table: an event whenever it becomes a mount point or ceases to be one.
//!
//! The kernel wakes a poll for POLLPRI on mountinfo at every change of that namespace's mounts
//! (proc_pid_mounts(5)); it does not say which, so the table is read again. Two changes between two reads look
//! like one, or like none.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use holders::mountinfo::{self, Device, Mount};
use vm_agent::recording::{Mounted, What};

/// The watch.
#[derive(Debug)]
pub(super) struct MountWatch {
    file: File,
    path: PathBuf,
    table: Vec<u8>,
    current: Option<Mounted>,
    device: Option<Device>,
}

impl MountWatch {
    /// Opens the table; [`MountWatch::read`] says what is there.
    ///
    /// # Errors
    /// If neither PID 1's table nor the own one can be opened.
    pub(super) fn open(path: &str) -> Result<Self> {
        let file = File::open("/proc/1/mountinfo").or_else(|_| File::open("/proc/self/mountinfo"));
        let file = file.context("open mountinfo")?;
        Ok(Self { file, path: path.into(), table: Vec::new(), current: None, device: None })
    }

    /// Poll it for PRI.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the path was a mount point at the last [`MountWatch::read`].
    pub(super) fn is_mounted(&self) -> bool {
        self.current.is_some()
    }

    /// The superblock of what is mounted there or was last.
    pub(super) fn device(&self) -> Option<Device> {
        self.device
    }

    /// Reads the table again and says what has changed: nothing, one event, or both if another mount took the
    /// place of the one before. One that was mounted over is still there.
    ///
    /// # Errors
    /// What reading says; a line for the path that is not mountinfo.
    pub(super) fn read(&mut self) -> Result<Vec<What>> {
        self.table.clear();
        self.file.rewind().and_then(|()| self.file.read_to_end(&mut self.table)).context("read mountinfo")?;
        let mounts = mountinfo::parse_at(&self.table, &self.path)?;
        let now = mounts.last().map(mounted);
        let below = mounts.split_last().map_or(&[][..], |(_, below)| below);
        let is_covered = |before: &Mounted| below.iter().any(|mount| mounted(mount) == *before);
        self.device = mounts.last().map_or(self.device, |mount| Some(mount.device));
        let is_covered = self.current.as_ref().is_some_and(is_covered);
        let changes = changes(self.current.as_ref(), now.as_ref(), is_covered);
        self.current = now;
        Ok(changes)
    }
}

/// `is_covered`: the one before is still there, below the one that is there now.
fn changes(before: Option<&Mounted>, now: Option<&Mounted>, is_covered: bool) -> Vec<What> {
    if before == now {
        return Vec::new();
    }
    let gone = before.filter(|_| !is_covered).map(|_| What::Unmounted);
    gone.into_iter().chain(now.cloned().map(What::Mounted)).collect()
}

fn mounted(mount: &Mount) -> Mounted {
    Mounted { mount_id: mount.id, device: mount.device.to_string(), fstype: mount.fstype.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_changed() {
        let a = Mounted { mount_id: 1, device: "0:1".to_owned(), fstype: "overlay".to_owned() };
        let b = Mounted { mount_id: 2, ..a.clone() };
        let cases = [
            (None, None, false, vec![]),
            (Some(&a), Some(&a), false, vec![]),
            (None, Some(&a), false, vec![What::Mounted(a.clone())]),
            (Some(&a), None, false, vec![What::Unmounted]),
            (Some(&a), Some(&b), false, vec![What::Unmounted, What::Mounted(b.clone())]),
            (Some(&a), Some(&b), true, vec![What::Mounted(b.clone())]),
        ];
        for (before, now, is_covered, expected) in cases {
            assert_eq!(changes(before, now, is_covered), expected, "{before:?} -> {now:?}");
        }
    }

    #[test]
    fn reads_this_machines_table() {
        let mut watch = MountWatch::open("/proc").unwrap();
        assert!(!watch.is_mounted());
        assert!(matches!(&watch.read().unwrap()[..], [What::Mounted(mounted)] if mounted.fstype == "proc"));
        assert!(watch.is_mounted());
        assert_eq!(watch.read().unwrap(), []);
    }
}
