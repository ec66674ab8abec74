//! Which mount namespace a process is in.
//!
//! The inode number that `/proc/PID/ns/mnt` shows is no identity: the kernel hands out the lowest free number
//! (`fs/proc/generic.c:proc_alloc_inum`), so the namespace that is made next commonly gets the number of the
//! one that just died. Two samples with the same number at different times say nothing; only the unique id
//! does, where the kernel has one (Linux 6.11 and newer).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::kernel::{self, Way};
use crate::mount::Mount;
use crate::mountinfo::in_context;

/// A mount namespace, as of the moment it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountNamespace {
    /// The inode number of `/proc/PID/ns/mnt`; reused after the namespace is gone, never identity.
    pub inode: u64,
    /// The unique id (`NS_GET_MNTNS_ID`), never reused until reboot; `None` before Linux 6.11.
    pub id: Option<u64>,
}

impl fmt::Display for MountNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mnt:[{}]", self.inode)?;
        self.id.map_or(Ok(()), |id| write!(f, " id {id}"))
    }
}

impl MountNamespace {
    /// The mount namespace of process `pid`.
    ///
    /// # Errors
    /// `NotFound` if there is no such process or it is a zombie; `PermissionDenied` for one that the caller may
    /// not trace (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    pub fn of(pid: u32) -> io::Result<Self> {
        let path = format!("/proc/{pid}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let read = || {
            let task = rustix::fs::open(&path, flags, Mode::empty())?;
            Ok::<_, Errno>(Self { inode: inode(task.as_fd())?, id: unique_id(task.as_fd())? })
        };
        read().map_err(|error| in_context("stat ns/mnt of", &path, error.into()))
    }
}

/// The inode number of the mount namespace of the task whose `/proc` directory `task` is. A readlink only.
pub(crate) fn inode(task: BorrowedFd<'_>) -> Result<u64, Errno> {
    let link = rustix::fs::readlinkat(task, c"ns/mnt", Vec::new())?;
    parse_link(link.as_bytes()).ok_or(Errno::INVAL)
}

/// The unique id of the mount namespace of that task; `None` where the kernel has no such call.
///
/// The descriptor pins the namespace while it is open, which blocks no unmount, and is closed at once.
pub(crate) fn unique_id(task: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    let namespace = rustix::fs::openat(task, c"ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match kernel::mount_namespace_id(namespace.as_fd()) {
        Ok(id) => Ok(Some(id)),
        Err(Errno::NOTTY | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All mount namespaces that the kernel lists, those without a process too, in the order of their ids.
///
/// # Errors
/// NOTTY before Linux 6.12; PERM without CAP_SYS_ADMIN in the initial user namespace.
pub(crate) fn listed() -> Result<Vec<MountNamespace>, Errno> {
    let own = rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let id = kernel::mount_namespace_id(own.as_fd())?;
    let mut listed = vec![MountNamespace { inode: rustix::fs::fstat(&own)?.st_ino, id: Some(id) }];
    for way in [Way::Previous, Way::Next] {
        // One descriptor at a time: each pins its namespace while it is open.
        let mut at = kernel::adjacent_namespace(own.as_fd(), way)?;
        while let Some(found) = at {
            let inode = rustix::fs::fstat(&found.file)?.st_ino;
            listed.push(MountNamespace { inode, id: Some(found.id) });
            at = kernel::adjacent_namespace(found.file.as_fd(), way)?;
        }
    }
    listed.sort_by_key(|namespace| namespace.id);
    Ok(listed)
}

/// Where namespaces are bind mounted in these tables: inode number, mount point.
pub(crate) fn binds<'a>(mounts: impl Iterator<Item = &'a Mount>) -> Vec<(u64, PathBuf)> {
    let mut binds: Vec<_> = mounts
        .filter(|mount| mount.fstype == "nsfs")
        .filter_map(|mount| Some((parse_link(mount.root.as_os_str().as_bytes())?, mount.mount_point.clone())))
        .collect();
    binds.sort();
    binds.dedup();
    binds
}

/// Reads `mnt:[4026531841]`.
pub(crate) fn parse_link(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"mnt:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_link() {
        let cases: [(&[u8], Option<u64>); 5] = [
            (b"mnt:[4026531841]", Some(4026531841)),
            (b"net:[4026531841]", None),
            (b"mnt:[]", None),
            (b"mnt:[1", None),
            (b"", None),
        ];
        for (link, expected) in cases {
            assert_eq!(parse_link(link), expected, "{link:?}");
        }
    }

    #[test]
    fn a_process_is_in_a_namespace() {
        let own = MountNamespace::of(std::process::id()).unwrap();
        assert!(own.inode > 0);
        assert_eq!(own, MountNamespace::of(std::process::id()).unwrap());
    }

    #[test]
    fn no_process_no_namespace() {
        let error = MountNamespace::of(u32::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("stat ns/mnt of /proc/4294967295: "), "{error}");
    }
}
