//! What a run's guest is given, and whose run it is: of a scenario of this workspace, or of a bundle that was handed over.

use anyhow::{Result, ensure};
use vm_agent::recording::Plan;
use vm_agent::wire::Session;

use super::guest::Guest;
use super::one::{self, Bounds};
use crate::scenario::{Reset, Scenario, show_units};

/// A run that can be made again as often as one likes: what its guest is given.
#[derive(Debug, Clone)]
pub struct Given {
    /// The scenario's name.
    pub name: String,
    /// The RAM of its machine.
    pub memory_mib: u32,
    /// All that the guest gets, with the plan.
    pub session: Session,
    /// The commands that show its units, see [`Scenario::show_units`].
    pub(super) units: String,
}

impl Given {
    /// Of a scenario's run.
    ///
    /// # Errors
    /// As [`one::wanted`]; a scenario that shuts its machine down, with which the host speaks at its end.
    pub fn of(guest: &Guest, scenario: &Scenario, bounds: Bounds) -> Result<Self> {
        ensure!(
            scenario.manifest.reset != Reset::Shutdown,
            "{}: its reset shuts the machine down, and no moment of such a run can be had",
            scenario.name
        );
        Ok(Self {
            name: scenario.name.clone(),
            memory_mib: scenario.manifest.memory_mib,
            session: one::wanted(guest, scenario, bounds)?,
            units: scenario.show_units(),
        })
    }

    /// Of a session that is there already.
    pub(super) fn of_session(name: &str, memory_mib: u32, session: Session) -> Self {
        let units = session.plan.as_ref().map(|Plan { unit, user, mount_unit, .. }| {
            show_units(unit, user.as_deref(), mount_unit.as_deref())
        });
        Self { name: name.to_owned(), memory_mib, session, units: units.unwrap_or_default() }
    }

    /// The watched mount points.
    pub fn mounts(&self) -> impl Iterator<Item = &str> {
        let plan = self.session.plan.iter();
        plan.flat_map(|plan| plan.mount.iter().chain(&plan.other_mounts)).map(String::as_str)
    }

    pub(super) fn mount_or_root(&self) -> &str {
        self.mounts().next().unwrap_or("/")
    }
}
