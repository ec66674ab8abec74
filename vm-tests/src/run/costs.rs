//! What each run of a suite costs a host, relative to the others: `costs.toml` beside the scenarios. By these a suite is
//! divided among runners, so they lie in the repository, where all runners have the same.
//!
//! ```toml
//! [trixie]
//! 5eac51a = 6.1
//! ```
//!
//! Seconds of some host. Not of the guest, as `durations.toml`: a guest's idle seconds cost next to nothing, and the shortest
//! run costs a host some.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::pace;
use super::shard::Cost;
use crate::report;
use crate::scenario::WrongInput;

/// The file, in a directory of scenarios.
const FILE: &str = "costs.toml";

const HEADER: &str = "\
# What each run costs, in seconds of a host, for each image. `cargo xtask vm-test --shard` divides the suite by these; only
# their proportions matter. A run that is not here counts as an average one. Written by `cargo xtask costs`.
";

/// By guest and scenario, in tenths of a second: a finer measure would be another one each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Costs(BTreeMap<String, BTreeMap<String, u64>>);

impl Costs {
    /// Those of some directories of scenarios; of one without the file, none.
    ///
    /// # Errors
    /// [`WrongInput`] for a file that is not understood; one that can't be read.
    pub fn load(roots: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for path in roots.iter().map(|root| root.join(FILE)) {
            let text = match std::fs::read_to_string(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                read => read.with_context(|| format!("read {}", path.display()))?,
            };
            let wrong = |why: String| WrongInput::new(format!("{}: {why}", path.display()));
            for (guest, costs) in parse(&text).map_err(wrong)?.0 {
                all.0.entry(guest).or_default().extend(costs);
            }
        }
        Ok(all)
    }

    /// What a run costs, in tenths of a second.
    #[must_use]
    pub fn of(&self, guest: &str, scenario: &str) -> Cost {
        self.0.get(guest)?.get(scenario).copied()
    }

    /// Takes what runs took, by the results of a suite: those that had a verdict and that were run. The number of them.
    ///
    /// # Errors
    /// A directory that can't be read.
    pub fn take(&mut self, results: &Path) -> Result<usize> {
        let mut taken = 0;
        for guest in directories(results)? {
            for scenario in directories(&guest)? {
                let Some(report) = report::read_scenario(&scenario) else { continue };
                let Some(took) = pace::took(&report) else { continue };
                let tenths = u64::try_from((took.as_millis() + 50) / 100)?;
                self.0.entry(report.guest).or_default().insert(report.name, tenths.max(1));
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Leaves out scenarios that are not there any more.
    pub fn retain(&mut self, scenarios: &[&str]) {
        for costs in self.0.values_mut() {
            costs.retain(|scenario, _| scenarios.contains(&scenario.as_str()));
        }
        self.0.retain(|_, costs| !costs.is_empty());
    }

    /// Writes them into a directory of scenarios, and returns the file's path.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn write(&self, root: &Path) -> Result<PathBuf> {
        let path = root.join(FILE);
        std::fs::write(&path, self.text()?).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn text(&self) -> Result<String> {
        #[expect(clippy::cast_precision_loss, reason = "tenths of seconds of hours are far below 2^52")]
        let secs = |(scenario, tenths): (&String, &u64)| (scenario.clone(), *tenths as f64 / 10.0);
        let tables: BTreeMap<&str, BTreeMap<String, f64>> =
            self.0.iter().map(|(guest, costs)| (guest.as_str(), costs.iter().map(secs).collect())).collect();
        Ok(format!("{HEADER}\n{}", toml::to_string(&tables)?))
    }
}

fn parse(text: &str) -> Result<Costs, String> {
    let tables: BTreeMap<String, BTreeMap<String, f64>> =
        toml::from_str(text).map_err(|error| error.to_string())?;
    let mut all = Costs::default();
    for (guest, costs) in tables {
        let table = all.0.entry(guest.clone()).or_default();
        for (scenario, secs) in costs {
            // A day is no run's.
            if !(0.0..86_400.0).contains(&secs) {
                return Err(format!("{guest}.{scenario} = {secs}: it is seconds of a host"));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in bounds")]
            table.insert(scenario, (secs * 10.0).round() as u64);
        }
    }
    Ok(all)
}

fn directories(of: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("read {}", of.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of).with_context(what)? {
        let entry = entry.with_context(what)?;
        if entry.file_type().with_context(what)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ScenarioReport, Verdict};
    use crate::scenario::Scenario;

    const MANIFEST: &str =
        "description = \"d\"\nunit = \"x.service\"\nmount = \"/m\"\nstart = [\"true\"]\nreset = [\"true\"]\n";

    #[test]
    fn what_is_written_is_read_again_and_a_workspace_may_have_none() {
        let root = tempfile::tempdir().expect("tempdir");
        let roots = [root.path().to_owned(), root.path().join("none")];
        assert_eq!(Costs::load(&roots).expect("no file"), Costs::default());
        let costs = parse("[trixie]\n5eac51a = 6.14\n\"a.b\" = 3\n[sid]\n5eac51a = 0.04").expect("costs");
        assert_eq!(costs.of("trixie", "5eac51a"), Some(61));
        assert_eq!(costs.of("trixie", "a.b"), Some(30));
        assert_eq!(costs.of("sid", "5eac51a"), Some(0), "whoever divides makes it something");
        assert_eq!((costs.of("sid", "a.b"), costs.of("bookworm", "5eac51a")), (None, None));
        costs.write(root.path()).expect("write");
        assert_eq!(Costs::load(&roots).expect("load"), costs);
        for wrong in [
            "[trixie]\nx = -1",
            "[trixie]\nx = nan",
            "[trixie]\nx = inf",
            "x = 3",
            "[trixie]\nx = \"3\"",
            "[",
        ] {
            std::fs::write(root.path().join(FILE), wrong).expect("write");
            let error = Costs::load(&roots).expect_err(wrong);
            assert!(error.is::<WrongInput>() && error.to_string().contains(FILE), "{error:#}");
        }
    }

    #[test]
    fn what_has_run_is_taken_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let report = |guest: &str, name: &str, verdict, remembered_s, session_ms| {
            let directory = scratch.path().join(name);
            std::fs::create_dir_all(&directory).expect("mkdir");
            std::fs::write(directory.join("scenario.toml"), MANIFEST).expect("write");
            let scenario = Scenario::load(&directory).expect("load");
            let mut report = ScenarioReport::of_error(guest, &scenario, &anyhow::anyhow!("x"));
            (report.verdict, report.remembered_s) = (verdict, remembered_s);
            (report.stages.restore_ms, report.stages.session_ms) = (1000, session_ms);
            let results = scratch.path().join("results").join(guest).join(name);
            report::write_scenario(&results, &report, None).expect("write");
        };
        report("trixie", "a", Verdict::Passed, None, 2049);
        report("trixie", "b", Verdict::Failed, None, 2050);
        report("trixie", "c", Verdict::Passed, Some(9), 7);
        report("sid", "d", Verdict::Infrastructure, None, 7);
        std::fs::create_dir_all(scratch.path().join("results/sid/none")).expect("mkdir");
        let mut costs = parse("[trixie]\nb = 9\nc = 9\n[sid]\ngone = 9").expect("costs");
        assert_eq!(costs.take(&scratch.path().join("results")).expect("take"), 2);
        costs.retain(&["a", "b", "c", "d"]);
        assert_eq!(costs, parse("[trixie]\na = 3\nb = 3.1\nc = 9").expect("costs"));
    }
}
