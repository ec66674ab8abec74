//! What else systemd has loaded that can matter to an instance, for the doctor.

use std::path::PathBuf;

use futures_util::future::try_join_all;

use super::bus::{ListedUnit, UNIT};
use super::connection::{QUESTIONS_AT_ONCE, Systemd};
use crate::neighbours::{MountUnit, Neighbours, Service, mountpoint};
use crate::units::{UnitsError, is_down};

/// How many services are asked about at once: each takes the ten questions of `Systemd::read_sandbox`.
const SERVICES_AT_ONCE: usize = QUESTIONS_AT_ONCE / 10;

impl Systemd {
    /// What else systemd has loaded that can matter to an instance, for the doctor. `runtimes` is the directory that has
    /// the instances' runtime directories, by each of its names.
    ///
    /// # Errors
    /// As [`UnitsError`]; a unit that goes away meanwhile is none.
    pub fn neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        self.wait(self.deadline, self.read_neighbours(runtimes))
    }

    async fn read_neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        let any_state: &[&str] = &[];
        let patterns = &["*.service", "*.mount", "*.automount"][..];
        let reply = self.manager("ListUnitsByPatterns", &(any_state, patterns)).await?;
        let mut listed: Vec<ListedUnit> = reply.body().deserialize()?;
        listed.retain(|(_name, _description, load_state, ..)| load_state == "loaded");
        // systemd's order is that of a hash table.
        listed.sort_by(|one, other| one.0.cmp(&other.0));
        let (services, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|(name, ..)| name.ends_with(".service"));
        let mut neighbours = Neighbours::default();
        for some in services.chunks(SERVICES_AT_ONCE) {
            let asked = some.iter().map(|(unit, _, _, _, _, _, path, ..)| async move {
                let sandbox = still_there(self.read_sandbox(path).await)?;
                Ok::<_, UnitsError>(sandbox.map(|sandbox| Service { unit: unit.clone(), sandbox }))
            });
            neighbours.services.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        // Where a mount unit mounts is its name, so there is nothing to ask about those that are elsewhere.
        let mounts: Vec<_> = others
            .into_iter()
            .filter_map(|(unit, _, _, active_state, _, _, path, ..)| {
                let at = mountpoint(&unit)
                    .filter(|at| runtimes.iter().any(|runtimes| at.starts_with(runtimes)))?;
                Some((path, unit, at, !is_down(&active_state)))
            })
            .collect();
        for some in mounts.chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(path, unit, at, active)| async move {
                let fragment = still_there(self.property::<String>(path, UNIT, "FragmentPath").await)?;
                Ok::<_, UnitsError>(fragment.map(|fragment| MountUnit {
                    unit: unit.clone(),
                    at: at.clone(),
                    configured: !fragment.is_empty(),
                    active: *active,
                }))
            });
            neighbours.mounts.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        Ok(neighbours)
    }
}

/// None of a unit that is gone since it was listed.
fn still_there<T>(answer: Result<T, UnitsError>) -> Result<Option<T>, UnitsError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(UnitsError::NoSuchUnit(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
