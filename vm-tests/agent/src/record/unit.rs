//! The units as systemd tells of them on D-Bus: their states as they change, their Exec lines' runs after each step.
//!
//! systemd sends PropertiesChanged in pairs, first for the type's interface (Service) and at once for Unit, each
//! with all its properties (`src/core/dbus-unit.c:send_changed_signal`); a state is complete with the second.
//! The recorder holds a reference on each unit (Manager.RefUnit), so that systemd does not forget it, and with
//! it the Exec lines' runs, as soon as it is down. It is also what has systemd tell of the unit on the bus
//! (`src/core/dbus-unit.c:bus_unit_send_change_signal`), and of no other: Manager.Subscribe would have it tell of all.
//!
//! What is asked goes through the bus daemon, which the recorded talk through too, so it is asked for at once. (systemd's
//! own socket would spare it; but on it systemd gives itself a sender that zbus takes for an invalid name.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use vm_agent::recording::{Exec, Plan, UnitState, What};
use vm_agent::wire::Exit;
use zbus::blocking::connection::Builder;
use zbus::blocking::{Connection, MessageIterator};
use zbus::message::{Message, Type};
use zbus::zvariant::{DynamicType, OwnedObjectPath, OwnedValue, Value};

use super::clock::Clock;
use super::events::Sink;
use super::orders::{Order, Orders, UnitView};
use super::roles::Watched;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The properties that tell of Exec lines, and the line's name as unit files have it.
const EXEC_LINES: [(&str, &str); 4] = [
    ("ExecStartPreEx", "ExecStartPre"),
    ("ExecStartEx", "ExecStart"),
    ("ExecStopEx", "ExecStop"),
    ("ExecStopPostEx", "ExecStopPost"),
];
/// What sd-bus and zbus use by default; a method call that hangs must not hang the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// Signals that may wait for the thread while it asks systemd something itself.
const QUEUE: usize = 4096;

type Properties = HashMap<String, OwnedValue>;

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
    /// The runs that were recorded, by process id and start in microseconds.
    recorded: HashSet<(u32, u64)>,
}

/// What can be asked.
#[derive(Debug, Clone)]
struct Bus {
    connection: Connection,
    path: OwnedObjectPath,
    is_service: bool,
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
        let manager = |method, body: &str| call(&connection, MANAGER_PATH, MANAGER, method, &(body,));
        let path: OwnedObjectPath =
            manager("LoadUnit", unit)?.body().deserialize().context("answer of LoadUnit")?;
        manager("RefUnit", unit)?;
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',path='{path}'");
        connection
            .call_method(
                Some("org.freedesktop.DBus"),
                "/org/freedesktop/DBus",
                Some("org.freedesktop.DBus"),
                "AddMatch",
                &rule,
            )
            .context("AddMatch")?;

        let bus = Bus { connection, path, is_service: unit.ends_with(".service") };
        let mut known = Known::nothing_of(watched);
        known.take_all(&bus)?;
        sink.send_now(known.told(known.state.clone()));
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
        let (name, recorded) = (unit.to_owned(), HashSet::new());
        let thread = Some(thread);
        Ok(Self { name, watched, bus, sink, orders, thread, last_call, state, control_group, recorded })
    }

    fn systemd_version(&self) -> Result<String> {
        let value = self.bus.property(MANAGER_PATH, MANAGER, "Version")?;
        String::try_from(value).context("the type of Version")
    }

    fn failed_units(&self) -> Result<Vec<String>> {
        let states = (vec!["failed"],);
        let answer = call(&self.bus.connection, MANAGER_PATH, MANAGER, "ListUnitsFiltered", &states)?;
        let units: Vec<ListedUnit> = answer.body().deserialize().context("answer of ListUnitsFiltered")?;
        let mut names: Vec<String> = units.into_iter().map(|unit| unit.0).collect();
        names.sort();
        Ok(names)
    }

    fn record(&mut self) -> Result<()> {
        let mut known = Known::nothing_of(self.watched);
        known.take_all(&self.bus)?;
        self.orders.send(Order::Unit(self.watched, known.view()));
        self.sink.send_now(known.told(known.state.clone()));
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
            .interface("org.freedesktop.DBus.Peer")?;
        let ping = ping.build(&())?;
        self.last_call.store(ping.primary_header().serial_num().get(), Ordering::SeqCst);
        // Without a connection the thread has ended by itself, or is about to.
        self.bus.connection.send(&ping).context("send the last call")?;
        thread.join().map_err(|panic| anyhow!("the D-Bus thread panicked: {panic:?}"))?
    }

    fn record_runs(&mut self, running_too: bool) -> Result<()> {
        if !self.bus.is_service {
            return Ok(());
        }
        let values = self.bus.unit_properties(&EXEC_LINES.map(|(property, _)| (SERVICE, property)))?;
        for ((property, line), value) in EXEC_LINES.into_iter().zip(values) {
            let runs = runs(value).with_context(|| format!("the type of {property}"))?;
            for run in runs {
                let is_new = !self.recorded.contains(&(run.pid, run.started_us));
                if run.started_us != 0 && is_new && (running_too || run.ended_us != 0) {
                    self.recorded.insert((run.pid, run.started_us));
                    self.sink.send(
                        self.sink.clock.at_us(run.started_us),
                        What::Exec(run.exec(&self.name, line, self.sink.clock)),
                    );
                }
            }
        }
        Ok(())
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
    fn property(&self, path: &str, interface: &str, name: &str) -> Result<OwnedValue> {
        zbus::block_on(self.get(path, interface, name))
    }

    /// Properties of the unit, each by its interface and name, all asked for before the first answer is read.
    fn unit_properties(&self, names: &[(&str, &str)]) -> Result<Vec<OwnedValue>> {
        let gets = names.iter().map(|(interface, name)| self.get(self.path.as_str(), interface, name));
        zbus::block_on(try_join_all(gets))
    }

    async fn get(&self, path: &str, interface: &str, name: &str) -> Result<OwnedValue> {
        let answer = self
            .connection
            .inner()
            .call_method(Some(SYSTEMD), path, Some(PROPERTIES), "Get", &(interface, name))
            .await
            .with_context(|| format!("{interface}.{name} of {path}"))?;
        Ok(answer.body().deserialize::<Value<'_>>()?.try_to_owned()?)
    }
}

fn call<B>(connection: &Connection, path: &str, interface: &str, method: &str, body: &B) -> Result<Message>
where
    B: serde::Serialize + DynamicType,
{
    connection
        .call_method(Some(SYSTEMD), path, Some(interface), method, body)
        .with_context(|| format!("call {method} of {path}"))
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
        let is_change = header.message_type() == Type::Signal
            && header.member().is_some_and(|member| member == "PropertiesChanged")
            && header.path().is_some_and(|path| path.as_str() == bus.path.as_str());
        if is_change {
            take_change(&message, bus, sink, orders, &mut known)?;
        }
    }
    known.record_held_back(sink, u64::MAX);
    if ended_early {
        sink.lost("d-bus", "the system bus closed the connection");
    }
    Ok(())
}

fn take_change(message: &Message, bus: &Bus, sink: &Sink, orders: &Orders, known: &mut Known) -> Result<()> {
    let noticed = sink.clock.now();
    let body = message.body();
    let (interface, changed, invalidated): (&str, HashMap<String, OwnedValue>, Vec<&str>) =
        body.deserialize().context("the type of PropertiesChanged")?;
    known.take(&changed);
    if invalidated.iter().any(|name| Known::OF_UNIT.contains(name) || Known::OF_SERVICE.contains(name)) {
        known.take_all(bus)?;
    }
    if interface != UNIT {
        // The other half follows at once.
        return Ok(());
    }
    if bus.is_service && known.control_group.is_empty() && known.state.active != "inactive" {
        let group = bus.property(bus.path.as_str(), SERVICE, "ControlGroup")?;
        known.control_group = String::try_from(group).context("the type of ControlGroup")?;
    }
    orders.send(Order::Unit(known.watched, known.view()));
    if known.state != known.sent.0 {
        let is_state_change = known.changed_us != known.sent.1 && known.changed_us != 0;
        known.sent = (known.state.clone(), known.changed_us);
        if is_state_change {
            let at = sink.clock.at_us(known.changed_us);
            known.record_held_back(sink, at);
            sink.send(at, known.told(known.state.clone()));
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
    fn told(&self, state: UnitState) -> What {
        match self.watched {
            Watched::Unit => What::Unit(state),
            Watched::MountUnit => What::MountUnit(state),
        }
    }

    /// Asks for everything. Not by GetAll: to tell all of a service's properties takes systemd longer, most of all for
    /// the accounting's files of its cgroup.
    fn take_all(&mut self, bus: &Bus) -> Result<()> {
        let of_unit = Self::OF_UNIT.iter().map(|name| (UNIT, *name));
        let of_service = Self::OF_SERVICE.iter().filter(|_| bus.is_service).map(|name| (SERVICE, *name));
        let names: Vec<_> = of_unit.chain(of_service).collect();
        for ((_, name), value) in names.iter().zip(bus.unit_properties(&names)?) {
            self.take_one(name, &value);
        }
        Ok(())
    }

    /// Records what was held back, and no later than what comes after it: a signal is noticed later than the
    /// state change that the next one tells of.
    fn record_held_back(&mut self, sink: &Sink, next: u64) {
        if let Some((noticed, state)) = self.held_back.take() {
            sink.send(noticed.min(next), self.told(state));
        }
    }

    /// Takes what is among these.
    fn take(&mut self, properties: &Properties) {
        for name in Self::OF_UNIT.iter().chain(&Self::OF_SERVICE) {
            if let Some(value) = properties.get(*name) {
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

/// One element of an `Exec*Ex` property.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    argv: Vec<String>,
    /// CLOCK_MONOTONIC in microseconds; 0 if it never ran.
    started_us: u64,
    /// The same; 0 while it runs.
    ended_us: u64,
    pid: u32,
    /// `si_code` of waitid(2): CLD_EXITED, CLD_KILLED or CLD_DUMPED.
    code: i32,
    /// `si_status`: an exit status or a signal.
    status: i32,
}

impl Run {
    fn exec(self, unit: &str, line: &str, clock: Clock) -> Exec {
        let ended = (self.ended_us != 0).then(|| clock.at_us(self.ended_us));
        let is_exit = self.code == nix::libc::CLD_EXITED;
        let exit = ended.map(|_| if is_exit { Exit::Code(self.status) } else { Exit::Signal(self.status) });
        Exec { unit: unit.to_owned(), line: line.to_owned(), argv: self.argv, pid: self.pid, ended, exit }
    }
}

/// Name, description, load, active and sub state, followed unit, path, job's id, type and path.
type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// Path, argv, flags, start (realtime, monotonic), end (the same), pid, code, status.
type ExecStatus = (String, Vec<String>, Vec<String>, u64, u64, u64, u64, u32, i32, i32);

/// Reads `a(sasasttttuii)` (org.freedesktop.systemd1(5)).
fn runs(value: OwnedValue) -> Result<Vec<Run>> {
    let Value::Array(array) = &*value else {
        return Err(anyhow!("not an array but {}", value.value_signature()));
    };
    let runs = array.iter().map(|element| {
        let (_path, argv, _flags, _, started_us, _, ended_us, pid, code, status) = element
            .try_clone()
            .map_err(anyhow::Error::from)
            .and_then(|element| Ok(ExecStatus::try_from(element)?))?;
        Ok(Run { argv, started_us, ended_us, pid, code, status })
    });
    runs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::zvariant::{Array, Signature};

    fn owned(value: Value<'_>) -> OwnedValue {
        value.try_to_owned().unwrap()
    }

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
        let properties =
            properties.into_iter().map(|(name, value)| (name.to_owned(), owned(value))).collect();
        known.state.result = "success".to_owned();
        known.take(&properties);
        let expected = UnitState {
            active: "deactivating".to_owned(),
            sub: "stop-post".to_owned(),
            result: "success".to_owned(),
            control_pid: 42,
            ..UnitState::default()
        };
        assert_eq!((&known.state, known.changed_us), (&expected, 7));
        assert!(known.view().is_deactivating);
        assert_eq!(known.told(expected.clone()), What::MountUnit(expected.clone()));
        assert_eq!(Known::nothing_of(Watched::Unit).told(expected.clone()), What::Unit(expected));
    }

    #[test]
    fn reads_the_runs_of_an_exec_line() {
        let argv = vec!["/bin/x".to_owned(), "3".to_owned()];
        let flags = vec!["privileged".to_owned()];
        let status: ExecStatus = ("/bin/x".to_owned(), argv.clone(), flags, 1, 2_000, 3, 4_000, 77, 1, 32);
        let mut array = Array::new(&Signature::try_from("(sasasttttuii)").unwrap());
        array.append(Value::from(status)).unwrap();
        let mut runs = runs(owned(Value::from(array))).unwrap();
        let run = runs.pop().unwrap();
        assert_eq!(
            run,
            Run { argv: argv.clone(), started_us: 2_000, ended_us: 4_000, pid: 77, code: 1, status: 32 }
        );
        let exec = run.exec("x.service", "ExecStopPost", Clock::began_at(1_000_000));
        let expected = Exec {
            unit: "x.service".to_owned(),
            line: "ExecStopPost".to_owned(),
            argv,
            pid: 77,
            ended: Some(3_000_000),
            exit: Some(Exit::Code(32)),
        };
        assert_eq!(exec, expected);
        assert!(super::runs(owned(Value::from(1_u32))).is_err());
    }

    #[test]
    fn tells_a_signal_from_a_status() {
        let run = |code, ended_us| Run { argv: vec![], started_us: 1, ended_us, pid: 1, code, status: 9 };
        let cases = [
            (run(1, 5), Some(Exit::Code(9))),
            (run(2, 5), Some(Exit::Signal(9))),
            (run(3, 5), Some(Exit::Signal(9))),
            (run(0, 0), None),
        ];
        for (run, exit) in cases {
            assert_eq!(run.exec("x.service", "ExecStart", Clock::began_at(0)).exit, exit);
        }
    }
}
