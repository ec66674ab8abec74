//! Which lines are tried, in which order. Pure: the same points and the same length give the same lines.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use vm_perturb::{Hold, Line, Passed, Point};

use super::draws::{LEAST_US, MOST_US, drawn, priorities};
use crate::cache;

/// A way to perturb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The second client begins before the first, or later.
    Offsets,
    /// One task is held at one point: each point, each length of which a longer one has not shown what would come.
    OneHold,
    /// The same, and nothing left out.
    EachLength,
    /// Two points: those of units first, otherwise in an order that depends on nothing.
    Pairs,
    /// One to three points and lengths, drawn by a seed.
    Random,
    /// An order of the tasks by priority, and points at which it changes, drawn by a seed.
    Pct,
}

impl Strategy {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 6] =
        [Self::Offsets, Self::OneHold, Self::EachLength, Self::Pairs, Self::Random, Self::Pct];
    /// Those that end soon.
    pub const USUAL: [Self; 2] = [Self::Offsets, Self::OneHold];
    /// Those of a search that a bound ends.
    pub const BOUNDED: [Self; 5] = [Self::Offsets, Self::OneHold, Self::Pairs, Self::Random, Self::Pct];

    /// Its name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Offsets => "offsets",
            Self::OneHold => "one-hold",
            Self::EachLength => "each-length",
            Self::Pairs => "pairs",
            Self::Random => "random",
            Self::Pct => "pct",
        }
    }

    /// Whether each of its lines holds one task at one point.
    #[must_use]
    pub const fn holds_one(self) -> bool {
        matches!(self, Self::OneHold | Self::EachLength)
    }

    /// Whether it draws: without a bound there is no last one.
    #[must_use]
    pub const fn draws(self) -> bool {
        matches!(self, Self::Random | Self::Pct)
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.word() == text);
        found.ok_or_else(|| format!("there are {}", Self::ALL.map(Self::word).join(", ")))
    }
}

/// How many runs, and which.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// No run begins after this time.
    pub time: Option<Duration>,
    /// At most so many runs, those that minimise a failure apart.
    pub runs: Option<usize>,
    /// Those alone; empty: [`Strategy::USUAL`], and if there is a bound, [`Strategy::BOUNDED`].
    pub strategies: Vec<Strategy>,
    /// How many machines run at once; `None` is what cores and memory bear. It changes nothing in what is found.
    pub jobs: Option<usize>,
    /// What draws come from: the same seed gives the same lines.
    pub seed: u64,
    /// The commit that is run, as a person would check it out; empty if that is not known.
    pub commit: String,
}

/// How long a task is held, as parts of what the phase takes when nothing is: numerator and denominator. The longest first, as it shows
/// which shorter ones would be the same once more.
const LENGTHS: [(u64, u64); 3] = [(4, 1), (1, 1), (1, 4)];
/// Into how many parts the time before and after is divided by which the second client is moved.
const OFFSETS: i64 = 16;
/// How near two offsets are between which no other is tried, in microseconds.
const NEAR_US: i64 = 1_000;
/// The most draws of one search, of each kind.
const MOST_DRAWS: usize = 20_000;
/// After how many draws of one kind it is the other's turn: with a bound, the second would never come otherwise.
const TURN: usize = 25;
/// Lengths are halved down to this, in microseconds.
const SMALLEST_US: u64 = 250;

/// The lengths of holds in a phase that takes so long, in microseconds, in the order in which they are tried.
#[must_use]
pub fn lengths(took_us: u64) -> Vec<u64> {
    let mut all: Vec<u64> = Vec::new();
    for (times, parts) in LENGTHS {
        // By whole milliseconds, which are easy to read.
        let us = (took_us * times / parts).clamp(LEAST_US, MOST_US) / 1000 * 1000;
        if !all.contains(&us) {
            all.push(us);
        }
    }
    all
}

/// All lines, in order.
#[must_use]
pub fn lines(options: &Options, points: &[Passed], took_us: u64, has_client: bool) -> Vec<(Strategy, Line)> {
    let is_bounded = options.time.is_some() || options.runs.is_some();
    let wanted = match options.strategies.as_slice() {
        [] if is_bounded => &Strategy::BOUNDED[..],
        [] => &Strategy::USUAL[..],
        wanted => wanted,
    };
    // Those of units first: what a client does alone is seldom what goes wrong.
    let (of_clients, of_units): (Vec<&Passed>, Vec<&Passed>) =
        points.iter().partition(|passed| passed.of_client);
    let clients = of_clients.len();
    let by_unit: Vec<Point> =
        of_units.into_iter().chain(of_clients).filter_map(|passed| passed.point.parse().ok()).collect();
    let in_order: Vec<Point> = points.iter().filter_map(|passed| passed.point.parse().ok()).collect();
    let (lengths, units) = (lengths(took_us), by_unit.len().saturating_sub(clients));
    let draws = options.runs.unwrap_or(MOST_DRAWS).min(MOST_DRAWS);
    let seed = options.seed;
    let of = |strategy: Strategy| match strategy {
        _ if !wanted.contains(&strategy) => Vec::new(),
        Strategy::Offsets if has_client => offsets(took_us),
        Strategy::Offsets => Vec::new(),
        Strategy::OneHold if wanted.contains(&Strategy::EachLength) => Vec::new(),
        Strategy::OneHold | Strategy::EachLength => one_hold(&by_unit, &lengths),
        Strategy::Pairs => pairs(&by_unit, units, &lengths),
        Strategy::Random => {
            (0..draws).filter_map(|number| drawn(seed, number, &by_unit, took_us, has_client)).collect()
        }
        Strategy::Pct => {
            (0..draws).filter_map(|number| priorities(seed, number, &in_order, took_us)).collect()
        }
    };
    let mut all = Vec::new();
    let mut add = |strategy, lines: &[Line]| all.extend(lines.iter().map(|line| (strategy, line.clone())));
    for strategy in Strategy::ALL.into_iter().filter(|strategy| !strategy.draws()) {
        add(strategy, &of(strategy));
    }
    let (random, pct) = (of(Strategy::Random), of(Strategy::Pct));
    let (mut random, mut pct) = (random.chunks(TURN), pct.chunks(TURN));
    for _ in 0..draws.div_ceil(TURN) {
        add(Strategy::Random, random.next().unwrap_or_default());
        add(Strategy::Pct, pct.next().unwrap_or_default());
    }
    all
}

/// Lines in steps: those of one step are made side by side, and what comes of them decides what is left out of later ones.
pub fn steps(lines: &[(Strategy, Line)]) -> impl Iterator<Item = (Strategy, Vec<Line>)> {
    let length = |strategy: Strategy, line: &Line| {
        strategy.holds_one().then(|| line.holds.first().map(|hold| hold.us)).flatten()
    };
    let steps = lines.chunk_by(move |(one, line), (other, next)| {
        one == other && length(*one, line) == length(*other, next)
    });
    steps.filter_map(|step| {
        let (strategy, _) = step.first()?;
        Some((*strategy, step.iter().map(|(_, line)| line.clone()).collect()))
    })
}

/// From one phase's length before to one after, the near ones first.
fn offsets(took_us: u64) -> Vec<Line> {
    let took = i64::try_from(took_us).unwrap_or(i64::MAX / OFFSETS);
    let at = |part: i64| Line { client_us: took * part / OFFSETS / 100 * 100, holds: Vec::new() };
    (1..=OFFSETS).flat_map(|part| [at(part), at(-part)]).filter(|line| line.client_us != 0).collect()
}

/// Offsets in the middle between two that gave different outcomes, where it is not known yet between which; the widest gap first.
/// `offsets` has the outcome of each.
#[must_use]
pub fn between(offsets: &BTreeMap<i64, usize>) -> Vec<i64> {
    let pairs = offsets.iter().zip(offsets.iter().skip(1));
    let open = pairs.filter(|((from, here), (to, there))| here != there && *to - *from > NEAR_US);
    let mut open: Vec<(i64, i64)> = open.map(|((from, _), (to, _))| (*from, *to)).collect();
    open.sort_by_key(|(from, to)| (from - to, *from));
    open.into_iter().map(|(from, to)| (from + to).div_euclid(200) * 100).collect()
}

fn one_hold(points: &[Point], lengths: &[u64]) -> Vec<Line> {
    let at = |us: u64| points.iter().map(move |point| held(&[(point, us)]));
    lengths.iter().flat_map(|us| at(*us)).collect()
}

/// The first `units` points are those of units. Pairs of these come first, and then those of a unit and a client; among them first two
/// tasks that come to the same: two children that are told to end, two that write.
fn pairs(points: &[Point], units: usize, lengths: &[u64]) -> Vec<Line> {
    // Not the longest: there are thousands without it.
    let two = lengths.iter().rev().take(2);
    let mut all: Vec<(u8, bool, String, Line)> = Vec::new();
    for us in two {
        for (number, first) in points.iter().enumerate() {
            // Two holds of one task in a row are a longer one.
            let others = points.iter().enumerate().skip(number + 1);
            let others =
                others.filter(|(_, point)| (&point.task, point.instance) != (&first.task, first.instance));
            all.extend(others.map(|(other, second)| {
                let line = held(&[(first, *us), (second, *us)]);
                let clients = u8::from(number >= units) + u8::from(other >= units);
                let are_others = first.event != second.event;
                (clients, are_others, cache::hash_bytes(line.to_string().as_bytes()), line)
            }));
        }
    }
    all.sort();
    all.into_iter().map(|(.., line)| line).collect()
}

fn held(holds: &[(&Point, u64)]) -> Line {
    let holds = holds.iter().map(|(point, us)| Hold { point: (*point).clone(), us: *us });
    Line { client_us: 0, holds: holds.collect() }
}

/// Lines with less in them, those with the least first.
#[must_use]
pub fn smaller(line: &Line) -> Vec<Line> {
    let Line { client_us, holds } = line;
    let mut all = BTreeSet::new();
    let mut ordered = Vec::new();
    let mut add = |smaller: Line| {
        let is_one = smaller != *line && (smaller.client_us != 0 || !smaller.holds.is_empty());
        if is_one && all.insert(smaller.clone()) {
            ordered.push(smaller);
        }
    };
    if *client_us != 0 {
        add(Line { client_us: 0, holds: holds.clone() });
    }
    // Half of them, a quarter, and so on: of a draw of many holds one or two matter.
    let mut size = holds.len().div_ceil(2).max(1);
    loop {
        for from in (0..holds.len()).step_by(size) {
            let mut fewer = holds.clone();
            fewer.drain(from..(from + size).min(holds.len()));
            add(Line { client_us: *client_us, holds: fewer });
        }
        if size == 1 {
            break;
        }
        size = size.div_ceil(2);
    }
    for number in 0..holds.len() {
        let mut shorter = holds.clone();
        for hold in shorter.iter_mut().skip(number).take(1) {
            hold.us = (hold.us / 2).max(SMALLEST_US.min(hold.us));
        }
        add(Line { client_us: *client_us, holds: shorter });
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that begin with a + are a client's.
    fn passed(points: &[&str]) -> Vec<Passed> {
        let passed = |point: &&str| Passed {
            point: point.trim_start_matches('+').to_owned(),
            of: String::new(),
            at_us: 0,
            held_us: 0,
            of_client: point.starts_with('+'),
        };
        points.iter().map(passed).collect()
    }

    fn shown(lines: &[(Strategy, Line)]) -> Vec<String> {
        lines.iter().map(|(strategy, line)| format!("{} {line}", strategy.word())).collect()
    }

    #[test]
    fn each_point_is_held_at_each_length_and_lengths_grow_with_the_phase() {
        let options = Options::default();
        let all = lines(&options, &passed(&["a:exit", "b#2:umount2@3"]), 80_000, false);
        let expected = [
            "one-hold a:exit=320ms",
            "one-hold b#2:umount2@3=320ms",
            "one-hold a:exit=80ms",
            "one-hold b#2:umount2@3=80ms",
            "one-hold a:exit=20ms",
            "one-hold b#2:umount2@3=20ms",
        ];
        assert_eq!(shown(&all), expected);
        let steps: Vec<(Strategy, usize)> = steps(&all).map(|(of, lines)| (of, lines.len())).collect();
        assert_eq!(steps, [(Strategy::OneHold, 2); 3], "a step for each length");
        let all = Options { strategies: vec![Strategy::OneHold, Strategy::EachLength], ..Options::default() };
        let all = lines(&all, &passed(&["a:exit", "b#2:umount2@3"]), 80_000, false);
        assert_eq!(shown(&all), expected.map(|line| line.replace("one-hold", "each-length")), "once");
        let all = lines(&options, &passed(&["+ctl:exec", "a:exit", "+ctl:send", "b:exit"]), 1_000, false);
        let order = ["a:exit=4ms", "b:exit=4ms", "ctl:exec=4ms", "ctl:send=4ms"];
        assert_eq!(shown(&all[..4]), order.map(|line| format!("one-hold {line}")), "the units' first");
        assert_eq!(lengths(2_000), [8_000, 2_000, 1_000]);
        assert_eq!(lengths(100), [1_000]);
        assert_eq!(lengths(60_000_000), [5_000_000]);
    }

    #[test]
    fn the_second_client_is_moved_first_and_by_little_first() {
        let options = Options { strategies: vec![Strategy::Offsets], ..Options::default() };
        let all = lines(&options, &passed(&["a:exit"]), 160_000, true);
        assert_eq!(shown(&all)[..3], ["offsets client=10ms", "offsets client=-10ms", "offsets client=20ms"]);
        assert_eq!(all.len(), 32);
        assert!(lines(&options, &passed(&["a:exit"]), 160_000, false).is_empty());
    }

    #[test]
    fn where_outcomes_change_it_is_looked_at_more_closely() {
        // As failing from 30 to 71.5 ms would be.
        let outcome = |us: i64| usize::from((30_000..71_500).contains(&us));
        let mut offsets: BTreeMap<i64, usize> =
            (0..10).map(|part| (part * 16_000, outcome(part * 16_000))).collect();
        loop {
            let between = between(&offsets);
            if between.is_empty() {
                break;
            }
            for us in between {
                assert!(offsets.insert(us, outcome(us)).is_none(), "{us} again");
            }
        }
        let inside: Vec<i64> = offsets.iter().filter(|(_, class)| **class == 1).map(|(us, _)| *us).collect();
        let (first, last) = (inside[0], inside[inside.len() - 1]);
        assert!((30_000..31_000).contains(&first) && (70_500..71_500).contains(&last), "{inside:?}");
        assert!(offsets.len() < 22, "{} tried", offsets.len());
        assert!(between(&BTreeMap::new()).is_empty());
        let wide = BTreeMap::from([(0, 0), (10_000, 1), (30_000, 0)]);
        assert_eq!(between(&wide), [20_000, 5_000], "the widest first");
    }

    #[test]
    fn pairs_are_of_two_tasks_each_once_and_in_one_order() {
        let options = Options { strategies: vec![Strategy::Pairs], ..Options::default() };
        let all = lines(&options, &passed(&["a:exit", "a:open", "b:exit"]), 80_000, false);
        let mut sorted = shown(&all);
        sorted.sort();
        let expected = [
            "pairs a:exit=20ms b:exit=20ms",
            "pairs a:exit=80ms b:exit=80ms",
            "pairs a:open=20ms b:exit=20ms",
            "pairs a:open=80ms b:exit=80ms",
        ];
        assert_eq!(sorted, expected);
        assert_eq!(all, lines(&options, &passed(&["a:exit", "a:open", "b:exit"]), 80_000, false));
        let all = lines(&options, &passed(&["+c:exit", "a:exit", "+d:exit", "b:exit"]), 80_000, false);
        let clients = |line: &Line| line.holds.iter().filter(|hold| "cd".contains(&hold.point.task)).count();
        assert!(all.is_sorted_by_key(|(_, line)| clients(line)), "{all:?}");
        let all = lines(&options, &passed(&["a:exit", "b:open", "c:born", "d:open"]), 80_000, false);
        let first: Vec<String> = all.iter().take(2).map(|(_, line)| line.to_string()).collect();
        assert!(first.iter().all(|line| line.contains("b:open") && line.contains("d:open")), "{first:?}");
    }

    #[test]
    fn two_kinds_of_draws_take_turns_and_come_last() {
        let options = Options { runs: Some(60), seed: 7, ..Options::default() };
        let all = lines(&options, &passed(&["a:exit", "b:exit", "c:open"]), 80_000, true);
        let turns = all.chunk_by(|(one, _), (other, _)| one == other);
        let turns: Vec<(&str, usize)> = turns
            .filter_map(|turn| turn.first().map(|(strategy, _)| (strategy.word(), turn.len())))
            .collect();
        let expected = [
            ("offsets", 32),
            ("one-hold", 9),
            ("pairs", 6),
            ("random", 25),
            ("pct", 25),
            ("random", 25),
            ("pct", 25),
            ("random", 10),
            ("pct", 10),
        ];
        assert_eq!(turns, expected);
    }

    #[test]
    fn a_hold_among_many_is_found_in_few_steps() {
        let mut line = Line::default();
        for number in 0..20 {
            line.holds.extend(format!("t{number}:start=80ms").parse::<Hold>().ok());
        }
        let mut tried = 0;
        let fails = |line: &Line| {
            ["t3", "t17"].iter().all(|task| line.holds.iter().any(|hold| hold.point.task == *task))
        };
        let mut of_two = || {
            let fewer = smaller(&line).into_iter().take_while(|next| next.holds.len() < line.holds.len());
            let next = fewer.inspect(|_| tried += 1).find(fails);
            next.inspect(|next| line = next.clone()).is_some()
        };
        while of_two() {}
        assert_eq!(line.to_string(), "t3:start=80ms t17:start=80ms");
        assert!(tried <= 30, "{tried}, of {} one by one", 20 * 21 / 2);
    }

    #[test]
    fn what_is_smaller_has_less_in_it_and_comes_to_an_end() {
        let line: Line = "client=5ms a:exit=80ms b:exit=40ms".parse().expect("a line");
        let all: Vec<String> = smaller(&line).iter().map(ToString::to_string).collect();
        let expected = [
            "a:exit=80ms b:exit=40ms",
            "client=5ms b:exit=40ms",
            "client=5ms a:exit=80ms",
            "client=5ms a:exit=40ms b:exit=40ms",
            "client=5ms a:exit=80ms b:exit=20ms",
        ];
        assert_eq!(all, expected);
        let mut line: Line = "a:exit=80ms".parse().expect("a line");
        let mut steps = 0;
        while let Some(next) = smaller(&line).into_iter().next() {
            (line, steps) = (next, steps + 1);
        }
        assert_eq!((line.to_string().as_str(), steps), ("a:exit=0.25ms", 9));
    }
}
