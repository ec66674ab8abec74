//! What must hold for whatever the broker is sent on a connection. The fuzz target calls this with what libFuzzer makes up;
//! `web/broker/tests/corpus.rs` calls it with the corpus, as an ordinary test.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Mutex;

use left4me_broker::host::{Diagnoses, Host, Loss, Server, Servers};
use left4me_broker::journal::Journal;
use left4me_broker::kept::Kept;
use left4me_broker::serve;
use left4me_broker::verbs::Deed;
use left4me_broker::wire::{Call, MOST, Reply};
use left4me_broker::work::Work;
use left4me_ctl::actions::Action;
use left4me_ctl::control::not_begun;
use left4me_ctl::report::Report;
use left4me_ctl::units::UnitsError;
use left4me_helper::instance::Instance;
use serde_json::{Map, Value};

/// A machine that notes what it is asked to do, and does nothing.
#[derive(Debug, Default)]
struct Noted(Mutex<BTreeSet<(String, String)>>);

impl Host for Noted {
    fn act(&self, deed: Deed, instance: &Instance) -> Report {
        let mut done = self.0.lock().expect("nobody panics with it");
        done.insert((deed.verb().into(), instance.to_string()));
        not_begun(deed.action(), instance, &UnitsError::Deadline)
    }

    fn servers(&self) -> Servers {
        Servers::default()
    }

    fn server(&self, instance: &Instance) -> Server {
        let report = not_begun(Action::Status, instance, &UnitsError::Deadline);
        Server { report, loss: Loss::default(), players: None, held: None, journal: Journal::default() }
    }

    fn doctor(&self) -> Diagnoses {
        Diagnoses::default()
    }

    fn watch(&self, _changed: &dyn Fn()) -> Result<(), String> {
        Ok(())
    }
}

/// A client that reads everything, and leaves once it is told that more follows: nothing here changes.
#[derive(Debug, Default)]
struct Client(Vec<u8>);

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        let message: Reply =
            serde_json::from_slice(bytes.strip_suffix(b"\0").expect("a whole message")).expect("a reply");
        if message.continues { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection: each call has one reply, in its order, up to the first that is none; and what was done is what was asked for in the one
/// way in which it can be asked for.
pub fn connection(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory for the jobs");
    let work = Work::new(Noted::default(), Kept::new(directory.path().to_owned())).expect("no jobs yet");
    let mut client = Client::default();
    let ended = serve::conversation(&mut &data[..], &mut client, &work, 990);
    work.end();

    let replies: Vec<Reply> = client
        .0
        .split_inclusive(|&byte| byte == 0)
        .map(|reply| serde_json::from_slice(&reply[..reply.len() - 1]).expect("a reply"))
        .collect();
    let mut replied = replies.iter();
    let mut asked = Asked::default();
    let mut is_whole = true;
    for message in data.split_inclusive(|&byte| byte == 0) {
        let call = message.strip_suffix(b"\0").filter(|_| message.len() as u64 <= MOST);
        let Some(call) = call.and_then(|call| serde_json::from_slice::<Call>(call).ok()) else {
            is_whole = false;
            break;
        };
        let reply = replied.next().expect("each call has a reply");
        judge(&call, reply, &mut asked);
        if reply.continues {
            is_whole = false;
            break;
        }
    }
    assert_eq!(replied.next(), None, "nobody is answered who did not ask");
    assert_eq!(ended.is_ok(), is_whole, "{ended:?}");
    let done = work.host.0.lock().expect("nobody panics with it");
    assert_eq!(*done, asked.deeds);
}

/// What was asked for, and was not refused.
#[derive(Debug, Default)]
struct Asked {
    tickets: BTreeSet<String>,
    deeds: BTreeSet<(String, String)>,
}

/// Whether a reply may be one to a call. Said once more, in other words than the broker's own.
fn judge(call: &Call, reply: &Reply, asked: &mut Asked) {
    let names: Vec<&str> = call.parameters.keys().map(String::as_str).collect();
    let text = |name: &str| call.parameters.get(name).and_then(Value::as_str).unwrap_or_default();
    let is_name = |id: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !id.is_empty() && id.len() <= 64 && id.bytes().all(is_plain)
    };
    if let Some(error) = &reply.error {
        let is_known = error.starts_with("org.varlink.service.") || error.starts_with("left4me.Broker.");
        assert!(is_known && !reply.continues, "{reply:?}");
        return;
    }
    assert!(!call.oneway && !call.upgrade, "{call:?}");
    let (interface, method) = call.method.rsplit_once('.').expect("a method of an interface");
    match (interface, method) {
        ("left4me.Broker", "Start" | "Stop" | "Reset") => {
            assert_eq!(names, ["id", "ticket"], "{call:?}");
            assert!(is_name(text("id")), "{call:?}");
            let ticket = text("ticket");
            assert!(
                ticket.len() == 32 && ticket.bytes().all(|byte| b"0123456789abcdef".contains(&byte)),
                "{call:?}"
            );
            assert_eq!(reply.parameters, Map::new());
            // The same ticket once more is the same job, whatever it asks for.
            if asked.tickets.insert(ticket.to_owned()) {
                asked.deeds.insert((method.to_owned(), text("id").to_owned()));
            }
        }
        ("left4me.Broker", "Server") => assert!(names == ["id"] && is_name(text("id")), "{call:?}"),
        ("left4me.Broker", "Watch") => assert!(names.is_empty() && reply.continues == call.more, "{call:?}"),
        ("left4me.Broker", "Doctor") | ("org.varlink.service", "GetInfo") => {
            assert!(names.is_empty(), "{call:?}")
        }
        ("org.varlink.service", "GetInterfaceDescription") => assert_eq!(names, ["interface"], "{call:?}"),
        _ => panic!("{call:?} was done"),
    }
}
