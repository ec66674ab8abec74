//! `cargo xtask doctor`: what this host has of what the harness needs, and what to type for the rest.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use vm_tests::cache;
use vm_tests::host::accel::{self, Wish};
use vm_tests::host::memory;
use vm_tests::host::tools::{self, Distro, Need};

use crate::left4me;

/// Room for the guest binaries (300 MB), an image while it is built (600 MB), a saved machine (130 MB), and runs.
const DISK_MB: u64 = 2000;

/// What one guest (512 MiB) and the QEMU around it take.
const MEMORY_MB: u64 = 800;

/// Shows which of the harness's needs this machine meets, and the command that installs the rest.
///
/// Without --install it changes nothing. Fails if `cargo xtask vm-test` needs something that is missing.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Install what is missing, if that needs no question (as root, or with a sudo that asks for no password)
    #[arg(long)]
    install: bool,

    /// QEMU to look at, in place of the one on PATH
    #[arg(long, value_name = "PROGRAM", env = tools::QEMU_VAR)]
    qemu: Option<PathBuf>,
}

/// Prints the table; `false` means that something required is missing.
pub(crate) async fn run(args: &DoctorArgs) -> anyhow::Result<bool> {
    let cache = left4me::workspace()?.cache()?;
    let needs = [Need::Machine, Need::Image, Need::GuestBinaries];
    if args.install {
        tools::ensure(&needs, args.qemu.as_deref(), &cache).await?;
    }
    let mut well = true;
    let found = tools::find_all(&needs, args.qemu.as_deref());
    for one in &found {
        let what = match &one.path {
            None => {
                well = false;
                "MISSING".to_owned()
            }
            Some(path) => match tools::version(one).await {
                Ok(Some(version)) => version,
                Ok(None) => path.display().to_string(),
                Err(error) => {
                    well = false;
                    format!("BROKEN: {error:#}")
                }
            },
        };
        let name = one.tool.name().rsplit('/').next().unwrap_or_default();
        row(name, &what, one.tool.purpose);
    }

    let choice = accel::decide(Wish::Auto, None).await?;
    row("accelerator", choice.to_string().trim_start_matches("accelerator: "), "");
    choice.advice().iter().for_each(|advice| row("", advice, ""));

    let (free, path) = disk_free_mb(&cache)?;
    well &= report("disk", free, DISK_MB, &format!("free at {path}"));
    well &= report("memory", memory::available_bytes()? / 1_000_000, MEMORY_MB, "available");

    if let Some(missing) = tools::missing(&found, Distro::of_host()) {
        println!("\nto install what is missing, type:\n  {}", missing.command);
    }
    Ok(well)
}

fn row(name: &str, what: &str, purpose: &str) {
    let gap = if purpose.is_empty() { "" } else { " - " };
    println!("{name:26} {what}{gap}{purpose}");
}

/// A row for an amount; `false` if there is too little.
fn report(name: &str, have_mb: u64, need_mb: u64, where_: &str) -> bool {
    let enough = have_mb >= need_mb;
    let lack = if enough { String::new() } else { format!(": TOO LITTLE, {need_mb} MB are needed") };
    row(name, &format!("{have_mb} MB {where_}{lack}"), "");
    enough
}

/// Free space where the caches go, or where they will once their directory exists.
fn disk_free_mb(root: &Path) -> anyhow::Result<(u64, String)> {
    let there =
        root.ancestors().find(|dir| dir.exists()).context("no directory of the cache's path exists")?;
    let free = cache::free_bytes(there)?;
    Ok((free / 1_000_000, there.display().to_string()))
}
