//! For which `.socket` units systemd listens at some paths: it has their sockets and FIFOs itself, and its own cgroup tells
//! nothing of them. By the units' files, since to ask systemd takes D-Bus.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the system's units are, the first of a name wins (systemd.unit(5)).
const DIRECTORIES: [&str; 10] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// The settings that have systemd open a path (systemd.socket(5)).
const SETTINGS: [&str; 5] =
    ["ListenStream", "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial"];

/// The units that systemd listens for at these paths, in a row as systemctl(1) takes them; `None` if one of the paths is no
/// unit's. Nothing is opened at `watched` and below.
pub(crate) fn units_at(paths: &BTreeSet<PathBuf>, watched: &Path) -> Option<String> {
    let directories = DIRECTORIES.map(Path::new);
    let units = units_in(directories.into_iter().filter(|directory| !directory.starts_with(watched)));
    named(paths, &units)
}

fn named(paths: &BTreeSet<PathBuf>, units: &[(String, Vec<PathBuf>)]) -> Option<String> {
    let mut names = BTreeSet::new();
    for path in paths {
        let mut here = units.iter().filter(|(_, listened)| listened.contains(path)).peekable();
        here.peek()?;
        names.extend(here.map(|(name, _)| name.as_str()));
    }
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(" "))
}

/// Each unit with the paths of its file and of its drop-ins. Not of templates, whose instances have other names.
fn units_in<'a>(directories: impl Iterator<Item = &'a Path>) -> Vec<(String, Vec<PathBuf>)> {
    let mut units: Vec<(String, Vec<PathBuf>)> = Vec::new();
    let mut seen = BTreeSet::new();
    for directory in directories {
        for (name, path) in entries(directory) {
            let Some(name) = name.to_str() else { continue };
            let unit = name.strip_suffix(".d").unwrap_or(name);
            if !unit.ends_with(".socket") || unit.ends_with("@.socket") {
                continue;
            }
            let texts = match unit == name {
                // A link may be another name of the unit.
                true if seen.insert(unit.to_owned()) => vec![(own_name(&path), path)],
                true => continue,
                false => entries(&path).map(|(_, file)| (unit.to_owned(), file)).collect(),
            };
            for (unit, file) in texts {
                let text = fs::read_to_string(file).unwrap_or_default();
                let listened: Vec<PathBuf> = listened(&text).map(Path::to_owned).collect();
                match units.iter_mut().find(|(known, _)| *known == unit) {
                    Some((_, known)) => known.extend(listened),
                    None => units.push((unit, listened)),
                }
            }
        }
    }
    units
}

fn entries(directory: &Path) -> impl Iterator<Item = (OsString, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), entry.path()))
}

/// The name of the unit in a file of this path, which may be a link to that of another name.
fn own_name(path: &Path) -> String {
    let target = fs::canonicalize(path).ok();
    let name = |path: &Path| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
    let of_target = target.as_deref().and_then(name).filter(|name| name.ends_with(".socket"));
    of_target.or_else(|| name(path)).unwrap_or_default()
}

fn listened(text: &str) -> impl Iterator<Item = &Path> {
    text.lines().filter_map(|line| {
        let (setting, value) = line.split_once('=')?;
        let value = Path::new(value.trim());
        (SETTINGS.contains(&setting.trim()) && value.is_absolute()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_by_what_they_listen_at() {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| root.path().join(name));
        let put = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            first.join("game.socket"),
            "[Socket]\n# ListenFIFO=/m/not\nListenFIFO = /m//console\nListenStream=27015\n",
        );
        put(first.join("game.socket.d/more.conf"), "[Socket]\nListenStream=/m/rcon\n");
        put(second.join("game.socket"), "[Socket]\nListenStream=/m/covered\n");
        put(second.join("other.socket"), "[Socket]\nListenDatagram=/m/log\n");
        put(second.join("each@.socket"), "[Socket]\nListenStream=/m/each\n");
        put(second.join("game.service"), "[Service]\nListenStream=/m/service\n");
        std::os::unix::fs::symlink(second.join("other.socket"), first.join("alias.socket")).unwrap();
        let units = units_in([first.as_path(), second.as_path()].into_iter());
        for (paths, expected) in [
            (&["/m/console"][..], Some("game.socket")),
            (&["/m/console", "/m/rcon"], Some("game.socket")),
            (&["/m/rcon", "/m/log"], Some("game.socket other.socket")),
            // Of one that is not known nobody can say what to stop.
            (&["/m/rcon", "/m/else"], None),
            (&["/m/not"], None),
            (&["/m/covered"], None),
            (&["/m/each"], None),
            (&["/m/service"], None),
            (&[], None),
        ] {
            let named = named(&paths.iter().map(PathBuf::from).collect(), &units);
            assert_eq!(named.as_deref(), expected, "{paths:?}");
        }
        assert_eq!(units_at(&BTreeSet::from(["/m/rcon".into()]), Path::new("/")), None, "nothing is opened");
    }
}
