//! How a manifest says that the last umount2(2) went, and the next mount of the same layers.

use std::fmt;

use nix::errno::Errno;
use serde::Deserialize;
use vm_agent::recording::Remount;

use super::problem::meant;

/// How the last umount2(2) went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ExpectedUmount {
    /// It succeeded.
    Ok,
    /// There was none.
    None,
    /// It failed.
    Errno(Errno),
}

/// How the next mount of the same layers went; see [`Remount`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ExpectedRemount {
    /// It succeeded, and the kernel logged nothing.
    Silent,
    /// It succeeded, and the kernel logged that the layers are in use.
    InUse,
    /// It failed.
    Errno(Errno),
    /// It was not tried, for this one of [`Remount::WHY_NOT`].
    NotTried(String),
}

impl TryFrom<String> for ExpectedUmount {
    type Error = String;

    fn try_from(words: String) -> Result<Self, String> {
        match words.as_str() {
            "ok" => Ok(Self::Ok),
            "none" => Ok(Self::None),
            name => errno(name)
                .map(Self::Errno)
                .ok_or_else(|| no(&words, &["ok", "none"], "ok, none, and an errno as EBUSY")),
        }
    }
}

impl TryFrom<String> for ExpectedRemount {
    type Error = String;

    fn try_from(words: String) -> Result<Self, String> {
        if let Some(errno) = errno(&words) {
            return Ok(Self::Errno(errno));
        }
        match (words.as_str(), words.strip_prefix(NOT_TRIED)) {
            ("silent", _) => Ok(Self::Silent),
            ("in use", _) => Ok(Self::InUse),
            (_, Some(why)) if Remount::WHY_NOT.contains(&why) => Ok(Self::NotTried(why.to_owned())),
            _ => {
                let not_tried = Remount::WHY_NOT.map(|why| format!("{NOT_TRIED}{why}")).join(", ");
                let there_are = format!("silent, in use, an errno as EBUSY, {not_tried}");
                Err(no(&words, &["silent", "in use"], &there_are))
            }
        }
    }
}

const NOT_TRIED: &str = "not tried: ";

/// As in manifests and snapshots.
impl fmt::Display for ExpectedUmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::None => f.write_str("none"),
            Self::Errno(errno) => write!(f, "{errno:?}"),
        }
    }
}

/// As in manifests and snapshots.
impl fmt::Display for ExpectedRemount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("silent"),
            Self::InUse => f.write_str("in use"),
            Self::Errno(errno) => write!(f, "{errno:?}"),
            Self::NotTried(why) => write!(f, "{NOT_TRIED}{why}"),
        }
    }
}

/// Some words, or an errno, were meant to be there.
fn no(words: &str, known: &[&str], there_are: &str) -> String {
    let errnos: Vec<String> = errnos().map(|errno| format!("{errno:?}")).collect();
    let known = known.iter().copied().chain(errnos.iter().map(String::as_str));
    format!("{words:?}: {}there are {there_are}", meant(words, known))
}

fn errno(name: &str) -> Option<Errno> {
    errnos().find(|errno| format!("{errno:?}") == name)
}

/// All errnos. They are below 134 on every Linux (include/uapi/asm-generic/errno.h).
fn errnos() -> impl Iterator<Item = Errno> {
    (1..134).map(Errno::from_raw).filter(|errno| *errno != Errno::UnknownErrno)
}
