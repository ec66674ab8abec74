//! The least line that fails as another one does: in the search, and as a whole run.
//!
//! A whole run begins at the saved machine and the search's in the middle, so that they differ by microseconds. Lengths are halved
//! in the search, which can end within microseconds of the shortest that fails: there the whole run goes well, and nobody can be handed
//! what was found. So from the least line on larger ones are tried, until one fails in both.

use anyhow::{Context as _, Result};
use vm_perturb::{Hold, Line};

use super::strategy;

/// The most whole runs for one failure: each takes as long as three of the search's.
const WHOLE_RUNS: usize = 5;
/// So many of them are of the least line and of what is next to it; then the largest one says whether there is more to look for.
const NEAR: usize = 2;
/// By how much holds are longer in the first lines that are tried: numerator and denominator.
const MARGINS: [(u64, u64); 2] = [(5, 4), (3, 2)];

/// Who makes runs of lines, and says whether they go the same way as the failure.
pub(super) trait Runner {
    /// A run of the search.
    type Tried: Clone;
    /// A whole run.
    type Whole;

    /// The run of the search with this line, if it goes the same way.
    async fn search(&mut self, line: &Line) -> Result<Option<Self::Tried>>;

    /// The whole run with it, if that does.
    async fn whole(&mut self, line: &Line) -> Result<Option<Self::Whole>>;
}

/// What is kept of a failure.
#[derive(Debug)]
pub(super) struct Least<T, W> {
    /// Its line.
    pub(super) line: Line,
    /// The run of the search with it.
    pub(super) tried: T,
    /// The least line of the search: the same one, or one whose whole run goes another way.
    pub(super) in_search: Line,
    /// The whole run with the line; `None` if each that was made goes another way.
    pub(super) whole: Option<W>,
    /// How many whole runs were made.
    pub(super) whole_runs: usize,
}

/// Finds the least line that fails both ways; if there is none among those that are tried, the least of the search.
///
/// # Errors
/// Those of a run.
pub(super) async fn least<R: Runner>(
    runner: &mut R,
    line: Line,
    tried: R::Tried,
) -> Result<Least<R::Tried, R::Whole>> {
    let chain = smaller(runner, line, tried).await?;
    let lines: Vec<Line> = chain.iter().map(|(line, _)| line.clone()).collect();
    let (line, tried) = chain.last().cloned().context("a failure without a line")?;
    let mut kept = Least { in_search: line.clone(), line, tried, whole: None, whole_runs: 0 };
    let candidates = larger(&lines);
    let (near, far) = candidates.split_at(candidates.len().min(NEAR));
    for line in near {
        if both(runner, &chain, line, &mut kept).await? {
            return Ok(kept);
        }
    }
    // If the largest one goes another way, so does the failure.
    if let Some((largest, between)) = far.split_last()
        && both(runner, &chain, largest, &mut kept).await?
    {
        for line in between {
            if both(runner, &chain, line, &mut kept).await? {
                break;
            }
        }
    }
    Ok(kept)
}

/// Tries a line both ways, and keeps it if it fails in both.
async fn both<R: Runner>(
    runner: &mut R,
    chain: &[(Line, R::Tried)],
    line: &Line,
    kept: &mut Least<R::Tried, R::Whole>,
) -> Result<bool> {
    let known = chain.iter().find(|(known, _)| known == line).map(|(_, tried)| tried.clone());
    let tried = match known {
        Some(tried) => Some(tried),
        None => runner.search(line).await?,
    };
    let Some(tried) = tried else { return Ok(false) };
    kept.whole_runs += 1;
    let Some(whole) = runner.whole(line).await? else { return Ok(false) };
    (kept.line, kept.tried, kept.whole) = (line.clone(), tried, Some(whole));
    Ok(true)
}

/// The lines that fail in the search, each with less in it than the one before: holds are left out, then lengths halved, one after
/// the other.
async fn smaller<R: Runner>(runner: &mut R, line: Line, tried: R::Tried) -> Result<Vec<(Line, R::Tried)>> {
    let mut candidates = strategy::smaller(&line);
    let mut chain = vec![(line, tried)];
    loop {
        let mut found = None;
        for candidate in candidates {
            if let Some(tried) = runner.search(&candidate).await? {
                found = Some((candidate, tried));
                break;
            }
        }
        let Some((line, tried)) = found else { return Ok(chain) };
        candidates = strategy::smaller(&line);
        chain.push((line, tried));
    }
}

/// The lines whose whole runs are tried for a chain of ever smaller ones: the least, it with a margin, and back up the chain. If there
/// are more of them than runs, the last is the one that has the least one's holds at their first lengths.
fn larger(chain: &[Line]) -> Vec<Line> {
    let Some((least, before)) = chain.split_last() else { return Vec::new() };
    let mut all = vec![least.clone()];
    let margins = MARGINS.map(|margin| longer(least, margin));
    for line in margins.iter().chain(before.iter().rev()) {
        if !all.contains(line) {
            all.push(line.clone());
        }
    }
    let first = chain.iter().find(|line| line.holds.len() == least.holds.len());
    if let Some(first) = first.filter(|_| all.len() > WHOLE_RUNS) {
        all.retain(|line| line != first);
        all.truncate(WHOLE_RUNS - 1);
        all.push(first.clone());
    }
    all
}

/// A line whose holds are longer; from 10 ms on by tenths, which are easy to read.
fn longer(line: &Line, (times, parts): (u64, u64)) -> Line {
    let length = |us: u64| match us.saturating_mul(times).div_ceil(parts) {
        us @ 0..10_000 => us,
        us => us.div_ceil(100) * 100,
    };
    let holds = line.holds.iter().map(|hold| Hold { point: hold.point.clone(), us: length(hold.us) });
    Line { client_us: line.client_us, holds: holds.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure that needs its first hold to be so long, in microseconds, in the search and in a whole run.
    struct Planted {
        search_us: u64,
        whole_us: u64,
        searched: usize,
        wholes: Vec<String>,
    }

    impl Planted {
        fn new(search_us: u64, whole_us: u64) -> Self {
            Self { search_us, whole_us, searched: 0, wholes: Vec::new() }
        }

        async fn least_of(&mut self, line: &str) -> Least<(), ()> {
            let line: Line = line.parse().expect("a line");
            least(self, line, ()).await.expect("runs")
        }
    }

    fn fails(line: &Line, from_us: u64) -> Option<()> {
        let is_it = |hold: &Hold| hold.point.task == "a" && hold.us >= from_us;
        line.holds.iter().any(is_it).then_some(())
    }

    impl Runner for Planted {
        type Tried = ();
        type Whole = ();

        async fn search(&mut self, line: &Line) -> Result<Option<()>> {
            self.searched += 1;
            Ok(fails(line, self.search_us))
        }

        async fn whole(&mut self, line: &Line) -> Result<Option<()>> {
            self.wholes.push(line.to_string());
            Ok(fails(line, self.whole_us))
        }
    }

    #[tokio::test]
    async fn a_line_is_kept_that_fails_in_the_search_and_as_a_whole_run() {
        for (search_us, whole_us, line, whole_runs) in [
            // The least of the search is half of 103 ms.
            (50_000, 50_000, "a:exit=51.5ms", 1),
            // It is at the very edge.
            (51_500, 51_501, "a:exit=64.4ms", 2),
            (51_500, 65_000, "a:exit=77.3ms", 4),
            (51_500, 80_000, "a:exit=103ms", 5),
            (20_000, 103_000, "a:exit=103ms", 5),
        ] {
            let mut planted = Planted::new(search_us, whole_us);
            let least = planted.least_of("a:exit=103ms b:exit=40ms").await;
            assert_eq!(least.line.to_string(), line, "{:?}", planted.wholes);
            assert_eq!((least.whole, least.whole_runs), (Some(()), whole_runs), "{:?}", planted.wholes);
            let in_search = if search_us == 20_000 { "a:exit=25.75ms" } else { "a:exit=51.5ms" };
            assert_eq!(least.in_search.to_string(), in_search);
        }
    }

    #[tokio::test]
    async fn what_fails_in_the_search_alone_is_its_least_line_after_few_runs() {
        let mut planted = Planted::new(300, u64::MAX);
        let least = planted.least_of("a:exit=400ms b:exit=40ms c:exit=40ms").await;
        assert_eq!((least.line.to_string(), least.whole), ("a:exit=0.39ms".to_owned(), None));
        assert_eq!(least.in_search, least.line);
        let tried = ["a:exit=0.39ms", "a:exit=0.488ms", "a:exit=400ms"];
        assert_eq!(planted.wholes, tried);
        assert_eq!((least.whole_runs, planted.searched), (3, 16));
        // There is no larger one of a second client that begins at another time.
        let mut planted = Planted::new(0, 0);
        let least = planted.least_of("client=5ms").await;
        assert_eq!((least.whole, planted.wholes), (None, vec!["client=5ms".to_owned()]));
    }
}
