//! Baselines: what a scenario's runs are compared with. Each lies in the scenario's directory:
//!
//! - `outcome.snap`, the text of a run on any guest, and `outcome.<guest>.snap` where one differs;
//! - `durations.toml`, how long start and reset take in virtual time:
//!
//! ```toml
//! [trixie]
//! start_ms = 318.0
//! reset_ms = 124.4
//! lock = "ab12cd34ef56"
//! ```
//!
//! A table for each guest: the medians over a run's cycles, in milliseconds of the guest; of a reset, without the recorder's
//! scans meanwhile; and the lock of the image that they were measured on, which names its packages by their versions. On
//! another lock they are compared all the same: the tolerance is for that too. A guest without a table
//! deviates until one is accepted, as one without a snapshot does; one that is of no suite, as an external image, is not
//! compared. Written by the same
//! rule as snapshots (`INSTA_UPDATE=always`), read when the clock is virtual: a wall-clock duration is the host's, and no
//! file's.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cycle::Cycle;
use crate::host::accel::Clock;
use crate::image::Suite;

/// How far a median may be from its baseline, as a part of it.
///
/// Runs of one build do not differ (see "Determinism" in ARCHITECTURE.md). Other builds do: the guest's
/// packages are the day's, and the guest programs are compiled anew. Measured over two builds whose agent, helper
/// and `l4d2ctl` differed: seven scenarios of `product-*` on trixie and on bookworm, start and reset, 28 pairs of medians.
/// Half of them differed by 0.9 % or less, the pair furthest apart by 4.2 %. Three times that is allowed.
pub const TOLERANCE: f64 = 0.125;

/// The snapshot's name, in the scenario's directory, without `.snap`.
const SHARED: &str = "outcome";

/// The file of durations, there too.
const FILE: &str = "durations.toml";

const HEADER: &str = "\
# Medians in milliseconds of the guest's virtual time, for each image. Compared where the clock is virtual, within the
# tolerance of vm-tests/src/judge/baselines.rs. INSTA_UPDATE=always writes what was measured.
";

/// How long a run's commands took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Durations {
    /// The start command's median.
    pub start_ms: f64,
    /// The reset command's median.
    pub reset_ms: f64,
}

/// One guest's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    start_ms: f64,
    reset_ms: f64,
    /// The name of the packages that it was measured on; none of one that is older than such names, or of an image without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lock: Option<String>,
}

impl Pin {
    fn durations(&self) -> Durations {
        Durations { start_ms: self.start_ms, reset_ms: self.reset_ms }
    }
}

impl Durations {
    /// What a run gave; `None` without a cycle. A reset is without the recorder's scans: seldom, in one of 400 resets, one of
    /// them waits up to 20 ms (95 on Linux 6.1) in the kernel for a task that it keeps from running (`record/fair_share.rs`).
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
            reset_ms: ms(median(|cycle| cycle.reset_ns.saturating_sub(cycle.probe_ns))?),
        })
    }

    /// What is further from its baseline than [`TOLERANCE`], in words.
    #[must_use]
    pub fn deviations(&self, measured: &Self) -> Vec<String> {
        [("start", self.start_ms, measured.start_ms), ("reset", self.reset_ms, measured.reset_ms)]
            .into_iter()
            // NaN is outside, too.
            .filter(|(_, baseline, measured)| {
                let (least, most) = (baseline * (1.0 - TOLERANCE), baseline * (1.0 + TOLERANCE));
                !(least..=most).contains(measured)
            })
            .map(|(what, baseline, measured)| {
                format!(
                    "the median {what} took {measured:.1} ms of virtual time, the baseline is {baseline:.1} ms (±{:.1} %)",
                    TOLERANCE * 100.0
                )
            })
            .collect()
    }
}

/// What a scenario's runs on one guest are compared with, as its directory has it.
#[derive(Debug, Clone)]
pub struct Baselines {
    directory: PathBuf,
    guest: String,
    clock: Clock,
    /// `outcome.snap`, which all guests share.
    shared: Option<String>,
    /// `outcome.<guest>.snap`.
    own: Option<String>,
    /// The guest's table in `durations.toml`.
    pub durations: Option<Durations>,
    /// The lock that they are pinned for, and that of the image which is compared.
    pinned_for: Option<String>,
    lock: Option<String>,
    /// Whether no run of the scenario was ever accepted, on any guest.
    pub(super) none_yet: bool,
}

/// How the text of a run compares with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The run's text.
    pub text: String,
    /// The name, without `.snap`, of the snapshot that it was compared with.
    pub compared: String,
    /// The name of the one that it becomes if it is accepted.
    pub accepted: String,
    /// Whether the guest's own snapshot says what the shared one says.
    pub redundant: bool,
    /// What is wrong, in words.
    pub mismatch: Option<String>,
    /// The lines in which the two differ: `-` is the snapshot's, `+` this run's. Empty without a snapshot.
    pub changes: Vec<String>,
}

impl Outcome {
    /// What is wrong and the lines that differ, as one text; `None` if all is as it was.
    pub(super) fn words(&self) -> Option<String> {
        let mismatch = self.mismatch.as_ref()?;
        Some([slice::from_ref(mismatch), self.changes.as_slice()].concat().join("\n  "))
    }
}

impl Baselines {
    /// Reads those of a guest, whose clock says whether durations are compared.
    ///
    /// # Errors
    /// Durations that can't be read or parsed.
    pub fn load(directory: &Path, guest: &str, clock: Clock) -> Result<Self> {
        let text = |name: String| {
            let snapshot = insta::Snapshot::from_file(&directory.join(name)).ok()?;
            Some(snapshot.as_text()?.to_string())
        };
        let mut durations = read(directory)?;
        let none_yet = durations.is_empty() && !has_snapshot(directory)?;
        let pin = durations.remove(guest);
        Ok(Self {
            directory: directory.to_owned(),
            guest: guest.to_owned(),
            clock,
            shared: text(format!("{SHARED}.snap")),
            own: text(format!("{SHARED}.{guest}.snap")),
            none_yet,
            durations: pin.as_ref().map(Pin::durations),
            pinned_for: pin.and_then(|pin| pin.lock),
            lock: None,
        })
    }

    /// The same, for a run on an image whose packages have this name.
    #[must_use]
    pub fn on(self, lock: Option<&str>) -> Self {
        Self { lock: lock.map(str::to_owned), ..self }
    }

    /// Compares with the guest's own snapshot if there is one, else with the one that all guests share.
    pub(crate) fn compare_text(&self, text: String) -> Outcome {
        // The text of a snapshot has no white space at its end.
        let is = |snapshot: &Option<String>| snapshot.as_deref() == Some(text.trim_end());
        let own_name = format!("{SHARED}.{}", self.guest);
        let (compared, same) = match &self.own {
            Some(_) => (own_name.clone(), is(&self.own)),
            None => (SHARED.to_owned(), is(&self.shared)),
        };
        let redundant = self.own.is_some() && is(&self.shared);
        // One that is accepted becomes the shared one if there is none yet, or if it is the reference's.
        let reference = self.guest == Suite::default().as_str();
        let of_its_own = !reference && self.shared.is_some() && !is(&self.shared);
        let accepted = if of_its_own { own_name } else { compared.clone() };
        let file = self.directory.join(format!("{compared}.snap"));
        let mismatch = match (redundant, same) {
            (true, _) => Some(format!("{} says what {SHARED}.snap says: delete it", file.display())),
            (false, false) if self.none_yet => Some(FIRST.to_owned()),
            (false, false) if self.own.is_none() && self.shared.is_none() => Some(format!(
                "{} is not there, and a run was accepted before: restore it, or accept this run with INSTA_UPDATE=always",
                file.display()
            )),
            (false, false) => Some(format!("the outcome is not that of {}", file.display())),
            (false, true) => None,
        };
        let snapshot = self.own.as_deref().or(self.shared.as_deref()).filter(|_| !redundant && !same);
        let changes = snapshot.map(|snapshot| changes(snapshot, text.trim_end())).unwrap_or_default();
        Outcome { text, compared, accepted, redundant, mismatch, changes }
    }

    /// Only where the clock is virtual.
    pub(super) fn compares_durations(&self) -> bool {
        self.clock == Clock::Virtual
    }

    /// What the medians say against the accepted ones.
    pub(super) fn compare_durations(&self, measured: &Durations) -> Vec<String> {
        let deviations = match &self.durations {
            Some(baseline) => baseline.deviations(measured),
            None if self.guest.parse::<Suite>().is_err() => Vec::new(),
            None => vec![format!(
                "{} has no baseline (start took {:.1} ms and reset {:.1} ms; INSTA_UPDATE=always writes them)",
                self.guest, measured.start_ms, measured.reset_ms
            )],
        };
        let path = self.directory.join(FILE);
        let other = match (&self.pinned_for, &self.lock) {
            (Some(pinned), Some(this)) if pinned != this => {
                format!(" (pinned for {} of lock {pinned}, this is {this})", self.guest)
            }
            _same_or_not_known => String::new(),
        };
        deviations.iter().map(|what| format!("{what}: {}{other}", path.display())).collect()
    }

    /// Writes a run's durations as the guest's, unless the file has some by now that they agree with.
    ///
    /// Guests of one scenario share the file and may be tested at once, by threads or by processes: one that may write has
    /// the file for itself from its reading on, so that no table is lost. Whoever only reads finds it whole.
    ///
    /// # Errors
    /// A file that can't be read, parsed, locked or written.
    pub fn accept_durations(&self, measured: &Durations) -> Result<()> {
        let _held = lock(&self.directory)?;
        let mut all = read(&self.directory)?;
        if all.get(&self.guest).is_some_and(|pin| pin.durations().deviations(measured).is_empty()) {
            return Ok(());
        }
        let tenth = |ms: f64| (ms * 10.0).round() / 10.0;
        let (start_ms, reset_ms) = (tenth(measured.start_ms), tenth(measured.reset_ms));
        all.insert(self.guest.clone(), Pin { start_ms, reset_ms, lock: self.lock.clone() });
        let text = toml::to_string(&all).context("write durations as TOML")?;
        replace(&self.directory.join(FILE), &self.directory, &format!("{HEADER}\n{text}"))
    }
}

/// What is said of a run that there is nothing to compare with.
const FIRST: &str = "as expected, and there is no snapshot yet that pins it: INSTA_UPDATE=always and the same command make one";

/// Whether a scenario has a snapshot of any guest.
fn has_snapshot(directory: &Path) -> Result<bool> {
    let what = || format!("read {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&format!("{SHARED}.")) && name.ends_with(".snap") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The lines that differ, and no others.
fn changes(snapshot: &str, text: &str) -> Vec<String> {
    let diff = similar::TextDiff::from_lines(snapshot, text);
    let differing = diff.iter_all_changes().filter(|change| change.tag() != similar::ChangeTag::Equal);
    differing.map(|change| format!("{}{}", change.tag(), change.value().trim_end())).collect()
}

/// A scenario's durations by guest; none if it has no such file.
fn read(directory: &Path) -> Result<BTreeMap<String, Pin>> {
    let path = directory.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("parse {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Locks a scenario's directory against other writers of its baselines, until this is dropped.
///
/// An flock(2) on the directory itself: the file in it is replaced, so a lock on that would be one on an older file, and
/// a file for the lock (as [`crate::cache::Lock`] has one) would lie in the repository. It is held for a read and a
/// write, so waiting for it needs no deadline.
pub(crate) fn lock(directory: &Path) -> Result<File> {
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
    use crate::image::EXTERNAL;

    /// What is said against a run's durations, after they were written if `accept` says so.
    fn compare(directory: &Path, guest: &str, measured: &Durations, accept: bool) -> Vec<String> {
        let load = || Baselines::load(directory, guest, Clock::Virtual).expect("load");
        if accept {
            load().accept_durations(measured).expect("accept");
        }
        load().compare_durations(measured)
    }

    #[test]
    fn a_baseline_is_a_bound_on_both_sides() {
        let baseline = Durations { start_ms: 300.0, reset_ms: 100.0 };
        for (reset_ms, right) in
            [(100.0, true), (112.4, true), (87.6, true), (112.6, false), (87.4, false), (f64::NAN, false)]
        {
            let deviations = baseline.deviations(&Durations { start_ms: 300.0, reset_ms });
            assert_eq!(deviations.is_empty(), right, "{reset_ms}: {deviations:?}");
        }
        let both = baseline.deviations(&Durations { start_ms: 1.0, reset_ms: 1.0 });
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn a_pin_that_was_deleted_is_no_first_run() {
        let directory = tempfile::tempdir().expect("tempdir");
        let compared = || {
            let baselines = Baselines::load(directory.path(), "trixie", Clock::Virtual).expect("load");
            let mismatch =
                baselines.compare_text("as it is".to_owned()).mismatch.expect("nothing to compare with");
            (baselines.none_yet, mismatch)
        };
        let (none_yet, words) = compared();
        assert!(none_yet && words.contains("there is no snapshot yet that pins it"), "{words}");
        compare(directory.path(), "sid", &Durations { start_ms: 1.0, reset_ms: 1.0 }, true);
        let (none_yet, words) = compared();
        assert!(!none_yet && words.contains("outcome.snap is not there"), "{words}");
        std::fs::remove_file(directory.path().join(FILE)).expect("delete");
        std::fs::write(directory.path().join("outcome.sid.snap"), "").expect("write");
        assert!(!compared().0, "another guest's");
    }

    #[test]
    fn what_was_measured_is_written_when_asked_and_only_where_it_deviates() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |reset_ms| Durations { start_ms: 300.0, reset_ms };
        let compare =
            |guest, measured: &Durations, accept| compare(directory.path(), guest, measured, accept);
        let missing = compare("trixie", &at(100.0), false).concat();
        assert!(missing.contains("trixie has no baseline"), "{missing}");
        assert!(missing.contains("start took 300.0 ms and reset 100.0 ms"), "{missing}");
        assert!(missing.contains("INSTA_UPDATE=always"), "{missing}");
        assert!(compare("store-guest", &at(100.0), false).is_empty(), "nor one that brings its product");
        assert!(compare(EXTERNAL, &at(100.0), false).is_empty(), "an external image has no baseline");
        assert!(!directory.path().join(FILE).exists(), "nothing is written unasked");
        assert!(compare("trixie", &at(100.04), true).is_empty());
        // One table is nobody else's.
        assert_eq!(compare("sid", &at(200.0), false).len(), 1);
        assert!(compare("sid", &at(200.0), true).is_empty());
        assert!(compare("sid", &at(200.0), false).is_empty());
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("read");
        assert!(text.contains("[trixie]\nstart_ms = 300.0\nreset_ms = 100.0\n"), "{text}");
        let deviations = compare("trixie", &at(150.0), false);
        assert!(deviations.len() == 1 && deviations.concat().contains("150.0 ms"), "{deviations:?}");
        assert!(compare("trixie", &at(101.0), true).is_empty());
        assert_eq!(std::fs::read_to_string(directory.path().join(FILE)).expect("read"), text);
        assert!(compare("trixie", &at(150.0), true).is_empty());
        assert!(compare("trixie", &at(150.0), false).is_empty());
    }

    #[test]
    fn a_pin_says_what_it_was_measured_on() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |reset_ms| Durations { start_ms: 300.0, reset_ms };
        let load = |lock| Baselines::load(directory.path(), "trixie", Clock::Virtual).expect("load").on(lock);
        let compare = |lock, measured: &Durations| load(lock).compare_durations(measured).concat();
        let file = directory.path().join(FILE);
        load(Some("ab12")).accept_durations(&at(100.0)).expect("accept");
        let text = std::fs::read_to_string(&file).expect("read");
        assert!(text.contains("[trixie]\nstart_ms = 300.0\nreset_ms = 100.0\nlock = \"ab12\"\n"), "{text}");
        assert_eq!(compare(Some("cd34"), &at(110.0)), "", "the tolerance is for another lock too");
        load(Some("cd34")).accept_durations(&at(110.0)).expect("accept");
        assert_eq!(
            std::fs::read_to_string(&file).expect("read"),
            text,
            "it is pinned for the same as before"
        );
        let said = compare(Some("cd34"), &at(150.0));
        assert!(said.ends_with(" (pinned for trixie of lock ab12, this is cd34)"), "{said}");
        for same in [Some("ab12"), None] {
            let said = compare(same, &at(150.0));
            assert!(said.contains("150.0 ms") && !said.contains("lock ab12"), "{said}");
        }
        std::fs::write(&file, "[trixie]\nstart_ms = 300.0\nreset_ms = 100.0\n").expect("write");
        let said = compare(Some("cd34"), &at(150.0));
        assert!(said.contains("150.0 ms") && !said.contains("cd34"), "what is older has no lock: {said}");
    }

    #[test]
    fn guests_that_are_accepted_at_once_lose_none() {
        const GUESTS: usize = 8;
        const ROUNDS: u32 = 10;
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |round: u32| Durations { start_ms: 300.0, reset_ms: 100.0 * f64::from(1_u32 << round) };
        let names: Vec<String> = (0..GUESTS).map(|number| format!("guest{number}")).collect();
        let together = std::sync::Barrier::new(GUESTS);
        std::thread::scope(|scope| {
            for guest in &names {
                let (directory, together) = (directory.path(), &together);
                scope.spawn(move || {
                    together.wait();
                    for round in 0..ROUNDS {
                        let compare = |accept| compare(directory, guest, &at(round), accept);
                        // It has none yet, and is of no suite; or its own are those that it has written last.
                        assert_eq!(compare(false).is_empty(), round == 0, "{guest}, round {round}");
                        assert!(compare(true).is_empty());
                        assert!(compare(false).is_empty(), "{guest}, round {round}");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("read");
        let all: BTreeMap<String, Pin> = toml::from_str(&text).expect("TOML");
        let Durations { start_ms, reset_ms } = at(ROUNDS - 1);
        let pin = Pin { start_ms, reset_ms, lock: None };
        assert_eq!(all, names.into_iter().map(|guest| (guest, pin.clone())).collect());
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "nothing else is left");
    }

    #[test]
    fn the_lines_that_differ_are_shown_and_no_others() {
        let changes = changes("every cycle\na: 1\nb: 2\nc: 3", "every cycle\na: 1\nb: two\nc: 3");
        assert_eq!(changes, ["-b: 2", "+b: two"]);
    }

    /// The name that is compared with, the one that is accepted, and what is wrong.
    #[test]
    fn a_guests_own_snapshot_is_compared_before_the_shared_one() {
        let (same, other) = (Some("as it is"), Some("otherwise"));
        let cases = [
            ("trixie", None, None, "outcome", "outcome", "/s/outcome.snap is not there"),
            ("sid", None, None, "outcome", "outcome", "/s/outcome.snap is not there"),
            ("trixie", same, None, "outcome", "outcome", ""),
            ("sid", same, None, "outcome", "outcome", ""),
            ("trixie", other, None, "outcome", "outcome", "is not that of /s/outcome.snap"),
            ("sid", other, None, "outcome", "outcome.sid", "is not that of /s/outcome.snap"),
            ("sid", other, same, "outcome.sid", "outcome.sid", ""),
            ("sid", other, other, "outcome.sid", "outcome.sid", "is not that of /s/outcome.sid.snap"),
            (
                "sid",
                same,
                other,
                "outcome.sid",
                "outcome.sid",
                "outcome.sid.snap says what outcome.snap says",
            ),
            ("sid", same, same, "outcome.sid", "outcome.sid", "delete it"),
        ];
        for (guest, shared, own, compared, accepted, words) in cases {
            let baselines = Baselines {
                directory: PathBuf::from("/s"),
                guest: guest.to_owned(),
                clock: Clock::Virtual,
                shared: shared.map(str::to_owned),
                own: own.map(str::to_owned),
                durations: None,
                pinned_for: None,
                lock: None,
                none_yet: false,
            };
            let outcome = baselines.compare_text("as it is\n".to_owned());
            let case = format!("{guest}, {shared:?}, {own:?}: {outcome:?}");
            assert_eq!((&*outcome.compared, &*outcome.accepted), (compared, accepted), "{case}");
            match outcome.mismatch {
                Some(mismatch) => assert!(!words.is_empty() && mismatch.contains(words), "{case}"),
                None => assert_eq!(words, "", "{case}"),
            }
        }
    }
}
