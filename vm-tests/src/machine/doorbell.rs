//! The byte that begins a session, and the wait until QEMU has taken it.
//!
//! It goes to a serial port of the guest's (see [`vm_agent::wire::DOORBELL`]), whose chardev is a socket pair. QEMU answers
//! nothing, so what is waited for is that the socket's other end has been read.

use std::io;

use rustix::ioctl::{Getter, Opcode, ioctl};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Writes the byte, and returns when the other end has read it. Or when it is closed: there is nobody to answer then, which
/// the next that QEMU is asked shows.
pub(super) async fn ring(doorbell: &mut UnixStream) -> io::Result<()> {
    doorbell.write_all(b"!").await?;
    let is_read = || if is_read(doorbell)? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
    // A byte that is read gives back its room in the socket, which is then writable once more: that is the event.
    doorbell.async_io(Interest::WRITABLE, is_read).await
}

/// Whether the other end of a Unix stream socket has read all that was written. SIOCOUTQ gives the memory of what it has
/// not (net/unix/af_unix.c:unix_outq_len). 1 is nothing, too: the kernel tells the event while it has yet to take the last 1
/// off that number (net/core/sock.c:sock_wfree), and does not tell it again.
fn is_read(socket: &UnixStream) -> io::Result<bool> {
    /// The number of TIOCOUTQ (include/uapi/linux/sockios.h).
    const SIOCOUTQ: Opcode = 0x5411;
    #[expect(unsafe_code, reason = "no crate has a safe call for SIOCOUTQ")]
    // SAFETY: of a socket, the kernel writes one int.
    let memory: i32 = unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) }?;
    Ok(memory <= 1)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// The host's end and QEMU's.
    fn pair() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("fcntl");
        (UnixStream::from_std(ours).expect("a runtime"), theirs)
    }

    #[tokio::test]
    async fn a_ring_ends_when_the_byte_is_read() {
        for _ in 0..1000 {
            let (mut ours, mut theirs) = pair();
            let reader = std::thread::spawn(move || theirs.read_exact(&mut [0]).map(|()| theirs));
            let rung = timeout(Duration::from_secs(60), ring(&mut ours)).await;
            rung.expect("the byte was read").expect("no error");
            reader.join().expect("no panic").expect("a byte");
        }
    }

    #[tokio::test]
    async fn a_byte_that_nobody_reads_is_waited_for() {
        let (mut ours, theirs) = pair();
        let rung = timeout(Duration::from_millis(50), ring(&mut ours)).await;
        rung.expect_err("nobody has read it");
        drop(theirs);
        timeout(Duration::from_secs(60), ring(&mut ours)).await.expect("an end").expect_err("it is closed");
    }
}
