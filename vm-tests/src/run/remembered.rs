//! Recordings of earlier runs, by the hash of all their inputs. A recording is remembered, and never a verdict: judge,
//! expectations and snapshots see it anew each time.
//!
//! In virtual time only, where a run depends on nothing else. That this is so is tried again by every suite, with at least
//! one run that is remembered; if its recording is another one, nothing is remembered until a person has looked.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use vm_agent::recording::{Recording, What};

use crate::cache::{self, Key};
use crate::host::events::{self, Event};

/// More than these are too many; as many as this are left then, those that were used last. One is 50 kB.
const MOST: usize = 4000;
const KEPT: usize = 3000;

/// The file that says why nothing is remembered any more.
const OFF: &str = "off";

/// A recording that is remembered.
#[derive(Debug, Clone)]
pub struct Remembered {
    /// The recording.
    pub recording: Recording,
    /// Its JSON, as it was kept.
    pub text: String,
    /// What is known of it.
    pub about: About,
}

/// What is known of a remembered recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The key, in full.
    key: String,
    /// The SHA-256 of the recording's JSON.
    sha256: String,
    /// When it was recorded, in seconds since 1970.
    recorded: u64,
    /// When it was recorded once more, with the same result.
    verified: u64,
    /// How long the run took, in milliseconds of the host.
    pub took_ms: u64,
}

impl Remembered {
    /// When it was recorded: `3 h ago`.
    #[must_use]
    pub fn ago(&self) -> String {
        ago(self.about.age())
    }
}

impl About {
    /// For how long it has been known.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.recorded))
    }

    /// By this the one that was not tried for the longest time is the first.
    #[must_use]
    pub fn turn(&self) -> (u64, &str) {
        (self.verified, &self.key)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All that is remembered: a directory of the cache.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the store of a cache; `None` if nothing is to be remembered, which is told.
    ///
    /// # Errors
    /// If its directory can't be made or read.
    pub fn open(cache: &Path) -> Result<Option<Self>> {
        let directory = cache.join("recordings");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let off = directory.join(OFF);
        match std::fs::read_to_string(&off) {
            Ok(why) => {
                let off = off.display();
                events::tell(Event::Warning(format!(
                    "no recording is remembered: {}; when its cause is known: rm {off}",
                    why.trim_end()
                )));
                Ok(None)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let store = Self { directory };
                store.tidy()?;
                Ok(Some(store))
            }
            Err(error) => Err(error).with_context(|| format!("read {}", off.display())),
        }
    }

    /// The recording of a run with these inputs, if it is known. One that is damaged is not.
    #[must_use]
    pub fn recall(&self, key: &Key) -> Option<Remembered> {
        let about: About = serde_json::from_slice(&std::fs::read(self.about(key)).ok()?).ok()?;
        let text = std::fs::read_to_string(self.recording(key)).ok()?;
        let is_whole = about.key == key.as_str() && about.sha256 == cache::hash_bytes(text.as_bytes());
        let recording = is_whole.then(|| serde_json::from_str(&text).ok()).flatten()?;
        // When it was last used, for whoever tidies.
        let touched = File::options().append(true).open(self.about(key));
        drop(touched.and_then(|file| file.set_modified(SystemTime::now())));
        Some(Remembered { recording, text, about })
    }

    /// Remembers a run's recording. The same once more counts as a proof of it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep(&self, key: &Key, text: &str, took_ms: u64, known: Option<&Remembered>) -> Result<()> {
        let recorded = known.map_or_else(now, |known| known.about.recorded);
        let sha256 = cache::hash_bytes(text.as_bytes());
        let about = About { key: key.as_str().to_owned(), sha256, recorded, verified: now(), took_ms };
        // The second is what makes it whole.
        self.write(&self.recording(key), text.as_bytes())?;
        self.write(&self.about(key), &serde_json::to_vec(&about)?)
    }

    /// Remembers nothing any more, and says why to whoever comes.
    ///
    /// # Errors
    /// If that can't be written.
    pub fn switch_off(&self, why: &str) -> Result<()> {
        self.write(&self.directory.join(OFF), format!("{why}\n").as_bytes())
    }

    fn about(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{}.json", key.short()))
    }

    fn recording(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{}.recording", key.short()))
    }

    /// Whole or not at all, whoever else writes the same.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let what = || format!("write {}", path.display());
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).with_context(what)?;
        file.write_all(bytes).with_context(what)?;
        file.persist(path).with_context(what)?;
        Ok(())
    }

    /// Deletes what nobody has used for long.
    fn tidy(&self) -> Result<()> {
        let what = || format!("tidy {}", self.directory.display());
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.directory).with_context(what)? {
            let path = entry.with_context(what)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                all.push(path);
            }
        }
        if all.len() <= MOST {
            return Ok(());
        }
        let used = |path: &PathBuf| std::fs::metadata(path).and_then(|about| about.modified()).ok();
        all.sort_by_cached_key(used);
        let surplus = all.len() - KEPT;
        for about in all.into_iter().take(surplus) {
            for path in [about.with_extension("recording"), about] {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("delete {}", path.display()));
                    }
                    _gone => {}
                }
            }
        }
        Ok(())
    }
}

/// Compares a recording with what is remembered of the same inputs.
///
/// # Errors
/// Where they are not the same, with the first event that is not.
pub fn compare(known: &Recording, recording: &Recording) -> Result<()> {
    if known == recording {
        return Ok(());
    }
    let Some(at) = first_difference(known, recording) else { bail!("its heads are not the same") };
    let event = |recording: &Recording| match recording.events.get(at) {
        Some(event) => format!("{event:?}"),
        None => "none".to_owned(),
    };
    bail!("event {at} was {} and is {}", event(known), event(recording))
}

/// Compares two recordings up to where the host ended the run: what a machine's console says after that is the first that it
/// has part in.
///
/// # Errors
/// As [`compare`].
pub fn compare_without_end(known: &Recording, recording: &Recording) -> Result<()> {
    let without = |all: &Recording| {
        let mut all = all.clone();
        let end = all.events.iter().position(|event| matches!(event.what, What::Console { .. }));
        all.events.truncate(end.unwrap_or(all.events.len()));
        all
    };
    compare(&without(known), &without(recording))
}

/// The number of the first event that two recordings do not share.
#[must_use]
pub fn first_difference(one: &Recording, other: &Recording) -> Option<usize> {
    let longest = one.events.len().max(other.events.len());
    (0..longest).find(|&at| one.events.get(at) != other.events.get(at))
}

/// `3 h ago`: no more precise than anybody asks.
#[must_use]
pub fn ago(age: Duration) -> String {
    match age.as_secs() {
        secs @ 0..60 => format!("{secs} s ago"),
        secs @ 60..3600 => format!("{} min ago", secs / 60),
        secs @ 3600..172_800 => format!("{} h ago", secs / 3600),
        secs => format!("{} days ago", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent::recording::Event;

    fn key(name: &str) -> Key {
        cache::Inputs::new("test", 1).text("name", name).key()
    }

    fn recording(lines: &[&str]) -> Recording {
        let event =
            |line: &&str| Event { at: 1, cycle: 1, what: What::Console { lines: vec![(*line).to_owned()] } };
        Recording { events: lines.iter().map(event).collect(), ..Recording::default() }
    }

    fn store(cache: &Path) -> Store {
        Store::open(cache).expect("open").expect("on")
    }

    #[test]
    fn what_was_kept_is_recalled_by_its_key_and_by_no_other() {
        let cache = tempfile::tempdir().expect("tempdir");
        let store = store(cache.path());
        let kept = recording(&["a"]);
        let text = serde_json::to_string(&kept).expect("json");
        assert!(store.recall(&key("x")).is_none());
        store.keep(&key("x"), &text, 7, None).expect("keep");
        let known = store.recall(&key("x")).expect("known");
        assert_eq!((known.recording.clone(), known.about.took_ms), (kept, 7));
        assert!(store.recall(&key("y")).is_none());
        // Once more: it is as old as it was.
        let older = Remembered { about: About { recorded: 5, ..known.about }, ..known };
        store.keep(&key("x"), &text, 7, Some(&older)).expect("keep");
        let known = store.recall(&key("x")).expect("known");
        assert!(known.about.recorded == 5 && known.about.verified > 5, "{:?}", known.about);
    }

    #[test]
    fn what_is_damaged_is_not_recalled() {
        type Damage = fn(&Path) -> std::io::Result<()>;
        let cases: [(&str, Damage); 3] = [
            ("another recording", |at| std::fs::write(at.with_extension("recording"), "{}")),
            ("half of what is known", |at| File::options().write(true).open(at)?.set_len(20)),
            ("no recording", |at| std::fs::remove_file(at.with_extension("recording"))),
        ];
        for (what, damage) in cases {
            let cache = tempfile::tempdir().expect("tempdir");
            let store = store(cache.path());
            let text = serde_json::to_string(&recording(&["a"])).expect("json");
            store.keep(&key("x"), &text, 7, None).expect("keep");
            damage(&store.about(&key("x"))).expect(what);
            assert!(store.recall(&key("x")).is_none(), "{what}");
        }
    }

    #[test]
    fn a_store_that_is_off_is_not_there_until_somebody_deletes_the_reason() {
        let cache = tempfile::tempdir().expect("tempdir");
        store(cache.path()).switch_off("two recordings of the same inputs").expect("off");
        assert!(Store::open(cache.path()).expect("open").is_none());
        std::fs::remove_file(cache.path().join("recordings/off")).expect("delete");
        assert!(Store::open(cache.path()).expect("open").is_some());
    }

    #[test]
    fn the_first_event_that_differs_is_named() {
        let (one, other) = (recording(&["a", "b"]), recording(&["a", "c"]));
        assert_eq!(first_difference(&one, &one), None);
        assert_eq!(first_difference(&one, &other), Some(1));
        assert_eq!(first_difference(&one, &recording(&["a"])), Some(1));
        let error = compare(&one, &other).expect_err("another").to_string();
        assert!(
            error.starts_with("event 1 was ") && error.contains("\"b\"") && error.contains("\"c\""),
            "{error}"
        );
        let other_kernel = Recording { kernel: "6.1".to_owned(), ..one.clone() };
        compare(&one, &other_kernel).expect_err("another kernel");
        compare(&one, &one).expect("the same");
    }

    #[test]
    fn an_age_is_told_in_one_unit() {
        for (secs, words) in
            [(3, "3 s ago"), (90, "1 min ago"), (3 * 3600 + 5, "3 h ago"), (3 * 86_400, "3 days ago")]
        {
            assert_eq!(ago(Duration::from_secs(secs)), words);
        }
    }
}
