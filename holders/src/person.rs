//! A process as somebody at a terminal wants to be told of it: its command line, its user, and for how long it has been
//! there. Asked of those alone who block.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::path::DecInt;

use crate::printable::printable;
use crate::proc::{open_task, read_file, read_start};
use crate::task;

/// What a person is told of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Its command line, escaped, at most some 200 characters; its name where it has none any more.
    pub command: String,
    /// The name of its user, or the number; empty if that can't be known.
    pub user: String,
    /// How long it has been there.
    pub age: Duration,
}

/// The most of a command line, bytes.
const MOST: usize = 200;

/// `starttime` is in these (proc_pid_stat(5)): the same on all architectures since 2.6, but for a few that are gone.
const TICKS_A_SECOND: u64 = 100;

/// `None` if it is gone. Its memory, which has the command line, may not be looked at if it is `stuck`. `watched` is where
/// nothing is to be opened.
pub(crate) fn person(
    proc_dir: BorrowedFd<'_>,
    (pid, start_time): (u32, u64),
    stuck: bool,
    watched: &Path,
) -> Option<Person> {
    let process = open_task(proc_dir, DecInt::new(pid).as_c_str()).ok()?;
    if task::start_time_of(process.as_fd()) != Some(start_time) {
        return None;
    }
    let mut text = Vec::new();
    let is_read = !stuck && read_start(process.as_fd(), c"cmdline", &mut text, MOST).is_ok();
    text.truncate(if is_read { MOST } else { 0 });
    let words = String::from_utf8_lossy(&text).replace('\0', " ");
    let command = match words.trim() {
        "" => task::about_task(process.as_fd()).comm,
        words => printable(words),
    };
    read_file(process.as_fd(), c"status", &mut text).ok()?;
    let status = String::from_utf8_lossy(&text);
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
    let users = Path::new("/etc/passwd");
    let users = if users.starts_with(watched) { None } else { fs::read_to_string(users).ok() };
    let name = uid.and_then(|uid| user_name(users.as_deref()?, uid)).or(uid);
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let age = Duration::from_secs_f64(uptime)
        .saturating_sub(Duration::from_millis(start_time * 1000 / TICKS_A_SECOND));
    Some(Person { command, user: name.map(printable).unwrap_or_default(), age })
}

fn user_name<'a>(passwd: &'a str, uid: &str) -> Option<&'a str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    })
}

impl Person {
    /// `scratch-indexer.service: sleep 600 (working directory), pid 181 of root for 3 min`. `kinds` is by what it holds.
    #[must_use]
    pub fn named(&self, unit: Option<&str>, kinds: &[String], pid: u32) -> String {
        let unit = unit.map(|unit| format!("{unit}: ")).unwrap_or_default();
        let user = if self.user.is_empty() { String::new() } else { format!(" of {}", self.user) };
        let Self { command, .. } = self;
        format!("{unit}{command} ({}), pid {pid}{user} for {}", kinds.join(", "), self.age_in_words())
    }

    /// `3 min`.
    #[must_use]
    pub fn age_in_words(&self) -> String {
        let seconds = self.age.as_secs();
        match seconds {
            0..120 => format!("{seconds} s"),
            120..7200 => format!("{} min", seconds / 60),
            7200..172_800 => format!("{} h", seconds / 3600),
            _ => format!("{} days", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_users() {
        let age = |seconds| {
            Person { command: String::new(), user: String::new(), age: Duration::from_secs(seconds) }
                .age_in_words()
        };
        assert_eq!([age(3), age(180), age(7200), age(900_000)], ["3 s", "3 min", "2 h", "10 days"]);
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\ngame:x:991:991::/:/bin/false\n";
        assert_eq!((user_name(passwd, "991"), user_name(passwd, "99")), (Some("game"), None));
    }
}
