//! One input of a run, and how it differs from another run's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an input is one of, in the order in which they have effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The QEMU: its version, its files.
    Qemu,
    /// A word of its command line.
    Argument,
    /// A package of the guest's root. It explains a difference of the contents.
    Package,
    /// What the guest's root holds.
    Image,
    /// A program that the harness brings into every machine. It explains a difference of the saved machine.
    Program,
    /// The state that the run starts from.
    Machine,
    /// A file that the scenario brings.
    File,
    /// A command of its set-up.
    SetUp,
    /// A part of its plan: what is run and watched.
    Plan,
    /// What the host does with the machine after the plan, at a moment of the host's.
    End,
}

impl Kind {
    /// Whether it is in another input already, and says only why that is another one.
    #[must_use]
    pub const fn explains(self) -> bool {
        matches!(self, Self::Package | Self::Program)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::Argument => "QEMU's argument",
            Self::Package => "package of the image",
            Self::Image => "image",
            Self::Program => "the harness's program",
            Self::Machine => "saved machine",
            Self::File => "file",
            Self::SetUp => "set-up",
            Self::Plan => "plan",
            Self::End => "what the host does at the end",
        })
    }
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it is one of.
    pub kind: Kind,
    /// Which one, unique among its kind.
    pub name: String,
    /// The thing itself, or its SHA-256.
    pub value: String,
}

/// An input that two runs do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a> {
    /// What it is one of.
    pub kind: Kind,
    /// Which.
    pub name: &'a str,
    /// Its value in the one.
    pub here: Option<&'a str>,
    /// Its value in the other.
    pub there: Option<&'a str>,
}

impl fmt::Display for Difference<'_> {
    /// `file /etc/systemd/system/demo.service: file 644 1f3a… -> file 644 99c0…`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: Option<&str>| value.map_or_else(|| "not there".to_owned(), shortened);
        write!(f, "{} {}: {} -> {}", self.kind, self.name, value(self.here), value(self.there))
    }
}

/// Hashes as their first twelve digits, other values as they are.
fn shortened(value: &str) -> String {
    let is_hash = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = value.split(' ').map(|word| if is_hash(word) { &word[..12] } else { word });
    words.collect::<Vec<_>>().join(" ")
}
