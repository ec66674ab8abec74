//! Processes by what `/proc` says of them: which there are, and of each its name and its unit.

use std::fs;

use anyhow::{Context, Result};
use holders::cgroup;

use super::unit_cgroup;

/// The ids of all processes that there are at this moment, in order.
///
/// # Errors
/// If `/proc` can't be listed.
pub(super) fn pids() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("list /proc")?.flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The name of a process, lossily as UTF-8, which it need not be; `None` for one that is gone.
pub(super) fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&comm).trim_end_matches('\n').to_owned())
}

/// The systemd unit of a process; `None` if it has none or is gone.
pub(super) fn unit(pid: u32) -> Option<String> {
    let cgroup = unit_cgroup::of(pid)?;
    cgroup::unit_of(&cgroup).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_one_of_them() {
        let pids = pids().unwrap();
        assert!(pids.is_sorted());
        assert!(pids.binary_search(&std::process::id()).is_ok());
    }

    #[test]
    fn a_name_need_not_be_text() {
        let named = std::thread::spawn(|| {
            rustix::thread::set_name(c"gar\xe7on").unwrap();
            comm(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned())
        });
        assert_eq!(named.join().unwrap().as_deref(), Some("gar\u{fffd}on"));
        assert_eq!((comm(0), unit(0)), (None, None), "nobody has this number");
    }
}
