//! `cargo xtask shell SCENARIO --at INSTANT`: a look at an instant of a run.
//!
//! Lines are read here and not in the guest: between two of them the machine is paused, and no time of the guest passes however
//! long a person thinks.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::termios;
use tokio::sync::mpsc;
use vm_agent::happening::Happening;
use vm_agent::recording::{Recording, What};
use vm_agent::wire::{Command, Exit, Stream, Streams, Until};
use vm_perturb::Line;
use vm_tests::cache;
use vm_tests::explore;
use vm_tests::host::accel::Clock;
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::report::Verdict;
use vm_tests::run::at::{At, Instant, in_ms, span};
use vm_tests::run::given::Given;
use vm_tests::run::guest::Guest;
use vm_tests::run::moment::{self, Moment, Standing};
use vm_tests::run::one::Bounds;
use vm_tests::run::prepare::{self, Machines};
use vm_tests::run::recall::Again;
use vm_tests::run::suite;
use vm_tests::scenario::Scenario;
use vm_tests::scenario::bundle::Bundle;
use vm_tests::workspace::Workspace;

use super::terminal::{DEADLINE, quoted, talk, write_all};
use crate::left4me;
use crate::machine::MachineArgs;

/// What can be typed, beside commands.
const HELP: &str = "\
go            let the run go on to its end
go 10ms       let it go on for so long, and stand still again
go until X    the same to the next: umount fails, umount succeeds, unmounted, reset done, state failed, ...
again         back to the instant
sh            a whole shell, in which time passes; when it ends, back to the instant
exit          end the machine
Any other line is a command, run in the guest by sh -c. systemctl gets no answer: systemd stands still.
";

/// Returns the exit code of the last command.
pub(super) async fn run(
    name: &str,
    holds: Option<&Line>,
    at: &At,
    before: Duration,
    machine: &MachineArgs,
    cancel: Cancel,
) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let mut scenarios = workspace.scenarios(&[name.to_owned()])?;
    if let Some(line) = holds {
        scenarios.iter().try_for_each(explore::check)?;
        scenarios.iter_mut().for_each(|scenario| *scenario = scenario.held(line));
    }
    let scenario = scenarios.first().context("no scenario")?;
    let machine = MachineArgs { clock: machine.clock.or(Some(Clock::Virtual)), ..machine.clone() };
    let machines = machine.machines().await?;
    machines.only_one()?;
    let (mut guest, instant, remembered) = find(&workspace, scenario, &machines, at, cancel.clone()).await?;
    // A run that is remembered has not looked at its machine.
    if remembered {
        let memory_mib = scenario.manifest.memory_mib;
        prepare::make_sure(&mut guest, memory_mib, &workspace.cache()?, cancel.clone()).await?;
    }
    let instant = instant.before(before);
    let given = Given::of(&guest, scenario, Bounds::default())?;
    look(&workspace, &guest, &given, instant, cancel).await
}

/// When the instant is in a run, on which machine, and whether that run was remembered. A run that is not is made up to the end
/// of the instant's cycle: so far it is the whole one, as each cycle is the same request of the same length
/// (`xtask/tests/moments.rs` compares them). What has no such instant is made whole.
async fn find(
    workspace: &Workspace,
    scenario: &Scenario,
    machines: &Machines,
    at: &At,
    cancel: Cancel,
) -> Result<(Guest, Instant, bool)> {
    let mut most = Some(at.cycles());
    loop {
        let options = suite::Options {
            machines: machines.clone(),
            results: Some(workspace.target.join("vm-shell/run")),
            again: Again::Never,
            cycles_of_unknown: most,
            ..suite::Options::default()
        };
        let mut ran = suite::run(workspace, std::slice::from_ref(scenario), &options, cancel.clone()).await?;
        let report = ran.report.scenarios.first().context("no run")?;
        if matches!(report.verdict, Verdict::Infrastructure | Verdict::Interrupted) {
            bail!("{}: the run has no result, so no instant: {}", scenario.name, report.why.join("; "));
        }
        let path = ran.path.with_file_name(&report.guest).join(&scenario.name).join("recording.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let recording: Recording =
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        match at.find(&recording) {
            Err(_later) if most.take().is_some_and(|most| most < scenario.manifest.cycles()) => {}
            found => {
                let remembered = report.remembered_s.is_some();
                return Ok((ran.guests.pop().context("no guest")?, found?, remembered));
            }
        }
    }
}

/// Opens an instant of a run, and does what the lines of standard input say. Returns the exit code of the last command.
pub(crate) async fn look(
    workspace: &Workspace,
    guest: &Guest,
    given: &Given,
    instant: Instant,
    cancel: Cancel,
) -> Result<u8> {
    let moment = moment::ensure(guest, given, instant.at_ns, &workspace.cache()?, cancel.clone()).await?;
    let directory = workspace.target.join("vm-shell").join(std::process::id().to_string());
    let mut place = Place {
        guest: guest.of_size(given.memory_mib),
        workspace,
        given,
        instant,
        moment,
        directory: &directory,
        cancel,
    };
    println!("{} on {}, {}", given.name, place.guest.name, place.instant);
    println!(
        "everything but this shell stands still, and no time passes between two commands; what goes on from here is another run \
         than the recorded one. ? lists what can be typed"
    );
    let code = place.look().await;
    cache::remove_tree(&directory)?;
    code
}

/// Where moments are opened.
struct Place<'a> {
    guest: Guest,
    workspace: &'a Workspace,
    given: &'a Given,
    instant: Instant,
    moment: Moment,
    directory: &'a Path,
    cancel: Cancel,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Help,
    Exit,
    Again,
    Shell,
    Go(Option<Until>),
    Command(String),
}

/// Reads a line; an error says what can't be read.
fn asked(line: &str) -> Result<Asked, String> {
    let line = line.trim();
    Ok(match line {
        "" => Asked::Nothing,
        "?" | "help" => Asked::Help,
        "exit" | "quit" => Asked::Exit,
        "again" => Asked::Again,
        "sh" => Asked::Shell,
        "go" => Asked::Go(None),
        _ => match line.strip_prefix("go ").map(str::trim) {
            None => Asked::Command(line.to_owned()),
            Some(until) => Asked::Go(Some(match until.strip_prefix("until ") {
                Some(happening) => {
                    Until::Happening(happening.parse().map_err(|error| format!("go until: {error}"))?)
                }
                None => {
                    Until::For(u64::try_from(span(until)?.as_nanos()).map_err(|error| error.to_string())?)
                }
            })),
        },
    })
}

impl Place<'_> {
    /// Reads lines and does what they say, until they end. Returns the last command's exit code.
    async fn look(&mut self) -> Result<u8> {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut lines = read_lines();
        let mut standing = self.open(true).await?;
        let (mut now, mut code) = (Some(self.instant.at_ns), 0);
        let ended: Result<u8> = loop {
            if terminal {
                let place = now.map_or("the run has ended".to_owned(), |now| self.place(now));
                print!("{place}> ");
                std::io::stdout().flush()?;
            }
            let cancelled = self.cancel.clone();
            let line = tokio::select! {
                line = lines.recv() => line,
                () = cancelled.cancelled() => break Ok(Verdict::Interrupted.exit_code()),
            };
            let Some(line) = line else { break Ok(code) };
            let step = match asked(&line) {
                Ok(Asked::Nothing) => Ok(()),
                Ok(Asked::Help) => {
                    print!("{HELP}");
                    Ok(())
                }
                Ok(Asked::Exit) => break Ok(code),
                Ok(Asked::Again) => {
                    standing.finish(Ok(())).await?;
                    standing = self.open(true).await?;
                    now = Some(self.instant.at_ns);
                    Ok(())
                }
                Ok(Asked::Shell) => {
                    let shell = self.whole_shell(&mut standing).await;
                    standing.finish(shell).await?;
                    println!("back at the instant");
                    standing = self.open(false).await?;
                    now = Some(self.instant.at_ns);
                    Ok(())
                }
                Ok(Asked::Go(_)) if now.is_none() => {
                    println!("the run has ended; again is back at the instant");
                    Ok(())
                }
                Ok(Asked::Go(until)) => self.go(&mut standing, &mut now, until).await,
                Ok(Asked::Command(line)) => {
                    run_line(&mut standing, &line, terminal).await.map(|exit| code = exit_code(exit))
                }
                Err(wrong) => {
                    println!("{wrong}");
                    Ok(())
                }
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        standing.finish(ended).await
    }

    /// Restores the moment, with this build of `holders` on its PATH, and says who holds what.
    async fn open(&self, tells: bool) -> Result<Standing> {
        let cancel = self.cancel.clone();
        let mut standing = Standing::restore(&self.guest, &self.moment, self.directory, cancel).await?;
        let told = async {
            let mut tool = Bundle::default();
            let holders = programs::holders(self.workspace).await?;
            tool.file(&holders, "/usr/local/bin/holders", Some(0o755))?;
            if let Some(installed) = &self.guest.installed {
                tool = tool.placed(|path| installed.place(path))?;
            }
            standing.put(tool.into_files()).await?;
            for mount in self.given.mounts().filter(|_| tells) {
                println!("holders {}:", quoted(mount));
                let line = format!("holders {}", quoted(mount));
                run_line(&mut standing, &line, false).await?;
            }
            anyhow::Ok(())
        }
        .await;
        match told {
            Ok(()) => Ok(standing),
            Err(error) => standing.finish(Err(error)).await,
        }
    }

    async fn go(&self, standing: &mut Standing, now: &mut Option<u64>, until: Option<Until>) -> Result<()> {
        // To its end: for longer than any run lasts.
        let since = standing.go(until.unwrap_or(Until::For(u64::MAX / 2))).await?;
        *now = since;
        match since {
            Some(since) => println!("stands still again: {}", self.place(since)),
            None => {
                print!("{}", how_it_went(&standing.recording().await?));
            }
        }
        Ok(())
    }

    /// Where the guest stands, for a prompt.
    fn place(&self, at_ns: u64) -> String {
        match at_ns.checked_sub(self.instant.at_ns) {
            None | Some(0) => self.instant.to_string(),
            Some(later) => format!("{} after the instant", in_ms(later)),
        }
    }

    /// A shell on the terminal, or of the rest of standard input.
    async fn whole_shell(&self, standing: &mut Standing) -> Result<()> {
        let machine = standing.machine();
        machine.resume().await?;
        let guest = machine.guest();
        machine.race("the shell's end", DEADLINE, talk(guest)).await?;
        Ok(())
    }
}

/// How the commands of a run ended.
fn how_it_went(recording: &Recording) -> String {
    let mut text = "the run has ended\n".to_owned();
    for event in &recording.events {
        if let What::StepEnds(end) = &event.what {
            let exit = end.exit.map_or("no end in time".to_owned(), |exit| exit.to_string());
            let what = Happening::Done(end.step);
            text.push_str(&format!(
                "  cycle {}: {what} after {}: {exit}\n",
                event.cycle,
                in_ms(end.duration_ns)
            ));
        }
    }
    text
}

async fn run_line(standing: &mut Standing, line: &str, terminal: bool) -> Result<Exit> {
    let streams = match termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if terminal => Streams::Terminal { rows: size.ws_row, columns: size.ws_col },
        _none => Streams::Output,
    };
    let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
    let show = |stream, bytes: &[u8]| {
        let written = match stream {
            Stream::Stdout => write_all(&mut std::io::stdout(), bytes),
            Stream::Stderr => write_all(&mut std::io::stderr(), bytes),
        };
        // A reader who is gone sees nothing more, and the next prompt fails.
        drop(written);
    };
    standing.run(Command { argv, streams }, show).await
}

fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code).unwrap_or(crate::exit::FAILED),
        Exit::Signal(signal) => 128 | u8::try_from(signal).unwrap_or(0),
    }
}

/// A thread of its own, since reading a terminal blocks; it ends with the process.
fn read_lines() -> mpsc::Receiver<String> {
    // One at a time: what a shell of its own is to read is not taken from it.
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("lines".into()).spawn(read) {
        eprintln!("warning: no line can be read: {error}");
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_word_of_ours_or_a_command() {
        let command = |line: &str| Ok(Asked::Command(line.to_owned()));
        assert_eq!(asked(" go "), Ok(Asked::Go(None)));
        assert_eq!(asked("go 10ms"), Ok(Asked::Go(Some(Until::For(10_000_000)))));
        let until = Until::Happening("umount fails".parse().expect("it happens"));
        assert_eq!(asked("go until umount fails"), Ok(Asked::Go(Some(until))));
        assert_eq!(asked("gone?"), command("gone?"));
        assert_eq!(asked("holders /srv"), command("holders /srv"));
        assert_eq!(asked("again"), Ok(Asked::Again));
        assert!(asked("go 10").is_err_and(|why| why.contains("63.4ms")));
        assert!(asked("go until the end").is_err_and(|why| why.contains("umount fails")));
    }
}
