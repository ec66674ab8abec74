//! Who did what, in systemd's journal: a line for people, and fields for a search. The page writes who asked, and the broker what it
//! was asked for; the ticket is the same in both. `journalctl MESSAGE_ID=9c2d6e5b0e6f4b0f8d1f6f3a2b7c4e15 -o json` finds all.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use left4me_helper::journal;

/// The MESSAGE_ID of all of them.
pub const MESSAGE_ID: &str = "9c2d6e5b0e6f4b0f8d1f6f3a2b7c4e15";

/// The journal's socket.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Writes one, with `LEFT4ME_` before each field's name. What is not started by systemd says the line alone.
pub fn say(message: &str, fields: &[(&str, String)]) {
    let is_told = stderr_is_the_journal() && send(Path::new(SOCKET), &entry(message, fields)).is_ok();
    if !is_told {
        eprintln!("{message}");
    }
}

fn entry(message: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let identifier = std::env::args_os().next().unwrap_or_default();
    let identifier = Path::new(&identifier).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let named: Vec<_> = fields.iter().map(|(name, _)| format!("LEFT4ME_{name}")).collect();
    let mut all = vec![
        ("MESSAGE", message.to_owned()),
        ("MESSAGE_ID", MESSAGE_ID.to_owned()),
        ("PRIORITY", "5".to_owned()),
        ("SYSLOG_FACILITY", "10".to_owned()),
        ("SYSLOG_IDENTIFIER", identifier),
    ];
    all.extend(named.iter().zip(fields).map(|(name, (_, value))| (name.as_str(), value.clone())));
    journal::encode(&all)
}

/// Without waiting: a journal that is stuck holds up nobody.
fn send(socket: &Path, datagram: &[u8]) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to(datagram, socket).map(drop)
}

/// Whether what is printed goes to the journal: `$JOURNAL_STREAM`, systemd.exec(5).
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    let mut own = String::new();
    write!(own, "{}:{}", stat.st_dev, stat.st_ino).expect("writing to a String cannot fail");
    stream == *own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_line_and_the_fields() {
        let fields = [("USER", "anna".to_owned()), ("VERB", "reset".to_owned()), ("JOB", "164".to_owned())];
        let text = String::from_utf8(entry("anna: reset of 3: job 164", &fields)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for line in [
            "MESSAGE=anna: reset of 3: job 164",
            "LEFT4ME_USER=anna",
            "LEFT4ME_VERB=reset",
            "LEFT4ME_JOB=164",
        ] {
            assert!(lines.contains(&line), "no {line}: {text}");
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("journal");
        let journal = UnixDatagram::bind(&socket).unwrap();
        send(&socket, text.as_bytes()).unwrap();
        let mut bytes = [0; 1024];
        let got = journal.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..got], text.as_bytes());
    }
}
