//! The managers that have the plan's units: PID 1, and a user's, each on a bus of its own.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use systemd_bus::{ManagerProxy, SYSTEMD, manager};
use vm_agent::recording::Plan;
use zbus::blocking::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::{Connection, block_on, blocking};

use crate::account::Account;

/// What sd-bus and zbus use by default; a method call that hangs must not hang the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// Signals that may wait for a thread while it asks systemd something itself.
const QUEUE: usize = 4096;

/// Whose units.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    System,
    User(Account),
}

impl Whose {
    /// Of the plan's unit under test.
    ///
    /// # Errors
    /// There is no such user.
    pub(super) fn of(plan: &Plan) -> Result<Self> {
        match plan.user.as_deref() {
            Some(name) => Ok(Self::User(Account::of(name)?)),
            None => Ok(Self::System),
        }
    }

    /// A connection to the bus that this manager is on.
    ///
    /// # Errors
    /// What the bus says.
    pub(super) fn connect(&self) -> Result<blocking::Connection> {
        let (builder, bus) = match self {
            Self::System => (Builder::system()?, "the system bus".to_owned()),
            Self::User(account) => {
                let builder = Builder::async_io_unix_stream(account.connect()?).user_id(account.uid);
                (builder, format!("the bus of {}", account.name))
            }
        };
        let builder = builder.method_timeout(CALL_TIMEOUT).max_queued(QUEUE);
        builder.build().with_context(|| format!("connect to {bus}"))
    }
}

/// A manager that can be asked.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) proxy: ManagerProxy<'static>,
    /// Its process.
    pub(super) pid: u32,
}

impl Manager {
    /// # Errors
    /// As [`Whose::connect`]; no systemd is there.
    pub(super) fn of(whose: &Whose) -> Result<Self> {
        let connection = whose.connect()?.into_inner();
        let (answer, answered) = channel();
        thread::Builder::new().name("d-bus".to_owned()).spawn(move || {
            // Fails only when the asker has given up.
            let _gone = answer.send(block_on(ask(connection))).is_err();
        })?;
        answered.recv_timeout(CALL_TIMEOUT).context("systemd does not come to the bus of its user")?
    }
}

async fn ask(connection: Connection) -> Result<Manager> {
    let bus = DBusProxy::new(&connection).await?;
    let name = BusName::try_from(SYSTEMD)?;
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, SYSTEMD)]).await?;
    // A user's bus is started by who first connects to it, and systemd comes to it then.
    if !bus.name_has_owner(name.clone()).await? {
        owners.next().await.context("the bus closed the connection")?;
    }
    let pid =
        bus.get_connection_unix_process_id(name).await.context("GetConnectionUnixProcessID of systemd")?;
    Ok(Manager { proxy: manager(&connection).await?, pid })
}
