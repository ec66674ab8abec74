//! `instances/<id>.env`: the variables of a server's command line, as systemd reads them (`EnvironmentFile=`,
//! systemd.exec(5); the states are those of `parse_env_file_internal` in systemd's `src/basic/env-file.c`).

use std::path::{Path, PathBuf};

/// The port of a server whose file names none: `Environment=` of its unit.
pub const DEFAULT_PORT: u16 = 27015;

/// The variable that has the port.
pub const PORT: &str = "L4D2_PORT";

/// The variable that has what else the server is given, split at white space.
pub const ARGUMENTS: &str = "L4D2_ARGS";

/// The file of an instance's variables, beside its own.
#[must_use]
pub fn file(instance_file: &Path) -> PathBuf {
    instance_file.with_extension("env")
}

/// The variables in their order; of two with one name systemd takes the last.
#[must_use]
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        // The name, or a comment, or nothing.
        while rest.next_if(|&one| is_space(one)).is_some() {}
        match rest.peek() {
            None => return found,
            Some('#' | ';') => skip_comment(&mut rest),
            Some(_) => {
                let mut name = String::new();
                while let Some(one) = rest.next_if(|&one| !is_end(one) && one != '=') {
                    name.push(one);
                }
                // A line without `=` is none.
                if rest.next() == Some('=') {
                    found.push((name.trim_end_matches(is_space).to_owned(), value(&mut rest)));
                }
            }
        }
    }
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// A comment goes on in the next line after a `\`.
fn skip_comment(rest: &mut Rest<'_>) {
    while let Some(one) = rest.next() {
        match one {
            '\\' => drop(rest.next()),
            one if is_end(one) => return,
            _ => {}
        }
    }
}

/// A value: quoted parts and others, up to the end of the line.
fn value(rest: &mut Rest<'_>) -> String {
    let mut value = String::new();
    loop {
        // Between the parts.
        while rest.next_if(|&one| is_space(one) && !is_end(one)).is_some() {}
        match rest.next() {
            None => return value,
            Some('\'') => value.extend(rest.by_ref().take_while(|&one| one != '\'')),
            Some('"') => double_quoted(rest, &mut value),
            Some(one) if is_end(one) => return value,
            Some(first) => {
                plain(first, rest, &mut value);
                return value;
            }
        }
    }
}

fn double_quoted(rest: &mut Rest<'_>, value: &mut String) {
    while let Some(one) = rest.next() {
        match one {
            '"' => return,
            '\\' => match rest.next() {
                Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                Some('\n' | '\r') | None => {}
                Some(other) => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
}

/// What no quotes are around, to the end of the line; white space at its end is none of it.
fn plain(first: char, rest: &mut Rest<'_>, value: &mut String) {
    let mut end = value.len();
    let mut next = Some(first);
    while let Some(one) = next {
        match one {
            '\\' => match rest.next() {
                Some('\n' | '\r') | None => {}
                Some(escaped) => {
                    value.push(escaped);
                    end = value.len();
                }
            },
            one if is_end(one) => break,
            one => {
                value.push(one);
                if !is_space(one) {
                    end = value.len();
                }
            }
        }
        next = rest.next();
    }
    value.truncate(end);
}

fn is_space(one: char) -> bool {
    matches!(one, ' ' | '\t' | '\n' | '\r')
}

fn is_end(one: char) -> bool {
    matches!(one, '\n' | '\r')
}

/// A variable as a line that [`parse`] reads back. Without a line break in `value`.
#[must_use]
pub fn line(name: &str, value: &str) -> String {
    let mut quoted = String::new();
    for one in value.chars() {
        if matches!(one, '"' | '\\' | '`' | '$') {
            quoted.push('\\');
        }
        quoted.push(one);
    }
    format!("{name}=\"{quoted}\"\n")
}

/// Why a server's port is not known.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not; a text that is not UTF-8 too.
        source: std::io::Error,
    },
    /// What it says is none.
    #[error("{path}: {PORT} is {value:?}, and a port is a number from 1 to 65535")]
    NoPort {
        /// The file.
        path: PathBuf,
        /// What it says.
        value: String,
    },
}

/// The port that the server with this file of variables has; without a file, or a port in it, [`DEFAULT_PORT`].
///
/// # Errors
/// [`PortError`].
pub fn port_of(path: &Path) -> Result<u16, PortError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DEFAULT_PORT),
        Err(source) => return Err(PortError::Read { path: path.to_owned(), source }),
    };
    match parse(&text).into_iter().rev().find(|(name, _)| name == PORT) {
        None => Ok(DEFAULT_PORT),
        Some((_, value)) => match value.parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(PortError::NoPort { path: path.to_owned(), value }),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_as_systemd_reads_them() {
        for (text, expected) in [
            ("A=1", "1"),
            ("A=1\n", "1"),
            ("  A = 1  \n", "1"),
            ("A=1\nA=2\n", "2"),
            ("# A=1\n;A=1\nA=2", "2"),
            ("# A=1\\\nA=1\nA=2", "2"),
            ("A=\"a b\"", "a b"),
            ("A='a \\b'", "a \\b"),
            ("A=\"a\\\"b\\\\c\\$d\\`e\\fg\"", "a\"b\\c$d`e\\fg"),
            ("A=a\\ b\\", "a b"),
            ("A=a b \\\n c\t\n", "a b  c"),
            ("A=\"a\"'b'c ", "abc"),
            ("A=\"a\" 'b'", "ab"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("A=\"a", "a"),
            ("A=", ""),
            ("A=\r\nB=1", ""),
            ("B\nA=1", "1"),
        ] {
            let parsed = parse(text);
            let found = parsed.iter().rev().find(|(name, _)| name == "A").map(|(_, value)| value.as_str());
            assert_eq!(found, Some(expected), "{text:?}: {parsed:?}");
        }
        for nothing in ["", "\n", "# A=1", "A", "A\n=1"] {
            assert!(!parse(nothing).iter().any(|(name, _)| name == "A"), "{nothing:?}");
        }
    }

    #[test]
    fn ports() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("3.env");
        assert_eq!(port_of(&path).unwrap(), DEFAULT_PORT);
        for (text, expected) in [
            ("", Some(DEFAULT_PORT)),
            ("L4D2_MAP=x", Some(DEFAULT_PORT)),
            ("L4D2_PORT=27016", Some(27016)),
            ("L4D2_PORT=1\nL4D2_PORT='2'", Some(2)),
            ("L4D2_PORT=", None),
            ("L4D2_PORT=0", None),
            ("L4D2_PORT=65536", None),
            ("L4D2_PORT=x", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(port_of(&path).ok(), expected, "{text}");
        }
        assert!(port_of(&path).unwrap_err().to_string().contains("3.env: L4D2_PORT is \"x\""));
        assert!(port_of(directory.path()).unwrap_err().to_string().starts_with("read "));
    }

    #[test]
    fn the_units_port_is_the_default() {
        let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/files/usr/local/lib/systemd/system/");
        let unit = std::fs::read_to_string(format!("{units}left4me-server@.service")).unwrap();
        assert!(unit.contains(&format!(" {PORT}={DEFAULT_PORT} ")), "{unit}");
        assert!(unit.contains(&format!(
            "EnvironmentFile=-{}\n",
            file(Path::new("/var/lib/left4me/instances/%i.toml")).display()
        )));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in "[ -~é\t]{0,20}", name in "[A-Z_]{1,5}") {
            let text = line(&name, &value) + &line("Z9", "1");
            prop_assert_eq!(parse(&text), [(name, value), ("Z9".to_owned(), "1".to_owned())]);
        }

        #[test]
        fn never_panics(text in "[A=\"'\\\\# \n\r$x]{0,30}") {
            drop(parse(&text));
        }
    }
}
