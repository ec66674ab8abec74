//! A scenario from its files to its recording, without a word from the host in between.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};
use rustix::thread::{ClockId, Timespec};
use vm_agent::wire::{self, Body, DEPLOY_DEVICE, Put, Session};

use crate::{files, record, run};

/// Sessions begin at a multiple of this much guest time, in nanoseconds. When the host's request is seen depends on
/// the host by some microseconds; what comes after this does not.
const GRID_NS: i64 = 100_000_000;

/// Waits for the grid, puts the files, runs the set-up, runs the plan.
pub(crate) fn run(session: &Session) -> Result<Body> {
    to_the_grid()?;
    if session.deploy_bytes > 0 {
        deploy(session.deploy_bytes)?;
    }
    for argv in &session.setup {
        set_up(argv)?;
    }
    match &session.plan {
        Some(plan) => record::run(plan).map(|recording| Body::Recorded(Box::new(recording))),
        None => Ok(Body::Done),
    }
}

fn deploy(length: u64) -> Result<()> {
    let mut device = File::open(DEPLOY_DEVICE).with_context(|| format!("open {DEPLOY_DEVICE}"))?;
    // The saved machine had another device here, and its udev has looked at it.
    fadvise(&device, 0, None, Advice::DontNeed)
        .with_context(|| format!("drop what is cached of {DEPLOY_DEVICE}"))?;
    let length = usize::try_from(length).context("the size of the files")?;
    let mut bytes = vec![0; length];
    device.read_exact(&mut bytes).with_context(|| format!("read {length} bytes of {DEPLOY_DEVICE}"))?;
    let puts: Vec<Put> =
        wire::decode(&bytes).with_context(|| format!("decode the files on {DEPLOY_DEVICE}"))?;
    puts.iter().try_for_each(files::put)
}

fn set_up(argv: &[String]) -> Result<()> {
    let output = run::prepare(argv)?
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("set-up: run {}", argv.join(" ")))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let exit = run::exit_of(output.status);
        bail!("set-up: {}: {exit}: {}", argv.join(" "), String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

/// Waits until CLOCK_MONOTONIC is at the next multiple of [`GRID_NS`]. An event with a deadline that is its own end.
fn to_the_grid() -> Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let due = (now.tv_nsec / GRID_NS + 1) * GRID_NS;
    let due = Timespec { tv_sec: now.tv_sec + due / 1_000_000_000, tv_nsec: due % 1_000_000_000 };
    loop {
        match rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &due) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno).context("clock_nanosleep"),
        }
    }
}
