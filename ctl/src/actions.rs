//! What can be asked of an instance, on which machine, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use left4me_helper::busy_note::monotonic_us;
use left4me_helper::instance::STATE_DIR;
use left4me_helper::purge;
use serde::{Deserialize, Serialize};

/// How long a job may take unless told otherwise: the stop timeouts of both units, and as much in hand as a slow machine
/// may want.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// What is asked of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Mount the overlay and start the server.
    Start,
    /// Stop the server and unmount the overlay.
    Stop,
    /// Stop and delete `runtime/<id>`.
    Reset,
    /// Say how it is.
    Status,
}

impl Action {
    /// Its name on the command line and in a report.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reset => "reset",
            Self::Status => "status",
        }
    }
}

/// The machine's own places; a test has others.
#[derive(Debug, Clone)]
pub struct Host {
    /// [`STATE_DIR`].
    pub state_dir: PathBuf,
    /// [`purge::MOUNT_TABLES`].
    pub mount_tables: Vec<PathBuf>,
    /// The kernel's tables of sockets: `/proc/net`.
    pub net: PathBuf,
    /// Where an admin's units and drop-ins lie: `/etc/systemd/system`.
    pub units: PathBuf,
    /// Whether we are root.
    pub is_root: bool,
    /// CLOCK_MONOTONIC now, microseconds: what systemd's monotonic times are compared with.
    pub now_us: fn() -> u64,
    /// Whether what blocks, which is the wait for an instance's lock and the delete, is done in a thread of its own: for
    /// whoever has other futures to poll.
    pub offload: bool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            state_dir: STATE_DIR.into(),
            mount_tables: purge::MOUNT_TABLES.map(PathBuf::from).to_vec(),
            net: "/proc/net".into(),
            units: "/etc/systemd/system".into(),
            is_root: rustix::process::geteuid().is_root(),
            now_us: monotonic_us,
            offload: false,
        }
    }
}
