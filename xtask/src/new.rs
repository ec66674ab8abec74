//! `cargo xtask new`: a first scenario, and what to type next.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vm_tests::scenario::new::{self, New};

use crate::shell::quoted;

/// Writes a scenario that works: a manifest with comments, and the unit's file beside it.
///
/// Without --unit-file the unit is a stand-in that mounts a tmpfs and works in it: run it, then put your own in its place.
/// Nothing that is there is overwritten.
#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Directory to write, anywhere
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// The unit to test: its full name, with .service
    #[arg(long, value_name = "UNIT")]
    unit: String,

    /// The user whose manager has it (systemctl --user); made in the machine
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// Where it mounts: an absolute path [default: of the stand-in /srv/ and the unit's name]
    #[arg(long, value_name = "PATH")]
    mount: Option<String>,

    /// The unit's file, to be copied
    #[arg(long, value_name = "FILE")]
    unit_file: Option<PathBuf>,

    /// What else the machine gets: a directory that is laid over its /, or a file and where it goes [may be repeated]
    #[arg(long, value_name = "DIR|FILE:/PATH")]
    files: Vec<String>,
}

pub(crate) fn run(args: NewArgs) -> Result<()> {
    let NewArgs { directory, unit, user, mount, unit_file, files } = args;
    for path in new::write(&directory, &New { unit, user, mount, unit_file, files })? {
        println!("{}", path.display());
    }
    // A name alone would be looked for among the workspace's scenarios, too.
    let is_path = directory.components().count() > 1 || directory.is_absolute();
    let directory = if is_path { directory } else { PathBuf::from(".").join(directory) };
    let directory = quoted(&directory.display().to_string());
    println!("to run it:       cargo xtask vm-test {directory}");
    println!("to accept a run: INSTA_UPDATE=always cargo xtask vm-test {directory}");
    Ok(())
}
