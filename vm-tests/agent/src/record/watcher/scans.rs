//! What the watcher records of who holds the mount: scans by path, and what `holders` says.

use std::time::{Duration, Instant};

use holders::Query;
use holders::scan::{self, Scope};
use vm_agent::recording::{
    Diagnosis, Kind, Namespace, Plan, Reference, Role, Scan, Task, Trigger, What, Why,
};

use super::Watch;
use super::point::Point;
use crate::record::processes;
use crate::record::roles::Watched;
use crate::record::unit_cgroup;

/// How long a diagnosis may take; it takes some 30 ms.
const LONGEST_DIAGNOSIS: Duration = Duration::from_secs(5);

impl Watch {
    /// From one tick's scans of all mounts to the next: several take as much of the processor's time as one does.
    pub(super) fn tick_ns(plan: &Plan) -> u64 {
        let mounts = plan.mounts().count().try_into().unwrap_or(u64::MAX);
        plan.sample_us.saturating_mul(1000).saturating_mul(u64::max(mounts, 1))
    }

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
            self.next_tick = Some(ended.saturating_add(self.tick_ns));
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

fn kind(kind: scan::Kind) -> Kind {
    match kind {
        scan::Kind::Cwd => Kind::Cwd,
        scan::Kind::Root => Kind::Root,
        scan::Kind::Exe => Kind::Exe,
        scan::Kind::File => Kind::File,
        scan::Kind::Mapping => Kind::Mapping,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_several_mounts_are_as_much_further_apart() {
        let paths = |count: usize| vec!["/srv/merged".to_owned(); count];
        for (mount, others, sample_us, expected) in [
            (1, 0, 10_000, 10_000_000),
            (1, 1, 10_000, 20_000_000),
            (1, 4, 10_000, 50_000_000),
            (1, 2, 1000, 3_000_000),
            // Without a mount nothing is scanned.
            (0, 0, 10_000, 10_000_000),
            (1, 3, u64::MAX / 1000, u64::MAX),
        ] {
            let plan =
                Plan { mount: paths(mount).pop(), other_mounts: paths(others), sample_us, ..Plan::default() };
            assert_eq!(Watch::tick_ns(&plan), expected, "{mount} and {others} of {sample_us} us");
        }
    }
}
