//! Who keeps a mount busy, by the links under `/proc`, and the one line that says so.
//!
//! The seam to the diagnosis: everything else asks [`holds`] whether a process is in the way and [`verdict`] who is,
//! and prints or logs what that says. The `holders` crate looks at more kinds of reference; it can take the place of
//! these two functions and nothing else has to change.
//!
//! Links are read and never followed: opening or stat-ing one would take a reference in the mount.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cgroup::{UnitCgroup, unit_of};
use crate::mountinfo::{self, Mount};

/// How many holders the one line names; the journal's fields have all of them.
const NAMED: usize = 6;

/// A process with a reference in the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, from a source that it can choose itself: control characters are escaped.
    pub comm: String,
    /// The systemd unit whose cgroup it is in.
    pub unit: Option<String>,
    /// Whether that is the unit that the mount belongs to.
    pub own: bool,
    /// What it has in the mount: `cwd`, `root`, `exe`, `2 open files`, `mapping`, `cwd of thread 7`.
    pub references: Vec<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match (&self.unit, self.own) {
            (_, true) => "this unit",
            (Some(unit), false) => unit,
            (None, false) => "no unit",
        };
        write!(f, "{} ({}) of {place} by {}", self.pid, self.comm, self.references.join(", "))
    }
}

/// Why an unmount was refused as busy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whoever was found to hold the mount.
    pub holders: Vec<Holder>,
    /// What is mounted below it.
    pub below: Vec<PathBuf>,
}

/// One line, from who it is to what to do.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.below.first() {
            write!(f, "a mount lies below it: unmount {} first", first.display())?;
            if self.below.len() > 1 {
                write!(f, " (and {} more)", self.below.len() - 1)?;
            }
            if !self.holders.is_empty() {
                f.write_str("; ")?;
            }
        } else if self.holders.is_empty() {
            return f.write_str(
                "no task has its working directory, root, program, an open file or a mapping there; left is what \
                 no link under /proc shows: a loop device or swap file in it (`losetup -l`, `swapon`), a descriptor \
                 in flight, an io_uring of a process that ended this moment",
            );
        }
        for (index, holder) in self.holders.iter().take(NAMED).enumerate() {
            write!(f, "{}{holder}", if index == 0 { "held by " } else { "; " })?;
        }
        if self.holders.len() > NAMED {
            write!(f, "; and {} more", self.holders.len() - NAMED)?;
        }
        if !self.holders.is_empty() {
            let them = if self.holders.len() == 1 { "it" } else { "them" };
            write!(f, ": end {them} or have {them} leave, then unmount again")?;
        }
        Ok(())
    }
}

/// Who holds the mount at `path`, seen from everywhere. `mounts` is our own mount table; `unit` the unit that the
/// mount belongs to. A task that ends meanwhile is left out, as it holds nothing any more.
#[must_use]
pub fn verdict(path: &Path, mounts: &[Mount], unit: Option<&UnitCgroup>) -> Verdict {
    let below = mountinfo::at_or_below(mounts, path).into_iter().filter(|below| below != path).collect();
    let holders = numbers(Path::new("/proc")).into_iter().filter_map(|pid| holder(pid, path, unit)).collect();
    Verdict { holders, below }
}

/// What `pid` has in the mount at `path`; `None` if nothing, or if it is gone.
#[must_use]
pub fn holder(pid: u32, path: &Path, unit: Option<&UnitCgroup>) -> Option<Holder> {
    let references = references(pid, path);
    if references.is_empty() {
        return None;
    }
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Some(Holder {
        pid,
        comm: comm(pid),
        own: unit.is_some_and(|unit| unit.holds(&cgroup)),
        unit: unit_of(&cgroup).map(str::to_owned),
        references,
    })
}

/// Whether `pid` has anything in the mount at `path`. What is quick to look at comes first.
#[must_use]
pub fn holds(pid: u32, path: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let task = |task: &Path| LINKS.iter().any(|name| points_into(&task.join(name), path));
    task(&process)
        || maps(&process, path) > 0
        || open_files(&process, path) > 0
        || tasks(&process).iter().any(|(_, thread)| task(thread))
}

/// The name of a process, without anything in it that a terminal or a log would obey.
#[must_use]
pub fn comm(pid: u32) -> String {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
    String::from_utf8_lossy(comm).escape_debug().to_string()
}

const LINKS: [&str; 3] = ["cwd", "root", "exe"];

fn references(pid: u32, path: &Path) -> Vec<String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut found = Vec::new();
    for (tid, thread) in tasks(&process) {
        for name in LINKS {
            if points_into(&thread.join(name), path) {
                found.push(if tid == pid { name.to_owned() } else { format!("{name} of thread {tid}") });
            }
        }
    }
    for (count, one, many) in [
        (open_files(&process, path), "open file", "open files"),
        (maps(&process, path), "mapping", "mappings"),
    ] {
        match count {
            0 => {}
            1 => found.push(format!("1 {one}")),
            count => found.push(format!("{count} {many}")),
        }
    }
    found
}

fn tasks(process: &Path) -> Vec<(u32, PathBuf)> {
    let directory = process.join("task");
    numbers(&directory).into_iter().map(|tid| (tid, directory.join(tid.to_string()))).collect()
}

fn open_files(process: &Path, path: &Path) -> usize {
    let Ok(entries) = fs::read_dir(process.join("fd")) else { return 0 };
    entries.flatten().filter(|entry| points_into(&entry.path(), path)).count()
}

fn maps(process: &Path, path: &Path) -> usize {
    fs::read(process.join("maps")).map_or(0, |maps| mapped_below(&maps, path))
}

/// How many lines of a `/proc/PID/maps` name a file at or below `path`: `start-end perms offset dev inode path`,
/// where a newline in the path is `\012` (fs/proc/task_mmu.c).
#[must_use]
pub fn mapped_below(maps: &[u8], path: &Path) -> usize {
    maps.split(|&byte| byte == b'\n')
        .filter(|line| {
            let Some(start) = line.iter().position(|&byte| byte == b'/') else { return false };
            Path::new(OsStr::from_bytes(&line[start..])).starts_with(path)
        })
        .count()
}

fn points_into(link: &Path, path: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.starts_with(path))
}

/// The entries of a directory that are numbers: processes or threads.
pub(crate) fn numbers(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sees_an_open_file_and_nothing_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        assert_eq!(verdict(&path, &[], None), Verdict::default());
        assert!(!holds(std::process::id(), &path));
        let file = fs::File::create(path.join("f")).unwrap();
        let found = verdict(&path, &[], None);
        let [holder] = found.holders.as_slice() else { panic!("{found:?}") };
        assert_eq!((holder.pid, holder.own), (std::process::id(), false));
        assert_eq!(holder.references, ["1 open file"]);
        assert!(holds(std::process::id(), &path));
        drop(file);
        assert!(!holds(std::process::id(), &path));
    }

    fn holder(pid: u32, unit: Option<&str>, own: bool) -> Holder {
        let unit = unit.map(str::to_owned);
        Holder { pid, comm: "bash".into(), unit, own, references: vec!["cwd".into(), "exe".into()] }
    }

    #[test]
    fn one_line_says_who_and_what_to_do() {
        let verdicts = [
            Verdict::default(),
            Verdict { holders: vec![holder(7, Some("session-3.scope"), false)], below: vec![] },
            Verdict { holders: vec![holder(7, None, false), holder(8, Some("x"), true)], below: vec![] },
            Verdict { holders: (0..9).map(|pid| holder(pid, None, false)).collect(), below: vec![] },
            Verdict { holders: vec![], below: vec!["/m/a".into(), "/m/b".into()] },
            Verdict { holders: vec![holder(7, None, false)], below: vec!["/m/a".into()] },
        ];
        let lines: Vec<_> = verdicts.iter().map(ToString::to_string).collect();
        assert!(lines.iter().all(|line| !line.contains('\n')));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn maps_lines() {
        let maps =
            b"55-56 r-xp 0 fe:00 7    /m/srcds_run\n57-58 rw-p 0 0:0 0 [heap]\n59-60 r--p 0 0:2a 9 /m2/x\n\
            61-62 r--p 0 0:2a 9 /m/a b (deleted)\n63-64 rw-p 0 0:0 0\n";
        assert_eq!(mapped_below(maps, Path::new("/m")), 2);
    }

    proptest! {
        #[test]
        fn maps_never_panic(maps in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(mapped_below(&maps, Path::new("/m")) <= maps.len());
        }
    }
}
