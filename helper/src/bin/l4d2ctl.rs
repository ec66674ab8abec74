//! `l4d2ctl start|stop|reset|status <id>`: the command line and the printing. The work is `left4me_helper::control`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use left4me_helper::control::{self, Action, DEFAULT_TIMEOUT, Host};
use left4me_helper::instance::Instance;
use left4me_helper::report::Report;
use left4me_helper::systemd::Systemd;

const EXIT_HELP: &str = "\
Exit status:
  0  ok
  1  failed
  2  usage
  3  status of a unit that is not running
  4  no such unit";

/// Starts, stops and resets Left 4 Dead 2 servers
#[derive(Debug, Parser)]
#[command(name = "l4d2ctl", version, after_help = EXIT_HELP, term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount the overlay and start the server
    Start(Target),
    /// Stop the server and unmount the overlay
    Stop(Target),
    /// Stop the server and delete its runtime directory, with all it wrote
    ///
    /// Nothing is deleted while anything is mounted there. A stop that fails is reported, with status 1, even if
    /// everything could be deleted.
    Reset(Target),
    /// Say how the server's unit is
    Status(Target),
}

#[derive(Debug, Args)]
struct Target {
    /// The instance: 1 to 32 characters of a-z, 0-9, _ and -
    id: Instance,
    /// Print the report as JSON on stdout
    #[arg(long)]
    json: bool,
    /// How long systemd's job may take
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_TIMEOUT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

fn main() -> ExitCode {
    let (action, target) = match Cli::parse().command {
        Command::Start(target) => (Action::Start, target),
        Command::Stop(target) => (Action::Stop, target),
        Command::Reset(target) => (Action::Reset, target),
        Command::Status(target) => (Action::Status, target),
    };
    let report = report(action, &target);
    if target.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&report).expect("the report holds no map and no odd key")
        );
    } else {
        print!("{report}");
        if let Some(error) = &report.error {
            eprintln!("l4d2ctl: {error}");
        }
    }
    ExitCode::from(report.exit.code())
}

fn report(action: Action, target: &Target) -> Report {
    /// What questions may take on top of the job itself.
    const MARGIN: Duration = Duration::from_secs(10);
    let timeout = Duration::from_secs(target.timeout);
    match Systemd::connect(Instant::now() + timeout + MARGIN) {
        Ok(mut systemd) => control::run(&mut systemd, &Host::default(), action, &target.id, timeout),
        Err(error) => control::not_begun(action, &target.id, &error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["l4d2ctl", "reset", "3", "--json", "--timeout", "5"]).is_ok());
        for bad in [
            &["l4d2ctl", "reset", "../3"][..],
            &["l4d2ctl", "reset"],
            &["l4d2ctl", "stop", "3", "--timeout", "0"],
        ] {
            assert_eq!(Cli::try_parse_from(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }
}
