//! Passwords: how they are kept and compared (argon2id), and which ones are taken.

use anyhow::{Context as _, Result, anyhow, ensure};
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};

use crate::secret::random;

/// The least that one may have, characters: there is no second factor.
pub const LEAST: usize = 12;

/// The most, bytes.
pub const MOST: usize = 512;

/// Compared with what is said for a user who is not there: it takes the same time and is never right. Its salt and its hash are of
/// no password.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A password as it is kept: with a salt, and 19 MiB and two passes (the crate's default, which is OWASP's).
///
/// # Errors
/// It is too short, or too long; or there is no memory.
pub fn kept(password: &str) -> Result<String> {
    let characters = password.chars().count();
    ensure!(characters >= LEAST, "a password has at least {LEAST} characters, and this one has {characters}");
    ensure!(
        password.len() <= MOST,
        "a password has at most {MOST} bytes, and this one has {}",
        password.len()
    );
    let mut salt = [0; 16];
    random(&mut salt)?;
    let kept: PasswordHash = Argon2::default()
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map_err(|error| anyhow!("argon2: {error}"))?;
    Ok(kept.to_string())
}

/// Whether it is the one that is kept; without a kept one, whether it takes as long to say no. Takes 19 MiB and tens of
/// milliseconds.
///
/// # Errors
/// What is kept is none.
pub fn is_right(password: &str, kept: Option<&str>) -> Result<bool> {
    let hash = PasswordHash::new(kept.unwrap_or(NOBODY))
        .map_err(|error| anyhow!("{error}"))
        .context("the kept password")?;
    let is_same = Argon2::default().verify_password(password.as_bytes(), &hash).is_ok();
    Ok(is_same && kept.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_password_is_right_and_no_other() {
        let (one, again) = (kept("correct horse").unwrap(), kept("correct horse").unwrap());
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && one != again, "{one}");
        assert!(is_right("correct horse", Some(&one)).unwrap());
        assert!(!is_right("correct horsf", Some(&one)).unwrap());
        assert!(!is_right("", Some(&one)).unwrap());
        // Nobody's is no password's, but it is compared with all the same.
        assert!(PasswordHash::new(NOBODY).is_ok());
        assert!(!is_right("correct horse", None).unwrap());
        assert!(is_right("correct horse", Some("plain")).is_err());
    }

    #[test]
    fn short_ones_and_endless_ones_are_not_taken() {
        assert!(kept("elevencharx").unwrap_err().to_string().contains("at least 12"));
        assert!(kept("zwölf zeichen").is_ok());
        assert!(kept(&"x".repeat(513)).unwrap_err().to_string().contains("at most 512"));
    }
}
