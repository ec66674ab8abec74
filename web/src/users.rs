//! Who may come in, and who is in: users and sessions, in the same database as the jobs.

use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension as _, Result, Row, params};

use crate::secret::Secret;
use crate::store::Store;

/// How long a session lasts without a request, milliseconds. An open page that only listens makes none.
pub const IDLE_MS: i64 = 8 * 3600 * 1000;

/// How long it lasts at all.
pub const WHOLE_MS: i64 = 7 * 24 * 3600 * 1000;

/// How exactly it is noted when a session was seen: a write for each request would be one for nothing.
const SEEN_MS: i64 = 60 * 1000;

/// How many sessions a user has at most; the oldest ends for the next.
const SESSIONS: u32 = 16;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Look at everything.
    Look,
    /// Start, stop and reset, too.
    Operate,
}

impl Role {
    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Operate => "operate",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "look" => Ok(Self::Look),
            "operate" => Ok(Self::Operate),
            _ => anyhow::bail!("{text}: a role is look or operate"),
        }
    }
}

/// A user's name: fit for a log line and a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let is_one = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.bytes().all(|byte| is_one(byte) || b"._-".contains(&byte)) && text.len() <= 32;
        let begins = text.bytes().next().is_some_and(is_one);
        anyhow::ensure!(fits && begins, "{text:?}: a user's name is [a-z0-9][a-z0-9._-]{{0,31}}");
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody who is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Who.
    pub user: String,
    /// What they may do.
    pub role: Role,
    /// What the forms of the session carry.
    pub token: String,
    secret: Secret,
}

impl Store {
    /// Sets a user's password and role, and ends all sessions of theirs.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_user(&mut self, name: &Name, role: Role, kept: &str) -> Result<()> {
        let step = self.0.transaction()?;
        let text = "INSERT INTO users (name, role, password) VALUES (?1, ?2, ?3) \
                    ON CONFLICT (name) DO UPDATE SET role = excluded.role, password = excluded.password";
        step.execute(text, params![name.0, role.word(), kept])?;
        step.execute("DELETE FROM sessions WHERE user = ?1", [&name.0])?;
        step.commit()
    }

    /// Removes a user and all sessions of theirs; whether there was one.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remove_user(&self, name: &Name) -> Result<bool> {
        Ok(self.0.execute("DELETE FROM users WHERE name = ?1", [&name.0])? > 0)
    }

    /// All users, with their roles and how many sessions they have.
    ///
    /// # Errors
    /// SQLite's.
    pub fn users(&self) -> Result<Vec<(String, String, i64)>> {
        let text =
            "SELECT name, role, (SELECT count(*) FROM sessions WHERE user = name) FROM users ORDER BY name";
        let mut asked = self.0.prepare(text)?;
        asked.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
    }

    /// The role of a user.
    ///
    /// # Errors
    /// SQLite's.
    pub fn role(&self, name: &Name) -> Result<Option<Role>> {
        let text = "SELECT role FROM users WHERE name = ?1";
        self.0.query_row(text, [&name.0], |row| role(row, 0)).optional()
    }

    /// The password of a user, as it is kept.
    ///
    /// # Errors
    /// SQLite's.
    pub fn password(&self, name: &Name) -> Result<Option<String>> {
        let text = "SELECT password FROM users WHERE name = ?1";
        self.0.query_row(text, [&name.0], |row| row.get(0)).optional()
    }

    /// Begins a session of a user whose password was `kept` when it was compared: none if it is another one by now.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin_session(&mut self, name: &Name, kept: &str, secret: &Secret, now_ms: i64) -> Result<bool> {
        let step = self.0.transaction()?;
        step.execute(
            "DELETE FROM sessions WHERE seen_ms < ?1 OR begun_ms < ?2",
            [now_ms - IDLE_MS, now_ms - WHOLE_MS],
        )?;
        let text = "INSERT INTO sessions (key, user, begun_ms, seen_ms) \
                    SELECT ?1, name, ?3, ?3 FROM users WHERE name = ?2 AND password = ?4";
        let begun = step.execute(text, params![secret.key(), name.0, now_ms, kept])?;
        let text = "DELETE FROM sessions WHERE user = ?1 AND key NOT IN \
                    (SELECT key FROM sessions WHERE user = ?1 ORDER BY begun_ms DESC, rowid DESC LIMIT ?2)";
        step.execute(text, params![name.0, SESSIONS])?;
        step.commit()?;
        Ok(begun > 0)
    }

    /// The session of a secret, if it has not ended.
    ///
    /// # Errors
    /// SQLite's.
    pub fn session(&self, secret: &Secret, now_ms: i64) -> Result<Option<Session>> {
        let text = "SELECT user, role FROM sessions JOIN users ON name = user \
                    WHERE key = ?1 AND seen_ms >= ?2 AND begun_ms >= ?3";
        let key = params![secret.key(), now_ms - IDLE_MS, now_ms - WHOLE_MS];
        let session = |row: &Row<'_>| {
            let (token, secret) = (secret.token(), secret.clone());
            Ok(Session { user: row.get(0)?, role: role(row, 1)?, token, secret })
        };
        self.0.query_row(text, key, session).optional()
    }

    /// Whether a session goes on as it is.
    ///
    /// # Errors
    /// SQLite's.
    pub fn goes_on(&self, session: &Session, now_ms: i64) -> Result<bool> {
        Ok(self.session(&session.secret, now_ms)?.as_ref() == Some(session))
    }

    /// Notes that a session's user has asked for something.
    ///
    /// # Errors
    /// SQLite's.
    pub fn see_session(&self, session: &Session, now_ms: i64) -> Result<()> {
        let text = "UPDATE sessions SET seen_ms = ?2 WHERE key = ?1 AND seen_ms < ?3";
        self.0.execute(text, params![session.secret.key(), now_ms, now_ms - SEEN_MS]).map(drop)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// SQLite's.
    pub fn end_session(&self, secret: &Secret) -> Result<()> {
        self.0.execute("DELETE FROM sessions WHERE key = ?1", params![secret.key()]).map(drop)
    }
}

impl Session {
    /// One that no database has.
    #[cfg(test)]
    pub(crate) fn of(role: Role) -> Self {
        let secret = Secret::new().unwrap();
        Self { user: "anna".into(), role, token: secret.token(), secret }
    }

    /// What its browser keeps.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

fn role(row: &Row<'_>, column: usize) -> Result<Role> {
    let text: String = row.get(column)?;
    // The table has no other; and if it had, it would be less.
    Ok(text.parse().unwrap_or(Role::Look))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &tempfile::TempDir) -> Store {
        let mut store = Store::open(&directory.path().join("jobs.sqlite")).unwrap();
        store.set_user(&anna(), Role::Operate, "kept").unwrap();
        store
    }

    fn anna() -> Name {
        "anna".parse().unwrap()
    }

    fn begun(store: &mut Store, now_ms: i64) -> Secret {
        let secret = Secret::new().unwrap();
        assert!(store.begin_session(&anna(), "kept", &secret, now_ms).unwrap());
        secret
    }

    #[test]
    fn a_session_ends_when_it_is_idle_and_in_any_case() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(&directory);
        let secret = begun(&mut store, 0);
        let at = |store: &Store, now_ms| store.session(&secret, now_ms).unwrap();
        assert_eq!(at(&store, IDLE_MS).unwrap().role, Role::Operate);
        assert_eq!(at(&store, IDLE_MS + 1), None);
        // Seen often enough, it goes on, but not for ever.
        let session = at(&store, 0).unwrap();
        let mut now_ms = 0;
        while now_ms + IDLE_MS / 2 <= WHOLE_MS {
            now_ms += IDLE_MS / 2;
            assert!(store.goes_on(&session, now_ms).unwrap(), "{now_ms}");
            store.see_session(&session, now_ms).unwrap();
        }
        assert_eq!(at(&store, WHOLE_MS + 1), None);
        // The next one that begins tidies up.
        begun(&mut store, WHOLE_MS + 1);
        assert_eq!(store.users().unwrap(), [("anna".into(), "operate".into(), 1)]);
    }

    #[test]
    fn another_password_another_role_or_no_user_end_all_sessions() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(&directory);
        let secrets = [begun(&mut store, 0), begun(&mut store, 0)];
        store.set_user(&anna(), Role::Look, "other").unwrap();
        for secret in &secrets {
            assert_eq!(store.session(secret, 0).unwrap(), None);
        }
        // One that was compared before is too late.
        assert!(!store.begin_session(&anna(), "kept", &secrets[0], 0).unwrap());
        assert_eq!(store.session(&secrets[0], 0).unwrap(), None);
        assert!(store.begin_session(&anna(), "other", &secrets[0], 0).unwrap());
        assert_eq!(store.session(&secrets[0], 0).unwrap().unwrap().role, Role::Look);
        assert!(store.remove_user(&anna()).unwrap() && !store.remove_user(&anna()).unwrap());
        assert_eq!(store.session(&secrets[0], 0).unwrap(), None);
        assert_eq!(store.users().unwrap(), []);
    }

    #[test]
    fn a_session_that_was_ended_is_no_more_and_so_many_there_are_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(&directory);
        let first = begun(&mut store, 0);
        let all: Vec<_> = (0..i64::from(SESSIONS)).map(|now_ms| begun(&mut store, now_ms)).collect();
        assert_eq!(store.session(&first, 0).unwrap(), None);
        assert!(all.iter().all(|secret| store.session(secret, 0).unwrap().is_some()));
        store.end_session(&all[3]).unwrap();
        assert_eq!(store.session(&all[3], 0).unwrap(), None);
        assert!(store.session(&all[4], 0).unwrap().is_some());
    }

    #[test]
    fn the_database_says_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let secret = begun(&mut store(&directory), 0);
        let cookie = secret.cookie();
        let raw: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&cookie[2 * at..2 * at + 2], 16).unwrap()).collect();
        for file in std::fs::read_dir(directory.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for secret in [cookie.as_bytes(), &raw] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret));
            }
        }
    }

    #[test]
    fn names_are_fit_for_a_line() {
        for name in ["anna", "a", "0", "anna.b-c_d", &"x".repeat(32)] {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
        for name in ["", ".a", "-a", "Anna", "a b", "a\n", "ä", "a<b", &"x".repeat(33)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }
}
