//! The boot after a shutdown: what the machine has written to its root is kept on the device that brought its session in,
//! and another machine boots with that in place of an empty root.
//!
//! The second machine is a new QEMU, as one that resets keeps no RAM that could be relied on, and a root is a tmpfs. It boots for
//! real, with our initramfs: nothing of it is restored. The clock is another one then, so no moment of that boot is recorded,
//! and nothing of it is remembered.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vm_agent::recording::{Event, Exit, Recording, Step, StepEnd, What};
use vm_agent::wire::KEPT;

use super::guest::{Guest, deploy_image};
use crate::machine::config::{Config, Ram};
use crate::machine::guest::GuestError;
use crate::machine::{Cancel, Machine, MachineError};
use crate::scenario::Scenario;

/// For keeping, the boot, and each command: under emulation, on a busy host.
const DEADLINE: Duration = Duration::from_secs(300);

/// Of a program that can't be run, as shells have it (POSIX, 2.8.2).
const NOT_FOUND: i32 = 127;

/// Where the second machine's logs and evidence are, in the run's directory.
const DIRECTORY: &str = "next-boot";

/// Keeps what lies on the root, and the file system of the state directory, which a unit mounts again then.
/// At `final.target` nothing writes but the journal. The file system is made in RAM and copied to the device, as one that is
/// mounted there flushes it, for which a guest in virtual time waits for ever (seen with Linux 6.12 in mkfs.ext4, after 1300 s
/// of its time).
pub(super) const KEEP: &str = r#"set -e
journalctl --sync
kept=/run/vm-test/kept
mkdir -p $kept/upper
if [ -n "$1" ]; then
    unit=$(systemd-escape --path --suffix=mount "$1")
    system=/etc/systemd/system
    mkdir -p $system/local-fs.target.wants
    printf '[Mount]\nWhat=/run/initramfs/vm-test/state\nWhere=%s\nType=none\nOptions=bind\n' "$1" >"$system/$unit"
    ln -s "../$unit" $system/local-fs.target.wants/
    mkdir -p $kept/state
    mount /dev/ram0 $kept/state
fi
mount --bind /run/initramfs/vm-test/upper $kept/upper
mkfs.ext4 -q -d $kept $kept.img 256M
umount $kept/upper
[ -z "$1" ] || umount $kept/state
dd if=$kept.img of=/dev/pmem1 bs=1M oflag=direct status=none
rm $kept.img"#;

/// Has a machine that waits at `final.target` keep what the next boot finds.
///
/// # Errors
/// As [`Machine::run`]; there is no space.
pub(super) async fn keep(machine: &mut Machine, scenario: &Scenario) -> Result<()> {
    let state = scenario.manifest.state_directory.as_deref().unwrap_or_default();
    let kept = machine.run(&["sh", "-c", KEEP, "sh", state], DEADLINE).await?;
    let said = String::from_utf8_lossy(&kept.stderr);
    ensure!(kept.exit.success(), "keep what the next boot finds: {}: {}", kept.exit, said.trim());
    Ok(())
}

/// Boots with what the machine in `directory` has kept, runs the checks of the boot, and adds them to the recording.
///
/// # Errors
/// The machine does not boot, or breaks down; its evidence is in `next-boot`.
pub(super) async fn boot(
    guest: &Guest,
    scenario: &Scenario,
    directory: &Path,
    recording: &mut Recording,
    cancel: Cancel,
) -> Result<()> {
    let kept = deploy_image(directory);
    let kernel_args = vec![KEPT.to_owned()];
    let config = Config { keeps: true, kernel_args, ..guest.base.config(Ram::Fresh, kept.clone()) };
    let directory = directory.join(DIRECTORY);
    let mut machine = Machine::start(&guest.base.qemu, config, &directory, cancel).await?;
    let checked = check(&mut machine, &recording.plan.boot_checks).await;
    machine.save_evidence(&scenario.show_units(), scenario.mount_or_root()).await;
    let what = || format!("the boot after the shutdown, see {}", directory.display());
    let ends = machine.finish(checked).await.with_context(what)?;
    // It is no sparse file any more.
    std::fs::remove_file(&kept).with_context(|| format!("remove {}", kept.display()))?;
    let at = recording.events.last().map_or(0, |event| event.at);
    let cycle = recording.plan.cycles;
    recording.events.extend(ends.into_iter().map(|end| Event { at, cycle, what: What::StepEnds(end) }));
    Ok(())
}

async fn check(machine: &mut Machine, commands: &[Vec<String>]) -> Result<Vec<StepEnd>> {
    machine.hello(DEADLINE).await?;
    // A boot with units that fail is a boot: the checks say what it must be.
    machine.run(&["systemctl", "is-system-running", "--wait"], DEADLINE).await?;
    let mut ends = Vec::new();
    for (index, argv) in (0..).zip(commands) {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let (exit, stdout, stderr) = match machine.run(&words, DEADLINE).await {
            Ok(output) => (output.exit, output.stdout, output.stderr),
            Err(MachineError::Guest(GuestError::Failed(why))) => {
                (Exit::Code(NOT_FOUND), Vec::new(), why.into_bytes())
            }
            Err(error) => return Err(error.into()),
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(stdout), text(stderr));
        ends.push(StepEnd { step: Step::BootCheck, index, exit: Some(exit), duration_ns: 0, stdout, stderr });
    }
    Ok(ends)
}
