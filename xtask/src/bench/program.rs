//! A program that is measured: to its end, an interrupt or its deadline, with its output in a log.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::signals::Interrupted;
use vm_tests::machine::Cancel;

/// The longest that it may take.
const DEADLINE: Duration = Duration::from_secs(3600);
/// How long it may take to end its machines after an interrupt.
const STOP_GRACE: Duration = Duration::from_secs(40);

/// How a program ended by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// From its start to its end, of the host's time.
    pub(super) wall: Duration,
    pub(super) code: u8,
}

/// Runs a program to its end; what it says is added to the log.
///
/// # Errors
/// An interrupt, a signal that has killed it, the deadline.
pub(super) async fn run(program: Program, log: &Path, cancel: &Cancel) -> Result<Ended> {
    let what = || format!("open {}", log.display());
    let file = std::fs::File::options().append(true).create(true).open(log).with_context(what)?;
    let both = file.try_clone().with_context(what)?;
    let begun = Instant::now();
    let mut child = program.stdout(Sink::File(file)).stderr(Sink::File(both)).spawn()?;
    let ended = tokio::select! {
        ended = tokio::time::timeout(DEADLINE, child.wait()) => Some(ended),
        () = cancel.cancelled() => None,
    };
    let wall = begun.elapsed();
    match ended {
        Some(Ok(status)) => {
            let status = status?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            let code = code.with_context(|| format!("{}: {}", child.argv(), process::describe(status)))?;
            Ok(Ended { wall, code })
        }
        Some(Err(elapsed)) => {
            child.kill_group(STOP_GRACE).await?;
            Err(elapsed).with_context(|| child.argv().to_string())
        }
        None => {
            child.kill_group(STOP_GRACE).await?;
            Err(Interrupted::default().into())
        }
    }
}
