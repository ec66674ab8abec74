//! The command line of `left4me-overlay`. It is in the library because a fuzz target uses it too. That of `l4d2ctl` is in
//! `ctl/src/cli.rs`, which the root helper does not link.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use crate::instance::Instance;
use crate::unit_end::Wait;

/// The help text.
pub const HELP: &str = "\
left4me-overlay: mounts and unmounts the overlay that a server runs from

Usage:
  left4me-overlay mount [--wait <secs>] <id>
                  mount /var/lib/left4me/runtime/<id>/merged
  left4me-overlay umount [--wait <secs>] [--end-unit] <id>
                  unmount it, without a retry; the directory stays
  left4me-overlay --help | --version

<id> is 1 to 23 characters of a-z, 0-9, _ and -, the first a letter or a digit.
The layers are listed in /var/lib/left4me/instances/<id>.toml, topmost first:
  overlays = [\"name\", ...]       directories in /var/lib/left4me/overlays/
The lowest layer is /var/lib/left4me/installation/. What the server writes
belongs to the user left4me-<id>.

Options:
  --wait <secs>   time limit (default 10) for waiting: for another helper or a
                  reset that works on this instance; before an unmount also
                  for every process of left4me-server@<id>.service to end
  --end-unit      kill these processes after a quarter of that time. For the
                  overlay's own unit, which systemd stops after it has tried
                  to end the server's unit

Mounting a mounted overlay and unmounting an unmounted one succeed with a note.
The helper waits for no other process and sends no other process a signal. If
the mount is busy, it names the holders and fails. It runs as root in the mount
namespace of PID 1 and refuses to run elsewhere.

Exit status:
   0  done, or nothing to do
   1  any other error
   2  usage
  32  the mount or umount2(2) failed; for EBUSY the message names the holders
";

/// The longest `--wait`, seconds.
pub const MAX_WAIT: u64 = 3600;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Mount an instance's overlay.
    Mount,
    /// Unmount it.
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

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// [`HELP`].
    Help,
    /// The version.
    Version,
    /// To do something.
    Run(Request),
}

/// What to do, with which instance, and how long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub action: Action,
    /// With which instance.
    pub instance: Instance,
    /// How long to wait for others.
    pub wait: Wait,
}

/// Reads the arguments, the program's name first.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_iter(args);
    let mut words: Vec<String> = Vec::new();
    let mut wait = Wait::default();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Long("wait") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                wait.limit = seconds(&value.to_string_lossy())?;
            }
            Long("end-unit") => wait.end_unit = true,
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
    if action == Action::Mount && wait.end_unit {
        return Err("mount: --end-unit is for umount only".into());
    }
    let instance = name.parse().map_err(|error| format!("{error}"))?;
    Ok(Command::Run(Request { action, instance, wait }))
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0..=MAX_WAIT) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("--wait {text:?}: expected seconds, 0 to {MAX_WAIT}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(std::iter::once("left4me-overlay").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn command_lines() {
        let request =
            |action, wait| Ok(Command::Run(Request { action, instance: "3".parse().unwrap(), wait }));
        let default = Wait::default();
        assert_eq!(parsed(&["mount", "3"]), request(Action::Mount, default));
        assert_eq!(parsed(&["umount", "--", "3"]), request(Action::Umount, default));
        assert_eq!(
            parsed(&["umount", "--end-unit", "--wait=7", "3"]),
            request(Action::Umount, Wait { limit: Duration::from_secs(7), end_unit: true })
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
            (&["umount", "--wait-outside", "3"], "invalid option '--wait-outside'"),
            (&["umount", "--wait", "9999", "3"], "expected seconds"),
            (&["umount", "-l", "3"], "invalid option '-l'"),
            (&["umount", "--lazy", "3"], "invalid option '--lazy'"),
        ] {
            let problem = parsed(args).unwrap_err();
            assert!(problem.contains(expected), "{args:?}: {problem}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 80));
    }

    proptest! {
        #[test]
        fn what_is_taken_is_a_checked_name_and_a_bounded_wait(
            words in prop::collection::vec("mount|umount|--end-unit|--wait|--wait=[0-9]{0,5}|-[a-z]|[0-9]{1,5}|[a-z./é-]{0,8}", 0..6)
        ) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            if let Ok(Command::Run(Request { action, instance, wait })) = parsed(&words) {
                prop_assert!(wait.limit <= Duration::from_secs(MAX_WAIT));
                prop_assert!(action == Action::Umount || !wait.end_unit);
                prop_assert!(words.contains(&instance.as_str()), "{:?}", instance);
                prop_assert_eq!(wait.end_unit, words.contains(&"--end-unit"));
            }
        }
    }
}
