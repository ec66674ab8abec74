//! What `l4d2ctl` needs of systemd: the trait [`Units`], which is async, and the types it speaks in. `systemd.rs` does it over D-Bus, a
//! test plays it.

use std::time::Instant;

use left4me_helper::instance::Instance;

/// Something of each of an instance's two units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair<T> {
    /// That of the server, `left4me-server@<id>.service`.
    pub server: T,
    /// That of the overlay, `left4me-overlay@<id>.service`, which the server's unit requires.
    pub overlay: T,
}

/// The names of an instance's two units.
pub type Names = Pair<String>;

impl Names {
    /// Those of `instance`.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        Self { server: instance.unit(), overlay: instance.overlay_unit() }
    }
}

impl<T> Pair<T> {
    /// Both, the server's first.
    pub fn each(&self) -> [&T; 2] {
        [&self.server, &self.overlay]
    }
}

/// A job for systemd. All are queued in the mode `replace`, as systemctl(1) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Starts the server, and with it the overlay, which it requires. Both units' failed states and counts of starts are
    /// taken back first.
    Start,
    /// Stops the overlay. systemd stops the server before, as that requires the overlay, also if the overlay's own unit
    /// is inactive; so with this job's end the overlay is unmounted.
    Stop,
    /// Starts the overlay alone: the first half of unmounting what an earlier stop has left.
    Mount,
    /// Stops the server alone: one whose unit does not require the overlay.
    StopServer,
}

impl Job {
    /// The unit whose job it is.
    #[must_use]
    pub fn unit(self, names: &Names) -> &str {
        match self {
            Self::Start | Self::StopServer => &names.server,
            Self::Stop | Self::Mount => &names.overlay,
        }
    }

    /// The units whose failed state is taken back before. StartLimitBurst= is against a server that restarts itself in a
    /// loop, not against a person who starts and resets it five times a minute (unit_reset_failed in systemd).
    #[must_use]
    pub fn resets_failed(self, names: &Names) -> Vec<&str> {
        match self {
            Self::Start => vec![&names.server, &names.overlay],
            Self::Mount => vec![&names.overlay],
            Self::Stop | Self::StopServer => vec![],
        }
    }
}

/// A unit as systemd sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found`, `bad-setting` and so on.
    pub load_state: String,
    /// `active`, `inactive`, `failed`, `activating` and so on.
    pub active_state: String,
    /// The finer state.
    pub sub_state: String,
    /// The service's result.
    pub result: String,
    /// NRestarts.
    pub restarts: u32,
    /// Every command's last run.
    pub exec: Vec<ExecRun>,
}

impl UnitState {
    /// Whether the unit has no process of its own any more.
    #[must_use]
    pub fn is_down(&self) -> bool {
        is_down(&self.active_state)
    }
}

/// Whether a unit in this ActiveState has no process of its own any more, org.freedesktop.systemd1(5).
#[must_use]
pub fn is_down(active_state: &str) -> bool {
    matches!(active_state, "inactive" | "failed")
}

/// One entry of `ExecStartPreEx` and its like, org.freedesktop.systemd1(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRun {
    /// The setting.
    pub line: &'static str,
    /// The command with its arguments.
    pub argv: Vec<String>,
    /// When it started, microseconds of CLOCK_MONOTONIC; 0 if it has not run.
    pub started_us: u64,
    /// When it ended; 0 if it has not.
    pub exited_us: u64,
    /// How it ended: CLD_EXITED (1), CLD_KILLED (2) or CLD_DUMPED (3), sigaction(2); 0 if it has not.
    pub code: i32,
    /// The exit status or the signal.
    pub status: i32,
}

/// `si_code` of SIGCHLD, sigaction(2).
pub const CLD_EXITED: i32 = 1;
/// As [`CLD_EXITED`]: a signal ended it.
pub const CLD_KILLED: i32 = 2;
/// As [`CLD_EXITED`]: a signal ended it, and it left a core.
pub const CLD_DUMPED: i32 = 3;

impl ExecRun {
    /// Whether it is of a start: the server lives between the overlay's start and its stop.
    #[must_use]
    pub fn is_of_start(&self) -> bool {
        matches!(self.line, "ExecStartPre" | "ExecStart")
    }

    /// Whether it has ended otherwise than with status 0.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.code != 0 && (self.code, self.status) != (CLD_EXITED, 0)
    }

    /// How it ended, in words.
    #[must_use]
    pub fn ending(&self) -> String {
        match self.code {
            CLD_EXITED => format!("status {}", self.status),
            _ => format!("signal {}", self.status),
        }
    }
}

/// Why systemd did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitsError {
    /// It cannot be reached.
    #[error("systemd cannot be reached over D-Bus: {0}")]
    Unreachable(String),
    /// It has left the bus while it was asked, and did not come back.
    #[error(
        "systemd has left D-Bus ({0}) and is not back; what it was asked for it may have done or not: `systemctl is-system-running`, \
         then the same again"
    )]
    Left(String),
    /// We have not the rights.
    #[error(
        "no rights to do this: use sudo, or let a polkit rule allow org.freedesktop.systemd1.manage-units to start and stop \
         ({0})"
    )]
    Denied(String),
    /// It has no such unit.
    #[error("systemd: {0}")]
    NoSuchUnit(String),
    /// The job had not ended by the deadline.
    #[error("the job has not ended by the deadline; systemd goes on with it (`systemctl list-jobs`)")]
    Deadline,
    /// Anything else, in its own words.
    #[error("systemd: {0}")]
    Other(String),
}

impl UnitsError {
    /// Whether nothing more can be asked of systemd.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Left(_))
    }
}

/// Whether a unit runs, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    /// ActiveState.
    pub active_state: String,
    /// When it became active, microseconds of CLOCK_MONOTONIC; 0 if it is down or was never.
    pub since_us: u64,
}

/// How a job went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The units' ActiveState when the job was queued.
    pub before: Pair<String>,
    /// The job's result: `done` if it went well.
    pub result: String,
}

/// Of which of a unit's Exec lines the last runs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// All.
    All,
    /// Those that a stop runs, and how the server itself ended.
    OfStop,
}

/// What is needed of systemd. Whoever calls it has the executor, of whichever kind: the futures can be sent to another
/// thread. One that is dropped waits no more; a job that is queued goes on.
pub trait Units: Send {
    /// Queues a job and waits for its end.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn run(
        &mut self,
        job: Job,
        names: &Names,
        deadline: Instant,
    ) -> impl Future<Output = Result<Ended, UnitsError>> + Send;

    /// The units' states now, with the last runs of the lines that are asked for.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn state(
        &mut self,
        names: &Names,
        asked: Lines,
    ) -> impl Future<Output = Result<Pair<UnitState>, UnitsError>> + Send;

    /// Takes a unit's failed state back: it is `inactive` then.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn reset_failed(&mut self, unit: &str) -> impl Future<Output = Result<(), UnitsError>> + Send;

    /// Whether the server's unit, as it is loaded, requires the overlay's.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn requires_overlay(&mut self, names: &Names) -> impl Future<Output = Result<bool, UnitsError>> + Send;

    /// Whether each of `units` runs, in their order.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn activity(
        &mut self,
        units: &[String],
    ) -> impl Future<Output = Result<Vec<Activity>, UnitsError>> + Send;

    /// Waits until all of `units` are down, or until `deadline`, which is no error.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn wait_until_down(
        &mut self,
        units: &[String],
        deadline: Instant,
    ) -> impl Future<Output = Result<(), UnitsError>> + Send;
}

/// What is needed of systemd's knowledge of unit files.
pub trait UnitFiles: Send {
    /// Takes away the links by which a unit starts with the host, if it has any, and says which they were.
    ///
    /// # Errors
    /// As [`UnitsError`].
    fn disable(&mut self, unit: &str) -> impl Future<Output = Result<Vec<String>, UnitsError>> + Send;
}
