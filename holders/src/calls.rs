//! Calls under way that were given a path: who waits inside open(2) for the other end of a FIFO, or in stat(2) for a server
//! that does not answer, has no descriptor yet, and holds the path all the same.
//!
//! `/proc/PID/syscall` tells the call and its arguments, `/proc/PID/mem` the name (proc_pid_syscall(5)). A call that has
//! come to its end meanwhile has read another name by then, so it is asked once more. Only what waits is seen: that is what
//! lasts. The text tells, as the task's own directories and no symbolic links make a path of it.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::effect::Mounts;
use crate::proc::{self, LINK_ROOM, open_task, read_link};
use crate::propagation;
use crate::report::{Holder, Kind, Reference};
use crate::task::{self, Detail, Known};
use crate::walk::Walk;

/// What a line of `/proc/PID/syscall` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    name: &'static str,
    /// The directory that the name is relative to; `None` for the working directory.
    directory: Option<u32>,
    /// Where the name is.
    address: u64,
}

/// Calls with a path: their number, their name, which argument is the directory, which is the path.
type Calls = &'static [(i64, &'static str, Option<usize>, usize)];

macro_rules! calls {
    ($($number:ident $name:literal $directory:expr, $path:literal;)*) => {
        &[$((libc::$number as i64, $name, $directory, $path),)*]
    };
}

const CALLS: Calls = calls! {
    SYS_openat "openat" Some(0), 1;
    SYS_openat2 "openat2" Some(0), 1;
    SYS_newfstatat "newfstatat" Some(0), 1;
    SYS_statx "statx" Some(0), 1;
    SYS_statfs "statfs" None, 0;
    SYS_faccessat "faccessat" Some(0), 1;
    SYS_faccessat2 "faccessat2" Some(0), 1;
    SYS_readlinkat "readlinkat" Some(0), 1;
    SYS_mkdirat "mkdirat" Some(0), 1;
    SYS_unlinkat "unlinkat" Some(0), 1;
    SYS_renameat2 "renameat2" Some(0), 1;
    SYS_linkat "linkat" Some(0), 1;
    SYS_fchmodat "fchmodat" Some(0), 1;
    SYS_fchownat "fchownat" Some(0), 1;
    SYS_utimensat "utimensat" Some(0), 1;
    SYS_truncate "truncate" None, 0;
    SYS_chdir "chdir" None, 0;
    SYS_execve "execve" None, 0;
    SYS_getxattr "getxattr" None, 0;
    SYS_lgetxattr "lgetxattr" None, 0;
};

/// Those of x86-64 that newer architectures have not.
#[cfg(target_arch = "x86_64")]
const OLD: Calls = calls! {
    SYS_open "open" None, 0;
    SYS_creat "creat" None, 0;
    SYS_stat "stat" None, 0;
    SYS_lstat "lstat" None, 0;
    SYS_access "access" None, 0;
    SYS_readlink "readlink" None, 0;
    SYS_mkdir "mkdir" None, 0;
    SYS_rmdir "rmdir" None, 0;
    SYS_unlink "unlink" None, 0;
    SYS_rename "rename" None, 0;
};
#[cfg(not(target_arch = "x86_64"))]
const OLD: Calls = &[];

/// Those of a 32-bit program on x86-64 (`arch/x86/entry/syscalls/syscall_32.tbl`), which a game commonly is.
#[cfg(target_arch = "x86_64")]
const OF_32_BIT: Calls = &[
    (5, "open", None, 0),
    (8, "creat", None, 0),
    (10, "unlink", None, 0),
    (11, "execve", None, 0),
    (12, "chdir", None, 0),
    (33, "access", None, 0),
    (38, "rename", None, 0),
    (39, "mkdir", None, 0),
    (40, "rmdir", None, 0),
    (85, "readlink", None, 0),
    (99, "statfs", None, 0),
    (106, "stat", None, 0),
    (107, "lstat", None, 0),
    (195, "stat64", None, 0),
    (196, "lstat64", None, 0),
    (268, "statfs64", None, 0),
    (295, "openat", Some(0), 1),
    (300, "fstatat64", Some(0), 1),
    (301, "unlinkat", Some(0), 1),
    (383, "statx", Some(0), 1),
    (437, "openat2", Some(0), 1),
];
#[cfg(not(target_arch = "x86_64"))]
const OF_32_BIT: Calls = &[];

/// Who is inside a call with a path on one of these mounts, as far as the deadline lets that be found out. A task that may
/// not be looked at is passed over: the walk has counted it.
pub(crate) fn holders(
    proc_dir: BorrowedFd<'_>,
    walk: &Walk,
    mounts: &Mounts,
    at: &Path,
    deadline: Instant,
) -> Vec<Holder> {
    let related = mounts.related();
    let mut points: Vec<&Path> = related.iter().map(|(at, _)| &*mounts.mount(*at).mount_point).collect();
    points.retain(|point| *point != Path::new("/"));
    points.push(at);
    let lineage = task::lineage(proc_dir);
    let mut holders = Vec::new();
    let mut text = Vec::new();
    let first_threads = walk.pids.iter().map(|&pid| (pid, pid));
    for (pid, tid) in first_threads.chain(walk.threads.iter().copied()) {
        if Instant::now() >= deadline {
            break;
        }
        if walk.is_stuck(pid) {
            continue;
        }
        // Nearly all are in no such call, so that is found out by as little as can be.
        let line = if pid == tid { format!("{pid}/syscall") } else { format!("{pid}/task/{tid}/syscall") };
        if read_line(proc_dir, &line, &mut text).is_err() || parse(&text).is_none() {
            continue;
        }
        let process = open_task(proc_dir, DecInt::new(pid).as_c_str());
        let (Ok(process), Ok(task)) = (process, proc::open_thread(proc_dir, pid, tid)) else { continue };
        let Some((name, path)) = call_of(task.as_fd(), &mut text) else { continue };
        if !points.iter().any(|point| path.starts_with(point)) {
            continue;
        }
        let Some(known) = Known::of(process.as_fd(), task.as_fd(), pid, Detail::All) else { continue };
        let mut namespaces = mounts.tables.iter().map(|table| table.namespace);
        let namespace = namespaces.find(|namespace| Some(namespace.inode) == known.namespace);
        // The mount point itself is always there beneath, and nobody waits in a call for a mere directory.
        let effect =
            namespace.and_then(|namespace| match propagation::visible_at(&mounts.tables[0].mounts, &path) {
                Some(_) => mounts.effect_at(&path, Some(namespace)),
                None => mounts.effect_by_path(&path, namespace),
            });
        let (Some(effect), Some(start_time)) = (effect, known.start_time) else { continue };
        holders.push(Holder {
            pid,
            tid,
            comm: known.about.comm,
            start_time,
            cgroup: known.about.cgroup,
            unit: known.about.unit,
            phase: known.phase,
            relation: task::relation(&lineage, pid),
            namespace,
            person: None,
            references: vec![Reference {
                kind: Kind::Call { name },
                path,
                mount_id: None,
                unique_mount_id: None,
                mount_namespace: None,
                effect,
            }],
        });
    }
    holders
}

/// The name of the call that a task is in, and the path that it was given, from the root of its mount namespace.
fn call_of(task: BorrowedFd<'_>, text: &mut Vec<u8>) -> Option<(&'static str, PathBuf)> {
    read_line(task, "syscall", text).ok()?;
    let line = parse(text)?;
    let before = text.clone();
    let memory = rustix::fs::openat(task, c"mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut name = Vec::with_capacity(LINK_ROOM.len());
    rustix::io::pread(&memory, rustix::buffer::spare_capacity(&mut name), line.address).ok()?;
    name.truncate(name.iter().position(|&byte| byte == 0)?);
    read_line(task, "syscall", text).ok()?;
    if *text != before {
        return None;
    }
    let link = |name: &CStr| {
        let mut room = LINK_ROOM;
        let shown = read_link(task, name, &mut room).ok()?;
        Some(PathBuf::from(OsStr::from_bytes(shown)))
    };
    let name = Path::new(OsStr::from_bytes(&name));
    let path = match line.directory {
        _ if name.is_absolute() => link(c"root")?.join(name.strip_prefix("/").ok()?),
        None => link(c"cwd")?.join(name),
        Some(fd) => link(&CString::new(format!("fd/{fd}")).ok()?)?.join(name),
    };
    Some((line.name, plain(&path)))
}

/// Reads a file of one line, which one read(2) has whole.
fn read_line(directory: BorrowedFd<'_>, name: &str, text: &mut Vec<u8>) -> Result<usize, Errno> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    text.clear();
    text.reserve(512);
    rustix::io::read(&file, rustix::buffer::spare_capacity(text))
}

/// Reads `257 0xffffff9c 0x7ffe... (six arguments) STACK PROGRAM`; `None` for `running`, and for other calls.
fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let number: i64 = fields.next()?.parse().ok()?;
    let hex = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let numbers: Vec<u64> = fields.map_while(hex).collect();
    let [arguments @ .., stack, program] = &numbers[..] else { return None };
    let is_32_bit =
        cfg!(target_arch = "x86_64") && [stack, program].iter().all(|&&at| at <= u64::from(u32::MAX));
    let mut calls = if is_32_bit { [OF_32_BIT, &[]] } else { [CALLS, OLD] }.into_iter().flatten();
    let &(_, name, directory, path) = calls.find(|(known, ..)| *known == number)?;
    // AT_FDCWD is negative, and an int.
    let directory = match directory {
        Some(at) => u32::try_from(*arguments.get(at)? as i32).ok(),
        None => None,
    };
    Some(Line { name, directory, address: *arguments.get(path)? })
}

/// Without `.` and `..`, by the text alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_call_and_where_its_path_is() {
        let line = |name, directory, address| Some(Line { name, directory, address });
        let openat = libc::SYS_openat;
        let cases = [
            (
                format!("{openat} 0xffffff9c 0x7f00 0x0 0x0 0x0 0x0 0x7ffc33e5b4c8 0x7f2045b7f2ad\n"),
                line("openat", None, 0x7f00),
            ),
            (
                format!("{openat} 0x5 0x7f00 0x0 0x0 0x0 0x0 0x7ffc33e5b4c8 0x7f2045b7f2ad\n"),
                line("openat", Some(5), 0x7f00),
            ),
            ("0 0x3 0x7f00 0x20000 0x0 0x0 0x0 0x7ffc33e5b4c8 0x7f2045b7f2ad\n".to_owned(), None),
            ("running\n".to_owned(), None),
            ("-1 0x7ffc33e5b4c8 0x7f2045b7f2ad\n".to_owned(), None),
            (String::new(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
        if cfg!(target_arch = "x86_64") {
            let text = b"5 0x804a010 0x0 0x0 0x0 0x0 0x0 0xffd5c2dc 0xf7f2a549\n";
            assert_eq!(parse(text), line("open", None, 0x804_a010));
        }
    }
}
