//! The versions that the host keeps: received, adopted from files that were unpacked by hand, looked at, deleted.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::{CURRENT, Host, STATE, VERSIONS, durable};
use crate::wire::{self, File, Id, Manifest};

/// A version's manifest, in its directory. Written last: a directory without it is no version.
const MANIFEST: &str = "version.json";

/// How many versions stay that nobody uses.
const KEPT: usize = 5;

/// The longest file of a version, in bytes.
const LARGEST: u64 = 64 << 20;

/// The version in use.
///
/// # Errors
/// `current` is something else than a link to a version.
pub fn current(host: &Host) -> Result<Option<Id>> {
    let link = host.at(CURRENT);
    let target = match fs::read_link(&link) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("read the link {}", link.display()))?,
    };
    let id = target.strip_prefix("versions").ok().and_then(|id| id.to_str()).filter(|id| is_id(id));
    let id = id.with_context(|| format!("{} names {}, and no version", link.display(), target.display()))?;
    Ok(Some(id.to_owned()))
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The manifest of a version that is on the host; `None` if it is not, or only in part.
///
/// # Errors
/// It can't be read.
pub fn manifest(host: &Host, id: &str) -> Result<Option<Manifest>> {
    let path = host.version(id).join(MANIFEST);
    match fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Whether a manifest is one that may be written: every path is a plain one below `/usr/local`, and the required ones are there.
///
/// # Errors
/// Says which path is wrong or missing.
pub fn check(manifest: &Manifest) -> Result<()> {
    for (path, file) in &manifest.files {
        let rest =
            path.strip_prefix("/usr/local/").with_context(|| format!("{path} is not below /usr/local"))?;
        let is_plain = rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        ensure!(
            is_plain && !path.starts_with(crate::host::HOME),
            "{path} is no path for a file of a version"
        );
        ensure!(
            file.mode & !0o755 == 0 && file.size <= LARGEST,
            "{path}: mode {:o}, {} bytes",
            file.mode,
            file.size
        );
    }
    let missing: Vec<_> = wire::REQUIRED.iter().filter(|path| !manifest.files.contains_key(**path)).collect();
    ensure!(missing.is_empty(), "the version lacks {missing:?}");
    Ok(())
}

/// The sums of the files that no version on the host has with these bytes.
///
/// # Errors
/// A manifest that can't be read.
pub fn missing(host: &Host, wanted: &Manifest) -> Result<Vec<String>> {
    let there = blobs(host)?;
    let mut missing: Vec<String> = wanted.files.values().map(|file| file.sha256.clone()).collect();
    missing.sort();
    missing.dedup();
    missing.retain(|sum| !there.contains_key(sum));
    Ok(missing)
}

/// Where bytes lie on the host, by their sums, as manifests say it: whoever copies one looks whether it is so.
fn blobs(host: &Host) -> Result<BTreeMap<String, std::path::PathBuf>> {
    let mut found = BTreeMap::new();
    for id in all(host)? {
        if let Some(manifest) = manifest(host, &id)? {
            let files = manifest.files.iter();
            found.extend(files.map(|(path, file)| (file.sha256.clone(), host.in_version(&id, path))));
        }
    }
    Ok(found)
}

/// The versions on the host, whole or not, by name.
fn all(host: &Host) -> Result<Vec<Id>> {
    let directory = host.at(VERSIONS);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", directory.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("read {}", directory.display()))?.file_name();
        names.extend(name.to_str().filter(|name| is_id(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Keeps a version: its files from what follows, or from other versions. A version that is there already is looked at and left.
///
/// # Errors
/// Bytes that are not what the manifest says; the calls', with the path.
pub fn receive(
    host: &Host,
    manifest: &Manifest,
    blobs: &[(String, u64)],
    input: &mut impl Read,
) -> Result<Id> {
    check(manifest)?;
    let id = manifest.id();
    let mut received: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (sum, size) in blobs {
        ensure!(*size <= LARGEST, "a file of {size} bytes");
        let mut bytes = Vec::new();
        input.by_ref().take(*size).read_to_end(&mut bytes).context("read a file from the client")?;
        ensure!(bytes.len() as u64 == *size, "the link was cut within a file");
        ensure!(wire::sum(&bytes) == *sum, "a file has other bytes than its sum says");
        received.insert(sum.clone(), bytes);
    }
    let there = self::blobs(host)?;
    write(host, &id, manifest, |_path, file| match received.get(&file.sha256) {
        Some(bytes) => Ok(bytes.clone()),
        None => {
            let from =
                there.get(&file.sha256).with_context(|| format!("no bytes with sum {}", file.sha256))?;
            fs::read(from).with_context(|| format!("read {}", from.display()))
        }
    })?;
    Ok(id)
}

/// Keeps files that lie in their places, of an archive that was unpacked by hand, as a version.
///
/// # Errors
/// The calls', with the path.
pub fn adopt(host: &Host, manifest: &Manifest) -> Result<Id> {
    let id = manifest.id();
    write(host, &id, manifest, |path, _file| {
        let from = host.at(path);
        fs::read(&from).with_context(|| format!("read {}", from.display()))
    })?;
    Ok(id)
}

/// What [`adopt`] would keep: the files at these paths.
///
/// # Errors
/// One can't be read.
pub fn adoptable(host: &Host, paths: &[String]) -> Result<Manifest> {
    let mut files = BTreeMap::new();
    for path in paths {
        let at = host.at(path);
        let read = || -> std::io::Result<(Vec<u8>, u32)> {
            Ok((fs::read(&at)?, fs::metadata(&at)?.permissions().mode() & 0o7777))
        };
        let (bytes, mode) = read().with_context(|| format!("read {}", at.display()))?;
        let sha256 = wire::sum(&bytes);
        files.insert(path.clone(), File { mode, size: bytes.len() as u64, sha256 });
    }
    // What was unpacked by hand is of the only interface that there was before deploys; what it was tested with is not known, and
    // it runs here.
    let version = "unpacked by hand".to_owned();
    let any = ((0, 0), (u32::MAX, u32::MAX));
    Ok(Manifest { version, interface: 1, systemd: (0, u32::MAX), kernel: any, files })
}

fn write(
    host: &Host,
    id: &str,
    manifest: &Manifest,
    bytes_of: impl Fn(&str, &File) -> Result<Vec<u8>>,
) -> Result<()> {
    let place = host.version(id);
    if self::manifest(host, id)?.is_some() && damage(host, id, manifest)?.is_empty() {
        return Ok(());
    }
    ensure!(current(host)?.as_deref() != Some(id), "version {id}, which is in use, is damaged");
    durable::remove_tree(&place)?;
    let new = durable::beside(&place);
    durable::remove_tree(&new)?;
    durable::directories(&new)?;
    let mut directories = std::collections::BTreeSet::from([new.clone()]);
    for (path, file) in &manifest.files {
        let bytes = bytes_of(path, file)?;
        ensure!(wire::sum(&bytes) == file.sha256, "{path} has other bytes than its sum says");
        let at = new.join(path.trim_start_matches('/'));
        let parent = at.parent().context("a file has a directory")?;
        make_all(parent)?;
        directories
            .extend(parent.ancestors().take_while(|above| above.starts_with(&new)).map(Path::to_owned));
        durable::fill(&at, file.mode, &bytes)?;
    }
    durable::fill(&new.join(MANIFEST), 0o644, &serde_json::to_vec(manifest)?)?;
    for directory in directories {
        durable::store(&directory)?;
    }
    durable::rename(&new, &place)
}

/// As [`durable::directories`], without storing each on the way: all are stored before the rename.
fn make_all(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_all(path.parent().context("below the root")?)?;
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("mkdir {}", path.display()))
}

/// What of a version is not as its manifest says.
///
/// # Errors
/// A file that can't be read for another reason than that it is missing.
pub fn damage(host: &Host, id: &str, manifest: &Manifest) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (path, file) in &manifest.files {
        let at = host.in_version(id, path);
        match fs::read(&at) {
            Ok(bytes) if wire::sum(&bytes) == file.sha256 => {
                let mode =
                    fs::metadata(&at).with_context(|| format!("stat {}", at.display()))?.permissions().mode();
                if mode & 0o7777 != file.mode {
                    wrong.push(format!("{path}: mode {:o}, not {:o}", mode & 0o7777, file.mode));
                }
            }
            Ok(_other) => wrong.push(format!("{path}: other bytes")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                wrong.push(format!("{path}: missing"))
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", at.display())),
        }
    }
    Ok(wrong)
}

/// Where the link for a version waits, beside `current`: made before it is needed, as a full disk has no room for it then.
fn waiting(host: &Host, id: &str) -> std::path::PathBuf {
    host.at(CURRENT).with_file_name(format!(".left4me-to-{id}"))
}

/// Makes the link by which [`switch`] will go to a version.
///
/// # Errors
/// The calls', with the path.
pub fn prepare(host: &Host, to: Option<&Id>) -> Result<()> {
    let Some(id) = to else { return Ok(()) };
    let link = waiting(host, id);
    durable::make_link(&link, &Path::new("versions").join(id))?;
    durable::store(link.parent().context("a link has a directory")?)
}

/// The switch: one rename, or for no version at all one unlink.
///
/// # Errors
/// There is no such version; the calls', with the path.
pub fn switch(host: &Host, to: Option<&Id>) -> Result<()> {
    let link = host.at(CURRENT);
    let Some(id) = to else { return durable::remove(&link) };
    if current(host)?.as_ref() == Some(id) {
        return Ok(());
    }
    if manifest(host, id)?.is_none() {
        bail!("version {id} is not on the host");
    }
    prepare(host, to)?;
    durable::rename(&waiting(host, id), &link)
}

/// Deletes what nobody needs any more: versions beyond the newest [`KEPT`] of `keep`, half a version, links that wait.
///
/// # Errors
/// The calls', with the path.
pub fn tidy(host: &Host, keep: &[Option<Id>]) -> Result<()> {
    let kept: Vec<&Id> = keep.iter().flatten().take(KEPT + 1).collect();
    let current = current(host)?;
    for id in all(host)? {
        if current.as_ref() != Some(&id) && !kept.contains(&&id) && was_used(host, &id)? {
            durable::remove_tree(&host.version(&id))?;
        }
    }
    for (directory, begin) in
        [(VERSIONS, durable::BESIDE), (crate::host::HOME, ".left4me-to-"), (STATE, durable::BESIDE)]
    {
        let Ok(entries) = fs::read_dir(host.at(directory)) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("read {directory}"))?;
            if entry.file_name().to_string_lossy().starts_with(begin) {
                match entry.file_type().with_context(|| format!("stat {}", entry.path().display()))?.is_dir()
                {
                    true => durable::remove_tree(&entry.path())?,
                    false => durable::remove(&entry.path())?,
                }
            }
        }
    }
    Ok(())
}

/// Whether a version was in use before: one that was staged for later stays.
fn was_used(host: &Host, id: &str) -> Result<bool> {
    let log = crate::state::read_log(host)?;
    let is = |one: &Option<Id>| one.as_deref() == Some(id);
    Ok(log.iter().any(|entry| is(&entry.to) || is(&entry.from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn version(text: &str) -> (Manifest, BTreeMap<String, Vec<u8>>) {
        let (mut files, mut blobs) = (BTreeMap::new(), BTreeMap::new());
        for path in wire::REQUIRED {
            let bytes = format!("{text} {path}").into_bytes();
            let file = File { mode: 0o755, size: bytes.len() as u64, sha256: wire::sum(&bytes) };
            blobs.insert(file.sha256.clone(), bytes);
            files.insert(path.to_owned(), file);
        }
        let kernel = ((6, 1), (6, 18));
        (Manifest { version: text.to_owned(), interface: 1, systemd: (252, 260), kernel, files }, blobs)
    }

    fn stage(host: &Host, text: &str) -> Id {
        let (manifest, blobs) = version(text);
        let list: Vec<_> = blobs.iter().map(|(sum, bytes)| (sum.clone(), bytes.len() as u64)).collect();
        let bytes = blobs.into_values().collect::<Vec<_>>().concat();
        receive(host, &manifest, &list, &mut &bytes[..]).expect("received")
    }

    #[test]
    fn a_version_is_received_once_and_switched_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        let (manifest, _) = version("one");
        assert_eq!(missing(&host, &manifest).expect("read").len(), 5);
        let one = stage(&host, "one");
        assert_eq!(missing(&host, &manifest).expect("read"), [""; 0]);
        assert_eq!(receive(&host, &manifest, &[], &mut &b""[..]).expect("there"), one);
        assert_eq!(current(&host).expect("read"), None);
        switch(&host, Some(&one)).expect("switched");
        assert_eq!(current(&host).expect("read"), Some(one.clone()));
        let two = stage(&host, "two");
        switch(&host, Some(&two)).expect("switched");
        let text = fs::read_to_string(host.at(CURRENT).join("usr/local/bin/l4d2ctl")).expect("read");
        assert_eq!(text, "two /usr/local/bin/l4d2ctl");
        switch(&host, None).expect("switched");
        assert_eq!(current(&host).expect("read"), None);
    }

    #[test]
    fn a_damaged_version_is_written_again_but_not_under_its_users() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        let one = stage(&host, "one");
        let (manifest, _) = version("one");
        fs::write(host.in_version(&one, wire::HELPER), "other").expect("written");
        assert_eq!(damage(&host, &one, &manifest).expect("read"), [format!("{}: other bytes", wire::HELPER)]);
        stage(&host, "one");
        assert_eq!(damage(&host, &one, &manifest).expect("read"), [""; 0]);
        switch(&host, Some(&one)).expect("switched");
        fs::remove_file(host.in_version(&one, wire::HELPER)).expect("removed");
        let error = receive(&host, &manifest, &[], &mut &b""[..]).expect_err("in use").to_string();
        assert!(error.ends_with("which is in use, is damaged"), "{error}");
    }

    #[test]
    fn a_cut_link_leaves_no_version() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        let (manifest, blobs) = version("one");
        let list: Vec<_> = blobs.iter().map(|(sum, bytes)| (sum.clone(), bytes.len() as u64)).collect();
        let error = receive(&host, &manifest, &list, &mut &b"one /usr"[..]).expect_err("cut").to_string();
        assert_eq!(error, "the link was cut within a file");
        assert_eq!(self::manifest(&host, &manifest.id()).expect("read"), None);
    }

    #[test]
    fn paths_of_a_version_stay_below_usr_local() {
        let of = |path: &str, mode: u32| {
            let (mut manifest, _) = version("one");
            manifest.files.insert(path.to_owned(), File { mode, size: 1, sha256: String::new() });
            check(&manifest).map_err(|error| error.to_string())
        };
        assert_eq!(of("/usr/local/bin/x", 0o755), Ok(()));
        for path in [
            "/etc/passwd",
            "/usr/local/../x",
            "/usr/local//x",
            "/usr/local/lib/left4me/current",
            "usr/local/x",
        ] {
            of(path, 0o644).expect_err(path);
        }
        of("/usr/local/bin/x", 0o4755).expect_err("set-user-ID");
    }

    #[test]
    fn of_old_versions_some_stay_and_what_was_staged_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let host = Host::new(directory.path());
        let ids: Vec<Id> = (0..8).map(|n| stage(&host, &n.to_string())).collect();
        let staged = stage(&host, "staged");
        durable::directories(&host.at(STATE)).expect("made");
        for id in &ids {
            let pending = crate::state::Pending {
                token: String::new(),
                by: String::new(),
                at: 0,
                from: None,
                to: Some(id.clone()),
            };
            crate::state::log(&host, wire::What::Confirmed, &pending, Some(id), "").expect("written");
        }
        switch(&host, ids.last()).expect("switched");
        let keep: Vec<_> = ids.iter().rev().cloned().map(Some).collect();
        tidy(&host, &keep).expect("tidied");
        let there: Vec<bool> = ids.iter().map(|id| host.version(id).exists()).collect();
        assert_eq!(there, [false, false, true, true, true, true, true, true]);
        assert!(host.version(&staged).exists());
    }
}
