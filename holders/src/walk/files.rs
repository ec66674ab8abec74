//! The descriptors of a task.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::path::DecInt;

use super::found::{Carrier, CarrierKind, Found, Link, NamespaceFile};
use super::keeper::{Keeper, MOST_CARRIERS, socket_inode};
use crate::kernel::InCommon;
use crate::namespace;
use crate::proc::{LINK_ROOM, open_directory, read_link, some_numbers};

/// So many descriptors cost more to scan than a few calls of kcmp(2) and what is kept of them.
const MANY_FILES: usize = 256;

/// Scans descriptors; has the room for their lists.
pub(super) struct Files {
    entries: Box<[MaybeUninit<u8>; 32 << 10]>,
    fds: Vec<u32>,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { entries: Box::new([MaybeUninit::uninit(); 32 << 10]), fds: Vec::new() }
    }

    /// Scans all descriptors of a task.
    pub(super) fn scan(&mut self, keeper: &mut Keeper<'_>, task: BorrowedFd<'_>, of: (u32, u32)) {
        let directory = open_directory(task, c"fd");
        let Some(directory) = keeper.allowed(directory) else { return };
        let Self { entries, fds } = self;
        let begin = keeper.mark();
        let (mut is_at_end, mut count) = (false, 0);
        while !is_at_end {
            fds.clear();
            let listed = some_numbers(directory.as_fd(), &mut entries[..], fds);
            is_at_end = keeper.allowed(listed).unwrap_or(true);
            // The first that are listed are more already, if there are many.
            if count == 0 && fds.len() > MANY_FILES && keeper.has_been_seen(InCommon::Files, of, begin) {
                keeper.has_socket = true;
                break;
            }
            count += fds.len();
            for &fd in &*fds {
                if keeper.is_over() {
                    is_at_end = true;
                    break;
                }
                file(keeper, directory.as_fd(), of, fd);
            }
            if is_at_end && count > MANY_FILES {
                keeper.remember(InCommon::Files, task, of.1, begin);
            }
        }
    }
}

fn file(keeper: &mut Keeper<'_>, directory: BorrowedFd<'_>, (pid, tid): (u32, u32), fd: u32) {
    let name = DecInt::new(fd);
    let mut room = LINK_ROOM;
    let shown = read_link(directory, name.as_c_str(), &mut room);
    let Some(shown) = keeper.allowed(shown) else { return };
    let may_keep = |kept: usize| kept < MOST_CARRIERS;
    if matches!(shown.first(), None | Some(b'/')) {
        keeper.consider(directory, name.as_c_str(), (pid, tid), Link::File(fd), shown);
    } else if let Some(inode) = namespace::parse_link(shown) {
        if may_keep(keeper.walk.namespace_files.len()) {
            keeper.walk.namespace_files.push(NamespaceFile { pid, tid, fd, inode });
        }
    } else if shown == b"anon_inode:[io_uring]" {
        if may_keep(keeper.walk.carriers.len()) {
            keeper.walk.carriers.push(Carrier { pid, fd, kind: CarrierKind::Ring });
        }
    } else if keeper.wanted.carriers && shown == b"anon_inode:[fanotify]" {
        if may_keep(keeper.walk.carriers.len()) {
            keeper.walk.carriers.push(Carrier { pid, fd, kind: CarrierKind::Watch });
        }
    } else if let Some(inode) = socket_inode(shown) {
        keeper.has_socket = true;
        if keeper.wanted.sockets.contains_key(&inode) {
            let (path, link) = (shown.to_vec(), Link::Socket(fd));
            keeper.keep(Found { pid, tid, link, path, mount: None });
        }
        if keeper.wanted.carriers && may_keep(keeper.walk.carriers.len()) {
            keeper.walk.carriers.push(Carrier { pid, fd, kind: CarrierKind::Socket });
        }
    }
}
