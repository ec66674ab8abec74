//! What would be run now, compared with what was: by the inputs, and nothing runs.

use std::collections::BTreeSet;

use anyhow::Result;

use super::one::{self, Bounds};
use super::prepare::{Machines, prepare};
use crate::host::events::{self, Event};
use crate::machine::Cancel;
use crate::report::why::{Results, Why};
use crate::scenario::Wanted;
use crate::workspace::Workspace;

/// Compares the inputs of a suite's runs with those that its scenarios would have now, on the guests that are asked for.
///
/// # Errors
/// Those of the preparation: it builds what is not there.
pub async fn compare(
    workspace: &Workspace,
    machines: &Machines,
    was: &Results,
    cancel: Cancel,
) -> Result<Why> {
    let names: BTreeSet<&str> = was.scenarios().map(|(_, name)| name).collect();
    let known = |name: &&&str| workspace.scenarios(&[(**name).to_owned()]).is_ok();
    let (known, unknown): (Vec<&str>, Vec<&str>) = names.iter().partition(known);
    if !unknown.is_empty() {
        events::tell(Event::Note(format!("not in this workspace: {}", unknown.join(", "))));
    }
    let scenarios = workspace.scenarios(&known.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    // Beside those of a suite, which it may be compared with.
    let scratch = tempfile::tempdir_in(&workspace.target)?;
    let guests = prepare(workspace, machines, &Wanted::by(&scenarios), scratch.path(), cancel).await?;
    let mut why = Why::default();
    for guest in &guests {
        for scenario in scenarios.iter().filter(|scenario| guest.runs(scenario)) {
            let Some(then) = was.inputs(&guest.name, &scenario.name)? else { continue };
            let cycles = then.cycles();
            let bounds = Bounds { cycles, ..Bounds::default() };
            if let Some(now) = one::inputs(guest, scenario, bounds)? {
                why.add(format!("{}/{}", guest.name, scenario.name), &then.differences(&now));
            }
        }
    }
    Ok(why)
}
