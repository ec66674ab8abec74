//! The kernel's log from the start of the plan: messages of level warning or worse.
//!
//! `/dev/kmsg` gives one record per read (Documentation/ABI/testing/dev-kmsg). What user space writes to it, systemd
//! above all, has another facility than the kernel's own and is left out.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context, Result, bail};
use nix::libc;

/// KERN_WARNING of `linux/kern_levels.h`; smaller is worse.
const WARNING: u32 = 4;
/// The longest record (`kernel/printk/internal.h:PRINTK_MESSAGE_MAX`) and some more.
const RECORD: usize = 8192;

/// The log, as far as it was read.
#[derive(Debug)]
pub(super) struct KernelLog(File);

impl KernelLog {
    /// From now on.
    ///
    /// # Errors
    /// No `/dev/kmsg`, or no CAP_SYSLOG.
    pub(super) fn open() -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0)).context("go to the end of /dev/kmsg")?;
        Ok(Self(file))
    }

    /// The warnings since the last time; never waits.
    ///
    /// # Errors
    /// That records were overwritten before they were read, or what read(2) says.
    pub(super) fn read(&mut self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut record = [0; RECORD];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(warnings),
                Ok(length) => warnings.extend(warning(&record[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(warnings),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    bail!("records of /dev/kmsg were overwritten before they were read")
                }
                Err(error) => return Err(error).context("read /dev/kmsg"),
            }
        }
    }
}

/// The text of a record that is the kernel's own and of level warning or worse:
///
/// ```text
/// 4,1234,5678901,-;overlayfs: upperdir is in-use as upperdir/workdir of another mount, …
///  SUBSYSTEM=…
/// ```
///
/// The number before the first comma is the level in its lowest three bits and the facility above them.
fn warning(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    (priority <= WARNING).then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_kernels_own_warnings() {
        let cases: [(&[u8], Option<&str>); 7] = [
            (b"4,339,5140900,-;overlayfs: in-use\n", Some("overlayfs: in-use")),
            (b"2,339,5140900,-,caller=T1;BUG: one; two\n SUBSYSTEM=x\n", Some("BUG: one; two")),
            (b"6,339,5140900,-;EXT4-fs: mounted\n", None),
            // systemd's: facility 3, level 3.
            (b"27,339,5140900,-;systemd[1]: failed\n", None),
            (b"4,339,5140900,-;\n", Some("")),
            (b"x;y\n", None),
            (b"", None),
        ];
        for (record, expected) in cases {
            assert_eq!(warning(record).as_deref(), expected, "{}", String::from_utf8_lossy(record));
        }
    }
}
