//! The loop that reads requests and hands each to a thread.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, Timespec, clock_settime};
use vm_agent::wire::{self, Body, Call, Hello, Request, SESSION_ID};

use crate::answer::{Answer, lock};
use crate::run::Running;
use crate::{boot, files, pause, record, run, session};

/// Answers requests until the port breaks. A host that went away is no reason to end: the next one says
/// [`Hello`] again.
pub(crate) fn serve(mut port: File) -> Result<()> {
    let answers = Arc::new(Mutex::new(port.try_clone().context("duplicate the port")?));
    let running = Running::default();
    let doorbell = hear_doorbell(&answers, &running);
    boot::pause_when_up(&answers, doorbell.as_ref().err().cloned())?;
    loop {
        let frame = wire::read_frame(&mut port).context("read a request")?;
        if let Some(hello) = Hello::from_bytes(&frame) {
            greet(&answers, &hello)?;
            continue;
        }
        let request: Request = wire::decode(&frame).context("decode a request")?;
        let answer = Answer::new(request.id, &answers);
        // Answered here: a null request should cost no thread.
        match (&request.call, &doorbell) {
            (Call::Ping, _) | (Call::Doorbell, Ok(())) => {
                answer.send(Body::Done).context("answer a ping")?;
                continue;
            }
            (Call::Doorbell, Err(deaf)) => {
                answer.send(Body::Failed(deaf.clone())).context("answer of the doorbell")?;
                continue;
            }
            _ => (),
        }
        let running = Arc::clone(&running);
        let begun = match &request.call {
            Call::Run(command) => Some(run::begin(command, &running, request.id)),
            _ => None,
        };
        thread::Builder::new()
            .name(format!("request {}", request.id))
            .spawn(move || {
                let outcome = match begun {
                    Some(begun) => begun.and_then(|begun| run::finish(begun, &answer, &running, request.id)),
                    None => handle(request, &running),
                };
                conclude(&answer, outcome);
            })
            .context("start a thread for a request")?;
    }
}

/// Starts the thread that does what a ring asks for; the error is in words, for whoever asks [`Call::Doorbell`].
fn hear_doorbell(port: &Arc<Mutex<File>>, running: &Running) -> Result<(), String> {
    let (port, running) = (Arc::clone(port), Arc::clone(running));
    let mut doorbell = session::doorbell().map_err(|error| format!("{error:#}"))?;
    let hear = move || {
        loop {
            let request = match session::await_ring(&mut doorbell) {
                Ok(request) => request,
                Err(error) => {
                    conclude(&Answer::new(SESSION_ID, &port), Err(error));
                    return;
                }
            };
            let answer = Answer::new(request.id, &port);
            let (answers, running) = (answer.clone(), Arc::clone(&running));
            // Of its own: in a guest that stands still it rings in the middle of a plan.
            let begun = thread::Builder::new()
                .name("session".into())
                .spawn(move || do_as_the_ring_asks(request, &answers, &running));
            if let Err(error) = begun {
                conclude(&answer, Err(anyhow::Error::new(error).context("start a thread for a session")));
            }
        }
    };
    match thread::Builder::new().name("doorbell".into()).spawn(hear) {
        Ok(_thread) => Ok(()),
        Err(error) => Err(format!("start a thread for the doorbell: {error}")),
    }
}

/// Does it, answers, and has the machine paused if that is asked, too.
fn do_as_the_ring_asks(request: Request, answer: &Answer, running: &Running) {
    let id = request.id;
    let (call, after_us) = match request.call {
        Call::ThenPause { after_us, call } => (*call, Some(after_us)),
        call => (call, None),
    };
    let outcome = match call {
        Call::Run(command) => {
            run::begin(&command, running, id).and_then(|begun| run::finish(begun, answer, running, id))
        }
        call => handle(Request { id, call }, running),
    };
    conclude(answer, outcome);
    if let Some(after_us) = after_us
        && let Err(error) = pause::after(Duration::from_micros(after_us))
    {
        complain(&format!("pause the machine: {error:#}"));
    }
}

/// Sends the last answer to a request.
fn conclude(answer: &Answer, outcome: Result<Body>) {
    let sent = match outcome {
        Ok(body) => answer.send(body),
        Err(error) => answer.send(Body::Failed(format!("{error:#}"))),
    };
    if let Err(error) = sent {
        complain(&format!("answer request {}: {error}", answer.id()));
    }
}

/// Answers with our own number whatever the host's is: the host compares, and says which side is older.
fn greet(answers: &Mutex<File>, hello: &Hello) -> Result<()> {
    let mine = Hello { protocol: wire::PROTOCOL, nonce: hello.nonce };
    wire::write_frame(&mut *lock(answers), &mine.to_bytes()).context("greet the host")
}

/// Does what a request asks and returns its last answer.
fn handle(request: Request, running: &Running) -> Result<Body> {
    match request.call {
        // They are begun or answered by the thread that reads.
        Call::Ping | Call::Doorbell | Call::Run(_) => Ok(Body::Done),
        Call::Go(until) => Ok(Body::Stands(record::go(until))),
        Call::ThenPause { .. } => bail!("a pause at an instant is asked for by the doorbell"),
        Call::Put(put) => files::put(&put).map(|()| Body::Done),
        Call::SetClock { realtime_ns } => set_clock(realtime_ns).map(|()| Body::Done),
        Call::Session(session) => session::run(&session),
        Call::Input { id, bytes } => run::input(running, id, bytes).map(|()| Body::Done),
        Call::Resize { id, rows, columns } => run::resize(running, id, rows, columns).map(|()| Body::Done),
        Call::Cancel { id } => run::cancel(running, id).map(|()| Body::Done),
    }
}

fn set_clock(realtime_ns: u64) -> Result<()> {
    let nanos = i64::try_from(realtime_ns).context("set the clock: beyond the year 2262")?;
    let time = Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    clock_settime(ClockId::Realtime, time).context("clock_settime CLOCK_REALTIME")
}

/// Writes to stderr, which is the journal; there is no one else to tell.
fn complain(text: &str) {
    if writeln!(io::stderr(), "vm-agent: {text}").is_err() {
        // The journal is gone too: the host sees its request unanswered and says so.
    }
}
