//! Why an unmount was refused as busy: the verdict of `holders`, as a line and as fields. Values only; `busy_note` asks.

use std::fmt;
use std::path::PathBuf;

use holders::{Blocker, NOT_VISIBLE_HINTS};

use holders::chain::chain;

/// How many holders the one line names; the journal's fields have more.
const NAMED: usize = 6;

/// Why an unmount was refused as busy.
#[derive(Debug)]
pub enum Verdict {
    /// What `holders` says.
    Found(holders::Verdict),
    /// The scan failed, which needs only `/proc`.
    NoLook(holders::Error),
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

    /// The verdict on the inspected processes. A helper that runs as root and still may not inspect every process is in a
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

#[cfg(test)]
pub(crate) mod tests {
    use holders::report::{Kind, Phase, Relation};

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

    pub(crate) fn held(blockers: Vec<Blocker>) -> holders::Verdict {
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
    fn a_verdict_beside_processes_that_may_not_be_inspected_is_still_one() {
        let held = held(vec![blocker(7, None, Phase::Unknown)]);
        let verdict =
            Verdict::Found(holders::Verdict::NotAllowed { processes: 1, otherwise: Box::new(held) });
        assert_eq!(verdict.blockers().len(), 1);
        assert_eq!(verdict.word(), "not-allowed");
        let unknown = Verdict::NoLook(holders::Error::Path("x".into()));
        assert!(unknown.to_string().starts_with("who holds it could not be found out: x is not an absolute"));
        assert!(unknown.blockers().is_empty() && unknown.below().is_empty() && unknown.advice().is_empty());
    }
}
