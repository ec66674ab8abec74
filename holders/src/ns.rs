//! A mount namespace by itself: who is in it, and what keeps it alive.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::namespace::{self, MountNamespace};
use crate::printable::shown;
use crate::query::{Error, LONGEST_SCAN, own_table, proc_error};
use crate::report::{CutShort, Member};
use crate::walk::{self, Members, Wanted};
use crate::{kernel, mountinfo, proc};

/// A mount namespace and everything that keeps it alive. None of it makes an unmount fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceReport {
    /// Which one.
    pub namespace: MountNamespace,
    /// The processes in it, by id; a thread that is in it without its process is listed with its own name.
    pub members: Vec<Member>,
    /// Open descriptors of it: who has it, and its number.
    pub files: Vec<(Member, u32)>,
    /// Where its file is bind mounted, in the namespaces that can be seen.
    pub binds: Vec<PathBuf>,
    /// How many mounts it has; `None` if that can't be found out.
    pub mounts: Option<usize>,
    /// How many processes could not be inspected; they may be in it or have it open.
    pub denied: usize,
    /// After [`LONGEST_SCAN`] there were further ones that may be or have it, too.
    pub cut_short: Option<CutShort>,
}

/// Says what keeps the mount namespace alive that process `pid` is in.
///
/// # Errors
/// [`Error::Proc`] if the process is gone or may not be inspected, or `/proc` can't be read.
pub fn of_process(pid: u32) -> Result<NamespaceReport, Error> {
    let namespace = MountNamespace::of(pid).map_err(|source| Error::Proc {
        call: "stat",
        path: format!("/proc/{pid}/ns/mnt").into(),
        // Its text names the file already.
        source: source.kind().into(),
    })?;
    of_inode(namespace.inode)
}

/// Says what keeps the mount namespace alive whose file is bind mounted at `path`, or linked to by it, as
/// `/proc/PID/ns/mnt` is. The file is not opened.
///
/// # Errors
/// [`Error::Path`] if the path is neither; [`Error::Proc`] as [`of_process`].
pub fn of_file(path: &Path) -> Result<NamespaceReport, Error> {
    let proc_dir = proc::open_proc().map_err(proc_error("open", "/proc"))?;
    let own = own_table(proc_dir.as_fd())?;
    let mounted = own.mounts.iter().rfind(|mount| mount.mount_point == path && mount.fstype == "nsfs");
    let inode = match mounted {
        Some(mount) => namespace::parse_link(mount.root.as_os_str().as_bytes()),
        None if path.starts_with("/proc") => {
            let link = std::fs::read_link(path).map_err(|source| Error::Proc {
                call: "readlink",
                path: path.to_owned(),
                source,
            })?;
            namespace::parse_link(link.as_os_str().as_bytes())
        }
        None => None,
    };
    of_inode(inode.ok_or_else(|| Error::NoNamespace(path.to_owned()))?)
}

/// By the inode number, which names one namespace for as long as it lives.
fn of_inode(inode: u64) -> Result<NamespaceReport, Error> {
    let proc_dir = proc::open_proc().map_err(proc_error("open", "/proc"))?;
    let proc_dir = proc_dir.as_fd();
    let wanted = Wanted { members: Members::Of(inode), ..Wanted::default() };
    let deadline = Instant::now() + LONGEST_SCAN;
    let walk = walk::walk(&wanted, None, Some(deadline)).map_err(proc_error("list", "/proc"))?;
    let member = |pid, tid| {
        let about = walk.tasks.get(&(pid, tid)).map(|known| known.about.clone()).unwrap_or_default();
        Member { pid: tid, comm: about.comm, unit: about.unit }
    };
    let listed = namespace::listed().unwrap_or_default();
    let mut id = listed.iter().find(|known| known.inode == inode).and_then(|known| known.id);
    let mut tables = Vec::new();
    for met in &walk.namespaces {
        let Ok(task) = proc::open_thread(proc_dir, met.member.0, met.member.1) else { continue };
        // Another one may have the id by now.
        if namespace::inode(task.as_fd()) != Ok(met.inode) {
            continue;
        }
        tables.extend(mountinfo::of_task(task.as_fd()).map(|mounts| (met.inode, mounts)));
        if met.inode == inode && id.is_none() {
            id = namespace::unique_id(task.as_fd()).ok().flatten();
        }
    }
    let binds = namespace::binds(tables.iter().flat_map(|(_, mounts)| mounts)).into_iter();
    let own_table = tables.iter().find(|(of, _)| *of == inode).map(|(_, mounts)| mounts.len());
    Ok(NamespaceReport {
        namespace: MountNamespace { inode, id },
        members: walk.members.iter().map(|&(pid, tid)| member(pid, tid)).collect(),
        files: walk
            .namespace_files
            .iter()
            .filter(|file| file.inode == inode)
            .map(|file| (member(file.pid, file.tid), file.fd))
            .collect(),
        binds: binds.filter(|(of, _)| *of == inode).map(|(_, at)| at).collect(),
        mounts: own_table.or_else(|| kernel::mounts_of(id?).ok().map(|mounts| mounts.len())),
        denied: walk.denied + walk.stuck.iter().filter(|stuck| stuck.is_whole).count(),
        cut_short: walk.left.map(|left| CutShort { processes: walk.pids.len(), left }),
    })
}

impl fmt::Display for NamespaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.namespace)?;
        match (self.members.len(), self.files.len() + self.binds.len()) {
            (0, 0) => write!(f, "nothing visible keeps it alive")?,
            (0, 1) => write!(f, "no process, kept alive by one reference to its file")?,
            (0, files) => write!(f, "no process, kept alive by {files} references to its file")?,
            (1, _) => write!(f, "1 process")?,
            (members, _) => write!(f, "{members} processes")?,
        }
        match self.mounts {
            Some(mounts) => writeln!(f, ", {mounts} mounts")?,
            None => writeln!(f)?,
        }
        for member in &self.members {
            writeln!(f, "  process {member}")?;
        }
        for (member, fd) in &self.files {
            writeln!(f, "  descriptor {fd} of {member}")?;
        }
        for bind in &self.binds {
            writeln!(f, "  bound at {}", shown(bind))?;
        }
        if self.denied > 0 {
            writeln!(f, "not seen: {} processes (run as root: needs CAP_SYS_PTRACE)", self.denied)?;
        }
        if let Some(cut) = self.cut_short {
            writeln!(f, "not seen: {cut}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.comm)?;
        self.unit.as_ref().map_or(Ok(()), |unit| write!(f, " of {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_namespace() {
        let report = of_process(std::process::id()).unwrap();
        assert!(report.members.iter().any(|member| member.pid == std::process::id()), "{report:?}");
        assert!(report.mounts.is_some_and(|mounts| mounts > 0));
        let linked = of_file(Path::new("/proc/self/ns/mnt")).unwrap();
        assert_eq!(linked.namespace, report.namespace);
        assert!(matches!(of_file(Path::new("/proc")), Err(Error::NoNamespace(_) | Error::Proc { .. })));
        assert!(matches!(of_file(Path::new("/")), Err(Error::NoNamespace(_))));
    }

    #[test]
    fn an_open_descriptor_is_listed() {
        let file = std::fs::File::open("/proc/self/ns/mnt").unwrap();
        let report = of_process(std::process::id()).unwrap();
        let fd = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
        assert!(
            report.files.iter().any(|(member, number)| member.pid == std::process::id() && *number == fd),
            "{report:?}"
        );
    }
}
