//! A program that is to be started: its arguments, streams and descriptors.
//!
//! A short command line is written as in a shell, with `xshell::cmd!`, and becomes a [`Program`] by `into()`: so it gets a
//! group, a deadline and an owner, which xshell's own ways to run a command have not. What computes its arguments
//! ([`crate::machine::config`]) or has options in a loop says them one by one.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::child::Child;
use super::error::{Argv, Error};
use super::group::{kill_all, open_pidfd, watch};

/// Where a stream of a program goes.
#[derive(Debug, Default)]
pub enum Sink {
    /// Read by us: [`run`] collects it, or [`Child::take_stdout`] hands it out.
    #[default]
    Piped,
    /// Nowhere.
    Null,
    /// Where ours goes.
    Inherit,
    /// Into this file, from its current offset.
    File(File),
}

impl Sink {
    fn into_stdio(self) -> Stdio {
        match self {
            Self::Piped => Stdio::piped(),
            Self::Null => Stdio::null(),
            Self::Inherit => Stdio::inherit(),
            Self::File(file) => Stdio::from(file),
        }
    }
}

/// A program to start: what it is called with, what it inherits, where its streams go.
#[derive(Debug)]
pub struct Program {
    /// Without streams and descriptors.
    command: Command,
    stdin: Option<File>,
    stdout: Sink,
    stderr: Sink,
    fds: Vec<(OwnedFd, RawFd)>,
}

impl Program {
    /// A program found on `PATH` (or by a path), with no arguments, no input and piped output.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
        Self::from(Command::new(name))
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets one variable of the environment, which is ours otherwise.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes one variable of the environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets standard input; `/dev/null` without it.
    #[must_use]
    pub fn stdin(mut self, file: File) -> Self {
        self.stdin = Some(file);
        self
    }

    /// Sets where standard output goes.
    #[must_use]
    pub fn stdout(mut self, sink: Sink) -> Self {
        self.stdout = sink;
        self
    }

    /// Sets where standard error goes. Errors carry its tail only if it is [`Sink::Piped`].
    #[must_use]
    pub fn stderr(mut self, sink: Sink) -> Self {
        self.stderr = sink;
        self
    }

    /// Hands `fd` to the program under the number `at` (3 or more).
    #[must_use]
    pub fn pass_fd(mut self, fd: OwnedFd, at: RawFd) -> Self {
        assert!(at > 2, "descriptor {at} is a standard stream");
        assert!(self.fds.iter().all(|(_, taken)| *taken != at), "descriptor {at} is passed twice");
        self.fds.push((fd, at));
        self
    }

    /// Its command line, for messages.
    pub(super) fn shown(&self) -> Argv {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        Argv(words.map(|word| word.to_string_lossy().into_owned()).collect())
    }

    /// Starts the program.
    ///
    /// Call it on a thread that outlives the program: the parent-death signal follows the thread
    /// (`PR_SET_PDEATHSIG` in prctl(2)). A current-thread runtime does.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such program, [`Error::Spawn`] for all else.
    pub fn spawn(self) -> Result<Child, Error> {
        let argv = self.shown();
        let fail = |source| Error::Spawn { argv: argv.clone(), source };

        let mut command = self.command;
        command.process_group(0).stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(self.stdout.into_stdio()).stderr(self.stderr.into_stdio());

        let passed = Passed::prepare(&self.fds).map_err(fail)?;
        let moves = passed.moves.iter().map(|(fd, at)| (fd.as_raw_fd(), *at)).collect::<Vec<_>>();
        let parent = Some(rustix::process::getpid());
        let in_child = move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            if rustix::process::getppid() != parent {
                // The parent died between fork and prctl: there is nobody left to send the signal.
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            for &(from, at) in &moves {
                dup_onto(from, at)?;
            }
            Ok(())
        };
        #[expect(
            unsafe_code,
            reason = "the parent-death signal and descriptor numbers are set between fork and exec"
        )]
        // SAFETY: the closure makes system calls only (prctl, getppid, dup2); it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(in_child);
        }

        let mut inner = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if command.get_current_dir().is_none_or(Path::is_dir) => {
                Error::NotFound { program: argv.0[0].clone() }
            }
            _ => fail(source),
        })?;
        drop(passed);

        let pid = Pid::from_raw(i32::try_from(inner.id()).expect("a process id fits a pid_t"));
        let pidfd = open_pidfd(pid).and_then(watch);
        match pidfd {
            Ok(pidfd) => Ok(Child::new(inner, pid, pidfd, argv)),
            Err(source) => {
                // Nobody owns it yet: end it here.
                kill_all(pid, Signal::SIGKILL);
                inner.wait().map_err(fail)?;
                Err(fail(source))
            }
        }
    }
}

/// Its program, arguments, environment and working directory; where its streams go is said here.
impl From<Command> for Program {
    fn from(command: Command) -> Self {
        Self { command, stdin: None, stdout: Sink::Piped, stderr: Sink::Piped, fds: Vec::new() }
    }
}

/// As of a [`Command`]: what is to be written to its input, and whether its status matters, is not taken over.
impl From<xshell::Cmd<'_>> for Program {
    fn from(cmd: xshell::Cmd<'_>) -> Self {
        Self::from(Command::from(cmd))
    }
}

/// Descriptors on their way to a child, moved out of the way of the numbers they are to get.
struct Passed {
    moves: Vec<(OwnedFd, RawFd)>,
    /// Keeps the wanted numbers taken, so that the pipe on which std reports a failed exec cannot sit on one.
    _reserved: Vec<OwnedFd>,
}

impl Passed {
    fn prepare(fds: &[(OwnedFd, RawFd)]) -> io::Result<Self> {
        let above = fds.iter().map(|(_, at)| at + 1).max().unwrap_or(0);
        let mut moves = Vec::new();
        let mut reserved = Vec::new();
        for (fd, at) in fds {
            moves.push((rustix::io::fcntl_dupfd_cloexec(fd, above)?, *at));
            // Gets `at` itself if it is free; else a higher number, which does no harm.
            reserved.push(rustix::io::fcntl_dupfd_cloexec(fd, *at)?);
        }
        Ok(Self { moves, _reserved: reserved })
    }
}

/// dup2(2) without its target being owned by anybody, for a child that is about to exec.
fn dup_onto(from: RawFd, at: RawFd) -> io::Result<()> {
    use std::os::fd::{BorrowedFd, FromRawFd as _};
    #[expect(unsafe_code, reason = "the new descriptor belongs to the program that is about to be executed")]
    // SAFETY: `from` is open, since the parent holds it over the spawn; `at` is free or reserved for this, and not closed here.
    let (from, mut at) =
        unsafe { (BorrowedFd::borrow_raw(from), ManuallyDrop::new(OwnedFd::from_raw_fd(at))) };
    Ok(rustix::io::dup2(from, &mut at)?)
}
