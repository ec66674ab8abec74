//! What a host is: its systemd, its kernel, whether Debian's package is on it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::host::{Host, command};
use crate::wire::{Manifest, Refusal};

/// For a program that only says something.
pub const QUICK: Duration = Duration::from_secs(20);

/// What a plan wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `PRETTY_NAME` of os-release(5).
    pub system: String,
    /// systemd's version.
    pub systemd: u32,
    /// Linux' version.
    pub kernel: (u32, u32),
    /// The version of Debian's package, where it is installed.
    pub package: Option<String>,
}

impl Facts {
    /// Of this host.
    ///
    /// # Errors
    /// A file or an answer that can't be read.
    pub fn read(host: &Host) -> Result<Self> {
        let release = fs::read_to_string(host.at("/etc/os-release")).unwrap_or_default();
        let named = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let says = command::ok(&["systemctl", "--version"], Instant::now() + QUICK)?;
        let uname = rustix::system::uname();
        let kernel = uname.release().to_string_lossy();
        let status = fs::read_to_string(host.at("/var/lib/dpkg/status")).unwrap_or_default();
        Ok(Self {
            system: named.unwrap_or("an unknown system").trim_matches('"').to_owned(),
            systemd: systemd_version(&says).with_context(|| format!("systemd's version in {says:?}"))?,
            kernel: kernel_version(&kernel).with_context(|| format!("Linux' version in {kernel:?}"))?,
            package: package(&status),
        })
    }

    /// What of the host is in a version's way, and what nobody has tried.
    #[must_use]
    pub fn against(&self, manifest: &Manifest) -> (Vec<Refusal>, Vec<String>) {
        let (mut refusals, mut untried) = (Vec::new(), Vec::new());
        let ((oldest, newest), systemd) = (manifest.systemd, self.systemd);
        if systemd < oldest {
            let why = format!("systemd {systemd} is older than {oldest}, the oldest that was tested");
            refusals.push(Refusal::new(why, "upgrade the host's distribution"));
        } else if systemd > newest {
            untried.push(format!("systemd {systemd} is newer than {newest}, the newest that was tested"));
        }
        let ((oldest, newest), kernel) = (manifest.kernel, self.kernel);
        let show = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        if kernel < oldest {
            let why =
                format!("Linux {} is older than {}, the oldest that was tested", show(kernel), show(oldest));
            refusals.push(Refusal::new(why, "boot a newer kernel"));
        } else if kernel > newest {
            let what = format!("Linux {} is newer than {}", show(kernel), show(newest));
            untried.push(format!("{what}, the newest that was tested"));
        }
        (refusals, untried)
    }
}

fn systemd_version(says: &str) -> Option<u32> {
    says.strip_prefix("systemd ")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The version of the package in dpkg's list of packages, if it is installed: one that was removed is in it too.
fn package(status: &str) -> Option<String> {
    let paragraph =
        status.split("\n\n").find(|paragraph| paragraph.lines().any(|line| line == "Package: left4me"))?;
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name));
    let state = field("Status: ")?;
    (!state.ends_with(" not-installed") && !state.ends_with(" config-files"))
        .then(|| field("Version: ").unwrap_or("of unknown version").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(systemd_version("systemd 252 (252.39-1~deb12u1)\n+PAM"), Some(252));
        assert_eq!(systemd_version("systemd 260~rc1\n"), Some(260));
        assert_eq!(systemd_version("upstart"), None);
        assert_eq!(kernel_version("6.12.48+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(kernel_version("6"), None);
    }

    #[test]
    fn a_package_is_installed_or_was() {
        let status = |state: &str| {
            format!(
                "Package: a\nStatus: install ok installed\n\nPackage: left4me\nStatus: {state}\nVersion: 0.1.0-1\n"
            )
        };
        assert_eq!(package(&status("install ok installed")).as_deref(), Some("0.1.0-1"));
        assert_eq!(package(&status("install ok half-configured")).as_deref(), Some("0.1.0-1"));
        assert_eq!(package(&status("deinstall ok config-files")), None);
        assert_eq!(package("Package: left4me-other\nStatus: install ok installed\n"), None);
    }

    #[test]
    fn what_is_too_old_is_refused_and_what_is_newer_is_untried() {
        let tested = |systemd, kernel| {
            let files = std::collections::BTreeMap::new();
            let manifest = Manifest {
                version: "1".to_owned(),
                interface: 1,
                systemd: (252, 260),
                kernel: ((6, 1), (6, 19)),
                files,
            };
            let facts = Facts { system: "x".to_owned(), systemd, kernel, package: None };
            let (refusals, untried) = facts.against(&manifest);
            (refusals.len(), untried.len())
        };
        assert_eq!(tested(252, (6, 1)), (0, 0));
        assert_eq!(tested(251, (5, 10)), (2, 0));
        assert_eq!(tested(261, (7, 0)), (0, 2));
    }
}
