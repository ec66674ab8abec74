//! Bounds how long the watcher can keep all others from running.
//!
//! It is SCHED_FIFO and the guest has one processor. One scan in some thousands took 974 ms of processor time instead of
//! 0.1 ms: the watcher spun, waiting for a task that did not run meanwhile. (The cause is not known; a scan of a process that
//! is being reaped can do so, `fs/dcache.c:shrink_dcache_parent`.) The share that all others always have, 5 % of each
//! second, ended it. The same share of each 20 ms ends it after 19 ms; on older kernels the share is of 100 ms.
//!
//! Until Linux 6.11 the share is `sched_rt_runtime_us` (Documentation/scheduler/sched-rt-group.rst), since then the fair
//! server's (`kernel/sched/debug.c:sched_fair_server_write`). On a kernel with neither the recorder runs without it.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Result;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const RT_RUNTIME: &str = "/proc/sys/kernel/sched_rt_runtime_us";
const RT_PERIOD: &str = "/proc/sys/kernel/sched_rt_period_us";

/// The share of all others, and of how long, in nanoseconds.
const FAIR: [(&str, &str); 2] = [("runtime", "1000000"), ("period", "20000000")];

/// Gives all others their share every 20 ms, as far as this kernel can.
pub(super) fn bound() {
    let write = |path, value: &str| std::fs::write(path, value).is_ok();
    let before = std::fs::read_to_string(RT_RUNTIME).unwrap_or_default();
    // Linux 6.12 counts a fair server's share wrongly and refuses any other (`kernel/sched/deadline.c:__dl_overflow`), unless
    // nothing is reserved for anybody.
    write(RT_RUNTIME, "-1");
    let _not_there = bound_fair_servers().is_err();
    // Microseconds of real-time tasks; a fair server's share has no need of it. Longer, since the kernel warns the first time
    // that it is used up, and a scan of fifty servers takes more than 20 ms.
    if !(write(RT_RUNTIME, "95000") && write(RT_PERIOD, "100000")) {
        write(RT_RUNTIME, before.trim());
    }
}

fn bound_fair_servers() -> Result<()> {
    // A mount of debugfs that is in nobody's table, and ends with its descriptor.
    let debugfs = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(debugfs.as_fd())?;
    let debugfs = fsmount(debugfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let servers = open(&debugfs, Path::new("sched/fair_server"), OFlags::RDONLY | OFlags::DIRECTORY)?;
    for processor in Dir::read_from(&servers)? {
        let processor = processor?;
        let name = processor.file_name().to_string_lossy();
        for (file, value) in FAIR {
            if name.starts_with("cpu") {
                let file = open(&servers, &Path::new(&*name).join(file), OFlags::WRONLY)?;
                let _refused = std::fs::File::from(file).write_all(value.as_bytes()).is_err();
            }
        }
    }
    Ok(())
}

fn open(directory: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    openat(directory, path, flags | OFlags::CLOEXEC, Mode::empty())
}
