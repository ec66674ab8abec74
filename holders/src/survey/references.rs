//! What the walk found, as references of tasks with what each does to an unmount.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::Survey;
use crate::fdinfo;
use crate::namespace::MountNamespace;
use crate::report::{Asked, Effect, Holder, Kind, Phase, Reference};
use crate::task;
use crate::walk::{self, CarrierKind, Found, Link, OnMount, TOO_LONG, Walk};

/// The most files registered with one ring that are listed for one effect.
const MOST_OF_A_RING: usize = 64;

impl Survey<'_> {
    pub(super) fn holders(&mut self, walk: &Walk) -> Vec<Holder> {
        let in_rings = self.files_in_rings(walk);
        let mut tasks: BTreeMap<(u32, u32), Vec<Reference>> = BTreeMap::new();
        for found in &walk.found {
            let namespace = self.namespace_of(walk, (found.pid, found.tid));
            if let Some(reference) = self.reference(found, namespace) {
                tasks.entry((found.pid, found.tid)).or_default().push(reference);
            }
        }
        for (pid, reference) in in_rings {
            tasks.entry((pid, pid)).or_default().push(reference);
        }
        let lineage = task::lineage(self.proc_dir);
        let leaders: HashMap<u32, Vec<Reference>> = tasks
            .iter()
            .filter(|((pid, tid), _)| pid == tid)
            .map(|((pid, _), references)| (*pid, references.clone()))
            .collect();
        let mut holders = Vec::new();
        for ((pid, tid), mut references) in tasks {
            if pid != tid
                && let Some(leader) = leaders.get(&pid)
            {
                references.retain(|reference| !leader.contains(reference));
            }
            if references.is_empty() {
                continue;
            }
            // Gone while it was scanned.
            let Some(known) = walk.tasks.get(&(pid, tid)) else { continue };
            let Some(start_time) = known.start_time else { continue };
            let about = known.about.clone();
            holders.push(Holder {
                pid,
                tid,
                start_time,
                phase: if walk.ending.contains(&pid) { Phase::Ending } else { known.phase },
                relation: task::relation(&lineage, pid),
                namespace: self.namespace_of(walk, (pid, tid)),
                comm: about.comm,
                cgroup: about.cgroup,
                unit: about.unit,
                person: None,
                references,
            });
        }
        holders
    }

    /// The files that are registered with an io_uring instance, by process.
    fn files_in_rings(&mut self, walk: &Walk) -> Vec<(u32, Reference)> {
        let mut files = Vec::new();
        for ring in walk.carriers.iter().filter(|carrier| carrier.kind == CarrierKind::Ring) {
            if self.is_late() {
                break;
            }
            let Some((process, text)) = fdinfo::read(self.proc_dir, ring.pid, ring.fd) else { continue };
            // Another one may have the id by now.
            let known = walk.tasks.get(&(ring.pid, ring.pid)).and_then(|known| known.start_time);
            if known.is_none() || task::start_time_of(process.as_fd()) != known {
                continue;
            }
            let namespace = self.namespace_of(walk, (ring.pid, ring.pid));
            let mut kept: HashMap<Effect, usize> = HashMap::new();
            for path in fdinfo::registered_files(&text) {
                let Some(effect) = self.mounts.effect_at(&path, namespace) else { continue };
                let kept = kept.entry(effect).or_default();
                *kept += 1;
                if *kept <= MOST_OF_A_RING {
                    let reference = Reference {
                        kind: Kind::RegisteredFile { ring: ring.fd },
                        path,
                        mount_id: None,
                        unique_mount_id: None,
                        mount_namespace: None,
                        effect,
                    };
                    files.push((ring.pid, reference));
                }
            }
        }
        files
    }

    pub(super) fn namespace_of(&self, walk: &Walk, task: (u32, u32)) -> Option<MountNamespace> {
        let inode = walk.tasks.get(&task)?.namespace?;
        let known = self.mounts.tables.iter().find(|table| table.namespace.inode == inode);
        Some(known.map_or(MountNamespace { inode, id: None }, |table| table.namespace))
    }

    /// `None` if the link turned out to have nothing to do with the mount.
    fn reference(&self, found: &Found, namespace: Option<MountNamespace>) -> Option<Reference> {
        let kind = match found.link {
            Link::Cwd => Kind::Cwd,
            Link::Root => Kind::Root,
            Link::Exe => Kind::Exe,
            Link::File(fd) => Kind::File { fd },
            Link::Mapping => Kind::Mapping,
            Link::Socket(fd) => Kind::Socket { fd },
        };
        if found.path.is_empty() {
            return self.reference_without_path(kind, found.mount?);
        }
        let (path, effect, lies_in) = if let Link::Socket(_) = found.link {
            let socket = self.sockets.as_ref()?.get(&walk::socket_inode(&found.path)?)?;
            (socket.path.clone(), self.mounts.effect_of_file(socket.device, &socket.path, namespace)?, None)
        } else {
            let path = PathBuf::from(OsString::from_vec(found.path.clone()));
            let (effect, lies_in) = match found.mount {
                // Its own file, which whoever has it open has open as a device.
                _ if self.asked == Asked::BlockDevice && path == self.path && kind != Kind::Mapping => {
                    (Effect::KeepsSuperblock, None)
                }
                Some(mount) => {
                    let (effect, lies_in) = self.mounts.effect_on(mount.id, mount.device);
                    // Where a copy is some namespace's root, whatever there is lies at a path below it.
                    if matches!(effect, Effect::Harmless | Effect::Unclear) && !path.starts_with(self.path) {
                        return None;
                    }
                    (effect, lies_in)
                }
                None => (self.mounts.effect_at(&path, namespace)?, None),
            };
            (path, effect, lies_in)
        };
        Some(Reference {
            kind,
            path,
            mount_id: found.mount.map(|mount| mount.id),
            unique_mount_id: found.mount.and_then(|mount| mount.unique),
            mount_namespace: lies_in,
            effect,
        })
    }

    /// A reference whose path is longer than a link can show: it matters if the mount does.
    fn reference_without_path(&self, kind: Kind, on: OnMount) -> Option<Reference> {
        let (effect, lies_in) = self.mounts.effect_on(on.id, on.device);
        if matches!(effect, Effect::Harmless | Effect::Unclear) {
            return None;
        }
        let mut mounts = self.mounts.tables.iter().flat_map(|table| &table.mounts);
        let mount_point = mounts.find(|mount| mount.id == on.id).map(|mount| mount.mount_point.as_path());
        Some(Reference {
            kind,
            path: mount_point.unwrap_or(Path::new("/")).join(TOO_LONG),
            mount_id: Some(on.id),
            unique_mount_id: on.unique,
            mount_namespace: lies_in,
            effect,
        })
    }
}
