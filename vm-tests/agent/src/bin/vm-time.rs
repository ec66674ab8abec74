//! `vm-time PROGRAM [ARGUMENT..]` runs a program and writes what that took, from spawn to wait, in nanoseconds, as the last
//! line of its output; `vm-time --umount2 MOUNTPOINT` times that one system call instead.
//!
//! For the benchmark of the helper: the recorder, which runs before everybody else, costs an unmount a third of a
//! millisecond, which a recording can't tell from the helper's own time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::UnmountFlags;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: vm-time PROGRAM [ARGUMENT..] | --umount2 MOUNTPOINT")?;
    let took = if program == "--umount2" {
        umount(&arguments.next().context("--umount2 MOUNTPOINT")?)?
    } else {
        #[expect(clippy::disallowed_methods, reason = "a fixture in the guest, not part of the harness")]
        run(Command::new(program).args(arguments))?
    };
    println!("{}", took.as_nanos());
    Ok(())
}

fn umount(mountpoint: &std::ffi::OsStr) -> Result<Duration> {
    let begun = Instant::now();
    rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW)
        .with_context(|| format!("umount2 {}", mountpoint.display()))?;
    Ok(begun.elapsed())
}

fn run(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("run {command:?}"))?;
    let took = begun.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}
