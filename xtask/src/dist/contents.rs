//! What a package has: each path with its mode and its bytes, from the list and the checkout. No mode, owner or time of a file
//! on this machine gets into it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};

use super::manifest::{File, Kind, Manifest};

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
}

/// Files by their paths, without a slash in front, in the order in which they are packed.
pub(super) type Contents = BTreeMap<String, Member>;

/// Texts that stand for `{name}` in what the .deb alone has.
pub(super) type Values<'a> = [(&'a str, String)];

/// What goes onto a host.
///
/// # Errors
/// With its name, if a file or a program of the list is missing; if two have one path.
pub(super) fn on_host(
    root: &Path,
    manifest: &Manifest,
    programs: &BTreeMap<String, Vec<u8>>,
    kind: Kind,
    values: &Values<'_>,
) -> Result<Contents> {
    let mut contents = Contents::new();
    let mut add = |path: &str, mode, bytes| {
        let path = path.trim_start_matches('/').to_owned();
        let earlier = contents.insert(path.clone(), Member { mode, bytes });
        ensure!(earlier.is_none(), "two files have the path /{path}");
        Ok(())
    };
    for (to, program) in &manifest.programs {
        let bytes = programs.get(&program.program);
        let bytes = bytes.with_context(|| format!("{to}: no program {} was built", program.program))?;
        add(&manifest.path(to, kind)?, program.mode, bytes.clone())?;
    }
    for (to, file) in manifest.files.iter().filter(|(_to, file)| file.only.is_none_or(|only| only == kind)) {
        let mut bytes = read(root, manifest, to, file)?;
        let mut path = manifest.path(to, kind)?;
        if kind == Kind::Deb {
            bytes = match (&file.from, file.only) {
                (None, _) => edit(bytes, |text| manifest.in_deb(&text)),
                (Some(_), _) if file.names_places => edit(bytes, |text| manifest.in_deb(&text)),
                (Some(from), Some(_)) if from.contains("/deb/") => edit(bytes, |text| filled(text, values)),
                (Some(_), _) => Ok(bytes),
            }
            .with_context(|| to.clone())?;
            if file.gzip {
                (path, bytes) = (format!("{path}.gz"), gzip(&bytes)?);
            }
        }
        add(&path, file.mode, bytes)?;
    }
    Ok(contents)
}

/// What dpkg is told.
///
/// # Errors
/// As [`on_host`].
pub(super) fn control(root: &Path, manifest: &Manifest, values: &Values<'_>) -> Result<Contents> {
    let members = manifest.control.iter().map(|(name, file)| {
        let bytes = read(root, manifest, name, file)?;
        let bytes = edit(bytes, |text| filled(text, values)).with_context(|| name.clone())?;
        Ok((name.clone(), Member { mode: file.mode, bytes }))
    });
    members.collect()
}

/// How much of a disk it needs, in KiB, as `Installed-Size` counts: each file, rounded up.
pub(super) fn installed_kib(contents: &Contents) -> usize {
    contents.values().map(|member| member.bytes.len().div_ceil(1024)).sum()
}

fn read(root: &Path, manifest: &Manifest, to: &str, file: &File) -> Result<Vec<u8>> {
    let path = root.join(manifest.source(to, file)?);
    std::fs::read(&path).with_context(|| format!("{to}: read {}", path.display()))
}

fn edit(bytes: Vec<u8>, how: impl FnOnce(String) -> Result<String>) -> Result<Vec<u8>> {
    Ok(how(String::from_utf8(bytes).context("it is no text")?)?.into_bytes())
}

/// The text with its `{name}`s filled in. A shell's `${name}` is not one of ours by chance: none of it is left.
fn filled(text: String, values: &Values<'_>) -> Result<String> {
    Ok(values.iter().fold(text, |text, (name, value)| text.replace(&format!("{{{name}}}"), value)))
}

/// As `gzip -9n`: no name, no time.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;

    let mut packed = GzBuilder::new().write(Vec::new(), Compression::best());
    packed.write_all(bytes)?;
    Ok(packed.finish()?)
}
