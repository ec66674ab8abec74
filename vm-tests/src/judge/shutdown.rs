//! What a machine that shuts down says at its end. Pure.

use vm_agent::recording::{Event, What};

use super::cycle::Cycle;
use crate::scenario::Expect;

/// What systemd-shutdown says of what it can't unmount, detach or end (systemd's `src/shutdown/*.c`), as a part of the line.
const COMPLAINTS: [&str; 7] = [
    "Failed to unmount ",
    "Failed to remount ",
    "Failed to deactivate ",
    "Could not detach ",
    "Could not stop ",
    "Unable to finalize remaining ",
    "Sending SIGKILL to PID ",
];

/// Lines with a complaint, as the console had them, without the kernel's time and the process ids; each once. `None` if the
/// machine has not shut down.
pub(super) fn complaints(events: &[&Event]) -> Option<Vec<String>> {
    let lines = events.iter().find_map(|event| match &event.what {
        What::Console { lines } => Some(lines),
        _ => None,
    })?;
    let mut found: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint))) {
        let words = words_of(line);
        if !found.contains(&words) {
            found.push(words);
        }
    }
    Some(found)
}

/// A line of the kernel's log without its time: `[   12.345678] reboot: Power down`.
pub(crate) fn without_time(line: &str) -> &str {
    line.split_once("] ").filter(|(time, _)| time.starts_with('[')).map_or(line, |(_, text)| text)
}

/// `[   12.345678] systemd-shutdown[1]: Sending SIGKILL to PID 77 (sleep).` without what differs from run to run.
fn words_of(line: &str) -> String {
    let text = without_time(line);
    let text = text.split_once("]: ").map_or(text, |(_, text)| text);
    match text.split_once(" PID ") {
        Some((before, after)) => {
            let name = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
            format!("{before}{name}")
        }
        None => text.to_owned(),
    }
}

/// What is not as expected of it, in words.
pub(super) fn deviations(cycle: &Cycle, expect: &Expect) -> Vec<String> {
    let Some(log) = &cycle.shutdown_log else { return Vec::new() };
    let unexpected = log.iter().filter(|line| !expect.shutdown_log.iter().any(|words| line.contains(words)));
    let missing = expect.shutdown_log.iter().filter(|words| !log.iter().any(|line| line.contains(*words)));
    unexpected
        .map(|line| format!("at the end of the shutdown: {line}"))
        .chain(missing.map(|words| format!("at the end of the shutdown, nothing says {words:?}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::samples;

    fn log(lines: &[&str]) -> Option<Vec<String>> {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        let event = Event { at: 1, cycle: 1, what: What::Console { lines } };
        complaints(&[&event])
    }

    #[test]
    fn complaints_are_kept_without_what_differs_from_run_to_run() {
        let busy = "[   12.345678] systemd-shutdown[1]: Failed to unmount /srv/demo: Device or resource busy";
        let lines = [
            "[   12.000000] systemd-shutdown[1]: Syncing filesystems and block devices.",
            busy,
            &busy.replace("12.3", "12.9"),
            "[   13.000000] systemd-shutdown[1]: Sending SIGKILL to PID 77 (sleep).",
            "[   13.000000] reboot: Power down",
        ];
        let expected =
            ["Failed to unmount /srv/demo: Device or resource busy", "Sending SIGKILL to (sleep)."];
        assert_eq!(log(&lines), Some(expected.map(str::to_owned).to_vec()));
        assert_eq!(log(&[]), Some(Vec::new()));
        assert_eq!(complaints(&[]), None, "no shutdown");
    }

    #[test]
    fn what_is_not_expected_and_what_does_not_come_are_deviations() {
        let busy = "Failed to unmount /srv/demo: Device or resource busy";
        let of = |log: Option<&[&str]>, expected: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let cycle = Cycle { shutdown_log: log.map(own), ..samples::clean() };
            let mut expect = Expect::default();
            expect.shutdown_log = own(expected);
            deviations(&cycle, &expect)
        };
        assert_eq!(of(None, &[]), [""; 0]);
        assert_eq!(of(Some(&[]), &[]), [""; 0]);
        assert_eq!(of(Some(&[busy]), &["unmount /srv/demo"]), [""; 0]);
        assert_eq!(of(Some(&[busy]), &[]), [format!("at the end of the shutdown: {busy}")]);
        assert_eq!(of(Some(&[]), &["busy"]), ["at the end of the shutdown, nothing says \"busy\""]);
    }
}
