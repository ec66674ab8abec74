//! A mount as the kernel tells of it, whichever way it is asked: a line of mountinfo, or an answer of `statmount(2)`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id; the kernel reuses it after an unmount.
    pub id: u64,
    /// The id of the mount it lies on; its own or an unlisted one at the root.
    pub parent: u64,
    /// The superblock's device number, as in `0:42`.
    pub device: Device,
    /// Which directory of the file system is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The options of this mount, `rw,nosuid`.
    pub options: String,
    /// Its place in the propagation of mounts.
    pub propagation: Propagation,
    /// The type of the file system, with its subtype: `overlay`, `fuse.sshfs`.
    pub fstype: String,
    /// What the file system calls its source; `none` or empty where it has none.
    pub source: String,
    /// The options of the superblock; for an overlay its `lowerdir=` and so on.
    pub super_options: String,
}

impl Mount {
    /// Whether a question about a file on it may wait for somebody who never answers: another machine, or a program.
    pub(crate) fn may_hang(&self) -> bool {
        let kinds = [
            "fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs", "virtiofs", "lustre", "gfs2",
            "ocfs2",
        ];
        kinds.iter().any(|kind| self.fstype.starts_with(kind))
    }
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number, 0 for a file system without a block device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The optional fields of a line (mount_namespaces(7)). All empty: the mount is private.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Propagation {
    /// The peer group it shares its mounts with.
    pub shared: Option<u64>,
    /// The peer group it receives from.
    pub master: Option<u64>,
    /// The nearest dominant peer group under the reader's root, where that is not the master.
    pub propagate_from: Option<u64>,
    /// Whether it may not be bind mounted.
    pub unbindable: bool,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The path of an escaped field.
pub(crate) fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field).into_owned()).into()
}

/// Undoes the kernel's octal escapes (`fs/seq_file.c:mangle_path`): `\040` is a space. A backslash that does
/// not begin one stands for itself.
pub(crate) fn unescape(field: &[u8]) -> Cow<'_, [u8]> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(field);
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', tail @ ..] if first == b'\\' => {
                bytes.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    Cow::Owned(bytes)
}
