//! The connection: one question to systemd, and the wait for its answer.

use std::future::Future;
use std::time::Instant;

use async_io::Timer;
use futures_lite::future;
use systemd_bus::{ListedUnit, ManagerProxy, object, unit_path};
use zbus::connection::Builder;
use zbus::proxy::Defaults;
use zbus::{Connection, Proxy};

use super::bus::pair;
use crate::units::{Names, Pair, UnitsError};

/// How many questions are under way at once where each is about another unit: dbus-daemon lets a connection wait for 128
/// answers (`max_replies_per_connection`, dbus-daemon(1)).
pub(super) const QUESTIONS_AT_ONCE: usize = 120;

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
