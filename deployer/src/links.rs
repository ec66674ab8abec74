//! The paths at which systemd and people look: links through `current`. They are made before the switch, when they lead nowhere or
//! to the old version's same bytes, and those that the new version has no file for are removed after it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::host::{Host, durable};
use crate::store;
use crate::wire::{Id, Manifest};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Free,
    /// Our link.
    Ours,
    /// A file, as an archive that is unpacked has it.
    File,
    /// Something else, in words.
    Foreign(String),
}

/// Looks at a path.
///
/// # Errors
/// Of lstat(2), with the path.
pub fn look(host: &Host, path: &str) -> Result<Place> {
    let at = host.at(path);
    let about = match fs::symlink_metadata(&at) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Place::Free),
        other => other.with_context(|| format!("lstat {}", at.display()))?,
    };
    Ok(if about.is_symlink() {
        let target = fs::read_link(&at).with_context(|| format!("read the link {}", at.display()))?;
        match target == Host::through_current(path) {
            true => Place::Ours,
            false => Place::Foreign(format!("a link to {}", target.display())),
        }
    } else if about.is_file() {
        Place::File
    } else {
        Place::Foreign("neither a file nor a link".to_owned())
    })
}

/// The paths that any version on the host has, or the one that is meant.
///
/// # Errors
/// A manifest that can't be read.
pub fn known(host: &Host, also: Option<&Manifest>) -> Result<BTreeSet<String>> {
    let mut paths: BTreeSet<String> =
        also.iter().flat_map(|manifest| manifest.files.keys().cloned()).collect();
    let Ok(entries) = fs::read_dir(host.at(crate::host::VERSIONS)) else { return Ok(paths) };
    for entry in entries {
        let name = entry.context("read the versions")?.file_name();
        if let Some(manifest) = name.to_str().and_then(|id| store::manifest(host, id).transpose()) {
            paths.extend(manifest?.files.into_keys());
        }
    }
    Ok(paths)
}

/// The paths that are files: what an adoption would keep.
///
/// # Errors
/// As [`look`].
pub fn files(host: &Host, paths: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for path in paths {
        if look(host, path)? == Place::File {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// Has a link at each path. What it replaces is a file whose bytes are those of the version in use.
///
/// # Errors
/// Of the calls, with the path.
pub fn make<'a>(host: &Host, paths: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut stored = BTreeSet::new();
    for path in paths {
        if look(host, path)? == Place::Ours {
            continue;
        }
        let at = host.at(path);
        let parent = at.parent().context("a file has a directory")?;
        durable::directories(parent)?;
        let new = durable::beside(&at);
        durable::make_link(&new, &Host::through_current(path))?;
        fs::rename(&new, &at).with_context(|| format!("rename {} to {}", new.display(), at.display()))?;
        stored.insert(parent.to_owned());
    }
    stored.iter().try_for_each(|directory| durable::store(directory))
}

/// Removes our links that lead to no file of the version in use, and what a broken off deploy has left beside them.
///
/// # Errors
/// Of the calls, with the path.
pub fn prune(host: &Host, current: Option<&Id>) -> Result<()> {
    let manifest = match current {
        Some(id) => store::manifest(host, id)?,
        None => None,
    };
    for path in known(host, None)? {
        let at = host.at(&path);
        let is_wanted = manifest.as_ref().is_some_and(|manifest| manifest.files.contains_key(&path));
        if !is_wanted && look(host, &path)? == Place::Ours {
            durable::remove(&at)?;
            remove_empty(host, at.parent());
        }
        if at.parent().is_some_and(Path::is_dir) {
            durable::remove(&durable::beside(&at))?;
        }
    }
    Ok(())
}

/// Removes the directory if it is left4me's own and empty.
fn remove_empty(host: &Host, directory: Option<&Path>) {
    let own = ["/usr/local/libexec/left4me", "/usr/local/share/doc/left4me"].map(|path| host.at(path));
    if let Some(directory) = directory.filter(|directory| own.iter().any(|own| own == directory)) {
        // It may have something else in it.
        if let Err(error) = fs::remove_dir(directory)
            && error.kind() != std::io::ErrorKind::DirectoryNotEmpty
        {
            eprintln!("rmdir {}: {error}", directory.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::wire::CONTROL;

    #[test]
    fn a_place_is_free_or_ours_or_a_file_or_foreign() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        let at = host.at(CONTROL);
        let looked = || look(&host, CONTROL).expect("looked");
        assert_eq!(looked(), Place::Free);
        make(&host, [&CONTROL.to_owned()]).expect("made");
        assert_eq!(looked(), Place::Ours);
        assert_eq!(
            fs::read_link(&at).expect("a link"),
            Path::new("/usr/local/lib/left4me/current/usr/local/bin/l4d2ctl")
        );
        fs::remove_file(&at).expect("removed");
        fs::write(&at, "by hand").expect("written");
        assert_eq!(looked(), Place::File);
        fs::remove_file(&at).expect("removed");
        symlink("/opt/l4d2ctl", &at).expect("linked");
        assert_eq!(looked(), Place::Foreign("a link to /opt/l4d2ctl".to_owned()));
        fs::remove_file(&at).expect("removed");
        fs::create_dir(&at).expect("made");
        assert_eq!(looked(), Place::Foreign("neither a file nor a link".to_owned()));
    }
}
