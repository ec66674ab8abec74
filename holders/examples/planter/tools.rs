//! The tools that are asked, and how what they print is read.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// How each is asked about a mount point; `holders` apart, whose answer says more than a list.
pub(crate) const OTHERS: [&str; 3] = ["fuser", "lsof", "lsns"];

/// The command line by which a person asks `tool` about the mount at `path`.
pub(crate) fn command_line(tool: &str, path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    let words: &[&str] = match tool {
        "fuser" => &["fuser", "-vm", &path],
        // Without warnings about file systems that it can't stat. -t: process ids only.
        "lsof" => &["lsof", "-w", "-t", &path],
        "lsns" => &["lsns", "-t", "mnt", "-n", "-o", "PID"],
        other => &[other, &path],
    };
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Runs a command line without stdin.
pub(crate) fn run(words: &[String]) -> Result<Output, Box<dyn Error>> {
    let (program, args) = words.split_first().ok_or("an empty command line")?;
    let output = command(program).args(args).stdin(Stdio::null()).output();
    output.map_err(|error| format!("run {program}: {error}").into())
}

#[expect(clippy::disallowed_methods, reason = "short programs, each waited for")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// The processes that one of [`OTHERS`] names: numbers on stdout (fuser prints everything else to stderr).
pub(crate) fn named(tool: &str, path: &Path) -> Result<BTreeSet<u32>, Box<dyn Error>> {
    let output = run(&command_line(tool, path))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}
