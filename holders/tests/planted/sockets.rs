//! Whose socket is bound to a file of the mount is what the kernel says in numbers, not what text says of it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;

use holders::Verdict;
use rustix::io::Errno;

use super::seen;
use crate::stage::Stage;
use crate::victim::{Result, ready, stay, victim};

/// An abstract socket's name may hold anything, a line that looks like the kernel's about another socket too.
pub(crate) fn forged(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let mut innocent = Ending(victim("socket-pair", &[])?);
    let pid = ready(&mut innocent.0)?;
    let name = format!("x\n0: 2 0 10000 1 1 {} {}/x", socket_of(pid)?, stage.merged.display());
    let _forger = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let report = stage.ask()?;
    assert!(report.holders.is_empty(), "{report:#?}");
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}

/// A socket that was bound in another network namespace, as one with PrivateNetwork= does.
pub(crate) fn in_another_network(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let mut holder = Ending(victim("socket-elsewhere", &[&stage.merged])?);
    let pid = ready(&mut holder.0)?;
    let own = rustix::fs::stat("/proc/thread-self/ns/net")?.st_ino;
    let report = stage.ask()?;
    let blockers: Vec<_> = report.blockers().iter().map(|blocker| blocker.pid).collect();
    assert_eq!(blockers, [pid], "{report:#?}");
    assert_eq!(rustix::fs::stat("/proc/thread-self/ns/net")?.st_ino, own, "it has not come back");
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    drop(holder);
    Ok(stage.umount()?)
}

/// The inode number of a socket that the process has.
fn socket_of(pid: u32) -> Result<u64> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = std::fs::read_link(entry?.path())?;
        let number = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        if let Some(number) = number {
            return Ok(number.parse()?);
        }
    }
    Err("it has no socket".into())
}

/// Ends with its stdin.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("wait for it");
    }
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["socket-pair"] => UnixStream::pair().map_err(Into::into).and_then(|pair| {
            let done = stay(std::process::id());
            drop(pair);
            done
        }),
        ["socket-elsewhere", merged] => be_in_another_network(Path::new(merged)),
        _ => return None,
    })
}

#[expect(unsafe_code, reason = "a network namespace of its own")]
fn be_in_another_network(merged: &Path) -> Result<()> {
    // SAFETY: the descriptor table stays shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    let socket = UnixListener::bind(merged.join("socket"))?;
    let done = stay(std::process::id());
    drop(socket);
    done
}
