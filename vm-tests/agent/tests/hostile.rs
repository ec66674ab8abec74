//! Each mode of `vm-hostile` is what it says, on the machine's own kernel. Whatever it starts is ended.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holders::stat::Stat;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A `vm-hostile` that is set up, in a process group and a directory of its own. SIGKILL for all of it on drop.
struct Hostile {
    group: Pid,
    place: tempfile::TempDir,
}

impl Hostile {
    #[expect(
        clippy::disallowed_methods,
        clippy::zombie_processes,
        reason = "killed with its group, and reaped, on drop"
    )]
    fn start(mode: &str) -> Self {
        // What its processes leave behind comes to us, to be reaped, and not to a PID 1 that may not.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let place = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vm-hostile"))
            .args(mode.split(' '))
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(child.id().cast_signed());
        let hostile = Self { group, place };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready: "), "{mode}: {line:?}");
        assert!(hostile.path("hostile.ready").exists());
        hostile
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().canonicalize().unwrap().join(name)
    }

    /// Its processes that have not ended.
    fn processes(&self) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| {
            let Ok(line) = fs::read(path.join("stat")) else { return false };
            let stat = Stat::parse(&line).unwrap();
            !stat.has_ended() && stat.group() == Some(self.group.as_raw().unsigned_abs())
        };
        fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(is_ours).collect()
    }

    /// All of them, that there are so many, and that SIGTERM is nothing to them.
    fn stubborn(&self, count: usize) -> Vec<PathBuf> {
        let processes = self.processes();
        assert_eq!(processes.len(), count);
        for process in &processes {
            let ignored = u64::from_str_radix(&field(process, "SigIgn:"), 16).unwrap();
            assert_ne!(ignored & 1 << (libc::SIGTERM - 1), 0, "{}", process.display());
        }
        processes
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // The kernel does this under a lock that a fork takes as well: nobody forks out of it (kernel/fork.c:
        // copy_process).
        match killpg(self.group, Signal::SIGKILL) {
            Ok(()) | Err(_) => {}
        }
        let all = Pid::from_raw(-self.group.as_raw());
        while let Ok(_) | Err(Errno::EINTR) = waitpid(all, None) {}
    }
}

fn field(process: &Path, name: &str) -> String {
    let status = fs::read_to_string(process.join("status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

fn cwd(process: &Path) -> PathBuf {
    fs::read_link(process.join("cwd")).unwrap()
}

#[test]
fn heirs() {
    let hostile = Hostile::start("heirs 3");
    // Each one that ends has left an heir; so they go on, and SIGTERM changes nothing.
    let all = Pid::from_raw(-hostile.group.as_raw());
    for _ in 0..2 {
        for _ in 0..50 {
            assert!(matches!(waitpid(all, None), Ok(WaitStatus::Exited(_, 0))));
        }
        killpg(hostile.group, Signal::SIGTERM).unwrap();
    }
}

#[test]
fn holders() {
    let hostile = Hostile::start("holders 7");
    let place = hostile.path("");
    assert!(hostile.stubborn(7).iter().all(|process| cwd(process) == place));
}

#[test]
fn long_cwd() {
    let hostile = Hostile::start("long-cwd");
    let error = fs::read_link(hostile.stubborn(1)[0].join("cwd")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn in_flight() {
    let hostile = Hostile::start("in-flight");
    let processes = hostile.stubborn(1);
    assert_eq!(cwd(&processes[0]), Path::new("/"));
    for entry in fs::read_dir(processes[0].join("fd")).unwrap() {
        let open = fs::read_link(entry.unwrap().path()).unwrap();
        assert!(!open.starts_with(hostile.path("")), "{}", open.display());
    }
    // A lease for writing is granted only if nobody else has the file open (fcntl(2)).
    let lease = || {
        let file = File::options().write(true).open(hostile.path("in-flight")).unwrap();
        #[expect(unsafe_code, reason = "nix has no leases")]
        // SAFETY: fcntl(2) with a number.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
        Errno::result(result)
    };
    assert_eq!(lease(), Err(Errno::EAGAIN));
    killpg(hostile.group, Signal::SIGKILL).unwrap();
    waitpid(hostile.group, None).unwrap();
    assert_eq!(lease(), Ok(0));
}

#[test]
fn shared_mm() {
    let hostile = Hostile::start("shared-mm 3 500");
    let file = hostile.path("mapped");
    let maps: Vec<_> = hostile
        .stubborn(3)
        .iter()
        .map(|process| {
            assert_eq!(cwd(process), Path::new("/"));
            fs::read_to_string(process.join("maps")).unwrap()
        })
        .collect();
    assert!(maps.iter().all(|other| *other == maps[0]), "they share it");
    assert!(maps[0].lines().count() > 500);
    assert!(maps[0].lines().any(|line| line.ends_with(file.to_str().unwrap())));
}

#[test]
fn stopped() {
    let hostile = Hostile::start("stopped");
    let processes = hostile.stubborn(2);
    let child = processes.iter().find(|process| cwd(process) == hostile.path("")).unwrap();
    assert!(field(child, "State:").starts_with('T'), "{}", field(child, "State:"));
    killpg(hostile.group, Signal::SIGCONT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !field(child, "State:").starts_with('T') {
        assert!(Instant::now() < deadline, "{}", field(child, "State:"));
        std::thread::yield_now();
    }
}

#[test]
fn traced() {
    let hostile = Hostile::start("traced");
    let processes = hostile.stubborn(2);
    let child = processes.iter().find(|process| cwd(process) == hostile.path("")).unwrap();
    assert!(field(child, "State:").starts_with('t'), "{}", field(child, "State:"));
    assert_eq!(field(child, "TracerPid:"), hostile.group.to_string());
}

#[test]
fn slow_save() {
    let hostile = Hostile::start("slow-save 1");
    assert_eq!(waitpid(hostile.group, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
    let began = Instant::now();
    killpg(hostile.group, Signal::SIGTERM).unwrap();
    assert_eq!(waitpid(hostile.group, None), Ok(WaitStatus::Exited(hostile.group, 0)));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(fs::metadata(hostile.path("slow-save.dat")).unwrap().len() > 100);
}
