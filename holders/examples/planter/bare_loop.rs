//! The floor of a diagnosis: a bare loop over the same readlinks.
//!
//! For each process it reads `exe`, `cwd`, `root`, `ns/mnt` and all of `fd`, relative to directories that it opens once,
//! into one buffer, and looks at nothing of what it reads; of each further thread `cwd`, `root` and `ns/mnt`; and of
//! each process the mappings, as the links of `map_files` or as the text of `maps`, which is all that a kernel without
//! `PROCMAP_QUERY` has. Kernel threads are left out, as in the diagnosis.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir};

/// How mappings are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mappings {
    NotAtAll,
    AsLinks,
    AsText,
}

/// Returns how many links it read.
pub(crate) fn bare_loop(mappings: Mappings) -> usize {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut links = 0;
    let Ok(proc_dir) = open(rustix::fs::CWD, c"/proc") else { return 0 };
    for pid in names(proc_dir.as_fd()) {
        let Ok(process) = open(proc_dir.as_fd(), &pid) else { continue };
        if !read(process.as_fd(), c"exe", &mut buffer, &mut links) {
            continue;
        }
        for name in [c"cwd", c"root", c"ns/mnt"] {
            read(process.as_fd(), name, &mut buffer, &mut links);
        }
        let map_files = (mappings == Mappings::AsLinks).then_some(c"map_files");
        for directory in [Some(c"fd"), map_files].into_iter().flatten() {
            let Ok(directory) = open(process.as_fd(), directory) else { continue };
            for name in names(directory.as_fd()) {
                read(directory.as_fd(), &name, &mut buffer, &mut links);
            }
        }
        if mappings == Mappings::AsText {
            read_maps(process.as_fd(), &mut buffer);
        }
        let Ok(threads) = open(process.as_fd(), c"task") else { continue };
        for tid in names(threads.as_fd()).iter().filter(|&tid| *tid != pid) {
            let Ok(thread) = open(threads.as_fd(), tid) else { continue };
            for name in [c"cwd", c"root", c"ns/mnt"] {
                read(thread.as_fd(), name, &mut buffer, &mut links);
            }
        }
    }
    links
}

fn open(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The entries that begin with a digit or, as mappings do, with a hexadecimal one.
fn names(directory: BorrowedFd<'_>) -> Vec<std::ffi::CString> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        let first = entry.file_name().to_bytes()[0];
        if first.is_ascii_digit() || entry.file_name().to_bytes().contains(&b'-') {
            names.push(entry.file_name().to_owned());
        }
    }
    names
}

/// Reads the text and drops it. A call yields a page at most (`fs/seq_file.c:seq_read_iter`).
fn read_maps(process: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(maps) = rustix::fs::openat(process, c"maps", flags, Mode::empty()) else { return };
    while rustix::io::read(&maps, &mut *buffer).is_ok_and(|(text, _)| !text.is_empty()) {}
}

fn read(directory: BorrowedFd<'_>, name: &CStr, buffer: &mut [MaybeUninit<u8>], links: &mut usize) -> bool {
    let is_read = rustix::fs::readlinkat_raw(directory, name, buffer).is_ok();
    *links += usize::from(is_read);
    is_read
}
