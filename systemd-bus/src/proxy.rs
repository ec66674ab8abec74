//! What can be asked of systemd's objects, a trait for each interface, and its answers' types. `zbus::proxy` makes of each a
//! proxy, of which the crate's root says how one is had.

use zbus::Result;
use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use crate::ListedUnit;

/// systemd itself.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
pub trait Manager {
    /// Loads a unit, if it is not, and says which object it is.
    fn load_unit(&self, name: &str) -> Result<OwnedObjectPath>;

    /// Has systemd keep a unit loaded as long as this connection lasts.
    fn ref_unit(&self, name: &str) -> Result<()>;

    /// Takes back what [`Self::ref_unit`] of this connection did.
    fn unref_unit(&self, name: &str) -> Result<()>;

    /// As [`Self::ref_unit`], and waits for no answer.
    #[zbus(name = "RefUnit", no_reply)]
    fn keep_unit(&self, name: &str) -> Result<()>;

    /// Takes a unit's failed state and its count of starts back.
    fn reset_failed_unit(&self, name: &str) -> Result<()>;

    /// These units in their order, loaded if they were not. One may be listed under another of its names.
    fn list_units_by_names(&self, names: &[&str]) -> Result<Vec<ListedUnit>>;

    /// The loaded units in one of these ActiveStates (in any, if there is none) with a name like one of these.
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> Result<Vec<ListedUnit>>;

    /// The loaded units in one of these states.
    fn list_units_filtered(&self, states: &[&str]) -> Result<Vec<ListedUnit>>;

    /// Deletes the links in /etc/systemd/system (or, at run time, /run) that enable these units, and says of each what was
    /// done, where, and what it led to.
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> Result<Vec<(String, String, String)>>;

    /// Reads all units' files again.
    fn reload(&self) -> Result<()>;

    /// systemd's version, as its packager writes it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn version(&self) -> Result<String>;

    /// A job has ended: its number, its object, its unit, and `done` if it went well.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str);
}

/// A unit of any kind.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub trait Unit {
    /// `loaded`, `not-found` and so on.
    #[zbus(property(emits_changed_signal = "false"))]
    fn load_state(&self) -> Result<String>;

    /// Its file.
    #[zbus(property(emits_changed_signal = "false"))]
    fn fragment_path(&self) -> Result<String>;

    /// What adds to its file.
    #[zbus(property(emits_changed_signal = "false"))]
    fn drop_in_paths(&self) -> Result<Vec<String>>;

    /// Whether one of these has changed since it was read.
    #[zbus(property(emits_changed_signal = "false"))]
    fn need_daemon_reload(&self) -> Result<bool>;

    /// The units that it requires.
    #[zbus(property(emits_changed_signal = "false"))]
    fn requires(&self) -> Result<Vec<String>>;

    /// The units that it starts after.
    #[zbus(property(emits_changed_signal = "false"))]
    fn after(&self) -> Result<Vec<String>>;

    /// When it became active, microseconds of CLOCK_MONOTONIC; 0 if it never was.
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_enter_timestamp_monotonic(&self) -> Result<u64>;
}

/// A unit that is a service. Its `Exec*=` lines are in [`exec_statuses`].
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub trait Service {
    /// How it went, `success` while nothing is wrong.
    #[zbus(property(emits_changed_signal = "false"))]
    fn result(&self) -> Result<String>;

    /// How often systemd has started it again by itself.
    #[zbus(property(emits_changed_signal = "false"), name = "NRestarts")]
    fn n_restarts(&self) -> Result<u32>;

    /// Its cgroup; empty if it has none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn control_group(&self) -> Result<String>;

    /// KillMode=.
    #[zbus(property(emits_changed_signal = "false"))]
    fn kill_mode(&self) -> Result<String>;

    /// SendSIGKILL=.
    #[zbus(property(emits_changed_signal = "false"), name = "SendSIGKILL")]
    fn send_sigkill(&self) -> Result<bool>;

    /// TimeoutStopSec=, microseconds; `u64::MAX` is infinity.
    #[zbus(property(emits_changed_signal = "false"), name = "TimeoutStopUSec")]
    fn timeout_stop_us(&self) -> Result<u64>;

    /// User=.
    #[zbus(property(emits_changed_signal = "false"))]
    fn user(&self) -> Result<String>;

    /// MountFlags=, as mount(2) has them.
    #[zbus(property(emits_changed_signal = "false"))]
    fn mount_flags(&self) -> Result<u64>;

    /// TemporaryFileSystem=: where, and with which options.
    #[zbus(property(emits_changed_signal = "false"))]
    fn temporary_file_system(&self) -> Result<Vec<(String, String)>>;

    /// WorkingDirectory=, with a `!` in front if it need not be there.
    #[zbus(property(emits_changed_signal = "false"))]
    fn working_directory(&self) -> Result<String>;
}
