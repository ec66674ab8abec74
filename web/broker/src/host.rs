//! What the broker needs of the machine: the trait [`Host`]. `real.rs` does it through the library of `l4d2ctl`; a test plays it.

use std::fmt;

use left4me_ctl::list::Row;
use left4me_ctl::report::{Diagnosis, Report};
use left4me_helper::instance::Instance;
use serde::{Deserialize, Serialize};

use crate::game::Players;
use crate::journal::Journal;
use crate::verbs::Deed;

/// All instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// `l4d2ctl list --json`.
    pub servers: Vec<Row>,
    /// Why their state is not known; none if it is.
    pub servers_error: Option<String>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `l4d2ctl status --json`.
    pub report: Report,
    /// What a reset deletes.
    pub loss: Loss,
    /// Who plays; none if the game did not answer.
    pub players: Option<Players>,
    /// Who holds the mount of a server that is down, and what to do about it; none if nothing is mounted.
    pub held: Option<String>,
    /// What its units said last.
    pub journal: Journal,
}

/// What a server wrote and a reset deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// In words: `2 files, 3.0 MiB`.
    pub text: Option<String>,
    /// Why that is not known.
    pub error: Option<String>,
}

/// What defeats the design.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnoses {
    /// `l4d2ctl doctor --json`.
    pub diagnoses: Vec<Diagnosis>,
    /// Why not all is known; none if it is.
    pub error: Option<String>,
}

/// The machine. Everything blocks until it is done, with a deadline; several threads ask at once.
pub trait Host: fmt::Debug + Send + Sync + 'static {
    /// Does it, and says how it went.
    fn act(&self, deed: Deed, instance: &Instance) -> Report;
    /// All instances.
    fn servers(&self) -> Servers;
    /// One of them.
    fn server(&self, instance: &Instance) -> Server;
    /// What defeats the design.
    fn doctor(&self) -> Diagnoses;
    /// Calls `changed` whenever a unit has changed, and comes back if it cannot know any more.
    ///
    /// # Errors
    /// Why not.
    fn watch(&self, changed: &dyn Fn()) -> Result<(), String>;
}
