//! The part of a suite that is run, and what it needs for that: chosen before anything is prepared, so that no image is built
//! and no machine saved which nothing is run for.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::prepare::Machines;
use super::shard::{Cost, Shard, Share, divide};
use crate::scenario::{Scenario, Wanted, WrongInput};

/// Which runs of a suite are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which shard it is; `None` if it is not one.
    pub share: Option<Share>,
    /// The scenarios, by guest.
    runs: BTreeMap<String, BTreeSet<String>>,
}

impl Part {
    /// A shard of the suite that has each of the scenarios on each of the machines, or on fewer of them. In whatever order
    /// they are given. `None` is all of it.
    ///
    /// # Errors
    /// [`WrongInput`] if there are more shards than runs: for each of them, and not only for those that had none.
    pub fn of(
        shard: Option<Shard>,
        breadth: Breadth,
        machines: &Machines,
        scenarios: &[Scenario],
        costs: &Costs,
    ) -> Result<Option<Self>, WrongInput> {
        let names = machines.names();
        let on = |one: &Scenario| {
            let its: Vec<&String> = names.iter().filter(|guest| one.is_for(guest)).collect();
            let its = if breadth == Breadth::Two { spread(&one.name, &names, its, costs) } else { its };
            its.into_iter().map(|guest| (guest.clone(), one.name.clone())).collect::<Vec<_>>()
        };
        let all: BTreeSet<(String, String)> = scenarios.iter().flat_map(on).collect();
        let mut runs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let Some(shard) = shard else {
            for (guest, name) in all {
                runs.entry(guest).or_default().insert(name);
            }
            return Ok((breadth == Breadth::Two).then_some(Self { share: None, runs }));
        };
        if all.len() < shard.of() {
            let (of, runs) = (shard.of(), all.len());
            return Err(WrongInput::new(format!(
                "--shard {shard}: {of} shards of {runs} run{}: some would have none",
                if runs == 1 { "" } else { "s" }
            )));
        }
        let of_each: Vec<Cost> = all.iter().map(|(guest, name)| costs.of(guest, name)).collect();
        let share = Some(shard.share(all.len()));
        for ((guest, name), place) in all.into_iter().zip(divide(&of_each, shard.of())) {
            if shard.is(place) {
                runs.entry(guest).or_default().insert(name);
            }
        }
        Ok(Some(Self { share, runs }))
    }

    /// Whether a scenario is run on a guest.
    #[must_use]
    pub fn has(&self, guest: &str, scenario: &str) -> bool {
        self.runs.get(guest).is_some_and(|scenarios| scenarios.contains(scenario))
    }

    /// The machines without those that have nothing to run.
    #[must_use]
    pub fn machines(&self, machines: &Machines) -> Machines {
        let mut machines = machines.clone();
        machines.suites.retain(|suite| self.runs.contains_key(suite.as_str()));
        machines
    }

    /// What the scenarios want that are run at all, of the images that they are run on.
    #[must_use]
    pub fn wanted(&self, scenarios: &[Scenario]) -> Vec<Wanted> {
        let narrowed = |one: Wanted| {
            let guests = self.runs.iter().filter(|(_, its)| its.contains(&one.by)).map(|(guest, _)| guest);
            let guests: Vec<&String> = guests.collect();
            // An external image is none of the suites, and asks for none.
            let images = guests.iter().filter_map(|guest| guest.parse().ok()).collect();
            (!guests.is_empty()).then_some(Wanted { images, ..one })
        };
        Wanted::by(scenarios).into_iter().filter_map(narrowed).collect()
    }

    /// How many runs it has.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.values().map(BTreeSet::len).sum()
    }
}

/// On how many of the machines that a scenario is for it is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Breadth {
    /// On each.
    #[default]
    All,
    /// On the first, and on one of the others: for each scenario always the same one, and not for all scenarios the same. On none of
    /// those where it is known to cost more than [`DEAR`].
    Two,
}

/// What a run costs, in tenths of a second, that is made on the first image alone where not all are made: ten such runs are a
/// fifth of a suite.
const DEAR: u64 = 120;

/// Those of a scenario's guests that it is run on if it is run on two at most. By its name and its costs alone: another scenario
/// changes nothing about it.
fn spread<'a>(name: &str, all: &[String], its: Vec<&'a String>, costs: &Costs) -> Vec<&'a String> {
    let (first, mut others): (Vec<_>, Vec<_>) =
        its.into_iter().partition(|guest| all.first() == Some(*guest));
    if !first.is_empty() {
        others.retain(|guest| costs.of(guest, name).is_none_or(|tenths| tenths < DEAR));
    }
    let sum: usize = name.bytes().map(usize::from).sum();
    let other = sum.checked_rem(others.len()).and_then(|place| others.get(place).copied());
    first.into_iter().chain(other).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::image::Suite;
    use crate::image::external::External;
    use crate::scenario::samples::MINIMAL;

    fn scenario(directory: &Path, name: &str, more: &str) -> Scenario {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).expect("mkdir");
        let text = format!("{MINIMAL}{more}");
        std::fs::write(directory.join("scenario.toml"), text).expect("write");
        Scenario::load(&directory).expect("a good one")
    }

    fn costs(directory: &Path, text: &str) -> Costs {
        std::fs::write(directory.join("costs.toml"), text).expect("write");
        Costs::load(&[directory.to_owned()]).expect("costs")
    }

    fn part(shard: &str, machines: &Machines, scenarios: &[Scenario], costs: &Costs) -> Part {
        let shard = Some(shard.parse().expect("a shard"));
        let part = Part::of(shard, Breadth::All, machines, scenarios, costs).expect("enough runs");
        part.expect("a part")
    }

    #[test]
    fn what_a_shard_does_not_run_is_not_prepared() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let at = scratch.path();
        let scenarios = [
            scenario(at, "plain", ""),
            scenario(at, "large", "memory_mib = 2048"),
            scenario(at, "with", "packages = [\"xx\"]\nimages = [\"trixie\"]"),
        ];
        let costs = costs(at, "[trixie]\nplain = 1\nlarge = 2\nwith = 9\n[sid]\nplain = 3\nlarge = 3");
        let machines = Machines { suites: vec![Suite::Trixie, Suite::Sid], ..Machines::default() };
        let seen = |shard: &str| {
            let part = part(shard, &machines, &scenarios, &costs);
            assert_eq!(part.share.expect("a shard").runs_of_all, 5, "with is not for sid");
            let suites = part.machines(&machines).suites;
            let wanted = part.wanted(&scenarios).into_iter();
            (suites, wanted.map(|one| (one.by, one.images, one.memory_mib)).collect::<Vec<_>>())
        };
        let first = vec![("with".to_owned(), vec![Suite::Trixie], 512)];
        assert_eq!(seen("1/2"), (vec![Suite::Trixie], first));
        let second = vec![
            ("plain".to_owned(), vec![Suite::Sid, Suite::Trixie], 512),
            ("large".to_owned(), vec![Suite::Sid, Suite::Trixie], 2048),
        ];
        assert_eq!(seen("2/2"), (vec![Suite::Trixie, Suite::Sid], second));
    }

    #[test]
    fn the_order_in_which_a_suite_is_asked_for_does_not_matter() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut scenarios: Vec<_> =
            ["c", "a", "b", "d"].map(|name| scenario(scratch.path(), name, "")).into();
        let none = Costs::default();
        let machines = |suites: [Suite; 2]| Machines { suites: suites.into(), ..Machines::default() };
        let one: Vec<Part> = ["1/3", "2/3", "3/3"]
            .map(|shard| part(shard, &machines([Suite::Trixie, Suite::Sid]), &scenarios, &none))
            .into();
        scenarios.reverse();
        let other: Vec<Part> = ["1/3", "2/3", "3/3"]
            .map(|shard| part(shard, &machines([Suite::Sid, Suite::Trixie]), &scenarios, &none))
            .into();
        assert_eq!(one, other);
        assert_eq!(one.iter().map(Part::runs).sum::<usize>(), 8);
        for guest in ["trixie", "sid"] {
            for scenario in &scenarios {
                let having = one.iter().filter(|part| part.has(guest, &scenario.name));
                assert_eq!(having.count(), 1, "{guest}/{}", scenario.name);
            }
        }
    }

    #[test]
    fn a_suite_that_is_spread_has_each_scenario_on_the_first_image_and_on_one_other() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut scenarios: Vec<_> =
            ["a", "b", "c", "d"].map(|name| scenario(scratch.path(), name, "")).into();
        scenarios.push(scenario(scratch.path(), "only", "images = [\"trixie\"]"));
        scenarios.push(scenario(scratch.path(), "never-there", "images = [\"sid\", \"bookworm\"]"));
        let suites = vec![Suite::Trixie, Suite::Bookworm, Suite::Sid];
        let machines = Machines { suites, ..Machines::default() };
        let spread = |scenarios: &[Scenario]| {
            let part = Part::of(None, Breadth::Two, &machines, scenarios, &Costs::default());
            part.expect("no shards").expect("a part")
        };
        let part = spread(&scenarios);
        let on = |name: &str| ["trixie", "bookworm", "sid"].map(|guest| part.has(guest, name));
        assert_eq!(on("a"), [true, false, true]);
        assert_eq!(on("b"), [true, true, false]);
        assert_eq!(on("only"), [true, false, false]);
        assert_eq!(on("never-there").into_iter().filter(|runs| *runs).count(), 1);
        assert_eq!(part.runs(), 10);
        // Where it is dear, it is not run: on the other one, or on none. But somewhere it is.
        let dear = |costs: &[(&str, &str)]| {
            let costs = costs.iter().map(|(guest, name)| format!("[{guest}]\n{name} = 12.0\n"));
            std::fs::write(scratch.path().join("costs.toml"), costs.collect::<String>()).expect("costs");
            let costs = Costs::load(&[scratch.path().to_owned()]).expect("costs");
            let part = Part::of(None, Breadth::Two, &machines, &scenarios, &costs);
            let part = part.expect("no shards").expect("a part");
            move |name: &str| ["trixie", "bookworm", "sid"].map(|guest| part.has(guest, name))
        };
        assert_eq!(dear(&[("sid", "a")])("a"), [true, true, false]);
        assert_eq!(dear(&[("bookworm", "a"), ("sid", "a")])("a"), [true, false, false]);
        assert_eq!(dear(&[("trixie", "a")])("a"), [true, false, true]);
        let nowhere_cheap = dear(&[("bookworm", "never-there"), ("sid", "never-there")])("never-there");
        assert_eq!(nowhere_cheap.into_iter().filter(|runs| *runs).count(), 1);
        // Whatever else there is, and in whatever order.
        scenarios.reverse();
        assert_eq!(spread(&scenarios), part);
        let alone = spread(&scenarios[2..3]);
        assert!(scenarios[2].name == "d" && alone.has("bookworm", "d") == part.has("bookworm", "d"));
        let all = Part::of(None, Breadth::All, &machines, &scenarios, &Costs::default());
        assert_eq!(all, Ok(None));
        // Its shards are it.
        let shard = |shard: &str| {
            let shard = Some(shard.parse().expect("a shard"));
            let part = Part::of(shard, Breadth::Two, &machines, &scenarios, &Costs::default());
            part.expect("enough runs").expect("a part").runs()
        };
        assert_eq!(shard("1/2") + shard("2/2"), 10);
    }

    #[test]
    fn an_external_image_has_shards_too() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let scenarios = ["a", "b"].map(|name| scenario(scratch.path(), name, "images = [\"sid\"]"));
        let external =
            External { kernel: "k".into(), modules: "m".into(), root: "r".into(), installed: None };
        let machines = Machines { external: Some(external), ..Machines::default() };
        let part = part("2/2", &machines, &scenarios, &Costs::default());
        assert!(part.has("external", "b") && part.runs() == 1);
        assert_eq!(part.machines(&machines).guests(), 1);
        let wanted = part.wanted(&scenarios);
        assert_eq!(wanted.iter().map(|one| one.by.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn more_shards_than_runs_are_wrong_usage_for_each_of_them() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let scenarios = [scenario(scratch.path(), "a", "")];
        for shard in ["1/2", "2/2"] {
            let asked = Some(shard.parse().expect("a shard"));
            let machines = Machines::default();
            let wrong = Part::of(asked, Breadth::All, &machines, &scenarios, &Costs::default());
            let words = wrong.expect_err("too many").to_string();
            assert_eq!(
                words,
                format!("nothing was run: --shard {shard}: 2 shards of 1 run: some would have none")
            );
        }
    }
}
