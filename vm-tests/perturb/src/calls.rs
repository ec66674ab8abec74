//! Which system calls are points: those by which processes meet, on files, mounts, locks, sockets and each other. All others go
//! through.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::libc::{self, c_long, pid_t};

/// The longest path that is told, in bytes.
const PATH_BYTES: usize = 200;

/// A call that is a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Calls that do the same have one name.
    pub(crate) name: &'static str,
    /// The path, or the file's number, that it is about; empty if none is known.
    pub(crate) of: String,
}

/// The point that a call is, if it is one: of 64-bit programs, by the call's number there.
pub(crate) fn point(pid: pid_t, number: u64, arguments: [u64; 6]) -> Option<Call> {
    let [first, second, third, fourth, ..] = arguments;
    let number = c_long::try_from(number).ok()?;
    let making = libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_RDWR;
    let makes = |flags: u64| flags & u64::from(making.cast_unsigned()) != 0;
    let (name, path) = match number {
        libc::SYS_mount => ("mount", Some(second)),
        libc::SYS_move_mount => ("mount", Some(fourth)),
        libc::SYS_umount2 => ("umount2", Some(first)),
        libc::SYS_setns => ("setns", None),
        libc::SYS_unshare => ("unshare", None),
        libc::SYS_pivot_root | libc::SYS_chroot => ("chroot", Some(first)),
        libc::SYS_chdir => ("chdir", Some(first)),
        libc::SYS_unlink | libc::SYS_rmdir => ("unlink", Some(first)),
        libc::SYS_unlinkat => ("unlink", Some(second)),
        libc::SYS_rename => ("rename", Some(first)),
        libc::SYS_renameat | libc::SYS_renameat2 => ("rename", Some(second)),
        libc::SYS_link | libc::SYS_symlink => ("link", Some(second)),
        libc::SYS_linkat => ("link", Some(fourth)),
        libc::SYS_symlinkat => ("link", Some(third)),
        libc::SYS_mkdir => ("mkdir", Some(first)),
        libc::SYS_mkdirat => ("mkdir", Some(second)),
        libc::SYS_open if makes(second) => ("open", Some(first)),
        libc::SYS_creat | libc::SYS_truncate => ("open", Some(first)),
        libc::SYS_openat if makes(third) => ("open", Some(second)),
        libc::SYS_openat2 if makes(word(pid, third)?) => ("open", Some(second)),
        libc::SYS_execve => ("exec", Some(first)),
        libc::SYS_execveat => ("exec", Some(second)),
        libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3 => ("fork", None),
        libc::SYS_kill | libc::SYS_pidfd_send_signal => ("kill", None),
        libc::SYS_flock => ("lock", None),
        libc::SYS_fcntl if is_lock(second) => ("lock", None),
        libc::SYS_bind => ("bind", None),
        libc::SYS_listen => ("listen", None),
        libc::SYS_connect => ("connect", None),
        libc::SYS_accept | libc::SYS_accept4 => ("accept", None),
        libc::SYS_sendto | libc::SYS_sendmsg => ("send", None),
        _ => return None,
    };
    let of = path.and_then(|at| text(pid, at)).unwrap_or_default();
    // What a shell does at each redirection is nobody's meeting.
    (name != "open" || !of.starts_with("/dev/")).then_some(Call { name, of })
}

fn is_lock(command: u64) -> bool {
    let locks = [libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];
    locks.iter().any(|lock| u64::from(lock.cast_unsigned()) == command)
}

/// The word at an address of a stopped task.
fn word(pid: pid_t, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, at).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The text at an address of a stopped task.
fn text(pid: pid_t, at: u64) -> Option<String> {
    let mut bytes = [0; PATH_BYTES];
    // Shorter where the next page is not there.
    let length = File::open(format!("/proc/{pid}/mem")).ok()?.read_at(&mut bytes, at).ok()?;
    let text = bytes.get(..length)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}
