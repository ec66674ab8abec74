//! A unit's cgroup: which processes it has, and whether a process is in it.

use std::fs;
use std::path::Path;

use holders::cgroup;

/// Where systemd mounts the v2 hierarchy.
const ROOT: &str = "/sys/fs/cgroup";

/// The processes of a cgroup (systemd's ControlGroup, `/system.slice/x.service`) and of those below it, such as
/// `.control`. Empty if there is no such cgroup, which is normal for a unit that is down.
pub(super) fn processes(control_group: &str) -> Vec<u32> {
    if control_group.is_empty() {
        return Vec::new();
    }
    cgroup::processes(Path::new(&format!("{ROOT}{control_group}")))
}

/// The cgroup of a process; `None` for one that is gone.
pub(super) fn of(pid: u32) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroup::path_of(&table).map(str::to_owned)
}

/// Whether one cgroup is the other or below it. One that is deleted is so still: from Linux 7 on a cgroup can be removed
/// while the last of its processes are ending, and these show it with ` (deleted)` (cgroup-v2.rst, "Processes").
pub(super) fn contains(control_group: &str, cgroup: &str) -> bool {
    let cgroup = cgroup.strip_suffix(" (deleted)").unwrap_or(cgroup);
    let rest = cgroup.strip_prefix(control_group);
    !control_group.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_by_whole_components() {
        let unit = "/system.slice/a@1.service";
        assert!(contains(unit, unit));
        assert!(contains(unit, "/system.slice/a@1.service/.control"));
        assert!(!contains(unit, "/system.slice/a@1.service2"));
        assert!(!contains(unit, "/system.slice"));
        assert!(!contains("", "/system.slice"));
        assert!(contains(unit, "/system.slice/a@1.service (deleted)"));
        assert!(contains(unit, "/system.slice/a@1.service/.control (deleted)"));
        assert!(!contains(unit, "/system.slice/a@1.service2 (deleted)"));
        assert!(processes("").is_empty());
    }
}
