//! The calls that neither the standard library nor rustix has, and so all the unsafe code of this crate: the
//! ioctls of nsfs and of `/proc/PID/maps`, `statmount(2)` and `listmount(2)`.
//!
//! Each answers [`Errno`]; `NOSYS` and `NOTTY` say that this kernel does not have the call, and the callers then
//! do without. Numbers and layouts are those of `include/uapi/linux/{nsfs,fs,mount}.h`.
#![expect(unsafe_code, reason = "raw ioctls and system calls, see above")]

use std::ffi::{CStr, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

use crate::mount::{self, Device, Mount, Propagation};

/// `NS_GET_MNTNS_ID`: `_IOR(0xb7, 5, __u64)`, Linux 6.11.
const NS_GET_MNTNS_ID: Opcode = ioctl::opcode::read::<u64>(0xb7, 5);
/// `NS_MNT_GET_NEXT`: `_IOR(0xb7, 11, struct mnt_ns_info)`, Linux 6.12.
const NS_MNT_GET_NEXT: Opcode = ioctl::opcode::read::<MntNsInfo>(0xb7, 11);
/// `NS_MNT_GET_PREV`: `_IOR(0xb7, 12, struct mnt_ns_info)`, Linux 6.12.
const NS_MNT_GET_PREV: Opcode = ioctl::opcode::read::<MntNsInfo>(0xb7, 12);
/// `PROCMAP_QUERY`: `_IOWR('f', 17, struct procmap_query)`, Linux 6.11.
const PROCMAP_QUERY: Opcode = ioctl::opcode::read_write::<ProcmapQuery>(b'f', 17);

/// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA | PROCMAP_QUERY_FILE_BACKED_VMA`.
const NEXT_FILE_BACKED: u64 = 0x10 | 0x20;

/// The same number on every architecture but alpha (`include/uapi/asm-generic/unistd.h`), as the next.
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;

/// `LSMT_ROOT`: all mounts of the namespace.
const LSMT_ROOT: u64 = u64::MAX;

const STATMOUNT_SB_BASIC: u64 = 0x1;
const STATMOUNT_MNT_BASIC: u64 = 0x2;
const STATMOUNT_PROPAGATE_FROM: u64 = 0x4;
const STATMOUNT_MNT_ROOT: u64 = 0x8;
const STATMOUNT_MNT_POINT: u64 = 0x10;
const STATMOUNT_FS_TYPE: u64 = 0x20;

/// `LOOP_GET_STATUS64` of include/uapi/linux/loop.h.
const LOOP_GET_STATUS64: Opcode = 0x4C05;

/// All that a [`Mount`] takes.
const ALL_OF_A_MOUNT: u64 = STATMOUNT_SB_BASIC
    | STATMOUNT_MNT_BASIC
    | STATMOUNT_PROPAGATE_FROM
    | STATMOUNT_MNT_ROOT
    | STATMOUNT_MNT_POINT
    | STATMOUNT_FS_TYPE;

/// `STATX_MNT_ID_UNIQUE`, Linux 6.8: an id that is never used again, which is what `statmount(2)` takes.
const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// In a [`MntIdReq`]: the caller's own.
const OWN_NAMESPACE: u64 = 0;

const MS_UNBINDABLE: u64 = 1 << 17;
const MS_SHARED: u64 = 1 << 20;

/// How many ids one `listmount(2)` may answer with; it is asked again for the rest.
const IDS_AT_ONCE: usize = 512;

/// `struct mnt_ns_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MntNsInfo {
    size: u32,
    nr_mounts: u32,
    mnt_ns_id: u64,
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    lo_device: u64,
    lo_inode: u64,
    rest: [u64; 27],
}

/// `struct mnt_id_req`, as of `MNT_ID_REQ_SIZE_VER1`.
#[repr(C)]
struct MntIdReq {
    size: u32,
    spare: u32,
    mnt_id: u64,
    param: u64,
    mnt_ns_id: u64,
}

impl MntIdReq {
    fn new(mnt_id: u64, param: u64, mnt_ns_id: u64) -> Self {
        Self { size: size_of::<Self>() as u32, spare: 0, mnt_id, param, mnt_ns_id }
    }
}

/// The fixed part of `struct statmount` with room for its strings; the kernel fills what it knows.
#[repr(C)]
struct StatMount {
    size: u32,
    mnt_opts: u32,
    mask: u64,
    sb_dev_major: u32,
    sb_dev_minor: u32,
    sb_magic: u64,
    sb_flags: u32,
    fs_type: u32,
    mnt_id: u64,
    mnt_parent_id: u64,
    mnt_id_old: u32,
    mnt_parent_id_old: u32,
    mnt_attr: u64,
    mnt_propagation: u64,
    mnt_peer_group: u64,
    mnt_master: u64,
    propagate_from: u64,
    mnt_root: u32,
    mnt_point: u32,
    spare: [u64; 50],
    strings: [u8; STRINGS],
}

/// Two paths and the name of a file system; a longer answer is EOVERFLOW.
const STRINGS: usize = 3 * 4096;

/// A namespace as the kernel's list has it.
#[derive(Debug)]
pub(crate) struct ListedNamespace {
    /// Pins the namespace while it is open, which blocks no unmount.
    pub(crate) file: OwnedFd,
    /// The unique id.
    pub(crate) id: u64,
}

/// A file-backed mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappedFile {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The device number of the superblock.
    pub(crate) device: Device,
    pub(crate) inode: u64,
}

/// What two tasks may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InCommon {
    /// `KCMP_VM`: the memory, and so the mappings.
    Memory,
    /// `KCMP_FILES`: the descriptor table.
    Files,
    /// `KCMP_FS`. Tasks that share it are in the same mount namespace too: setns(2) and unshare(2) refuse to
    /// part them (`fs/namespace.c:mntns_install`, `kernel/fork.c:check_unshare_flags`).
    WorkingAndRootDirectory,
}

/// Which way to go in the kernel's list of mount namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Next,
    Previous,
}

/// The unique id of a mount namespace (`NS_GET_MNTNS_ID`).
pub(crate) fn mount_namespace_id(namespace: BorrowedFd<'_>) -> Result<u64, Errno> {
    // SAFETY: the opcode is a read of one `__u64`, which is what `Getter` makes room for; a kernel or a file
    // that does not know it answers ENOTTY and writes nothing.
    unsafe { ioctl::ioctl(namespace, ioctl::Getter::<NS_GET_MNTNS_ID, u64>::new()) }
}

/// The mount namespace after or before `namespace` in the order of ids; `None` at the end of the list.
///
/// # Errors
/// NOTTY before Linux 6.12; PERM without CAP_SYS_ADMIN in the initial user and pid namespaces.
pub(crate) fn adjacent_namespace(
    namespace: BorrowedFd<'_>,
    way: Way,
) -> Result<Option<ListedNamespace>, Errno> {
    let mut info = MntNsInfo { size: size_of::<MntNsInfo>() as u32, ..MntNsInfo::default() };
    let opcode = match way {
        Way::Next => NS_MNT_GET_NEXT,
        Way::Previous => NS_MNT_GET_PREV,
    };
    // SAFETY: `AdjacentNamespace` passes a pointer to a live `mnt_ns_info`, which is what both opcodes write.
    match unsafe { ioctl::ioctl(namespace, AdjacentNamespace { opcode, info: &mut info }) } {
        Ok(file) => Ok(Some(ListedNamespace { file, id: info.mnt_ns_id })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An ioctl that fills a struct and answers with a new descriptor, which none of rustix's patterns does.
struct AdjacentNamespace<'a> {
    opcode: Opcode,
    info: &'a mut MntNsInfo,
}

// SAFETY: the pointer is valid for the struct that the opcodes write, and the output is what they return.
unsafe impl Ioctl for AdjacentNamespace<'_> {
    type Output = OwnedFd;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.info).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: the call succeeded, so it answered with a descriptor that is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

/// `st_dev` of the file behind a loop device, whose name is `loop0` or the like. Asks the file system that the file is on.
///
/// # Errors
/// As open(2) of the device; NXIO if it has no file.
pub(crate) fn device_behind_loop(name: &str) -> Result<Device, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open(format!("/dev/{name}"), flags, Mode::empty())?;
    // SAFETY: the opcode writes one `loop_info64`, which is what `Getter` makes room for; all bytes are valid for it.
    let info: LoopInfo = unsafe { ioctl::ioctl(&device, ioctl::Getter::<LOOP_GET_STATUS64, _>::new()) }?;
    let number = info.lo_device;
    Ok(Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

/// Whether two tasks have one `what` in common, as threads of a process usually do (kcmp(2)).
///
/// # Errors
/// NOSYS for a kernel without `CONFIG_KCMP`; PERM for tasks that the caller may not trace; SRCH.
pub(crate) fn have_in_common(one: u32, other: u32, what: InCommon) -> Result<bool, Errno> {
    let kind: libc::c_long = match what {
        InCommon::Memory => 1,
        InCommon::Files => 2,
        InCommon::WorkingAndRootDirectory => 3,
    };
    let (one, other) = (libc::c_long::from(one), libc::c_long::from(other));
    // SAFETY: five integers, of which these kinds ignore the last two; no memory is touched.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, kind, 0 as libc::c_ulong, 0 as libc::c_ulong) } {
        0 => Ok(true),
        1..=3 => Ok(false),
        _ => Err(last_error()),
    }
}

/// The first file-backed mapping that ends after `address`, in the process whose `/proc/PID/maps` is open as
/// `maps`; `None` if there is none. Much cheaper than the text, whose every line resolves a path.
///
/// # Errors
/// NOTTY before Linux 6.11; SRCH if the process has ended.
pub(crate) fn mapped_file(maps: BorrowedFd<'_>, address: u64) -> Result<Option<MappedFile>, Errno> {
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: NEXT_FILE_BACKED,
        query_addr: address,
        ..ProcmapQuery::default()
    };
    // SAFETY: the opcode reads and writes one `procmap_query`, whose name and build id buffers have length 0.
    let done = unsafe { ioctl::ioctl(maps, ioctl::Updater::<PROCMAP_QUERY, _>::new(&mut query)) };
    match done {
        Ok(()) => Ok(Some(MappedFile {
            start: query.vma_start,
            end: query.vma_end,
            device: Device { major: query.dev_major, minor: query.dev_minor },
            inode: query.inode,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mount table of the namespace with this unique id, through `listmount(2)` and `statmount(2)`: what
/// mountinfo would show to a member whose root directory is the namespace's own. Options, source and superblock
/// options are left empty.
///
/// # Errors
/// NOSYS before Linux 6.8; INVAL before 6.11, where both calls know the caller's own namespace only; PERM
/// without CAP_SYS_ADMIN in the namespace's user namespace; NOENT if the namespace is gone. XDEV if the list is not
/// all: for a root the kernel takes the eldest mount on the hidden rootfs (`fs/namespace.c:grab_requested_root`),
/// which is another one where the root file system was put together from several.
pub(crate) fn mounts_of(namespace: u64) -> Result<Vec<Mount>, Errno> {
    let ids = mount_ids(namespace, LSMT_ROOT)?;
    let mut mounts = Vec::with_capacity(ids.len());
    for (at, &id) in ids.iter().enumerate() {
        match stat_mount(namespace, id, ALL_OF_A_MOUNT) {
            Ok((mount, below)) => {
                mounts.push(mount);
                if at == 0 && !ids.contains(&below) && mount_ids(namespace, below)?.len() > ids.len() {
                    return Err(Errno::XDEV);
                }
            }
            // It was unmounted meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(mounts)
}

/// The unique ids of the mounts that lie on the one with the unique id `below`, or below that.
fn mount_ids(namespace: u64, below: u64) -> Result<Vec<u64>, Errno> {
    let mut all = Vec::new();
    let mut ids = [0; IDS_AT_ONCE];
    loop {
        let last = all.last().copied().unwrap_or_default();
        let count = list_mounts(namespace, below, last, &mut ids)?;
        all.extend_from_slice(&ids[..count]);
        if count < IDS_AT_ONCE {
            return Ok(all);
        }
    }
}

fn list_mounts(namespace: u64, below: u64, after: u64, ids: &mut [u64]) -> Result<usize, Errno> {
    let request = MntIdReq::new(below, after, namespace);
    // SAFETY: the request outlives the call, and the kernel writes at most `ids.len()` ids.
    let count = unsafe {
        libc::syscall(SYS_LISTMOUNT, &raw const request, ids.as_mut_ptr(), ids.len(), 0 as libc::c_ulong)
    };
    usize::try_from(count).map_err(|_negative| last_error())
}

/// What `name` in `directory` is a file of: its id, device and type; all else is left empty. A link is not followed, and no
/// file system is asked anything, be it one that never answers.
///
/// # Errors
/// NOSYS before Linux 6.8; as statx(2) and `statmount(2)`.
pub(crate) fn mount_of(directory: BorrowedFd<'_>, name: &Path) -> Result<Mount, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let told = rustix::fs::statx(directory, name, flags, STATX_MNT_ID_UNIQUE)?;
    if told.stx_mask & STATX_MNT_ID_UNIQUE.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    let what = STATMOUNT_SB_BASIC | STATMOUNT_MNT_BASIC | STATMOUNT_FS_TYPE;
    stat_mount(OWN_NAMESPACE, told.stx_mnt_id, what).map(|(mount, _below)| mount)
}

/// A mount, as far as `what` says, and the unique id of the one that it lies on.
fn stat_mount(namespace: u64, id: u64, what: u64) -> Result<(Mount, u64), Errno> {
    let request = MntIdReq::new(id, what, namespace);
    let mut answer = MaybeUninit::<StatMount>::zeroed();
    // SAFETY: the request outlives the call, and the kernel writes at most the size that it is told.
    let done = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            answer.as_mut_ptr(),
            size_of::<StatMount>(),
            0 as libc::c_ulong,
        )
    };
    if done != 0 {
        return Err(last_error());
    }
    // SAFETY: all zero is a valid `StatMount`, and so is whatever the kernel wrote into its integers.
    let answer = unsafe { answer.assume_init_ref() };
    Ok((mount_from(answer), answer.mnt_parent_id))
}

fn mount_from(answer: &StatMount) -> Mount {
    let has = |bit: u64| answer.mask & bit != 0;
    let text = |offset: u32, bit: u64| {
        let bytes = answer.strings.get(offset as usize..).filter(|_| has(bit)).unwrap_or_default();
        CStr::from_bytes_until_nul(bytes).map(CStr::to_bytes).unwrap_or_default()
    };
    let group = |id: u64| (id != 0).then_some(id);
    Mount {
        id: answer.mnt_id_old.into(),
        parent: answer.mnt_parent_id_old.into(),
        device: Device { major: answer.sb_dev_major, minor: answer.sb_dev_minor },
        root: mount::path(text(answer.mnt_root, STATMOUNT_MNT_ROOT)),
        mount_point: mount::path(text(answer.mnt_point, STATMOUNT_MNT_POINT)),
        options: String::new(),
        propagation: Propagation {
            shared: group(answer.mnt_peer_group).filter(|_| answer.mnt_propagation & MS_SHARED != 0),
            master: group(answer.mnt_master),
            propagate_from: group(answer.propagate_from),
            unbindable: answer.mnt_propagation & MS_UNBINDABLE != 0,
        },
        fstype: String::from_utf8_lossy(text(answer.fs_type, STATMOUNT_FS_TYPE)).into_owned(),
        source: String::new(),
        super_options: String::new(),
    }
}

/// The mount of an answer with these offsets of its texts, each with its bit in the mask, and this text.
#[cfg(any(test, feature = "checks"))]
pub(crate) fn mount_of_answer(offsets: [u32; 3], text: &[u8]) -> Mount {
    let mut strings = [0; STRINGS];
    let length = text.len().min(STRINGS);
    strings[..length].copy_from_slice(&text[..length]);
    let [fs_type, mnt_root, mnt_point] = offsets;
    mount_from(&StatMount {
        size: size_of::<StatMount>() as u32,
        mnt_opts: 0,
        mask: STATMOUNT_MNT_ROOT | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE,
        sb_dev_major: 0,
        sb_dev_minor: 42,
        sb_magic: 0,
        sb_flags: 0,
        fs_type,
        mnt_id: 1,
        mnt_parent_id: 1,
        mnt_id_old: 1,
        mnt_parent_id_old: 1,
        mnt_attr: 0,
        mnt_propagation: 0,
        mnt_peer_group: 0,
        mnt_master: 0,
        propagate_from: 0,
        mnt_root,
        mnt_point,
        spare: [0; 50],
        strings,
    })
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

// The layouts that the kernel goes by: a change here is a bug, not a matter of taste.
const _: () = {
    assert!(size_of::<MntNsInfo>() == 16);
    assert!(size_of::<ProcmapQuery>() == 104);
    assert!(size_of::<LoopInfo>() == 232);
    assert!(size_of::<MntIdReq>() == 32);
    assert!(offset_of!(StatMount, mnt_root) == 104);
    assert!(offset_of!(StatMount, strings) == 512);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernels_headers() {
        assert_eq!(NS_GET_MNTNS_ID, 0x8008_b705);
        assert_eq!(NS_MNT_GET_NEXT, 0x8010_b70b);
        assert_eq!(NS_MNT_GET_PREV, 0x8010_b70c);
        assert_eq!(PROCMAP_QUERY, 0xc068_6611);
    }
}
