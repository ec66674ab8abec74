//! Makes sure of everything that a machine needs: tools, image, guest programs, initramfs, accelerator.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use vm_tests::accel::{self, Clock, Wish};
use vm_tests::image::{self, Request, Suite};
use vm_tests::run::Prepared;
use vm_tests::scenario::Scenario;
use vm_tests::tools::{self, Need};
use vm_tests::{build, cache, initramfs};

/// Guest RAM. A guest with systemd, journald, udev, D-Bus and a scenario uses 120 MiB of it.
const MEMORY_MIB: u32 = 512;

/// What a machine is made of.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// The guest's Debian suite: bookworm, trixie or sid
    #[arg(long, value_name = "SUITE", default_value_t = Suite::default())]
    pub(crate) image: Suite,

    /// What executes the guest's instructions: auto takes KVM if it is proved to work, kvm fails if it does not
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    pub(crate) accel: Wish,

    /// The guest's time: real is the host's; virtual counts instructions and skips idle time, so that a duration is the
    /// same on every host. Without KVM the default is virtual
    #[arg(long, value_name = "real|virtual")]
    pub(crate) clock: Option<Clock>,

    /// Take packages from here instead of Debian's own servers
    #[arg(long, value_name = "URL", env = image::MIRROR_VAR)]
    pub(crate) mirror: Option<String>,
}

/// What is not the machine's.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) scenarios: &'a [Scenario],
    pub(crate) cycles: Option<u32>,
    pub(crate) deadline_secs: u64,
    pub(crate) results: &'a Path,
}

/// Installs, builds and chooses; says in one line on what the machines will run.
pub(crate) async fn prepare(machine: &MachineArgs, wanted: Wanted<'_>) -> Result<Prepared> {
    tools::ensure(&[Need::Machine, Need::Image, Need::GuestBinaries]).await?;
    let choice = accel::decide(machine.accel, machine.clock).await?;
    eprintln!("{choice}");
    let mirror = machine.mirror.clone().filter(|mirror| !mirror.is_empty());
    let image = image::ensure(&Request { suite: machine.image, mirror, rebuild: false }).await?;
    let programs = build::guest_binaries().await?;
    std::fs::create_dir_all(wanted.results)
        .with_context(|| format!("create {}", wanted.results.display()))?;

    let initramfs = wanted.results.join("initramfs.img");
    let mut bytes = Vec::new();
    initramfs::write(&mut bytes, &image.modules, programs.path("vm-init")?, programs.path("vm-agent")?)?;
    std::fs::File::create(&initramfs)
        .and_then(|mut file| file.write_all(&bytes))
        .with_context(|| format!("write {}", initramfs.display()))?;

    let programs: BTreeMap<String, PathBuf> =
        programs.iter().map(|(name, path)| (name.to_owned(), path.to_owned())).collect();
    Ok(Prepared {
        qemu: tools::which("qemu-system-x86_64").context("find qemu-system-x86_64 on PATH")?,
        root: image.root.clone(),
        kernel: image.kernel.clone(),
        initramfs,
        image: format!("Debian {}, kernel {}", image.manifest.suite.as_str(), image.manifest.kernel_version),
        programs,
        accel: choice.accel,
        clock: choice.clock,
        choice: choice.to_string(),
        memory_mib: MEMORY_MIB,
        cycles: wanted.cycles,
        deadline_secs: wanted.deadline_secs,
        results: wanted.results.to_owned(),
        scenarios: wanted.scenarios.iter().map(|scenario| scenario.directory.clone()).collect(),
    })
}

/// Where scenarios are that are named without a path.
pub(crate) fn scenarios_root() -> Result<PathBuf> {
    Ok(cache::workspace()?.join("vm-tests/scenarios"))
}
