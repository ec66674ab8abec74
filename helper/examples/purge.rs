//! Deletes an instance's runtime directory without systemd, for tests and measurements:
//! `purge <state directory> <instance>`. Prints how long the delete took, seconds.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use holders::chain::chain;
use left4me_helper::instance::Instance;
use left4me_helper::purge::{MOUNT_TABLES, purge};
use left4me_helper::state::InstanceDir;

fn main() -> ExitCode {
    match run() {
        Ok(took) => {
            println!("{:.3}", took.as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("purge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Duration, String> {
    let mut args = std::env::args().skip(1);
    let (Some(state), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: purge <state directory> <instance>".into());
    };
    let instance: Instance = name.parse().map_err(|error| format!("{error}"))?;
    let place = InstanceDir::open(Path::new(&state), &instance).map_err(|error| chain(&error))?;
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(600);
    purge(&place, &MOUNT_TABLES.map(PathBuf::from), deadline).map_err(|error| chain(&error))?;
    Ok(begun.elapsed())
}
