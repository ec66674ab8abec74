//! `vm-perturb COMMAND…`: runs a command in the guest and holds tasks at the points of its order ([`vm_perturb::ORDER`]).
//!
//! Its status is the command's. It writes what tasks have come to into [`vm_perturb::REPORT`], and nothing if it could not do
//! what it was told; then it says why on stderr, and its status is [`FAILED`].

mod calls;
mod raw;
mod tracer;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use vm_perturb::{Line, ORDER, Order, REPORT, Report};

use tracer::Tracer;

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
    let text = std::fs::read_to_string(ORDER).with_context(|| format!("read {ORDER}"))?;
    let order: Order = serde_json::from_str(&text).with_context(|| format!("parse {ORDER}"))?;
    let line: Line = order.line.parse()?;
    let has_holds = !line.holds.is_empty();
    let (status, report) = Tracer::start(&order, line)?.run(&command, &order)?;
    write(&report)?;
    let is_idle = order.must_hold && has_holds && report.held() == 0;
    ensure!(!is_idle, "nothing was held: no task came to a point of '{}'", order.line);
    // The end of a tracer lets all that it traces go on: ptrace(2).
    Ok(status)
}

fn write(report: &Report) -> Result<()> {
    let text = serde_json::to_string(report).context("the report as JSON")?;
    std::fs::write(REPORT, text).with_context(|| format!("write {REPORT}"))
}
