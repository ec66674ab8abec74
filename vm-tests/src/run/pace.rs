//! How long a suite will still take, by what each of its trials took the last time in the same results directory.

use std::path::Path;
use std::time::Duration;

use crate::report::{self, ScenarioReport, Verdict};

/// What is known of each trial's wall time, in the order of the trials.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pace(Vec<Option<Duration>>);

impl Pace {
    /// Of trials whose results lie in these directories. To be read before those are deleted.
    pub(super) fn of<'a>(directories: impl Iterator<Item = &'a Path>) -> Self {
        Self(directories.map(|directory| took(&report::read_scenario(directory)?)).collect())
    }

    /// A trial takes so long, or no time: its recording is remembered.
    pub(super) fn known(&mut self, trial: usize, time: Duration) {
        if let Some(known) = self.0.get_mut(trial) {
            *known = Some(time);
        }
    }

    /// A trial has ended.
    pub(super) fn ended(&mut self, trial: usize, report: &ScenarioReport) {
        if let (Some(known), Some(took)) = (self.0.get_mut(trial), took(report)) {
            *known = Some(took);
        }
    }

    /// How long the others take: those that wait, and those that run, with how long each has run. One that was never run is
    /// taken for an average one. `None` if nothing is known of any.
    pub(super) fn left(
        &self,
        waiting: &[usize],
        running: &[(usize, Duration)],
        jobs: usize,
    ) -> Option<Duration> {
        let known: Vec<Duration> = self.0.iter().flatten().copied().collect();
        let average = known.iter().sum::<Duration>().checked_div(u32::try_from(known.len()).ok()?)?;
        let of = |trial: usize| self.0.get(trial).copied().flatten().unwrap_or(average);
        let rest = |(trial, since): &(usize, Duration)| of(*trial).saturating_sub(*since);
        let all: Duration = waiting.iter().map(|trial| of(*trial)).chain(running.iter().map(rest)).sum();
        let longest = waiting.iter().map(|trial| of(*trial)).chain(running.iter().map(rest)).max()?;
        Some(longest.max(all / u32::try_from(jobs.max(1)).ok()?))
    }
}

/// The wall time of a run that has a result.
pub(super) fn took(report: &ScenarioReport) -> Option<Duration> {
    // One whose recording was remembered has taken no time, and says nothing of one that runs.
    let has_run =
        matches!(report.verdict, Verdict::Passed | Verdict::Failed) && report.remembered_s.is_none();
    has_run.then(|| Duration::from_millis(report.stages.restore_ms + report.stages.session_ms))
}

/// `about 7 min`, `about 40 s`: no more precise than it is.
pub(crate) fn about(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..90 => format!("about {} s", secs.next_multiple_of(5)),
        secs => format!("about {} min", (secs + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_is_left_is_shared_by_the_machines_and_no_shorter_than_the_longest() {
        let pace = Pace(vec![Some(secs(10)), Some(secs(30)), None, Some(secs(20))]);
        let cases = [
            (&[0, 1][..], &[][..], 1, Some(40)),
            (&[0, 1], &[], 2, Some(30)),
            // One that is not known is an average one of 20 s.
            (&[0, 2], &[], 1, Some(30)),
            (&[0], &[(1, secs(25))], 1, Some(15)),
            (&[0], &[(1, secs(99))], 1, Some(10)),
            (&[], &[], 1, None),
        ];
        for (waiting, running, jobs, left) in cases {
            assert_eq!(pace.left(waiting, running, jobs), left.map(secs), "{waiting:?} {running:?} {jobs}");
        }
        assert_eq!(Pace(vec![None, None]).left(&[0, 1], &[], 1), None, "nobody knows");
    }

    #[test]
    fn an_estimate_is_no_more_precise_than_it_is() {
        for (time, words) in [(3, "about 5 s"), (41, "about 45 s"), (95, "about 2 min"), (449, "about 7 min")]
        {
            assert_eq!(about(secs(time)), words);
        }
    }
}
