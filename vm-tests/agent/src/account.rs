//! Accounts of users, and the one whose manager has the unit under test.

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::fs::Uid;
use rustix::thread::set_thread_res_uid;

/// Who is there with a manager.
static PREPARED: OnceLock<Account> = OnceLock::new();

/// A line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) home: String,
}

impl Account {
    /// The account of this name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of(name: &str) -> Result<Self> {
        const PASSWD: &str = "/etc/passwd";
        let table = fs::read_to_string(PASSWD).with_context(|| format!("read {PASSWD}"))?;
        account(&table, name).with_context(|| format!("{PASSWD} has no user {name}"))
    }

    fn runtime_directory(&self) -> String {
        format!("/run/user/{}", self.uid)
    }

    /// Connects to the user's bus as the user: it lets nobody else in.
    ///
    /// # Errors
    /// What connect(2) says.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let path = format!("{}/bus", self.runtime_directory());
        let uid = Uid::from_raw(self.uid);
        let connected = thread::spawn({
            let path = path.clone();
            move || {
                // This thread's alone (the system call, not the C function), and it ends with it.
                set_thread_res_uid(uid, uid, uid)?;
                UnixStream::connect(path)
            }
        });
        let connected = connected.join().map_err(|panic| anyhow!("connect to {path}: {panic:?}"))?;
        connected
            .with_context(|| format!("connect to {path} as {}: does {}'s manager run?", self.name, self.name))
    }
}

fn account(table: &str, name: &str) -> Option<Account> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [one, _password, uid, _gid, _gecos, home, _shell] if *one == name => {
                Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, home: (*home).to_owned() })
            }
            _ => None,
        }
    })
}

/// Where the user's manager and its bus are, for the commands of a scenario that has a user: `systemctl --user` takes it from
/// there if it is run as that user (`runuser`).
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, String)> {
    let directory = PREPARED.get().map(Account::runtime_directory);
    directory.into_iter().flat_map(|directory| {
        [("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={directory}/bus")), ("XDG_RUNTIME_DIR", directory)]
    })
}

/// From now on commands are told where the manager of this user is.
pub(crate) fn is_prepared(account: Account) {
    // A second session of one machine has the same user.
    let _known = PREPARED.set(account).is_err();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_an_account() {
        let table = "root:x:0:0:root:/root:/bin/bash\nalicia:x:7:7::/x:/y\nalice:x:1000:1001:A, B:/home/alice:/bin/sh\n";
        let alice = Account { name: "alice".to_owned(), uid: 1000, home: "/home/alice".to_owned() };
        assert_eq!(account(table, "alice"), Some(alice));
        assert_eq!(account(table, "ali"), None);
        assert_eq!(account("alice:x:many:1::/x:/y", "alice"), None);
    }
}
