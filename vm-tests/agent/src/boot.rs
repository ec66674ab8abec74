//! Pauses the machine when its system is up, at an instant that the host has no part in, for a machine that is saved.

use std::fs;
use std::fs::File;
use std::process::Output;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vm_agent::wire::{self, BOOT_ID, Body, Hello, PAUSE};

use crate::answer::{Answer, lock};
use crate::{pause, run};

/// What a system that is up still has to do is done by then.
const SETTLED: Duration = Duration::from_secs(2);

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
            None => await_system().and_then(|()| pause::prepare()).and_then(|()| pause::after(SETTLED)),
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
