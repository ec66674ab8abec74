//! How a manifest says that Exec lines and the main process end, and how long each may take.

use std::collections::BTreeMap;
use std::fmt;

use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, de};
use vm_agent::recording::{EXEC_LINES, MAIN};
use vm_agent::wire::Exit;

use super::problem::{instead, meant};

/// What is expected of a service's lines; of one that is left out, nothing.
pub type ExpectedExecs = BTreeMap<ExecLine, ExpectedExec>;

/// A line of a service by its name in systemd.service(5), or its main process: that which systemd takes for the service
/// (`ExecMain*` of its properties).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExecLine(&'static str);

impl ExecLine {
    /// `ExecStopPost=`, of which [`Expect::exec_stop_post`](super::Expect::exec_stop_post) speaks, too.
    pub const STOP_POST: Self = Self("ExecStopPost");

    fn all() -> impl Iterator<Item = &'static str> + Clone {
        EXEC_LINES.into_iter().chain([MAIN])
    }

    /// As a recording has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl<'de> Deserialize<'de> for ExecLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = Self::all().find(|known| *known == name).map(Self);
        known.ok_or_else(|| {
            de::Error::custom(format!("{name}: no such line: {}", instead(&name, Self::all())))
        })
    }
}

/// What is expected of one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpectedExec {
    /// How its last run ends. Left out: in any way.
    pub ended: Option<ExpectedEnd>,
    /// The longest that each run of it may take, in milliseconds of guest time; of the main process the longest that it
    /// may still run once the reset has begun. Left out: as long as it wants.
    pub max_ms: Option<u64>,
}

/// How a process is meant to end: in a manifest an exit status, or the name of a signal as `"SIGTERM"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedExit(pub Exit);

impl From<Exit> for ExpectedExit {
    fn from(exit: Exit) -> Self {
        Self(exit)
    }
}

impl<'de> Deserialize<'de> for ExpectedExit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { more: None })
    }
}

/// How a run ends: in a manifest an exit status, the name of a signal, or `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedEnd {
    /// With this status or by this signal, and in its time.
    Exit(Exit),
    /// systemd ends it, because its time was over.
    Timeout,
}

const TIMEOUT: &str = "timeout";

impl From<Exit> for ExpectedEnd {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

impl<'de> Deserialize<'de> for ExpectedEnd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { more: Some((TIMEOUT, Self::Timeout)) })
    }
}

/// An exit status, the name of a signal, or one word more with what that means.
struct Words<T> {
    more: Option<(&'static str, T)>,
}

impl<T: From<Exit>> de::Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.more {
            Some((word, _)) => write!(f, "an exit status, a signal as \"SIGTERM\", or \"{word}\","),
            None => f.write_str("an exit status, or a signal as \"SIGTERM\","),
        }
    }

    fn visit_i64<E: de::Error>(self, status: i64) -> Result<T, E> {
        match u8::try_from(status) {
            Ok(status) => Ok(Exit::Code(status.into()).into()),
            Err(_) => Err(E::custom(format!("{status}: an exit status is 0 to 255"))),
        }
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<T, E> {
        let more = match self.more {
            Some((word, value)) if word == name => return Ok(value),
            Some((word, _)) => Some(word),
            None => None,
        };
        match name.parse::<Signal>() {
            Ok(signal) => Ok(Exit::Signal(signal as i32).into()),
            Err(_) => Err(E::custom(format!(
                "{name:?}: {}give a signal as \"SIGTERM\", {}or an exit status without quotes",
                meant(name, Signal::iterator().map(Signal::as_str).chain(more)),
                more.map(|word| format!("\"{word}\", ")).unwrap_or_default()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_line_ends_is_a_status_a_signal_or_a_timeout() {
        let parse = |text: &str| toml::from_str::<ExpectedExecs>(text);
        let execs = parse(
            "[ExecStop]\nended = \"timeout\"\nmax_ms = 20\n[main]\nended = \"SIGTERM\"\n[ExecStartPre]\nended = 3",
        );
        let execs = execs.expect("three lines");
        let lines: Vec<_> =
            execs.iter().map(|(line, expected)| (line.name(), expected.ended, expected.max_ms)).collect();
        let exit = |exit| Some(ExpectedEnd::Exit(exit));
        assert_eq!(
            lines,
            [
                ("ExecStartPre", exit(Exit::Code(3)), None),
                ("ExecStop", Some(ExpectedEnd::Timeout), Some(20)),
                ("main", exit(Exit::Signal(15)), None),
            ]
        );
        for (text, words) in [
            (
                "[ExecStop]\nended = \"SIGNOT\"",
                "give a signal as \"SIGTERM\", \"timeout\", or an exit status",
            ),
            ("[ExecStop]\nended = 256", "an exit status is 0 to 255"),
            ("[ExecStop]\nended = true", "a signal as \"SIGTERM\", or \"timeout\""),
            ("[ExecStpo]\nended = 0", "did you mean ExecStop?"),
            ("[ExecStop]\nlongest = 0", "max_ms"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }

    #[test]
    fn how_exec_stop_post_ends_is_a_status_or_a_signal() {
        #[derive(Debug, Deserialize)]
        struct Ends {
            ended: ExpectedExit,
        }
        let parse = |value: &str| toml::from_str::<Ends>(&format!("ended = {value}")).map(|it| it.ended.0);
        assert_eq!(parse("32"), Ok(Exit::Code(32)));
        assert_eq!(parse("\"SIGKILL\""), Ok(Exit::Signal(9)));
        for (value, words) in [
            ("\"SIGNOT\"", "give a signal as \"SIGTERM\", or an exit status without quotes"),
            ("\"SIGTRM\"", "did you mean SIGTERM? give a signal"),
            ("\"timeout\"", "\"timeout\": give a signal as \"SIGTERM\", or an exit status without quotes"),
            ("-1", "-1: an exit status is 0 to 255"),
            ("[]", "expected an exit status, or a signal as \"SIGTERM\","),
        ] {
            let error = parse(value).expect_err(value).to_string();
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }
}
