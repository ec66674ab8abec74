//! What client and host say to each other: one request a connection, as a line of JSON, with the bytes of files behind it; and
//! lines of JSON back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The place of every file that a version must have: without one of them there is nothing to try it with.
pub const REQUIRED: [&str; 5] = [DEPLOYER, CONTROL, HELPER, SERVER_UNIT, OVERLAY_UNIT];

/// This program, as a version has it.
pub const DEPLOYER: &str = "/usr/local/libexec/left4me/left4me-deploy";
/// The control command.
pub const CONTROL: &str = "/usr/local/bin/l4d2ctl";
/// The root helper.
pub const HELPER: &str = "/usr/local/libexec/left4me/left4me-overlay";
/// A server's unit.
pub const SERVER_UNIT: &str = "/usr/local/lib/systemd/system/left4me-server@.service";
/// Its overlay's unit.
pub const OVERLAY_UNIT: &str = "/usr/local/lib/systemd/system/left4me-overlay@.service";

/// What a version's programs and units ask of each other and of what lies in `/var/lib/left4me`: the units of a running server
/// call the helper of the next version, and that one finds its runtime directory. Goes up when old and new can't serve the same
/// servers.
pub const INTERFACE: u32 = 1;

/// The name of a version: of its contents, 16 hexadecimal digits.
pub type Id = String;

/// The bytes' SHA-256, in hexadecimal.
#[must_use]
pub fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a version is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// For people: `0.1.0`.
    pub version: String,
    /// See [`INTERFACE`].
    pub interface: u32,
    /// The oldest and the newest systemd that it was tested with.
    pub systemd: (u32, u32),
    /// The oldest and the newest Linux that it was tested with: major and minor.
    pub kernel: ((u32, u32), (u32, u32)),
    /// By their paths on the host.
    pub files: BTreeMap<String, File>,
}

/// One of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// In bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: String,
}

impl Manifest {
    /// Its name, by all that is in it.
    #[must_use]
    pub fn id(&self) -> Id {
        let text = serde_json::to_vec(self).unwrap_or_default();
        sum(&text).chars().take(16).collect()
    }

    /// The version as people name it: `0.1.0 (5eac51ab22c0ffee)`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} ({})", self.version, self.id())
    }
}

/// Which version is meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One that the client has, with the texts of it that a plan shows.
    New {
        /// What it is made of.
        manifest: Manifest,
        /// By their paths.
        texts: BTreeMap<String, String>,
    },
    /// The one that was confirmed so many versions before the current one. 1 is the one before.
    Back(u32),
}

/// What a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What a deploy would change. It changes nothing itself.
    Plan(Target),
    /// Keep a version on the host, without using it. Its missing files follow the request, in the order of `blobs`.
    Stage {
        /// What it is made of.
        manifest: Manifest,
        /// The sums and sizes of the files that follow.
        blobs: Vec<(String, u64)>,
        /// Who asks.
        by: String,
    },
    /// Use a version: guard, switch, canary. It is on trial until [`Request::Confirm`].
    Apply(Apply),
    /// It is good: a new connection got through.
    Confirm {
        /// Of the deploy.
        token: String,
    },
    /// The old version, now.
    PutBack {
        /// Of the deploy; without it, whichever is on trial.
        token: Option<String>,
    },
    /// What was deployed, what is on trial, who works.
    Status,
}

/// A version to use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Apply {
    /// As the plan has it: none is no version at all.
    pub to: Option<Id>,
    /// The plan's digest: if the host is another one by now, it is refused.
    pub digest: String,
    /// Names this deploy; made by the client, so that it can ask for it after a lost link.
    pub token: String,
    /// Who deploys.
    pub by: String,
    /// How long the deploy may take, in seconds, until the guard undoes it.
    pub limit_secs: u64,
    /// How long it may be on trial after that, in seconds.
    pub confirm_secs: u64,
}

/// A line of the host's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A step of a deploy begins.
    Step(String),
    /// Something to tell.
    Note(String),
    /// The answer: the last line.
    Answer(Box<Answer>),
}

/// How a request ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What would change.
    Plan(Box<Plan>),
    /// The version is on the host, and looked at.
    Staged(Id),
    /// The version is in use, and waits to be confirmed.
    OnTrial,
    /// It stays.
    Confirmed,
    /// The old version is in use again.
    PutBack {
        /// Why.
        why: String,
    },
    /// Nothing was changed, as something is in the way.
    Refused(Vec<Refusal>),
    /// It failed before anything was changed.
    Failed(String),
    /// It failed, and so did the way back: the guard goes on trying.
    Unknown(String),
    /// See [`Request::Status`].
    Status(Status),
}

/// What is in the way, and what to type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is in the way.
    pub why: String,
    /// What to do about it.
    pub next: String,
}

impl Refusal {
    /// A refusal in words.
    pub fn new(why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { why: why.into(), next: next.into() }
    }
}

/// What a deploy does to one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It will be another one.
    Change,
    /// It stays what it is.
    Same,
    /// It can't be told.
    Unknown,
    /// It is in the way.
    Refused,
}

impl Word {
    /// As a plan shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Same => "same",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
        }
    }
}

/// What a deploy would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Of the host, in a line.
    pub host: String,
    /// The version that it has, in words.
    pub from: String,
    /// The version that it would have, in words.
    pub to: String,
    /// The same by its name, as [`Apply`] wants it.
    pub to_id: Option<Id>,
    /// File by file.
    pub items: Vec<Item>,
    /// Server by server.
    pub instances: Vec<Item>,
    /// What is run after the switch.
    pub reloads: Vec<String>,
    /// What is in the way.
    pub refusals: Vec<Refusal>,
    /// The sums of files that the host lacks.
    pub missing: Vec<String>,
    /// Whether the host would be the same.
    pub is_nothing: bool,
    /// Names all that was looked at.
    pub digest: String,
}

/// A thing of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its path, or a server's unit.
    pub what: String,
    /// What becomes of it.
    pub word: Word,
    /// In a few words: a mode, a size; the version that runs, and that of the next start.
    pub note: String,
    /// Of texts, as `diff -u` has it.
    pub diff: Option<String>,
}

/// See [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version in use, in words.
    pub current: String,
    /// What is on trial, in words.
    pub on_trial: Option<String>,
    /// Who works on it now, since when.
    pub locked: Option<String>,
    /// The token that is on trial, and the outcome that the log has for the last one.
    pub token: Option<String>,
    /// The log's last lines, the newest last.
    pub log: Vec<Entry>,
    /// Versions to go back to: [`Target::Back`]'s number, and the version in words.
    pub back: Vec<(u32, String)>,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What happened.
    pub what: What,
    /// Seconds since 1970, as the host's clock had it.
    pub at: u64,
    /// The boot, and nanoseconds of it: what a clock that is set can't change.
    pub boot: String,
    /// Nanoseconds since that boot.
    pub since_boot_ns: u64,
    /// Which deploy.
    pub token: String,
    /// Who.
    pub by: String,
    /// From which version.
    pub from: Option<Id>,
    /// To which version.
    pub to: Option<Id>,
    /// More, in words.
    pub note: String,
}

/// What a line of the log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The link is about to be switched to `to`.
    Switch,
    /// `to` stays.
    Confirmed,
    /// The link is back at `to`.
    PutBack,
}

impl What {
    /// As a log shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Confirmed => "confirmed",
            Self::PutBack => "put back",
        }
    }
}
