//! `cargo xtask shell`: a terminal inside a booted machine.

mod forward;
pub(crate) mod moment;
mod terminal;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use vm_agent::wire::Exit;
use vm_perturb::Line;
use vm_tests::cache;
use vm_tests::host::accel::Clock;
use vm_tests::image::programs;
use vm_tests::machine::Cancel;
use vm_tests::run::at::{At, span};
use vm_tests::run::guest::prepare_shell;
use vm_tests::run::prepare::prepare_one;
use vm_tests::scenario::{DEFAULT_MEMORY_MIB, Manifest, Reset, Wanted};

use self::forward::Forward;
pub(crate) use self::terminal::quoted;
use self::terminal::{DEADLINE, talk};
use crate::left4me;
use crate::machine::MachineArgs;

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

    /// With tasks held in the run, as `cargo xtask explore` tells a failure
    #[arg(long, value_name = "LINE", requires = "at")]
    holds: Option<Line>,

    /// So much earlier: 50ms
    #[arg(long, value_name = "TIME", requires = "at", value_parser = span)]
    before: Option<Duration>,

    /// Have a port of this machine's loopback lead to one of the guest's, or to a Unix socket in it: 8080:80,
    /// 8080:/run/left4me-web/socket; 0 is any free port. The guest needs perl
    #[arg(long, value_name = "PORT:WHERE", conflicts_with = "at")]
    forward: Vec<Forward>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// Returns the shell's own exit code.
pub(crate) async fn run(args: &ShellArgs, cancel: Cancel) -> Result<u8> {
    let workspace = left4me::workspace()?;
    let results = workspace.target.join("vm-shell");
    fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    remove_what_the_dead_left(&results)?;
    if let (Some(at), Some(scenario)) = (&args.at, &args.scenario) {
        let before = args.before.unwrap_or_default();
        return moment::run(scenario, args.holds.as_ref(), at, before, &args.machine, cancel).await;
    }
    let names: Vec<String> = args.scenario.iter().cloned().collect();
    let scenarios = match names.is_empty() {
        true => Vec::new(),
        false => workspace.scenarios(&names)?,
    };
    let machine = MachineArgs { clock: args.machine.clock.or(Some(Clock::Real)), ..args.machine.clone() };
    let mut wanted = Wanted::by(&scenarios);
    if scenarios.is_empty() {
        wanted.push(Wanted::of_size(DEFAULT_MEMORY_MIB));
    }
    let guest =
        prepare_one(&workspace, &machine.machines().await?, &wanted, &results, cancel.clone()).await?;
    let holders = programs::holders(&workspace).await?;
    let directory = results.join(std::process::id().to_string());
    let mut machine = prepare_shell(&guest, scenarios.first(), Some(&holders), &directory, cancel).await?;
    scenarios.iter().for_each(|scenario| eprint!("{}", commands(&scenario.manifest)));
    let guest = machine.guest();
    for forward in &args.forward {
        match forward::begin(forward, guest.clone()).await {
            Ok(address) => eprintln!("forward: http://{address} leads to {forward} of the guest"),
            Err(error) => return machine.finish(Err(error)).await,
        }
    }
    eprintln!("ready; exit or Ctrl-D ends the machine");
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
