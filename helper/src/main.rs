//! `left4me-overlay mount|umount <id>`: the root helper that a server's unit runs before and after it.
//!
//! What is left to this file: the command line, the order of the checks and the text that is printed. It starts no
//! thread and no process. Everything with a decision in it lives in the library.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use left4me_helper::error::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, HelperError, chain};
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::overlay::{self, Outcome};
use left4me_helper::{account, layers, namespace};

const HELP: &str = "\
left4me-overlay: mounts and unmounts the overlay a server runs from

Usage:
  left4me-overlay mount <id>     mount /var/lib/left4me/runtime/<id>/merged
  left4me-overlay umount <id>    unmount it, once; merged itself stays
  left4me-overlay --help | --version

<id> is 1 to 32 characters of a-z, 0-9, _ and -, the first a letter or a digit.
The layers are listed in /var/lib/left4me/instances/<id>.toml, topmost first:
  overlays = [\"name\", ...]       directories in /var/lib/left4me/overlays/
Below them lies /var/lib/left4me/installation/.

Mounting what is mounted and unmounting what is not are successes that say so.
It runs as root in the mount namespace of PID 1, or refuses.

Exit status:
   0  done, or so already
   1  anything not below
   2  usage
  32  mount(2) or umount2(2) failed; for EBUSY the message names the holders
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
    Run(Action, Instance),
}

fn main() -> ExitCode {
    // Before anything else: with WorkingDirectory= in merged, systemd starts this process inside the mount it is to
    // unmount, and its own working directory would keep that busy.
    if let Err(errno) = rustix::process::chdir("/") {
        eprintln!("left4me-overlay: chdir /: {errno}");
        return ExitCode::from(EXIT_FAILED);
    }
    let (action, instance) = match parse(std::env::args_os()) {
        Ok(Command::Run(action, instance)) => (action, instance),
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
    match run(action, &instance) {
        Ok(sentence) => {
            println!("{sentence}");
            ExitCode::from(EXIT_OK)
        }
        Err(error) => {
            eprintln!("left4me-overlay: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(action: Action, instance: &Instance) -> Result<String, HelperError> {
    if !namespace::is_pid1s()? {
        return Err(HelperError::Namespace { exec_line: exec_line(action) });
    }
    let state_dir = Path::new(STATE_DIR);
    let paths = instance.paths(state_dir);
    let merged = paths.merged.display();
    match action {
        Action::Mount => {
            let file = layers::read(&paths.file)?;
            let plan = overlay::plan(&paths, layers::lower(&file, state_dir))?;
            Ok(match overlay::mount(&paths, &plan, account::server()?)? {
                Outcome::Done => format!("mounted {merged} ({} lower layers)", plan.lower.len()),
                Outcome::Already => format!("{merged} is mounted already; nothing done"),
            })
        }
        Action::Umount => Ok(match overlay::umount(&paths)? {
            Outcome::Done => format!("unmounted {merged}"),
            Outcome::Already => format!("{merged} is not mounted; nothing to unmount"),
        }),
    }
}

/// The unit's line that runs this in the right namespace.
fn exec_line(action: Action) -> String {
    let setting = match action {
        Action::Mount => "ExecStartPre",
        Action::Umount => "ExecStopPost",
    };
    format!(
        "{setting}=+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /usr/local/libexec/left4me/left4me-overlay {action} %i"
    )
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words: Vec<String> = Vec::new();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
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
    Ok(Command::Run(action, name.parse().map_err(|error| format!("{error}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(std::iter::once("left4me-overlay").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn command_lines() {
        let three = || "3".parse::<Instance>().unwrap();
        assert_eq!(parsed(&["mount", "3"]), Ok(Command::Run(Action::Mount, three())));
        assert_eq!(parsed(&["umount", "--", "3"]), Ok(Command::Run(Action::Umount, three())));
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
