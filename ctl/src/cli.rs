//! The command line of `l4d2ctl`. It is in the library because `examples/generate.rs` makes the manual pages and the shell
//! completions from it.

use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use left4me_helper::instance::Instance;

use crate::actions::DEFAULT_TIMEOUT;

/// The part of a manual page and of a help text that clap does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The exit statuses and what each means.
    pub exit: &'static [(u8, &'static str)],
    /// Who may run it.
    pub rights: &'static str,
}

const USAGE: (u8, &str) = (2, "wrong usage");

/// The page of `l4d2ctl` itself.
pub const PAGE: Page = Page {
    exit: &[
        (0, "ok"),
        (
            1,
            "failed; or the answer to the question was no; or doctor found something; or an instance's files are broken; or \
             the report could not be printed",
        ),
        USAGE,
        (3, "status: a server does not run"),
        (4, "no such instance or unit"),
    ],
    rights: "status, list and doctor: any user. start and stop: root, or a user whom polkit allows \
             org.freedesktop.systemd1.manage-units. create, reset and destroy: root.",
};

const CREATE: Page = Page {
    exit: &[
        (0, "the instance is there"),
        (1, "it is not, and nothing of it is left: everything that is wrong is said, with what to do"),
        USAGE,
    ],
    rights: "Root, because it writes into a directory of root's.",
};

const DESTROY: Page = Page {
    exit: &[
        (0, "nothing of the instance is left but what the report names"),
        (
            1,
            "failed, its server runs, or the answer to the question was no: the message says whether anything was deleted",
        ),
        USAGE,
        (4, "no such instance: it has neither a file nor a runtime directory"),
    ],
    rights: "Root, because it deletes root's files and directories. Without root it refuses before anything is deleted.",
};

const LIST: Page = Page {
    exit: &[
        (0, "all instances are listed"),
        (1, "an instance's files are broken, which its row says; or systemd could not be asked"),
        USAGE,
    ],
    rights: "Any user. Whether the overlay is mounted is shown to users who may read /proc/1/mountinfo.",
};

const START: Page = Page {
    exit: &[
        (0, "the servers run"),
        (1, "a server does not run: the message names the unit whose journal has the reason"),
        USAGE,
        (4, "no such instance: no file in /var/lib/left4me/instances; or no such unit"),
    ],
    rights: "Root, or a user whom polkit allows org.freedesktop.systemd1.manage-units for both units of the instance.",
};

const STOP: Page = Page {
    exit: &[
        (0, "the servers are down and the overlays unmounted"),
        (
            1,
            "not so for one of them: something is still mounted, another request replaced the stop, or the server had to be \
             killed and may have lost data",
        ),
        USAGE,
        (4, "no such unit"),
    ],
    rights: "Root, or a user whom polkit allows org.freedesktop.systemd1.manage-units for both units of the instance. Only root \
             can use --grace, and only root sees who keeps an overlay mounted.",
};

const RESET: Page = Page {
    exit: &[
        (
            0,
            "the servers are down and everything they wrote is deleted. A server that had to be killed gets a note, and \
             its failed state is cleared",
        ),
        (1, "failed, or the answer to the question was no: the message says whether anything was deleted"),
        USAGE,
        (4, "no such instance: it has no files and does not run; or no such unit"),
    ],
    rights: "Root, because it deletes root's directories. Without root it refuses before it stops anything.",
};

const STATUS: Page = Page {
    exit: &[
        (0, "the servers run; without an ID: all states could be read"),
        (1, "systemd could not be asked"),
        USAGE,
        (3, "a server that was named does not run"),
        (4, "no such unit"),
    ],
    rights: "Any user. Whether the overlay is mounted is shown to users who may read /proc/1/mountinfo.",
};

const DOCTOR: Page = Page {
    exit: &[(0, "nothing found"), (1, "something found, or a unit could not be read"), USAGE],
    rights: "Any user.",
};

/// The page of a subcommand, by its name.
#[must_use]
pub fn page(subcommand: &str) -> Option<&'static Page> {
    match subcommand {
        "create" => Some(&CREATE),
        "destroy" => Some(&DESTROY),
        "list" => Some(&LIST),
        "start" => Some(&START),
        "stop" => Some(&STOP),
        "reset" => Some(&RESET),
        "status" => Some(&STATUS),
        "doctor" => Some(&DOCTOR),
        _ => None,
    }
}

impl Page {
    /// The page as the end of a help text.
    fn help(&self) -> String {
        let exit: String =
            self.exit.iter().map(|(status, meaning)| format!("  {status}  {meaning}\n")).collect();
        format!("Exit status, the worst of all instances:\n{exit}\nRights: {}", self.rights)
    }
}

/// Makes, starts, stops and resets Left 4 Dead 2 servers
#[derive(Debug, Parser)]
#[command(name = "l4d2ctl", version, after_help = PAGE.help(), term_width = 100)]
pub struct Cli {
    /// The action.
    #[command(subcommand)]
    pub command: Command,
}

/// The action.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an instance: which layers a server has, and its port
    ///
    /// Checks first whether it can be started: layers, port, installation. Everything that is wrong is said at once, and
    /// then nothing is written. Writes /var/lib/left4me/instances/ID.toml and ID.env, and starts nothing.
    #[command(after_help = CREATE.help())]
    Create(CreateTarget),
    /// Mount the overlays and start the servers
    #[command(after_help = START.help())]
    Start(Target),
    /// Stop the servers and unmount the overlays
    ///
    /// Also unmounts an overlay that an earlier stop left mounted.
    #[command(after_help = STOP.help())]
    Stop(StopTarget),
    /// Stop the servers and delete everything they wrote
    ///
    /// Deletes the runtime directories only if the stop succeeded and nothing is mounted there any more. Unmounts an
    /// overlay that an earlier stop left mounted. On a terminal it asks before it resets servers that run.
    #[command(after_help = RESET.help())]
    Reset(ResetTarget),
    /// Delete an instance: everything its server wrote, and its own files
    ///
    /// Refuses while the server runs. Unmounts an overlay that an earlier stop left mounted, and deletes only if nothing is
    /// mounted there any more. It names what will be deleted and asks; without a terminal it needs --yes. The server no
    /// longer starts with the host.
    #[command(after_help = DESTROY.help())]
    Destroy(DestroyTarget),
    /// List the instances with their state, port and layers
    ///
    /// An instance whose files are broken is listed too, and what is wrong with them is said. The port is that of its file
    /// of variables, ID.env, or 27015.
    #[command(after_help = LIST.help())]
    List(How),
    /// Show the state of the servers' units
    ///
    /// Shows one instance in full, several as a table. Without an ID it shows all instances, and a server that does not run
    /// is no failure.
    #[command(after_help = STATUS.help())]
    Status(StatusTarget),
    /// Find settings of loaded units and drop-ins that break mounting or unmounting
    ///
    /// Checks the servers' own units, and other services and mount units that keep a server's overlay busy, or alive after a
    /// successful umount. Without an ID it checks all instances.
    #[command(after_help = DOCTOR.help())]
    Doctor(StatusTarget),
}

/// The instances and the options.
#[derive(Debug, Args)]
pub struct Target {
    /// Instances; each is 1 to 23 characters of a-z, 0-9, _ and -
    #[arg(required_unless_present = "all", value_name = "ID")]
    pub ids: Vec<Instance>,
    /// All instances with a file in /var/lib/left4me/instances; for stop and reset also those with a runtime directory; for
    /// reset also what an interrupted reset left
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// Output and time limit.
    #[command(flatten)]
    pub how: How,
}

/// The instance to make.
#[derive(Debug, Args)]
pub struct CreateTarget {
    /// Its name: 1 to 23 characters of a-z, 0-9, _ and -
    #[arg(value_name = "ID")]
    pub id: Instance,
    /// A layer over the installation: a directory in /var/lib/left4me/overlays. The first that is named is topmost: its
    /// files hide those of the next
    #[arg(long = "layer", value_name = "NAME")]
    pub layers: Vec<String>,
    /// The server's port, UDP and TCP, 1024 to 65535; without it 27015
    #[arg(long)]
    pub port: Option<u32>,
    /// What else the server is given on its command line, as one word: --arguments '+sv_lan 1'
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub arguments: Option<String>,
    /// Print JSON on stdout: an object
    #[arg(long)]
    pub json: bool,
}

/// The instance to delete.
#[derive(Debug, Args)]
pub struct DestroyTarget {
    /// Its name
    #[arg(value_name = "ID")]
    pub id: Instance,
    /// Output and time limit.
    #[command(flatten)]
    pub how: How,
    /// Do not ask. Without a terminal on stdin and stderr nothing is deleted unless it is given
    #[arg(long, short)]
    pub yes: bool,
}

/// The instances to stop and the options.
#[derive(Debug, Args)]
pub struct StopTarget {
    /// The instances.
    #[command(flatten)]
    pub target: Target,
    /// The warning.
    #[command(flatten)]
    pub before: Before,
}

/// The instances to reset and the options.
#[derive(Debug, Args)]
pub struct ResetTarget {
    /// The instances.
    #[command(flatten)]
    pub target: Target,
    /// The warning.
    #[command(flatten)]
    pub before: Before,
    /// Do not ask. Without a terminal on stdin and stderr it never asks
    #[arg(long, short)]
    pub yes: bool,
}

/// The warning before a stop.
#[derive(Debug, Args)]
pub struct Before {
    /// Warn the players and wait this long: 30s, 2m, or seconds. Writes `say Server restarts in 30 s` to each server's
    /// console, the FIFO `console` in its directory, if there is one. One wait for all servers; it ends when none runs
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub grace: Option<Duration>,
}

/// The longest `--grace`.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// Reads a time: digits and `s`, `m`, `h` or nothing.
fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number
        .then(|| digits.parse::<u64>().ok()?.checked_mul(unit))
        .flatten()
        .map(Duration::from_secs)
        .filter(|time| (Duration::from_secs(1)..=MAX_GRACE).contains(time))
        .ok_or_else(|| "expected a time from 1s to 1h, such as 30s, 2m or 30".to_owned())
}

/// The instances, all if none is named, and the options.
#[derive(Debug, Args)]
pub struct StatusTarget {
    /// Instances; each is 1 to 23 characters of a-z, 0-9, _ and -
    #[arg(value_name = "ID")]
    pub ids: Vec<Instance>,
    /// Output and time limit.
    #[command(flatten)]
    pub how: How,
}

/// Output and time limit.
#[derive(Debug, Args)]
pub struct How {
    /// Print JSON on stdout: an object for one ID, an array for several, --all or none
    #[arg(long)]
    pub json: bool,
    /// Time limit for systemd's job, and again for deleting, for each instance
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
            &["l4d2ctl", "reset", "--all", "--yes", "--grace", "30s"],
            &["l4d2ctl", "stop", "3", "--grace=2m"],
            &["l4d2ctl", "create", "3"],
            &[
                "l4d2ctl",
                "create",
                "3",
                "--layer",
                "a",
                "--layer",
                "b",
                "--port",
                "27016",
                "--arguments",
                "-x +y",
            ],
            &["l4d2ctl", "list", "--json"],
            &["l4d2ctl", "destroy", "3", "--yes"],
        ] {
            assert!(Cli::try_parse_from(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["l4d2ctl", "reset", "../3"][..],
            &["l4d2ctl", "reset", "3", "../4"],
            &["l4d2ctl", "reset"],
            &["l4d2ctl", "reset", "3", "--all"],
            &["l4d2ctl", "stop", "3", "--timeout", "0"],
            &["l4d2ctl", "stop", "3", "--yes"],
            &["l4d2ctl", "start", "3", "--grace", "30s"],
            &["l4d2ctl", "stop", "3", "--grace", "2 m"],
            &["l4d2ctl", "create"],
            &["l4d2ctl", "create", "../3"],
            &["l4d2ctl", "create", "3", "4"],
            &["l4d2ctl", "create", "3", "--port", "x"],
            &["l4d2ctl", "list", "3"],
            &["l4d2ctl", "destroy"],
            &["l4d2ctl", "destroy", "--all"],
        ] {
            assert_eq!(Cli::try_parse_from(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn every_subcommand_has_a_page() {
        for subcommand in command().get_subcommands() {
            let page = page(subcommand.get_name()).expect("a page");
            let statuses: Vec<_> = page.exit.iter().map(|(status, _meaning)| *status).collect();
            assert!(statuses.is_sorted() && statuses.starts_with(&[0, 1, 2]), "{statuses:?}");
        }
    }

    #[test]
    fn times() {
        for (text, seconds) in [("30s", 30), ("2m", 120), ("1h", 3600), ("45", 45), ("1", 1)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "0", "0m", "2h", "61m", "-1s", "+1", "1.5m", "1d", "1é", "18446744073709551615m"]
        {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_checked_names_or_all_and_a_bounded_time(
            words in prop::collection::vec("create|destroy|list|start|stop|reset|status|doctor|--layer=[a-z.]{0,3}|--port=[0-9]{0,6}|--all|--json|--yes|--grace=[0-9]{0,5}[smhé]?|--timeout(=[0-9]{0,6})?|[0-9]{1,3}|[a-z./é-]{0,8}", 0..6)
        ) {
            let words = std::iter::once("l4d2ctl").chain(words.iter().map(String::as_str));
            let Ok(Cli { command }) = Cli::try_parse_from(words.clone()) else { return Ok(()) };
            let grace = match &command {
                Command::Stop(stop) => stop.before.grace,
                Command::Reset(reset) => reset.before.grace,
                _ => None,
            };
            prop_assert!(grace.is_none_or(|grace| grace <= MAX_GRACE));
            let how = match &command {
                Command::Start(target)
                | Command::Stop(StopTarget { target, .. })
                | Command::Reset(ResetTarget { target, .. }) => {
                    prop_assert_eq!(target.all, target.ids.is_empty(), "either names or all");
                    prop_assert!(target.ids.iter().all(|id| words.clone().any(|word| word == id.as_str())));
                    &target.how
                }
                Command::Status(target) | Command::Doctor(target) => &target.how,
                Command::List(how) | Command::Destroy(DestroyTarget { how, .. }) => how,
                Command::Create(create) => {
                    prop_assert!(words.clone().any(|word| word == create.id.as_str()));
                    return Ok(());
                }
            };
            prop_assert!((1..=86_400).contains(&how.timeout));
        }
    }
}
