//! The verdict on who kept a mount: its words in manifests, snapshots, tables and reports.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::problem::instead;

/// The verdict on who kept the mount, or its file system behind a umount that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountVerdict {
    /// A umount2 was EBUSY, and a process other than the caller's family had a reference inside.
    HeldByProcess,
    /// A umount2 was EBUSY, and all who had a reference inside were the caller or of its family: the control
    /// process that runs the Exec line, and what it started.
    HeldByYourself,
    /// A umount2 was EBUSY, and the kernel itself held the mount: a loop device, a swap file.
    HeldByKernel,
    /// A umount2 was EBUSY, and another mount lay on the watched one, or below it.
    Submounts,
    /// A umount2 was EBUSY, and nothing that `/proc` shows was the reason.
    NotVisible,
    /// umount2 succeeded although somebody held a copy, or the file system is mounted elsewhere afterwards, or the
    /// next mount of the same layers finds them in use.
    AliveElsewhere,
    /// Nobody held it. Some were in a mount namespace with a copy of it, which blocks nothing.
    OnlyListed,
    /// Nobody held it, nobody had a copy.
    None,
}

impl MountVerdict {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HeldByProcess,
        Self::HeldByYourself,
        Self::HeldByKernel,
        Self::Submounts,
        Self::NotVisible,
        Self::AliveElsewhere,
        Self::OnlyListed,
        Self::None,
    ];

    /// As in manifests, tables and snapshots.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::HeldByProcess => "held by a process",
            Self::HeldByYourself => "held by yourself",
            Self::HeldByKernel => "held by the kernel",
            Self::Submounts => "submounts",
            Self::NotVisible => "not visible",
            Self::AliveElsewhere => "alive elsewhere",
            Self::OnlyListed => "only listed",
            Self::None => "none",
        }
    }

    /// A manifest's verdict, from its words.
    ///
    /// # Errors
    /// Lists the verdicts there are.
    pub fn from_words<'de, D: Deserializer<'de>>(words: D) -> Result<Option<Self>, D::Error> {
        let words = String::deserialize(words)?;
        match Self::ALL.into_iter().find(|verdict| verdict.words() == words) {
            Some(verdict) => Ok(Some(verdict)),
            None => {
                Err(D::Error::custom(format!("{words:?}: {}", instead(&words, Self::ALL.map(Self::words)))))
            }
        }
    }

    /// Whether nobody kept the mount: what a scenario that declares no verdict expects.
    #[must_use]
    pub fn is_clean(self) -> bool {
        matches!(self, Self::OnlyListed | Self::None)
    }
}
