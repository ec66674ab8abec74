//! Where costly things are kept, and how one gets there whole or not at all.
//!
//! Everything lies under one directory: `$VM_TESTS_CACHE`, else `target/vm-cache` of the workspace. Under
//! `target/`, a clean clone starts clean and `cargo clean` takes everything away; a directory of its own, apart
//! from `target/vm-test`, which holds the results of runs. CI keeps its images between jobs. A user-wide
//! cache (`~/.cache`) would survive `cargo clean` and would be shared by checkouts that differ, for the price of
//! one minute.
//!
//! An entry is a directory named by the hash of its inputs ([`Inputs`]). It is made beside its final place
//! under a lock ([`Lock`]), synced, and renamed ([`Staging`]): whoever finds it, finds all of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::host::process::{self, Identity, Interrupted, Interrupts};

/// The variable that moves the cache elsewhere.
pub const CACHE_VAR: &str = "VM_TESTS_CACHE";

/// The directory of the workspace that this is run in: the one that cargo says (`CARGO_MANIFEST_DIR`, at run time), or the
/// one around the working directory; elsewhere, the one that it was built from.
///
/// # Errors
/// If it was built from another one than it is run in: a checkout that is copied or moved with its `target` has the
/// programs of the old place, which cargo takes for fresh. If it was built from one that is gone, and is run in none.
pub fn workspace() -> anyhow::Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().context("find the working directory")?;
    workspace_of(built, said.as_deref(), &here)
}

fn workspace_of(built: &Path, said: Option<&Path>, here: &Path) -> anyhow::Result<PathBuf> {
    let around = |path: &Path| path.ancestors().find(|root| is_workspace(root)).map(Path::to_owned);
    let built = built.parent().context("a package lies in its workspace")?;
    match said.and_then(around).or_else(|| around(here)) {
        Some(root) if is_same(&root, built) => Ok(root),
        Some(root) => bail!(
            "this is run in {} and was built from {}, whose files it would use: build it anew, with `cargo clean -p vm-tests -p xtask`",
            root.display(),
            built.display()
        ),
        None if is_workspace(built) => Ok(built.to_owned()),
        None => bail!("the workspace this was built from is not at {} any more", built.display()),
    }
}

/// Whether this is a checkout of ours, and not another one that cargo or a working directory may speak of.
fn is_workspace(root: &Path) -> bool {
    root.join("Cargo.toml").is_file() && root.join("vm-tests/agent/Cargo.toml").is_file()
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// The directory that all caches live in. Nothing is created by looking.
///
/// # Errors
/// If `$VM_TESTS_CACHE` is not set and the workspace is gone.
pub fn root() -> anyhow::Result<PathBuf> {
    match std::env::var_os(CACHE_VAR).filter(|value| !value.is_empty()) {
        Some(dir) => std::path::absolute(dir).context(CACHE_VAR),
        None => Ok(workspace()
            .with_context(|| format!("set {CACHE_VAR} to a directory"))?
            .join("target/vm-cache")),
    }
}

/// What is free for us on the file system of a path, in bytes.
///
/// # Errors
/// If the path is not there.
pub fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(path).with_context(|| format!("statvfs {}", path.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The hash of everything that an entry depends on, being collected.
///
/// Each input goes in with its name and its length, so that no two lists of inputs give the same bytes.
#[derive(Clone)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Starts with what kind of thing is made, and by which version of the recipe.
    #[must_use]
    pub fn new(kind: &str, recipe: u32) -> Self {
        Self(Sha256::new()).bytes("kind", kind.as_bytes()).bytes("recipe", &recipe.to_le_bytes())
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, value.as_bytes())
    }

    /// Adds a list, order and boundaries included.
    #[must_use]
    pub fn list<T: AsRef<str>>(self, name: &str, values: &[T]) -> Self {
        let this = self.bytes(name, &(values.len() as u64).to_le_bytes());
        values.iter().fold(this, |this, value| this.text("", value.as_ref()))
    }

    /// Adds the contents of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(self, name: &str, path: &Path) -> anyhow::Result<Self> {
        Ok(self.text(name, &hash_file(path)?))
    }

    /// The hash of all that went in.
    #[must_use]
    pub fn key(self) -> Key {
        Key(hex(&self.0.finalize()))
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inputs").field(&self.clone().key()).finish()
    }
}

/// What an entry is named by: a SHA-256 in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits: enough for a directory name.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// The SHA-256 of a file in hex.
///
/// # Errors
/// If it cannot be read.
pub fn hash_file(path: &Path) -> anyhow::Result<String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hash.finalize())),
                n => hash.update(&buffer[..n]),
            }
        }
    };
    read().with_context(|| format!("hash {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An flock(2) on a file, held until this and all its duplicates are closed.
///
/// The file says who has it. It stays: deleting it would let two holders lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for whoever has it; `on_wait` is told who that is, once, before the wait.
    ///
    /// A holder that was killed may have left processes that hold the lock for it ([`Lock::share`]) and never
    /// end. They are ended here: that the lock is taken while its holder is dead shows that they are there.
    ///
    /// # Errors
    /// [`Interrupted`] if we are told to stop while waiting; else if the file cannot be made or locked.
    pub async fn exclusive(path: &Path, on_wait: impl FnOnce(&str)) -> anyhow::Result<Self> {
        let dir = path.parent().expect("a lock file is in a directory");
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let what = || format!("lock {}", path.display());
        let file = Self::open(path).with_context(what)?;
        let lock = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Self { file },
            Err(Errno::WOULDBLOCK) => {
                let holder = Holder::parse(&std::fs::read_to_string(path).with_context(what)?);
                on_wait(&holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string()));
                Self { file: wait_for(file, path).await.with_context(what)? }
            }
            Err(errno) => return Err(errno).with_context(what),
        };
        lock.sign(None).with_context(what)?;
        Ok(lock)
    }

    fn open(path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub fn if_free(path: &Path) -> anyhow::Result<Option<Self>> {
        let what = || format!("lock {}", path.display());
        let file = Self::open(path).with_context(what)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = Self { file };
                lock.sign(None).with_context(what)?;
                Ok(Some(lock))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).with_context(what),
        }
    }

    /// A second handle to hold the lock by, to be passed to a child: the lock then lasts until it is gone too.
    /// Tell [`Lock::note_group`] of the child.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn share(&self) -> anyhow::Result<OwnedFd> {
        Ok(self.file.try_clone().context("duplicate a lock's descriptor")?.into())
    }

    /// Notes the process group that shares the lock, for whoever finds it without us; `None` once it is gone,
    /// since the number may then come to mean somebody else.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_group(&self, group: Option<u32>) -> io::Result<()> {
        self.sign(group)
    }

    /// Writes who holds the lock into its file.
    fn sign(&self, group: Option<u32>) -> io::Result<()> {
        let holder = Holder { process: Identity::own()?, group };
        self.file.set_len(0)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, holder.line().as_bytes(), 0)
    }
}

/// Who has a lock, as its file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    process: Identity,
    /// The process group of a child that shares the lock.
    group: Option<u32>,
}

impl Holder {
    fn line(self) -> String {
        format!("{} {} {}\n", self.process.pid, self.process.started, self.group.unwrap_or(0))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let process = Identity { pid: u32::try_from(next()?).ok()?, started: next()? };
        let group = u32::try_from(next()?).ok()?;
        Some(Self { process, group: (group > 1).then_some(group) })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.process.pid)
    }
}

/// Waits for a lock that somebody has, and ends what is left of a holder that died.
///
/// It blocks in flock(2) on a thread of its own. Not on the runtime's pool: a runtime waits for its pool at its
/// end, and an interrupted wait must not. The thread ends with the process, or gives the lock back when it gets it.
async fn wait_for(file: File, path: &Path) -> anyhow::Result<File> {
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let (done, mut locked) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("flock".to_owned())
        .spawn(move || {
            let result = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            // Nobody waits any more: the file is closed and with it the lock.
            drop(done.send(result.map(|()| file)));
        })
        .context("start a thread to wait for a lock")?;
    let mut dead = None;
    loop {
        // Read anew, since another one may have got it, who waited as we do. One who does not sign before we
        // look is waited for without being watched.
        let holder = Holder::parse(&std::fs::read_to_string(path)?).filter(|holder| Some(*holder) != dead);
        let died = async {
            match holder {
                Some(holder) => holder.process.ended().await.map(|()| holder),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            got = &mut locked => return Ok(got.context("the thread that waits for a lock ended")??),
            signal = interrupts.next() => return Err(Interrupted::by(signal).into()),
            holder = died => {
                let holder = holder.context("watch who has the lock")?;
                if let Some(group) = holder.group {
                    eprintln!("{holder} is gone; ending what it left, process group {group}");
                    process::end_orphans(group).await?;
                }
                dead = Some(holder);
            }
        }
    }
}

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
        let dir = File::open(&self.dir).with_context(|| format!("open {}", self.dir.display()))?;
        // One call for thousands of files, where an fsync of each takes minutes on a slow disk.
        rustix::fs::syncfs(&dir).with_context(|| format!("sync {}", self.dir.display()))?;
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
            eprintln!("warning: {error:#}; the next build tries again");
        }
    }
}

/// Deletes a directory and all in it, and stops at a mount instead of emptying it.
///
/// Every step down is an openat2(2) with `RESOLVE_NO_XDEV`, which sees bind mounts too; a comparison of device
/// numbers does not.
///
/// # Errors
/// If something cannot be deleted, or a mount is in the way; what was deleted before that is gone. A tree that is
/// not there is no error.
pub fn remove_tree(path: &Path) -> anyhow::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => bail!("delete {}: it is the root directory", path.display()),
    };
    let name = path.file_name().with_context(|| format!("delete {}: not a name", path.display()))?;
    let parent =
        match rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("open {}", parent.display())),
        };
    match remove_at(parent.as_fd(), Path::new(name), path) {
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &Path, shown: &Path) -> anyhow::Result<()> {
    let what = || match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => format!("delete {} (owner {}, mode {:o})", shown.display(), stat.st_uid, stat.st_mode),
        Err(_gone) => format!("delete {}", shown.display()),
    };
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno).with_context(what),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(Errno::BUSY) => bail!("delete {}: it is a mount; unmount it first", shown.display()),
        Err(errno) => return Err(errno).with_context(what),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
        Ok(dir) => dir,
        Err(Errno::XDEV) => bail!("delete {}: it is a mount; unmount it first", shown.display()),
        Err(errno) => return Err(errno).with_context(what),
    };
    for entry in rustix::fs::Dir::read_from(&dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            use std::os::unix::ffi::OsStrExt as _;
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            remove_at(dir.as_fd(), name, &shown.join(name))?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_copy_of_a_checkout_is_not_run_by_the_programs_of_the_other() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let checkout = |name: &str| {
            let root = scratch.path().join(name);
            for package in ["", "vm-tests", "vm-tests/agent", "xtask"] {
                let package = root.join(package);
                std::fs::create_dir_all(&package).expect("mkdir");
                std::fs::write(package.join("Cargo.toml"), "").expect("write");
            }
            root
        };
        let (one, copy) = (checkout("one"), checkout("copy"));
        let elsewhere = scratch.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).expect("mkdir");
        std::fs::write(elsewhere.join("Cargo.toml"), "").expect("write");
        std::os::unix::fs::symlink(&one, scratch.path().join("link")).expect("symlink");
        let built = one.join("vm-tests");
        let found = |said: Option<PathBuf>, here: &Path| {
            workspace_of(&built, said.as_deref(), here).map_err(|error| format!("{error:#}"))
        };

        assert_eq!(found(None, &one), Ok(one.clone()));
        assert_eq!(found(Some(one.join("xtask")), &elsewhere), Ok(one.clone()));
        assert_eq!(found(None, &elsewhere), Ok(one.clone()), "taken along, it has its own files");
        assert_eq!(
            found(Some(elsewhere.clone()), &elsewhere),
            Ok(one.clone()),
            "a test of another project's"
        );
        let link = scratch.path().join("link");
        assert_eq!(found(None, &link.join("vm-tests")), Ok(link));
        for (said, here) in [(None, copy.join("vm-tests")), (Some(copy.join("xtask")), one.clone())] {
            let error = found(said, &here).expect_err("a copy");
            let (built, run) =
                (format!("built from {}", one.display()), format!("run in {}", copy.display()));
            assert!(error.contains(&built) && error.contains(&run), "{error}");
            assert!(error.contains("cargo clean -p vm-tests -p xtask"), "{error}");
        }

        // Moved, and run at its new place or at none.
        let moved = scratch.path().join("moved");
        std::fs::rename(&one, &moved).expect("rename");
        assert!(found(None, &moved).expect_err("moved").contains("build it anew"));
        assert!(found(None, &elsewhere).expect_err("gone").contains("not at"));
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    #[test]
    fn keys_tell_inputs_apart() {
        let key = |inputs: Inputs| inputs.key();
        let base = || Inputs::new("image", 1);
        let keys = [
            key(base()),
            key(Inputs::new("image", 2)),
            key(base().text("a", "bc")),
            key(base().text("ab", "c")),
            key(base().list("l", &["a", "b"])),
            key(base().list("l", &["ab"])),
            key(base().list("l", &["a"]).list("b", &[""; 0])),
        ];
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[..n].contains(key), "key {n} is not new");
        }
        assert_eq!(keys[2], base().text("a", "bc").key(), "the same inputs give the same key");
        assert_eq!(keys[0].short().len(), 12);
    }

    #[test]
    fn an_entry_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let target = dir.path().join("entry");
        block_on(async {
            let lock =
                Lock::exclusive(&dir.path().join("lock"), |_| panic!("nobody has it")).await.expect("a lock");
            let no_dead = async |path: &Path| panic!("{} is not dead", path.display());

            let staging = Staging::begin(&target, &lock, no_dead).await.expect("begin");
            std::fs::write(staging.path().join("file"), "half").expect("write");
            drop(staging);
            assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "only the lock is left");

            for text in ["first", "second"] {
                let staging = Staging::begin(&target, &lock, no_dead).await.expect("begin");
                std::fs::write(staging.path().join("file"), text).expect("write");
                staging.commit().expect("commit");
                assert_eq!(std::fs::read_to_string(target.join("file")).expect("read"), text);
            }
            assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2, "lock and entry");

            std::mem::forget(Staging::begin(&target, &lock, no_dead).await.expect("begin"));
            let mut dead = 0;
            let count = async |_: &Path| {
                dead += 1;
                Ok(())
            };
            drop(Staging::begin(&target, &lock, count).await.expect("begin after a dead build"));
            assert_eq!(dead, 1);
            assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2, "lock and entry");
        });
    }

    #[test]
    fn a_second_lock_waits_for_the_first_and_says_so() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("lock");
        block_on(async {
            let first = Lock::exclusive(&path, |_| panic!("nobody has it")).await.expect("a lock");
            let mut said = String::new();
            let mut first = Some(first);
            let second = Lock::exclusive(&path, |who| {
                who.clone_into(&mut said);
                drop(first.take());
            });
            let second = tokio::time::timeout(Duration::from_secs(20), second).await;
            second.expect("in time").expect("a lock");
            assert_eq!(said, format!("process {}", std::process::id()));
        });
    }

    #[test]
    fn what_a_dead_holder_left_is_ended() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("lock");
        let lives = Duration::from_secs(20);
        block_on(async {
            // A child that holds the lock, and a file that says a process has it which is no more.
            let lock = Lock::exclusive(&path, |_| panic!("nobody has it")).await.expect("a lock");
            let program =
                process::Program::new("sleep").arg("1000").pass_fd(lock.share().expect("a handle"), 9);
            let mut child = program.spawn().expect("it starts");
            drop(lock);
            let started = Identity::own().expect("us").started + 1;
            let gone = Identity { pid: std::process::id(), started };
            let holder = Holder { process: gone, group: Some(child.pid()) };
            std::fs::write(&path, holder.line()).expect("write");

            let lock = tokio::time::timeout(lives, Lock::exclusive(&path, |_| {})).await;
            drop(lock.expect("in time").expect("a lock"));
            let status = tokio::time::timeout(lives, child.wait()).await.expect("in time").expect("a status");
            assert_eq!(process::describe(status), "killed by SIGKILL");
        });
    }

    #[test]
    fn a_holder_is_one_line() {
        let process = Identity { pid: 7, started: 1234 };
        for group in [None, Some(42)] {
            let holder = Holder { process, group };
            assert_eq!(Holder::parse(&holder.line()), Some(holder));
        }
        assert_eq!(Holder::parse(""), None);
        assert_eq!(Holder::parse("7 12"), None);
    }

    #[test]
    fn deleting_a_tree_does_not_follow_links_and_takes_a_missing_one() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let (keep, tree) = (dir.path().join("keep"), dir.path().join("tree"));
        std::fs::create_dir_all(tree.join("a/b")).expect("dirs");
        std::fs::create_dir(&keep).expect("dir");
        std::fs::write(keep.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&keep, tree.join("a/link")).expect("link");
        remove_tree(&tree).expect("delete");
        assert!(!tree.exists() && keep.join("file").exists());
        remove_tree(&tree).expect("a missing tree is fine");
        remove_tree(Path::new("/proc")).expect_err("a mount is not deleted");
    }

    #[test]
    fn deleting_stops_at_a_mount() {
        // /proc is a mount below /, and the only thing this could do is fail.
        let error = remove_tree(Path::new("/proc")).expect_err("a mount");
        assert!(error.to_string().contains("it is a mount"), "{error:#}");
    }
}
