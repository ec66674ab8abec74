//! Pinned durations: a scenario's `durations.toml` says how long its start and its reset take in virtual time.
//!
//! ```toml
//! [trixie]
//! start_ms = 318.0
//! reset_ms = 124.4
//! ```
//!
//! A table for each guest: the medians over a run's cycles, in milliseconds of the guest. A guest without a table is as
//! one without a snapshot: it deviates until one is accepted. Only a system that somebody else built is not compared
//! before. Written by the same rule as snapshots (`INSTA_UPDATE=always`), read when the clock is virtual: a wall-clock
//! duration is the host's, and no file's.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::image::FOREIGN;
use crate::outcome::Cycle;

/// How far a median may be from its pin, as a part of it.
///
/// Runs of one build do not differ (see "Determinism" in ARCHITECTURE.md). What a pin must bear are other builds: the
/// guest's packages are the day's, and the guest programs are compiled anew. Measured over two builds whose agent, helper
/// and `l4d2ctl` differed: seven scenarios of `product-*` on trixie and on bookworm, start and reset, 28 pairs of medians.
/// Half of them differed by 0.9 % or less, the pair furthest apart by 4.2 %. Three times that is allowed.
pub const TOLERANCE: f64 = 0.125;

/// The file's name, in the scenario's directory.
pub const FILE: &str = "durations.toml";

const HEADER: &str = "\
# Medians in milliseconds of the guest's virtual time, for each image. Compared where the clock is virtual, within the
# tolerance of vm-tests/src/pins.rs. INSTA_UPDATE=always writes what was measured.
";

/// One guest's table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// The start command's median.
    pub start_ms: f64,
    /// The reset command's median.
    pub reset_ms: f64,
}

impl Pins {
    /// What a run gave; `None` without a cycle.
    #[must_use]
    pub fn of(cycles: &[Cycle]) -> Option<Self> {
        let median = |of: fn(&Cycle) -> u64| {
            let mut all: Vec<u64> = cycles.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied()
        };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of minutes are far below 2^52")]
        let ms = |ns: u64| ns as f64 / 1e6;
        Some(Self {
            start_ms: ms(median(|cycle| cycle.start_ns)?),
            reset_ms: ms(median(|cycle| cycle.reset_ns)?),
        })
    }

    /// What is further from its pin than [`TOLERANCE`], in words.
    #[must_use]
    pub fn deviations(&self, measured: &Self) -> Vec<String> {
        [("start", self.start_ms, measured.start_ms), ("reset", self.reset_ms, measured.reset_ms)]
            .into_iter()
            // What is no number is outside, too.
            .filter(|(_, pinned, measured)| {
                let (least, most) = (pinned * (1.0 - TOLERANCE), pinned * (1.0 + TOLERANCE));
                !(least..=most).contains(measured)
            })
            .map(|(what, pinned, measured)| {
                format!(
                    "the median {what} took {measured:.1} ms of virtual time, and {pinned:.1} ms are pinned (±{:.1} %)",
                    TOLERANCE * 100.0
                )
            })
            .collect()
    }
}

/// What to do about a run's durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Compare, change nothing.
    Never,
    /// Write what was measured where it deviates or is not pinned.
    Always,
}

/// A scenario's pins by guest; none if it has no such file.
///
/// # Errors
/// A file that can't be read or parsed.
pub fn read(directory: &Path) -> Result<BTreeMap<String, Pins>> {
    let path = directory.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("parse {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Compares a run with a scenario's pins for this guest, or writes them. Returns what deviates.
///
/// Guests of one scenario share the file and may be tested at once, by threads or by processes: one that may write has
/// the file for itself from its reading on, so that no table is lost. Whoever only reads finds it whole.
///
/// # Errors
/// A file that can't be read, parsed, locked or written.
pub fn compare(directory: &Path, guest: &str, measured: &Pins, update: Update) -> Result<Vec<String>> {
    let path = directory.join(FILE);
    let _held = match update {
        Update::Always => Some(lock(directory)?),
        Update::Never => None,
    };
    let mut all = read(directory)?;
    let pinned = all.get(guest);
    let deviations = match pinned {
        Some(pinned) => pinned.deviations(measured),
        None if guest == FOREIGN => Vec::new(),
        None => vec![format!(
            "no durations of {guest} are pinned (start took {:.1} ms and reset {:.1} ms; INSTA_UPDATE=always writes them)",
            measured.start_ms, measured.reset_ms
        )],
    };
    if update == Update::Never || (pinned.is_some() && deviations.is_empty()) {
        return Ok(deviations.iter().map(|what| format!("{what}: {}", path.display())).collect());
    }
    let tenth = |ms: f64| (ms * 10.0).round() / 10.0;
    let rounded = Pins { start_ms: tenth(measured.start_ms), reset_ms: tenth(measured.reset_ms) };
    all.insert(guest.to_owned(), rounded);
    let text = toml::to_string(&all).context("write pins as TOML")?;
    replace(&path, directory, &format!("{HEADER}\n{text}"))?;
    Ok(Vec::new())
}

/// Locks a scenario's directory against other writers of its pins, until this is dropped.
///
/// An flock(2) on the directory itself: the file in it is replaced, so a lock on that would be one on an older file, and
/// a file for the lock (as [`crate::cache::Lock`] has one) would lie in the repository. It is held for a read and a
/// write, so waiting for it needs no deadline.
fn lock(directory: &Path) -> Result<File> {
    let lock = || {
        let directory = File::open(directory)?;
        directory.lock()?;
        Ok::<_, std::io::Error>(directory)
    };
    lock().with_context(|| format!("lock {}", directory.display()))
}

/// Writes a file beside its place, in `directory`, and renames it.
fn replace(path: &Path, directory: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(&format!(".{FILE}."))
            // The umask has its say; without this it would be for its owner only.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok::<_, std::io::Error>(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_a_bound_on_both_sides() {
        let pinned = Pins { start_ms: 300.0, reset_ms: 100.0 };
        for (reset_ms, right) in
            [(100.0, true), (112.4, true), (87.6, true), (112.6, false), (87.4, false), (f64::NAN, false)]
        {
            let deviations = pinned.deviations(&Pins { start_ms: 300.0, reset_ms });
            assert_eq!(deviations.is_empty(), right, "{reset_ms}: {deviations:?}");
        }
        let both = pinned.deviations(&Pins { start_ms: 1.0, reset_ms: 1.0 });
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn what_was_measured_is_written_when_asked_and_only_where_it_deviates() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |reset_ms| Pins { start_ms: 300.0, reset_ms };
        let compare = |guest, measured: &Pins, update| {
            super::compare(directory.path(), guest, measured, update).expect("compare")
        };
        let missing = compare("trixie", &at(100.0), Update::Never).concat();
        assert!(missing.contains("no durations of trixie are pinned"), "{missing}");
        assert!(missing.contains("start took 300.0 ms and reset 100.0 ms"), "{missing}");
        assert!(missing.contains("INSTA_UPDATE=always"), "{missing}");
        assert!(compare(FOREIGN, &at(100.0), Update::Never).is_empty(), "somebody else's system has its own");
        assert!(!directory.path().join(FILE).exists(), "nothing is written unasked");
        assert!(compare("trixie", &at(100.04), Update::Always).is_empty());
        // One table is nobody else's.
        assert_eq!(compare("sid", &at(200.0), Update::Never).len(), 1);
        assert!(compare("sid", &at(200.0), Update::Always).is_empty());
        assert!(compare("sid", &at(200.0), Update::Never).is_empty());
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("read");
        assert!(text.contains("[trixie]\nstart_ms = 300.0\nreset_ms = 100.0\n"), "{text}");
        let deviations = compare("trixie", &at(150.0), Update::Never);
        assert!(deviations.len() == 1 && deviations.concat().contains("150.0 ms"), "{deviations:?}");
        assert!(compare("trixie", &at(101.0), Update::Always).is_empty());
        assert_eq!(std::fs::read_to_string(directory.path().join(FILE)).expect("read"), text);
        assert!(compare("trixie", &at(150.0), Update::Always).is_empty());
        assert!(compare("trixie", &at(150.0), Update::Never).is_empty());
    }

    #[test]
    fn guests_that_are_pinned_at_once_lose_none() {
        const GUESTS: usize = 8;
        const ROUNDS: u32 = 10;
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |round: u32| Pins { start_ms: 300.0, reset_ms: 100.0 * f64::from(1_u32 << round) };
        let names: Vec<String> = (0..GUESTS).map(|number| format!("guest{number}")).collect();
        let together = std::sync::Barrier::new(GUESTS);
        std::thread::scope(|scope| {
            for guest in &names {
                let (directory, together) = (directory.path(), &together);
                scope.spawn(move || {
                    together.wait();
                    for round in 0..ROUNDS {
                        let compare =
                            |update| super::compare(directory, guest, &at(round), update).expect("compare");
                        // It has none yet, or its own are those that it has written last.
                        assert!(!compare(Update::Never).is_empty(), "{guest}, round {round}");
                        assert!(compare(Update::Always).is_empty());
                        assert!(compare(Update::Never).is_empty(), "{guest}, round {round}");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("read");
        let all: BTreeMap<String, Pins> = toml::from_str(&text).expect("TOML");
        assert_eq!(all, names.into_iter().map(|guest| (guest, at(ROUNDS - 1))).collect());
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "nothing else is left");
    }
}
