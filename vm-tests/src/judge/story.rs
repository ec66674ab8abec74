//! What happened in a run that failed, in about ten lines for each way in which cycles failed: for who reads them on a
//! terminal or in a job's log, and has no recording at hand. Pure.

use std::time::Duration;

use nix::sys::signal::Signal;
use vm_agent::recording::{Evidence, MAIN, Recording, What, Why};
use vm_agent::wire::Exit;

use super::cycle::{Cycle, ExecOutcome};
use super::execs;
use super::expect::Deviation;
use super::stretches;
use super::words::telling;

/// So many ways to fail are told; more are counted.
const WAYS: usize = 3;
/// So many deviations of a cycle are shown; the others are in the report.
const DEVIATIONS: usize = 4;
/// So many lines of a command's stderr, the last ones.
const STDERR_LINES: usize = 3;
/// So many lines of the journal, the last ones: systemd says in three that an Exec line failed, and before them why.
const JOURNAL_LINES: usize = 5;
/// A line that is longer is cut, in characters.
const LINE: usize = 200;
/// So many who hold the mount are named.
const HOLDERS: usize = 3;
/// What takes no longer is no news.
const SLOW: Duration = Duration::from_secs(1);

/// Tells each way in which cycles failed, once, by the first cycle that did.
pub(super) fn tell(recording: &Recording, cycles: &[Cycle], deviations: &[Deviation]) -> Vec<String> {
    let mut ways: Vec<(Vec<u32>, Vec<&str>)> = Vec::new();
    for cycle in cycles {
        let words: Vec<&str> = deviations
            .iter()
            .filter(|one| one.cycle == Some(cycle.number))
            .map(|one| one.words.as_str())
            .collect();
        let alike = |known: &[&str]| {
            known.len() == words.len()
                && known.iter().zip(&words).all(|(one, other)| shape(one) == shape(other))
        };
        match ways.iter_mut().find(|(_, known)| alike(known)) {
            _ if words.is_empty() => {}
            Some((numbers, _)) => numbers.push(cycle.number),
            None => ways.push((vec![cycle.number], words)),
        }
    }
    let mut lines = Vec::new();
    for (numbers, words) in ways.iter().take(WAYS) {
        let first = numbers.first().and_then(|first| cycles.iter().find(|cycle| cycle.number == *first));
        let Some(cycle) = first else { continue };
        lines.push(format!("{}:", of_cycles(numbers)));
        lines.extend(words.iter().take(DEVIATIONS).map(|words| format!("  {}", clipped(words))));
        if words.len() > DEVIATIONS {
            lines.push(format!("  and {} more, see report.json", words.len() - DEVIATIONS));
        }
        lines.extend(of_cycle(recording, cycle, &words.concat()).iter().map(|line| format!("  {line}")));
    }
    if ways.len() > WAYS {
        let others = ways.iter().skip(WAYS).flat_map(|(numbers, _)| numbers.iter().copied());
        lines.push(format!(
            "{} failed in other ways: see report.json",
            of_cycles(&others.collect::<Vec<_>>())
        ));
    }
    lines.extend(deviations.iter().filter(|one| one.cycle.is_none()).map(|one| one.words.clone()));
    lines
}

/// `cycle 2`, `cycles 1 to 3`, `cycles 1, 3 and 7`.
pub(super) fn of_cycles(numbers: &[u32]) -> String {
    let (first, last) = (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0));
    let in_a_row = usize::try_from(last - first).is_ok_and(|steps| steps + 1 == numbers.len());
    match numbers {
        [one] => format!("cycle {one}"),
        [one, other] => format!("cycles {one} and {other}"),
        _ if in_a_row => format!("cycles {first} to {last}"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(u32::to_string).collect();
            format!("cycles {} and {last}", most.join(", "))
        }
        [] => "no cycle".to_owned(),
    }
}

/// A deviation without what is another one in each cycle: durations, process ids. A status or a signal stays.
pub(super) fn shape(words: &str) -> String {
    let mut shape = String::new();
    let mut rest = words;
    while let Some(at) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        let end = number.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        shape.push_str(before);
        shape.push_str(if ["status ", "signal "].iter().any(|word| before.ends_with(word)) {
            digits
        } else {
            "#"
        });
        rest = after;
    }
    shape + rest
}

/// What is known of a cycle beyond its deviations.
fn of_cycle(recording: &Recording, cycle: &Cycle, deviations: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, stderr) in [("start", &cycle.start_stderr), ("reset", &cycle.reset_stderr)] {
        let said = telling(stderr);
        let last = said.get(said.len().saturating_sub(STDERR_LINES)..).unwrap_or_default();
        // One line is with its deviation already.
        if !last.is_empty() && last.iter().any(|line| !deviations.contains(line)) {
            lines.push(format!("{what} wrote:"));
            lines.extend(last.iter().map(|line| format!("  {}", clipped(line))));
        }
    }
    let runs = cycle.execs.iter().chain(&cycle.mains).filter(|run| is_news(run));
    let told = runs.map(|run| clipped(&execs::told(run)));
    // A deviation has told it already, if the manifest says how it has to end.
    lines.extend(told.filter(|told| !deviations.contains(told.as_str())));
    lines.extend(result_words(cycle));
    lines.extend(umount_words(recording, cycle));
    lines.extend(held_words(cycle));
    let alive = cycle.end.iter().flat_map(|end| &end.processes).map(|(pid, comm)| format!("{comm} ({pid})"));
    let alive: Vec<String> = alive.collect();
    if !alive.is_empty() {
        lines.push(format!("still alive: {}", clipped(&alive.join(", "))));
    }
    if Duration::from_nanos(cycle.reset_ns) >= SLOW {
        lines.extend(stretches::longest(recording, cycle.number).into_iter().take(1));
    }
    lines.extend(journal(recording, cycle.number));
    lines
}

/// A line that failed, has no end, or took its time. That of the server itself runs as long as it is up, and a stop ends it.
fn is_news(exec: &ExecOutcome) -> bool {
    if exec.line == MAIN {
        return exec.timed_out || exec.in_reset_ns.is_some_and(|ns| Duration::from_nanos(ns) >= SLOW);
    }
    let is_main = exec.line == "ExecStart";
    if is_main && exec.timed_out {
        // The main process of then says it.
        return false;
    }
    let slow = exec.duration_ns.is_some_and(|ns| Duration::from_nanos(ns) >= SLOW);
    match exec.exit {
        Some(Exit::Code(0)) => slow && !is_main,
        Some(Exit::Signal(signal)) => !(is_main && signal == Signal::SIGTERM as i32),
        Some(Exit::Code(_)) => true,
        None => !is_main,
    }
}

/// The unit's Result, where the ends of its lines do not say it.
fn result_words(cycle: &Cycle) -> Option<String> {
    let words = match cycle.unit.result.as_str() {
        "timeout" if cycle.execs.iter().chain(&cycle.mains).any(|run| run.timed_out) => return None,
        "timeout" => {
            "timeout: a start or a stop took longer than the unit's TimeoutStartSec= or TimeoutStopSec="
        }
        "start-limit-hit" => "start-limit-hit: it was started too often, see StartLimitIntervalSec=",
        "oom-kill" => "oom-kill: the machine or the unit's MemoryMax= had no memory left",
        "watchdog" => "watchdog: it did not report within its WatchdogSec=",
        "protocol" => "protocol: it did not report as its Type= says",
        "resources" => "resources: systemd could not set up what the unit needs",
        _ => return None,
    };
    Some(format!("the unit's Result is {words}"))
}

/// Who tried to unmount in vain, or that nobody tried.
fn umount_words(recording: &Recording, cycle: &Cycle) -> Option<String> {
    let mount = recording.plan.mount.as_ref()?;
    let still = if cycle.mounted { ", and it is still mounted" } else { "" };
    let Some(last) = cycle.umounts.last() else {
        return Some(match cycle.before.mounted {
            true => format!("nobody tried to unmount {mount}{still}"),
            false => format!("nothing was mounted at {mount}, and nobody tried to unmount it"),
        });
    };
    let times = match cycle.umounts.len() {
        1 => String::new(),
        times => format!(", the last of {times} tries"),
    };
    let in_vain = last.result != "ok" || cycle.mounted;
    in_vain.then(|| format!("{} called umount2 of {mount}: {}{times}{still}", last.comm, last.result))
}

/// Who or what held it, and what to do: in the words of `holders` where it was asked.
fn held_words(cycle: &Cycle) -> Vec<String> {
    let Some(diagnosis) = &cycle.diagnosis else {
        let holders = cycle.holders_at_umount.iter().take(HOLDERS);
        return holders.map(|holder| format!("held by {}", clipped(&holder.in_words()))).collect();
    };
    let when = match diagnosis.why {
        Why::UmountFailed => "at the umount",
        Why::Late => "when the stop was late",
        Why::Left => "after the reset",
    };
    let line = format!("holders, {when}: {}", clipped(&diagnosis.line));
    let advice = diagnosis.advice.iter().take(HOLDERS).map(|advice| format!("  {}", clipped(advice)));
    std::iter::once(line).chain(advice).collect()
}

fn journal(recording: &Recording, cycle: u32) -> Vec<String> {
    let evidence = recording.events.iter().find_map(|event| match &event.what {
        What::Evidence(Evidence { journal, .. }) if event.cycle == cycle => Some(journal),
        _ => None,
    });
    let lines = evidence.map_or("", |journal| journal.as_str()).lines();
    let lines: Vec<&str> = lines.filter(|line| !is_accounting(line)).collect();
    let last = lines.get(lines.len().saturating_sub(JOURNAL_LINES)..).unwrap_or_default();
    let title = (!last.is_empty()).then(|| "journal:".to_owned());
    title.into_iter().chain(last.iter().map(|line| format!("  {}", clipped(line)))).collect()
}

/// What a unit has used, which systemd says last of one that took a second of a processor (`unit_log_resources` of systemd's
/// `core/unit.c`): on a busy host of any unit, and it says nothing about a failure.
fn is_accounting(line: &str) -> bool {
    line.contains("] systemd[1]: ") && line.contains(": Consumed ") && line.contains(" CPU time")
}

/// No longer than [`LINE`], and nothing that moves a terminal's cursor.
fn clipped(text: &str) -> String {
    let shown = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let cut: String = shown.clone().take(LINE).collect();
    if shown.count() > LINE { format!("{cut}…") } else { cut }
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::Found;
    use vm_agent::recording::{Event, Plan, Role, Step};

    use std::slice;

    use super::super::cycle::Umount;
    use super::super::samples::{self, clean, diagnosis, ends};
    use super::*;
    use crate::scenario::Expect;

    const MS: u64 = 1_000_000;

    /// The story of cycles that expect a clean end, with what else was recorded of the first.
    fn told(cycles: &[Cycle], whats: Vec<(u64, What)>) -> String {
        let events = whats.into_iter().map(|(ms, what)| Event { at: ms * MS, cycle: 1, what }).collect();
        let planned = u32::try_from(cycles.len()).expect("few");
        let plan = Plan { mount: Some("/srv/demo".to_owned()), cycles: planned, ..Plan::default() };
        let recording = Recording { plan, events, ..Recording::default() };
        let deviations = super::super::expect::deviations(&recording, cycles, &Expect::default());
        tell(&recording, cycles, &deviations).join("\n")
    }

    fn exec(line: &str, program: &str, exit: Option<Exit>, ms: u64) -> ExecOutcome {
        ExecOutcome {
            unit: "demo.service".to_owned(),
            line: line.to_owned(),
            program: program.to_owned(),
            exit,
            duration_ns: exit.map(|_| ms * MS),
            in_reset_ns: None,
            timed_out: false,
            alive: Vec::new(),
        }
    }

    /// blob-csi-driver#474: the reset removes the mount point, and nothing unmounts.
    #[test]
    fn nobody_unmounted() {
        let stuck = |number| Cycle {
            number,
            reset_exit: Some(Exit::Code(1)),
            reset_ns: (120 + u64::from(number)) * MS,
            reset_stderr: "rmdir: failed to remove '/srv/demo': Device or resource busy\n".to_owned(),
            mounted: true,
            umounts: Vec::new(),
            execs: vec![exec("ExecStart", "sleep", Some(Exit::Signal(15)), 900)],
            ..clean()
        };
        let cycles = [stuck(1), stuck(2), stuck(3)];
        let evidence = Evidence {
            journal: "[   12.000001] systemd[1]: Stopped demo.service.".to_owned(),
            units: String::new(),
        };
        insta::assert_snapshot!("story-nobody-unmounted", told(&cycles, vec![(1, What::Evidence(evidence))]));
    }

    #[test]
    fn an_exec_line_says_in_words_how_it_ended() {
        let mut cycle = clean();
        cycle.start_exit = Some(Exit::Code(1));
        cycle.start_stderr =
            "Job for demo.service failed.\nSee \"systemctl status demo.service\".\n".to_owned();
        cycle.before.active = "failed".to_owned();
        cycle.before.mounted = false;
        cycle.umounts = Vec::new();
        cycle.execs = vec![
            exec("ExecStartPre", "mount", Some(Exit::Code(0)), 5),
            exec("ExecStart", "deom", Some(Exit::Code(203)), 1),
        ];
        let used = "[   13.303357] systemd[1]: demo.service: Consumed 1.075s CPU time, 1.7M memory peak.";
        let journal = ["one", "two", "three", "four", "five", "six\u{1b}[2J", used].join("\n");
        let evidence = Evidence { journal, units: String::new() };
        insta::assert_snapshot!("story-203-exec", told(&[cycle], vec![(1, What::Evidence(evidence))]));
    }

    /// factorio-init#100: the stop waits for a child of its own until systemd's patience ends.
    #[test]
    fn a_stop_that_ran_into_its_timeout_says_where_the_time_went() {
        let mut cycle = clean();
        cycle.unit.result = "timeout".to_owned();
        cycle.unit.active = "failed".to_owned();
        cycle.reset_ns = 20_200 * MS;
        cycle.execs = vec![ExecOutcome {
            timed_out: true,
            alive: vec!["control sh".to_owned(), "control-child tail".to_owned()],
            ..exec("ExecStop", "sh", Some(Exit::Signal(15)), 20_000)
        }];
        cycle.end.as_mut().expect("an end").processes = vec![(181, "tail".to_owned())];
        let recorded =
            vec![(0, What::StepBegins(Step::Reset)), (100, What::Unmounted), (20_200, ends(Step::Reset))];
        insta::assert_snapshot!("story-stop-timeout", told(&[cycle], recorded));
    }

    #[test]
    fn a_start_without_an_end_says_its_limit_and_a_holder_is_named() {
        let mut cycle = clean();
        cycle.start_exit = None;
        cycle.start_ns = 120_003 * MS;
        let umount =
            |result: &str| Umount { comm: "umount".to_owned(), result: result.to_owned(), duration_ns: 1 };
        cycle.umounts = vec![umount("EBUSY"), umount("EBUSY")];
        let holder = samples::holder(181, "sleep", Role::Outside);
        cycle.diagnosis = Some(diagnosis(Why::UmountFailed, Found::HeldByProcess, slice::from_ref(&holder)));
        cycle.holders_at_umount = vec![holder];
        cycle.mounted = true;
        insta::assert_snapshot!("story-no-end", told(&[cycle], Vec::new()));
    }

    #[test]
    fn ways_to_fail_are_told_once_each_and_not_all() {
        let with = |number, code| Cycle { number, reset_exit: Some(Exit::Code(code)), ..clean() };
        let cycles = [
            with(1, 1),
            Cycle { number: 2, ..clean() },
            with(3, 2),
            with(4, 1),
            with(5, 3),
            with(6, 4),
            with(7, 5),
            with(8, 1),
        ];
        let text = told(&cycles, Vec::new());
        let titles: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        let others = "cycles 6 and 7 failed in other ways: see report.json";
        assert_eq!(titles, ["cycles 1, 4 and 8:", "cycle 3:", "cycle 5:", others]);
    }

    #[test]
    fn what_differs_from_cycle_to_cycle_makes_no_other_failure() {
        assert_eq!(shape("reset took 20.213 s by pid 181"), shape("reset took 19.9 s by pid 77"));
        assert_ne!(
            shape("start: exit status 1 instead of exit status 0"),
            shape("start: exit status 127 instead of exit status 0")
        );
        assert_ne!(shape("ended by signal 15"), shape("ended by signal 9"));
        assert_eq!(of_cycles(&[3]), "cycle 3");
        assert_eq!(of_cycles(&[1, 2, 3]), "cycles 1 to 3");
    }
}
