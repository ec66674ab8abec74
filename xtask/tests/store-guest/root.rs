//! A Debian root in NixOS' shape: an image's list of files, edited. `unsquashfs -pf` writes such a list, with what is in the
//! files behind it, and `mksquashfs -pf` takes it, so nothing is unpacked and nobody has to be root.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Between the list and the files' bytes.
const DATA: &[u8] = b"#\n# START OF DATA - DO NOT MODIFY\n#\n";

/// As all that a Debian image has: no file is newer than 2026-01-01, UTC.
pub(crate) const STAMP: &str = "1767225600";

/// Programs of systemd's that are not named after it.
const SYSTEMDS: [&str; 10] = [
    "bootctl",
    "busctl",
    "hostnamectl",
    "journalctl",
    "localectl",
    "loginctl",
    "networkctl",
    "systemctl",
    "timedatectl",
    "udevadm",
];

/// What is left out: what NixOS has not, and a kernel that the harness boots by itself.
const LEFT_OUT: [&str; 12] = [
    "bin",
    "boot",
    "initrd.img",
    "initrd.img.old",
    "sbin",
    "usr/bin",
    "usr/games",
    "usr/local",
    "usr/sbin",
    "usr/src",
    "vmlinuz",
    "vmlinuz.old",
];

/// What systemd has compiled in, and what NixOS compiles in instead, which has to have the same length here: where it looks for
/// programs without a path, and mount(8), umount(8).
const COMPILED_IN: [(&str, &str); 4] = [
    (
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\0",
        "/usr/lib/systemd//////////////////////////////bin\0",
    ),
    // Where /usr/bin and /usr/sbin are the same, or are not.
    ("/usr/local/bin:/usr/bin\0", "/usr/lib/systemd////bin\0"),
    ("/usr/bin/mount\0", "/usr/lib/mount\0"),
    ("/usr/bin/umount\0", "/usr/lib/umount\0"),
];

/// Where systemd's own libraries and programs are, in which that is.
const SYSTEMDS_FILES: [&str; 2] = ["usr/lib/systemd/", "usr/lib/x86_64-linux-gnu/systemd/"];

/// The path of a package in the store. NixOS has a hash where the zeros are.
pub(crate) fn store(name: &str) -> String {
    format!("/nix/store/{:032}-{name}", 0)
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// So many bytes from there in the data; the last word is mksquashfs' own.
    File { size: usize, offset: usize, rest: String },
    /// A symbolic link.
    Link(String),
    /// Another name of a file.
    Name(String),
    /// A directory, a device, a FIFO: as they are.
    Other { letter: char, rest: String },
}

/// A file and whose it is: mode, uid, gid.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    owner: String,
    kind: Kind,
}

/// A root file system as a list.
#[derive(Debug)]
pub(crate) struct Root {
    /// By their paths, without a slash before them.
    entries: BTreeMap<String, Entry>,
    data: Vec<u8>,
}

impl Root {
    /// Reads what `unsquashfs -pf` has written.
    pub(crate) fn parse(all: Vec<u8>) -> Result<Self> {
        let end = all.windows(DATA.len()).position(|window| window == DATA);
        let end = end.context("unsquashfs has written no list with data")?;
        let list = std::str::from_utf8(&all[..end]).context("the list of files is no UTF-8")?;
        let mut entries = BTreeMap::new();
        for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let parsed = parse_line(line).with_context(|| format!("a line of the list: {line}"))?;
            entries.extend(parsed);
        }
        Ok(Self { entries, data: all[end + DATA.len()..].to_vec() })
    }

    /// What `mksquashfs -pf` reads.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data.len() + (1 << 20));
        // A hard link comes after the file that it names.
        let is_name = |entry: &Entry| matches!(entry.kind, Kind::Name(_));
        let (names, others): (Vec<_>, Vec<_>) = self.entries.iter().partition(|(_, entry)| is_name(entry));
        for (path, Entry { owner, kind }) in others.into_iter().chain(names) {
            let line = match kind {
                Kind::File { size, offset, rest } => {
                    format!("{path} R {STAMP} {owner} {size} {offset} {rest}")
                }
                Kind::Link(target) => format!("{path} S {STAMP} 777 0 0 {target}"),
                Kind::Name(target) => format!("{path} L {target}"),
                Kind::Other { letter, rest } => format!("{path} {letter} {STAMP} {owner} {rest}"),
            };
            bytes.extend(line.trim_end().as_bytes());
            bytes.push(b'\n');
        }
        bytes.extend(DATA);
        bytes.extend(self.data);
        bytes
    }

    /// Gives it NixOS' shape. Nothing of the product is in it yet.
    pub(crate) fn reshape(&mut self) -> Result<()> {
        let programs = self.programs();
        let moved = |path: &str| place_of(path, &programs);
        let mut entries = BTreeMap::new();
        for (path, entry) in std::mem::take(&mut self.entries) {
            let is_out = |out: &&str| path == **out || path.starts_with(&format!("{out}/"));
            let to = moved(&path);
            if to.is_none() && LEFT_OUT.iter().any(is_out) {
                continue;
            }
            let kind = match entry.kind {
                Kind::Link(target) => Kind::Link(link(&path, target, to.is_some(), &moved)),
                Kind::Name(target) => Kind::Name(moved(&target).unwrap_or(target)),
                other => other,
            };
            entries.insert(to.unwrap_or(path), Entry { kind, ..entry });
        }
        self.entries = entries;
        self.directories();
        self.compile_in()?;
        self.rename_programs(&programs);
        for program in ["mount", "umount"] {
            self.link(&format!("/usr/lib/{program}"), &format!("{}/bin/{program}", store("system-path")));
        }
        self.link("/usr/lib/systemd/bin", &format!("{}/bin", store("systemd")));
        for (name, package) in &programs {
            if *package == "systemd" {
                let (at, to) = (store("system-path"), store("systemd"));
                self.link(&format!("{at}/bin/{name}"), &format!("{to}/bin/{name}"));
            }
        }
        Ok(())
    }

    /// Each program, and the package that has it.
    fn programs(&self) -> BTreeMap<String, &'static str> {
        let names = self.entries.keys().filter_map(|path| {
            let name = path.strip_prefix("usr/bin/").or_else(|| path.strip_prefix("usr/sbin/"))?;
            (!name.contains('/')).then(|| name.to_owned())
        });
        let package = |name: &str| match name.starts_with("systemd-") || SYSTEMDS.contains(&name) {
            true => "systemd",
            false => "system-path",
        };
        names.map(|name| (name.clone(), package(&name))).collect()
    }

    /// Adds the directories that are missing.
    fn directories(&mut self) {
        let mut above = BTreeSet::new();
        for path in self.entries.keys() {
            above.extend(Path::new(path).ancestors().skip(1).map(|path| path.to_string_lossy().into_owned()));
        }
        for path in above.into_iter().filter(|path| !path.is_empty()) {
            let entry = || Entry {
                owner: "755 0 0".to_owned(),
                kind: Kind::Other { letter: 'D', rest: String::new() },
            };
            self.entries.entry(path).or_insert_with(entry);
        }
    }

    /// Replaces what is compiled into systemd.
    fn compile_in(&mut self) -> Result<()> {
        let mut found = [0; COMPILED_IN.len()];
        let files =
            self.entries.iter().filter(|(path, _)| SYSTEMDS_FILES.iter().any(|at| path.starts_with(at)));
        for (_, entry) in files {
            let Kind::File { size, offset, .. } = entry.kind else { continue };
            for ((from, to), found) in COMPILED_IN.iter().zip(&mut found) {
                ensure!(from.len() == to.len(), "{from} and {to} are not of one length");
                let mut at = offset;
                while let Some(hit) = find(&self.data[at..offset + size], from.as_bytes()) {
                    self.data[at + hit..at + hit + to.len()].copy_from_slice(to.as_bytes());
                    at += hit + to.len();
                    *found += 1;
                }
            }
        }
        let missing = COMPILED_IN.iter().zip(found).find(|(_, found)| *found == 0);
        ensure!(missing.is_none(), "systemd has not compiled in {missing:?}");
        Ok(())
    }

    /// Has systemd's units name programs by their places.
    fn rename_programs(&mut self, programs: &BTreeMap<String, &'static str>) {
        let units = |path: &&String| path.starts_with("usr/lib/systemd/system/");
        let paths: Vec<String> = self.entries.keys().filter(units).cloned().collect();
        for path in paths {
            let Some(Entry { kind: Kind::File { size, offset, .. }, owner }) = self.entries.get(&path) else {
                continue;
            };
            let (owner, old) =
                (owner.clone(), String::from_utf8_lossy(&self.data[*offset..offset + size]).into_owned());
            let new = renamed(&old, programs);
            if new != old {
                self.put(&format!("/{path}"), &owner, new.as_bytes());
            }
        }
    }

    /// Adds a file; `owner` is its mode, uid and gid.
    pub(crate) fn put(&mut self, path: &str, owner: &str, bytes: &[u8]) {
        let kind = Kind::File { size: bytes.len(), offset: self.data.len(), rest: self.rest() };
        self.data.extend(bytes);
        self.insert(path, Entry { owner: owner.to_owned(), kind });
    }

    /// The last word of a plain file's line, which squashfs-tools 4.6 has and 4.5 has not.
    fn rest(&self) -> String {
        let of = |entry: &Entry| match &entry.kind {
            Kind::File { rest, .. } => Some(rest.clone()),
            _ => None,
        };
        self.entries.values().find_map(of).unwrap_or_default()
    }

    /// Adds a link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Entry { owner: "777 0 0".to_owned(), kind: Kind::Link(target.to_owned()) });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.trim_start_matches('/').to_owned(), entry);
        self.directories();
    }

    /// What a file has in it.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        match self.entries.get(path.trim_start_matches('/')).map(|entry| &entry.kind) {
            Some(Kind::File { size, offset, .. }) => {
                String::from_utf8(self.data[*offset..offset + size].to_vec()).with_context(|| path.to_owned())
            }
            other => anyhow::bail!("{path} is no file: {other:?}"),
        }
    }

    /// The paths of all that is there, with a slash before them.
    pub(crate) fn paths(&self) -> impl Iterator<Item = String> {
        self.entries.keys().map(|path| format!("/{}", path.trim_start_matches('/')))
    }
}

/// `PATH LETTER TIME MODE UID GID REST`, or `PATH L TARGET`; a space in a path has a backslash before it. `None` is an extended
/// attribute (squashfs-tools 4.6 writes them, 4.5 does not): nothing here needs a file's capabilities.
fn parse_line(line: &str) -> Result<Option<(String, Entry)>> {
    let bytes = line.as_bytes();
    let end = (1..bytes.len()).find(|&at| bytes[at] == b' ' && bytes[at - 1] != b'\\').context("no space")?;
    let (path, rest) = (&line[..end], &line[end + 1..]);
    let path = if path == "/" { path } else { path.trim_start_matches('/') }.to_owned();
    let letter = rest.chars().next().context("no letter")?;
    if letter == 'L' {
        let kind = Kind::Name(rest[1..].trim().to_owned());
        return Ok(Some((path, Entry { owner: String::new(), kind })));
    }
    if letter == 'x' {
        return Ok(None);
    }
    let mut words = rest.splitn(6, ' ').skip(2);
    let owner = words.by_ref().take(3).collect::<Vec<_>>().join(" ");
    let rest = words.next().unwrap_or_default();
    let kind = match letter {
        'S' => Kind::Link(rest.to_owned()),
        'R' => {
            let mut numbers = rest.splitn(3, ' ');
            let mut number = || numbers.next().context("no number")?.parse().context("a number");
            let (size, offset) = (number()?, number()?);
            Kind::File { size, offset, rest: numbers.next().unwrap_or_default().to_owned() }
        }
        letter => Kind::Other { letter, rest: rest.to_owned() },
    };
    Ok(Some((path, Entry { owner, kind })))
}

/// Where what is at a path goes; `None` if it stays.
fn place_of(path: &str, programs: &BTreeMap<String, &'static str>) -> Option<String> {
    let at = |place: String| place.trim_start_matches('/').to_owned();
    if path == "usr/lib/systemd/systemd" {
        return Some(at(format!("{}/lib/systemd/systemd", store("systemd"))));
    }
    if path == "etc/systemd/system" || path.starts_with("etc/systemd/system/") {
        return Some(at(format!("{}{}", store("system-units"), &path["etc/systemd/system".len()..])));
    }
    if path == "etc" || path.starts_with("etc/") {
        return Some(at(format!("{}/{path}", store("etc"))));
    }
    let aliases = ["usr/bin/", "usr/sbin/", "bin/", "sbin/"];
    let name = aliases.iter().find_map(|directory| path.strip_prefix(directory))?;
    programs.get(name).map(|package| at(format!("{}/bin/{name}", store(package))))
}

/// The target of a link at a path: one that is moved, or that leads to what is, is absolute. `/etc` is made again at boot.
fn link(path: &str, target: String, is_moved: bool, moved: &impl Fn(&str) -> Option<String>) -> String {
    let whole = resolved(path, &target);
    match moved(&whole) {
        Some(to) if !whole.starts_with("etc/") => format!("/{to}"),
        None if is_moved && !target.starts_with('/') => format!("/{whole}"),
        _stays => target,
    }
}

/// A link's target from the root, without a slash before it.
fn resolved(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => path
            .split('/')
            .collect::<Vec<_>>()
            .split_last()
            .map(|(_, above)| above.to_vec())
            .unwrap_or_default(),
    };
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A text in which programs have their places in the store.
fn renamed(text: &str, programs: &BTreeMap<String, &'static str>) -> String {
    let (mut new, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('/') {
        let before = rest[..at].chars().next_back();
        let is_begin = before.is_none_or(|c| !c.is_ascii_alphanumeric() && !"./_".contains(c));
        let path: &str = rest[at + 1..]
            .split(|c: char| !c.is_ascii_alphanumeric() && !"._-+/@".contains(c))
            .next()
            .unwrap_or_default();
        new.push_str(&rest[..at]);
        let to = if is_begin && !path.starts_with("etc") { place_of(path, programs) } else { None };
        match to {
            Some(to) => new.push_str(&format!("/{to}")),
            None => new.push_str(&rest[at..at + 1 + path.len()]),
        }
        rest = &rest[at + 1 + path.len()..];
    }
    new + rest
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A small root's list, before and after.
pub(crate) fn is_reshaped() -> Result<()> {
    let compiled_in: String = COMPILED_IN.iter().map(|(from, _)| *from).collect();
    let unit = "ExecStart=/usr/bin/kmod load /usr/bins/kmod /etc/kmod\nExecStart=-/sbin/udevadm x\n";
    let size = compiled_in.len();
    let list = format!(
        "/ D 1 755 0 0\nbin S 1 777 0 0 usr/bin\nusr D 1 755 0 0\nusr/bin D 1 755 0 0\nusr/bin/a\\ b R 1 755 0 5 0 0\n\
         usr/bin/kmod R 1 4755 0 5 0 0\nusr/sbin/insmod S 1 777 0 0 ../bin/kmod\nusr/bin/udevadm R 1 755 0 0 0 0\n\
         usr/bin/kmod2 L usr/bin/kmod\nusr/bin/kmod x security.capability=0sAQAAAgAg\nusr/local/x R 1 755 0 0 0 0\nusr/lib/systemd/systemd R 1 755 0 0 0 0\n\
         usr/lib/systemd/systemd-udevd S 1 777 0 0 ../../bin/udevadm\nusr/lib/systemd/lib.so R 1 644 0 0 {size} 0\n\
         usr/lib/systemd/system/x.service R 1 644 0 0 {} {size}\netc D 1 755 0 0\netc/alternatives/x S 1 777 0 0 /usr/bin/kmod\n\
         etc/systemd/system/y.wants/x.service S 1 777 0 0 /usr/lib/systemd/system/x.service\n",
        unit.len()
    );
    let all = [list.as_bytes(), DATA, compiled_in.as_bytes(), unit.as_bytes()].concat();
    let mut root = Root::parse(all)?;
    root.reshape()?;
    let [path, systemd, etc, units] = ["system-path", "systemd", "etc", "system-units"].map(store);
    let renamed = root.text("/usr/lib/systemd/system/x.service")?;
    let expected = format!(
        "ExecStart={path}/bin/kmod load /usr/bins/kmod /etc/kmod\nExecStart=-{systemd}/bin/udevadm x\n"
    );
    ensure!(renamed == expected, "{renamed}");
    let bytes = root.into_bytes();
    let text = String::from_utf8_lossy(&bytes);
    let line = |path: &str, rest: &str| format!("{} {rest}", path.trim_start_matches('/'));
    for expected in [
        line(&format!("{path}/bin/a\\ b"), "R 1767225600 755 0 5 0 0"),
        line(&format!("{path}/bin/kmod"), "R 1767225600 4755 0 5 0 0"),
        line(&format!("{path}/bin/insmod"), &format!("S 1767225600 777 0 0 {path}/bin/kmod")),
        line(&format!("{path}/bin/kmod2"), &format!("L {}/bin/kmod", path.trim_start_matches('/'))),
        line(&format!("{path}/bin/udevadm"), &format!("S 1767225600 777 0 0 {systemd}/bin/udevadm")),
        line(&format!("{systemd}/lib/systemd/systemd"), "R 1767225600 755 0 0 0 0"),
        line("usr/lib/systemd/systemd-udevd", &format!("S 1767225600 777 0 0 {systemd}/bin/udevadm")),
        line(&format!("{etc}/etc/alternatives/x"), &format!("S 1767225600 777 0 0 {path}/bin/kmod")),
        line(&format!("{units}/y.wants/x.service"), "S 1767225600 777 0 0 /usr/lib/systemd/system/x.service"),
    ] {
        ensure!(
            text.lines().any(|line| line == expected),
            "no line {expected} in {}",
            text.split('#').next().unwrap_or_default()
        );
    }
    ensure!(!text.contains("\nbin ") && !text.contains("usr/local/x"), "what is left out is there");
    for (from, to) in COMPILED_IN {
        ensure!(!text.contains(from) && text.contains(to), "{from} is still there");
    }
    Ok(())
}
