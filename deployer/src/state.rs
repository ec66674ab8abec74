//! What deploys keep on the host beside the versions: the one that is on trial, the log, and the lock.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::host::{Host, command, durable};
use crate::wire::{Entry, Id, What};

/// The file that says what is on trial. The guard's unit has its path.
pub const PENDING: &str = "pending.json";
/// The log.
pub const LOG: &str = "log.jsonl";
/// The lock.
pub const LOCK: &str = "lock";

/// What is on trial, and what is used again if nobody confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Names the deploy.
    pub token: String,
    /// Who deploys.
    pub by: String,
    /// Seconds since 1970, as the host's clock had it.
    pub at: u64,
    /// The version before; none, no version at all.
    pub from: Option<Id>,
    /// The version on trial.
    pub to: Option<Id>,
}

impl Pending {
    /// What is on trial now.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub fn read(host: &Host) -> Result<Option<Self>> {
        let path = host.state(PENDING);
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// From now on the guard puts `from` back.
    ///
    /// # Errors
    /// It can't be stored.
    pub fn store(&self, host: &Host) -> Result<()> {
        durable::file(&host.state(PENDING), 0o600, &serde_json::to_vec(self)?)
    }

    /// For whom it is in the way.
    #[must_use]
    pub fn words(&self) -> String {
        let to = self.to.as_deref().unwrap_or("nothing");
        format!("{to}, deployed by {} {}", self.by, age(self.at))
    }
}

/// How long ago something was, by the host's clock.
#[must_use]
pub fn age(at: u64) -> String {
    match now().checked_sub(at) {
        Some(secs) if secs < 120 => format!("{secs} s ago"),
        Some(secs) if secs < 7200 => format!("{} min ago", secs / 60),
        Some(secs) => format!("{} h ago", secs / 3600),
        None => "at a time that is still to come, by the host's clock".to_owned(),
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The boot that we are in.
#[must_use]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Nanoseconds of this boot, as systemd counts a unit's: CLOCK_MONOTONIC.
#[must_use]
pub fn since_boot_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (secs, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    secs.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
}

/// Adds a line to the log.
///
/// # Errors
/// It can't be stored.
pub fn log(host: &Host, what: What, pending: &Pending, to: Option<&Id>, note: &str) -> Result<()> {
    let entry = Entry {
        what,
        at: now(),
        boot: boot(),
        since_boot_ns: since_boot_ns(),
        token: pending.token.clone(),
        by: pending.by.clone(),
        from: pending.from.clone(),
        to: to.cloned(),
        note: note.to_owned(),
    };
    let path = host.state(LOG);
    let mut line = serde_json::to_vec(&entry)?;
    line.push(b'\n');
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o644).open(&path)?;
        // A power cut or a full disk may have left half a line.
        if ends_within_a_line(&path)? {
            file.write_all(b"\n")?;
        }
        file.write_all(&line)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn ends_within_a_line(path: &std::path::Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut last = [0];
    if file.seek(std::io::SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(std::io::SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// The log, the oldest line first; what is no line of it is passed over.
///
/// # Errors
/// It can't be read.
pub fn read_log(host: &Host) -> Result<Vec<Entry>> {
    let path = host.state(LOG);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The versions that were confirmed, the current one first, each at its newest place: what `--rollback N` counts. The one before
/// the first deploy is among them: it may be none.
#[must_use]
pub fn back(log: &[Entry], current: Option<&Id>) -> Vec<Option<Id>> {
    let mut found: Vec<Option<Id>> = vec![current.cloned()];
    for entry in log.iter().rev().filter(|entry| entry.what == What::Confirmed) {
        for version in [&entry.to, &entry.from] {
            if !found.contains(version) {
                found.push(version.clone());
            }
        }
    }
    found
}

/// The lock: one deploy at a time. It is held by flock(2), so it ends with its holder.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: i32,
    /// The process' start, from /proc/PID/stat: another one may have its number by now.
    start: u64,
    by: String,
    at: u64,
}

impl Lock {
    /// Takes it, or says who has it.
    ///
    /// # Errors
    /// The file can't be made or written; an `Err` inside is the holder, in words.
    pub fn take(host: &Host, by: &str) -> Result<Result<Self, String>> {
        durable::directories(&host.at(crate::host::STATE))?;
        let path = host.state(LOCK);
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.with_context(|| format!("open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Err(holder(host).unwrap_or_else(|| "a deploy that has just begun".to_owned())));
            }
            Err(errno) => return Err(errno).with_context(|| format!("flock {}", path.display())),
        }
        let pid = i32::try_from(std::process::id())?;
        let start = start(pid).context("our own start")?;
        let about = serde_json::to_vec(&Holder { pid, start, by: by.to_owned(), at: now() })?;
        // Who holds it is a courtesy: on a full disk it is held all the same.
        let mut writing = &file;
        let written =
            file.set_len(0).and_then(|()| writing.rewind()).and_then(|()| writing.write_all(&about));
        if let Err(error) = written {
            eprintln!("{}: {error}", path.display());
        }
        Ok(Ok(Self { _file: file }))
    }

    /// Takes it within a time from whoever has it: the holder is killed if it does not give it up by itself. For the guard, whose
    /// time has come when a deploy hangs.
    ///
    /// # Errors
    /// As [`Self::take`]; it is not had even so.
    pub fn wrest(host: &Host, by: &str) -> Result<Self> {
        for _ in 0..3 {
            match Self::take(host, by)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => {
                    eprintln!("{holder} is in the way: killed, as its time is over");
                    kill_holder(host)?;
                }
            }
        }
        bail!("the lock {} is not to be had", host.state(LOCK).display())
    }
}

fn read_holder(host: &Host) -> Option<Holder> {
    serde_json::from_slice(&fs::read(host.state(LOCK)).ok()?).ok()
}

/// Who has the lock, in words; `None` if nobody has.
#[must_use]
pub fn holder(host: &Host) -> Option<String> {
    let file = File::open(host.state(LOCK)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_held) => {
            let Some(Holder { pid, by, at, .. }) = read_holder(host) else {
                return Some("somebody whose name could not be written".to_owned());
            };
            Some(format!("{by} (process {pid}), since {}", age(at)))
        }
    }
}

/// A process' start, in ticks of its boot: field 22 of proc_pid_stat(5).
fn start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn kill_holder(host: &Host) -> Result<()> {
    let holder = read_holder(host).context("nobody knows who has the lock")?;
    let pid = Pid::from_raw(holder.pid).context("the lock's holder is process 0")?;
    let pidfd: OwnedFd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(errno).context("pidfd_open"),
    };
    // Only then is it sure to be the one: a pidfd is not given to another process later.
    if start(holder.pid) == Some(holder.start) {
        pidfd_send_signal(&pidfd, Signal::KILL).context("kill the lock's holder")?;
        command::readable(&pidfd, Instant::now() + Duration::from_secs(10))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        durable::directories(&host.at(crate::host::STATE)).expect("made");
        (directory, host)
    }

    fn pending(from: Option<&str>, to: Option<&str>) -> Pending {
        let own = |id: Option<&str>| id.map(str::to_owned);
        Pending { token: "t".to_owned(), by: "me".to_owned(), at: 1, from: own(from), to: own(to) }
    }

    #[test]
    fn the_log_is_read_even_if_half_a_line_is_in_it() {
        let (_directory, host) = host();
        let one = pending(None, Some("a"));
        log(&host, What::Switch, &one, one.to.as_ref(), "").expect("written");
        let mut file = OpenOptions::new().append(true).open(host.state(LOG)).expect("open");
        file.write_all(b"{\"what\":\"swi").expect("written");
        log(&host, What::Confirmed, &one, one.to.as_ref(), "").expect("written");
        let what: Vec<What> = read_log(&host).expect("read").iter().map(|entry| entry.what).collect();
        assert_eq!(what, [What::Switch, What::Confirmed]);
    }

    #[test]
    fn what_to_go_back_to_is_what_was_confirmed() {
        let (_directory, host) = host();
        let add = |what, from: Option<&str>, to: Option<&str>| {
            let one = pending(from, to);
            log(&host, what, &one, one.to.as_ref(), "").expect("written");
        };
        add(What::Confirmed, None, Some("a"));
        add(What::Switch, Some("a"), Some("bad"));
        add(What::PutBack, Some("a"), Some("bad"));
        add(What::Confirmed, Some("a"), Some("b"));
        add(What::Confirmed, Some("b"), Some("a"));
        let log = read_log(&host).expect("read");
        let words = |current: &str| {
            let all = back(&log, Some(&current.to_owned()));
            all.into_iter().map(|id| id.unwrap_or_else(|| "none".to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(words("a"), ["a", "b", "none"]);
        assert_eq!(words("b"), ["b", "a", "none"]);
    }

    #[test]
    fn one_has_the_lock_and_the_other_learns_who() {
        let (_directory, host) = host();
        assert_eq!(holder(&host), None);
        let lock = Lock::take(&host, "me@here").expect("a file").expect("free");
        let who = Lock::take(&host, "you").expect("a file").expect_err("held");
        assert!(who.starts_with("me@here (process ") && who.ends_with("since 0 s ago"), "{who}");
        drop(lock);
        assert_eq!(holder(&host), None);
        Lock::take(&host, "you").expect("a file").expect("free");
    }

    #[test]
    fn what_is_on_trial_is_known_until_it_is_removed() {
        let (_directory, host) = host();
        assert_eq!(Pending::read(&host).expect("none"), None);
        let one = pending(Some("a"), Some("b"));
        one.store(&host).expect("stored");
        assert_eq!(Pending::read(&host).expect("read"), Some(one));
    }
}
