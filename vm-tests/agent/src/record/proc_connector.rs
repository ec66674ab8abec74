//! Every fork, exec, core dump and exit in the machine, from the kernel's proc connector (`linux/cn_proc.h`).
//!
//! The kernel sends an exec before the new program runs its first instruction, and a fork before the child
//! does. An exit comes when the task has already let go of its files, directories and namespaces.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, send, setsockopt, sockopt};

/// What a process did. Threads that begin or end are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessEvent {
    /// `parent` made `child`.
    Fork { parent: u32, child: u32 },
    /// A new program.
    Exec { pid: u32 },
    /// It dies of a signal that dumps core (`kernel/signal.c:get_signal`), whether or not one is written.
    Coredump { pid: u32 },
    /// It ended.
    Exit { pid: u32 },
}

/// What was read from the socket.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) events: Vec<ProcessEvent>,
    /// Whether the kernel dropped events because the socket was full.
    pub(super) overrun: bool,
}

/// The subscription.
#[derive(Debug)]
pub(super) struct ProcConnector {
    socket: OwnedFd,
}

/// CN_IDX_PROC and CN_VAL_PROC of `linux/connector.h`: the id of this connector and its multicast group.
const CN_PROC: u32 = 1;
/// PROC_CN_MCAST_LISTEN and PROC_CN_MCAST_IGNORE.
const LISTEN: u32 = 1;
const IGNORE: u32 = 2;
/// `enum what` of `struct proc_event`.
const FORK: u32 = 1;
const EXEC: u32 = 2;
const COREDUMP: u32 = 0x4000_0000;
const EXIT: u32 = 0x8000_0000;
/// Sizes of `struct nlmsghdr` and `struct cn_msg`, and where `event_data` lies in `struct proc_event`.
const NLMSG_HEADER: usize = 16;
const CN_HEADER: usize = 20;
const EVENT_DATA: usize = 16;
/// A burst of some thousand events fits; the default holds a few hundred.
const RECEIVE_BUFFER: usize = 1 << 20;

impl ProcConnector {
    /// Subscribes.
    ///
    /// # Errors
    /// No CAP_NET_ADMIN, or a kernel without CONFIG_PROC_EVENTS.
    pub(super) fn open() -> Result<Self> {
        let connector = Self { socket: socket().context("open a connector socket")? };
        setsockopt(&connector.socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("set SO_RCVBUFFORCE")?;
        bind(connector.socket.as_raw_fd(), &NetlinkAddr::new(0, CN_PROC)).context("bind to CN_IDX_PROC")?;
        connector.order(LISTEN).context("listen to the proc connector")?;
        Ok(connector)
    }

    /// Poll it for IN.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes everything that is there; never waits.
    ///
    /// # Errors
    /// What recv(2) says other than that nothing is there or that events were dropped.
    pub(super) fn read(&self) -> Result<Read> {
        let mut read = Read::default();
        let mut datagram = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => read.events.extend(parse(&datagram[..length])),
                Err(Errno::EAGAIN) => return Ok(read),
                Err(Errno::ENOBUFS) => read.overrun = true,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("receive from the proc connector"),
            }
        }
    }

    fn order(&self, operation: u32) -> Result<()> {
        let message = order(operation);
        let sent = send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        ensure!(sent == message.len(), "sent {sent} of {} bytes", message.len());
        Ok(())
    }
}

impl Drop for ProcConnector {
    fn drop(&mut self) {
        // Kernels before 6.6 count listeners and would go on sending to nobody.
        if let Err(error) = self.order(IGNORE) {
            eprintln!("leave the proc connector: {error:#}");
        }
    }
}

#[expect(unsafe_code, reason = "nix has no name for NETLINK_CONNECTOR")]
fn socket() -> nix::Result<OwnedFd> {
    // SAFETY: socket(2) takes numbers only.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            libc::NETLINK_CONNECTOR,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A `struct nlmsghdr`, a `struct cn_msg` and the operation, in the machine's byte order.
fn order(operation: u32) -> Vec<u8> {
    const LENGTH: u32 = (NLMSG_HEADER + CN_HEADER + 4) as u32;
    const DONE: u16 = 3;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(DONE.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(CN_PROC.to_ne_bytes());
    message.extend(CN_PROC.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(operation.to_ne_bytes());
    message
}

/// Reads the events out of one datagram; what is not one of the four kinds, or cut short, is passed over.
fn parse(datagram: &[u8]) -> Vec<ProcessEvent> {
    let mut events = Vec::new();
    let mut rest = datagram;
    while let Some(length) = word(rest, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some(message) = rest.get(..length).filter(|message| message.len() >= NLMSG_HEADER) else { break };
        events.extend(message.get(NLMSG_HEADER..).and_then(parse_message));
        // Messages begin at multiples of four (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn parse_message(message: &[u8]) -> Option<ProcessEvent> {
    if (word(message, 0)?, word(message, 4)?) != (CN_PROC, CN_PROC) {
        return None;
    }
    let event = message.get(CN_HEADER..)?;
    let data = event.get(EVENT_DATA..)?;
    match word(event, 0)? {
        FORK => {
            let (parent, child, child_process) = (word(data, 4)?, word(data, 8)?, word(data, 12)?);
            (child == child_process).then_some(ProcessEvent::Fork { parent, child })
        }
        EXEC => Some(ProcessEvent::Exec { pid: word(data, 4)? }),
        COREDUMP => Some(ProcessEvent::Coredump { pid: word(data, 4)? }),
        EXIT => {
            let (task, process) = (word(data, 0)?, word(data, 4)?);
            (task == process).then_some(ProcessEvent::Exit { pid: process })
        }
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(what: u32, data: &[u32]) -> Vec<u8> {
        let body = [what, 0, 0, 0].into_iter().chain(data.iter().copied()).flat_map(u32::to_ne_bytes);
        let body: Vec<u8> = body.collect();
        let length = u32::try_from(NLMSG_HEADER + CN_HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([0; 12]);
        bytes.extend([CN_PROC, CN_PROC, 7, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(body);
        bytes
    }

    #[test]
    fn reads_the_four_kinds() {
        let cases = [
            (datagram(FORK, &[10, 10, 20, 20]), vec![ProcessEvent::Fork { parent: 10, child: 20 }]),
            // Made by a thread: the parent is its process.
            (datagram(FORK, &[11, 10, 20, 20]), vec![ProcessEvent::Fork { parent: 10, child: 20 }]),
            // A thread was made.
            (datagram(FORK, &[10, 10, 21, 10]), vec![]),
            (datagram(EXEC, &[20, 20]), vec![ProcessEvent::Exec { pid: 20 }]),
            // A thread crashes, its process dies.
            (datagram(COREDUMP, &[21, 20, 10, 10]), vec![ProcessEvent::Coredump { pid: 20 }]),
            (datagram(EXIT, &[20, 20, 0, 17, 10, 10]), vec![ProcessEvent::Exit { pid: 20 }]),
            // A thread ended.
            (datagram(EXIT, &[21, 20, 0, 17, 10, 10]), vec![]),
            // PROC_EVENT_NONE, the answer to our order; PROC_EVENT_UID.
            (datagram(0, &[0]), vec![]),
            (datagram(4, &[20, 20, 0, 0]), vec![]),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn reads_several_and_survives_cut_ones() {
        let mut two = datagram(EXEC, &[20, 20]);
        two.extend(datagram(EXIT, &[20, 20, 0, 17, 1, 1]));
        assert_eq!(parse(&two), [ProcessEvent::Exec { pid: 20 }, ProcessEvent::Exit { pid: 20 }]);
        for length in 0..two.len() {
            drop(parse(&two[..length]));
        }
        assert_eq!(parse(&[0; 64]), []);
        assert_eq!(parse(&[0xff; 64]), []);
    }

    #[test]
    fn asks_as_the_kernel_wants_it() {
        let message = order(LISTEN);
        assert_eq!(message.len(), 40);
        assert_eq!(word(&message, 0), Some(40));
        assert_eq!(word(&message, 36), Some(LISTEN));
    }
}
