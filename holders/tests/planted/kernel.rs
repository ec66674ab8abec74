//! References that no process has, and those that only the kernel has seen.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use holders::report::{Carries, KernelKind};
use holders::{Query, Verdict};
use rustix::io::Errno;

use super::seen;
use crate::stage::Stage;
use crate::victim::{Result, ready, stay, victim};

/// Where probes are told to the kernel; `None` without tracefs.
pub(crate) fn uprobe_events() -> Option<PathBuf> {
    Some(PathBuf::from("/sys/kernel/tracing/uprobe_events")).filter(|path| path.exists())
}

/// A probe on a program in the mount.
pub(crate) fn uprobe(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let program = stage.merged.join("program");
    fs::copy("/proc/self/exe", &program)?;
    let name = format!("holders/test{}", std::process::id());
    let probe = Probe::on(&program, &name)?;
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let Verdict::HeldByKernel { holders } = seen(&report) else { panic!("{report:#?}") };
    assert!(matches!(&holders[..], [held] if held.kind == KernelKind::Uprobe(name.clone())), "{report:#?}");
    let advice = report.verdict().of_what_was_seen().advice().concat();
    assert!(advice.contains(&format!("echo '-:{name}' >> ")), "{advice}");
    drop(probe);
    Ok(stage.umount()?)
}

struct Probe(String);

impl Probe {
    fn on(path: &Path, name: &str) -> Result<Self> {
        Self::write(&format!("p:{name} {}:0x1000\n", path.display()))?;
        Ok(Self(format!("-:{name}\n")))
    }

    fn write(line: &str) -> std::io::Result<()> {
        let path = uprobe_events().ok_or(std::io::ErrorKind::NotFound)?;
        File::options().append(true).open(path)?.write_all(line.as_bytes())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        Self::write(&self.0).expect("remove the probe");
    }
}

/// A watcher that has not read its events, each of which has an open path.
pub(crate) fn fanotify(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let mut child = victim("fanotify", &[&stage.merged])?;
    let pid = ready(&mut child)?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let report = Query::new(&stage.merged).after_ebusy().run()?;
    let Verdict::NotVisible { suspects } = seen(&report) else { panic!("{report:#?}") };
    let is_it = |pid_of: u32, carries| pid_of == pid && carries == Carries::Events;
    assert!(suspects.iter().any(|suspect| is_it(suspect.pid, suspect.carries)), "{report:#?}");
    drop(child.stdin.take());
    child.wait()?;
    Ok(stage.umount()?)
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["fanotify", merged] => watch_and_not_read(Path::new(merged)),
        _ => return None,
    })
}

#[expect(unsafe_code, reason = "fanotify(7) has no wrapper")]
fn watch_and_not_read(merged: &Path) -> Result<()> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
    // SAFETY: two integers.
    let group =
        unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC, libc::O_RDONLY as u32) };
    if group < 0 {
        return Err(format!("fanotify_init: {}", std::io::Error::last_os_error()).into());
    }
    // SAFETY: the call succeeded, so it answered with a descriptor that is new and nobody else's.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    let path = std::ffi::CString::new(merged.to_str().ok_or("no UTF-8")?)?;
    let (flags, mask) = (libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT, libc::FAN_CLOSE_WRITE);
    // SAFETY: a path that ends; the rest is integers.
    let done = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    if done < 0 {
        return Err(format!("fanotify_mark: {}", std::io::Error::last_os_error()).into());
    }
    drop(File::create(merged.join("file"))?);
    stay(std::process::id())
}
