//! What every cycle of a scenario must be.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use vm_agent::recording::{Kind, Role};

use crate::scenario::execs::{ExecLine, ExpectedExecs, ExpectedExit};
use crate::scenario::expect_mount::ExpectMount;
use crate::scenario::explore::Allowed;
use crate::scenario::outcome::{ExpectedRemount, ExpectedUmount};
use crate::scenario::problem::instead;
use crate::scenario::tree::join;
use crate::scenario::verdict::MountVerdict;

/// What every cycle must be. The numbers are bounds; the shape is also in the snapshot. What is left out must be clean: an
/// `inactive` unit, no mount, nobody who held it, nothing left.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The start command's exit status.
    pub start_exit: i32,
    /// The unit's ActiveState when the reset begins. Left out: `active`, since a reset of what does not run shows nothing.
    active_state_before: Option<String>,
    /// Whether the watched path is a mount point, in PID 1's mount namespace, when the reset begins. Left out: it is.
    mounted_before: Option<bool>,
    /// The reset command's exit status.
    pub reset_exit: i32,
    /// The shortest a reset must take, in milliseconds of guest time.
    pub reset_min_ms: u64,
    /// A reset must take less than this, in milliseconds of guest time. Left out: as long as a command may.
    reset_max_ms: Option<u64>,
    /// The unit's ActiveState afterwards. Left out: `inactive`.
    active_state: Option<String>,
    /// The ActiveState of the mount's unit afterwards. Left out: `inactive`.
    pub mount_unit_state: Option<String>,
    /// How the last ExecStopPost of either unit ended. Left out: with status 0, if there is one.
    pub exec_stop_post: Option<ExpectedExit>,
    /// How Exec lines of the unit under test end, and its main process, and how long each may take.
    pub exec: ExpectedExecs,
    /// The same of the mount's unit.
    pub mount_unit_exec: ExpectedExecs,
    /// How the last umount2(2) went. Left out: `ok` or none at all, and if the mount is meant to stay, anything.
    pub umount: Option<ExpectedUmount>,
    /// The verdict on who kept the mount, in [`MountVerdict::words`]. Left out: nobody.
    #[serde(deserialize_with = "MountVerdict::from_words")]
    pub verdict: Option<MountVerdict>,
    /// Units that must be seen in a namespace with a copy of the mount, and nothing held in it.
    pub listed: Vec<String>,
    /// Whether the watched path is still a mount point afterwards.
    pub mounted: bool,
    /// Which paths of `removed` are still there afterwards.
    pub left_over: Vec<String>,
    /// Which of `free_devices` are not free afterwards, as `<device>: mounted at <path> for <unit>`, with all that keeps it.
    pub kept_devices: Vec<String>,
    /// Who holds the mount when it is unmounted, as `<role> <comm> (<kind>, …)`; empty: nobody.
    pub holders: Vec<String>,
    /// Words that `holders` says of the unmount that was refused, each anywhere in its verdict or its advice.
    pub advice: Vec<String>,
    /// Where the file system is still mounted after it was unmounted, as `<unit>: <path>`.
    pub mounted_elsewhere: Vec<String>,
    /// The next mount of the same layers. Left out: silent or not tried.
    pub remount: Option<ExpectedRemount>,
    /// comm of each process that is left in the cgroup of the unit, or of the mount's unit.
    pub left_processes: Vec<String>,
    /// Failed units besides the one under test and the mount's, whose states are `active_state` and `mount_unit_state`.
    pub other_failed_units: Vec<String>,
    /// What the kernel logs of level warning or worse.
    pub kernel_warnings: Vec<String>,
    /// comm of each process that dies of a signal that dumps core.
    pub core_dumps: Vec<String>,
    /// Words that the reset command must write to stderr, each anywhere in it. `{pid}` stands for the process id of one
    /// that held the mount when it was unmounted.
    pub reset_stderr: Vec<String>,
    /// Words of what systemd-shutdown says at the end of a shutdown, each in one line of what went wrong. Left out:
    /// nothing went wrong.
    pub shutdown_log: Vec<String>,
    /// What must become of each of `other_mounts`, by its path; left out: it must be clean.
    pub other_mounts: BTreeMap<String, ExpectMount>,
    /// The unit under test, for [`Expect::failed_units`].
    #[serde(skip)]
    pub(super) unit: String,
    /// The mount's unit, where there is one, for [`Expect::mount_unit_state`].
    #[serde(skip)]
    pub(super) mount_unit: Option<String>,
}

/// What systemd says of a unit in ActiveState, systemd(1).
pub(super) const ACTIVE_STATES: [&str; 8] =
    ["active", "reloading", "inactive", "failed", "activating", "deactivating", "maintenance", "refreshing"];

/// What is wrong with the words of a holder, `<role> <comm> (<kind>, …)`.
fn not_a_holder(words: &str) -> Option<String> {
    let parts = words.split_once(' ').and_then(|(role, rest)| {
        let (comm, kinds) = rest.rsplit_once(" (")?;
        Some((role, comm, kinds.strip_suffix(')')?))
    });
    let Some((role, comm, kinds)) = parts else {
        return Some(format!(
            "{words:?}: give role, name and kinds of reference, as \"control left4me-overlay (cwd, file)\""
        ));
    };
    let roles = Role::ALL.map(Role::word);
    let known = Kind::ALL.map(Kind::word);
    let unknown_role = (!roles.contains(&role)).then(|| format!("no role {role}: {}", instead(role, roles)));
    let unknown_kinds = kinds
        .split(", ")
        .filter(|kind| !known.contains(kind))
        .map(|kind| format!("no kind of reference {kind}: {}", instead(kind, known)));
    let wrong: Vec<String> = unknown_role.into_iter().chain(not_a_comm(comm)).chain(unknown_kinds).collect();
    (!wrong.is_empty()).then(|| format!("{words:?}: {}", wrong.join("; ")))
}

fn not_a_comm(comm: &str) -> Option<String> {
    let cut = comm.get(..COMM_BYTES).filter(|_| comm.len() > COMM_BYTES)?;
    Some(format!("{comm:?}: the kernel keeps {COMM_BYTES} bytes of a name: {cut:?}"))
}

/// The kernel cuts a process's name off here, in bytes (TASK_COMM_LEN, with a NUL at the end).
const COMM_BYTES: usize = 15;

impl Expect {
    /// Words that no cycle can have: the key, and what is wrong with it.
    pub(super) fn contradictions(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let states = [
            ("active_state_before", &self.active_state_before),
            ("active_state", &self.active_state),
            ("mount_unit_state", &self.mount_unit_state),
        ];
        for (key, state) in states {
            if let Some(state) = state.as_deref().filter(|state| !ACTIVE_STATES.contains(state)) {
                wrong.push((
                    key.to_owned(),
                    format!("{state:?}: no ActiveState: {}", instead(state, ACTIVE_STATES)),
                ));
            }
        }
        if let Some(max) = self.reset_max_ms.filter(|max| *max <= self.reset_min_ms) {
            let what = format!(
                "{max}: no reset takes less than this and at least reset_min_ms = {}",
                self.reset_min_ms
            );
            wrong.push(("reset_max_ms".to_owned(), what));
        }
        let others = self.other_mounts.iter().map(|(path, mount)| {
            (format!("{}.", join("other_mounts", path)), &mount.holders, &mount.mounted_elsewhere)
        });
        let all = std::iter::once((String::new(), &self.holders, &self.mounted_elsewhere)).chain(others);
        for (table, holders, places) in all {
            for (index, holder) in holders.iter().enumerate() {
                wrong.extend(not_a_holder(holder).map(|what| (format!("{table}holders[{index}]"), what)));
            }
            for (index, place) in places.iter().enumerate().filter(|(_, place)| !place.contains(": /")) {
                let what = format!("{place:?}: give a unit and a path, as \"demo.service: /mnt\"");
                wrong.push((format!("{table}mounted_elsewhere[{index}]"), what));
            }
        }
        for (key, comms) in [("left_processes", &self.left_processes), ("core_dumps", &self.core_dumps)] {
            for (index, comm) in comms.iter().enumerate() {
                wrong.extend(not_a_comm(comm).map(|what| (format!("{key}[{index}]"), what)));
            }
        }
        wrong
    }

    /// The same without bounds of time, which a run that is held for a while does not keep.
    #[must_use]
    pub fn untimed(&self) -> Self {
        let mut untimed = Self { reset_min_ms: 0, reset_max_ms: None, ..self.clone() };
        let execs = untimed.exec.values_mut().chain(untimed.mount_unit_exec.values_mut());
        execs.for_each(|exec| exec.max_ms = None);
        untimed
    }

    /// The same with what is allowed in its place.
    #[must_use]
    pub fn but(&self, allowed: &Allowed) -> Self {
        let Allowed { start_exit, reset_exit, active_state_before, mounted_before, .. } = allowed;
        let Allowed { active_state, mount_unit_state, mounted, left_processes, holders, .. } = allowed;
        Self {
            start_exit: start_exit.unwrap_or(self.start_exit),
            reset_exit: reset_exit.unwrap_or(self.reset_exit),
            active_state_before: active_state_before.clone().or(self.active_state_before.clone()),
            mounted_before: mounted_before.or(self.mounted_before),
            active_state: active_state.clone().or(self.active_state.clone()),
            mount_unit_state: mount_unit_state.clone().or(self.mount_unit_state.clone()),
            mounted: mounted.unwrap_or(self.mounted),
            left_processes: left_processes.clone().unwrap_or(self.left_processes.clone()),
            holders: holders.clone().unwrap_or(self.holders.clone()),
            ..self.clone()
        }
    }

    /// What must become of `mount`.
    #[must_use]
    pub fn mount(&self) -> ExpectMount {
        ExpectMount {
            mounted_before: self.mounted_before,
            umount: self.umount,
            verdict: self.verdict,
            holders: self.holders.clone(),
            advice: self.advice.clone(),
            listed: self.listed.clone(),
            mounted: self.mounted,
            mounted_elsewhere: self.mounted_elsewhere.clone(),
            remount: self.remount.clone(),
        }
    }

    /// The shortest a reset must take.
    #[must_use]
    pub fn reset_min(&self) -> Duration {
        Duration::from_millis(self.reset_min_ms)
    }

    /// A reset must take less than this.
    #[must_use]
    pub fn reset_max(&self) -> Duration {
        self.reset_max_ms.map_or(Duration::MAX, Duration::from_millis)
    }

    /// The unit's ActiveState that there must be when the reset begins.
    #[must_use]
    pub fn active_state_before(&self) -> &str {
        self.active_state_before.as_deref().unwrap_or("active")
    }

    /// The unit's ActiveState that there must be afterwards.
    #[must_use]
    pub fn active_state(&self) -> &str {
        self.active_state.as_deref().unwrap_or("inactive")
    }

    /// The ActiveState that the mount's unit must have afterwards; `None` where the scenario has no such unit.
    #[must_use]
    pub fn mount_unit_state(&self) -> Option<&str> {
        self.mount_unit.as_ref().map(|_| self.mount_unit_state.as_deref().unwrap_or("inactive"))
    }

    /// Whether `exec`, or `mount_unit_exec` if it is that unit's, says how its ExecStopPost ends.
    #[must_use]
    pub fn says_how_stop_post_ends(&self, unit: &str) -> bool {
        let execs = if unit == self.unit { &self.exec } else { &self.mount_unit_exec };
        execs.get(&ExecLine::STOP_POST).is_some_and(|expected| expected.ended.is_some())
    }

    /// All units that are meant to be failed, in the order of their names.
    #[must_use]
    pub fn failed_units(&self) -> Vec<String> {
        let own = (self.active_state() == "failed").then(|| self.unit.clone());
        let mounts = self.mount_unit.clone().filter(|_| self.mount_unit_state() == Some("failed"));
        let mut units: Vec<String> =
            self.other_failed_units.iter().cloned().chain(own).chain(mounts).collect();
        units.sort();
        units
    }
}
