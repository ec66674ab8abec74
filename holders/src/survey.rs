//! What a question takes to be answered: mount tables of all namespaces, one walk over all tasks, what the kernel holds by
//! itself, and what each reference found does to an unmount.

mod references;
mod tables;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use rustix::io::Errno;

use crate::calls;
use crate::effect::Mounts;
use crate::fdinfo;
use crate::kernel_holders;
use crate::listening;
use crate::mountinfo::{Device, Mount};
use crate::namespace::{self, MountNamespace};
use crate::person;
use crate::proc;
use crate::propagation::{self, Fate};
use crate::report::{
    Asked, Carries, CutShort, Effect, KernelHolder, KernelKind, Member, MountCopy, NamespaceUse, PartialView,
    Report, Stuck, Suspect, Unseen,
};
use crate::task::{self, Detail};
use crate::unix_diag::{self, BoundSocket};
use crate::walk::{self, CarrierKind, Walk, Wanted};

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
            wanted.stuck.clone_from(&self.walk.stuck);
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
                stuck: walk.stuck.iter().map(|stuck| Stuck::of(self.proc_dir, stuck)).collect(),
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
                self.believe_exports(&mut report.kernel_holders);
                report.suspects = self.suspects(&walk);
            }
        }
        if self.among.is_none() {
            for holder in &mut report.holders {
                let matters = |effect| matches!(effect, Effect::BlocksUmount | Effect::KeepsSuperblock);
                if holder.references.iter().any(|held| matters(held.effect)) && !self.is_late() {
                    // systemd has the sockets and FIFOs of units, and is in a cgroup of its own.
                    if holder.pid == 1 && holder.comm == "systemd" {
                        let held = holder.references.iter().filter(|held| matters(held.effect));
                        let paths = held.map(|held| proc::without_deleted(&held.path).to_owned()).collect();
                        holder.unit = listening::units_at(&paths, self.path).or(holder.unit.take());
                    }
                    holder.person = person::person(
                        self.proc_dir,
                        (holder.pid, holder.start_time),
                        walk.is_stuck(holder.pid),
                        self.path,
                    );
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

    /// A mount that is exported whole has the path of the directory that it covers, and no file tells which of the two the
    /// kernel means. Once an unmount was refused, and nobody else is known to block, it is the mount.
    fn believe_exports(&self, holders: &mut [KernelHolder]) {
        if holders.iter().any(|held| held.effect == Effect::BlocksUmount) {
            return;
        }
        let is_export = |held: &&mut KernelHolder| {
            matches!(held.kind, KernelKind::NfsExport(_))
                && held.effect == Effect::Unclear
                && held.path == self.path
        };
        holders.iter_mut().filter(is_export).for_each(|held| held.effect = Effect::BlocksUmount);
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
