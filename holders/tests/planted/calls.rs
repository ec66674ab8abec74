//! Calls under way: who waits inside open(2) has no descriptor yet, and holds the path all the same.

use std::path::Path;

use holders::Query;
use rustix::io::Errno;

use crate::cases::{make_fifo, wait_in_open};
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

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    let open = |directory: &str, name: &str| {
        wait_in_open(Path::new(directory), name)?;
        stay(std::process::id())
    };
    Some(match words {
        ["fifo", base] => open("/", &format!("{base}/merged/fifo")),
        ["fifo-at", base] => open(base, "merged/./fifo"),
        _ => return None,
    })
}
