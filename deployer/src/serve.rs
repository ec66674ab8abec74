//! One request of a client: read, done, answered.

use std::io::{BufRead, Read, Write};

use anyhow::{Context as _, Result};

use crate::apply;
use crate::host::Host;
use crate::plan;
use crate::state::{self, Lock, Pending};
use crate::store;
use crate::wire::{Answer, Line, Refusal, Request, Status};

/// How much of the log a status shows.
const SHOWN: usize = 30;

/// Reads a request and answers it. Whatever fails is an answer, so that a client knows what did.
///
/// # Errors
/// The client is gone.
pub fn serve(host: &Host, input: impl Read, mut output: impl Write) -> Result<()> {
    let mut tell = |line: Line| -> Result<()> {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        output.write_all(&text).and_then(|()| output.flush()).context("answer the client")
    };
    let answer = answer(host, input, &mut tell).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
    tell(Line::Answer(Box::new(answer)))
}

fn answer(host: &Host, input: impl Read, tell: apply::Tell<'_>) -> Result<Answer> {
    let mut input = std::io::BufReader::new(input);
    let mut line = String::new();
    input.read_line(&mut line).context("read the request")?;
    match serde_json::from_str(&line).context("read the request")? {
        Request::Plan(target) => Ok(Answer::Plan(Box::new(plan::make(host, &target)?))),
        Request::Stage { manifest, blobs, by } => {
            let _lock = match Lock::take(host, &by)? {
                Ok(lock) => lock,
                Err(who) => {
                    let next = "wait for its end, and deploy again";
                    return Ok(Answer::Refused(vec![Refusal::new(
                        format!("{who} deploys to the host"),
                        next,
                    )]));
                }
            };
            tell(Line::Step("stage".to_owned()))?;
            Ok(Answer::Staged(store::receive(host, &manifest, &blobs, &mut input)?))
        }
        Request::Apply(wanted) => apply::apply(host, &wanted, tell),
        Request::Confirm { token } => apply::confirm(host, &token, tell),
        Request::PutBack { token } => {
            apply::put_back(host, token.as_deref(), "a client", "it was asked for", tell)
        }
        Request::Status => Ok(Answer::Status(status(host)?)),
    }
}

/// What was deployed, what is on trial, who works.
///
/// # Errors
/// The state can't be read.
pub fn status(host: &Host) -> Result<Status> {
    let current = store::current(host)?;
    let log = state::read_log(host)?;
    let pending = Pending::read(host)?;
    let name = |id: &Option<String>| -> Result<String> {
        Ok(match id {
            None => "nothing".to_owned(),
            Some(id) => match store::manifest(host, id)? {
                Some(manifest) => manifest.name(),
                None => format!("{id}, which is not on the host any more"),
            },
        })
    };
    let back = (0..).zip(state::back(&log, current.as_ref())).skip(1);
    Ok(Status {
        current: name(&current)?,
        on_trial: pending.as_ref().map(Pending::words),
        locked: state::holder(host),
        token: pending.map(|pending| pending.token),
        back: back.map(|(number, id)| Ok((number, name(&id)?))).collect::<Result<_>>()?,
        log: log.into_iter().rev().take(SHOWN).rev().collect(),
    })
}
