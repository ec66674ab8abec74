//! Commands that a manifest has run beside start and reset, and what each must give.

use serde::Deserialize;

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
