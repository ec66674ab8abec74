//! `cargo xtask check --mutants`: proves that the tests bite. Each mutant is one change that must turn something red; it is
//! made in a copy of the checkout, and the tests that have to notice it are run there.
//!
//! The copy lies in `target/mutants`, with a target directory of its own that is kept, so that a mutant costs what it
//! changes. Guest images are the checkout's own. Nothing of a mutant is ever in the checkout itself.
//!
//! What deletes is no place for a mutant that is tried on the host: such a one names scenarios, or tests that run where all
//! else is read-only.
//!
//! First everything is run without a change: what is red by itself proves nothing. A mutant that does not compile, a test
//! that is not there, a machine that fails are no result, and never a mutant that was caught.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_tests::cache::{self, Lock};
use vm_tests::host::process::{self, Error, Program};
use vm_tests::report::{Report, Verdict};

use crate::exit::{FAILED, INFRASTRUCTURE, PASSED};

/// One change that must be noticed.
#[derive(Debug)]
struct Mutant {
    /// What is wrong with it, in words with dashes.
    name: &'static str,
    /// In which file, from the root of the checkout.
    file: &'static str,
    change: Change,
    /// What has to go red, each by itself. None: nothing is known that does, which is a finding.
    red: &'static [Run],
}

#[derive(Debug)]
enum Change {
    /// `find`, which is there exactly once, becomes `replace`.
    Replace { find: &'static str, replace: &'static str },
    /// The file is not there.
    Delete,
}

/// Something that is run, and is green without a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Run {
    /// The arguments of `cargo test`: which package, which target, and the name of a test. At least one must run.
    Cargo(&'static [&'static str]),
    /// A scenario on an image, in virtual time.
    Vm { image: &'static str, scenario: &'static str },
}

const fn on_trixie(scenario: &'static str) -> Run {
    Run::Vm { image: "trixie", scenario }
}

const fn on_sid(scenario: &'static str) -> Run {
    Run::Vm { image: "sid", scenario }
}

/// A test of the built helper on the machine's own kernel.
macro_rules! native {
    ($test:literal) => {
        Run::Cargo(&["-p", "left4me-helper", "--test", "native", $test])
    };
}

const OVERLAY_UNIT: &str = "deploy/files/usr/local/lib/systemd/system/left4me-overlay@.service";
const UNIT: &str = "deploy/files/usr/local/lib/systemd/system/left4me-server@.service";
const WATCHER: &str = "vm-tests/agent/src/record/watcher.rs";

const MUTANTS: &[Mutant] = &[
    // A server that gets out of its sandbox, or to another server, is what these are for.
    Mutant {
        name: "unit-without-no-new-privileges",
        file: UNIT,
        change: Change::Replace { find: "NoNewPrivileges=yes\n", replace: "" },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "unit-without-protect-system",
        file: UNIT,
        change: Change::Replace { find: "ProtectSystem=strict\n", replace: "" },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "unit-with-capabilities",
        file: UNIT,
        change: Change::Replace {
            find: "CapabilityBoundingSet=\nAmbientCapabilities=\nPrivateUsers=yes\n",
            replace: "",
        },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "helper-stays-in-the-mount",
        file: "helper/src/main.rs",
        change: Change::Replace {
            find: "rustix::process::chdir(\"/\")",
            replace: "Ok::<(), rustix::io::Errno>(())",
        },
        red: &[native!("a_mount_and_an_unmount")],
    },
    Mutant {
        name: "helper-unmounts-lazily",
        file: "helper/src/overlay.rs",
        change: Change::Replace {
            find: "UnmountFlags::NOFOLLOW) {",
            replace: "UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {",
        },
        red: &[on_trixie("holder-outside")],
    },
    Mutant {
        name: "helper-calls-busy-a-success",
        file: "helper/src/error.rs",
        change: Change::Replace {
            find: "            Self::Mount { .. }\n            | Self::Busy { .. }\n",
            replace: "            Self::Busy { .. } => 0,\n            Self::Mount { .. }\n",
        },
        red: &[on_trixie("holder-outside"), native!("an_outsider_is_named_at_once")],
    },
    Mutant {
        name: "reset-goes-on-while-it-is-mounted",
        file: "helper/src/control.rs",
        change: Change::Replace {
            find: "        if !self.report.still_mounted.is_empty() {\n            return Err(self.left_mounted(&stop, \" and nothing",
            replace: "        if false {\n            return Err(self.left_mounted(&stop, \" and nothing",
        },
        // On a machine purge() refuses it once more.
        red: &[Run::Cargo(&["-p", "left4me-helper", "--lib", "control::"])],
    },
    Mutant {
        name: "reset-deletes-after-a-cancelled-stop",
        file: "helper/src/control.rs",
        change: Change::Replace {
            find: "        if let Some(refused) = stop.refused {\n            // A server can run",
            replace: "        if let Some(refused) = stop.refused.clone().filter(|_| false) {\n            // A server can run",
        },
        red: &[
            Run::Cargo(&["-p", "left4me-helper", "--lib", "control::"]),
            on_trixie("product-reset-cancelled"),
        ],
    },
    Mutant {
        name: "a-job-ends-by-anybodys-word",
        file: "helper/src/job.rs",
        change: Change::Replace {
            find: "    one == other\n",
            replace: "    one == other || other.is_some()\n",
        },
        red: &[Run::Cargo(&["-p", "left4me-helper", "--lib", "job::"])],
    },
    Mutant {
        name: "helper-waits-for-nobody",
        file: "helper/src/overlay.rs",
        change: Change::Replace {
            find: "    unit_end::wait(server, wait, began, note);\n",
            replace: "    let _ = (server, &mut *note);\n",
        },
        red: &[
            native!("a_large_server_that_is_just_ending_is_waited_for"),
            on_trixie("5eac51a-heavy"),
            on_sid("overlay-unit"),
            on_trixie("overlay-unit-32-bit"),
        ],
    },
    Mutant {
        name: "runtime-is-open-to-others",
        file: "helper/src/overlay.rs",
        change: Change::Replace { find: "RUNTIME_MODE: u32 = 0o710;", replace: "RUNTIME_MODE: u32 = 0o755;" },
        red: &[
            native!("nobody_else_can_hold_the_lock_or_stand_in_the_mount"),
            on_trixie("product-neighbours"),
        ],
    },
    Mutant {
        name: "servers-share-their-queues",
        file: UNIT,
        change: Change::Replace { find: "PrivateIPC=yes\n", replace: "" },
        red: &[on_trixie("product-neighbours")],
    },
    Mutant {
        name: "servers-share-dev-shm",
        file: UNIT,
        change: Change::Replace {
            find: "TemporaryFileSystem=/dev/shm:rw,nosuid,nodev,mode=1777,size=256M\n",
            replace: "",
        },
        red: &[on_trixie("product-neighbours")],
    },
    Mutant {
        name: "overlay-is-unmounted-by-exec-stop",
        file: OVERLAY_UNIT,
        change: Change::Replace { find: "ExecStopPost=/usr", replace: "ExecStop=/usr" },
        red: &[on_trixie("overlay-unit")],
    },
    Mutant {
        name: "overlay-has-the-servers-environment",
        file: OVERLAY_UNIT,
        change: Change::Replace {
            find: "RemainAfterExit=yes\n",
            replace: "RemainAfterExit=yes\nEnvironmentFile=-/var/lib/left4me/instances/%i.env\n",
        },
        red: &[on_trixie("product-environment")],
    },
    Mutant {
        name: "purge-follows-links-and-crosses-mounts",
        file: "helper/src/purge.rs",
        change: Change::Replace {
            find: "resolve: ResolveFlags::NO_XDEV.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::BENEATH),",
            replace: "resolve: ResolveFlags::empty(),",
        },
        red: &[Run::Cargo(&["-p", "left4me-helper", "--lib", "purge::"])],
    },
    Mutant {
        name: "holders-sees-no-threads",
        file: "holders/src/walk.rs",
        change: Change::Replace {
            find: "        if !self.denied {\n            self.other_threads(leader, pid, Met {",
            replace: "        if false {\n            self.other_threads(leader, pid, Met {",
        },
        red: &[Run::Cargo(&["-p", "holders", "--test", "planted", "thread-cwd"])],
    },
    Mutant {
        name: "scenario-without-durations",
        file: "vm-tests/scenarios/5eac51a/durations.toml",
        change: Change::Delete,
        red: &[on_trixie("5eac51a")],
    },
    Mutant {
        name: "recorder-drops-mount-changes",
        file: WATCHER,
        change: Change::Replace {
            find: "            self.sink.send(at, change);\n",
            replace: "            drop(change);\n",
        },
        red: &[on_trixie("5eac51a"), on_trixie("mount-unit-own")],
    },
    Mutant {
        name: "recorder-does-not-trace",
        file: WATCHER,
        change: Change::Replace {
            find: "trace: or_lost(UmountTrace::open(), \"tracefs\", &sink),",
            replace: "trace: None,",
        },
        red: &[on_trixie("5eac51a"), on_trixie("mount-unit-own")],
    },
    Mutant {
        name: "recorder-takes-any-umount-for-the-mounts",
        file: WATCHER,
        change: Change::Replace {
            find: "path.filter(|_| !is_before_exec(&comm))",
            replace: "path.filter(|_| false)",
        },
        red: &[on_trixie("mount-unit-busy-elsewhere")],
    },
];

/// The longest that what one mutant needs may take, builds included.
const DEADLINE: Duration = Duration::from_secs(3600);

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Green,
    Red,
    /// Neither: why.
    Nothing(String),
}

/// What came of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Verdicts {
    Caught(Vec<String>),
    Survived(Vec<String>),
    Nothing(String),
}

/// Runs the mutants of these names, all if there is none, and prints a line for each. Not caught is 1, no result 69.
///
/// # Errors
/// A name that there is not; a copy that can't be made; an interrupt.
pub(crate) async fn run(names: &[String]) -> Result<u8> {
    let mutants = chosen(names)?;
    let place = Place::prepare().await?;
    let runs: BTreeSet<Run> = mutants.iter().flat_map(|mutant| mutant.red).copied().collect();

    eprintln!("mutants: everything without a change, in {}", place.tree.display());
    place.sync()?;
    let without = place.run_all(&runs, "unchanged").await?;
    let mut is_green = true;
    for (run, outcome) in &without {
        if let Outcome::Red | Outcome::Nothing(_) = outcome {
            println!("unchanged: {} is {}", run.words(), outcome.words());
            is_green = false;
        }
    }
    if !is_green {
        println!("mutants: what is not green without a change proves nothing: see {}", place.logs.display());
        return Ok(INFRASTRUCTURE);
    }

    let (mut survived, mut without_result) = (0, 0);
    for mutant in &mutants {
        let begun = Instant::now();
        eprintln!("mutants: {}", mutant.name);
        let verdict = match mutant.apply(&place.tree) {
            Ok(original) => {
                let outcomes = place.run_all(&mutant.red.iter().copied().collect(), mutant.name).await;
                place.restore(mutant.file, &original)?;
                verdict(&outcomes?)
            }
            Err(error) => Verdicts::Nothing(format!("it does not apply: {error:#}")),
        };
        let secs = begun.elapsed().as_secs();
        match verdict {
            Verdicts::Caught(by) => println!("{}: caught by {} ({secs} s)", mutant.name, by.join(", ")),
            Verdicts::Survived(_) if mutant.red.is_empty() => {
                println!("{}: NOT CAUGHT: nothing is known that would", mutant.name);
                survived += 1;
            }
            Verdicts::Survived(of) => {
                println!("{}: NOT CAUGHT by {} ({secs} s)", mutant.name, of.join(", "));
                survived += 1;
            }
            Verdicts::Nothing(why) => {
                println!("{}: no result: {why}", mutant.name);
                without_result += 1;
            }
        }
    }
    let caught = mutants.len() - survived - without_result;
    println!("{caught} caught, {survived} not caught, {without_result} without a result");
    Ok(match (survived, without_result) {
        (0, 0) => PASSED,
        (0, _) => INFRASTRUCTURE,
        _ => FAILED,
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Mutant>> {
    for name in names {
        let known: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        ensure!(known.contains(&name.as_str()), "no mutant {name}: there are {}", known.join(", "));
    }
    let is_chosen = |mutant: &&Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name);
    Ok(MUTANTS.iter().filter(is_chosen).collect())
}

/// Each of what has to go red does, or the mutant has survived. What has no result decides only where nothing is green.
fn verdict(outcomes: &[(Run, Outcome)]) -> Verdicts {
    let with = |wanted: &Outcome| -> Vec<String> {
        outcomes.iter().filter(|(_, outcome)| outcome == wanted).map(|(run, _)| run.words()).collect()
    };
    let (green, red) = (with(&Outcome::Green), with(&Outcome::Red));
    if !green.is_empty() || outcomes.is_empty() {
        return Verdicts::Survived(green);
    }
    let nothing = outcomes.iter().find_map(|(run, outcome)| match outcome {
        Outcome::Nothing(why) => Some(format!("{}: {why}", run.words())),
        Outcome::Green | Outcome::Red => None,
    });
    nothing.map_or(Verdicts::Caught(red), Verdicts::Nothing)
}

impl Outcome {
    fn words(&self) -> &str {
        match self {
            Self::Green => "green",
            Self::Red => "red",
            Self::Nothing(why) => why,
        }
    }
}

impl Run {
    fn words(&self) -> String {
        match self {
            Self::Cargo(arguments) => format!("cargo test {}", arguments.join(" ")),
            Self::Vm { image, scenario } => format!("{image}/{scenario}"),
        }
    }
}

impl Mutant {
    /// Makes the change in a tree; returns what the file was.
    fn apply(&self, tree: &Path) -> Result<String> {
        let path = tree.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        match self.change {
            Change::Delete => {
                fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
            }
            Change::Replace { .. } => {
                let changed = self.changed(&text)?;
                fs::write(&path, changed).with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(text)
    }

    /// The file's text with the change in it.
    fn changed(&self, text: &str) -> Result<String> {
        let Change::Replace { find, replace } = self.change else { bail!("it deletes {}", self.file) };
        match text.matches(find).count() {
            1 => Ok(text.replacen(find, replace, 1)),
            times => bail!("{} has {find:?} {times} times, and it has to be there once", self.file),
        }
    }
}

/// Where mutants are made and run.
#[derive(Debug)]
struct Place {
    /// The checkout.
    from: PathBuf,
    /// Its copy.
    tree: PathBuf,
    /// What cargo builds there.
    target: PathBuf,
    /// What each run wrote.
    logs: PathBuf,
    /// Guest images and saved machines, the checkout's.
    cache: PathBuf,
    files: BTreeSet<PathBuf>,
    /// Against another run at the same time; none in a unit test.
    _ours: Option<Lock>,
}

impl Place {
    async fn prepare() -> Result<Self> {
        let from = cache::workspace()?;
        let place = from.join("target/mutants");
        let (tree, target, logs) = (place.join("tree"), place.join("target"), place.join("logs"));
        for directory in [&tree, &target, &logs] {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let ours = Lock::exclusive(&place.join("lock"), |who| {
            eprintln!("mutants: waiting for {who}, which makes them");
        })
        .await?;
        let files = files_of(&from).await?;
        Ok(Self { from, tree, target, logs, cache: cache::root()?, files, _ours: Some(ours) })
    }

    /// Makes the copy what the checkout is, uncommitted changes included. A file that is the same stays as it is, with its
    /// time: cargo builds what is newer.
    fn sync(&self) -> Result<()> {
        remove_others(&self.tree, Path::new(""), &self.files)?;
        self.files.iter().try_for_each(|file| {
            let (from, to) = (self.from.join(file), self.tree.join(file));
            copy(&from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))
        })
    }

    /// Takes a change back, and what its runs have left beside their snapshots. Not from the checkout, where somebody may
    /// go on working meanwhile.
    fn restore(&self, file: &str, text: &str) -> Result<()> {
        let path = self.tree.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        remove_others(&self.tree, Path::new(""), &self.files)
    }

    /// Runs these in the tree as it is: scenarios of an image together.
    async fn run_all(&self, runs: &BTreeSet<Run>, name: &str) -> Result<Vec<(Run, Outcome)>> {
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
                Some((Verdict::Infrastructure | Verdict::Interrupted, why)) => {
                    Outcome::Nothing(why.join("; "))
                }
                None => Outcome::Nothing(match &ended {
                    Ended::Passed(_) => "it has no report".to_owned(),
                    Ended::Failed(why) => why.clone(),
                }),
            }
        };
        Ok(scenarios.iter().map(|scenario| (Run::Vm { image, scenario }, outcome(scenario))).collect())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Runs cargo in the tree; what it writes is in the log of this name.
    async fn cargo(&self, arguments: &[&str], name: &str) -> Result<Ended> {
        let log = self.log(name);
        let mut lines = format!("$ cargo {}\n", arguments.join(" "));
        let program = Program::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(arguments)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env(cache::CACHE_VAR, &self.cache)
            // A mutant's outcome is nobody's snapshot.
            .env("INSTA_UPDATE", "no");
        let ended = process::run(program, DEADLINE, |_, line| lines.extend([line, "\n"])).await;
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
fn tests_passed(output: &str) -> u32 {
    let results = output.lines().filter_map(|line| line.trim().strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split_once(" passed")?.0.parse::<u32>().ok()).sum()
}

/// What git knows of in a checkout, and what it would add.
async fn files_of(checkout: &Path) -> Result<BTreeSet<PathBuf>> {
    let argv = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let program = Program::new("git").args(argv).current_dir(checkout);
    let listed =
        process::run(program, Duration::from_secs(60), |_, _| {}).await.context("list the checkout")?;
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
        let is_directory = entry.file_type().with_context(|| format!("look at {}", path.display()))?.is_dir();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of the code that takes a mutant's place away is noticed here, and not before a release.
    #[test]
    fn every_mutant_applies_and_what_has_to_notice_it_is_there() {
        let checkout = cache::workspace().expect("the checkout");
        let mut names = BTreeSet::new();
        for mutant in MUTANTS {
            assert!(names.insert(mutant.name), "{} is there twice", mutant.name);
            let path = checkout.join(mutant.file);
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if let Change::Replace { .. } = mutant.change {
                let changed =
                    mutant.changed(&text).unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
                assert_ne!(changed, text, "{}", mutant.name);
            }
            for run in mutant.red {
                if let Run::Vm { scenario, .. } = run {
                    let manifest = checkout.join("vm-tests/scenarios").join(scenario).join("scenario.toml");
                    assert!(manifest.is_file(), "{}: there is no {}", mutant.name, manifest.display());
                }
            }
        }
    }

    #[test]
    fn a_mutant_is_caught_by_all_that_have_to() {
        let (one, other) = (on_trixie("one"), Run::Cargo(&["other"]));
        let nothing = || Outcome::Nothing("no machine".to_owned());
        let words = |runs: &[Run]| runs.iter().map(Run::words).collect::<Vec<_>>();
        let cases = [
            (vec![(one, Outcome::Red), (other, Outcome::Red)], Verdicts::Caught(words(&[one, other]))),
            (vec![(one, Outcome::Red), (other, Outcome::Green)], Verdicts::Survived(words(&[other]))),
            (vec![(one, nothing()), (other, Outcome::Green)], Verdicts::Survived(words(&[other]))),
            (
                vec![(one, nothing()), (other, Outcome::Red)],
                Verdicts::Nothing("trixie/one: no machine".to_owned()),
            ),
            (vec![], Verdicts::Survived(Vec::new())),
        ];
        for (outcomes, expected) in cases {
            assert_eq!(verdict(&outcomes), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn a_change_is_made_where_it_is_meant_and_nowhere_else() {
        let mutant =
            Mutant { name: "x", file: "x", change: Change::Replace { find: "a\n", replace: "" }, red: &[] };
        assert_eq!(mutant.changed("a\nb\n").expect("once"), "b\n");
        for text in ["b\n", "a\na\n"] {
            let error = mutant.changed(text).expect_err("not once").to_string();
            assert!(error.contains("has to be there once"), "{error}");
        }
    }

    #[test]
    fn tests_are_counted_by_either_harness() {
        let output = "running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n\
                      \n     test result: ok. 3 passed; 0 failed; 0 ignored";
        assert_eq!(tests_passed(output), 3);
        assert_eq!(tests_passed("test result: FAILED. 2 passed; 1 failed"), 0);
    }

    #[test]
    fn the_copy_is_what_the_checkout_is_and_keeps_what_is_the_same() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let (from, tree) = (scratch.path().join("from"), scratch.path().join("tree"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        write(from.join("a/same"), "same");
        write(from.join("a/changed"), "new");
        std::os::unix::fs::symlink("same", from.join("a/link")).expect("symlink");
        let files = ["a/same", "a/changed", "a/link"].map(PathBuf::from).into();
        write(tree.join("a/same"), "same");
        write(tree.join("a/changed"), "old");
        write(tree.join("a/of-a-mutant"), "");
        write(tree.join("target/built"), "");
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::options()
            .append(true)
            .open(tree.join("a/same"))
            .expect("open")
            .set_modified(old)
            .expect("time");
        let place = Place {
            from,
            tree: tree.clone(),
            target: PathBuf::new(),
            logs: PathBuf::new(),
            cache: PathBuf::new(),
            files,
            _ours: None,
        };
        for _again in 0..2 {
            place.sync().expect("sync");
            let text = |path: &str| fs::read_to_string(tree.join(path)).expect(path);
            assert_eq!([text("a/same"), text("a/changed"), text("a/link")], ["same", "new", "same"]);
            assert!(!tree.join("a/of-a-mutant").exists());
            assert!(tree.join("target/built").exists());
            let time = tree.join("a/same").metadata().expect("metadata").modified().expect("a time");
            assert_eq!(time, old, "it would be built again");
        }
    }
}
