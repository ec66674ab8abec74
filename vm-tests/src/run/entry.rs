//! What a program that runs the harness calls first: it owns the process, its runtime and its signals.

use anyhow::{Context as _, Result};

use crate::host::accel;
use crate::host::events::{self, Event};
use crate::host::signals::Interrupts;
use crate::machine::Cancel;
use crate::report::Verdict;

/// Does some work of the harness on this thread, the program's first. Call it first thing in `main`: the program may have
/// been started to prove KVM, and then this does not return.
///
/// A first interrupt cancels what the work is given: everything that waits for it cleans up. A second one
/// ends the process at once, with status 130.
///
/// # Errors
/// The work's; a runtime or signal handlers that can't be had.
pub fn block_on<T>(work: impl AsyncFnOnce(Cancel) -> Result<T>) -> Result<T> {
    accel::child_main_if_asked();
    // Programs are spawned by this thread, and it lives as long as they do: a parent-death signal follows it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let outcome = runtime.block_on(async {
        let cancel = Cancel::new();
        let interrupts = Interrupts::listen().context("listen for signals")?;
        tokio::spawn(cancel_on_interrupt(interrupts, cancel.clone()));
        work(cancel).await
    });
    // A thread may still wait: for the terminal's next key, for a machine that did not end in time.
    runtime.shutdown_background();
    outcome
}

async fn cancel_on_interrupt(mut interrupts: Interrupts, cancel: Cancel) {
    interrupts.next().await;
    events::tell(Event::Note("\ninterrupted: cleaning up; once more ends it at once".to_owned()));
    cancel.cancel();
    interrupts.next().await;
    let left = "ended without cleaning up: a machine's directory may be left in the results";
    events::tell(Event::Note(left.to_owned()));
    #[expect(
        clippy::exit,
        reason = "the user asked twice; children die with us by their parent-death signal"
    )]
    std::process::exit(Verdict::Interrupted.exit_code().into());
}
