//! What was explored and found, in words. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::found::{Explored, Outcome, Thought, letter};
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
    let lengths: BTreeSet<u64> = explored.held.keys().chain(explored.left_out.keys()).copied().collect();
    for us in lengths {
        let of = |counts: &BTreeMap<u64, usize>| counts.get(&us).copied().unwrap_or(0);
        let (held, left_out) = (of(&explored.held), of(&explored.left_out));
        text.push_str(&format!("  one hold of {}: {held} of {} points", ms(us), points.len()));
        text.push_str(&match left_out {
            0 => "\n".to_owned(),
            _ => format!("; at {left_out} more a longer one has shown what comes\n"),
        });
    }
    let Thought { rightly, other_orders, wrongly } = &explored.thought;
    let thought = rightly + wrongly.len();
    if thought > 0 {
        text.push_str(&format!(
            "  of {thought} of these a longer one had shown what comes: {other_orders} had another order of points, {} another outcome",
            wrongly.len()
        ));
        let lines = wrongly.iter().map(|line| format!(" '{line}'"));
        text.push_str(&format!("{}\n", lines.collect::<String>()));
    }
    if let Some(pairs) = explored.tried.get(&Strategy::Pairs) {
        text.push_str(&format!("  two holds: {pairs} pairs\n"));
    }
    if let Some(draws) = explored.tried.get(&Strategy::Random) {
        text.push_str(&format!("  one to three holds: {draws} draws of --seed {}\n", explored.seed));
    }
    if let Some(draws) = explored.tried.get(&Strategy::Pct) {
        text.push_str(&format!("  an order of priority: {draws} draws of --seed {}\n", explored.seed));
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
    for (class, outcome) in explored.outcomes.iter().enumerate() {
        let letter = letter(class);
        let client = outcome.client.map(|status| format!(", second client: status {status}"));
        let client = client.unwrap_or_default();
        let first = format!("in {} runs, first in number {}", outcome.runs, outcome.first_run);
        text.push_str(&match &outcome.allowed {
            None if outcome.shape.is_empty() => {
                format!("{letter}: as expected in {} runs{client}\n", outcome.runs)
            }
            None => format!("{letter}: {first}: {}\n", failure(explored, outcome)),
            Some(reason) => format!("{letter}: {first}: allowed, as {reason}{client} ('{}')\n", outcome.line),
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

/// The outcomes along the offsets: the letter of each, and from where to where it came.
fn axis(explored: &Explored) -> String {
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
    shown.collect::<Vec<_>>().join(", ")
}

/// Microseconds as a person reads them.
pub(super) fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::super::page::page;
    use super::*;

    #[test]
    fn an_outcome_has_one_letter_in_the_text_and_on_the_page() {
        let mut explored = Explored::default();
        let wrong = Outcome { shape: vec!["umount#: EBUSY".to_owned()], ..Outcome::default() };
        let allowed = Outcome { allowed: Some("late".to_owned()), ..wrong.clone() };
        explored.outcomes = vec![Outcome::default(), wrong, allowed];
        explored.offsets = BTreeMap::from([(-20_000, 0), (-10_000, 1), (10_000, 1), (30_000, 2)]);
        let text = explored.told();
        assert!(
            text.contains("second client: A -20.0 to -20.0 ms, B -10.0 to 10.0 ms, C 30.0 to 30.0 ms\n"),
            "{text}"
        );
        let page = page(&explored);
        for (letter, told) in [
            ('A', "as expected in"),
            ('B', "in 0 runs, first in number 0: FAILED"),
            ('C', "in 0 runs, first in number 0: allowed"),
        ] {
            assert!(text.contains(&format!("\n{letter}: {told}")), "{text}");
            assert!(page.contains(&format!("data-outcome=\"{letter}\"")), "{letter}");
        }
    }

    #[test]
    fn a_hold_that_was_left_out_is_not_said_to_be_tried() {
        let mut explored = Explored::default();
        explored.held = BTreeMap::from([(400_000, 17), (100_000, 4)]);
        explored.left_out = BTreeMap::from([(100_000, 13), (25_000, 17)]);
        let text = explored.told();
        let of = |ms: &str| text.lines().find(|line| line.contains(ms)).unwrap_or_default().to_owned();
        assert_eq!(of("400.0 ms"), "  one hold of 400.0 ms: 17 of 0 points");
        let more = "more a longer one has shown what comes";
        assert_eq!(of("100.0 ms"), format!("  one hold of 100.0 ms: 4 of 0 points; at 13 {more}"));
        assert_eq!(of(" 25.0 ms"), format!("  one hold of 25.0 ms: 0 of 0 points; at 17 {more}"));
        explored.thought = Thought { rightly: 5, other_orders: 2, wrongly: vec!["a:exit=25ms".to_owned()] };
        let text = explored.told();
        assert!(text.contains("2 had another order of points, 1 another outcome 'a:exit=25ms'\n"), "{text}");
    }

    #[test]
    fn a_line_that_is_larger_than_the_search_needs_is_told_with_the_least() {
        let mut outcome =
            Outcome { line: "a:exit=64.4ms".to_owned(), is_whole: Some(true), ..Outcome::default() };
        let told = |outcome: &Outcome| failure(&Explored::default(), outcome);
        assert!(!told(&outcome).contains("least"));
        outcome.in_search = "a:exit=51.5ms".to_owned();
        let expected = "least in the search: 'a:exit=51.5ms'; as a whole run, too: 'a:exit=64.4ms'";
        assert!(told(&outcome).contains(expected), "{}", told(&outcome));
        outcome = Outcome { is_whole: Some(false), whole_runs: 1, ..outcome };
        assert!(told(&outcome).contains("a whole run with this line goes another way"));
        outcome.whole_runs = 5;
        assert!(told(&outcome).contains("whole runs with this line and with larger ones go another way"));
    }
}
