//! Runs programs of the host, to their end or to a deadline.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program, with no input and with the environment added to ours.
///
/// # Errors
/// It can't be run, or has not ended by the deadline: then it is killed. A status other than 0 is no error.
pub fn run(argv: &[&str], environment: &[(&str, &str)], deadline: Instant) -> Result<Ended> {
    let what = argv.join(" ");
    let (program, arguments) = argv.split_first().context("no program")?;
    // In memory: a disk may be full, and a pipe would have to be read meanwhile.
    let memory = || memfd_create("output", MemfdFlags::CLOEXEC).map(File::from).context("memfd_create");
    let (mut stdout, mut stderr) = (memory()?, memory()?);
    let sink = |file: &File| file.try_clone().map(|file| Stdio::from(OwnedFd::from(file))).context("dup");
    #[expect(
        clippy::disallowed_methods,
        reason = "it runs on the host that is deployed to, and is no part of the harness"
    )]
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(sink(&stdout)?)
        .stderr(sink(&stderr)?)
        .spawn();
    let mut child = child.with_context(|| format!("run {what}"))?;
    let status = match wait(&mut child, deadline).with_context(|| format!("wait for {what}"))? {
        Some(status) => status,
        None => {
            child.kill().with_context(|| format!("kill {what}"))?;
            child.wait().with_context(|| format!("wait for {what}"))?;
            bail!("{what} has not ended in time, and was killed");
        }
    };
    let text = |file: &mut File| -> Result<String> {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("read its output")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ended { status, stdout: text(&mut stdout)?, stderr: text(&mut stderr)? })
}

/// As [`run`], and it must succeed; its standard output.
///
/// # Errors
/// As [`run`]; another status, with what it said.
pub fn ok(argv: &[&str], deadline: Instant) -> Result<String> {
    let ended = run(argv, &[], deadline)?;
    if !ended.status.success() {
        bail!("{}: {}: {}", argv.join(" "), ended.status, said(&ended));
    }
    Ok(ended.stdout)
}

/// What it said, in one line.
#[must_use]
pub fn said(ended: &Ended) -> String {
    let both = format!("{}\n{}", ended.stderr.trim(), ended.stdout.trim());
    both.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn wait(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id is not 0")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    Ok(if readable(&pidfd, deadline)? { Some(child.wait()?) } else { None })
}

/// Waits until a descriptor has something to read; whether it had by the deadline.
///
/// # Errors
/// Of poll(2).
pub fn readable(fd: &OwnedFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = timespec(left)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
    }
}

fn timespec(duration: Duration) -> Result<Timespec> {
    Ok(Timespec { tv_sec: i64::try_from(duration.as_secs())?, tv_nsec: duration.subsec_nanos().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[test]
    fn what_a_program_says_is_had_and_a_status_is_an_error_of_ok() {
        let argv = ["sh", "-c", "echo out; echo err >&2; exit 3"];
        let ended = run(&argv, &[], soon(10_000)).expect("it ran");
        assert_eq!(
            (ended.status.code(), ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(3), "out\n", "err\n")
        );
        let error = ok(&argv, soon(10_000)).expect_err("3").to_string();
        assert!(error.ends_with("exit status: 3: err; out"), "{error}");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let error = run(&["sh", "-c", "while :; do :; done"], &[], soon(100)).expect_err("it never ends");
        assert!(error.to_string().ends_with("has not ended in time, and was killed"), "{error}");
    }
}
