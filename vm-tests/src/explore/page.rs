//! `report.html` of a search: what came along the two axes that it has, without a script.
//!
//! By the second client's offset: a mark for each run, coloured by its outcome. By guest time of the phase: a mark for each hold
//! alone, at the instant at which its point comes, a row for each length; above them how many of the holds of that time fail.

use std::collections::BTreeMap;

use super::found::{Alone, Explored, Outcome, letter};
use super::told;
use crate::report::page::{drawn, escaped};

/// The picture's width, where its axis begins and ends, and the height of a row, in pixels of its own.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 950.0;
const ROW: f64 = 22.0;
/// The height of the bar that stands for a failure in each run.
const BAR: f64 = 60.0;
/// Into how many parts the phase is divided for those bars.
const PARTS: u32 = 40;
/// How many lines an axis has.
const TICKS: u32 = 5;

/// The page of a search.
#[must_use]
pub fn page(explored: &Explored) -> String {
    let title = format!("{}/{}", explored.guest, explored.scenario);
    let class = if explored.has_failed() { "failed" } else { "passed" };
    let failures = explored.outcomes.iter().filter(|outcome| outcome.has_failed()).count();
    let verdict = match failures {
        0 => "nothing that is not allowed".to_owned(),
        1 => "one way to fail".to_owned(),
        many => format!("{many} ways to fail"),
    };
    let tried = explored.lines_tried();
    let mut body = format!(
        "<section class=\"head {class}\"><h1>{} <span class=\"verdict\">{verdict}</span></h1>\
         <p class=\"what\">{tried} schedules of the {}, which takes {} when nothing is held and comes to {} points; \
         {} orders of points</p></section>\n",
        escaped(&title),
        explored.phase,
        ms(micros(explored.phase_us)),
        explored.points.len(),
        explored.orders,
    );
    body.push_str(&outcomes(explored));
    if !explored.offsets.is_empty() {
        body.push_str("<h2>By when the second client begins, after the first</h2>\n");
        body.push_str(&offsets(explored));
    }
    if !explored.alone.is_empty() {
        body.push_str("<h2>By when in the phase a task is held, alone</h2>\n");
        let left_out: usize = explored.left_out.values().sum();
        if left_out > 0 {
            body.push_str(&format!(
                "<p>{left_out} shorter holds are not here: a longer one at the same point has shown what comes.</p>\n"
            ));
        }
        body.push_str(&alone(explored));
    }
    drawn(&title, &body)
}

/// The class of an outcome, for its colour: as expected, allowed, wrong.
fn class(outcome: &Outcome) -> &'static str {
    match (outcome.shape.is_empty(), &outcome.allowed) {
        (true, _) => "good",
        (false, Some(_)) => "busy",
        (false, None) => "bad",
    }
}

fn outcomes(explored: &Explored) -> String {
    let mut text =
        "<table><tr><th></th><th>Outcome</th><th>Runs</th><th>First in run</th><th>Least line</th></tr>\n"
            .to_owned();
    for (number, outcome) in explored.outcomes.iter().enumerate() {
        let what = match &outcome.allowed {
            None if outcome.shape.is_empty() => "as expected".to_owned(),
            None => format!("failed: {}", outcome.words),
            Some(reason) => format!("allowed, as {reason}"),
        };
        let client = outcome.client.map(|status| format!("; the second client ended with status {status}"));
        text.push_str(&format!(
            "<tr><td><svg viewBox=\"0 0 26 18\" style=\"width:26px\">{}</svg></td><td>{}{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            mark(explored, number, 13.0, 9.0, ""),
            escaped(&what),
            escaped(&client.unwrap_or_default()),
            outcome.runs,
            outcome.first_run,
            escaped(&outcome.line),
        ));
    }
    text.push_str("</table>\n");
    text
}

/// A mark of an outcome, with what a pointer is told.
fn mark(explored: &Explored, number: usize, x: f64, y: f64, told: &str) -> String {
    let class = explored.outcomes.get(number).map_or("idle", class);
    let letter = letter(number);
    format!(
        "<g class=\"mark\" data-outcome=\"{letter}\"><title>{}</title><rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"11\" height=\"16\" rx=\"2\"/>\
         <text class=\"on\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{letter}</text></g>",
        escaped(told),
        x - 5.5,
        y - 8.0,
        y + 4.0
    )
}

/// A row for each outcome, so that marks near each other are apart.
fn offsets(explored: &Explored) -> String {
    let (first, last) = (explored.offsets.keys().next(), explored.offsets.keys().next_back());
    let axis = Axis::new(first.copied().unwrap_or(0).min(0), last.copied().unwrap_or(0).max(0));
    let mut classes: Vec<usize> = explored.offsets.values().copied().collect();
    classes.sort_unstable();
    classes.dedup();
    let mut inside = String::new();
    for (row, class) in classes.iter().enumerate() {
        let y = (number(row) + 0.5) * ROW;
        inside.push_str(&format!(
            "<text class=\"lane\" x=\"0\" y=\"{:.1}\">outcome {}</text>",
            y + 4.0,
            letter(*class)
        ));
        for (us, _) in explored.offsets.iter().filter(|(_, of)| *of == class) {
            inside.push_str(&mark(explored, *class, axis.x(*us), y, &format!("client={}", ms(*us))));
        }
    }
    axis.picture("offsets", "Outcomes by the second client's offset", number(classes.len()) * ROW, &inside)
}

/// How many of the holds of each part of the phase fail; and below, a row for each length.
fn alone(explored: &Explored) -> String {
    let axis = Axis::new(0, micros(explored.phase_us));
    let mut rows: BTreeMap<u64, Vec<&Alone>> = BTreeMap::new();
    explored.alone.iter().for_each(|one| rows.entry(one.us).or_default().push(one));
    let mut inside = String::new();
    let has_failed = |one: &Alone| explored.outcomes.get(one.outcome).is_some_and(Outcome::has_failed);
    let mut parts: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for one in &explored.alone {
        let part = one.at_us * u64::from(PARTS) / explored.phase_us.max(1);
        let (failed, all) = parts.entry(part.min(u64::from(PARTS) - 1)).or_default();
        *failed += usize::from(has_failed(one));
        *all += 1;
    }
    inside
        .push_str(&format!("<text class=\"lane\" x=\"0\" y=\"{:.1}\">fails, of all held</text>", BAR / 2.0));
    for (part, (failed, all)) in parts {
        let width = (RIGHT - LEFT) / f64::from(PARTS);
        let x = LEFT + width * f64::from(u32::try_from(part).unwrap_or(0));
        let height = (BAR * number(failed) / number(all)).max(1.0);
        let class = if failed > 0 { "bad" } else { "idle" };
        inside.push_str(&format!(
            "<g data-failed=\"{failed}\"><title>{failed} of {all} holds fail</title><rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/></g>",
            BAR - height,
            width - 2.0
        ));
    }
    for (row, (us, of_length)) in rows.iter().enumerate() {
        let y = BAR + (number(row) + 0.8) * ROW;
        inside.push_str(&format!(
            "<text class=\"lane\" x=\"0\" y=\"{:.1}\">held {}</text>",
            y + 4.0,
            ms(micros(*us))
        ));
        // What fails is drawn last, above what does not.
        let (wrong, right): (Vec<&Alone>, Vec<&Alone>) =
            of_length.iter().copied().partition(|one| has_failed(one));
        for one in right.into_iter().chain(wrong) {
            let told = format!("{} at {}", one.point, ms(micros(one.at_us)));
            inside.push_str(&mark(explored, one.outcome, axis.x(micros(one.at_us)), y, &told));
        }
    }
    let height = BAR + (number(rows.len()) + 0.3) * ROW;
    axis.picture("alone", "Outcomes by the time at which a task is held", height, &inside)
}

/// An axis of microseconds.
struct Axis {
    from: i64,
    to: i64,
}

impl Axis {
    fn new(from: i64, to: i64) -> Self {
        Self { from, to: to.max(from + 1) }
    }

    fn x(&self, us: i64) -> f64 {
        let part = |us: i64| f64::from(i32::try_from(us).unwrap_or(i32::MAX));
        LEFT + (RIGHT - LEFT) * part(us - self.from) / part(self.to - self.from)
    }

    /// The axis with what is drawn above it.
    fn picture(&self, id: &str, what: &str, height: f64, inside: &str) -> String {
        let mut text = format!(
            "<svg id=\"{id}\" viewBox=\"0 0 {WIDTH} {:.1}\" role=\"img\" aria-label=\"{}\">",
            height + 24.0,
            escaped(what)
        );
        for tick in 0..=TICKS {
            let us = self.from + (self.to - self.from) * i64::from(tick) / i64::from(TICKS);
            let x = self.x(us);
            text.push_str(&format!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{height:.1}\"/>\
                 <text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                height + 16.0,
                ms(us)
            ));
        }
        text.push_str(inside);
        text.push_str("</svg>\n");
        text
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn micros(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

fn ms(us: i64) -> String {
    let sign = if us < 0 { "-" } else { "" };
    format!("{sign}{}", told::ms(us.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explored() -> Explored {
        let wrong = |words: &str| Outcome {
            shape: vec!["umount#: EBUSY".to_owned()],
            words: words.to_owned(),
            line: "sleep:SIGTERM=50ms".to_owned(),
            ..Outcome::default()
        };
        let allowed = Outcome { allowed: Some("late is <late>".to_owned()), ..wrong("") };
        let alone = |at_us, us, outcome| Alone { point: "sleep:SIGTERM".to_owned(), at_us, us, outcome };
        let mut explored = Explored::default();
        explored.guest = "trixie".to_owned();
        explored.scenario = "demo".to_owned();
        explored.phase = "reset";
        explored.phase_us = 100_000;
        explored.outcomes = vec![Outcome::default(), wrong("hold sleep for 50.0 ms"), allowed];
        explored.offsets = BTreeMap::from([(-20_000, 0), (-10_000, 2), (10_000, 1), (30_000, 0)]);
        explored.alone = vec![alone(10_000, 100_000, 0), alone(10_500, 25_000, 1), alone(90_000, 25_000, 0)];
        explored
    }

    /// How often a text has this in it.
    fn count(text: &str, what: &str) -> usize {
        text.matches(what).count()
    }

    #[test]
    fn each_run_has_a_mark_in_the_colour_of_its_outcome() {
        let page = page(&explored());
        for (outcome, marks) in [('A', 1 + 2 + 2), ('B', 1 + 1 + 1), ('C', 1 + 1)] {
            assert_eq!(count(&page, &format!("data-outcome=\"{outcome}\"")), marks, "{outcome}");
        }
        assert!(page.contains("one way to fail") && page.contains("late is &lt;late&gt;"));
        // One of the two holds at a tenth of the phase fails.
        assert!(page.contains("1 of 2 holds fail"), "{page}");
        assert!(page.contains("0 of 1 holds fail"));
        let svgs = page
            .split("<svg")
            .filter(|svg| svg.starts_with(" id=\"alone\"") || svg.starts_with(" id=\"offsets\""));
        assert_eq!(svgs.count(), 2);
    }

    #[test]
    fn holds_that_were_left_out_are_named() {
        let mut explored = explored();
        assert!(!page(&explored).contains("are not here"));
        explored.left_out = BTreeMap::from([(25_000, 13), (100_000, 4)]);
        assert!(page(&explored).contains("17 shorter holds are not here"));
    }

    #[test]
    fn an_axis_goes_from_the_first_to_the_last_offset() {
        let axis = Axis::new(-20_000, 30_000);
        assert!((axis.x(-20_000) - LEFT).abs() < 1e-6 && (axis.x(30_000) - RIGHT).abs() < 1e-6);
        assert!((axis.x(5_000) - f64::midpoint(LEFT, RIGHT)).abs() < 1e-6);
        assert!((Axis::new(0, 0).x(0) - LEFT).abs() < 1e-6, "of one instant");
    }

    #[test]
    fn what_was_not_tried_is_not_drawn() {
        let mut explored = explored();
        explored.offsets.clear();
        explored.alone.clear();
        let page = page(&explored);
        assert!(!page.contains("id=\"offsets\"") && !page.contains("id=\"alone\""));
    }
}
