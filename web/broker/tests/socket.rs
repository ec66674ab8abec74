//! The broker on a socket: what a page can do with it, and what nobody can.

#[path = "support/played.rs"]
mod played;

use std::io::{BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use left4me_broker::host::Host;
use left4me_broker::kept::Kept;
use left4me_broker::wire::{self, Reply};
use left4me_broker::work::Work;
use left4me_broker::{serve, verbs};
use played::Played;
use serde_json::{Value, json};

/// The most that an answer may have.
const MOST: u64 = 1 << 20;

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(directory: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(directory.join("socket")).unwrap()))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn next(&mut self) -> Option<Reply> {
        let bytes = wire::read(&mut self.0, MOST).ok().flatten()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Reply {
        wire::write(self.0.get_mut(), &json!({ "method": method, "parameters": parameters })).unwrap();
        self.next().unwrap()
    }

    fn begin(&mut self, verb: &str, id: &str, ticket: u64) -> Reply {
        let parameters = json!({ "id": id, "ticket": format!("{ticket:032x}") });
        self.ask(&format!("left4me.Broker.{verb}"), parameters)
    }

    /// Sees what there is until it is as wanted.
    fn watch(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.send(b"{\"method\":\"left4me.Broker.Watch\",\"more\":true}\0");
        loop {
            let seen = Value::Object(self.next().unwrap().parameters);
            if is_wanted(&seen) {
                return seen;
            }
        }
    }
}

fn serving(directory: &Path, host: Played) -> Arc<Work<Played>> {
    std::fs::create_dir_all(directory.join("jobs")).unwrap();
    let listener = UnixListener::bind(directory.join("socket")).unwrap();
    let work = Work::new(host, Kept::new(directory.join("jobs"))).unwrap();
    let (serving, watching) = (Arc::clone(&work), Arc::clone(&work));
    std::thread::spawn(move || serve::run(&listener, &serving));
    std::thread::spawn(move || watching.host.watch(&|| watching.has_changed()));
    work
}

#[test]
fn a_job_goes_on_without_who_asked_for_it_and_the_second_is_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let work = serving(directory.path(), Played::new(&["3", "4"]));
    work.host.hold(true);
    let mut first = Client::connect(directory.path());
    assert_eq!(first.begin("Reset", "3", 1).error, None);
    drop(first);
    let mut second = Client::connect(directory.path());
    let refused = second.begin("Start", "3", 2);
    assert_eq!(refused.error.as_deref(), Some("left4me.Broker.Busy"));
    assert_eq!(refused.parameters["ticket"], format!("{:032x}", 1));
    assert_eq!(refused.parameters["action"], "reset");
    // Another instance is none of it, and the same ticket is the same job.
    assert_eq!(second.begin("Start", "4", 3).error, None);
    assert_eq!(second.begin("Reset", "3", 1).error, None);
    work.host.hold(false);
    let seen =
        second.watch(|seen| seen["jobs"].as_array().unwrap().iter().all(|job| job["state"] == "succeeded"));
    assert_eq!(seen["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(seen["jobs"][0]["report"]["phases"]["stop_us"], 104_062);
    assert_eq!(seen["servers"][1]["active_state"], "active");
    let mut done = work.host.done();
    done.sort();
    assert_eq!(done, ["reset 3", "start 4"]);
}

#[test]
fn outcomes_are_there_after_a_restart_and_what_ran_was_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let work = serving(directory.path(), Played::new(&["3", "4"]));
    let mut client = Client::connect(directory.path());
    work.host.fail(Some("umount: EBUSY: held by 196 (left4me-overlay)"));
    client.begin("Reset", "3", 1);
    Client::connect(directory.path()).watch(|seen| seen["jobs"][0]["state"] == "failed");
    work.host.hold(true);
    client.begin("Start", "4", 2);
    // Another broker on the same directory, while the first still waits: as after a kill.
    let again = Work::new(Played::default(), Kept::new(directory.path().join("jobs"))).unwrap();
    let jobs = serde_json::to_value(again.seen().jobs).unwrap();
    assert_eq!((&jobs[0]["state"], &jobs[1]["state"]), (&json!("failed"), &json!("interrupted")));
    assert_eq!(jobs[0]["report"]["error"], "umount: EBUSY: held by 196 (left4me-overlay)");
    work.host.hold(false);
}

#[test]
fn what_changes_behind_its_back_is_told_who_watches() {
    let directory = tempfile::tempdir().unwrap();
    let work = serving(directory.path(), Played::new(&["3"]));
    let mut client = Client::connect(directory.path());
    client.watch(|seen| seen["servers"][0]["active_state"] == "inactive");
    work.host.set("3", "failed");
    let seen = client.next().unwrap().parameters;
    assert_eq!(seen["servers"][0]["active_state"], "failed");
}

#[test]
fn what_is_no_call_ends_its_connection_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    serving(directory.path(), Played::new(&["3"]));
    let mut good = Client::connect(directory.path());
    for bytes in [&b"\0"[..], b"{}\0", b"[]\0", b"GET / HTTP/1.1\r\n\r\n\0", &[b'x'; 5000], b"\xff\xfe\0"] {
        let mut bad = Client::connect(directory.path());
        bad.send(bytes);
        assert_eq!(bad.next(), None, "{bytes:?}");
    }
    let info = good.ask("org.varlink.service.GetInfo", json!({}));
    assert_eq!(info.parameters["interfaces"][0], verbs::INTERFACE);
    let described =
        good.ask("org.varlink.service.GetInterfaceDescription", json!({ "interface": verbs::INTERFACE }));
    assert_eq!(described.parameters["description"], verbs::DESCRIPTION);
    assert_eq!(good.ask("left4me.Broker.Doctor", json!({})).error, None);
    assert_eq!(
        good.ask("left4me.Broker.Server", json!({ "id": "3" })).parameters["loss"]["text"],
        "2 files, 3.0 MiB"
    );
}

#[test]
fn who_is_to_end_begins_no_more_and_waits_for_what_is_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let work = serving(directory.path(), Played::new(&["3", "4"]));
    work.host.hold(true);
    let mut client = Client::connect(directory.path());
    assert_eq!(client.begin("Reset", "3", 1).error, None);
    let (ended, has_ended) = std::sync::mpsc::channel();
    let ending = Arc::clone(&work);
    let thread = std::thread::spawn(move || {
        ending.end();
        ended.send(()).unwrap();
    });
    // Until it begins to end, jobs begin.
    let refused = (2..).map(|ticket| client.begin("Start", "4", ticket).error);
    let refused = refused.flatten().find(|error| error != "left4me.Broker.Busy");
    assert_eq!(refused.as_deref(), Some("left4me.Broker.NotKept"));
    assert!(has_ended.try_recv().is_err());
    work.host.hold(false);
    thread.join().unwrap();
    has_ended.recv().unwrap();
    let again = Work::new(Played::default(), Kept::new(directory.path().join("jobs"))).unwrap();
    assert!(again.seen().jobs.iter().all(|job| job.state == left4me_broker::jobs::State::Succeeded));
}

#[test]
fn a_server_is_told_with_who_plays_who_holds_it_and_what_it_said() {
    let directory = tempfile::tempdir().unwrap();
    let work = serving(directory.path(), Played::new(&["3"]));
    let mut client = Client::connect(directory.path());
    let mut ask = || client.ask("left4me.Broker.Server", json!({ "id": "3" })).parameters;
    let server = ask();
    assert_eq!((&server["players"], &server["held"]), (&Value::Null, &Value::Null));
    work.host.players(3, "c1m1_hotel");
    work.host.held("held by 196 (bash)");
    work.host.say("<b>a line</b>");
    let server = ask();
    assert_eq!(server["players"], json!({ "people": 3, "places": 8, "bots": 1, "map": "c1m1_hotel" }));
    assert_eq!(server["held"], "held by 196 (bash)");
    assert_eq!(server["journal"]["lines"][0]["text"], "<b>a line</b>");
}

#[test]
fn so_many_connections_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    serving(directory.path(), Played::new(&["3"]));
    let mut all: Vec<_> = (0..serve::CONNECTIONS).map(|_| Client::connect(directory.path())).collect();
    for client in &mut all {
        assert_eq!(client.ask("org.varlink.service.GetInfo", json!({})).error, None);
    }
    let mut over = Client::connect(directory.path());
    assert_eq!(over.next(), None);
    assert_eq!(all[0].ask("org.varlink.service.GetInfo", json!({})).error, None);
}
