//! `cargo xtask shell`: a terminal inside a booted machine.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::mpsc;
use vm_agent::wire::{Body, Call, Command, Exit, Stream, Streams};
use vm_tests::cache;
use vm_tests::host::accel::Clock;
use vm_tests::machine::Cancel;
use vm_tests::machine::guest::{Guest, GuestError};
use vm_tests::run::guest::prepare_shell;
use vm_tests::run::prepare::prepare_one;
use vm_tests::scenario::{self, DEFAULT_MEMORY_MIB};

use crate::left4me;
use crate::machine::MachineArgs;

/// A day: a person may think.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Opens a shell in a booted machine; the machine ends with it.
///
/// With a scenario, the machine has that scenario's files and set-up, and nothing is started. The machine keeps
/// nothing that is written to it. Time is real unless --clock says otherwise. Without a terminal, commands are read from
/// standard input.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Scenario to deploy first: a name or a path
    #[arg(value_name = "SCENARIO")]
    scenario: Option<String>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Returns the shell's own exit code.
pub(crate) async fn run(args: &ShellArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let names: Vec<String> = args.scenario.iter().cloned().collect();
    let scenarios = match names.is_empty() {
        true => Vec::new(),
        false => workspace.scenarios(&names)?,
    };
    let results = workspace.target.join("vm-shell");
    let machine = MachineArgs { clock: args.machine.clock.or(Some(Clock::Real)), ..args.machine.clone() };
    let mut memory_mib = scenario::memory_sizes(&scenarios);
    if scenarios.is_empty() {
        memory_mib.insert(DEFAULT_MEMORY_MIB);
    }
    let guest = prepare_one(&workspace, &machine.machines()?, &memory_mib, &results, cancel.clone()).await?;
    let directory = results.join(std::process::id().to_string());
    let mut machine = prepare_shell(&guest, scenarios.first(), &directory, cancel).await?;
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
    let exit = loop {
        tokio::select! {
            answer = shell.next() => match answer? {
                Body::Output { stream: Stream::Stdout, bytes } => write_all(&mut std::io::stdout(), &bytes).map_err(host)?,
                Body::Output { stream: Stream::Stderr, bytes } => write_all(&mut std::io::stderr(), &bytes).map_err(host)?,
                Body::Exited(exit) => break exit,
                other => return Err(GuestError::Unexpected(format!("{other:?}"))),
            },
            // An empty piece is the end of our input, and so of the shell's. A shell that has just ended refuses it.
            Some(bytes) = keys.recv() => match guest.request(Call::Input { id: shell.id, bytes }).await?.next().await {
                Ok(_) | Err(GuestError::Failed(_)) => (),
                Err(error) => return Err(error),
            },
        }
    };
    drop(raw);
    Ok(exit)
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
