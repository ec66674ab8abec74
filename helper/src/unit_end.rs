//! Waits until no process of a server's unit is left, before its overlay is unmounted.
//!
//! What a process holds in the mount is not visible until its end. A process that only maps files shows nothing while its
//! memory is freed, which takes a tenth of a second for a gigabyte, and the mount is busy that long. So the helper does not
//! wait for visible holders. It waits for every process that the kernel counts to the unit, by a pidfd, which becomes
//! readable when the process has released everything (`kernel/exit.c:do_exit` calls exit_notify() after exit_files(),
//! exit_fs() and exit_task_work()).
//!
//! systemd ends the server's unit before it stops the overlay's, so usually there is nothing to wait for. The wait is for an
//! event, with a deadline: no polling and no second unmount. If the helper is itself one of the unit's processes, as with
//! the unit of 5eac51a, it leaves out its own session: systemd makes each Exec command the leader of one.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{self, UnitCgroup, time_until};

/// How long an unmount, with all that comes before it, may take by default. It has to end before the overlay
/// unit's `TimeoutStopSec=` (30 s), after which systemd kills the helper itself.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// How many of those who are waited for get a line.
const NOTED: usize = 16;

/// How many are waited for at once. Each takes a descriptor; who comes after them is found when they have ended.
const AT_ONCE: usize = 256;

/// After which part of the wait a unit is ended, if that is asked for: a quarter.
const PART_TO_END: u32 = 4;

/// How an unmount waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// How long at most.
    pub limit: Duration,
    /// Whether a unit that is still there after a quarter of that time is killed.
    pub end_unit: bool,
}

impl Default for Wait {
    fn default() -> Self {
        Self { limit: DEFAULT_WAIT, end_unit: false }
    }
}

/// A process that has not ended.
#[derive(Debug)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Its name, as it can be printed.
    pub comm: String,
    /// Readable when it has ended, pidfd_open(2).
    pub pidfd: OwnedFd,
}

/// The processes that are waited for.
pub trait Processes {
    /// Those that one walk shows and that have not ended; not all of them if there are very many.
    fn running(&mut self) -> Vec<Running>;
    /// Whether the unit has a process that a walk may have missed, as one is that forks an heir and ends; returns as soon
    /// as it has none, or at `until`. Who is ending already, which is all that a walk has to find then, has no heir.
    fn has_others(&mut self, until: Instant) -> bool;
    /// Kills all of them, and whom they make meanwhile.
    ///
    /// # Errors
    /// As [`cgroup::kill`].
    fn kill(&mut self) -> io::Result<()>;
}

/// The processes of a unit without this one and those of its session.
#[derive(Debug)]
pub struct OfUnit {
    cgroup: UnitCgroup,
    /// The unit's cgroup, as its last process had it.
    path: String,
}

impl OfUnit {
    /// The processes of the unit of this name.
    #[must_use]
    pub fn new(unit: &str) -> Self {
        let cgroup = UnitCgroup::of(unit);
        Self { path: cgroup.usual_path(), cgroup }
    }

    /// Whether this process is one of the unit's. Asked when somebody else is, which is seldom.
    fn is_mine(&self) -> bool {
        fs::read_to_string("/proc/self/cgroup").is_ok_and(|text| self.cgroup.has(&text))
    }

    /// `None` for a process that is another unit's, this one's own, gone, or has ended: its parent has only not asked for
    /// its status, and it holds nothing.
    fn member(&mut self, proc_dir: BorrowedFd<'_>, pid: u32, buffer: &mut Vec<u8>) -> Option<Running> {
        read(proc_dir, pid, "cgroup", buffer).ok()?;
        let path = self.cgroup.path(std::str::from_utf8(buffer).ok()?)?;
        let handle = Pid::from_raw(i32::try_from(pid).ok()?)?;
        path.clone_into(&mut self.path);
        if self.is_mine() {
            let mut session_of =
                |pid| read(proc_dir, pid, "status", buffer).ok().and_then(|()| session(buffer));
            let own = session_of(std::process::id());
            // Who can't be told from a stranger is waited for as one.
            if own.is_some() && session_of(pid) == own {
                return None;
            }
        }
        let pidfd = pidfd_open(handle, PidfdFlags::empty()).ok()?;
        if has_ended(&pidfd) {
            return None;
        }
        let name = read(proc_dir, pid, "comm", buffer).map(|()| String::from_utf8_lossy(buffer).into_owned());
        let comm = holders::shown(Path::new(name.unwrap_or_default().trim_end_matches('\n')));
        Some(Running { pid, comm, pidfd })
    }
}

impl Processes for OfUnit {
    fn running(&mut self) -> Vec<Running> {
        let mut running = Vec::new();
        // Without /proc there is nobody to wait for, and the unmount says what is so.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(proc_dir) = rustix::fs::open("/proc", flags, Mode::empty()) else { return running };
        let proc_dir = proc_dir.as_fd();
        let mut buffer = Vec::with_capacity(4096);
        let kernel_threads = kernel_threads(proc_dir, &mut buffer);
        let own = std::process::id();
        const ROOM: usize = 32 * 1024;
        const MAX_ENTRY: usize = 280;
        let mut space = [MaybeUninit::<u8>::uninit(); ROOM];
        let mut entries = RawDir::new(proc_dir, &mut space);
        let mut seen = 0;
        // That a directory is at its end is told by one more call, which is spared where the first has surely not filled
        // the buffer.
        while !(seen > 0 && seen < ROOM / MAX_ENTRY && entries.is_buffer_empty())
            && let Some(Ok(entry)) = entries.next()
        {
            seen += 1;
            let Some(pid) = number(entry.file_name().to_bytes()) else { continue };
            if pid == own || kernel_threads.binary_search(&pid).is_ok() {
                continue;
            }
            running.extend(self.member(proc_dir, pid, &mut buffer));
            if running.len() >= AT_ONCE {
                break;
            }
        }
        running
    }

    fn has_others(&mut self, until: Instant) -> bool {
        // While this process is in the cgroup it is never empty.
        cgroup::wait_while_populated(&self.path, Instant::now())
            && !self.is_mine()
            && cgroup::wait_while_populated(&self.path, until)
    }

    fn kill(&mut self) -> io::Result<()> {
        if self.is_mine() {
            return Err(io::Error::other("this process is one of the unit's"));
        }
        cgroup::kill(&self.path)
    }
}

/// Most processes of a machine are kernel threads, which are in no unit: a list of them, in order, spares reading each. It
/// is that of kthreadd's children; empty where the kernel has none, and in a pid namespace of its own, where 2 is another.
fn kernel_threads(proc_dir: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Vec<u32> {
    const KTHREADD: u32 = 2;
    if !is_first_pid_namespace(proc_dir) || read(proc_dir, KTHREADD, "task/2/children", buffer).is_err() {
        return Vec::new();
    }
    // A page is some 800 of them. The last may be cut in two, and is not one then.
    let whole = buffer.iter().rposition(|byte| *byte == b' ').unwrap_or_default();
    let mut threads: Vec<u32> = buffer[..whole].split(|byte| *byte == b' ').filter_map(number).collect();
    threads.sort_unstable();
    threads
}

/// Whether this process is in the pid namespace that the kernel began with, whose inode has a fixed number
/// (`include/linux/proc_ns.h`, PROC_PID_INIT_INO).
fn is_first_pid_namespace(proc_dir: BorrowedFd<'_>) -> bool {
    let mut name = [MaybeUninit::uninit(); 32];
    rustix::fs::readlinkat_raw(proc_dir, c"self/ns/pid", &mut name)
        .is_ok_and(|(name, _rest)| name == b"pid:[4026531836]")
}

/// Reads a file of a process, at most a page of it.
fn read(proc_dir: BorrowedFd<'_>, pid: u32, name: &str, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    let mut path = [0_u8; 40];
    write!(&mut path[..39], "{pid}/{name}").map_err(|_too_long| Errno::NAMETOOLONG)?;
    let path = CStr::from_bytes_until_nul(&path).map_err(|_no_end| Errno::NAMETOOLONG)?;
    let file = rustix::fs::openat(proc_dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    buffer.clear();
    rustix::io::read(file, rustix::buffer::spare_capacity(buffer)).map(drop)
}

/// The session of a process whose `/proc/PID/status` this is (proc_pid_status(5), `NSsid`; the first is in the namespace of
/// that `/proc`). `/proc/PID/stat` has it too, but reading that waits for the end of an execve(2), which may wait for a file
/// server that never answers: so it was on Linux 6.18, the only one on which this was tried.
fn session(status: &[u8]) -> Option<u32> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(b"NSsid:\t"))?;
    value.split(|byte| *byte == b'\t').next().and_then(number)
}

fn number(digits: &[u8]) -> Option<u32> {
    if !digits.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The order of a wait: what is done when, without the doing. All times are since the wait began.
#[derive(Debug, Clone)]
pub struct Plan {
    wait: Wait,
    is_ended: bool,
}

/// What comes next while a process of the unit is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait until they have ended, but no longer than to this time.
    Wait(Duration),
    /// Kill the unit, then scan again for what is left.
    End,
    /// The time is up.
    GiveUp,
}

impl Plan {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(wait: Wait) -> Self {
        Self { wait, is_ended: !wait.end_unit }
    }

    /// What comes next, `elapsed` after the beginning. The unit is ended once.
    pub fn next(&mut self, elapsed: Duration) -> Next {
        let Wait { limit, .. } = self.wait;
        let to_end = limit / PART_TO_END;
        match () {
            () if elapsed >= limit => Next::GiveUp,
            () if self.is_ended => Next::Wait(limit),
            () if elapsed < to_end => Next::Wait(to_end),
            () => {
                self.is_ended = true;
                Next::End
            }
        }
    }
}

/// Waits until none of the processes is left, or the time is up. `began` is when the time began; `note` gets a line for
/// everything that is worth one in the journal.
pub fn wait(processes: &mut impl Processes, wait: &Wait, began: Instant, note: &mut dyn FnMut(String)) {
    let mut plan = Plan::new(*wait);
    let mut known = BTreeSet::new();
    loop {
        let running = processes.running();
        if running.is_empty() && !processes.has_others(Instant::now()) {
            return;
        }
        for Running { pid, comm, .. } in &running {
            // A process that forks all the time is told of this often, and no more.
            if known.len() < NOTED && known.insert(*pid) {
                note(format!("waiting for {pid} ({comm}) of the server's unit, which has not ended"));
            }
        }
        match plan.next(began.elapsed()) {
            Next::Wait(until) if !running.is_empty() => until_all_have_ended(running, began + until),
            Next::Wait(until) => match processes.has_others(began + until) {
                // Either way the next walk shows who is left.
                true | false => {}
            },
            Next::End => note(match processes.kill() {
                Ok(()) => {
                    "the server's unit is down and has processes left: killed them (cgroup.kill)".into()
                }
                Err(error) => format!("kill what is left of the server's unit: {error}"),
            }),
            Next::GiveUp => {
                note(format!(
                    "{} of the server's unit have not ended in time; unmounting all the same",
                    running.len()
                ));
                return;
            }
        }
    }
}

/// Waits until each of them has ended, or `until`.
fn until_all_have_ended(mut running: Vec<Running>, until: Instant) {
    while !running.is_empty() {
        let mut descriptors: Vec<_> =
            running.iter().map(|process| PollFd::new(&process.pidfd, PollFlags::IN)).collect();
        if !matches!(poll(&mut descriptors, Some(&time_until(until))), Ok(1..) | Err(Errno::INTR)) {
            // The time is up, or poll(2) itself fails: the caller's next pass says who is left.
            return;
        }
        running.retain(|process| !has_ended(&process.pidfd));
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use holders::stat::Stat;
    use proptest::prelude::*;

    use super::*;

    /// Processes that a test names.
    #[derive(Default)]
    struct Named {
        pids: Vec<u32>,
        kills: usize,
    }

    impl Processes for Named {
        fn running(&mut self) -> Vec<Running> {
            let running = |pid: &u32| {
                let pidfd =
                    pidfd_open(Pid::from_raw(i32::try_from(*pid).ok()?)?, PidfdFlags::empty()).ok()?;
                (!has_ended(&pidfd)).then(|| Running { pid: *pid, comm: "sh".into(), pidfd })
            };
            self.pids.iter().filter_map(running).collect()
        }

        fn has_others(&mut self, _until: Instant) -> bool {
            false
        }

        fn kill(&mut self) -> io::Result<()> {
            self.kills += 1;
            for pid in &self.pids {
                let pid = Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            }
            Ok(())
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a shell that the test ends and waits for")]
    fn shell() -> Child {
        Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap()
    }

    fn run(processes: &mut Named, millis: u64, end_unit: bool) -> (Duration, Vec<String>) {
        let mut notes = Vec::new();
        let began = Instant::now();
        let limit = Wait { limit: Duration::from_millis(millis), end_unit };
        wait(processes, &limit, began, &mut |note| notes.push(note));
        (began.elapsed(), notes)
    }

    #[test]
    fn nobody_there_is_no_wait() {
        let (took, notes) = run(&mut Named::default(), 60_000, true);
        assert!(took < Duration::from_secs(30) && notes.is_empty(), "{took:?} {notes:?}");
    }

    #[test]
    fn each_end_is_an_event_and_the_last_one_ends_the_wait() {
        let mut children = [shell(), shell(), shell()];
        let pids = children.iter().map(Child::id).collect();
        // Their input ends, one after the other.
        let inputs: Vec<_> = children.iter_mut().map(|child| child.stdin.take()).collect();
        let closing = std::thread::spawn(move || inputs.into_iter().for_each(drop));
        let (took, notes) = run(&mut Named { pids, kills: 0 }, 60_000, false);
        assert!(took < Duration::from_secs(30) && notes.len() <= 3, "{took:?} {notes:?}");
        closing.join().unwrap();
        for child in &mut children {
            assert!(child.try_wait().unwrap().is_some());
        }
    }

    #[test]
    fn one_that_stays_is_killed_only_if_that_is_asked_for() {
        for end_unit in [true, false] {
            let mut child = shell();
            let mut processes = Named { pids: vec![child.id()], ..Named::default() };
            let (took, notes) = run(&mut processes, 400, end_unit);
            assert!(took >= Duration::from_millis(if end_unit { 100 } else { 400 }), "{took:?}");
            assert_eq!(processes.kills, usize::from(end_unit), "{notes:?}");
            assert_eq!(child.try_wait().unwrap().is_some(), end_unit, "{notes:?}");
            assert_eq!(
                notes.iter().any(|note| note.contains("have not ended in time")),
                !end_unit,
                "{notes:?}"
            );
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    #[test]
    fn its_own_cgroup_shows_who_else_is_in_it() {
        // Whatever unit this runs in plays the server's; in a cgroup that is none's there is nobody.
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let name =
            cgroup::path_of(&text).and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_owned();
        let mut own = OfUnit::new(&name);
        assert!(
            own.running().iter().all(|process| process.pid != std::process::id()),
            "it would wait for itself"
        );
        assert!(!own.is_mine() || own.kill().is_err(), "nor does it kill itself");
        let mut nobody = OfUnit::new("no-such.service");
        assert!(nobody.running().is_empty() && !nobody.has_others(Instant::now()));
    }

    #[test]
    fn a_status_says_the_session() {
        for (status, expected) in [
            ("Name:\tsh\nGroups:\t \nNStgid:\t7\nNSpid:\t7\nNSpgid:\t6\nNSsid:\t5\nKthread:\t0\n", Some(5)),
            // The kernel writes a line's end in a name as two characters.
            ("Name:\tx\\nNSsid:\t3\nNSsid:\t5\n", Some(5)),
            ("Name:\tsh\nNSsid:\t5\t1\n", Some(5)),
            // Its leader is outside of this pid namespace.
            ("NSsid:\t0\n", Some(0)),
            ("Name:\tsh\nNSsid:\t", None),
            ("Name:\tNSsid:\t3\n", None),
            ("", None),
        ] {
            assert_eq!(session(status.as_bytes()), expected, "{status}");
        }
        // The sixth field, and the name ends with the last parenthesis.
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        let expected = after_name.split(' ').nth(3).unwrap();
        assert_eq!(session(&fs::read("/proc/self/status").unwrap()), expected.parse().ok());
    }

    #[test]
    fn only_a_kernel_thread_is_taken_for_one() {
        let proc_dir = fs::File::open("/proc").unwrap();
        let threads = kernel_threads(proc_dir.as_fd(), &mut Vec::with_capacity(4096));
        for pid in &threads {
            // One may have ended since.
            let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
            assert_eq!(Stat::parse(&stat).unwrap().is_kernel_thread(), Some(true), "{pid}");
        }
        let is_first = fs::read_link("/proc/self/ns/pid").unwrap() == Path::new("pid:[4026531836]");
        let has_kthreadd = fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n");
        assert_eq!(
            !threads.is_empty(),
            is_first && has_kthreadd && Path::new("/proc/2/task/2/children").exists()
        );
    }

    proptest! {
        /// Whoever stays through whatever happens when: each event ends a wait, late or early.
        #[test]
        fn a_plan_waits_forwards_and_never_beyond_its_limit(
            limit in 0_u64..20_000, end_unit: bool, pauses in prop::collection::vec(0_u64..8000, 0..40)
        ) {
            let wait = Wait { limit: Duration::from_millis(limit), end_unit };
            let mut plan = Plan::new(wait);
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            let mut ended = 0;
            for pause in pauses {
                match plan.next(now) {
                    Next::Wait(until) => {
                        prop_assert!(now < until && last <= until && until <= wait.limit);
                        last = until;
                        now += Duration::from_millis(pause);
                    }
                    Next::End => {
                        prop_assert!(end_unit && now < wait.limit && now >= wait.limit / PART_TO_END);
                        ended += 1;
                    }
                    Next::GiveUp => {
                        prop_assert!(now >= wait.limit);
                        prop_assert_eq!(plan.next(now), Next::GiveUp);
                    }
                }
            }
            prop_assert!(ended <= 1);
        }

        /// Without an event each wait is slept to its end: the unit is ended once or never, and then the limit.
        #[test]
        fn a_plan_without_an_event_comes_to_its_end(limit in 0_u64..100_000_000, end_unit: bool) {
            let wait = Wait { limit: Duration::from_nanos(limit), end_unit };
            let mut plan = Plan::new(wait);
            let mut now = Duration::ZERO;
            let mut ended = 0;
            for _ in 0..6 {
                match plan.next(now) {
                    Next::Wait(until) => now = until,
                    Next::End => ended += 1,
                    Next::GiveUp => break,
                }
            }
            prop_assert_eq!(now, wait.limit);
            prop_assert_eq!(ended, u32::from(end_unit && limit > 0));
        }
    }
}
