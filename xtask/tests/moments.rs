//! A moment of a run is the same whenever it is made, however often it is opened; and what stands still there does.
//!
//! The run of 936c8bb, whose helper can't unmount as its own working directory is in the mount, at the instant of the refusal; and one
//! of a server that fights, in the middle of its reset.

#[path = "support/all.rs"]
mod all;
#[path = "../src/left4me.rs"]
mod left4me;
#[path = "support/trial.rs"]
mod trial;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Arguments;
use vm_agent::recording::Recording;
use vm_agent::wire::{Command, Exit, Until};
use vm_tests::host::accel::{self, Clock};
use vm_tests::host::process::{self, Program};
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::run::at::At;
use vm_tests::run::given::Given;
use vm_tests::run::guest::Guest;
use vm_tests::run::moment::{self, Moment, Standing};
use vm_tests::run::one::{self, Bounds};
use vm_tests::run::prepare::{Machines, prepare_one};
use vm_tests::scenario::bundle::Bundle;
use vm_tests::scenario::{Scenario, Wanted};

use all::has_time_for_all;
use trial::trial;

/// How often a moment is opened, in a check of all.
const ALL_OPENINGS: usize = 10;
/// And in any other: each is the same as the first, or it fails.
const OPENINGS: usize = 4;
/// Of `xtask`: programs, a run and a moment, on a busy host.
const DEADLINE: Duration = Duration::from_secs(900);

/// One cycle has all that is looked at.
const BOUNDS: Bounds = Bounds { cycles: Some(1), deadline_secs: 600 };

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let cases = vec![
        trial("the-refused-umount-of-936c8bb-again-and-again", the_refused_umount),
        trial("the-middle-of-a-fight", the_middle_of_a_fight),
        trial("a-shell-at-an-instant", a_shell_at_an_instant),
    ];
    libtest_mimic::run(&arguments, cases).exit_code()
}

/// A scenario, its guest and its run.
struct Ran {
    guest: Guest,
    scenario: Scenario,
    recording: Recording,
}

async fn run(name: &str, scratch: &Path) -> Result<Ran> {
    let workspace = left4me::workspace()?;
    let scenario = workspace.scenarios(&[name.to_owned()])?.pop().context("a scenario")?;
    let machines = Machines { clock: Some(Clock::Virtual), ..Machines::default() };
    let wanted = Wanted::by(std::slice::from_ref(&scenario));
    let guest = prepare_one(&workspace, &machines, &wanted, &scratch.join("results"), Cancel::new()).await?;
    let ran = one::run(&guest, &scenario, BOUNDS, &scratch.join("run"), Cancel::new()).await?;
    Ok(Ran { guest: guest.of_size(scenario.manifest.memory_mib), scenario, recording: ran.recording })
}

impl Ran {
    async fn moment(&self, at: &str, cache: &Path) -> Result<(Moment, u64)> {
        let instant = at.parse::<At>()?.find(&self.recording)?;
        let cancel = Cancel::new();
        let given = Given::of(&self.guest, &self.scenario, BOUNDS)?;
        let moment = moment::ensure(&self.guest, &given, instant.at_ns, cache, cancel).await?;
        Ok((moment, instant.at_ns))
    }

    /// Since when it stands still, and what a command says there; once more if nothing is to have changed between.
    async fn look(
        &self,
        moment: &Moment,
        line: &str,
        twice: bool,
        scratch: &Path,
    ) -> Result<(Option<u64>, String)> {
        let mut standing =
            Standing::restore(&self.guest, moment, &scratch.join("look"), Cancel::new()).await?;
        let looked = async {
            let since = standing.go(Until::Now).await?;
            let mut tool = Bundle::default();
            let holders = programs::holders(&left4me::workspace()?).await?;
            tool.file(&holders, "/usr/local/bin/holders", Some(0o755))?;
            standing.put(tool.into_files()).await?;
            let (first, _) = say(&mut standing, line).await?;
            if twice {
                let (second, _) = say(&mut standing, line).await?;
                ensure!(first == second, "it does not stand still: {line}:\n{first}\nthen:\n{second}");
            }
            Ok((since, first))
        }
        .await;
        standing.finish(looked).await
    }
}

/// What a command says, on both streams, and how it ends.
async fn say(standing: &mut Standing, line: &str) -> Result<(String, Exit)> {
    let mut said = Vec::new();
    let command = Command::new(["sh", "-c", line]);
    let exit = standing.run(command, |_, bytes| said.extend_from_slice(bytes)).await?;
    Ok((String::from_utf8_lossy(&said).into_owned(), exit))
}

async fn the_refused_umount(scratch: &Path) -> Result<()> {
    let ran = run("936c8bb", scratch).await?;
    one_cycle_is_a_beginning(&ran, &scratch.join("longer")).await?;
    let (first, at_ns) = ran.moment("umount fails", &scratch.join("one")).await?;
    let (second, _) = ran.moment("umount fails", &scratch.join("two")).await?;
    ensure!(first.made.is_some() && second.made.is_some(), "they were not made");
    if first.hash()? != second.hash()? {
        bail!("two moments of one instant differ: {}", first.differences(&second)?.join("; "));
    }
    let (again, _) = ran.moment("umount fails", &scratch.join("one")).await?;
    ensure!(again.made.is_none(), "it was made anew");

    let mount = ran.scenario.mount_or_root();
    // Without how long each has been there, which a look makes longer.
    let line =
        format!("holders {mount}; cat /proc/$(pgrep -x umount)/stat /sys/fs/cgroup/init.scope/cgroup.events");
    let looks = async |number: usize| {
        ran.look(&first, &line, number == 1, scratch).await.with_context(|| format!("opening {number}"))
    };
    let (since, said) = looks(1).await?;
    for needed in ["left4me-overlay", &format!("working directory {mount}"), "frozen 1"] {
        ensure!(said.contains(needed), "{needed:?} is not in what is said there:\n{said}");
    }
    // The recorder looks when the call has returned, and asks `holders`: some milliseconds of the guest's.
    let late = since.context("it does not stand still")?.saturating_sub(at_ns);
    ensure!(late < 20_000_000, "it stands still {late} ns after the instant");
    let openings = if has_time_for_all() { ALL_OPENINGS } else { OPENINGS };
    for number in 2..=openings {
        let other = looks(number).await?;
        ensure!(
            other == (since, said.clone()),
            "opening {number} is another: {other:?}\nand: {since:?} {said}"
        );
    }

    // And on: to the next event, and to the end of the run, which is that of before.
    let mut standing = Standing::restore(&ran.guest, &first, &scratch.join("look"), Cancel::new()).await?;
    let went = async {
        let stood = standing.go(Until::Happening("state failed".parse()?)).await?;
        ensure!(stood > since, "it went on from {since:?} to {stood:?}");
        let ended = standing.go(Until::For(u64::MAX / 2)).await?;
        ensure!(ended.is_none(), "it stands still again: {ended:?}");
        standing.recording().await
    }
    .await;
    let recording = standing.finish(went).await?;
    let failed =
        |recording: &Recording| "cycle 1: state failed".parse::<At>().map(|at| at.find(recording).is_ok());
    ensure!(failed(&recording)? && failed(&ran.recording)?, "the unit is not failed at the end");
    Ok(())
}

/// `shell --at` learns from a run of one cycle when an instant of a longer one is.
async fn one_cycle_is_a_beginning(ran: &Ran, results: &Path) -> Result<()> {
    let bounds = Bounds { cycles: Some(2), ..BOUNDS };
    let longer = one::run(&ran.guest, &ran.scenario, bounds, results, Cancel::new()).await?.recording;
    let of_the_first = |recording: &Recording| {
        let events = recording.events.iter().filter(|event| event.cycle == 1);
        events.map(serde_json::to_string).collect::<Result<Vec<_>, _>>()
    };
    let (short, long) = (of_the_first(&ran.recording)?, of_the_first(&longer)?);
    ensure!(short.len() > 50 && longer.events.last().is_some_and(|event| event.cycle > 1), "too few events");
    if let Some((one, other)) = short.iter().zip(&long).find(|(one, other)| one != other) {
        bail!("they differ from here on:\n{one}\n{other}");
    }
    // The next cycle's first words come before its start begins.
    let more = long.get(short.len()..).context("the longer run has fewer events")?;
    ensure!(more.iter().all(|event| event.contains("starts-forgotten")), "the longer run has more: {more:?}");
    Ok(())
}

async fn the_middle_of_a_fight(scratch: &Path) -> Result<()> {
    let ran = run("product-attacked", scratch).await?;
    let (moment, at_ns) = ran.moment("t=20ms", scratch).await?;
    let line = "cat /proc/[0-9]*/stat | cut -d' ' -f1,2 | sort";
    let line = format!("({line}) | grep -v -e cut -e cat -e sort -e sh");
    let (since, said) = ran.look(&moment, &line, true, scratch).await?;
    ensure!(said.contains("(vm-attack)"), "nobody attacks:\n{said}");
    let late = since.context("it does not stand still")?.saturating_sub(at_ns);
    ensure!(late < 20_000_000, "it stands still {late} ns after the instant");
    Ok(())
}

/// What a person types, from standard input.
async fn a_shell_at_an_instant(scratch: &Path) -> Result<()> {
    let typed = scratch.join("typed");
    std::fs::write(
        &typed,
        "false\necho status $?\nno-such-command\ngo 1ms\ngo sideways\nagain\ngo\ngo\nexit\n",
    )?;
    let line = "\"$0\" shell 936c8bb --at 'umount fails' < \"$1\" 2>&1; echo exit code $?";
    let program = Program::new("sh").args(["-c", line]).arg(env!("CARGO_BIN_EXE_xtask")).arg(&typed);
    let said = process::output(program, DEADLINE).await?.text();
    for words in [
        "936c8bb on trixie, cycle 1, ",
        "everything but this shell stands still",
        "status 0",
        "no-such-command: not found",
        "after the instant",
        "\"sideways\" is no length of time",
        "the run has ended\n  cycle 1: start done after",
        "the run has ended; again is back at the instant",
        // The last command's.
        "exit code 127",
    ] {
        ensure!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    ensure!(said.matches("left4me-overlay").count() >= 2, "holders are told at each opening:\n{said}");
    Ok(())
}
