//! What the watcher records of who holds the mount: scans by path, and what `holders` says.

use std::time::{Duration, Instant};

use holders::Query;
use holders::scan::{self, Scope};
use vm_agent::recording::{Diagnosis, Kind, Namespace, Reference, Role, Scan, Task, Trigger, What, Why};

use super::{Point, Watch};
use crate::record::processes;
use crate::record::roles::Watched;
use crate::record::unit_cgroup;

/// How long a diagnosis may take; it takes some 30 ms.
const LONGEST_DIAGNOSIS: Duration = Duration::from_secs(5);

impl Watch {
    /// Scans for who holds each of the mounts.
    pub(super) fn scan(&mut self, trigger: Trigger, whole_proc: bool) {
        self.of_points(|watch, point| watch.scan_point(point, trigger, whole_proc));
    }

    /// Scans for who holds a mount and records it. Ticks that see what the scan before saw are held back but
    /// for the last.
    pub(super) fn scan_point(&mut self, point: &mut Point, trigger: Trigger, whole_proc: bool) {
        let at = self.sink.clock.now();
        let mut of_units = unit_cgroup::processes(&self.unit.control_group);
        let of_unit = of_units.len();
        of_units.extend(unit_cgroup::processes(&self.mount_unit.control_group));
        let its_own = of_units.len();
        // One that was seen outside is kept until it is seen gone.
        of_units.extend(&point.outside);
        let scope = if whole_proc { Scope::Everything } else { Scope::Pids(&of_units) };
        let found = match scan::scan(&point.path, point.mounts.device(), scope) {
            Ok(found) => found,
            Err(error) => return self.sink.lost("scan", error),
        };
        if found.denied > 0 {
            self.sink.lost("scan", format!("{} processes could not be inspected", found.denied));
        }
        of_units.truncate(its_own);
        let (of_unit, of_mount_unit) = of_units.split_at(of_unit);
        self.unit_tasks.extend(of_unit.iter().map(|pid| (*pid, Watched::Unit)));
        self.unit_tasks.extend(of_mount_unit.iter().map(|pid| (*pid, Watched::MountUnit)));
        let tasks: Vec<Task> = found.tasks.into_iter().map(|task| self.task(task)).collect();
        if whole_proc {
            let holds = |task: &&Task| task.role == Role::Outside && !task.references.is_empty();
            point.outside = tasks.iter().filter(holds).map(|task| task.pid).collect();
            point.outside.dedup();
        }
        let mounted = point.mounts.is_mounted();
        let ended = self.sink.clock.now();
        let scan = Scan { trigger, whole_proc, cost_ns: ended - at, mounted, tasks };
        point.record_scan(at, scan);
        if self.in_stop {
            self.next_tick = Some(ended + self.sample_us * 1000);
        }
    }

    /// Records what `holders` says: of all processes, which takes longer than a scan by path, so when something is wrong.
    pub(super) fn diagnose(&self, point: &mut Point, why: Why) {
        point.record_held_back();
        let at = self.sink.clock.now();
        let mut query = Query::new(&point.path).deadline(Instant::now() + LONGEST_DIAGNOSIS);
        if let Some(device) = point.mounts.device() {
            query = query.of_device(device);
        }
        if why == Why::UmountFailed {
            query = query.after_ebusy();
        }
        // It takes longer than this thread may keep all others from running: one that was started meanwhile is not to blame.
        let (pids, mut report) = match processes::pids().and_then(|pids| Ok((pids, query.run()?))) {
            Ok(done) => done,
            Err(error) => return self.sink.lost("scan", format!("{error:#}")),
        };
        report.holders.retain(|holder| pids.binary_search(&holder.pid).is_ok());
        let cost_ns = self.sink.clock.now() - at;
        if report.unseen.hides_processes() {
            self.sink.lost("scan", format!("not all was seen: {}", report.line()));
        }
        let role = |pid, cgroup: &str| self.role(pid, self.unit_of_cgroup(cgroup));
        let diagnosis = Diagnosis::of(&report, why, cost_ns, role);
        point.sink.send(at, What::Diagnosis(diagnosis));
    }

    fn task(&self, task: scan::Task) -> Task {
        let role = self.role(task.pid, self.unit_of_cgroup(&task.cgroup));
        // None only for a task that ended while it was scanned.
        let namespace = task.namespace.map_or(Namespace { inode: 0, id: None }, |namespace| Namespace {
            inode: namespace.inode,
            id: namespace.id,
        });
        let references = task.references.into_iter().map(|reference| Reference {
            kind: kind(reference.kind),
            path: reference.path.to_string_lossy().into_owned(),
        });
        Task {
            pid: task.pid,
            tid: task.tid,
            comm: task.comm,
            role,
            unit: task.unit.unwrap_or_default(),
            namespace,
            private_copy: task.in_other_namespace_with_copy,
            references: references.collect(),
        }
    }
}

impl Point {
    /// Asks `holders` once for nothing: the first time takes three times as long, since its code is not in memory yet.
    pub(super) fn warm_up(&self) {
        if let Err(error) = Query::new(&self.path).after_ebusy().run() {
            self.sink.lost("scan", format!("{error:#}"));
        }
    }

    fn record_scan(&mut self, at: u64, scan: Scan) {
        let is_same = self
            .last_scan
            .as_ref()
            .is_some_and(|(mounted, tasks)| *mounted == scan.mounted && *tasks == scan.tasks);
        if scan.trigger == Trigger::Tick && is_same {
            self.held_back = Some((at, scan));
            return;
        }
        self.record_held_back();
        self.last_scan = Some((scan.mounted, scan.tasks.clone()));
        self.sink.send(at, What::Scan(scan));
    }

    pub(super) fn record_held_back(&mut self) {
        if let Some((at, scan)) = self.held_back.take() {
            self.sink.send(at, What::Scan(scan));
        }
    }
}

fn kind(kind: scan::Kind) -> Kind {
    match kind {
        scan::Kind::Cwd => Kind::Cwd,
        scan::Kind::Root => Kind::Root,
        scan::Kind::Exe => Kind::Exe,
        scan::Kind::File => Kind::File,
        scan::Kind::Mapping => Kind::Mapping,
    }
}
