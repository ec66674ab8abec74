//! A bundle's members: a tar in zstd, of names that are known. It comes from anybody.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use ruzstd::decoding::StreamingDecoder;
use serde::de::DeserializeOwned;
use tar::{EntryType, Header};
use vm_agent::wire::PROTOCOL;

use crate::cache;

/// Goes up when an older harness would misread one.
pub(super) const FORM: u32 = 1;

/// The most that a bundle has when it is unpacked, in bytes: a session is at most as large as its device, a recording as a frame.
pub(super) const MOST: u64 = 1 << 30;

pub(super) const ABOUT: &str = "about.json";
pub(super) const SESSION: &str = "session.postcard";
pub(super) const INPUTS: &str = "inputs.json";
pub(super) const RECORDING: &str = "recording.json";
pub(super) const REPORT: &str = "report.json";
/// Only to be read by a person: it is in the session already, and may begin with another one's.
pub(super) const MANIFEST: &str = "scenario.toml";
/// The hash of all others, last.
pub(super) const SUM: &str = "sha256";

/// All members, in their order, and whether a bundle without it is whole.
pub(super) const MEMBERS: [(&str, bool); 7] = [
    (ABOUT, false),
    (SESSION, false),
    (INPUTS, false),
    (RECORDING, false),
    (REPORT, false),
    (MANIFEST, true),
    (SUM, false),
];

/// Why a file is no bundle that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("no bundle of a run, which is a tar in zstd: {0}")]
    NoBundle(String),
    #[error("it is cut or damaged: {0}; get it once more")]
    Damaged(String),
    #[error("it has {0:?}, which no bundle has: do not trust it")]
    Stranger(String),
    #[error("it unpacks to more than {} MiB, which no bundle does: do not trust it", MOST >> 20)]
    TooLarge,
    #[error(
        "it is a bundle of form {0}, and this harness reads form {FORM}: use the checkout that made it{1}"
    )]
    Form(u32, String),
    #[error(
        "its agent speaks protocol {0}, and that of this checkout {PROTOCOL}: use the checkout that made it{1}"
    )]
    Protocol(u32, String),
    #[error("its {0} can't be read: {1}")]
    Unreadable(&'static str, String),
    #[error("its {0} is {1:?}, which is none")]
    NoName(&'static str, String),
}

pub(super) fn sum_of<'a>(members: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let all = members.fold(cache::Inputs::new("repro", FORM), |all, (name, bytes)| all.bytes(name, bytes));
    all.key().as_str().to_owned()
}

/// The same members are the same bytes.
pub(super) fn tar(members: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(u64::try_from(bytes.len())?);
        builder.append_data(&mut header, name, *bytes).with_context(|| (*name).to_owned())?;
    }
    Ok(builder.into_inner()?)
}

/// The members by their names. What none has is an error, so nothing is ever looked for at a path that a bundle names.
pub(super) fn unpack(bytes: &[u8]) -> Result<BTreeMap<&'static str, Vec<u8>>, Unusable> {
    let damaged = |error: std::io::Error| Unusable::Damaged(error.to_string());
    let decoder = StreamingDecoder::new(bytes).map_err(|error| Unusable::NoBundle(error.to_string()))?;
    let mut archive = tar::Archive::new(decoder.take(MOST + 1));
    let mut members = BTreeMap::new();
    let mut all: u64 = 0;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_it = |member: &&(&str, bool)| member.0 == name && !members.contains_key(member.0);
        let member = MEMBERS.iter().find(is_it).filter(|_| entry.header().entry_type() == EntryType::Regular);
        let Some((member, _)) = member else { return Err(Unusable::Stranger(name)) };
        all = all.saturating_add(entry.size());
        if all > MOST {
            return Err(Unusable::TooLarge);
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length < entry.size()) {
            return Err(Unusable::Damaged(format!("the end of its {member} is not there")));
        }
        members.insert(*member, bytes);
    }
    let missing = MEMBERS.iter().find(|(name, may_lack)| !may_lack && !members.contains_key(name));
    if let Some((name, _)) = missing {
        return Err(Unusable::Damaged(format!("it has no {name}")));
    }
    Ok(members)
}

pub(super) fn json<T: DeserializeOwned>(name: &'static str, bytes: &[u8]) -> Result<T, Unusable> {
    serde_json::from_slice(bytes).map_err(|error| Unusable::Unreadable(name, error.to_string()))
}
