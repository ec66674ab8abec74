//! The signals by which a user ends us.

use std::io::{self};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, thiserror::Error)]
#[error("interrupted{}", signal.map(|signal| format!(" by {signal}")).unwrap_or_default())]
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
