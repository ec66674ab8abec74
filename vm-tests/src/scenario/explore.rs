//! What of a scenario's cycle is explored: `[explore]`.

use serde::{Deserialize, Deserializer};
use vm_perturb::Line;

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
    /// What is held in every run of the scenario, as a failure tells it: empty for nothing. `explore` itself leaves it out.
    #[serde(default, deserialize_with = "line")]
    pub holds: Line,
    /// Other ways for a run to end that are right, too.
    #[serde(default)]
    pub allowed: Vec<Allowed>,
}

/// A way for a run to end that is not what `expect` says, and is allowed where tasks are held. What is left out is as it says
/// there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Why it is right.
    pub reason: String,
    /// How the second client ends, as a shell says it. Left out: in any way.
    #[serde(default)]
    pub client_exit: Option<i32>,
    /// In place of `start_exit` of `expect`.
    #[serde(default)]
    pub start_exit: Option<i32>,
    /// In place of `reset_exit` of `expect`.
    #[serde(default)]
    pub reset_exit: Option<i32>,
    /// In place of `active_state_before` of `expect`.
    #[serde(default)]
    pub active_state_before: Option<String>,
    /// In place of `mounted_before` of `expect`.
    #[serde(default)]
    pub mounted_before: Option<bool>,
    /// In place of `active_state` of `expect`.
    #[serde(default)]
    pub active_state: Option<String>,
    /// In place of `mount_unit_state` of `expect`.
    #[serde(default)]
    pub mount_unit_state: Option<String>,
    /// In place of `mounted` of `expect`.
    #[serde(default)]
    pub mounted: Option<bool>,
    /// In place of `left_processes` of `expect`.
    #[serde(default)]
    pub left_processes: Option<Vec<String>>,
    /// In place of `holders` of `expect`: a reset that was cancelled unmounts nothing, and is asked all the same who is in the mount.
    #[serde(default)]
    pub holders: Option<Vec<String>>,
}

fn line<'de, D: Deserializer<'de>>(from: D) -> Result<Line, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
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
