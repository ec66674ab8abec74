//! Processes in their end: the memory is gone, and what they stand in and have open is not yet.
//!
//! One is stopped there by the kernel itself: closing a file on a FUSE file system waits for the server's answer to
//! FLUSH, which nothing interrupts, and `do_exit` closes files after it has given back the memory and before it leaves
//! the working directory. The others are heavy, so that their memory takes a while.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use holders::report::{Carries, Phase};
use holders::stat::Stat;
use holders::{Query, Report, Verdict};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Signal, kill_process};

use super::seen;
use crate::stage::Stage;
use crate::victim::{Result, raw, ready, stay, victim, wait};

/// Whether a process can be stopped in its end here.
pub(crate) fn has_fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

/// A killed process that hangs in its exit, with its working directory in the mount.
pub(crate) fn hangs(stage: &Stage) -> Result<()> {
    in_its_end(stage, "process", |report, pid| {
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
    let (server, pid) = Server::start(stage, "stat")?;
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
    let (server, pid) = Server::start(stage, what)?;
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

/// A FUSE server whose file the victim has open.
struct Server(Child);

impl Server {
    fn start(stage: &Stage, what: &str) -> Result<(Self, u32)> {
        let mut child = victim("server", &[Path::new(what), &stage.base, &stage.merged])?;
        let pid = ready(&mut child)?;
        Ok((Self(child), pid))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("wait for the server");
    }
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["server", what, base, merged] => serve(what, Path::new(base), Path::new(merged)),
        ["process", merged, file] => end_in(merged, file),
        ["file", merged, file] => end_behind(merged, file),
        ["thread", merged, file] => end_as_a_thread(merged, file),
        ["stat", _, file] => std::fs::metadata(file).map(drop).map_err(Into::into),
        ["heavy", merged, mib, threads] => be_heavy(merged, mib, threads),
        _ => return None,
    })
}

/// The victim's part: into the mount, and to its end.
fn end_in(merged: &str, file: &str) -> Result<()> {
    std::env::set_current_dir(merged)?;
    let _file = File::open(file)?;
    end()
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

fn end() -> Result<()> {
    kill_process(rustix::process::getpid(), Signal::KILL)?;
    Err("it is still here".into())
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

/// Serves one file, starts the victim, says `ready PID` when that waits for an answer to FLUSH, and never gives one.
fn serve(what: &str, base: &Path, merged: &Path) -> Result<()> {
    let file = base.join("fuse");
    File::create(&file)?;
    let mut device =
        File::from(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
    let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", device.as_raw_fd());
    rustix::mount::mount("holders-test", &file, "fuse", MountFlags::empty(), Some(&*CString::new(options)?))?;
    let mut child = victim(what, &[merged, &file])?;
    // Opcodes and layouts of include/uapi/linux/fuse.h.
    let mut request = vec![0; 64 << 10];
    loop {
        let length = device.read(&mut request)?;
        let number =
            |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let (opcode, unique) = (number(4), &request[8..16]);
        assert!(length >= 40, "a request of {length} bytes");
        let mut answer = match opcode {
            FUSE_INIT => init(),
            // Of the server that never answers, whoever asks for what it is.
            FUSE_GETATTR if what == "stat" => break,
            FUSE_GETATTR => {
                let mut attributes = vec![0; 104];
                attributes[16..24].copy_from_slice(&1_u64.to_ne_bytes());
                attributes[76..80].copy_from_slice(&0o100_644_u32.to_ne_bytes());
                attributes[80..84].copy_from_slice(&1_u32.to_ne_bytes());
                attributes
            }
            FUSE_OPEN => vec![0; 16],
            FUSE_FLUSH => break,
            FUSE_INTERRUPT | FUSE_FORGET => continue,
            _ => {
                let mut header = 16_u32.to_ne_bytes().to_vec();
                header.extend((-libc::ENOSYS).to_ne_bytes());
                header.extend(unique);
                device.write_all(&header)?;
                continue;
            }
        };
        let mut reply = u32::try_from(answer.len() + 16)?.to_ne_bytes().to_vec();
        reply.extend(0_u32.to_ne_bytes());
        reply.extend(unique);
        reply.append(&mut answer);
        device.write_all(&reply)?;
    }
    stay(child.id())?;
    // Ends the connection, and by that the wait.
    drop(device);
    child.wait()?;
    Ok(())
}

fn init() -> Vec<u8> {
    let mut init = vec![0; 64];
    init[..4].copy_from_slice(&7_u32.to_ne_bytes());
    init[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    init[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
    init
}

const FUSE_FORGET: u32 = 2;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
const FUSE_FLUSH: u32 = 25;
const FUSE_INIT: u32 = 26;
const FUSE_INTERRUPT: u32 = 36;
