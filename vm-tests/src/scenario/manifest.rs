//! `scenario.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_perturb::{Line, Order};

use super::commands::{Check, During};
use super::expect::Expect;
use super::explore::{Explore, Phase};
use super::reset::Reset;
use crate::image::suite::Suite;

/// The RAM of a machine that is asked for no other, in MiB. A guest with systemd, journald, udev, D-Bus and a scenario
/// uses 120 MiB of it.
pub const DEFAULT_MEMORY_MIB: u32 = 512;

/// What a guest needs to boot, in MiB, its initramfs and the tmpfs over its root included.
pub(super) const LEAST_MEMORY_MIB: u32 = 256;

/// `scenario.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// One line: what this scenario shows.
    pub description: String,
    /// The unit under test.
    pub unit: String,
    /// The user whose manager has that unit; left out: it is one of the system.
    #[serde(default)]
    pub user: Option<String>,
    /// The unit of the system whose commands make and unmake the mount, where that is not the unit under test.
    #[serde(default)]
    pub mount_unit: Option<String>,
    /// The mount point under watch, absolute; left out: the scenario has none, and is about the unit alone.
    #[serde(default)]
    pub mount: Option<String>,
    /// More mount points under watch.
    #[serde(default)]
    pub other_mounts: Vec<String>,
    /// Where the machine gets an empty ext4 of its own (a RAM disk), because an overlay's upper layer can't lie
    /// on the machine's root, which is an overlay itself.
    #[serde(default)]
    pub state_directory: Option<String>,
    /// Debian packages that the machine's image has beside the usual ones.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The images that the scenario is for; empty: all.
    #[serde(default)]
    pub images: Vec<Suite>,
    /// The machine's RAM, in MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// How many cycles, unless `--cycles` says otherwise.
    #[serde(default)]
    pub(super) cycles: Option<u32>,
    /// What the guest gets.
    #[serde(default)]
    pub deploy: Deploy,
    /// Commands that bring the guest into its state after the files are there; each must succeed.
    #[serde(default)]
    pub setup: Vec<Vec<String>>,
    /// Paths that a reset is meant to remove; none inside the mount.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Block devices that must be free after a reset: nothing mounted on them, in no namespace, and no one on them.
    #[serde(default)]
    pub free_devices: Vec<String>,
    /// Whether systemd's start limit counts from cycle to cycle. Else a cycle begins as if there had been none before.
    #[serde(default)]
    pub start_limit: bool,
    /// Brings the unit up.
    pub start: Vec<String>,
    /// Brings it down again.
    pub reset: Reset,
    /// Commands to run during each reset.
    #[serde(default)]
    pub during: Vec<During>,
    /// Commands to run after each reset, before `recover`, and what they must give.
    #[serde(default)]
    pub check: Vec<Check>,
    /// Commands to run when the machine that the reset has shut down has booted again, and what they must give.
    #[serde(default)]
    pub boot_check: Vec<Check>,
    /// Run after a cycle that left something mounted, a process of one of the units, or one of them failed.
    #[serde(default)]
    pub recover: Vec<Vec<String>>,
    /// The longest a command of a cycle may take, in seconds of guest time.
    #[serde(default = "default_command_timeout")]
    pub command_timeout_secs: u64,
    /// Period of the scans of the units' tasks while a unit stops, in milliseconds of guest time.
    #[serde(default = "default_sample")]
    pub sample_ms: u64,
    /// What every cycle must be, whatever the snapshot says.
    #[serde(default)]
    pub expect: Expect,
    /// What `cargo xtask explore` perturbs.
    #[serde(default)]
    pub explore: Explore,
    /// Its place in a history, which is shown as one table.
    #[serde(default)]
    pub history: Option<History>,
}

impl Manifest {
    /// How many cycles, unless `--cycles` says otherwise: 10, and of a machine that shuts down one.
    #[must_use]
    pub fn cycles(&self) -> u32 {
        self.cycles.unwrap_or(match self.reset {
            Reset::Command(_) => 10,
            Reset::Shutdown => 1,
        })
    }
}

impl Manifest {
    /// What the guest's program is told that holds tasks.
    pub(crate) fn order(&self, line: &Line, must_hold: bool) -> Order {
        Order {
            units: [Some(&self.unit), self.mount_unit.as_ref()].into_iter().flatten().cloned().collect(),
            client: self.explore.client.clone(),
            line: line.to_string(),
            packed: String::new(),
            // A command is killed when its time is over.
            deadline_us: self.command_timeout_secs.saturating_mul(1_000_000) / 10 * 9,
            must_hold,
            anew: None,
        }
    }

    /// The command of a cycle that is explored.
    pub(crate) const fn explored<'a>(
        &self,
        start: &'a mut Vec<String>,
        reset: &'a mut Vec<String>,
    ) -> &'a mut Vec<String> {
        match self.explore.phase {
            Phase::Start => start,
            Phase::Reset => reset,
        }
    }
}

/// A step of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Its number: the order of the table's lines.
    pub step: u32,
    /// What the step was, in a few words.
    pub what: String,
    /// What was reported of it at the time.
    pub reported: String,
}

/// What the guest gets, in this order.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// Trees of the host, relative to the scenario's directory, laid over the guest's `/`; then `files/`.
    #[serde(default)]
    pub trees: Vec<PathBuf>,
    /// Programs: where each goes in the guest, and its name among those that the harness builds
    /// (`left4me-overlay`, `l4d2ctl`, `vm-game`, `vm-attack`, `vm-hostile`, `vm-kill`) or, with a `/` in it, its path
    /// from the scenario's directory.
    #[serde(default)]
    pub programs: BTreeMap<String, String>,
    /// Small files, after all others: where each goes in the guest, and what is in it. Drop-ins of a unit, say, so
    /// that what a scenario changes is seen in its manifest.
    #[serde(default)]
    pub text: BTreeMap<String, String>,
}

fn default_memory() -> u32 {
    DEFAULT_MEMORY_MIB
}

fn default_command_timeout() -> u64 {
    120
}

fn default_sample() -> u64 {
    10
}
