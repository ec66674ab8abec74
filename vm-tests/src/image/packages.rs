//! The packages that an image is made of: of an image in the cache, of a lock file, and what has moved between two.
//!
//! A lock file lies in the repository of whoever uses the harness, one for each suite. It names every package with its version
//! and its hash, so that a later build can say what has moved, and durations what they were measured on. An image that has
//! moved is no error: Debian's updates are the day's, and tests have to live with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::suite::Suite;
use crate::cache::Inputs;

/// Debian's package of the current kernel: its version is the kernel's, whatever the kernel's own package is called.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What those are called: the release is in the name.
const KERNELS: &str = "linux-image-";

/// A package as the archive has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its version, the whole of it.
    pub version: String,
    /// The SHA-256 of its file, in hex; none where an image was built before they were kept.
    #[serde(default)]
    pub sha256: Option<String>,
}

impl Package {
    /// The archive never has two files of one version, so one whose hash is not known is the same.
    fn is(&self, other: &Self) -> bool {
        let bytes = self.sha256.as_ref().zip(other.sha256.as_ref()).is_none_or(|(one, other)| one == other);
        self.version == other.version && bytes
    }
}

/// Packages by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages(pub BTreeMap<String, Package>);

impl Packages {
    /// A short name of just these versions: that of the lock file which has them.
    #[must_use]
    pub fn name(&self) -> String {
        let lines: Vec<String> =
            self.0.iter().map(|(name, package)| format!("{name} {}", package.version)).collect();
        Inputs::new("packages", 1).list("packages", &lines).key().short().to_owned()
    }

    /// What is otherwise in `later`, by name.
    #[must_use]
    pub fn moved(&self, later: &Self) -> Vec<Moved> {
        let names: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let pair = |name: &String| (self.0.get(name).cloned(), later.0.get(name).cloned());
        let all = names.into_iter().map(|name| (name, pair(name)));
        let differ = all.filter(|(_, pair)| match pair {
            (Some(from), Some(to)) => !from.is(to),
            _one_only => true,
        });
        differ.map(|(name, (from, to))| Moved { name: name.clone(), from, to }).collect()
    }
}

/// A package that is not in both, or not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// What it was; `None` if it was not there.
    pub from: Option<Package>,
    /// What it is; `None` if it is not there any more.
    pub to: Option<Package>,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name == KERNEL { "kernel" } else { &self.name };
        match (&self.from, &self.to) {
            (Some(from), Some(to)) if from.version == to.version => {
                write!(f, "{name} {}: other bytes", to.version)
            }
            (Some(from), Some(to)) => write!(f, "{name} {} -> {}", from.version, to.version),
            (None, Some(to)) => write!(f, "{name} {}: new", to.version),
            (Some(from), None) => write!(f, "{name} {}: gone", from.version),
            (None, None) => write!(f, "{name}"),
        }
    }
}

/// What has moved, in one line: kernel and systemd with their versions, others too where they are few, else their number. `None`
/// if nothing has.
#[must_use]
pub fn summary(moved: &[Moved]) -> Option<String> {
    const FEW: usize = 3;
    let is_named = |one: &&Moved| one.name == KERNEL || one.name == "systemd";
    let has_kernel = moved.iter().any(|one| one.name == KERNEL);
    // A new release is a new name: one package that comes and one that goes, and all that is told already.
    let is_told = |one: &&Moved| is_named(one) || has_kernel && one.name.starts_with(KERNELS);
    let named = moved.iter().filter(is_named).map(Moved::to_string);
    let others: Vec<String> = moved.iter().filter(|one| !is_told(one)).map(Moved::to_string).collect();
    let others = match (others.len(), named.clone().next()) {
        (..=FEW, _) => others,
        (many, None) => vec![format!("{many} packages")],
        (many, Some(_)) => vec![format!("{many} other packages")],
    };
    let words: Vec<String> = named.chain(others).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// A lock file's contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Of what.
    pub suite: Suite,
    /// [`Packages::name`].
    name: String,
    /// The date of the newest index that the packages were taken from, as an archive by date writes it
    /// (`20261126T141500Z`, UTC); none where an image was built before it was kept.
    #[serde(default)]
    pub archive: Option<String>,
    /// All that is installed.
    pub packages: Packages,
}

impl Lock {
    pub(super) fn new(suite: Suite, archive: Option<String>, packages: Packages) -> Self {
        Self { suite, name: packages.name(), archive, packages }
    }

    /// Where a suite's lies in a directory of them.
    #[must_use]
    pub fn path(directory: &Path, suite: Suite) -> PathBuf {
        directory.join(format!("{suite}.lock"))
    }

    /// A suite's, in a directory of them; `None` if there is none.
    ///
    /// # Errors
    /// If it can't be read, is of another suite, or was not written by us: its name is not that of its packages.
    pub fn load(directory: &Path, suite: Suite) -> anyhow::Result<Option<Self>> {
        let path = Self::path(directory, suite);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let lock: Self = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        ensure!(lock.suite == suite, "{} is of {}", path.display(), lock.suite);
        let name = lock.packages.name();
        ensure!(
            lock.name == name,
            "{} says {}, and its packages are {name}: it was edited or merged by hand: write it anew (--lock)",
            path.display(),
            lock.name
        );
        Ok(Some(lock))
    }

    /// Writes it into a directory of them, which is made.
    ///
    /// # Errors
    /// If it can't be written; if hashes are not known, which a build tells.
    pub fn write(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let unknown = self.packages.0.iter().filter(|(_, package)| package.sha256.is_none()).count();
        ensure!(
            unknown == 0,
            "the image of {} was built without the hashes of {unknown} packages: build it again (--rebuild)",
            self.suite
        );
        let path = Self::path(directory, self.suite);
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        std::fs::write(&path, self.text()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// [`Packages::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A line for each package: a diff of two shows what moved.
    fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let archive = self.archive.iter().map(|date| format!("archive = {}\n", quoted(date)));
        let package = |(name, package): (&String, &Package)| {
            let sha256 = package.sha256.iter().map(|hash| format!(", sha256 = {}", quoted(hash)));
            let sha256: String = sha256.collect();
            format!("{} = {{ version = {}{sha256} }}\n", quoted(name), quoted(&package.version))
        };
        format!(
            "# What the image of {suite} is made of. Written by the harness, for whoever looks what has moved since.\n\
             suite = \"{suite}\"\nname = {name}\n{archive}\n[packages]\n{packages}",
            suite = self.suite,
            name = quoted(&self.name),
            archive = archive.collect::<String>(),
            packages = self.packages.0.iter().map(package).collect::<String>(),
        )
    }

    /// What an image's has otherwise, in one line; `None` if nothing.
    #[must_use]
    pub fn moved(&self, image: &Self) -> Option<String> {
        let moved = summary(&self.packages.moved(&image.packages))?;
        Some(format!("image {}: since {}.lock ({}): {moved}", image.suite, self.suite, self.name))
    }
}

/// What the archive says of packages, from a build's output: see [`RECORD`](super::debian::RECORD).
#[derive(Debug, Default)]
pub(super) struct Records {
    name: String,
    version: String,
    /// By name and version.
    pub(super) sha256: BTreeMap<(String, String), String>,
    /// The newest index.
    pub(super) archive: Option<String>,
}

impl Records {
    /// Takes in one line.
    pub(super) fn line(&mut self, line: &str) {
        let Some((field, value)) = line.strip_prefix("record: ").and_then(|line| line.split_once(": "))
        else {
            return;
        };
        match field {
            "Package" => (self.name, self.version) = (value.to_owned(), String::new()),
            "Version" => value.clone_into(&mut self.version),
            "SHA256" => {
                let key = (self.name.clone(), self.version.clone());
                self.sha256.insert(key, value.to_owned());
            }
            "Date" => self.archive = stamp(value).max(self.archive.take()),
            _another => {}
        }
    }

    /// The hashes of these versions, as far as they are known.
    pub(super) fn of(&self, versions: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let hash = |(name, version): (&String, &String)| {
            let hash = self.sha256.get(&(name.clone(), version.clone()))?;
            Some((name.clone(), hash.clone()))
        };
        versions.iter().filter_map(hash).collect()
    }
}

/// An index's date, `Sat, 09 Aug 2025 10:04:26 UTC`, as `20250809T100426Z`.
fn stamp(date: &str) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_weekday, day, month, year, time, "UTC" | "+0000"] = words.as_slice() else { return None };
    let month = 1 + MONTHS.iter().position(|one| one == month)?;
    let day: u8 = day.parse().ok()?;
    let time: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = time.as_slice() else { return None };
    let stamp = format!("{year}{month:02}{day:02}T{hour:0>2}{minute:0>2}{second:0>2}Z");
    super::debian::is_stamp(&stamp).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(all: &[(&str, &str)]) -> Packages {
        let package = |version: &str| Package { version: version.to_owned(), sha256: Some("00".to_owned()) };
        Packages(all.iter().map(|(name, version)| ((*name).to_owned(), package(version))).collect())
    }

    #[test]
    fn what_moved_is_told_by_name() {
        let before = packages(&[
            ("apt", "3.0.3"),
            (KERNEL, "6.12.117-1"),
            ("linux-image-6.12.117+deb13-cloud-amd64", "6.12.117-1"),
            ("systemd", "257.9-1"),
        ]);
        let told = |after: &[(&str, &str)]| {
            let moved = before.moved(&packages(after));
            let lines: Vec<String> = moved.iter().map(|one| format!("{one}\n")).collect();
            format!("{}{}", lines.concat(), summary(&moved).unwrap_or_default())
        };
        let kernel = |version: &str, name| [(KERNEL, version.to_owned()), (name, version.to_owned())];
        let old = kernel("6.12.117-1", "linux-image-6.12.117+deb13-cloud-amd64");
        let new = kernel("6.12.118-1", "linux-image-6.12.118+deb13-cloud-amd64");
        let with = |kernel: &[(&'static str, String)], others: &[(&'static str, &'static str)]| {
            let kernel: Vec<(&str, &str)> =
                kernel.iter().map(|(name, version)| (*name, &**version)).collect();
            told(&[&kernel[..], others].concat())
        };
        assert_eq!(summary(&before.moved(&before)), None);
        insta::assert_snapshot!(with(&new, &[("apt", "3.0.4"), ("systemd", "257.9-1"), ("a", "1"), ("b", "1"), ("zstd", "1")]), @"
        a 1: new
        apt 3.0.3 -> 3.0.4
        b 1: new
        linux-image-6.12.117+deb13-cloud-amd64 6.12.117-1: gone
        linux-image-6.12.118+deb13-cloud-amd64 6.12.118-1: new
        kernel 6.12.117-1 -> 6.12.118-1
        zstd 1: new
        kernel 6.12.117-1 -> 6.12.118-1, 4 other packages
        ");
        insta::assert_snapshot!(with(&old, &[("apt", "3.0.4"), ("systemd", "257.9-1")]), @"
        apt 3.0.3 -> 3.0.4
        apt 3.0.3 -> 3.0.4
        ");
        insta::assert_snapshot!(with(&old, &[("apt", "3.0.3"), ("systemd", "257.10-1")]), @"
        systemd 257.9-1 -> 257.10-1
        systemd 257.9-1 -> 257.10-1
        ");
        insta::assert_snapshot!(told(&[("apt", "3.0.3")]), @"
        linux-image-6.12.117+deb13-cloud-amd64 6.12.117-1: gone
        kernel 6.12.117-1: gone
        systemd 257.9-1: gone
        kernel 6.12.117-1: gone, systemd 257.9-1: gone
        ");
    }

    #[test]
    fn other_bytes_of_one_version_are_told_where_both_are_known() {
        let of = |sha256: Option<&str>| {
            let package = Package { version: "1".to_owned(), sha256: sha256.map(str::to_owned) };
            Packages(BTreeMap::from([("a".to_owned(), package)]))
        };
        assert_eq!(of(Some("00")).moved(&of(Some("11"))).len(), 1);
        assert_eq!(of(Some("00")).moved(&of(Some("11")))[0].to_string(), "a 1: other bytes");
        assert_eq!(of(None).moved(&of(Some("11"))), []);
        assert_eq!(of(None).name(), of(Some("11")).name());
        assert_ne!(packages(&[("a", "1")]).name(), packages(&[("a", "2")]).name());
        assert_ne!(packages(&[("a", "1")]).name(), packages(&[("b", "1")]).name());
    }

    fn lock(all: &[(&str, &str)]) -> Lock {
        Lock::new(Suite::Trixie, Some("20261126T141500Z".to_owned()), packages(all))
    }

    #[test]
    fn a_lock_file_has_a_line_for_each_package() {
        insta::assert_snapshot!(lock(&[("apt", "3.0.3"), ("libstdc++6", "1:14+really2~3")]).text(), @r#"
        # What the image of trixie is made of. Written by the harness, for whoever looks what has moved since.
        suite = "trixie"
        name = "cc1dfa346fec"
        archive = "20261126T141500Z"

        [packages]
        "apt" = { version = "3.0.3", sha256 = "00" }
        "libstdc++6" = { version = "1:14+really2~3", sha256 = "00" }
        "#);
    }

    #[test]
    fn a_lock_is_read_as_it_was_written_and_one_that_was_edited_is_not() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (directory, written) = (scratch.path().join("images"), lock(&[("apt", "3.0.3")]));
        let load = |suite| Lock::load(&directory, suite);
        assert_eq!(load(Suite::Trixie).expect("none is no error"), None);
        let path = written.write(&directory).expect("write");
        assert_eq!(load(Suite::Trixie).expect("read"), Some(written.clone()));
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(Lock::path(&directory, Suite::Sid), &text).expect("write");
        assert!(load(Suite::Sid).expect_err("another's").to_string().contains("is of trixie"));
        std::fs::write(&path, text.replace("3.0.3", "3.0.4")).expect("write");
        assert!(load(Suite::Trixie).expect_err("edited").to_string().contains("by hand"));
        let mut unknown = written;
        unknown.packages.0.values_mut().for_each(|package| package.sha256 = None);
        assert!(unknown.write(&directory).expect_err("no hash").to_string().contains("--rebuild"));
    }

    #[test]
    fn a_builds_output_has_hashes_and_the_newest_index() {
        let mut records = Records::default();
        let output = "I: running --customize-hook\nrecord: Package: apt\nrecord: Version: 3.0.3\nrecord: SHA256: aa\n\
                      record: Package: dash\nrecord: Version: 0.5\nrecord: SHA256: bb\n\
                      record: Date: Sat, 09 Aug 2025 10:04:26 UTC\nrecord: Date: Thu, 26 Nov 2026  8:12:01 UTC\n\
                      record: Date: Sun, 01 Nov 2026 08:12:01 UTC\nrecord: Date: yesterday\nrecord: nonsense\n";
        output.lines().for_each(|line| records.line(line));
        assert_eq!(records.archive.as_deref(), Some("20261126T081201Z"));
        let versions = [("apt", "3.0.3"), ("dash", "0.6")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(records.of(&versions.into()), BTreeMap::from([("apt".to_owned(), "aa".to_owned())]));
    }
}
