//! Who has a reference inside a mount, by what `/proc` shows of every task.
//!
//! A reference is a working directory, a root directory, a program, an open file or a mapping whose path lies
//! at or below the mount point. Paths are compared as text, on whole components: a reference in another
//! namespace's copy of the mount matches as well (it should, propagation makes it count), and so does one below
//! the mount point that is older than the mount (it should not, and blocks nothing).
//!
//! Nothing is resolved: every look is a readlink or a read of a text file under `/proc/PID`. What no process
//! shows in `/proc` is not here either: loop devices, descriptors in flight over a socket, io_uring's
//! registered files.
//!
//! Per thread are looked at: working directory, root directory and mount namespace, since each can be its own
//! (unshare(2)). Descriptors, mappings and the program are looked at once in a process; a thread that has
//! unshared its descriptor table (CLONE_FILES) is therefore seen with its leader's only. To tell such a table
//! apart takes kcmp(2), which not every kernel has.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::mountinfo::{self, in_context};
use crate::namespace::{self, MountNamespace};
use crate::task::v2_cgroup;
use crate::walk::{open_directory, open_task, read_file};

/// Which processes to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All that `/proc` lists.
    Everything,
    /// These process ids; those that no longer exist are passed over.
    Pids(&'a [u32]),
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Tasks with a reference inside the mount, or in a mount namespace other than PID 1's that has a copy of
    /// it; by process id, then thread id. A thread other than the first is listed only where it differs from
    /// the first.
    pub tasks: Vec<Task>,
    /// How many processes were looked at, whether or not they are listed.
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
    /// The thread's name, at most 15 bytes, lossily as UTF-8.
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
    /// The path as `/proc` shows it, so possibly with ` (deleted)` at its end.
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

/// Lists who has to do with the mount at `mount_point`, an absolute path without symbolic links. The caller is
/// treated as everyone else: it is listed if it really holds something.
///
/// # Errors
/// If `mount_point` is not absolute or `/proc` cannot be read. A task that vanishes is no error, one that may
/// not be looked at is counted in [`Scan::denied`].
pub fn scan(mount_point: &Path, scope: Scope<'_>) -> io::Result<Scan> {
    let inside = Inside::new(mount_point)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc_dir = rustix::fs::open("/proc", flags, Mode::empty())
        .map_err(|error| in_context("open", "/proc", error.into()))?;
    let pids = match scope {
        Scope::Everything => {
            numbers(proc_dir.as_fd()).map_err(|error| in_context("list", "/proc", error.into()))?
        }
        Scope::Pids(pids) => pids.to_vec(),
    };
    let mut look = Look {
        inside,
        mount_point,
        first_namespace: namespace_inode(proc_dir.as_fd(), c"1")
            .or_else(|_| namespace_inode(proc_dir.as_fd(), c"self"))
            .ok(),
        namespaces: HashMap::new(),
        buffer: Vec::new(),
        denied: false,
    };
    let mut scan = Scan::default();
    for pid in pids {
        look.denied = false;
        let there = look.at_process(proc_dir.as_fd(), pid, &mut scan.tasks);
        scan.processes += usize::from(there);
        scan.denied += usize::from(look.denied);
    }
    scan.tasks.sort_by_key(|task| (task.pid, task.tid));
    Ok(scan)
}

/// The systemd unit that a cgroup belongs to: the last component that names a unit other than a slice, so that
/// a unit's own sub-cgroups (`.control`, a delegated tree) count as the unit's.
#[must_use]
pub fn unit_of_cgroup(cgroup: &str) -> Option<&str> {
    const SUFFIXES: [&str; 5] = [".service", ".scope", ".mount", ".socket", ".swap"];
    cgroup
        .rsplit('/')
        .find(|part| SUFFIXES.iter().any(|suffix| part.len() > suffix.len() && part.ends_with(suffix)))
}

/// Whether a path that `/proc` shows lies inside the mount.
struct Inside(Vec<u8>);

impl Inside {
    fn new(mount_point: &Path) -> io::Result<Self> {
        if !mount_point.is_absolute() {
            let text = format!("the mount point {} is not an absolute path", mount_point.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut bytes = mount_point.as_os_str().as_bytes().to_vec();
        while bytes.last() == Some(&b'/') {
            bytes.pop();
        }
        Ok(Self(bytes))
    }

    fn has(&self, shown: &[u8]) -> bool {
        let path = shown.strip_suffix(b" (deleted)").unwrap_or(shown);
        path.strip_prefix(&*self.0).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            && path.starts_with(b"/")
    }
}

/// One look at `/proc`: what is asked, and what it has learnt on the way.
struct Look<'a> {
    inside: Inside,
    mount_point: &'a Path,
    /// The inode of PID 1's mount namespace; for a caller that may not know it, of its own.
    first_namespace: Option<u64>,
    /// By inode number, which is unambiguous among namespaces that are alive at one moment.
    namespaces: HashMap<u64, KnownNamespace>,
    buffer: Vec<u8>,
    denied: bool,
}

#[derive(Clone, Copy)]
struct KnownNamespace {
    id: Option<u64>,
    has_copy: bool,
}

/// What a thread can have for itself.
#[derive(PartialEq, Eq)]
struct Own {
    cwd: Option<Vec<u8>>,
    root: Option<Vec<u8>>,
    namespace: Option<u64>,
}

impl Look<'_> {
    /// Adds what a process and its threads hold; false if it is gone.
    fn at_process(&mut self, proc_dir: BorrowedFd<'_>, pid: u32, tasks: &mut Vec<Task>) -> bool {
        let Ok(leader) = open_task(proc_dir, &c_number(pid)) else { return false };
        let first = self.own(leader.as_fd());
        // A first thread that has called pthread_exit is a zombie and shows nothing; the others hold all.
        let exe = self.link(leader.as_fd(), c"exe");
        let mut references = self.references_of(&first);
        if exe.is_some() {
            self.shared_references(leader.as_fd(), exe.clone(), &mut references);
        }
        self.list(leader.as_fd(), pid, pid, &first, references, tasks);
        // A thread of the kernel: a working directory and no program. It has no descriptors, mappings or other threads,
        // and of a machine's processes half are such.
        if exe.is_none() && first.cwd.is_some() {
            return true;
        }

        let mut shared_seen = exe.is_some();
        for tid in self.other_threads(leader.as_fd(), pid) {
            let Ok(thread) = open_task(leader.as_fd(), &thread_path(tid)) else { continue };
            let own = self.own(thread.as_fd());
            let mut references = Vec::new();
            if own != first {
                references = self.references_of(&own);
            }
            if !shared_seen && let Some(exe) = self.link(thread.as_fd(), c"exe") {
                self.shared_references(thread.as_fd(), Some(exe), &mut references);
                shared_seen = true;
            }
            if own != first || !references.is_empty() {
                self.list(thread.as_fd(), pid, tid, &own, references, tasks);
            }
        }
        true
    }

    fn own(&mut self, task: BorrowedFd<'_>) -> Own {
        let namespace = namespace::inode(task);
        Own {
            cwd: self.link(task, c"cwd"),
            root: self.link(task, c"root"),
            namespace: self.allowed(namespace),
        }
    }

    fn references_of(&self, own: &Own) -> Vec<Reference> {
        let links = [(Kind::Cwd, &own.cwd), (Kind::Root, &own.root)];
        links.into_iter().filter_map(|(kind, link)| self.reference(kind, link.as_deref()?)).collect()
    }

    /// What the threads of a process have in common: program, descriptors, mappings.
    fn shared_references(
        &mut self,
        task: BorrowedFd<'_>,
        exe: Option<Vec<u8>>,
        references: &mut Vec<Reference>,
    ) {
        references.extend(exe.as_deref().and_then(|exe| self.reference(Kind::Exe, exe)));

        let mut seen = HashSet::new();
        let files = open_directory(task, c"fd").and_then(|files| Ok((numbers(files.as_fd())?, files)));
        if let Some((numbers, files)) = self.allowed(files) {
            for number in numbers {
                let Some(link) = self.link(files.as_fd(), &c_number(number)) else { continue };
                if let Some(reference) = self.reference(Kind::File, &link)
                    && seen.insert(link)
                {
                    references.push(reference);
                }
            }
        }

        let maps = read_file(task, c"maps", &mut self.buffer);
        if self.allowed(maps).is_some() {
            let mut last: &[u8] = exe.as_deref().unwrap_or_default();
            let mut mapped = HashSet::new();
            for path in mapped_paths(&self.buffer) {
                if path != last
                    && exe.as_deref() != Some(path)
                    && self.inside.has(path)
                    && mapped.insert(path)
                {
                    references.push(Reference { kind: Kind::Mapping, path: shown_mapping(path) });
                }
                last = path;
            }
        }
    }

    fn reference(&self, kind: Kind, shown: &[u8]) -> Option<Reference> {
        self.inside.has(shown).then(|| Reference { kind, path: OsString::from_vec(shown.to_vec()).into() })
    }

    /// Adds the task to the list if it has anything to do with the mount.
    fn list(
        &mut self,
        task: BorrowedFd<'_>,
        pid: u32,
        tid: u32,
        own: &Own,
        references: Vec<Reference>,
        tasks: &mut Vec<Task>,
    ) {
        let elsewhere = own.namespace.is_some() && own.namespace != self.first_namespace;
        if references.is_empty() && !elsewhere {
            return;
        }
        let known = own.namespace.and_then(|inode| self.namespace(task, inode, elsewhere));
        let in_other_namespace_with_copy = known.is_some_and(|known| known.has_copy);
        if references.is_empty() && !in_other_namespace_with_copy {
            return;
        }
        let comm = self.text(task, c"comm");
        let cgroup = v2_cgroup(&self.text(task, c"cgroup")).to_owned();
        tasks.push(Task {
            pid,
            tid,
            comm: comm.trim_end_matches('\n').to_owned(),
            unit: unit_of_cgroup(&cgroup).map(str::to_owned),
            cgroup,
            namespace: own
                .namespace
                .map(|inode| MountNamespace { inode, id: known.and_then(|known| known.id) }),
            in_other_namespace_with_copy,
            references,
        });
    }

    /// Looks at a namespace through this member, once in a scan. If the member vanishes meanwhile, the next one
    /// is asked.
    fn namespace(&mut self, member: BorrowedFd<'_>, inode: u64, elsewhere: bool) -> Option<KnownNamespace> {
        if let Some(known) = self.namespaces.get(&inode) {
            return Some(*known);
        }
        let id = namespace::unique_id(member);
        let id = self.allowed(id)?;
        let mut has_copy = false;
        if elsewhere {
            let table = read_file(member, c"mountinfo", &mut self.buffer);
            self.allowed(table)?;
            // A line for the path itself that does not parse is still a mount at that path.
            has_copy =
                mountinfo::parse_at(&self.buffer, self.mount_point).map_or(true, |mounts| !mounts.is_empty());
        }
        let known = KnownNamespace { id, has_copy };
        self.namespaces.insert(inode, known);
        Some(known)
    }

    fn other_threads(&mut self, leader: BorrowedFd<'_>, pid: u32) -> Vec<u32> {
        // The links of `task` are two and one for each thread (fs/proc/base.c:proc_task_getattr). To list it would make an
        // inode for each.
        let links = rustix::fs::statat(leader, c"task", AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_nlink);
        if self.allowed(links).is_some_and(|links| links == 3) {
            return Vec::new();
        }
        let threads = open_directory(leader, c"task").and_then(|threads| numbers(threads.as_fd()));
        let mut threads = self.allowed(threads).unwrap_or_default();
        threads.retain(|&tid| tid != pid);
        threads
    }

    fn link(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Option<Vec<u8>> {
        let link = rustix::fs::readlinkat(directory, name, Vec::new());
        self.allowed(link).map(CString::into_bytes)
    }

    fn text(&mut self, task: BorrowedFd<'_>, name: &CStr) -> String {
        let done = read_file(task, name, &mut self.buffer);
        self.allowed(done).map(|()| String::from_utf8_lossy(&self.buffer).into_owned()).unwrap_or_default()
    }

    /// `None` for what cannot be seen: gone is normal (a closed descriptor, an ended task, a kernel thread's
    /// program), anything else is noted as denied.
    fn allowed<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Errno::NOENT | Errno::SRCH) => None,
            Err(_) => {
                self.denied = true;
                None
            }
        }
    }
}

fn namespace_inode(proc_dir: BorrowedFd<'_>, task: &CStr) -> Result<u64, Errno> {
    namespace::inode(open_task(proc_dir, task)?.as_fd())
}

/// The entries of a directory that are numbers.
fn numbers(directory: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut numbers = Vec::new();
    for entry in Dir::read_from(directory)? {
        numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

fn c_number(number: u32) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}

fn thread_path(tid: u32) -> CString {
    CString::new(format!("task/{tid}")).unwrap_or_default()
}

/// The path column of `/proc/PID/maps`: what follows the first slash, since no column before it has one.
fn mapped_paths(maps: &[u8]) -> impl Iterator<Item = &[u8]> {
    maps.split(|&byte| byte == b'\n')
        .filter_map(|line| Some(&line[line.iter().position(|&byte| byte == b'/')?..]))
}

/// maps escapes a newline, and only that (proc_pid_maps(5)).
fn shown_mapping(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(br"\012") {
            bytes.push(b'\n');
            rest = after;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn inside_goes_by_whole_components() {
        let cases = [
            ("/m", "/m", true),
            ("/m", "/m/", true),
            ("/m", "/m/a", true),
            ("/m", "/m (deleted)", true),
            ("/m", "/m/a (deleted)", true),
            ("/m/", "/m/a", true),
            ("/", "/a", true),
            ("/", "/", true),
            ("/", "socket:[1]", false),
            ("/m", "/mm", false),
            ("/m", "/n/m", false),
            ("/m", "/", false),
            ("/m", "", false),
            ("/m", "anon_inode:/m", false),
        ];
        for (mount, shown, expected) in cases {
            assert_eq!(
                Inside::new(Path::new(mount)).unwrap().has(shown.as_bytes()),
                expected,
                "{shown} in {mount}"
            );
        }
        assert!(Inside::new(Path::new("m")).is_err());
    }

    #[test]
    fn a_cgroup_belongs_to_its_innermost_unit() {
        let cases = [
            ("/system.slice/system-left4me.slice/left4me-server@3.service", Some("left4me-server@3.service")),
            ("/system.slice/left4me-server@3.service/.control", Some("left4me-server@3.service")),
            ("/user.slice/user-0.slice/user@0.service/app.slice/a.service", Some("a.service")),
            ("/user.slice/user-0.slice/session-1.scope", Some("session-1.scope")),
            ("/init.scope", Some("init.scope")),
            ("/system.slice", None),
            ("/.service", None),
            ("/", None),
            ("", None),
        ];
        for (cgroup, unit) in cases {
            assert_eq!(unit_of_cgroup(cgroup), unit, "{cgroup}");
        }
    }

    #[test]
    fn takes_the_path_of_a_mapping() {
        let maps = b"55f0-55f1 r-xp 00000000 08:01 12    /m/a b (deleted)\n\
                     7f00-7f01 rw-p 00000000 00:00 0 \n\
                     7f02-7f03 rw-p 00000000 00:00 0    [heap]\n\
                     7f04-7f05 r--p 00000000 00:2a 7    /m/x\\012y\n";
        assert_eq!(mapped_paths(maps).collect::<Vec<_>>(), [&b"/m/a b (deleted)"[..], br"/m/x\012y"]);
        assert_eq!(shown_mapping(br"/m/x\012y\n"), Path::new("/m/x\ny\\n"));
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
        let found = scan(&path, Scope::Everything).unwrap();
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        let task = &found.tasks[0];
        assert_eq!((task.pid, task.tid, task.comm.as_str()), (holder.pid(), holder.pid(), "sh"));
        assert_eq!(kinds(task), [Kind::Cwd, Kind::File, Kind::File]);
        assert_eq!(task.references[1].path, path.join("kept"));
        assert_eq!(task.references[2].path, path.join("gone (deleted)"));
        assert_eq!(task.namespace, Some(MountNamespace::of(holder.pid()).unwrap()));
        assert!(found.processes > 1);

        assert_eq!(scan(&path, Scope::Pids(&[holder.pid()])).unwrap().tasks, found.tasks);
        assert_eq!(scan(&path, Scope::Pids(&[std::process::id(), u32::MAX])).unwrap().tasks, []);
    }

    #[test]
    fn finds_program_and_says_its_mapping_once() {
        let (_guard, path) = directory();
        let program = path.join("shell");
        fs::copy("/bin/sh", &program).unwrap();
        let _holder = Holder::spawn(&program, "echo; read x", Path::new("/")).ready();
        let found = scan(&path, Scope::Everything).unwrap();
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        assert_eq!(found.tasks[0].references, [Reference { kind: Kind::Exe, path: program }]);
    }

    #[test]
    fn the_caller_shows_up_only_while_it_holds() {
        let (_guard, path) = directory();
        fs::write(path.join("file"), "").unwrap();
        assert_eq!(scan(&path, Scope::Everything).unwrap().tasks, []);
        let file = fs::File::open(path.join("file")).unwrap();
        let held = scan(&path, Scope::Everything).unwrap();
        assert_eq!(held.tasks.iter().map(|task| task.pid).collect::<Vec<_>>(), [std::process::id()]);
        drop(file);
        assert_eq!(scan(&path, Scope::Everything).unwrap().tasks, []);
    }

    #[test]
    fn finds_a_thread_with_its_own_working_directory() {
        let (_guard, path) = directory();
        // The thread unshares CLONE_FS, so that its chdir is its own.
        let script = "import ctypes, os, sys, threading\n\
                      def own():\n\
                      \x20   assert ctypes.CDLL(None).unshare(0x200) == 0\n\
                      \x20   os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read()\n\
                      threading.Thread(target=own).start()";
        let Some(python) = ["/usr/bin/python3"].into_iter().map(Path::new).find(|path| path.exists()) else {
            println!("skipped: no python3 to make a thread with a working directory of its own");
            return;
        };
        let script = script.replace("sys.argv[1]", &format!("{:?}", path.to_str().unwrap()));
        let holder = Holder::spawn(python, &script, Path::new("/")).ready();
        let found = scan(&path, Scope::Everything).unwrap();
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        assert_eq!(found.tasks[0].pid, holder.pid());
        assert_ne!(found.tasks[0].tid, holder.pid());
        assert_eq!(kinds(&found.tasks[0]), [Kind::Cwd]);
    }
}
