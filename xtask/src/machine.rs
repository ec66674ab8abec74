//! The flags that say which machines are wanted, which several commands have.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use vm_tests::host::accel::{Clock, Wish};
use vm_tests::image::external::Foreign;
use vm_tests::image::{self, Suite};
use vm_tests::run::prepare::{Machines, QEMU_VAR};

/// What a machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// The guest's Debian suite: bookworm, trixie or sid; several with commas between them, where several can be
    #[arg(long, value_name = "SUITE", value_delimiter = ',', default_values_t = [Suite::default()])]
    pub(crate) image: Vec<Suite>,

    /// The kernel of a system that somebody else built (bzImage or vmlinux), in place of --image
    #[arg(long, value_name = "FILE", requires_all = ["modules", "root"], conflicts_with = "image")]
    pub(crate) kernel: Option<PathBuf>,

    /// The modules of that kernel: the directory that has modules.dep
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// The root file system of that system, with systemd: an image of squashfs, erofs, ext4 or btrfs. It is never written
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) root: Option<PathBuf>,

    /// The QEMU to run instead of the one on PATH
    #[arg(long, value_name = "PROGRAM", env = QEMU_VAR)]
    pub(crate) qemu: Option<PathBuf>,

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

impl MachineArgs {
    pub(crate) fn machines(&self) -> Result<Machines> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("the absolute path of {}", path.display()))
        };
        let foreign = match (&self.kernel, &self.modules, &self.root) {
            // By absolute paths: prepared.json may be read elsewhere.
            (Some(kernel), Some(modules), Some(root)) => Some(Foreign {
                kernel: absolute(kernel)?,
                modules: absolute(modules)?,
                root: absolute(root)?,
            }),
            _ => None,
        };
        Ok(Machines {
            suites: self.image.clone(),
            foreign,
            qemu: self.qemu.clone(),
            accel: self.accel,
            clock: self.clock,
            mirror: self.mirror.clone(),
        })
    }
}
