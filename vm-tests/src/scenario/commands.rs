//! Commands that a manifest has run beside start and reset, and what each must give.

use serde::Deserialize;
use vm_agent::recording::{self, Moment};

/// A command that is run after each reset, before `recover`: for what a reset must have left, or must have removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The program and its arguments.
    pub run: Vec<String>,
    /// Its exit status.
    #[serde(default)]
    pub status: i32,
    /// Text that must be somewhere in its stdout.
    #[serde(default)]
    pub stdout: Option<String>,
    /// What its stdout must be, white space at the end apart.
    #[serde(default)]
    pub stdout_equals: Option<String>,
    /// As `stdout`, of stderr.
    #[serde(default)]
    pub stderr: Option<String>,
    /// As `stdout_equals`, of stderr.
    #[serde(default)]
    pub stderr_equals: Option<String>,
}

/// A command that is run once during each reset: at a state of the unit, or a time after the reset's begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct During {
    /// The unit's ActiveState, or ActiveState/SubState, in which it is run.
    #[serde(default)]
    pub when: Option<String>,
    /// After how many milliseconds of guest time it is run.
    #[serde(default)]
    pub after_ms: Option<u64>,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// Its exit status.
    #[serde(default)]
    pub status: i32,
}

impl During {
    /// As the plan has it.
    #[must_use]
    pub fn planned(&self) -> recording::During {
        let when = match &self.when {
            Some(state) => {
                let (active, sub) = match state.split_once('/') {
                    Some((active, sub)) => (active, Some(sub.to_owned())),
                    None => (state.as_str(), None),
                };
                Moment::State { active: active.to_owned(), sub }
            }
            None => Moment::After { ms: self.after_ms.unwrap_or(0) },
        };
        recording::During { when, run: self.run.clone() }
    }

    /// Why it was not run.
    #[must_use]
    pub fn missed(&self) -> String {
        match &self.when {
            Some(state) => format!("not run, as the unit was not {state} during the reset"),
            None => format!("not run, as the reset was over before {} ms", self.after_ms.unwrap_or(0)),
        }
    }
}
