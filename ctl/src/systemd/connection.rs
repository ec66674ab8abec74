//! The connection: one question to systemd, and the wait for its answer.

use std::future::Future;
use std::time::Instant;

use async_io::{Timer, block_on};
use futures_lite::future;
use zbus::connection::Builder;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};
use zbus::{Connection, Message};

use super::bus::{Arguments, Listed, MANAGER, MANAGER_PATH, PROPERTIES, SYSTEMD, listed};
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
    pub fn connect(deadline: Instant) -> Result<Self, UnitsError> {
        let connecting = async {
            // It drives itself until it is there.
            let connected = async { Builder::system()?.internal_executor(false).build().await };
            connected.await.map_err(|error| UnitsError::Unreachable(error.to_string()))
        };
        Ok(Self { connection: block_on(by(deadline, connecting))?, deadline, kept: None })
    }

    /// Waits for an answer, up to a deadline, and does the connection's work meanwhile. Several threads may wait at once.
    pub(super) fn wait<T>(
        &self,
        deadline: Instant,
        answer: impl Future<Output = Result<T, UnitsError>>,
    ) -> Result<T, UnitsError> {
        let work = async {
            loop {
                self.connection.executor().tick().await;
            }
        };
        block_on(future::or(by(deadline, answer), work))
    }

    pub(super) async fn ask(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &impl Arguments,
    ) -> Result<Message, UnitsError> {
        Ok(self.connection.call_method(Some(SYSTEMD), path, Some(interface), method, body).await?)
    }

    pub(super) async fn manager(&self, method: &str, body: &impl Arguments) -> Result<Message, UnitsError> {
        self.ask(MANAGER_PATH, MANAGER, method, body).await
    }

    pub(super) async fn send(&self, call: &Message) -> Result<(), UnitsError> {
        Ok(self.connection.send(call).await?)
    }

    /// Has systemd keep the unit loaded. Who may not ask for that gets the same answers, each after systemd has read the
    /// unit's files again.
    pub(super) async fn keep(&self, unit: &str) -> Result<(), UnitsError> {
        drop(self.manager("RefUnit", &(unit)).await);
        Ok(())
    }

    /// Has both units loaded, if they are not.
    pub(super) async fn listed(&self, names: &Names) -> Result<Pair<Listed>, UnitsError> {
        let reply = self.manager("ListUnitsByNames", &(names.each().to_vec())).await?;
        listed(names, &reply.body())
    }

    pub(super) async fn property<T>(
        &self,
        path: &OwnedObjectPath,
        interface: &str,
        name: &str,
    ) -> Result<T, UnitsError>
    where
        T: TryFrom<OwnedValue, Error = zbus::zvariant::Error>,
    {
        let value: OwnedValue =
            self.ask(path, PROPERTIES, "Get", &(interface, name)).await?.body().deserialize()?;
        T::try_from(value).map_err(|error| UnitsError::Other(format!("property {name}: {error}")))
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
