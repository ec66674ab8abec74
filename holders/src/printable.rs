//! Names and paths as they can be printed: whoever may make a file, a process or a mount chooses what it is called.

use std::ffi::OsStr;
use std::path::Path;

/// A name that its owner can choose, without anything that a terminal or a log would obey, and without what is not seen
/// or turns the direction of what is: characters that change the look of others are escaped, too.
pub(crate) fn printable(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            // Names of units have backslashes, and are to be copied as they are.
            '\'' | '"' | '\\' => text.push(character),
            other => text.extend(other.escape_debug()),
        }
    }
    text
}

/// A path as it can be printed: who may make a file names it, and a name may hold anything but a slash and a NUL.
#[must_use]
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// A name or a path as one word of a command that somebody pastes into a shell, often root's: in single quotes where anything
/// in it means something to the shell (POSIX, "Shell Command Language", 2.2). Any user may make a control group, or a FUSE mount, that
/// is called `$(reboot)`. What can't be printed is escaped as by [`shown`]: the word names nothing then.
#[must_use]
pub fn pasted(name: impl AsRef<OsStr>) -> String {
    let text = printable(&name.as_ref().to_string_lossy());
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-:@%+=,".contains(character);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_word_is_one_word_and_runs_nothing() {
        for (name, word) in [
            ("left4me-server@3.service", "left4me-server@3.service"),
            ("/srv/a b", "'/srv/a b'"),
            ("", "''"),
            ("a$(reboot);`b`.service", "'a$(reboot);`b`.service'"),
            ("it's", r"'it'\''s'"),
            (r"dev-disk-by\x2duuid.swap", r"'dev-disk-by\x2duuid.swap'"),
            ("a\nb", r"'a\nb'"),
        ] {
            assert_eq!(pasted(name), word);
        }
    }

    #[test]
    fn names_are_printable() {
        assert_eq!(printable("a b'é\"(sd-pam)"), "a b'é\"(sd-pam)");
        assert_eq!(printable("x\u{1b}[2J\n\u{9b}"), "x\\u{1b}[2J\\n\\u{9b}");
        assert_eq!(
            printable("a\u{202e}b\u{2028}c\u{200b}é日\\x2d"),
            "a\\u{202e}b\\u{2028}c\\u{200b}é日\\x2d"
        );
        assert_eq!(shown(Path::new("/srv/a b/c\nd")), "/srv/a b/c\\nd");
    }
}
