//! What came of exploring: points, orders, outcomes. What `explore.json` has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use vm_perturb::{Hold, Line, Passed};

use super::ground::{Tried, Whole};
use super::least::Least;
use super::longer::Longer;
use super::strategy::Strategy;
use super::words::in_words;
use crate::image::Suite;
use crate::run::guest::Guest;
use crate::scenario::{Phase, Scenario};
use crate::workspace::Workspace;

/// What was explored, and what came.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Explored {
    /// The guest.
    pub guest: String,
    /// The scenario.
    pub scenario: String,
    /// The arguments of `explore` that name both.
    pub again: String,
    /// `start` or `reset`.
    pub phase: &'static str,
    /// How long the phase takes when nothing is held, in microseconds of guest time.
    pub phase_us: u64,
    /// Its points when nothing is held, in order.
    pub points: Vec<Passed>,
    /// How many lines were tried, by strategy.
    pub tried: BTreeMap<Strategy, usize>,
    /// How many points were held alone, by the length in microseconds.
    pub held: BTreeMap<u64, usize>,
    /// How many points were not held so long, as a longer hold has shown what would come; by the length in microseconds.
    pub left_out: BTreeMap<u64, usize>,
    /// What each of those that were held gave.
    pub alone: Vec<Alone>,
    /// What came of those that would have been left out, with [`Strategy::EachLength`].
    pub thought: Thought,
    /// What random draws came from; the same seed gives the same lines.
    pub seed: u64,
    /// In how many runs no task came to a point that was to be held; they are not among those tried.
    pub idle: usize,
    /// How many orders of points came, that of the run that nothing perturbs included.
    pub orders: usize,
    /// The outcomes, the expected one first.
    pub outcomes: Vec<Outcome>,
    /// By how many microseconds the second client began later, and which outcome that gave.
    pub offsets: BTreeMap<i64, usize>,
    /// All runs, those that nothing perturbs and those that made failures smaller included.
    pub runs_with_controls: usize,
    /// Wall time of all.
    pub took_secs: f64,
    /// Processor time of the host for all.
    pub processor_secs: f64,
    /// How many machines ran at once.
    pub jobs: usize,
    /// Whether it was ended before it was done.
    pub is_interrupted: bool,
    /// The error that has ended it before it was done.
    pub ended_by: Option<String>,
    #[serde(skip)]
    seen: BTreeSet<String>,
    #[serde(skip)]
    longer: Longer,
}

/// Holds of which a longer one had shown what would come, and which were made all the same.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Thought {
    /// How many had the same outcome.
    pub rightly: usize,
    /// How many of these had another order of points: of two tasks that come to one at nearly the same time, one is first by microseconds.
    pub other_orders: usize,
    /// The lines of those that had another outcome.
    pub wrongly: Vec<String>,
}

/// A hold alone.
#[derive(Debug, Clone, Serialize)]
pub struct Alone {
    /// The point.
    pub point: String,
    /// When it comes where nothing is held, in microseconds since the phase began.
    pub at_us: u64,
    /// How long it was held, in microseconds.
    pub us: u64,
    /// The number of the outcome.
    pub outcome: usize,
}

/// Runs that went the same way.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// What deviates, without numbers; empty if all is as expected.
    pub shape: Vec<String>,
    /// Why it is right all the same, if the manifest allows it.
    pub allowed: Option<String>,
    /// How the second client ended.
    pub client: Option<i32>,
    /// How many lines gave it.
    pub runs: usize,
    /// After how many runs it came first; 0 is the one that nothing perturbs.
    pub first_run: usize,
    /// The first line that gave it; empty for the one that nothing perturbs.
    pub first: String,
    /// The least line that gives it, for a failure: in the search, and as a whole run if one that was tried does.
    pub line: String,
    /// A smaller one, which gives it in the search alone; empty if there is none.
    pub in_search: String,
    /// The same in words.
    pub words: String,
    /// What deviates in that one.
    pub why: Vec<String>,
    /// What happened in it.
    pub story: Vec<String>,
    /// The hash of its recording.
    pub recording_sha256: String,
    /// Wall time in which a failure's line was made smaller, whole runs included.
    pub smaller_secs: f64,
    /// Whether it goes wrong in the same way in a whole run, which is what a scenario with the line is; `None` if that was not tried.
    pub is_whole: Option<bool>,
    /// How many whole runs were made to find that out.
    pub whole_runs: usize,
    /// Where to look first in the whole run.
    pub look: Option<String>,
    /// The bundle of the whole run.
    pub bundle: Option<PathBuf>,
}

/// The outcome of the run in which nothing is held: it is the first one.
const UNHELD: usize = 0;

/// The letter of an outcome, by its number: in the text, in the table and in marks.
pub(super) fn letter(class: usize) -> char {
    char::from(b'A' + u8::try_from(class % 26).unwrap_or(0))
}

/// How a person names them.
fn arguments(workspace: &Workspace, guest: &Guest, scenario: &Scenario) -> String {
    let directory = &scenario.directory;
    let by_name = workspace.scenarios(std::slice::from_ref(&scenario.name));
    let has_name = by_name.is_ok_and(|found| found.iter().any(|one| one.directory == *directory));
    let path = directory.strip_prefix(&workspace.root).unwrap_or(directory).display();
    let named = if has_name { scenario.name.clone() } else { path.to_string() };
    match guest.name.parse::<Suite>() {
        Ok(suite) if suite != Suite::default() => format!("{named} --image {suite}"),
        _ => named,
    }
}

/// What a run was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// As one before.
    Known,
    /// An outcome that is as expected, and had not come before.
    Other,
    /// The first of a failure; its number among the outcomes.
    Failure(usize),
}

impl Outcome {
    /// Whether it is neither as expected nor allowed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.shape.is_empty() && self.allowed.is_none()
    }
}

impl Explored {
    pub(super) fn new(
        workspace: &Workspace,
        guest: &Guest,
        scenario: &Scenario,
        phase_us: u64,
        seed: u64,
        null: &Tried,
    ) -> Self {
        let mut explored = Self {
            guest: guest.name.clone(),
            scenario: scenario.name.clone(),
            again: arguments(workspace, guest, scenario),
            phase: match scenario.manifest.explore.phase {
                Phase::Start => "start",
                Phase::Reset => "reset",
            },
            phase_us,
            points: null.report.passed.clone(),
            tried: BTreeMap::new(),
            held: BTreeMap::new(),
            left_out: BTreeMap::new(),
            alone: Vec::new(),
            thought: Thought::default(),
            seed,
            idle: 0,
            orders: 0,
            outcomes: Vec::new(),
            offsets: BTreeMap::new(),
            runs_with_controls: 0,
            took_secs: 0.0,
            processor_secs: 0.0,
            jobs: 1,
            is_interrupted: false,
            ended_by: None,
            seen: BTreeSet::new(),
            longer: Longer::default(),
        };
        explored.count(&Line::default(), null);
        explored
    }

    /// Adds the run of a line.
    pub(super) fn add(&mut self, strategy: Strategy, line: &Line, tried: &Tried) -> Found {
        *self.tried.entry(strategy).or_default() += 1;
        let (class, is_new) = self.count(line, tried);
        if let (true, [hold]) = (strategy.holds_one(), line.holds.as_slice()) {
            *self.held.entry(hold.us).or_default() += 1;
            self.compare(line, hold, class, tried);
            let point = hold.point.to_string();
            let at_us =
                self.points.iter().find(|passed| passed.point == point).map_or(0, |passed| passed.at_us);
            self.alone.push(Alone { point, at_us, us: hold.us, outcome: class });
        }
        if strategy == Strategy::Offsets {
            self.offsets.insert(line.client_us, class);
        }
        match (is_new, !tried.has_failed()) {
            (false, _) => Found::Known,
            (true, true) => Found::Other,
            (true, false) => Found::Failure(class),
        }
    }

    /// Compares a hold alone with what a longer one has shown, and notes what it shows of shorter ones itself.
    fn compare(&mut self, line: &Line, hold: &Hold, class: usize, tried: &Tried) {
        let order = tried.order();
        match self.longer.shows(hold) {
            None => {}
            Some(_) if class != UNHELD => self.thought.wrongly.push(line.to_string()),
            Some(longer) => {
                self.thought.rightly += 1;
                self.thought.other_orders += usize::from(longer != order);
            }
        }
        if class == UNHELD {
            self.longer.add(hold, &tried.report, order);
        }
    }

    /// Whether a longer hold has shown what would come of a line; notes it if so.
    pub(super) fn leaves_out(&mut self, line: &Line) -> bool {
        let [hold] = line.holds.as_slice() else { return false };
        let is_known = self.longer.shows(hold).is_some();
        if is_known {
            *self.left_out.entry(hold.us).or_default() += 1;
        }
        is_known
    }

    /// The outcome's number, and whether it is the first.
    fn count(&mut self, line: &Line, tried: &Tried) -> (usize, bool) {
        self.seen.insert(tried.order());
        self.orders = self.seen.len();
        let same = |outcome: &Outcome| (outcome.shape.as_slice(), outcome.client) == tried.outcome();
        if let Some(class) = self.outcomes.iter().position(same) {
            self.outcomes.iter_mut().skip(class).take(1).for_each(|outcome| outcome.runs += 1);
            return (class, false);
        }
        let first_run = self.lines_tried();
        self.outcomes.push(Outcome {
            shape: tried.shape.clone(),
            allowed: tried.allowed.clone(),
            client: tried.report.client,
            runs: 1,
            first_run,
            first: line.to_string(),
            line: String::new(),
            in_search: String::new(),
            words: String::new(),
            why: Vec::new(),
            story: Vec::new(),
            recording_sha256: String::new(),
            smaller_secs: 0.0,
            is_whole: None,
            whole_runs: 0,
            look: None,
            bundle: None,
        });
        let class = self.outcomes.len() - 1;
        self.minimised(class, line, tried);
        (class, true)
    }

    /// Notes the least line of an outcome, and its run.
    pub(super) fn minimised(&mut self, class: usize, line: &Line, tried: &Tried) {
        for outcome in self.outcomes.iter_mut().skip(class).take(1) {
            outcome.line = line.to_string();
            outcome.words = in_words(line, &tried.report.passed);
            outcome.why.clone_from(&tried.why);
            outcome.story.clone_from(&tried.story);
            outcome.recording_sha256.clone_from(&tried.recording_sha256);
        }
    }

    /// Notes how long it took to make a failure's line smaller.
    pub(super) fn took_to_minimise(&mut self, class: usize, time: Duration) {
        for outcome in self.outcomes.iter_mut().skip(class).take(1) {
            outcome.smaller_secs = time.as_secs_f64();
        }
    }

    /// Notes whether a whole run of an outcome's line goes wrong in the same way, where to look in it, and its bundle.
    pub(super) fn handed_over(
        &mut self,
        class: usize,
        least: &Least<Tried, Whole>,
        look: Option<String>,
        bundle: Option<PathBuf>,
    ) {
        if let Some(outcome) = self.outcomes.get_mut(class) {
            if least.in_search != least.line {
                outcome.in_search = least.in_search.to_string();
            }
            outcome.is_whole = Some(least.whole.is_some());
            outcome.whole_runs = least.whole_runs;
            outcome.look = look;
            outcome.bundle = bundle;
        }
    }

    /// How many lines were tried.
    pub(super) fn lines_tried(&self) -> usize {
        self.tried.values().sum()
    }

    /// Whether a run was not as the manifest expects.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.outcomes.iter().any(Outcome::has_failed)
    }

    pub(super) fn so_far(&self, runs: usize, of: usize) -> String {
        let failures = self.outcomes.iter().filter(|outcome| outcome.has_failed()).count();
        format!("{runs} of {of} runs, {} orders, {failures} ways to fail", self.orders)
    }
}
