//! Which holds are not made, as a longer one at the same point has shown what would come. Pure.
//!
//! While a task is held, the others go on as far as they get without it. If in the run of a longer hold nobody came to a point any more
//! from some instant on, then a shorter hold that ends after that instant lets the task go on among others that stand where they stood
//! when the longer one ended: the same order of points, only sooner, but for who of two is first by microseconds. That is partial-order
//! reduction ([Flanagan and Godefroid, 2005](https://doi.org/10.1145/1040305.1040315)), by what was seen in place of what programs
//! say. It goes by points alone, as all of `explore` does: `--strategy each-length` leaves nothing out, and counts how often this was wrong.

use std::collections::BTreeMap;

use vm_perturb::{Hold, Point, Report};

/// How much earlier than the last that was heard of it a phase may have ended, in microseconds: a process tells of its exit, and is gone after that.
const END_US: u64 = 1_000;

/// What came of holds alone that went as the run in which nothing is held, by their points. One that went otherwise shows nothing of
/// shorter ones: a time-out of PID 1, whose doings are no points, can have come in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Longer {
    of: BTreeMap<Point, Vec<Seen>>,
}

#[derive(Debug, Clone)]
struct Seen {
    us: u64,
    until: Until,
    /// See [`super::ground::Tried::order`].
    order: String,
}

/// What a hold lasted for, in microseconds since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Its own end. The last point that anybody came to was then; 0 if there was none.
    ItsEnd { last_us: u64 },
    /// The end of the phase, which lets go of all.
    PhaseEnd { at_us: u64 },
}

impl Longer {
    /// Notes what came of a hold; nothing of a run whose command had not ended in time.
    pub(super) fn add(&mut self, hold: &Hold, report: &Report, order: String) {
        if let Some(until) = until(report) {
            self.of.entry(hold.point.clone()).or_default().push(Seen { us: hold.us, until, order });
        }
    }

    /// The order of points that would come of a hold, if a longer one has shown it.
    pub(super) fn shows(&self, hold: &Hold) -> Option<&str> {
        let seen = self.of.get(&hold.point)?;
        let longer = seen.iter().find(|longer| longer.us > hold.us && longer.until.shows(hold.us));
        longer.map(|longer| longer.order.as_str())
    }
}

impl Until {
    /// Whether a hold that is so much shorter would end among the same.
    const fn shows(self, us: u64) -> bool {
        match self {
            // Who has just come to a point goes on for a while after it.
            Self::ItsEnd { last_us } => last_us <= us / 2,
            // Let go of at the same instant.
            Self::PhaseEnd { at_us } => us >= at_us + END_US,
        }
    }
}

fn until(report: &Report) -> Option<Until> {
    let took_us = report.took_us?;
    let first = report.passed.iter().position(|passed| passed.held_us > 0)?;
    let (hold, after) = (report.passed.get(first)?, report.passed.get(first + 1..)?);
    let last_us = |passed: &[vm_perturb::Passed]| passed.last().map_or(0, |last| last.at_us);
    // A second client's end is not told, but its exit is a point.
    let phase_us = took_us.max(last_us(&report.passed));
    let end_us = hold.at_us + hold.held_us;
    if phase_us < end_us + END_US {
        return Some(Until::PhaseEnd { at_us: phase_us.saturating_sub(hold.at_us) });
    }
    let during = after.iter().take_while(|passed| passed.at_us < end_us).count();
    let last_us = last_us(after.get(..during)?).saturating_sub(hold.at_us);
    Some(Until::ItsEnd { last_us })
}

#[cfg(test)]
mod tests {
    use vm_perturb::Passed;

    use super::*;

    fn report(took_us: Option<u64>, passed: &[(&str, u64, u64)]) -> Report {
        let passed = passed.iter().map(|(point, at_us, held_us)| Passed {
            point: (*point).to_owned(),
            of: String::new(),
            at_us: *at_us,
            held_us: *held_us,
            of_client: false,
        });
        Report { passed: passed.collect(), took_us, client: None }
    }

    /// Whether it is known what comes of shorter holds at `a:exit`, after one of 80 ms.
    fn known(report: &Report, shorter_ms: &[u64]) -> Vec<bool> {
        let hold = |ms: u64| format!("a:exit={ms}ms").parse::<Hold>().expect("a hold");
        let mut longer = Longer::default();
        longer.add(&hold(80), report, "a longer one's".to_owned());
        let shows = |ms: &u64| longer.shows(&hold(*ms)) == Some("a longer one's");
        assert!(!shows(&80) && !shows(&320), "of a longer one nothing is known");
        let other = "a:exit@2=20ms".parse::<Hold>().expect("a hold");
        assert!(longer.shows(&other).is_none(), "of another point nothing is known");
        shorter_ms.iter().map(shows).collect()
    }

    #[test]
    fn a_shorter_hold_is_known_if_nobody_moved_any_more_in_the_longer_one() {
        let alone = [("b:exit", 9_000, 0), ("a:exit", 10_000, 80_000), ("c:exec", 90_001, 0)];
        assert_eq!(known(&report(Some(120_000), &alone), &[20, 1]), [true, true]);
        let early = [("a:exit", 10_000, 80_000), ("b:exit", 15_000, 0), ("c:exec", 90_001, 0)];
        assert_eq!(known(&report(Some(120_000), &early), &[20, 10, 9, 1]), [true, true, false, false]);
        let late = [("a:exit", 10_000, 80_000), ("b:open", 11_000, 0), ("b:exit", 89_000, 0)];
        assert_eq!(known(&report(Some(120_000), &late), &[79, 20]), [false, false]);
        // Killed while it was held, it comes to its exit.
        let killed = [("a:exit", 10_000, 80_000), ("a:exit@2", 60_000, 0)];
        assert_eq!(known(&report(Some(120_000), &killed), &[20]), [false]);
    }

    #[test]
    fn what_the_phases_end_lets_go_of_is_known_if_it_ends_after_that() {
        let passed = [("b:exit", 9_000, 0), ("a:exit", 10_000, 80_000), ("b:exit@2", 40_000, 0)];
        assert_eq!(known(&report(Some(50_000), &passed), &[60, 41, 40, 20]), [true, true, false, false]);
        // The second client ends later than the first.
        let passed = [("a:exit", 10_000, 80_000), ("client:exit", 60_000, 0)];
        assert_eq!(known(&report(Some(50_000), &passed), &[60, 45]), [true, false]);
        // At the very end of the hold.
        let passed = [("a:exit", 10_000, 80_000), ("b:exit", 89_500, 0)];
        assert_eq!(known(&report(Some(90_100), &passed), &[20]), [false]);
        assert_eq!(known(&report(None, &passed), &[79]), [false], "it has not ended in time");
    }
}
