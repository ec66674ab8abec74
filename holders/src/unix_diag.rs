//! Which Unix sockets are bound to a file, by NETLINK_SOCK_DIAG (sock_diag(7), `net/unix/diag.c`).
//!
//! The kernel answers in numbers: the socket's inode, and the file system that its file is on. `/proc/net/unix` has the
//! same as lines of text, in which the name of an abstract socket, that anybody may choose, can hold a newline and what
//! looks like a line about somebody else's socket.
//!
//! The kernel tells of the network namespace that the question's own socket was made in, and loads its module `unix_diag` for
//! it where it is one. For another one the calling thread goes there for the length of that call.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::mountinfo::Device;

/// A socket that is bound to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoundSocket {
    /// The device number of the superblock that the file is on.
    pub(crate) device: Device,
    /// As it was bound, so possibly relative to a directory that nobody knows, or empty.
    pub(crate) path: PathBuf,
}

/// What one message of the kernel's says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// A socket that is bound to a file, by its inode number.
    Bound(u64, BoundSocket),
    /// One that is not.
    Other,
    /// The list is at its end.
    Done,
    /// The kernel does not answer.
    Refused(Errno),
}

const AF_UNIX: u8 = 1;
/// Numbers of include/uapi/linux/{netlink,sock_diag,unix_diag}.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UDIAG_SHOW_NAME: u32 = 0x1;
const UDIAG_SHOW_VFS: u32 = 0x2;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
/// `struct nlmsghdr`, `struct unix_diag_req`, `struct unix_diag_msg`, bytes.
const HEADER: usize = 16;
const REQUEST: usize = 24;
const ANSWER: usize = 16;

/// How much of the list one call may answer with: what the kernel makes of it at most (`netlink_dump`), bytes.
const AT_ONCE: usize = 32 << 10;

/// The sockets of the caller's network namespace that are bound to a file, by inode number.
///
/// # Errors
/// NOENT for a kernel without unix_diag; what socket(2) says where AF_NETLINK is forbidden.
pub(crate) fn bound_sockets() -> Result<HashMap<u64, BoundSocket>, Errno> {
    list(&question()?)
}

/// Those of the network namespace that the process with this directory is in, unless that is another one than `inode` by now.
///
/// # Errors
/// PERM without CAP_SYS_ADMIN; as [`bound_sockets`].
///
/// # Panics
/// If there is no way back into the caller's own.
pub(crate) fn bound_sockets_of(
    process: BorrowedFd<'_>,
    inode: u64,
) -> Result<HashMap<u64, BoundSocket>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?;
    let other = rustix::fs::openat(process, c"ns/net", flags, Mode::empty())?;
    if rustix::fs::fstat(&other)?.st_ino != inode {
        return Err(Errno::SRCH);
    }
    let enter = |to: &OwnedFd| move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network));
    enter(&other)?;
    let question = question();
    enter(&own).expect("go back into the own network namespace");
    list(&question?)
}

fn question() -> Result<OwnedFd, Errno> {
    let protocol = Some(netlink::SOCK_DIAG);
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
}

fn list(socket: &OwnedFd) -> Result<HashMap<u64, BoundSocket>, Errno> {
    // To whom nothing is said, that is the kernel.
    send(socket, &request(), SendFlags::empty())?;
    let mut sockets = HashMap::new();
    let mut buffer = vec![MaybeUninit::uninit(); AT_ONCE];
    loop {
        // Each call of ours makes the kernel write the next part, so there is nothing to wait for.
        let received = recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT);
        let ((answer, _), length, sender) = match received {
            Err(Errno::INTR) => continue,
            received => received?,
        };
        if length > answer.len() {
            return Err(Errno::MSGSIZE);
        }
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_none_or(|sender| sender.pid() != 0) {
            continue;
        }
        for message in messages(answer) {
            match message {
                Message::Bound(inode, bound) => drop(sockets.insert(inode, bound)),
                Message::Other => {}
                Message::Done => return Ok(sockets),
                Message::Refused(error) => return Err(error),
            }
        }
    }
}

/// Asks for all Unix sockets, of each its name and its file.
fn request() -> [u8; HEADER + REQUEST] {
    let mut request = [0; HEADER + REQUEST];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &((HEADER + REQUEST) as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    put(HEADER, &[AF_UNIX]);
    // `udiag_states`: whatever they are at.
    put(HEADER + 4, &u32::MAX.to_ne_bytes());
    put(HEADER + 12, &(UDIAG_SHOW_NAME | UDIAG_SHOW_VFS).to_ne_bytes());
    request
}

/// The messages of one answer.
pub(crate) fn messages(mut answer: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = number(answer, 0).map(|length| length as usize)
        && let Some(message) = answer.get(..length)
        && let Some(body) = message.get(HEADER..)
    {
        messages.push(match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => Message::Done,
            NLMSG_ERROR => {
                let code = number(body, 0).unwrap_or_default().cast_signed();
                Message::Refused(Errno::from_raw_os_error(code.checked_neg().unwrap_or_default()))
            }
            _ => bound(body).map_or(Message::Other, |(inode, bound)| Message::Bound(inode, bound)),
        });
        answer = answer.get(aligned(length)..).unwrap_or_default();
    }
    messages
}

/// Reads a `struct unix_diag_msg` and its attributes.
fn bound(body: &[u8]) -> Option<(u64, BoundSocket)> {
    let inode = number(body, 4)?;
    if body.first() != Some(&AF_UNIX) {
        return None;
    }
    let mut attributes = body.get(ANSWER..)?;
    let (mut device, mut path) = (None, PathBuf::new());
    while let Some(&[low, high, kind_low, kind_high]) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some(value) = attributes.get(4..length) else { break };
        match u16::from_ne_bytes([kind_low, kind_high]) {
            UNIX_DIAG_NAME => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                path = PathBuf::from(OsStr::from_bytes(name));
            }
            // The kernel's own form of a device number (include/linux/kdev_t.h).
            UNIX_DIAG_VFS => {
                device =
                    number(value, 4).map(|number| Device { major: number >> 20, minor: number & 0xf_ffff });
            }
            _ => {}
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Some((inode.into(), BoundSocket { device: device?, path }))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one() {
        let mut answer = 20_u32.to_ne_bytes().to_vec();
        answer.extend(NLMSG_ERROR.to_ne_bytes());
        answer.extend([0; 10]);
        answer.extend((-2_i32).to_ne_bytes());
        assert_eq!(messages(&answer), [Message::Refused(Errno::NOENT)]);
        assert_eq!(messages(&answer[..19]), []);
        answer[0] = 3;
        assert_eq!(messages(&answer), []);
    }
}
