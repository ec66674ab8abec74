//! What a moment of a run takes: to be made, and to be opened.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use vm_agent::wire::Until;

use super::samples::Samples;
use crate::cache;
use crate::machine::Cancel;
use crate::run::at::At;
use crate::run::given::Given;
use crate::run::guest::Guest;
use crate::run::moment::{self, Standing};
use crate::run::one::{self, Bounds};
use crate::scenario::Scenario;

/// Times of the host, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// The run up to it.
    pub run: Samples,
    /// To make one, beyond that run.
    pub made: Samples,
    /// From its files to the first answer of a guest that stands still.
    pub opened: Samples,
}

/// Makes the moment of a scenario's run so many times, each time in an empty cache, and opens each.
///
/// # Errors
/// As [`moment::ensure`]; an instant that the run does not have.
pub async fn moments(
    guest: &Guest,
    scenario: &Scenario,
    at: &At,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Moments> {
    let bounds = Bounds { cycles: Some(1), ..Bounds::default() };
    let run = one::run(guest, scenario, bounds, &directory.join("run"), cancel.clone()).await?;
    let at_ns = at.find(&run.recording)?.at_ns;
    let given = Given::of(guest, scenario, bounds)?;
    let sized = guest.of_size(scenario.manifest.memory_mib);
    let mut moments = Moments::default();
    for _ in 0..rounds {
        let own = directory.join("cache");
        let moment = moment::ensure(guest, &given, at_ns, &own, cancel.clone()).await?;
        let made = moment.made.with_context(|| format!("a moment was there already in {}", own.display()))?;
        moments.run.0.push(made.run.as_secs_f64());
        moments.made.0.push((made.whole - made.run).as_secs_f64());
        let begun = Instant::now();
        let mut standing =
            Standing::restore(&sized, &moment, &directory.join("look"), cancel.clone()).await?;
        let stands = standing.go(Until::Now).await.map(|_since| begun.elapsed());
        moments.opened.0.push(standing.finish(stands).await?.as_secs_f64());
        cache::remove_tree(&own)?;
    }
    Ok(moments)
}
