//! `left4me-web`: the page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use left4me_web::app::App;
use left4me_web::broker::Broker;
use left4me_web::listen::{self, Listen};
use left4me_web::passwd;
use left4me_web::store::Store;

const USAGE: &str = "usage: left4me-web [--listen ADDRESS] [--broker SOCKET] [--name NAME]... DATABASE
       left4me-web passwd NAME [--role look|operate] [--database DATABASE]
       left4me-web users | remove NAME [--database DATABASE]
  --listen   127.0.0.1:8080 or a path for a socket; without it, the socket that is the standard input
  --broker   the broker's socket [/run/left4me-broker/socket]
  --name     a further name that a proxy has for this host, without a port
  passwd     sets a user's password, asked on the terminal, or the first line of the standard input; a new one operates
  users      says who there is; remove: takes one away
Jobs, users and sessions are kept in DATABASE [/var/lib/left4me-web/jobs.sqlite].";

struct Arguments {
    listen: Listen,
    broker: PathBuf,
    names: Vec<String>,
    database: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| ["passwd", "users", "remove"].contains(&first.as_str())) {
        return match passwd::parse(arguments) {
            Ok((command, database)) => status(passwd::run(&command, &database)),
            Err(error) => wrong(&error),
        };
    }
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return wrong(&error),
    };
    status(run(arguments))
}

fn wrong(error: &anyhow::Error) -> ExitCode {
    eprintln!("left4me-web: {error:#}\n{USAGE}");
    ExitCode::from(2)
}

fn status(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("left4me-web: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let (mut listen, mut database, mut names) = (Listen::Stdin, None, Vec::new());
    let mut broker = PathBuf::from("/run/left4me-broker/socket");
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => listen = Listen::parse(&value()?)?,
            "--broker" => broker = value()?.into(),
            "--name" => names.push(value()?),
            option if option.starts_with('-') => bail!("there is no {option}"),
            path if database.is_none() => database = Some(PathBuf::from(path)),
            more => bail!("{more} is one too many"),
        }
    }
    Ok(Arguments { listen, broker, names, database: database.context("no DATABASE")? })
}

fn run(Arguments { listen, broker, names, database }: Arguments) -> Result<()> {
    let store = opened(&database)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let app = App::new(Broker::at(&broker), store);
    runtime.block_on(listen::run(app, listen, names, |place| eprintln!("serving at {place}")))
}

fn opened(database: &Path) -> Result<Store> {
    Store::open(database).with_context(|| format!("open {}", database.display()))
}
