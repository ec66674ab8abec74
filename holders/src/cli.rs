//! The command line of `holders`: arguments, help text, and the path to diagnose. It is in the library because a fuzz
//! target uses it too.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::mountinfo::{Device, Mount};
use crate::propagation;
use crate::query::LONGEST_SCAN;

/// The help text.
pub const HELP: &str = "\
holders: who keeps a mount busy, and by what kind of reference

Usage:
  holders [--busy] [--detached] [--layer] [--device MAJ:MIN] [--deadline SECS]
          [--all] [--json] PATH
  holders ns [--json] PID|FILE
  holders watch [--unit UNIT] [--rate HZ] [--until-unmounted] [--json] PATH
  holders --help | --version

PATH is a mount point, a mount unit (srv-demo.mount) or a block device. The
answer is a verdict and its evidence: the working directory, root, program,
files and mappings of each task on the mount, or on a copy of it in another
mount namespace; and for each whether it makes umount fail, only keeps the file
system alive, or does neither. A namespace that has a copy but no reference
blocks nothing, and is not blamed.

  --busy            umount has just failed with EBUSY: if no holder is found,
                    list what can hold a mount without being visible
  --detached        also find references to mounts of the same file system that
                    are in no namespace: clones, lazily unmounted ones
  --device MAJ:MIN  the file system that was mounted at PATH, as mountinfo
                    names it: find what is left of it after an unmount
  --layer           PATH is a layer of an overlay, as in upperdir=: find what
                    uses it, so that a new mount of it fails with EBUSY
  --all             also list harmless references, copies that are unmounted
                    too, and, where something blocks, what does not
  --deadline SECS   stop after this time (default 30) and report what was not
                    reached
  --json            JSON instead of text

ns lists the processes in a mount namespace and what else keeps it alive. Name
the namespace by a process or by its file (/proc/PID/ns/mnt, or a bind mount of
it). For a path named ns or watch, write ./ns or ./watch.

watch prints a line when PATH is mounted or unmounted and when its holders
change, until it is interrupted:
  [t= 2.27] mounted=Y holders=[35259(left4me-overlay)]
It waits for events: mountinfo, a pidfd of each holder, the unit's cgroup. A
new holder raises no event, so watch also scans periodically.

  --unit UNIT        in periodic scans read this unit's tasks only: cheap
  --rate HZ          periodic scans a second (default 333 with a unit, 5
                     without; 0 for none)
  --until-unmounted  exit when PATH is unmounted
  --json             one JSON object a line

Examples:
  holders /var/lib/left4me/runtime/3/merged
  umount /mnt || holders --busy /mnt
  holders --json /mnt | jq -r '.holders[].pid'
  holders watch --unit demo.service /srv/demo
  holders ns $$

It resolves no path inside the mount, so it never makes the mount busy. Run it
as root: another user sees only that user's processes. It reports how many
processes it could not inspect.

Exit status:
   0  nothing blocks an unmount and nothing outlives it, or PATH is not mounted
      and nothing refers to it; ns and watch: done
   1  error: no answer, or the answer could not be written
   2  usage
  32  busy: umount fails with EBUSY
  33  nothing blocks an unmount, but the file system outlives it; or PATH is not
      mounted, but its file system is alive
  34  no inspected process blocks it, but not all could be inspected, or not
      before the deadline
";

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// [`HELP`].
    Help,
    /// The version.
    Version,
    /// `holders PATH`.
    Diagnose(Diagnose),
    /// `holders ns`.
    Namespace(Namespace),
    /// `holders watch`.
    Watch(Watch),
}

/// `holders ns`.
#[derive(Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The namespace to describe.
    pub of: NamespaceOf,
    /// `--json`.
    pub json: bool,
}

/// The namespace to describe.
#[derive(Debug, PartialEq, Eq)]
pub enum NamespaceOf {
    /// That of a process.
    Process(u32),
    /// That of a namespace file.
    File(PathBuf),
}

/// `holders watch`.
#[derive(Debug, PartialEq)]
pub struct Watch {
    /// The path as it was given.
    pub path: PathBuf,
    /// `--unit`.
    pub unit: Option<String>,
    /// `--rate`, or its default.
    pub rate: f64,
    /// `--until-unmounted`.
    pub until_unmounted: bool,
    /// `--json`.
    pub json: bool,
}

/// Scans a second without a unit: each reads all processes.
const RATE: f64 = 5.0;
/// Scans a second with a unit: reports a new holder within 5 ms, in a guest under emulation too. There a scan takes 0.7 to
/// 1.3 ms, and misses a holder that comes after it has begun.
const UNIT_RATE: f64 = 333.0;
/// The highest `--rate`.
pub const MAX_RATE: f64 = 10_000.0;

/// `holders PATH`.
#[derive(Debug, PartialEq, Eq)]
pub struct Diagnose {
    /// The path as it was given.
    pub path: PathBuf,
    /// `--busy`.
    pub is_busy: bool,
    /// `--detached`.
    pub detached: bool,
    /// `--all`.
    pub all: bool,
    /// `--layer`.
    pub is_layer: bool,
    /// `--device`.
    pub device: Option<Device>,
    /// `--deadline`, or its default.
    pub deadline: Duration,
    /// `--json`.
    pub json: bool,
}

/// Which options were given, and the one path or number.
#[derive(Default)]
struct Given {
    operand: Option<OsString>,
    is_busy: bool,
    detached: bool,
    all: bool,
    is_layer: bool,
    device: Option<Device>,
    deadline: Option<Duration>,
    json: bool,
    unit: Option<String>,
    rate: Option<f64>,
    until_unmounted: bool,
}

/// Reads the arguments, the program's name first.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::prelude::*;
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Verb {
        Diagnose,
        Ns,
        Watch,
    }
    let mut parser = lexopt::Parser::from_iter(args);
    let mut given = Given::default();
    let mut verb = Verb::Diagnose;
    let mut is_first = true;
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match (arg, verb) {
            (Long("help") | Short('h'), _) => return Ok(Command::Help),
            (Long("version") | Short('V'), _) => return Ok(Command::Version),
            (Long("json"), _) => given.json = true,
            (Long("busy"), Verb::Diagnose) => given.is_busy = true,
            (Long("detached"), Verb::Diagnose) => given.detached = true,
            (Long("layer"), Verb::Diagnose) => given.is_layer = true,
            (Long("all"), Verb::Diagnose) => given.all = true,
            (Long("device"), Verb::Diagnose) => given.device = Some(parse_device(&text_of(&mut parser)?)?),
            (Long("deadline"), Verb::Diagnose) => {
                given.deadline = Some(parse_deadline(&text_of(&mut parser)?)?);
            }
            (Long("unit"), Verb::Watch) => given.unit = Some(text_of(&mut parser)?),
            (Long("rate"), Verb::Watch) => given.rate = Some(parse_rate(&text_of(&mut parser)?)?),
            (Long("until-unmounted"), Verb::Watch) => given.until_unmounted = true,
            (Value(value), _) if is_first && value == "ns" => verb = Verb::Ns,
            (Value(value), _) if is_first && value == "watch" => verb = Verb::Watch,
            (Value(value), _) if given.operand.is_none() => given.operand = Some(value),
            (Value(extra), _) => return Err(format!("one at a time, {} is too much", extra.display())),
            (other, _) => return Err(other.unexpected().to_string()),
        }
        is_first = false;
    }
    let missing = if verb == Verb::Ns {
        "no namespace: give a process id or a file"
    } else {
        "no path: give the mount point"
    };
    let operand = given.operand.ok_or(missing)?;
    if operand.is_empty() {
        return Err(format!("{missing} (it is empty)"));
    }
    let path = PathBuf::from(&operand);
    let Given {
        is_busy, detached, all, is_layer, device, deadline, json, unit, rate, until_unmounted, ..
    } = given;
    Ok(match verb {
        Verb::Diagnose => {
            let deadline = deadline.unwrap_or(LONGEST_SCAN);
            Command::Diagnose(Diagnose { path, is_busy, detached, all, is_layer, device, deadline, json })
        }
        Verb::Ns => {
            let pid = operand.to_str().and_then(|text| text.parse().ok());
            let of = pid.map_or(NamespaceOf::File(path), NamespaceOf::Process);
            Command::Namespace(Namespace { of, json })
        }
        Verb::Watch => {
            let rate = rate.unwrap_or(if unit.is_some() { UNIT_RATE } else { RATE });
            Command::Watch(Watch { path, unit, rate, until_unmounted, json })
        }
    })
}

fn text_of(parser: &mut lexopt::Parser) -> Result<String, String> {
    use lexopt::ValueExt;
    parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.0..=MAX_RATE).contains(rate));
    rate.ok_or_else(|| format!("--rate {text}: expected scans a second, 0 to {MAX_RATE}"))
}

/// The longest that a scan may be let take: an hour.
const MAX_DEADLINE: f64 = 3600.0;

fn parse_deadline(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..=MAX_DEADLINE).contains(seconds));
    let seconds =
        seconds.ok_or_else(|| format!("--deadline {text}: expected seconds, 0 to {MAX_DEADLINE}"))?;
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_device(text: &str) -> Result<Device, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(major, minor)| Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? }));
    parsed.ok_or_else(|| format!("--device {text}: expected major:minor as in mountinfo, like 0:42"))
}

/// The path to diagnose: absolute, without `.`, `..` and symbolic links.
///
/// A path that is a mount point already stays as it is. Otherwise links are followed, but only where that cannot
/// make a mount busy: on the root file system, and on mounts that have others on them.
///
/// # Errors
/// A sentence that says what to give instead.
pub fn resolve(
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
        match (!is_mount_point && may_look(&mounts[on], mounts)).then(|| read_link(&next)).flatten() {
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

/// Whether a look at something on this mount of the table can make no mount busy that could be unmounted: it is the root,
/// or others lie on it.
#[must_use]
pub fn may_look(mount: &Mount, mounts: &[Mount]) -> bool {
    let lies_on_it = |other: &Mount| other.parent == mount.id && other.id != mount.id;
    mount.mount_point == Path::new("/") || mounts.iter().any(lies_on_it)
}

/// Where the mount unit of this name mounts (systemd-escape(1), `--path`); `None` if it is no such name.
#[must_use]
pub fn mount_unit(name: &Path) -> Option<PathBuf> {
    let name =
        name.to_str()?.strip_suffix(".mount").filter(|name| !name.is_empty() && !name.contains('/'))?;
    if name == "-" {
        return Some("/".into());
    }
    let mut path = vec![b'/'];
    let mut rest = name.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'-', _) => path.push(b'/'),
            (b'\\', [b'x', digits @ ..]) => {
                let digits = digits.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
                path.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &tail[3..];
            }
            _ => path.push(first),
        }
    }
    Some(OsString::from_vec(path).into())
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
            all: false,
            is_layer: false,
            device: None,
            deadline: LONGEST_SCAN,
            json: false,
        };
        assert_eq!(
            parsed(&["--deadline", "0.5", "/m"]),
            Ok(Command::Diagnose(Diagnose { deadline: Duration::from_millis(500), ..plain("/m") }))
        );
        assert_eq!(parsed(&["/m"]), Ok(Command::Diagnose(plain("/m"))));
        assert_eq!(
            parsed(&["/m", "--json", "--busy", "--detached", "--all", "--layer", "--device", "0:42"]),
            Ok(Command::Diagnose(Diagnose {
                is_busy: true,
                detached: true,
                all: true,
                is_layer: true,
                json: true,
                device: Some(Device { major: 0, minor: 42 }),
                ..plain("/m")
            }))
        );
        assert_eq!(parsed(&["./ns"]), Ok(Command::Diagnose(plain("./ns"))));
        assert_eq!(
            parsed(&["ns", "12", "--json"]),
            Ok(Command::Namespace(Namespace { of: NamespaceOf::Process(12), json: true }))
        );
        assert_eq!(
            parsed(&["ns", "/run/x"]),
            Ok(Command::Namespace(Namespace { of: NamespaceOf::File("/run/x".into()), json: false }))
        );
        let watch = |unit: Option<&str>, rate| {
            Ok(Command::Watch(Watch {
                path: "/m".into(),
                unit: unit.map(str::to_owned),
                rate,
                until_unmounted: false,
                json: false,
            }))
        };
        assert_eq!(parsed(&["watch", "/m"]), watch(None, RATE));
        assert_eq!(parsed(&["watch", "--unit", "a.service", "/m"]), watch(Some("a.service"), UNIT_RATE));
        assert_eq!(parsed(&["watch", "--unit=a.service", "--rate=0", "/m"]), watch(Some("a.service"), 0.0));
        assert_eq!(parsed(&["--", "--m"]), Ok(Command::Diagnose(plain("--m"))));
        assert_eq!(parsed(&["-h"]), Ok(Command::Help));
        assert_eq!(parsed(&["/m", "--version"]), Ok(Command::Version));
        for (args, expected) in [
            (&[][..], "no path"),
            (&["/a", "/b"], "/b is too much"),
            (&["--device", "42", "/m"], "expected major:minor"),
            (&["--deadline", "-1", "/m"], "expected seconds"),
            (&["--deadline", "nan", "/m"], "expected seconds"),
            (&["watch", "--deadline", "1", "/m"], "invalid option '--deadline'"),
            (&["--lazy", "/m"], "invalid option '--lazy'"),
            (&["watch", "--rate", "-1", "/m"], "expected scans a second"),
            (&["watch", "--busy", "/m"], "invalid option '--busy'"),
            (&["--unit", "x", "/m"], "invalid option '--unit'"),
            (&["ns"], "no namespace"),
            (&[""], "it is empty"),
        ] {
            let problem = parsed(args).unwrap_err();
            assert!(problem.contains(expected), "{args:?}: {problem}");
        }
    }

    #[test]
    fn mount_units() {
        let cases = [
            ("srv-demo.mount", Some("/srv/demo")),
            ("srv-a\\x2db\\x20c.mount", Some("/srv/a-b c")),
            ("-.mount", Some("/")),
            ("srv/demo.mount", None),
            ("srv-a\\x2.mount", None),
            ("srv-a\\xé.mount", None),
            (".mount", None),
            ("srv-demo.service", None),
        ];
        for (name, expected) in cases {
            assert_eq!(mount_unit(Path::new(name)).as_deref(), expected.map(Path::new), "{name}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 80));
        insta::assert_snapshot!(HELP);
    }

    #[test]
    fn follows_links_only_where_that_is_safe() {
        let table = "20 1 8:1 / / rw - ext4 s rw\n21 20 8:2 / /var rw - ext4 s rw\n\
                     22 21 0:42 / /var/m rw - overlay o rw\n23 20 0:43 / /alone rw - tmpfs t rw\n";
        let mounts = crate::mountinfo::parse(table.as_bytes()).unwrap();
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
