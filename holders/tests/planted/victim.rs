//! Processes of the tests' own, which are this program again.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::Pid;

use crate::{calls, ending, innocent, sharing, sockets};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The first argument by which this program is one of them.
pub(crate) const WORD: &str = "victim";

#[expect(clippy::disallowed_methods, reason = "the test's own child; it ends with its stdin, or is killed")]
pub(crate) fn victim(what: &str, args: &[&Path]) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args([WORD, what])
        .args(args)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

/// What it says by [`stay`].
pub(crate) fn ready(child: &mut Child) -> Result<u32> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
    Ok(line.trim().strip_prefix("ready ").ok_or_else(|| format!("it said {line:?}"))?.parse()?)
}

pub(crate) fn raw(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid)?).ok_or("no process id")?)
}

/// Waits for its end.
pub(crate) fn wait(pidfd: &OwnedFd) -> Result<()> {
    let mut files = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let deadline = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
    match rustix::event::poll(&mut files, Some(&deadline))? {
        0 => Err("it does not end".into()),
        _ => Ok(()),
    }
}

/// Says that everything is there, PID being the process that it is about, and waits for the end of stdin.
pub(crate) fn stay(pid: u32) -> Result<()> {
    println!("ready {pid}");
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// This program as one of the processes.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = ending::be(&words).or_else(|| sharing::be(&words)).or_else(|| sockets::be(&words));
    let done = done.or_else(|| calls::be(&words)).or_else(|| innocent::be(&words));
    match done.unwrap_or_else(|| Err("no such process".into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{WORD} {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}
