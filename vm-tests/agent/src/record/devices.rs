//! Whether a block device is free, and who keeps it if it is not.
//!
//! With O_EXCL and without O_CREAT, open(2) of a block device fails with EBUSY while the system uses it: it is mounted
//! somewhere, swapped on, or another device is on it, or somebody else has opened it so. A mount namespace that has a copy
//! of the mount is the usual one, and no mount table that one would look at shows that.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use holders::mountinfo::Mount;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, major, makedev, minor, open, statx};
use rustix::io::Errno;

use super::end_state::mounted_in;
use super::processes;

/// What keeps a device, in words; `None` if it is free.
///
/// # Errors
/// If `/proc` can't be listed.
pub(super) fn kept(device: &Path) -> Result<Option<Vec<String>>> {
    match open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
        Ok(_free) => Ok(None),
        Err(Errno::BUSY) => keepers(device).map(Some),
        Err(errno) => Ok(Some(vec![format!("it can't be opened: {errno}")])),
    }
}

fn keepers(device: &Path) -> Result<Vec<String>> {
    let rdev = fs::metadata(device).with_context(|| format!("stat {}", device.display()))?.st_rdev();
    let numbers = format!("{}:{}", major(rdev), minor(rdev));
    let is_on_it = |mount: &Mount| (mount.device.major, mount.device.minor) == (major(rdev), minor(rdev));
    let mut found = Vec::new();
    for copy in mounted_in(is_on_it).context("read the mount tables")? {
        let who = if copy.unit.is_empty() { &copy.comm } else { &copy.unit };
        found.extend(copy.mount_points.iter().map(|path| format!("mounted at {path} for {who}")));
    }
    let is_mounted = !found.is_empty();
    let above = fs::read_dir(format!("/sys/dev/block/{numbers}/holders"));
    found.extend(
        above
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| format!("{} is on it", Path::new("/dev").join(entry.file_name()).display())),
    );
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().skip(1).any(|line| line.split_whitespace().next().map(Path::new) == Some(device)) {
        found.push("swapped on".to_owned());
    }
    found.extend(open_by(rdev, is_mounted)?);
    if found.is_empty() {
        found.push("/proc and /sys do not show by whom".to_owned());
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Processes that have the device open, or a file of a file system on it that is mounted nowhere any more.
fn open_by(rdev: u64, is_mounted: bool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for pid in processes::pids()? {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let links = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let links = links.map(|fd| fd.path()).chain(["cwd", "root", "exe"].map(|name| process.join(name)));
        for link in links {
            // What a server would have to be asked for is not asked for: it may never answer (statx(2)).
            let Ok(file) = statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS) else {
                continue;
            };
            let is_it = makedev(file.stx_rdev_major, file.stx_rdev_minor) == rdev;
            let is_on_it = makedev(file.stx_dev_major, file.stx_dev_minor) == rdev;
            if is_it || (is_on_it && !is_mounted) {
                let what = if is_it { "open in" } else { "unmounted, and a file of it open in" };
                found.push(format!("{what} {}", named(pid)));
            }
        }
    }
    Ok(found)
}

/// A process by its comm and its unit.
fn named(pid: u32) -> String {
    let comm = processes::comm(pid).unwrap_or_default();
    match processes::unit(pid) {
        Some(unit) => format!("{comm} of {unit}"),
        None => comm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_that_one_can_open_is_not_free() {
        let words = kept(Path::new("/dev/no-such-device")).unwrap().expect("it is not there");
        assert!(words[0].starts_with("it can't be opened: "), "{words:?}");
    }

    #[test]
    fn who_has_a_device_open_is_found() {
        // Of a character device, which any test may open: the same numbers, read in the same way.
        let null = fs::File::open("/dev/null").unwrap();
        let found = open_by(null.metadata().unwrap().st_rdev(), true).unwrap();
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(found.iter().any(|words| words.contains(own.trim_end())), "{own} is not in {found:?}");
    }
}
