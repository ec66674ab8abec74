//! The units as systemd reports them on D-Bus: their states as they change, their Exec lines' runs after each step.
//!
//! systemd sends PropertiesChanged in pairs, first for the type's interface (Service) and at once for Unit, each
//! with all its properties (`src/core/dbus-unit.c:send_changed_signal`); a state is complete with the second.
//! The recorder holds a reference on each unit (Manager.RefUnit), so that systemd does not forget it, and with
//! it the Exec lines' runs, as soon as it is down. The reference also makes systemd announce
//! this unit on the bus (`src/core/dbus-unit.c:bus_unit_send_change_signal`), and no other: Manager.Subscribe would make it
//! announce all.
//!
//! Requests go through the bus daemon, which the recorded programs use too, so they are sent together. (systemd's own
//! socket would avoid the daemon; but on it systemd has a sender name that zbus rejects as invalid.)

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use systemd_bus::{SYSTEMD, ServiceProxy, UnitProxy, call, interface, object};
use vm_agent::recording::{Plan, UnitState, What};
use zbus::blocking::MessageIterator;
use zbus::blocking::connection::Builder;
use zbus::fdo::{DBusProxy, PeerProxy, PropertiesChanged};
use zbus::message::Message;
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, block_on};

use super::events::Sink;
use super::execs::Runs;
use super::orders::{Order, Orders, UnitView};
use super::roles::Watched;

/// The name of systemd's error for a unit without a file (org.freedesktop.systemd1(5), "Manager").
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// What sd-bus and zbus use by default; a method call that hangs must not hang the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// Signals that may wait for the thread while it asks systemd something itself.
const QUEUE: usize = 4096;

/// The watch on the plan's unit, and on the one that makes and unmakes the mount, where that is another.
#[derive(Debug)]
pub(super) struct Units {
    tested: UnitWatch,
    mount: Option<UnitWatch>,
}

impl Units {
    /// Records the units' states and watches them from then on.
    ///
    /// # Errors
    /// As [`UnitWatch::start`].
    pub(super) fn start(plan: &Plan, sink: &Sink, orders: &Orders) -> Result<Self> {
        let start = |unit: &str, watched| {
            UnitWatch::start(unit, watched, sink.clone(), orders.clone())
                .with_context(|| format!("watch {unit} on D-Bus"))
        };
        let tested = start(&plan.unit, Watched::Unit)?;
        let mount = plan.mount_unit.as_deref().map(|unit| start(unit, Watched::MountUnit)).transpose()?;
        Ok(Self { tested, mount })
    }

    fn all(&self) -> impl Iterator<Item = &UnitWatch> {
        [&self.tested].into_iter().chain(&self.mount)
    }

    /// systemd's `Version`.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn systemd_version(&self) -> Result<String> {
        self.tested.systemd_version()
    }

    /// Every unit of the machine that is `failed`, in the order of their names.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn failed_units(&self) -> Result<Vec<String>> {
        self.tested.failed_units()
    }

    /// Has systemd take back how often the units were started, which their start limits are about, and that they failed.
    /// A unit that is not loaded has nothing to take back.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn forget_starts(&self) -> Result<()> {
        self.all().try_for_each(UnitWatch::forget_starts)
    }

    /// Whether one of the two was `failed` at the last [`Units::record`].
    pub(super) fn has_failed(&self) -> bool {
        self.all().any(|unit| unit.state.active == "failed")
    }

    /// The cgroup of each at the last [`Units::record`] that found one; empty if none did.
    pub(super) fn control_groups(&self) -> impl Iterator<Item = &str> {
        self.all().map(|unit| unit.control_group.as_str())
    }

    /// Records their states as of now, and every run of an Exec line that has ended since the last time.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn record(&mut self) -> Result<()> {
        self.tested.record()?;
        self.mount.as_mut().map_or(Ok(()), UnitWatch::record)
    }

    /// Records the runs that have not ended, waits until every signal that systemd has sent is recorded, and
    /// ends the threads.
    ///
    /// # Errors
    /// What D-Bus says, here or in a thread.
    pub(super) fn finish(self) -> Result<()> {
        let tested = self.tested.finish();
        let mount = self.mount.map_or(Ok(()), UnitWatch::finish);
        tested.and(mount)
    }
}

/// The watch on one unit: a connection, and a thread that reads its signals.
#[derive(Debug)]
struct UnitWatch {
    name: String,
    watched: Watched,
    bus: Bus,
    sink: Sink,
    orders: Orders,
    thread: Option<JoinHandle<Result<()>>>,
    /// The serial of the call whose answer ends the thread.
    last_call: Arc<AtomicU32>,
    state: UnitState,
    /// The unit's cgroup, which systemd says only while there is one.
    control_group: String,
    runs: Runs,
}

/// What can be asked.
#[derive(Debug, Clone)]
struct Bus {
    unit: UnitProxy<'static>,
    /// None of a unit of another kind.
    service: Option<ServiceProxy<'static>>,
}

/// What the thread knows.
#[derive(Debug)]
struct Known {
    watched: Watched,
    state: UnitState,
    /// StateChangeTimestampMonotonic, in microseconds.
    changed_us: u64,
    control_group: String,
    /// The last state that was recorded or held back, and its `changed_us`.
    sent: (UnitState, u64),
    /// A change without a time of its own (ControlPID, say), as of when it was noticed, until the next change.
    held_back: Option<(u64, UnitState)>,
}

impl UnitWatch {
    /// Connects to the system bus, loads the unit, records its state and watches it from then on.
    ///
    /// # Errors
    /// No system bus, no systemd on it, or no such unit.
    fn start(unit: &str, watched: Watched, sink: Sink, orders: Orders) -> Result<Self> {
        let builder = Builder::system()?.method_timeout(CALL_TIMEOUT).max_queued(QUEUE);
        let connection = builder.build().context("connect to the system bus")?;
        // Before the match is added, so that no signal falls between.
        let messages = MessageIterator::from(&connection);
        let connection = connection.inner();
        let is_service = unit.ends_with(".service");
        let bus = block_on(async {
            let manager = systemd_bus::manager(connection).await?;
            let path = manager.load_unit(unit).await.context("LoadUnit")?;
            manager.ref_unit(unit).await.map_err(|error| not_referenced(unit, error))?;
            let rule = call::changes_of(&path)?;
            DBusProxy::new(connection).await?.add_match_rule(rule).await.context("AddMatch")?;
            let service = if is_service { Some(object(connection, path.clone()).await?) } else { None };
            anyhow::Ok(Bus { unit: object(connection, path).await?, service })
        })?;
        let mut known = Known::nothing_of(watched);
        known.take_all(&bus)?;
        sink.send_now(known.event(known.state.clone()));
        known.sent = (known.state.clone(), known.changed_us);
        orders.send(Order::Unit(watched, known.view()));
        let (state, control_group) = (known.state.clone(), known.control_group.clone());
        let last_call = Arc::new(AtomicU32::new(0));
        let thread = {
            let (bus, sink, orders, last_call) =
                (bus.clone(), sink.clone(), orders.clone(), last_call.clone());
            thread::Builder::new()
                .name("d-bus".to_owned())
                .spawn(move || watch(messages, &bus, &sink, &orders, &last_call, known))?
        };
        let (name, runs) = (unit.to_owned(), Runs::default());
        let thread = Some(thread);
        Ok(Self { name, watched, bus, sink, orders, thread, last_call, state, control_group, runs })
    }

    fn systemd_version(&self) -> Result<String> {
        Ok(block_on(async { systemd_bus::manager(self.bus.connection()).await?.version().await })?)
    }

    fn failed_units(&self) -> Result<Vec<String>> {
        let units = block_on(async {
            systemd_bus::manager(self.bus.connection()).await?.list_units_filtered(&["failed"]).await
        });
        let mut names: Vec<_> =
            units.context("ListUnitsFiltered")?.into_iter().map(|unit| unit.name).collect();
        names.sort();
        Ok(names)
    }

    fn forget_starts(&self) -> Result<()> {
        let forgotten = block_on(async {
            systemd_bus::manager(self.bus.connection()).await?.reset_failed_unit(&self.name).await
        });
        match forgotten {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
            other => other.with_context(|| format!("ResetFailedUnit {}", self.name)),
        }
    }

    fn record(&mut self) -> Result<()> {
        let mut known = Known::nothing_of(self.watched);
        known.take_all(&self.bus)?;
        self.orders.send(Order::Unit(self.watched, known.view()));
        self.sink.send_now(known.event(known.state.clone()));
        self.state = known.state;
        if !known.control_group.is_empty() {
            self.control_group = known.control_group;
        }
        self.record_runs(false)
    }

    fn finish(mut self) -> Result<()> {
        let recorded = self.record_runs(true);
        let ended = self.end();
        recorded.and(ended)
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // systemd's answer comes behind its signals.
        let ping = Message::method_call("/", "Ping")?
            .destination(SYSTEMD)?
            .interface(interface::<PeerProxy<'_>>())?;
        let ping = ping.build(&())?;
        self.last_call.store(ping.primary_header().serial_num().get(), Ordering::SeqCst);
        // Without a connection the thread has ended by itself, or is about to.
        block_on(self.bus.connection().send(&ping)).context("send the last call")?;
        thread.join().map_err(|panic| anyhow!("the D-Bus thread panicked: {panic:?}"))?
    }

    fn record_runs(&mut self, running_too: bool) -> Result<()> {
        let Some(service) = &self.bus.service else { return Ok(()) };
        self.runs.record(service, &self.name, &self.sink, running_too)
    }
}

impl Drop for UnitWatch {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("end the watch on D-Bus: {error:#}");
        }
    }
}

impl Bus {
    fn connection(&self) -> &Connection {
        self.unit.inner().connection()
    }

    /// These properties of the unit and, if it is one, of the service, all asked for before the first answer is read. Not
    /// by GetAll: to tell all of a service's properties takes systemd longer, most of all for the accounting's files of its
    /// cgroup.
    fn properties(&self, of_unit: &[&str], of_service: &[&str]) -> Result<Vec<OwnedValue>> {
        let of_unit = of_unit.iter().map(|name| (self.unit.inner(), name));
        let of_service = self
            .service
            .iter()
            .flat_map(|service| of_service.iter().map(move |name| (service.inner(), name)));
        let gets = of_unit.chain(of_service).map(|(proxy, name)| proxy.get_property(name));
        block_on(try_join_all(gets)).with_context(|| format!("properties of {}", self.unit.inner().path()))
    }
}

/// Why a unit can't be watched. One that does not exist is the scenario's mistake, and not the bus's.
fn not_referenced(unit: &str, error: zbus::Error) -> anyhow::Error {
    match &error {
        zbus::Error::MethodError(name, ..) if name.as_str() == NO_SUCH_UNIT => anyhow!(
            "there is no unit {unit} after the set-up: is its name right in the manifest, and does `deploy` or `setup` make it?"
        ),
        _ => anyhow::Error::from(error).context("RefUnit"),
    }
}

/// Reads signals until the answer to the last call comes.
fn watch(
    messages: MessageIterator,
    bus: &Bus,
    sink: &Sink,
    orders: &Orders,
    last_call: &AtomicU32,
    mut known: Known,
) -> Result<()> {
    let mut ended_early = true;
    for message in messages {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                sink.lost("d-bus", &error);
                return Err(error).context("read from the system bus");
            }
        };
        let header = message.header();
        let is_last =
            header.reply_serial().is_some_and(|serial| serial.get() == last_call.load(Ordering::SeqCst));
        if is_last {
            ended_early = false;
            break;
        }
        if header.path().is_some_and(|path| path == bus.unit.inner().path())
            && let Some(change) = PropertiesChanged::from_message(message.clone())
        {
            take_change(&change, bus, sink, orders, &mut known)?;
        }
    }
    known.record_held_back(sink, u64::MAX);
    if ended_early {
        sink.lost("d-bus", "the system bus closed the connection");
    }
    Ok(())
}

fn take_change(
    change: &PropertiesChanged,
    bus: &Bus,
    sink: &Sink,
    orders: &Orders,
    known: &mut Known,
) -> Result<()> {
    let noticed = sink.clock.now();
    let change = change.args().context("the type of PropertiesChanged")?;
    known.take(&change.changed_properties);
    if change
        .invalidated_properties
        .iter()
        .any(|name| Known::OF_UNIT.contains(name) || Known::OF_SERVICE.contains(name))
    {
        known.take_all(bus)?;
    }
    if change.interface_name != interface::<UnitProxy<'_>>() {
        // The other half follows at once.
        return Ok(());
    }
    if let Some(service) = &bus.service
        && known.control_group.is_empty()
        && known.state.active != "inactive"
    {
        known.control_group = block_on(service.control_group()).context("ControlGroup")?;
    }
    orders.send(Order::Unit(known.watched, known.view()));
    if known.state != known.sent.0 {
        let is_state_change = known.changed_us != known.sent.1 && known.changed_us != 0;
        known.sent = (known.state.clone(), known.changed_us);
        if is_state_change {
            let at = sink.clock.at_us(known.changed_us);
            known.record_held_back(sink, at);
            sink.send(at, known.event(known.state.clone()));
        } else {
            known.record_held_back(sink, noticed);
            known.held_back = Some((noticed, known.state.clone()));
        }
    }
    Ok(())
}

impl Known {
    /// The properties that it is made of, by interface.
    const OF_UNIT: [&str; 3] = ["ActiveState", "SubState", "StateChangeTimestampMonotonic"];
    const OF_SERVICE: [&str; 5] = ["Result", "MainPID", "ControlPID", "NRestarts", "ControlGroup"];

    fn nothing_of(watched: Watched) -> Self {
        Self {
            watched,
            state: UnitState::default(),
            changed_us: 0,
            control_group: String::new(),
            sent: (UnitState::default(), 0),
            held_back: None,
        }
    }

    /// A state of the unit as an event.
    fn event(&self, state: UnitState) -> What {
        match self.watched {
            Watched::Unit => What::Unit(state),
            Watched::MountUnit => What::MountUnit(state),
        }
    }

    /// Asks for everything.
    fn take_all(&mut self, bus: &Bus) -> Result<()> {
        let values = bus.properties(&Self::OF_UNIT, &Self::OF_SERVICE)?;
        for (name, value) in Self::OF_UNIT.iter().chain(&Self::OF_SERVICE).zip(values) {
            self.take_one(name, &value);
        }
        Ok(())
    }

    /// Records what was held back, and no later than what comes after it: a signal is noticed later than the
    /// state change that the next one reports.
    fn record_held_back(&mut self, sink: &Sink, next: u64) {
        if let Some((noticed, state)) = self.held_back.take() {
            sink.send(noticed.min(next), self.event(state));
        }
    }

    /// Takes what is among these.
    fn take(&mut self, properties: &HashMap<&str, Value<'_>>) {
        for name in Self::OF_UNIT.iter().chain(&Self::OF_SERVICE) {
            if let Some(value) = properties.get(name) {
                self.take_one(name, value);
            }
        }
    }

    /// Takes one; what is of another type than systemd's documentation says stays as it was.
    fn take_one(&mut self, name: &str, value: &Value<'_>) {
        let state = &mut self.state;
        match (name, value) {
            ("ActiveState", Value::Str(value)) => value.as_str().clone_into(&mut state.active),
            ("SubState", Value::Str(value)) => value.as_str().clone_into(&mut state.sub),
            ("StateChangeTimestampMonotonic", Value::U64(value)) => self.changed_us = *value,
            ("Result", Value::Str(value)) => value.as_str().clone_into(&mut state.result),
            ("MainPID", Value::U32(value)) => state.main_pid = *value,
            ("ControlPID", Value::U32(value)) => state.control_pid = *value,
            ("NRestarts", Value::U32(value)) => state.restarts = *value,
            ("ControlGroup", Value::Str(value)) => value.as_str().clone_into(&mut self.control_group),
            _ => {}
        }
    }

    fn view(&self) -> UnitView {
        UnitView {
            main_pid: self.state.main_pid,
            control_pid: self.state.control_pid,
            is_deactivating: self.state.active == "deactivating",
            control_group: self.control_group.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_a_signal_carries() {
        let mut known = Known::nothing_of(Watched::MountUnit);
        let properties = [
            ("ActiveState", Value::from("deactivating")),
            ("SubState", Value::from("stop-post")),
            ("MainPID", Value::from(0_u32)),
            ("ControlPID", Value::from(42_u32)),
            ("NRestarts", Value::from("not a number")),
            ("StateChangeTimestampMonotonic", Value::from(7_u64)),
            ("SomethingElse", Value::from(true)),
        ];
        known.state.result = "success".to_owned();
        known.take(&properties.into());
        let expected = UnitState {
            active: "deactivating".to_owned(),
            sub: "stop-post".to_owned(),
            result: "success".to_owned(),
            control_pid: 42,
            ..UnitState::default()
        };
        assert_eq!((&known.state, known.changed_us), (&expected, 7));
        assert!(known.view().is_deactivating);
        assert_eq!(known.event(expected.clone()), What::MountUnit(expected.clone()));
        assert_eq!(Known::nothing_of(Watched::Unit).event(expected.clone()), What::Unit(expected));
    }
}
