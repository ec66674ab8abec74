//! Calls under way: who waits inside open(2) has no descriptor yet, and holds the path all the same.

use std::path::Path;

use holders::report::Effect;
use holders::{Query, Verdict};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::seen;
use crate::stage::Stage;
use crate::victim::{Result, ready, stay, victim};

/// A reader of a FIFO that nobody writes to.
pub(crate) fn fifo(stage: &Stage, how: &str) -> Result<()> {
    stage.mount()?;
    make_fifo(&stage.merged)?;
    let mut child = victim(how, &[&stage.base])?;
    let pid = ready(&mut child)?;
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let blockers = report.blockers();
    assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [pid], "{report:#?}");
    assert!(blockers[0].to_string().ends_with(": openat under way"), "{}", blockers[0]);
    assert_eq!(report.holders[0].references[0].path, stage.merged.join("fifo"));
    child.kill()?;
    child.wait()?;
    Ok(stage.umount()?)
}

/// One that waits since before the mount came over the FIFO.
pub(crate) fn older_fifo(stage: &Stage) -> Result<()> {
    make_fifo(&stage.merged)?;
    let mut child = victim("fifo", &[&stage.base])?;
    ready(&mut child)?;
    stage.mount()?;
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    let held = report.holders.iter().flat_map(|holder| &holder.references);
    assert!(held.into_iter().all(|held| held.effect == Effect::Unclear), "{report:#?}");
    stage.umount()?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn make_fifo(directory: &Path) -> Result<()> {
    Ok(rustix::fs::mknodat(CWD, directory.join("fifo"), FileType::Fifo, Mode::RWXU, 0)?)
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    let open = |directory: &Path, name: &str| -> Result<()> {
        let directory = rustix::fs::open(directory, OFlags::PATH, Mode::empty())?;
        wait_within(
            move |name| rustix::fs::openat(&directory, name, OFlags::RDONLY, Mode::empty()).map(drop),
            name,
        )
    };
    Some(match words {
        ["fifo", base] => open(Path::new("/"), &format!("{base}/merged/fifo")),
        ["fifo-at", base] => open(Path::new(base), "merged/./fifo"),
        _ => return None,
    })
}

/// Has a thread wait in this call.
fn wait_within(
    call: impl FnOnce(&str) -> std::result::Result<(), Errno> + Send + 'static,
    name: &str,
) -> Result<()> {
    let name = name.to_owned();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        sender.send(rustix::thread::gettid()).map_err(|_gone| Errno::PIPE)?;
        call(&name)
    });
    let syscall = format!("/proc/self/task/{}/syscall", receiver.recv()?);
    while !std::fs::read_to_string(&syscall)?.starts_with(&format!("{} ", libc::SYS_openat)) {
        std::thread::yield_now();
    }
    stay(std::process::id())
}
