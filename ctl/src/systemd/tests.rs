//! What goes over the wire, against a systemd that is played.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_io::block_on;
use futures_lite::{StreamExt, future};
use left4me_helper::instance::Instance;
use proptest::prelude::*;
use systemd_bus::{ListedUnit, MANAGER_PATH, ManagerProxy, SYSTEMD, UnitProxy, interface};
use zbus::connection::Builder;
use zbus::fdo::PropertiesProxy;
use zbus::message::{Flags, Type};
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, Message, MessageStream};

use super::Systemd;
use super::bus::explain_reply;
use super::connection::by;
use super::settings::{MS_SHARED, NAMESPACED, Settings, namespaced, plain_path};
use crate::actions::{Action, Host};
use crate::doctor::{Bind, Mountpoint, Sandbox};
use crate::neighbours::MountUnit;
use crate::units::{Activity, Ended, Job, Lines, Names, Pair, Units, UnitsError};

#[test]
fn error_replies() {
    let denied = |text: &str| UnitsError::Denied(text.into());
    for (name, expected) in [
        ("org.freedesktop.DBus.Error.AccessDenied", denied("x")),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", denied("x")),
        ("org.freedesktop.systemd1.NoSuchUnit", UnitsError::NoSuchUnit("x".into())),
        ("org.freedesktop.DBus.Error.UnknownObject", UnitsError::NoSuchUnit("x".into())),
        ("org.freedesktop.DBus.Error.ServiceUnknown", UnitsError::Unreachable("x".into())),
        ("org.freedesktop.DBus.Error.NoReply", UnitsError::Left("x".into())),
        ("org.freedesktop.systemd1.TransactionIsDestructive", UnitsError::Other("x".into())),
    ] {
        assert_eq!(explain_reply(name, "x"), expected, "{name}");
    }
}

#[test]
fn a_deadline_ends_a_wait() {
    let never = future::pending::<Result<(), UnitsError>>();
    assert_eq!(block_on(by(Instant::now(), never)), Err(UnitsError::Deadline));
    assert_eq!(block_on(by(Instant::now(), async { Ok(3) })), Ok(3));
}

const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/left4me_2dserver_403_2eservice";
const UNIT_NAME: &str = "left4me-server@3.service";
const OVERLAY_PATH: &str = "/org/freedesktop/systemd1/unit/left4me_2doverlay_403_2eservice";
const OVERLAY_NAME: &str = "left4me-overlay@3.service";

fn three() -> Instance {
    "3".parse().unwrap()
}

fn names() -> Names {
    Names::of(&three())
}

fn merged() -> Mountpoint {
    Mountpoint::new(vec!["/m".into()])
}

/// How every job ends that does.
fn done() -> Ended {
    let before = Pair { server: "failed".into(), overlay: "active".into() };
    Ended { before, result: "done".into() }
}

/// systemd's manager, as far as it is asked. It says that a job is gone before it answers the request for it.
struct Manager {
    /// Whether somebody else sends ends of jobs as well, which only a connection without a bus lets us play.
    is_forged: bool,
    /// How often it was asked about four units.
    down: std::sync::atomic::AtomicUsize,
}

impl Manager {
    fn new(is_forged: bool) -> Self {
        Self { is_forged, down: std::sync::atomic::AtomicUsize::new(0) }
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn ref_unit(&self, name: &str) -> zbus::fdo::Result<()> {
        if [UNIT_NAME, OVERLAY_NAME].contains(&name) {
            Ok(())
        } else {
            Err(zbus::fdo::Error::AccessDenied("no".into()))
        }
    }

    fn reset_failed_unit(&self, _name: &str) {}

    async fn stop_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(connection)] connection: &Connection,
    ) -> zbus::fdo::Result<OwnedObjectPath> {
        assert_eq!(mode, "replace");
        self.ref_unit(name)?;
        let job = |number: u32| {
            OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
        };
        if self.is_forged {
            // Anybody may send us a signal, and number and unit are no secret.
            let forged =
                Message::signal(MANAGER_PATH, interface::<ManagerProxy<'_>>(), "JobRemoved").unwrap();
            let forged = forged.sender(":1.66").unwrap().build(&(8_u32, job(8), name, "failed"));
            connection.send(&forged.unwrap()).await.unwrap();
        }
        for (number, unit, result) in
            [(6, "other.service", "failed"), (7, name, "canceled"), (8, name, "done")]
        {
            let body = (number, job(number), unit, result);
            let of = interface::<ManagerProxy<'_>>();
            connection.emit_signal(None::<&str>, MANAGER_PATH, of, "JobRemoved", &body).await.unwrap();
        }
        Ok(job(8))
    }

    /// Never ends its job.
    fn start_unit(&self, _name: &str, _mode: &str) -> OwnedObjectPath {
        OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/9").unwrap()
    }

    /// A crowd of services that all are the one above, one that has gone since, and what is not asked about.
    fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<ListedUnit> {
        assert!(states.is_empty());
        assert_eq!(patterns, ["*.service", "*.mount", "*.automount"]);
        let unit = |name: &str, load: &str, active: &str, path: &str| -> ListedUnit {
            let path = OwnedObjectPath::try_from(path).unwrap();
            let [name, load_state, active_state] = [name, load, active].map(String::from);
            ListedUnit { name, load_state, active_state, path, ..ListedUnit::default() }
        };
        let gone = "/org/freedesktop/systemd1/unit/gone";
        let mut units: Vec<_> = (0..CROWD)
            .rev()
            .map(|number| unit(&format!("s{number:03}.service"), "loaded", "active", UNIT_PATH))
            .collect();
        units.extend([
            unit("s000-gone.service", "loaded", "inactive", gone),
            unit("s000-masked.service", "masked", "inactive", gone),
            unit("r-3-merged.mount", "loaded", "active", UNIT_PATH),
            unit("r-4-merged.mount", "loaded", "active", gone),
            unit("r-5.automount", "loaded", "failed", UNIT_PATH),
            unit("r-6.mount", "not-found", "inactive", gone),
            unit("home.mount", "loaded", "active", gone),
            unit("-.mount", "loaded", "active", gone),
        ]);
        units
    }

    /// The server has failed and the overlay is active. Of four others one goes down each time they are asked about,
    /// which is told.
    async fn list_units_by_names(
        &self,
        names: Vec<String>,
        #[zbus(connection)] connection: &Connection,
    ) -> Vec<ListedUnit> {
        let down = self.down.fetch_add(usize::from(names.len() == 4), std::sync::atomic::Ordering::Relaxed);
        if names.len() == 4 {
            let changed = std::collections::HashMap::<&str, zbus::zvariant::Value<'_>>::new();
            let body = (interface::<UnitProxy<'_>>(), changed, &["x"][..]);
            let (of, signal) = (interface::<PropertiesProxy<'_>>(), "PropertiesChanged");
            connection.emit_signal(None::<&str>, UNIT_PATH, of, signal, &body).await.unwrap();
        }
        let states = ["failed", "active"].into_iter().cycle();
        let unit = |(name, active): (String, &str)| {
            let [load_state, active_state] = ["loaded", active].map(String::from);
            ListedUnit { name, load_state, active_state, ..ListedUnit::default() }
        };
        if names.len() == 4 {
            let states = (0..4).map(|at| if at < down { "inactive" } else { "active" });
            return names.into_iter().zip(states).map(unit).collect();
        }
        names.into_iter().zip(states).map(unit).collect()
    }
}

/// More than the bus would let us ask about at once.
const CROWD: usize = 300;

struct Unit;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        "loaded"
    }
    #[zbus(property)]
    fn fragment_path(&self) -> &str {
        "/x.service"
    }
    #[zbus(property)]
    fn drop_in_paths(&self) -> Vec<String> {
        vec!["/x.service.d/a.conf".into()]
    }
    #[zbus(property)]
    fn need_daemon_reload(&self) -> bool {
        true
    }
    #[zbus(property)]
    fn active_enter_timestamp_monotonic(&self) -> u64 {
        77
    }
    #[zbus(property)]
    fn after(&self) -> Vec<String> {
        vec![OVERLAY_NAME.into()]
    }
    #[zbus(property)]
    fn requires(&self) -> Vec<String> {
        vec!["-.mount".into(), OVERLAY_NAME.into()]
    }
}

struct Service;

/// `(sasasttttuii)`, as org.freedesktop.systemd1(5) has it.
type ExecEntry = (String, Vec<String>, Vec<String>, u64, u64, u64, u64, u32, i32, i32);

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn result(&self) -> &str {
        "exit-code"
    }
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> u32 {
        2
    }
    #[zbus(property)]
    fn exec_start_pre_ex(&self) -> Vec<ExecEntry> {
        vec![]
    }
    #[zbus(property)]
    fn exec_start_ex(&self) -> Vec<ExecEntry> {
        vec![("/s".into(), vec!["/s".into()], vec![], 1, 2, 3, 4, 5, 2, 15)]
    }
    #[zbus(property)]
    fn user(&self) -> &str {
        "left4me"
    }
    #[zbus(property)]
    fn remain_after_exit(&self) -> bool {
        true
    }
    #[zbus(property)]
    fn mount_flags(&self) -> u64 {
        0
    }
    #[zbus(property)]
    fn root_directory(&self) -> &str {
        ""
    }
    #[zbus(property)]
    fn root_image(&self) -> &str {
        ""
    }
    #[zbus(property)]
    fn bind_paths(&self) -> Vec<(String, String, bool, u64)> {
        vec![("/m/x".into(), "/y".into(), false, 0)]
    }
    #[zbus(property)]
    fn bind_read_only_paths(&self) -> Vec<(String, String, bool, u64)> {
        vec![]
    }
    #[zbus(property)]
    fn read_only_paths(&self) -> Vec<String> {
        vec![]
    }
    #[zbus(property)]
    fn read_write_paths(&self) -> Vec<String> {
        vec!["-/m".into()]
    }
    #[zbus(property)]
    fn inaccessible_paths(&self) -> Vec<String> {
        vec![]
    }
    #[zbus(property)]
    fn temporary_file_system(&self) -> Vec<(String, String)> {
        vec![("/m/t".into(), "ro".into())]
    }
    #[zbus(property)]
    fn kill_mode(&self) -> &str {
        "process"
    }
    #[zbus(property)]
    fn working_directory(&self) -> &str {
        "!/m"
    }
    #[zbus(property, name = "SendSIGKILL")]
    fn send_sigkill(&self) -> bool {
        true
    }
    #[zbus(property, name = "TimeoutStopUSec")]
    fn timeout_stop_usec(&self) -> u64 {
        u64::MAX
    }
    #[zbus(property)]
    fn exec_stop_ex(&self) -> Vec<ExecEntry> {
        vec![]
    }
    #[zbus(property)]
    fn exec_stop_post_ex(&self) -> Vec<ExecEntry> {
        vec![("/n".into(), vec!["/n".into()], vec!["privileged".into()], 1, 20, 3, 45, 5, 1, 32)]
    }
}

/// A connection to the systemd above, over a socket pair.
fn played() -> (Systemd, Connection) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = Builder::async_io_unix_stream(theirs)
        .server(zbus::Guid::generate())
        .unwrap()
        .p2p()
        .serve_at(MANAGER_PATH, Manager::new(true))
        .unwrap()
        .serve_at(UNIT_PATH, Unit)
        .unwrap()
        .serve_at(UNIT_PATH, Service)
        .unwrap()
        .serve_at(OVERLAY_PATH, Unit)
        .unwrap()
        .serve_at(OVERLAY_PATH, Service)
        .unwrap()
        .build();
    let client = Builder::async_io_unix_stream(ours).p2p().internal_executor(false).build();
    let (server, client) = block_on(future::try_zip(server, client)).unwrap();
    (Systemd { connection: client, deadline: soon(), kept: None }, server)
}

#[test]
fn the_setup_comes_off_the_wire() {
    let (systemd, _server) = played();
    let setup = block_on(systemd.setup(&three(), merged())).unwrap();
    let sandbox = Sandbox {
        binds: vec![Bind { setting: "BindPaths", source: "/m/x".into(), destination: "/y".into() }],
        mounted_over: vec![("ReadWritePaths", "/m".into()), ("TemporaryFileSystem", "/m/t".into())],
        working_directory: "/m".into(),
        ..Sandbox::default()
    };
    assert_eq!(setup.sandbox, sandbox);
    assert_eq!((setup.timeout_stop, setup.kill_mode.as_str()), (None, "process"));
    assert_eq!((setup.own_user.as_str(), setup.user.as_str()), ("left4me-3", "left4me"));
    assert_eq!((setup.around[0].0, &setup.around[0].1.flags[0]), ("ExecStopPost", &"privileged".to_owned()));
    assert_eq!(setup.overlay.namespaced, ["ReadWritePaths", "BindPaths", "TemporaryFileSystem"]);
    let found = crate::doctor::lint(&setup);
    let of = |unit: Option<&str>| -> Vec<_> {
        found
            .iter()
            .filter(|found| found.unit.as_deref() == unit)
            .map(|found| found.setting.as_str())
            .collect()
    };
    assert_eq!(
        of(None),
        ["daemon-reload", "User", "BindPaths", "TemporaryFileSystem", "KillMode", "TimeoutStopSec"]
    );
    let expected = [
        "daemon-reload",
        "ExecStart",
        "ExecStopPost",
        "User",
        "ReadWritePaths",
        "BindPaths",
        "TemporaryFileSystem",
        "WorkingDirectory",
    ];
    assert_eq!(of(Some(OVERLAY_NAME)), expected);
}

#[test]
fn what_gives_a_namespace_is_what_is_set() {
    let settings = |value: Value<'static>| -> Settings {
        let of = |name: &str| (name.to_owned(), OwnedValue::try_from(value.try_clone().unwrap()).unwrap());
        NAMESPACED.iter().map(|name| of(name)).collect()
    };
    let none = [Value::from(false), "no".into(), "".into(), 0_u64.into(), MS_SHARED.into()];
    for value in none.into_iter().chain([Vec::<String>::new().into(), "default".into(), "all".into()]) {
        assert_eq!(namespaced(&settings(value)), [""; 0]);
    }
    for value in [Value::from(true), "strict".into(), "/x".into(), (1_u64 << 19).into(), vec!["/x"].into()] {
        assert_eq!(namespaced(&settings(value)), NAMESPACED);
    }
    assert_eq!(namespaced(&Settings::new()), [""; 0], "an older systemd");
}

#[test]
fn the_neighbours_come_off_the_wire_and_those_that_go_meanwhile_are_no_error() {
    let (systemd, _server) = played();
    let neighbours = block_on(systemd.neighbours(&["/r".into()])).unwrap();
    let names: Vec<_> = neighbours.services.iter().map(|service| service.unit.as_str()).collect();
    assert_eq!(names, (0..CROWD).map(|number| format!("s{number:03}.service")).collect::<Vec<_>>());
    let setup = block_on(systemd.setup(&three(), merged())).unwrap();
    assert!(neighbours.services.iter().all(|service| service.sandbox == setup.sandbox));
    let mount = |unit: &str, at: &str, active| MountUnit {
        unit: unit.into(),
        at: at.into(),
        configured: true,
        active,
    };
    let expected = [mount("r-3-merged.mount", "/r/3/merged", true), mount("r-5.automount", "/r/5", false)];
    assert_eq!(neighbours.mounts, expected);
}

/// Each is a way to systemd and back: a property that is kept would cost a `GetAll` and a match.
#[test]
fn a_stop_asks_for_what_it_needs_and_for_nothing_else() {
    let (mut systemd, server) = played();
    let mut messages = MessageStream::from(&server);
    block_on(systemd.run(Job::Stop, &names(), soon())).unwrap();
    block_on(systemd.state(&names(), Lines::OfStop)).unwrap();
    let mut asked = Vec::new();
    while let Some(Some(Ok(message))) = block_on(future::poll_once(messages.next())) {
        if message.message_type() == Type::MethodCall {
            asked.push(message.header().member().unwrap().to_string());
        }
    }
    assert_eq!(asked[..4], ["RefUnit", "RefUnit", "ListUnitsByNames", "StopUnit"]);
    asked[4..].sort();
    assert_eq!(asked[4..], [&["Get"; 7][..], &["ListUnitsByNames"]].concat());
}

#[test]
fn a_page_may_spawn_what_it_asks_for() {
    fn spawnable(_future: impl Future<Output = crate::report::Report> + Send) {}
    let (mut systemd, _server) = played();
    let host = Host::default();
    spawnable(crate::control::run(&mut systemd, &host, Action::Status, &three(), Duration::ZERO));
}

/// Far beyond what a socket pair needs.
fn soon() -> Instant {
    Instant::now() + std::time::Duration::from_secs(30)
}

#[test]
fn a_job_that_is_gone_before_its_reply_is_not_missed() {
    let (mut systemd, _server) = played();
    assert_eq!(block_on(systemd.run(Job::Stop, &names(), soon())), Ok(done()));
    assert_eq!(
        block_on(systemd.run(Job::StopServer, &names(), soon())),
        Ok(done()),
        "and again on one connection"
    );
}

/// A bus of our own, ended with the test.
struct Bus {
    daemon: std::process::Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Bus {
    #[expect(clippy::disallowed_methods, reason = "a program that the test kills and waits for")]
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (config, socket) = (directory.path().join("config"), directory.path().join("bus"));
        let text = format!(
            "<busconfig><listen>unix:path={}</listen><policy context='default'><allow send_destination='*'/>\
             <allow receive_sender='*'/><allow own='*'/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = std::process::Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--print-address"])
            .arg(format!("--config-file={}", config.display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("dbus-daemon: install the package of that name");
        // It prints where it listens once it does.
        let mut address = String::new();
        let mut said = std::io::BufReader::new(daemon.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut address).unwrap();
        Self { daemon, address: address.trim_end().to_owned(), _directory: directory }
    }

    fn connect(&self) -> Builder<'_> {
        Builder::address(self.address.as_str()).unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

#[test]
#[ignore = "runs dbus-daemon(1), which not every machine has"]
fn on_a_bus_a_flood_of_forged_ends_neither_ends_nor_holds_up_a_job() {
    let bus = Bus::start();
    let server = bus.connect().name(SYSTEMD).unwrap().serve_at(MANAGER_PATH, Manager::new(false));
    let _server = block_on(server.unwrap().build()).unwrap();
    let client = block_on(bus.connect().internal_executor(false).build()).unwrap();
    let victim = client.unique_name().unwrap().to_string();
    let forger = block_on(bus.connect().build()).unwrap();
    let forge = |count: u32| {
        let job = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/8").unwrap();
        for _ in 0..count {
            let body = (8_u32, &job, OVERLAY_NAME, "failed");
            let to = Some(victim.as_str());
            block_on(forger.emit_signal(
                to,
                MANAGER_PATH,
                interface::<ManagerProxy<'_>>(),
                "JobRemoved",
                &body,
            ))
            .unwrap();
        }
    };
    let mut systemd = Systemd { connection: client, deadline: soon(), kept: None };
    forge(500);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Not without end: what is faster than this process reads only grows a queue in the bus.
            for _ in 0..200 {
                if is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                forge(10);
            }
        });
        let results = [(); 20].map(|()| block_on(systemd.run(Job::Stop, &names(), soon())));
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(results, [(); 20].map(|()| Ok(done())));
    });
}

#[test]
#[ignore = "runs dbus-daemon(1), which not every machine has"]
fn a_systemd_that_leaves_the_bus_is_waited_for_and_asked_again() {
    let bus = &Bus::start();
    let client = block_on(bus.connect().internal_executor(false).build()).unwrap();
    let mut systemd = Systemd { connection: client, deadline: soon(), kept: None };
    for comes_back in [true, false] {
        // It answers nothing.
        let leaving = block_on(bus.connect().name(SYSTEMD).unwrap().build()).unwrap();
        let mut calls = MessageStream::from(&leaving);
        let (ended, end) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // One that nobody waits for is no question: that systemd is off the bus is told to the next.
                let is_call = |message: &Message| {
                    let flags = message.primary_header().flags();
                    message.message_type() == Type::MethodCall && !flags.contains(Flags::NoReplyExpected)
                };
                while !block_on(calls.next()).unwrap().as_ref().is_ok_and(is_call) {}
                drop(calls);
                block_on(leaving.close()).unwrap();
                assert!(end.recv_timeout(Duration::from_millis(100)).is_err());
                let back =
                    || bus.connect().name(SYSTEMD).unwrap().serve_at(MANAGER_PATH, Manager::new(false));
                let _back = comes_back.then(|| block_on(back().unwrap().build()).unwrap());
                end.recv().unwrap_err();
            });
            let deadline = if comes_back { soon() } else { Instant::now() + Duration::from_millis(300) };
            let result = block_on(systemd.run(Job::Stop, &names(), deadline));
            drop(ended);
            match comes_back {
                true => assert_eq!(result, Ok(done())),
                false => assert!(matches!(result, Err(UnitsError::Left(_))), "{result:?}"),
            }
        });
    }
}

#[test]
fn a_job_that_never_ends_meets_its_deadline_and_a_refusal_is_a_refusal() {
    let (mut systemd, _server) = played();
    let deadline = Instant::now() + std::time::Duration::from_millis(50);
    assert_eq!(block_on(systemd.run(Job::Start, &names(), deadline)), Err(UnitsError::Deadline));
    assert_eq!(block_on(systemd.run(Job::Mount, &names(), deadline)), Err(UnitsError::Deadline));
    let others = Names::of(&"4".parse().unwrap());
    assert_eq!(block_on(systemd.run(Job::Stop, &others, soon())), Err(UnitsError::Denied("no".into())));
}

#[test]
fn a_wait_ends_when_the_last_unit_is_down_or_at_its_deadline() {
    let (mut systemd, _server) = played();
    let four = ["1", "2", "3", "4"].map(|name| format!("{name}.service"));
    assert_eq!(block_on(systemd.wait_until_down(&four, soon())), Ok(()));
    let (mut systemd, _server) = played();
    let began = Instant::now();
    let deadline = began + Duration::from_millis(50);
    assert_eq!(block_on(systemd.wait_until_down(&names().each().map(Clone::clone), deadline)), Ok(()));
    assert!(began.elapsed() >= Duration::from_millis(50));
    let activity = |active: &str, since_us| Activity { active_state: active.into(), since_us };
    assert_eq!(
        block_on(systemd.activity(&names().each().map(Clone::clone))),
        Ok(vec![activity("failed", 0), activity("active", 77)])
    );
}

#[test]
fn the_state_comes_off_the_wire() {
    let (mut systemd, _server) = played();
    let Pair { server, overlay } = block_on(systemd.state(&names(), Lines::All)).unwrap();
    assert_eq!((server.active_state.as_str(), overlay.active_state.as_str()), ("failed", "active"));
    assert_eq!((server.result.as_str(), server.restarts, overlay.restarts), ("exit-code", 2, 0));
    for state in [server, overlay] {
        let runs: Vec<_> =
            state.exec.iter().map(|run| (run.line, run.started_us, run.code, run.status)).collect();
        assert_eq!(runs, [("ExecStart", 2, 2, 15), ("ExecStopPost", 20, 1, 32)]);
    }
    let of_stop = block_on(systemd.state(&names(), Lines::OfStop)).unwrap();
    let lines = of_stop.each().map(|state| state.exec.iter().map(|run| run.line).collect::<Vec<_>>());
    assert_eq!(lines, [vec!["ExecStart", "ExecStopPost"], vec!["ExecStopPost"]]);
    assert_eq!(block_on(systemd.requires_overlay(&names())), Ok(true));
    assert_eq!(block_on(systemd.reset_failed(UNIT_NAME)), Ok(()));
}

proptest! {
    /// systemd.exec(5): "-", "+", or both, in this order, in front of an absolute path. systemd refuses another.
    #[test]
    fn a_settings_path_is_what_follows_its_marks(
        mark in prop::sample::select(vec!["", "-", "+", "-+"]), path in "(/[-+a-z. ]{0,4}){1,4}"
    ) {
        prop_assert_eq!(plain_path(&format!("{mark}{path}")), PathBuf::from(&path));
    }

    /// Whichever reply an error is, what systemd says in it is what is said; and no other than its own is 'no unit'.
    #[test]
    fn an_error_reply_comes_through_in_its_own_words(
        name in "org\\.freedesktop\\.(DBus\\.Error|systemd1)\\.(AccessDenied|AuthFailed|NoReply|NoSuchUnit|[A-Z][a-z]{0,8})",
        detail in "[ -~]{0,40}"
    ) {
        let error = explain_reply(&name, &detail);
        prop_assert!(error.to_string().contains(&detail), "{}", error);
        let is_no_unit = matches!(error, UnitsError::NoSuchUnit(_));
        prop_assert_eq!(is_no_unit, name == "org.freedesktop.systemd1.NoSuchUnit");
        prop_assert!(!matches!(error, UnitsError::Denied(_)) || name.starts_with("org.freedesktop.DBus.Error.A"));
    }
}
