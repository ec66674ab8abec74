//! Pins a mount in one way, or in each way there is, and says what is answered about it.
//!
//! ```text
//! planter CASE PATH                     pin PATH, say `ready PID`, wait for the end of stdin
//! planter --list                        the cases
//! planter judge HOLDERS [CASE...]       each case: what umount2(2) does, and what the tools said of it before
//! planter cost HOLDERS ROUNDS N[,N...]  what one scan costs with N more processes
//! planter watch HOLDERS ROUNDS          how soon `holders watch` tells of an unmount and of a new holder
//! ```
//!
//! HOLDERS is the built command. All of it takes root, and makes its mounts in a mount namespace of its own. Results are
//! JSON, a line each. The tests have `plant.rs` and `stage.rs` as modules, so that they plant with the same code.

mod bare_loop;
mod cost;
mod judge;
mod plant;
mod stage;
mod tools;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["judge", holders, cases @ ..] => judge::all(Path::new(holders), cases),
        ["judge-one", holders, case] => judge::one(Path::new(holders), case),
        ["cost", holders, rounds, counts] => cost::measure(Path::new(holders), rounds, counts),
        ["watch", holders, rounds] => watch::measure(Path::new(holders), rounds),
        ["enter", path] => watch::enter(Path::new(path)),
        _ => return plant::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("planter: {error}");
            ExitCode::FAILURE
        }
    }
}
