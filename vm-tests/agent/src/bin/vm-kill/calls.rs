//! Which system calls of a traced program only read: all others are its steps, so that nothing is missed by being forgotten.

use anyhow::{Context as _, Result};
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// Whether a call changes neither files nor mounts nor locks.
pub(crate) fn reads_only(pid: Pid, number: libc::c_long, arguments: [u64; 6]) -> Result<bool> {
    let [_, second, third, ..] = arguments;
    let makes = |flags: u64| {
        let making = (libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_RDWR).cast_unsigned();
        flags & u64::from(making) != 0
    };
    Ok(match number {
        libc::SYS_open => !makes(second),
        libc::SYS_openat => !makes(third),
        // `struct open_how` begins with the flags, 64 bits wide: openat2(2).
        libc::SYS_openat2 => {
            let flags = ptrace::read(pid, third as ptrace::AddressType).context("read open_how")?;
            !makes(flags.cast_unsigned())
        }
        // What it says, and what a thread tells another.
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => true,
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_getdents64 | libc::SYS_lseek => true,
        libc::SYS_close | libc::SYS_dup | libc::SYS_fcntl | libc::SYS_ioctl => true,
        libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_statx | libc::SYS_readlink => true,
        libc::SYS_readlinkat | libc::SYS_fstatfs | libc::SYS_getcwd | libc::SYS_chdir => true,
        libc::SYS_mmap | libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_madvise | libc::SYS_brk => true,
        libc::SYS_mremap | libc::SYS_futex | libc::SYS_poll | libc::SYS_ppoll | libc::SYS_sched_yield => true,
        libc::SYS_epoll_ctl | libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_timerfd_settime => {
            true
        }
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_clock_gettime | libc::SYS_getrandom => true,
        libc::SYS_rt_sigaction | libc::SYS_rt_sigprocmask | libc::SYS_sigaltstack | libc::SYS_gettid => true,
        libc::SYS_getpid | libc::SYS_geteuid | libc::SYS_getuid | libc::SYS_umask | libc::SYS_prctl => true,
        libc::SYS_capget | libc::SYS_capset | libc::SYS_arch_prctl | libc::SYS_set_tid_address => true,
        libc::SYS_set_robust_list | libc::SYS_rseq | libc::SYS_prlimit64 | libc::SYS_sched_getaffinity => {
            true
        }
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_pidfd_open | libc::SYS_eventfd2 => true,
        libc::SYS_exit | libc::SYS_exit_group | libc::SYS_execve => true,
        _ => false,
    })
}
