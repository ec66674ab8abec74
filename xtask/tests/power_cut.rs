//! Cuts the power of machines at random moments while a server is started and reset, and looks at whether a start or a
//! reset mends what is found after it.
//!
//! A cut is QEMU's death by SIGKILL. What the guest has in memory is gone; what it has stored on the one disk that
//! outlives it (`vm_tests::run::guest::with_disk`) is there, up to some byte in some block: persistent memory has no cache of its
//! own to lose. The next machine has the same disk, replays the file system's journal, mends, and is cut in turn.
//!
//! What is run in the guest, and what counts as mended, is in `power-cut/scenario.toml`.

#[path = "../src/left4me.rs"]
mod left4me;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;
use vm_tests::host::accel::{self, Clock};
use vm_tests::host::events;
use vm_tests::image::Suite;
use vm_tests::machine::{Cancel, Machine};
use vm_tests::run::guest::{self, Guest};
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::scenario::{Scenario, Wanted};

/// How many cuts of each image, unless this variable of the environment says otherwise.
const CUTS_VAR: &str = "VM_TESTS_CUTS";
const CUTS: u32 = 3;
/// Repeats the moments of an earlier run: as far as they are moments of the host, not of the guest.
const SEED_VAR: &str = "VM_TESTS_SEED";

/// A set-up, or a mending: some seconds of a guest under emulation, on a busy host.
const DEADLINE: Duration = Duration::from_secs(300);
/// Cuts come within this from the start of the work, or within two rounds of it, whichever is longer.
const LEAST: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let arguments = Arguments::from_args();
    events::listen_to_lines(|line| eprintln!("{line}"));
    // One for each image.
    let cases = Suite::ALL.map(|suite| {
        Trial::test(format!("power-cut-{suite}"), move || {
            let scratch = tempfile::Builder::new()
                .prefix("power-cut-")
                .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
                .map_err(|error| format!("make a directory: {error}"))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            match runtime.block_on(power_cuts(suite, scratch.path())) {
                Ok(()) => Ok(()),
                Err(error) => Err(Failed::from(format!("{error:#}\nkept: {}", scratch.keep().display()))),
            }
        })
    });
    libtest_mimic::run(&arguments, cases.into()).exit_code()
}

async fn power_cuts(suite: Suite, scratch: &Path) -> Result<()> {
    let image = suite.as_str();
    let cuts: u32 = number(CUTS_VAR)?.unwrap_or(CUTS);
    let seed: u64 =
        number(SEED_VAR)?.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
    eprintln!("{image}: {cuts} cuts; {SEED_VAR}={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power-cut");
    let scenario = Scenario::load(&here)?;
    let disk = Disk { guest: prepare(suite, &scenario, scratch).await?, scenario, scratch };

    let mut machine = disk.restore(0).await?;
    let begun = Instant::now();
    let found = disk.mend(&mut machine, "start").await?;
    ensure!(found == "no runtime directory", "a new disk has {found:?}");
    // Mending is a start and a reset, and more: two of the work's rounds at least.
    let within = begun.elapsed().max(LEAST);
    let mut all: BTreeMap<String, u32> = BTreeMap::new();
    for number in 1..=cuts {
        let moment = within.mul_f64(random.f64());
        let work = if random.bool() { "server" } else { "helper" };
        let cut = disk.cut(machine, work, moment).await;
        cut.with_context(|| format!("cut {number}, of a {work}, after {moment:?}"))?;
        machine = disk.restore(number).await?;
        let first = if random.bool() { "start" } else { "reset" };
        let mended = disk.mend(&mut machine, first).await;
        let context =
            || format!("cut {number}, of a {work}, after {moment:?}, to be mended by a {first} first");
        let found = mended.with_context(context)?;
        let secs = moment.as_secs_f64();
        eprintln!("{image}: cut {number}, of a {work}, after {secs:.2} s: {found}; mended by a {first}");
        *all.entry(found).or_default() += 1;
    }
    machine.stop().await?;
    for (found, times) in all {
        eprintln!("{image}: {times:3} times: {found}");
    }
    Ok(())
}

fn number<T: std::str::FromStr>(variable: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(variable) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{variable}={text}")),
        Err(_unset) => Ok(None),
    }
}

/// A machine of an image, from the scenario's programs.
async fn prepare(suite: Suite, scenario: &Scenario, scratch: &Path) -> Result<Guest> {
    let workspace = left4me::workspace()?;
    let machines = Machines { suites: vec![suite], clock: Some(Clock::Real), ..Machines::default() };
    let wanted = [Wanted::of_size(scenario.manifest.memory_mib)];
    // Nobody interrupts: a test that is killed takes its machines with it.
    prepare_one(&workspace, &machines, &wanted, &scratch.join("results"), Cancel::new()).await
}

/// What all machines have in common.
struct Disk<'a> {
    guest: Guest,
    scenario: Scenario,
    scratch: &'a Path,
}

impl Disk<'_> {
    /// A machine with the disk of the one before, mounted.
    async fn restore(&self, number: u32) -> Result<Machine> {
        let session = guest::preparation(&self.guest, &self.scenario)?;
        let directory = self.scratch.join(format!("machine-{number}"));
        let disk = self.scratch.join("disk");
        guest::with_disk(&self.guest, session, &disk, &directory, Cancel::new()).await
    }

    /// Says what was found on the disk, if it could be mended.
    async fn mend(&self, machine: &mut Machine, first: &str) -> Result<String> {
        let output = machine.run(&["sh", "/run/vm-test/mend", first], DEADLINE).await?;
        let (found, said) = (output.text(), String::from_utf8_lossy(&output.stderr));
        if !output.exit.success() {
            machine.save_evidence(&self.scenario.show_units(), self.scenario.mount_or_root()).await;
            bail!("found {}; not mended: {}", found.trim(), said.trim());
        }
        Ok(found.trim().to_owned())
    }

    /// Lets a machine work for a while, then ends it as a power cut does.
    async fn cut(&self, mut machine: Machine, work: &str, moment: Duration) -> Result<()> {
        match timeout(moment, machine.run(&["sh", "/run/vm-test/work", work], DEADLINE)).await {
            Err(_elapsed) => {}
            Ok(ended) => {
                let why = match ended {
                    Ok(output) => format!("{}: {}", output.exit, String::from_utf8_lossy(&output.stderr)),
                    Err(error) => format!("{error}"),
                };
                let error = anyhow::anyhow!("the work has ended by itself: {why}");
                return self.evidence(machine, error).await;
            }
        }
        let pid = Pid::from_raw(i32::try_from(machine.pid())?).context("a process id is not 0")?;
        kill_process(pid, Signal::KILL).context("kill QEMU")?;
        machine.stop().await
    }

    async fn evidence(&self, mut machine: Machine, error: anyhow::Error) -> Result<()> {
        machine.save_evidence(&self.scenario.show_units(), self.scenario.mount_or_root()).await;
        machine.finish(Err(error)).await
    }
}
