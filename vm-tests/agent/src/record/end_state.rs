//! What a reset leaves: the unit being `inactive` is the least of it.
//!
//! A umount that returned 0 took the mount out of one namespace. The file system lives as long as it is mounted in
//! another one or something there holds it, and then the next mount of the same layers shares them with it, which
//! overlayfs calls undefined (Documentation/filesystems/overlayfs.rst, "Sharing and copying layers") and says in the
//! log. So all mount tables are read, and the file system is made once more and dropped. It is never attached: no
//! path is resolved inside it, and no umount is needed.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context, Result};
use holders::mountinfo::{self, Mount};
use holders::namespace::MountNamespace;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};
use vm_agent::recording::{EndState, MountCopy, Namespace, Remount};

use super::kernel_log::KernelLog;
use super::processes;
use super::unit_cgroup;
use super::units::Units;

/// What overlayfs logs of layers that another file system has (`fs/overlayfs/super.c:ovl_report_in_use`).
const IN_USE: &str = "in-use";

/// What is left of the units; of the mount nothing yet.
///
/// # Errors
/// If D-Bus does not answer.
pub(super) fn read(units: &Units) -> Result<EndState> {
    let left = units.control_groups().flat_map(unit_cgroup::processes);
    Ok(EndState {
        mounted_in: Vec::new(),
        processes: left.map(|pid| (pid, processes::comm(pid).unwrap_or_default())).collect(),
        failed_units: units.failed_units().context("read the end state")?,
        remount: remount(None, false, None)?,
    })
}

/// Adds what is left of `mount`, which the start had made; `None`: it had made nothing.
///
/// # Errors
/// If `/proc` can't be listed, or the kernel's log has lost records.
pub(super) fn add_mount(
    end: &mut EndState,
    mount: Option<&Mount>,
    is_mounted: bool,
    log: Option<&mut KernelLog>,
) -> Result<()> {
    end.mounted_in = match mount {
        Some(mount) => mounted_in(|other| other.device == mount.device).context("read the end state")?,
        None => Vec::new(),
    };
    end.remount = remount(mount, is_mounted, log).context("read the end state")?;
    Ok(())
}

/// The mount namespaces that have a process and something mounted at `path`.
///
/// # Errors
/// If `/proc` can't be listed.
pub(super) fn mounted_at(path: &Path) -> Result<Vec<MountCopy>> {
    mounted_in(|mount| mount.mount_point == path)
}

/// The mount namespaces that have a process and such a mount. One without a process (kept by a descriptor or a bind mount
/// of its file) is not found: the remount shows it.
///
/// # Errors
/// If `/proc` can't be listed.
pub(super) fn mounted_in(is_one: impl Fn(&Mount) -> bool) -> Result<Vec<MountCopy>> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for pid in processes::pids()? {
        // One that has ended meanwhile is in no namespace any more. Numbers of namespaces that are all alive at one
        // moment are different.
        let Ok(namespace) = MountNamespace::of(pid) else { continue };
        if !seen.insert(namespace.inode) {
            continue;
        }
        let Ok(mounts) = mountinfo::read(pid) else { continue };
        let mount_points: Vec<String> = mounts
            .iter()
            .filter(|mount| is_one(mount))
            .map(|mount| mount.mount_point.to_string_lossy().into_owned())
            .collect();
        if !mount_points.is_empty() {
            let namespace = Namespace { inode: namespace.inode, id: namespace.id };
            let (comm, unit) = (processes::comm(pid), processes::unit(pid));
            found.push(MountCopy {
                pid,
                comm: comm.unwrap_or_default(),
                unit: unit.unwrap_or_default(),
                namespace,
                mount_points,
            });
        }
    }
    Ok(found)
}

/// Makes the overlay's file system again and drops it.
fn remount(mount: Option<&Mount>, is_mounted: bool, log: Option<&mut KernelLog>) -> Result<Remount> {
    let not_tried = |why: &str| Ok(Remount::NotTried { why: why.to_owned() });
    let [not_mounted, no_overlay, still_mounted, no_layers, no_log] = Remount::WHY_NOT;
    let Some(mount) = mount else { return not_tried(not_mounted) };
    if mount.fstype != "overlay" {
        return not_tried(no_overlay);
    }
    if is_mounted {
        return not_tried(still_mounted);
    }
    let options = options(&mount.super_options);
    let is_there = |key: &str| {
        let layer = options.iter().find(|(name, _)| *name == key);
        layer.is_some_and(|(_, path)| Path::new(path).is_dir())
    };
    if !is_there("upperdir") || !is_there("workdir") {
        return not_tried(no_layers);
    }
    let Some(log) = log else { return not_tried(no_log) };
    let made = make(&options);
    let in_use = log.read()?.iter().any(|text| text.contains(IN_USE));
    let result = made.map_or_else(|errno| -i64::from(errno.raw_os_error()), |()| 0);
    Ok(Remount::Tried { result, in_use })
}

/// The options with a value, in their order: the layers, and what may differ from the kernel's default. A path with a
/// comma in it is cut there, and the remount then fails.
fn options(super_options: &str) -> Vec<(&str, &str)> {
    super_options.split(',').filter_map(|option| option.split_once('=')).collect()
}

fn make(options: &[(&str, &str)]) -> rustix::io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    // EBUSY with index=on, where another file system has the layers; a line in the log without.
    fsconfig_create(context.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn takes_the_options_that_have_a_value() {
        let options = options("rw,lowerdir=/a:/b,upperdir=/u,workdir=/w,xino=off,nouserxattr");
        let expected = [("lowerdir", "/a:/b"), ("upperdir", "/u"), ("workdir", "/w"), ("xino", "off")];
        assert_eq!(options, expected);
    }

    #[test]
    fn finds_the_namespaces_of_a_device() {
        let own = mountinfo::read_at(std::process::id(), Path::new("/proc")).unwrap().unwrap();
        let found = mounted_in(|mount| mount.device == own.device).unwrap();
        let has_proc = |copy: &MountCopy| copy.mount_points.iter().any(|path| path == "/proc");
        assert!(found.iter().any(has_proc), "{found:?}");
        assert_eq!(mounted_in(|_| false).unwrap(), []);
        assert!(mounted_at(Path::new("/proc")).unwrap().iter().any(has_proc));
        assert_eq!(mounted_at(Path::new("/no/such")).unwrap(), []);
    }

    #[test]
    fn says_why_it_does_not_mount() {
        let line = "1 1 0:5 / /m rw - overlay o rw,lowerdir=/no/l,upperdir=/no/u,workdir=/no/w";
        let mount = mountinfo::parse(line.as_bytes()).unwrap().pop().unwrap();
        let other = Mount { fstype: "ext4".to_owned(), ..mount.clone() };
        let cases = [
            (None, false, "nothing was mounted"),
            (Some(&other), false, "no overlay"),
            (Some(&mount), true, "still mounted"),
            (Some(&mount), false, "upper or work is gone"),
        ];
        for (mount, is_mounted, why) in cases {
            let expected = Remount::NotTried { why: why.to_owned() };
            assert_eq!(remount(mount, is_mounted, None).unwrap(), expected);
        }
    }

    #[test]
    fn a_kernel_without_the_layers_refuses() {
        // ENOENT where overlayfs is there; EPERM and ENODEV are for those who may not or have none.
        let refused = make(&[("lowerdir", "/no/l"), ("upperdir", "/no/u"), ("workdir", "/no/w")]);
        assert!(matches!(refused, Err(Errno::NOENT | Errno::PERM | Errno::NODEV)), "{refused:?}");
    }
}
