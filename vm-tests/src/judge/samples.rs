//! Recordings and cycles for tests.

use vm_agent::recording::{Blocker, Diagnosis, Found, Why};
use vm_agent::recording::{
    EndState, Event, Kind, Namespace, Plan, Recording, Reference, Remount, Role, Step, StepEnd, Task,
    UnitState, What,
};
use vm_agent::wire::Exit;

use super::cycle::{Before, Cycle, Holder, Umount};
use crate::scenario::verdict::MountVerdict;

/// A cycle in which all went well.
pub(crate) fn clean() -> Cycle {
    Cycle {
        number: 1,
        start_exit: Some(Exit::Code(0)),
        start_ns: 1,
        start_stderr: String::new(),
        before: Before { active: "active".to_owned(), mounted: true, elsewhere: Vec::new() },
        reset_exit: Some(Exit::Code(0)),
        reset_ns: 100_000_000,
        unit: UnitState { active: "inactive".to_owned(), ..UnitState::default() },
        mount_unit: None,
        states: Vec::new(),
        execs: Vec::new(),
        mains: Vec::new(),
        umounts: vec![Umount { comm: "umount".to_owned(), result: "ok".to_owned(), duration_ns: 1 }],
        holders_at_stop: Vec::new(),
        holders_at_umount: Vec::new(),
        listed: Vec::new(),
        verdict: MountVerdict::OnlyListed,
        diagnosis: None,
        mounted: false,
        end: Some(EndState {
            mounted_in: Vec::new(),
            processes: Vec::new(),
            failed_units: Vec::new(),
            remount: Remount::Tried { result: 0, in_use: false },
        }),
        kernel_warnings: Vec::new(),
        core_dumps: Vec::new(),
        left_over: Vec::new(),
        kept_devices: Vec::new(),
        lost: Vec::new(),
        probe_ns: 0,
        reset_stderr: String::new(),
        during: Vec::new(),
        other_mounts: Vec::new(),
        shutdown_log: None,
        checks: Vec::new(),
        boot_checks: Vec::new(),
    }
}

/// One whose working directory is in the mount.
pub(crate) fn holder(pid: u32, comm: &str, role: Role) -> Holder {
    Holder {
        pid,
        comm: comm.to_owned(),
        role,
        kinds: vec![Kind::Cwd],
        namespace_inode: 1,
        namespace_id: Some(1),
        unit: "x.service".to_owned(),
        named: String::new(),
    }
}

/// A task of the unit's that works in the mount.
pub(crate) fn task(pid: u32, comm: &str, role: Role) -> Task {
    Task {
        pid,
        tid: pid,
        comm: comm.to_owned(),
        role,
        unit: "x.service".to_owned(),
        namespace: Namespace { inode: 1, id: None },
        private_copy: false,
        references: vec![Reference { kind: Kind::Cwd, path: "/m".to_owned() }],
    }
}

/// What `holders` says of those.
pub(crate) fn diagnosis(why: Why, found: Found, holders: &[Holder]) -> Diagnosis {
    let blocker = |holder: &Holder| Blocker {
        pid: holder.pid,
        comm: holder.comm.clone(),
        role: holder.role,
        unit: holder.unit.clone(),
        namespace: Namespace { inode: holder.namespace_inode, id: holder.namespace_id },
        kinds: holder.kinds.clone(),
        command: format!("{} 600", holder.comm),
        user: "root".to_owned(),
        age_secs: 12,
    };
    let blockers: Vec<Blocker> = holders.iter().map(blocker).collect();
    let who: Vec<String> = holders.iter().map(|holder| format!("{} ({})", holder.pid, holder.comm)).collect();
    Diagnosis {
        why,
        cost_ns: 1,
        found,
        line: format!("held by {}", who.join(", ")),
        advice: blockers.iter().map(|blocker| format!("{}: have it leave", blocker.named())).collect(),
        blockers,
    }
}

/// A recording of one cycle, each of whose events has its time.
pub(crate) fn recording(mount_unit: Option<&str>, whats: impl IntoIterator<Item = (u64, What)>) -> Recording {
    let plan = Plan {
        unit: "x.service".to_owned(),
        mount_unit: mount_unit.map(str::to_owned),
        mount: Some("/m".to_owned()),
        cycles: 1,
        ..Plan::default()
    };
    let events = whats.into_iter().map(|(at, what)| Event { at, cycle: 1, what }).collect();
    Recording { plan, events, ..Recording::default() }
}

/// The end of a step that went well.
pub(crate) fn ends(step: Step) -> What {
    let (stdout, stderr) = (String::new(), String::new());
    What::StepEnds(StepEnd { step, index: 0, exit: Some(Exit::Code(0)), duration_ns: 1, stdout, stderr })
}
