//! `left4me-deploy`: runs on a host, as root, for `cargo xtask deploy`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use left4me_deployer::host::Host;
use left4me_deployer::wire::{Answer, Line};
use left4me_deployer::{apply, canary, serve};

const HELP: &str = "\
left4me-deploy: deploys left4me to this host, for `cargo xtask deploy`

Usage:
  left4me-deploy serve    read one request from standard input and answer it
  left4me-deploy guard    put the old version back, if a deploy is on trial
  left4me-deploy --help | --version
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("left4me-deploy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args();
    if canary::is_asked_for(&arguments.next().unwrap_or_default()) {
        return canary::serve();
    }
    let arguments: Vec<String> = arguments.collect();
    let host = Host::new("/");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve::serve(&host, std::io::stdin().lock(), std::io::stdout().lock()),
        ["guard"] => {
            let mut tell = |line: Line| {
                if let Line::Step(step) = line {
                    eprintln!("{step}");
                }
                Ok(())
            };
            let why = "nobody has confirmed it in time, or the host was rebooted";
            match apply::put_back(&host, None, "the guard", why, &mut tell)? {
                Answer::PutBack { why } => eprintln!("the old version is back: {why}"),
                _nothing => eprintln!("no deploy is on trial"),
            }
            Ok(())
        }
        ["--help"] => {
            print!("{HELP}");
            Ok(())
        }
        ["--version"] => {
            println!("left4me-deploy {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => bail!("{HELP}"),
    }
}
