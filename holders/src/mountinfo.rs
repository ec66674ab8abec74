//! The mount table of a mount namespace: `/proc/PID/mountinfo`, parsed from bytes.
//!
//! Paths are as the process whose file was read sees them, that is, relative to its root directory. The format
//! is proc_pid_mountinfo(5).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::kernel;
pub(crate) use crate::mount::path;
use crate::mount::unescape;
pub use crate::mount::{Device, Mount, Propagation};
use crate::proc;

/// A line that is not mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mountinfo line {line}: no valid {field}")]
pub struct ParseError {
    /// Which line, from 1.
    pub line: usize,
    /// The field that is missing or odd, by its name in proc_pid_mountinfo(5).
    pub field: &'static str,
}

/// Parses a whole table, in its order: a mount comes after the one it lies on.
///
/// # Errors
/// The first line that is not mountinfo. Unknown optional fields are no error: the man page says to skip them.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>, ParseError> {
    lines(table).map(|(number, line)| parse_line(number, line)).collect()
}

/// Parses only the mounts at exactly `mount_point`; the last one covers the others. Much cheaper than
/// [`parse`] for one path in a long table.
///
/// # Errors
/// A line for that path which is not mountinfo; other lines are not looked at.
pub fn parse_at(table: &[u8], mount_point: &Path) -> Result<Vec<Mount>, ParseError> {
    let wanted = mount_point.as_os_str().as_bytes();
    lines(table)
        .filter(|(_, line)| {
            line.split(|&byte| byte == b' ').nth(4).is_some_and(|field| unescape(field) == wanted)
        })
        .map(|(number, line)| parse_line(number, line))
        .collect()
}

/// Reads the mount table of the namespace that process `pid` is in.
///
/// # Errors
/// What reading `/proc/PID/mountinfo` says; `InvalidData` with a [`ParseError`].
pub fn read(pid: u32) -> io::Result<Vec<Mount>> {
    parse(&table(pid)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The mount that is visible at `mount_point` in the namespace of process `pid`, if it is a mount point.
///
/// # Errors
/// As [`read`].
pub fn read_at(pid: u32, mount_point: &Path) -> io::Result<Option<Mount>> {
    let mounts = parse_at(&table(pid)?, mount_point);
    Ok(mounts.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?.pop())
}

/// The table that the task sees whose directory in `/proc` this is.
pub(crate) fn of_task(task: BorrowedFd<'_>) -> io::Result<Vec<Mount>> {
    let mut table = Vec::new();
    proc::read_file(task, c"mountinfo", &mut table)?;
    parse(&table).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The mount that `name` in `directory` is a file of, by statx(2) and `statmount(2)`: id, device and type. All else is left
/// empty, the type is without its subtype, and a link is not followed. Much cheaper than a table, and no file system is
/// asked anything: one that never answers can't hold it up.
///
/// # Errors
/// NOSYS before Linux 6.8, where the table has to be read; NOENT if there is no such name.
pub fn mount_of(directory: impl AsFd, name: &Path) -> Result<Mount, Errno> {
    kernel::mount_of(directory.as_fd(), name)
}

fn table(pid: u32) -> io::Result<Vec<u8>> {
    let path = format!("/proc/{pid}/mountinfo");
    fs::read(&path).map_err(|error| in_context("read", &path, error))
}

/// An I/O error that names its call and path and keeps its kind.
pub(crate) fn in_context(call: &str, path: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {path}: {error}"))
}

fn lines(table: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    table
        .split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.is_empty())
}

fn parse_line(line_number: usize, line: &[u8]) -> Result<Mount, ParseError> {
    let invalid = |field| move || ParseError { line: line_number, field };
    // Exactly one space between fields: a source may be empty, so runs of spaces are not one separator.
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = |field| fields.next().ok_or_else(invalid(field));

    let id = number(next("mount ID")?).ok_or_else(invalid("mount ID"))?;
    let parent = number(next("parent ID")?).ok_or_else(invalid("parent ID"))?;
    let device = device(next("major:minor")?).ok_or_else(invalid("major:minor"))?;
    let root = path(next("root")?);
    let mount_point = path(next("mount point")?);
    let options = text(next("mount options")?);
    let mut propagation = Propagation::default();
    loop {
        match next("separator")? {
            b"-" => break,
            field => propagation.read_field(field).ok_or_else(invalid("optional fields"))?,
        }
    }
    Ok(Mount {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        propagation,
        fstype: text(next("filesystem type")?),
        source: text(next("mount source")?),
        super_options: text(next("super options")?),
    })
}

impl Propagation {
    /// `None` if a known field has no number; an unknown field is skipped.
    fn read_field(&mut self, field: &[u8]) -> Option<()> {
        if field == b"unbindable" {
            self.unbindable = true;
        } else if let Some(group) = field.strip_prefix(b"shared:") {
            self.shared = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            self.master = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"propagate_from:") {
            self.propagate_from = Some(number(group)?);
        }
        Some(())
    }
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<Device> {
    let colon = field.iter().position(|&byte| byte == b':')?;
    Some(Device { major: number(&field[..colon])?, minor: number(&field[colon + 1..])? })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OVERLAY: &str = "61 29 0:42 / /var/lib/left4me/runtime/3/merged rw,nosuid,nodev,relatime shared:31 - \
                           overlay overlay rw,lowerdir=/a:/b,upperdir=/u,workdir=/w\n";

    #[test]
    fn the_kernel_says_of_a_file_what_the_table_says_of_its_mount() {
        let root = fs::File::open("/").unwrap();
        for name in ["proc", "proc/self/status", "sys", "usr"] {
            let told = match mount_of(&root, Path::new(name)) {
                Err(Errno::NOSYS) => continue,
                told => told.unwrap(),
            };
            let of_table = read(std::process::id()).unwrap().into_iter().find(|mount| mount.id == told.id);
            let of_table = of_table.unwrap_or_else(|| panic!("{name}: {told:?}"));
            assert_eq!((of_table.device, of_table.parent), (told.device, told.parent), "{name}");
            assert_eq!(of_table.fstype.split('.').next(), Some(&*told.fstype), "{name}");
        }
        let missing = mount_of(&root, Path::new("no/such"));
        assert!(matches!(missing, Err(Errno::NOSYS | Errno::NOENT)), "{missing:?}");
    }

    #[test]
    fn reads_an_overlay() {
        let mounts = parse(OVERLAY.as_bytes()).unwrap();
        let expected = Mount {
            id: 61,
            parent: 29,
            device: Device { major: 0, minor: 42 },
            root: "/".into(),
            mount_point: "/var/lib/left4me/runtime/3/merged".into(),
            options: "rw,nosuid,nodev,relatime".into(),
            propagation: Propagation { shared: Some(31), ..Propagation::default() },
            fstype: "overlay".into(),
            source: "overlay".into(),
            super_options: "rw,lowerdir=/a:/b,upperdir=/u,workdir=/w".into(),
        };
        assert_eq!(mounts, [expected]);
    }

    #[test]
    fn reads_every_kind_of_propagation() {
        let cases = [
            ("", Propagation::default()),
            ("shared:1 ", Propagation { shared: Some(1), ..Propagation::default() }),
            (
                "shared:1 master:2 ",
                Propagation { shared: Some(1), master: Some(2), ..Propagation::default() },
            ),
            (
                "master:2 propagate_from:3 ",
                Propagation { master: Some(2), propagate_from: Some(3), ..Propagation::default() },
            ),
            ("unbindable ", Propagation { unbindable: true, ..Propagation::default() }),
            ("of-a-later-kernel:9 shared:1 ", Propagation { shared: Some(1), ..Propagation::default() }),
        ];
        for (optional, expected) in cases {
            let line = format!("1 0 8:1 / /mnt rw {optional}- ext4 /dev/sda1 rw");
            assert_eq!(parse(line.as_bytes()).unwrap()[0].propagation, expected, "{line}");
        }
    }

    #[test]
    fn undoes_the_kernels_escapes() {
        let cases: [(&str, &[u8]); 8] = [
            (r"/a\040b", b"/a b"),
            (r"/a\011b\012c", b"/a\tb\nc"),
            (r"/a\134b", br"/a\b"),
            (r"/a\043", b"/a#"),
            (r"/a\134040", br"/a\040"),
            (r"/a\04", br"/a\04"),
            (r"/a\999", br"/a\999"),
            ("/a\\", b"/a\\"),
        ];
        for (escaped, plain) in cases {
            assert_eq!(&*unescape(escaped.as_bytes()), plain, "{escaped}");
        }
    }

    #[test]
    fn takes_odd_lines() {
        // An empty source, a path that is not UTF-8, a mount point that was deleted, no newline at the end.
        let mounts = parse(b"1 1 0:5 / /m rw - fuse  rw\n2 1 0:6 / /\xff rw - tmpfs none rw\n\n3 1 0:7 / /d//deleted rw - tmpfs t rw").unwrap();
        assert_eq!(mounts[0].source, "");
        assert_eq!(mounts[0].super_options, "rw");
        assert_eq!(mounts[1].mount_point.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(mounts[2].mount_point, Path::new("/d//deleted"));
    }

    #[test]
    fn names_the_field_that_is_odd() {
        let cases = [
            ("x 1 0:5 / /m rw - t s rw", "mount ID"),
            ("1", "parent ID"),
            ("1 1 05 / /m rw - t s rw", "major:minor"),
            ("1 1 0:5 / /m", "mount options"),
            ("1 1 0:5 / /m rw shared:1", "separator"),
            ("1 1 0:5 / /m rw shared:x - t s rw", "optional fields"),
            ("1 1 0:5 / /m rw - t", "mount source"),
            ("1 1 0:5 / /m rw - t s", "super options"),
        ];
        for (line, field) in cases {
            let table = format!("{OVERLAY}{line}\n");
            assert_eq!(parse(table.as_bytes()).unwrap_err(), ParseError { line: 2, field }, "{line}");
        }
    }

    #[test]
    fn the_last_mount_at_a_path_is_the_visible_one() {
        let table = b"1 1 0:5 / /a\\040b rw - t one rw\nnonsense\n2 1 0:6 / /a\\040b rw - t two rw\n3 1 0:7 / /a rw - t three rw\n";
        let sources: Vec<_> =
            parse_at(table, Path::new("/a b")).unwrap().into_iter().map(|m| m.source).collect();
        assert_eq!(sources, ["one", "two"]);
        assert_eq!(parse_at(table, Path::new("/b")).unwrap(), []);
    }

    #[test]
    fn reads_this_machines_table() {
        let mounts = read(std::process::id()).unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_point == Path::new("/proc")), "{mounts:?}");
        assert_eq!(read_at(std::process::id(), Path::new("/proc")).unwrap().unwrap().fstype, "proc");
    }

    /// As the kernel writes a text (`fs/proc_namespace.c:mangle`, `show_mnt_opts`, `fs/seq_file.c:seq_escape`).
    fn mangled(text: &str) -> String {
        text.chars()
            .map(|one| match one {
                ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(one)),
                one => one.to_string(),
            })
            .collect()
    }

    prop_compose! {
        fn mounts()(
            ids in any::<[u32; 4]>(),
            groups in any::<[Option<u32>; 3]>(),
            unbindable: bool,
            texts in proptest::collection::vec("[a-z0-9 \t\n\\\\#,:=é-]{0,6}", 6),
        ) -> Mount {
            let [id, parent, major, minor] = ids;
            let [shared, master, propagate_from] = groups.map(|group| group.map(u64::from));
            let text = |index: usize| texts[index].clone();
            Mount {
                id: id.into(),
                parent: parent.into(),
                device: Device { major, minor },
                root: format!("/{}", text(0)).into(),
                mount_point: format!("/{}", text(1)).into(),
                options: text(2),
                propagation: Propagation { shared, master, propagate_from, unbindable },
                fstype: text(3),
                source: text(4),
                super_options: text(5),
            }
        }
    }

    fn line(mount: &Mount) -> String {
        let Mount { id, parent, device, options, fstype, source, super_options, .. } = mount;
        let path = |path: &Path| mangled(path.to_str().unwrap());
        let group = |name: &str, group: Option<u64>| {
            group.map(|group| format!("{name}:{group} ")).unwrap_or_default()
        };
        let Propagation { shared, master, propagate_from, unbindable } = mount.propagation;
        format!(
            "{id} {parent} {device} {} {} {} {}{}{}{}new:7 - {} {} {}\n",
            path(&mount.root),
            path(&mount.mount_point),
            mangled(options),
            group("shared", shared),
            group("master", master),
            group("propagate_from", propagate_from),
            if unbindable { "unbindable " } else { "" },
            mangled(fstype),
            mangled(source),
            mangled(super_options),
        )
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read_back(mounts in proptest::collection::vec(mounts(), 0..5)) {
            let table: String = mounts.iter().map(line).collect();
            prop_assert_eq!(parse(table.as_bytes()).unwrap(), mounts.clone(), "{}", table);
            for mount in &mounts {
                let at: Vec<_> = mounts.iter().filter(|other| other.mount_point == mount.mount_point).cloned().collect();
                prop_assert_eq!(parse_at(table.as_bytes(), &mount.mount_point).unwrap(), at);
            }
        }

        #[test]
        fn never_panics(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(parse(&table));
            drop(parse_at(&table, Path::new("/")));
        }

        #[test]
        fn never_panics_on_what_looks_like_it(table in r"([0-9]{1,25} ){0,3}([0-9]{0,11}:[0-9]{0,11} )?([/a\\0-7:-]{0,9} ){0,8}") {
            drop(parse(table.as_bytes()));
        }
    }
}
