//! The jobs, as values: one at a time for an instance, known by their tickets, the last ones with their outcome. No thread and no
//! file.

use left4me_ctl::report::Report;
use serde::{Deserialize, Serialize};

use crate::verbs::{Deed, Ticket};

/// How many jobs that have ended are remembered: whoever asked asks again within an hour, or reads the journal.
pub const REMEMBERED: usize = 64;

/// How many may run at once: each has a thread and a connection to systemd.
pub const AT_ONCE: usize = 32;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is under way.
    Running,
    /// All was done.
    Succeeded,
    /// It was not; its report says why.
    Failed,
    /// The broker ended before it did: systemd went on alone.
    Interrupted,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// By what it is known.
    pub ticket: Ticket,
    /// What it does.
    pub action: Deed,
    /// To which instance.
    pub instance: String,
    /// How far it is.
    pub state: State,
    /// When it began, milliseconds since 1970.
    pub begun_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How it went, as `l4d2ctl --json` says it.
    pub report: Option<Report>,
}

/// Why a job does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InTheWay {
    /// Another one of the same instance.
    Busy(Box<Job>),
    /// So many others.
    TooMany,
}

/// All jobs that are known, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Vec<Job>);

impl Jobs {
    /// Those of an earlier life. What was running then was interrupted.
    #[must_use]
    pub fn again(mut kept: Vec<Job>) -> Self {
        kept.sort_by_key(|job| job.begun_ms);
        for job in &mut kept {
            if job.state == State::Running {
                job.state = State::Interrupted;
            }
        }
        Self(kept)
    }

    /// All, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Job] {
        &self.0
    }

    /// Notes that a job begins, and gives it back. None if its ticket is known: whoever asks twice gets one job.
    ///
    /// # Errors
    /// Another one is in the way.
    pub fn begin(
        &mut self,
        action: Deed,
        instance: &str,
        ticket: &Ticket,
        now_ms: u64,
    ) -> Result<Option<Job>, InTheWay> {
        if self.0.iter().any(|job| job.ticket == *ticket) {
            return Ok(None);
        }
        let running = || self.0.iter().filter(|job| job.state == State::Running);
        if let Some(other) = running().find(|job| job.instance == instance) {
            return Err(InTheWay::Busy(Box::new(other.clone())));
        }
        if running().count() >= AT_ONCE {
            return Err(InTheWay::TooMany);
        }
        let job = Job {
            ticket: ticket.clone(),
            action,
            instance: instance.to_owned(),
            state: State::Running,
            begun_ms: now_ms,
            ended_ms: None,
            report: None,
        };
        self.0.push(job.clone());
        Ok(Some(job))
    }

    /// Takes back what did not begin after all.
    pub fn forget(&mut self, ticket: &Ticket) {
        self.0.retain(|job| job.ticket != *ticket);
    }

    /// Notes how a job went, and gives it back, with those that are forgotten for it.
    pub fn end(&mut self, ticket: &Ticket, report: Report, now_ms: u64) -> (Option<Job>, Vec<Ticket>) {
        let ended = self.0.iter_mut().find(|job| job.ticket == *ticket).map(|job| {
            job.state = if report.ok { State::Succeeded } else { State::Failed };
            job.ended_ms = Some(now_ms);
            job.report = Some(report);
            job.clone()
        });
        (ended, self.tidy())
    }

    /// Forgets the oldest of those that have ended.
    pub fn tidy(&mut self) -> Vec<Ticket> {
        let has_ended = |job: &Job| job.state != State::Running;
        let over = self.0.iter().filter(|job| has_ended(job)).count().saturating_sub(REMEMBERED);
        let old: Vec<_> =
            self.0.iter().filter(|job| has_ended(job)).take(over).map(|job| job.ticket.clone()).collect();
        self.0.retain(|job| !old.contains(&job.ticket));
        old
    }
}

#[cfg(test)]
mod tests {
    use left4me_ctl::actions::Action;
    use left4me_ctl::control::not_begun;
    use left4me_ctl::units::UnitsError;

    use super::*;

    fn ticket(number: u64) -> Ticket {
        format!("{number:032x}").parse().unwrap()
    }

    fn report(is_ok: bool) -> Report {
        let mut report = not_begun(Action::Reset, &"3".parse().unwrap(), &UnitsError::Deadline);
        report.ok = is_ok;
        report
    }

    #[test]
    fn one_at_a_time_for_an_instance_and_a_ticket_is_one_job() {
        let mut jobs = Jobs::default();
        assert!(jobs.begin(Deed::Reset, "3", &ticket(1), 10).unwrap().is_some());
        assert_eq!(jobs.begin(Deed::Reset, "3", &ticket(1), 11), Ok(None));
        let Err(InTheWay::Busy(other)) = jobs.begin(Deed::Start, "3", &ticket(2), 12) else { panic!() };
        assert_eq!((other.ticket, other.action, other.begun_ms), (ticket(1), Deed::Reset, 10));
        assert!(jobs.begin(Deed::Start, "4", &ticket(2), 13).unwrap().is_some());
        let (ended, forgotten) = jobs.end(&ticket(1), report(true), 20);
        assert_eq!((ended.unwrap().state, forgotten), (State::Succeeded, vec![]));
        assert!(jobs.begin(Deed::Start, "3", &ticket(3), 21).unwrap().is_some());
        assert_eq!(jobs.end(&ticket(3), report(false), 22).0.unwrap().state, State::Failed);
        // Also after it has ended.
        assert_eq!(jobs.begin(Deed::Reset, "3", &ticket(1), 23), Ok(None));
    }

    #[test]
    fn the_oldest_that_have_ended_are_forgotten_and_none_that_runs() {
        let mut jobs = Jobs::default();
        jobs.begin(Deed::Start, "slow", &ticket(1_000), 0).unwrap();
        for number in 0..REMEMBERED as u64 + 2 {
            jobs.begin(Deed::Start, "3", &ticket(number), number).unwrap();
            let (_, forgotten) = jobs.end(&ticket(number), report(true), number);
            let over = number.checked_sub(REMEMBERED as u64);
            assert_eq!(forgotten, over.map(ticket).into_iter().collect::<Vec<_>>());
        }
        assert_eq!(jobs.all().len(), REMEMBERED + 1);
        assert_eq!(jobs.all()[0].instance, "slow");
    }

    #[test]
    fn so_many_at_once_and_no_more() {
        let mut jobs = Jobs::default();
        for number in 0..AT_ONCE as u64 {
            jobs.begin(Deed::Stop, &format!("s{number}"), &ticket(number), 0).unwrap();
        }
        assert_eq!(jobs.begin(Deed::Stop, "more", &ticket(99), 0), Err(InTheWay::TooMany));
    }

    #[test]
    fn what_ran_when_the_broker_ended_was_interrupted() {
        let mut jobs = Jobs::default();
        jobs.begin(Deed::Reset, "3", &ticket(1), 10).unwrap();
        jobs.begin(Deed::Reset, "4", &ticket(2), 11).unwrap();
        jobs.end(&ticket(2), report(true), 12);
        let again = Jobs::again(jobs.all().iter().rev().cloned().collect());
        let states: Vec<_> = again.all().iter().map(|job| job.state).collect();
        assert_eq!(states, [State::Interrupted, State::Succeeded]);
    }
}
