//! What of a scenario's cycle is explored: `[explore]`.

use serde::Deserialize;

/// What `cargo xtask explore` perturbs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explore {
    /// Which of the cycle's commands.
    #[serde(default)]
    pub phase: Phase,
    /// A command that runs beside it, from its begin on, before it or later.
    #[serde(default)]
    pub client: Vec<String>,
}

/// A command of a cycle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The start; all before it is done in the machine that runs begin with.
    Start,
    /// The reset; the start is done there, too.
    #[default]
    Reset,
}
