//! The guest of `--image nixos`: built of the flake, where there is a Nix that can. Where there is none it is said what to type,
//! and nothing is run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use vm_tests::host::process::{self, Program};
use vm_tests::host::tools;

use crate::left4me;

/// Most of it is fetched; our own programs are compiled, with a toolchain that is fetched.
const LIMIT: Duration = Duration::from_secs(3600);

const WHAT_TO_TYPE: &str = "to run on NixOS, type `nix build .#guest` where Nix can fetch nixpkgs, and name here what it makes: \
                            `cargo xtask vm-test --image nixos --guest result`";

/// Builds the flake's guest, and returns where it is.
///
/// # Errors
/// No Nix, or one that can't build it: with what to type.
pub(crate) async fn guest() -> Result<PathBuf> {
    let workspace = left4me::workspace()?;
    if tools::program(Path::new("nix")).is_none() {
        bail!("--image nixos: its guest is built by Nix, and there is no nix on PATH; {WHAT_TO_TYPE}");
    }
    let link = workspace.target.join("nixos-guest");
    eprintln!("building the guest of NixOS: nix build .#guest");
    let build = Program::new("nix")
        .args(["--extra-experimental-features", "nix-command flakes"])
        // Who has no network is told at once.
        .args(["--option", "connect-timeout", "15", "--option", "download-attempts", "1"])
        .args(["build", "--no-update-lock-file", "--out-link"])
        .arg(&link)
        .arg(".#guest")
        .current_dir(&workspace.root);
    let built = process::output(build, LIMIT).await;
    built.with_context(|| format!("--image nixos: its guest can't be built here; {WHAT_TO_TYPE}"))?;
    Ok(link)
}
