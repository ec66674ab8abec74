//! Which instances there are: a row for each, from its files and its units. One whose file is broken is a row as well.

use std::path::Path;

use holders::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;
use left4me_helper::state::{InstanceDir, StateDir};
use left4me_helper::{layers, purge};
use serde::{Deserialize, Serialize};

use crate::actions::{Action, Host};
use crate::fleet::all_instances;
use crate::report::{SCHEMA_VERSION, columns};
use crate::units::{Units, UnitsError};
use crate::variables;

/// An instance. The keys are an interface, as those of [`Report`](crate::report::Report).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `list`.
    pub action: String,
    /// The instance's name.
    pub instance: String,
    /// The server's unit.
    pub unit: String,
    /// Whether its files could be read and its state be had.
    pub ok: bool,
    /// Whether its `.toml` is there: else there is a runtime directory only.
    pub has_file: bool,
    /// The unit's ActiveState; empty if systemd was not reached.
    pub active_state: String,
    /// The server's port: that of its file of variables, or the unit's own; null if that file is broken. A drop-in of the
    /// unit may have another one.
    pub port: Option<u16>,
    /// The layers, topmost first; null if its file is broken, or not there.
    pub layers: Option<Vec<String>>,
    /// Whether anything is mounted at or below `runtime/<id>`; null if that cannot be read.
    pub mounted: Option<bool>,
    /// What is broken, in sentences; null if nothing is.
    pub error: Option<String>,
}

/// All instances, numbers first, and why systemd could not be asked about them.
///
/// # Errors
/// The state directory cannot be read.
pub async fn rows<U: Units>(
    units: Result<&mut U, UnitsError>,
    host: &Host,
) -> Result<(Vec<Row>, Option<UnitsError>), HelperError> {
    let instances = all_instances(&host.state_dir, Action::Status)?;
    let mut rows: Vec<_> = instances.iter().map(|instance| row_of(instance, host)).collect();
    let names: Vec<_> = instances.iter().map(Instance::unit).collect();
    let activity = match units {
        Ok(units) => units.activity(&names).await,
        Err(error) => Err(error),
    };
    match activity {
        Ok(activity) => {
            for (row, unit) in rows.iter_mut().zip(activity) {
                row.active_state = unit.active_state;
            }
            Ok((rows, None))
        }
        Err(error) => {
            rows.iter_mut().for_each(|row| row.ok = false);
            Ok((rows, Some(error)))
        }
    }
}

/// What an instance's files and the mount tables say.
fn row_of(instance: &Instance, host: &Host) -> Row {
    let mut row = Row {
        schema_version: SCHEMA_VERSION,
        action: "list".into(),
        instance: instance.to_string(),
        unit: instance.unit(),
        ok: true,
        has_file: true,
        active_state: String::new(),
        port: None,
        layers: None,
        mounted: None,
        error: None,
    };
    let place = match StateDir::open(&host.state_dir) {
        Ok(state) => InstanceDir { paths: state.paths(instance), state },
        Err(error) => {
            row.error = Some(chain(&error));
            row.ok = false;
            return row;
        }
    };
    match variables::port_of(&variables::file(&place.paths.file)) {
        Ok(port) => row.port = Some(port),
        Err(error) => row.error = Some(chain(&error)),
    }
    match layers::read(&place) {
        Ok(file) => row.layers = Some(file.overlays.iter().map(|name| name.as_str().to_owned()).collect()),
        Err(HelperError::NoInstanceFile(path)) => {
            let text = format!(
                "there is no {}, and {} is there: `sudo l4d2ctl destroy {instance}` deletes what is left",
                path.display(),
                place.paths.runtime.display()
            );
            row.has_file = false;
            add(&mut row.error, text);
        }
        // Last, as it has lines.
        Err(error) => add(&mut row.error, chain(&error)),
    }
    // Not everybody may read PID 1's mount table; then it is not known, which is no failure.
    row.mounted =
        purge::still_mounted(&place.paths, &host.mount_tables).ok().map(|mounts| !mounts.is_empty());
    row.ok = row.error.is_none();
    row
}

fn add(error: &mut Option<String>, text: String) {
    match error {
        None => *error = Some(text),
        Some(first) => first.push_str(&format!("; {text}")),
    }
}

/// Says in each row that systemd could not be asked, for who gets nothing but rows.
pub fn tell_each(rows: &mut [Row], unreachable: &UnitsError) {
    for row in rows {
        add(&mut row.error, unreachable.to_string());
    }
}

/// The rows as a table, a line each, without their errors.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![["INSTANCE", "STATE", "PORT", "LAYERS", "MOUNTED"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let known = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        [
            row.instance.clone(),
            known(&row.active_state),
            row.port.map_or("broken".into(), |port| port.to_string()),
            match &row.layers {
                Some(layers) => list_of(layers),
                None if row.has_file => "broken".into(),
                None => "no file".into(),
            },
            row.mounted.map_or("-", |mounted| if mounted { "yes" } else { "no" }).to_owned(),
        ]
    }));
    columns(&lines)
}

/// Names with commas between them, or a dash for none.
pub(crate) fn list_of(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(",") }
}

/// What the place of an instance in the list says if there is none at all.
#[must_use]
pub fn none(state_dir: &Path) -> String {
    format!("no instance in {}; `sudo l4d2ctl create ID` makes one\n", state_dir.join("instances").display())
}

#[cfg(test)]
mod tests;
