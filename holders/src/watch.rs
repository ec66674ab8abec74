//! `holders watch PATH`: who holds a mount over time, one line for each change.
//!
//! Waits for events where the kernel has them: a poll of mountinfo for mounts and unmounts, a pidfd of each holder
//! for its end, inotify on the unit's `cgroup.events` for its last task. That a task starts, or enters the mount,
//! is no event for an observer that traces nobody: for that it scans by a clock in between. With a unit these scans
//! go by its own tasks alone, which is cheap; all processes are scanned when it begins and when something is
//! mounted or unmounted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holders::{Blocker, Query, cgroup, mountinfo, propagation};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::time::Timespec;

type Failure = Box<dyn std::error::Error>;

/// What to watch, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) path: PathBuf,
    pub(crate) unit: Option<String>,
    /// Scans a second between events; 0 for none.
    pub(crate) rate: f64,
    pub(crate) until_unmounted: bool,
}

/// What was seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Since the beginning.
    pub(crate) at: Duration,
    /// What made it scan.
    pub(crate) event: Event,
    pub(crate) mounted: bool,
    /// By process id.
    pub(crate) holders: Vec<Blocker>,
}

/// Why it scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Start,
    /// Something was mounted or unmounted in the namespace.
    Mounts,
    /// A holder has ended.
    Exit,
    /// The unit's cgroup has become empty, or is no longer.
    Cgroup,
    /// The clock.
    Sample,
}

impl Event {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Mounts => "mounts",
            Self::Exit => "exit",
            Self::Cgroup => "cgroup",
            Self::Sample => "sample",
        }
    }
}

impl Scan {
    /// The probe's line: `[t= 0.00] mounted=Y holders=[35259(left4me-overlay)]`.
    pub(crate) fn line(&self) -> String {
        let holders: Vec<_> =
            self.holders.iter().map(|holder| format!("{}({})", holder.pid, holder.comm)).collect();
        format!(
            "[t={:5.2}] mounted={} holders=[{}]",
            self.at.as_secs_f64(),
            if self.mounted { 'Y' } else { 'N' },
            holders.join(" ")
        )
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let holders = self.holders.iter().map(|holder| {
            serde_json::json!({
                "pid": holder.pid,
                "comm": holder.comm,
                "unit": holder.unit,
                "kinds": holder.kinds.iter().map(|kind| kind.word()).collect::<Vec<_>>(),
            })
        });
        serde_json::json!({
            "t": self.at.as_secs_f64(),
            "event": self.event.word(),
            "mounted": self.mounted,
            "holders": holders.collect::<Vec<_>>(),
        })
    }

    fn shows_the_same_as(&self, other: &Self) -> bool {
        let holders = |scan: &Self| -> Vec<(u32, String)> {
            scan.holders.iter().map(|holder| (holder.pid, holder.comm.clone())).collect()
        };
        self.mounted == other.mounted && holders(self) == holders(other)
    }
}

/// Watches until it is interrupted, or the path is unmounted if that was asked for; `show` gets each scan that
/// differs from the one before.
///
/// # Errors
/// If mountinfo can't be read or polled, or `show` fails.
pub(crate) fn watch(plan: &Plan, mut show: impl FnMut(&Scan) -> io::Result<()>) -> Result<(), Failure> {
    let start = Instant::now();
    let mut watch = Watch::begin(plan)?;
    let mut last: Option<Scan> = None;
    let mut event = Event::Start;
    loop {
        let mounted = watch.is_mounted()?;
        // An unmount is said first, and scanned for then.
        let is_news = event == Event::Mounts && last.as_ref().is_some_and(|last| last.mounted && !mounted);
        if is_news {
            let scan = Scan { at: start.elapsed(), event, mounted, holders: Vec::new() };
            show(&scan)?;
            last = Some(scan);
        }
        if plan.until_unmounted && !mounted && event != Event::Start {
            return Ok(());
        }
        let holders = if mounted { watch.scan(event)? } else { watch.forget() };
        let scan = Scan { at: start.elapsed(), event, mounted, holders };
        if last.as_ref().is_none_or(|last| !scan.shows_the_same_as(last)) {
            show(&scan)?;
            last = Some(scan);
        }
        event = watch.wait()?;
    }
}

struct Watch<'a> {
    plan: &'a Plan,
    /// Open while it watches; pins this process's own namespace only.
    mountinfo: File,
    cgroup: Option<UnitCgroup>,
    /// When the unit's cgroup may be searched for again.
    search_after: Instant,
    /// The holders that are not of the unit, from the last scan of everything.
    others: BTreeMap<u32, Blocker>,
    /// A pidfd of each holder; `None` where there can be none.
    pidfds: BTreeMap<u32, Option<OwnedFd>>,
}

/// The cgroup of the unit, and the events of its `cgroup.events`.
struct UnitCgroup {
    directory: PathBuf,
    events: Option<OwnedFd>,
}

/// A search goes through the whole cgroup tree: not at every sample.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

impl<'a> Watch<'a> {
    fn begin(plan: &'a Plan) -> Result<Self, Failure> {
        let mountinfo = File::open("/proc/self/mountinfo")?;
        let mut watch = Self {
            plan,
            mountinfo,
            cgroup: None,
            search_after: Instant::now(),
            others: BTreeMap::new(),
            pidfds: BTreeMap::new(),
        };
        watch.find_cgroup();
        Ok(watch)
    }

    fn is_mounted(&self) -> Result<bool, Failure> {
        let mounts = mountinfo::read(std::process::id())?;
        Ok(propagation::visible_at(&mounts, &self.plan.path).is_some())
    }

    fn scan(&mut self, event: Event) -> Result<Vec<Blocker>, Failure> {
        let scans_all = self.plan.unit.is_none() || matches!(event, Event::Start | Event::Mounts);
        self.find_cgroup();
        let pids =
            self.cgroup.as_ref().map(|cgroup| cgroup::processes(&cgroup.directory)).unwrap_or_default();
        let mut holders: BTreeMap<u32, Blocker> = BTreeMap::new();
        if scans_all {
            let found = Query::new(&self.plan.path).run()?.blockers();
            holders.extend(found.into_iter().map(|holder| (holder.pid, holder)));
            let of_unit: BTreeSet<u32> = pids.iter().copied().collect();
            self.others = holders.clone();
            self.others.retain(|pid, _| !of_unit.contains(pid));
        } else {
            let found = Query::new(&self.plan.path).among(pids).run()?.blockers();
            holders.extend(self.others.clone());
            holders.extend(found.into_iter().map(|holder| (holder.pid, holder)));
        }
        self.pidfds.retain(|pid, _| holders.contains_key(pid));
        for (pid, holder) in &holders {
            self.pidfds.entry(*pid).or_insert_with(|| holder.pidfd().ok().flatten());
        }
        Ok(holders.into_values().collect())
    }

    fn forget(&mut self) -> Vec<Blocker> {
        self.others.clear();
        self.pidfds.clear();
        Vec::new()
    }

    fn find_cgroup(&mut self) {
        let Some(unit) = &self.plan.unit else { return };
        if self.cgroup.as_ref().is_some_and(|cgroup| cgroup.directory.exists()) {
            return;
        }
        self.cgroup = None;
        if Instant::now() < self.search_after {
            return;
        }
        self.search_after = Instant::now() + SEARCH_PAUSE;
        self.cgroup = cgroup_root().and_then(|root| directory_named(&root, unit, 8)).map(|directory| {
            let events = watch_file(&directory.join("cgroup.events")).ok();
            UnitCgroup { directory, events }
        });
    }

    /// Waits for the next event or the clock.
    fn wait(&mut self) -> Result<Event, Failure> {
        let timeout = (self.plan.rate > 0.0).then(|| Duration::from_secs_f64(1.0 / self.plan.rate));
        let timeout = timeout.map(|pause| Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        });
        let events = self.cgroup.as_ref().and_then(|cgroup| cgroup.events.as_ref());
        let pids: Vec<u32> =
            self.pidfds.iter().filter(|(_, file)| file.is_some()).map(|(&pid, _)| pid).collect();
        let mut files = vec![PollFd::new(&self.mountinfo, PollFlags::PRI)];
        files.extend(self.pidfds.values().flatten().map(|file| PollFd::new(file, PollFlags::IN)));
        files.extend(events.map(|events| PollFd::new(events, PollFlags::IN)));
        match poll(&mut files, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("poll: {error}").into()),
        }
        let fired: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
        if fired[0] {
            return Ok(Event::Mounts);
        }
        let ended: Vec<u32> =
            pids.iter().zip(&fired[1..]).filter(|(_, fired)| **fired).map(|(&pid, _)| pid).collect();
        if !ended.is_empty() {
            for pid in ended {
                self.pidfds.remove(&pid);
                self.others.remove(&pid);
            }
            return Ok(Event::Exit);
        }
        if let Some(events) = events
            && fired.last() == Some(&true)
        {
            drain(events);
            return Ok(Event::Cgroup);
        }
        Ok(Event::Sample)
    }
}

/// The mount point of the v2 hierarchy.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = mountinfo::read(std::process::id()).ok()?;
    mounts.into_iter().find(|mount| mount.fstype == "cgroup2").map(|mount| mount.mount_point)
}

fn directory_named(root: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let mut deeper = Vec::new();
    for entry in fs::read_dir(root).ok()?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            deeper.push(entry.path());
        }
    }
    let depth = depth.checked_sub(1)?;
    deeper.iter().find_map(|directory| directory_named(directory, name, depth))
}

fn watch_file(path: &Path) -> rustix::io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

/// Takes all events; which ones does not matter.
fn drain(events: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while rustix::io::read(events.as_fd(), &mut buffer).is_ok_and(|length| length > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use holders::report::{Kind, Phase, Relation};

    fn holder(pid: u32, comm: &str) -> Blocker {
        Blocker {
            pid,
            start_time: 1,
            comm: comm.to_owned(),
            cgroup: String::new(),
            unit: Some("left4me-server@3.service".to_owned()),
            phase: Phase::Stop,
            relation: Relation::Other,
            kinds: vec![Kind::Cwd, Kind::File { fd: 3 }],
        }
    }

    #[test]
    fn the_line_is_the_probes() {
        let scan = |at, mounted, holders| Scan {
            at: Duration::from_millis(at),
            event: Event::Exit,
            mounted,
            holders,
        };
        let cases = [
            (scan(0, true, vec![]), "[t= 0.00] mounted=Y holders=[]"),
            (
                scan(2270, true, vec![holder(35259, "left4me-overlay")]),
                "[t= 2.27] mounted=Y holders=[35259(left4me-overlay)]",
            ),
            (
                scan(22970, true, vec![holder(1, "a"), holder(2, "b")]),
                "[t=22.97] mounted=Y holders=[1(a) 2(b)]",
            ),
            (scan(125_220, false, vec![]), "[t=125.22] mounted=N holders=[]"),
        ];
        for (scan, line) in cases {
            assert_eq!(scan.line(), line);
        }
        assert_eq!(
            scan(1500, true, vec![holder(7, "x")]).json().to_string(),
            r#"{"event":"exit","holders":[{"comm":"x","kinds":["cwd","file"],"pid":7,"unit":"left4me-server@3.service"}],"mounted":true,"t":1.5}"#
        );
    }

    #[test]
    fn a_look_is_news_if_it_shows_something_else() {
        let scan = |mounted, holders| Scan { at: Duration::ZERO, event: Event::Sample, mounted, holders };
        let first = scan(true, vec![holder(1, "a")]);
        assert!(first.shows_the_same_as(&Scan { at: Duration::from_secs(1), ..first.clone() }));
        assert!(!first.shows_the_same_as(&scan(true, vec![holder(1, "b")])));
        assert!(!first.shows_the_same_as(&scan(true, vec![])));
        assert!(!first.shows_the_same_as(&scan(false, vec![holder(1, "a")])));
    }

    #[test]
    fn finds_a_unit_and_its_tasks_in_a_tree() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("system.slice/system-a.slice/a@1.service");
        fs::create_dir_all(unit.join(".control")).unwrap();
        fs::write(unit.join("cgroup.procs"), "12\n13\n").unwrap();
        fs::write(unit.join(".control/cgroup.procs"), "14\n").unwrap();
        assert_eq!(directory_named(root.path(), "a@1.service", 8), Some(unit.clone()));
        assert_eq!(directory_named(root.path(), "a@2.service", 8), None);
        assert_eq!(directory_named(root.path(), "a@1.service", 1), None);
        assert_eq!(cgroup::processes(&unit), [12, 13, 14]);
    }
}
