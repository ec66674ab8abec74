//! Which mount namespace a process is in.
//!
//! The inode number that `/proc/PID/ns/mnt` shows is no identity: the kernel hands out the lowest free number
//! (`fs/proc/generic.c:proc_alloc_inum`), so the namespace that is made next commonly gets the number of the
//! one that just died. Two samples with the same number at different times say nothing; only the unique id
//! does, where the kernel has one (Linux 6.11 and newer).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl;

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
        let look = || {
            let task = rustix::fs::open(&path, flags, Mode::empty())?;
            Ok::<_, Errno>(Self { inode: inode(task.as_fd())?, id: unique_id(task.as_fd())? })
        };
        look().map_err(|error| in_context("look at ns/mnt of", &path, error.into()))
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
    match ns_get_mntns_id(namespace.as_fd()) {
        Ok(id) => Ok(Some(id)),
        Err(Errno::NOTTY | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `NS_GET_MNTNS_ID` of `linux/nsfs.h`: `_IOR(0xb7, 5, __u64)`.
const NS_GET_MNTNS_ID: ioctl::Opcode = ioctl::opcode::read::<u64>(0xb7, 5);

#[expect(unsafe_code, reason = "rustix has no wrapper for the nsfs ioctls")]
fn ns_get_mntns_id(namespace: BorrowedFd<'_>) -> Result<u64, Errno> {
    // SAFETY: the opcode is a read of one `__u64`, which is what `Getter` makes room for; a kernel or a file
    // that does not know it answers ENOTTY and writes nothing.
    unsafe { ioctl::ioctl(namespace, ioctl::Getter::<NS_GET_MNTNS_ID, u64>::new()) }
}

/// Reads `mnt:[4026531841]`.
fn parse_link(link: &[u8]) -> Option<u64> {
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
    fn the_ioctl_is_the_one_of_nsfs_h() {
        assert_eq!(NS_GET_MNTNS_ID, 0x8008_b705);
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
        assert!(error.to_string().starts_with("look at ns/mnt of /proc/4294967295: "), "{error}");
    }
}
