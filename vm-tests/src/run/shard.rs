//! Which of so many runners this one is, and which runs are whose. Pure: runners that know the same suite and the same costs
//! agree without a word to each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A runner's part of a suite: the second of four is `2/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    number: u32,
    of: u32,
}

/// Text that is no shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a shard is its number and how many there are, as in 2/4 for the second of four")]
pub struct NoShard;

impl FromStr for Shard {
    type Err = NoShard;

    fn from_str(text: &str) -> Result<Self, NoShard> {
        // A sign is a number's, too.
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
        let (number, of) = text.split_once('/').ok_or(NoShard)?;
        match (digits(number).flatten(), digits(of).flatten()) {
            (Some(number), Some(of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(NoShard),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl Shard {
    /// How many there are.
    #[must_use]
    pub fn of(self) -> usize {
        usize::try_from(self.of).unwrap_or(usize::MAX)
    }

    /// Whether this is the one with that place, from 0, among them.
    #[must_use]
    pub fn is(self, place: usize) -> bool {
        usize::try_from(self.number).is_ok_and(|number| number == place + 1)
    }

    /// The report's words for it.
    #[must_use]
    pub fn share(self, runs_of_all: usize) -> Share {
        Share { number: self.number, of: self.of, runs_of_all }
    }
}

/// Which part of a suite a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Which shard, from 1.
    pub number: u32,
    /// How many shards there are.
    pub of: u32,
    /// How many runs all shards have together.
    pub runs_of_all: usize,
}

/// What one run costs, in whatever unit all have; `None` if that is not known.
pub type Cost = Option<u64>;

/// The shard, from 0, of each of the runs: the costliest first, each to the shard that has the least so far, and of those to
/// the first. One whose cost is not known counts as an average one, and none as nothing: so no shard is empty as long as
/// there are as many runs.
///
/// "Longest processing time first" (Graham 1969): no shard has more than 4/3 of what the best division would give it.
#[must_use]
pub fn divide(costs: &[Cost], shards: usize) -> Vec<usize> {
    let known: Vec<u64> = costs.iter().flatten().copied().collect();
    let number = u64::try_from(known.len()).unwrap_or(u64::MAX);
    let average = known.iter().sum::<u64>().checked_div(number).unwrap_or(1);
    let costs: Vec<u64> = costs.iter().map(|cost| cost.unwrap_or(average).max(1)).collect();
    let mut longest_first: Vec<usize> = (0..costs.len()).collect();
    // Stable: those of one cost stay in their order.
    longest_first.sort_by_key(|run| std::cmp::Reverse(costs.get(*run)));
    let mut loads = vec![0; shards];
    let mut places = vec![0; costs.len()];
    for run in longest_first {
        let least = loads.iter_mut().enumerate().min_by_key(|(_, load)| **load);
        if let (Some((shard, load)), Some(cost), Some(place)) = (least, costs.get(run), places.get_mut(run)) {
            *load += cost;
            *place = shard;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shard_is_one_of_so_many() {
        for (text, number, of) in [("1/1", 1, 1), ("2/4", 2, 4), ("12/12", 12, 12)] {
            let shard: Shard = text.parse().expect(text);
            assert_eq!((shard.number, shard.of, shard.to_string().as_str()), (number, of, text));
            assert!(shard.is(number as usize - 1) && !shard.is(number as usize));
        }
        for text in ["0/4", "5/4", "x", "", "/", "2", "2/", "/4", "0/0", "-1/4", "+1/4", "1/4/8", "1 / 4"] {
            assert_eq!(text.parse::<Shard>(), Err(NoShard), "{text}");
        }
    }

    #[test]
    fn the_longest_come_first_each_to_the_shard_with_the_least() {
        let cases: [(&[Cost], usize, &[usize]); 6] = [
            (&[Some(3), Some(9), Some(5), Some(4)], 2, &[0, 0, 1, 1]),
            // Ties by order.
            (&[Some(2), Some(2), Some(2), Some(2)], 2, &[0, 1, 0, 1]),
            // One that is not known is an average one, of 4.
            (&[Some(3), None, Some(5)], 2, &[1, 1, 0]),
            (&[None, None, None], 2, &[0, 1, 0]),
            // None is for nothing: the second would get none otherwise.
            (&[Some(0), Some(0)], 2, &[0, 1]),
            (&[], 3, &[]),
        ];
        for (costs, shards, expected) in cases {
            assert_eq!(divide(costs, shards), expected, "{costs:?} by {shards}");
        }
    }

    proptest! {
        /// Every run is in one shard, no shard is empty, and none has more than the greedy bound: what a shard has before its
        /// last run is the least of all, so no more than the average of the others.
        #[test]
        fn the_shards_are_the_suite_and_balanced(
            costs in prop::collection::vec(prop::option::weighted(0.9, 1_u64..400_000), 1..200),
            shards in 1_usize..=8,
        ) {
            let places = divide(&costs, shards);
            prop_assert_eq!(places.len(), costs.len());
            prop_assert!(places.iter().all(|place| *place < shards));
            let known: Vec<u64> = costs.iter().flatten().copied().collect();
            let average = known.iter().sum::<u64>().checked_div(known.len() as u64).unwrap_or(1).max(1);
            let all: Vec<u64> = costs.iter().map(|cost| cost.unwrap_or(average)).collect();
            let of = |shard| {
                let its = places.iter().zip(&all).filter(move |(place, _)| **place == shard);
                its.map(|(_, cost)| *cost).collect::<Vec<u64>>()
            };
            let total: u64 = all.iter().sum();
            for shard in 0..shards {
                let its = of(shard);
                prop_assert!(!its.is_empty() || costs.len() < shards);
                // The last that it got is the least of them.
                let last = its.iter().min().copied().unwrap_or(0);
                let before: u64 = its.iter().sum::<u64>() - last;
                prop_assert!(before * shards as u64 <= total - last, "{before} + {last} of {total} by {shards}");
            }
        }
    }
}
