//! Who has a reference inside a mount, by what `/proc` shows of every task: what the recorder asks all the time.
//!
//! A reference is a working directory, a root directory, a program, an open file or a mapping whose path lies
//! at or below the mount point. Paths are compared as text, on whole components: a reference in another
//! namespace's copy of the mount matches as well (it should, propagation makes it count), and so does one below
//! the mount point that is older than the mount (it should not, and blocks nothing). A mapping has to be of the
//! mount's own superblock, too.
//!
//! The scan is one [`walk`]; nothing is judged. What no process shows in `/proc` is not here: loop devices,
//! descriptors in flight over a socket, io_uring's registered files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::mountinfo::{self, Device, in_context};
use crate::namespace::{self, MountNamespace};
use crate::proc::{open_proc, open_thread, read_file};
use crate::task::Known;
use crate::walk::{Found, Link, Members, MountPoints, TOO_LONG, Wanted, walk};

/// Which processes to scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All that `/proc` lists.
    Everything,
    /// These process ids; those that no longer exist are passed over.
    Pids(&'a [u32]),
}

/// What one scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Tasks with a reference inside the mount, or in a mount namespace other than PID 1's that has a copy of
    /// it; by process id, then thread id. A thread other than the first is listed only where it differs from
    /// the first.
    pub tasks: Vec<Task>,
    /// How many processes were scanned, whether or not they are listed.
    pub processes: usize,
    /// How many processes the caller was not allowed to look at, wholly or in part: not 0 means that the list
    /// may lack someone.
    pub denied: usize,
}

/// A task that has to do with the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Thread id; the process id for the first thread.
    pub tid: u32,
    /// The thread's name, at most 15 bytes, control characters escaped.
    pub comm: String,
    /// Its cgroup in the v2 hierarchy, as `/system.slice/x.service`; empty if it has none.
    pub cgroup: String,
    /// The systemd unit that the cgroup belongs to.
    pub unit: Option<String>,
    /// The mount namespace it is in; `None` if the caller may not know.
    pub namespace: Option<MountNamespace>,
    /// Whether that namespace is another one than PID 1's (than the caller's own, where it may not look at PID
    /// 1) and has a mount at the same path. By itself this blocks no unmount.
    pub in_other_namespace_with_copy: bool,
    /// What it holds inside the mount; empty if it is listed for its namespace alone.
    pub references: Vec<Reference>,
}

/// A reference inside the mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// What kind.
    pub kind: Kind,
    /// The path as `/proc` shows it, so possibly with ` (deleted)` at its end. If it is longer than a link can show
    /// (4,096 bytes), the mount point and `...`.
    pub path: PathBuf,
}

/// The kinds of reference that `/proc` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Working directory.
    Cwd,
    /// Root directory.
    Root,
    /// The program it runs.
    Exe,
    /// An open file or directory, O_PATH ones too.
    File,
    /// A mapped file; the program's own mapping is not repeated.
    Mapping,
}

/// Lists who has to do with the mount at `mount_point`, an absolute path without symbolic links, whose superblock is
/// `device`; without it mappings are not scanned. The caller is treated as everyone else: it is listed if it really
/// holds something.
///
/// # Errors
/// If `mount_point` is not absolute or `/proc` cannot be read. A task that vanishes is no error, one that may
/// not be looked at is counted in [`Scan::denied`].
pub fn scan(mount_point: &Path, device: Option<Device>, scope: Scope<'_>) -> io::Result<Scan> {
    if !mount_point.is_absolute() {
        let text = format!("the mount point {} is not an absolute path", mount_point.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let proc_dir = open_proc().map_err(|error| in_context("open", "/proc", error.into()))?;
    // PID 1's; for a caller that may not know it, its own.
    let first = namespace_inode(proc_dir.as_fd(), 1)
        .or_else(|_| namespace_inode(proc_dir.as_fd(), std::process::id()))
        .ok();
    let mut mount_points = MountPoints::default();
    mount_points.add(mount_point);
    let wanted = Wanted {
        mount_points,
        devices: device.into_iter().collect(),
        // A bind mount of the same superblock elsewhere is another mount.
        devices_are_shared: true,
        members: first.map_or(Members::OfNone, Members::OfAllBut),
        ..Wanted::default()
    };
    let pids = match scope {
        Scope::Everything => None,
        Scope::Pids(pids) => Some(pids),
    };
    let seen = walk(&wanted, pids, None).map_err(|error| in_context("list", "/proc", error.into()))?;

    let mut scanner = Scanner { proc_dir: proc_dir.as_fd(), mount_point, first, namespaces: HashMap::new() };
    let mut held: HashMap<(u32, u32), Vec<Found>> = HashMap::new();
    for mut found in seen.found {
        if found.path.is_empty() {
            // Its device is all that tells what it lies below.
            if found.mount.map(|mount| mount.device) != device {
                continue;
            }
            found.path = mount_point.join(TOO_LONG).into_os_string().into_vec();
        }
        held.entry((found.pid, found.tid)).or_default().push(found);
    }
    let mut tasks: Vec<Task> = Vec::new();
    for &task in &seen.members {
        if !held.contains_key(&task) {
            let member = scanner.task(task, seen.tasks.get(&task), Vec::new());
            tasks.extend(member.filter(|task| task.in_other_namespace_with_copy));
        }
    }
    for (task, found) in held {
        tasks.extend(scanner.task(task, seen.tasks.get(&task), references(found)));
    }
    tasks.sort_by_key(|task| (task.pid, task.tid));
    Ok(Scan { tasks, processes: seen.pids.len(), denied: seen.denied + seen.stuck.len() })
}

/// What was found of one task, by kind, each path once in its kind.
fn references(mut found: Vec<Found>) -> Vec<Reference> {
    found.sort_by_key(|found| found.link);
    let mut references: Vec<Reference> = Vec::with_capacity(found.len());
    for found in found {
        let kind = match found.link {
            Link::Cwd => Kind::Cwd,
            Link::Root => Kind::Root,
            Link::Exe => Kind::Exe,
            Link::File(_) => Kind::File,
            Link::Mapping => Kind::Mapping,
            // A socket's name is not asked for.
            Link::Socket(_) => continue,
        };
        let reference = Reference { kind, path: OsString::from_vec(found.path).into() };
        if !references.contains(&reference) {
            references.push(reference);
        }
    }
    references
}

/// What is asked of the tasks that are listed, and what was learnt on the way.
struct Scanner<'a> {
    proc_dir: BorrowedFd<'a>,
    mount_point: &'a Path,
    /// The inode of PID 1's mount namespace.
    first: Option<u64>,
    /// By inode number, which is unambiguous among namespaces that are alive at one moment.
    namespaces: HashMap<u64, KnownNamespace>,
}

#[derive(Clone, Copy)]
struct KnownNamespace {
    id: Option<u64>,
    has_copy: bool,
}

impl Scanner<'_> {
    /// `None` if the task is gone and has held nothing.
    fn task(
        &mut self,
        (pid, tid): (u32, u32),
        known: Option<&Known>,
        references: Vec<Reference>,
    ) -> Option<Task> {
        let inode = known.and_then(|known| known.namespace);
        let namespace = inode.and_then(|inode| Some((inode, self.meet((pid, tid), inode)?)));
        if references.is_empty() && namespace.is_none() {
            return None;
        }
        let about = known.map(|known| known.about.clone()).unwrap_or_default();
        Some(Task {
            pid,
            tid,
            comm: about.comm,
            cgroup: about.cgroup,
            unit: about.unit,
            namespace: namespace.map(|(inode, known)| MountNamespace { inode, id: known.id }),
            in_other_namespace_with_copy: namespace.is_some_and(|(_, known)| known.has_copy),
            references,
        })
    }

    /// Looks at a namespace through this member, once in a scan. If the member vanishes meanwhile, the next one
    /// is asked.
    fn meet(&mut self, (pid, tid): (u32, u32), inode: u64) -> Option<KnownNamespace> {
        if let Some(&known) = self.namespaces.get(&inode) {
            return Some(known);
        }
        let member = open_thread(self.proc_dir, pid, tid).ok()?;
        // The member may have moved, or its id be another task's by now.
        if namespace::inode(member.as_fd()) != Ok(inode) {
            return None;
        }
        let id = namespace::unique_id(member.as_fd()).ok()?;
        let mut has_copy = false;
        if self.first.is_some_and(|first| first != inode) {
            let mut table = Vec::new();
            read_file(member.as_fd(), c"mountinfo", &mut table).ok()?;
            // A line for the path itself that does not parse is still a mount at that path.
            has_copy =
                mountinfo::parse_at(&table, self.mount_point).map_or(true, |mounts| !mounts.is_empty());
        }
        let known = KnownNamespace { id, has_copy };
        self.namespaces.insert(inode, known);
        Some(known)
    }
}

fn namespace_inode(proc_dir: BorrowedFd<'_>, pid: u32) -> Result<u64, Errno> {
    namespace::inode(open_thread(proc_dir, pid, pid)?.as_fd())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::fs;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn asks_for_an_absolute_path() {
        assert_eq!(
            scan(Path::new("m"), None, Scope::Pids(&[])).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    /// A child that waits on its stdin until it is dropped.
    struct Holder(Child);

    impl Holder {
        #[expect(
            clippy::disallowed_methods,
            reason = "the test's own child; it ends with its stdin, and with the guard"
        )]
        fn spawn(program: &Path, script: &str, directory: &Path) -> Self {
            let child = Command::new(program)
                .args(["-c", script])
                .current_dir(directory)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            Self(child)
        }

        /// Waits until the child has said something.
        fn ready(mut self) -> Self {
            let mut byte = [0];
            io::Read::read_exact(self.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
            self
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            self.0.kill().and_then(|()| self.0.wait()).expect("end the holder");
        }
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        (directory, path)
    }

    fn kinds(task: &Task) -> Vec<Kind> {
        task.references.iter().map(|reference| reference.kind).collect()
    }

    #[test]
    fn finds_working_directory_and_open_file() {
        let (_guard, path) = directory();
        let holder =
            Holder::spawn(Path::new("/bin/sh"), "exec 7>kept 8>&7 9>gone; rm gone; echo; read x", &path)
                .ready();
        let found = scan(&path, None, Scope::Everything).unwrap();
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        let task = &found.tasks[0];
        assert_eq!((task.pid, task.tid, task.comm.as_str()), (holder.pid(), holder.pid(), "sh"));
        assert_eq!(kinds(task), [Kind::Cwd, Kind::File, Kind::File]);
        assert_eq!(task.references[1].path, path.join("kept"));
        assert_eq!(task.references[2].path, path.join("gone (deleted)"));
        assert_eq!(task.namespace, Some(MountNamespace::of(holder.pid()).unwrap()));
        assert!(found.processes > 1);

        assert_eq!(scan(&path, None, Scope::Pids(&[holder.pid()])).unwrap().tasks, found.tasks);
        assert_eq!(scan(&path, None, Scope::Pids(&[std::process::id(), u32::MAX])).unwrap().tasks, []);
    }

    #[test]
    fn finds_program_and_says_its_mapping_once() {
        let (_guard, path) = directory();
        let program = path.join("shell");
        fs::copy("/bin/sh", &program).unwrap();
        let _holder = Holder::spawn(&program, "echo; read x", Path::new("/")).ready();
        let found = scan(&path, None, Scope::Everything).unwrap();
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        assert_eq!(found.tasks[0].references, [Reference { kind: Kind::Exe, path: program }]);
    }

    #[test]
    fn the_caller_shows_up_only_while_it_holds() {
        let (_guard, path) = directory();
        fs::write(path.join("file"), "").unwrap();
        assert_eq!(scan(&path, None, Scope::Everything).unwrap().tasks, []);
        let file = fs::File::open(path.join("file")).unwrap();
        let held = scan(&path, None, Scope::Everything).unwrap();
        assert_eq!(held.tasks.iter().map(|task| task.pid).collect::<Vec<_>>(), [std::process::id()]);
        drop(file);
        assert_eq!(scan(&path, None, Scope::Everything).unwrap().tasks, []);
    }

    #[test]
    #[expect(
        unsafe_code,
        reason = "a working directory of its own, in a thread that shares none with a guard"
    )]
    fn finds_a_thread_with_its_own_working_directory() {
        let (_guard, path) = directory();
        let (inside, path) = (path.clone(), &path);
        let tid = std::thread::spawn(move || {
            // SAFETY: descriptors stay shared, so that none is another one elsewhere.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
            std::env::set_current_dir(&inside).unwrap();
            let found = scan(&inside, None, Scope::Everything).unwrap();
            assert_eq!(found.tasks.len(), 1, "{found:?}");
            assert_eq!(found.tasks[0].pid, std::process::id());
            assert_eq!(kinds(&found.tasks[0]), [Kind::Cwd]);
            assert_eq!(found.tasks[0].tid, rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            found.tasks[0].tid
        });
        assert_ne!(tid.join().unwrap(), std::process::id());
        assert_eq!(scan(path, None, Scope::Everything).unwrap().tasks, []);
    }

    proptest! {
        #[test]
        fn each_path_is_told_once_in_its_kind_and_none_is_lost(
            links in proptest::collection::vec((0_u32..7, "/[ab]"), 0..12)
        ) {
            let link = |number| match number {
                0 => Link::Cwd,
                1 => Link::Root,
                2 => Link::Exe,
                3 => Link::Mapping,
                4 => Link::Socket(4),
                fd => Link::File(fd),
            };
            let found = links.iter().map(|(number, path)| {
                Found { pid: 7, tid: 7, link: link(*number), path: path.clone().into_bytes(), mount: None }
            });
            let told = references(found.collect());
            prop_assert!(told.is_sorted_by_key(|reference| reference.kind));
            for (at, reference) in told.iter().enumerate() {
                prop_assert!(!told[..at].contains(reference));
            }
            for (number, path) in &links {
                let kinds = [Kind::Cwd, Kind::Root, Kind::Exe, Kind::Mapping];
                let kind = kinds.get(*number as usize).copied().unwrap_or(Kind::File);
                let is_told = told.contains(&Reference { kind, path: path.into() });
                prop_assert!(is_told || *number == 4, "{:?} {}", kind, path);
            }
            let sockets = links.iter().filter(|(number, _)| *number == 4).count();
            prop_assert!(told.len() <= links.len() - sockets);
        }
    }
}
