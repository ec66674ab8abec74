//! Processes whose memory nobody can look at, as the kernel waits for a server with the lock on it: a reader would wait as
//! well, and nothing but its own end stops that.

use std::sync::mpsc::channel;
use std::time::Duration;

use holders::{Query, Report, Verdict};
use rustix::io::Errno;

use super::ending::hanging;
use crate::fuse::{Hanging, Unanswered};
use crate::stage::Stage;
use crate::victim::Result;

/// Its working directory is in the mount.
pub(crate) fn holder(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let stuck = hanging(stage, "stuck", Unanswered::Write)?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    for refused in [false, true] {
        let report = ask(stage, refused)?;
        let blockers = report.blockers();
        assert_eq!(
            blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(),
            [stuck.pid()],
            "{report:#?}"
        );
        let person = report.holders[0].person.as_ref().ok_or("nobody")?;
        assert_eq!(person.command, blockers[0].comm, "a command line is in the memory");
        is_said(&report, &stuck, false);
    }
    let scan = holders::scan::scan(&stage.merged, None, holders::scan::Scope::Pids(&[stuck.pid()]))?;
    assert_eq!((scan.tasks.len(), scan.denied), (1, 1), "{scan:#?}");
    drop(stuck);
    Ok(stage.umount()?)
}

/// The same of one that hangs in execve(2), of which newer kernels show nothing at all.
pub(crate) fn in_exec(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let stuck = hanging(stage, "exec", Unanswered::Flush)?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let report = ask(stage, false)?;
    let is_whole = report.blockers().is_empty();
    // Who waits for such a process asks these of it (`helper/src/unit_end.rs`).
    for name in ["cgroup", "status", "comm"] {
        let file = format!("/proc/{}/{name}", stuck.pid());
        let (answer, answered) = channel();
        std::thread::spawn(move || answer.send(std::fs::read(file)));
        answered.recv_timeout(Duration::from_secs(5)).map_err(|error| format!("{name}: {error}"))??;
    }
    is_said(&report, &stuck, is_whole);
    let verdict = report.verdict();
    assert_eq!(verdict.blocks_umount(), if is_whole { None } else { Some(true) }, "{report:#?}");
    assert!(!verdict.line().contains("nothing"), "{}", verdict.line());
    drop(stuck);
    Ok(stage.umount()?)
}

/// It may have a mapping there: nobody says that nothing blocks.
pub(crate) fn elsewhere(stage: &Stage) -> Result<()> {
    let stuck = hanging(stage, "stuck", Unanswered::Write)?;
    stage.mount()?;
    let report = ask(stage, false)?;
    is_said(&report, &stuck, false);
    let verdict = report.verdict();
    assert_eq!((verdict.blocks_umount(), verdict.of_what_was_seen()), (None, &Verdict::Free), "{report:#?}");
    assert!(verdict.line().contains("which is stuck in the kernel"), "{}", verdict.line());
    drop(stuck);
    Ok(stage.umount()?)
}

/// Within a time that a server which never answers would not let it have.
fn ask(stage: &Stage, refused: bool) -> Result<Report> {
    let query = Query::new(&stage.merged);
    let report = if refused { query.after_ebusy() } else { query }.run()?;
    assert_eq!(report.unseen.cut_short, None, "{report:#?}");
    Ok(report)
}

fn is_said(report: &Report, stuck: &Hanging, is_whole: bool) {
    let said: Vec<_> = report.unseen.stuck.iter().map(|stuck| (stuck.pid, stuck.is_whole)).collect();
    assert_eq!(said, [(stuck.pid(), is_whole)], "{report:#?}");
}
