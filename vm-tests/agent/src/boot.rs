//! Pauses the machine when its system is up, at an instant that the host has no part in, for a machine that is saved.
//!
//! A request of the host's would arrive whenever the host had time to send it, and QMP's `stop` in the middle of an
//! instruction or of the kernel. A watchdog runs out at an instant of guest time. If the guest is idle then, nothing
//! executes between the timer and the pause: QEMU's main loop runs the timers of an idle guest, and stops the machine
//! before the processor gets a turn (accel/tcg/tcg-accel-ops-rr.c, softmmu/runstate.c). A pvpanic event stops at an
//! instruction, but how far the clock then jumps depends on QEMU's threads.

use std::arch::asm;
use std::fs;
use std::fs::File;
use std::io;
use std::process::Output;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::libc;
use vm_agent::wire::{self, BOOT_ID, Body, Hello, PAUSE};

use crate::answer::{Answer, lock};
use crate::run;

/// The port by which the watchdog `ib700` is wound (hw/watchdog/wdt_ib700.c).
const WIND: u16 = 0x443;
/// Its number for 2 s: what a system that is up still has to do is done by then.
const TWO_SECONDS: u8 = 0x0e;

/// Begins to wait for the system, if the kernel's command line has the word [`PAUSE`]. Sends the host one unasked
/// [`Hello`], for the check of the protocol number, and, if the system does not come up, why not as the answer [`BOOT_ID`].
///
/// # Errors
/// If the command line can't be read, or the host is gone.
pub(crate) fn pause_when_up(answers: &std::sync::Arc<Mutex<File>>, deaf: Option<String>) -> Result<()> {
    let line = fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    if !line.split_whitespace().any(|word| word == PAUSE) {
        return Ok(());
    }
    let hello = Hello { protocol: wire::PROTOCOL, nonce: wire::UNASKED };
    wire::write_frame(&mut *lock(answers), &hello.to_bytes()).context("greet the host")?;
    let answer = Answer::new(BOOT_ID, answers);
    let pause = move || {
        let up = match deaf {
            Some(deaf) => Err(anyhow::Error::msg(deaf)),
            None => await_system().and_then(|()| wind_watchdog()),
        };
        if let Err(error) = up {
            // A host that is gone needs no answer.
            drop(answer.send(Body::Failed(format!("{error:#}"))));
        }
    };
    thread::Builder::new().name("boot".into()).spawn(pause).context("start a thread for the boot")?;
    Ok(())
}

/// Waits for the end of the boot; an error names the units that failed.
fn await_system() -> Result<()> {
    let state = text(&systemctl(&["is-system-running", "--wait"])?);
    if state != "running" {
        let failed = text(&systemctl(&["--failed", "--no-legend", "--plain"])?);
        bail!("the guest is {state} after boot, not running; failed units: {failed}");
    }
    Ok(())
}

fn systemctl(arguments: &[&str]) -> Result<Output> {
    let argv: Vec<String> = ["systemctl"].iter().chain(arguments).map(|&word| word.to_owned()).collect();
    run::prepare(&argv)?.output().with_context(|| format!("run {}", argv.join(" ")))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// By the instruction itself: these kernels have no `/dev/port`.
fn wind_watchdog() -> Result<()> {
    #[expect(unsafe_code, reason = "no crate has ioperm(2)")]
    // SAFETY: the call takes numbers only and lets this thread use one port.
    let allowed =
        unsafe { libc::syscall(libc::SYS_ioperm, libc::c_ulong::from(WIND), 1 as libc::c_ulong, 1) };
    if allowed != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("ioperm {WIND:#x}"));
    }
    #[expect(unsafe_code, reason = "there is no other way to a port")]
    // SAFETY: the port is the watchdog's, and the instruction touches neither memory nor the stack.
    unsafe {
        asm!("out dx, al", in("dx") WIND, in("al") TWO_SECONDS, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
