//! A system that somebody else built, as a guest.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::entry::ROOT;
use crate::cache::{Inputs, Key, Lock, Staging};
use crate::host::events::{self, Event};

/// The parts of a system that somebody else built, as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// A bzImage or vmlinux.
    pub kernel: PathBuf,
    /// The directory with that kernel's `modules.dep`.
    pub modules: PathBuf,
    /// The root file system: an image of squashfs, erofs, ext4 or btrfs.
    pub root: PathBuf,
}

/// A foreign system whose root can be a guest's persistent memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The root: the given file, or a copy of the right size in the cache.
    pub root: PathBuf,
    /// The hash of the given file.
    pub root_key: Key,
}

/// Checks the parts of a foreign system. A root whose size a guest can't have as persistent memory is copied to the
/// cache, whose root is `cache`, with zeros up to the next size that it can.
///
/// # Errors
/// Names what is missing and what it should be.
pub async fn adopt(foreign: &Foreign, cache: &Path) -> anyhow::Result<Adopted> {
    let Foreign { kernel, modules, root } = foreign;
    ensure!(
        kernel.is_file(),
        "--kernel {}: no such file; a bzImage or a vmlinux is wanted",
        kernel.display()
    );
    ensure!(
        modules.join("modules.dep").is_file(),
        "--modules {}: it has no modules.dep; the directory of the kernel's release is wanted, as below /lib/modules",
        modules.display()
    );
    ensure!(
        root.is_file(),
        "--root {}: no such file; an image of squashfs, erofs, ext4 or btrfs is wanted (of a directory: \
         mksquashfs DIRECTORY IMAGE -noI -noD -noF -noX)",
        root.display()
    );
    let root_key = Inputs::new("foreign-root", 1).file("root", root)?.key();
    let length = std::fs::metadata(root).with_context(|| format!("look at {}", root.display()))?.len();
    let wanted = length.next_multiple_of(crate::machine::config::PMEM_ALIGN);
    if length == wanted {
        return Ok(Adopted { root: root.clone(), root_key });
    }
    let dir = cache.join("images").join(format!("root-{}", root_key.short()));
    let copy = dir.join(ROOT);
    let whole = || std::fs::metadata(&copy).is_ok_and(|meta| meta.len() == wanted);
    if !whole() {
        let lock = Lock::exclusive(&dir.with_extension("lock"), |who| {
            let (what, who) = (root.display().to_string(), who.to_owned());
            events::tell(Event::Waiting { what, who, does: "copies" });
        })
        .await?;
        if !whole() {
            events::tell(Event::Copying(root.clone()));
            let staging = Staging::begin(&dir, &lock, |_dead: &Path| async { Ok(()) }).await?;
            let to = staging.path().join(ROOT);
            let what = || format!("copy {} to {}", root.display(), to.display());
            std::fs::copy(root, &to).with_context(what)?;
            std::fs::set_permissions(&to, Permissions::from_mode(0o644)).with_context(what)?;
            File::options().write(true).open(&to).and_then(|file| file.set_len(wanted)).with_context(what)?;
            staging.commit()?;
        }
    }
    Ok(Adopted { root: copy, root_key })
}
