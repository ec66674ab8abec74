//! `left4me-web passwd`, `users`, `remove`: who may come in, as root says it on this machine. There is no other way to become a user,
//! and no user to begin with.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Gid, Uid, getuid};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::password;
use crate::store::Store;
use crate::users::{Name, Role};

/// Where the unit keeps its database.
const DATABASE: &str = "/var/lib/left4me-web/jobs.sqlite";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Sets a password, and a role.
    Set(Name, Option<Role>),
    /// Removes a user.
    Remove(Name),
    /// Says who there is.
    List,
}

/// A command and its database.
///
/// # Errors
/// There is no such command.
pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Command, PathBuf)> {
    let verb = arguments.next().unwrap_or_default();
    let (mut name, mut role, mut database) = (None, None, PathBuf::from(DATABASE));
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--role" if verb == "passwd" => role = Some(value()?.parse()?),
            "--database" => database = value()?.into(),
            option if option.starts_with('-') => bail!("{verb} has no {option}"),
            text if name.is_none() && verb != "users" => name = Some(text.parse()?),
            more => bail!("{more} is one too many"),
        }
    }
    let command = match (verb.as_str(), name) {
        ("users", _) => Command::List,
        ("passwd", Some(name)) => Command::Set(name, role),
        ("remove", Some(name)) => Command::Remove(name),
        (verb, _) => bail!("{verb} needs a user's NAME"),
    };
    Ok((command, database))
}

/// Does it.
///
/// # Errors
/// The database's; or the password is none.
pub fn run(command: &Command, database: &Path) -> Result<()> {
    become_owner(database)?;
    let mut store = Store::open(database).with_context(|| format!("open {}", database.display()))?;
    match command {
        Command::Set(name, role) => {
            let role = match role {
                Some(role) => *role,
                None => store.role(name)?.unwrap_or(Role::Operate),
            };
            let kept = password::kept(&asked(name)?)?;
            store.set_user(name, role, &kept)?;
            println!("{name} has the role {role} and this password; sessions of before have ended");
        }
        Command::Remove(name) => {
            ensure!(store.remove_user(name)?, "there is no user {name}");
            println!("{name} is no user any more, and all sessions have ended");
        }
        Command::List => {
            for (name, role, sessions) in store.users()? {
                println!("{name}\t{role}\t{sessions} sessions");
            }
        }
    }
    Ok(())
}

/// Root becomes the user who has the database: no file of root's is left there, and none is written through a link of that user's.
fn become_owner(database: &Path) -> Result<()> {
    let directory = database.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = directory.display();
    let owner = match std::fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no {shown} yet: `systemctl start left4me-web.service` makes it")
        }
        owner => owner.with_context(|| format!("stat {shown}"))?,
    };
    if !getuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    // This process has one thread.
    let gid = Gid::from_raw(owner.gid());
    let changed = set_thread_groups(&[])
        .and_then(|()| set_thread_gid(gid))
        .and_then(|()| set_thread_uid(Uid::from_raw(owner.uid())));
    changed.with_context(|| format!("become uid {}, who has {shown}", owner.uid()))
}

/// Asks twice on a terminal, where nobody sees it; else it is the first line of the standard input.
fn asked(name: &Name) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        stdin.lock().read_line(&mut line).context("read the standard input")?;
        return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
    }
    let _silent = Silent::new(stdin.as_fd()).context("the terminal's settings")?;
    let line = |question: &str| -> Result<String> {
        let mut terminal = io::stderr();
        write!(terminal, "{question}: ").and_then(|()| terminal.flush()).context("ask")?;
        let mut line = String::new();
        stdin.lock().read_line(&mut line).context("read the terminal")?;
        writeln!(terminal).context("ask")?;
        Ok(line.trim_end_matches('\n').to_owned())
    };
    let password = line(&format!("Password for {name}, at least {} characters", password::LEAST))?;
    ensure!(line("Again")? == password, "these were two passwords; nothing was changed");
    Ok(password)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silent<'a>(BorrowedFd<'a>, Termios);

impl<'a> Silent<'a> {
    fn new(terminal: BorrowedFd<'a>) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.0, OptionalActions::Flush, &self.1) {
            eprintln!("the terminal's settings: {error}: `stty echo` mends them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Command, PathBuf)> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn commands_are_what_they_say() {
        let anna = || "anna".parse().unwrap();
        let database = || PathBuf::from(DATABASE);
        assert_eq!(parsed("passwd anna").unwrap(), (Command::Set(anna(), None), database()));
        let look = Command::Set(anna(), Some(Role::Look));
        assert_eq!(parsed("passwd --role look anna --database /x").unwrap(), (look, "/x".into()));
        assert_eq!(parsed("remove anna").unwrap(), (Command::Remove(anna()), database()));
        assert_eq!(parsed("users").unwrap(), (Command::List, database()));
        for text in [
            "passwd",
            "remove",
            "users anna",
            "passwd a b",
            "passwd ../x",
            "passwd a --role root",
            "users --role look",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
