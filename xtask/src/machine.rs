//! The flags that say which machines are wanted, which several commands have.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Args;
use vm_tests::host::accel::{Clock, Wish};
use vm_tests::host::tools::QEMU_VAR;
use vm_tests::image::external::External;
use vm_tests::image::programs::Mode;
use vm_tests::image::{self, Suite};
use vm_tests::run::prepare::Machines;
use vm_tests::scenario::WrongInput;

use crate::nixos;

/// What a machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// The guest: bookworm, trixie or sid, which are Debian's suites, or nixos; vm-test and bench holders take several suites,
    /// with commas
    #[arg(long, value_name = "IMAGE", value_delimiter = ',', default_values_t = [Image::default()])]
    pub(crate) image: Vec<Image>,

    /// Guest of --image nixos: the directory that `nix build .#guest` has made [default: it is run]
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    pub(crate) guest: Option<PathBuf>,

    /// Kernel of an external image (bzImage or vmlinux), in place of --image
    #[arg(long, value_name = "FILE", requires_all = ["modules", "root"], conflicts_with = "image")]
    pub(crate) kernel: Option<PathBuf>,

    /// Modules of that kernel: the directory with modules.dep
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// Root file system of the external image, with systemd: squashfs, erofs, ext4 or btrfs. It is never written to
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) root: Option<PathBuf>,

    /// Directory with the guest's programs, in place of building them: cargo xtask programs lists where it has put them
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,

    /// QEMU to run, in place of the one on PATH
    #[arg(long, value_name = "PROGRAM", env = QEMU_VAR)]
    pub(crate) qemu: Option<PathBuf>,

    /// Accelerator: auto uses KVM if it runs a guest, else TCG; kvm fails if KVM runs no guest
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    pub(crate) accel: Wish,

    /// Clock of the guest: real is the host's; virtual counts instructions and skips idle time, so a duration is the
    /// same on every host [default: virtual without KVM, else real]
    #[arg(long, value_name = "real|virtual")]
    pub(crate) clock: Option<Clock>,

    /// Mirror for packages, in place of Debian's servers
    #[arg(long, value_name = "URL", env = image::MIRROR_VAR)]
    pub(crate) mirror: Option<String>,
}

/// What `--image` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// An image that is built of a suite's packages.
    Debian(Suite),
    /// The flake's guest.
    Nixos,
}

impl Default for Image {
    fn default() -> Self {
        Self::Debian(Suite::default())
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian(suite) => suite.fmt(f),
            Self::Nixos => f.pad(NIXOS),
        }
    }
}

impl FromStr for Image {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            NIXOS => Ok(Self::Nixos),
            suite => suite.parse().map(Self::Debian).map_err(|why| format!("{why}, {NIXOS}")),
        }
    }
}

const NIXOS: &str = "nixos";

impl MachineArgs {
    /// The machines that are asked for; builds the guest of NixOS where none is named.
    ///
    /// # Errors
    /// [`WrongInput`](vm_tests::scenario::WrongInput) for flags that go with no other; a guest that can't be built.
    pub(crate) async fn machines(&self) -> Result<Machines> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("the absolute path of {}", path.display()))
        };
        let external = match (&self.kernel, &self.modules, &self.root) {
            // By absolute paths: prepared.json may be read elsewhere.
            (Some(kernel), Some(modules), Some(root)) => Some(External {
                kernel: absolute(kernel)?,
                modules: absolute(modules)?,
                root: absolute(root)?,
                installed: None,
            }),
            _ => self.nixos().await?,
        };
        let suites = self.image.iter().filter_map(|image| match image {
            Image::Debian(suite) => Some(*suite),
            Image::Nixos => None,
        });
        Ok(Machines {
            suites: suites.collect(),
            external,
            programs: self.programs.as_ref().map(absolute).transpose()?,
            mode: Mode::Shipped,
            qemu: self.qemu.clone(),
            accel: self.accel,
            clock: self.clock,
            mirror: self.mirror.clone(),
        })
    }

    /// The guest of `--image nixos`, if that is asked for.
    async fn nixos(&self) -> Result<Option<External>> {
        let asked = self.image.contains(&Image::Nixos);
        if !asked && self.guest.is_some() {
            return Err(WrongInput::new("--guest: it is the guest of --image nixos".to_owned()).into());
        }
        if !asked {
            return Ok(None);
        }
        if self.image.len() > 1 {
            let what = "--image nixos: it is run by itself, without suites".to_owned();
            return Err(WrongInput::new(what).into());
        }
        let directory = match &self.guest {
            Some(named) => std::path::absolute(named)
                .with_context(|| format!("the absolute path of {}", named.display()))?,
            None => nixos::guest().await?,
        };
        Ok(Some(External::of_guest(&directory)?))
    }

    /// The same as flags, for a command that is run in another directory.
    ///
    /// # Errors
    /// A relative path while the working directory is gone.
    pub(crate) fn flags(&self) -> Result<Vec<OsString>> {
        let mut flags: Vec<OsString> = vec!["--accel".into(), wish(self.accel).into()];
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("the absolute path of {}", path.display()))
        };
        let paths = [
            ("--kernel", &self.kernel),
            ("--modules", &self.modules),
            ("--root", &self.root),
            ("--guest", &self.guest),
            ("--programs", &self.programs),
        ];
        for (flag, path) in paths {
            if let Some(path) = path {
                flags.extend([flag.into(), absolute(path)?.into()]);
            }
        }
        if self.kernel.is_none() {
            let names: Vec<String> = self.image.iter().map(Image::to_string).collect();
            flags.extend(["--image".into(), names.join(",").into()]);
        }
        if let Some(qemu) = &self.qemu {
            // A name alone is looked for on PATH.
            let is_name = qemu.components().count() == 1;
            flags.extend(["--qemu".into(), if is_name { qemu.clone() } else { absolute(qemu)? }.into()]);
        }
        if let Some(clock) = self.clock {
            flags.extend(["--clock".into(), word(clock).into()]);
        }
        if let Some(mirror) = &self.mirror {
            flags.extend(["--mirror".into(), mirror.into()]);
        }
        Ok(flags)
    }
}

fn wish(wish: Wish) -> &'static str {
    match wish {
        Wish::Auto => "auto",
        Wish::Kvm => "kvm",
        Wish::Tcg => "tcg",
    }
}

/// A clock as one types it.
pub(crate) fn word(clock: Clock) -> &'static str {
    match clock {
        Clock::Real => "real",
        Clock::Virtual => "virtual",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Any {
        #[command(flatten)]
        machine: MachineArgs,
    }

    #[test]
    fn flags_say_what_they_were_made_of() {
        let cases: [&[&str]; 5] = [
            &[],
            &["--image", "sid,bookworm", "--accel", "tcg", "--clock", "virtual", "--mirror", "http://m/x"],
            &["--kernel", "/k", "--modules", "/m", "--root", "/r", "--qemu", "qemu-x", "--clock", "real"],
            &["--programs", "/p", "--qemu", "/q/qemu-x", "--accel", "kvm"],
            &["--image", "nixos", "--guest", "/g"],
        ];
        let parse = |flags: Vec<OsString>| {
            let all = std::iter::once(OsString::from("x")).chain(flags);
            Any::try_parse_from(all).expect("flags").machine
        };
        for case in cases {
            let machine = parse(case.iter().map(OsString::from).collect());
            let again = parse(machine.flags().expect("flags"));
            assert_eq!(format!("{machine:?}"), format!("{again:?}"));
        }
        let relative = parse(["--programs", "p", "--qemu", "q/qemu-x"].map(OsString::from).to_vec());
        let paths: Vec<_> = relative.flags().expect("flags").into_iter().map(PathBuf::from).collect();
        assert_eq!(paths.iter().filter(|path| path.is_absolute()).count(), 2, "{paths:?}");
    }
}
