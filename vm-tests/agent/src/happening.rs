//! What can happen in a run that one stops at, by the words that a person types: "umount fails", "state failed".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::recording::{Step, Target, UnitState, What};

/// Something that can happen in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    /// A command of the plan begins.
    Begins(Step),
    /// A command of the plan has ended.
    Done(Step),
    /// A umount(2) of the watched mount was refused, whatever the error.
    UmountFails,
    /// A umount(2) of the watched mount succeeded.
    UmountSucceeds,
    /// The watched path became a mount point.
    Mounted,
    /// The watched path is no mount point any more.
    Unmounted,
    /// The unit under test, or the one that makes its mount, comes to this ActiveState, or to this SubState.
    State(String),
}

/// The words that say it, for messages.
pub const WORDS: &str = "start begins, start done, reset begins, reset done, mounted, unmounted, umount fails, umount succeeds, \
                         state WORD (an ActiveState or a SubState, as in state failed)";

/// Text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that happens in a run: {WORDS}")]
pub struct NoHappening(String);

impl FromStr for Happening {
    type Err = NoHappening;

    fn from_str(text: &str) -> Result<Self, NoHappening> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["start", "begins"] => Ok(Self::Begins(Step::Start)),
            ["start", "done"] => Ok(Self::Done(Step::Start)),
            ["reset", "begins"] => Ok(Self::Begins(Step::Reset)),
            ["reset", "done"] => Ok(Self::Done(Step::Reset)),
            ["mounted"] => Ok(Self::Mounted),
            ["unmounted"] => Ok(Self::Unmounted),
            ["umount", "fails"] => Ok(Self::UmountFails),
            ["umount", "succeeds"] => Ok(Self::UmountSucceeds),
            ["state", word] => Ok(Self::State((*word).to_owned())),
            _ => Err(NoHappening(text.to_owned())),
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = |step: &Step| match step {
            Step::Start => "start",
            Step::Reset => "reset",
            Step::During => "a command during the reset",
            Step::Check => "a check",
            Step::Recover => "recover",
            Step::BootCheck => "a check after the boot",
        };
        match self {
            Self::Begins(which) => write!(f, "{} begins", step(which)),
            Self::Done(which) => write!(f, "{} done", step(which)),
            Self::UmountFails => f.write_str("umount fails"),
            Self::UmountSucceeds => f.write_str("umount succeeds"),
            Self::Mounted => f.write_str("mounted"),
            Self::Unmounted => f.write_str("unmounted"),
            Self::State(word) => write!(f, "state {word}"),
        }
    }
}

impl Happening {
    /// When it happened, if this is it: nanoseconds since the plan began. A umount(2) fails when it returns, and is recorded by
    /// its begin.
    #[must_use]
    pub fn is(&self, at: u64, what: &What) -> Option<u64> {
        let comes_to = |state: &UnitState, word: &str| state.active == word || state.sub == word;
        match (self, what) {
            (_, What::OfMount { what, .. }) => self.is(at, what),
            (Self::Begins(wanted), What::StepBegins(step)) => (wanted == step).then_some(at),
            (Self::Done(wanted), What::StepEnds(end)) => (*wanted == end.step).then_some(at),
            (Self::UmountFails, What::UmountCall(call)) => {
                (call.result != 0 && call.target != Target::Other).then_some(call.returned)
            }
            (Self::UmountSucceeds, What::UmountCall(call)) => {
                (call.result == 0 && call.target != Target::Other).then_some(call.returned)
            }
            (Self::Mounted, What::Mounted(_)) | (Self::Unmounted, What::Unmounted) => Some(at),
            (Self::State(word), What::Unit(state) | What::MountUnit(state)) => {
                comes_to(state, word).then_some(at)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{Role, UmountCall};

    #[test]
    fn its_words_are_read_and_written_alike() {
        for words in WORDS.split(", ").take(8).chain(["state failed", "state stop-post"]) {
            let happening: Happening = words.parse().expect(words);
            assert_eq!(happening.to_string(), words);
        }
        let wrong = "umount failed".parse::<Happening>().expect_err("no such thing").to_string();
        assert!(
            wrong.starts_with("\"umount failed\" is nothing that happens in a run: start begins, "),
            "{wrong}"
        );
    }

    #[test]
    fn a_umount_fails_when_it_returns_and_that_of_another_path_does_not_count() {
        let call = |result, target| {
            let (pid, comm, role, returned) = (7, "helper".to_owned(), Role::Outside, 30);
            What::UmountCall(UmountCall { pid, comm, role, returned, result, target })
        };
        let of_other_mount = |what| What::OfMount { mount: 1, what: Box::new(what) };
        let (fails, succeeds) = (Happening::UmountFails, Happening::UmountSucceeds);
        for (what, failed, succeeded) in [
            (call(-16, Target::Mount), Some(30), None),
            (call(-16, Target::Unknown), Some(30), None),
            (call(-16, Target::Other), None, None),
            (call(0, Target::Mount), None, Some(30)),
            (of_other_mount(call(-16, Target::Mount)), Some(30), None),
            (What::Unmounted, None, None),
        ] {
            assert_eq!((fails.is(20, &what), succeeds.is(20, &what)), (failed, succeeded), "{what:?}");
        }
        let state = |active: &str, sub: &str| UnitState {
            active: active.to_owned(),
            sub: sub.to_owned(),
            ..UnitState::default()
        };
        let stops = Happening::State("stop-post".to_owned());
        assert_eq!(stops.is(9, &What::MountUnit(state("deactivating", "stop-post"))), Some(9));
        assert_eq!(stops.is(9, &What::Unit(state("failed", "failed"))), None);
    }
}
