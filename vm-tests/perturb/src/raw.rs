//! ptrace(2), waitpid(2), setitimer(2), clock_nanosleep(2) and sched_setscheduler(2) as the kernel has them: what wraps them knows no real-time signals, and loses
//! the task that stops with one.

use std::io;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_uint, c_void, pid_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The options of all that is traced; a task that is made inherits its maker's.
const OPTIONS: c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACEEXIT;

/// Below the recorder's thread, which sees first what it records, and above all that is traced.
const PRIORITY: c_int = 5;

/// What waitpid(2) tells of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// At a system call.
    Syscall,
    /// At a `PTRACE_EVENT_…`, with the stop's signal.
    Event(c_int, c_int),
    /// By a signal that it is about to get.
    Signal(c_int),
}

fn ptrace(request: c_uint, pid: pid_t, data: usize) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: of the requests here none reads or writes memory of this process.
    let result = unsafe { libc::ptrace(request, pid, 0_usize, data as *mut c_void) };
    Errno::result(result).map(drop)
}

/// Begins to trace a task that runs, and does not stop it.
pub(crate) fn seize(pid: pid_t) -> nix::Result<()> {
    ptrace(libc::PTRACE_SEIZE, pid, OPTIONS as usize)
}

/// Gives a stopped task the options.
pub(crate) fn set_options(pid: pid_t) -> nix::Result<()> {
    ptrace(libc::PTRACE_SETOPTIONS, pid, OPTIONS as usize)
}

/// How a stopped task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Go {
    /// To its next system call.
    ToCall,
    /// To its next event.
    ToEvent,
    /// Not at all, until somebody else continues it: it is stopped as by SIGSTOP.
    Listen,
}

/// Lets a stopped task go on, with a signal or with 0. One that is gone is none any more.
pub(crate) fn go_on(pid: pid_t, how: Go, signal: c_int) -> nix::Result<()> {
    let request = match how {
        Go::ToCall => libc::PTRACE_SYSCALL,
        Go::ToEvent => libc::PTRACE_CONT,
        Go::Listen => libc::PTRACE_LISTEN,
    };
    match ptrace(request, pid, usize::try_from(signal).unwrap_or(0)) {
        Err(Errno::ESRCH) => Ok(()),
        result => result,
    }
}

/// The child's part, between fork and exec: asks to be traced.
pub(crate) fn trace_me() -> io::Result<()> {
    ptrace(libc::PTRACE_TRACEME, 0, 0).map_err(Into::into)
}

/// Waits for the next task that has something to tell; `None` if a signal came first, see [`alarm_after`].
pub(crate) fn wait() -> nix::Result<Option<(pid_t, Status)>> {
    let mut status = 0;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the kernel writes one integer through the pointer, which outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    match Errno::result(pid) {
        Err(Errno::EINTR) => Ok(None),
        Ok(pid) => Ok(Some((pid, decoded(status)))),
        Err(errno) => Err(errno),
    }
}

/// Has [`wait`] end after so many microseconds, and again each millisecond, since the first can come before it has begun; 0: not at
/// all. One system call a wait, in place of three by poll(2): a task that is traced makes a thousand stops.
pub(crate) fn alarm_after(us: u64) -> nix::Result<()> {
    let time = |us: u64| libc::timeval {
        tv_sec: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        // Below a million.
        tv_usec: i64::try_from(us % 1_000_000).unwrap_or(0),
    };
    let timer = libc::itimerval { it_interval: time(if us == 0 { 0 } else { 1_000 }), it_value: time(us) };
    let none = std::ptr::null_mut::<libc::itimerval>();
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the kernel reads one `struct itimerval` from the pointer, which outlives the call, and writes to none.
    let result = unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, none) };
    Errno::result(result).map(drop)
}

/// Sleeps until this instant of the monotonic clock, in microseconds, to the nanosecond.
pub(crate) fn sleep_until(us: u64) -> nix::Result<()> {
    let until = libc::timespec {
        tv_sec: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        // Below a thousand million.
        tv_nsec: i64::try_from(us % 1_000_000 * 1000).unwrap_or(0),
    };
    let (clock, how, none) =
        (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, std::ptr::null_mut::<libc::timespec>());
    loop {
        #[expect(unsafe_code, reason = "a system call")]
        // SAFETY: the kernel reads one `struct timespec` from the pointer, which outlives the call, and writes to none.
        let result = unsafe { libc::syscall(libc::SYS_clock_nanosleep, clock, how, &raw const until, none) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Has the alarm end a wait and do nothing else.
pub(crate) fn hear_alarms() -> nix::Result<()> {
    extern "C" fn nothing(_signal: c_int) {}
    // Without SA_RESTART: what waits is to end.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "a handler of a signal")]
    // SAFETY: the handler does nothing, and there was none before it.
    unsafe { sigaction(Signal::SIGALRM, &action) }.map(drop)
}

fn decoded(status: c_int) -> Status {
    if libc::WIFEXITED(status) {
        return Status::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Status::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match (status >> 16, signal) {
        (0, signal) if signal == libc::SIGTRAP | 0x80 => Status::Syscall,
        (0, signal) => Status::Signal(signal),
        (event, signal) => Status::Event(event, signal),
    }
}

/// Takes the processor before all that is traced. Children are as others.
pub(crate) fn become_fifo() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the kernel reads one `struct sched_param` from the pointer, which outlives the call. The C function is left out by
    // musl; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_ptrace_writes_it() {
        for (status, is) in [
            (3 << 8, Status::Exited(3)),
            (9, Status::Killed(9)),
            ((libc::SIGTRAP | 0x80) << 8 | 0x7f, Status::Syscall),
            (
                libc::PTRACE_EVENT_EXIT << 16 | libc::SIGTRAP << 8 | 0x7f,
                Status::Event(libc::PTRACE_EVENT_EXIT, libc::SIGTRAP),
            ),
            // SIGRTMIN+4 of glibc.
            (38 << 8 | 0x7f, Status::Signal(38)),
        ] {
            assert_eq!(decoded(status), is, "{status:#x}");
        }
    }
}
