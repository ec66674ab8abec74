//! Asks the library who keeps a mount busy, and leaves the answer as a note for `l4d2ctl`.
//!
//! The library reads `/proc` only, so the question takes no reference in the mount. It is asked once, after `umount2(2)`
//! has failed with EBUSY, never before.

use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use holders::Query;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::busy::Verdict;
use crate::error::HelperError;
use crate::state::beneath;

/// The note's name in `runtime/<id>`.
const NOTE: &str = "busy";

/// How long may be asked who it is. With the wait before it this ends well before the overlay unit's `TimeoutStopSec=`.
const LONGEST: Duration = Duration::from_secs(10);

/// The longest note that is read, bytes.
const MAX_NOTE: u64 = 16 * 1024;

/// Asks who keeps the mount at `path` busy, right after umount2(2) said that it is. Takes one walk over `/proc`.
#[must_use]
pub fn verdict(path: &Path) -> Verdict {
    match Query::new(path).after_ebusy().deadline(Instant::now() + LONGEST).run() {
        Ok(report) => Verdict::Found(report.verdict()),
        Err(error) => Verdict::NoLook(error),
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

/// CLOCK_MONOTONIC now, the clock that systemd tells the times of commands by, microseconds.
#[must_use]
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

#[cfg(test)]
mod tests {
    use holders::report::Phase;
    use proptest::prelude::*;

    use super::*;
    use crate::busy::tests::{blocker, held};

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
