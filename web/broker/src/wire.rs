//! Varlink on the wire: JSON objects, each followed by a NUL (<https://varlink.org/Method-Call>). Reads no more than a call may
//! have; knows nothing of the verbs.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most that a call may have, bytes: the longest verb with its name and its ticket has less than a tenth of that.
pub const MOST: u64 = 4096;

/// A call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The interface and the method.
    pub method: String,
    /// What it is called with.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Whether the caller wants more than one reply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// Whether it wants none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// Whether it wants to speak another protocol afterwards.
    #[serde(default, skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

/// A reply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// What it says.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Whether another one follows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continues: bool,
    /// The error's name, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(is: &bool) -> bool {
    !is
}

/// The next message, without its NUL; none at the end.
///
/// # Errors
/// It cannot be read, is longer than `most`, or has no end.
pub fn read(from: &mut impl BufRead, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    from.by_ref().take(most).read_until(0, &mut bytes)?;
    match bytes.pop() {
        None => Ok(None),
        Some(0) => Ok(Some(bytes)),
        Some(_) => {
            let what = format!("a message without an end in {} bytes", bytes.len() + 1);
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

/// Writes a message, with its NUL, at once.
///
/// # Errors
/// It cannot be written.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    to.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_one_by_one_and_no_more_than_may_be() {
        let mut bytes = &b"{}\0{\"a\":1}\0"[..];
        assert_eq!(read(&mut bytes, 16).unwrap(), Some(b"{}".to_vec()));
        assert_eq!(read(&mut bytes, 16).unwrap(), Some(b"{\"a\":1}".to_vec()));
        assert_eq!(read(&mut bytes, 16).unwrap(), None);
        let error = read(&mut &b"{}"[..], 16).unwrap_err().to_string();
        assert_eq!(error, "a message without an end in 2 bytes");
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert_eq!(read(&mut endless, 100).unwrap_err().to_string(), "a message without an end in 100 bytes");
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Reply::default()).unwrap();
        assert_eq!(bytes, b"{\"parameters\":{}}\0");
    }
}
