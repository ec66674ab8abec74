//! The connection: one question to systemd, and the wait for its answer.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::{StreamExt, future};
use systemd_bus::{ListedUnit, ManagerProxy, SYSTEMD, object, unit_path};
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::proxy::Defaults;
use zbus::{Connection, Proxy};

use super::bus::{gone, pair};
use crate::units::{Names, Pair, UnitsError};

/// How many questions are under way at once where each is about another unit: dbus-daemon lets a connection wait for 128
/// answers (`max_replies_per_connection`, dbus-daemon(1)).
pub(super) const QUESTIONS_AT_ONCE: usize = 120;

/// How long systemd may be off the bus while it executes itself anew. It takes 0.4 s under emulation.
const AWAY: Duration = Duration::from_secs(10);

/// A connection to systemd. It keeps the units it was told about loaded, until it is dropped.
#[derive(Debug, Clone)]
pub struct Systemd {
    pub(super) connection: Connection,
    pub(super) deadline: Instant,
    /// Units that systemd was told to keep, and has kept.
    pub(super) kept: Option<Names>,
}

impl Systemd {
    /// Connects. Everything asked through it, but for the jobs' own deadlines, must be answered by `deadline`.
    ///
    /// # Errors
    /// No system bus.
    pub async fn connect(deadline: Instant) -> Result<Self, UnitsError> {
        let connecting = async {
            // It drives itself until it is there.
            let connected = async { Builder::system()?.internal_executor(false).build().await };
            connected.await.map_err(|error| UnitsError::Unreachable(error.to_string()))
        };
        Ok(Self { connection: by(deadline, connecting).await?, deadline, kept: None })
    }

    /// Waits for an answer, up to a deadline, and does the connection's work meanwhile, so that it needs no executor of its
    /// own. Several may wait at once.
    pub(super) async fn wait<T>(
        &self,
        deadline: Instant,
        answer: impl Future<Output = Result<T, UnitsError>>,
    ) -> Result<T, UnitsError> {
        let work = async {
            loop {
                self.connection.executor().tick().await;
            }
        };
        future::or(by(deadline, answer), work).await
    }

    /// As [`wait`](Self::wait), for what is asked once more if systemd leaves the bus meanwhile and comes back: it executes itself
    /// anew (`systemctl daemon-reexec`), as an upgrade of systemd has it do, and what it had not answered stays unanswered. It keeps
    /// its jobs and its units through that, and a job that is asked for twice is one (`src/core/job.c:job_install`), so nothing is done twice.
    pub(super) async fn ask<T, F>(&self, deadline: Instant, ask: impl Fn() -> F) -> Result<T, UnitsError>
    where
        F: Future<Output = Result<T, UnitsError>>,
    {
        match self.wait(deadline, ask()).await {
            Err(error) if self.connection.is_bus() && is_away(&error) => {
                let until = deadline.min(Instant::now() + AWAY);
                self.wait(until, self.is_back()).await.map_err(|_gone| error)?;
                self.wait(deadline, ask()).await
            }
            answer => answer,
        }
    }

    /// Waits until somebody has systemd's name on the bus.
    async fn is_back(&self) -> Result<(), UnitsError> {
        let bus = DBusProxy::new(&self.connection).await?;
        // First, or a change between the look and the wait would be missed.
        let mut changes = bus.receive_name_owner_changed_with_args(&[(0, SYSTEMD)]).await?;
        let name = BusName::try_from(SYSTEMD).map_err(zbus::Error::from)?;
        while !bus.name_has_owner(name.clone()).await.map_err(zbus::Error::from)? {
            changes.next().await.ok_or_else(gone)?;
        }
        Ok(())
    }

    pub(super) async fn manager(&self) -> Result<ManagerProxy<'static>, UnitsError> {
        Ok(systemd_bus::manager(&self.connection).await?)
    }

    /// Has systemd keep units loaded: an inactive one is forgotten as soon as its job is done, with the exit statuses that
    /// are to be reported. It is not asked whether it does: who may not ask for that gets the same answers, each after
    /// systemd has read the unit's files again.
    pub(super) async fn keep(&self, units: &[&str]) -> Result<(), UnitsError> {
        let manager = self.manager().await?;
        for unit in units {
            manager.keep_unit(unit).await?;
        }
        Ok(())
    }

    /// What a unit's object has: its `UnitProxy`, its `ServiceProxy`.
    pub(super) async fn of_unit<P>(&self, unit: &str) -> Result<P, UnitsError>
    where
        P: Defaults + From<Proxy<'static>>,
    {
        Ok(object(&self.connection, unit_path(unit)).await?)
    }

    /// Has both units loaded, if they are not.
    pub(super) async fn listed(&self, names: &Names) -> Result<Pair<ListedUnit>, UnitsError> {
        let units = names.each().map(String::as_str);
        pair(names, self.manager().await?.list_units_by_names(&units).await?)
    }
}

/// Whether this is what the bus says while systemd is off it: of a question that was under way, or of one that came meanwhile,
/// which is an error for good where the init is another one (sd_booted(3)).
fn is_away(error: &UnitsError) -> bool {
    match error {
        UnitsError::Left(_) => true,
        UnitsError::Unreachable(_) => Path::new("/run/systemd/system").is_dir(),
        _ => false,
    }
}

/// The future's answer, or [`UnitsError::Deadline`].
pub(super) async fn by<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, UnitsError>>,
) -> Result<T, UnitsError> {
    future::or(answer, async {
        Timer::at(deadline).await;
        Err(UnitsError::Deadline)
    })
    .await
}
