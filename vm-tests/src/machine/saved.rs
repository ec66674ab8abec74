//! A booted machine, saved once and restored for every scenario.
//!
//! Its RAM is a file that a restored machine maps privately, so restoring copies nothing and any number of machines
//! start from one saved state at once. The state of its devices is a migration stream of 0.4 MB without RAM
//! (`x-ignore-shared`). An entry of the cache is keyed by everything that went into the machine, so a machine of
//! another image, agent, QEMU or configuration is never restored; a damaged one is noticed by its hashes and made
//! anew.
//!
//! A state for virtual time is booted in virtual time: under another clock its timers would be calibrated wrongly.

use std::fs::{File, Permissions};
use std::io::{self, BufRead as _, BufReader};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cache::{self, Inputs, Key, Lock, Staging};
use crate::host::accel::{Accel, Clock};
use crate::host::events::{self, Event, Progress};
use crate::machine::base::Base;
use crate::machine::config::{DEPLOY_BYTES, Ram};
use crate::machine::state::{NotAtRest, make_steady};
use crate::machine::{Cancel, Machine};

/// Goes up when the way a machine is saved changes and its inputs do not.
const RECIPE: u32 = 3;

/// From QEMU's start to an agent that answers: 5 to 20 s on an idle host; virtual time on a busy one is the slowest.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// From the agent's answer to a machine without pending jobs.
const SETTLE_DEADLINE: Duration = Duration::from_secs(300);

/// How often a machine is paused that must be at rest then and is not, by the host's threads: seen once in 29 boots.
pub(crate) const TRIES: usize = 3;

/// How many saved machines are kept however old: three suites under two clocks, in two sizes.
const KEPT: usize = 12;
/// How long a machine beyond that must have been unused to be deleted.
const UNUSED: Duration = Duration::from_secs(3600);

/// The unit in which a saved RAM has holes, in bytes: a page, and a block of the usual file systems.
const HOLE: usize = 4096;

/// How much of a saved file is read at once, in bytes.
const PIECE: usize = 1 << 20;

const RAM: &str = "ram";
const STATE: &str = "state";
pub(crate) const MANIFEST: &str = "manifest.json";
/// The boot's own logs; of a boot that failed they are kept beside the entry that it was to be.
const LOGS: &str = "boot";

/// A saved machine in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// The guest's RAM, as a file to map privately.
    pub ram: PathBuf,
    /// The state of its devices.
    pub state: PathBuf,
    /// The hash of both: in virtual time the same wherever it is made of the same inputs.
    pub hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    recipe: u32,
    key: String,
    ram_sha256: String,
    state_sha256: String,
    boot_ms: u64,
}

/// Returns the saved machine for a base, of the guest of this name, booting and saving one if there is none in the cache, whose
/// root is `cache`.
///
/// # Errors
/// As [`Machine::race`] for the boot; a machine that settles in another state than `running` names the failed
/// units.
pub async fn ensure(name: &str, base: &Base, cache: &Path, cancel: Cancel) -> Result<Saved> {
    let key = key(base)?;
    let machines = cache.join("machines");
    let directory = machines.join(key.short());
    if directory.exists() {
        match load(&directory, &key) {
            Ok(saved) => return Ok(saved),
            Err(error) => events::tell(Event::Damaged {
                entry: format!("saved machine {}", directory.display()),
                remedy: "making",
                error,
            }),
        }
    }
    let lock = Lock::exclusive(&directory.with_extension("lock"), |who| {
        let (what, who) = ("saved machine".to_owned(), who.to_owned());
        events::tell(Event::Waiting { what, who, does: "makes" });
    })
    .await?;
    // Whoever we waited for may have made it.
    if let Ok(saved) = load(&directory, &key) {
        return Ok(saved);
    }
    let staging = Staging::begin(&directory, &lock, |_dead: &Path| async { Ok(()) }).await?;
    if let Err(error) = make(name, base, staging.path(), &key, cancel).await {
        let (logs, evidence) = (staging.path().join(LOGS), directory.with_extension("failed"));
        cache::remove_tree(&evidence)?;
        let kept = match std::fs::rename(&logs, &evidence) {
            Ok(()) => format!("evidence: {}", evidence.display()),
            Err(nothing) => format!("no evidence: {}: {nothing}", logs.display()),
        };
        return Err(error.context(kept).context("boot the machine that is saved"));
    }
    let saved = load(&staging.commit()?, &key)?;
    tidy(&machines)?;
    Ok(saved)
}

/// Finds the saved machine for a base, without a look at whether it is as it was saved: that reads all of it. [`ensure`]
/// looks. `None` if there is none.
///
/// # Errors
/// If an input can't be read.
pub fn find(base: &Base, cache: &Path) -> Result<Option<Saved>> {
    let key = key(base)?;
    let directory = cache.join("machines").join(key.short());
    Ok(manifest(&directory, &key).ok().map(|manifest| manifest.saved(&directory)))
}

/// Deletes machines that nobody has used for long: every change of the agent makes a new one of 200 MB.
fn tidy(machines: &Path) -> Result<()> {
    tidy_to(machines, KEPT, UNUSED)
}

/// Deletes the longest unused entries of a directory of the cache, beyond so many, that nobody has used for so long.
pub(crate) fn tidy_to(machines: &Path, kept: usize, unused_for: Duration) -> Result<()> {
    let what = || format!("tidy {}", machines.display());
    let mut unused = Vec::new();
    for entry in std::fs::read_dir(machines).with_context(what)? {
        let directory = entry.with_context(what)?.path();
        // An entry without a manifest is being made, or is kept for its logs.
        if let Ok(used) = std::fs::metadata(directory.join(MANIFEST)).and_then(|manifest| manifest.modified())
        {
            unused.push((used, directory));
        }
    }
    unused.sort();
    let surplus = unused.len().saturating_sub(kept);
    for (used, directory) in unused.into_iter().take(surplus) {
        // A run that has just found it has yet to open it; one that has it open keeps it.
        if used.elapsed().is_ok_and(|age| age > unused_for) {
            cache::remove_tree(&directory)?;
        }
    }
    Ok(())
}

/// The hash of everything that a saved machine consists of.
fn key(base: &Base) -> Result<Key> {
    let argv = base.neutral_argv(Ram::Saving(RAM.into()));
    let inputs = Inputs::new("machine", RECIPE)
        .text("qemu", &base.build.key())
        .list("argv", &argv)
        .text("root", &base.root_key)
        .file("kernel", &base.kernel)?
        .file("initramfs", &base.initramfs)?;
    // `-cpu host`: a machine that was booted on another processor would find its features gone.
    let cpu = if base.accel == Accel::Kvm { host_cpu()? } else { String::new() };
    Ok(inputs.text("cpu", &cpu).key())
}

/// The first processor of the host, without what changes from moment to moment.
fn host_cpu() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let steady = |line: &&str| {
        ["vendor_id", "model name", "stepping", "microcode", "flags"].iter().any(|key| line.starts_with(key))
    };
    Ok(text.lines().take_while(|line| !line.is_empty()).filter(steady).collect::<Vec<_>>().join("\n"))
}

impl Manifest {
    fn saved(&self, directory: &Path) -> Saved {
        let hashes = [&self.ram_sha256, &self.state_sha256];
        let hash = Inputs::new("saved machine", 1).list("hashes", &hashes).key().as_str().to_owned();
        Saved { ram: directory.join(RAM), state: directory.join(STATE), hash }
    }
}

fn manifest(directory: &Path, key: &Key) -> Result<Manifest> {
    let path = directory.join(MANIFEST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    ensure!(manifest.recipe == RECIPE && manifest.key == key.as_str(), "it is of another machine");
    Ok(manifest)
}

/// Notes that an entry is used now, for whoever tidies: a search restores one machine for hours, while others make theirs.
///
/// # Errors
/// If it is gone.
pub(crate) fn mark_used(directory: &Path) -> Result<()> {
    let path = directory.join(MANIFEST);
    let manifest = File::options().append(true).open(&path);
    manifest.and_then(|manifest| manifest.set_modified(SystemTime::now())).with_context(|| {
        format!("touch {}: a machine that is gone is made again by the same command", path.display())
    })
}

/// Loads an entry after comparing its hashes.
fn load(directory: &Path, key: &Key) -> Result<Saved> {
    let manifest = manifest(directory, key)?;
    let saved = manifest.saved(directory);
    ensure!(hash_sparse(&saved.ram)? == manifest.ram_sha256, "{} has changed", saved.ram.display());
    ensure!(hash_sparse(&saved.state)? == manifest.state_sha256, "{} has changed", saved.state.display());
    mark_used(directory)?;
    Ok(saved)
}

/// The SHA-256 of a file's length and of its pages that are not zeros, each with where it lies; holes are not read. Of
/// 512 MiB of RAM a settled guest has touched a quarter. Which zeros are holes is the file system's own affair.
pub(crate) fn hash_sparse(path: &Path) -> Result<String> {
    let what = || format!("read {}", path.display());
    let file = File::open(path).with_context(what)?;
    let mut hash = Sha256::new();
    hash.update(file.metadata().with_context(what)?.len().to_le_bytes());
    for_each_page(&file, |at, page| {
        hash.update(at.to_le_bytes());
        hash.update(page);
        Ok(())
    })
    .with_context(what)?;
    Ok(cache::hex(&hash.finalize()))
}

/// Where two files differ first, in bytes from their begin; `None` if they are the same.
pub(crate) fn first_difference(one: &Path, other: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let mut files =
        [BufReader::with_capacity(PIECE, open(one)?), BufReader::with_capacity(PIECE, open(other)?)];
    let mut at = 0;
    loop {
        let [left, right] = &mut files;
        let what = || format!("read {} and {}", one.display(), other.display());
        let (left, right) = (left.fill_buf().with_context(what)?, right.fill_buf().with_context(what)?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] {
            let same = left.iter().zip(right).take_while(|(left, right)| left == right).count();
            return Ok(Some(at + same as u64));
        }
        if length == 0 {
            return Ok((left.len() != right.len()).then_some(at));
        }
        at += length as u64;
        files.iter_mut().for_each(|file| file.consume(length));
    }
}

/// Calls `each` for every page of a file that is not all zeros, in order, with where it begins; the last one may be
/// shorter.
fn for_each_page(file: &File, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    const ZEROS: [u8; HOLE] = [0; HOLE];
    let mut buffer = vec![0; PIECE];
    for extent in extents(file) {
        let Range { start, end } = extent?;
        // By whole pages.
        let start = start / HOLE as u64 * HOLE as u64;
        for at in (start..end).step_by(PIECE) {
            let piece = read_piece(file, at, end, &mut buffer)?;
            for (page, at) in piece.chunks(HOLE).zip((at..).step_by(HOLE)) {
                if page != &ZEROS[..page.len()] {
                    each(at, page)?;
                }
            }
        }
    }
    Ok(())
}

/// Where a file has data, in order: what lies between is holes, lseek(2). After an error there is nothing to come.
fn extents(file: &File) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let next = match rustix::fs::seek(file, SeekFrom::Data(at.take()?)) {
            Ok(start) => rustix::fs::seek(file, SeekFrom::Hole(start)).map(|end| start..end),
            // No data from here to the end.
            Err(Errno::NXIO) => return None,
            Err(errno) => Err(errno),
        };
        at = next.as_ref().ok().map(|extent| extent.end);
        Some(next.map_err(io::Error::from))
    })
}

/// Reads from `at` to `end` of a file, but no more than the buffer holds.
fn read_piece<'a>(file: &File, at: u64, end: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = usize::try_from(end - at).map_or(buffer.len(), |length| length.min(buffer.len()));
    let piece = &mut buffer[..length];
    file.read_exact_at(piece, at)?;
    Ok(piece)
}

/// Boots a machine and saves it as an entry of the cache.
async fn make(name: &str, base: &Base, directory: &Path, key: &Key, cancel: Cancel) -> Result<()> {
    let begun = Instant::now();
    let (ram, state) = (directory.join(RAM), directory.join(STATE));
    let mut tries = 1;
    while let Err(error) = boot(name, base, directory, &ram, &state, cancel.clone()).await {
        if !error.is::<NotAtRest>() || tries == TRIES {
            return Err(error);
        }
        tries += 1;
        std::fs::remove_file(&ram).with_context(|| format!("delete {}", ram.display()))?;
        events::tell(Event::Note(format!("{error:#}: booting it again")));
    }
    dig_holes(&ram)?;
    let manifest = Manifest {
        recipe: RECIPE,
        key: key.as_str().to_owned(),
        ram_sha256: hash_sparse(&ram)?,
        state_sha256: hash_sparse(&state)?,
        boot_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    // One that QEMU can't map without opening it for writing stays as it is: see `Abilities`.
    let read_only = if base.abilities.private_readonly { vec![&ram, &state] } else { vec![&state] };
    for file in read_only {
        std::fs::set_permissions(file, Permissions::from_mode(0o444))
            .with_context(|| format!("make {} read-only", file.display()))?;
    }
    let path = directory.join(MANIFEST);
    std::fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
        .with_context(|| format!("write {}", path.display()))
}

/// Boots a machine with its RAM in a file, lets it settle, and saves it.
///
/// # Errors
/// [`NotAtRest`]: it is to be booted again.
async fn boot(
    name: &str,
    base: &Base,
    directory: &Path,
    ram: &Path,
    state: &Path,
    cancel: Cancel,
) -> Result<()> {
    let progress = Progress::start(&format!("machine of {name}"));
    // QEMU gives a new file its size; what the machine is saved with is nobody's to change afterwards.
    let deploy = directory.join("no-files");
    File::create(&deploy)
        .and_then(|file| file.set_len(DEPLOY_BYTES))
        .with_context(|| format!("create {}", deploy.display()))?;
    let logs = directory.join(LOGS);
    reserve(ram, u64::from(base.memory_mib) << 20)?;
    let config = base.config(Ram::Saving(ram.to_owned()), deploy.clone());
    progress.now(&format!("booting it, once ({}, {} MiB)", base.clock, base.memory_mib));
    let mut machine = Machine::start(&base.qemu, config, &logs, cancel).await?;
    let saved = async {
        match base.clock {
            // What the host says while it runs, it says at some instant of the guest's: so it says nothing.
            Clock::Virtual => machine.paused_by_guest(BOOT_DEADLINE).await?,
            Clock::Real => {
                settle(&mut machine).await?;
                let guest = machine.guest();
                machine.race("the doorbell", SETTLE_DEADLINE, guest.hears_doorbell()).await?;
                machine.pause().await?;
            }
        }
        progress.now("saving it");
        let file = File::create(state).with_context(|| format!("create {}", state.display()))?;
        machine.save(file).await.context("save the machine")
    }
    .await;
    machine.finish(saved).await?;
    std::fs::remove_file(&deploy).with_context(|| format!("delete {}", deploy.display()))?;
    match base.clock {
        Clock::Virtual => make_steady(state),
        Clock::Real => Ok(()),
    }
}

/// Makes the file for the guest's RAM and takes all its room on the disk: QEMU maps it, and a page that the disk has no
/// room for would be a SIGBUS in the middle of the boot and not an error.
fn reserve(ram: &Path, bytes: u64) -> Result<()> {
    let what = || format!("create {}", ram.display());
    let file = File::create_new(ram).with_context(what)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // A file system without it: the room that is there now is all that can be asked.
        Err(Errno::OPNOTSUPP) if cache::free_bytes(ram)? > bytes => file.set_len(bytes).with_context(what),
        Err(Errno::NOSPC | Errno::OPNOTSUPP) => bail!(
            "no room for a saved machine: it needs {} MiB at {} while it boots; free some, or set {} to a directory \
             on another disk",
            bytes >> 20,
            ram.display(),
            cache::CACHE_VAR
        ),
        Err(errno) => Err(errno).with_context(|| format!("fallocate {bytes} bytes of {}", ram.display())),
    }
}

/// Gives the disk back what the guest never wrote or wrote zeros to: of 512 MiB it has touched 200, and 80 of those are
/// zeros. A hole reads as zeros.
///
/// By a copy of what is not zeros, which takes its place: to punch the zeros out waits for the disk at every hole.
fn dig_holes(ram: &Path) -> Result<()> {
    let sparse = ram.with_extension("sparse");
    copy_without_zeros(ram, &sparse)?;
    std::fs::rename(&sparse, ram).with_context(|| format!("rename {}", sparse.display()))
}

/// Copies the pages of a file that are not all zeros.
pub(crate) fn copy_without_zeros(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {} without its zeros", from.display());
    let file = File::open(from).with_context(what)?;
    let copy = File::create_new(to).with_context(what)?;
    copy.set_len(file.metadata().with_context(what)?.len()).with_context(what)?;
    for_each_page(&file, |at, page| copy.write_all_at(page, at)).with_context(what)
}

/// Waits until the guest has booted to its end.
async fn settle(machine: &mut Machine) -> Result<()> {
    machine.hello(BOOT_DEADLINE).await?;
    let state = machine.run(&["systemctl", "is-system-running", "--wait"], SETTLE_DEADLINE).await?.text();
    if state != "running" {
        let failed =
            machine.run(&["systemctl", "--failed", "--no-legend", "--plain"], SETTLE_DEADLINE).await?;
        bail!("the guest is {state} after boot, not running; failed units: {}", failed.text());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(machines: &Path, name: &str, age: Duration) {
        let directory = machines.join(name);
        std::fs::create_dir(&directory).expect("mkdir");
        let manifest = File::create(directory.join(MANIFEST)).expect("manifest");
        manifest.set_modified(SystemTime::now() - age).expect("touch");
    }

    #[test]
    fn the_longest_unused_machines_go_and_recent_ones_stay() {
        let machines = tempfile::tempdir().expect("tempdir");
        for number in 0..KEPT {
            entry(machines.path(), &format!("recent{number}"), Duration::from_secs(10));
        }
        entry(machines.path(), "old", UNUSED * 2);
        entry(machines.path(), "not-that-old", UNUSED / 2);
        entry(machines.path(), "old-and-restored", UNUSED * 2);
        std::fs::create_dir(machines.path().join("x.failed")).expect("mkdir");
        mark_used(&machines.path().join("old-and-restored")).expect("mark");
        tidy(machines.path()).expect("tidy");
        let left = |name: &str| machines.path().join(name).exists();
        assert!(!left("old"));
        assert!(left("not-that-old") && left("recent0") && left("x.failed"));
        assert!(left("old-and-restored"));
        assert!(mark_used(&machines.path().join("old")).is_err(), "it is gone");
    }

    /// A whole entry of the cache, and its key.
    fn whole(directory: &Path) -> Key {
        let key = Inputs::new("test", 1).key();
        let ram = directory.join(RAM);
        reserve(&ram, 1 << 20).expect("reserve");
        let file = File::options().write(true).open(&ram).expect("open");
        file.write_all_at(b"written by the guest", 5 * HOLE as u64).expect("write");
        dig_holes(&ram).expect("dig");
        std::fs::write(directory.join(STATE), "devices").expect("write");
        let manifest = Manifest {
            recipe: RECIPE,
            key: key.as_str().to_owned(),
            ram_sha256: hash_sparse(&ram).expect("hash"),
            state_sha256: hash_sparse(&directory.join(STATE)).expect("hash"),
            boot_ms: 1,
        };
        std::fs::write(directory.join(MANIFEST), serde_json::to_vec(&manifest).expect("json"))
            .expect("write");
        key
    }

    #[test]
    fn an_entry_that_is_damaged_or_of_other_inputs_is_not_loaded() {
        type Damage = fn(&Path) -> std::io::Result<()>;
        let cases: [(&str, Damage); 8] = [
            ("a bit of RAM", |d| flip_bit(&d.join(RAM), 5 * HOLE as u64)),
            ("a bit in a hole of RAM", |d| flip_bit(&d.join(RAM), 100 * HOLE as u64)),
            ("RAM cut short", |d| File::options().write(true).open(d.join(RAM))?.set_len(512 << 10)),
            ("a bit of the state", |d| flip_bit(&d.join(STATE), 3)),
            ("the state cut short", |d| File::options().write(true).open(d.join(STATE))?.set_len(3)),
            ("no state", |d| std::fs::remove_file(d.join(STATE))),
            ("half a manifest", |d| File::options().write(true).open(d.join(MANIFEST))?.set_len(20)),
            ("no manifest", |d| std::fs::remove_file(d.join(MANIFEST))),
        ];
        for (what, damage) in cases {
            let directory = tempfile::tempdir().expect("tempdir");
            let key = whole(directory.path());
            load(directory.path(), &key).expect("it is whole");
            damage(directory.path()).expect(what);
            load(directory.path(), &key).expect_err(what);
        }
        let directory = tempfile::tempdir().expect("tempdir");
        whole(directory.path());
        let other = Inputs::new("test", 2).key();
        let error = load(directory.path(), &other).expect_err("another machine's");
        assert!(error.to_string().contains("another machine"), "{error:#}");
    }

    fn flip_bit(path: &Path, at: u64) -> std::io::Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&byte.map(|byte| byte ^ 1), at)
    }

    #[test]
    fn holes_are_dug_where_there_are_zeros_and_nowhere_else() {
        let directory = tempfile::tempdir().expect("tempdir");
        whole(directory.path());
        let ram = directory.path().join(RAM);
        let bytes = std::fs::read(&ram).expect("read");
        assert_eq!(bytes.len(), 1 << 20);
        assert_eq!(bytes.get(5 * HOLE..5 * HOLE + 7), Some(&b"written"[..]));
        assert!(bytes.iter().filter(|byte| **byte != 0).count() == 20, "all else is zeros");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&ram).expect("metadata"));
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: nothing was given back");
    }

    #[test]
    fn a_changed_byte_changes_the_hash_and_holes_do_not_count_as_data() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("ram");
        let write = |at: u64, byte: u8| {
            let file = File::options().create(true).truncate(false).write(true).open(&path).expect("open");
            file.set_len(8 << 20).expect("length");
            file.write_all_at(&[byte], at).expect("write");
            hash_sparse(&path).expect("hash")
        };
        let first = write(5 << 20, 1);
        assert_eq!(first, write(5 << 20, 1));
        assert_ne!(first, write(5 << 20, 2));
        assert_ne!(first, write(1 << 20, 1));
    }

    #[test]
    fn extents_are_where_data_is_whatever_the_pieces_they_are_read_in() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("ram");
        let file = File::create_new(&path).expect("create");
        file.set_len(8 << 20).expect("length");
        // Across the end of a piece, and up to the file's.
        let data = [((1 << 20) + 5, 3 << 20), ((8 << 20) - 7, 7)];
        for (at, length) in data {
            file.write_all_at(&vec![1; length], at).expect("write");
        }
        let before = std::fs::read(&path).expect("read");
        dig_holes(&path).expect("dig");
        assert!(std::fs::read(&path).expect("read") == before, "a copy is another one");
        let file = File::open(&path).expect("open");
        let extents: Vec<_> = extents(&file).map(|extent| extent.expect("an extent")).collect();
        let inside = |at: u64| extents.iter().any(|extent| extent.contains(&at));
        for (at, length) in data {
            assert!(inside(at) && inside(at + length as u64 - 1), "{extents:?}");
        }
        assert!(extents.is_sorted_by_key(|extent| extent.start) && extents.iter().all(|one| !one.is_empty()));
        // A file system that knows no holes says that all is data.
        assert!(extents.len() == 1 || !inside(6 << 20), "{extents:?}");
    }
}
