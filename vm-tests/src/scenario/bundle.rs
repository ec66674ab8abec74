//! A scenario's files, and the image by which a restored guest is given its session (see
//! [`vm_agent::wire::DEPLOY_DEVICE`]).

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vm_agent::wire::{self, Call, Put, Request, SESSION_ID, Session};

use crate::machine::config::DEPLOY_BYTES;

/// The files that a guest gets, in order: a later one replaces an earlier one of the same path.
#[derive(Debug, Default)]
pub struct Bundle(Vec<Put>);

impl Bundle {
    /// Adds a file of the host, with its permission bits or those given.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn file(&mut self, from: &Path, to: &str, mode: Option<u32>) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
        let mode = match mode {
            Some(mode) => mode,
            None => std::fs::metadata(from)
                .with_context(|| format!("stat {}", from.display()))?
                .permissions()
                .mode(),
        };
        self.put(to, mode & 0o7777, false, bytes);
        Ok(())
    }

    /// Lays a directory of the host over a directory of the guest: files and links, in the order of their names.
    ///
    /// # Errors
    /// When something can't be read.
    pub fn tree(&mut self, from: &Path, to: &str) -> Result<()> {
        let what = || format!("read {}", from.display());
        let mut entries: Vec<_> =
            std::fs::read_dir(from).with_context(what)?.collect::<Result<_, _>>().with_context(what)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let target = format!("{}/{}", to.trim_end_matches('/'), entry.file_name().to_string_lossy());
            let kind = entry.file_type().with_context(what)?;
            if kind.is_dir() {
                self.tree(&path, &target)?;
            } else if kind.is_symlink() {
                let link =
                    std::fs::read_link(&path).with_context(|| format!("read the link {}", path.display()))?;
                self.put(&target, 0, true, link.to_string_lossy().into_owned().into_bytes());
            } else {
                self.file(&path, &target, None)?;
            }
        }
        Ok(())
    }

    /// Adds a file with this text, mode 0644.
    pub fn text(&mut self, to: &str, text: &str) {
        self.put(to, 0o644, false, text.as_bytes().to_vec());
    }

    /// Where they go.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|put| put.path.as_str())
    }

    /// The same files at other paths.
    ///
    /// # Errors
    /// That of a path which has no other.
    pub fn placed(mut self, place: impl Fn(&str) -> Result<String>) -> Result<Self> {
        for put in &mut self.0 {
            put.path = place(&put.path)?;
        }
        Ok(self)
    }

    fn put(&mut self, path: &str, mode: u32, symlink: bool, bytes: Vec<u8>) {
        self.0.push(Put { path: path.to_owned(), mode, symlink, offset: 0, last: true, bytes });
    }

    /// The files, for a session.
    #[must_use]
    pub fn into_files(self) -> Vec<Put> {
        self.0
    }
}

/// Writes the image of the device that brings a session in, sparse up to its fixed size; without a session an empty
/// one.
///
/// # Errors
/// When the session is more than the device holds, or the image can't be written.
pub fn write_deploy_image(image: &Path, session: Option<Session>) -> Result<()> {
    File::create(image).with_context(|| format!("write {}", image.display()))?;
    let session = session.map(|session| Request { id: SESSION_ID, call: Call::Session(Box::new(session)) });
    write_request(image, session)
}

/// As [`write_deploy_image`], for any request. A guest that has the image already sees what is written.
///
/// # Errors
/// As [`write_deploy_image`].
pub fn write_request(image: &Path, request: Option<Request>) -> Result<()> {
    let what = || format!("write {}", image.display());
    // Its size never changes: a guest may have it mapped.
    let mut file = File::options().write(true).create(true).truncate(false).open(image).with_context(what)?;
    if let Some(request) = request {
        let bytes = wire::encode(&request).context("encode the session")?;
        let length = bytes.len() as u64;
        ensure!(
            length <= DEPLOY_BYTES - 4,
            "files and plan are {length} bytes, more than the {DEPLOY_BYTES} that a guest can be given"
        );
        wire::write_frame(&mut file, &bytes).with_context(what)?;
    }
    file.set_len(DEPLOY_BYTES).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_keeps_modes_links_and_order() {
        let host = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| host.path().join(name);
        std::fs::create_dir(at("b")).expect("mkdir");
        std::fs::write(at("b/run"), "#!/bin/sh").expect("write");
        std::fs::set_permissions(at("b/run"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        std::os::unix::fs::symlink("run", at("b/link")).expect("symlink");
        std::fs::write(at("a"), "text").expect("write");
        let mut bundle = Bundle::default();
        bundle.tree(host.path(), "/").expect("tree");
        let seen: Vec<_> =
            bundle.0.iter().map(|put| (put.path.as_str(), put.symlink, put.mode & 0o111)).collect();
        assert_eq!(seen, [("/a", false, 0), ("/b/link", true, 0), ("/b/run", false, 0o111)]);

        let image = at("image");
        let session = Session { files: bundle.into_files(), ..Session::default() };
        write_deploy_image(&image, Some(session)).expect("write");
        let mut file = File::open(&image).expect("open");
        assert_eq!(file.metadata().expect("metadata").len(), DEPLOY_BYTES);
        let frame = wire::read_frame(&mut file).expect("read");
        let back: Request = wire::decode(&frame).expect("decode");
        let Call::Session(session) = back.call else { panic!("{back:?}") };
        assert_eq!((back.id, session.files.len()), (SESSION_ID, 3));
    }
}
