//! A guest to measure: restored, asked, and ended in any case.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::machine::{Cancel, Machine};
use crate::run::guest::{self, Guest};

/// The longest a boot, or a guest's command, may take. A measurement is no deadline: this ends what hangs.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);

pub(super) async fn answer(machine: &mut Machine) -> Result<()> {
    machine.resume().await?;
    let guest = machine.guest();
    Ok(machine.race("the answer to a ping", DEADLINE, guest.ping()).await?)
}

/// Restores a machine that runs and has answered.
pub(super) async fn restored(guest: &Guest, directory: &Path, cancel: Cancel) -> Result<Machine> {
    let mut machine = guest::restore(guest, None, directory, cancel).await?;
    match answer(&mut machine).await {
        Ok(()) => Ok(machine),
        Err(error) => machine.finish(Err(error)).await,
    }
}

/// Runs a command that must succeed and returns what it wrote to stdout.
pub(super) async fn text(machine: &mut Machine, argv: &[&str]) -> Result<String> {
    let output = machine.run(argv, DEADLINE).await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.exit.success(), "{}: {}: {}", argv.join(" "), output.exit, complaint.trim());
    Ok(output.text())
}
