//! The copy of the checkout for a mutant, and the commands that run there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vm_tests::cache::{self, Lock};
use vm_tests::host::process::{self, Error};
use vm_tests::host::tools;
use vm_tests::report::{Report, Verdict};
use xshell::{Shell, cmd};

use crate::left4me;

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
        let files = files_of(&from).await?;
        Ok(Self { from, tree, target, logs, cache, files, _ours: Some(ours) })
    }

    /// Makes the copy what the checkout is, uncommitted changes included. A file that is the same stays as it is, with its
    /// time: cargo builds what is newer.
    pub(super) fn sync(&self) -> Result<()> {
        remove_others(&self.tree, Path::new(""), &self.files)?;
        self.files.iter().try_for_each(|file| {
            let (from, to) = (self.from.join(file), self.tree.join(file));
            copy(&from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))
        })
    }

    /// Takes a change back, and what its runs have left beside their snapshots. Not from the checkout, where somebody may
    /// go on working meanwhile.
    pub(super) fn restore(&self, file: &str, text: &str) -> Result<()> {
        let path = self.tree.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        remove_others(&self.tree, Path::new(""), &self.files)
    }

    /// Runs these in the tree as it is: scenarios of an image together.
    pub(super) async fn run_all(&self, runs: &BTreeSet<Run>, name: &str) -> Result<Vec<(Run, Outcome)>> {
        let log = self.log(name);
        remove_if_there(&log).with_context(|| format!("delete {}", log.display()))?;
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
        remove_if_there(&report).with_context(|| format!("delete {}", report.display()))?;
        let arguments = ["run", "--quiet", "-p", "xtask", "--", "vm-test", "--clock", "virtual"];
        let arguments = [&arguments[..], &["--image", image, "--results", results], scenarios].concat();
        let ended = self.cargo(&arguments, name).await?;
        let report: Option<Report> = match fs::read_to_string(&report) {
            Ok(text) => Some(serde_json::from_str(&text).context("parse the mutant's report.json")?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {}", report.display())),
        };
        let outcome = |scenario: &str| {
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

/// What git knows of in a checkout, and what it would add.
async fn files_of(checkout: &Path) -> Result<BTreeSet<PathBuf>> {
    let shell = Shell::new()?;
    shell.change_dir(checkout);
    let list = cmd!(shell, "git ls-files -z --cached --others --exclude-standard").into();
    let listed = process::output(list, Duration::from_secs(60)).await.context("list the checkout")?;
    let names = listed.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let files: BTreeSet<PathBuf> = names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect();
    // One that is deleted and not committed is still listed.
    Ok(files.into_iter().filter(|file| checkout.join(file).symlink_metadata().is_ok()).collect())
}

/// Deletes what is in the tree and not among the files; what is built there stays.
fn remove_others(tree: &Path, below: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    let directory = tree.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let (path, below) = (entry.path(), below.join(entry.file_name()));
        let is_directory = entry.file_type().with_context(|| format!("stat {}", path.display()))?.is_dir();
        if below == Path::new("target") {
            continue;
        } else if is_directory {
            remove_others(tree, &below, files)?;
        } else if !files.contains(&below) {
            fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
        }
    }
    Ok(())
}

/// Copies a file or a link, unless it is the same already.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_symlink() {
        let target = fs::read_link(from)?;
        if fs::read_link(to).is_ok_and(|is| is == target) {
            return Ok(());
        }
        make_way(to)?;
        return std::os::unix::fs::symlink(target, to);
    }
    let is_same = |to_metadata: fs::Metadata| {
        to_metadata.is_file() && to_metadata.permissions() == metadata.permissions()
    };
    if to.symlink_metadata().is_ok_and(is_same) && fs::read(from)? == fs::read(to)? {
        return Ok(());
    }
    make_way(to)?;
    fs::copy(from, to).map(|_bytes| ())
}

fn make_way(to: &Path) -> std::io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    remove_if_there(to)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _gone => Ok(()),
    }
}
