//! Processes in their end: the memory is gone, and what they stand in and have open is not yet.
//!
//! One is stopped there by the kernel itself: closing a file on a FUSE file system waits for the server's answer to
//! FLUSH, which nothing interrupts, and `do_exit` closes files after it has given back the memory and before it leaves
//! the working directory. The others are heavy, so that their memory takes a while.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use holders::report::{Carries, Phase};
use holders::stat::Stat;
use holders::{Query, Report, Verdict};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use super::seen;
use crate::fuse::{self, Hanging, Unanswered, end};
use crate::stage::Stage;
use crate::victim::{Result, raw, ready, stay, victim, wait};

/// A killed process that hangs in its exit, with its working directory in the mount.
pub(crate) fn hangs(stage: &Stage) -> Result<()> {
    in_its_end(stage, "ending", |report, pid| {
        let blockers = report.blockers();
        assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [pid], "{report:#?}");
        assert_eq!(blockers[0].phase, Phase::Ending, "{report:#?}");
        assert!(blockers[0].to_string().contains("), which is ending: working directory"), "{}", blockers[0]);
        assert!(blockers[0].pidfd()?.is_some());
        Ok(())
    })
}

/// The same in a thread whose process's first one has ended already.
pub(crate) fn hangs_as_a_thread(stage: &Stage) -> Result<()> {
    in_its_end(stage, "thread", |report, pid| {
        let blockers = report.blockers();
        assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [pid], "{report:#?}");
        assert_eq!(blockers[0].phase, Phase::Ending, "{report:#?}");
        Ok(())
    })
}

/// The same with a file open in the mount, which is behind the one that hangs: no link shows it any more.
pub(crate) fn hangs_with_a_file(stage: &Stage) -> Result<()> {
    in_its_end(stage, "file", |report, pid| {
        let Verdict::NotVisible { suspects } = seen(report) else { panic!("{report:#?}") };
        let is_it = |carries: Carries, of: u32| carries == Carries::Rest && of == pid;
        assert!(suspects.iter().any(|suspect| is_it(suspect.carries, suspect.pid)), "{report:#?}");
        Ok(())
    })
}

/// A process that waits in stat(2) for a FUSE server that does not answer.
pub(crate) fn waits_for_a_server(stage: &Stage) -> Result<()> {
    let server = hanging(stage, "stat", Unanswered::Getattr)?;
    let pid = server.pid();
    let at = stage.base.join("fuse");
    let umount = || rustix::mount::unmount(&at, rustix::mount::UnmountFlags::NOFOLLOW);
    assert_eq!(umount(), Err(Errno::BUSY));
    let report = Query::new(&at).run()?;
    let blockers = report.blockers();
    // The server has its own end of the connection open, which is no reference to the mount.
    assert_eq!(blockers.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [pid], "{report:#?}");
    assert!(blockers[0].to_string().ends_with(": statx under way"), "{}", blockers[0]);
    drop(server);
    Ok(umount()?)
}

fn in_its_end(stage: &Stage, what: &str, is_right: impl Fn(&Report, u32) -> Result<()>) -> Result<()> {
    stage.mount()?;
    let server = hanging(stage, what, Unanswered::Flush)?;
    let pid = server.pid();
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let report = Query::new(&stage.merged).after_ebusy().run()?;
    is_right(&report, pid)?;
    let ended = rustix::process::pidfd_open(raw(pid)?, rustix::process::PidfdFlags::empty())?;
    drop(server);
    wait(&ended)?;
    Ok(stage.umount()?)
}

/// A process with much memory is found for as long as it makes the unmount fail.
pub(crate) fn heavy(stage: &Stage, threads: usize) -> Result<()> {
    const MIB: usize = 300;
    for round in 0..3 {
        stage.mount()?;
        let mut child =
            victim("heavy", &[&stage.merged, Path::new(&MIB.to_string()), Path::new(&threads.to_string())])?;
        let pid = ready(&mut child)?;
        kill_process(raw(pid)?, Signal::TERM)?;
        let begun = Instant::now();
        let mut scans = 0;
        while stage.umount() == Err(Errno::BUSY) {
            let report = Query::new(&stage.merged).after_ebusy().run()?;
            scans += 1;
            let is_named = report.blockers().iter().any(|blocker| blocker.pid == pid)
                || report.suspects.iter().any(|suspect| suspect.pid == pid);
            if !is_named {
                let again = stage.umount();
                assert_eq!(again, Ok(()), "round {round}, scan {scans}: {report:#?}");
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
        }
        child.wait()?;
        // Where it was gone at once nothing was tried.
        println!("round {round} with {threads} threads: {scans} scans in {:?}", begun.elapsed());
    }
    Ok(())
}

/// Starts a process by that name, which waits for this answer.
pub(crate) fn hanging(stage: &Stage, what: &str, unanswered: Unanswered) -> Result<Hanging> {
    let file = stage.base.join("fuse");
    Hanging::start(&file, unanswered, || Ok(victim(what, &[&stage.merged, &file])?))
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["file", merged, file] => end_behind(merged, file),
        ["thread", merged, file] => end_as_a_thread(merged, file),
        ["stat", _, file] => std::fs::metadata(file).map(drop).map_err(Into::into),
        ["heavy", merged, mib, threads] => be_heavy(merged, mib, threads),
        [what, merged, file] => return fuse::be(what, Path::new(merged), Path::new(file)),
        _ => return None,
    })
}

fn end_behind(merged: &str, file: &str) -> Result<()> {
    // Closed in the order of their numbers.
    let _first = File::open(file)?;
    let _second = File::create(Path::new(merged).join("file"))?;
    end()
}

#[expect(unsafe_code, reason = "to end one thread only")]
fn end_as_a_thread(merged: &str, file: &str) -> Result<()> {
    std::env::set_current_dir(merged)?;
    let _file = File::open(file)?;
    std::thread::spawn(|| {
        loop {
            let stat = std::fs::read(format!("/proc/self/task/{}/stat", std::process::id()));
            if stat.is_ok_and(|line| Stat::parse(&line).is_some_and(Stat::has_ended)) {
                return end().map_err(|error| error.to_string());
            }
            std::thread::yield_now();
        }
    });
    // SAFETY: exit(2) ends the calling thread; nothing that another one uses lies on its stack.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit(2) returned")
}

/// Stands in the mount with so much memory, and waits to be killed.
fn be_heavy(merged: &str, mib: &str, threads: &str) -> Result<()> {
    std::env::set_current_dir(merged)?;
    let memory = vec![1_u8; mib.parse::<usize>()? << 20];
    for _ in 0..threads.parse::<usize>()? {
        std::thread::spawn(std::thread::park);
    }
    stay(std::process::id())?;
    drop(std::hint::black_box(memory));
    Ok(())
}
