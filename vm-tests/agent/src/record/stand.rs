//! Everything but the agent stands still: for whoever wants to look at an instant of a run.
//!
//! All cgroups are frozen but the agent's own (cgroup-v2.rst, `cgroup.freeze`), and what else is in that one, the plan's
//! commands, is stopped by SIGSTOP. The watcher does it, which nobody can interrupt: so no other program executes an instruction
//! between its decision and the last cgroup. A task that is in the kernel stops when it comes back from there. What does not
//! come back, an exit above all, goes on: while one looks it gets as much time as looking takes.
//!
//! Then the watcher waits for [`Go`]. What the other threads send to it meanwhile stays in its queue.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process};
use vm_agent::happening::Happening;
use vm_agent::recording::What;
use vm_agent::wire::{Stop, Until};

use crate::answer::lock;
use crate::pause;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Says how far to go on; the answer is when all stands still again, or `None` if the plan has ended.
#[derive(Debug)]
struct Go {
    until: Until,
    answer: Sender<Option<u64>>,
}

/// The way to the watcher of the plan that is run; only one is.
static DOOR: Mutex<Option<Sender<Go>>> = Mutex::new(None);

/// Lets a guest that stands still go on, and waits until it stands again: returns since when, in nanoseconds since the plan
/// began. `None`: there is no plan, or it has ended.
pub(crate) fn go(until: Until) -> Option<u64> {
    let door = lock(&DOOR).clone()?;
    let (answer, stands) = channel();
    door.send(Go { until, answer }).ok()?;
    stands.recv().ok().flatten()
}

/// What is to happen before all stands still again, for those who record it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    is_any: AtomicBool,
    happening: Mutex<Option<Happening>>,
    came: AtomicBool,
}

impl Wanted {
    /// Takes note if this is it. The watcher is told of each such event anyway, and sees it then.
    pub(super) fn see(&self, at: u64, what: &What) {
        if self.is_any.load(Ordering::Relaxed)
            && lock(&self.happening).as_ref().is_some_and(|wanted| wanted.is(at, what).is_some())
        {
            self.came.store(true, Ordering::Relaxed);
        }
    }

    fn want(&self, happening: Option<Happening>) {
        self.is_any.store(happening.is_some(), Ordering::Relaxed);
        self.came.store(false, Ordering::Relaxed);
        *lock(&self.happening) = happening;
    }
}

/// When to stand still, and whom to tell.
#[derive(Debug)]
pub(super) struct Stand {
    /// Nanoseconds since the plan began.
    at: u64,
    pause_us: u64,
    wanted: Arc<Wanted>,
    orders: Receiver<Go>,
    answer: Option<Sender<Option<u64>>>,
}

impl Stand {
    /// For the plan that is about to be run.
    pub(super) fn new(stop: Stop, wanted: Arc<Wanted>) -> Self {
        let (door, orders) = channel();
        *lock(&DOOR) = Some(door);
        Self { at: stop.at_ns(), pause_us: stop.pause_us(), wanted, orders, answer: None }
    }

    /// When the watcher has to look whether it is time.
    pub(super) fn next(&self) -> u64 {
        self.at
    }

    /// Whether it is time.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.at <= now || self.wanted.came.load(Ordering::Relaxed)
    }

    /// Stands still since `now` until somebody lets all go on; `clock` says when that is.
    ///
    /// # Errors
    /// If cgroups can't be frozen.
    pub(super) fn still(&mut self, now: u64, clock: impl Fn() -> u64) -> Result<()> {
        let stopped = Stopped::all()?;
        self.at = u64::MAX;
        self.wanted.want(None);
        match self.answer.take() {
            Some(answer) => tell(&answer, Some(now)),
            None => pause::after(Duration::from_micros(self.pause_us))?,
        }
        while let Ok(Go { until, answer }) = self.orders.recv() {
            match until {
                Until::Now => {
                    tell(&answer, Some(now));
                    continue;
                }
                Until::For(ns) => self.at = clock().saturating_add(ns),
                Until::Happening(happening) => self.wanted.want(Some(happening)),
            }
            self.answer = Some(answer);
            break;
        }
        stopped.go_on()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            tell(&answer, None);
        }
    }
}

/// Fails only when whoever asked has given up.
fn tell(answer: &Sender<Option<u64>>, since: Option<u64>) {
    let _gave_up = answer.send(since).is_err();
}

/// What stands still: to be let go on.
#[derive(Debug)]
struct Stopped {
    /// Files `cgroup.freeze`.
    cgroups: Vec<PathBuf>,
    commands: Vec<Pid>,
}

impl Stopped {
    fn all() -> Result<Self> {
        let own = own_cgroup()?;
        let mut cgroups = Vec::new();
        others(Path::new(CGROUPS), &own, &mut cgroups)?;
        let mut all = Self { cgroups: Vec::new(), commands: Vec::new() };
        for cgroup in cgroups {
            // One that has gone meanwhile has nobody to freeze.
            match fs::write(&cgroup, "1") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("write {}", cgroup.display()));
                }
                Err(_gone) => {}
                Ok(()) => all.cgroups.push(cgroup),
            }
        }
        let processes = own.join("cgroup.procs");
        let text = fs::read_to_string(&processes).with_context(|| format!("read {}", processes.display()))?;
        let beside = text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
        for pid in beside.filter(|pid| *pid != getpid() && !is_stopped(*pid)) {
            // One that has just ended stands still.
            if kill_process(pid, Signal::STOP).is_ok() {
                all.commands.push(pid);
            }
        }
        Ok(all)
    }

    fn go_on(self) -> Result<()> {
        for pid in self.commands {
            // Killed meanwhile, by whoever looked.
            let _gone = kill_process(pid, Signal::CONT).is_err();
        }
        for cgroup in self.cgroups {
            fs::write(&cgroup, "0").with_context(|| format!("write {}", cgroup.display()))?;
        }
        Ok(())
    }
}

/// Stopped already, by somebody who wants it so (proc_pid_stat(5): the state comes after the name).
fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(CGROUPS).join(path.context("no cgroup of the unified hierarchy")?))
}

/// The files that freeze all cgroups below this one but that of the agent and those which it is in.
fn others(below: &Path, own: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let what = || format!("list {}", below.display());
    let mut children = Vec::new();
    for entry in fs::read_dir(below).with_context(what)? {
        let entry = entry.with_context(what)?;
        if entry.file_type().with_context(what)?.is_dir() {
            children.push(entry.path());
        }
    }
    // By name: the order of a directory is nobody's choice.
    children.sort();
    for child in children {
        if child == own {
            continue;
        }
        match own.starts_with(&child) {
            true => others(&child, own, found)?,
            false => found.push(child.join("cgroup.freeze")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cgroups_are_found_but_the_own_and_those_above_it() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |path: &str| root.path().join(path);
        for path in
            ["init.scope", "system.slice/a.service/sub", "system.slice/own.service/child", "user.slice"]
        {
            fs::create_dir_all(at(path)).expect("mkdir");
        }
        fs::write(at("cgroup.procs"), "").expect("write");
        let mut found = Vec::new();
        others(root.path(), &at("system.slice/own.service"), &mut found).expect("list");
        let expected = ["init.scope", "system.slice/a.service", "user.slice"];
        assert_eq!(found, expected.map(|path| at(path).join("cgroup.freeze")));
    }

    #[test]
    fn what_is_wanted_is_seen_once_and_only_while_it_is_wanted() {
        let wanted = Wanted::default();
        let came = |what: &What| {
            wanted.see(1, what);
            wanted.came.load(Ordering::Relaxed)
        };
        assert!(!came(&What::Unmounted));
        wanted.want(Some(Happening::Unmounted));
        assert!(!came(&What::StartsForgotten));
        assert!(came(&What::Unmounted));
        wanted.want(None);
        assert!(!came(&What::Unmounted));
    }
}
