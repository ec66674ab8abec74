//! Which tasks belong to the unit that this process runs for.
//!
//! systemd runs `ExecStopPost=` when the main process is gone, not when the unit's cgroup is empty, and it runs it in
//! that same cgroup (with `Delegate=`: in `.control` below it). So the cgroup is never empty while the helper is in
//! it, `populated 0` in cgroup.events never comes, and what can be waited for are the other tasks in it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the cgroup tree with one hierarchy is mounted, and where it is beside those of version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The cgroup of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitCgroup {
    path: String,
}

impl UnitCgroup {
    /// The cgroup of `unit`, if this process is in it.
    #[must_use]
    pub fn mine(unit: &str) -> Option<Self> {
        let mut text = String::with_capacity(4096);
        fs::File::open("/proc/self/cgroup").ok()?.read_to_string(&mut text).ok()?;
        Self::parse(&text, unit)
    }

    /// The cgroup of `unit`, if the task whose `/proc/PID/cgroup` this is is in it or below it.
    #[must_use]
    pub fn parse(proc_cgroup: &str, unit: &str) -> Option<Self> {
        let path = path_of(proc_cgroup)?;
        let mut end = 0;
        for component in path.split('/') {
            end += component.len();
            if component == unit {
                return Some(Self { path: path[..end].to_owned() });
            }
            end += 1;
        }
        None
    }

    /// Whether the task whose `/proc/PID/cgroup` this is belongs to the unit.
    #[must_use]
    pub fn holds(&self, proc_cgroup: &str) -> bool {
        path_of(proc_cgroup)
            .and_then(|path| path.strip_prefix(&self.path))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether the process `pid` belongs to the unit now.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| self.holds(&text))
    }

    /// The processes in the unit's cgroup and below it, this one too. Empty if the tree cannot be read: then there is
    /// nothing to wait for, and whoever is in the way is named when the unmount fails.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let relative = self.path.trim_start_matches('/');
        for root in ROOTS {
            let directory = Path::new(root).join(relative);
            let mut found = Vec::new();
            if collect(&directory, &mut found) {
                return found;
            }
        }
        Vec::new()
    }
}

/// The cgroup's path in the one hierarchy of version 2; the line is `0::/system.slice/x.service`, cgroups(7).
#[must_use]
pub fn path_of(proc_cgroup: &str) -> Option<&str> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A cgroup outside of our cgroup namespace is shown with `..`: no name that we can use.
    (path.starts_with('/') && !path.split('/').any(|component| component == "..")).then_some(path)
}

/// The process ids of a cgroup.procs, cgroups(7). A process of another pid namespace is shown as 0, and is nobody's name.
pub fn process_ids(procs: &str) -> impl Iterator<Item = u32> {
    procs.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0)
}

fn collect(directory: &Path, found: &mut Vec<u32>) -> bool {
    let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) else { return false };
    found.extend(process_ids(&text));
    for below in subdirectories(directory) {
        collect(&below, found);
    }
    true
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: &str = "left4me-server@3.service";
    const SLICE: &str = "/system.slice/system-left4me\\x2dserver.slice";

    #[test]
    fn the_units_own_cgroup() {
        let in_unit = format!("{SLICE}/{UNIT}");
        for (text, expected) in [
            (format!("0::{in_unit}\n"), Some(in_unit.clone())),
            (format!("0::{in_unit}/.control\n"), Some(in_unit.clone())),
            (format!("12:pids:/x\n1:name=systemd:{in_unit}\n0::{in_unit}\n"), Some(in_unit.clone())),
            (format!("1:name=systemd:{in_unit}\n"), None),
            ("0::/user.slice/user-0.slice/session-3.scope\n".into(), None),
            (format!("0::{SLICE}/left4me-server@30.service\n"), None),
            (format!("0::{SLICE}/x{UNIT}\n"), None),
            (format!("0::/../{UNIT}\n"), None),
            (String::new(), None),
        ] {
            assert_eq!(UnitCgroup::parse(&text, UNIT).map(|cgroup| cgroup.path), expected, "{text}");
        }
    }

    #[test]
    fn who_belongs_to_it() {
        let cgroup = UnitCgroup::parse(&format!("0::{SLICE}/{UNIT}/.control"), UNIT).unwrap();
        assert!(cgroup.holds(&format!("0::{SLICE}/{UNIT}\n")));
        assert!(cgroup.holds(&format!("0::{SLICE}/{UNIT}/.control\n")));
        assert!(!cgroup.holds(&format!("0::{SLICE}/{UNIT}x\n")));
        assert!(!cgroup.holds(&format!("0::/user.slice/user@1.service/{UNIT}\n")), "a namesake elsewhere");
        assert!(!cgroup.holds("0::/\n"));
    }

    #[test]
    fn who_is_in_it() {
        for (procs, expected) in
            [("12\n7\n", &[12, 7][..]), ("0\n3\n", &[3]), ("", &[]), ("x\n-1\n4294967296\n5", &[5])]
        {
            assert_eq!(process_ids(procs).collect::<Vec<_>>(), expected, "{procs}");
        }
    }

    proptest! {
        #[test]
        fn everybody_who_is_listed_is_found(pids in prop::collection::vec(any::<u32>(), 0..9)) {
            let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            let named: Vec<_> = pids.into_iter().filter(|&pid| pid != 0).collect();
            prop_assert_eq!(process_ids(&text).collect::<Vec<_>>(), named);
        }

        #[test]
        fn never_panics_and_a_task_belongs_to_its_own_cgroup(text in "(0::)?[/a-zé.@0-9:\\\\\n]{0,60}", unit in "[a-z/é.]{0,4}") {
            if let Some(cgroup) = UnitCgroup::parse(&text, &unit) {
                prop_assert!(cgroup.holds(&text));
            }
        }
    }
}
