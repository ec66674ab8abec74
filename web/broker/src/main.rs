//! `left4me-broker`: takes the socket that systemd has opened, or a path for a try, and serves it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use left4me_broker::host::Host;
use left4me_broker::kept::Kept;
use left4me_broker::real::Machine;
use left4me_broker::serve;
use left4me_broker::work::Work;

const USAGE: &str = "usage: left4me-broker DIRECTORY
Serves the Unix socket that is its standard input (`StandardInput=socket` in its unit), and keeps jobs in DIRECTORY.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(directory.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: PathBuf) -> Result<(), String> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let listener = UnixListener::from(socket.map_err(|error| format!("dup the standard input: {error}"))?);
    let work = Work::new(Machine::default(), Kept::new(directory))?;
    let watching = Arc::clone(&work);
    let thread = std::thread::Builder::new().name("changes".into());
    let watch = move || {
        // Without it a page is late by some seconds, and not wrong: so the jobs go on.
        if let Err(problem) = watching.host.watch(&|| watching.has_changed()) {
            eprintln!("{problem}");
        }
    };
    thread.spawn(watch).map_err(|error| format!("start a thread: {error}"))?;
    serve::run(&listener, &work).map_err(|error| format!("serve the socket: {error}"))
}
