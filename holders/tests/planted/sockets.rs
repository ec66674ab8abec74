//! Whose socket is bound to a file of the mount is what the kernel says in numbers, not what text says of it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Child;

use holders::Verdict;

use super::seen;
use crate::stage::Stage;
use crate::victim::{Result, ready, stay, victim};

/// An abstract socket's name may hold anything, a line that looks like the kernel's about another socket too.
pub(crate) fn forged(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let mut innocent = Innocent(victim("socket-pair", &[])?);
    let pid = ready(&mut innocent.0)?;
    let name = format!("x\n0: 2 0 10000 1 1 {} {}/x", socket_of(pid)?, stage.merged.display());
    let _forger = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let report = stage.ask()?;
    assert!(report.holders.is_empty(), "{report:#?}");
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}

/// A socket that was bound at the path before the mount came over it.
pub(crate) fn older(stage: &Stage) -> Result<()> {
    let _older = stage.plant("socket")?;
    stage.mount()?;
    let report = stage.ask()?;
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
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
struct Innocent(Child);

impl Drop for Innocent {
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
        _ => return None,
    })
}
