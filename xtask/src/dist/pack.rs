//! From contents to the bytes of an archive and of a .deb. Pure: the same contents and epoch are the same bytes anywhere, as the
//! compressors are crates, whose versions Cargo.lock has, and no programs of the machine.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use lzma_rust2::{XzOptions, XzWriter};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{EntryType, Header};

use super::contents::Contents;

/// The archive: a tar that zstd compresses, to be unpacked at `/`.
///
/// Of directories it has only those that are ours alone. What tar does to a directory that is there already depends on its
/// options: it may change its mode, or put a directory in the place of a link.
///
/// # Errors
/// If a path is too long for tar.
pub(super) fn archive(contents: &Contents, own: &str, epoch: u64) -> Result<Vec<u8>> {
    let directories = directories(contents).into_iter().filter(|path| path.ends_with(&format!("/{own}")));
    Ok(compress_to_vec(&*tar("", directories.collect(), contents, epoch)?, CompressionLevel::Fastest))
}

/// The package: deb(5).
///
/// # Errors
/// As [`archive`].
pub(super) fn deb(control: &Contents, contents: &Contents, epoch: u64) -> Result<Vec<u8>> {
    let root = || BTreeSet::from([String::new()]);
    let control = xz(&tar("./", root(), control, epoch)?)?;
    let all = directories(contents).into_iter().chain(root()).collect();
    let data = xz(&tar("./", all, contents, epoch)?)?;
    let mut deb = b"!<arch>\n".to_vec();
    for (name, bytes) in
        [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", &control), ("data.tar.xz", &data)]
    {
        writeln!(deb, "{name:<16}{epoch:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, "100644", bytes.len())?;
        deb.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            deb.push(b'\n');
        }
    }
    Ok(deb)
}

/// Every directory above a file.
fn directories(contents: &Contents) -> BTreeSet<String> {
    let above = contents.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    above.collect()
}

/// Everything is root's, and of one time. A directory comes before what it has.
fn tar(before: &str, directories: BTreeSet<String>, contents: &Contents, epoch: u64) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: String, kind: EntryType, mode: u32, bytes: &[u8]| {
        let mut header = Header::new_ustar();
        // As it is: set_path() would drop the `./` that dpkg's own packages have.
        let name = &mut header.as_ustar_mut().context("a header of ustar")?.name;
        ensure!(path.len() <= name.len(), "{path} is longer than {} bytes", name.len());
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_mtime(epoch);
        header.set_size(u64::try_from(bytes.len())?);
        header.set_cksum();
        builder.append(&header, bytes).with_context(|| path)
    };
    for directory in directories {
        let slash = if directory.is_empty() { "" } else { "/" };
        add(format!("{before}{directory}{slash}"), EntryType::Directory, 0o755, &[])?;
    }
    for (path, member) in contents {
        ensure!(!path.is_empty() && !path.starts_with('/'), "no path of a file: {path:?}");
        add(format!("{before}{path}"), EntryType::Regular, member.mode, &member.bytes)?;
    }
    Ok(builder.into_inner()?)
}

fn xz(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packed = XzWriter::new(Vec::new(), XzOptions::with_preset(6))?;
    packed.write_all(bytes)?;
    Ok(packed.finish()?)
}
