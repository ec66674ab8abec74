//! Which file was saved, by inotify(7): nothing is polled, and no save is missed between two rounds.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// An editor that saves several files does so at once, and some write a file twice: it is over when it is quiet for so long.
const QUIET: Duration = Duration::from_millis(50);

/// Files are written whole and closed, or moved into their place.
const SAVED: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// Directories under watch.
#[derive(Debug)]
pub(super) struct Saves {
    queue: AsyncFd<OwnedFd>,
    directories: BTreeMap<i32, PathBuf>,
}

impl Saves {
    /// Watches directories with all that is in them, but for what is built and what is hidden.
    ///
    /// # Errors
    /// A directory that can't be read; more of them than the kernel watches for a user.
    pub(super) fn watch(places: &[PathBuf]) -> Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("inotify_init1")?;
        let mut directories = BTreeMap::new();
        let mut all = places.to_vec();
        while let Some(directory) = all.pop() {
            let what = || format!("watch {}", directory.display());
            let number = match inotify::add_watch(&queue, &directory, SAVED) {
                Ok(number) => number,
                // Gone since it was listed, or never there, which the scenario's run will say.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(Errno::NOSPC) => {
                    return Err(Errno::NOSPC)
                        .with_context(what)
                        .context("raise fs.inotify.max_user_watches (sysctl)");
                }
                Err(error) => return Err(error).with_context(what),
            };
            // One that lies in another one that is watched is the same watch.
            if directories.insert(number, directory.clone()).is_some() {
                continue;
            }
            for entry in fs::read_dir(&directory).with_context(what)? {
                let entry = entry.with_context(what)?;
                if entry.file_type().with_context(what)?.is_dir() && is_source(&entry.file_name()) {
                    all.push(entry.path());
                }
            }
        }
        #[expect(
            unsafe_code,
            reason = "tokio has no safe way to watch a descriptor that it does not know the kind of"
        )]
        // SAFETY: an OwnedFd is one open descriptor for as long as it lives, and nothing takes it out of the AsyncFd.
        let queue = unsafe { AsyncFd::register(queue) };
        Ok(Self { queue: queue.map_err(io::Error::from).context("watch directories")?, directories })
    }

    /// Waits until a file was saved and no other one is; the first of them.
    ///
    /// # Errors
    /// Those of read(2).
    pub(super) async fn next(&mut self) -> Result<PathBuf> {
        let first = loop {
            if let Some(path) = self.events().await? {
                break path;
            }
        };
        while let Ok(more) = timeout(QUIET, self.events()).await {
            more?;
        }
        Ok(first)
    }

    /// Waits for events; the first that is of a source.
    async fn events(&mut self) -> Result<Option<PathBuf>> {
        loop {
            let mut ready = self.queue.readable().await.context("watch directories")?;
            let mut buffer = [MaybeUninit::uninit(); 16 << 10];
            let mut reader = Reader::new(ready.get_inner(), &mut buffer);
            let (mut first, mut any) = (None, false);
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(io::Error::from(error)).context("read(2) of inotify"),
                };
                any = true;
                ensure!(
                    !event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW),
                    "more files were changed at once than the kernel tells: start it again"
                );
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                if let (Some(name), Some(directory)) = (name, self.directories.get(&event.wd()))
                    && is_source(name)
                {
                    first = first.or_else(|| Some(directory.join(name)));
                }
            }
            ready.clear_ready();
            if any {
                return Ok(first);
            }
        }
    }
}

/// Whether a run can depend on a file or a directory of this name: not on hidden ones, on those of editors and of snapshots that are
/// offered, on documents, nor on what is built.
fn is_source(name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    let suffix = Path::new(name).extension().and_then(OsStr::to_str);
    // vim tries whether it can write a directory by a file of this name.
    let is_other = text == "target" || text == "4913" || text.ends_with('~') || text.starts_with(['.', '#']);
    !is_other && !matches!(suffix, Some("swp" | "swx" | "tmp" | "new" | "md" | "orig"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn saved(place: &Path, saves: &mut Saves) -> Option<String> {
        let path = timeout(Duration::from_millis(500), saves.next()).await.ok()?.expect("a save");
        Some(path.strip_prefix(place).expect("in it").display().to_string())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_way_to_save_is_seen_and_what_is_no_source_is_not() {
        type Edit = fn(&Path) -> io::Result<()>;
        let edits: [(&str, Edit, Option<&str>); 10] = [
            ("written", |at| fs::write(at.join("a"), "2"), Some("a")),
            ("in a directory", |at| fs::write(at.join("d/e/b"), "2"), Some("d/e/b")),
            (
                "moved into its place",
                |at| {
                    fs::write(at.join("a.tmp"), "3")?;
                    fs::rename(at.join("a.tmp"), at.join("a"))
                },
                Some("a"),
            ),
            ("deleted", |at| fs::remove_file(at.join("a")), Some("a")),
            ("a link", |at| std::os::unix::fs::symlink("/", at.join("l")), Some("l")),
            ("a directory", |at| fs::create_dir(at.join("n")), Some("n")),
            ("a swap file", |at| fs::write(at.join(".a.swp"), ""), None),
            ("a backup", |at| fs::write(at.join("a~"), ""), None),
            ("an offered snapshot", |at| fs::write(at.join("outcome.snap.new"), ""), None),
            ("what is built", |at| fs::write(at.join("target/x"), ""), None),
        ];
        for (what, edit, path) in edits {
            let place = tempfile::tempdir().expect("tempdir");
            for directory in ["d/e", "target"] {
                fs::create_dir_all(place.path().join(directory)).expect("mkdir");
            }
            for file in ["a", "d/e/b"] {
                fs::write(place.path().join(file), "1").expect("write");
            }
            // The second lies in the first.
            let places = [place.path().to_owned(), place.path().join("d"), place.path().join("none")];
            let mut saves = Saves::watch(&places).expect("watch");
            edit(place.path()).expect(what);
            assert_eq!(saved(place.path(), &mut saves).await.as_deref(), path, "{what}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn files_that_are_saved_together_are_one_save() {
        let place = tempfile::tempdir().expect("tempdir");
        let mut saves = Saves::watch(&[place.path().to_owned()]).expect("watch");
        for name in ["a", "b", "c"] {
            fs::write(place.path().join(name), "").expect("write");
        }
        assert_eq!(saved(place.path(), &mut saves).await.as_deref(), Some("a"));
        assert_eq!(saved(place.path(), &mut saves).await, None);
    }
}
