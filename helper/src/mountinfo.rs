//! The questions that are asked of a mount table, `/proc/PID/mountinfo`; the `holders` library parses it.
//!
//! The table is read, never the mount: a stat or an open inside `merged` while it is being unmounted takes a
//! reference there and can itself be what makes it busy.

use std::path::{Path, PathBuf};

pub use holders::mountinfo::Mount;
use holders::mountinfo::{ParseError, parse, parse_at};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::HelperError;

/// Reads the mounts exactly at `mount_point` from a mount table, the topmost last. Only their lines are parsed.
///
/// # Errors
/// The file cannot be read, or one of these lines is not understood.
pub fn at(table: &Path, mount_point: &Path) -> Result<Vec<Mount>, HelperError> {
    let text = read(table)?;
    parse_at(&text, mount_point).map_err(not_understood(table))
}

/// Reads the mount points at or below `path` from a mount table.
///
/// # Errors
/// The file cannot be read, or any line is not understood: that could be the mount in question.
pub fn at_or_below(table: &Path, paths: &[&Path]) -> Result<Vec<PathBuf>, HelperError> {
    let mounts = parse(&read(table)?).map_err(not_understood(table))?;
    Ok(below(&mounts, paths))
}

/// The mount points at or below one of `paths`.
#[must_use]
pub fn below(mounts: &[Mount], paths: &[&Path]) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|mount| paths.iter().any(|path| mount.mount_point.starts_with(path)))
        .map(|mount| mount.mount_point.clone())
        .collect()
}

fn read(table: &Path) -> Result<Vec<u8>, HelperError> {
    // Room for a usual table at once: the kernel goes through it anew for every read that is too short.
    const ROOM: usize = 32 * 1024;
    let mut text = Vec::with_capacity(ROOM);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(table, flags, Mode::empty()).map_err(HelperError::call("open", table))?;
    loop {
        text.reserve(ROOM / 2);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => return Ok(text),
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(HelperError::call("read", table)(source)),
        }
    }
}

fn not_understood(table: &Path) -> impl FnOnce(ParseError) -> HelperError {
    move |source| HelperError::Mountinfo { path: table.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("mountinfo");
        fs::write(&table, TABLE).unwrap();
        let merged = at(&table, Path::new("/var/lib/left4me/runtime/3/merged")).unwrap();
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].id, merged[0].fstype.as_str()), (90, "overlay"));
        let found = at_or_below(&table, &[Path::new("/var/lib/left4me/runtime/3")]).unwrap();
        let expected = ["/var/lib/left4me/runtime/3/merged", "/var/lib/left4me/runtime/3/merged/a b\\c"]
            .map(PathBuf::from);
        assert_eq!(found, expected, "instance 30 is not below 3");
        // What can't be read could be what is asked about.
        fs::write(&table, format!("{TABLE}1 2")).unwrap();
        let refused = at_or_below(&table, &[Path::new("/x")]).unwrap_err();
        let HelperError::Mountinfo { source, .. } = &refused else { panic!("{refused}") };
        assert_eq!(source.line, 5);
    }

    #[test]
    fn reads_its_own() {
        assert!(!at(Path::new("/proc/self/mountinfo"), Path::new("/")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_below_is_there_and_no_namesake(
            points in prop::collection::vec("(/(a|b|ab|a b)){1,4}", 0..8), asked in prop::collection::vec("(/(a|b|ab)){1,2}", 0..3)
        ) {
            let line = |point: &String| format!("1 1 0:5 / {} rw - t s rw\n", point.replace(' ', "\\040"));
            let mounts = parse(points.iter().map(line).collect::<String>().as_bytes()).unwrap();
            let asked: Vec<_> = asked.iter().map(Path::new).collect();
            let is_below = |point: &&String| {
                asked.iter().any(|path| {
                    let rest = point.strip_prefix(path.to_str().unwrap());
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
            };
            let expected: Vec<_> = points.iter().filter(is_below).map(PathBuf::from).collect();
            prop_assert_eq!(below(&mounts, &asked), expected);
        }
    }
}
