//! `left4me-web`: the page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use left4me_web::app::App;
use left4me_web::broker::Broker;
use left4me_web::listen::{self, Listen};
use left4me_web::store::Store;

const USAGE: &str = "usage: left4me-web [--listen ADDRESS] [--broker SOCKET] [--name NAME]... DATABASE
  --listen   127.0.0.1:8080 or a path for a socket; without it, the socket that is the standard input
  --broker   the broker's socket [/run/left4me-broker/socket]
  --name     a further name that a proxy has for this host, without a port
The jobs are kept in DATABASE. Who can connect may start, stop and reset: there is no login.";

struct Arguments {
    listen: Listen,
    broker: PathBuf,
    names: Vec<String>,
    database: PathBuf,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("left4me-web: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(arguments) {
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
