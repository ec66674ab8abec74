//! An entry with fields in systemd's journal, so that a failure can be found by a search.
//!
//! The native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram to the journal's socket, `KEY=value` and a
//! newline for each field, or, where the value holds a newline, `KEY`, a newline, the length as 64 bits little-endian,
//! the value and a newline. `journalctl MESSAGE_ID=660d6fc1683c4fb593d964a0d89fd1f4` finds every busy unmount;
//! `journalctl -o json` shows the fields.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::error::HelperError;
use crate::instance::Instance;

/// The MESSAGE_ID of an unmount that was refused as busy.
pub const BUSY_MESSAGE_ID: &str = "660d6fc1683c4fb593d964a0d89fd1f4";

/// The journal's socket.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How many holders get fields of their own. The datagram has to fit in a socket buffer.
const MAX_HOLDERS: usize = 64;

/// Writes an entry with fields for an error that has any to tell, if what this process prints would go to the journal
/// anyway. `false` if it did not, so that the caller prints `message`.
#[must_use]
pub fn report(error: &HelperError, message: &str, instance: &Instance) -> bool {
    let HelperError::Busy { path, verdict } = error else { return false };
    let mut fields = vec![
        ("MESSAGE", message.to_owned()),
        ("MESSAGE_ID", BUSY_MESSAGE_ID.to_owned()),
        ("PRIORITY", "3".to_owned()),
        ("SYSLOG_IDENTIFIER", "left4me-overlay".to_owned()),
        ("ERRNO", "16".to_owned()),
        ("LEFT4ME_INSTANCE", instance.to_string()),
        ("LEFT4ME_UNIT", instance.unit()),
        ("LEFT4ME_MOUNT", path.display().to_string()),
        ("LEFT4ME_VERDICT", verdict.word().to_owned()),
        ("LEFT4ME_HOLDERS", verdict.blockers().len().to_string()),
    ];
    for holder in verdict.blockers().iter().take(MAX_HOLDERS) {
        fields.push(("LEFT4ME_HOLDER", holder.to_string()));
        fields.push(("LEFT4ME_HOLDER_PID", holder.pid.to_string()));
    }
    for below in verdict.below().iter().take(MAX_HOLDERS) {
        fields.push(("LEFT4ME_MOUNT_BELOW", below.display().to_string()));
    }
    for advice in verdict.advice().into_iter().take(MAX_HOLDERS) {
        fields.push(("LEFT4ME_ADVICE", advice));
    }
    let sent = send(Path::new(SOCKET), &encode(&fields));
    sent.is_ok() && stderr_is_the_journal()
}

/// The datagram of an entry.
#[must_use]
pub fn encode(fields: &[(&str, String)]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for (key, value) in fields {
        datagram.extend_from_slice(key.as_bytes());
        if value.contains('\n') {
            datagram.push(b'\n');
            datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            datagram.push(b'=');
        }
        datagram.extend_from_slice(value.as_bytes());
        datagram.push(b'\n');
    }
    datagram
}

/// Sends it without waiting: a journal that is stuck must not hold up an unmount.
fn send(socket: &Path, datagram: &[u8]) -> std::io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to(datagram, socket).map(drop)
}

/// Whether what is printed goes to the journal: systemd says in `$JOURNAL_STREAM` which socket that is, by its device
/// and inode (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    let mut own = String::new();
    write!(own, "{}:{}", stat.st_dev, stat.st_ino).expect("writing to a String cannot fail");
    stream == *own
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The reader's side of the protocol, as journald has it (journal-importer.c).
    fn decode(mut datagram: &[u8]) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|&byte| byte == b'\n')?;
            let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
            let (key, value, rest) = match line.iter().position(|&byte| byte == b'=') {
                Some(equals) => (&line[..equals], &line[equals + 1..], rest),
                None => {
                    let (length, rest) = rest.split_first_chunk::<8>()?;
                    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
                    let (value, rest) = rest.split_at_checked(length)?;
                    (line, value, rest.strip_prefix(b"\n")?)
                }
            };
            fields.push((String::from_utf8(key.to_vec()).ok()?, String::from_utf8(value.to_vec()).ok()?));
            datagram = rest;
        }
        Some(fields)
    }

    proptest! {
        #[test]
        fn no_value_becomes_another_field(values in prop::collection::vec("[a-zé=\n\\x00]{0,12}", 0..5)) {
            let fields: Vec<_> = values.iter().map(|value| ("KEY", value.clone())).collect();
            let decoded = decode(&encode(&fields)).unwrap();
            prop_assert_eq!(decoded, fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn it_is_one_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        send(&socket, b"MESSAGE=x\n").unwrap();
        let mut buffer = [0; 64];
        let length = journal.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"MESSAGE=x\n");
        assert!(send(&directory.path().join("none"), b"x").is_err());
    }
}
