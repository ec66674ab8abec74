//! What else systemd has loaded that can matter to an instance, for the doctor.

use std::path::PathBuf;

use futures_util::future::try_join_all;
use systemd_bus::{ListedUnit, UnitProxy, object};

use super::connection::{QUESTIONS_AT_ONCE, Systemd};
use super::settings::read_sandbox;
use crate::neighbours::{MountUnit, Neighbours, Service, mountpoint};
use crate::units::{UnitsError, is_down};

/// How many services are asked about at once: each takes the ten questions of [`read_sandbox`].
const SERVICES_AT_ONCE: usize = QUESTIONS_AT_ONCE / 10;

impl Systemd {
    /// What else systemd has loaded that can matter to an instance, for the doctor. `runtimes` is the directory that has
    /// the instances' runtime directories, by each of its names.
    ///
    /// # Errors
    /// As [`UnitsError`]; a unit that goes away meanwhile is none.
    pub async fn neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        self.wait(self.deadline, self.read_neighbours(runtimes)).await
    }

    async fn read_neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        let patterns = ["*.service", "*.mount", "*.automount"];
        let mut listed = self.manager().await?.list_units_by_patterns(&[], &patterns).await?;
        listed.retain(|unit| unit.load_state == "loaded");
        // systemd's order is that of a hash table.
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        let (services, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|unit| unit.name.ends_with(".service"));
        let mut neighbours = Neighbours::default();
        for some in services.chunks(SERVICES_AT_ONCE) {
            let asked = some.iter().map(|ListedUnit { name, path, .. }| async {
                let service = object(&self.connection, path.clone()).await?;
                let sandbox = still_there(read_sandbox(&service).await)?;
                Ok::<_, UnitsError>(sandbox.map(|sandbox| Service { unit: name.clone(), sandbox }))
            });
            neighbours.services.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        // Where a mount unit mounts is its name, so there is nothing to ask about those that are elsewhere.
        let mounts: Vec<_> = others
            .into_iter()
            .filter_map(|unit| {
                let at = mountpoint(&unit.name)
                    .filter(|at| runtimes.iter().any(|runtimes| at.starts_with(runtimes)))?;
                Some((unit, at))
            })
            .collect();
        for some in mounts.chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(ListedUnit { name, path, active_state, .. }, at)| async move {
                let unit: UnitProxy<'_> = object(&self.connection, path.clone()).await?;
                let fragment = still_there(unit.fragment_path().await)?;
                Ok::<_, UnitsError>(fragment.map(|fragment| MountUnit {
                    unit: name.clone(),
                    at: at.clone(),
                    configured: !fragment.is_empty(),
                    active: !is_down(active_state),
                }))
            });
            neighbours.mounts.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        Ok(neighbours)
    }
}

/// None of a unit that is gone since it was listed.
fn still_there<T>(answer: zbus::Result<T>) -> Result<Option<T>, UnitsError> {
    match answer.map_err(UnitsError::from) {
        Ok(value) => Ok(Some(value)),
        Err(UnitsError::NoSuchUnit(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
