//! `vm-perturb COMMAND…`: runs a command in the guest and holds tasks at the points of its order ([`vm_perturb::ORDER`]).
//!
//! Its status is the command's. It writes what tasks have come to into [`vm_perturb::REPORT`], or where it was told to, and nothing if it could not do
//! what it was told; then it says why on stderr, and its status is [`FAILED`].

mod calls;
#[path = "../../agent/src/pause.rs"]
mod pause;
mod raw;
mod tracer;

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::libc::O_DIRECT;
use rustix::fs::{Advice, fadvise};
use vm_perturb::{Anew, ORDER, ORDER_BYTES, Order, Packed, REPORT, REPORT_BYTES, Report};

use tracer::{Tracer, now_us};

/// How much longer than until the pause is waited, in microseconds: what winds the watchdog takes some of it.
const AFTER_PAUSE_US: u64 = 1_000;
/// What is read and understood of an order within this time, in microseconds, or a multiple of it: how long that takes depends on what
/// the order says, and what comes after it must not.
const READ_US: u64 = 20_000;
/// What a write past the page cache is in whole ones of.
const PAGE: usize = 4096;
/// As env(1) and timeout(1) have it.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    match run() {
        Ok(status) => u8::try_from(status).unwrap_or(FAILED).into(),
        Err(error) => {
            eprintln!("vm-perturb: {error:#}");
            FAILED.into()
        }
    }
}

fn run() -> Result<i32> {
    let command: Vec<String> = std::env::args().skip(1).collect();
    ensure!(!command.is_empty(), "usage: vm-perturb COMMAND…");
    let mut since_us = now_us();
    let text = std::fs::read_to_string(ORDER).with_context(|| format!("read {ORDER}"))?;
    let mut order: Order = serde_json::from_str(&text).with_context(|| format!("parse {ORDER}"))?;
    let mut tracer = Tracer::start(&order)?;
    let anew = order.anew.take();
    if let Some(anew) = &anew {
        (order, since_us) = given_anew(anew, &mut tracer)?;
    }
    let line = Packed::read(&order.packed);
    let has_holds = !line.is_idle();
    tracer.begin_at(since_us, READ_US, line)?;
    let (status, report) = tracer.run(&command, &order, anew.as_ref())?;
    write(&report, anew.as_ref())?;
    let is_idle = order.must_hold && has_holds && report.held() == 0;
    ensure!(!is_idle, "nothing was held: no task came to a point of '{}'", order.line.trim_end());
    // The end of a tracer lets all that it traces go on: ptrace(2).
    Ok(status)
}

/// Has the machine paused, and reads the order that is there when it goes on; since when.
fn given_anew(anew: &Anew, tracer: &mut Tracer) -> Result<(Order, u64)> {
    let Anew { pause_us, device, order_at, .. } = anew;
    pause::prepare()?;
    pause::after(Duration::from_micros(*pause_us))?;
    tracer.wait_for(Duration::from_micros(pause_us + AFTER_PAUSE_US))?;
    let since_us = now_us();
    let what = || format!("read an order from {device}");
    let file = File::open(device).with_context(what)?;
    // The machine that was saved had another device here.
    fadvise(&file, 0, None, Advice::DontNeed).with_context(what)?;
    let mut bytes = vec![0; ORDER_BYTES];
    file.read_exact_at(&mut bytes, *order_at).with_context(what)?;
    Ok((serde_json::from_slice(&bytes).with_context(what)?, since_us))
}

/// Writes a report: to a device past the page cache, as the machine is gone before that is written back.
fn write(report: &Report, to: Option<&Anew>) -> Result<()> {
    let text = serde_json::to_string(report).context("the report as JSON")?;
    let Some(Anew { device, report_at, .. }) = to else {
        return std::fs::write(REPORT, text).with_context(|| format!("write {REPORT}"));
    };
    let what = || format!("write {device}");
    // One byte more, which ends it.
    let pages = text.len() / PAGE + 1;
    ensure!(pages * PAGE <= REPORT_BYTES, "a report of {} bytes, more than {REPORT_BYTES}", text.len());
    let mut bytes = vec![0; (pages + 1) * PAGE];
    // What such a write is of has to begin at a page.
    let begin = bytes.as_ptr().align_offset(PAGE);
    let room = bytes.get_mut(begin..begin + pages * PAGE).context("no room for a report")?;
    room.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    let file = File::options().write(true).custom_flags(O_DIRECT).open(device).with_context(what)?;
    file.write_all_at(room, *report_at).with_context(what)
}
