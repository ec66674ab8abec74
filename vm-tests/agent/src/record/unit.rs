//! A unit as systemd reports it on D-Bus: its states as they change, its Exec lines' runs after each step.
//!
//! systemd sends PropertiesChanged in pairs, first for the type's interface (Service) and at once for Unit, each
//! with all its properties (`src/core/dbus-unit.c:send_changed_signal`); a state is complete with the second.
//! The recorder holds a reference on the unit (Manager.RefUnit), so that systemd does not forget it, and with
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

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use systemd_bus::{SYSTEMD, ServiceProxy, UnitProxy, call, interface, object};
use vm_agent::recording::{UnitState, What};
use zbus::blocking::MessageIterator;
use zbus::fdo::{DBusProxy, PeerProxy, PropertiesChanged};
use zbus::message::Message;
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, block_on};

use super::events::Sink;
use super::execs::Runs;
use super::managers::Whose;
use super::orders::{Order, Orders, UnitView};
use super::roles::Watched;

/// The name of systemd's error for a unit without a file (org.freedesktop.systemd1(5), "Manager").
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// The watch on one unit: a connection, and a thread that reads its signals.
#[derive(Debug)]
pub(super) struct UnitWatch {
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
    /// Connects to the bus of its manager, loads the unit, records its state and watches it from then on. `None` if there is no such
    /// unit.
    ///
    /// # Errors
    /// No such bus, no systemd on it, or a unit that can't be loaded.
    pub(super) fn start(
        unit: &str,
        whose: &Whose,
        watched: Watched,
        sink: Sink,
        orders: Orders,
    ) -> Result<Option<Self>> {
        let connection = whose.connect()?;
        // Before the match is added, so that no signal falls between.
        let messages = MessageIterator::from(&connection);
        let connection = connection.inner();
        let is_service = unit.ends_with(".service");
        let bus = block_on(async {
            let manager = systemd_bus::manager(connection).await?;
            let path = manager.load_unit(unit).await.context("LoadUnit")?;
            match manager.ref_unit(unit).await {
                Err(error) if is_no_such_unit(&error) => return Ok(None),
                other => other.context("RefUnit")?,
            }
            let rule = call::changes_of(&path)?;
            DBusProxy::new(connection).await?.add_match_rule(rule).await.context("AddMatch")?;
            let service = if is_service { Some(object(connection, path.clone()).await?) } else { None };
            anyhow::Ok(Some(Bus { unit: object(connection, path).await?, service }))
        })?;
        let Some(bus) = bus else { return Ok(None) };
        let mut known = Known::nothing_of(watched);
        known.take_all(&bus)?;
        sink.send_now(event(known.watched, known.state.clone()));
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
        Ok(Some(Self { name, watched, bus, sink, orders, thread, last_call, state, control_group, runs }))
    }

    /// As of the last [`UnitWatch::record`].
    pub(super) fn state(&self) -> &UnitState {
        &self.state
    }

    /// That of the last [`UnitWatch::record`] that found one; empty if none did.
    pub(super) fn control_group(&self) -> &str {
        &self.control_group
    }

    /// Records its state as of now, and every run of an Exec line that has ended since the last time.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn record(&mut self) -> Result<()> {
        let mut known = Known::nothing_of(self.watched);
        known.take_all(&self.bus)?;
        self.orders.send(Order::Unit(self.watched, known.view()));
        self.sink.send_now(event(known.watched, known.state.clone()));
        self.state = known.state;
        if !known.control_group.is_empty() {
            self.control_group = known.control_group;
        }
        self.record_runs(false)
    }

    /// Ends as [`UnitWatch::finish`], and has systemd forget the unit if nobody else needs it.
    ///
    /// # Errors
    /// What D-Bus says, here or in the thread.
    pub(super) fn let_go(self) -> Result<()> {
        let (connection, name) = (self.bus.connection().clone(), self.name.clone());
        self.finish()?;
        // Not only by closing the connection, of which systemd hears when it does.
        let released = block_on(async { systemd_bus::manager(&connection).await?.unref_unit(&name).await });
        released.with_context(|| format!("UnrefUnit {name}"))
    }

    /// Records the runs that have not ended, waits until every signal that systemd has sent is recorded, and ends the
    /// thread.
    ///
    /// # Errors
    /// What D-Bus says, here or in the thread.
    pub(super) fn finish(mut self) -> Result<()> {
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

/// Whether systemd says so: it has neither loaded such a unit nor found a file of it.
pub(super) fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == NO_SUCH_UNIT)
}

/// A state of one of the units as an event.
pub(super) fn event(watched: Watched, state: UnitState) -> What {
    match watched {
        Watched::Unit => What::Unit(state),
        Watched::MountUnit => What::MountUnit(state),
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
                return Err(error).context("read from the bus");
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
        sink.lost("d-bus", "the bus closed the connection");
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
            sink.send(at, event(known.watched, known.state.clone()));
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
            sink.send(noticed.min(next), event(self.watched, state));
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
        assert_eq!(event(known.watched, expected.clone()), What::MountUnit(expected.clone()));
        assert_eq!(event(Watched::Unit, expected.clone()), What::Unit(expected));
    }
}
