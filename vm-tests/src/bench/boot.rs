//! What a boot and a restore take.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use super::guest::{DEADLINE, answer, text};
use crate::machine::base::Base;
use crate::machine::config::Ram;
use crate::machine::saved::Saved;
use crate::machine::{Cancel, Machine};
use crate::run::guest::{self, Guest};
use crate::scenario::bundle;

/// A cold boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// From QEMU's start to its monitor's greeting. The guest runs already.
    pub greeting: Duration,
    /// From QEMU's start to the agent's hello.
    pub agent: Duration,
    /// From QEMU's start to the end of the boot: systemd is `running` and has no job left.
    pub running: Duration,
    /// Its parts by the guest's own clock.
    pub guest: Phases,
}

/// The parts of a boot by the guest's CLOCK_MONOTONIC, one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phases {
    /// From the kernel's start to its `Run /init`, in seconds.
    pub kernel_secs: f64,
    /// From there to systemd's start, in seconds: modules, root, agent.
    pub initramfs_secs: f64,
    /// From there to the agent's unit being active, in seconds.
    pub agent_secs: f64,
    /// From there to systemd's end of the boot, in seconds.
    pub rest_secs: f64,
}

/// Boots a machine whose RAM is kept nowhere, and asks it where its time went.
///
/// # Errors
/// As [`Machine::race`]; a guest whose clocks can't be read.
pub async fn boot(base: &Base, directory: &Path, cancel: Cancel) -> Result<Boot> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let deploy = directory.join("deploy.img");
    bundle::write_deploy_image(&deploy, None)?;
    let begun = Instant::now();
    let mut machine = Machine::start(&base.qemu, base.config(Ram::Fresh, deploy), directory, cancel).await?;
    let greeting = begun.elapsed();
    let measured = async {
        machine.hello(DEADLINE).await?;
        let agent = begun.elapsed();
        let state = text(&mut machine, &["systemctl", "is-system-running", "--wait"]).await?;
        let running = begun.elapsed();
        ensure!(state == "running", "the guest is {state} after boot, not running");
        Ok(Boot { greeting, agent, running, guest: phases(&mut machine).await? })
    }
    .await;
    machine.finish(measured).await
}

async fn phases(machine: &mut Machine) -> Result<Phases> {
    let manager = text(
        machine,
        &["systemctl", "show", "--property=UserspaceTimestampMonotonic,FinishTimestampMonotonic"],
    )
    .await?;
    let agent =
        text(machine, &["systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "vm-agent.service"])
            .await?;
    let log = text(machine, &["dmesg"]).await?;
    let init = init_secs(&log).context("the kernel's log has no `Run /init`")?;
    let userspace = property_secs(&manager, "UserspaceTimestampMonotonic")?;
    let active = property_secs(&agent, "ActiveEnterTimestampMonotonic")?;
    let finish = property_secs(&manager, "FinishTimestampMonotonic")?;
    Ok(Phases {
        kernel_secs: init,
        initramfs_secs: userspace - init,
        agent_secs: active - userspace,
        rest_secs: finish - active,
    })
}

/// The time of `[    0.771544] Run /init as init process`, in seconds.
pub(super) fn init_secs(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains("] Run /init"))?;
    line.trim_start_matches('[').split(']').next()?.trim().parse().ok()
}

/// A `…TimestampMonotonic` as `systemctl show` prints it: microseconds.
pub(super) fn property_secs(shown: &str, name: &str) -> Result<f64> {
    let value = shown
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("no {name} in {shown:?}"))?;
    let micros: u64 = value.parse().with_context(|| format!("{name}={value}"))?;
    ensure!(micros > 0, "{name} is not set");
    Ok(Duration::from_micros(micros).as_secs_f64())
}

/// Restores machines side by side; returns the time from the start of the first QEMU to the first answer (to a ping)
/// of each, the earliest first. A machine that has answered is paused, so that only restoring is measured.
///
/// # Errors
/// As [`guest::restore`] and [`Machine::race`].
pub async fn restore(
    guest: &Arc<Guest>,
    machines: usize,
    directory: &Path,
    cancel: &Cancel,
) -> Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..machines {
        let (guest, cancel) = (Arc::clone(guest), cancel.clone());
        let directory = directory.join(number.to_string());
        tasks.spawn(async move {
            let mut machine = guest::restore(&guest, None, &directory, cancel).await?;
            let answered = async {
                answer(&mut machine).await?;
                let elapsed = begun.elapsed();
                machine.monitor("stop", json!({})).await?;
                Ok(elapsed)
            }
            .await;
            anyhow::Ok((machine, answered))
        });
    }
    // All are waited for before the first is ended, so that no end is in another one's time.
    let joined = tasks.join_all().await;
    let mut times = Vec::new();
    let mut wrong = None;
    for started in joined {
        let ended = match started {
            Ok((machine, answered)) => machine.finish(answered).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(elapsed) => times.push(elapsed),
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    times.sort_unstable();
    wrong.map_or(Ok(times), Err)
}

/// What a saved machine takes of the disk, in bytes: blocks, not lengths, since its files have holes.
///
/// # Errors
/// When a file is not there.
pub fn disk_bytes(saved: &Saved) -> Result<u64> {
    let blocks = |path: &Path| {
        let metadata = std::fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
        // stat(2): a block of st_blocks is 512 bytes on every file system.
        anyhow::Ok(metadata.blocks() * 512)
    };
    Ok(blocks(&saved.ram)? + blocks(&saved.state)?)
}
