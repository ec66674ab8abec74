//! What a question takes to be answered: mount tables of all namespaces, one walk over all tasks, what the kernel holds by
//! itself, and what each reference found does to an unmount.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

use crate::calls;
use crate::effect::Mounts;
use crate::fdinfo;
use crate::kernel;
use crate::kernel_holders;
use crate::mountinfo::{self, Device, Mount};
use crate::namespace::{self, MountNamespace};
use crate::person;
use crate::proc;
use crate::propagation::{self, Fate, Table};
use crate::report::{
    Asked, Carries, CutShort, Effect, Holder, KernelHolder, KernelKind, Kind, Member, MountCopy,
    NamespaceUse, PartialView, Phase, Reference, Report, Suspect, Unseen,
};
use crate::task::{self, Detail};
use crate::unix_diag::{self, BoundSocket};
use crate::walk::{self, CarrierKind, Found, Link, MetNamespace, OnMount, TOO_LONG, Walk, Wanted};

/// What is being found out.
pub(crate) struct Survey<'a> {
    pub(crate) proc_dir: BorrowedFd<'a>,
    pub(crate) path: &'a Path,
    pub(crate) mounts: Mounts,
    pub(crate) is_device_given: bool,
    pub(crate) detached: bool,
    pub(crate) asked: Asked,
    pub(crate) refused: bool,
    /// `None` if the kernel lists no namespaces, or not to this user.
    pub(crate) listed: Option<Vec<MountNamespace>>,
    pub(crate) among: Option<&'a [u32]>,
    pub(crate) deadline: Instant,
    /// Namespaces without a table.
    pub(crate) unlisted: Vec<MountNamespace>,
    /// Those that are bound to a file; `None` if that can't be known.
    pub(crate) sockets: Option<HashMap<u64, BoundSocket>>,
    /// Network namespaces whose sockets could not be asked for.
    pub(crate) networks_unseen: usize,
    pub(crate) view: Option<PartialView>,
    pub(crate) walk: Walk,
}

/// A walk shows where mounts are that the next one has to look for; the second settles that, unless somebody mounts
/// all the while.
const WALKS: usize = 3;

/// The most suspects of each kind that are named.
const MOST_SUSPECTS: usize = 64;
/// The most files registered with one ring that are listed for one effect.
const MOST_OF_A_RING: usize = 64;
impl Survey<'_> {
    /// Finds out: mount tables and tasks.
    pub(crate) fn scan(&mut self) -> Result<(), Errno> {
        let mut wanted = Wanted { carriers: self.refused, detail: Detail::All, ..Wanted::default() };
        if self.among.is_none() {
            self.sockets = unix_diag::bound_sockets().ok();
            wanted.networks = self.sockets.is_some();
        }
        self.settle();
        self.want(&mut wanted);
        for _ in 0..WALKS {
            let before = std::mem::take(&mut self.walk);
            self.walk = walk::walk(&wanted, self.among, Some(self.deadline))?;
            if self.walk.left.is_some() {
                self.walk.add(before);
            }
            self.read_tables();
            self.settle();
            if std::mem::take(&mut wanted.networks) {
                self.read_networks();
            }
            if self.is_late() || !self.want(&mut wanted) {
                break;
            }
        }
        Ok(())
    }

    /// To be asked before something is done that is left out then.
    fn is_late(&mut self) -> bool {
        self.mounts.is_late |= self.walk.left.is_some() || Instant::now() >= self.deadline;
        self.mounts.is_late
    }

    /// Adds the places where references can be; true if there are new ones.
    fn want(&self, wanted: &mut Wanted) -> bool {
        let mut is_new = wanted.mount_points.add(self.path);
        for (at, _) in self.mounts.related() {
            let mount = self.mounts.mount(at);
            is_new |= wanted.mount_points.add(&mount.mount_point);
            if !wanted.devices.contains(&mount.device) {
                wanted.devices.push(mount.device);
                is_new = true;
            }
        }
        for &device in &self.mounts.devices {
            if !wanted.devices.contains(&device) {
                wanted.devices.push(device);
                is_new = true;
            }
        }
        let interesting = |device| {
            let is_below = |&at: &usize| self.mounts.tables[0].mounts[at].device == device;
            let below = self
                .mounts
                .target
                .map(|target| propagation::submounts(&self.mounts.tables[0].mounts, target));
            wanted.devices.contains(&device) || below.unwrap_or_default().iter().any(is_below)
        };
        let sockets = self.sockets.iter().flatten().filter(|(_, bound)| interesting(bound.device));
        let sockets: HashMap<u64, Device> = sockets.map(|(&inode, bound)| (inode, bound.device)).collect();
        is_new |= sockets.keys().any(|inode| !wanted.sockets.contains_key(inode));
        wanted.sockets = sockets;
        let related: HashSet<u64> =
            self.mounts.related().iter().map(|(at, _)| self.mounts.mount(*at).id).collect();
        wanted.devices_are_shared = self.mounts.target.is_some()
            && self.mounts.tables[0]
                .mounts
                .iter()
                .any(|mount| wanted.devices.contains(&mount.device) && !related.contains(&mount.id));
        let detached = self.detached || (self.mounts.target.is_none() && !self.mounts.devices.is_empty());
        is_new |= detached && !wanted.detached;
        wanted.detached = detached;
        is_new
    }
}

impl Survey<'_> {
    /// Asks for the sockets of the network namespaces that the walk met.
    fn read_networks(&mut self) {
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
    fn read_tables(&mut self) {
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
    fn binds(&self) -> Vec<(u64, PathBuf)> {
        namespace::binds(self.mounts.tables.iter().flat_map(|table| &table.mounts))
    }

    /// Concludes from the tables that are there.
    fn settle(&mut self) {
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

    /// What was found.
    pub(crate) fn report(mut self) -> Report {
        let walk = std::mem::take(&mut self.walk);
        let own = &self.mounts.tables[0];
        let mut report = Report {
            path: self.path.to_owned(),
            asked: self.asked,
            namespace: own.namespace,
            mount: self.mounts.target.map(|at| own.mounts[at].clone()),
            lies_on: None,
            stacked: 0,
            devices: self.mounts.devices.clone(),
            copies: self.copies(),
            submounts: Vec::new(),
            holders: Vec::new(),
            kernel_holders: Vec::new(),
            suspects: Vec::new(),
            namespaces: self.namespace_uses(&walk),
            unseen: Unseen {
                view: self.view,
                processes: walk.denied,
                namespaces: self.unlisted.clone(),
                namespace_list: self.listed.is_some(),
                cut_short: None,
                bound_sockets: self.among.is_none() && self.sockets.is_none(),
                networks: self.networks_unseen,
                references: walk.not_kept,
            },
            refused: self.refused,
            processes: walk.pids.len(),
        };
        match self.mounts.target {
            Some(target) => {
                let submounts = propagation::submounts(&own.mounts, target);
                report.submounts = submounts.into_iter().map(|at| own.mounts[at].clone()).collect();
                let same_place = own.mounts.iter().filter(|mount| mount.mount_point == self.path);
                report.stacked = same_place.count().saturating_sub(1);
            }
            None => {
                let lies_on = propagation::containing(&own.mounts, self.path);
                report.lies_on = lies_on.map(|(at, _)| own.mounts[at].clone());
            }
        }
        report.holders = self.holders(&walk);
        if self.among.is_none() {
            report.kernel_holders = self.kernel_holders();
            // Costs a look at each task by itself, so only where nobody else is known to block.
            let does_block = |held: &KernelHolder| held.effect == Effect::BlocksUmount;
            let is_held = !report.blockers().is_empty()
                || !report.submounts.is_empty()
                || report.kernel_holders.iter().any(does_block);
            if self.mounts.target.is_some() && !is_held {
                let calls = calls::holders(self.proc_dir, &walk, &self.mounts, self.path, self.deadline);
                report.holders.extend(calls);
            }
            if self.refused && report.blockers().is_empty() && report.submounts.is_empty() {
                report.suspects = self.suspects(&walk);
            }
        }
        if self.among.is_none() {
            for holder in &mut report.holders {
                let matters = |effect| matches!(effect, Effect::BlocksUmount | Effect::KeepsSuperblock);
                if holder.references.iter().any(|held| matters(held.effect)) && !self.is_late() {
                    holder.person = person::person(self.proc_dir, holder.pid, holder.start_time, self.path);
                }
            }
        }
        if self.mounts.is_late {
            let left = walk.left.unwrap_or_default();
            report.unseen.cut_short = Some(CutShort { processes: walk.pids.len(), left });
        }
        report
    }

    fn copies(&self) -> Vec<MountCopy> {
        self.mounts
            .related()
            .into_iter()
            .filter(|(_, fate)| *fate != Some(Fate::Target))
            .map(|(at, fate)| MountCopy {
                mount: self.mounts.mount(at).clone(),
                namespace: self.mounts.tables[at.table].namespace,
                fate,
            })
            .collect()
    }

    fn namespace_uses(&self, walk: &Walk) -> Vec<NamespaceUse> {
        let tables: HashSet<usize> = self.mounts.related().into_iter().map(|(at, _)| at.table).collect();
        let mut tables: Vec<_> = tables.into_iter().filter(|&table| table != 0).collect();
        tables.sort_unstable();
        let known = tables.into_iter().map(|table| self.mounts.tables[table].namespace);
        known
            .chain(self.unlisted.iter().copied())
            .map(|namespace| self.namespace_use(walk, namespace))
            .collect()
    }

    fn namespace_use(&self, walk: &Walk, namespace: MountNamespace) -> NamespaceUse {
        let met = walk.namespaces.iter().find(|met| met.inode == namespace.inode);
        let files = walk.namespace_files.iter().filter(|file| file.inode == namespace.inode);
        let binds = self.binds().into_iter().filter(|(inode, _)| *inode == namespace.inode);
        NamespaceUse {
            namespace,
            processes: met.map_or(0, |met| met.processes),
            member: met.and_then(|met| {
                let task = proc::open_thread(self.proc_dir, met.member.0, met.member.1).ok()?;
                // Another one may have the id by now.
                if namespace::inode(task.as_fd()) != Ok(met.inode) {
                    return None;
                }
                let about = task::about_task(task.as_fd());
                Some(Member { pid: met.member.0, comm: about.comm, unit: about.unit })
            }),
            files: files.map(|file| (file.pid, file.fd)).collect(),
            binds: binds.map(|(_, at)| at).collect(),
        }
    }

    fn holders(&mut self, walk: &Walk) -> Vec<Holder> {
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

    fn namespace_of(&self, walk: &Walk, task: (u32, u32)) -> Option<MountNamespace> {
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

    fn kernel_holders(&self) -> Vec<KernelHolder> {
        let own = &self.mounts.tables[0];
        kernel_holders::kernel_files(&own.mounts)
            .into_iter()
            .filter_map(|file| {
                let effect = kernel_holders::effect_of(&file, &self.mounts)?;
                let above = match &file.kind {
                    KernelKind::Loop(name) => kernel_holders::above(Path::new("/sys/class/block"), name),
                    _ => Vec::new(),
                };
                let is_of_it = |mount: &&Mount| match &file.kind {
                    KernelKind::Loop(name) => {
                        mount.source == format!("/dev/{name}")
                            || above.iter().any(|above| above.device == Some(mount.device))
                    }
                    _ => false,
                };
                let mounted_at =
                    own.mounts.iter().filter(is_of_it).map(|mount| mount.mount_point.clone()).collect();
                let above = above.into_iter().filter_map(|above| above.name).collect();
                Some(KernelHolder { kind: file.kind, path: file.path, effect, mounted_at, above })
            })
            .collect()
    }

    fn suspects(&mut self, walk: &Walk) -> Vec<Suspect> {
        let mut ending: Vec<u32> = walk.ending.iter().copied().collect();
        ending.sort_unstable();
        let comm =
            |pid| walk.tasks.get(&(pid, pid)).map(|known| known.about.comm.clone()).unwrap_or_default();
        let suspect = |pid| Suspect { pid, comm: comm(pid), fd: None, carries: Carries::Rest };
        let ending: Vec<_> = ending.into_iter().take(MOST_SUSPECTS).map(suspect).collect();
        let proc_dir = self.proc_dir;
        let marked: Vec<u64> =
            self.mounts.related().iter().map(|(at, _)| self.mounts.mount(*at).id).collect();
        let devices = self.mounts.devices.clone();
        let carriers = walk.carriers.iter().take_while(|_| !self.is_late());
        carriers
            .filter_map(|carrier| {
                let (process, text) = fdinfo::read(proc_dir, carrier.pid, carrier.fd)?;
                let carries = match carrier.kind {
                    CarrierKind::Ring => Carries::Registered(fdinfo::field(&text, "UserFiles:")?),
                    CarrierKind::Socket => Carries::InFlight(fdinfo::field(&text, "scm_fds:")?),
                    CarrierKind::Watch => {
                        fdinfo::watches(&text, &marked, &devices).then_some(Carries::Events)?
                    }
                };
                if matches!(carries, Carries::Registered(0) | Carries::InFlight(0)) {
                    return None;
                }
                let comm = task::about_task(process.as_fd()).comm;
                Some(Suspect { pid: carrier.pid, comm, fd: Some(carrier.fd), carries })
            })
            .take(MOST_SUSPECTS)
            .chain(ending)
            .collect()
    }
}
