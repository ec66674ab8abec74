//! What a browser keeps of a session, and what is made of it: the key by which the database knows it, and the token that its forms
//! carry. The database has neither the secret nor the token: who reads it cannot come in.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};

/// 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn new() -> Result<Self> {
        let mut bytes = [0; 32];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The one that a cookie has.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// As a cookie has it.
    #[must_use]
    pub fn cookie(&self) -> String {
        hex(&self.0)
    }

    /// By what the database knows the session.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.made_for("session")
    }

    /// What the session's forms carry.
    #[must_use]
    pub fn token(&self) -> String {
        hex(&self.made_for("form"))
    }

    fn made_for(&self, what: &str) -> [u8; 32] {
        Sha256::new().chain_update("left4me ").chain_update(what).chain_update(self.0).finalize().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Fills all of it.
///
/// # Errors
/// getrandom(2)'s.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    // Up to 256 bytes come at once or not at all.
    let wanted = bytes.len();
    let got = getrandom(bytes, GetRandomFlags::empty()).context("getrandom")?;
    ensure!(got == wanted, "getrandom gave {got} bytes");
    Ok(())
}

/// Whether two texts are the same, in a time that does not say where they differ.
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    let differ = |differ: u8, (one, other): (u8, u8)| differ | (one ^ other);
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, differ) == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_key_nor_the_token_says_the_secret() {
        let secret = Secret::new().unwrap();
        assert_eq!(Secret::parse(&secret.cookie()), Some(secret.clone()));
        assert_ne!(Secret::new().unwrap(), secret);
        let all = [secret.cookie(), hex(&secret.key()), secret.token()];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn what_is_no_secret_is_none() {
        let digits = "0".repeat(64);
        assert!(Secret::parse(&digits).is_some());
        for text in
            ["", "0", &digits[1..], &format!("{digits}0"), &"A".repeat(64), &"é".repeat(32), &"+".repeat(64)]
        {
            assert_eq!(Secret::parse(text), None, "{text}");
        }
    }

    #[test]
    fn texts_are_compared_whole() {
        assert!(is_same("", "") && is_same("abc", "abc"));
        assert!(
            !is_same("abc", "abd") && !is_same("abc", "ab") && !is_same("", "a") && !is_same("bbc", "abc")
        );
    }
}
