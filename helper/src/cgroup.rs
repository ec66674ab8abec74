//! The processes of a unit, by what the kernel says of each process: `/proc/PID/cgroup`.
//!
//! The unit's own `cgroup.procs` would be quicker but is no proof. On Linux 7.2 it no longer lists a process that is ending
//! but still has its working directory and files, and the cgroup can even be removed. The process's own `/proc/PID/cgroup`
//! names the unit to the end, then with ` (deleted)` behind it.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Where the cgroup tree with one hierarchy is mounted, and where it is beside those of version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What the kernel puts behind the path of a cgroup that was removed (`kernel/cgroup/cgroup.c:proc_cgroup_show`).
const DELETED: &str = " (deleted)";

/// The cgroup of a unit of the system's manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitCgroup {
    /// The manager's own cgroup without a slash at its end: empty, but in a container without a cgroup namespace.
    manager: String,
    unit: String,
}

impl UnitCgroup {
    /// The cgroup of `unit`, wherever PID 1 has it.
    #[must_use]
    pub fn of(unit: &str) -> Self {
        // One read, of the page that it is at most.
        let mut buffer = [0; 4096];
        let length =
            fs::File::open("/proc/1/cgroup").and_then(|mut file| file.read(&mut buffer)).unwrap_or_default();
        Self::below(std::str::from_utf8(&buffer[..length]).unwrap_or_default(), unit)
    }

    /// The cgroup of `unit`, given PID 1's `/proc/PID/cgroup`: systemd moves itself into `init.scope`, below the cgroup
    /// that it manages.
    #[must_use]
    pub fn below(cgroup_of_pid1: &str, unit: &str) -> Self {
        let manager = path_of(cgroup_of_pid1).and_then(|path| path.strip_suffix("/init.scope"));
        Self { manager: manager.unwrap_or_default().to_owned(), unit: unit.to_owned() }
    }

    /// Whether a process whose `/proc/PID/cgroup` this is belongs to the unit.
    #[must_use]
    pub fn has(&self, proc_cgroup: &str) -> bool {
        self.path(proc_cgroup).is_some()
    }

    /// The path of the unit's cgroup, if a process whose `/proc/PID/cgroup` this is belongs to it.
    ///
    /// Only slices lie above a unit of the system (systemd.slice(5)). What lies below another unit may have any name:
    /// `user@1000.service` is given to a user, who could call a cgroup there like a server and keep it waiting.
    #[must_use]
    pub fn path<'a>(&self, proc_cgroup: &'a str) -> Option<&'a str> {
        let path = path_of(proc_cgroup)?;
        let path = path.strip_suffix(DELETED).unwrap_or(path);
        let below = path.strip_prefix(self.manager.as_str())?.strip_prefix('/')?;
        let mut end = path.len() - below.len();
        for component in below.split('/') {
            end += component.len();
            if component == self.unit {
                return Some(&path[..end]);
            }
            if !component.ends_with(".slice") {
                return None;
            }
            end += 1;
        }
        None
    }

    /// Where systemd makes the cgroup of an instance unless `Slice=` says otherwise: in a slice named for its template
    /// (systemd.resource-control(5), `Slice=`).
    #[must_use]
    pub fn usual_path(&self) -> String {
        let template = self.unit.split_once('@').map_or("", |(template, _)| template);
        let slice = if template.is_empty() {
            String::new()
        } else {
            format!("/system-{}.slice", template.replace('-', "\\x2d"))
        };
        format!("{}/system.slice{slice}/{}", self.manager, self.unit)
    }
}

/// The cgroup's path in the one hierarchy of version 2, `0::/system.slice/x.service`, else in systemd's own of version 1,
/// `1:name=systemd:/system.slice/x.service`; cgroups(7).
#[must_use]
pub fn path_of(proc_cgroup: &str) -> Option<&str> {
    let systemds = || proc_cgroup.lines().find_map(|line| Some(line.split_once(":name=systemd:")?.1));
    let path = holders::cgroup::path_of(proc_cgroup).or_else(systemds)?;
    // A cgroup outside of our cgroup namespace is shown with `..`: no name that we can use.
    (path.starts_with('/') && !path.split('/').any(|component| component == "..")).then_some(path)
}

/// Whether a cgroup has a process in it or below it at `until`, by `populated` of its `cgroup.events`; returns as soon as
/// it has none. A change of that file is an event of poll(2) (cgroup-v2.rst, "[Un]populated Notification"). False for a
/// cgroup that is not there.
#[must_use]
pub fn wait_while_populated(path: &str, until: Instant) -> bool {
    let open = |root: &&str| fs::File::open(file_of(root, path, "cgroup.events")).ok();
    let Some(mut events) = ROOTS.iter().find_map(open) else { return false };
    loop {
        let mut text = String::new();
        let read = events.rewind().and_then(|()| events.read_to_string(&mut text));
        // ENODEV: it was removed meanwhile.
        if read.is_err() || !text.lines().any(|line| line == "populated 1") {
            return false;
        }
        let mut changed = [PollFd::new(&events, PollFlags::PRI)];
        if !matches!(poll(&mut changed, Some(&time_until(until))), Ok(1..) | Err(Errno::INTR)) {
            return true;
        }
    }
}

/// Kills every process in a cgroup and below it, those too that are made meanwhile (cgroup-v2.rst, `cgroup.kill`; Linux
/// 5.14).
///
/// # Errors
/// As open(2) and write(2): ENOENT if there is no such cgroup, or no such file on an older kernel.
pub fn kill(path: &str) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for root in ROOTS {
        result = fs::write(file_of(root, path, "cgroup.kill"), "1");
        if !result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    result
}

/// How long it is until then, as poll(2) takes it.
pub(crate) fn time_until(then: Instant) -> Timespec {
    let left = then.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

fn file_of(root: &str, path: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("{root}{path}/{name}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: &str = "left4me-server@3.service";
    const SLICE: &str = "/system.slice/system-left4me\\x2dserver.slice";

    fn server() -> UnitCgroup {
        UnitCgroup::below("0::/init.scope\n", UNIT)
    }

    #[test]
    fn who_belongs_to_the_unit() {
        let in_unit = format!("{SLICE}/{UNIT}");
        for (text, expected) in [
            (format!("0::{in_unit}\n"), Some(in_unit.as_str())),
            (format!("0::{in_unit} (deleted)\n"), Some(&in_unit)),
            (format!("0::{in_unit}/.control\n"), Some(&in_unit)),
            (format!("0::{in_unit}/a/b (deleted)\n"), Some(&in_unit)),
            (format!("12:pids:/x\n1:name=systemd:{in_unit}\n0::{in_unit}\n"), Some(&in_unit)),
            (format!("12:pids:/x\n1:name=systemd:{in_unit}\n"), Some(&in_unit)),
            (format!("0::/left4me.slice/{UNIT}"), Some("/left4me.slice/left4me-server@3.service")),
            (format!("0::/{UNIT}"), Some("/left4me-server@3.service")),
            ("0::/user.slice/user-0.slice/session-3.scope\n".into(), None),
            (format!("0::{SLICE}/left4me-server@30.service\n"), None),
            (format!("0::{SLICE}/x{UNIT}\n"), None),
            (format!("0::/../{UNIT}\n"), None),
            ("0::/\n".into(), None),
            (String::new(), None),
            // A user's own manager gives cgroups any name.
            (format!("0::/user.slice/user-1000.slice/user@1000.service/{UNIT}\n"), None),
            (format!("0::/user.slice/user-1000.slice/user@1000.service/app.slice/{UNIT}\n"), None),
            (format!("0::/system.slice/other.service/{UNIT}\n"), None),
        ] {
            assert_eq!(server().path(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_container_has_its_units_below_its_own_cgroup() {
        let payload = "/machine.slice/systemd-nspawn@x.service/payload";
        let inside = UnitCgroup::below(&format!("0::{payload}/init.scope\n"), UNIT);
        assert!(inside.has(&format!("0::{payload}{SLICE}/{UNIT}\n")));
        assert!(!inside.has(&format!("0::{SLICE}/{UNIT}\n")), "the host's");
        assert_eq!(inside.usual_path(), format!("{payload}{SLICE}/{UNIT}"));
        assert_eq!(server().usual_path(), format!("{SLICE}/{UNIT}"));
    }

    #[test]
    fn a_cgroup_that_is_not_there_has_nobody_and_cannot_be_killed() {
        assert!(!wait_while_populated("/no/such", Instant::now()));
        assert_eq!(kill("/no/such").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn never_panics_and_what_belongs_is_the_unit_below_slices_only(
            text in "(0::|1:name=systemd:)?(/(a\\.slice|x\\.service|b@1\\.service|\\.\\.|é)){0,5}( \\(deleted\\))?\n?",
            unit in "(x|b@1)\\.service"
        ) {
            let cgroup = UnitCgroup::below("0::/init.scope", &unit);
            if let Some(path) = cgroup.path(&text) {
                let above = path.strip_suffix(&format!("/{unit}")).unwrap();
                prop_assert!(above.split('/').skip(1).all(|component| component.ends_with(".slice")), "{}", path);
                prop_assert!(text.contains(path));
            }
        }
    }
}
