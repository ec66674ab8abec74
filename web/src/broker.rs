//! Asking the broker, over its socket: a connection for each question, and one that watches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use left4me_broker::host::{Diagnoses, Server};
use left4me_broker::verbs::{Deed, INTERFACE, Ticket};
use left4me_broker::wire::Reply;
use left4me_broker::work::Seen;
use left4me_helper::instance::Instance;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The most that an answer may have, bytes: the broker is trusted, a mistake of it is not.
const MOST: u64 = 16 << 20;

/// For an answer. The broker asks systemd with a deadline of ten seconds, of each unit that the doctor looks at.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the broker may be silent to who watches: it speaks every five seconds.
const SILENCE: Duration = Duration::from_secs(20);

/// Where the broker is.
#[derive(Debug, Clone)]
pub struct Broker(PathBuf);

/// How a request for a job went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It runs.
    Yes,
    /// The broker said no, and why.
    No(String),
}

/// A connection that watches.
#[derive(Debug)]
pub struct Watching(BufReader<UnixStream>);

impl Broker {
    /// The one at `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// Has it begin a job.
    ///
    /// # Errors
    /// It cannot be reached, so nobody knows whether the job has begun.
    pub async fn begin(&self, deed: Deed, instance: &Instance, ticket: &Ticket) -> Result<Begun> {
        let parameters = json!({ "id": instance.as_str(), "ticket": ticket });
        let Reply { error, parameters, .. } = self.ask(deed.verb(), parameters).await?;
        Ok(match error.as_deref().map(|error| error.trim_start_matches(INTERFACE)) {
            None => Begun::Yes,
            Some(".Busy") => Begun::No(format!(
                "a {} of {instance} is under way that was not begun here (ticket {})",
                parameters["action"].as_str().unwrap_or("job"),
                parameters["ticket"].as_str().unwrap_or("unknown")
            )),
            Some(".TooMany") => Begun::No(format!("{} jobs are under way already", parameters["most"])),
            Some(error) => Begun::No(format!("the broker refused: {error} {}", Value::Object(parameters))),
        })
    }

    /// One server.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub async fn server(&self, instance: &Instance) -> Result<Server> {
        value(self.ask("Server", json!({ "id": instance.as_str() })).await?)
    }

    /// What defeats the design.
    ///
    /// # Errors
    /// As [`Broker::server`].
    pub async fn doctor(&self) -> Result<Diagnoses> {
        value(self.ask("Doctor", json!({})).await?)
    }

    /// What there is now.
    ///
    /// # Errors
    /// As [`Broker::server`].
    pub async fn seen(&self) -> Result<Seen> {
        value(self.ask("Watch", json!({})).await?)
    }

    /// Begins to watch.
    ///
    /// # Errors
    /// As [`Broker::server`].
    pub async fn watch(&self) -> Result<Watching> {
        let mut stream = self.connect().await?;
        send(&mut stream, &json!({ "method": format!("{INTERFACE}.Watch"), "more": true })).await?;
        Ok(Watching(BufReader::new(stream)))
    }

    async fn connect(&self) -> Result<UnixStream> {
        let connected = UnixStream::connect(&self.0).await;
        connected
            .with_context(|| format!("connect to {} (is left4me-broker.socket started?)", self.0.display()))
    }

    async fn ask(&self, verb: &str, parameters: Value) -> Result<Reply> {
        let answer = async {
            let mut stream = self.connect().await?;
            send(&mut stream, &json!({ "method": format!("{INTERFACE}.{verb}"), "parameters": parameters }))
                .await?;
            receive(&mut BufReader::new(stream)).await
        };
        timeout(PATIENCE, answer).await.with_context(|| format!("no answer to {verb} from the broker"))?
    }
}

impl Watching {
    /// What there is after the next change.
    ///
    /// # Errors
    /// The broker has gone, or fallen silent.
    pub async fn next(&mut self) -> Result<Seen> {
        value(timeout(SILENCE, receive(&mut self.0)).await.context("the broker is silent")??)
    }
}

async fn send(stream: &mut UnixStream, call: &Value) -> Result<()> {
    let mut bytes = serde_json::to_vec(call)?;
    bytes.push(0);
    stream.write_all(&bytes).await.context("ask the broker")
}

async fn receive(from: &mut BufReader<UnixStream>) -> Result<Reply> {
    let mut bytes = Vec::new();
    from.take(MOST).read_until(0, &mut bytes).await.context("hear the broker")?;
    let Some(bytes) = bytes.strip_suffix(&[0]) else { bail!("the broker ended the connection") };
    serde_json::from_slice(bytes).context("what the broker said")
}

fn value<T: DeserializeOwned>(Reply { error, parameters, .. }: Reply) -> Result<T> {
    let parameters: Map<String, Value> = parameters;
    if let Some(error) = error {
        bail!("the broker refused: {error} {}", Value::Object(parameters));
    }
    serde_json::from_value(Value::Object(parameters)).context("what the broker said")
}
