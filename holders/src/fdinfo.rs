//! What `/proc/PID/fdinfo/FD` says of a descriptor that carries further files: a socket, an io_uring instance.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::path::DecInt;

use crate::mount::{self, Device};
use crate::proc;

/// The most that is read of what `fdinfo` says, bytes: a ring may have a million files.
const MOST_FDINFO: usize = 4 << 20;

/// What it says, and the directory of the process that has the descriptor.
pub(crate) fn read(proc_dir: BorrowedFd<'_>, pid: u32, fd: u32) -> Option<(OwnedFd, String)> {
    let process = proc::open_task(proc_dir, DecInt::new(pid).as_c_str()).ok()?;
    let directory = proc::open_task(process.as_fd(), c"fdinfo").ok()?;
    let mut text = Vec::new();
    proc::read_start(directory.as_fd(), DecInt::new(fd).as_c_str(), &mut text, MOST_FDINFO).ok()?;
    Some((process, String::from_utf8_lossy(&text).into_owned()))
}

pub(crate) fn field(fdinfo: &str, name: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The registered files of an io_uring instance that its fdinfo names by a path; older kernels show the last
/// component only (`io_uring/fdinfo.c`).
pub(crate) fn registered_files(fdinfo: &str) -> Vec<PathBuf> {
    let lines = fdinfo.lines().skip_while(|line| !line.starts_with("UserFiles:")).skip(1);
    lines
        .map_while(|line| {
            let (number, path) = line.trim_start().split_once(": ")?;
            number.parse::<u32>().ok()?;
            Some(path)
        })
        .filter(|path| path.starts_with('/'))
        .map(|path| mount::path(path.as_bytes()))
        .collect()
}

/// Whether a fanotify group has a mark on one of these mounts or file systems (`fs/notify/fdinfo.c`): numbers in hexadecimal,
/// `fanotify mnt_id:5b mflags:...`, `fanotify sdev:10003 ...`, `fanotify ino:2 sdev:10003 ...`.
pub(crate) fn watches(fdinfo: &str, mounts: &[u64], devices: &[Device]) -> bool {
    let marks = fdinfo.lines().filter_map(|line| line.strip_prefix("fanotify "));
    let fields = marks.flat_map(str::split_ascii_whitespace).filter_map(|field| field.split_once(':'));
    fields.into_iter().any(|(name, value)| match (name, u64::from_str_radix(value, 16)) {
        ("mnt_id", Ok(id)) => mounts.contains(&id),
        ("sdev", Ok(number)) => {
            devices.iter().any(|device| u64::from(device.major) << 20 | u64::from(device.minor) == number)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn reads_what_a_ring_has_registered() {
        let new = "pos:\t0\nflags:\t02\nUserFiles:\t3\n    0: /m/a\\040b\n    1: <none>\n    2: /x\nUserBufs:\t1\n    0: /no\n";
        assert_eq!(registered_files(new), [Path::new("/m/a b"), Path::new("/x")]);
        assert_eq!(field(new, "UserFiles:"), Some(3));
        let old = "UserFiles:\t1\n    0: name\nUserBufs:\t0\n";
        assert_eq!(registered_files(old), Vec::<PathBuf>::new());
        assert_eq!(field("pos:\t0\nscm_fds: 2\n", "scm_fds:"), Some(2));
        assert_eq!(field("", "scm_fds:"), None);
        let marks = "mnt_id:\t91\nfanotify flags:0 event-flags:8000\nfanotify mnt_id:5b mflags:0 mask:8 ignored_mask:0\n\
                     fanotify ino:2 sdev:2a mflags:0 mask:8\n";
        let device = |minor| Device { major: 0, minor };
        assert!(watches(marks, &[0x5b], &[]) && watches(marks, &[], &[device(42)]));
        assert!(!watches(marks, &[91 + 1, 15], &[device(2)]) && !watches("", &[0], &[device(0)]));
    }
}
