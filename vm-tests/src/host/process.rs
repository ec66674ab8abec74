//! The one place of the harness that starts programs, and the owner of every one it started.
//!
//! Each program runs in a process group of its own, dies with the thread that spawned it, and is owned by a
//! [`Child`]: whoever drops it ends the whole group. The leader stays a zombie until its group is empty, so the
//! number that signals go to cannot have been given to somebody else meanwhile.
//!
//! A program that leaves its group (`setsid`) is out of reach of this module; none that we start does.
//! What programs there are, and which package has them, is [`crate::host::tools`]' business.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

/// How long a program may take to answer SIGTERM before SIGKILL follows.
///
/// mmdebstrap unmounts and deletes a tree of 250 MB in it; under a loaded disk that is seconds.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long processes may take to vanish after SIGKILL. Longer means that the kernel cannot let go of them.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// How long a pipe may stay open after the last process of the group is gone.
const DRAIN: Duration = Duration::from_secs(1);

/// How much of a program's stderr an error carries, in bytes.
const TAIL_BYTES: usize = 4096;

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
    argv: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    stdin: Option<File>,
    stdout: Sink,
    stderr: Sink,
    fds: Vec<(OwnedFd, RawFd)>,
}

impl Program {
    /// A program found on `PATH` (or by a path), with no arguments, no input and piped output.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self {
            argv: vec![name.as_ref().to_owned()],
            env: Vec::new(),
            cwd: None,
            stdin: None,
            stdout: Sink::Piped,
            stderr: Sink::Piped,
            fds: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one variable of the environment, which is ours otherwise.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes one variable of the environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
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

    /// Starts the program.
    ///
    /// Call it on a thread that outlives the program: the parent-death signal follows the thread
    /// (`PR_SET_PDEATHSIG` in prctl(2)). A current-thread runtime does.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such program, [`Error::Spawn`] for all else.
    pub fn spawn(self) -> Result<Child, Error> {
        let argv = Argv(self.argv.iter().map(|arg| arg.to_string_lossy().into_owned()).collect());
        let fail = |source| Error::Spawn { argv: argv.clone(), source };

        #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
        let mut command = std::process::Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).process_group(0);
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(self.stdout.into_stdio()).stderr(self.stderr.into_stdio());
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }

        let passed = Passed::prepare(&self.fds).map_err(fail)?;
        let moves = passed.moves.iter().map(|(fd, at)| (fd.as_raw_fd(), *at)).collect::<Vec<_>>();
        let parent = nix::unistd::getpid();
        let in_child = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
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
            io::ErrorKind::NotFound if self.cwd.as_deref().is_none_or(Path::is_dir) => {
                Error::NotFound { program: argv.0[0].clone() }
            }
            _ => fail(source),
        })?;
        drop(passed);

        let pid = Pid::from_raw(i32::try_from(inner.id()).expect("a process id fits a pid_t"));
        let pidfd = open_pidfd(pid).and_then(watch);
        match pidfd {
            Ok(pidfd) => Ok(Child { inner, pid, pidfd, argv, reaped: None }),
            Err(source) => {
                // Nobody owns it yet: end it here.
                kill_all(pid, Signal::SIGKILL);
                inner.wait().map_err(fail)?;
                Err(fail(source))
            }
        }
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
    use std::os::fd::{BorrowedFd, IntoRawFd as _};
    #[expect(unsafe_code, reason = "the new descriptor belongs to the program that is about to be executed")]
    // SAFETY: `from` is open, since the parent holds it over the spawn; `at` is free or reserved for this.
    let new = unsafe { nix::unistd::dup2_raw(BorrowedFd::borrow_raw(from), at) }?;
    let _kept_open_over_exec = new.into_raw_fd();
    Ok(())
}

fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// A pidfd becomes readable when its process ends; see pidfd_open(2).
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "tokio has no safe way to watch a descriptor that it does not know the kind of"
    )]
    // SAFETY: an OwnedFd is one open descriptor for as long as it lives, and nothing takes it out of the AsyncFd.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

/// Signals a group. A group that is gone already is what the caller wants.
fn kill_all(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        // Somebody changed identity (sudo): the bounded wait that follows says who is left.
        Err(errno) => eprintln!("warning: kill {signal} process group {group}: {errno}"),
    }
}

/// A started program and its process group. Dropping it ends the group with SIGKILL.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    argv: Argv,
    reaped: Option<ExitStatus>,
}

impl Child {
    /// The process id of the leader, which is the group's id too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// What was started.
    #[must_use]
    pub fn argv(&self) -> &Argv {
        &self.argv
    }

    /// The reading end of standard output, once, if it is [`Sink::Piped`].
    ///
    /// # Errors
    /// If the pipe cannot be registered with the runtime.
    pub fn take_stdout(&mut self) -> io::Result<Option<pipe::Receiver>> {
        self.inner.stdout.take().map(|out| pipe::Receiver::from_owned_fd(out.into())).transpose()
    }

    /// The reading end of standard error, once, if it is [`Sink::Piped`].
    ///
    /// # Errors
    /// If the pipe cannot be registered with the runtime.
    pub fn take_stderr(&mut self) -> io::Result<Option<pipe::Receiver>> {
        self.inner.stderr.take().map(|err| pipe::Receiver::from_owned_fd(err.into())).transpose()
    }

    /// Waits until the leader has ended, and leaves it unreaped. Can be cancelled and called again.
    ///
    /// # Errors
    /// If the runtime cannot poll the pidfd.
    pub async fn exited(&self) -> io::Result<()> {
        if self.reaped.is_none() {
            let _guard = self.pidfd.readable().await?;
        }
        Ok(())
    }

    /// Waits until the leader has ended, ends what is left of its group, and reaps it.
    ///
    /// Can be cancelled and called again.
    ///
    /// # Errors
    /// [`Error::Io`] from the runtime, [`Error::Unkillable`] if a member of the group outlives SIGKILL.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.exited().await.map_err(|source| self.io("wait for", source))?;
        self.finish().await
    }

    /// Ends the whole group: SIGTERM, `grace` for the leader to follow, SIGKILL, and a bounded wait for all.
    ///
    /// A group that ended by itself is fine: the leader's status comes back either way.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub async fn kill_group(&mut self, grace: Duration) -> Result<ExitStatus, Error> {
        if self.reaped.is_none() {
            kill_all(self.pid, Signal::SIGTERM);
            match tokio::time::timeout(grace, self.exited()).await {
                Ok(ended) => ended.map_err(|source| self.io("wait for", source))?,
                Err(_elapsed) => {} // SIGKILL follows.
            }
        }
        self.finish().await
    }

    /// SIGKILL until no live process of the group is left, then reap.
    async fn finish(&mut self) -> Result<ExitStatus, Error> {
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        let left = end_group(self.pid).await.map_err(|source| self.io("end the process group of", source))?;
        if !left.is_empty() {
            return Err(Error::Unkillable { argv: self.argv.clone(), pids: left });
        }
        let status = self.inner.wait().map_err(|source| self.io("reap", source))?;
        self.reaped = Some(status);
        Ok(status)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, argv: self.argv.clone(), source }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped.is_some() {
            return;
        }
        kill_all(self.pid, Signal::SIGKILL);
        let timeout = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(self.pidfd.get_ref(), rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(1..) => match self.inner.try_wait() {
                Ok(_) => {}
                Err(error) => eprintln!("warning: reap {}: {error}", self.argv),
            },
            Ok(0) | Err(_) => {
                eprintln!("warning: {} (pid {}) is still there after SIGKILL", self.argv, self.pid)
            }
        }
    }
}

/// SIGKILL until no live process of a group is left; returns who is there after [`AFTER_KILL`] nevertheless.
async fn end_group(group: Pid) -> io::Result<Vec<i32>> {
    let deadline = tokio::time::Instant::now() + AFTER_KILL;
    loop {
        let members = live_members(group)?;
        if members.is_empty() {
            return Ok(Vec::new());
        }
        kill_all(group, Signal::SIGKILL);
        for &pid in &members {
            // No pidfd: it is gone already, which the next look at /proc confirms.
            let Ok(fd) = open_pidfd(pid) else { continue };
            if tokio::time::timeout_at(deadline, watch(fd)?.readable()).await.is_err() {
                return Ok(members.iter().map(|pid| pid.as_raw()).collect());
            }
        }
    }
}

/// Ends what a run of ours that was killed has left of a program's group.
///
/// The caller knows that the number still means that group: one of its processes holds something of ours.
///
/// # Errors
/// If `/proc` cannot be read, or somebody is there after SIGKILL.
pub async fn end_orphans(group: u32) -> io::Result<()> {
    let group = i32::try_from(group).ok().filter(|group| *group > 1).ok_or(io::ErrorKind::InvalidInput)?;
    match end_group(Pid::from_raw(group)).await?.as_slice() {
        [] => Ok(()),
        left => Err(io::Error::other(format!("still there after SIGKILL: {left:?}"))),
    }
}

/// One process and no other that gets its number later: told apart by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub started: u64,
}

impl Identity {
    /// Ours.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// That of the process which has this id now.
    ///
    /// # Errors
    /// If there is none, or `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = parse_start(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, started })
    }

    /// Waits until that process has ended; returns at once if it has already.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        let fd = match open_pidfd(Pid::from_raw(pid)) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Looked at after the descriptor is there: both then mean the same process, or it is gone.
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if parse_start(&stat) == Some(self.started) => {
                let fd = watch(fd)?;
                let _guard = fd.readable().await?;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// When a process started, in a `/proc/PID/stat` line.
fn parse_start(stat: &str) -> Option<u64> {
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The processes of a group that are not zombies.
///
/// Read from `/proc/PID/stat`; see proc_pid_stat(5): after the command's closing parenthesis come state,
/// parent and group.
fn live_members(group: Pid) -> io::Result<Vec<Pid>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ends while we look is not a member any more.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some((state, its_group)) = parse_stat(&stat)
            && its_group == group.as_raw()
            && !matches!(state, 'Z' | 'X')
        {
            members.push(Pid::from_raw(pid));
        }
    }
    Ok(members)
}

/// State and process group in a `/proc/PID/stat` line.
fn parse_stat(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group))
}

/// Which of a program's streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a program that succeeded has written.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// Standard error, whole.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, with anything that is not UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a program to its end and returns what it wrote; success is exit code 0 and nothing else.
///
/// `on_line` sees each line as it comes (ended by `\n` or `\r`). On failure, deadline or interruption (SIGINT,
/// SIGTERM or SIGHUP to us) the whole group has been ended before this returns; dropping the future ends it too.
///
/// # Errors
/// Every variant of [`Error`].
pub async fn run(
    program: Program,
    limit: Duration,
    on_line: impl FnMut(Stream, &str),
) -> Result<Output, Error> {
    run_noted(program, limit, |_| Ok(()), on_line).await
}

/// As [`run`], and tells `note` the process group as soon as it is there.
///
/// # Errors
/// Every variant of [`Error`]; a note that fails ends the program.
pub async fn run_noted(
    program: Program,
    limit: Duration,
    note: impl FnOnce(u32) -> io::Result<()>,
    mut on_line: impl FnMut(Stream, &str),
) -> Result<Output, Error> {
    let mut interrupts = Interrupts::listen().map_err(|source| Error::Io {
        doing: "listen for signals while running",
        argv: Argv(vec![program.argv[0].to_string_lossy().into_owned()]),
        source,
    })?;
    let mut child = program.spawn()?;
    note(child.pid()).map_err(|source| child.io("note the process group of", source))?;
    let argv = child.argv.clone();
    let started = Instant::now();
    let mut out = Lines::new(Stream::Stdout, child.take_stdout().map_err(|e| child.io("read from", e))?);
    let mut err = Lines::new(Stream::Stderr, child.take_stderr().map_err(|e| child.io("read from", e))?);

    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, pump(&child, &mut out, &mut err, &mut on_line)) => match ended {
            Ok(Ok(())) => Ended::Itself,
            Ok(Err(source)) => return Err(child.io("read from", source)),
            Err(_elapsed) => Ended::Deadline,
        },
        signal = interrupts.next() => Ended::Interrupted(signal),
    };
    let status = match ended {
        Ended::Itself => child.wait().await?,
        Ended::Deadline | Ended::Interrupted(_) => child.kill_group(GRACE).await?,
    };
    // What is still in the pipes: all writers of the group are gone, so this ends at once, unless somebody left
    // the group and kept them.
    let drained = tokio::time::timeout(DRAIN, async {
        out.rest(&mut on_line).await?;
        err.rest(&mut on_line).await
    });
    let drained = match drained.await {
        Ok(result) => result.map_err(|source| child.io("read from", source)).map(|()| true)?,
        Err(_elapsed) => false,
    };

    let stderr_tail = tail(&err.all);
    match ended {
        Ended::Interrupted(signal) => Err(Error::Interrupted(Interrupted::by(signal))),
        Ended::Deadline => Err(Error::Deadline { argv, after: started.elapsed(), stderr_tail }),
        Ended::Itself if !status.success() => Err(Error::Failed { argv, status, stderr_tail }),
        Ended::Itself if !drained => Err(Error::PipeHeld { argv }),
        Ended::Itself => Ok(Output { stdout: out.all, stderr: err.all }),
    }
}

/// Runs a short program and returns its output.
///
/// # Errors
/// As [`run`].
pub async fn output<A: AsRef<OsStr>>(argv: &[A], limit: Duration) -> Result<Output, Error> {
    let (name, args) = argv.split_first().expect("an argv has a program name");
    run(Program::new(name).args(args), limit, |_, _| {}).await
}

enum Ended {
    Itself,
    Deadline,
    Interrupted(Signal),
}

/// Reads both streams until the leader has ended.
async fn pump(
    child: &Child,
    out: &mut Lines,
    err: &mut Lines,
    on_line: &mut impl FnMut(Stream, &str),
) -> io::Result<()> {
    loop {
        tokio::select! {
            read = out.read(), if out.open() => { read?; out.emit(on_line); }
            read = err.read(), if err.open() => { read?; err.emit(on_line); }
            ended = child.exited() => return ended,
        }
    }
}

/// One stream being collected and cut into lines.
struct Lines {
    stream: Stream,
    pipe: Option<pipe::Receiver>,
    all: Vec<u8>,
    /// How much of `all` has been given to the callback.
    emitted: usize,
}

impl Lines {
    fn new(stream: Stream, pipe: Option<pipe::Receiver>) -> Self {
        Self { stream, pipe, all: Vec::new(), emitted: 0 }
    }

    fn open(&self) -> bool {
        self.pipe.is_some()
    }

    /// One read; end of file closes the stream. Can be cancelled without loss.
    async fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        if pipe.read_buf(&mut self.all).await? == 0 {
            self.pipe = None;
        }
        Ok(())
    }

    /// Gives whole lines to the callback.
    fn emit(&mut self, on_line: &mut impl FnMut(Stream, &str)) {
        while let Some(end) = self.all[self.emitted..].iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let line = &self.all[self.emitted..self.emitted + end];
            if !line.is_empty() {
                on_line(self.stream, &String::from_utf8_lossy(line));
            }
            self.emitted += end + 1;
        }
    }

    /// Reads to the end, and gives out an unfinished last line too.
    async fn rest(&mut self, on_line: &mut impl FnMut(Stream, &str)) -> io::Result<()> {
        while self.open() {
            self.read().await?;
        }
        self.emit(on_line);
        if self.emitted < self.all.len() {
            on_line(self.stream, &String::from_utf8_lossy(&self.all[self.emitted..]));
            self.emitted = self.all.len();
        }
        Ok(())
    }
}

/// The last [`TAIL_BYTES`] of a text, from the start of a line where it was cut.
fn tail(bytes: &[u8]) -> String {
    let mut cut = bytes.len().saturating_sub(TAIL_BYTES);
    if cut > 0 {
        cut += bytes[cut..].iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
    }
    String::from_utf8_lossy(&bytes[cut..]).trim_end().to_owned()
}

/// The signals by which a user or a supervisor ends us.
#[derive(Debug)]
pub struct Interrupts {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Interrupts {
    /// Starts to listen; from here on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them. Can be cancelled and called again.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.int.recv() => Signal::SIGINT,
            _ = self.term.recv() => Signal::SIGTERM,
            _ = self.hup.recv() => Signal::SIGHUP,
        }
    }
}

/// We were told to stop, and did, with everything that was under way cleaned up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interrupted {
    /// By which signal; `None` where another part of the program heard it.
    pub signal: Option<Signal>,
}

impl Interrupted {
    /// By a signal that we heard.
    #[must_use]
    pub fn by(signal: Signal) -> Self {
        Self { signal: Some(signal) }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            Some(signal) => write!(f, "interrupted by {signal}"),
            None => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Interrupted {}

/// Whether an error says that we were interrupted, at whatever depth: the exit code is 130 then.
#[must_use]
pub fn is_interrupt(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<Interrupted>() || matches!(cause.downcast_ref(), Some(Error::Interrupted(_))))
}

/// A command line, printed so that it can be pasted into a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(pub Vec<String>);

impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, arg) in self.0.iter().enumerate() {
            let gap = if n == 0 { "" } else { " " };
            let plain = !arg.is_empty()
                && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c));
            if plain {
                write!(f, "{gap}{arg}")?;
            } else {
                write!(f, "{gap}'{}'", arg.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

/// Why a program did not do its work.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no such program.
    NotFound {
        /// Its name.
        program: String,
    },
    /// It could not be started.
    Spawn {
        /// What was to be started.
        argv: Argv,
        /// Why not.
        source: io::Error,
    },
    /// It ended with an exit code other than 0, or by a signal.
    Failed {
        /// What was started.
        argv: Argv,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr.
        stderr_tail: String,
    },
    /// It was ended by us since it took too long.
    Deadline {
        /// What was started.
        argv: Argv,
        /// How long it ran, its end included.
        after: Duration,
        /// The end of what it wrote to stderr.
        stderr_tail: String,
    },
    /// It was ended by us since we were told to stop.
    Interrupted(Interrupted),
    /// It succeeded, but somebody outside its process group still holds its output open.
    PipeHeld {
        /// What was started.
        argv: Argv,
    },
    /// Members of its group are there after SIGKILL.
    Unkillable {
        /// What was started.
        argv: Argv,
        /// Who is left.
        pids: Vec<i32>,
    },
    /// The runtime or `/proc` failed us.
    Io {
        /// What we were at, a verb that the command line follows.
        doing: &'static str,
        /// What was started.
        argv: Argv,
        /// The failure.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_tail = |f: &mut fmt::Formatter<'_>, tail: &str| {
            if tail.is_empty() { Ok(()) } else { write!(f, "; its stderr ends:\n{tail}") }
        };
        match self {
            Self::NotFound { program } => {
                write!(f, "program {program} is not installed")
            }
            Self::Spawn { argv, .. } => write!(f, "start {argv}"),
            Self::Failed { argv, status, stderr_tail } => {
                write!(f, "{argv}: {}", describe(*status))?;
                with_tail(f, stderr_tail)
            }
            Self::Deadline { argv, after, stderr_tail } => {
                write!(f, "{argv}: not done after {:.1} s, ended", after.as_secs_f64())?;
                with_tail(f, stderr_tail)
            }
            Self::Interrupted(interrupted) => interrupted.fmt(f),
            Self::PipeHeld { argv } => {
                write!(f, "{argv}: ended, but a process outside its group holds its output open")
            }
            Self::Unkillable { argv, pids } => write!(f, "{argv}: still there after SIGKILL: {pids:?}"),
            Self::Io { doing, argv, .. } => write!(f, "{doing} {argv}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn { source, .. } | Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// How a program ended, in words: `exit code 3`, `killed by SIGSEGV`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_unnamed) => format!("killed by signal {number}"),
        },
        (None, None) => format!("{status}"),
    }
}

/// One line that says what is under way: a spinner with the elapsed time on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    /// Starts the line; `what` is its heading.
    #[must_use]
    pub fn start(what: &str) -> Self {
        if !io::stderr().is_terminal() {
            eprintln!("{what}");
            return Self { bar: None };
        }
        let style = indicatif::ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
            .expect("the template is a constant");
        let bar = indicatif::ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar: Some(bar) }
    }

    /// Says what is going on now. Replaces the last message on a terminal, adds a line elsewhere.
    pub fn now(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_owned()),
            None => eprintln!("  {message}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    /// Runs a test body on the kind of runtime the harness has.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    /// A shell script in a directory of its own.
    fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("fake");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write the script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod the script");
        (dir, path)
    }

    fn sh(script: &str) -> Program {
        Program::new("/bin/sh").arg("-c").arg(script)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn collects_both_streams_and_gives_out_lines() {
        let mut lines = Vec::new();
        let output = block_on(run(sh("echo one; echo two >&2; printf three"), LONG, |stream, line| {
            lines.push((stream, line.to_owned()));
        }))
        .expect("it succeeds");
        assert_eq!(output.stdout, b"one\nthree");
        assert_eq!(output.stderr, b"two\n");
        lines.sort_by_key(|(stream, _)| *stream == Stream::Stderr);
        let expected = [(Stream::Stdout, "one"), (Stream::Stdout, "three"), (Stream::Stderr, "two")];
        assert_eq!(lines, expected.map(|(stream, line)| (stream, line.to_owned())));
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_its_deadline_with_its_children() {
        // It ignores SIGTERM, so that SIGKILL has to come; the grace is what the test waits for.
        let (_dir, path) = fake("echo starting >&2; sleep 1000 & echo $!; exec sleep 1001");
        let mut grandchild = None;
        let result = block_on(run(Program::new(&path), Duration::from_millis(500), |stream, line| {
            if stream == Stream::Stdout {
                grandchild = line.parse::<i32>().ok();
            }
        }));
        let Err(Error::Deadline { stderr_tail, .. }) = result else { panic!("not a deadline: {result:?}") };
        assert_eq!(stderr_tail, "starting");
        assert_dead(grandchild.expect("the script said its child's id"));
    }

    #[test]
    fn a_program_that_ignores_sigterm_gets_sigkill() {
        block_on(async {
            let mut child =
                sh("trap '' TERM; echo ready; while :; do sleep 1000; done").spawn().expect("it starts");
            let mut out = child.take_stdout().expect("a pipe").expect("piped");
            let mut ready = [0; 6];
            out.read_exact(&mut ready).await.expect("it says ready");
            let status = child.kill_group(Duration::from_millis(100)).await.expect("it can be ended");
            assert_eq!(describe(status), "killed by SIGKILL");
            assert_dead(i32::try_from(child.pid()).expect("a pid"));
        });
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_does_not_hold_us() {
        let started = Instant::now();
        let output = block_on(run(sh("sleep 1000 & echo $!"), LONG, |_, _| {})).expect("the leader succeeds");
        assert!(started.elapsed() < LONG / 2, "waited for the grandchild");
        assert_dead(output.text().trim().parse().expect("a pid"));
    }

    #[test]
    fn a_pipe_held_from_outside_the_group_is_an_error_and_bounded() {
        // The fifo tells that the child has left the group; before that it would be ended with it.
        let (dir, path) = fake("mkfifo $1; setsid sh -c 'echo out > $1; exec sleep 8' - $1 & cat $1");
        let program = Program::new(path).arg(dir.path().join("fifo"));
        let result = block_on(run(program, LONG, |_, _| {}));
        assert!(matches!(result, Err(Error::PipeHeld { .. })), "{result:?}");
    }

    #[test]
    fn death_by_a_signal_is_a_failure_with_its_name() {
        let error =
            block_on(output(&["/bin/sh", "-c", "echo why >&2; kill -SEGV $$"], LONG)).expect_err("it dies");
        insta::assert_snapshot!(error.to_string(), @r"
        /bin/sh -c 'echo why >&2; kill -SEGV $$': killed by SIGSEGV; its stderr ends:
        why
        ");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = block_on(output(&["no-such-program-here"], LONG)).expect_err("it is missing");
        insta::assert_snapshot!(error.to_string(), @"program no-such-program-here is not installed");
    }

    #[test]
    fn descriptors_arrive_under_the_numbers_asked_for() {
        let file = |text: &str| {
            let dir = tempfile::tempdir().expect("a temp dir");
            let path = dir.path().join("file");
            std::fs::write(&path, text).expect("write");
            OwnedFd::from(File::open(&path).expect("open"))
        };
        // Swapped on purpose: the first is asked for at a number that may be the second's own.
        let (a, b) = (file("a"), file("b"));
        let (at_a, at_b) = (b.as_raw_fd(), a.as_raw_fd());
        let count = "ls /proc/self/fd | wc -l";
        let without = block_on(run(sh(count), LONG, |_, _| {})).expect("it succeeds").text();
        let with = without.trim().parse::<u32>().expect("a number") + 2;
        let script = format!("cat /dev/fd/{at_a}; cat /dev/fd/{at_b}; {count}");
        let program = sh(&script).pass_fd(a, at_a).pass_fd(b, at_b);
        let output = block_on(run(program, LONG, |_, _| {})).expect("it succeeds");
        assert_eq!(output.text().trim(), format!("ab{with}"), "the two passed and nothing else");
    }

    #[test]
    fn output_can_go_to_a_file() {
        let mut log = tempfile::tempfile().expect("a temp file");
        let sink = Sink::File(log.try_clone().expect("a second handle"));
        block_on(async {
            let mut child =
                sh("echo to the file").stdout(sink).stderr(Sink::Null).spawn().expect("it starts");
            assert!(child.take_stdout().expect("no pipe").is_none());
            assert!(child.wait().await.expect("it ends").success());
            assert!(child.wait().await.expect("a second wait says the same").success());
        });
        let mut text = String::new();
        std::io::Seek::rewind(&mut log).expect("rewind");
        log.read_to_string(&mut text).expect("read");
        assert_eq!(text, "to the file\n");
    }

    #[test]
    fn dropping_a_child_ends_its_group() {
        let pid = block_on(async {
            let mut child = sh("sleep 1000 & echo $!; wait").spawn().expect("it starts");
            let mut out = child.take_stdout().expect("a pipe").expect("piped");
            let mut text = String::new();
            while !text.ends_with('\n') {
                text.push(char::from(out.read_u8().await.expect("the pid")));
            }
            text.trim().parse::<i32>().expect("a pid")
        });
        assert_dead(pid);
    }

    #[test]
    fn stat_lines_parse_whatever_the_command_is_called() {
        assert_eq!(parse_stat("7 (a) b) Z 1 42 42 0 -1"), Some(('Z', 42)));
        assert_eq!(parse_stat("7 (sh) S 1 9 9"), Some(('S', 9)));
        assert_eq!(parse_stat("nonsense"), None);
        let fields = (4..=25).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start(&format!("7 (a) b) S {fields}")), Some(22));
        assert_eq!(parse_start("7 (sh) S 1 9 9"), None);
    }

    #[test]
    fn command_lines_can_be_pasted() {
        let argv = Argv(["a", "b c", "it's", ""].map(str::to_owned).to_vec());
        assert_eq!(argv.to_string(), r"a 'b c' 'it'\''s' ''");
    }

    #[test]
    fn the_tail_starts_at_a_line() {
        assert_eq!(tail(b"short\n"), "short");
        let long = "0123456789\n".repeat(1000);
        let tail = tail(long.as_bytes());
        assert!(tail.len() <= TAIL_BYTES && tail.starts_with("0123456789\n"), "{}", tail.len());
    }

    /// A process that was killed is gone or a zombie that its new parent has not collected yet.
    fn assert_dead(pid: i32) {
        let Ok(fd) = open_pidfd(Pid::from_raw(pid)) else { return };
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "process {pid} is alive");
    }
}
