//! Which QEMU it is, byte by byte: an input of everything that runs in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use xshell::{Shell, cmd};

use crate::cache;
use crate::host::process;

/// What a machine of ours reads from QEMU's own directories when it starts: the firmware, and what boots a kernel that QEMU
/// was given (hw/i386/x86.c, pc.c). A saved machine has them in its state.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"];

/// A build of QEMU.
///
/// Its modules, TCG's among them, are in by its program: they have a stamp of the build that they belong to, and it loads no
/// others (util/module.c:module_load_dso). The shared libraries that it uses do nothing that a guest of ours sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The first line of `--version`.
    pub version: String,
    /// The SHA-256 of its program and of its firmware, by file name.
    pub files: BTreeMap<String, String>,
}

impl Build {
    /// Looks at a QEMU.
    ///
    /// # Errors
    /// If it can't be run or read.
    pub async fn of(qemu: &Path) -> Result<Self> {
        const DEADLINE: Duration = Duration::from_secs(10);
        let shell = Shell::new()?;
        let version = process::output(cmd!(shell, "{qemu} --version").into(), DEADLINE).await?.text();
        let directories = process::output(cmd!(shell, "{qemu} -L help").into(), DEADLINE).await?.text();
        let mut files = BTreeMap::from([("qemu-system-x86_64".to_owned(), cache::hash_file(qemu)?)]);
        for name in FIRMWARE {
            // The first directory that has it, as QEMU does.
            let found = directories.lines().map(|directory| PathBuf::from(directory).join(name));
            if let Some(path) = found.into_iter().find(|path| path.exists()) {
                files.insert(name.to_owned(), cache::hash_file(&path)?);
            }
        }
        Ok(Self { version: version.lines().next().unwrap_or_default().to_owned(), files })
    }

    /// One hash for all of it.
    #[must_use]
    pub fn key(&self) -> String {
        let mut inputs = cache::Inputs::new("qemu", 1).text("version", &self.version);
        for (name, hash) in &self.files {
            inputs = inputs.text(name, hash);
        }
        inputs.key().as_str().to_owned()
    }
}
