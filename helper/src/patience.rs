//! Waiting until those who are in the way of an unmount have gone: for events, with a deadline.
//!
//! The sequence of an unmount, of which this is the middle:
//!
//! 1. The unit's own processes that hold the mount are looked for, by the `holders` library. When systemd runs `ExecStopPost=` the main process
//!    is gone, but its children may still be ending, and one that ignores SIGTERM stays: systemd's last SIGKILL comes
//!    only after `ExecStopPost=`. Usually there is none, and this costs one read of `cgroup.procs`.
//! 2. Those found are waited for by their pidfds. An end is the event; after each one the rest is looked at again. If
//!    that is allowed ([`Patience::end`]), whoever still holds the mount after a quarter of the time gets SIGTERM, and
//!    after half of it SIGKILL: what systemd would send next anyway, sent before the unmount and not after it.
//! 3. `umount2(2)` is called once, whatever came of the wait. Its answer is the truth, the links under `/proc` are not.
//! 4. If that says EBUSY everybody who holds the mount is named, and nothing is tried again.
//!
//! A process outside the unit is not waited for unless asked ([`Patience::outside`]), and never sent a signal. One that
//! is in the unit but holds nothing in the mount is left to systemd. So is one that refers to a copy which the unmount does
//! not reach, as with `MountFlags=private`: it blocks nothing. Neither this process nor one that started it is waited
//! for: it would not end before this one does.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use holders::Query;
use holders::report::Relation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::UnitCgroup;

/// How long an unmount, with all that comes before it, may take unless told otherwise. It has to end before the unit's
/// `TimeoutStopSec=` (15 s), after which systemd kills the helper itself.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// How many of those who are waited for get a line.
const NOTED: usize = 16;

/// How patient an unmount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long to wait.
    pub wait: Duration,
    /// Whether the unit's own processes that hold the mount are sent SIGTERM and then SIGKILL.
    pub end: bool,
    /// Whether processes outside the unit are waited for, too.
    pub outside: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { wait: DEFAULT_WAIT, end: false, outside: false }
    }
}

/// A process that is in the way.
#[derive(Debug)]
pub struct InTheWay {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Readable when it has ended, pidfd_open(2).
    pub pidfd: OwnedFd,
}

/// The processes that can be in the way.
pub trait Tasks {
    /// Those who hold the mount now, without this process and those that started it.
    fn holders(&self) -> Vec<InTheWay>;
    /// Whether `pid` belongs to the unit, so that it may be sent a signal.
    fn own(&self, pid: u32) -> bool;
}

/// The unit's processes, or everybody.
#[derive(Debug)]
pub struct OfUnit<'a> {
    /// The mount.
    pub path: &'a Path,
    /// The unit's cgroup; `None` if this process is not in one.
    pub cgroup: Option<&'a UnitCgroup>,
    /// Whether everybody is a candidate.
    pub everybody: bool,
}

impl Tasks for OfUnit<'_> {
    fn holders(&self) -> Vec<InTheWay> {
        let mut query = Query::new(self.path);
        if let Some(pids) = self.candidates() {
            if pids.is_empty() {
                return Vec::new();
            }
            query = query.among(pids);
        }
        // Without a look there is nobody to wait for, and the unmount says what is so.
        let Ok(report) = query.run() else { return Vec::new() };
        report
            .blockers()
            .into_iter()
            .filter(|blocker| blocker.relation == Relation::Other)
            .filter_map(|blocker| {
                let pidfd = blocker.pidfd().ok().flatten()?;
                Some(InTheWay { pid: blocker.pid, comm: blocker.comm, pidfd })
            })
            .collect()
    }

    fn own(&self, pid: u32) -> bool {
        self.cgroup.is_some_and(|cgroup| cgroup.has(pid))
    }
}

impl OfUnit<'_> {
    /// Who is looked at, and so who can be waited for: the unit's processes without this one; `None` for everybody.
    fn candidates(&self) -> Option<Vec<u32>> {
        if self.everybody {
            return None;
        }
        let mut pids = self.cgroup.map(UnitCgroup::processes).unwrap_or_default();
        pids.retain(|&pid| pid != std::process::id());
        Some(pids)
    }
}

/// What is done to those who stay, in this order, with the part of the wait after which it is done.
const STEPS: [(u32, Signal, &str); 2] = [(4, Signal::TERM, "SIGTERM"), (2, Signal::KILL, "SIGKILL")];

/// The order of a wait: what is done when, without the doing. All times are since the wait began.
#[derive(Debug, Clone)]
pub struct Plan {
    patience: Patience,
    done: usize,
}

/// What comes next while somebody holds the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait until one of them has ended, but no longer than to this time.
    Wait(Duration),
    /// Send those of them who belong to the unit this signal of this name, then look again who is left.
    Send(Signal, &'static str),
    /// The time is up.
    GiveUp,
}

impl Plan {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self { patience, done: 0 }
    }

    /// What comes next, `elapsed` after the beginning. A signal is told once.
    pub fn next(&mut self, elapsed: Duration) -> Next {
        let Patience { wait, end, .. } = self.patience;
        if elapsed >= wait {
            return Next::GiveUp;
        }
        match STEPS.get(self.done).filter(|_| end) {
            Some((part, signal, name)) if elapsed >= wait / *part => {
                self.done += 1;
                Next::Send(*signal, name)
            }
            Some((part, ..)) => Next::Wait(wait / *part),
            None => Next::Wait(wait),
        }
    }
}

/// Waits until none of `tasks` holds the mount at `path`, or the time is up. `began` is when the time began; `note` gets a
/// line for everything that is worth one in the journal.
pub fn wait(
    path: &Path,
    tasks: &impl Tasks,
    patience: &Patience,
    began: Instant,
    note: &mut dyn FnMut(String),
) {
    let mut plan = Plan::new(*patience);
    let mut known = BTreeSet::new();
    loop {
        let holders = tasks.holders();
        if holders.is_empty() {
            return;
        }
        for InTheWay { pid, comm, .. } in &holders {
            // A process that forks all the time is told of this often, and no more.
            if known.len() < NOTED && known.insert(*pid) {
                note(format!("waiting for {pid} ({comm}), which holds {}", path.display()));
            }
        }
        match plan.next(began.elapsed()) {
            Next::Wait(until) => until_one_ends(&holders, began + until),
            Next::Send(signal, name) => {
                for holder in holders.iter().filter(|holder| tasks.own(holder.pid)) {
                    send(holder, signal, name, note);
                }
            }
            Next::GiveUp => return,
        }
    }
}

fn send(holder: &InTheWay, signal: Signal, name: &str, note: &mut dyn FnMut(String)) {
    let InTheWay { pid, comm, pidfd } = holder;
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => note(format!("{pid} ({comm}) still holds it: sent {name}")),
        // It has ended by itself: the next look will not find it.
        Err(Errno::SRCH) => {}
        Err(errno) => note(format!("send {name} to {pid}: {errno}")),
    }
}

/// Waits until one of them has ended (a pidfd is readable then, pidfd_open(2)) or `until`.
fn until_one_ends(holders: &[InTheWay], until: Instant) {
    let mut descriptors: Vec<_> =
        holders.iter().map(|holder| PollFd::new(&holder.pidfd, PollFlags::IN)).collect();
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut descriptors, Some(&timeout)) {
        // The caller looks at who is left whatever ended this wait: an end, the time, or a signal to us.
        Ok(_) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use proptest::prelude::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// Processes that a test names, all or none of them the unit's. Here a directory will do for a mount: those are in
    /// the way whose working directory it is. The real look is `tests/native.rs`'s.
    struct Named(Vec<u32>, bool, PathBuf);

    impl Tasks for Named {
        fn holders(&self) -> Vec<InTheWay> {
            let in_the_way = |pid: &u32| {
                let handle = Pid::from_raw(i32::try_from(*pid).ok()?)?;
                let pidfd = pidfd_open(handle, PidfdFlags::empty()).ok()?;
                let is_there = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.2);
                is_there.then(|| InTheWay { pid: *pid, comm: "sh".into(), pidfd })
            };
            self.0.iter().filter_map(in_the_way).collect()
        }
        fn own(&self, _pid: u32) -> bool {
            self.1
        }
    }

    /// A shell in `path` that runs `script` and says a line when it has got there.
    #[expect(clippy::disallowed_methods, reason = "a shell that the test ends and waits for")]
    fn shell(path: &Path, script: &str) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .current_dir(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child
    }

    const STUBBORN: &str = "trap '' TERM; echo; read line; cd /; exec sleep 100";

    fn run(tasks: &Named, path: &Path, patience: Patience) -> (Duration, Vec<String>) {
        let mut notes = Vec::new();
        let began = Instant::now();
        wait(path, tasks, &patience, began, &mut |note| notes.push(note));
        (began.elapsed(), notes)
    }

    fn patience(millis: u64, end: bool) -> Patience {
        Patience { wait: Duration::from_millis(millis), end, outside: false }
    }

    #[test]
    fn nobody_there_is_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let me = Named(vec![std::process::id(), 1], true, directory.path().into());
        let (took, notes) = run(&me, directory.path(), patience(60_000, true));
        assert!(took < Duration::from_secs(30) && notes.is_empty(), "{took:?} {notes:?}");
    }

    #[test]
    fn an_end_is_the_event() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let mut child = shell(&path, "echo; read line");
        drop(child.stdin.take());
        let (took, _) = run(&Named(vec![child.id()], false, path.clone()), &path, patience(60_000, false));
        assert!(took < Duration::from_secs(30), "{took:?}");
        child.wait().unwrap();
    }

    #[test]
    fn one_that_stays_is_killed_only_if_that_is_allowed_and_it_is_the_units() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        for (end, own, killed) in [(true, true, true), (false, true, false), (true, false, false)] {
            let mut child = shell(&path, STUBBORN);
            let (took, notes) = run(&Named(vec![child.id()], own, path.clone()), &path, patience(400, end));
            let sent: Vec<_> = notes.iter().filter(|note| note.contains("sent SIG")).collect();
            assert_eq!(sent.len(), if killed { 2 } else { 0 }, "{notes:?}");
            assert!(took >= Duration::from_millis(if killed { 200 } else { 400 }), "{took:?}");
            assert_eq!(child.try_wait().unwrap().is_some(), killed, "{notes:?}");
            if !killed {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    #[test]
    fn sigterm_comes_before_sigkill_and_spares_who_obeys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let mut child = shell(&path, "trap 'exit 7' TERM; echo; read line");
        let (_, notes) = run(&Named(vec![child.id()], true, path.clone()), &path, patience(2000, true));
        assert!(notes.iter().all(|note| !note.contains("SIGKILL")), "{notes:?}");
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn only_the_units_processes_are_waited_for_unless_asked() {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = crate::cgroup::path_of(&text).and_then(|path| path.rsplit('/').next());
        // Whatever cgroup this runs in plays the unit's.
        let cgroup = own.filter(|name| !name.is_empty()).and_then(|name| UnitCgroup::parse(&text, name));
        let of_unit = |cgroup, everybody| OfUnit { path: Path::new("/nowhere"), cgroup, everybody };
        assert_eq!(
            of_unit(None, false).candidates(),
            Some(vec![]),
            "without a unit there is nobody to wait for"
        );
        for cgroup in [None, cgroup.as_ref()] {
            assert_eq!(of_unit(cgroup, true).candidates(), None);
            let candidates = of_unit(cgroup, false).candidates().unwrap();
            assert!(!candidates.contains(&std::process::id()), "it would wait for itself");
            // One that has ended meanwhile is in no cgroup.
            let elsewhere = |pid: &&u32| {
                Path::new(&format!("/proc/{pid}")).exists() && !of_unit(cgroup, false).own(**pid)
            };
            assert_eq!(candidates.iter().find(elsewhere), None);
            assert!(!of_unit(cgroup, false).own(u32::MAX), "and who is not there is not sent a signal");
        }
    }

    proptest! {
        /// Whoever stays through whatever happens when: each event ends a wait, late or early.
        #[test]
        fn a_plan_waits_forwards_and_never_beyond_its_limit(
            wait in 0_u64..20_000, end: bool, outside: bool, pauses in prop::collection::vec(0_u64..8000, 0..40)
        ) {
            let patience = Patience { wait: Duration::from_millis(wait), end, outside };
            let mut plan = Plan::new(patience);
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            let mut sent = Vec::new();
            for pause in pauses {
                match plan.next(now) {
                    Next::Wait(until) => {
                        prop_assert!(now < until && last <= until && until <= patience.wait);
                        last = until;
                        now += Duration::from_millis(pause);
                    }
                    Next::Send(signal, _) => {
                        prop_assert!(end && now < patience.wait);
                        let part = if signal == Signal::TERM { 4 } else { 2 };
                        prop_assert!(now >= patience.wait / part);
                        sent.push(signal);
                    }
                    Next::GiveUp => {
                        prop_assert!(now >= patience.wait);
                        prop_assert_eq!(plan.next(now), Next::GiveUp);
                    }
                }
            }
            prop_assert!([Signal::TERM, Signal::KILL].starts_with(&sent), "{:?}", sent);
        }

        /// Without an event each wait is slept to its end: two signals or none, and then the limit.
        #[test]
        fn a_plan_without_an_event_comes_to_its_end(wait in 0_u64..100_000_000, end: bool) {
            let patience = Patience { wait: Duration::from_nanos(wait), end, outside: false };
            let mut plan = Plan::new(patience);
            let mut now = Duration::ZERO;
            let mut sent = 0;
            for _ in 0..6 {
                match plan.next(now) {
                    Next::Wait(until) => now = until,
                    Next::Send(..) => sent += 1,
                    Next::GiveUp => break,
                }
            }
            prop_assert_eq!(now, patience.wait);
            prop_assert_eq!(sent, if end && wait > 0 { 2 } else { 0 });
        }
    }
}
