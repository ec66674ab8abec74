//! What the page knows: what the broker saw last, and the jobs; and how a job is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use left4me_broker::audit;
use left4me_broker::host::Server;
use left4me_broker::verbs::{Deed, Ticket};
use left4me_broker::work::Seen;
use left4me_helper::instance::Instance;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::broker::{Begun, Broker};
use crate::limit::Limits;
use crate::secret::random;
use crate::store::{Line, Store};

/// How often a broker that has gone is asked for again: nobody tells when a socket is listened on.
const AGAIN: Duration = Duration::from_secs(1);

/// For what the broker says first, of a request that started the page.
const FIRST: Duration = Duration::from_secs(5);

/// How many passwords may be compared or wait for it: each has 19 MiB, one after the other.
const COMPARED: usize = 16;

/// What is shown.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the broker saw last.
    pub seen: Seen,
    /// Why that is old, or nothing at all.
    pub problem: Option<String>,
    /// Counts changes of the jobs.
    pub jobs: u64,
    /// Whether the broker was asked at all.
    pub is_asked: bool,
}

/// What the broker says of a server, or why it does not.
type Told = Result<Server, String>;

/// What it said last, and at which change.
type Last = tokio::sync::Mutex<Option<(u64, Told)>>;

/// How many servers' last words are kept. Only who is in can ask for one.
const KEPT: usize = 256;

/// All of it.
#[derive(Debug)]
pub struct App {
    /// Who has the rights.
    pub broker: Broker,
    store: Mutex<Store>,
    view: watch::Sender<View>,
    /// The tickets that are being asked for at this moment.
    asking: Mutex<BTreeSet<String>>,
    /// Of each server.
    servers: Mutex<BTreeMap<String, Arc<Last>>>,
    limits: Mutex<Limits>,
    /// Who has a password compared, or waits for it.
    pub(crate) hashing: Semaphore,
    /// Whose turn it is.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// Who asks for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The user.
    pub user: String,
    /// From where.
    pub peer: String,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.user, self.peer)
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Pressed {
    /// It is this job.
    Job(i64),
    /// This one is in its way.
    Busy(Box<Line>),
}

impl App {
    /// With a broker and a database; nothing is known yet.
    #[must_use]
    pub fn new(broker: Broker, store: Store) -> Arc<Self> {
        let view = View { problem: Some("the broker was not asked yet".into()), ..View::default() };
        let view = watch::Sender::new(view);
        Arc::new(Self {
            broker,
            store: Mutex::new(store),
            view,
            asking: Mutex::default(),
            servers: Mutex::default(),
            limits: Mutex::default(),
            hashing: Semaphore::new(COMPARED),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The database.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.store)
    }

    /// One server, asked once for each change however many look on: the broker looks for who plays and into the journal.
    pub(crate) async fn server(&self, instance: &Instance) -> Told {
        let kept = {
            let mut servers = locked(&self.servers);
            if servers.len() >= KEPT && !servers.contains_key(instance.as_str()) {
                servers.clear();
            }
            Arc::clone(servers.entry(instance.to_string()).or_default())
        };
        let mut kept = kept.lock().await;
        let now = self.view.borrow().jobs;
        if let Some((_, told)) = kept.as_ref().filter(|(at, _)| *at == now) {
            return told.clone();
        }
        let told = self.broker.server(instance).await.map_err(|error| format!("{error:#}"));
        *kept = Some((now, told.clone()));
        told
    }

    /// How often somebody may try to come in.
    pub(crate) fn limits(&self) -> MutexGuard<'_, Limits> {
        locked(&self.limits)
    }

    /// Everybody who looks on looks again.
    pub(crate) fn has_changed(&self) {
        self.view.send_modify(|view| view.jobs += 1);
    }

    /// What is shown now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Its changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Waits until the broker was asked once: the first request may have started the page.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        // If it takes longer, the page says that it was not asked yet.
        drop(timeout(FIRST, changes.wait_for(|view| view.is_asked)).await);
    }

    /// Follows the broker, for ever.
    pub async fn follow(&self) {
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            again.tick().await;
            if let Err(error) = self.follow_once().await {
                let problem = format!("{error:#}");
                self.view.send_if_modified(|view| {
                    let is_new = view.problem.as_ref() != Some(&problem);
                    if is_new {
                        eprintln!("{problem}");
                        view.problem = Some(problem);
                        view.is_asked = true;
                    }
                    is_new
                });
            }
        }
    }

    async fn follow_once(&self) -> Result<()> {
        // What is open now, and is not just being asked for, the broker knows, or nobody does any more. Later ones it may
        // not have heard of when it looked.
        let mut doubtful = {
            let asking = locked(&self.asking);
            let open = self.store().open_tickets()?;
            open.into_iter().filter(|ticket| !asking.contains(ticket)).collect::<Vec<_>>()
        };
        let mut watching = self.broker.watch().await?;
        loop {
            let seen = watching.next().await?;
            for ticket in std::mem::take(&mut doubtful) {
                if !seen.jobs.iter().any(|job| job.ticket.to_string() == ticket) {
                    let why = "the broker does not know it: it never came there, or was forgotten there";
                    self.store().end(&ticket, "interrupted", why, now_ms())?;
                }
            }
            self.hear(seen)?;
        }
    }

    fn hear(&self, seen: Seen) -> Result<()> {
        let store = self.store();
        for job in &seen.jobs {
            store.heard(job)?;
        }
        drop(store);
        self.view.send_modify(|view| {
            *view = View { seen, problem: None, jobs: view.jobs + 1, is_asked: true };
        });
        Ok(())
    }

    /// Asks for a job.
    ///
    /// # Errors
    /// The database's.
    pub async fn press(&self, deed: Deed, instance: &Instance, asker: &Asker) -> Result<Pressed> {
        let ticket = ticket()?;
        locked(&self.asking).insert(ticket.to_string());
        let queued = self.store().queue(deed, instance, &ticket, &asker.to_string(), now_ms());
        let pressed = match queued {
            Ok(Ok(number)) => self.ask(deed, instance, &ticket).await.map(|()| Pressed::Job(number)),
            Ok(Err(line)) => Ok(Pressed::Busy(Box::new(line))),
            Err(error) => Err(error.into()),
        };
        locked(&self.asking).remove(&ticket.to_string());
        self.has_changed();
        let mut fields = fields(asker, deed, instance);
        fields.push(("TICKET", ticket.to_string()));
        let outcome = match &pressed {
            Ok(Pressed::Job(number)) => {
                fields.push(("JOB", number.to_string()));
                format!("job {number}")
            }
            Ok(Pressed::Busy(line)) => format!("refused, job {} is in its way", line.number),
            Err(error) => format!("{error:#}"),
        };
        fields.push(("OUTCOME", outcome.clone()));
        audit::say(&format!("{asker}: {deed} {instance}: {outcome}"), &fields);
        pressed
    }

    /// Notes that somebody pressed what is not for them.
    pub(crate) fn refused(&self, deed: Deed, instance: &Instance, asker: &Asker, why: &str) {
        let mut fields = fields(asker, deed, instance);
        fields.push(("OUTCOME", why.to_owned()));
        audit::say(&format!("{asker}: {deed} {instance}: {why}"), &fields);
    }

    async fn ask(&self, deed: Deed, instance: &Instance, ticket: &Ticket) -> Result<()> {
        let (state, why) = match self.broker.begin(deed, instance, ticket).await {
            Ok(Begun::Yes) => return Ok(()),
            Ok(Begun::No(why)) => ("failed", why),
            // Did it come there? Who knows is asked.
            Err(error) => match self.broker.seen().await {
                Ok(seen) if seen.jobs.iter().any(|job| job.ticket == *ticket) => return Ok(()),
                Ok(_) => ("failed", format!("nothing was begun: {error:#}")),
                // If it did, it will say so when it is back.
                Err(_) => ("interrupted", format!("nobody knows whether it was begun: {error:#}")),
            },
        };
        self.store().end(&ticket.to_string(), state, &why, now_ms()).context("note a job")
    }
}

fn fields(asker: &Asker, deed: Deed, instance: &Instance) -> Vec<(&'static str, String)> {
    vec![
        ("USER", asker.user.clone()),
        ("PEER", asker.peer.clone()),
        ("VERB", deed.to_string()),
        ("INSTANCE", instance.to_string()),
    ]
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ticket() -> Result<Ticket> {
    let mut bytes = [0_u8; 16];
    random(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)).parse()?)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
