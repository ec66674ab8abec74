//! Which mount a call of umount2(2) is about: the path that it names, compared with the watched one.
//!
//! Worked out while the caller is in the call, since what its path begins at (its working directory, a descriptor by
//! `/proc/self/fd`) is its own. A name that has a link or `..` in it is not followed: then it is not known which mount
//! is meant, and never wrongly another one. Nothing at or below the watched path is read.

use std::fs;
use std::path::{Component, Path, PathBuf};

use vm_agent::recording::Target;

/// What a call by thread `tid` is about, which names this path; `None`: its path could not be read.
pub(super) fn of(path: Option<&str>, tid: u32, mount: &Path) -> Target {
    match path.map(|path| named(Path::new(path), tid, mount)) {
        None | Some(Named::Unknown) => Target::Unknown,
        Some(Named::Other) => Target::Other,
        Some(Named::Mount) => match namespaces(tid) {
            Some((own, of_pid_1)) if own == of_pid_1 => Target::Mount,
            Some(_other) => Target::Copy,
            None => Target::Unknown,
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Mount,
    Other,
    Unknown,
}

fn named(path: &Path, tid: u32, mount: &Path) -> Named {
    let Some(path) = absolute(path, tid) else { return Named::Unknown };
    if path == mount {
        return Named::Mount;
    }
    if path.starts_with(mount) {
        return Named::Other;
    }
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if path.ancestors().any(is_link) { Named::Unknown } else { Named::Other }
}

/// The path from our own root, without `.` and without slashes in excess; `None` if it is not known.
fn absolute(path: &Path, tid: u32) -> Option<PathBuf> {
    if fs::read_link(format!("/proc/{tid}/root")).ok()?.as_os_str() != "/" {
        return None;
    }
    let begin = if path.is_absolute() {
        by_descriptor(path, tid)
    } else {
        Some((fs::read_link(format!("/proc/{tid}/cwd")).ok()?, path))
    };
    let path = begin.map_or_else(|| path.to_owned(), |(begin, rest)| begin.join(rest));
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => return None,
            Component::CurDir => {}
            component => clean.push(component),
        }
    }
    // A descriptor may be of something that has no path (any more).
    let is_path = clean.is_absolute() && !clean.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
    is_path.then_some(clean)
}

/// What `/proc/self/fd/N/rest` comes to: the descriptor's path and the rest.
fn by_descriptor(path: &Path, tid: u32) -> Option<(PathBuf, &Path)> {
    let rest = path
        .strip_prefix("/proc/self/fd")
        .or_else(|_| path.strip_prefix("/proc/thread-self/fd"))
        .or_else(|_| path.strip_prefix(format!("/proc/{tid}/fd")))
        .ok()?;
    let mut components = rest.components();
    let number = components.next()?;
    let target = fs::read_link(Path::new(&format!("/proc/{tid}/fd")).join(number)).ok()?;
    Some((target, components.as_path()))
}

/// The mount namespaces of the thread and of PID 1. Of two that are alive at once the numbers differ.
fn namespaces(tid: u32) -> Option<(PathBuf, PathBuf)> {
    let of = |id: u32| fs::read_link(format!("/proc/{id}/ns/mnt")).ok();
    Some((of(tid)?, of(1)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn knows_the_watched_path_however_it_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let mount = root.join("merged");
        fs::create_dir(&mount).unwrap();
        std::os::unix::fs::symlink(&mount, root.join("link")).unwrap();
        let directory = File::open(&root).unwrap();
        let own = std::process::id();
        let fd = directory.as_raw_fd();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let here = std::env::current_dir().unwrap();
        let cases = [
            (text(&mount), Named::Mount),
            (format!("{}/", text(&mount)), Named::Mount),
            (format!("{}/.//merged", text(&root)), Named::Mount),
            (format!("/proc/self/fd/{fd}/merged"), Named::Mount),
            (format!("/proc/{own}/fd/{fd}/merged"), Named::Mount),
            (text(&root.join("merged2")), Named::Other),
            (text(&mount.join("addons")), Named::Other),
            (text(&root), Named::Other),
            (format!("/proc/self/fd/{fd}"), Named::Other),
            ("some/where".to_owned(), Named::Other),
            // It may be any.
            (text(&root.join("link")), Named::Unknown),
            (format!("{}/other/../merged", text(&root)), Named::Unknown),
            ("/proc/self/fd/987654/merged".to_owned(), Named::Unknown),
            (String::new(), Named::Other),
        ];
        for (path, expected) in cases {
            assert_eq!(named(Path::new(&path), own, &mount), expected, "{path}");
        }
        // From its own working directory.
        assert_eq!(named(Path::new("below"), own, &here.join("below")), Named::Mount);
        assert_eq!(named(Path::new("below"), u32::MAX, &here.join("below")), Named::Unknown);
    }

    #[test]
    fn a_path_that_was_not_read_is_not_known() {
        assert_eq!(of(None, std::process::id(), Path::new("/m")), Target::Unknown);
        assert_eq!(of(Some("/x"), std::process::id(), Path::new("/m")), Target::Other);
    }
}
