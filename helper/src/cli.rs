//! The command line of `l4d2ctl`: here and not in its binary, as the manual page and the completions of the shells are
//! made from it too (`examples/generate.rs`).

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::control::DEFAULT_TIMEOUT;
use crate::instance::Instance;

const EXIT_HELP: &str = "\
Exit status, the worst of all instances:
  0  ok
  1  failed, or doctor has found something
  2  usage
  3  status of a unit that is not running
  4  no such unit";

/// Starts, stops and resets Left 4 Dead 2 servers
#[derive(Debug, Parser)]
#[command(name = "l4d2ctl", version, after_help = EXIT_HELP, term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the overlays and start the servers
    Start(Target),
    /// Stop the servers and unmount the overlays
    Stop(Target),
    /// Stop the servers and delete their runtime directories, with all they wrote
    ///
    /// Nothing is deleted while anything is mounted there. A stop that fails is reported, with status 1, even if
    /// everything could be deleted.
    Reset(Target),
    /// Say how the servers' units are
    ///
    /// One instance is shown in full, several as a table. Without any, all are shown, and one that does not run is no
    /// failure.
    Status(StatusTarget),
    /// Say what in the loaded units and their drop-ins defeats the design
    ///
    /// Not only in the servers' own: also what another service or mount unit has that keeps a server's overlay busy, or
    /// alive behind a successful umount. Without an instance, all are looked at.
    Doctor(StatusTarget),
}

/// Which instances, and how.
#[derive(Debug, Args)]
pub struct Target {
    /// The instances: each 1 to 32 characters of a-z, 0-9, _ and -
    #[arg(required_unless_present = "all", value_name = "ID")]
    pub ids: Vec<Instance>,
    /// All instances: those with a file in /var/lib/left4me/instances, and, but for start, those with a runtime directory
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// How to do it.
    #[command(flatten)]
    pub how: How,
}

/// Which instances, or all, and how.
#[derive(Debug, Args)]
pub struct StatusTarget {
    /// The instances: each 1 to 32 characters of a-z, 0-9, _ and -
    #[arg(value_name = "ID")]
    pub ids: Vec<Instance>,
    /// How to do it.
    #[command(flatten)]
    pub how: How,
}

/// How to do it.
#[derive(Debug, Args)]
pub struct How {
    /// Print the report as JSON on stdout: an object for one ID, an array for several, --all or none
    #[arg(long)]
    pub json: bool,
    /// How long systemd's job, and then deleting, may take for each instance
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_TIMEOUT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// The command line as clap sees it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
        for good in [
            &["l4d2ctl", "reset", "3", "--json", "--timeout", "5"][..],
            &["l4d2ctl", "reset", "1", "2", "3"],
            &["l4d2ctl", "stop", "--all"],
            &["l4d2ctl", "status"],
            &["l4d2ctl", "doctor", "3"],
        ] {
            assert!(Cli::try_parse_from(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["l4d2ctl", "reset", "../3"][..],
            &["l4d2ctl", "reset", "3", "../4"],
            &["l4d2ctl", "reset"],
            &["l4d2ctl", "reset", "3", "--all"],
            &["l4d2ctl", "stop", "3", "--timeout", "0"],
        ] {
            assert_eq!(Cli::try_parse_from(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_checked_names_or_all_and_a_bounded_time(
            words in prop::collection::vec("start|stop|reset|status|doctor|--all|--json|--timeout(=[0-9]{0,6})?|[0-9]{1,3}|[a-z./é-]{0,8}", 0..6)
        ) {
            let words = std::iter::once("l4d2ctl").chain(words.iter().map(String::as_str));
            let Ok(Cli { command }) = Cli::try_parse_from(words.clone()) else { return Ok(()) };
            let how = match &command {
                Command::Start(target) | Command::Stop(target) | Command::Reset(target) => {
                    prop_assert_eq!(target.all, target.ids.is_empty(), "either names or all");
                    prop_assert!(target.ids.iter().all(|id| words.clone().any(|word| word == id.as_str())));
                    &target.how
                }
                Command::Status(target) | Command::Doctor(target) => &target.how,
            };
            prop_assert!((1..=86_400).contains(&how.timeout));
        }
    }
}
