//! `deploy/manifest.toml`: everything that a host gets, with its place in the archive and in the .deb.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Where it lies, from the checkout's root.
pub(super) const FILE: &str = "deploy/manifest.toml";

/// That of the operator's page.
const PAGE: &str = "web/manifest.toml";

/// What lies here is packed at the path that it has below.
pub(crate) const TREE: &str = "deploy/files";

/// What is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// The archive, for any distribution: the paths that scenarios deploy to.
    Archive,
    /// The package of Debian, at the paths that its policy has for packages.
    Deb,
}

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    places: BTreeMap<String, Place>,
    /// By where they go.
    pub(super) programs: BTreeMap<String, Program>,
    /// By where they go.
    pub(super) files: BTreeMap<String, File>,
    /// What dpkg is told, by name.
    pub(super) control: BTreeMap<String, File>,
}

/// A directory in each of both.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    archive: String,
    deb: String,
}

impl Place {
    fn of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Archive => &self.archive,
            Kind::Deb => &self.deb,
        }
    }
}

/// A program that is built.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    /// Its binary's name.
    pub(super) program: String,
    pub(super) mode: u32,
    /// Why no scenario deploys it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the reader, and for the test that compares with scenarios")
    )]
    pub(super) not_in_scenarios: Option<String>,
}

/// A file of the checkout.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Where it lies, from the checkout's root; without it, in [`TREE`].
    pub(super) from: Option<String>,
    pub(super) mode: u32,
    /// The only kind that has it.
    pub(super) only: Option<Kind>,
    /// Whether its text names places, though it lies elsewhere.
    #[serde(default)]
    pub(super) names_places: bool,
    /// Compressed in the .deb.
    #[serde(default)]
    pub(super) gzip: bool,
}

impl Manifest {
    /// That of a checkout.
    ///
    /// # Errors
    /// If it can't be read, or says what is none.
    pub(super) fn read(root: &Path) -> Result<Self> {
        Self::read_at(&root.join(FILE))
    }

    /// That of the operator's page.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn page(root: &Path) -> Result<Self> {
        Self::read_at(&root.join(PAGE))
    }

    fn read_at(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// A path of the list as a path of a host: `{bin}/l4d2ctl` as `/usr/bin/l4d2ctl`.
    ///
    /// # Errors
    /// If it begins with no place.
    pub(super) fn path(&self, to: &str, kind: Kind) -> Result<String> {
        let parts = to.strip_prefix('{').and_then(|rest| rest.split_once("}/"));
        let (place, rest) =
            parts.with_context(|| format!("{FILE}: {to} does not begin with a place: {{bin}}/name"))?;
        let Some(place) = self.places.get(place) else { bail!("{FILE}: {to}: no place {place}") };
        Ok(format!("{}/{rest}", place.of(kind)))
    }

    /// Where a file lies in the checkout.
    ///
    /// # Errors
    /// As [`Self::path`].
    pub(super) fn source(&self, to: &str, file: &File) -> Result<PathBuf> {
        match &file.from {
            Some(from) => Ok(PathBuf::from(from)),
            None => Ok(Path::new(TREE).join(self.path(to, Kind::Archive)?.trim_start_matches('/'))),
        }
    }

    /// A text with the archive's places as the .deb has it: equal but for these.
    ///
    /// # Errors
    /// With the line, if it names something else below `/usr/local`.
    pub(super) fn in_deb(&self, text: &str) -> Result<String> {
        let mut places: Vec<&Place> = self.places.values().collect();
        // Where one place lies in another, the inner one is meant.
        places.sort_by_key(|place| std::cmp::Reverse(place.archive.len()));
        let changed = places.iter().fold(text.to_owned(), |text, place| {
            text.replace(&format!("{}/", place.archive), &format!("{}/", place.deb))
        });
        match changed.lines().find(|line| line.contains("/usr/local")) {
            Some(line) => bail!("it names a path that has no place in {FILE}: {line}"),
            None => Ok(changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::left4me;

    fn this() -> (PathBuf, Manifest) {
        let root = left4me::workspace().expect("the workspace").root;
        let manifest = Manifest::read(&root).expect("the manifest");
        (root, manifest)
    }

    /// The files below a directory, relative to it.
    fn files(directory: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![directory.to_owned()];
        while let Some(next) = waiting.pop() {
            for entry in
                std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display()))
            {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    found.insert(path.strip_prefix(directory).expect("below it").to_owned());
                }
            }
        }
        found
    }

    #[test]
    fn all_of_deploy_is_in_the_list_and_nothing_else() {
        let (root, manifest) = this();
        let sources = manifest.files.iter().chain(&manifest.control);
        let mut listed: BTreeSet<PathBuf> =
            sources.map(|(to, file)| manifest.source(to, file).expect("a place")).collect();
        listed.insert(FILE.into());
        let there: BTreeSet<PathBuf> =
            files(&root.join("deploy")).iter().map(|file| Path::new("deploy").join(file)).collect();
        let missing: Vec<_> = there.difference(&listed).collect();
        assert!(missing.is_empty(), "{FILE} lacks {missing:?}");
        let gone: Vec<_> = listed.iter().filter(|file| !root.join(file).is_file()).collect();
        assert!(gone.is_empty(), "{FILE} lists {gone:?}, which are not there");
    }

    /// The programs that a fixture of scenarios deploys, by their paths, and its trees.
    fn deployed(root: &Path, fixture: &str) -> (BTreeMap<String, String>, Vec<String>) {
        let text = std::fs::read_to_string(root.join(fixture)).expect(fixture);
        let table: toml::Table = toml::from_str(&text).expect(fixture);
        let deploy = table["deploy"].as_table().expect("what it deploys");
        let text = |value: &toml::Value| value.as_str().expect("text").to_owned();
        let programs = deploy["programs"].as_table().expect("programs");
        let trees = deploy.get("trees").and_then(toml::Value::as_array).into_iter().flatten();
        let programs = programs.iter().map(|(path, name)| (path.clone(), text(name)));
        (programs.collect(), trees.map(text).collect())
    }

    #[test]
    fn scenarios_deploy_what_a_host_gets() {
        let (root, manifest) = this();
        let (mut programs, trees) = deployed(&root, "vm-tests/fixtures/left4me.toml");
        programs.extend(deployed(&root, "vm-tests/fixtures/product.toml").0);
        assert!(trees.contains(&format!("../../{TREE}")), "scenarios deploy {trees:?}, and not {TREE}");
        // The stand-ins of the game and of its users are the harness's.
        programs.retain(|_path, name| !name.starts_with("vm-"));
        let shipped = manifest.programs.iter().filter(|(_to, program)| program.not_in_scenarios.is_none());
        let shipped: BTreeMap<String, String> = shipped
            .map(|(to, program)| {
                (manifest.path(to, Kind::Archive).expect("a place"), program.program.clone())
            })
            .collect();
        assert_eq!(programs, shipped, "what scenarios deploy, and what {FILE} lists");
    }

    #[test]
    fn every_program_of_the_workspace_is_shipped() {
        let (_root, manifest) = this();
        let packages = left4me::workspace().expect("the workspace").packages;
        let built = packages.iter().flat_map(|package| package.binaries).copied();
        let built: BTreeSet<&str> = built.chain(["holders"]).collect();
        let listed: BTreeSet<&str> = manifest.programs.values().map(|one| one.program.as_str()).collect();
        assert_eq!(built, listed);
    }

    #[test]
    fn a_place_is_named_and_known() {
        let (_root, manifest) = this();
        let path = |to, kind| manifest.path(to, kind).map_err(|error| error.to_string());
        assert_eq!(path("{bin}/x", Kind::Archive), Ok("/usr/local/bin/x".to_owned()));
        assert_eq!(path("{bin}/x", Kind::Deb), Ok("/usr/bin/x".to_owned()));
        let unknown = path("{etc}/x", Kind::Deb).expect_err("no place");
        assert_eq!(unknown, "deploy/manifest.toml: {etc}/x: no place etc");
        let bare = path("/usr/bin/x", Kind::Deb).expect_err("no place");
        assert!(bare.contains("does not begin with a place"), "{bare}");
    }

    #[test]
    fn a_text_names_the_places_of_the_deb() {
        let (_root, manifest) = this();
        let text = "ExecStart=/usr/local/libexec/left4me/x %i\n/usr/local/bin/y, /usr/bin/z\n";
        let expected = "ExecStart=/usr/libexec/left4me/x %i\n/usr/bin/y, /usr/bin/z\n";
        assert_eq!(manifest.in_deb(text).expect("all have places"), expected);
        let other = manifest.in_deb("one\nin /usr/local/games\n").expect_err("no place").to_string();
        assert!(other.ends_with("manifest.toml: in /usr/local/games"), "{other}");
    }
}
