//! One job of systemd's: what is sent for it, in which order, and on whose word its end is believed.
//!
//! A job's end is the signal `JobRemoved`, which may arrive before the reply that names the job. So the bus is asked for
//! that signal first, all calls are sent one after the other, and only then is anything waited for: a connection's calls
//! arrive in the order they were sent, and systemd answers in the order it was asked (D-Bus specification, "Message
//! ordering"). Replies and signals are read from one queue, so that no flood of signals can hold up a reply.
//!
//! The system bus lets anybody send a signal to anybody, whatever that one has asked for, and a job's number is no
//! secret. The bus itself writes into each message who has sent it ("sender"): the end is believed of him only who
//! answered the call that queued the job, or, as systemd gets another name when it executes itself anew
//! (`systemctl daemon-reexec`), of him whom the bus says to be systemd now.

use std::num::NonZeroU32;

use systemd_bus::{JobRemoved, MANAGER_PATH};
use zbus::message::{self, Message};
use zbus::names::{OwnedUniqueName, UniqueName};
use zbus::zvariant::OwnedObjectPath;

use super::bus::pair;
use crate::units::{Ended, Names, Pair, UnitsError};

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// The bus, to pass on the ends of the unit's jobs.
    Match,
    /// How the units are before the job.
    Before,
    /// To forget that a unit has failed, and how often it was started.
    Count,
    /// The job.
    Queue,
    /// The bus, who systemd is.
    Owner,
}

/// What a message comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// Somebody else than the one who queued the job says that it has ended: the bus has to be asked who systemd is.
    Doubt,
    /// The job has ended.
    Ended(Ended),
}

/// The end of a job, as somebody tells it.
#[derive(Debug)]
struct Told {
    by: Option<OwnedUniqueName>,
    job: OwnedObjectPath,
    result: String,
}

/// The wait for a job's end: it is given every message that comes, and says when that was it. Over a connection
/// without a bus no message has a sender, and all are the other end's.
#[derive(Debug)]
pub(super) struct JobWatch {
    names: Names,
    unit: String,
    asked: Vec<(NonZeroU32, Question)>,
    /// Who answered about the time before, and what.
    before: Option<(Option<OwnedUniqueName>, Pair<String>)>,
    /// Who queued the job, and its name.
    queued: Option<(Option<OwnedUniqueName>, OwnedObjectPath)>,
    /// Ends that were told before the reply that names the job.
    early: Vec<Told>,
    /// The end that somebody else tells, while the bus is asked who he is.
    doubted: Option<Told>,
}

impl JobWatch {
    /// The wait for the end of a job of `unit`, one of the two.
    pub(super) fn new(names: &Names, unit: &str) -> Self {
        Self {
            names: names.clone(),
            unit: unit.to_owned(),
            asked: Vec::new(),
            before: None,
            queued: None,
            early: Vec::new(),
            doubted: None,
        }
    }

    /// Says that a call was sent.
    pub(super) fn asked(&mut self, question: Question, serial: NonZeroU32) {
        self.asked.push((serial, question));
    }

    /// Takes the next message of the connection.
    ///
    /// # Errors
    /// It is a reply that says no.
    pub(super) fn hear(&mut self, message: &Message) -> Result<Heard, UnitsError> {
        match message.message_type() {
            message::Type::Signal => Ok(self.signal(message)),
            message::Type::MethodReturn | message::Type::Error => self.reply(message),
            message::Type::MethodCall => Ok(Heard::Nothing),
        }
    }

    fn reply(&mut self, message: &Message) -> Result<Heard, UnitsError> {
        let header = message.header();
        let serial = header.reply_serial();
        let Some(at) = self.asked.iter().position(|(of, _question)| Some(*of) == serial) else {
            // To a question of somebody else on this connection.
            return Ok(Heard::Nothing);
        };
        let (_serial, question) = self.asked.swap_remove(at);
        if message.message_type() == message::Type::Error {
            let error = UnitsError::from(zbus::Error::from(message.clone()));
            return match (question, &error) {
                // A unit that is not loaded has no failed state.
                (Question::Owner, _) | (Question::Count, UnitsError::NoSuchUnit(_)) => Ok(Heard::Nothing),
                _ => Err(error),
            };
        }
        let by = header.sender().map(|name| OwnedUniqueName::from(name.to_owned()));
        let body = message.body();
        match question {
            Question::Match | Question::Count => Ok(Heard::Nothing),
            Question::Before => {
                let units = pair(&self.names, body.deserialize()?)?;
                self.before = Some((
                    by,
                    Pair { server: units.server.active_state, overlay: units.overlay.active_state },
                ));
                Ok(Heard::Nothing)
            }
            Question::Queue => {
                self.queued = Some((by, body.deserialize()?));
                for told in std::mem::take(&mut self.early) {
                    let heard = self.weigh(told);
                    if heard != Heard::Nothing {
                        return Ok(heard);
                    }
                }
                Ok(Heard::Nothing)
            }
            Question::Owner => {
                let owner: String = body.deserialize()?;
                Ok(match self.doubted.take() {
                    Some(told) if told.by.as_ref().is_some_and(|by| by.as_str() == owner) => self.ended(told),
                    _ => Heard::Nothing,
                })
            }
        }
    }

    fn signal(&mut self, message: &Message) -> Heard {
        let header = message.header();
        if header.path().is_none_or(|path| path.as_str() != MANAGER_PATH) {
            return Heard::Nothing;
        }
        // Whoever sends something else under that name is not systemd.
        let Some(removed) = JobRemoved::from_message(message.clone()) else { return Heard::Nothing };
        let Ok(ended) = removed.args() else { return Heard::Nothing };
        if ended.unit != self.unit {
            return Heard::Nothing;
        }
        let told = Told {
            by: header.sender().map(|name| name.to_owned().into()),
            job: ended.job.to_owned().into(),
            result: ended.result.to_owned(),
        };
        if self.queued.is_some() {
            return self.weigh(told);
        }
        // Before the answer about the time before, systemd had not seen the request for the job: this is another's end.
        if self.before.as_ref().is_some_and(|(by, _before)| same(by.as_deref(), told.by.as_deref())) {
            self.early.push(told);
        }
        Heard::Nothing
    }

    /// Judges an end that is told once it is known which job is ours, and who queued it.
    fn weigh(&mut self, told: Told) -> Heard {
        match &self.queued {
            Some((_by, job)) if *job != told.job => Heard::Nothing,
            Some((by, _job)) if same(by.as_deref(), told.by.as_deref()) => self.ended(told),
            Some(_) if self.doubted.is_none() => {
                self.doubted = Some(told);
                Heard::Doubt
            }
            _ => Heard::Nothing,
        }
    }

    fn ended(&mut self, told: Told) -> Heard {
        let before = self.before.take().map(|(_by, state)| state).unwrap_or_default();
        Heard::Ended(Ended { before, result: told.result })
    }
}

/// Whether two messages are of one sender.
fn same(one: Option<&UniqueName<'_>>, other: Option<&UniqueName<'_>>) -> bool {
    one == other
}

#[cfg(test)]
mod tests {
    use systemd_bus::{ListedUnit, ManagerProxy, interface};
    use zbus::zvariant::DynamicType;

    use super::*;

    const UNIT: &str = "left4me-overlay@3.service";
    const SYSTEMD: &str = ":1.2";
    const FORGER: &str = ":1.66";

    fn watch() -> JobWatch {
        JobWatch::new(&Names::of(&"3".parse().unwrap()), UNIT)
    }

    fn job(number: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
    }

    /// A call that was sent.
    fn ask(watch: &mut JobWatch, question: Question) -> Message {
        let call = Message::method_call("/x", "X").unwrap().build(&()).unwrap();
        watch.asked(question, call.primary_header().serial_num());
        call
    }

    fn reply<B: serde::Serialize + DynamicType>(call: &Message, by: &str, body: &B) -> Message {
        Message::method_return(&call.header()).unwrap().sender(by).unwrap().build(body).unwrap()
    }

    fn refusal(call: &Message, name: &str) -> Message {
        Message::error(&call.header(), name).unwrap().sender(SYSTEMD).unwrap().build(&"no").unwrap()
    }

    fn state() -> Vec<ListedUnit> {
        let unit =
            |active_state: &str| ListedUnit { active_state: active_state.into(), ..ListedUnit::default() };
        vec![unit("active"), unit("failed")]
    }

    fn removed(by: &str, number: u32, unit: &str, result: &str) -> Message {
        let signal = signal("JobRemoved").unwrap().sender(by).unwrap();
        signal.build(&(number, job(number), unit, result)).unwrap()
    }

    fn signal(name: &'static str) -> zbus::Result<zbus::message::Builder<'static>> {
        Message::signal(MANAGER_PATH, interface::<ManagerProxy<'_>>(), name)
    }

    fn ended(result: &str) -> Heard {
        Heard::Ended(Ended {
            before: Pair { server: "active".into(), overlay: "failed".into() },
            result: result.into(),
        })
    }

    /// Hears all of them, of which only the last may come to anything.
    fn hear(watch: &mut JobWatch, messages: &[Message]) -> Heard {
        let (last, others) = messages.split_last().unwrap();
        for message in others {
            assert_eq!(watch.hear(message), Ok(Heard::Nothing), "{message:?}");
        }
        watch.hear(last).unwrap()
    }

    #[test]
    fn the_end_is_believed_of_who_queued_the_job_before_and_after_its_reply() {
        for is_early in [true, false] {
            let mut watch = watch();
            let (before, queue) = (ask(&mut watch, Question::Before), ask(&mut watch, Question::Queue));
            let forged = removed(FORGER, 8, UNIT, "failed");
            let (before, queue) = (reply(&before, SYSTEMD, &state()), reply(&queue, SYSTEMD, &job(8)));
            let theirs = removed(SYSTEMD, 8, UNIT, "done");
            // Of a job that systemd had before ours, under a number that it may give again.
            let old = removed(SYSTEMD, 8, UNIT, "canceled");
            let order = if is_early { [theirs, queue] } else { [queue, theirs] };
            let mut messages = vec![
                forged.clone(),
                old,
                before,
                forged,
                removed(SYSTEMD, 7, UNIT, "failed"),
                removed(SYSTEMD, 8, "other.service", "failed"),
            ];
            messages.extend(order);
            assert_eq!(hear(&mut watch, &messages), ended("done"), "early: {is_early}");
        }
    }

    #[test]
    fn another_name_is_systemds_only_if_the_bus_says_so() {
        for (owner, expected) in [(":1.9", ended("done")), (SYSTEMD, Heard::Nothing)] {
            let mut watch = watch();
            let (before, queue) = (ask(&mut watch, Question::Before), ask(&mut watch, Question::Queue));
            let messages = [reply(&before, SYSTEMD, &state()), reply(&queue, SYSTEMD, &job(8))];
            assert_eq!(hear(&mut watch, &messages), Heard::Nothing);
            assert_eq!(watch.hear(&removed(":1.9", 8, UNIT, "done")), Ok(Heard::Doubt));
            let who = ask(&mut watch, Question::Owner);
            assert_eq!(watch.hear(&removed(FORGER, 8, UNIT, "failed")), Ok(Heard::Nothing), "one at a time");
            assert_eq!(watch.hear(&reply(&who, "org.freedesktop.DBus", &owner)), Ok(expected), "{owner}");
        }
    }

    #[test]
    fn what_is_refused_is_an_error_where_it_matters() {
        let denied = "org.freedesktop.DBus.Error.AccessDenied";
        let missing = "org.freedesktop.systemd1.NoSuchUnit";
        for (question, name, is_error) in [
            (Question::Match, denied, true),
            (Question::Count, denied, true),
            (Question::Count, missing, false),
            (Question::Before, denied, true),
            (Question::Queue, missing, true),
        ] {
            let mut watch = watch();
            let call = ask(&mut watch, question);
            assert_eq!(watch.hear(&refusal(&call, name)).is_err(), is_error, "{question:?}: {name}");
        }
    }

    #[test]
    fn what_is_no_end_of_a_job_is_nothing() {
        let mut watch = watch();
        let before = ask(&mut watch, Question::Before);
        let somebody = Message::method_call("/x", "X").unwrap().build(&()).unwrap();
        let odd = signal("JobRemoved").unwrap().sender(SYSTEMD).unwrap();
        let other = signal("JobNew").unwrap().sender(SYSTEMD).unwrap();
        let body = (8_u32, job(8), UNIT, "done");
        let messages = [
            reply(&before, SYSTEMD, &state()),
            reply(&somebody, SYSTEMD, &job(8)),
            odd.build(&"x").unwrap(),
            other.build(&body).unwrap(),
            somebody,
        ];
        assert_eq!(hear(&mut watch, &messages), Heard::Nothing);
    }
}
