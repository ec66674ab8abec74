//! An entry being made: beside its place, and then there in one step.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::lock::Lock;
use super::remove::remove_tree;
use crate::host::events::{self, Event};

/// An entry being made, beside its final place. Dropping it takes away what is there so far.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    target: PathBuf,
    live: bool,
}

impl Staging {
    /// Makes the directory to work in. The caller holds the target's [`Lock`], as the argument shows.
    ///
    /// Working directories of the same target that are still around are of builds that died: `on_dead` gets to
    /// clean up after each, and then it is deleted.
    ///
    /// # Errors
    /// If a directory cannot be made or a dead one deleted.
    pub async fn begin(
        target: &Path,
        _lock: &Lock,
        mut on_dead: impl AsyncFnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let parent = target.parent().expect("an entry is in a directory");
        let name = target.file_name().expect("an entry has a name").to_string_lossy();
        let prefix = format!(".{name}.building-");
        for entry in std::fs::read_dir(parent).with_context(|| format!("list {}", parent.display()))? {
            let entry = entry.with_context(|| format!("list {}", parent.display()))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                on_dead(&entry.path()).await?;
                remove_tree(&entry.path())?;
            }
        }
        let dir = parent.join(format!("{prefix}{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self { dir, target: target.to_owned(), live: true })
    }

    /// The directory to work in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Puts the entry in its place, in one step and on disk; an older one of the same name is replaced.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn commit(mut self) -> anyhow::Result<PathBuf> {
        let parent = self.target.parent().expect("an entry is in a directory");
        sync(&self.dir)?;
        let what = || format!("rename {} to {}", self.dir.display(), self.target.display());
        match rustix::fs::renameat_with(CWD, &self.dir, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => self.live = false,
            Err(Errno::EXIST) => {
                // Afterwards the old entry lies where we worked, and is deleted below.
                rustix::fs::renameat_with(CWD, &self.dir, CWD, &self.target, RenameFlags::EXCHANGE)
                    .with_context(what)?;
            }
            Err(errno) => return Err(errno).with_context(what),
        }
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .with_context(|| format!("sync {}", parent.display()))?;
        if self.live {
            self.live = false;
            remove_tree(&self.dir)?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.live
            && let Err(error) = remove_tree(&self.dir)
        {
            events::tell(Event::Warning(format!("{error:#}; the next build tries again")));
        }
    }
}

/// Up to so many files and directories, each is synced by itself: whoever is killed meanwhile has only its own data to wait for,
/// and not what a compiler beside it has written (syncfs(2) does not end for SIGKILL). More of them, as an image's modules are,
/// take minutes on a slow disk, where syncfs takes one call.
const FEW: usize = 64;

/// Puts all that is in a directory on disk.
fn sync(dir: &Path) -> anyhow::Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let mut all = vec![dir.to_owned()];
    // What is pushed is looked at in its turn.
    let mut next = 0;
    while let Some(path) = all.get(next).filter(|_| all.len() <= FEW).cloned() {
        next += 1;
        if path.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                let entry = entry.with_context(|| format!("list {}", path.display()))?;
                let kind = entry.file_type().with_context(|| format!("stat {}", entry.path().display()))?;
                if kind.is_file() || kind.is_dir() {
                    all.push(entry.path());
                }
            }
        }
    }
    if all.len() > FEW {
        return rustix::fs::syncfs(open(dir)?).with_context(|| format!("sync {}", dir.display()));
    }
    for path in all {
        open(&path)?.sync_all().with_context(|| format!("sync {}", path.display()))?;
    }
    Ok(())
}
