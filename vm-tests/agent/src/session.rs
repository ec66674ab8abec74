//! A scenario from its files to its recording, without a word from the host in between.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context, Result};
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use vm_agent::wire::{self, Body, DEPLOY_DEVICE, DOORBELL, Request, Session};

use crate::{files, record, run, user};

/// Puts the files, makes the user, runs the set-up, runs the plan.
pub(crate) fn run(session: &Session) -> Result<Body> {
    session.files.iter().try_for_each(files::put)?;
    if let Some(name) = &session.user {
        user::prepare(name)?;
    }
    for argv in &session.setup {
        run::expect_success(argv).context("set-up")?;
    }
    match &session.plan {
        Some(plan) => record::run(plan, session.stop).map(|recording| Body::Recorded(Box::new(recording))),
        None => Ok(Body::Done),
    }
}

/// Opens the doorbell, for [`await_ring`].
pub(crate) fn doorbell() -> Result<File> {
    // A serial port is opened with O_NONBLOCK lest open(2) wait for a carrier (tty_ioctl(4), CLOCAL); reads are to wait.
    let port = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed())
        .open(DOORBELL)
        .with_context(|| {
            format!("open {DOORBELL}: has the machine a second serial port, and the kernel its driver?")
        })?;
    rustix::io::ioctl_fionbio(&port, false).with_context(|| format!("make {DOORBELL} blocking"))?;
    let mut settings = tcgetattr(&port).with_context(|| format!("tcgetattr {DOORBELL}"))?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings).with_context(|| format!("tcsetattr {DOORBELL}"))?;
    Ok(port)
}

/// Waits for a ring, then reads the request that lies on [`DEPLOY_DEVICE`].
pub(crate) fn await_ring(doorbell: &mut File) -> Result<Request> {
    doorbell.read_exact(&mut [0]).with_context(|| format!("read {DOORBELL}"))?;
    let mut device = File::open(DEPLOY_DEVICE).with_context(|| format!("open {DEPLOY_DEVICE}"))?;
    // The saved machine had another device here, and its udev has looked at it.
    fadvise(&device, 0, None, Advice::DontNeed)
        .with_context(|| format!("drop what is cached of {DEPLOY_DEVICE}"))?;
    let frame = wire::read_frame(&mut device).with_context(|| format!("read {DEPLOY_DEVICE}"))?;
    wire::decode(&frame).with_context(|| format!("decode what is on {DEPLOY_DEVICE}"))
}
