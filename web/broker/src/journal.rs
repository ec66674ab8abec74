//! What a server's units said last, of the journal: so many lines of at most such a length, by `journalctl`, which knows who may speak
//! for a unit. It is the one program that the broker starts, with arguments of its own but for the checked name.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holders::shown;
use left4me_helper::instance::Instance;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How many lines.
const LINES: usize = 40;

/// The longest line, characters.
const LONGEST_LINE: usize = 400;

/// The most that is read of the program, bytes. It leaves out what is longer than 4096 bytes in a field.
const MOST: usize = 512 << 10;

/// How long it may take: with a large journal on a slow disk, seconds.
const LONGEST: Duration = Duration::from_secs(5);

/// Where it is: Debian, NixOS.
const PROGRAMS: [&str; 2] = ["/usr/bin/journalctl", "/run/current-system/sw/bin/journalctl"];

/// What was said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The last lines, oldest first.
    pub lines: Vec<Line>,
    /// Why that is not all; none if it is.
    pub error: Option<String>,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Who.
    pub from: String,
    /// How bad it is, as syslog(3) has it: 3 and less is an error.
    pub priority: u8,
    /// What.
    pub text: String,
}

/// The last lines of an instance's two units.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one program of the broker's, and it is ended and waited for below"
)]
pub fn tail(instance: &Instance) -> Journal {
    let Some(program) = PROGRAMS.iter().find(|program| Path::new(program).exists()) else {
        let error = Some(format!("there is no {}", PROGRAMS.join(" and no ")));
        return Journal { lines: Vec::new(), error };
    };
    let mut command = Command::new(program);
    command.args(["--output=json", "--quiet", "--no-pager", "--lines", &LINES.to_string()]);
    command.args(["--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM"]);
    command.args(["--unit", &instance.unit(), "--unit", &instance.overlay_unit()]);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    match output(command) {
        Ok(bytes) => Journal { lines: lines(&bytes), error: None },
        Err(error) => Journal { lines: Vec::new(), error: Some(format!("{program}: {error}")) },
    }
}

/// All that a program says, if it is not too much and it ends well and in time.
fn output(mut command: Command) -> io::Result<Vec<u8>> {
    let mut child = command.spawn()?;
    let said = heard(&mut child);
    if said.is_err() {
        // It may have ended by itself meanwhile.
        drop(child.kill());
    }
    let status = child.wait()?;
    let bytes = said?;
    if status.success() { Ok(bytes) } else { Err(io::Error::other(status.to_string())) }
}

fn heard(child: &mut Child) -> io::Result<Vec<u8>> {
    let mut from = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let until = Instant::now() + LONGEST;
    let (mut all, mut some) = (Vec::new(), [0; 8192]);
    loop {
        let left =
            Timespec::try_from(until.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&from.as_fd(), PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no end after {} s", LONGEST.as_secs()),
            ));
        }
        let length = from.read(&mut some)?;
        if length == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&some[..length]);
        if all.len() > MOST {
            return Err(io::Error::other(format!("more than {MOST} bytes")));
        }
    }
}

/// What `journalctl -o json` says (systemd.io/JOURNAL_EXPORT_FORMATS): an object in a line for each entry.
fn lines(bytes: &[u8]) -> Vec<Line> {
    let entry = |bytes: &[u8]| {
        let fields: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
        let number = |name: &str| fields.get(name)?.as_str()?.parse::<u64>().ok();
        let words = |name: &str| fields.get(name).map(text);
        Some(Line {
            at_ms: number("__REALTIME_TIMESTAMP")? / 1000,
            from: words("SYSLOG_IDENTIFIER").or_else(|| words("_COMM")).unwrap_or_default(),
            priority: number("PRIORITY").and_then(|number| number.try_into().ok()).unwrap_or(6),
            text: words("MESSAGE").unwrap_or_default(),
        })
    };
    let mut lines: Vec<_> = bytes.split(|&byte| byte == b'\n').filter_map(entry).collect();
    lines.drain(..lines.len().saturating_sub(LINES));
    lines
}

/// A field: a text, or bytes if it is none; several of that name; or nothing, if it is too long.
fn text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(bytes) if bytes.iter().all(Value::is_u64) => {
            let bytes: Vec<_> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Value::Array(several) => return several.first().map(self::text).unwrap_or_default(),
        _ => "(too long to be shown)".into(),
    };
    let kept: String = text.trim_end().chars().take(LONGEST_LINE).collect();
    let mut shown = shown(Path::new(&kept));
    if text.chars().nth(LONGEST_LINE).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: &str = r#"{"__REALTIME_TIMESTAMP":"1795771037060579","PRIORITY":"3","SYSLOG_IDENTIFIER":"left4me-overlay","MESSAGE":"umount: EBUSY"}"#;

    #[test]
    fn an_entry_is_a_line() {
        let all = lines(format!("{ENTRY}\n{{}}\nx\n").as_bytes());
        let (from, text) = ("left4me-overlay".into(), "umount: EBUSY".into());
        assert_eq!(all, [Line { at_ms: 1_795_771_037_060, from, priority: 3, text }]);
    }

    #[test]
    fn whatever_a_server_says_is_one_line_of_text() {
        let said = |message: &str| {
            let entry = format!(r#"{{"__REALTIME_TIMESTAMP":"1","_COMM":"srcds","MESSAGE":{message}}}"#);
            let line = lines(entry.as_bytes()).remove(0);
            assert_eq!((line.from.as_str(), line.priority), ("srcds", 6));
            line.text
        };
        assert_eq!(said(r#""a\n\u001b[2J\"b\" <i>""#), "a\\n\\u{1b}[2J\"b\" <i>");
        assert_eq!(said("[27,65,255]"), "\\u{1b}A\u{fffd}");
        assert_eq!(said(r#"["one","two"]"#), "one");
        assert_eq!(said("null"), "(too long to be shown)");
        assert_eq!(said(&format!("\"{}\"", "x".repeat(4000))).chars().count(), LONGEST_LINE + 1);
        assert_eq!(lines(format!("{ENTRY}\n").repeat(100).as_bytes()).len(), LINES);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "programs that end at once")]
    fn a_program_without_end_is_ended_and_one_that_fails_says_so() {
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            output(command)
        };
        assert_eq!(run("/bin/echo", &["a"]).unwrap(), b"a\n");
        assert!(run("/bin/cat", &["/dev/zero"]).unwrap_err().to_string().contains("more than"));
        assert!(run("/bin/false", &[]).unwrap_err().to_string().contains("exit status: 1"));
        assert!(run("/bin/none", &[]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_lines(bytes: Vec<u8>, message in "\\PC{0,20}") {
            drop(lines(&bytes));
            let entry = serde_json::json!({ "__REALTIME_TIMESTAMP": "1", "MESSAGE": message });
            prop_assert_eq!(lines(entry.to_string().as_bytes()).len(), 1);
        }
    }
}
