//! The host end of the channel to the agent.
//!
//! One task reads replies and hands each to the request that waits for it, so requests run side by side.
//! Nothing here has a deadline: [`crate::machine::Machine`] races every wait against the machine's death.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use vm_agent::wire::{
    self, BOOT_ID, Body, CHUNK, Call, Command, Exit, Hello, Put, Reply, Request, SESSION_ID, Session, Stream,
};

/// Why the guest has no answer.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The channel is closed: the machine is gone.
    #[error("the channel to the guest is closed")]
    Closed,
    /// The agent speaks another protocol number.
    #[error(
        "the guest's agent speaks protocol {guest}, this harness {host}: the {} is older, rebuild it",
        if guest < host { "agent" } else { "harness" }
    )]
    Protocol {
        /// The host's.
        host: u32,
        /// The guest's.
        guest: u32,
    },
    /// The agent refused or failed; its own words.
    #[error("guest: {0}")]
    Failed(String),
    /// An answer of the wrong kind: a bug.
    #[error("unexpected answer from the guest: {0}")]
    Unexpected(String),
    /// A file of the host could not be read.
    #[error("read {}", .1.display())]
    Host(#[source] std::io::Error, std::path::PathBuf),
}

/// What a command of the guest left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to file descriptor 1.
    pub stdout: Vec<u8>,
    /// What it wrote to file descriptor 2.
    pub stderr: Vec<u8>,
}

impl Output {
    /// stdout as text, without its final newline.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    hello: Option<(u64, oneshot::Sender<u32>)>,
    requests: HashMap<u64, mpsc::UnboundedSender<Body>>,
    closed: bool,
}

/// A connected guest. Cheap to clone; all clones share the channel.
#[derive(Debug, Clone)]
pub struct Guest {
    write: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
    /// The protocol number of the agent's unasked hello.
    unasked: watch::Receiver<Option<u32>>,
}

/// A request under way: its answers, in order.
#[derive(Debug)]
pub struct Pending {
    /// The request's id, for [`Call::Input`] and [`Call::Cancel`].
    pub id: u64,
    answers: mpsc::UnboundedReceiver<Body>,
}

impl Pending {
    /// The next answer.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the agent's words, [`GuestError::Closed`] when the machine is gone.
    pub async fn next(&mut self) -> Result<Body, GuestError> {
        match self.answers.recv().await {
            Some(Body::Failed(text)) => Err(GuestError::Failed(text)),
            Some(body) => Ok(body),
            None => Err(GuestError::Closed),
        }
    }

    async fn done(mut self) -> Result<(), GuestError> {
        match self.next().await? {
            Body::Done => Ok(()),
            other => Err(GuestError::Unexpected(format!("{other:?}"))),
        }
    }
}

impl Guest {
    /// Takes the host end of the channel; says nothing yet.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        let (read, write) = socket.into_split();
        let waiting = Arc::new(Mutex::new(Waiting { next: 1, ..Waiting::default() }));
        let (sender, unasked) = watch::channel(None);
        tokio::spawn(listen(read, Arc::clone(&waiting), sender));
        Self { write: Arc::new(tokio::sync::Mutex::new(write)), waiting, unasked }
    }

    /// Says hello and waits for the agent's. What is written before the agent runs waits in the port, so this
    /// is how to wait for the agent without asking again and again.
    ///
    /// # Errors
    /// [`GuestError::Protocol`] when the agent is another version, [`GuestError::Closed`].
    pub async fn hello(&self) -> Result<(), GuestError> {
        let nonce = u64::from(std::process::id()) << 32 | u64::from(wire::PROTOCOL);
        let (sender, answer) = oneshot::channel();
        self.waiting().hello = Some((nonce, sender));
        self.write(&Hello { protocol: wire::PROTOCOL, nonce }.to_bytes()).await?;
        checked(answer.await.map_err(|_closed| GuestError::Closed)?)
    }

    /// Waits for the hello that an agent says unasked (see [`wire::PAUSE`]).
    ///
    /// # Errors
    /// As [`Guest::hello`].
    pub async fn unasked_hello(&self) -> Result<(), GuestError> {
        let mut unasked = self.unasked.clone();
        let said = unasked.wait_for(Option::is_some).await.map_err(|_closed| GuestError::Closed)?;
        checked((*said).ok_or(GuestError::Closed)?)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`GuestError::Closed`] when the machine is gone.
    pub async fn request(&self, call: Call) -> Result<Pending, GuestError> {
        let (sender, answers) = mpsc::unbounded_channel();
        let id = {
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(GuestError::Closed);
            }
            let id = waiting.next;
            waiting.next += 1;
            waiting.requests.insert(id, sender);
            id
        };
        let bytes =
            wire::encode(&Request { id, call }).map_err(|error| GuestError::Unexpected(error.to_string()))?;
        self.write(&bytes).await?;
        Ok(Pending { id, answers })
    }

    /// The null request: there and back.
    ///
    /// # Errors
    /// See [`Pending::next`].
    pub async fn ping(&self) -> Result<(), GuestError> {
        self.request(Call::Ping).await?.done().await
    }

    /// Runs a command and waits for its end.
    ///
    /// # Errors
    /// See [`Pending::next`]; a status other than 0 is no error.
    pub async fn run<S: Into<String>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output, GuestError> {
        self.run_with(Command::new(argv), |_, _| ()).await
    }

    /// Runs a command and shows its output as it comes.
    ///
    /// # Errors
    /// See [`Guest::run`].
    pub async fn run_with(
        &self,
        command: Command,
        mut show: impl FnMut(Stream, &[u8]),
    ) -> Result<Output, GuestError> {
        let mut pending = self.request(Call::Run(command)).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match pending.next().await? {
                Body::Output { stream, bytes } => {
                    show(stream, &bytes);
                    match stream {
                        Stream::Stdout => stdout.extend(bytes),
                        Stream::Stderr => stderr.extend(bytes),
                    }
                }
                Body::Exited(exit) => return Ok(Output { exit, stdout, stderr }),
                other => return Err(GuestError::Unexpected(format!("{other:?}"))),
            }
        }
    }

    /// Follows the journal from its start; every line of `journalctl -o short-monotonic` goes to `show` until
    /// the returned future is dropped.
    ///
    /// # Errors
    /// See [`Guest::run`].
    pub async fn follow_journal(&self, show: impl FnMut(Stream, &[u8])) -> Result<Output, GuestError> {
        self.run_with(Command::new(["journalctl", "-f", "-n", "all", "-o", "short-monotonic"]), show).await
    }

    /// Puts bytes at an absolute path of the guest.
    ///
    /// # Errors
    /// See [`Pending::next`].
    pub async fn put_bytes(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), GuestError> {
        let mut offset = 0;
        let mut rest = bytes;
        // Requests run side by side in the guest; a file's pieces must not.
        loop {
            let (piece, next) = rest.split_at(rest.len().min(CHUNK));
            let last = next.is_empty();
            let put =
                Put { path: path.to_owned(), mode, symlink: false, offset, last, bytes: piece.to_vec() };
            self.request(Call::Put(put)).await?.done().await?;
            if last {
                return Ok(());
            }
            offset += piece.len() as u64;
            rest = next;
        }
    }

    /// Hands a whole session over to a guest that runs.
    ///
    /// # Errors
    /// [`GuestError::Closed`] when the machine is gone.
    pub async fn begin_session(&self, session: Session) -> Result<Pending, GuestError> {
        self.request(Call::Session(Box::new(session))).await
    }

    /// What comes if the system of a guest with [`wire::PAUSE`] does not come up: an error. Ask before the machine runs.
    #[must_use]
    pub fn failed_boot(&self) -> Pending {
        self.unasked_answer(BOOT_ID)
    }

    /// The answer to the session that lies on the machine's deploy device, which it begins when the doorbell rings.
    #[must_use]
    pub fn deployed_session(&self) -> Pending {
        self.unasked_answer(SESSION_ID)
    }

    /// The answer of this id to a request that does not go over the channel.
    #[must_use]
    pub fn unasked_answer(&self, id: u64) -> Pending {
        let (sender, answers) = mpsc::unbounded_channel();
        self.waiting().requests.insert(id, sender);
        Pending { id, answers }
    }

    /// Sets CLOCK_REALTIME to this many nanoseconds since 1970.
    ///
    /// # Errors
    /// See [`Pending::next`].
    pub async fn set_clock(&self, realtime_ns: u64) -> Result<(), GuestError> {
        self.request(Call::SetClock { realtime_ns }).await?.done().await
    }

    /// Whether the agent hears the doorbell.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the reason why not.
    pub async fn hears_doorbell(&self) -> Result<(), GuestError> {
        self.request(Call::Doorbell).await?.done().await
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), GuestError> {
        let mut frame = Vec::with_capacity(bytes.len() + 4);
        wire::write_frame(&mut frame, bytes).map_err(|error| GuestError::Unexpected(error.to_string()))?;
        // One write under the lock: frames of two requests never mix.
        self.write.lock().await.write_all(&frame).await.map_err(|_gone| GuestError::Closed)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares the agent's protocol number with ours.
fn checked(guest: u32) -> Result<(), GuestError> {
    match guest {
        wire::PROTOCOL => Ok(()),
        guest => Err(GuestError::Protocol { host: wire::PROTOCOL, guest }),
    }
}

async fn read_frame(read: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut header = [0; 4];
    read.read_exact(&mut header).await?;
    let mut bytes = vec![0; wire::frame_length(header)?];
    read.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Ends with the channel; a frame that makes no sense ends it too, since nothing after it can be trusted.
async fn listen(mut read: OwnedReadHalf, waiting: Arc<Mutex<Waiting>>, unasked: watch::Sender<Option<u32>>) {
    let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(frame) = read_frame(&mut read).await {
        if let Some(hello) = Hello::from_bytes(&frame) {
            if hello.nonce == wire::UNASKED {
                unasked.send_replace(Some(hello.protocol));
                continue;
            }
            let mut waiting = lock();
            if let Some((_, sender)) = waiting.hello.take_if(|(nonce, _)| *nonce == hello.nonce)
                && sender.send(hello.protocol).is_err()
            {
                // Whoever asked gave up.
            }
            continue;
        }
        let Ok(reply) = wire::decode::<Reply>(&frame) else { break };
        let over = !matches!(reply.body, Body::Output { .. });
        let mut waiting = lock();
        let id = reply.id;
        // A request whose caller gave up is answered all the same.
        if let Some(sender) = waiting.requests.get(&id) {
            drop(sender.send(reply.body));
        }
        if over {
            waiting.requests.remove(&id);
        }
    }
    let mut waiting = lock();
    waiting.closed = true;
    waiting.requests.clear();
    waiting.hello = None;
}
