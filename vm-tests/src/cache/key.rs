//! The hash of everything that an entry depends on, which is its name.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// The hash of everything that an entry depends on, being collected.
///
/// Each input goes in with its name and its length, so that no two lists of inputs give the same bytes.
#[derive(Clone)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Starts with what kind of thing is made, and by which version of the recipe.
    #[must_use]
    pub fn new(kind: &str, recipe: u32) -> Self {
        Self(Sha256::new()).bytes("kind", kind.as_bytes()).bytes("recipe", &recipe.to_le_bytes())
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, value.as_bytes())
    }

    /// Adds a list, order and boundaries included.
    #[must_use]
    pub fn list<T: AsRef<str>>(self, name: &str, values: &[T]) -> Self {
        let this = self.bytes(name, &(values.len() as u64).to_le_bytes());
        values.iter().fold(this, |this, value| this.text("", value.as_ref()))
    }

    /// Adds the contents of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(self, name: &str, path: &Path) -> anyhow::Result<Self> {
        Ok(self.text(name, &hash_file(path)?))
    }

    /// The hash of all that went in.
    #[must_use]
    pub fn key(self) -> Key {
        Key(hex(&self.0.finalize()))
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inputs").field(&self.clone().key()).finish()
    }
}

/// What an entry is named by: a SHA-256 in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits: enough for a directory name.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// The SHA-256 of a file in hex.
///
/// # Errors
/// If it cannot be read.
pub fn hash_file(path: &Path) -> anyhow::Result<String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hash.finalize())),
                n => hash.update(&buffer[..n]),
            }
        }
    };
    read().with_context(|| format!("hash {}", path.display()))
}

/// The SHA-256 of bytes in hex.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
