//! `left4me-overlay mount|umount <id>`: the root helper that the overlay's unit runs.
//!
//! This file has the order of the checks and the printed text. It starts no process, and only one thread, which waits for
//! a lock (`lock.rs`). All decisions are in the library.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::Mode;

use holders::chain::chain;
use left4me_helper::arguments::{self, Action, Command, HELP, Request};
use left4me_helper::error::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, HelperError};
use left4me_helper::instance::STATE_DIR;
use left4me_helper::overlay::{self, Outcome};
use left4me_helper::state::InstanceDir;
use left4me_helper::unit_end::OfUnit;
use left4me_helper::{account, journal, layers, namespace, privileges, purge};

fn main() -> ExitCode {
    // Before anything else: with WorkingDirectory= in merged, systemd starts this process inside the mount it is to
    // unmount, and its own working directory would keep that busy.
    if let Err(errno) = rustix::process::chdir("/") {
        say(std::io::stderr(), &format!("left4me-overlay: chdir /: {errno}\n"));
        return ExitCode::from(EXIT_FAILED);
    }
    // What is made here has the mode it is given, whatever UMask= the unit has.
    rustix::process::umask(Mode::empty());
    let request = match arguments::parse(std::env::args_os()) {
        Ok(Command::Run(request)) => request,
        Ok(Command::Help) => {
            say(std::io::stdout(), HELP);
            return ExitCode::from(EXIT_OK);
        }
        Ok(Command::Version) => {
            say(std::io::stdout(), concat!("left4me-overlay ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::from(EXIT_OK);
        }
        Err(problem) => {
            say(std::io::stderr(), &format!("left4me-overlay: {problem}\nTry: left4me-overlay --help\n"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&request) {
        Ok(sentence) => {
            say(std::io::stdout(), &format!("{sentence}\n"));
            ExitCode::from(EXIT_OK)
        }
        Err(error) => {
            let message = format!("left4me-overlay: {}", chain(&error));
            // In the journal once: as an entry with fields where that can be had, else as a line.
            if !journal::report(&error, &message, &request.instance) {
                say(std::io::stderr(), &format!("{message}\n"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says something to whoever listens. What was done was done, and what is to be done is done, even if nobody does: a full
/// disk behind stdout, a reader that is gone, a closed descriptor. println! would panic, also between two steps.
fn say(mut to: impl std::io::Write, text: &str) {
    match to.write_all(text.as_bytes()) {
        Ok(()) | Err(_) => {}
    }
}

fn run(request: &Request) -> Result<String, HelperError> {
    let Request { action, instance, wait } = request;
    if !namespace::is_pid1s()? {
        return Err(HelperError::Namespace);
    }
    let place = InstanceDir::open(Path::new(STATE_DIR), instance)?;
    let InstanceDir { state, paths } = &place;
    let merged = paths.merged.display();
    // Lines of what is waited for go to the journal as they come.
    let mut note = |line: String| say(std::io::stderr(), &format!("left4me-overlay: {line}\n"));
    match action {
        Action::Mount => {
            let file = layers::read(&place)?;
            let plan = overlay::plan(paths, layers::lower(&file, state.path()))?;
            let deadline = Instant::now() + wait.limit;
            let outcome = overlay::mount(&place, &plan, account::of(&paths.user)?, deadline)?;
            purge::sweep(&place, &mut note);
            Ok(match outcome {
                Outcome::Done => format!("mounted {merged} ({} lower layers)", plan.lower.len()),
                Outcome::Already => format!("{merged} is mounted already; nothing done"),
            })
        }
        Action::Umount => {
            privileges::keep_only(privileges::FOR_UMOUNT)?;
            let mut server = OfUnit::new(&instance.unit());
            Ok(match overlay::umount(&place, &mut server, wait, &mut note)? {
                Outcome::Done => format!("unmounted {merged}"),
                Outcome::Already => format!("{merged} is not mounted; nothing to unmount"),
            })
        }
    }
}
