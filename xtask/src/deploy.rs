//! `cargo xtask deploy`: this checkout onto hosts, by ssh. What is done on a host is `left4me-deployer`'s, and so is the order of
//! requests; here are flags, the way there, and what a person sees.

mod show;
mod ssh;
mod version;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Args;
use left4me_deployer::client::{self, Lost, Options, Outcome, Person, Transport as _, Until, Wanted};
use left4me_deployer::wire::{self, Answer, Line, Plan, Request};
use vm_tests::host::signals::Interrupted;
use vm_tests::machine::Cancel;
use vm_tests::scenario::WrongInput;

use crate::exit::PASSED;
use crate::left4me;
use show::NOTHING_TO_DO;
use ssh::{Become, Ssh};

pub(crate) use version::PROGRAM;

/// How long a deploy may take on the host, in seconds, until its guard undoes it: verify, reload, and a canary's start and reset.
const LIMIT_SECS: u64 = 180;

/// Deploys this checkout to hosts: shows what would change, asks, and puts the old version back unless all is well.
///
/// Hosts are reached by ssh, as ssh_config(5) says; more than one are done in their order, up to the first failure. No running
/// server is stopped or restarted. docs/deploy.md says what happens when.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 changed (or planned, or staged), 1 declined, 2 wrong usage, 3 nothing to do, 4 put back: the \
                  old version is in use, 5 refused: nothing was changed, 6 unknown: it says what to look at, 69 failed before \
                  anything was changed, 130 interrupted before that."
)]
pub(crate) struct DeployArgs {
    /// Hosts, as ssh takes them
    #[arg(value_name = "HOST", required = true)]
    hosts: Vec<String>,

    /// Show what would change, and change nothing
    #[arg(long, conflicts_with_all = ["yes", "stage", "put_back", "history"])]
    dry_run: bool,

    /// Don't ask
    #[arg(long, short)]
    yes: bool,

    /// Bring the version to the host, and leave the switch for later
    #[arg(long, conflicts_with_all = ["rollback", "put_back", "history"])]
    stage: bool,

    /// Go back to an earlier version: N versions back [default: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    rollback: Option<u32>,

    /// Put back what is on trial, now
    #[arg(long, conflicts_with_all = ["rollback", "history"])]
    put_back: bool,

    /// Show what was deployed, what is on trial and who works on the host
    #[arg(long, conflicts_with = "rollback")]
    history: bool,

    /// How long the new version stays on trial, in seconds: without a confirmation by then, which this command sends over a new
    /// connection, the host puts the old one back
    #[arg(long, value_name = "SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3600))]
    confirm_within: u64,

    /// How to become root there
    #[arg(long, value_name = "HOW")]
    r#become: Option<Become>,

    /// Another configuration of ssh, as its -F
    #[arg(long, value_name = "FILE")]
    ssh_config: Option<PathBuf>,
}

/// Deploys to each host; the exit code.
pub(crate) async fn run(args: &DeployArgs, cancel: Cancel) -> Result<u8> {
    let asks = !args.yes && !args.dry_run && !args.put_back && !args.history;
    if asks && !std::io::stdin().is_terminal() {
        return Err(
            WrongInput::new("there is no terminal to ask on: give --yes, or --dry-run".to_owned()).into()
        );
    }
    if let Some(host) = args.hosts.iter().find(|host| host.is_empty() || host.starts_with('-')) {
        return Err(WrongInput::new(format!("{host:?} is no host")).into());
    }
    let workspace = left4me::workspace()?;
    let program = version::program(&workspace).await?;
    let needs_version = args.rollback.is_none() && !args.put_back && !args.history;
    let version = if needs_version { Some(version::of(&workspace, &program).await?) } else { None };
    let mut code = NOTHING_TO_DO;
    for host in &args.hosts {
        let mut ssh = Ssh {
            host: host.clone(),
            become_root: args.r#become,
            config: args.ssh_config.clone(),
            program: program.clone(),
            cancel: cancel.clone(),
        };
        let ended = if args.history {
            show_history(&mut ssh).await
        } else if args.put_back {
            put_back(&mut ssh).await
        } else {
            let wanted = match (&version, args.rollback) {
                (Some(version), _) => Wanted::Version(version),
                (None, number) => Wanted::Back(number.unwrap_or(1)),
            };
            let outcome = client::deploy(&mut ssh, wanted, &options(args)?, &mut Terminal { asks }).await;
            if cancel.is_cancelled() && matches!(outcome, Outcome::Failed(_)) {
                return Err(Interrupted::default().into());
            }
            tell(host, &outcome)
        };
        match ended {
            PASSED => code = PASSED,
            NOTHING_TO_DO => {}
            other => {
                let left = args.hosts.iter().skip_while(|one| *one != host).skip(1).count();
                if left > 0 {
                    println!("{host}: stopped here; {left} more were not deployed to");
                }
                return Ok(other);
            }
        }
    }
    Ok(code)
}

fn options(args: &DeployArgs) -> Result<Options> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let name = rustix::system::uname();
    let until = match (args.dry_run, args.stage) {
        (true, _) => Until::Plan,
        (_, true) => Until::Stage,
        _ => Until::Confirmed,
    };
    let unique = format!("{} {}", since.as_nanos(), std::process::id());
    Ok(Options {
        token: wire::sum(unique.as_bytes()).chars().take(12).collect(),
        by: format!("{user}@{}", name.nodename().to_string_lossy()),
        limit_secs: LIMIT_SECS,
        confirm_secs: args.confirm_within,
        until,
    })
}

/// Tells how it ended, with the host's name in the commands to type; the exit code.
fn tell(host: &str, outcome: &Outcome) -> u8 {
    let (code, text) = show::outcome(outcome);
    println!("{host}: {}", text.replace("deploy HOST", &format!("deploy {host}")));
    code
}

async fn put_back(ssh: &mut Ssh) -> u8 {
    let answer = ssh.ask(&Request::PutBack { token: None }, &[], true, &mut |line| show::line(line)).await;
    let host = ssh.host.clone();
    match answer {
        // It was asked for.
        Ok(Answer::PutBack { .. }) => {
            println!("{host}: the old version is in use again");
            PASSED
        }
        Ok(Answer::Refused(_nothing)) => {
            println!("{host}: nothing is on trial");
            NOTHING_TO_DO
        }
        Ok(other) => tell(&host, &Outcome::Unknown(format!("{other:?}"))),
        Err(Lost(why)) => tell(&host, &Outcome::Unknown(why)),
    }
}

async fn show_history(ssh: &mut Ssh) -> u8 {
    match ssh.ask(&Request::Status, &[], false, &mut |_line| ()).await {
        Ok(Answer::Status(status)) => {
            print!("{}", show::status(&ssh.host, &status));
            PASSED
        }
        Ok(other) => tell(&ssh.host, &Outcome::Failed(format!("{other:?}"))),
        Err(Lost(why)) => tell(&ssh.host, &Outcome::Failed(why)),
    }
}

/// Whoever types the command.
struct Terminal {
    asks: bool,
}

impl Person for Terminal {
    fn plan(&mut self, plan: &Plan) {
        print!("{}", show::plan(plan));
    }

    fn agrees(&mut self) -> bool {
        if !self.asks {
            return true;
        }
        print!("Deploy? [y/N] ");
        let mut answer = String::new();
        let asked = std::io::stdout().flush().and_then(|()| std::io::stdin().lock().read_line(&mut answer));
        asked.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    }

    fn line(&mut self, line: &Line) {
        show::line(line);
    }
}
