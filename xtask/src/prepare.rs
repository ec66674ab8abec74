//! Makes sure of everything that a machine needs: tools, image, guest programs, initramfs, accelerator.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use tokio::sync::watch;
use vm_tests::accel::{self, Clock, Wish};
use vm_tests::image::{self, Request, Suite};
use vm_tests::machine::Cancel;
use vm_tests::process::Interrupts;
use vm_tests::run::{Base, Prepared};
use vm_tests::scenario::Scenario;
use vm_tests::tools::{self, Need};
use vm_tests::{build, cache, initramfs, saved};

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
pub(crate) async fn prepare(machine: &MachineArgs, wanted: Wanted<'_>, cancel: Cancel) -> Result<Prepared> {
    tools::ensure(&[Need::Machine, Need::GuestBinaries]).await?;
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
    let base = Base {
        qemu: tools::which("qemu-system-x86_64").context("find qemu-system-x86_64 on PATH")?,
        root: image.root.clone(),
        root_key: image.content_key().as_str().to_owned(),
        root_bytes: std::fs::metadata(&image.root).context("look at the image")?.len(),
        kernel: image.kernel.clone(),
        initramfs,
        accel: choice.accel,
        clock: choice.clock,
        memory_mib: MEMORY_MIB,
    };
    let saved = saved::ensure(&base, cancel).await?;
    Ok(Prepared {
        base,
        saved,
        image: format!("Debian {}, kernel {}", image.manifest.suite.as_str(), image.manifest.kernel_version),
        programs,
        choice: choice.to_string(),
        cycles: wanted.cycles,
        deadline_secs: wanted.deadline_secs,
        results: wanted.results.to_owned(),
        scenarios: wanted.scenarios.iter().map(|scenario| scenario.directory.clone()).collect(),
    })
}

/// Turns true when the user interrupts.
pub(crate) fn cancel_on_interrupt() -> Result<Cancel> {
    let (cancel, cancelled) = watch::channel(false);
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    tokio::spawn(async move {
        interrupts.next().await;
        cancel.send_replace(true);
        // The channel is open as long as there may be a listener: for ever.
        std::future::pending::<()>().await;
    });
    Ok(cancelled)
}

/// Where scenarios are that are named without a path.
pub(crate) fn scenarios_root() -> Result<PathBuf> {
    Ok(cache::workspace()?.join("vm-tests/scenarios"))
}
