//! A server's user gone bad, for scenarios: `vm-attack RUNTIME TARGET...` swaps names in `RUNTIME/upper` between
//! directories and symlinks to the targets as fast as it can, until SIGTERM. Then it says how often it has put a link in
//! the place of a directory.
//!
//! It works by path and by a descriptor that it keeps, so that a runtime directory which a reset has moved away is still
//! under attack. It has no rights of its own: a scenario runs it as the server's user.

#[path = "../../../../helper/tests/support/swapper.rs"]
mod swapper;

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use swapper::Swapper;

/// Names that the helper and a reset use themselves, and some that mean nothing to them. None is one that the server
/// needs: whoever spoils those keeps his own server from starting, and that is his business.
const NAMES: [&str; 7] = ["a", "b", "c", "upper", "work", "merged", "addons"];

/// Swaps of each name between one look for a signal or a new directory and the next.
const ROUNDS: usize = 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let runtime = arguments.next().context("usage: vm-attack RUNTIME TARGET...")?;
    let targets: Vec<String> = arguments.collect();
    if targets.is_empty() {
        bail!("usage: vm-attack RUNTIME TARGET...");
    }
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.thread_block().context("block SIGTERM")?;
    let end = SignalFd::with_flags(&end, SfdFlags::SFD_NONBLOCK).context("signalfd")?;

    let path = Path::new(&runtime).join("upper");
    let mut swapper: Option<(u64, Swapper)> = None;
    let (mut links, mut directories) = (0, 0);
    while end.read_signal().context("read the signalfd")?.is_none() {
        if let Ok(current) = File::open(&path)
            && let Ok(inode) = current.metadata().map(|meta| meta.ino())
            && swapper.as_ref().is_none_or(|(known, _)| *known != inode)
        {
            links += swapper.map_or(0, |(_, swapper)| swapper.shown);
            swapper = Some((inode, Swapper::new(current.into(), NAMES.map(str::to_owned), &targets)));
            directories += 1;
        }
        let Some((_, swapper)) = swapper.as_mut() else {
            std::thread::yield_now();
            continue;
        };
        if swapper.plant() == 0 {
            std::thread::yield_now();
            continue;
        }
        for _ in 0..ROUNDS {
            swapper.swap();
        }
    }
    links += swapper.map_or(0, |(_, swapper)| swapper.shown);
    println!("{links} links in the place of directories, in {directories} directories at {}", path.display());
    Ok(())
}
