//! The servers of the host: which run, and what each is to systemd and to the kernel, so that a deploy can say that none has noticed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::canary;
use crate::facts::QUICK;
use crate::host::{Host, command};

/// Both units of every instance.
const UNITS: [&str; 2] = ["left4me-server@*.service", "left4me-overlay@*.service"];

/// What systemd is asked of each.
const PROPERTIES: &str =
    "--property=Id,ActiveState,MainPID,InvocationID,ControlGroup,InactiveExitTimestampMonotonic";

/// A unit of an instance that is not inactive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its state.
    pub active: String,
    /// When it began to start, in microseconds of this boot.
    pub since_boot_us: u64,
    /// What must stay the same: process, invocation, cgroup and mount.
    pub identity: String,
}

/// The units that are not inactive, by name, without the canary's.
pub type Servers = BTreeMap<String, Unit>;

/// Looks at them.
///
/// # Errors
/// systemd does not answer.
pub fn look(host: &Host) -> Result<Servers> {
    let mut argv = vec!["systemctl", "show", PROPERTIES];
    argv.extend(UNITS);
    let shown = command::ok(&argv, Instant::now() + QUICK)?;
    let mounts = fs::read_to_string("/proc/1/mountinfo").context("read /proc/1/mountinfo")?;
    let mut servers = Servers::new();
    for one in shown.split("\n\n") {
        let fields: BTreeMap<&str, &str> = one.lines().filter_map(|line| line.split_once('=')).collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default();
        let (id, active) = (field("Id"), field("ActiveState"));
        if id.is_empty() || ["inactive", ""].contains(&active) || instance(id) == Some(canary::NAME) {
            continue;
        }
        let cgroup = field("ControlGroup");
        let inode = if cgroup.is_empty() {
            None
        } else {
            fs::metadata(host.at("/sys/fs/cgroup").join(&cgroup[1..])).ok()
        };
        let mount = instance(id).and_then(|name| mount(&mounts, name));
        let identity = format!(
            "{active}, MainPID {}, InvocationID {}, cgroup {} {}, mount {}",
            field("MainPID"),
            field("InvocationID"),
            cgroup,
            inode.map_or_else(|| "-".to_owned(), |about| about.ino().to_string()),
            mount.unwrap_or_else(|| "-".to_owned()),
        );
        let since_boot_us = field("InactiveExitTimestampMonotonic").parse().unwrap_or(0);
        servers.insert(id.to_owned(), Unit { active: active.to_owned(), since_boot_us, identity });
    }
    Ok(servers)
}

/// The instance in a unit's name.
#[must_use]
pub fn instance(unit: &str) -> Option<&str> {
    unit.split_once('@')?.1.strip_suffix(".service")
}

/// A mount's id and device, from mountinfo: proc_pid_mountinfo(5).
fn mount(mountinfo: &str, instance: &str) -> Option<String> {
    let at = format!("/var/lib/left4me/runtime/{instance}/merged");
    mountinfo.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(4) == Some(&at.as_str())).then(|| format!("{} {}", fields[0], fields[2]))
    })
}

/// What has changed between two looks, in words; nothing, if no server has noticed.
#[must_use]
pub fn noticed(before: &Servers, after: &Servers) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, was) in before {
        match after.get(name) {
            None => changes.push(format!("{name} has stopped (was {})", was.identity)),
            Some(is) if is.identity != was.identity => {
                changes.push(format!("{name} was {} and is {}", was.identity, is.identity));
            }
            Some(_same) => {}
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_place() {
        let info = "30 1 0:25 / / rw - ext4 /dev/a rw\n\
                    91 30 0:44 / /var/lib/left4me/runtime/3/merged rw,nosuid - overlay overlay rw\n";
        assert_eq!(mount(info, "3").as_deref(), Some("91 0:44"));
        assert_eq!(mount(info, "4"), None);
    }

    #[test]
    fn what_stops_or_is_another_is_noticed() {
        let unit = |identity: &str| Unit {
            active: "active".to_owned(),
            since_boot_us: 1,
            identity: identity.to_owned(),
        };
        let of = |all: &[(&str, &str)]| -> Servers {
            all.iter().map(|(name, identity)| ((*name).to_owned(), unit(identity))).collect()
        };
        let before = of(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(noticed(&before, &before), [""; 0]);
        let after = of(&[("a", "1"), ("b", "4"), ("new", "5")]);
        assert_eq!(noticed(&before, &after), ["b was 2 and is 4", "c has stopped (was 3)"]);
    }

    #[test]
    fn an_instance_is_named_in_its_unit() {
        assert_eq!(instance("left4me-server@a-b.service"), Some("a-b"));
        assert_eq!(instance("left4me-server.service"), None);
    }
}
