//! What of a suite is not run, or not as it is asked for, in words.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::guest::Guest;
use super::prepare::Machines;
use crate::host::events::{self, Event};
use crate::scenario::{Scenario, WrongInput};
use crate::workspace::Workspace;

/// Which scenarios do not run so many cycles, as a line; `None` if all do.
///
/// # Errors
/// None of them does: then whoever asks for that means something else.
pub(super) fn other_cycles(
    scenarios: &[Scenario],
    cycles: Option<u32>,
) -> Result<Option<String>, WrongInput> {
    let Some(wanted) = cycles else { return Ok(None) };
    let other = scenarios.iter().filter(|one| one.plan(cycles).cycles != wanted);
    let other: Vec<&str> = other.map(|one| one.name.as_str()).collect();
    let line = format!("--cycles {wanted}: {}: 1, a machine shuts down once", other.join(", "));
    match other.len() {
        0 => Ok(None),
        all if all == scenarios.len() => Err(WrongInput::new(format!("{line}: leave it out"))),
        _some => Ok(Some(line)),
    }
}

/// The scenarios that the machines can be given; tells which are not, and why.
///
/// # Errors
/// [`WrongInput`] if it is none of them. A scenario's tree that can't be listed.
pub(super) fn those_for(
    workspace: &Workspace,
    machines: &Machines,
    scenarios: &[Scenario],
) -> Result<Vec<Scenario>> {
    let Some(installed) = machines.installed(workspace) else { return Ok(scenarios.to_vec()) };
    let mut kept = Vec::new();
    // By reason: many scenarios have one in common.
    let mut left_out: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for scenario in scenarios {
        match installed.refusal(scenario)? {
            None => kept.push(scenario.clone()),
            Some(why) => left_out.entry(why).or_default().push(&scenario.name),
        }
    }
    let line = format!(
        "{}: {} not run, for hosts where the product is put at its usual paths: {}",
        machines.names().join(", "),
        scenarios.len() - kept.len(),
        left_out
            .iter()
            .map(|(why, names)| format!("{} ({why})", names.join(", ")))
            .collect::<Vec<_>>()
            .join("; ")
    );
    if kept.is_empty() {
        return Err(WrongInput::new(line).into());
    }
    if !left_out.is_empty() {
        events::tell(Event::Note(line));
    }
    Ok(kept)
}

/// Which scenarios are for none of an image's guests, a line for each image.
pub(super) fn not_run(guests: &[Guest], scenarios: &[Scenario]) -> Vec<String> {
    let names: BTreeSet<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let lines = names.into_iter().filter_map(|name| {
        let not = scenarios.iter().filter(|scenario| !scenario.is_for(name));
        let not: Vec<&str> = not.map(|scenario| scenario.name.as_str()).collect();
        (!not.is_empty())
            .then(|| format!("{name}: {} not run, for other images: {}", not.len(), not.join(", ")))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::samples::MINIMAL;

    #[test]
    fn who_can_have_one_cycle_only_is_named() {
        let directory = tempfile::tempdir().expect("tempdir");
        let scenario = |name: &str, text: &str| {
            let directory = directory.path().join(name);
            std::fs::create_dir(&directory).expect("mkdir");
            std::fs::write(directory.join("scenario.toml"), text).expect("write");
            Scenario::load(&directory).expect("load")
        };
        let shutdown = MINIMAL
            .replace("[\"true\"]\n", "\"shutdown\"\n")
            .replace("start = \"shutdown\"", "start = [\"true\"]");
        let [off, halt, demo] = [("off", &*shutdown), ("halt", &*shutdown), ("demo", MINIMAL)]
            .map(|(name, text)| scenario(name, text));
        for (scenarios, cycles, expected) in [
            (vec![&off], None, Ok(None)),
            (vec![&off], Some(1), Ok(None)),
            (vec![&demo], Some(3), Ok(None)),
            (
                vec![&demo, &off, &halt],
                Some(3),
                Ok(Some("--cycles 3: off, halt: 1, a machine shuts down once")),
            ),
            (
                vec![&off, &halt],
                Some(3),
                Err("nothing was run: --cycles 3: off, halt: 1, a machine shuts down once: leave it out"),
            ),
        ] {
            let scenarios: Vec<Scenario> = scenarios.into_iter().cloned().collect();
            let found = other_cycles(&scenarios, cycles).map_err(|wrong| wrong.to_string());
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(String::as_str), expected);
        }
    }
}
