//! `cargo xtask shell`: a terminal inside a booted machine.

mod moment;

use std::fs;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vm_agent::wire::{Body, Call, Command, Exit, Stream, Streams};
use vm_tests::cache;
use vm_tests::host::accel::Clock;
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::machine::guest::{Guest, GuestError};
use vm_tests::run::at::{At, span};
use vm_tests::run::guest::prepare_shell;
use vm_tests::run::prepare::prepare_one;
use vm_tests::scenario::{DEFAULT_MEMORY_MIB, Manifest, Reset, Wanted};

use crate::left4me;
use crate::machine::MachineArgs;

/// A day: a person may think.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Opens a shell in a booted machine; the machine ends with it.
///
/// With a scenario, the machine has that scenario's files and set-up, and nothing is started: its start and reset are
/// printed. `holders` is on the PATH. The machine keeps nothing that is written to it. Time is real unless --clock says otherwise. Without a terminal, commands are read from
/// standard input.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Scenario to deploy first: a name or a path
    #[arg(value_name = "SCENARIO")]
    scenario: Option<String>,

    /// Stand at an instant of the scenario's run, where everything but the shell stands still: 'umount fails', 'state failed',
    /// 'reset begins', 'cycle 3: unmounted', or 't=63.4ms', which counts from the reset's begin. In virtual time
    #[arg(long, value_name = "INSTANT", requires = "scenario")]
    at: Option<At>,

    /// So much earlier: 50ms
    #[arg(long, value_name = "TIME", requires = "at", value_parser = span)]
    before: Option<Duration>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Returns the shell's own exit code.
pub(crate) async fn run(args: &ShellArgs, cancel: Cancel) -> Result<u8> {
    if let (Some(at), Some(scenario)) = (&args.at, &args.scenario) {
        let before = args.before.unwrap_or_default();
        return moment::run(scenario, at, before, &args.machine, cancel).await;
    }
    let workspace = left4me::workspace()?;
    let names: Vec<String> = args.scenario.iter().cloned().collect();
    let scenarios = match names.is_empty() {
        true => Vec::new(),
        false => workspace.scenarios(&names)?,
    };
    let results = workspace.target.join("vm-shell");
    let machine = MachineArgs { clock: args.machine.clock.or(Some(Clock::Real)), ..args.machine.clone() };
    let mut wanted = Wanted::by(&scenarios);
    if scenarios.is_empty() {
        wanted.push(Wanted::of_size(DEFAULT_MEMORY_MIB));
    }
    let guest =
        prepare_one(&workspace, &machine.machines().await?, &wanted, &results, cancel.clone()).await?;
    let holders = programs::holders(&workspace).await?;
    remove_what_the_dead_left(&results)?;
    let directory = results.join(std::process::id().to_string());
    let mut machine = prepare_shell(&guest, scenarios.first(), Some(&holders), &directory, cancel).await?;
    scenarios.iter().for_each(|scenario| eprint!("{}", commands(&scenario.manifest)));
    eprintln!("ready; exit or Ctrl-D ends the machine");
    let guest = machine.guest();
    let ended = machine.race("the shell's end", DEADLINE, talk(guest)).await;
    let ended = machine.finish(ended.map_err(Into::into)).await;
    cache::remove_tree(&directory)?;
    match ended? {
        Exit::Code(code) => Ok(u8::try_from(code).unwrap_or(crate::exit::FAILED)),
        Exit::Signal(signal) => Ok(128 | u8::try_from(signal).unwrap_or(0)),
    }
}

/// Removes the directories of shells that were killed, which are named by their process. One whose number a program of our
/// name has by now is left for later.
fn remove_what_the_dead_left(results: &Path) -> Result<()> {
    let comm = |pid: &str| fs::read_to_string(Path::new("/proc").join(pid).join("comm")).ok();
    let ours = comm("self");
    for entry in fs::read_dir(results).with_context(|| format!("list {}", results.display()))? {
        let entry = entry.with_context(|| format!("list {}", results.display()))?;
        let name = entry.file_name();
        let pid = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if pid.is_some_and(|pid| comm(pid) != ours) {
            cache::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// The scenario's commands as lines for a shell.
fn commands(manifest: &Manifest) -> String {
    let line = |argv: &[String]| argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let mounts = manifest.mount.iter().chain(&manifest.other_mounts);
    let holders: String = mounts.map(|mount| format!("holders: holders {}\n", quoted(mount))).collect();
    let reset = match &manifest.reset {
        Reset::Command(argv) => argv.clone(),
        Reset::Shutdown => ["systemctl", "poweroff"].map(str::to_owned).to_vec(),
    };
    format!("start:   {}\nreset:   {}\n{holders}", line(&manifest.start), line(&reset))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:@,+%".contains(letter);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The host's terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = termios::tcgetattr(std::io::stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("set the terminal to raw mode")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).is_err() {
            eprintln!("the terminal is still in raw mode: type `reset`");
        }
    }
}

/// Relays the shell's input and output until it ends.
async fn talk(guest: Guest) -> Result<Exit, GuestError> {
    let host = |error: std::io::Error| GuestError::Host(error, "standard input or output".into());
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let streams = if terminal {
        let size = termios::tcgetwinsize(std::io::stdout()).map_err(|errno| host(errno.into()))?;
        Streams::Terminal { rows: size.ws_row, columns: size.ws_col }
    } else {
        Streams::Interactive
    };
    let argv =
        if terminal { vec!["bash".to_owned(), "-l".into()] } else { vec!["bash".to_owned(), "-s".into()] };
    let mut shell = guest.request(Call::Run(Command { argv, streams })).await?;
    let raw = if terminal { Raw::enter().ok() } else { None };
    let mut keys = read_stdin();
    let mut resized = signal(SignalKind::window_change()).map_err(host)?;
    let exit = loop {
        tokio::select! {
            answer = shell.next() => match answer? {
                Body::Output { stream: Stream::Stdout, bytes } => write_all(&mut std::io::stdout(), &bytes).map_err(host)?,
                Body::Output { stream: Stream::Stderr, bytes } => write_all(&mut std::io::stderr(), &bytes).map_err(host)?,
                Body::Exited(exit) => break exit,
                other => return Err(GuestError::Unexpected(format!("{other:?}"))),
            },
            Some(()) = resized.recv(), if terminal => {
                let size = termios::tcgetwinsize(std::io::stdout()).map_err(|errno| host(errno.into()))?;
                let call = Call::Resize { id: shell.id, rows: size.ws_row, columns: size.ws_col };
                still_there(guest.request(call).await?.next().await)?;
            }
            // An empty piece is the end of our input, and so of the shell's.
            Some(bytes) = keys.recv() => {
                still_there(guest.request(Call::Input { id: shell.id, bytes }).await?.next().await)?;
            }
        }
    };
    drop(raw);
    Ok(exit)
}

/// A shell that has just ended refuses what it is told; only a guest that is gone is an error.
fn still_there(answer: Result<Body, GuestError>) -> Result<(), GuestError> {
    match answer {
        Ok(_) | Err(GuestError::Failed(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_all(to: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// A thread of its own, since reading a terminal blocks; it ends with the process.
fn read_stdin() -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let read = move || {
        let mut buffer = [0; 4096];
        loop {
            let length = std::io::stdin().read(&mut buffer).unwrap_or(0);
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send(bytes).is_err() || length == 0 {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(read) {
        eprintln!("warning: the shell gets no input: {error}");
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_left_is_removed() {
        let results = tempfile::tempdir().expect("tempdir");
        let own = std::process::id().to_string();
        // The last number is no process's: /proc/sys/kernel/pid_max is at most 2^22.
        for name in ["trixie", &own, "4194305"] {
            fs::create_dir(results.path().join(name)).expect("mkdir");
            fs::write(results.path().join(name).join("serial.log"), "").expect("write");
        }
        remove_what_the_dead_left(results.path()).expect("remove");
        let is_there = |name: &str| results.path().join(name).exists();
        assert_eq!(["trixie", &own, "4194305"].map(is_there), [true, true, false]);
    }

    #[test]
    fn commands_are_shown_as_a_shell_reads_them() {
        assert_eq!(quoted("/srv/demo"), "/srv/demo");
        assert_eq!(quoted("systemctl stop demo; rmdir /srv"), "'systemctl stop demo; rmdir /srv'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
