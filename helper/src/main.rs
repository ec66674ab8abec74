//! `left4me-overlay mount|umount <id>`: the root helper that a server's unit runs before and after it.
//!
//! What is left to this file: the command line, the order of the checks and the text that is printed. It starts no
//! thread and no process. Everything with a decision in it lives in the library.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::Mode;

use left4me_helper::cgroup::UnitCgroup;
use left4me_helper::error::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, HelperError, chain};
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::overlay::{self, Outcome};
use left4me_helper::patience::Patience;
use left4me_helper::state::StateDir;
use left4me_helper::{account, journal, layers, namespace, privileges, purge};

const HELP: &str = "\
left4me-overlay: mounts and unmounts the overlay a server runs from

Usage:
  left4me-overlay mount [--wait <secs>] <id>
                  mount /var/lib/left4me/runtime/<id>/merged
  left4me-overlay umount [--wait <secs>] [--end-unit] [--wait-outside] <id>
                  unmount it, once; merged itself stays
  left4me-overlay --help | --version

<id> is 1 to 32 characters of a-z, 0-9, _ and -, the first a letter or a digit.
The layers are listed in /var/lib/left4me/instances/<id>.toml, topmost first:
  overlays = [\"name\", ...]       directories in /var/lib/left4me/overlays/
Below them lies /var/lib/left4me/installation/.

Options:
  --wait <secs>   how long to wait, at most (10): for another helper or a reset
                  at work on this instance; before unmounting also for those
                  processes of the unit it runs in that still use the mount
  --end-unit      send such processes SIGTERM after a quarter of that time, and
                  SIGKILL after half of it. For ExecStopPost=: systemd itself
                  does so, but only after ExecStopPost=
  --wait-outside  wait for processes outside the unit too. They are never sent
                  a signal; without this they are named at once

Mounting what is mounted and unmounting what is not are successes that say so.
It runs as root in the mount namespace of PID 1, or refuses.

Exit status:
   0  done, or so already
   1  anything not below
   2  usage
  32  mounting or umount2(2) failed; for EBUSY the message names the holders
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Mount,
    Umount,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Umount => "umount",
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Run(Request),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    action: Action,
    instance: Instance,
    patience: Patience,
}

fn main() -> ExitCode {
    // Before anything else: with WorkingDirectory= in merged, systemd starts this process inside the mount it is to
    // unmount, and its own working directory would keep that busy.
    if let Err(errno) = rustix::process::chdir("/") {
        eprintln!("left4me-overlay: chdir /: {errno}");
        return ExitCode::from(EXIT_FAILED);
    }
    // What is made here has the mode it is given, whatever UMask= the unit has.
    rustix::process::umask(Mode::empty());
    let request = match parse(std::env::args_os()) {
        Ok(Command::Run(request)) => request,
        Ok(Command::Help) => {
            print!("{HELP}");
            return ExitCode::from(EXIT_OK);
        }
        Ok(Command::Version) => {
            println!("left4me-overlay {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::from(EXIT_OK);
        }
        Err(problem) => {
            eprintln!("left4me-overlay: {problem}\nTry: left4me-overlay --help");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&request) {
        Ok(sentence) => {
            println!("{sentence}");
            ExitCode::from(EXIT_OK)
        }
        Err(error) => {
            let message = format!("left4me-overlay: {}", chain(&error));
            // In the journal once: as an entry with fields where that can be had, else as a line.
            if !journal::report(&error, &message, &request.instance) {
                eprintln!("{message}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(request: &Request) -> Result<String, HelperError> {
    let Request { action, instance, patience } = request;
    if !namespace::is_pid1s()? {
        return Err(HelperError::Namespace { exec_line: exec_line(*action) });
    }
    let state = StateDir::open(Path::new(STATE_DIR))?;
    let paths = state.paths(instance);
    let merged = paths.merged.display();
    // Lines of what is waited for go to the journal as they come.
    let mut note = |line: String| eprintln!("left4me-overlay: {line}");
    match action {
        Action::Mount => {
            let file = layers::read(&state, &paths)?;
            let plan = overlay::plan(&paths, layers::lower(&file, state.path()))?;
            let deadline = Instant::now() + patience.wait;
            let outcome = overlay::mount(&state, &paths, &plan, account::server()?, deadline)?;
            purge::sweep(&state, &paths, &mut note);
            Ok(match outcome {
                Outcome::Done => format!("mounted {merged} ({} lower layers)", plan.lower.len()),
                Outcome::Already => format!("{merged} is mounted already; nothing done"),
            })
        }
        Action::Umount => {
            privileges::keep_only(privileges::FOR_UMOUNT)?;
            let unit = UnitCgroup::mine(&instance.unit());
            Ok(match overlay::umount(&state, &paths, unit.as_ref(), patience, &mut note)? {
                Outcome::Done => format!("unmounted {merged}"),
                Outcome::Already => format!("{merged} is not mounted; nothing to unmount"),
            })
        }
    }
}

/// The unit's line that runs this in the right namespace.
fn exec_line(action: Action) -> String {
    let (setting, verb) = match action {
        Action::Mount => ("ExecStartPre", "mount"),
        Action::Umount => ("ExecStopPost", "umount --end-unit"),
    };
    format!(
        "{setting}=+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /usr/local/libexec/left4me/left4me-overlay {verb} %i"
    )
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words: Vec<String> = Vec::new();
    let mut patience = Patience::default();
    let mut only_umount = None;
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Long("wait") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                patience.wait = seconds(&value.to_string_lossy())?;
            }
            Long("end-unit") => {
                patience.end = true;
                only_umount = Some("--end-unit");
            }
            Long("wait-outside") => {
                patience.outside = true;
                only_umount = Some("--wait-outside");
            }
            Value(word) => words.push(word.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let mut words = words.into_iter();
    let action = match words.next().as_deref() {
        Some("mount") => Action::Mount,
        Some("umount") => Action::Umount,
        Some("unmount") => return Err("unknown action \"unmount\": it is called \"umount\"".into()),
        Some(other) => return Err(format!("unknown action {other:?}: expected \"mount\" or \"umount\"")),
        None => return Err("no action: expected \"mount <id>\" or \"umount <id>\"".into()),
    };
    let name = words.next().ok_or_else(|| format!("{action}: no instance: expected \"{action} <id>\""))?;
    if let Some(extra) = words.next() {
        return Err(format!("{action} {name}: one instance at a time, {extra:?} is too much"));
    }
    if let (Action::Mount, Some(option)) = (action, only_umount) {
        return Err(format!("mount: {option} is for umount only"));
    }
    let instance = name.parse().map_err(|error| format!("{error}"))?;
    Ok(Command::Run(Request { action, instance, patience }))
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("--wait {text:?}: expected seconds, 0 to 3600")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(std::iter::once("left4me-overlay").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn command_lines() {
        let request =
            |action, patience| Ok(Command::Run(Request { action, instance: "3".parse().unwrap(), patience }));
        let default = Patience::default();
        assert_eq!(parsed(&["mount", "3"]), request(Action::Mount, default));
        assert_eq!(parsed(&["umount", "--", "3"]), request(Action::Umount, default));
        assert_eq!(
            parsed(&["umount", "--end-unit", "--wait=7", "3", "--wait-outside"]),
            request(Action::Umount, Patience { wait: Duration::from_secs(7), end: true, outside: true })
        );
        assert_eq!(parsed(&["--help"]), Ok(Command::Help));
        assert_eq!(parsed(&["mount", "-h"]), Ok(Command::Help));
        assert_eq!(parsed(&["-V"]), Ok(Command::Version));
        for (args, expected) in [
            (&[][..], "no action"),
            (&["unmount", "3"], "it is called \"umount\""),
            (&["remount", "3"], "unknown action \"remount\""),
            (&["mount"], "mount: no instance"),
            (&["mount", "3", "4"], "\"4\" is too much"),
            (&["mount", "../3"], "instance name \"../3\""),
            (&["mount", "--end-unit", "3"], "--end-unit is for umount only"),
            (&["umount", "--wait", "x", "3"], "expected seconds"),
            (&["umount", "--wait", "9999", "3"], "expected seconds"),
            (&["umount", "-l", "3"], "invalid option '-l'"),
            (&["umount", "--lazy", "3"], "invalid option '--lazy'"),
        ] {
            let problem = parsed(args).unwrap_err();
            assert!(problem.contains(expected), "{args:?}: {problem}");
        }
    }

    #[test]
    fn the_refusal_shows_the_units_own_lines() {
        let unit = include_str!("../../deploy/files/usr/local/lib/systemd/system/left4me-server@.service");
        for action in [Action::Mount, Action::Umount] {
            let line = exec_line(action);
            assert!(unit.lines().any(|unit_line| unit_line == line), "{line}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 80));
    }
}
