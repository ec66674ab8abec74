//! The versions that the tests deploy: the product as it is, and others that differ.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use left4me_deployer::client::Version;
use left4me_deployer::wire::{self, CONTROL, DEPLOYER, HELPER, Manifest};
use vm_tests::run::guest::Guest;

/// Files by their paths, each with its mode.
pub(crate) type Files = BTreeMap<String, (u32, Vec<u8>)>;

/// What is added to the version that is `new`, and what it lacks.
pub(crate) const ADDED: &str = "/usr/local/share/man/man8/left4me-new.8";
pub(crate) const DROPPED: &str = "/usr/local/share/man/man1/l4d2ctl-list.1";

/// The product as it is.
pub(crate) fn product(root: &Path, guest: &Guest, deployer: &Path) -> Result<Files> {
    let mut files = Files::new();
    add_tree(&root.join("deploy/files"), &root.join("deploy/files"), &mut files)?;
    let program =
        |name: &str| guest.programs.get(name).cloned().with_context(|| format!("no program {name}"));
    let programs = [
        (CONTROL, program("l4d2ctl")?),
        (HELPER, program("left4me-overlay")?),
        (DEPLOYER, deployer.to_owned()),
    ];
    for (path, from) in programs {
        let bytes = std::fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        files.insert(path.to_owned(), (0o755, bytes));
    }
    Ok(files)
}

fn add_tree(root: &Path, directory: &Path, files: &mut Files) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            add_tree(root, &path, files)?;
        } else {
            let to = Path::new("/").join(path.strip_prefix(root)?);
            let mode = if path.metadata()?.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            files.insert(to.display().to_string(), (mode, std::fs::read(&path)?));
        }
    }
    Ok(())
}

/// Another version of it, that runs: each of its programs and units has other bytes, one file is new, one is gone.
pub(crate) fn other(files: &Files, name: &str) -> Files {
    let mut other = files.clone();
    for (path, (_mode, bytes)) in &mut other {
        match path.as_str() {
            // Behind the end of an ELF file nobody looks.
            CONTROL | HELPER => bytes.extend(name.bytes()),
            path if path.ends_with(".service") => bytes.extend(format!("# {name}\n").bytes()),
            _ => {}
        }
    }
    other.remove(DROPPED);
    other.insert(ADDED.to_owned(), (0o644, name.as_bytes().to_vec()));
    other
}

/// With one file changed.
pub(crate) fn with(files: &Files, path: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Files {
    let mut other = files.clone();
    let (mode, bytes) = other.remove(path).unwrap_or((0o644, Vec::new()));
    other.insert(path.to_owned(), (mode, change(bytes)));
    other
}

/// As the client has it.
pub(crate) fn version(files: &Files, name: &str) -> Version {
    let mut manifest = Manifest {
        version: name.to_owned(),
        interface: wire::INTERFACE,
        systemd: (252, 261),
        kernel: ((6, 1), (7, 9)),
        files: BTreeMap::new(),
    };
    let mut blobs = BTreeMap::new();
    for (path, (mode, bytes)) in files {
        let sha256 = wire::sum(bytes);
        let file = wire::File { mode: *mode, size: bytes.len() as u64, sha256: sha256.clone() };
        manifest.files.insert(path.clone(), file);
        blobs.insert(sha256, bytes.clone());
    }
    Version { manifest, blobs }
}
