//! Who would not let a scan come back: a look at the memory of a process waits for the lock of its mappings, and one at
//! anything of a process in the middle of execve(2) for that to end (`exec_update_lock`). Whoever has such a lock may
//! wait for a server that never answers, and but a fatal signal nothing ends a wait for it.
//!
//! So somebody else looks first who can be killed: a child that shares the memory of this process and nothing else, and
//! has ended before the scan begins. It makes system calls alone, as the child of posix_spawn(3) does. Where there can
//! be none, nobody looks first.

use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;
use rustix::process::Signal;

use crate::kernel::{InCommon, have_in_common};
use crate::proc::{LINK_ROOM, number, open_task, open_thread, read_file, read_link};
use crate::stat::Stat;

/// A process that was not looked at, or not wholly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StuckProcess {
    pub(crate) pid: u32,
    /// Nothing of it can be looked at. Else everything but its memory.
    pub(crate) is_whole: bool,
}

/// How long a look may take while the one who looks sleeps: much longer than a lock is held for a reason. Halved after
/// each, as a server that does not answer commonly has many who wait.
const PATIENCE: Duration = Duration::from_millis(200);
const LEAST_PATIENCE: Duration = Duration::from_millis(10);
/// The end of a killed child, which takes no more than a turn on the processor. If it takes longer its memory is left to it.
const ITS_END: Duration = Duration::from_secs(1);

/// Looks at each of these, until the deadline.
pub(super) fn find(
    proc_dir: BorrowedFd<'_>,
    pids: impl Iterator<Item = u32>,
    deadline: Option<Instant>,
) -> Vec<StuckProcess> {
    let mut stuck = Vec::new();
    let mut looker = Looker { proc_dir, patience: PATIENCE, deadline };
    let pids: Vec<u32> = pids.collect();
    let mut begin = 0;
    while let Some(rest) = pids.get(begin..)
        && !rest.is_empty()
    {
        let Some(at) = looker.look(rest, Look::AtMemory) else { break };
        let pid = rest[at];
        let is_whole = looker.look(&[pid], Look::AtLinks).is_some();
        stuck.push(StuckProcess { pid, is_whole });
        begin += at + 1;
    }
    stuck
}

/// Where a process waits, as `/proc/PID/wchan` says; empty if that is not told.
pub(crate) fn waits_in(proc_dir: BorrowedFd<'_>, pid: u32) -> String {
    let mut tids = Vec::new();
    let mut entries = [std::mem::MaybeUninit::uninit(); 4096];
    let listed = open_task(proc_dir, DecInt::new(pid).as_c_str())
        .and_then(|process| crate::proc::open_directory(process.as_fd(), c"task"))
        .and_then(|threads| crate::proc::numbers(threads.as_fd(), &mut entries, &mut tids));
    let (mut text, mut waits_in) = (Vec::new(), String::new());
    for tid in tids.iter().filter(|_| listed.is_ok()) {
        let Ok(thread) = open_thread(proc_dir, pid, *tid) else { continue };
        if state(thread.as_fd()) == Some('D')
            && read_file(thread.as_fd(), c"wchan", &mut text).is_ok()
            && !matches!(&*text, b"" | b"0")
        {
            waits_in = crate::printable::printable(&String::from_utf8_lossy(&text));
            break;
        }
    }
    waits_in
}

fn state(task: BorrowedFd<'_>) -> Option<char> {
    let mut stat = Vec::new();
    read_file(task, c"stat", &mut stat).ok()?;
    Stat::parse(&stat)?.state()
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// kcmp(2), or where the kernel has none to open `maps`, takes the one lock (`kernel/fork.c:mm_access`), a lookup in
    /// `map_files` the other (`fs/proc/base.c:proc_map_files_lookup`), also of a mapping that there is not. Nothing that
    /// takes them costs less.
    AtMemory,
    /// Where links are read under the lock as well (`fs/proc/base.c:call_proc_get_link`).
    AtLinks,
}

/// What the child is told, and tells.
struct Plan {
    proc_dir: i32,
    pids: Vec<u32>,
    look: Look,
    /// How many it has looked at.
    done: AtomicUsize,
    stack: Box<[u8]>,
}

const STACK: usize = 32 << 10;

struct Looker<'a> {
    proc_dir: BorrowedFd<'a>,
    patience: Duration,
    deadline: Option<Instant>,
}

impl Looker<'_> {
    /// Which of them does not let a look come back, the first of these; `None` if there is none, or no time.
    fn look(&mut self, pids: &[u32], look: Look) -> Option<usize> {
        let mut plan = Box::new(Plan {
            proc_dir: self.proc_dir.as_raw_fd(),
            pids: pids.to_vec(),
            look,
            done: AtomicUsize::new(0),
            stack: vec![0; STACK].into_boxed_slice(),
        });
        let child = Child::start(&mut plan)?;
        loop {
            let before = plan.done.load(Ordering::Acquire);
            let now = Instant::now();
            let left =
                self.deadline.map_or(self.patience, |deadline| deadline.saturating_duration_since(now));
            if child.has_ended_within(left.min(self.patience)) {
                return None;
            }
            let done = plan.done.load(Ordering::Acquire);
            let is_late = left <= self.patience;
            let is_stuck = done == before && done < pids.len() && self.sleeps(child.pid);
            if is_late || is_stuck {
                if !child.kill() {
                    std::mem::forget(plan);
                }
                self.patience = LEAST_PATIENCE.max(self.patience / 2);
                return is_stuck.then_some(done);
            }
        }
    }

    /// Whether the child waits for something; on a busy machine it may wait for the processor.
    fn sleeps(&self, child: u32) -> bool {
        let mut room = LINK_ROOM;
        let own = read_link(self.proc_dir, c"self", &mut room).ok().and_then(number);
        // This `/proc` may be another pid namespace's, where it has another number.
        if own != Some(std::process::id()) {
            return true;
        }
        let task = open_task(self.proc_dir, DecInt::new(child).as_c_str());
        task.ok().and_then(|task| state(task.as_fd())).is_none_or(|state| state != 'R')
    }
}

/// Not waited for yet.
struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    /// `None` if there can be no child, or (before Linux 5.4) none that is waited for by a descriptor.
    #[expect(unsafe_code, reason = "a child that shares this memory, which nothing that is safe makes")]
    fn start(plan: &mut Box<Plan>) -> Option<Self> {
        let mut pidfd: libc::c_int = -1;
        let stack = plan.stack.as_mut_ptr_range().end;
        let top = stack.wrapping_sub(stack as usize % 16);
        let plan: *mut Plan = &raw mut **plan;
        // No signal when it ends, and only who asks for such a child by __WALL has it: it is nobody else's business.
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD;
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut own = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are written before they are read. The child runs `look_at_all` on a stack of its own, which
        // lives in the plan as long as the child does; it has no signal handler called, and calls nothing but the
        // kernel. Its pidfd is written to `pidfd`.
        let pid = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), own.as_mut_ptr());
            let pid = libc::clone(look_at_all, top.cast(), flags, plan.cast(), &raw mut pidfd);
            libc::pthread_sigmask(libc::SIG_SETMASK, own.as_ptr(), std::ptr::null_mut());
            pid
        };
        let pid = u32::try_from(pid).ok()?;
        if pidfd < 0 {
            // SAFETY: integers, and no memory to write to. It ends by itself or with this process.
            unsafe { libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), libc::__WALL) };
            return None;
        }
        // SAFETY: the call succeeded, so this is a descriptor that is new and nobody else's.
        Some(Self { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }

    /// Then it is reaped.
    #[expect(unsafe_code, reason = "poll(2) and waitid(2) of a child without a signal at its end")]
    fn has_ended_within(&self, time: Duration) -> bool {
        let mut file = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // Rounded up, so as not to ask without a pause.
        let time = i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX);
        // SAFETY: one `pollfd` is read and written.
        if unsafe { libc::poll(&raw mut file, 1, time) } <= 0 {
            return false;
        }
        let mut told = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
        let id = libc::id_t::try_from(self.pidfd.as_raw_fd()).unwrap_or_default();
        // SAFETY: one `siginfo_t` is written.
        unsafe { libc::waitid(libc::P_PIDFD, id, told.as_mut_ptr(), libc::WEXITED | libc::__WALL) };
        true
    }

    /// True once it is gone.
    fn kill(&self) -> bool {
        // It may have ended by itself.
        let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let until = Instant::now() + ITS_END;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.has_ended_within(left) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

/// The child: calls of the kernel, and no allocation. It shares `errno` with the thread that waits for it, which does not ask
/// for that meanwhile.
#[expect(unsafe_code, reason = "the plan comes as a pointer")]
extern "C" fn look_at_all(plan: *mut c_void) -> libc::c_int {
    // SAFETY: it is the plan that `Child::start` was given, which outlives this process.
    let plan: &Plan = unsafe { &*plan.cast::<Plan>() };
    // SAFETY: a copy of a descriptor that is open, as a child has its own table.
    let proc_dir = unsafe { BorrowedFd::borrow_raw(plan.proc_dir) };
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return 1;
    }
    let mut has_kcmp = true;
    for &pid in &plan.pids {
        // Whatever they say: it is enough that they come back.
        match plan.look {
            Look::AtMemory => {
                has_kcmp =
                    has_kcmp && !matches!(have_in_common(pid, pid, InCommon::Memory), Err(Errno::NOSYS));
                if !has_kcmp {
                    let name = Name::of(pid, b"/maps");
                    drop(rustix::fs::openat(proc_dir, name.as_c_str(), OFlags::RDONLY, Mode::empty()));
                }
                read(proc_dir, &Name::of(pid, b"/map_files/0-1"));
            }
            Look::AtLinks => read(proc_dir, &Name::of(pid, b"/cwd")),
        }
        plan.done.fetch_add(1, Ordering::Release);
    }
    0
}

fn read(proc_dir: BorrowedFd<'_>, name: &Name) {
    let mut room = [std::mem::MaybeUninit::uninit(); 16];
    drop(rustix::fs::readlinkat_raw(proc_dir, name.as_c_str(), &mut room));
}

/// A name in `/proc` that is no allocation.
struct Name([u8; 32]);

impl Name {
    /// Of what is at most 20 bytes long.
    fn of(pid: u32, rest: &[u8]) -> Self {
        let mut name = [0; 32];
        let digits = DecInt::new(pid);
        let bytes = digits.as_bytes().iter().chain(rest);
        // The last one stays 0.
        for (to, byte) in name.iter_mut().take(31).zip(bytes) {
            *to = *byte;
        }
        Self(name)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::open_proc;

    #[test]
    fn names_fit() {
        assert_eq!(Name::of(u32::MAX, b"/map_files/0-1").as_c_str(), c"4294967295/map_files/0-1");
    }

    #[test]
    fn nobody_is_stuck_who_is_not_and_no_child_is_left() {
        let proc_dir = open_proc().unwrap();
        let pids = [std::process::id(), 1, u32::MAX];
        for _ in 0..100 {
            assert_eq!(find(proc_dir.as_fd(), pids.into_iter(), None), []);
        }
        assert_eq!(find(proc_dir.as_fd(), std::iter::empty(), None), []);
        let past = Some(Instant::now());
        assert_eq!(find(proc_dir.as_fd(), pids.into_iter(), past), []);
    }
}
