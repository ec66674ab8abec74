//! Builds an image: root, kernel, modules.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use super::debian::{EPOCH, NoSuchPackage, RECIPE, RECORD, Request, SQUASHFS, missing_package};
use super::entry::{CONFIG, FileRecord, Image, KERNEL, MANIFEST, MODULES, Manifest, ROOT};
use super::kernel;
use super::lent::check_user;
use super::packages::Records;
use super::scratch::{PACK_LIMIT, SCRATCH, Scratch, mapped, remove_scratch, remove_scratch_of};
use crate::cache::{self, Lock, Staging};
use crate::host::events::{self, Event, Progress};
use crate::host::process::{self, Program, Stream};
use crate::host::tools::{self, Need};

/// How long mmdebstrap may take: a minute from a near mirror, far more over a bad line.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// Returns the image that is asked for, building it if it is not in the cache, whose root is `cache`.
///
/// Two builds of one image wait for each other, with a message; an interrupted one leaves nothing behind, and
/// what a killed one left is removed by the next.
///
/// # Errors
/// [`Interrupted`](crate::host::signals::Interrupted) somewhere in the chain (see [`process::is_interrupt`]) if we are told to stop; a
/// missing tool with the command that installs it; [`NoSuchPackage`]; what mmdebstrap says.
pub async fn ensure(request: &Request, cache: &Path) -> anyhow::Result<Image> {
    let dir = request.dir(cache);
    if !request.rebuild && dir.exists() {
        match Image::load(&dir) {
            Ok(image) => return Ok(image),
            Err(error) => events::tell(Event::Damaged {
                entry: format!("image {}", dir.display()),
                remedy: "building",
                error,
            }),
        }
    }
    tools::ensure(&[Need::Image], None, cache).await?;
    check_user()?;
    let lock = Lock::exclusive(&dir.with_extension("lock"), |who| {
        let (what, who) = (format!("image {}", request.suite), who.to_owned());
        events::tell(Event::Waiting { what, who, does: "builds" });
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
    let with = match request.packages.as_slice() {
        [] => String::new(),
        packages => format!(" with {}", packages.join(", ")),
    };
    let progress = Progress::start(&format!("image of {}{with}", request.suite));
    let mut stages = Stages::default();
    let work = staging.path();
    let tar = work.join("root.tar");

    let scratch = Scratch::make(work)?;
    let made = debootstrap(request, &tar, &scratch, lock, &progress).await;
    // Whatever came of it. If this is not reached, the next build does it, by the note in `work`.
    let removed = remove_scratch(&scratch.dir).await;
    let records = stages.time("mmdebstrap", made)?;
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
        sha256: records.of(&packages),
        archive: records.archive,
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

/// Makes the tar of a root, and tells what the archive says of its packages.
async fn debootstrap(
    request: &Request,
    tar: &Path,
    scratch: &Scratch,
    lock: &Lock,
    progress: &Progress,
) -> anyhow::Result<Records> {
    let keyring = tools::keyring().context("find the keys of Debian's archive")?;
    // Word by word: the options are a plan, which a golden file holds.
    let program = Program::new("mmdebstrap")
        .args(request.options())
        .arg(RECORD)
        .arg(request.suite.as_str())
        .arg(tar)
        .args(request.sources(&keyring))
        .env("TMPDIR", &scratch.dir)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        // The kernel package then asks for no initramfs.
        .env("INITRD", "No")
        .env("LC_ALL", "C.UTF-8")
        // If we are killed, its processes keep the lock, and the next build knows whom to end: they may hang,
        // each waiting for another that is gone.
        .pass_fd(lock.share()?, 9);
    let note = |group| lock.note_group(Some(group));
    let (mut missing, mut records) = (Vec::new(), Records::default());
    let made = process::run_noted(program, BUILD_LIMIT, note, |stream, line| {
        if stream == Stream::Stderr {
            line.strip_prefix("I: ").into_iter().for_each(|stage| progress.now(stage));
            missing.extend(missing_package(line).map(str::to_owned));
            records.line(line);
        }
    })
    .await;
    lock.note_group(None).context("write the lock file")?;
    if !missing.is_empty() {
        return Err(NoSuchPackage { suite: request.suite, packages: missing }.into());
    }
    made?;
    Ok(records)
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
    let root = rustix::process::geteuid().is_root();
    output.set_permissions(Permissions::from_mode(if root { 0o644 } else { 0o666 })).with_context(what)?;
    let handle = output.try_clone().with_context(what)?;
    let shell = Shell::new()?;
    let sqfstar = if root { cmd!(shell, "sqfstar") } else { mapped(&shell, "sqfstar") };
    let program = Program::from(sqfstar.args(SQUASHFS).arg("/proc/self/fd/9"))
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .stdin(input)
        .pass_fd(handle.into(), 9);
    process::output(program, PACK_LIMIT).await?;
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
    let shell = Shell::new()?;
    let extract = cmd!(
        shell,
        "tar --extract --no-same-owner --wildcards --file {tar} --directory {out}
         ./boot/vmlinuz-* ./boot/config-* ./usr/lib/modules ./var/lib/dpkg/status"
    );
    process::output(extract.into(), PACK_LIMIT).await?;

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
pub(super) fn parse_status(text: &str) -> BTreeMap<String, String> {
    let package = |stanza: &str| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let installed = field("Status:")?.ends_with(" installed");
        installed.then_some((field("Package:")?.to_owned(), field("Version:")?.to_owned()))
    };
    text.split("\n\n").filter_map(package).collect()
}
