//! The mappings of a task: by one call for each where the kernel has it, else by their text.

use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};

use memchr::memmem;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::found::{Found, Link};
use super::keeper::Keeper;
use super::wanted::Wanted;
use crate::kernel::{self, InCommon};
use crate::proc::{LINK_ROOM, read_link, read_some};

/// The most text of mappings that is read before it is searched, bytes.
const MAPS_AT_ONCE: usize = 256 << 10;
/// So many mappings cost more to scan than a few calls of kcmp(2) and what is kept of them.
const MANY_MAPPINGS: usize = 1024;

/// Scans mappings; knows how.
pub(super) struct Mappings<'a> {
    /// The mount points, as what to search a text for.
    needles: Vec<memmem::Finder<'a>>,
    text: Vec<u8>,
    has_procmap_query: bool,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(wanted: &'a Wanted) -> Self {
        let needles = wanted.mount_points.0.iter().map(memmem::Finder::new).collect();
        Self { needles, text: Vec::new(), has_procmap_query: true }
    }

    /// Scans all mappings of files of a task.
    pub(super) fn scan(&mut self, keeper: &mut Keeper<'_>, task: BorrowedFd<'_>, of: (u32, u32)) {
        let maps = rustix::fs::openat(task, c"maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let Some(maps) = keeper.allowed(maps) else { return };
        let begin = keeper.mark();
        let mut count = None;
        if self.has_procmap_query {
            match query_mappings(keeper, task, maps.as_fd(), of) {
                Err(Errno::NOTTY | Errno::INVAL) => self.has_procmap_query = false,
                done => count = Some(keeper.allowed(done).unwrap_or_default()),
            }
        }
        let count = match count {
            Some(count) => count,
            None => self.read_mappings(keeper, task, maps.as_fd(), of),
        };
        if count > MANY_MAPPINGS {
            keeper.remember(InCommon::Memory, task, of.1, begin);
        }
    }

    /// Says how many mappings were scanned; 0 if another task's are the same.
    fn read_mappings(
        &mut self,
        keeper: &mut Keeper<'_>,
        task: BorrowedFd<'_>,
        maps: BorrowedFd<'_>,
        of: (u32, u32),
    ) -> usize {
        let mut count = 0;
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        loop {
            let read = read_some(maps, &mut text);
            let is_at_end = keeper.allowed(read).is_none_or(|length| length == 0);
            if is_at_end || text.len() >= MAPS_AT_ONCE {
                // The first piece of many.
                if !is_at_end && count == 0 && keeper.has_been_seen(InCommon::Memory, of, keeper.mark()) {
                    break;
                }
                let whole = memchr::memrchr(b'\n', &text).map_or(0, |last| last + 1);
                self.mapped_in(keeper, task, &text[..whole], of);
                count += memchr::memchr_iter(b'\n', &text[..whole]).count();
                text.drain(..whole);
            }
            if is_at_end || keeper.is_over() {
                break;
            }
        }
        self.text = text;
        count
    }

    fn mapped_in(&self, keeper: &mut Keeper<'_>, task: BorrowedFd<'_>, text: &[u8], of: (u32, u32)) {
        // Of most processes' text no line is of interest, and one search over all of it tells.
        if !self.needles.iter().any(|needle| needle.find(text).is_some()) {
            return;
        }
        let mut last: &[u8] = &[];
        for (range, path) in mapped_paths(text) {
            if path != last && keeper.wanted.mount_points.have(path) {
                if keeper.is_over() {
                    return;
                }
                mapping(keeper, task, of, range);
            }
            last = path;
        }
    }
}

/// Says how many mappings of files were scanned; 0 if another task's are the same.
fn query_mappings(
    keeper: &mut Keeper<'_>,
    task: BorrowedFd<'_>,
    maps: BorrowedFd<'_>,
    of: (u32, u32),
) -> Result<usize, Errno> {
    let begin = keeper.mark();
    let mut count = 0;
    let mut address = 0;
    let mut last = None;
    while let Some(mapped) = kernel::mapped_file(maps, address)? {
        if keeper.is_over() {
            break;
        }
        let file = (mapped.device, mapped.inode);
        if last != Some(file) && keeper.wanted.devices.contains(&mapped.device) {
            mapping(keeper, task, of, (mapped.start, mapped.end));
        }
        last = Some(file);
        address = mapped.end;
        count += 1;
        if count == MANY_MAPPINGS && keeper.has_been_seen(InCommon::Memory, of, begin) {
            return Ok(0);
        }
    }
    Ok(count)
}

/// Keeps a mapping, unless it is the program's own or one that the process has already.
fn mapping(keeper: &mut Keeper<'_>, task: BorrowedFd<'_>, (pid, tid): (u32, u32), (start, end): (u64, u64)) {
    let mut name = Vec::with_capacity(64);
    // Writing to a Vec does not fail.
    let Ok(()) = write!(name, "map_files/{start:x}-{end:x}\0") else { return };
    let Ok(name) = CStr::from_bytes_with_nul(&name) else { return };
    let mut room = LINK_ROOM;
    let shown = read_link(task, name, &mut room);
    let Some(shown) = keeper.allowed(shown) else { return };
    // Without other mounts the device number says enough, whatever path is shown.
    if keeper.wanted.devices_are_shared && !shown.is_empty() && !keeper.wanted.mount_points.have(shown) {
        return;
    }
    let mount = keeper.mount_of(task, name);
    if shown.is_empty() && mount.is_none() {
        keeper.denied = true;
        return;
    }
    let known = keeper.walk.found.iter().rev().take_while(|found| found.pid == pid);
    let is_known = known.into_iter().any(|found| {
        matches!(found.link, Link::Exe | Link::Mapping) && found.path == shown && found.mount == mount
    });
    if !is_known {
        let path = shown.to_vec();
        keeper.keep(Found { pid, tid, link: Link::Mapping, path, mount });
    }
}

/// Range and path of the lines of `/proc/PID/maps` that have one: the path is what follows the first slash, since
/// no column before it has one.
pub(crate) fn mapped_paths(maps: &[u8]) -> impl Iterator<Item = ((u64, u64), &[u8])> {
    maps.split(|&byte| byte == b'\n').filter_map(|line| {
        let path = &line[line.iter().position(|&byte| byte == b'/')?..];
        let range = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
        let (start, end) = range.split_once('-')?;
        Some(((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?), path))
    })
}
