//! Runs a program to its end, and collects what it writes.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::child::{Child, GRACE};
use super::error::Error;
use super::program::Program;
use crate::host::signals::{Interrupted, Interrupts};

/// How long a pipe may stay open after the last process of the group is gone.
const DRAIN: Duration = Duration::from_secs(1);

/// How much of a program's stderr an error carries, in bytes.
pub(super) const TAIL_BYTES: usize = 4096;

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
        argv: program.shown(),
        source,
    })?;
    let mut child = program.spawn()?;
    note(child.pid()).map_err(|source| child.io("note the process group of", source))?;
    let argv = child.argv().clone();
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
pub async fn output(program: Program, limit: Duration) -> Result<Output, Error> {
    run(program, limit, |_, _| {}).await
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
pub(super) fn tail(bytes: &[u8]) -> String {
    let mut cut = bytes.len().saturating_sub(TAIL_BYTES);
    if cut > 0 {
        cut += bytes[cut..].iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
    }
    String::from_utf8_lossy(&bytes[cut..]).trim_end().to_owned()
}
