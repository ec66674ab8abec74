//! Which mount a call of umount2(2) is about: the path that it names, compared with the watched one.
//!
//! Worked out while the caller is in the call, since what its path begins at (its working directory, a descriptor by
//! `/proc/self/fd`) is its own. One that has ended before anybody looked, as umount(8) of several paths does after its last,
//! is taken for where it was in its call before. A name that has a link or `..` in it is not followed: then it is not known
//! which mount is meant, and never wrongly another one. Nothing at or below the watched path is read.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use vm_agent::recording::Target;

/// Of so many callers it is kept where they were; then all are forgotten. A stop has a handful.
const KEPT: usize = 256;

/// Where the callers of umount2(2) are.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// By thread, with its name: a number is given again.
    seen: HashMap<u32, (String, Caller)>,
}

impl Callers {
    /// Where a thread that has begun a call is, or, if it has ended since, where it was; `None` if nobody has seen that.
    pub(super) fn of(&mut self, tid: u32, comm: &str) -> Option<&Caller> {
        if let Some(caller) = Caller::look(tid) {
            if self.seen.len() >= KEPT {
                self.seen.clear();
            }
            self.seen.insert(tid, (comm.to_owned(), caller));
        }
        self.seen.get(&tid).filter(|(name, _)| name == comm).map(|(_, caller)| caller)
    }
}

/// What a thread's paths begin at.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    tid: u32,
    /// Its root is ours.
    sees_our_root: bool,
    /// Its working directory.
    at: Option<PathBuf>,
    /// Its mount namespace is PID 1's; `None`: not known.
    is_in_pid_1s: Option<bool>,
}

impl Caller {
    /// `None`: it has ended.
    fn look(tid: u32) -> Option<Self> {
        let link = |id: u32, name: &str| fs::read_link(format!("/proc/{id}/{name}")).ok();
        let root = link(tid, "root")?;
        // Of two namespaces that are alive at once the numbers differ.
        let is_in_pid_1s = link(tid, "ns/mnt").zip(link(1, "ns/mnt")).map(|(own, of_pid_1)| own == of_pid_1);
        Some(Self { tid, sees_our_root: root.as_os_str() == "/", at: link(tid, "cwd"), is_in_pid_1s })
    }
}

/// What a call of this caller is about, which names this path; `None`: its path could not be read.
pub(super) fn of(path: Option<&str>, caller: Option<&Caller>, mount: &Path) -> Target {
    let Some((path, caller)) = path.zip(caller) else { return Target::Unknown };
    match named(Path::new(path), caller, mount) {
        Named::Unknown => Target::Unknown,
        Named::Other => Target::Other,
        Named::Mount => match caller.is_in_pid_1s {
            Some(true) => Target::Mount,
            Some(false) => Target::Copy,
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

fn named(path: &Path, caller: &Caller, mount: &Path) -> Named {
    let Some(path) = absolute(path, caller) else { return Named::Unknown };
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
fn absolute(path: &Path, caller: &Caller) -> Option<PathBuf> {
    if !caller.sees_our_root {
        return None;
    }
    let begin =
        if path.is_absolute() { by_descriptor(path, caller.tid) } else { Some((caller.at.clone()?, path)) };
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
        let caller = Caller::look(own).unwrap();
        for (path, expected) in cases {
            assert_eq!(named(Path::new(&path), &caller, &mount), expected, "{path}");
        }
        // From its own working directory.
        assert_eq!(named(Path::new("below"), &caller, &here.join("below")), Named::Mount);
        let nowhere = Caller { at: None, ..caller.clone() };
        assert_eq!(named(Path::new("below"), &nowhere, &here.join("below")), Named::Unknown);
        let elsewhere = Caller { sees_our_root: false, ..caller };
        assert_eq!(named(&mount, &elsewhere, &mount), Named::Unknown);
    }

    #[test]
    fn a_path_that_was_not_read_is_not_known() {
        let caller = Caller::look(std::process::id());
        assert_eq!(of(None, caller.as_ref(), Path::new("/m")), Target::Unknown);
        assert_eq!(of(Some("/x"), caller.as_ref(), Path::new("/m")), Target::Other);
    }

    #[test]
    fn who_has_ended_is_where_it_was_in_its_call_before() {
        let mut callers = Callers::default();
        #[expect(clippy::disallowed_methods, reason = "to have it end while it is looked at; waited for")]
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let tid = child.id();
        assert!(callers.of(tid, "umount").is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of(Some("/m"), callers.of(tid, "umount"), Path::new("/m/other")), Target::Other);
        assert!(callers.of(tid, "another").is_none(), "a number that was given again");
        assert!(callers.of(u32::MAX, "umount").is_none(), "nobody has seen it");
        assert_eq!(of(Some("/m"), None, Path::new("/m")), Target::Unknown);
    }
}
