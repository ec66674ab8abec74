//! Reading `/proc` by descriptors: a task's directory once opened is that task's, whoever has its id a moment later.

use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::path::DecInt;

/// The longest that a link can show; `/proc` cuts at a page.
const PATH_MAX: usize = 4096;

pub(crate) fn open_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/proc", flags, Mode::empty())
}

/// A handle on a task's directory in `/proc`; pins neither the task nor anything it holds.
pub(crate) fn open_task(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The directory of a thread, also where the process's first thread has ended.
pub(crate) fn open_thread(proc_dir: BorrowedFd<'_>, pid: u32, tid: u32) -> Result<OwnedFd, Errno> {
    let process = open_task(proc_dir, DecInt::new(pid).as_c_str())?;
    if pid == tid {
        return Ok(process);
    }
    let threads = open_task(process.as_fd(), c"task")?;
    open_task(threads.as_fd(), DecInt::new(tid).as_c_str())
}

pub(crate) fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The longest that an entry of a directory can be, bytes: `struct linux_dirent64` with a name of 255 and its end.
const MAX_ENTRY: usize = 280;

/// Adds the entries of a directory of `/proc` that are numbers.
pub(crate) fn numbers(
    directory: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    numbers: &mut Vec<u32>,
) -> Result<(), Errno> {
    while !some_numbers(directory, buffer, numbers)? {}
    Ok(())
}

/// The same for as many as the buffer has room for, from where the directory is; true if it is at its end.
///
/// That it is at its end is told by one more call, which is spared where this one has surely not filled the buffer:
/// procfs stops in no other place (`fs/proc/fd.c:proc_readfd_common`, `fs/proc/base.c:proc_task_readdir`).
pub(crate) fn some_numbers(
    directory: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    numbers: &mut Vec<u32>,
) -> Result<bool, Errno> {
    let surely_fit = buffer.len() / MAX_ENTRY;
    let mut entries = RawDir::new(directory, buffer);
    let mut seen = 0;
    while let Some(entry) = entries.next() {
        numbers.extend(number(entry?.file_name().to_bytes()));
        seen += 1;
        if entries.is_buffer_empty() {
            return Ok(seen < surely_fit);
        }
    }
    Ok(true)
}

pub(crate) fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u32, |number, &digit| {
        number.checked_mul(10)?.checked_add(u32::from(digit.is_ascii_digit().then(|| digit - b'0')?))
    })
}

/// Room for what a link shows. It has no content.
pub(crate) const LINK_ROOM: [MaybeUninit<u8>; PATH_MAX] = [MaybeUninit::uninit(); PATH_MAX];

/// What a link shows; empty if that is more than a link can show. The room is for a page, which is where the kernel gives up
/// (fs/proc/base.c:do_proc_readlink).
pub(crate) fn read_link<'a>(
    directory: BorrowedFd<'_>,
    name: &CStr,
    room: &'a mut [MaybeUninit<u8>; PATH_MAX],
) -> Result<&'a [u8], Errno> {
    match rustix::fs::readlinkat_raw(directory, name, room) {
        Ok((shown, _)) => Ok(shown),
        Err(Errno::NAMETOOLONG) => Ok(&[]),
        Err(error) => Err(error),
    }
}

/// The path of a link that may show ` (deleted)` behind it.
pub(crate) fn without_deleted(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Path::new(OsStr::from_bytes(bytes))
}

/// Adds some of what a file of `/proc` has left, and says how much; 0 at its end.
pub(crate) fn read_some(file: BorrowedFd<'_>, text: &mut Vec<u8>) -> Result<usize, Errno> {
    text.reserve(16 << 10);
    loop {
        match rustix::io::read(file, rustix::buffer::spare_capacity(text)) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Reads `directory/name` whole.
pub(crate) fn read_file(directory: BorrowedFd<'_>, name: &CStr, text: &mut Vec<u8>) -> Result<(), Errno> {
    read_start(directory, name, text, usize::MAX)
}

/// Reads `directory/name`, and stops once it has so many bytes or a few more.
pub(crate) fn read_start(
    directory: BorrowedFd<'_>,
    name: &CStr,
    text: &mut Vec<u8>,
    most: usize,
) -> Result<(), Errno> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    text.clear();
    while text.len() < most && read_some(file.as_fd(), text)? > 0 {}
    Ok(())
}
