//! The mount tables of all namespaces that can be seen, and what lies at the path in them.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Survey;
use crate::kernel;
use crate::kernel_holders;
use crate::mountinfo;
use crate::namespace::{self, MountNamespace};
use crate::proc;
use crate::propagation::{self, Table};
use crate::report::Asked;
use crate::unix_diag;
use crate::walk::MetNamespace;

impl Survey<'_> {
    /// Asks for the sockets of the network namespaces that the walk met.
    pub(super) fn read_networks(&mut self) {
        let own = rustix::fs::stat("/proc/thread-self/ns/net").map(|stat| stat.st_ino);
        for (inode, pid) in std::mem::take(&mut self.walk.networks) {
            if own == Ok(inode) || self.is_late() {
                continue;
            }
            let process = proc::open_thread(self.proc_dir, pid, pid);
            match process.and_then(|process| unix_diag::bound_sockets_of(process.as_fd(), inode)) {
                Ok(others) => self.sockets.get_or_insert_default().extend(others),
                // It is gone, or in another one.
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(_) => self.networks_unseen += 1,
            }
        }
    }

    /// Reads the tables of the namespaces that the walk met or the kernel lists, and that are not known yet.
    pub(super) fn read_tables(&mut self) {
        let met = std::mem::take(&mut self.walk.namespaces);
        for namespace in &met {
            if !self.is_known(namespace.inode)
                && !self.is_late()
                && let Some(table) = self.table_through(namespace)
            {
                self.mounts.tables.push(table);
            }
        }
        self.walk.namespaces = met;
        self.unlisted.clear();
        for namespace in self.listed.clone().unwrap_or_default() {
            if self.is_known(namespace.inode) {
                continue;
            }
            if self.is_late() {
                self.unlisted.push(namespace);
                continue;
            }
            match kernel::mounts_of(namespace.id.unwrap_or_default()) {
                Ok(mounts) => self.mounts.tables.push(Table { namespace, mounts }),
                // It is gone.
                Err(Errno::NOENT) => {}
                Err(_) => self.unlisted.push(namespace),
            }
        }
        let bound: Vec<u64> = self.binds().into_iter().map(|(inode, _)| inode).collect();
        let open = self.walk.namespace_files.iter().map(|file| file.inode);
        for inode in open.chain(bound).collect::<Vec<_>>() {
            let is_noted = self.unlisted.iter().any(|unlisted| unlisted.inode == inode);
            if self.listed.is_none() && !self.is_known(inode) && !is_noted {
                self.unlisted.push(MountNamespace { inode, id: None });
            }
        }
    }

    fn is_known(&self, inode: u64) -> bool {
        self.mounts.tables.iter().any(|table| table.namespace.inode == inode)
    }

    /// A namespace's table as a member sees it, with mount points made those of the namespace's root.
    fn table_through(&self, met: &MetNamespace) -> Option<Table> {
        let (pid, tid) = met.member;
        let task = proc::open_thread(self.proc_dir, pid, tid).ok()?;
        // The member may have moved, or its id be another task's by now.
        if namespace::inode(task.as_fd()) != Ok(met.inode) {
            return None;
        }
        let id = match &self.listed {
            Some(listed) => listed.iter().find(|known| known.inode == met.inode).and_then(|known| known.id),
            None => None,
        };
        let id = id.or_else(|| namespace::unique_id(task.as_fd()).ok().flatten());
        let namespace = MountNamespace { inode: met.inode, id };
        let is_whole = met.root == b"/";
        if met.root.is_empty() {
            // What the member is shown can't be told as paths from the namespace's root.
            return kernel::mounts_of(id?).ok().map(|mounts| Table { namespace, mounts });
        }
        let mut mounts = mountinfo::of_task(task.as_fd()).ok()?;
        if !is_whole {
            let root = PathBuf::from(OsString::from_vec(met.root.clone()));
            for mount in &mut mounts {
                let below = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
                mount.mount_point = if below == Path::new("") { root.clone() } else { root.join(below) };
            }
        }
        // A member with another root directory is shown what lies below that, and no more; the rest may be listed.
        if !is_whole
            && let Some(id) = id
            && let Ok(mut listed) = kernel::mounts_of(id)
        {
            mounts.retain(|mount| !listed.iter().any(|known| known.id == mount.id));
            listed.append(&mut mounts);
            mounts = listed;
        }
        Some(Table { namespace, mounts })
    }

    /// Where namespaces are bind mounted: inode number, mount point.
    pub(super) fn binds(&self) -> Vec<(u64, PathBuf)> {
        namespace::binds(self.mounts.tables.iter().flat_map(|table| &table.mounts))
    }

    /// Concludes from the tables that are there.
    pub(super) fn settle(&mut self) {
        self.mounts.settle();
        if self.mounts.target.is_some() || self.is_device_given {
            return;
        }
        if self.asked == Asked::Layer {
            self.mounts.devices = kernel_holders::overlays_with(self.path, &self.mounts.tables);
            return;
        }
        // What lies at the path elsewhere, unless it is something that is mounted here as well: a unit's private
        // /tmp is a directory of the host's root.
        let (own, others) = self.mounts.tables.split_at(1);
        for table in others {
            let Some(at) = propagation::visible_at(&table.mounts, self.path) else { continue };
            let device = table.mounts[at].device;
            let is_here = own[0].mounts.iter().any(|mount| mount.device == device);
            if !is_here && !self.mounts.devices.contains(&device) {
                self.mounts.devices.push(device);
            }
        }
    }
}
