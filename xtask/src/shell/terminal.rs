//! The terminal of a person and that of a shell in the guest.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vm_agent::wire::{Body, Call, Command, Exit, Stream, Streams};
use vm_tests::machine::guest::{Guest, GuestError};

/// A day: a person may think.
pub(super) const DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// A word as a shell reads it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:@,+%".contains(letter);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The host's terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = termios::tcgetattr(std::io::stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("set the terminal to raw mode")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).is_err() {
            eprintln!("the terminal is still in raw mode: type `reset`");
        }
    }
}

/// Relays the shell's input and output until it ends.
pub(super) async fn talk(guest: Guest) -> Result<Exit, GuestError> {
    let host = |error: std::io::Error| GuestError::Host(error, "standard input or output".into());
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let streams = if terminal {
        let size = termios::tcgetwinsize(std::io::stdout()).map_err(|errno| host(errno.into()))?;
        Streams::Terminal { rows: size.ws_row, columns: size.ws_col }
    } else {
        Streams::Interactive
    };
    let argv =
        if terminal { vec!["bash".to_owned(), "-l".into()] } else { vec!["bash".to_owned(), "-s".into()] };
    let mut shell = guest.request(Call::Run(Command { argv, streams })).await?;
    let raw = if terminal { Raw::enter().ok() } else { None };
    let mut keys = read_stdin();
    let mut resized = signal(SignalKind::window_change()).map_err(host)?;
    let exit = loop {
        tokio::select! {
            answer = shell.next() => match answer? {
                Body::Output { stream: Stream::Stdout, bytes } => write_all(&mut std::io::stdout(), &bytes).map_err(host)?,
                Body::Output { stream: Stream::Stderr, bytes } => write_all(&mut std::io::stderr(), &bytes).map_err(host)?,
                Body::Exited(exit) => break exit,
                other => return Err(GuestError::Unexpected(format!("{other:?}"))),
            },
            Some(()) = resized.recv(), if terminal => {
                let size = termios::tcgetwinsize(std::io::stdout()).map_err(|errno| host(errno.into()))?;
                let call = Call::Resize { id: shell.id, rows: size.ws_row, columns: size.ws_col };
                still_there(guest.request(call).await?.next().await)?;
            }
            // An empty piece is the end of our input, and so of the shell's.
            Some(bytes) = keys.recv() => {
                still_there(guest.request(Call::Input { id: shell.id, bytes }).await?.next().await)?;
            }
        }
    };
    drop(raw);
    Ok(exit)
}

/// A shell that has just ended refuses what it is told; only a guest that is gone is an error.
fn still_there(answer: Result<Body, GuestError>) -> Result<(), GuestError> {
    match answer {
        Ok(_) | Err(GuestError::Failed(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn write_all(to: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// A thread of its own, since reading a terminal blocks; it ends with the process.
fn read_stdin() -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let read = move || {
        let mut buffer = [0; 4096];
        loop {
            let length = std::io::stdin().read(&mut buffer).unwrap_or(0);
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send(bytes).is_err() || length == 0 {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(read) {
        eprintln!("warning: the shell gets no input: {error}");
    }
    receiver
}
