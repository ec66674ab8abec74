//! The directory in which a root is unpacked, and its removal.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::cache::{self, Inputs};
use crate::host::events::{self, Event};
use crate::host::process;

/// How long packing and unpacking may take; a second each on a good disk.
pub(super) const PACK_LIMIT: Duration = Duration::from_secs(600);

/// In a build's working directory: the path of the directory under `/tmp` that mmdebstrap works in.
pub(super) const SCRATCH: &str = "scratch";

pub(super) const SCRATCH_PREFIX: &str = "vm-image-";

/// The directory in which mmdebstrap unpacks.
///
/// Under `/tmp` and not in the cache: the ids that a user's namespace maps cannot enter a home directory that is
/// closed to others. Its path is noted in the build's working directory, before it exists, so that whoever
/// finds that one removes this one as well.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) dir: PathBuf,
}

impl Scratch {
    pub(super) fn make(work: &Path) -> anyhow::Result<Self> {
        let unique =
            work.file_name().and_then(|name| name.to_str()).context("the working directory has no name")?;
        let user = rustix::process::geteuid();
        let nonce = Instant::now();
        let nonce = Inputs::new("scratch", 0).text("at", &format!("{nonce:?}")).text("work", unique).key();
        let name = format!("{SCRATCH_PREFIX}{user}-{}-{}", std::process::id(), nonce.short());
        let dir = std::env::temp_dir().join(name);
        let note = work.join(SCRATCH);
        std::fs::write(&note, dir.to_string_lossy().as_bytes())
            .with_context(|| format!("write {}", note.display()))?;
        // Open to the mapped ids. It must be new, so nobody else can have put something there.
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("create {}", dir.display()))?;
        Ok(Self { dir })
    }
}

/// Removes the scratch directory of a build that died, found by its working directory.
pub(super) async fn remove_scratch_of(work: &Path) -> anyhow::Result<()> {
    events::tell(Event::Removing(work.to_owned()));
    match std::fs::read_to_string(work.join(SCRATCH)) {
        Ok(dir) => remove_scratch(Path::new(dir.trim())).await,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read {}", work.join(SCRATCH).display())),
    }
}

/// A program that runs as root of a namespace with the ids that the host lends us.
///
/// By mmdebstrap and not by `unshare --map-root-user`: where AppArmor restricts user namespaces (Ubuntu), it is
/// one of the few that may make them.
pub(super) fn mapped<'a>(shell: &'a Shell, name: &str) -> Cmd<'a> {
    cmd!(shell, "mmdebstrap --unshare-helper {name}")
}

/// Removes a scratch directory, provided it is one of ours.
pub(super) async fn remove_scratch(dir: &Path) -> anyhow::Result<()> {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SCRATCH_PREFIX));
    ensure!(named, "{} is not a scratch directory", dir.display());
    match std::fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() => {}
        Ok(_) => bail!("{} is somebody else's", dir.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("stat {}", dir.display())),
    }
    let shell = Shell::new()?;
    let what = || format!("list {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let owner = entry.metadata().with_context(what)?.uid();
        if owner != rustix::process::geteuid().as_raw() && !rustix::process::geteuid().is_root() {
            // It belongs to an id that the host lends us; only a namespace that maps it can empty it.
            let find = mapped(&shell, "find").arg(entry.path()).args(["-xdev", "-mindepth", "1", "-delete"]);
            process::output(find.into(), PACK_LIMIT).await?;
        }
    }
    cache::remove_tree(dir)
}
