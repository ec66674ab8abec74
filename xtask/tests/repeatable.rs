//! In virtual time a machine and a recording are the same bytes, whoever makes them, where and when; and what is remembered is
//! not believed blindly.
//!
//! The real `xtask` runs; its second machine is booted while all processors are busy, from programs that lie in another directory. With
//! `VM_TESTS_ALL=1` they were built in another one, too, with another `CARGO_HOME`, which takes five minutes of a processor; else it
//! is looked for that no program names a directory.

mod support;

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Arguments;
use serde_json::Value;
use vm_tests::bench::BusyHost;
use vm_tests::cache;
use vm_tests::host::cores;
use vm_tests::host::process::{self, Error, Program};
use vm_tests::report::{Report, ScenarioReport};
use vm_tests::workspace::Workspace;

use support::{has_time_for_all, own_cache, trial};

/// Of a build, a boot and a run, on a busy host.
const DEADLINE: Duration = Duration::from_secs(1800);

/// The scenarios: a first and a second, so that one of them is remembered where the other is run again.
const SCENARIOS: [&str; 2] = ["5eac51a", "936c8bb"];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has the processors to itself: the load is its own.
    arguments.test_threads.get_or_insert(1);
    let cases = vec![
        trial("a-machine-and-a-recording-from-another-directory-on-a-busy-host", from_another_directory),
        trial("a-wrong-recording-is-not-believed", a_wrong_recording_is_not_believed),
        trial("a-failed-run-is-handed-over", a_failed_run_is_handed_over),
    ];
    libtest_mimic::run(&arguments, cases).exit_code()
}

async fn from_another_directory(scratch: &Path) -> Result<()> {
    let programs = elsewhere(scratch).await?;
    let usual = Workspace::find(env!("CARGO_MANIFEST_DIR"))?.cache()?;
    let here = vm_test(&scratch.join("here"), &usual, &[]).await?;

    let own = own_cache(scratch)?;
    // With the machine itself, and with what `check` does meanwhile, no core is idle.
    let busy = BusyHost::with(cores().saturating_sub(1).max(1))?;
    let there = vm_test(&scratch.join("there"), &own, &["--programs", &programs]).await?;
    drop(busy);
    for place in ["here", "there"] {
        // QEMU puts the host's time into each event.
        let log = scratch.join(place).join("trixie").join(SCENARIOS[0]).join("qmp.log");
        let log = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        ensure!(log.contains("\"seconds\": 1700000000,"), "the host's clock goes on for QEMU:\n{log}");
    }
    for (one, other) in here.iter().zip(&there) {
        let names = |report: &ScenarioReport| (report.inputs_sha256.clone(), report.recording_sha256.clone());
        ensure!(one.remembered_s.is_none() && other.remembered_s.is_none(), "{} did not run", one.name);
        ensure!(
            names(one) == names(other) && !one.inputs_sha256.is_empty(),
            "{}: inputs and recording are {:?} here and {:?} there: cargo xtask why {} {}",
            one.name,
            names(one),
            names(other),
            scratch.join("here").display(),
            scratch.join("there").display()
        );
    }
    // The recordings say so too; this names what differs.
    let machine = only_machine(&own)?;
    let usual = usual.join("machines").join(machine.file_name().context("a machine's name")?);
    for hash in ["ram_sha256", "state_sha256"] {
        let [one, other] = [&usual, &machine].map(|machine| manifest(machine));
        let (one, other) = (one?, other?);
        ensure!(
            one[hash] == other[hash] && one[hash].is_string(),
            "{hash}: {} and {}",
            one[hash],
            other[hash]
        );
    }
    Ok(())
}

/// What is remembered is run again in turn, and a recording that contradicts it is an error that keeps both; after that nothing
/// is remembered until somebody has looked.
async fn a_wrong_recording_is_not_believed(scratch: &Path) -> Result<()> {
    let usual = Workspace::find(env!("CARGO_MANIFEST_DIR"))?.cache()?;
    let own = own_cache(scratch)?;
    // Booted by the case before, or by anybody.
    std::os::unix::fs::symlink(usual.join("machines"), own.join("machines"))?;
    let results = scratch.join("results");
    vm_test(&results, &own, &[]).await?;
    let remembered =
        |reports: &[ScenarioReport]| reports.iter().filter(|one| one.remembered_s.is_some()).count();
    let again = run(&results, &own, &[]).await?;
    ensure!(remembered(&reports(&results)?) == 1, "one of two is remembered:\n{again}");
    ensure!(again.contains("2 passed, 0 failed; 1 remembered"), "{again}");

    let mut planted = 0;
    for entry in std::fs::read_dir(own.join("recordings"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "recording") {
            forge(&path)?;
            planted += 1;
        }
    }
    ensure!(planted == SCENARIOS.len(), "{planted} recordings are kept");
    let wrong = run(&results, &own, &[]).await.expect_err("a forged recording").to_string();
    for words in ["had another recording", "with the same inputs", "both are kept", "1 without result"] {
        ensure!(wrong.contains(words), "no {words:?} in:\n{wrong}");
    }
    let kept = |file: &str| {
        SCENARIOS.iter().filter(|name| results.join("trixie").join(name).join(file).exists()).count()
    };
    ensure!(kept("remembered.json") == 1, "the one that was remembered is kept");
    let off = run(&results, &own, &[]).await?;
    ensure!(
        off.contains("no recording is remembered: trixie/") && off.contains("2 passed, 0 failed\n"),
        "{off}"
    );
    std::fs::remove_file(own.join("recordings/off"))?;
    // Nothing of what was forged may be left: all are run, and kept anew.
    let all = run(&results, &own, &["--fresh"]).await.expect_err("the other is forged, too").to_string();
    ensure!(all.contains("had another recording"), "{all}");
    Ok(())
}

/// A red run leaves a bundle, by which another user makes it again, with programs of another directory, and with
/// machines, results and a working directory of its own. Then with another agent, which is named.
async fn a_failed_run_is_handed_over(scratch: &Path) -> Result<()> {
    let workspace = Workspace::find(env!("CARGO_MANIFEST_DIR"))?;
    let usual = workspace.cache()?;
    let scenario = scratch.join("red");
    std::fs::create_dir(&scenario)?;
    let base = workspace.root.join("vm-tests/scenarios/5eac51a/scenario.toml");
    let manifest = format!("base = {base:?}\ncycles = 1\n\n[expect]\nreset_exit = 7\n");
    std::fs::write(scenario.join("scenario.toml"), manifest)?;
    let [results, scenario] = [scratch.join("results"), scenario];
    let [results, scenario] = [&results, &scenario].map(|path| path.to_str().context("a path in UTF-8"));
    let (results, scenario) = (results?, scenario?);
    let flags = ["--accel", "tcg", "--clock", "virtual"];
    let red = [&["vm-test"], &flags[..], &["--results", results, scenario]].concat();
    let said = xtask(&red, Some(&usual)).await.expect_err("it is red").to_string();
    let look = format!("to look into it: cargo xtask shell {scenario} --at 'cycle 1: reset done'");
    ensure!(said.contains("to hand it over: cargo xtask repro ") && said.contains(&look), "{said}");
    // What is left of it here is of no use any more.
    let bundle = scratch.join("bundle");
    std::fs::rename(Path::new(results).join("trixie/red/repro.tar.zst"), &bundle)?;
    std::fs::remove_file(Path::new(scenario).join("scenario.toml"))?;
    let bundle = bundle.to_str().context("a path in UTF-8")?;

    let programs = elsewhere(scratch).await?;
    let stranger = Stranger::new(scratch).await?;
    let again = |programs: String| async {
        let programs = programs;
        let arguments = [&["repro", bundle], &flags[..], &["--programs", &programs]].concat();
        said_by(stranger.runs(env!("CARGO_BIN_EXE_xtask")).args(&arguments), &arguments).await
    };
    let said = again(programs.clone()).await?;
    ensure!(said.contains("trixie/red") && said.contains("\nthe same recording: "), "{said}");
    stranger.has_booted()?;
    let look = format!("to look into it, at 'cycle 1: reset done': cargo xtask repro {bundle} --shell");
    ensure!(said.contains(&look), "{said}");
    // As this user: the shell's `holders` is built, and another one may have no Rust.
    a_shell_at_what_failed(bundle, &programs, &stranger.directory.join("cache")).await?;

    let changed = scratch.join("changed");
    std::fs::create_dir(&changed)?;
    for entry in std::fs::read_dir(&programs)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), changed.join(entry.file_name()))?;
        }
    }
    let mut agent = std::fs::File::options().append(true).open(changed.join("vm-agent"))?;
    std::io::Write::write_all(&mut agent, b"x")?;
    drop(agent);
    let changed = changed.to_str().context("a path in UTF-8")?.to_owned();
    let said = match again(changed).await {
        Ok(said) => said,
        Err(another) => another.to_string(),
    };
    ensure!(said.contains("  the harness's program vm-agent: ") && said.contains(" recording"), "{said}");
    ensure!(!said.contains("vm-init:"), "vm-init is the same:\n{said}");
    Ok(())
}

/// The instant of a bundle, where the scenario is not there any more: the run is the same, so it is not made again.
async fn a_shell_at_what_failed(bundle: &str, programs: &str, cache: &Path) -> Result<()> {
    let line = "printf 'echo the user $(id -u)\nexit\n' | \"$0\" repro \"$1\" --shell --clock virtual --programs \"$2\" 2>&1";
    let program =
        Program::new("sh").args(["-c", line]).arg(env!("CARGO_BIN_EXE_xtask")).args([bundle, programs]);
    let program = program.env(cache::CACHE_VAR, OsString::from(cache));
    let said = process::output(program, DEADLINE).await?.text();
    for words in [
        "all inputs are the same, so the run is: ",
        "red on trixie, cycle 1, ",
        "holders /var/lib/left4me/runtime/3/merged",
        "\nthe user 0\n",
    ] {
        ensure!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    ensure!(!said.contains("trixie/red: recording"), "it was run again:\n{said}");
    Ok(())
}

/// Who is handed a bundle: another user, if this one is root.
struct Stranger {
    directory: PathBuf,
    is_another_user: bool,
}

impl Stranger {
    /// nobody and nogroup, as Debian and others have them.
    const ID: u32 = 65534;

    /// # Errors
    /// If its directory can't be made.
    async fn new(scratch: &Path) -> Result<Self> {
        let directory = scratch.join("stranger");
        std::fs::create_dir(&directory)?;
        let cache = own_cache(&directory)?;
        let mut stranger = Self { directory, is_another_user: std::fs::metadata("/proc/self")?.uid() == 0 };
        if stranger.is_another_user {
            // A temporary directory is its owner's alone.
            std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o755))?;
            for own in [&stranger.directory, &cache] {
                std::os::unix::fs::chown(own, Some(Self::ID), Some(Self::ID))?;
            }
            let reached =
                process::output(stranger.runs(env!("CARGO_BIN_EXE_xtask")).arg("--help"), DEADLINE).await;
            if let Err(why) = reached {
                eprintln!("as the same user, since another one can't have this checkout: {why}");
                stranger.is_another_user = false;
            }
        }
        Ok(stranger)
    }

    /// That the machine is one of its own.
    fn has_booted(&self) -> Result<()> {
        let machine = only_machine(&self.directory.join("cache"))?;
        let owner = std::fs::metadata(&machine)?.uid();
        let is_its_own = !self.is_another_user || owner == Self::ID;
        ensure!(is_its_own, "{} is of user {owner}", machine.display());
        Ok(())
    }

    /// A program in an environment with nothing of ours but where programs are.
    fn runs(&self, program: &str) -> Program {
        let own = |name: &str| self.directory.join(name).into_os_string();
        let line = "cd \"$HOME\" && exec \"$@\"";
        let ran = match self.is_another_user {
            true => {
                let id = Self::ID;
                let words = [
                    &format!("--reuid={id}"),
                    &format!("--regid={id}"),
                    "--clear-groups",
                    "--pdeathsig=KILL",
                ];
                Program::new("setpriv").args(words).args(["sh", "-c", line, "sh", program])
            }
            false => Program::new("sh").args(["-c", line, "sh", program]),
        };
        ran.env(cache::CACHE_VAR, own("cache"))
            .env("CARGO_TARGET_DIR", own("target"))
            .env("CARGO_HOME", own("cargo"))
            .env("HOME", own(""))
    }
}

/// Where the same programs are, with another name of their directory. With all trials they were built there, too, by the first of
/// these tests.
async fn elsewhere(scratch: &Path) -> Result<String> {
    if has_time_for_all() {
        let said = xtask(&["programs", "--twice", "--all"], None).await?;
        let (_, place) = said.rsplit_once(" are the same in ").context("the programs are not the same")?;
        return Ok(place.trim_end().to_owned());
    }
    // It fails where one of them names a directory of this build.
    let said = xtask(&["programs"], None).await?;
    let copies = scratch.join("programs");
    std::fs::create_dir(&copies)?;
    let listed = said.lines().filter_map(|line| Some(Path::new(line.split_once("  ")?.1)));
    for program in listed.filter(|path| path.is_absolute()) {
        let name = program.file_name().context("a program's name")?;
        std::fs::copy(program, copies.join(name)).with_context(|| format!("copy {}", program.display()))?;
    }
    Ok(copies.to_str().context("a path in UTF-8")?.to_owned())
}

/// Changes a moment of a recording that is remembered, and its hash with it.
fn forge(recording: &Path) -> Result<()> {
    let text = std::fs::read_to_string(recording)?;
    let forged = text.replacen("\"at\":", "\"at\":1", 1);
    let about = recording.with_extension("json");
    let known = std::fs::read_to_string(&about)?;
    let [before, after] = [&text, &forged].map(|text| cache::hash_bytes(text.as_bytes()));
    ensure!(known.contains(&before), "{known}");
    std::fs::write(recording, forged)?;
    std::fs::write(about, known.replace(&before, &after))?;
    Ok(())
}

/// Runs both scenarios afresh, and returns their reports.
async fn vm_test(results: &Path, cache: &Path, arguments: &[&str]) -> Result<Vec<ScenarioReport>> {
    run(results, cache, &[&["--fresh"], arguments].concat()).await?;
    reports(results)
}

/// Runs both scenarios and returns what is said; an error has that too.
async fn run(results: &Path, cache: &Path, arguments: &[&str]) -> Result<String> {
    let results = results.to_str().context("a path in UTF-8")?;
    let fixed = [
        "vm-test",
        "--accel",
        "tcg",
        "--clock",
        "virtual",
        "--jobs",
        "1",
        "--cycles",
        "1",
        "--results",
        results,
    ];
    let arguments = [&fixed, arguments, &SCENARIOS].concat();
    xtask(&arguments, Some(cache)).await
}

async fn xtask(arguments: &[&str], cache: Option<&Path>) -> Result<String> {
    let mut program = Program::new(env!("CARGO_BIN_EXE_xtask")).args(arguments);
    if let Some(cache) = cache {
        program = program.env(cache::CACHE_VAR, OsString::from(cache));
    }
    said_by(program, arguments).await
}

/// What an xtask says, and an error with that if it fails.
async fn said_by(program: Program, arguments: &[&str]) -> Result<String> {
    let mut said = String::new();
    let ended = process::run(program, DEADLINE, |_, line| {
        said.push_str(line);
        said.push('\n');
    })
    .await;
    match ended {
        Ok(_output) => Ok(said),
        Err(Error::Failed { .. }) => bail!("cargo xtask {}:\n{said}", arguments.join(" ")),
        Err(error) => Err(error.into()),
    }
}

fn reports(results: &Path) -> Result<Vec<ScenarioReport>> {
    let report: Report = serde_json::from_slice(&std::fs::read(results.join("report.json"))?)?;
    ensure!(report.scenarios.len() == SCENARIOS.len(), "{} scenarios", report.scenarios.len());
    Ok(report.scenarios)
}

fn only_machine(cache: &Path) -> Result<PathBuf> {
    let all: Vec<_> = std::fs::read_dir(cache.join("machines"))?.collect::<Result<_, _>>()?;
    let machines: Vec<PathBuf> =
        all.iter().map(std::fs::DirEntry::path).filter(|path| path.is_dir()).collect();
    match machines.as_slice() {
        [one] => Ok(one.clone()),
        all => bail!("not one saved machine: {all:?}"),
    }
}

fn manifest(machine: &Path) -> Result<Value> {
    let path = machine.join("manifest.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}
