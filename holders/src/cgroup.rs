//! Control groups of the v2 hierarchy (cgroups(7)): which one a process is in, which unit that is, and who else is.

use std::fs;
use std::path::Path;

/// The cgroup of a process, as `/system.slice/x.service`, from the text of its `/proc/PID/cgroup`: the path of the line
/// `0::/system.slice/x.service`. `None` if it has none.
#[must_use]
pub fn path_of(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The systemd unit that a cgroup belongs to: the last component that names a unit other than a slice, so that
/// a unit's own sub-cgroups (`.control`, a delegated tree) count as the unit's.
#[must_use]
pub fn unit_of(cgroup: &str) -> Option<&str> {
    const SUFFIXES: [&str; 5] = [".service", ".scope", ".mount", ".socket", ".swap"];
    cgroup
        .rsplit('/')
        .find(|part| SUFFIXES.iter().any(|suffix| part.len() > suffix.len() && part.ends_with(suffix)))
}

/// The id of the user whose manager has the unit of a cgroup; `None` if that is one of the system: the number of the
/// `user@.service` that the unit's cgroup lies below (user@.service(5)).
#[must_use]
pub fn user_of(cgroup: &str) -> Option<u32> {
    let (above, _) = cgroup.rsplit_once(unit_of(cgroup)?)?;
    above.split('/').find_map(|part| part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok())
}

/// The processes of a cgroup, whose directory this is, and of those below it, such as `.control`. Empty if there is no such
/// cgroup: one that vanishes has no processes.
#[must_use]
pub fn processes(directory: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = procs.lines().filter_map(|line| line.parse().ok()).collect();
    let children = fs::read_dir(directory).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        pids.extend(processes(&child.path()));
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_v2_line() {
        let table = "12:cpu:/old\n0::/system.slice/a.service\n";
        assert_eq!(path_of(table), Some("/system.slice/a.service"));
        assert_eq!(path_of("12:cpu:/old\n"), None);
    }

    #[test]
    fn a_users_unit_lies_below_that_users_manager() {
        let cases = [
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", Some(1000)),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", Some(1000)),
            // The manager itself, and what a login has, are the system's.
            ("/user.slice/user-1000.slice/user@1000.service", None),
            ("/user.slice/user-1000.slice/session-1.scope", None),
            ("/system.slice/a.service/user@7.service", None),
            ("/system.slice/user@x.service/a.service", None),
            ("", None),
        ];
        for (cgroup, user) in cases {
            assert_eq!(user_of(cgroup), user, "{cgroup}");
        }
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
            assert_eq!(unit_of(cgroup), unit, "{cgroup}");
        }
    }
}
