//! The page with a machine that is played, for tests in a browser and for who changes a template:
//! `cargo run -p left4me-web --example played DIRECTORY`. The first line that it prints is its address. There are two users, `anna`,
//! who operates, and `otto`, who looks; the password of both is `only for a try`.
//!
//! A line of its standard input changes the machine: `set 3 failed`, `hold`, `go`, `fail WHY`, `mend`, `players 3 MAP`,
//! `held WHY`, `say TEXT`; `done` says what was done. The end of it ends all.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use left4me_broker::host::Host as _;
use left4me_broker::kept::Kept;
use left4me_broker::serve;
use left4me_broker::work::Work;
use left4me_web::app::App;
use left4me_web::broker::Broker;
use left4me_web::listen::{self, Listen};
use left4me_web::password;
use left4me_web::store::Store;
use left4me_web::users::Role;
use played::Played;

#[path = "../broker/tests/support/played.rs"]
mod played;

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("usage: played DIRECTORY")?);
    let socket = directory.join("broker");
    let work = broker(&directory, &socket)?;
    let page = std::thread::spawn(move || page(&directory, &socket));
    for line in std::io::stdin().lock().lines() {
        play(&work.host, &line.context("read a line")?)?;
        println!("done");
        if page.is_finished() {
            bail!("the page has ended");
        }
    }
    Ok(())
}

fn play(host: &Played, line: &str) -> Result<()> {
    match line.splitn(3, ' ').collect::<Vec<_>>().as_slice() {
        ["set", name, state] => host.set(name, state),
        ["players", people, map] => host.players(people.parse().context("how many")?, map),
        ["held", by @ ..] => host.held(&by.join(" ")),
        ["say", text @ ..] => host.say(&text.join(" ")),
        ["hold"] => host.hold(true),
        ["go"] => host.hold(false),
        ["fail", why @ ..] => host.fail(Some(&why.join(" "))),
        ["done"] => println!("{}", host.done().join(", ")),
        ["mend"] => host.fail(None),
        _ => bail!("no such line: {line}"),
    }
    Ok(())
}

fn broker(directory: &Path, socket: &Path) -> Result<Arc<Work<Played>>> {
    let jobs = directory.join("jobs");
    std::fs::create_dir_all(&jobs).context("make the directory of jobs")?;
    let listener = std::os::unix::net::UnixListener::bind(socket).context("listen")?;
    let host = Played::new(&["3", "4", "eu-1"]);
    let work = Work::new(host, Kept::new(jobs)).map_err(anyhow::Error::msg)?;
    let (serving, watching) = (Arc::clone(&work), Arc::clone(&work));
    std::thread::spawn(move || serve::run(&listener, &serving));
    std::thread::spawn(move || watching.host.watch(&|| watching.has_changed()));
    Ok(work)
}

fn page(directory: &Path, socket: &Path) -> Result<()> {
    let mut store = Store::open(&directory.join("jobs.sqlite"))?;
    for (name, role) in [("anna", Role::Operate), ("otto", Role::Look)] {
        store.set_user(&name.parse()?, role, &password::kept("only for a try")?)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let app = App::new(Broker::at(socket), store);
    let listen = Listen::parse("127.0.0.1:0")?;
    runtime.block_on(listen::run(app, listen, Vec::new(), |address| println!("{address}")))
}
