//! `left4me-broker`: takes the socket that systemd has opened, or a path for a try, and serves it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use async_signal::{Signal, Signals};
use futures_util::StreamExt as _;
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
    // Heard from now on: what comes before ends us at once, with no job.
    let mut end = Signals::new([Signal::Term]).map_err(|error| format!("listen for SIGTERM: {error}"))?;
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
    let serving = Arc::clone(&work);
    let (failed, has_failed) = mpsc::channel();
    let (ends, ended) = (failed.clone(), Arc::clone(&work));
    let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        thread.map(drop).map_err(|error| format!("start a thread: {error}"))
    };
    start(
        "connections",
        Box::new(move || {
            let served =
                serve::run(&listener, &serving).map_err(|error| format!("serve the socket: {error}"));
            // Nobody hears it if this ends anyway.
            failed.send(served).unwrap_or_default();
        }),
    )?;
    start(
        "end",
        Box::new(move || {
            let waited = match async_io::block_on(end.next()) {
                Some(Err(error)) => Err(format!("wait for SIGTERM: {error}")),
                Some(Ok(_)) | None => Ok(()),
            };
            // systemd waits for it, `TimeoutStopSec=`: an outcome that is not written down would be lost.
            ended.end();
            ends.send(waited).unwrap_or_default();
        }),
    )?;
    has_failed.recv().unwrap_or(Ok(()))
}
