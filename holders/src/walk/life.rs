//! How far a task is, whose program is not seen: kernel threads have none, and who is ending has none any more.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::path::DecInt;

use crate::proc::{number, open_task, read_file};
use crate::stat::Stat;

/// kthreadd's process id, outside of containers.
const KTHREADD: u32 = 2;

/// How far a task is, whose program is not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    KernelThread,
    /// It may have everything, or in its end everything but its memory.
    Alive,
    /// It is a zombie, and has nothing any more.
    Ended,
}

/// `None` if it is gone.
pub(super) fn life(task: BorrowedFd<'_>) -> Option<Life> {
    let mut stat = Vec::new();
    read_file(task, c"stat", &mut stat).ok()?;
    life_of(&stat)
}

fn life_of(stat: &[u8]) -> Option<Life> {
    let stat = Stat::parse(stat)?;
    Some(match stat.is_kernel_thread()? {
        true => Life::KernelThread,
        false if stat.has_ended() => Life::Ended,
        false => Life::Alive,
    })
}

/// Kernel threads by process id, in order, asked for at once: each is a child of kthreadd, and so is a program that the
/// kernel starts (`kernel/umh.c`), which has a program. A list that lacks some costs a scan of these, no more: without
/// `CONFIG_PROC_CHILDREN`, in a container, or while one of them ends (proc_pid_task_children(5)).
pub(super) fn kernel_threads(proc_dir: BorrowedFd<'_>) -> Vec<u32> {
    let mut text = Vec::new();
    let listed = open_task(proc_dir, DecInt::new(KTHREADD).as_c_str()).and_then(|kthreadd| {
        // In a container it is anybody's process.
        if life(kthreadd.as_fd()) != Some(Life::KernelThread) {
            return Err(Errno::SRCH);
        }
        let threads = open_task(kthreadd.as_fd(), c"task")?;
        let thread = open_task(threads.as_fd(), DecInt::new(KTHREADD).as_c_str())?;
        read_file(thread.as_fd(), c"children", &mut text)
    });
    if listed.is_err() {
        return Vec::new();
    }
    let children = text.split(|&byte| byte == b' ').filter_map(number);
    let mut all: Vec<u32> = std::iter::once(KTHREADD).chain(children).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::open_proc;

    #[test]
    fn a_state_and_a_flag_say_how_far_a_task_is() {
        let cases: [(&[u8], Option<Life>); 6] = [
            (b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0", Some(Life::KernelThread)),
            (b"7 (a) Z 0) S 1 7 7 0 -1 4194304 0 0", Some(Life::Alive)),
            (b"7 (a) D 1 7 7 0 -1 4228356 0 0", Some(Life::Alive)),
            (b"7 (a) Z 1 7 7 0 -1 4228364 0 0", Some(Life::Ended)),
            (b"7 (a) S 1 7 7 0 -1", None),
            (b"", None),
        ];
        for (stat, expected) in cases {
            assert_eq!(life_of(stat), expected, "{}", String::from_utf8_lossy(stat));
        }
    }

    #[test]
    fn kernel_threads_are_listed_where_there_are_any() {
        let proc_dir = open_proc().unwrap();
        let listed = kernel_threads(proc_dir.as_fd());
        assert!(listed.is_sorted());
        assert!(!listed.contains(&std::process::id()) && !listed.contains(&1));
        for &pid in &listed {
            let task = open_task(proc_dir.as_fd(), DecInt::new(pid).as_c_str());
            assert_eq!(
                task.ok().and_then(|task| life(task.as_fd())).unwrap_or(Life::KernelThread),
                Life::KernelThread
            );
        }
    }
}
