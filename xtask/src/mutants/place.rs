//! The copy of the checkout for a mutant, as `copied` makes it, and the commands that run there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vm_tests::cache::{self, Lock};
use vm_tests::host::process::{self, Error};
use vm_tests::host::tools;
use vm_tests::report::{Report, Verdict};
use xshell::{Shell, cmd};

use crate::{copied, left4me};

/// Something that is run, and is green without a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Run {
    /// The arguments of `cargo test`: which package, which target, and the name of a test. At least one must run.
    Cargo(&'static [&'static str]),
    /// A scenario on an image, in virtual time.
    Vm { image: &'static str, scenario: &'static str },
}

/// The longest that what one mutant needs may take, builds included.
const DEADLINE: Duration = Duration::from_secs(3600);

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Green,
    Red,
    /// Neither: why.
    Nothing(String),
}

impl Outcome {
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Green => "green",
            Self::Red => "red",
            Self::Nothing(why) => why,
        }
    }
}

impl Run {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Cargo(arguments) => format!("cargo test {}", arguments.join(" ")),
            Self::Vm { image, scenario } => format!("{image}/{scenario}"),
        }
    }
}

/// Where mutants are made and run.
#[derive(Debug)]
pub(super) struct Place {
    /// The checkout.
    pub(super) from: PathBuf,
    /// Its copy.
    pub(super) tree: PathBuf,
    /// What cargo builds there.
    pub(super) target: PathBuf,
    /// What each run wrote.
    pub(super) logs: PathBuf,
    /// Guest images and saved machines, the checkout's.
    pub(super) cache: PathBuf,
    pub(super) files: BTreeSet<PathBuf>,
    /// Against another run at the same time; none in a unit test.
    pub(super) _ours: Option<Lock>,
}

/// Deletes what was built for a tree of another path: a test that was moved with its target directory is fresh for cargo, and runs
/// the programs of the old place, in which there is no mutant (seen with one that was not caught then).
fn forget_if_moved(mark: &Path, tree: &Path, target: &Path) -> Result<()> {
    let here = tree.display().to_string();
    let built = fs::read_to_string(mark);
    if built.is_ok_and(|built| built == here) {
        return Ok(());
    }
    cache::remove_tree(target)?;
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    fs::write(mark, here).with_context(|| format!("write {}", mark.display()))
}

impl Place {
    pub(super) async fn prepare() -> Result<Self> {
        let workspace = left4me::workspace()?;
        let cache = workspace.cache()?;
        let (from, place) = (workspace.root, workspace.target.join("mutants"));
        let (tree, target, logs) = (place.join("tree"), place.join("target"), place.join("logs"));
        for directory in [&tree, &target, &logs] {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let ours = Lock::exclusive(&place.join("lock"), |who| {
            eprintln!("mutants: waiting for {who}, which makes them");
        })
        .await?;
        let files = copied::files_of(&from).await?;
        forget_if_moved(&place.join("built-in"), &tree, &target)?;
        Ok(Self { from, tree, target, logs, cache, files, _ours: Some(ours) })
    }

    /// Makes the copy what the checkout is.
    pub(super) fn sync(&self) -> Result<()> {
        copied::sync(&self.from, &self.tree, &self.files)
    }

    /// Takes a change back, and what its runs have left beside their snapshots. Not from the checkout, where somebody may
    /// go on working meanwhile.
    pub(super) fn restore(&self, file: &str, text: &str) -> Result<()> {
        let path = self.tree.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        copied::remove_others(&self.tree, &self.files)
    }

    /// Runs these in the tree as it is: scenarios of an image together.
    pub(super) async fn run_all(&self, runs: &BTreeSet<Run>, name: &str) -> Result<Vec<(Run, Outcome)>> {
        let log = self.log(name);
        copied::remove_if_there(&log).with_context(|| format!("delete {}", log.display()))?;
        let mut scenarios: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
        let mut outcomes = Vec::new();
        for run in runs {
            match run {
                Run::Cargo(arguments) => outcomes.push((*run, self.cargo_test(arguments, name).await?)),
                Run::Vm { image, scenario } => scenarios.entry(image).or_default().push(scenario),
            }
        }
        for (image, scenarios) in scenarios {
            outcomes.extend(self.vm_test(image, &scenarios, name).await?);
        }
        Ok(outcomes)
    }

    async fn cargo_test(&self, arguments: &[&str], name: &str) -> Result<Outcome> {
        // By itself first: that it does not compile is no red test. Examples too, which a test of one name runs and does
        // not build.
        let package = arguments.get(..2).context("a run of cargo test begins with -p and a package")?;
        let builds = [
            [&["build", "--all-features", "--examples"], package].concat(),
            [&["test", "--no-run", "--all-features"], arguments].concat(),
        ];
        for build in builds {
            if let Ended::Failed(why) = self.cargo(&build, name).await? {
                return Ok(Outcome::Nothing(format!("it does not compile: {why}")));
            }
        }
        let test = [&["test", "--all-features"], arguments].concat();
        Ok(match self.cargo(&test, name).await? {
            Ended::Passed(output) if tests_passed(&output) == 0 => {
                Outcome::Nothing("there is no test of this name".to_owned())
            }
            Ended::Passed(_) => Outcome::Green,
            Ended::Failed(_) => Outcome::Red,
        })
    }

    async fn vm_test(
        &self,
        image: &'static str,
        scenarios: &[&'static str],
        name: &str,
    ) -> Result<Vec<(Run, Outcome)>> {
        let results = self.logs.join("vm-test");
        let results = results.to_str().context("the checkout's path is no UTF-8")?;
        let report = Path::new(results).join("report.json");
        copied::remove_if_there(&report).with_context(|| format!("delete {}", report.display()))?;
        let arguments = ["run", "--quiet", "-p", "xtask", "--", "vm-test", "--clock", "virtual"];
        let arguments = [&arguments[..], &["--image", image, "--results", results], scenarios].concat();
        let ended = self.cargo(&arguments, name).await?;
        let report: Option<Report> = match fs::read_to_string(&report) {
            Ok(text) => Some(serde_json::from_str(&text).context("parse the mutant's report.json")?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {}", report.display())),
        };
        let outcome = |scenario: &str| {
            // One that is named by its path is reported by its directory's name.
            let scenario = scenario.rsplit('/').next().unwrap_or(scenario);
            let mut found = report.iter().flat_map(|report| &report.scenarios);
            match found.find(|one| one.name == scenario).map(|one| (one.verdict, &one.why)) {
                Some((Verdict::Passed, _)) => Outcome::Green,
                Some((Verdict::Failed, _)) => Outcome::Red,
                Some((
                    Verdict::New | Verdict::Infrastructure | Verdict::Interrupted | Verdict::WrongInput,
                    why,
                )) => Outcome::Nothing(why.join("; ")),
                None => Outcome::Nothing(match &ended {
                    Ended::Passed(_) => "it has no report".to_owned(),
                    Ended::Failed(why) => why.clone(),
                }),
            }
        };
        Ok(scenarios.iter().map(|scenario| (Run::Vm { image, scenario }, outcome(scenario))).collect())
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Runs cargo in the tree; what it writes is in the log of this name.
    async fn cargo(&self, arguments: &[&str], name: &str) -> Result<Ended> {
        let log = self.log(name);
        let mut lines = format!("$ cargo {}\n", arguments.join(" "));
        let (shell, cargo) = (Shell::new()?, tools::cargo());
        shell.change_dir(&self.tree);
        let command = cmd!(shell, "{cargo} {arguments...}")
            .env("CARGO_TARGET_DIR", &self.target)
            .env(cache::CACHE_VAR, &self.cache)
            // A mutant's outcome is nobody's snapshot.
            .env("INSTA_UPDATE", "no");
        let ended = process::run(command.into(), DEADLINE, |_, line| lines.extend([line, "\n"])).await;
        let mut file = fs::File::options().append(true).create(true).open(&log);
        let written =
            file.as_mut().map_err(|error| error.kind()).map(|file| file.write_all(lines.as_bytes()));
        if !matches!(written, Ok(Ok(()))) {
            bail!("write {}", log.display());
        }
        match ended {
            Ok(_) => Ok(Ended::Passed(lines)),
            Err(Error::Failed { status, .. }) => {
                Ok(Ended::Failed(format!("{}: see {}", process::describe(status), log.display())))
            }
            Err(Error::Deadline { after, .. }) => Ok(Ended::Failed(format!(
                "it did not end within {} s: see {}",
                after.as_secs(),
                log.display()
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

/// How cargo ended.
#[derive(Debug)]
enum Ended {
    /// With 0, and what it wrote.
    Passed(String),
    /// Otherwise, in words.
    Failed(String),
}

/// How many tests have passed, by the lines of libtest and libtest-mimic.
pub(super) fn tests_passed(output: &str) -> u32 {
    let results = output.lines().filter_map(|line| line.trim().strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split_once(" passed")?.0.parse::<u32>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_for_another_place_is_forgotten_and_what_was_built_here_is_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (mark, target) = (directory.path().join("built-in"), directory.path().join("target"));
        let forget = |tree: &str| {
            fs::create_dir_all(&target).expect("target");
            fs::write(target.join("built"), "x").expect("built");
            forget_if_moved(&mark, Path::new(tree), &target).expect("forget");
            !target.join("built").exists()
        };
        let forgotten = ["/one/tree", "/one/tree", "/other/tree", "/other/tree"].map(forget);
        assert_eq!(forgotten, [true, false, true, false]);
        assert!(target.is_dir());
    }
}
