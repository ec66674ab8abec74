//! A task's place in the unit: of the main process's family, or of a control process's.
//!
//! systemd makes every Exec command itself, so each family of the unit begins with a child of PID 1 (of a user's unit: of
//! that user's manager). Which child of PID 1 a task comes from is followed by the forks, since a parent that has ended
//! leaves its children to PID 1 (to the user's manager, which is a subreaper) and ppid would then name them control processes. A family is the main one if the main
//! process was ever in it; MainPID is known long before a stop begins, so D-Bus being late does no harm. Every
//! other family of the unit is an Exec line's other than ExecStart.
//!
//! The unit that makes and unmakes the mount has no main family: each of its Exec lines is a control process's.

use std::collections::{HashMap, HashSet};

use holders::stat::Stat;
use vm_agent::recording::Role;

/// A unit that the plan watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// The one under test.
    Unit,
    /// The one whose commands make and unmake the mount.
    MountUnit,
}

/// What is known of the machine's families.
#[derive(Debug, Default)]
pub(super) struct Roles {
    /// The child of PID 1, or of the user's manager, that a process descends from.
    founders: HashMap<u32, u32>,
    /// The user's manager; 0 if the unit is none of a user's.
    manager: u32,
    main: u32,
    control: u32,
    main_founders: HashSet<u32>,
}

impl Roles {
    /// The process of the user's manager.
    pub(super) fn manager(&mut self, pid: u32) {
        self.manager = pid;
    }

    fn is_manager(&self, pid: u32) -> bool {
        pid == 1 || pid == self.manager
    }

    /// A process was made.
    pub(super) fn forked(&mut self, parent: u32, child: u32) {
        let founder = if self.is_manager(parent) {
            child
        } else {
            self.founders.get(&parent).copied().unwrap_or(parent)
        };
        self.founders.insert(child, founder);
        // The number is a new process's now.
        self.main_founders.remove(&child);
        if self.main == child {
            self.main = 0;
        }
    }

    /// A process ended.
    pub(super) fn exited(&mut self, pid: u32) {
        self.founders.remove(&pid);
    }

    /// MainPID and ControlPID of the unit under test, 0 if none.
    pub(super) fn unit(&mut self, main: u32, control: u32) {
        if main != 0 {
            self.main = main;
            self.main_founders.insert(self.founders.get(&main).copied().unwrap_or(main));
        }
        self.control = control;
    }

    /// The role of a process in a unit's cgroup. `parent` is asked about one whose fork was not seen.
    pub(super) fn of(&self, pid: u32, unit: Watched, parent: impl Fn(u32) -> Option<u32>) -> Role {
        if unit == Watched::MountUnit {
            return if self.founder(pid, parent) == pid { Role::Control } else { Role::ControlChild };
        }
        if pid == self.main {
            return Role::Main;
        }
        if pid == self.control {
            return Role::Control;
        }
        let founder = self.founder(pid, parent);
        match () {
            () if self.main_founders.contains(&founder) => Role::Child,
            () if founder == pid => Role::Control,
            () => Role::ControlChild,
        }
    }

    fn founder(&self, pid: u32, parent: impl Fn(u32) -> Option<u32>) -> u32 {
        let mut at = pid;
        // A process tree has no loops, but it changes while it is read.
        for _ in 0..64 {
            if let Some(founder) = self.founders.get(&at) {
                return *founder;
            }
            match parent(at) {
                None | Some(0) => return at,
                Some(next) if self.is_manager(next) => return at,
                Some(next) => at = next,
            }
        }
        at
    }
}

/// The parent of a process, from `/proc/PID/stat`.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?.parent()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: u32) -> Option<u32> {
        None
    }

    /// 100 is the main process, 101 its child, 102 a grandchild whose parent has ended.
    fn running() -> Roles {
        let mut roles = Roles::default();
        roles.forked(1, 100);
        roles.unit(100, 0);
        roles.forked(100, 101);
        roles.forked(101, 102);
        roles.forked(102, 103);
        roles.exited(102);
        roles
    }

    #[test]
    fn names_the_main_family() {
        let roles = running();
        assert_eq!(roles.of(100, Watched::Unit, nobody), Role::Main);
        assert_eq!(roles.of(101, Watched::Unit, nobody), Role::Child);
        assert_eq!(roles.of(103, Watched::Unit, |_| Some(1)), Role::Child, "an orphan is no control process");
    }

    #[test]
    fn names_the_control_family_before_d_bus_does() {
        let mut roles = running();
        roles.exited(100);
        roles.forked(1, 200);
        roles.forked(200, 201);
        assert_eq!(roles.of(200, Watched::Unit, nobody), Role::Control);
        assert_eq!(roles.of(201, Watched::Unit, nobody), Role::ControlChild);
        assert_eq!(
            roles.of(103, Watched::Unit, nobody),
            Role::Child,
            "a child that outlives the main process"
        );
        roles.unit(0, 200);
        assert_eq!(roles.of(200, Watched::Unit, nobody), Role::Control);
        assert_eq!(roles.of(201, Watched::Unit, nobody), Role::ControlChild);
    }

    #[test]
    fn a_main_process_that_forked_away_from_its_exec_line() {
        let mut roles = Roles::default();
        roles.forked(1, 300);
        roles.forked(300, 301);
        roles.exited(300);
        roles.unit(301, 0);
        roles.forked(301, 302);
        roles.exited(301);
        assert_eq!(roles.of(301, Watched::Unit, nobody), Role::Main);
        assert_eq!(roles.of(302, Watched::Unit, nobody), Role::Child);
    }

    #[test]
    fn the_mounts_unit_has_control_processes_only() {
        let mut roles = running();
        roles.forked(1, 400);
        roles.forked(400, 401);
        let of = |pid| roles.of(pid, Watched::MountUnit, nobody);
        assert_eq!((of(400), of(401)), (Role::Control, Role::ControlChild));
        assert_eq!(roles.of(400, Watched::MountUnit, |_| Some(1)), Role::Control);
    }

    #[test]
    fn the_families_of_a_users_unit_begin_at_that_users_manager() {
        let mut roles = Roles::default();
        roles.manager(50);
        for (parent, child) in [(1, 50), (50, 100), (100, 101), (50, 200)] {
            roles.forked(parent, child);
        }
        roles.unit(100, 0);
        let of = |pid| roles.of(pid, Watched::Unit, nobody);
        assert_eq!((of(101), of(200)), (Role::Child, Role::Control));
        // Nothing was seen of these.
        let parent = |pid| Some(if pid == 301 { 300 } else { 50 });
        assert_eq!(roles.of(301, Watched::Unit, parent), Role::ControlChild);
        assert_eq!(roles.of(300, Watched::Unit, parent), Role::Control);
    }

    #[test]
    fn a_number_used_again_is_another_process() {
        let mut roles = running();
        roles.exited(100);
        roles.forked(1, 100);
        assert_eq!(roles.of(100, Watched::Unit, nobody), Role::Control);
    }

    #[test]
    fn asks_for_parents_it_has_not_seen() {
        let mut roles = Roles::default();
        roles.unit(10, 20);
        let parent = |pid| match pid {
            12 => Some(11),
            11 => Some(10),
            21 => Some(20),
            _ => Some(1),
        };
        assert_eq!(roles.of(10, Watched::Unit, parent), Role::Main);
        assert_eq!(roles.of(12, Watched::Unit, parent), Role::Child);
        assert_eq!(roles.of(20, Watched::Unit, parent), Role::Control);
        assert_eq!(roles.of(21, Watched::Unit, parent), Role::ControlChild);
        assert_eq!(roles.of(30, Watched::Unit, parent), Role::Control);
    }
}
