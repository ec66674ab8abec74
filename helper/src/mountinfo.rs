//! The mount table of a namespace, `/proc/PID/mountinfo`, and the questions asked of it.
//!
//! The table is read, never the mount: a stat or an open inside `merged` while it is being unmounted takes a
//! reference there and can itself be what makes it busy.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::HelperError;

/// One line of a mount table, as far as it is needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id in this mount namespace. The kernel gives it out again once the mount is gone.
    pub id: u64,
    /// Where it is mounted, seen from the root of the process whose table it is.
    pub mount_point: PathBuf,
    /// The type of the file system, `overlay`.
    pub fs_type: String,
}

/// A line that does not have the form of proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    line: usize,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} is not a mountinfo line", self.line)
    }
}

impl std::error::Error for ParseError {}

/// Reads a mount table.
///
/// # Errors
/// The file cannot be read, or a line is not understood: what cannot be read could be the mount in question.
pub fn read(path: &Path) -> Result<Vec<Mount>, HelperError> {
    // Room for a usual table at once: the kernel goes through it anew for every read that is too short.
    let mut table = Vec::with_capacity(32 * 1024);
    fs::File::open(path).and_then(|mut file| file.read_to_end(&mut table)).map_err(|error| {
        HelperError::Call {
            call: "read",
            path: path.to_owned(),
            source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }
    })?;
    parse(&table).map_err(|source| HelperError::Mountinfo { path: path.to_owned(), source })
}

/// Parses a mount table. It is bytes: a mountpoint need not be UTF-8.
///
/// # Errors
/// The first line without the ten fields that are always there.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>, ParseError> {
    table
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| parse_line(line).ok_or(ParseError { line: index + 1 }))
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 - ext3 /dev/root rw`: the first is the id, the fifth the mountpoint; any number
/// of optional fields follows the sixth, up to a single dash.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let mount_point = unescape(fields.nth(3)?);
    fields.next()?;
    fields.by_ref().find(|&field| field == b"-")?;
    let fs_type = String::from_utf8(unescape(fields.next()?)).ok()?;
    fields.next()?;
    Some(Mount { id, mount_point: OsString::from_vec(mount_point).into(), fs_type })
}

/// Undoes the `\040` that fs/seq_file.c:mangle_path puts for a space, a tab, a newline, a backslash and a `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, next) = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                ((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'), after)
            }
            _ => (first, tail),
        };
        plain.push(byte);
        rest = next;
    }
    plain
}

/// The mounts exactly at `path`, the topmost last.
#[must_use]
pub fn at<'a>(mounts: &'a [Mount], path: &Path) -> Vec<&'a Mount> {
    mounts.iter().filter(|mount| mount.mount_point == path).collect()
}

/// The mountpoints at or below `path`.
#[must_use]
pub fn at_or_below(mounts: &[Mount], path: &Path) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|mount| mount.mount_point.starts_with(path))
        .map(|mount| mount.mount_point.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
90 22 0:40 / /var/lib/left4me/runtime/3/merged rw,nosuid,nodev shared:40 master:2 - overlay overlay rw,lowerdir=/a:/b
91 90 0:41 / /var/lib/left4me/runtime/3/merged/a\\040b\\134c rw - tmpfs tmpfs rw
92 22 0:42 / /var/lib/left4me/runtime/30/merged rw - overlay overlay rw
";

    #[test]
    fn finds_what_is_mounted() {
        let mounts = parse(TABLE.as_bytes()).unwrap();
        let merged = at(&mounts, Path::new("/var/lib/left4me/runtime/3/merged"));
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].id, merged[0].fs_type.as_str()), (90, "overlay"));
        let below = at_or_below(&mounts, Path::new("/var/lib/left4me/runtime/3"));
        let expected = ["/var/lib/left4me/runtime/3/merged", "/var/lib/left4me/runtime/3/merged/a b\\c"]
            .map(PathBuf::from);
        assert_eq!(below, expected, "instance 30 is not below 3");
    }

    #[test]
    fn a_line_that_is_not_one_is_an_error() {
        for (table, line) in [
            ("x", 1),
            ("1 2 3 4 /m rw - overlay", 1),
            ("x 2 3 4 /m rw - overlay o rw", 1),
            ("1 2 3 4 /m rw overlay x", 1),
        ] {
            assert_eq!(parse(table.as_bytes()), Err(ParseError { line }), "{table}");
        }
        assert_eq!(parse(format!("{TABLE}1 2").as_bytes()), Err(ParseError { line: 5 }));
        assert_eq!(parse(b""), Ok(vec![]));
    }

    #[test]
    fn reads_its_own() {
        let mounts = read(Path::new("/proc/self/mountinfo")).unwrap();
        assert!(!at(&mounts, Path::new("/")).is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(table in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(parse(&table));
        }

        #[test]
        fn never_panics_near_the_form(table in "([0-9]{1,2} ){2}0:1 / /[a-z\\\\0-9]{0,8} rw (x )?- [a-z\\\\0-7]{0,5} s rw\n?") {
            drop(parse(table.as_bytes()));
        }

        #[test]
        fn escapes_round_trip(name in prop::collection::vec(1u8.., 0..20)) {
            let escaped: Vec<u8> = name.iter().flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                _ => vec![byte],
            }).collect();
            prop_assert_eq!(unescape(&escaped), name);
        }
    }
}
