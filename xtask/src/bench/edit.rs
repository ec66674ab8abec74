//! How long a person waits: from an edit to its verdict, and for a suite in which nothing has changed or all is run anew.
//!
//! The commands are those that a person types. They run in a copy of the checkout with a target directory and a cache of its
//! own: the checkout is never edited, and what is remembered and saved for it stays as it is. Guest images are the usual
//! cache's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use vm_tests::bench::Samples;
use vm_tests::cache;
use vm_tests::host::process::Program;
use vm_tests::host::tools;
use vm_tests::machine::Cancel;
use vm_tests::report::{Report, ScenarioReport, Verdict};
use vm_tests::workspace::Workspace;

use super::program;
use crate::copied;
use crate::exit::{FAILED, PASSED};

/// The scenario whose verdict is waited for.
pub(super) const SCENARIO: &str = "5eac51a";

/// A change of one line: a word more in a text that is in a program. Other edits need not change a program, as guest programs
/// are built without comments, line numbers of debug information and the like.
#[derive(Debug)]
pub(super) struct Edit {
    /// Of what.
    pub(super) name: &'static str,
    /// In which file, from the root of the checkout.
    pub(super) file: &'static str,
    /// In a string; it is there exactly once. The word comes after it.
    pub(super) after: &'static str,
}

/// In the library of the harness: `xtask` is built anew, no guest program is.
pub(super) const JUDGE: Edit = Edit {
    name: "judge",
    file: "vm-tests/src/judge/mod.rs",
    after: "nothing of it was accepted (INSTA_UPDATE)",
};
/// In the helper's library, which `l4d2ctl` has too.
pub(super) const HELPER: Edit = Edit {
    name: "helper",
    file: "helper/src/arguments.rs",
    after: "left4me-overlay: mounts and unmounts the overlay that a server runs from",
};
/// In a program of the saved machine, which is booted anew.
pub(super) const AGENT: Edit =
    Edit { name: "agent", file: "vm-tests/agent/src/main.rs", after: "open the channel to the host" };

impl Edit {
    /// The file with the word.
    ///
    /// # Errors
    /// If it does not have the text once.
    pub(super) fn of(&self, text: &str, word: &str) -> Result<String> {
        let Self { file, after, .. } = self;
        let found = text.matches(after).count();
        ensure!(
            found == 1,
            "{file} has {after:?} {found} times and not once: name another text for its edit"
        );
        Ok(text.replace(after, &format!("{after} {word}")))
    }
}

/// What was measured: seconds of the host.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// How many runs the suite has.
    pub(super) runs: usize,
    /// Of these, whose recording is remembered where nothing has changed.
    pub(super) remembered: usize,
    /// The whole suite, all run anew.
    pub(super) fresh: Samples,
    /// The same, nothing changed since: a sample each after one of `fresh`.
    pub(super) unchanged: Samples,
    /// One scenario, one cycle, run anew.
    pub(super) one: Samples,
    /// After an edit of the judge, the build.
    pub(super) judge_build: Samples,
    /// The suite after that build.
    pub(super) judge: Samples,
    /// The scenario after an edit of the helper.
    pub(super) helper: Samples,
    /// The scenario after an edit of the agent.
    pub(super) agent: Samples,
    /// Runs that have not passed, `trixie/5eac51a`.
    pub(super) not_passed: BTreeSet<String>,
}

/// Takes so many samples of each. What was measured before an error is in `edits`.
///
/// # Errors
/// A command that has no result; an edit that changes nothing, or more than it should.
pub(super) async fn measure(
    workspace: &Workspace,
    place: &Path,
    machine: Vec<OsString>,
    rounds: usize,
    cancel: Cancel,
    edits: &mut Edits,
) -> Result<()> {
    let copy = Copy::prepare(workspace, place, machine, cancel).await?;
    eprintln!("edit: not counted: the first build of the copy, and its machines");
    copy.xtask(&["vm-test", "--no-run"]).await?;
    // What takes long comes last.
    for round in 1..=rounds {
        eprintln!("edit: {round} of {rounds}, one scenario, one cycle");
        let (one, _) = copy.vm_test(&["--fresh", "--cycles", "1", SCENARIO], edits).await?;
        edits.one.0.push(one.as_secs_f64());
    }
    edits.helper = copy.guest_program(&HELPER, rounds, edits).await?;
    edits.agent = copy.guest_program(&AGENT, rounds, edits).await?;
    copy.suite(rounds, edits).await?;
    copy.judge(rounds, edits).await
}

/// How many of a suite's runs were not run.
fn remembered(report: &Report) -> usize {
    report.scenarios.iter().filter(|one| one.remembered_s.is_some()).count()
}

/// The copy of the checkout.
pub(super) struct Copy {
    pub(super) tree: PathBuf,
    target: PathBuf,
    cache: PathBuf,
    results: PathBuf,
    pub(super) log: PathBuf,
    /// The flags for machines.
    pub(super) machine: Vec<OsString>,
    cancel: Cancel,
}

impl Copy {
    /// Makes the copy what the checkout is now. It stays: the next benchmark builds what has changed.
    pub(super) async fn prepare(
        workspace: &Workspace,
        place: &Path,
        machine: Vec<OsString>,
        cancel: Cancel,
    ) -> Result<Self> {
        let [tree, target, cache, results] =
            ["checkout", "target", "cache", "results"].map(|name| place.join(name));
        let images = workspace.cache()?.join("images");
        for directory in [&tree, &target, &cache, &images] {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let (link, log) = (cache.join("images"), place.join("log"));
        for old in [&link, &log] {
            copied::remove_if_there(old).with_context(|| format!("delete {}", old.display()))?;
        }
        std::os::unix::fs::symlink(&images, &link)
            .with_context(|| format!("link {} to {}", link.display(), images.display()))?;
        copied::sync(&workspace.root, &tree, &copied::files_of(&workspace.root).await?)?;
        Ok(Self { tree, target, cache, results, log, machine, cancel })
    }

    /// All anew, and then once more, by turns.
    async fn suite(&self, rounds: usize, edits: &mut Edits) -> Result<()> {
        eprintln!("edit: not counted: what the last edit has left is built");
        self.xtask(&["vm-test", "--no-run"]).await?;
        for round in 1..=rounds {
            eprintln!("edit: {round} of {rounds}, the suite, all anew");
            let (fresh, report) = self.vm_test(&["--fresh"], edits).await?;
            ensure!(remembered(&report) == 0, "vm-test --fresh has remembered something");
            edits.runs = report.scenarios.len();
            edits.fresh.0.push(fresh.as_secs_f64());
            eprintln!("edit: {round} of {rounds}, the suite, nothing changed");
            let (unchanged, report) = self.vm_test(&[], edits).await?;
            edits.remembered = remembered(&report);
            ensure!(edits.remembered > 0, "nothing is remembered: see {}", self.log.display());
            edits.unchanged.0.push(unchanged.as_secs_f64());
        }
        Ok(())
    }

    /// An edit, the build, and the suite's verdicts: nothing of it is run but what is tried again.
    async fn judge(&self, rounds: usize, edits: &mut Edits) -> Result<()> {
        let original = self.read(&JUDGE)?;
        let xtask = self.target.join("debug/xtask");
        for round in 1..=rounds {
            eprintln!("edit: {round} of {rounds}, the {}", JUDGE.name);
            let before = cache::hash_file(&xtask)?;
            self.write(&JUDGE, &JUDGE.of(&original, &word()?)?)?;
            let build = self.cargo(&["build", "--package", "xtask"].map(OsString::from)).await?;
            ensure!(
                build.code == PASSED,
                "cargo build: exit code {}, see {}",
                build.code,
                self.log.display()
            );
            ensure!(cache::hash_file(&xtask)? != before, "the edit of {} changes nothing", JUDGE.file);
            let (rest, report) = self.vm_test(&[], edits).await?;
            let is = remembered(&report);
            ensure!(
                is == edits.remembered,
                "{is} runs are remembered after an edit of the judge, and {} were before",
                edits.remembered
            );
            edits.judge_build.0.push(build.wall.as_secs_f64());
            edits.judge.0.push(rest.as_secs_f64());
        }
        self.write(&JUDGE, &original)
    }

    /// An edit of a program that machines run, and the scenario's verdict.
    async fn guest_program(&self, edit: &Edit, rounds: usize, edits: &mut Edits) -> Result<Samples> {
        let original = self.read(edit)?;
        // What the edit before has left is built, and the machine of that is there.
        let (_, mut before) = self.vm_test(&[SCENARIO], edits).await?;
        let mut samples = Samples::default();
        for round in 1..=rounds {
            eprintln!("edit: {round} of {rounds}, the {}", edit.name);
            self.write(edit, &edit.of(&original, &word()?)?)?;
            let (wall, report) = self.vm_test(&[SCENARIO], edits).await?;
            ensure!(
                inputs(&report)? != inputs(&before)?,
                "the edit of {} is no other input of {SCENARIO}",
                edit.file
            );
            before = report;
            samples.0.push(wall.as_secs_f64());
        }
        self.write(edit, &original)?;
        Ok(samples)
    }

    pub(super) fn read(&self, edit: &Edit) -> Result<String> {
        let path = self.tree.join(edit.file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    pub(super) fn write(&self, edit: &Edit, text: &str) -> Result<()> {
        let path = self.tree.join(edit.file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Runs `cargo xtask vm-test`, and reads its report.
    async fn vm_test(&self, arguments: &[&str], edits: &mut Edits) -> Result<(Duration, Report)> {
        let path = self.results.join("report.json");
        copied::remove_if_there(&path).with_context(|| format!("delete {}", path.display()))?;
        let wall = self.xtask(&[&["vm-test"], arguments].concat()).await?;
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error).with_context(|| {
                format!("{}: vm-test has no report: see {}", path.display(), self.log.display())
            }),
            read => read.with_context(|| format!("read {}", path.display())),
        }?;
        let report: Report =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let not = report.scenarios.iter().filter(|one| one.verdict != Verdict::Passed);
        edits.not_passed.extend(not.map(|one| format!("{}/{}", one.guest, one.name)));
        Ok((wall, report))
    }

    /// Runs `cargo xtask`, with our machines and results.
    async fn xtask(&self, arguments: &[&str]) -> Result<Duration> {
        let arguments = [&["xtask"], arguments].concat();
        let mut all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        all.extend(self.machine.iter().cloned());
        all.extend(["--results".into(), self.results.clone().into()]);
        let ended = self.cargo(&all).await?;
        ensure!(
            [PASSED, FAILED].contains(&ended.code),
            "cargo {}: exit code {}, see {}",
            arguments.join(" "),
            ended.code,
            self.log.display()
        );
        Ok(ended.wall)
    }

    async fn cargo(&self, arguments: &[OsString]) -> Result<program::Ended> {
        program::run(self.program(arguments), &self.log, &self.cancel).await
    }

    /// Cargo in the copy.
    pub(super) fn program(&self, arguments: &[OsString]) -> Program {
        Program::new(tools::cargo())
            .args(arguments)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env(cache::CACHE_VAR, &self.cache)
            // An edit's outcome is nobody's snapshot.
            .env("INSTA_UPDATE", "no")
    }
}

/// What the one run of a report was made of.
fn inputs(report: &Report) -> Result<&str> {
    let inputs = report.scenarios.first().map(|ScenarioReport { inputs_sha256, .. }| inputs_sha256.as_str());
    inputs.filter(|inputs| !inputs.is_empty()).context("a run whose inputs have no name")
}

/// A word that no edit before had, here or in another benchmark: a machine of the same edit would be there already.
pub(super) fn word() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(format!("(edit {})", now.as_nanos()))
}
