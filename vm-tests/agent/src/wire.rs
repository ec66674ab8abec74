//! The channel between host and guest: frames of [`postcard`] on a virtio-serial port.
//!
//! A frame is a `u32` length in little endian and that many bytes. The first frame of each side is a
//! [`Hello`] in a form that every protocol number shares (see [`Hello::to_bytes`]), so a mismatch is an error
//! message and not a decoding error. After it the host sends [`Request`]s and the guest [`Reply`]s; requests
//! run side by side and a reply carries its request's `id`.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::happening::Happening;
pub use crate::recording::Exit;
use crate::recording::{Plan, Recording};

/// Goes up with every change to a type that crosses the channel.
pub const PROTOCOL: u32 = 17;

/// The name of the virtio-serial port, as `/sys/class/virtio-ports/*/name` shows it.
pub const PORT: &str = "org.vm-tests.agent";

/// Begins the word of the kernel's command line that has the number from which the guest's random number generator gets its
/// seed.
pub const SEED: &str = "vm_test.seed=";

/// The word of the kernel's command line that has the agent pause the machine when its system is up, by a watchdog that
/// runs out: at the same instant of every boot. The agent says an unasked [`Hello`] before.
pub const PAUSE: &str = "vm_test.pause";

/// The word of the kernel's command line by which a machine has what another one has written to its root: it is on
/// [`DEPLOY_DEVICE`], an ext4 with a directory `upper`.
pub const KEPT: &str = "vm_test.kept";

/// Where a machine has what it writes to its root: `upper`. Below `/run/initramfs`, which systemd leaves alone when it shuts
/// down (`src/core/mount.c`, `src/shared/mount-util.c`).
pub const WRITES: &str = "/run/initramfs/vm-test";

/// The nonce of an unasked [`Hello`]; a host never asks with it.
pub const UNASKED: u64 = 0;

/// The `id` of the answer that comes, unasked, if the system of a guest with [`PAUSE`] does not come up: a
/// [`Body::Failed`] that says why.
pub const BOOT_ID: u64 = u64::MAX;

/// The longest frame either side accepts, in bytes. A recording of a long run is the largest thing sent.
pub const FRAME_MAX: usize = 256 << 20;

/// How much of a file or of an output stream one frame carries, in bytes.
pub const CHUNK: usize = 256 << 10;

const MAGIC: &[u8; 8] = b"vm-agent";

/// The first frame of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The sender's [`PROTOCOL`].
    pub protocol: u32,
    /// Echoed by the guest, so that a host that connects anew can tell this answer from an older one.
    pub nonce: u64,
}

impl Hello {
    /// Eight bytes of magic, the protocol number and the nonce, little endian: never changes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.protocol.to_le_bytes());
        bytes.extend(self.nonce.to_le_bytes());
        bytes
    }

    /// Reads what [`Hello::to_bytes`] wrote; `None` if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (protocol, nonce) = rest.split_at_checked(4)?;
        Some(Self {
            protocol: u32::from_le_bytes(protocol.try_into().ok()?),
            nonce: u64::from_le_bytes(nonce.try_into().ok()?),
        })
    }
}

/// What the host asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host; every reply to this request carries it.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// The things the agent can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Call {
    /// Answered by [`Body::Done`] at once.
    Ping,
    /// Runs a command; answered by [`Body::Output`]s and one [`Body::Exited`].
    Run(Command),
    /// Creates or continues a file; answered by [`Body::Done`].
    Put(Put),
    /// Sets CLOCK_REALTIME to this many nanoseconds since the epoch; answered by [`Body::Done`].
    SetClock {
        /// Nanoseconds since 1970-01-01T00:00:00Z.
        realtime_ns: u64,
    },
    /// Does all that a scenario needs with no word from the host in between; answered by one
    /// [`Body::Recorded`], or by [`Body::Done`] if there is no plan.
    Session(Box<Session>),
    /// Answered by [`Body::Done`] if the agent hears the doorbell (see [`DOORBELL`]).
    Doorbell,
    /// More input for the running command `id`; answered by [`Body::Done`].
    Input {
        /// The request that runs the command.
        id: u64,
        /// What it reads next; empty closes its stdin.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The terminal of the running command `id` has another size from now on; answered by [`Body::Done`].
    Resize {
        /// The request that runs the command, with [`Streams::Terminal`].
        id: u64,
        /// Lines.
        rows: u16,
        /// Characters a line.
        columns: u16,
    },
    /// Answered by [`Body::Stands`], when a guest that stands still has gone on and stands again, or its plan has ended.
    Go(Until),
    /// Does this, answers, and has the machine paused so long after the answer: for a guest that stands still.
    ThenPause {
        /// Microseconds of guest time.
        after_us: u64,
        /// What to do before.
        call: Box<Call>,
    },
    /// Ends the processes that request `id` started (SIGTERM to their group, SIGKILL after 2 s); answered by
    /// [`Body::Done`]. The request itself still answers with how it ended.
    Cancel {
        /// The request to end.
        id: u64,
    },
}

/// A command to run in the guest as root, in `/`, with a minimal environment.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Command {
    /// Program (looked up on PATH) and arguments.
    pub argv: Vec<String>,
    /// Where its standard streams go.
    pub streams: Streams,
}

impl Command {
    /// A command without input.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), streams: Streams::Output }
    }
}

/// A scenario from its files to its recording. It is handed over whole, before the guest runs: what the host does
/// and when then has no part in what the guest does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Session {
    /// The files to put, in order.
    pub files: Vec<Put>,
    /// Who is to be there with a manager of the own, with the files that lie in the home directory.
    pub user: Option<String>,
    /// Commands that bring the guest into its state after the files are there; each must succeed.
    pub setup: Vec<Vec<String>>,
    /// What to run and record after that.
    pub plan: Option<Plan>,
    /// When the guest is to stand still; see [`Stop`].
    pub stop: Stop,
}

/// When everything in the guest but the agent is to stand still, and the machine to be paused: at the recorder's first look
/// from an instant on. Its form has one length, and the recorder does the same with each: so a run with a stop is the run
/// without one, up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    at: [u8; 8],
    pause: [u8; 8],
}

impl Stop {
    /// At so many nanoseconds since the plan began, to be paused so many microseconds later.
    #[must_use]
    pub fn at(at_ns: u64, pause_us: u64) -> Self {
        Self { at: at_ns.to_le_bytes(), pause: pause_us.to_le_bytes() }
    }

    /// Nanoseconds since the plan began; [`u64::MAX`] is never.
    #[must_use]
    pub fn at_ns(self) -> u64 {
        u64::from_le_bytes(self.at)
    }

    /// When after that the machine is paused, in microseconds.
    #[must_use]
    pub fn pause_us(self) -> u64 {
        u64::from_le_bytes(self.pause)
    }
}

impl Default for Stop {
    /// Never.
    fn default() -> Self {
        Self::at(u64::MAX, 0)
    }
}

/// How far a guest that stands still goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// Not at all.
    Now,
    /// For so many nanoseconds.
    For(u64),
    /// To the next of these, or the end of the plan.
    Happening(Happening),
}

/// The device that brings the session of a restored machine: one frame with a [`Request`] of [`SESSION_ID`], at its
/// begin. Persistent memory, so that reading it is a copy within the guest.
pub const DEPLOY_DEVICE: &str = "/dev/pmem1";

/// The serial port on which a byte, whichever, means: do what is on [`DEPLOY_DEVICE`].
///
/// Not the virtio port: QEMU takes nothing from its socket while the machine is paused
/// (hw/char/virtio-console.c:virtconsole_enable_backend), so a request would reach a restored guest some time after it
/// runs. A UART takes a byte at any time. It lies in the FIFO and its interrupt is pending at the first instruction.
pub const DOORBELL: &str = "/dev/ttyS1";

/// The `id` of the request on [`DEPLOY_DEVICE`]; the host gives those on the channel others.
pub const SESSION_ID: u64 = 0;

/// Where a command's standard streams go.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub enum Streams {
    /// stdin is `/dev/null`; stdout and stderr come back apart.
    Output,
    /// As `Output`, and stdin is fed by [`Call::Input`].
    Interactive,
    /// All three are one terminal of this size; what it shows comes as [`Stream::Stdout`].
    Terminal {
        /// Lines.
        rows: u16,
        /// Characters a line.
        columns: u16,
    },
}

/// One piece of a file that is put into the guest, over the channel or as part of a [`Session`]. The file is complete, in place and has its mode after the
/// piece with `last`; until then it is `<path>.vm-put`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Put {
    /// Absolute path; missing parents are made with mode 0755.
    pub path: String,
    /// Permission bits, or with `symlink` unused.
    pub mode: u32,
    /// Whether the bytes are the target of a symbolic link and not a file's content.
    pub symlink: bool,
    /// Where these bytes belong; 0 truncates what is there.
    pub offset: u64,
    /// Whether the file is complete with this piece.
    pub last: bool,
    /// At most [`CHUNK`] bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// The request's `id`.
    pub id: u64,
    /// The answer.
    pub body: Body,
}

/// What the guest answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Body {
    /// Done; the request is over.
    Done,
    /// A piece of a running command's output; the request goes on.
    Output {
        /// Which of the command's streams.
        stream: Stream,
        /// The bytes as they were read.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// How a command ended; all its output has been sent; the request is over.
    Exited(Exit),
    /// What was recorded; the request is over.
    Recorded(Box<Recording>),
    /// Everything but the agent stands still since so many nanoseconds after the plan began; `None`: the plan has ended.
    Stands(Option<u64>),
    /// The request failed; it is over. The text names the call, the path and the cause.
    Failed(String),
}

/// A command's output stream.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Writes one frame of raw bytes.
///
/// # Errors
/// What the writer says.
pub fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads one frame of raw bytes.
///
/// # Errors
/// `UnexpectedEof` when the other side is gone, `InvalidData` when the length is over [`FRAME_MAX`].
pub fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = frame_length(length)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Checks a frame's length against [`FRAME_MAX`].
///
/// # Errors
/// `InvalidData` when it is longer.
pub fn frame_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > FRAME_MAX {
        let text =
            format!("a frame of {length} bytes, over the limit of {FRAME_MAX}: the channel is out of step");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// Encodes a request or a reply.
///
/// # Errors
/// `InvalidData` with what postcard says.
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Decodes a request or a reply.
///
/// # Errors
/// `InvalidData` with what postcard says.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
