//! Lines that are drawn: what a seed gives. Pure.

use vm_perturb::{Hold, Line, Point};

use crate::cache;

/// No hold is shorter than what a process takes that does next to nothing, in microseconds.
pub(super) const LEAST_US: u64 = 1_000;
/// None is longer: time limits of units are of seconds.
pub(super) const MOST_US: u64 = 5_000_000;
/// At how many points priorities change at the most.
const MOST_CHANGES: u64 = 2;
/// A task of high priority is not held for less than such a part of the phase.
const SHORTEST: u64 = 8;

/// A draw: as many points as a bug may need, one to three, each for a length of its own; and the second client, if there is one, at
/// another time in every second one. Short and long are as likely: lengths are even in their logarithm.
pub(super) fn drawn(
    seed: u64,
    number: usize,
    points: &[Point],
    took_us: u64,
    has_client: bool,
) -> Option<Line> {
    let mut draws = Draws { of: format!("{seed} {number}"), drawn: 0 };
    let took_us = took_us.max(LEAST_US);
    let mut line = Line::default();
    for _ in 0..=draws.below(2) {
        let point = points.get(draws.place(points.len())?)?.clone();
        // From an eighth of the phase to four times as long.
        let shortest = (took_us / 8) << draws.below(4);
        let us = (shortest + draws.below(shortest)).clamp(LEAST_US, MOST_US) / 100 * 100;
        if !line.holds.iter().any(|hold| hold.point == point) {
            line.holds.push(Hold { point, us });
        }
    }
    if has_client && draws.below(1) == 1 {
        let took = i64::try_from(took_us).ok()?;
        line.client_us = (i64::try_from(draws.below(2 * took_us)).ok()? - took) / 100 * 100;
    }
    Some(line)
}

/// A draw as PCT makes it (Burckhardt and others, "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010), by
/// holds: tasks have an order of priority, and at up to two points, whichever the task, it becomes the lowest. `points` are those of the
/// phase in their order.
///
/// A task of low priority is to run when all others have nothing to do. So it is held at its first point for longer than all above
/// it together: the lowest for twice as long as the phase takes, the one above it for half of that, and so on, and those for no time
/// that would be held for less than [`SHORTEST`]. Who becomes the lowest is held for as long as the phase takes.
pub(super) fn priorities(seed: u64, number: usize, points: &[Point], took_us: u64) -> Option<Line> {
    let mut draws = Draws { of: format!("pct {seed} {number}"), drawn: 0 };
    let took_us = took_us.clamp(LEAST_US, MOST_US) / 100 * 100;
    let mut firsts: Vec<&Point> = Vec::new();
    for point in points {
        let is_task = |first: &&Point| (&first.task, first.instance) == (&point.task, point.instance);
        if !firsts.iter().any(is_task) {
            firsts.push(point);
        }
    }
    // The lowest is drawn first.
    let mut holds: Vec<Hold> = Vec::new();
    let mut us = took_us.saturating_mul(2);
    while !firsts.is_empty() && us >= took_us / SHORTEST {
        let point = firsts.remove(draws.place(firsts.len())?).clone();
        holds.push(Hold { point, us: us.clamp(LEAST_US, MOST_US) / 100 * 100 });
        us /= 2;
    }
    for _ in 0..draws.below(MOST_CHANGES) {
        let point = points.get(draws.place(points.len())?)?.clone();
        match holds.iter_mut().find(|hold| hold.point == point) {
            Some(hold) => hold.us = hold.us.max(took_us),
            None => holds.push(Hold { point, us: took_us }),
        }
    }
    (!holds.is_empty()).then_some(Line { client_us: 0, holds })
}

/// Numbers that a seed gives, one after the other, each draw's its own.
#[derive(Debug)]
struct Draws {
    of: String,
    drawn: u32,
}

impl Draws {
    /// One of so many places; none if there is none.
    fn place(&mut self, count: usize) -> Option<usize> {
        usize::try_from(self.below(count.checked_sub(1)? as u64)).ok()
    }

    /// From 0 to this one.
    fn below(&mut self, most: u64) -> u64 {
        self.drawn += 1;
        let text = format!("{} {}", self.of, self.drawn);
        let hash = cache::hash_bytes(text.as_bytes());
        let number = hash.get(..15).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        number % (most + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::ops::Range;

    use super::*;

    fn points(points: &[&str]) -> Vec<Point> {
        points.iter().map(|point| point.parse().expect(point)).collect()
    }

    const PHASE_US: u64 = 80_000;

    #[test]
    fn draws_are_those_of_their_seed() {
        let points = points(&["a:exit", "b:exit", "c:open"]);
        let all = |seed: u64, has_client: bool| -> Vec<Line> {
            (0..200).filter_map(|number| drawn(seed, number, &points, PHASE_US, has_client)).collect()
        };
        let lines = all(7, true);
        assert_eq!(lines.len(), 200);
        assert_eq!(lines, all(7, true));
        assert_ne!(lines, all(8, true));
        assert_eq!(drawn(7, 0, &[], PHASE_US, true), None);
        for count in 1..=3 {
            assert!(lines.iter().any(|line| line.holds.len() == count), "none of {count} holds");
        }
        let lengths = lines.iter().flat_map(|line| line.holds.iter().map(|hold| hold.us));
        assert!(lengths.clone().any(|us| us < 15_000) && lengths.clone().any(|us| us > 160_000));
        assert!(lengths.clone().all(|us| (10_000..=320_000).contains(&us)));
        let moved = lines.iter().filter(|line| line.client_us != 0).count();
        assert!((50..150).contains(&moved), "{moved} of 200");
        assert!(all(7, false).iter().all(|line| line.client_us == 0));
        for line in lines {
            assert_eq!(line.to_string().parse(), Ok(line), "a draw is a line as any other");
        }
    }

    #[test]
    fn priorities_are_an_order_of_the_tasks_and_change_at_points() {
        // Four tasks and nine points.
        let names =
            ["a:start", "a:fork", "a#2:born", "a:open", "b:start", "a#2:exit", "c:exec", "c:exit", "b:exit"];
        let points = points(&names);
        let firsts = ["a:start", "a#2:born", "b:start", "c:exec"];
        let all = |seed: u64| -> Vec<Line> {
            (0..300).filter_map(|number| priorities(seed, number, &points, PHASE_US)).collect()
        };
        let lines = all(7);
        assert_eq!(lines.len(), 300);
        assert_eq!(lines, all(7));
        assert_ne!(lines, all(8));
        assert_ne!(
            Some(&lines[0].holds),
            drawn(7, 0, &points, PHASE_US, false).map(|line| line.holds).as_ref()
        );
        let (mut lowest, mut changes) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
        let by_rank = [PHASE_US * 2, PHASE_US, PHASE_US / 2, PHASE_US / 4];
        for line in &lines {
            assert_eq!(line.to_string().parse().as_ref(), Ok(line), "a draw is a line as any other");
            let (low, others) = line.holds.split_at(4);
            let held: BTreeSet<String> = low.iter().map(|hold| hold.point.to_string()).collect();
            assert!(firsts.iter().all(|first| held.contains(*first)), "{line}: each once");
            // A change can be at a first point, too.
            let longer = low.iter().zip(by_rank).filter(|(hold, us)| hold.us != *us);
            let longer: Vec<u64> = longer.map(|(hold, _)| hold.us).collect();
            assert!(longer.len() + others.len() <= 2 && longer.iter().all(|us| *us == PHASE_US), "{line}");
            assert!(others.iter().all(|hold| hold.us == PHASE_US), "{line}");
            *lowest.entry(low[0].point.to_string()).or_default() += 1;
            for hold in others {
                *changes.entry(hold.point.to_string()).or_default() += 1;
            }
        }
        assert_eq!((lowest.len(), changes.len()), (4, 5), "each task, each point");
        let even =
            |counts: &BTreeMap<String, usize>, of: Range<usize>| counts.values().all(|n| of.contains(n));
        assert!(even(&lowest, 50..100) && even(&changes, 15..60), "as often: {lowest:?} {changes:?}");
    }

    #[test]
    fn one_is_held_for_longer_than_all_above_it_and_most_are_not_held() {
        let names: Vec<String> = (0..40).map(|number| format!("t{number}:start")).collect();
        let points = points(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for number in 0..100 {
            let line = priorities(7, number, &points, PHASE_US).expect("a line");
            let lengths: Vec<u64> = line.holds.iter().map(|hold| hold.us).take(5).collect();
            assert_eq!(lengths[0], 160_000, "{line}");
            assert!((5..=7).contains(&line.holds.len()), "{line}");
        }
    }

    #[test]
    fn what_has_no_task_has_no_priorities() {
        assert_eq!(priorities(7, 0, &[], PHASE_US), None);
        let one = priorities(7, 0, &points(&["a:start"]), PHASE_US).expect("a line");
        assert_eq!(one.to_string(), "a:start=160ms");
    }
}
