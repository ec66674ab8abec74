//! How soon `holders watch` tells: of an unmount, and of a new holder in the unit's cgroup.
//!
//! A moment is CLOCK_MONOTONIC's: of the unmount when umount2(2) has returned, of a holder when its chdir(2) has, of a
//! line when this process has read it.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::stage::Stage;
use crate::tools;

/// By how much later each round's moment falls than the one before between two looks, nanoseconds.
const STEP_NS: i64 = 370_000;

pub(crate) fn measure(holders: &Path, rounds: &str) -> Result<(), Box<dyn Error>> {
    let rounds: i64 = rounds.parse()?;
    let stage = Stage::set_up()?;
    let unit = format!("holders-watch-{}.service", std::process::id());
    let cgroup = Cgroup::make(&unit)?;
    let mut watching = Watching::start(holders, &unit, &stage.merged)?;
    // The path is no mount point yet.
    watching.until(|line| line["mounted"] == false)?;
    let (mut unmounts, mut holders_seen) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        stage.mount()?;
        watching.until(|line| line["mounted"] == true)?;
        let mut visitor = Visitor::start(&stage.merged, &cgroup)?;
        watching.nothing_for(round * STEP_NS)?;
        let entered = visitor.go()?;
        let seen = watching.until(|line| line["holders"][0]["pid"] == visitor.child.id())?;
        holders_seen.push(seen - entered);
        visitor.go()?;
        watching.until(|line| line["holders"].as_array().is_some_and(Vec::is_empty))?;
        drop(visitor);
        stage.umount()?;
        let unmounted = now();
        unmounts.push(watching.until(|line| line["mounted"] == false)? - unmounted);
    }
    println!("{}", json!({ "unmount_ns": unmounts, "holder_ns": holders_seen }));
    Ok(())
}

/// The visitor's part: at each line of stdin it enters PATH, or leaves it, and says when.
pub(crate) fn enter(path: &Path) -> Result<(), Box<dyn Error>> {
    let (mut input, mut output) = (std::io::stdin(), std::io::stdout());
    for directory in [path, Path::new("/")] {
        input.read_exact(&mut [0])?;
        std::env::set_current_dir(directory)?;
        writeln!(output, "{}", now())?;
        output.flush()?;
    }
    input.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn now() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

struct Watching {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watching {
    fn start(holders: &Path, unit: &str, path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut child = tools::command(holders)
            .args(["watch", "--json", "--unit", unit])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, lines })
    }

    /// Reads until a line is as wanted, and says when that was read.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<i64, Box<dyn Error>> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("the watch has ended".into());
            }
            let at = now();
            if wanted(&serde_json::from_str(&line)?) {
                return Ok(at);
            }
        }
    }

    /// Nothing happens meanwhile, and nothing is to be told.
    fn nothing_for(&mut self, nanoseconds: i64) -> Result<(), Box<dyn Error>> {
        let stdout = self.lines.get_ref();
        let timeout = Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 };
        match poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&timeout))? {
            0 => Ok(()),
            _ => Err("the watch tells of what has not happened".into()),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("planter: end the watch: {error}");
        }
    }
}

/// A process of the unit that enters the mount and leaves it.
struct Visitor {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Visitor {
    fn start(path: &Path, cgroup: &Cgroup) -> Result<Self, Box<dyn Error>> {
        let mut child = tools::command("/proc/self/exe")
            .arg("enter")
            .arg(path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        fs::write(cgroup.0.join("cgroup.procs"), child.id().to_string())?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { stdin: child.stdin.take(), child, stdout })
    }

    fn go(&mut self) -> Result<i64, Box<dyn Error>> {
        self.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("planter: wait for the visitor: {error}");
        }
    }
}

/// A cgroup with a unit's name; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(unit: &str) -> Result<Self, Box<dyn Error>> {
        let mounts = holders::mountinfo::read(std::process::id())?;
        let root = mounts.into_iter().find(|mount| mount.fstype == "cgroup2").ok_or("no cgroup v2")?;
        let path = root.mount_point.join(unit);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("planter: remove {}: {error}", self.0.display());
        }
    }
}
