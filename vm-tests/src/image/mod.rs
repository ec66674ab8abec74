//! A guest image: the root file system, kernel and modules of a Debian suite, built without root and kept.
//!
//! mmdebstrap makes a tar of the root in a user namespace, sqfstar packs it, tar(1) takes out what the host needs
//! to boot it. The tar lies on disk between them: packing and unpacking take a second together, where building
//! takes a minute, so a stream through all three would save nothing and blur who failed.
//!
//! The squashfs is not compressed. Guests run under emulation, where decompressing is the guest's own slow work,
//! and 160 MB is little; lz4 would make it 95 MB. It is one file that any number of machines read at once.
//!
//! An image is named by the hash of its inputs and never rebuilt for its age: an archive that moved on is a
//! reason to ask for `--rebuild`, not for a test to change under one's feet. Booting is [`crate::image::initramfs`]' and
//! [`crate::machine::config`]'s business.

pub mod initramfs;
pub mod kernel;
pub mod programs;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Inputs, Key, Lock, Staging};
use crate::host::process::{self, Program, Progress, Stream};
use crate::host::tools::{self, Need};

/// Goes up when the way an image is made changes and its inputs do not.
const RECIPE: u32 = 3;

/// The variable that names the mirror, as `--mirror` does.
pub const MIRROR_VAR: &str = "VM_TESTS_MIRROR";

/// What is in an image beyond Debian's essential packages and apt.
const PACKAGES: &[&str] = &[
    // What the whole thing is about, as init.
    "systemd-sysv",
    // Units and properties over the system bus.
    "dbus",
    // Devices and modules, as a production host has them.
    "udev",
    "kmod",
    // A real disk file system for upper layers.
    "e2fsprogs",
    // ps for people in `xtask shell`; fuser and lsof as witnesses beside our own diagnosis. 4 MB together.
    "procps",
    "psmisc",
    "lsof",
    // The smaller of Debian's kernels: virtio and file systems, no hardware drivers.
    "linux-image-cloud-amd64",
];

/// What dpkg leaves out: nobody reads it in a guest.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// mmdebstrap copies the host's name and resolver into the root; neither belongs there.
const FORGET_HOST: &str = r#"--customize-hook=echo guest >"$1/etc/hostname" && : >"$1/etc/resolv.conf""#;

/// How sqfstar packs: nothing compressed (inodes, data, fragments, xattrs), the root directory as tar has it
/// (sqfstar skips the entry `./` and would make it 0777), no bar, into a file that is there, xattrs kept (file capabilities).
const SQUASHFS: &[&str] =
    &["-noI", "-noD", "-noF", "-noX", "-xattrs", "-no-progress", "-quiet", "-force", "-root-mode", "0755"];

/// No file is newer than this and generated ones have this date, in seconds since 1970: 2026-01-01, UTC. The
/// same packages then give the same bytes, whoever builds. See SOURCE_DATE_EPOCH in mmdebstrap(1).
const EPOCH: &str = "1767225600";

/// How long mmdebstrap may take: a minute from a near mirror, far more over a bad line.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// How long packing and unpacking may take; a second each on a good disk.
const PACK_LIMIT: Duration = Duration::from_secs(600);

const ROOT: &str = "root.squashfs";
const KERNEL: &str = "kernel";
const CONFIG: &str = "kernel.config";
const MODULES: &str = "modules";
const MANIFEST: &str = "manifest.json";

/// In a build's working directory: the path of the directory under `/tmp` that mmdebstrap works in.
const SCRATCH: &str = "scratch";
const SCRATCH_PREFIX: &str = "vm-image-";

/// A Debian suite that guests are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Debian 12: Linux 6.1, systemd 252.
    Bookworm,
    /// Debian 13: Linux 6.12, systemd 257.
    #[default]
    Trixie,
    /// Debian unstable.
    Sid,
}

impl Suite {
    /// All suites, the oldest first.
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// Its code name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|suite| suite.as_str() == text)
            .ok_or_else(|| format!("{text:?} is none of {}", known()))
    }
}

/// The name of a guest that somebody else built.
pub const FOREIGN: &str = "own";

/// Which image is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Of what.
    pub suite: Suite,
    /// Where packages come from; `None` is what mmdebstrap takes by itself, with security and point updates.
    pub mirror: Option<String>,
    /// Build it even if it is there.
    pub rebuild: bool,
}

impl Request {
    /// A suite from the mirror that `$VM_TESTS_MIRROR` names, if it does.
    #[must_use]
    pub fn from_env(suite: Suite) -> Self {
        let mirror = std::env::var(MIRROR_VAR).ok().filter(|mirror| !mirror.is_empty());
        Self { suite, mirror, rebuild: false }
    }

    /// What the image is named by.
    #[must_use]
    pub fn key(&self) -> Key {
        Inputs::new("image", RECIPE)
            .text("suite", self.suite.as_str())
            .list("mmdebstrap", &self.options())
            .list("sqfstar", SQUASHFS)
            .text("epoch", EPOCH)
            // An empty mirror is not a mirror.
            .text("mirror", self.mirror.as_deref().unwrap_or_default())
            .key()
    }

    /// Where the image is or will be.
    ///
    /// # Errors
    /// As [`cache::root`].
    pub fn dir(&self) -> anyhow::Result<PathBuf> {
        Ok(cache::root()?.join("images").join(format!("{}-{}", self.suite, self.key().short())))
    }

    /// mmdebstrap's options; suite, output and mirror follow them.
    fn options(&self) -> Vec<String> {
        let mut options = vec![
            "--variant=minbase".to_owned(),
            // As root too: in namespaces of its own it cannot leave a mount on the host.
            "--mode=unshare".to_owned(),
            "--format=tar".to_owned(),
            "--architectures=amd64".to_owned(),
            format!("--include={}", PACKAGES.join(",")),
            "--aptopt=Apt::Install-Recommends \"false\"".to_owned(),
            FORGET_HOST.to_owned(),
        ];
        if self.suite == Suite::Sid {
            // Its index is good for a week, and a mirror that is further behind is no reason to have no guest. The
            // signature is checked all the same: what is given up is to notice an archive that is held back.
            options.push("--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned());
        }
        options.extend(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        options
    }
}

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
    fn of(path: &Path) -> anyhow::Result<Self> {
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

/// Returns the image that is asked for, building it if it is not in the cache.
///
/// Two builds of one image wait for each other, with a message; an interrupted one leaves nothing behind, and
/// what a killed one left is removed by the next.
///
/// # Errors
/// [`process::Interrupted`] somewhere in the chain (see [`process::is_interrupt`]) if we are told to stop; a
/// missing tool with the command that installs it; what mmdebstrap says.
pub async fn ensure(request: &Request) -> anyhow::Result<Image> {
    let dir = request.dir()?;
    if !request.rebuild && dir.exists() {
        match Image::load(&dir) {
            Ok(image) => return Ok(image),
            Err(error) => eprintln!("image {} is damaged, building it anew: {error:#}", dir.display()),
        }
    }
    tools::ensure(&[Need::Image]).await?;
    check_user()?;
    let lock = Lock::exclusive(&dir.with_extension("lock"), |who| {
        eprintln!("image {}: waiting for {who}, which builds it", request.suite);
    })
    .await?;
    // Whoever we waited for may have built it.
    if !request.rebuild
        && let Ok(image) = Image::load(&dir)
    {
        return Ok(image);
    }
    let staging = Staging::begin(&dir, &lock, remove_scratch_of).await?;
    build(request, &staging, &lock).await.with_context(|| format!("build the image of {}", request.suite))?;
    Image::load(&staging.commit()?)
}

/// Makes all files of an image in the working directory.
async fn build(request: &Request, staging: &Staging, lock: &Lock) -> anyhow::Result<()> {
    let progress = Progress::start(&format!("image of {}", request.suite));
    let mut stages = Stages::default();
    let work = staging.path();
    let tar = work.join("root.tar");

    let scratch = Scratch::make(work)?;
    let made = debootstrap(request, &tar, &scratch, lock, &progress).await;
    // Whatever came of it. If this is not reached, the next build does it, by the note in `work`.
    let removed = remove_scratch(&scratch.dir).await;
    stages.time("mmdebstrap", made)?;
    removed?;
    let note = work.join(SCRATCH);
    std::fs::remove_file(&note).with_context(|| format!("delete {}", note.display()))?;

    progress.now("packing the root");
    stages.time("sqfstar", pack(&tar, &work.join(ROOT)).await)?;
    progress.now("taking out kernel and modules");
    let (kernel_version, packages) = stages.time("tar", unpack(&tar, work).await)?;
    std::fs::remove_file(&tar).with_context(|| format!("delete {}", tar.display()))?;

    let record = |name: &str| Ok((name.to_owned(), FileRecord::of(&work.join(name))?));
    let files = stages.time("sha256", [ROOT, KERNEL, CONFIG].into_iter().map(record).collect())?;
    let manifest = Manifest {
        recipe: RECIPE,
        key: request.key().as_str().to_owned(),
        suite: request.suite,
        mirror: request.mirror.clone(),
        kernel_version,
        packages,
        files,
        stages_ms: stages.done,
    };
    let path = work.join(MANIFEST);
    std::fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
        .with_context(|| format!("write {}", path.display()))
}

/// How long each stage took.
struct Stages {
    since: Instant,
    done: BTreeMap<String, u64>,
}

impl Default for Stages {
    fn default() -> Self {
        Self { since: Instant::now(), done: BTreeMap::new() }
    }
}

impl Stages {
    /// Notes the end of a stage, and hands its result on.
    fn time<T>(&mut self, name: &str, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let now = Instant::now();
        let took = now.duration_since(self.since).as_millis();
        self.done.insert(name.to_owned(), u64::try_from(took).unwrap_or(u64::MAX));
        self.since = now;
        result
    }
}

/// Makes the tar of a root.
async fn debootstrap(
    request: &Request,
    tar: &Path,
    scratch: &Scratch,
    lock: &Lock,
    progress: &Progress,
) -> anyhow::Result<()> {
    let program = Program::new("mmdebstrap")
        .args(request.options())
        .arg(request.suite.as_str())
        .arg(tar)
        .args(&request.mirror)
        .env("TMPDIR", &scratch.dir)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        // The kernel package then asks for no initramfs.
        .env("INITRD", "No")
        .env("LC_ALL", "C.UTF-8")
        // If we are killed, its processes keep the lock, and the next build knows whom to end: they may hang,
        // each waiting for another that is gone.
        .pass_fd(lock.share()?, 9);
    let note = |group| lock.note_group(Some(group));
    let made = process::run_noted(program, BUILD_LIMIT, note, |stream, line| {
        if stream == Stream::Stderr
            && let Some(stage) = line.strip_prefix("I: ")
        {
            progress.now(stage);
        }
    })
    .await;
    lock.note_group(None).context("write the lock file")?;
    made?;
    Ok(())
}

/// Packs a tar as a squashfs.
///
/// sqfstar 4.5 gives the root directory to whoever runs it, whatever `-root-uid` says, and systemd-tmpfiles
/// refuses to work below a root that is a user's. So it runs as root, be it that of a namespace. That one cannot
/// enter a home directory, and gets the output by a descriptor; it may write to the file while this takes.
async fn pack(tar: &Path, squashfs: &Path) -> anyhow::Result<()> {
    let input = File::open(tar).with_context(|| format!("open {}", tar.display()))?;
    let what = || format!("create {}", squashfs.display());
    let output = File::create_new(squashfs).with_context(what)?;
    let root = nix::unistd::geteuid().is_root();
    output.set_permissions(Permissions::from_mode(if root { 0o644 } else { 0o666 })).with_context(what)?;
    let handle = output.try_clone().with_context(what)?;
    let program = if root { Program::new("sqfstar") } else { mapped("sqfstar") };
    let program = program
        .args(SQUASHFS)
        .arg("/proc/self/fd/9")
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .stdin(input)
        .pass_fd(handle.into(), 9);
    process::run(program, PACK_LIMIT, |_, _| {}).await?;
    // A guest has it as persistent memory, whose size must be a multiple of this.
    let length = output.metadata().with_context(what)?.len();
    output.set_len(length.next_multiple_of(crate::machine::config::PMEM_ALIGN)).with_context(what)?;
    output.set_permissions(Permissions::from_mode(0o644)).with_context(what)
}

/// Takes the kernel and its modules out of a root's tar; returns the kernel's release and dpkg's packages.
///
/// By tar(1), which mmdebstrap needs anyway, and not by a crate: it is one call, and quick.
async fn unpack(tar: &Path, work: &Path) -> anyhow::Result<(String, BTreeMap<String, String>)> {
    let out = work.join("unpacked");
    std::fs::create_dir(&out).with_context(|| format!("create {}", out.display()))?;
    let program = Program::new("tar")
        .args(["--extract", "--no-same-owner", "--wildcards"])
        .arg("--file")
        .arg(tar)
        .arg("--directory")
        .arg(&out)
        .args(["./boot/vmlinuz-*", "./boot/config-*", "./usr/lib/modules", "./var/lib/dpkg/status"]);
    process::run(program, PACK_LIMIT, |_, _| {}).await?;

    let modules = out.join("usr/lib/modules");
    let version = only_name_in(&modules)?;
    let moves = [
        (out.join(format!("boot/vmlinuz-{version}")), KERNEL),
        (out.join(format!("boot/config-{version}")), CONFIG),
        (modules, MODULES),
    ];
    for (from, name) in moves {
        let to = work.join(name);
        std::fs::rename(&from, &to)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    }
    let (kernel, config) = (work.join(KERNEL), work.join(CONFIG));
    let bzimage = std::fs::read(&kernel).with_context(|| format!("read {}", kernel.display()))?;
    let config = std::fs::read_to_string(&config).with_context(|| format!("read {}", config.display()))?;
    if let Some(vmlinux) =
        kernel::vmlinux(&bzimage, &config).with_context(|| format!("unpack the kernel of {version}"))?
    {
        std::fs::write(&kernel, vmlinux).with_context(|| format!("write {}", kernel.display()))?;
    }
    let status = out.join("var/lib/dpkg/status");
    let text = std::fs::read_to_string(&status).with_context(|| format!("read {}", status.display()))?;
    cache::remove_tree(&out)?;
    Ok((version, parse_status(&text)))
}

/// The one entry of a directory.
fn only_name_in(dir: &Path) -> anyhow::Result<String> {
    let what = || format!("list {}", dir.display());
    let entries =
        std::fs::read_dir(dir).with_context(what)?.collect::<Result<Vec<_>, _>>().with_context(what)?;
    match entries.as_slice() {
        [one] => Ok(one.file_name().to_string_lossy().into_owned()),
        more => bail!("{} has {} entries where one kernel is expected", dir.display(), more.len()),
    }
}

/// Installed packages and their versions, from dpkg's status file.
fn parse_status(text: &str) -> BTreeMap<String, String> {
    let package = |stanza: &str| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let installed = field("Status:")?.ends_with(" installed");
        installed.then_some((field("Package:")?.to_owned(), field("Version:")?.to_owned()))
    };
    text.split("\n\n").filter_map(package).collect()
}

/// The directory in which mmdebstrap unpacks.
///
/// Under `/tmp` and not in the cache: the ids that a user's namespace maps cannot enter a home directory that is
/// closed to others. Its path is noted in the build's working directory, before it exists, so that whoever
/// finds that one removes this one as well.
#[derive(Debug)]
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn make(work: &Path) -> anyhow::Result<Self> {
        let unique =
            work.file_name().and_then(|name| name.to_str()).context("the working directory has no name")?;
        let user = nix::unistd::geteuid();
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
async fn remove_scratch_of(work: &Path) -> anyhow::Result<()> {
    eprintln!("removing what an earlier build left in {}", work.display());
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
fn mapped(name: &str) -> Program {
    Program::new("mmdebstrap").arg("--unshare-helper").arg(name)
}

/// Removes a scratch directory, provided it is one of ours.
async fn remove_scratch(dir: &Path) -> anyhow::Result<()> {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SCRATCH_PREFIX));
    ensure!(named, "{} is not a scratch directory", dir.display());
    match std::fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() => {}
        Ok(_) => bail!("{} is somebody else's", dir.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("stat {}", dir.display())),
    }
    let what = || format!("list {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let owner = entry.metadata().with_context(what)?.uid();
        if owner != nix::unistd::geteuid().as_raw() && !nix::unistd::geteuid().is_root() {
            // It belongs to an id that the host lends us; only a namespace that maps it can empty it.
            let args = ["-xdev", "-mindepth", "1", "-delete"];
            let program = mapped("find").arg(entry.path()).args(args);
            process::run(program, PACK_LIMIT, |_, _| {}).await?;
        }
    }
    cache::remove_tree(dir)
}

/// Whether this user can build at all: the files of a root belong to many ids, which the host has to lend.
fn check_user() -> anyhow::Result<()> {
    for (path, closed) in
        [("/proc/sys/kernel/unprivileged_userns_clone", "0"), ("/proc/sys/user/max_user_namespaces", "0")]
    {
        // Not every kernel has the first.
        if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == closed) {
            bail!("user namespaces are switched off: {path} is {closed}");
        }
    }
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return Ok(());
    }
    let name = nix::unistd::User::from_uid(user).context("look up our user")?.map(|user| user.name);
    let name = name.with_context(|| format!("user {user} has no name, which /etc/subuid goes by"))?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        ensure!(
            lends_ids(&text, &name, user.as_raw()),
            "{file} lends user {name} no ids to build an image with; to get some, type:\n  \
             sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        );
    }
    Ok(())
}

/// Whether a subuid(5) file gives a user at least the 65536 ids that a root file system may use.
fn lends_ids(text: &str, name: &str, uid: u32) -> bool {
    text.lines().any(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [user, _start, count] => {
            (user == name || user == uid.to_string()) && count.trim().parse::<u64>().is_ok_and(|n| n >= 65536)
        }
        _ => false,
    })
}

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
/// cache, with zeros up to the next size that it can.
///
/// # Errors
/// Names what is missing and what it should be.
pub async fn adopt(foreign: &Foreign) -> anyhow::Result<Adopted> {
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
    let dir = cache::root()?.join("images").join(format!("root-{}", root_key.short()));
    let copy = dir.join(ROOT);
    let whole = || std::fs::metadata(&copy).is_ok_and(|meta| meta.len() == wanted);
    if !whole() {
        let lock = Lock::exclusive(&dir.with_extension("lock"), |who| {
            eprintln!("{}: waiting for {who}, which copies it", root.display());
        })
        .await?;
        if !whole() {
            eprintln!("copying {} to a size that a guest can map", root.display());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_root_gets_a_size_that_a_guest_can_map() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let at = |name: &str| dir.path().join(name);
        let foreign = Foreign { kernel: at("vmlinuz"), modules: at("modules"), root: at("root") };
        let refused = |words: &str| {
            let error = block_on(adopt(&foreign)).expect_err("a part is missing");
            assert!(error.to_string().contains(words), "{error:#}");
        };
        refused("--kernel");
        std::fs::write(&foreign.kernel, "").expect("write");
        refused("no modules.dep");
        std::fs::create_dir(&foreign.modules).expect("mkdir");
        std::fs::write(foreign.modules.join("modules.dep"), "").expect("write");
        refused("mksquashfs");
        std::fs::write(&foreign.root, "").expect("write");
        File::options()
            .write(true)
            .open(&foreign.root)
            .and_then(|file| file.set_len(crate::machine::config::PMEM_ALIGN))
            .expect("length");
        let adopted = block_on(adopt(&foreign)).expect("all is there");
        assert_eq!(adopted.root, foreign.root, "it is mapped as it is");
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    #[test]
    fn every_input_has_a_key_of_its_own() {
        let base = || Request::default();
        let keys = [
            base().key(),
            Request { suite: Suite::Sid, ..base() }.key(),
            Request { mirror: Some("http://mirror.example/debian".to_owned()), ..base() }.key(),
        ];
        assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
        assert_eq!(keys[0], Request { rebuild: true, ..base() }.key(), "a rebuild makes the same image");
    }

    #[test]
    fn suites_are_named() {
        for suite in Suite::ALL {
            assert_eq!(suite.as_str().parse(), Ok(suite));
        }
        assert_eq!("potato".parse::<Suite>(), Err("\"potato\" is none of bookworm, trixie, sid".to_owned()));
    }

    #[test]
    fn the_command_line_is_as_agreed() {
        insta::assert_snapshot!(Request::default().options().join("\n"), @r#"
        --variant=minbase
        --mode=unshare
        --format=tar
        --architectures=amd64
        --include=systemd-sysv,dbus,udev,kmod,e2fsprogs,procps,psmisc,lsof,linux-image-cloud-amd64
        --aptopt=Apt::Install-Recommends "false"
        --customize-hook=echo guest >"$1/etc/hostname" && : >"$1/etc/resolv.conf"
        --dpkgopt=path-exclude=/usr/share/doc/*
        --dpkgopt=path-exclude=/usr/share/man/*
        --dpkgopt=path-exclude=/usr/share/locale/*
        --dpkgopt=path-exclude=/usr/share/info/*
        "#);
    }

    #[test]
    fn only_installed_packages_count() {
        let text = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n Package: y\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: b\nStatus: install ok installed\nVersion: 4\n";
        let expected =
            [("a", "1:2-3"), ("b", "4")].map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(parse_status(text), BTreeMap::from(expected));
        assert_eq!(parse_status(""), BTreeMap::new());
    }

    #[test]
    fn ids_are_lent_by_name_or_number() {
        assert!(lends_ids("x:1:1\nme:100000:65536\n", "me", 1000));
        assert!(lends_ids("1000:100000:65536\n", "me", 1000));
        assert!(!lends_ids("me:100000:1000\n", "me", 1000));
        assert!(!lends_ids("you:100000:65536\nme\n", "me", 1000));
    }

    /// An image of files that are none, in a directory.
    fn fake(dir: &Path) -> Image {
        let modules = dir.join(MODULES).join("6.1-x");
        std::fs::create_dir_all(&modules).expect("a directory");
        std::fs::write(modules.join("modules.dep"), "").expect("write");
        let file = |name: &str| {
            std::fs::write(dir.join(name), name).expect("write");
            (name.to_owned(), FileRecord::of(&dir.join(name)).expect("it is there"))
        };
        let manifest = Manifest {
            recipe: RECIPE,
            key: Request::default().key().as_str().to_owned(),
            suite: Suite::Trixie,
            mirror: None,
            kernel_version: "6.1-x".to_owned(),
            packages: BTreeMap::new(),
            files: [ROOT, KERNEL, CONFIG].map(file).into(),
            stages_ms: BTreeMap::new(),
        };
        std::fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).expect("json")).expect("write");
        Image::load(dir).expect("it is whole")
    }

    #[test]
    fn a_damaged_image_is_not_taken_for_whole() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let image = fake(dir.path());
        image.verify().expect("it is what was written");
        std::fs::write(&image.kernel, "kernal").expect("write");
        Image::load(dir.path()).expect("the size is the same");
        let error = image.verify().expect_err("the contents are not");
        assert!(error.to_string().contains(KERNEL), "{error:#}");
        std::fs::write(&image.root, "").expect("write");
        Image::load(dir.path()).expect_err("the size is another");
        fake(dir.path());
        std::fs::remove_file(dir.path().join(MANIFEST)).expect("delete");
        Image::load(dir.path()).expect_err("without a manifest");
    }

    #[test]
    fn only_our_own_scratch_is_removed() {
        block_on(remove_scratch(Path::new("/etc"))).expect_err("not a scratch directory");
        let dir = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir().expect("a temp dir");
        std::fs::create_dir(dir.path().join("sub")).expect("a directory");
        block_on(remove_scratch(dir.path())).expect("ours");
        assert!(!dir.path().exists());
        block_on(remove_scratch(dir.path())).expect("gone is fine");
    }
}
