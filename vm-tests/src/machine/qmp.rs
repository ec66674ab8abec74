//! QMP, the machine protocol of QEMU, over a socket that QEMU got at start.
//!
//! One task reads; a command waits for the answer with its id; events go to whoever listens. Every line of
//! both directions is kept in a transcript. See docs/interop/qmp-spec in QEMU.

use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

/// Why a QMP command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU closed the socket, which it does when it ends.
    #[error("QMP: QEMU closed the socket")]
    Closed,
    /// QEMU refused the command: its class (`GenericError`, `CommandNotFound`) and its own words.
    #[error("QMP {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// What came is not QMP.
    #[error("QMP: {0}")]
    Protocol(String),
}

/// An event of QEMU's, such as `GUEST_PANICKED` or `SHUTDOWN`.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name.
    pub name: String,
    /// Its data; `null` if it has none.
    pub data: Value,
}

impl QmpEvent {
    /// Whether the machine was paused.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        self.name == "STOP"
    }
}

/// One line from QEMU.
#[derive(Debug, PartialEq)]
enum Line {
    Greeting,
    Return { id: u64, value: Value },
    Error { id: u64, class: String, description: String },
    Event(QmpEvent),
}

fn parse(line: &str) -> Result<Line, QmpError> {
    let mut value: Value =
        serde_json::from_str(line).map_err(|error| QmpError::Protocol(format!("{error} in {line:?}")))?;
    let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
    if value.get("QMP").is_some() {
        return Ok(Line::Greeting);
    }
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let name = name.to_owned();
        let data = value.get_mut("data").map_or(Value::Null, Value::take);
        return Ok(Line::Event(QmpEvent { name, data }));
    }
    if let Some(error) = value.get("error") {
        let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        return Ok(Line::Error { id, class: text("class"), description: text("desc") });
    }
    match value.get_mut("return") {
        Some(result) => Ok(Line::Return { id, value: result.take() }),
        None => Err(QmpError::Protocol(format!("neither greeting, event, return nor error: {line}"))),
    }
}

type Answered = Result<Value, (String, String)>;

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Answered>>,
    closed: bool,
}

/// The host's end of QMP.
#[derive(Debug)]
pub struct Qmp {
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    /// The same socket, to send descriptors on.
    socket: OwnedFd,
    pending: Arc<Mutex<Pending>>,
    transcript: Arc<Mutex<File>>,
}

impl Qmp {
    /// Takes the greeting, leaves negotiation mode and returns the events' channel, which ends with QEMU.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when QEMU ended before it answered.
    pub async fn connect(
        socket: UnixStream,
        transcript: File,
    ) -> Result<(Self, mpsc::UnboundedReceiver<QmpEvent>), QmpError> {
        let descriptor = socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| QmpError::Protocol(format!("duplicate the socket: {error}")))?;
        let (read, write) = socket.into_split();
        let (events, receiver) = mpsc::unbounded_channel();
        let (greeted, greeting) = oneshot::channel();
        let pending = Arc::new(Mutex::new(Pending { next: 1, ..Pending::default() }));
        let transcript = Arc::new(Mutex::new(transcript));
        tokio::spawn(listen(
            BufReader::new(read),
            Arc::clone(&pending),
            Arc::clone(&transcript),
            events,
            greeted,
        ));
        let qmp = Self { write: tokio::sync::Mutex::new(write), socket: descriptor, pending, transcript };
        // A dropped sender means that QEMU closed the socket before its greeting.
        if greeting.await.is_err() {
            return Err(QmpError::Closed);
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, receiver))
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with QEMU's words, [`QmpError::Closed`] when QEMU ends first.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let (line, answer) = self.begin(command, arguments)?;
        let sent = self.write.lock().await.write_all(line.as_bytes()).await;
        if sent.is_err() {
            return Err(QmpError::Closed);
        }
        finish(command, answer).await
    }

    /// Gives QEMU a descriptor that later commands call `name` (`getfd`).
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn give(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        let (line, answer) = self.begin("getfd", json!({ "fdname": name }))?;
        {
            // Held, so that no other command's bytes come in between.
            let _write = self.write.lock().await;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor.as_fd()];
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let bytes = [IoSlice::new(line.as_bytes())];
            let sent = sendmsg(&self.socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL);
            if !fits || sent != Ok(line.len()) {
                return Err(QmpError::Protocol(format!("send a descriptor to QEMU: {sent:?}")));
            }
        }
        finish("getfd", answer).await.map(|_nothing| ())
    }

    /// Takes an id and returns the line to send and where its answer will come.
    fn begin(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<(String, oneshot::Receiver<Answered>), QmpError> {
        let (sender, answer) = oneshot::channel();
        let mut pending = lock(&self.pending);
        if pending.closed {
            return Err(QmpError::Closed);
        }
        let id = pending.next;
        pending.next += 1;
        pending.waiting.insert(id, sender);
        let line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        note(&self.transcript, "> ", &line);
        Ok((line + "\n", answer))
    }
}

async fn finish(command: &str, answer: oneshot::Receiver<Answered>) -> Result<Value, QmpError> {
    match answer.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err((class, description))) => {
            Err(QmpError::Refused { command: command.to_owned(), class, description })
        }
        Err(_closed) => Err(QmpError::Closed),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The transcript is evidence, not function: a full disk must not end a machine.
fn note(transcript: &Mutex<File>, direction: &str, line: &str) {
    match writeln!(lock(transcript), "{direction}{line}") {
        Ok(()) | Err(_) => (),
    }
}

async fn listen(
    mut read: BufReader<tokio::net::unix::OwnedReadHalf>,
    pending: Arc<Mutex<Pending>>,
    transcript: Arc<Mutex<File>>,
    events: mpsc::UnboundedSender<QmpEvent>,
    greeted: oneshot::Sender<()>,
) {
    let mut greeted = Some(greeted);
    let mut line = String::new();
    loop {
        line.clear();
        if !matches!(read.read_line(&mut line).await, Ok(1..)) {
            break;
        }
        note(&transcript, "< ", line.trim_end());
        // A listener that went away, and a command whose caller gave up, are no concern of QEMU's.
        match parse(line.trim_end()) {
            Ok(Line::Greeting) => drop(greeted.take().map(|sender| sender.send(()))),
            Ok(Line::Event(event)) => drop(events.send(event)),
            Ok(Line::Return { id, value }) => answer(&pending, id, Ok(value)),
            Ok(Line::Error { id, class, description }) => answer(&pending, id, Err((class, description))),
            Err(error) => note(&transcript, "! ", &error.to_string()),
        }
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.waiting.clear();
}

fn answer(pending: &Mutex<Pending>, id: u64, answered: Answered) {
    if let Some(sender) = lock(pending).waiting.remove(&id) {
        drop(sender.send(answered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_qemu() {
        let event = |name: &str, data| Line::Event(QmpEvent { name: name.into(), data });
        let cases = [
            (r#"{"QMP": {"version": {}, "capabilities": []}}"#, Line::Greeting),
            (r#"{"return": {}, "id": 3}"#, Line::Return { id: 3, value: json!({}) }),
            (
                r#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#,
                Line::Error { id: 4, class: "GenericError".into(), description: "no".into() },
            ),
            (
                r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "GUEST_PANICKED", "data": {"action": "pause"}}"#,
                event("GUEST_PANICKED", json!({"action": "pause"})),
            ),
            (r#"{"event": "STOP"}"#, event("STOP", Value::Null)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).expect(text), expected);
        }
        for text in ["", "{", r#"{"hello": 1}"#, "qemu: could not open"] {
            assert!(matches!(parse(text), Err(QmpError::Protocol(_))), "{text}");
        }
    }

    #[tokio::test]
    async fn a_qemu_that_goes_away_is_an_error_at_once() {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        drop(theirs);
        let transcript = tempfile::tempfile().expect("tempfile");
        assert!(matches!(Qmp::connect(ours, transcript).await, Err(QmpError::Closed)));
    }
}
