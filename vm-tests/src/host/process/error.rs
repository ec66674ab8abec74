//! How a program can fail, in words.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::signals::Interrupted;

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
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such program.
    #[error("program {program} is not installed")]
    NotFound {
        /// Its name.
        program: String,
    },
    /// It could not be started.
    #[error("start {argv}")]
    Spawn {
        /// What was to be started.
        argv: Argv,
        /// Why not.
        source: io::Error,
    },
    /// It ended with an exit code other than 0, or by a signal.
    #[error("{argv}: {}{}", describe(*status), with(stderr_tail))]
    Failed {
        /// What was started.
        argv: Argv,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr.
        stderr_tail: String,
    },
    /// It was ended by us since it took too long.
    #[error("{argv}: not done after {:.1} s, ended{}", after.as_secs_f64(), with(stderr_tail))]
    Deadline {
        /// What was started.
        argv: Argv,
        /// How long it ran, its end included.
        after: Duration,
        /// The end of what it wrote to stderr.
        stderr_tail: String,
    },
    /// It was ended by us since we were told to stop.
    #[error("{0}")]
    Interrupted(Interrupted),
    /// It succeeded, but somebody outside its process group still holds its output open.
    #[error("{argv}: ended, but a process outside its group holds its output open")]
    PipeHeld {
        /// What was started.
        argv: Argv,
    },
    /// Members of its group are there after SIGKILL.
    #[error("{argv}: still there after SIGKILL: {pids:?}")]
    Unkillable {
        /// What was started.
        argv: Argv,
        /// Who is left.
        pids: Vec<i32>,
    },
    /// The runtime or `/proc` failed us.
    #[error("{doing} {argv}")]
    Io {
        /// What we were at, a verb that the command line follows.
        doing: &'static str,
        /// What was started.
        argv: Argv,
        /// The failure.
        source: io::Error,
    },
}

fn with(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; its stderr ends:\n{tail}") }
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
