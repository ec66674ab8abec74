//! Why an unmount was refused as busy: the verdict of `holders`, as a line, as fields, and as a note for `l4d2ctl`.
//!
//! Nothing is found out here; that is the library's. It reads `/proc` only, so the question takes no reference in the
//! mount. It is asked once, when `umount2(2)` has said EBUSY, and never before.

use std::fmt;
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holders::{Blocker, NOT_VISIBLE_HINTS, Query};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{HelperError, chain};
use crate::state::beneath;

/// How many holders the one line names; the journal's fields have more.
const NAMED: usize = 6;

/// The note's name in `runtime/<id>`.
const NOTE: &str = "busy";

/// How long may be asked who it is. With the wait before it this ends well before the overlay unit's `TimeoutStopSec=`.
const LONGEST: Duration = Duration::from_secs(10);

/// The longest note that is read, bytes.
const MAX_NOTE: u64 = 16 * 1024;

/// Why an unmount was refused as busy.
#[derive(Debug)]
pub enum Verdict {
    /// What `holders` says.
    Found(holders::Verdict),
    /// It could not look, which needs no more than `/proc`.
    NoLook(holders::Error),
}

/// Asks who keeps the mount at `path` busy, right after umount2(2) said that it is. Takes one walk over `/proc`.
#[must_use]
pub fn verdict(path: &Path) -> Verdict {
    match Query::new(path).after_ebusy().deadline(Instant::now() + LONGEST).run() {
        Ok(report) => Verdict::Found(report.verdict()),
        Err(error) => Verdict::NoLook(error),
    }
}

impl Verdict {
    /// A word for scripts: those of `holders`, or `unknown`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Found(verdict) => verdict.word(),
            Self::NoLook(_) => "unknown",
        }
    }

    /// The processes that block, each once.
    #[must_use]
    pub fn blockers(&self) -> &[Blocker] {
        match self.seen() {
            Some(
                holders::Verdict::HeldByProcess { blockers } | holders::Verdict::HeldByYourself { blockers },
            ) => blockers,
            _ => &[],
        }
    }

    /// What is mounted below, if that is what blocks.
    #[must_use]
    pub fn below(&self) -> &[PathBuf] {
        match self.seen() {
            Some(holders::Verdict::Submounts { mounts }) => mounts,
            _ => &[],
        }
    }

    /// What to do, one sentence an item.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        match self {
            Self::Found(verdict) => verdict.advice(),
            Self::NoLook(_) => Vec::new(),
        }
    }

    /// The verdict on what was looked at. A helper that runs as root and still may not look at everybody is in a
    /// sandbox or under a security module; or it had no time left.
    fn seen(&self) -> Option<&holders::Verdict> {
        match self {
            Self::Found(verdict) => Some(verdict.of_what_was_seen()),
            Self::NoLook(_) => None,
        }
    }
}

/// One line, from who it is to what to do.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self {
            Self::Found(verdict) => verdict,
            Self::NoLook(error) => return write!(f, "who holds it could not be found out: {}", chain(error)),
        };
        let blockers = self.blockers();
        if blockers.len() > NAMED {
            for (index, blocker) in blockers.iter().take(NAMED).enumerate() {
                write!(f, "{}{blocker}", if index == 0 { "held by " } else { "; " })?;
            }
            write!(f, "; and {} more", blockers.len() - NAMED)?;
        } else {
            f.write_str(&verdict.line())?;
        }
        match self.seen() {
            Some(holders::Verdict::HeldByProcess { .. }) => {
                let them = if blockers.len() == 1 { "it" } else { "them" };
                write!(f, ": end {them} or have {them} leave, then unmount again")
            }
            // Longer than a line: the journal has these in fields, one each.
            Some(holders::Verdict::NotVisible { .. }) => write!(
                f,
                ": a descriptor in flight, an io_uring of a process that ended this moment, or one of {} more that \
                 `holders --busy` and the journal's LEFT4ME_ADVICE fields have",
                NOT_VISIBLE_HINTS.len() - 2
            ),
            _ => {
                let advice = verdict.advice();
                if advice.is_empty() { Ok(()) } else { write!(f, ": {}", advice.join("; ")) }
            }
        }
    }
}

/// Leaves the verdict in `runtime/<id>` for whoever stops the unit and gets no more from systemd than a status. The
/// directory is root's, and goes with the next reset.
///
/// # Errors
/// It could not be written; the journal has it all the same.
pub fn leave_note(runtime: impl AsFd, path: &Path, verdict: &Verdict) -> Result<(), HelperError> {
    let name = path.join(NOTE);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(runtime, NOTE, flags, Mode::from_raw_mode(0o644))
        .map_err(HelperError::call("create", &name))?;
    let text = format!("{}\n{verdict}\n", monotonic_us());
    std::fs::File::from(file)
        .write_all(text.as_bytes())
        .map_err(|error| HelperError::call("write", &name)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Takes away what [`leave_note`] left.
///
/// # Errors
/// It is there and stays.
pub fn remove_note(runtime: impl AsFd, path: &Path) -> Result<(), HelperError> {
    match rustix::fs::unlinkat(runtime, NOTE, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(HelperError::call("unlink", path.join(NOTE))(source)),
    }
}

/// The line that an unmount left in `runtime/<id>` at a moment of `within`, microseconds of CLOCK_MONOTONIC; `None` if
/// there is none of that time.
#[must_use]
pub fn note_of(runtime: impl AsFd, within: &RangeInclusive<u64>) -> Option<String> {
    let file = beneath(runtime.as_fd(), Path::new(NOTE), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let mut text = String::new();
    std::fs::File::from(file).take(MAX_NOTE).read_to_string(&mut text).ok()?;
    parse_note(&text, within)
}

/// The line of a note's text, if it is of that time.
#[must_use]
pub fn parse_note(text: &str, within: &RangeInclusive<u64>) -> Option<String> {
    let (time, line) = text.split_once('\n')?;
    within.contains(&time.parse().ok()?).then(|| line.trim_end().to_owned())
}

/// CLOCK_MONOTONIC now, the clock that systemd tells the times of commands by.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

#[cfg(test)]
pub(crate) mod tests {
    use holders::report::{Kind, Phase, Relation};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn blocker(pid: u32, unit: Option<&str>, phase: Phase) -> Blocker {
        Blocker {
            pid,
            start_time: 1,
            comm: "bash".into(),
            cgroup: String::new(),
            unit: unit.map(str::to_owned),
            phase,
            relation: Relation::Other,
            kinds: vec![Kind::Cwd, Kind::Exe],
        }
    }

    fn held(blockers: Vec<Blocker>) -> holders::Verdict {
        holders::Verdict::HeldByProcess { blockers }
    }

    #[test]
    fn one_line_says_who_and_what_to_do() {
        let session = blocker(7, Some("session-3.scope"), Phase::Unknown);
        let child = blocker(8, Some("left4me-server@3.service"), Phase::Child);
        let yourself = Blocker { relation: Relation::Caller, ..blocker(9, None, Phase::Unknown) };
        let verdicts = [
            holders::Verdict::NotVisible { suspects: vec![] },
            held(vec![session.clone()]),
            held(vec![session.clone(), child]),
            held((0..9).map(|pid| blocker(pid, None, Phase::Unknown)).collect()),
            holders::Verdict::HeldByYourself { blockers: vec![yourself] },
            holders::Verdict::Submounts { mounts: vec!["/m/a".into(), "/m/b".into()] },
            holders::Verdict::NotAllowed { processes: 3, otherwise: Box::new(held(vec![session])) },
        ];
        let lines: Vec<_> = verdicts.map(|verdict| Verdict::Found(verdict).to_string()).into();
        assert!(lines.iter().all(|line| !line.contains('\n')));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_verdict_behind_those_who_may_not_be_looked_at_is_still_one() {
        let held = held(vec![blocker(7, None, Phase::Unknown)]);
        let verdict =
            Verdict::Found(holders::Verdict::NotAllowed { processes: 1, otherwise: Box::new(held) });
        assert_eq!(verdict.blockers().len(), 1);
        assert_eq!(verdict.word(), "not-allowed");
        let unknown = Verdict::NoLook(holders::Error::Path("x".into()));
        assert!(unknown.to_string().starts_with("who holds it could not be found out: x is not an absolute"));
        assert!(unknown.blockers().is_empty() && unknown.below().is_empty() && unknown.advice().is_empty());
    }

    #[test]
    fn a_note_is_of_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = std::fs::File::open(directory.path()).unwrap();
        let all = 0..=u64::MAX;
        assert_eq!(note_of(&runtime, &all), None);
        remove_note(&runtime, directory.path()).unwrap();
        let verdict = Verdict::Found(held(vec![blocker(7, None, Phase::Unknown)]));
        let began = monotonic_us();
        for _ in 0..2 {
            leave_note(&runtime, directory.path(), &verdict).unwrap();
        }
        assert_eq!(note_of(&runtime, &(began..=monotonic_us())), Some(verdict.to_string()));
        assert_eq!(note_of(&runtime, &(0..=began - 1)), None, "an earlier unmount's");
        remove_note(&runtime, directory.path()).unwrap();
        assert_eq!(note_of(&runtime, &all), None);
    }

    proptest! {
        #[test]
        fn a_note_that_is_none_is_none(text in "[0-9x\n -]{0,12}") {
            if let Some(line) = parse_note(&text, &(1..=9)) {
                prop_assert!(text.contains(&line));
            }
        }
    }
}
