//! What every machine is made of, and the configuration that it makes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::accel::{Accel, Clock};
use crate::machine::config::{Abilities, Config, Ram};
use crate::machine::qemu::Build;

/// The number that all of a machine's randomness in virtual time comes from, as long as nobody asks for another one.
pub const SEED: u64 = 1;

/// What every machine is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Base {
    /// QEMU.
    pub qemu: PathBuf,
    /// Which one that is.
    pub build: Build,
    /// What it can do.
    pub abilities: Abilities,
    /// The guest's root file system.
    pub root: PathBuf,
    /// The hash of what the image consists of.
    pub root_key: String,
    /// Its size in bytes.
    pub root_bytes: u64,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Our initramfs for it.
    pub initramfs: PathBuf,
    /// What executes the guest's instructions.
    pub accel: Accel,
    /// What its time is.
    pub clock: Clock,
    /// Guest RAM, in MiB.
    pub memory_mib: u32,
    /// All that is random in virtual time comes from this.
    pub seed: u64,
}

impl Base {
    /// The configuration of a machine.
    #[must_use]
    pub fn config(&self, ram: Ram, deploy: PathBuf) -> Config {
        Config {
            abilities: self.abilities,
            accel: self.accel,
            clock: self.clock,
            memory_mib: self.memory_mib,
            ram,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            root: (self.root.clone(), self.root_bytes),
            deploy,
            keeps: false,
            serial_log: PathBuf::new(),
            kernel_args: Vec::new(),
            seed: self.seed,
        }
    }

    /// The arguments of such a machine without the places of its files: what they hold is an input of its own.
    #[must_use]
    pub fn neutral_argv(&self, ram: Ram) -> Vec<String> {
        let config = self.config(ram, "deploy".into());
        let neutral = Config {
            kernel: "kernel".into(),
            initramfs: "initramfs".into(),
            root: ("root".into(), config.root.1),
            ..config
        };
        neutral.argv().iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }
}
