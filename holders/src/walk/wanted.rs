//! What a walk is to keep.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::stuck::StuckProcess;
use crate::mount::Device;
use crate::task::Detail;

/// What a walk keeps.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Mount points; a link is kept if it shows a path at or below one of them.
    pub(crate) mount_points: MountPoints,
    /// Superblocks; a mapping of a file on one of them is kept.
    pub(crate) devices: Vec<Device>,
    /// Inode numbers of sockets that are bound to a file, and the superblock that it is on.
    pub(crate) sockets: HashMap<u64, Device>,
    /// Keep which network namespaces there are, in [`super::Walk::networks`].
    pub(crate) networks: bool,
    /// The devices have other mounts that are of no interest: a mapping is kept only if its path is, too.
    pub(crate) devices_are_shared: bool,
    /// Also keep links, whatever they show, that lie on one of `devices`: those of a mount that was detached
    /// show a path from its own root. Costs a statx for every link.
    pub(crate) detached: bool,
    /// Keep all sockets, io_uring instances and fanotify groups, in [`super::Walk::carriers`].
    pub(crate) carriers: bool,
    /// What to say in [`super::Walk::tasks`] of who has a link that is kept, or a ring, or is a member.
    pub(crate) detail: Detail,
    /// Who is known not to let a look come back: nobody looks again.
    pub(crate) stuck: Vec<StuckProcess>,
    /// Which tasks to keep in [`super::Walk::members`].
    pub(crate) members: Members,
}

/// Tasks by the inode number of the mount namespace that they are in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Members {
    #[default]
    OfNone,
    Of(u64),
    OfAllBut(u64),
}

/// Some absolute paths, and whether another one lies at or below them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct MountPoints(pub(super) Vec<Vec<u8>>);

impl MountPoints {
    /// Adds a path unless it is there; true if it was new.
    pub(crate) fn add(&mut self, path: &Path) -> bool {
        let mut bytes = path.as_os_str().as_bytes();
        while let [rest @ .., b'/'] = bytes {
            bytes = rest;
        }
        let is_new = !self.0.iter().any(|known| known == bytes);
        if is_new {
            self.0.push(bytes.to_vec());
        }
        is_new
    }

    /// Whether a path, with or without ` (deleted)` at its end, is at or below one of them.
    pub(crate) fn have(&self, shown: &[u8]) -> bool {
        shown.first() == Some(&b'/')
            && self.0.iter().any(|point| {
                shown
                    .strip_prefix(&**point)
                    .is_some_and(|rest| matches!(rest, [] | [b'/', ..]) || rest == b" (deleted)")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_inside_by_whole_components() {
        let cases = [
            ("/m", "/m", true),
            ("/m", "/m/", true),
            ("/m", "/m/a", true),
            ("/m", "/m (deleted)", true),
            ("/m", "/m/a (deleted)", true),
            ("/m/", "/m/a", true),
            ("/", "/a", true),
            ("/", "/", true),
            ("/", "socket:[1]", false),
            ("/m", "/mm", false),
            ("/m", "/n/m", false),
            ("/m", "/", false),
            ("/m", "", false),
            ("/m", "anon_inode:/m", false),
        ];
        for (mount, shown, expected) in cases {
            let mut points = MountPoints::default();
            points.add(Path::new(mount));
            assert_eq!(points.have(shown.as_bytes()), expected, "{shown} in {mount}");
        }
    }
}
