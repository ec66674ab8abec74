//! Connections: who may have one, a thread for each, and calls answered in their order.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::audit;
use crate::host::Host;
use crate::jobs::{AT_ONCE, InTheWay};
use crate::verbs::{self, Refused, Verb};
use crate::wire::{self, Call, Reply};
use crate::work::{Refusal, Work};

/// How many may be connected at once. The page has one that watches, and one for each thing that it asks for.
pub const CONNECTIONS: usize = 32;

/// How long one may take to read an answer.
const UNREAD: Duration = Duration::from_secs(10);

/// Serves all who connect, until it cannot any more.
///
/// # Errors
/// The socket is none, or nobody can be accepted any more.
pub fn run<H: Host>(listener: &UnixListener, work: &Arc<Work<H>>) -> io::Result<()> {
    let owner = owner(listener)?;
    let connected = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // Of a client that has left meanwhile: accept(2).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let peer = match rustix::net::sockopt::socket_peercred(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => {
                eprintln!("SO_PEERCRED: {error}: the connection was refused");
                continue;
            }
        };
        let uid = peer.uid.as_raw();
        if !may(uid, owner) {
            eprintln!(
                "uid {uid} connected and was refused: only root and uid {owner}, who owns the socket, may"
            );
            continue;
        }
        let place = Place::take(&connected);
        if place.is_none() {
            eprintln!("uid {uid} connected and was refused: it has {CONNECTIONS} connections already");
            continue;
        }
        let work = Arc::clone(work);
        let thread = std::thread::Builder::new().name("connection".into());
        let served = thread.spawn(move || {
            let _place = place;
            if let Err(error) = connection(stream, &work, uid) {
                // Who leaves in the middle of an answer has a reason.
                if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                    eprintln!("the connection of uid {uid} was ended: {error}");
                }
            }
        });
        if let Err(error) = served {
            eprintln!("start a thread: {error}: the connection was refused");
        }
    }
}

/// Whether a user may have root do something: root, and the owner of the socket's file, which is `SocketUser=` of its unit.
fn may(uid: u32, owner: u32) -> bool {
    uid == 0 || uid == owner
}

fn owner(listener: &UnixListener) -> io::Result<u32> {
    let address = listener.local_addr()?;
    let path = address.as_pathname().ok_or_else(|| io::Error::other("the socket has no path"))?;
    let owner = std::fs::symlink_metadata(path).map(|file| file.uid());
    owner.map_err(|error| io::Error::new(error.kind(), format!("stat {}: {error}", path.display())))
}

/// One of the [`CONNECTIONS`], given back when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(connected: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(connected));
        // One too many gives itself back at once.
        (connected.fetch_add(1, Ordering::SeqCst) < CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn connection<H: Host>(stream: UnixStream, work: &Arc<Work<H>>, uid: u32) -> io::Result<()> {
    stream.set_write_timeout(Some(UNREAD))?;
    let mut from = BufReader::new(stream.try_clone()?);
    let mut to = stream;
    conversation(&mut from, &mut to, work, uid)
}

/// Answers all calls of a connection, in their order.
///
/// # Errors
/// What came is no call, or nobody reads an answer.
pub fn conversation<H: Host>(
    from: &mut impl BufRead,
    to: &mut impl Write,
    work: &Arc<Work<H>>,
    uid: u32,
) -> io::Result<()> {
    while let Some(bytes) = wire::read(from, wire::MOST)? {
        let call: Call = serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("not a call: {error}")))?;
        answer(&call, work, uid, to)?;
    }
    Ok(())
}

fn answer<H: Host>(call: &Call, work: &Arc<Work<H>>, uid: u32, to: &mut impl Write) -> io::Result<()> {
    match verbs::parse(call) {
        Err(refused) => {
            eprintln!("uid {uid}: {} was refused: {}", call.method.escape_debug(), refused.error);
            refuse(to, refused)
        }
        Ok(Verb::Do(deed, instance, ticket)) => {
            let asked = format!("uid {uid}: {deed} {instance}, ticket {ticket}");
            let mut fields = vec![
                ("UID", uid.to_string()),
                ("VERB", deed.to_string()),
                ("INSTANCE", instance.to_string()),
                ("TICKET", ticket.to_string()),
            ];
            match work.begin(deed, instance, ticket) {
                Ok(()) => {
                    fields.push(("OUTCOME", "begun".into()));
                    audit::say(&asked, &fields);
                    reply(to, &json!({}), false)
                }
                Err(refusal) => {
                    let refused = refused(&refusal);
                    fields.push(("OUTCOME", refused.error.clone()));
                    audit::say(
                        &format!("{asked}: refused: {} {:?}", refused.error, refused.parameters),
                        &fields,
                    );
                    refuse(to, refused)
                }
            }
        }
        Ok(Verb::Watch { more: false }) => reply(to, &work.seen(), false),
        Ok(Verb::Watch { more: true }) => loop {
            // Counted before it is looked: what changes in between is told with the next.
            let version = work.version();
            reply(to, &work.seen(), true)?;
            work.wait(version);
        },
        Ok(Verb::Server(instance)) => reply(to, &work.host.server(&instance), false),
        Ok(Verb::Doctor) => reply(to, &work.host.doctor(), false),
        Ok(Verb::GetInfo) => reply(to, &verbs::info(), false),
        Ok(Verb::Describe(description)) => reply(to, &json!({ "description": description }), false),
    }
}

fn refused(refusal: &Refusal) -> Refused {
    match refusal {
        Refusal::Jobs(InTheWay::Busy(job)) => {
            let job = json!({ "ticket": job.ticket, "action": job.action, "begun_ms": job.begun_ms });
            Refused::ours("Busy", job)
        }
        Refusal::Jobs(InTheWay::TooMany) => Refused::ours("TooMany", json!({ "most": AT_ONCE })),
        Refusal::Disk(problem) => Refused::ours("NotKept", json!({ "problem": problem })),
    }
}

fn reply(to: &mut impl Write, what: &impl Serialize, continues: bool) -> io::Result<()> {
    let parameters = match serde_json::to_value(what)? {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    wire::write(to, &Reply { parameters, continues, error: None })
}

fn refuse(to: &mut impl Write, Refused { error, parameters }: Refused) -> io::Result<()> {
    wire::write(to, &Reply { parameters, continues: false, error: Some(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_owner_may_and_nobody_else() {
        assert!(may(0, 990) && may(990, 990));
        assert!(!may(991, 990) && !may(65534, 990) && !may(991, 0));
    }
}
