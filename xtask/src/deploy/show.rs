//! What a person sees of a deploy.

use std::fmt::Write as _;

use left4me_deployer::client::Outcome;
use left4me_deployer::wire::{Item, Line, Plan, Refusal, Status, Word};

use crate::exit::{FAILED, INFRASTRUCTURE, PASSED};

/// The host has the version already.
pub(super) const NOTHING_TO_DO: u8 = 3;
/// The old version is in use again.
const PUT_BACK: u8 = 4;
/// Something is in the way; nothing was changed.
const REFUSED: u8 = 5;
/// What the host has is not known.
const UNKNOWN: u8 = 6;

/// A plan: what changes, file by file and server by server.
pub(super) fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    let mut add = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    add(&format!("host:  {}", plan.host));
    add(&format!("from:  {}", plan.from));
    add(&format!("to:    {}", plan.to));
    for item in plan.items.iter().filter(|item| item.word != Word::Same) {
        add(&line_of(item));
    }
    let same = plan.items.iter().filter(|item| item.word == Word::Same).count();
    if same > 0 {
        add(&format!("{:7} {same} files", Word::Same.as_str()));
    }
    plan.instances.iter().for_each(|item| add(&line_of(item)));
    plan.reloads.iter().for_each(|command| add(&format!("run     {command}")));
    for diff in plan.items.iter().filter_map(|item| item.diff.as_ref()) {
        add("");
        add(diff.trim_end());
    }
    text
}

fn line_of(item: &Item) -> String {
    let line = format!("{:7} {}: {}", item.word.as_str(), item.what, item.note);
    line.trim_end_matches(": ").to_owned()
}

/// What happens, as it happens.
pub(super) fn line(line: &Line) {
    match line {
        Line::Step(step) => println!("step    {step}"),
        Line::Note(note) => println!("note    {note}"),
        Line::Answer(_) => {}
    }
}

/// How it ended, in words, and the exit code.
pub(super) fn outcome(outcome: &Outcome) -> (u8, String) {
    let text = match outcome {
        Outcome::Changed => "changed, and confirmed over a new connection".to_owned(),
        Outcome::Staged => "staged: cargo xtask deploy HOST switches to it".to_owned(),
        Outcome::Planned => "nothing was changed: that was the plan".to_owned(),
        Outcome::Nothing => "nothing to do".to_owned(),
        Outcome::Declined => "nothing was changed".to_owned(),
        Outcome::PutBack(why) => format!("put back: the old version is in use again, as {why}"),
        Outcome::Refused(refusals) => refused(refusals),
        Outcome::Failed(why) => format!("failed, and nothing was changed: {why}"),
        Outcome::Unknown(why) => format!("what the host has is not known: {why}"),
    };
    (code(outcome), text)
}

fn refused(refusals: &[Refusal]) -> String {
    let mut text = "refused, and nothing was changed".to_owned();
    for Refusal { why, next } in refusals {
        text.push_str(&format!("\nrefused {why}\n   next {next}"));
    }
    text
}

/// What was deployed.
pub(super) fn status(host: &str, status: &Status) -> String {
    let mut text = format!("{host}: has {}\n", status.current);
    if let Some(on_trial) = &status.on_trial {
        text.push_str(&format!("on trial: {on_trial}\n"));
    }
    if let Some(locked) = &status.locked {
        text.push_str(&format!("at work: {locked}\n"));
    }
    for (number, version) in &status.back {
        text.push_str(&format!("--rollback {number}: {version}\n"));
    }
    for entry in &status.log {
        let id = |id: &Option<String>| id.clone().unwrap_or_else(|| "nothing".to_owned());
        let (at, what, by) = (entry.at, entry.what.as_str(), &entry.by);
        let line = format!("{at}  {what:9}  {} -> {}, by {by}", id(&entry.from), id(&entry.to));
        match entry.note.as_str() {
            "" => text.push_str(&format!("{line}\n")),
            // Writing to a string does not fail.
            note => drop(writeln!(text, "{line}: {note}")),
        }
    }
    text
}

/// The exit code of each outcome: no rollback is a success.
fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Changed | Outcome::Staged | Outcome::Planned => PASSED,
        Outcome::Declined => FAILED,
        Outcome::Nothing => NOTHING_TO_DO,
        Outcome::PutBack(_) => PUT_BACK,
        Outcome::Refused(_) => REFUSED,
        Outcome::Unknown(_) => UNKNOWN,
        Outcome::Failed(_) => INFRASTRUCTURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(what: &str, word: Word, note: &str, diff: Option<&str>) -> Item {
        Item { what: what.to_owned(), word, note: note.to_owned(), diff: diff.map(str::to_owned) }
    }

    #[test]
    fn a_plan_shows_each_change_and_counts_what_stays() {
        let shown = plan(&Plan {
            host: "Debian GNU/Linux 13 (trixie), systemd 257, Linux 6.12".to_owned(),
            from: "0.1.0 (0123456789abcdef)".to_owned(),
            to: "0.2.0 (fedcba9876543210)".to_owned(),
            to_id: Some("fedcba9876543210".to_owned()),
            items: vec![
                item("/usr/local/bin/holders", Word::Same, "", None),
                item("/usr/local/bin/l4d2ctl", Word::Change, "2301 bytes, were 2300", None),
                item("/usr/local/bin/x", Word::Refused, "a link to /opt/x", None),
                item(
                    "/usr/local/lib/systemd/system/left4me-server@.service",
                    Word::Change,
                    "8 bytes, were 9",
                    Some("--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n"),
                ),
                item(
                    "host",
                    Word::Unknown,
                    "systemd 270 is newer than 260, the newest that was tested",
                    None,
                ),
            ],
            instances: vec![item(
                "left4me-server@3.service",
                Word::Change,
                "active, runs 0.1.0, after its next start 0.2.0",
                None,
            )],
            reloads: vec!["systemctl daemon-reload".to_owned()],
            refusals: Vec::new(),
            missing: Vec::new(),
            is_nothing: false,
            digest: String::new(),
        });
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn each_outcome_has_its_words_and_its_code() {
        let all = [
            Outcome::Changed,
            Outcome::Staged,
            Outcome::Planned,
            Outcome::Nothing,
            Outcome::Declined,
            Outcome::PutBack("the canary's start failed".to_owned()),
            Outcome::Refused(vec![Refusal::new("why", "what to type")]),
            Outcome::Failed("ssh: exit status 255".to_owned()),
            Outcome::Unknown("the link was lost".to_owned()),
        ];
        let lines: Vec<String> =
            all.iter().map(outcome).map(|(code, text)| format!("{code} {text}")).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
