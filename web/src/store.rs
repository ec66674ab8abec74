//! The database (SQLite), and the jobs in it: a row for each, kept over restarts of the page. That an instance has one open job at
//! a time is an index. `users.rs` has the users and their sessions.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use left4me_broker::jobs::{Job, State};
use left4me_broker::verbs::{Deed, Ticket};
use left4me_ctl::report::Report;
use left4me_helper::instance::Instance;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, TransactionBehavior, params};

/// How many rows a page shows.
const SHOWN: u32 = 100;

/// What each version of the database added; `user_version` says how many are done.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        ticket TEXT NOT NULL UNIQUE,
        action TEXT NOT NULL,
        instance TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'interrupted')),
        asked_by TEXT NOT NULL,
        queued_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        error TEXT,
        report TEXT
    ) STRICT;
    CREATE UNIQUE INDEX one_at_a_time ON jobs (instance) WHERE state IN ('queued', 'running');
    CREATE INDEX of_an_instance ON jobs (instance, number);
",
    "
    CREATE TABLE users (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL CHECK (role IN ('look', 'operate')),
        password TEXT NOT NULL
    ) STRICT;
    CREATE TABLE sessions (
        key BLOB PRIMARY KEY,
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        begun_ms INTEGER NOT NULL,
        seen_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX of_a_user ON sessions (user);
",
];

const COLUMNS: &str = "number, ticket, action, instance, state, asked_by, \
    strftime('%Y-%m-%d %H:%M:%S', queued_ms / 1000, 'unixepoch') || ' UTC', ended_ms - queued_ms, error, report";

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its number.
    pub number: i64,
    /// By what the broker knows it.
    pub ticket: String,
    /// What it does.
    pub action: String,
    /// To whom.
    pub instance: String,
    /// How far it is: `queued`, `running`, `succeeded`, `failed`, `interrupted`.
    pub state: String,
    /// Who asked for it.
    pub asked_by: String,
    /// When.
    pub queued: String,
    /// From then to its end, milliseconds.
    pub took_ms: Option<i64>,
    /// Why it failed.
    pub error: Option<String>,
    /// How it went.
    pub report: Option<Report>,
}

/// The database.
#[derive(Debug)]
pub struct Store(pub(crate) Connection);

impl Store {
    /// Opens it, and makes it or brings it up to date.
    ///
    /// # Errors
    /// SQLite's own; or it is of a newer version.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        // The page and `left4me-web passwd` may open a new one at once: whoever is second waits, and finds all done. A lock of our
        // own, on the directory, as SQLite's does not wait here: of two that have read a new file's head and want to write `wal`
        // there, one gets SQLITE_BUSY at once. Each has it for the milliseconds that this takes.
        let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let beside = File::open(beside).with_context(|| format!("open {}", beside.display()))?;
        beside.lock().context("wait for another left4me-web that opens the database")?;
        let mut connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = wal; PRAGMA synchronous = full; PRAGMA foreign_keys = on;",
        )?;
        let steps = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done: i64 = steps.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        anyhow::ensure!(
            done <= MIGRATIONS.len(),
            "{} is of version {done}, and this program knows {}: a newer left4me-web wrote it",
            path.display(),
            MIGRATIONS.len()
        );
        for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
            steps.execute_batch(migration)?;
            steps.execute_batch(&format!("PRAGMA user_version = {}", index + 1))?;
        }
        steps.commit()?;
        Ok(Self(connection))
    }

    /// Queues a job: its number. Or the one in its way.
    ///
    /// # Errors
    /// SQLite's.
    pub fn queue(
        &self,
        deed: Deed,
        instance: &Instance,
        ticket: &Ticket,
        asked_by: &str,
        now_ms: i64,
    ) -> Result<std::result::Result<i64, Line>> {
        let text = "INSERT INTO jobs (ticket, action, instance, state, asked_by, queued_ms) \
                    VALUES (?1, ?2, ?3, 'queued', ?4, ?5) ON CONFLICT DO NOTHING";
        let row = params![ticket.to_string(), deed.word(), instance.as_str(), asked_by, now_ms];
        if self.0.execute(text, row)? == 1 {
            return Ok(Ok(self.0.last_insert_rowid()));
        }
        let text =
            format!("SELECT {COLUMNS} FROM jobs WHERE instance = ?1 AND state IN ('queued', 'running')");
        Ok(Err(self.0.query_row(&text, [instance.as_str()], line)?))
    }

    /// What the broker says of a job of which no outcome is known here; whether anything is new.
    ///
    /// # Errors
    /// SQLite's.
    pub fn heard(&self, job: &Job) -> Result<bool> {
        let state = match job.state {
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Interrupted => "interrupted",
        };
        let report = job.report.as_ref().and_then(|report| serde_json::to_string(report).ok());
        let error = match job.state {
            State::Interrupted => Some("the broker ended before the job did; systemd went on alone"),
            _ => job.report.as_ref().and_then(|report| report.error.as_deref()),
        };
        // One that was given up here is not, if the broker knows it.
        let text = "UPDATE OR IGNORE jobs SET state = ?2, ended_ms = ?3, error = ?4, report = ?5 \
                    WHERE ticket = ?1 AND state IN ('queued', 'running', 'interrupted') AND state <> ?2";
        let ended = job.ended_ms.and_then(|ended| i64::try_from(ended).ok());
        Ok(self.0.execute(text, params![job.ticket.to_string(), state, ended, error, report])? > 0)
    }

    /// Ends an open job that has no report.
    ///
    /// # Errors
    /// SQLite's.
    pub fn end(&self, ticket: &str, state: &str, error: &str, now_ms: i64) -> Result<()> {
        let text = "UPDATE jobs SET state = ?2, error = ?3, ended_ms = ?4 \
                    WHERE ticket = ?1 AND state IN ('queued', 'running')";
        self.0.execute(text, params![ticket, state, error, now_ms]).map(drop)
    }

    /// The tickets of those that are open.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open_tickets(&self) -> Result<Vec<String>> {
        let mut asked = self.0.prepare("SELECT ticket FROM jobs WHERE state IN ('queued', 'running')")?;
        asked.query_map([], |row| row.get(0))?.collect()
    }

    /// The last ones, newest first; of one instance, or of all.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last(&self, instance: Option<&Instance>) -> Result<Vec<Line>> {
        let text = format!(
            "SELECT {COLUMNS} FROM jobs WHERE ?1 IS NULL OR instance = ?1 ORDER BY number DESC LIMIT {SHOWN}"
        );
        let mut asked = self.0.prepare(&text)?;
        asked.query_map([instance.map(Instance::as_str)], line)?.collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn job(&self, number: i64) -> Result<Option<Line>> {
        let text = format!("SELECT {COLUMNS} FROM jobs WHERE number = ?1");
        self.0.query_row(&text, [number], line).optional()
    }
}

fn line(row: &Row<'_>) -> Result<Line> {
    let report: Option<String> = row.get(9)?;
    Ok(Line {
        number: row.get(0)?,
        ticket: row.get(1)?,
        action: row.get(2)?,
        instance: row.get(3)?,
        state: row.get(4)?,
        asked_by: row.get(5)?,
        queued: row.get(6)?,
        took_ms: row.get(7)?,
        error: row.get(8)?,
        report: report.and_then(|text| serde_json::from_str(&text).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(number: u64) -> Ticket {
        format!("{number:032x}").parse().unwrap()
    }

    #[test]
    fn one_open_job_for_an_instance_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.sqlite");
        let (three, four) = ("3".parse().unwrap(), "4".parse().unwrap());
        let store = Store::open(&path).unwrap();
        let first = store.queue(Deed::Reset, &three, &ticket(1), "uid 0", 1_000).unwrap().unwrap();
        assert!(store.queue(Deed::Reset, &four, &ticket(2), "uid 0", 1_000).unwrap().is_ok());
        drop(store);
        let store = Store::open(&path).unwrap();
        let way = store.queue(Deed::Start, &three, &ticket(3), "uid 0", 1_001).unwrap().unwrap_err();
        assert_eq!((way.number, way.action.as_str(), way.state.as_str()), (first, "reset", "queued"));
        assert_eq!(way.queued, "1970-01-01 00:00:01 UTC");
        store.end(&ticket(1).to_string(), "interrupted", "nobody knows it", 2_500).unwrap();
        let ended = store.job(first).unwrap().unwrap();
        assert_eq!((ended.state.as_str(), ended.took_ms), ("interrupted", Some(1_500)));
        assert!(store.queue(Deed::Start, &three, &ticket(3), "uid 0", 1_001).unwrap().is_ok());
        // What was given up is mended by who knows; two open ones there are not for it, and no outcome is changed.
        let heard = |state, instance: u64| {
            let (ticket, instance) = (ticket(instance), "3".into());
            let (action, begun_ms) = (Deed::Reset, 0);
            Job { ticket, action, instance, state, begun_ms, ended_ms: Some(3_000), report: None }
        };
        assert!(!store.heard(&heard(State::Running, 1)).unwrap());
        assert!(store.heard(&heard(State::Succeeded, 1)).unwrap());
        assert!(!store.heard(&heard(State::Failed, 1)).unwrap());
        assert_eq!(store.job(first).unwrap().unwrap().state, "succeeded");
        assert_eq!(store.last(Some(&three)).unwrap().len(), 2);
        assert_eq!(store.last(None).unwrap().len(), 3);
    }

    #[test]
    fn who_opens_a_new_one_at_once_waits() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("jobs.sqlite");
            std::thread::scope(|scope| {
                let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| Store::open(&path).map(drop))).collect();
                for opened in opened {
                    opened.join().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.sqlite");
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("of version 99, and this program knows 2"), "{error}");
    }
}
