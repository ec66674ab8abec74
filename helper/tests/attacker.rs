//! The built programs against a server's user gone bad, on the machine's own kernel: he swaps directories in `upper` for
//! links, as fast as the machine can, while root mounts, unmounts and resets.
//!
//! That the same attacker wins against a delete without its flags is shown in `tree.rs`. It takes root, for an overlay
//! and for another user; without it the test is ignored, and says so.

#[path = "support/built.rs"]
mod built;
#[path = "support/playground.rs"]
mod playground;
#[path = "support/sealed.rs"]
mod sealed;
#[path = "support/swapper.rs"]
mod swapper;
#[path = "support/trials.rs"]
mod trials;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use left4me_helper::mountinfo;
use rustix::mount::{MountFlags, mount, mount_bind};

use built::{STATE, command, helper, ok, purge};
use swapper::Swapper;
use trials::{INSIDE, WhyNot};

/// The server's user and group here. They own nothing on the machine.
const SERVER: u32 = 54_321;

/// At least so many cycles, and as many more, up to five times as many, as it takes the attacker to have shown a link so
/// often: how many fit in a cycle is the machine's and its load's.
const CYCLES: usize = 200;
const LINKS: u64 = 100_000;

fn main() -> ExitCode {
    let tests = [playground::test(an_attacker_who_swaps_directories_for_links, why_no_overlay)];
    trials::main(&tests, &[(ATTACKER, the_attacker)], Vec::new())
}

fn why_no_overlay() -> WhyNot {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then_some("it has an overlay and another user, which takes root")
}

fn an_attacker_who_swaps_directories_for_links() {
    // What must not be touched: another instance, and a tree outside of everything, both with files that the attacker
    // can reach only through root's hands.
    let outside = state();
    for precious in [runtime("4").join("upper"), outside.clone()] {
        for directory in ["a", "b/c"] {
            fs::create_dir_all(precious.join(directory)).unwrap();
            fs::write(precious.join(directory).join("file"), "kept").unwrap();
        }
    }
    let before = [listing(&runtime("4")), listing(&outside)];
    let attacker = Attacker::start(&outside);
    let mut refused = Vec::new();
    let mut cycle = 0;
    while cycle < CYCLES || (attacker.links.load(Ordering::Relaxed) < LINKS && cycle < 5 * CYCLES) {
        // What lies in the overlay is the attacker's; that there is one is not.
        ok(&mut helper(&["mount", "3"]));
        assert_eq!(mounted(), 1);
        ok(&mut helper(&["umount", "3"]));
        assert_eq!(mounted(), 0);
        assert!(!runtime("3").join("work/work").exists());
        // An attacker may make a reset fail, loudly. He may not make it do anything else, nor keep it from being done
        // once he is gone.
        if cycle % 4 == 3 {
            let output = purge().output().unwrap();
            if !output.status.success() {
                refused.push(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        cycle += 1;
    }
    let links = attacker.stop();
    ok(&mut purge());
    let left: Vec<_> = fs::read_dir(Path::new(STATE).join("runtime"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["4"]);
    assert_eq!([listing(&runtime("4")), listing(&outside)], before);
    eprintln!("{links} links shown during {cycle} cycles, {} of {} resets refused", refused.len(), cycle / 4);
    assert!(refused.is_empty(), "{refused:?}");
    assert!(links >= LINKS, "{links} links are no attack");
}

/// Makes a state directory with two instances, and the server's user. What it returns is outside of that, and in the
/// playground as well.
fn state() -> PathBuf {
    let none: Option<&std::ffi::CStr> = None;
    let place = std::env::temp_dir();
    let passwd = place.join("passwd");
    fs::write(&passwd, format!("left4me-3:x:{SERVER}:{SERVER}::/:/none\n")).unwrap();
    mount_bind(&passwd, "/etc/passwd").unwrap();
    // In these namespaces only: the machine need not have the directory.
    mount("tmpfs", "/var/lib", "tmpfs", MountFlags::empty(), none).unwrap();
    for part in ["installation", "overlays/maps", "instances", "runtime"] {
        fs::create_dir_all(Path::new(STATE).join(part)).unwrap();
    }
    for instance in ["3", "4"] {
        let file = Path::new(STATE).join(format!("instances/{instance}.toml"));
        fs::write(file, "overlays = [\"maps\"]\n").unwrap();
    }
    place.join("outside")
}

fn runtime(instance: &str) -> PathBuf {
    Path::new(STATE).join("runtime").join(instance)
}

fn mounted() -> usize {
    mountinfo::at(Path::new("/proc/self/mountinfo"), &runtime("3").join("merged")).unwrap().len()
}

/// Path, mode, owner, time of the last change, content.
type Entry = (PathBuf, u32, u32, i64, Option<Vec<u8>>);

/// Everything about a tree that a wrong step would change.
fn listing(root: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = meta.is_file().then(|| fs::read(&path).unwrap());
        found.push((path, meta.mode(), meta.uid(), meta.ctime(), content));
    }
    found.sort();
    found
}

/// The name of [`the_attacker`] as a process.
const ATTACKER: &str = "attacker";

/// [`the_attacker`] as a process of the server's user.
struct Attacker {
    process: std::process::Child,
    /// What it has said last.
    links: Arc<AtomicU64>,
    reader: thread::JoinHandle<()>,
}

impl Attacker {
    /// Started by root, as is a server: the links to its own program lead through nobody's private directory.
    fn start(outside: &Path) -> Self {
        let program = std::env::temp_dir().join("attacker");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut process = command(&program)
            .env(INSIDE, ATTACKER)
            .env("ATTACK_OUTSIDE", outside)
            .uid(SERVER)
            .gid(SERVER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let links = Arc::new(AtomicU64::new(0));
        let (counter, said) = (links.clone(), BufReader::new(process.stdout.take().unwrap()));
        let reader = thread::spawn(move || {
            let counts = said.lines().map_while(Result::ok);
            for count in counts.filter_map(|line| line.strip_prefix("links: ")?.parse().ok()) {
                counter.store(count, Ordering::Relaxed);
            }
        });
        Self { process, links, reader }
    }

    /// How many links it has shown at last.
    fn stop(mut self) -> u64 {
        self.process.stdin.take().unwrap().write_all(b"stop\n").unwrap();
        assert!(self.process.wait().unwrap().success());
        self.reader.join().unwrap();
        self.links.load(Ordering::Relaxed)
    }
}

/// Swaps names in `upper` between directories and links until a line comes on stdin: by path, and by a descriptor that it
/// keeps when the directory is moved away.
fn the_attacker() {
    let outside = std::env::var("ATTACK_OUTSIDE").expect("run by its test only");
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    thread::spawn(move || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        told.store(true, Ordering::Relaxed);
    });
    let other = runtime("4").join("upper").to_str().unwrap().to_owned();
    let targets = [outside, other, "/".into(), "../../4/upper".into(), "..".into()];
    // Some are names that the helper and a reset use themselves.
    let names = ["a", "b", "c", "game", "map", "work", "merged"];
    let upper = runtime("3").join("upper");
    let mut swapper: Option<(u64, Swapper)> = None;
    let mut links = 0;
    while !stop.load(Ordering::Relaxed) {
        if let Ok(current) = fs::File::open(&upper)
            && let Ok(inode) = current.metadata().map(|meta| meta.ino())
            && swapper.as_ref().is_none_or(|(known, _)| *known != inode)
        {
            links += swapper.map_or(0, |(_, swapper)| swapper.shown);
            swapper = Some((inode, Swapper::new(current.into(), names.map(str::to_owned), &targets)));
        }
        let Some((_, swapper)) = &mut swapper else {
            thread::yield_now();
            continue;
        };
        if swapper.plant() == 0 {
            thread::yield_now();
            continue;
        }
        // Many swaps for one look for the directory.
        for _ in 0..20 {
            swapper.swap();
        }
        println!("links: {}", links + swapper.shown);
    }
}
