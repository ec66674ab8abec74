//! An image in the cache: its files, and its manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::packages::{Lock, Package, Packages};
use super::suite::Suite;
use crate::cache::{self, Inputs, Key};

pub(super) const ROOT: &str = "root.squashfs";

pub(super) const KERNEL: &str = "kernel";

pub(super) const CONFIG: &str = "kernel.config";

pub(super) const MODULES: &str = "modules";

pub(super) const MANIFEST: &str = "manifest.json";

/// An image in the cache, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The directory that holds all of it.
    pub dir: PathBuf,
    /// The root file system, an uncompressed squashfs.
    pub root: PathBuf,
    /// The kernel: the vmlinux of the bzImage that Debian ships, or that itself if QEMU can't boot the vmlinux.
    pub kernel: PathBuf,
    /// What the kernel was configured with.
    pub config: PathBuf,
    /// The modules of that kernel: the directory with `modules.dep` and `kernel/`. Compressed as Debian ships
    /// them (`.ko.xz` since trixie).
    pub modules: PathBuf,
    /// What it was made of.
    pub manifest: Manifest,
}

/// What an image was made of, and what it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the recipe.
    pub recipe: u32,
    /// The hash of the inputs, in hex.
    pub key: String,
    /// The suite.
    pub suite: Suite,
    /// The mirror, if one was named.
    pub mirror: Option<String>,
    /// The kernel's release, as `uname -r` says it.
    pub kernel_version: String,
    /// Installed packages and their versions, from dpkg.
    pub packages: BTreeMap<String, String>,
    /// The SHA-256 of each package's file, by its name, from the archive's index.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
    /// The date of the newest of its indexes, as an archive by date writes it.
    #[serde(default)]
    pub archive: Option<String>,
    /// The single files, by name.
    pub files: BTreeMap<String, FileRecord>,
    /// How long each stage of the build took, in milliseconds.
    pub stages_ms: BTreeMap<String, u64>,
}

/// What a file has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// In bytes.
    pub size: u64,
    /// In hex.
    pub sha256: String,
}

impl FileRecord {
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let meta = std::fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
        Ok(Self { size: meta.len(), sha256: cache::hash_file(path)? })
    }
}

impl Image {
    /// Loads an image that is in the cache, and compares the sizes of its files with the manifest.
    ///
    /// # Errors
    /// If something is missing or has another size.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let modules = dir.join(MODULES).join(&manifest.kernel_version);
        for name in [ROOT, KERNEL, CONFIG] {
            let record =
                manifest.files.get(name).with_context(|| format!("{} lacks {name}", path.display()))?;
            let file = dir.join(name);
            let size = std::fs::metadata(&file).with_context(|| format!("stat {}", file.display()))?.len();
            ensure!(size == record.size, "{} has {size} bytes, not {}", file.display(), record.size);
        }
        let dep = modules.join("modules.dep");
        ensure!(dep.is_file(), "{} is missing", dep.display());
        Ok(Self {
            dir: dir.to_owned(),
            root: dir.join(ROOT),
            kernel: dir.join(KERNEL),
            config: dir.join(CONFIG),
            modules,
            manifest,
        })
    }

    /// Compares the hashes of the files with the manifest; reads all of them.
    ///
    /// # Errors
    /// Naming the first file that is not what was built.
    pub fn verify(&self) -> anyhow::Result<()> {
        for (name, record) in &self.manifest.files {
            let path = self.dir.join(name);
            let found = FileRecord::of(&path)?;
            ensure!(found == *record, "{} is not what was built: run with --rebuild", path.display());
        }
        Ok(())
    }

    /// The hash of what the image consists of, for what is made from it (a saved machine, for one).
    #[must_use]
    pub fn content_key(&self) -> Key {
        let files = self.manifest.files.iter();
        files.fold(Inputs::new("image-content", 1), |all, (name, file)| all.text(name, &file.sha256)).key()
    }

    /// What it is made of, as a lock file has it.
    #[must_use]
    pub fn lock(&self) -> Lock {
        let Manifest { suite, archive, packages, sha256, .. } = &self.manifest;
        let package = |(name, version): (&String, &String)| {
            (name.clone(), Package { version: version.clone(), sha256: sha256.get(name).cloned() })
        };
        Lock::new(*suite, archive.clone(), Packages(packages.iter().map(package).collect()))
    }

    /// The size of all of it on disk, in bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn size(&self) -> anyhow::Result<u64> {
        size_of(&self.dir).with_context(|| format!("measure {}", self.dir.display()))
    }
}

fn size_of(dir: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        total += match entry.file_type()?.is_dir() {
            true => size_of(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(total)
}
