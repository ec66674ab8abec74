//! The recipe of a Debian root: its packages, what it leaves out, and the options for that.

use std::path::{Path, PathBuf};

use super::suite::Suite;
use crate::cache::{Inputs, Key};

/// Goes up when the way an image is made changes and its inputs do not.
pub(super) const RECIPE: u32 = 3;

/// The variable that names the mirror, as `--mirror` does.
pub const MIRROR_VAR: &str = "VM_TESTS_MIRROR";

/// What is in an image beyond Debian's essential packages and apt.
pub(super) const PACKAGES: &[&str] = &[
    // What the whole thing is about, as init.
    "systemd-sysv",
    // Units and properties over the system bus.
    "dbus",
    // Devices and modules, as a production host has them.
    "udev",
    "kmod",
    // A real disk file system for upper layers.
    "e2fsprogs",
    // ps for people in `xtask shell`; fuser and lsof as witnesses beside our own diagnosis. 4 MB together.
    "procps",
    "psmisc",
    "lsof",
    // The smaller of Debian's kernels: virtio and file systems, no hardware drivers.
    "linux-image-cloud-amd64",
];

/// What dpkg leaves out: nobody reads it in a guest.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// mmdebstrap copies the host's name and resolver into the root; neither belongs there.
const FORGET_HOST: &str = r#"--customize-hook=echo guest >"$1/etc/hostname" && : >"$1/etc/resolv.conf""#;

/// Has a build tell, in lines that begin with `record: `, what the archive says of each package that is installed, and when
/// each of its indexes was made. It leaves nothing in the root, so it is none of the root's inputs.
pub(super) const RECORD: &str = concat!(
    "--customize-hook=",
    r#"chroot "$1" apt-cache --option Dir::Cache::pkgcache= --option Dir::Cache::srcpkgcache= show"#,
    r#" $(chroot "$1" dpkg-query --show --showformat='${Package}=${Version} ')"#,
    r#" | sed -n 's/^\(Package\|Version\|SHA256\): /record: &/p';"#,
    r#" sed -n 's/^Date: /record: &/p' "$1"/var/lib/apt/lists/*Release"#
);

/// How sqfstar packs: nothing compressed (inodes, data, fragments, xattrs), the root directory as tar has it
/// (sqfstar skips the entry `./` and would make it 0777), no bar, into a file that is there, xattrs kept (file capabilities).
pub(super) const SQUASHFS: &[&str] =
    &["-noI", "-noD", "-noF", "-noX", "-xattrs", "-no-progress", "-quiet", "-force", "-root-mode", "0755"];

/// No file is newer than this and generated ones have this date, in seconds since 1970: 2026-01-01, UTC. The
/// same packages then give the same bytes, whoever builds. See SOURCE_DATE_EPOCH in mmdebstrap(1).
pub(super) const EPOCH: &str = "1767225600";

/// A package that a suite lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Debian {suite} has no package {}", packages.join(", "))]
pub struct NoSuchPackage {
    /// The suite.
    pub suite: Suite,
    /// Their names.
    pub packages: Vec<String>,
}

/// The package that apt says it does not have, in a line of its stderr.
pub(super) fn missing_package(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("E: ")?;
    let named = rest.strip_prefix("Unable to locate package ");
    named.or_else(|| rest.strip_prefix("Package '")?.strip_suffix("' has no installation candidate"))
}

/// Whether this is a time as an archive by date writes it, `20261101T000000Z`.
pub(super) fn is_stamp(text: &str) -> bool {
    let shape = |(at, byte): (usize, u8)| match at {
        8 => byte == b'T',
        15 => byte == b'Z',
        _digit => byte.is_ascii_digit(),
    };
    text.len() == 16 && text.bytes().enumerate().all(shape)
}

/// The time in a mirror that is an archive by date: `http://snapshot.debian.org/archive/debian/20261101T000000Z/`.
fn date_of(mirror: &str) -> Option<&str> {
    mirror.split('/').find(|part| is_stamp(part))
}

/// Which image is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Of what.
    pub suite: Suite,
    /// Debian packages beside [`PACKAGES`], in their order.
    pub packages: Vec<String>,
    /// Where packages come from; `None` is what mmdebstrap takes by itself, with security and point updates.
    pub mirror: Option<String>,
    /// Build it even if it is there.
    pub rebuild: bool,
}

impl Request {
    /// What the image is named by.
    #[must_use]
    pub fn key(&self) -> Key {
        Inputs::new("image", RECIPE)
            .text("suite", self.suite.as_str())
            .list("mmdebstrap", &self.options())
            .list("sqfstar", SQUASHFS)
            .text("epoch", EPOCH)
            // An empty mirror is not a mirror.
            .text("mirror", self.mirror.as_deref().unwrap_or_default())
            .key()
    }

    /// Where the image is or will be in the cache that lies at `cache`.
    #[must_use]
    pub fn dir(&self, cache: &Path) -> PathBuf {
        cache.join("images").join(format!("{}-{}", self.suite, self.key().short()))
    }

    /// What follows mmdebstrap's options, suite and output: where packages come from. Of an archive by date that has security
    /// updates beside it, as Debian's has (`archive/debian/<time>/` and `archive/debian-security/<time>/`), those too: without a
    /// mirror mmdebstrap takes them by itself.
    pub(super) fn sources(&self, keyring: &Path) -> Vec<String> {
        let Some(mirror) = self.mirror.as_deref() else { return Vec::new() };
        let security = date_of(mirror).and_then(|date| {
            let (all, rest) = mirror.split_once(date)?;
            Some(format!("{}/debian-security/{date}{rest}", all.strip_suffix("/debian/")?))
        });
        match (security, self.suite) {
            (None, _) | (_, Suite::Sid) => vec![mirror.to_owned()],
            (Some(security), suite) => {
                // mmdebstrap names the keys by itself where it is given a mirror, and not in lines.
                let line = |mirror: &str, suite: String| {
                    format!("deb [signed-by={}] {mirror} {suite} main", keyring.display())
                };
                vec![
                    line(mirror, suite.to_string()),
                    line(mirror, format!("{suite}-updates")),
                    line(&security, format!("{suite}-security")),
                ]
            }
        }
    }

    fn included(&self) -> Vec<&str> {
        PACKAGES.iter().copied().chain(self.packages.iter().map(String::as_str)).collect()
    }

    /// mmdebstrap's options that make the root what it is; suite, output and sources follow them.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options = vec![
            "--variant=minbase".to_owned(),
            // As root too: in namespaces of its own it cannot leave a mount on the host.
            "--mode=unshare".to_owned(),
            "--format=tar".to_owned(),
            "--architectures=amd64".to_owned(),
            format!("--include={}", self.included().join(",")),
            "--aptopt=Apt::Install-Recommends \"false\"".to_owned(),
            FORGET_HOST.to_owned(),
        ];
        if self.suite == Suite::Sid || self.mirror.as_deref().is_some_and(|mirror| date_of(mirror).is_some())
        {
            // An index is good for a week or so: a mirror of sid that is further behind is no reason to have no guest, and an
            // archive of another day is asked for because of that. The signature is checked all the same: what is given up
            // is to notice an archive that is held back.
            options.push("--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned());
        }
        options.extend(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        options
    }
}
