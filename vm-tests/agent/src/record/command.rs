//! Runs one command of the plan to its end: captured output, a deadline, no clock in between.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::time::Timespec;
use vm_agent::wire::Exit;

use super::clock::Clock;
use crate::run;

/// How much of each stream is kept, in bytes; the rest is read and dropped, so that nobody blocks on it.
const KEPT: usize = 64 << 10;

/// How long a process may take to go after SIGKILL; longer means that it is stuck in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// What shells answer for a program that cannot be run (POSIX, 2.8.2).
const NOT_FOUND: i32 = 127;

/// How a command went.
#[derive(Debug)]
pub(super) struct Ended {
    /// Before its fork, in nanoseconds since the plan began.
    pub(super) began: u64,
    /// After its wait.
    pub(super) ended: u64,
    /// `None` if it ran into its deadline.
    pub(super) exit: Option<Exit>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `argv` in our own working directory, in a process group of its own, with nothing on stdin. A program that cannot be run ends
/// with 127 and the reason as its stderr.
///
/// # Errors
/// If the process cannot be watched, or does not go within 30 s of SIGKILL.
pub(super) fn run(argv: &[String], timeout: Duration, clock: Clock) -> Result<Ended> {
    let began = clock.now();
    let deadline = Instant::now() + timeout;
    let program = argv.first().context("no program to run")?;
    let mut child = match spawn(argv) {
        Ok(child) => Running(child),
        Err(error) => {
            let exit = Some(Exit::Code(NOT_FOUND));
            let stderr = format!("{error:#}\n");
            return Ok(Ended { began, ended: clock.now(), exit, stdout: String::new(), stderr });
        }
    };
    let group = Pid::from_child(&child.0);
    let ended_fd = pidfd_open(group, PidfdFlags::empty()).context("pidfd_open")?;
    let mut stdout = Output::new(child.0.stdout.take().context("no stdout")?)?;
    let mut stderr = Output::new(child.0.stderr.take().context("no stderr")?)?;

    let mut in_time = wait(&ended_fd, &mut stdout, &mut stderr, deadline)?;
    if !in_time {
        kill_process_group(group, Signal::KILL).context("kill the command's process group")?;
        if !wait(&ended_fd, &mut stdout, &mut stderr, Instant::now() + KILL_DEADLINE)? {
            bail!(
                "{program} (pid {}) is still there {KILL_DEADLINE:?} after SIGKILL",
                group.as_raw_nonzero()
            );
        }
        in_time = false;
    }
    let status = child.0.wait().context("wait for the command")?;
    let ended = clock.now();
    // What it wrote last. Not up to the end of file: a child it left behind may keep the pipe.
    stdout.take_what_is_there()?;
    stderr.take_what_is_there()?;
    let exit = match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => bail!("{program} ended with neither a status nor a signal: {status:?}"),
    };
    Ok(Ended { began, ended, exit: in_time.then_some(exit), stdout: stdout.text(), stderr: stderr.text() })
}

fn spawn(argv: &[String]) -> Result<Child> {
    let mut command = run::prepare(argv)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("run {}", argv.join(" ")))
}

/// Reaps the child if the recorder gives up on it half-way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let ended = self.0.kill().and_then(|()| self.0.wait());
            if let Err(error) = ended {
                eprintln!("end pid {}: {error}", self.0.id());
            }
        }
    }
}

/// Reads output until the process ends; false if the deadline comes first.
fn wait(ended: &OwnedFd, stdout: &mut Output, stderr: &mut Output, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
        fds.extend(stdout.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(stderr.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Ok(0) => return Ok(false),
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("poll the command")?,
        };
        let has_ended = !fds[0].revents().is_empty();
        drop(fds);
        if has_ended {
            return Ok(true);
        }
        stdout.take_what_is_there()?;
        stderr.take_what_is_there()?;
    }
}

/// One stream of the command, non-blocking.
struct Output {
    pipe: Option<Box<dyn Pipe>>,
    kept: Vec<u8>,
}

trait Pipe: Read + AsFd {}

impl<P: Read + AsFd> Pipe for P {}

impl Output {
    fn new(pipe: impl Read + AsFd + 'static) -> Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true).context("make a pipe non-blocking")?;
        Ok(Self { pipe: Some(Box::new(pipe)), kept: Vec::new() })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|pipe| pipe.as_fd())
    }

    fn take_what_is_there(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.kept.extend(&buffer[..length.min(KEPT - self.kept.len())]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read the command's output"),
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Ended {
        let argv = ["sh", "-c", script].map(str::to_owned);
        run(&argv, timeout, Clock::start()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn takes_output_and_status() {
        let ended = sh("pwd; echo no >&2; exit 3", LONG);
        // The agent's own working directory is /.
        let here = format!("{}\n", std::env::current_dir().unwrap().display());
        assert_eq!((ended.exit, &*ended.stdout, &*ended.stderr), (Some(Exit::Code(3)), &*here, "no\n"));
        assert!(ended.ended > ended.began);
        assert_eq!(sh("kill -9 $$", LONG).exit, Some(Exit::Signal(9)));
    }

    #[test]
    fn bounds_what_it_keeps_and_blocks_nobody() {
        let ended = sh("head -c 300000 /dev/zero", LONG);
        assert_eq!((ended.exit, ended.stdout.len()), (Some(Exit::Code(0)), KEPT));
    }

    #[test]
    fn ends_the_whole_group_at_the_deadline() {
        let ended = sh("sleep 1000 & echo $!; wait", Duration::from_millis(300));
        assert_eq!(ended.exit, None);
        let grandchild = Pid::from_raw(ended.stdout.trim().parse().unwrap()).unwrap();
        // Reparented and killed. It dies when it next runs, which on a busy machine is later than now.
        match pidfd_open(grandchild, PidfdFlags::empty()) {
            Err(gone) => assert_eq!(gone, rustix::io::Errno::SRCH),
            Ok(pidfd) => {
                let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
                let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
                assert_eq!(ended, Ok(1), "the grandchild is still there");
            }
        }
    }

    #[test]
    fn does_not_wait_for_a_child_left_behind() {
        let ended = sh("sleep 5 & echo done", LONG);
        assert_eq!((ended.exit, &*ended.stdout), (Some(Exit::Code(0)), "done\n"));
        assert!(ended.ended - ended.began < 4_000_000_000);
    }

    #[test]
    fn says_what_cannot_be_run() {
        let ended = run(&["/no/such".to_owned()], LONG, Clock::start()).unwrap();
        assert_eq!(ended.exit, Some(Exit::Code(NOT_FOUND)));
        assert!(ended.stderr.starts_with("run /no/such: "), "{}", ended.stderr);
    }
}
