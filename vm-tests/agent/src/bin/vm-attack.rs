//! A server's user gone bad, for scenarios: `vm-attack RUNTIME TARGET...` swaps names in `RUNTIME/upper` between
//! directories and symlinks to the targets as fast as it can, until SIGTERM. Then it says how often it has swapped.
//!
//! It works by path and by a descriptor that it keeps, so that a runtime directory which a reset has moved away is still
//! under attack. It has no rights of its own: a scenario runs it as the server's user.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, symlinkat, unlinkat,
};

/// Names that the helper and a reset use themselves, and some that mean nothing to them. None is one that the server
/// needs: whoever spoils those keeps his own server from starting, and that is his business.
const NAMES: [&str; 7] = ["a", "b", "c", "upper", "work", "merged", "addons"];

/// Swaps between one look for a signal or a new directory and the next.
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
    let (mut upper, mut seen, mut swaps) = (None, 0_u64, 0_u64);
    while end.read_signal().context("read the signalfd")?.is_none() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(current) = openat(CWD, &path, flags, Mode::empty()) {
            upper = Some(current);
            seen += 1;
        }
        match &upper {
            Some(upper) => swaps += attack(upper, &targets),
            None => std::thread::yield_now(),
        }
    }
    println!("{swaps} swaps, {seen} looks at {}", path.display());
    Ok(())
}

/// Some rounds of swaps, and how many of them were done. Whatever fails, fails: directories come and go meanwhile.
fn attack(upper: &OwnedFd, targets: &[String]) -> u64 {
    let mut swaps = 0;
    for (round, (name, target)) in NAMES.iter().cycle().zip(targets.iter().cycle()).take(ROUNDS).enumerate() {
        let made = [
            mkdirat(upper, "dir", Mode::RWXU),
            openat(upper, format!("dir/{round}"), OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop),
            symlinkat(target, upper, "link"),
            renameat_with(upper, "dir", upper, *name, RenameFlags::empty()),
        ];
        // An odd number, so that the name ends as a link.
        for _ in 0..21 {
            swaps += u64::from(renameat_with(upper, "link", upper, *name, RenameFlags::EXCHANGE).is_ok());
        }
        if made.iter().all(Result::is_err) {
            // The directory is gone.
            return swaps;
        }
        for name in ["link", name] {
            match unlinkat(upper, name, AtFlags::empty()) {
                Ok(()) | Err(_) => {}
            }
        }
    }
    swaps
}
