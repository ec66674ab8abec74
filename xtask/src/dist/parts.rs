//! The list of what the programs are made of, as CycloneDX 1.5: each crate that is linked into one, by cargo's own resolution
//! of the build that made it, and the two libraries that are no crates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// A crate of `cargo tree`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression; none if the crate says none.
    licence: Option<String>,
}

/// Which crates each of several packages is made of.
pub(super) type Trees = BTreeMap<String, BTreeSet<Crate>>;

/// How `cargo tree` is asked to print what [`trees`] reads, with `--prefix depth`.
pub(super) const FORMAT: &str = "|{p}|{l}";

/// Reads `cargo tree`: a tree for each package, each line with its depth.
///
/// # Errors
/// With the line that is none.
pub(super) fn trees(text: &str) -> Result<Trees> {
    let mut trees = Trees::new();
    let mut root = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (depth, one) = read(line).with_context(|| format!("cargo tree: {line}"))?;
        if depth == "0" {
            root.clone_from(&one.name);
        }
        trees.entry(root.clone()).or_default().insert(one);
    }
    Ok(trees)
}

/// `1|serde v1.0.229 (proc-macro)|MIT OR Apache-2.0`.
fn read(line: &str) -> Option<(&str, Crate)> {
    let mut fields = line.split('|');
    let (depth, package, licence) = (fields.next()?, fields.next()?, fields.next()?);
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    // An old way to write it, which SPDX does not know.
    let licence = Some(licence.replace('/', " OR ")).filter(|licence| !licence.is_empty());
    Some((depth, Crate { name: name.to_owned(), version: version.to_owned(), licence }))
}

/// The checksums of Cargo.lock, by name and version. A crate of the workspace has none.
///
/// # Errors
/// If it is none.
pub(super) fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let lock: Lock = toml::from_str(lock).context("read Cargo.lock")?;
    let known = lock.package.into_iter().filter_map(|one| Some(((one.name, one.version), one.checksum?)));
    Ok(known.collect())
}

/// A program, and what is in it.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) name: &'a str,
    pub(super) sha256: String,
    pub(super) crates: &'a BTreeSet<Crate>,
}

/// A library that is no crate, with its version and its licence.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) licence: &'static str,
}

/// The list itself. `time` is that of the release, as in RFC 3339.
pub(super) fn list(
    version: &str,
    time: &str,
    programs: &[Program<'_>],
    libraries: &[Library],
    checksums: &BTreeMap<(String, String), String>,
) -> Value {
    let name = |one: &Crate| format!("pkg:cargo/{}@{}", one.name, one.version);
    let of_library = |one: &Library| format!("pkg:generic/{}@{}", one.name, one.version);
    let of_program = |one: &Program<'_>| format!("program:{}", one.name);
    let mut components: Vec<Value> = programs
        .iter()
        .map(|one| {
            json!({
                "type": "application", "bom-ref": of_program(one), "name": one.name, "version": version,
                "licenses": [{ "expression": "MIT" }],
                "hashes": [{ "alg": "SHA-256", "content": one.sha256 }],
            })
        })
        .collect();
    let crates: BTreeSet<&Crate> = programs.iter().flat_map(|program| program.crates).collect();
    components.extend(crates.into_iter().map(|one| {
        let mut component = json!({
            "type": "library", "bom-ref": name(one), "name": one.name, "version": one.version, "purl": name(one),
        });
        if let Some(licence) = &one.licence {
            component["licenses"] = json!([{ "expression": licence }]);
        }
        if let Some(checksum) = checksums.get(&(one.name.clone(), one.version.clone())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        component
    }));
    components.extend(libraries.iter().map(|one| {
        json!({
            "type": "library", "bom-ref": of_library(one), "name": one.name, "version": one.version,
            "purl": of_library(one), "licenses": [{ "expression": one.licence }],
        })
    }));
    let dependencies = programs.iter().map(|one| {
        let parts = one.crates.iter().map(name).chain(libraries.iter().map(of_library));
        json!({ "ref": of_program(one), "dependsOn": parts.collect::<Vec<_>>() })
    });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": { "type": "application", "bom-ref": "left4me", "name": "left4me", "version": version },
        },
        "components": components,
        "dependencies": dependencies.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0|left4me-ctl v0.1.0 (/x/ctl)|MIT
1|serde v1.0.2|MIT/Apache-2.0
2|odd v3.0.0|

0|left4me-helper v0.1.0 (/x/helper)|MIT
1|serde v1.0.2|MIT/Apache-2.0
";

    fn named(name: &str, version: &str, licence: Option<&str>) -> Crate {
        Crate { name: name.to_owned(), version: version.to_owned(), licence: licence.map(str::to_owned) }
    }

    #[test]
    fn a_tree_is_read_for_each_package() {
        let trees = trees(TREE).expect("trees");
        let ctl = [
            named("left4me-ctl", "0.1.0", Some("MIT")),
            named("odd", "3.0.0", None),
            named("serde", "1.0.2", Some("MIT OR Apache-2.0")),
        ];
        assert_eq!(trees["left4me-ctl"], BTreeSet::from(ctl));
        assert_eq!(trees["left4me-helper"].len(), 2);
        let wrong = super::trees("0|serde|MIT").expect_err("no version").to_string();
        assert_eq!(wrong, "cargo tree: 0|serde|MIT");
    }

    #[test]
    fn a_part_is_listed_once_with_its_checksum() {
        let trees = trees(TREE).expect("trees");
        let lock = "[[package]]\nname = \"serde\"\nversion = \"1.0.2\"\nchecksum = \"abc\"\n\
                    [[package]]\nname = \"left4me-ctl\"\nversion = \"0.1.0\"\n";
        let programs = [("l4d2ctl", "left4me-ctl"), ("left4me-overlay", "left4me-helper")]
            .map(|(name, package)| Program { name, sha256: "d".to_owned(), crates: &trees[package] });
        let libraries = [Library { name: "glibc", version: "2.36".to_owned(), licence: "LGPL-2.1-or-later" }];
        let list = list(
            "0.1.0",
            "2026-01-01T00:00:00Z",
            &programs,
            &libraries,
            &checksums(lock).expect("a lock file"),
        );
        let components = list["components"].as_array().expect("components");
        let names: Vec<&str> = components.iter().filter_map(|one| one["name"].as_str()).collect();
        let expected =
            ["l4d2ctl", "left4me-overlay", "left4me-ctl", "left4me-helper", "odd", "serde", "glibc"];
        assert_eq!(names, expected);
        assert_eq!(components[5]["hashes"][0]["content"], "abc");
        assert_eq!(components[4].get("licenses"), None);
        let of_helper = &list["dependencies"][1]["dependsOn"];
        assert_eq!(
            *of_helper,
            json!(["pkg:cargo/left4me-helper@0.1.0", "pkg:cargo/serde@1.0.2", "pkg:generic/glibc@2.36"])
        );
    }
}
