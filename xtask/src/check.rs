//! `cargo xtask check`: exactly what CI runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::time::timeout;
use vm_tests::host::process::{Program, Sink, describe};
use vm_tests::host::signals::{Interrupted, Interrupts};
use vm_tests::host::tools::{self, Need};
use xshell::{Cmd, Shell, cmd};

use crate::exit::{FAILED, PASSED};
use crate::{docs, left4me, mutants};

/// Runs what CI runs: format, lints, documents, all tests, the VM suite.
///
/// The last line says how many steps passed and how many failed.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Skip the steps that boot machines
    #[arg(long)]
    no_vm: bool,

    /// Skip the VM suite: it is run elsewhere, as shards of `vm-test`
    #[arg(long, conflicts_with = "no_vm")]
    no_suite: bool,

    /// Run every scenario on every image, and not on trixie and one of the others: what a release and each night have
    #[arg(long, conflicts_with = "no_vm")]
    all: bool,

    /// Make changes that the tests must notice, each in a copy of the checkout, and report whether they do; nothing
    /// else is run. Without a NAME: all of them
    #[arg(long, value_name = "NAME", num_args = 0.., conflicts_with_all = ["no_vm", "no_suite", "all"])]
    mutants: Option<Vec<String>>,
}

/// A step that takes longer says so, again and again: what is silent for a minute looks dead.
const QUIET: Duration = Duration::from_secs(30);

/// A step's name and its command.
type Step<'a> = (&'static str, Cmd<'a>);

/// What needs neither a machine nor the guest's programs.
fn steps(shell: &Shell, all: bool) -> Vec<Step<'_>> {
    let cargo = tools::cargo();
    let mut steps = vec![
        ("format", cmd!(shell, "{cargo} fmt --all --check")),
        (
            "lints",
            cmd!(
                shell,
                "{cargo} clippy --quiet --workspace --all-targets --all-features --locked -- --deny warnings"
            ),
        ),
        // --all-targets leaves out the suites that cargo is told not to run by itself. With the same features, or the dependencies
        // are checked once more.
        (
            "lints of the VM suites",
            cmd!(
                shell,
                "{cargo} clippy --quiet --workspace --test * --all-features --locked -- --deny warnings"
            ),
        ),
        ("format of the example", cmd!(shell, "{cargo} fmt --manifest-path {ELSEWHERE} --check")),
    ];
    if all {
        // A workspace of its own, so that neither step above sees them. Without libFuzzer, which is C++: that they compile, by
        // the lock file that they have, is what is asked. Their corpora are tests of `ctl` and of the broker.
        for (name, manifest) in [
            ("lints of the fuzz targets", "helper/fuzz/Cargo.toml"),
            ("lints of the page's fuzz target", "web/fuzz/Cargo.toml"),
        ] {
            let fuzz = format!("clippy --quiet --manifest-path {manifest} --no-default-features --locked");
            let fuzz = fuzz.split(' ');
            steps.push((name, cmd!(shell, "{cargo} {fuzz...} -- --deny warnings")));
        }
        // It is built and run without them, with the lock file that it has.
        let lints =
            cmd!(shell, "{cargo} clippy --quiet --manifest-path {ELSEWHERE} --locked -- --deny warnings");
        steps.push(("lints of the example", lints));
    }
    steps.push(("tests", cmd!(shell, "{cargo} test --quiet --workspace --all-features --locked")));
    steps
}

/// What needs the guest's programs, or installs what is needed for it.
fn packages<'a>(shell: &'a Shell, xtask: &Path) -> [Step<'a>; 2] {
    [
        // With Nix, which it installs, and a stand-in for nixpkgs.
        ("flake", test(shell, &["flake"])),
        ("packages", cmd!(shell, "{xtask} dist")),
    ]
}

/// Tests that are run by their names alone, of the whole workspace: built with the features that all others have.
fn test<'a>(shell: &'a Shell, names: &[&str]) -> Cmd<'a> {
    let cargo = tools::cargo();
    let names = names.iter().flat_map(|name| ["--test", name]);
    cmd!(shell, "{cargo} test --quiet --workspace --all-features --locked {names...}")
}

/// Machines of every image, made beside [`steps`]: a compiler at work on a last crate and mmdebstrap both leave a core
/// alone. Not by cargo, whose lock the steps have; the guest's programs are built in a target directory of their own.
fn machines<'a>(shell: &'a Shell, xtask: &Path) -> Step<'a> {
    ("machines", cmd!(shell, "{xtask} {SUITE} --image {IMAGES} --no-run"))
}

/// Makes the machines. All that is missing is installed first, or meanwhile: a step that did it for itself later would leave a core
/// alone. Not all at once, as machines need not wait for a browser.
async fn prepare(machines: Step<'_>, logs: &Path, tally: &mut Tally) -> Result<()> {
    let needs = [Need::Machine, Need::Image, Need::GuestBinaries];
    step("tools for machines", tools::ensure(&needs, None, logs), tally).await?;
    at_once(
        tally,
        async |tally| logged_in_turn(vec![machines], logs, tally).await,
        async |tally| {
            let needs = [Need::Browser, Need::Flake];
            step("tools for their tests", tools::ensure(&needs, None, logs), tally).await
        },
    )
    .await
}

/// A workspace that uses the harness from outside: its scenario.
fn example(shell: &Shell) -> Step<'_> {
    let cargo = tools::cargo();
    ("the example", cmd!(shell, "{cargo} run --quiet --locked --manifest-path {ELSEWHERE}"))
}

/// The .deb, installed; and one run with it, and one with the archive's files. Their results are where nobody else's are.
fn packages_installed<'a>(shell: &'a Shell, xtask: &Path, logs: &Path) -> [Step<'a>; 2] {
    let results = |name: &str| logs.join(name);
    let (installed, both) = (results("installed"), results("in-place"));
    [
        (
            "the package, installed",
            cmd!(
                shell,
                "{xtask} {SUITE} --image trixie --results {installed}
                 xtask/tests/installed"
            ),
        ),
        (
            "the package in place of the archive",
            cmd!(
                shell,
                "{xtask} {SUITE} --image trixie --results {both} --deploy both
                 product-environment"
            ),
        ),
    ]
}

/// The scenarios of this repository.
fn suite<'a>(shell: &'a Shell, xtask: &Path, all: bool) -> Step<'a> {
    let breadth = if all { None } else { Some("--spread") };
    (SUITE, cmd!(shell, "{xtask} {SUITE} --image {IMAGES} {breadth...}"))
}

/// Tests that boot one machine after the other: the reports of a machine's death, from a panic to a killed QEMU; machines and
/// recordings once more, with `--all` of programs that were built once more, too; the operator's page, in a browser; moments of two
/// runs; what the deployed software finds after a power cut; planted races; scenarios on a guest of NixOS' shape; deploys; the pages
/// of two runs.
/// Each step's name and its test, the longest first: two are under way at a time, and a long one that began last would have a
/// processor to itself.
const MACHINES: [(&str, &str); 9] = [
    ("faults", "faults"),
    ("the same once more", "repeatable"),
    ("the operator's page", "page"),
    ("moments", "moments"),
    ("power cuts", "power_cut"),
    ("races that are planted", "explore"),
    ("a guest that is no FHS system", "store_guest"),
    (DEPLOYS, "deploy"),
    ("pages", "report"),
];

/// The faults that are nothing but a wait for somebody who says nothing, by their names' first word: a third thing under way, since
/// they leave a core alone for most of a minute. Each has its name and its filter.
const SILENCES: (&str, &str) = ("faults that are waited for", "silence");

/// Deploys that are harmed: two of its steps' harms, or with `--all` each at each step, the command over ssh, and every image.
const DEPLOYS: &str = "deploys";

fn on_machines(shell: &Shell, all: bool) -> impl Iterator<Item = Step<'_>> {
    let step = move |its: &str| {
        let part: &[&str] = match its {
            "deploy" if !all => &["--", "matrix-trixie"],
            "faults" => &["--", "--skip", SILENCES.1],
            _ => &[],
        };
        let step = test(shell, &[its]).args(part);
        if all { step.env("VM_TESTS_ALL", "1") } else { step }
    };
    MACHINES.into_iter().map(move |(name, its)| (name, step(its)))
}

/// The command that runs the VM suite.
pub(crate) const SUITE: &str = "vm-test";

/// On which images; all scenarios are run on the first.
pub(crate) const IMAGES: &str = "trixie,bookworm,sid";

/// A workspace that uses the harness from outside.
const ELSEWHERE: &str = "vm-tests/examples/elsewhere/Cargo.toml";

/// Runs every step, then says which failed: one bad step does not hide another.
///
/// `commands` is the parser that the documents' commands are checked with.
pub(crate) async fn run(args: &CheckArgs, commands: clap::Command) -> Result<u8> {
    if let Some(names) = &args.mutants {
        return mutants::run(names).await;
    }
    let mut tally = Tally::default();
    step("docs", async { docs::check(&commands) }, &mut tally).await?;
    let shell = Shell::new()?;
    // Ourselves, by the path that cargo may put another build to meanwhile. By cargo, a step of one package would have other features than
    // the tests of all, and most of it would be compiled once more.
    let xtask = std::env::current_exe().context("find this program's file")?;
    let workspace = left4me::workspace()?;
    shell.change_dir(workspace.root);
    // Of the example too: what it needs for machines is there then.
    let logs = workspace.target.join("check");
    shell.set_var("CARGO_TARGET_DIR", workspace.target);
    // A snapshot is never accepted by a check.
    shell.set_var("INSTA_UPDATE", "no");
    std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    at_once(
        &mut tally,
        async |tally| in_turn(steps(&shell, args.all), tally).await,
        async |tally| match args.no_vm {
            true => Ok(()),
            false => prepare(machines(&shell, &xtask), &logs, tally).await,
        },
    )
    .await?;
    let [flake, package] = packages(&shell, &xtask);
    if args.no_vm {
        in_turn([flake, package], &mut tally).await?;
    } else {
        if !args.no_suite {
            in_turn([suite(&shell, &xtask, args.all)], &mut tally).await?;
        }
        // Built before, as those that are under way would wait for each other in cargo.
        in_turn([("build of the machines' tests", build_for_machines(&shell))], &mut tally).await?;
        // The package is made before it is installed.
        let packages = [package].into_iter().chain(packages_installed(&shell, &xtask, &logs)).collect();
        let mut rows: Vec<Vec<Step<'_>>> = on_machines(&shell, args.all).map(|step| vec![step]).collect();
        rows.splice(2..2, [packages, vec![example(&shell)], vec![flake]]);
        let (name, filter) = SILENCES;
        let silences = (name, test(&shell, &["faults"]).args(["--", filter]));
        at_once(
            &mut tally,
            async |tally| two_at_a_time(rows, &logs, tally).await,
            async |tally| logged_in_turn(vec![silences], &logs, tally).await,
        )
        .await?;
    }
    if !tally.failed.is_empty() {
        println!("check: failed: {}", tally.failed.join(", "));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    Ok(if tally.failed.is_empty() { PASSED } else { FAILED })
}

/// How the steps went so far.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }
}

/// Builds what [`on_machines`] runs.
fn build_for_machines(shell: &Shell) -> Cmd<'_> {
    test(shell, &MACHINES.map(|(_name, test)| test)).arg("--no-run")
}

/// Runs steps one after the other.
async fn in_turn<'a>(steps: impl IntoIterator<Item = Step<'a>>, tally: &mut Tally) -> Result<()> {
    for (name, command) in steps {
        step(name, to_its_end(name, command), tally).await?;
    }
    Ok(())
}

/// Runs rows of steps, two at a time: whichever is through with one takes the next.
async fn two_at_a_time(rows: Vec<Vec<Step<'_>>>, logs: &Path, tally: &mut Tally) -> Result<()> {
    let waiting = RefCell::new(VecDeque::from(rows));
    let take = async |tally: &mut Tally| {
        // By itself, or it would stay borrowed while the row is under way.
        while let Some(row) = { waiting.borrow_mut().pop_front() } {
            logged_in_turn(row, logs, tally).await?;
        }
        Ok(())
    };
    at_once(tally, &take, &take).await
}

/// Does two things at once, and counts both.
async fn at_once(
    tally: &mut Tally,
    first: impl AsyncFnOnce(&mut Tally) -> Result<()>,
    second: impl AsyncFnOnce(&mut Tally) -> Result<()>,
) -> Result<()> {
    let mut beside = Tally::default();
    let (first, second) = tokio::join!(first(tally), second(&mut beside));
    tally.add(beside);
    first.and(second)
}

/// Runs steps one after the other, and shows what each has written when it is over: another writes meanwhile.
async fn logged_in_turn(steps: Vec<Step<'_>>, logs: &Path, tally: &mut Tally) -> Result<()> {
    for (name, command) in steps {
        let log = logs.join(format!("{name}.log"));
        let work = async {
            let ended = logged_to_its_end(name, command, &log).await;
            let text = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
            print!("{text}");
            ended
        };
        step(name, work, tally).await?;
    }
    Ok(())
}

/// Runs one step; only an interrupt ends the whole check.
async fn step(name: &'static str, work: impl Future<Output = Result<()>>, tally: &mut Tally) -> Result<()> {
    println!("check: {name}");
    let begun = Instant::now();
    match work.await {
        Ok(()) => {
            println!("check: {name} passed in {:.1} s", begun.elapsed().as_secs_f64());
            tally.passed += 1;
        }
        Err(error) if vm_tests::host::process::is_interrupt(&error) => return Err(error),
        Err(error) => {
            println!("check: {name} failed: {}", tools::explain(&error));
            tally.failed.push(name);
        }
    }
    Ok(())
}

/// What it writes goes where ours goes.
async fn to_its_end(name: &str, command: Cmd<'_>) -> Result<()> {
    ends(name, Program::from(command).stdout(Sink::Inherit).stderr(Sink::Inherit)).await
}

/// What it writes goes to a file.
async fn logged_to_its_end(name: &str, command: Cmd<'_>, log: &Path) -> Result<()> {
    let what = || format!("create {}", log.display());
    let file = File::create(log).with_context(what)?;
    let both = file.try_clone().with_context(what)?;
    ends(name, Program::from(command).stdout(Sink::File(file)).stderr(Sink::File(both))).await
}

/// Runs a program to its end, and says every half minute that it is still at it. A status that is not 0 is an error.
pub(crate) async fn ends(name: &str, program: Program) -> Result<()> {
    let mut child = program.spawn()?;
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let begun = Instant::now();
    let status = loop {
        tokio::select! {
            ended = timeout(QUIET, child.wait()) => match ended {
                Ok(status) => break status?,
                // Cargo is told to be quiet, and a cold build takes minutes.
                Err(_elapsed) => println!("check: {name}: {} s so far", begun.elapsed().as_secs()),
            },
            signal = interrupts.next() => {
                child.kill_group(Duration::from_secs(60)).await?;
                return Err(Interrupted::by(signal).into());
            }
        }
    };
    anyhow::ensure!(status.success(), "{}: {}", child.argv(), describe(status));
    Ok(())
}
