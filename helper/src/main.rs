//! `left4me-overlay mount|umount <id>`: the root helper that a server's unit runs before and after it.
//!
//! What is left to this file: the order of the checks and the text that is printed. It starts no thread and no process.
//! Everything with a decision in it lives in the library.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::Mode;

use left4me_helper::arguments::{self, Action, Command, HELP, Request};
use left4me_helper::cgroup::UnitCgroup;
use left4me_helper::error::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, HelperError, chain};
use left4me_helper::instance::STATE_DIR;
use left4me_helper::overlay::{self, Outcome};
use left4me_helper::state::StateDir;
use left4me_helper::{account, journal, layers, namespace, privileges, purge};

fn main() -> ExitCode {
    // Before anything else: with WorkingDirectory= in merged, systemd starts this process inside the mount it is to
    // unmount, and its own working directory would keep that busy.
    if let Err(errno) = rustix::process::chdir("/") {
        eprintln!("left4me-overlay: chdir /: {errno}");
        return ExitCode::from(EXIT_FAILED);
    }
    // What is made here has the mode it is given, whatever UMask= the unit has.
    rustix::process::umask(Mode::empty());
    let request = match arguments::parse(std::env::args_os()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_shows_the_units_own_lines() {
        let unit = include_str!("../../deploy/files/usr/local/lib/systemd/system/left4me-server@.service");
        for action in [Action::Mount, Action::Umount] {
            let line = exec_line(action);
            assert!(unit.lines().any(|unit_line| unit_line == line), "{line}");
        }
    }
}
