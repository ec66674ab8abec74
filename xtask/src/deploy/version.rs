//! This checkout as a version: what the archive has, and the program that deploys; and what it was tested with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use left4me_deployer::client::Version;
use left4me_deployer::wire::{self, DEPLOYER, File, Manifest};
use vm_tests::host::tools::{self, Need};
use vm_tests::image::programs;
use vm_tests::workspace::Workspace;

use crate::dist;

/// What is run on a host: its package, and the program.
pub(crate) const PROGRAM: (&str, &str) = ("left4me-deployer", "left4me-deploy");

/// Builds the program that is run on a host, apart from those that are shipped: their bytes depend on nothing of it.
pub(super) async fn program(workspace: &Workspace) -> Result<PathBuf> {
    tools::ensure(&[Need::GuestBinaries], None, &workspace.target).await?;
    programs::program(workspace, PROGRAM.0, PROGRAM.1).await
}

/// This checkout.
pub(super) async fn of(workspace: &Workspace, program: &Path) -> Result<Version> {
    let mut files = dist::on_host(workspace).await?;
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    files.insert(DEPLOYER.to_owned(), (0o755, bytes));
    let (systemd, kernel) = tested(&workspace.images)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut manifest =
        Manifest { version, interface: wire::INTERFACE, systemd, kernel, files: BTreeMap::new() };
    let mut blobs = BTreeMap::new();
    for (path, (mode, bytes)) in files {
        let sha256 = wire::sum(&bytes);
        manifest.files.insert(path, File { mode, size: bytes.len() as u64, sha256: sha256.clone() });
        blobs.insert(sha256, bytes);
    }
    Ok(Version { manifest, blobs })
}

type Tested = ((u32, u32), ((u32, u32), (u32, u32)));

/// The oldest and the newest systemd and Linux of the images that scenarios run on, by the images' lists of packages.
fn tested(images: &Path) -> Result<Tested> {
    let (mut systemd, mut kernel) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(images).with_context(|| format!("read {}", images.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let (one, other) = versions(&text).with_context(|| path.display().to_string())?;
        systemd.push(one);
        kernel.push(other);
    }
    let ends = "no image's list of packages is there";
    let systemd = (*systemd.iter().min().context(ends)?, *systemd.iter().max().context(ends)?);
    let kernel = (*kernel.iter().min().context(ends)?, *kernel.iter().max().context(ends)?);
    Ok((systemd, kernel))
}

/// systemd's and Linux' version in an image's list.
fn versions(lock: &str) -> Result<(u32, (u32, u32))> {
    let table: toml::Table = toml::from_str(lock).context("it is no list of packages")?;
    let packages = table.get("packages").and_then(toml::Value::as_table).context("it has no packages")?;
    let systemd =
        packages.get("systemd").and_then(|package| package.get("version")?.as_str()).context("no systemd")?;
    let number = |text: &str| text.parse::<u32>().with_context(|| format!("{text} is no number"));
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().to_owned();
    let image = packages
        .keys()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .find(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .context("no linux-image-VERSION")?;
    let mut parts = image.split(['.', '+', '-']);
    let mut next = || number(parts.next().unwrap_or_default());
    Ok((number(&digits(systemd))?, (next()?, next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tested_is_what_the_images_have() {
        let root = crate::left4me::workspace().expect("the workspace");
        let ((oldest, newest), (old, new)) = tested(&root.images).expect("lists");
        assert_eq!((oldest, old), (252, (6, 1)), "bookworm's");
        assert!(newest >= 257 && new >= (6, 12), "{newest} {new:?}");
    }

    #[test]
    fn versions_are_read_from_a_list() {
        let lock = "[packages]\n\"systemd\" = { version = \"257.9-1~deb13u1\" }\n\
                    \"linux-image-cloud-amd64\" = { version = \"6.12\" }\n\
                    \"linux-image-6.12.48+deb13-cloud-amd64\" = { version = \"6.12.48-1\" }\n";
        assert_eq!(versions(lock).expect("versions"), (257, (6, 12)));
    }
}
