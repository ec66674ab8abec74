//! The command line: what is asked, the help text, and the path that is meant.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use holders::mountinfo::{Device, Mount};
use holders::propagation;

pub(crate) const HELP: &str = "\
holders: who keeps a mount busy, and by what kind of reference

Usage:
  holders [--busy] [--detached] [--device MAJ:MIN] [--json] PATH
  holders --help | --version

PATH is a mount point. The answer is a verdict and what it rests on: for each
task its working directory, root, program, files and mappings on the mount or on
a copy of it in another mount namespace, and whether each makes umount fail,
only keeps the file system alive after it, or does neither. A namespace that
has a copy, and nothing in it, blocks nothing, and is not blamed.

Options:
  --busy            umount has just said EBUSY: if nothing is found, say what
                    can hold a mount without being seen
  --detached        also find references to mounts of the same file system that
                    lie in no namespace: clones, lazily unmounted ones
  --device MAJ:MIN  the file system that was mounted at PATH, as mountinfo had
                    it: find what is left of it after an unmount
  --json            one JSON object instead of text

Examples:
  holders /var/lib/left4me/runtime/3/merged
  umount /mnt || holders --busy /mnt
  holders --json /mnt | jq -r '.holders[].pid'

It resolves no path inside the mount, and so never makes it busy itself. As
another user than root it sees that user's processes only, and says how many it
did not see.

Exit status:
   0  nothing blocks an unmount and nothing outlives it, or PATH is not mounted
      and nothing of it is left
   1  it could not be found out
   2  usage
  32  umount says EBUSY: somebody or something holds the mount
  33  nothing blocks an unmount, but the file system outlives it; or PATH is not
      mounted, but its file system is alive
  34  nobody that may be looked at blocks it; others could not be looked at
";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Diagnose(Diagnose),
}

/// `holders PATH`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Diagnose {
    pub(crate) path: PathBuf,
    pub(crate) is_busy: bool,
    pub(crate) detached: bool,
    pub(crate) device: Option<Device>,
    pub(crate) json: bool,
}

/// Reads the arguments, the program's name first.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_iter(args);
    let mut path = None;
    let (mut is_busy, mut detached, mut device, mut json) = (false, false, None, false);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") | Short('V') => return Ok(Command::Version),
            Long("busy") => is_busy = true,
            Long("detached") => detached = true,
            Long("json") => json = true,
            Long("device") => {
                let text =
                    parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
                device = Some(parse_device(&text)?);
            }
            Value(value) if path.is_none() => path = Some(PathBuf::from(value)),
            Value(extra) => return Err(format!("one path at a time, {} is too much", extra.display())),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let path = path.ok_or("no path: give the mount point")?;
    Ok(Command::Diagnose(Diagnose { path, is_busy, detached, device, json }))
}

fn parse_device(text: &str) -> Result<Device, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(major, minor)| Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? }));
    parsed.ok_or_else(|| format!("--device {text}: expected major:minor as in mountinfo, like 0:42"))
}

/// The path that is meant: absolute, without `.`, `..` and symbolic links.
///
/// A path that is a mount point as it stands is left alone. Otherwise links are followed, but only where that can
/// make no mount busy that could be unmounted: on the root file system, and on mounts that have others on them.
///
/// # Errors
/// A sentence that says what to give instead.
pub(crate) fn resolve(
    given: &Path,
    current: &Path,
    mounts: &[Mount],
    read_link: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<PathBuf, String> {
    let path = lexical(&current.join(given));
    if propagation::visible_at(mounts, &path).is_some() {
        return Ok(path);
    }
    // The kernel's own limit (path_resolution(7)).
    let mut links = 40;
    let mut done = PathBuf::from("/");
    let mut to_do: Vec<OsString> = components(&path);
    while let Some(name) = to_do.pop() {
        let next = done.join(&name);
        let Some((on, is_mount_point)) = propagation::containing(mounts, &next) else { break };
        let may_look = !is_mount_point
            && (mounts[on].mount_point == Path::new("/") || !propagation::submounts(mounts, on).is_empty());
        match may_look.then(|| read_link(&next)).flatten() {
            Some(_) if links == 0 => return Err(format!("{}: too many symbolic links", given.display())),
            Some(target) => {
                links -= 1;
                let target = lexical(&done.join(target));
                done = PathBuf::from("/");
                to_do.extend(components(&target));
            }
            None => done = next,
        }
    }
    Ok(done)
}

/// Without `.`, `..` and doubled slashes, by the text alone.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// The names of a path, the last first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(std::iter::once("holders").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn command_lines() {
        let plain = |path: &str| Diagnose {
            path: path.into(),
            is_busy: false,
            detached: false,
            device: None,
            json: false,
        };
        assert_eq!(parsed(&["/m"]), Ok(Command::Diagnose(plain("/m"))));
        assert_eq!(
            parsed(&["/m", "--json", "--busy", "--detached", "--device", "0:42"]),
            Ok(Command::Diagnose(Diagnose {
                is_busy: true,
                detached: true,
                json: true,
                device: Some(Device { major: 0, minor: 42 }),
                ..plain("/m")
            }))
        );
        assert_eq!(parsed(&["--", "--m"]), Ok(Command::Diagnose(plain("--m"))));
        assert_eq!(parsed(&["-h"]), Ok(Command::Help));
        assert_eq!(parsed(&["/m", "--version"]), Ok(Command::Version));
        for (args, expected) in [
            (&[][..], "no path"),
            (&["/a", "/b"], "/b is too much"),
            (&["--device", "42", "/m"], "expected major:minor"),
            (&["--lazy", "/m"], "invalid option '--lazy'"),
        ] {
            let problem = parsed(args).unwrap_err();
            assert!(problem.contains(expected), "{args:?}: {problem}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 80));
        for word in ["--busy", "--device", "--json", "Exit status"] {
            assert!(HELP.contains(word), "{word}");
        }
    }

    #[test]
    fn follows_links_only_where_that_is_safe() {
        let table = "20 1 8:1 / / rw - ext4 s rw\n21 20 8:2 / /var rw - ext4 s rw\n\
                     22 21 0:42 / /var/m rw - overlay o rw\n23 20 0:43 / /alone rw - tmpfs t rw\n";
        let mounts = holders::mountinfo::parse(table.as_bytes()).unwrap();
        let links = [
            ("/link", "/var/m"),
            ("/var/relative", "./m"),
            ("/up", "var/../var/m"),
            ("/alone/link", "/var/m"),
            ("/var/m/link", "/"),
            ("/circle", "/circle"),
        ];
        let looked = std::cell::RefCell::new(Vec::new());
        let read_link = |path: &Path| {
            looked.borrow_mut().push(path.to_owned());
            links.iter().find(|(link, _)| path == Path::new(link)).map(|(_, target)| target.into())
        };
        let cases = [
            ("/var/m", "/var/m"),
            ("/var/m/", "/var/m"),
            ("m", "/var/m"),
            (".", "/var"),
            ("../link", "/var/m"),
            ("/link", "/var/m"),
            ("/var/relative", "/var/m"),
            ("/up", "/var/m"),
            // Not looked at: reading a link there would be a reference.
            ("/alone/link", "/alone/link"),
            ("/var/m/link", "/var/m/link"),
            ("/nothing/here", "/nothing/here"),
        ];
        for (given, expected) in cases {
            let resolved = resolve(Path::new(given), Path::new("/var"), &mounts, read_link);
            assert_eq!(resolved, Ok(expected.into()), "{given}");
        }
        for path in looked.borrow().iter() {
            let inside = ["/var/m", "/alone"].iter().any(|mount| path.starts_with(mount));
            assert!(!inside, "{} was looked at", path.display());
        }
        assert!(resolve(Path::new("/circle"), Path::new("/"), &mounts, read_link).is_err());
    }
}
