//! An instant of a run, as a person names it, and where it is in a recording: `umount fails`, `cycle 3: state failed`,
//! `t=63.4ms`. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use vm_agent::happening::{Happening, WORDS};
use vm_agent::recording::{Event, Recording, Step, What};

/// An instant of a run, as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The first cycle that has it, if none is named.
    cycle: Option<u32>,
    what: Named,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    Happening(Happening),
    /// So long after the cycle's reset has begun.
    AfterReset(Duration),
}

/// Text that names no instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no instant: {why}")]
pub struct NoInstant {
    text: String,
    why: String,
}

/// An instant that a run does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{at}\" does not happen in this run. What does:\n{there}")]
pub struct NotThere {
    at: At,
    there: String,
}

/// An instant of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instant {
    /// Nanoseconds since the plan began.
    pub at_ns: u64,
    /// The cycle it is in, from 1; 0 is before the first.
    pub cycle: u32,
    /// When that cycle's reset began, on the same clock; `None` if it has none.
    pub reset_ns: Option<u64>,
}

impl FromStr for At {
    type Err = NoInstant;

    fn from_str(text: &str) -> Result<Self, NoInstant> {
        let wrong = |why: String| NoInstant { text: text.to_owned(), why };
        let number = |text: &str| {
            let number = text.trim().parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| wrong("a cycle is a number from 1".to_owned()))
        };
        let (cycle, rest) = match text.trim().strip_prefix("cycle ") {
            None => (None, text.trim()),
            Some(rest) => match rest.split_once(':') {
                Some((cycle, rest)) => (Some(number(cycle)?), rest.trim()),
                None => (Some(number(rest)?), "start begins"),
            },
        };
        let what = match rest.strip_prefix("t=") {
            Some(time) => Named::AfterReset(span(time).map_err(wrong)?),
            None => Named::Happening(rest.parse().map_err(|_none| {
                wrong(format!(
                    "it is t=63.4ms, which counts from the reset's begin, or one of: {WORDS}; each may come after a cycle, as in \
                     \"cycle 3: reset done\""
                ))
            })?),
        };
        Ok(Self { cycle, what })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cycle) = self.cycle {
            write!(f, "cycle {cycle}: ")?;
        }
        match &self.what {
            Named::Happening(happening) => happening.fmt(f),
            Named::AfterReset(time) => {
                write!(f, "t={}", in_ms(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
            }
        }
    }
}

/// A length of time with its unit: `63.4ms`, `1s`, `200us`, `5ns`.
///
/// # Errors
/// Says what it has to look like.
pub fn span(text: &str) -> Result<Duration, String> {
    let units = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let read = units.iter().find_map(|(unit, secs)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        Duration::try_from_secs_f64(number * secs).ok()
    });
    read.ok_or_else(|| format!("{text:?} is no length of time: 63.4ms, 1s, 200us"))
}

/// Nanoseconds as a person reads them.
#[must_use]
pub fn in_ms(ns: u64) -> String {
    format!("{}.{:06}ms", ns / 1_000_000, ns % 1_000_000)
}

impl At {
    /// In how many cycles it is sought at least: those up to the one that is named, or one.
    #[must_use]
    pub fn cycles(&self) -> u32 {
        self.cycle.unwrap_or(1)
    }

    /// Where to look first at a cycle that went wrong: the unmount that was refused, else the unit's failure, else the end of its
    /// reset, or of its start if there was none.
    #[must_use]
    pub fn of_failure(recording: &Recording, cycle: u32) -> Option<Self> {
        let failed = Happening::State("failed".to_owned());
        let done = [Step::Reset, Step::Start].map(Happening::Done);
        let all = [Happening::UmountFails, failed].into_iter().chain(done);
        let mut all = all.map(|what| Self { cycle: Some(cycle), what: Named::Happening(what) });
        all.find(|at| at.search(recording).is_some())
    }

    /// Where it is in a recording.
    ///
    /// # Errors
    /// [`NotThere`], with all that happens in the cycle.
    pub fn find(&self, recording: &Recording) -> Result<Instant, NotThere> {
        self.search(recording).ok_or_else(|| NotThere { at: self.clone(), there: self.happened(recording) })
    }

    fn search(&self, recording: &Recording) -> Option<Instant> {
        let is_here = |event: &&Event| self.cycle.is_none_or(|cycle| event.cycle == cycle);
        recording.events.iter().filter(is_here).find_map(|event| {
            let at_ns = match &self.what {
                Named::Happening(happening) => happening.is(event.at, &event.what)?,
                Named::AfterReset(time) => match event.what {
                    What::StepBegins(Step::Reset) => {
                        event.at.saturating_add(u64::try_from(time.as_nanos()).ok()?)
                    }
                    _ => return None,
                },
            };
            let reset_ns = reset_of(recording, event.cycle);
            Some(Instant { at_ns, cycle: event.cycle, reset_ns })
        })
    }

    /// What happens in the named cycle, or in the first, a line each.
    fn happened(&self, recording: &Recording) -> String {
        let cycle = self.cycle.unwrap_or(1);
        let all = WORDS.split(", ").filter_map(|words| words.parse::<Happening>().ok());
        let mut all: Vec<Happening> = all.collect();
        for event in &recording.events {
            if let What::Unit(state) | What::MountUnit(state) = &event.what {
                let state = Happening::State(state.active.clone());
                if !all.contains(&state) {
                    all.push(state);
                }
            }
        }
        let find = |happening: Happening| {
            let at = Self { cycle: Some(cycle), what: Named::Happening(happening) };
            Some((at.search(recording)?, at))
        };
        let mut there: Vec<(Instant, Self)> = all.into_iter().filter_map(find).collect();
        there.sort_by_key(|(instant, _)| instant.at_ns);
        let lines = there.iter().map(|(instant, at)| format!("  {at} ({instant})\n"));
        match there.is_empty() {
            true => format!("  nothing in cycle {cycle}\n"),
            false => lines.collect(),
        }
    }
}

fn reset_of(recording: &Recording, cycle: u32) -> Option<u64> {
    let begins = |event: &&Event| event.cycle == cycle && matches!(event.what, What::StepBegins(Step::Reset));
    recording.events.iter().find(begins).map(|event| event.at)
}

impl Instant {
    /// The same so much earlier.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        let at_ns = self.at_ns.saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        Self { at_ns, ..self }
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reset_ns {
            Some(reset) if self.at_ns >= reset => {
                write!(f, "cycle {}, {} after the reset began", self.cycle, in_ms(self.at_ns - reset))
            }
            Some(reset) => {
                write!(f, "cycle {}, {} before the reset begins", self.cycle, in_ms(reset - self.at_ns))
            }
            None => write!(f, "cycle {}, {} after the plan began", self.cycle, in_ms(self.at_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::{StepEnd, UnitState};

    use super::*;

    fn recording() -> Recording {
        let event = |at, cycle, what| Event { at, cycle, what };
        let events = vec![
            event(1_000_000, 1, What::StepBegins(Step::Start)),
            event(5_000_000, 1, What::StepBegins(Step::Reset)),
            event(6_500_000, 1, What::Unmounted),
            event(11_000_000, 2, What::StepBegins(Step::Start)),
            event(15_000_000, 2, What::StepBegins(Step::Reset)),
        ];
        Recording { events, ..Recording::default() }
    }

    #[test]
    fn an_instant_is_found_by_its_name() {
        for (name, at_ns, words) in [
            ("unmounted", 6_500_000, "cycle 1, 1.500000ms after the reset began"),
            ("reset begins", 5_000_000, "cycle 1, 0.000000ms after the reset began"),
            ("cycle 2: reset begins", 15_000_000, "cycle 2, 0.000000ms after the reset began"),
            ("cycle 2", 11_000_000, "cycle 2, 4.000000ms before the reset begins"),
            ("t=0.25ms", 5_250_000, "cycle 1, 0.250000ms after the reset began"),
            ("cycle 2: t=1s", 1_015_000_000, "cycle 2, 1000.000000ms after the reset began"),
        ] {
            let at: At = name.parse().expect(name);
            let instant = at.find(&recording()).expect(name);
            assert_eq!((instant.at_ns, instant.to_string().as_str()), (at_ns, words), "{name}");
            assert_eq!(at.to_string().parse(), Ok(at), "{name}: as it is shown");
        }
        let at: At = "unmounted".parse().expect("a name");
        let before = at.find(&recording()).expect("it happens").before(Duration::from_millis(2));
        assert_eq!(before.to_string(), "cycle 1, 0.500000ms before the reset begins");
    }

    #[test]
    fn a_failure_is_looked_at_where_it_began() {
        let of = |more: Vec<(u64, What)>, cycle| {
            let mut recording = recording();
            let event = |(at, what)| Event { at, cycle: 1, what };
            recording.events.extend(more.into_iter().map(event));
            At::of_failure(&recording, cycle).map(|at| at.to_string())
        };
        let state = UnitState { active: "failed".to_owned(), ..UnitState::default() };
        let failed = || (8_000_000, What::Unit(state.clone()));
        let ended = |step| {
            let end = StepEnd {
                step,
                exit: None,
                duration_ns: 1,
                stdout: String::new(),
                stderr: String::new(),
                index: 0,
            };
            (9_000_000, What::StepEnds(end))
        };
        assert_eq!(
            of(vec![ended(Step::Start), failed(), ended(Step::Reset)], 1).as_deref(),
            Some("cycle 1: state failed")
        );
        assert_eq!(
            of(vec![ended(Step::Start), ended(Step::Reset)], 1).as_deref(),
            Some("cycle 1: reset done")
        );
        assert_eq!(of(vec![ended(Step::Start)], 1).as_deref(), Some("cycle 1: start done"));
        assert_eq!(of(Vec::new(), 2), None);
    }

    #[test]
    fn what_does_not_happen_is_told_with_what_does() {
        let at: At = "umount fails".parse().expect("a name");
        let error = at.find(&recording()).expect_err("none failed").to_string();
        let expected = "\"umount fails\" does not happen in this run. What does:\n  \
             cycle 1: start begins (cycle 1, 4.000000ms before the reset begins)\n  \
             cycle 1: reset begins (cycle 1, 0.000000ms after the reset began)\n  \
             cycle 1: unmounted (cycle 1, 1.500000ms after the reset began)\n";
        assert_eq!(error, expected);
        let at: At = "cycle 7: unmounted".parse().expect("a name");
        let error = at.find(&recording()).expect_err("two cycles").to_string();
        assert!(error.ends_with("What does:\n  nothing in cycle 7\n"), "{error}");
    }

    #[test]
    fn what_names_no_instant_is_an_error_that_says_what_does() {
        for (text, why) in [
            ("umount failed", "it is t=63.4ms, which counts"),
            ("t=5", "\"5\" is no length of time: 63.4ms"),
            ("t=-5ms", "\"-5ms\" is no length of time"),
            ("cycle 0: unmounted", "a cycle is a number from 1"),
            ("cycle x", "a cycle is a number from 1"),
            ("", "it is t=63.4ms"),
        ] {
            let error = text.parse::<At>().expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_length_of_time_has_a_unit() {
        for (text, ns) in [("63.4ms", 63_400_000), ("1s", 1_000_000_000), ("200us", 200_000), ("7 ns", 7)] {
            assert_eq!(span(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        assert_eq!(in_ms(63_412_005), "63.412005ms");
    }
}
