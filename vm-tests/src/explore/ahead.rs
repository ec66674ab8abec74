//! Runs of lines side by side, whose results come in the order of the lines: what a search finds does not depend on how many run at
//! once.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use vm_perturb::Line;

use super::ground::{Ground, Tried, Whole};
use crate::machine::Cancel;

/// Who makes runs, and how many at once.
#[derive(Debug)]
pub(super) struct Runs {
    ground: Arc<Ground>,
    jobs: usize,
    places: Arc<Semaphore>,
    /// How many runs' results were taken.
    taken: usize,
}

impl Runs {
    pub(super) fn new(ground: Ground, jobs: usize) -> Self {
        let jobs = jobs.max(1);
        Self { ground: Arc::new(ground), jobs, places: Arc::new(Semaphore::new(jobs)), taken: 0 }
    }

    /// How many runs there were whose results were taken.
    pub(super) const fn taken(&self) -> usize {
        self.taken
    }

    /// Removes what is left of runs that were ended.
    pub(super) fn clear(&self) -> Result<()> {
        self.ground.clear()
    }

    /// As [`Ground::plain`].
    pub(super) async fn plain(&mut self) -> Result<Tried> {
        self.taken += 1;
        self.ground.plain().await
    }

    /// As [`Ground::run`].
    pub(super) async fn run(&mut self, line: &Line) -> Result<Tried> {
        self.taken += 1;
        self.ground.run(line).await
    }

    /// As [`Ground::try_to_run`], when there is a place for it.
    pub(super) async fn try_to_run(&mut self, line: &Line) -> Result<Option<Tried>> {
        self.taken += 1;
        let _place = self.places.acquire().await.context("a place for a run")?;
        self.ground.try_to_run(line, self.ground.cancel()).await
    }

    /// As [`Ground::whole`], when there is a place for it.
    pub(super) async fn whole(&mut self, line: &Line, directory: &Path) -> Result<Whole> {
        self.taken += 1;
        let _place = self.places.acquire().await.context("a place for a run")?;
        self.ground.whole(line, directory).await
    }

    /// Begins lines, as many at once as there may be.
    pub(super) fn ahead(&self, lines: Vec<Line>) -> Ahead {
        Ahead {
            ground: Arc::clone(&self.ground),
            jobs: self.jobs,
            places: Arc::clone(&self.places),
            cancel: self.ground.cancel().child_token(),
            waiting: lines.into(),
            running: VecDeque::new(),
        }
    }

    /// The next result of these, in the order of the lines; none is begun if `goes_on` says no. `None` when there is none left. Of a
    /// line by which nothing was held there is no result.
    pub(super) async fn next(
        &mut self,
        ahead: &mut Ahead,
        goes_on: impl Fn() -> bool,
    ) -> Result<Option<(Line, Option<Tried>)>> {
        while ahead.running.len() < ahead.jobs
            && goes_on()
            && let Some(line) = ahead.waiting.pop_front()
        {
            ahead.begin(line);
        }
        let Some((line, run)) = ahead.running.pop_front() else { return Ok(None) };
        self.taken += 1;
        let what = || format!("the run with --holds '{line}'");
        let tried = run.await.context("a run's task").and_then(|ran| ran).with_context(what)?;
        Ok(Some((line, tried)))
    }
}

/// Lines that are tried, some of them at once.
pub(super) struct Ahead {
    ground: Arc<Ground>,
    jobs: usize,
    places: Arc<Semaphore>,
    cancel: Cancel,
    waiting: VecDeque<Line>,
    running: VecDeque<(Line, JoinHandle<Result<Option<Tried>>>)>,
}

impl Ahead {
    fn begin(&mut self, line: Line) {
        let (ground, places) = (Arc::clone(&self.ground), Arc::clone(&self.places));
        let (cancel, its) = (self.cancel.clone(), line.clone());
        let run = tokio::spawn(async move {
            let _place = places.acquire_owned().await.context("a place for a run")?;
            ground.try_to_run(&its, &cancel).await
        });
        self.running.push_back((line, run));
    }

    /// Ends what runs, and returns when its machines are gone.
    pub(super) async fn end(self) {
        self.cancel.cancel();
        for (_, run) in self.running {
            // Nobody has asked for its result.
            let _nobodys = run.await;
        }
    }
}
