//! What the harness tells while it works. The library prints nothing: a program shows the events, or drops them.
//!
//! A process has one listener, as with `log` and `tracing`: much of this comes from a `Drop` or a leaf, to which no listener
//! could be passed.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something that whoever waits wants to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Something is being made from now on: see [`Progress`]. Several things may be at once.
    Begun(Work),
    /// What is going on with it now.
    Now(Work, String),
    /// It is made, or given up.
    Over(Work),
    /// A scenario's machine is being restored.
    Restoring {
        /// The guest and the scenario.
        test: String,
    },
    /// It is running its cycles.
    Recording {
        /// The guest and the scenario.
        test: String,
        /// How many.
        cycles: u32,
    },
    /// It has ended.
    Finished {
        /// The guest and the scenario.
        test: String,
        /// How, in a word or two.
        verdict: &'static str,
        /// Its recording's hash, and whether that is remembered.
        recording: String,
        /// Wall time.
        took: Duration,
        /// How many have ended by now.
        number: usize,
        /// Of how many.
        of: usize,
        /// How long the others will take, in words: `about 7 min`. Empty if nobody knows, or there are none.
        left: String,
    },
    /// None has ended for a while.
    Still {
        /// Which are running, each with how long it has.
        running: Vec<(String, Duration)>,
        /// As in [`Event::Finished`].
        number: usize,
        /// As in [`Event::Finished`].
        of: usize,
        /// As in [`Event::Finished`].
        left: String,
    },
    /// A part of a benchmark begins in a guest.
    Measuring {
        /// The guest.
        guest: String,
        /// The part.
        part: &'static str,
    },
    /// Somebody else has the lock.
    Waiting {
        /// For what.
        what: String,
        /// Who has it.
        who: String,
        /// What that one does with it.
        does: &'static str,
    },
    /// An entry of the cache is not whole, and is made again.
    Damaged {
        /// Which.
        entry: String,
        /// How it is made again.
        remedy: &'static str,
        /// What is wrong with it.
        error: anyhow::Error,
    },
    /// The holder of a lock is dead, and what it started is being ended.
    Orphans {
        /// The holder.
        holder: String,
        /// The process group.
        group: u32,
    },
    /// What a dead build left is being removed.
    Removing(PathBuf),
    /// A root is being copied, because of its size.
    Copying(PathBuf),
    /// A piece of evidence could not be written.
    NoEvidence {
        /// Where.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line that needs no other words.
    Note(String),
    /// Something could not be cleaned up.
    Warning(String),
}

/// The event's line; empty where there is nothing to read.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(work) => write!(f, "{}", work.what),
            Self::Now(work, message) => write!(f, "  {}: {message}", work.what),
            Self::Over(_) => Ok(()),
            Self::Restoring { test } => write!(f, "{test}: restoring"),
            Self::Recording { test, cycles } => write!(f, "{test}: recording {cycles} cycles"),
            Self::Finished { test, verdict, recording, took, number, of, left } => {
                let left = if left.is_empty() { String::new() } else { format!(", {left} left") };
                let took = took.as_secs_f64();
                write!(f, "{test}: {verdict} after {took:.1} s ({number}/{of}{left}), recording {recording}")
            }
            Self::Still { running, number, of, left } => {
                let left = if left.is_empty() { String::new() } else { format!(", {left} left") };
                let running = running.iter().map(|(test, time)| format!("{test} for {} s", time.as_secs()));
                write!(f, "running: {} ({number}/{of}{left})", running.collect::<Vec<_>>().join(", "))
            }
            Self::Measuring { guest, part } => write!(f, "{guest}: {part}"),
            Self::Waiting { what, who, does } => write!(f, "{what}: waiting for {who}, which {does} it"),
            Self::Damaged { entry, remedy, error } => {
                write!(f, "{entry} is damaged, {remedy} it anew: {error:#}")
            }
            Self::Orphans { holder, group } => {
                write!(f, "{holder} is gone; ending what it left, process group {group}")
            }
            Self::Removing(path) => write!(f, "removing what an earlier build left in {}", path.display()),
            Self::Copying(root) => write!(f, "copying {} to a size that a guest can map", root.display()),
            Self::NoEvidence { path, error } => write!(f, "evidence: write {}: {error}", path.display()),
            Self::Note(what) => write!(f, "{what}"),
            Self::Warning(what) => write!(f, "warning: {what}"),
        }
    }
}

type Listener = Box<dyn Fn(&Event) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// Sets who is told, for the rest of the process. Once: a second listener is told nothing.
pub fn listen(listener: impl Fn(&Event) + Send + Sync + 'static) {
    LISTENER.get_or_init(|| Box::new(listener));
}

/// The same, for whoever shows each event as a line.
pub fn listen_to_lines(show: impl Fn(&str) + Send + Sync + 'static) {
    listen(move |event| match event {
        Event::Over(_) => {}
        _ => show(&event.to_string()),
    });
}

pub(crate) fn tell(event: Event) {
    if let Some(listener) = LISTENER.get() {
        listener(&event);
    }
}

/// Something that is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// No other one of the process has it.
    pub number: u64,
    /// What it is.
    pub what: String,
}

/// Tells of something that is being made, from its beginning until this is dropped.
#[derive(Debug)]
pub(crate) struct Progress(Work);

impl Progress {
    pub(crate) fn start(what: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let work = Work { number: NEXT.fetch_add(1, Ordering::Relaxed), what: what.to_owned() };
        tell(Event::Begun(work.clone()));
        Self(work)
    }

    pub(crate) fn now(&self, message: &str) {
        tell(Event::Now(self.0.clone(), message.to_owned()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        tell(Event::Over(self.0.clone()));
    }
}
