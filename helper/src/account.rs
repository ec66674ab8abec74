//! The server's user and group, read from the user database file.
//!
//! The file and not NSS: the helper is a static binary, and the account is a local one, which systemd-sysusers(8) makes
//! before the overlay is mounted.

use std::fs;

use rustix::io::Errno;

use crate::error::HelperError;

/// The user database.
pub const PASSWD: &str = "/etc/passwd";

/// A user id and its primary group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// The account of `user`.
///
/// # Errors
/// The database cannot be read or has no such user.
pub fn of(user: &str) -> Result<Account, HelperError> {
    // Not read_to_string: a comment field of some other user may be in any encoding.
    let passwd = fs::read(PASSWD).map_err(|error| HelperError::Call {
        call: "read",
        path: PASSWD.into(),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    parse(&String::from_utf8_lossy(&passwd), user)
        .ok_or_else(|| HelperError::NoAccount { path: PASSWD, user: user.to_owned() })
}

/// Finds `user` in the text of a passwd(5) file.
#[must_use]
pub fn parse(passwd: &str, user: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != user {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nleft4me-30:x:1:1::/:\nleft4me-3:x:998:997:L:/:/n\n";
        assert_eq!(parse(passwd, "left4me-3"), Some(Account { uid: 998, gid: 997 }));
        for none in
            ["", "left4me", "left4me:x", "left4me:x:a:1", "left4me:x:1", "#left4me:x:1:1", "x:left4me:1:1"]
        {
            assert_eq!(parse(none, "left4me"), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn an_account_is_a_line_of_its_own(passwd in "((left4me|root|é)?:?[x0-9:]{0,14}\n?){0,4}") {
            let found = parse(&passwd, "left4me");
            let is_of = |line: &str| {
                let fields: Vec<_> = line.split(':').collect();
                found.is_some_and(|Account { uid, gid }| {
                    // A number may be written with zeros or a sign in front.
                    fields.first() == Some(&"left4me")
                        && fields.get(2).and_then(|field| field.parse().ok()) == Some(uid)
                        && fields.get(3).and_then(|field| field.parse().ok()) == Some(gid)
                })
            };
            prop_assert_eq!(found.is_some(), passwd.lines().any(is_of));
        }
    }
}
