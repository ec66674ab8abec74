//! An external image: a system that was built elsewhere, as a guest.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::entry::ROOT;
use super::suite::{EXTERNAL, Suite};
use crate::cache::{Inputs, Key, Lock, Staging};
use crate::host::events::{self, Event};
use crate::scenario::WrongInput;

/// The parts of an external image, as given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// A bzImage or vmlinux.
    pub kernel: PathBuf,
    /// The directory with that kernel's `modules.dep`.
    pub modules: PathBuf,
    /// The root file system: an image of squashfs, erofs, ext4 or btrfs.
    pub root: PathBuf,
    /// The name of a system that has the workspace's product installed already, in a way of its own; `None` is one that
    /// scenarios' files are laid over.
    pub installed: Option<String>,
}

impl External {
    /// A guest that was built as `packages.guest` of the flake is: `name`, `kernel`, `modules` and `root.squashfs` in one
    /// directory. It starts by its root's `/init`.
    ///
    /// # Errors
    /// [`WrongInput`]: names the part that is missing, or what is wrong with the name.
    pub fn of_guest(directory: &Path) -> Result<Self, WrongInput> {
        let file = directory.join("name");
        let wrong = |why: String| WrongInput::new(format!("--guest {}: {why}", directory.display()));
        let name = std::fs::read_to_string(&file).map_err(|error| {
            wrong(format!("read {}: {error}; expected what `nix build .#guest` makes", file.display()))
        })?;
        let name = name.trim();
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(wrong(format!("{}: {name:?}: a name has a-z, 0-9 and -", file.display())));
        }
        if name == EXTERNAL || name.parse::<Suite>().is_ok() {
            return Err(wrong(format!("{}: {name} is another guest's name", file.display())));
        }
        let at = |part: &str| directory.join(part);
        let parts = [at("kernel"), at("modules"), at(ROOT)];
        if let Some(missing) = parts.iter().find(|part| !part.exists()) {
            return Err(wrong(format!("no {}; expected what `nix build .#guest` makes", missing.display())));
        }
        let [kernel, modules, root] = parts;
        let guest = Self { kernel, modules, root, installed: Some(name.to_owned()) };
        guest.check()?;
        Ok(guest)
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.installed.as_deref().unwrap_or(EXTERNAL)
    }

    /// Whether its parts are there.
    ///
    /// # Errors
    /// [`WrongInput`]: names what is missing and what it should be.
    pub fn check(&self) -> Result<(), WrongInput> {
        let Self { kernel, modules, root, installed: _ } = self;
        let shown = |flag: &str, path: &Path| format!("{flag} {}", path.display());
        if !kernel.is_file() {
            let what =
                format!("{}: no such file; expected a bzImage or a vmlinux", shown("--kernel", kernel));
            return Err(WrongInput::new(what));
        }
        if !modules.join("modules.dep").is_file() {
            return Err(WrongInput::new(format!(
                "{}: no modules.dep in it; expected the directory of the kernel's release, as below /lib/modules",
                shown("--modules", modules)
            )));
        }
        if !root.is_file() {
            return Err(WrongInput::new(format!(
                "{}: no such file; expected an image of squashfs, erofs, ext4 or btrfs (to make one: mksquashfs \
                 DIRECTORY IMAGE -noI -noD -noF -noX)",
                shown("--root", root)
            )));
        }
        Ok(())
    }
}

/// The root of an external image, in a size that a guest can map as persistent memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappableRoot {
    /// The root: the given file, or a copy of the right size in the cache.
    pub root: PathBuf,
    /// The hash of the given file.
    pub root_key: Key,
}

/// Checks the parts of an external image. A root whose size a guest can't map as persistent memory is copied to the
/// cache, whose root is `cache`, with zeros up to the next size that it can map.
///
/// # Errors
/// Names what is missing and what it should be.
pub async fn mappable_root(external: &External, cache: &Path) -> anyhow::Result<MappableRoot> {
    external.check()?;
    let root = &external.root;
    let root_key = Inputs::new("external-root", 1).file("root", root)?.key();
    let length = std::fs::metadata(root).with_context(|| format!("stat {}", root.display()))?.len();
    let wanted = length.next_multiple_of(crate::machine::config::PMEM_ALIGN);
    if length == wanted {
        return Ok(MappableRoot { root: root.clone(), root_key });
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
    Ok(MappableRoot { root: copy, root_key })
}
