//! What was explored and found, in words. Pure.

use super::found::{Explored, Outcome};
use super::strategy::Strategy;

impl Explored {
    /// All of it, for a person.
    #[must_use]
    pub fn told(&self) -> String {
        all(self)
    }

    /// A failure, for a person.
    pub(super) fn told_of(&self, class: usize) -> String {
        self.outcomes.get(class).map(|outcome| failure(self, outcome)).unwrap_or_default()
    }
}

fn failure(explored: &Explored, outcome: &Outcome) -> String {
    let mut text = format!("FAILED: {}\n", outcome.words);
    let lines = if outcome.story.is_empty() { &outcome.why } else { &outcome.story };
    // Where all of it is.
    let lines = lines.iter().map(|line| line.replace("report.json", "explore.json"));
    lines.for_each(|line| text.push_str(&format!("  {line}\n")));
    if let Some(status) = outcome.client {
        text.push_str(&format!("  the second client ended with status {status}\n"));
    }
    let hash = outcome.recording_sha256.get(..12).unwrap_or_default();
    let (again, line) = (&explored.again, &outcome.line);
    text.push_str(&format!("  again: cargo xtask explore {again} --holds '{line}' (recording {hash})"));
    match outcome.is_whole {
        None => {}
        Some(false) => text.push_str(match outcome.whole_runs {
            0 | 1 => "\n  only from the moment: a whole run with this line goes another way",
            _ => "\n  only from the moment: whole runs with this line and with larger ones go another way",
        }),
        Some(true) => {
            if !outcome.in_search.is_empty() {
                let least = &outcome.in_search;
                text.push_str(&format!("\n  least in the search: '{least}'; as a whole run, too: '{line}'"));
            }
            for look in outcome.look.iter() {
                text.push_str(&format!(
                    "\n  to look into it: cargo xtask shell {again} --holds '{line}' --at '{look}'"
                ));
            }
            text.push_str(&format!(
                "\n  as a scenario of its own: cargo xtask explore {again} --holds '{line}' --keep ./NAME"
            ));
        }
    }
    if let Some(bundle) = &outcome.bundle {
        text.push_str(&format!("\n  to hand it over: {}", bundle.display()));
    }
    text
}

fn all(explored: &Explored) -> String {
    let mut text = String::new();
    let Explored { guest, scenario, phase, points, orders, .. } = explored;
    text.push_str(&format!(
        "{scenario} on {guest}: the {phase} takes {} when nothing is held, and comes to {} points\n",
        ms(explored.phase_us),
        points.len()
    ));
    for (us, count) in &explored.held {
        text.push_str(&format!("  one hold of {}: {count} of {} points\n", ms(*us), points.len()));
    }
    if let Some(pairs) = explored.tried.get(&Strategy::Pairs) {
        text.push_str(&format!("  two holds: {pairs} pairs\n"));
    }
    if let Some(draws) = explored.tried.get(&Strategy::Random) {
        text.push_str(&format!("  one to three holds: {draws} draws of --seed {}\n", explored.seed));
    }
    if explored.idle > 0 {
        let idle = explored.idle;
        text.push_str(&format!(
            "  and {idle} runs beside these in which no task came to what was to be held\n"
        ));
    }
    if !explored.offsets.is_empty() {
        text.push_str(&format!("  second client: {}\n", axis(explored)));
    }
    let tried = explored.lines_tried();
    let (all, secs) = (explored.runs_with_controls, explored.took_secs);
    text.push_str(&format!(
        "{tried} schedules and {} runs beside them in {secs:.0} s, {} at once: {orders} orders of points, {} outcomes\n",
        all.saturating_sub(tried),
        explored.jobs,
        explored.outcomes.len()
    ));
    #[expect(clippy::cast_precision_loss, reason = "a search has far fewer runs than 2^52")]
    let each = explored.processor_secs / all.max(1) as f64;
    text.push_str(&format!("  a run took {each:.1} s of a processor\n"));
    for outcome in &explored.outcomes {
        let client = outcome.client.map(|status| format!(", second client: status {status}"));
        let client = client.unwrap_or_default();
        let first = format!("in {} runs, first in number {}", outcome.runs, outcome.first_run);
        text.push_str(&match &outcome.allowed {
            None if outcome.shape.is_empty() => format!("as expected in {} runs{client}\n", outcome.runs),
            None => format!("{first}: {}\n", failure(explored, outcome)),
            Some(reason) => format!("{first}: allowed, as {reason}{client} ('{}')\n", outcome.line),
        });
    }
    if let Some(error) = &explored.ended_by {
        text.push_str(&format!("what is above is what was found until an error: {error}\n"));
    }
    if explored.is_interrupted {
        text.push_str("interrupted: what is above is what was found until then\n");
    }
    text
}

/// The outcomes along the offsets: a letter each, and from where to where it came.
fn axis(explored: &Explored) -> String {
    let letter = |class: usize| {
        let failed = explored.outcomes.get(class).is_some_and(Outcome::has_failed);
        let first = if failed { b'A' } else { b'a' };
        char::from(first + u8::try_from(class % 26).unwrap_or(0))
    };
    let mut stretches: Vec<(usize, i64, i64)> = Vec::new();
    for (us, class) in &explored.offsets {
        match stretches.last_mut() {
            Some((last, _, to)) if last == class => *to = *us,
            _ => stretches.push((*class, *us, *us)),
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds are far below 2^52")]
    let ms = |us: i64| us as f64 / 1000.0;
    let shown = stretches
        .iter()
        .map(|(class, from, to)| format!("{} {:.1} to {:.1} ms", letter(*class), ms(*from), ms(*to)));
    format!("{} (a letter is an outcome, a capital a failure)", shown.collect::<Vec<_>>().join(", "))
}

/// Microseconds as a person reads them.
pub(super) fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}
