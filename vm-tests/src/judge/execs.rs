//! Exec lines and the main process: how each run ended, how long it took, and whether that is as the manifest says. Pure.

use std::time::Duration;

use nix::sys::signal::Signal;
use vm_agent::recording::{Alive, Event, Exec, MAIN, UnitState, What};
use vm_agent::wire::Exit;

use super::cycle::{Cycle, ExecOutcome};
use super::expect::Deviation;
use crate::scenario::{Expect, ExpectedEnd, ExpectedExec};

/// The runs that these events tell of, in the order in which they began. `unit` is the one under test, `reset` the times
/// from when to when the reset lasted.
pub(super) fn runs(events: &[&Event], unit: &str, reset: (u64, u64)) -> Vec<ExecOutcome> {
    let mut runs: Vec<(u64, &Exec)> = Vec::new();
    for event in events {
        if let What::Exec(exec) = &event.what {
            // A line that was still running when first read is read again: the later reading counts.
            let is_same =
                |known: &Exec| (known.pid, &known.line, &known.unit) == (exec.pid, &exec.line, &exec.unit);
            runs.retain(|(at, known)| *at != event.at || !is_same(known));
            runs.push((event.at, exec));
        }
    }
    runs.sort_by_key(|(at, _)| *at);
    runs.iter().map(|(at, exec)| outcome(*at, exec, events, unit, reset)).collect()
}

fn outcome(at: u64, exec: &Exec, events: &[&Event], unit: &str, reset: (u64, u64)) -> ExecOutcome {
    let ended = exec.ended.unwrap_or(u64::MAX);
    let (from, until) = (at.max(reset.0), ended.min(reset.1));
    ExecOutcome {
        unit: exec.unit.clone(),
        line: exec.line.clone(),
        program: exec.argv.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path)).to_owned(),
        exit: exec.exit,
        duration_ns: exec.ended.map(|ended| ended.saturating_sub(at)),
        in_reset_ns: (from < until).then(|| until - from),
        timed_out: timed_out(events, exec.unit == unit)
            .any(|(moment, lines)| (at..=ended).contains(&moment) && lines.contains(&exec.line.as_str())),
        alive: alive(events, at.max(reset.0), ended),
    }
}

/// When a time limit was over and which lines it was for, of the unit under test or of the mount's: systemd sets the
/// unit's Result and leaves the state in which it has waited (systemd.service(5), `TimeoutStopSec=`).
fn timed_out<'a>(
    events: &'a [&Event],
    of_tested: bool,
) -> impl Iterator<Item = (u64, &'static [&'static str])> + 'a {
    let states = events.iter().filter_map(move |event| match &event.what {
        What::Unit(state) if of_tested => Some((event.at, state)),
        What::MountUnit(state) if !of_tested => Some((event.at, state)),
        _ => None,
    });
    let mut before: Option<&UnitState> = None;
    states.filter_map(move |(at, state)| {
        let before = before.replace(state)?;
        (before.result != TIMEOUT && state.result == TIMEOUT).then(|| (at, waited_for(&before.sub)))
    })
}

const TIMEOUT: &str = "timeout";

/// Whose end systemd waits for in a SubState.
fn waited_for(sub: &str) -> &'static [&'static str] {
    match sub {
        "condition" => &["ExecCondition"],
        "start-pre" => &["ExecStartPre"],
        "start" => &["ExecStart", MAIN],
        "start-post" => &["ExecStartPost"],
        "stop" => &["ExecStop"],
        "stop-post" => &["ExecStopPost"],
        "running" | "stop-sigterm" | "stop-watchdog" | "final-sigterm" => &["ExecStart", MAIN],
        _ => &[],
    }
}

/// Who was there when last looked while a run lasted.
fn alive(events: &[&Event], from: u64, until: u64) -> Vec<String> {
    let last = events.iter().rev().find_map(|event| match &event.what {
        What::Alive(alive) if (from..=until).contains(&event.at) => Some(alive),
        _ => None,
    });
    let words = |alive: &Alive| format!("{} {}", alive.role.word(), alive.comm);
    last.map(|alive| alive.iter().map(words).collect()).unwrap_or_default()
}

/// What is not as the manifest says; empty if all is.
pub(super) fn deviations(cycles: &[Cycle], expect: &Expect, unit: &str) -> Vec<Deviation> {
    let mut wrong = Vec::new();
    for cycle in cycles {
        for (execs, of_tested, whose) in
            [(&expect.exec, true, ""), (&expect.mount_unit_exec, false, "mount unit's ")]
        {
            for (line, expected) in execs {
                let line = line.name();
                let runs = cycle.execs.iter().chain(&cycle.mains).filter(|run| run.line == line);
                let runs: Vec<&ExecOutcome> = runs.filter(|run| (run.unit == unit) == of_tested).collect();
                let words = of_line(&runs, line, expected).into_iter().map(|words| format!("{whose}{words}"));
                wrong.extend(words.map(|words| Deviation { cycle: Some(cycle.number), words }));
            }
        }
    }
    wrong
}

fn of_line(runs: &[&ExecOutcome], line: &str, expected: &ExpectedExec) -> Vec<String> {
    let Some(last) = runs.last() else { return vec![format!("{line} was not run")] };
    let mut wrong = Vec::new();
    if let Some(end) = expected.ended {
        let is_so = match end {
            ExpectedEnd::Timeout => last.timed_out,
            ExpectedEnd::Exit(exit) => last.exit == Some(exit) && !last.timed_out,
        };
        if !is_so {
            let meant = match end {
                ExpectedEnd::Timeout => "a timeout".to_owned(),
                ExpectedEnd::Exit(exit) => end_words(exit).0,
            };
            wrong.push(format!("{}, instead of {meant}", told(last)));
        }
    }
    let longest = runs.iter().max_by_key(|run| time_of(run));
    if let (Some(max_ms), Some(run)) = (expected.max_ms, longest)
        && time_of(run) > Duration::from_millis(max_ms)
    {
        wrong.push(format!("{line} may take {max_ms} ms: {}", told(run)));
    }
    wrong
}

/// What a bound is for: of the main process its time within the reset.
fn time_of(run: &ExecOutcome) -> Duration {
    let ns =
        if run.line == MAIN { run.in_reset_ns.unwrap_or(0) } else { run.duration_ns.unwrap_or(u64::MAX) };
    Duration::from_nanos(ns)
}

/// A run in a line: `ExecStop sh of demo.service: ended by SIGTERM after 20.000 s: its time ran out (TimeoutStopSec=); alive
/// meanwhile: control-child tail`.
pub(super) fn told(run: &ExecOutcome) -> String {
    let ExecOutcome { unit, line, program, exit, alive, .. } = run;
    let secs = time_of(run).as_secs_f64();
    let (end, mut why) = exit.map_or_else(|| ("has no end".to_owned(), None), end_words);
    let took = match (exit, line.as_str()) {
        (None, _) => String::new(),
        (_, MAIN) => format!(", {secs:.3} s of the reset"),
        _ => format!(" after {secs:.3} s"),
    };
    if run.timed_out {
        let in_stop = line.starts_with("ExecStop") || run.in_reset_ns.is_some();
        why = Some(if in_stop {
            "its time ran out (TimeoutStopSec=)"
        } else {
            "its time ran out (TimeoutStartSec=)"
        });
    }
    let which = [line.as_str(), program].join(" ");
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let alive =
        if alive.is_empty() { String::new() } else { format!("; alive meanwhile: {}", alive.join(", ")) };
    format!("{} of {unit}: {end}{took}{why}{alive}", which.trim_end())
}

/// How a run ended, and why if that is known: `exit status 203/EXEC`, `the program could not be executed`.
fn end_words(exit: Exit) -> (String, Option<&'static str>) {
    match exit {
        Exit::Code(code) => match status_words(code) {
            Some((name, why)) => (format!("exit status {code}{name}"), Some(why)),
            None => (format!("exit status {code}"), None),
        },
        Exit::Signal(signal) => {
            let name =
                Signal::try_from(signal).map_or_else(|_unknown| signal.to_string(), |it| it.to_string());
            (format!("ended by {name}"), None)
        }
    }
}

/// What systemd means by a status (systemd.exec(5), "Process Exit Codes"), its name and its meaning, of those that a unit's
/// author meets.
fn status_words(code: i32) -> Option<(&'static str, &'static str)> {
    Some(match code {
        126 => ("", "the program was found, and could not be run"),
        127 => ("", "a shell did not find the program"),
        200 => ("/CHDIR", "its WorkingDirectory= can't be entered"),
        203 => ("/EXEC", "the program could not be executed"),
        209 => ("/STDOUT", "its standard output could not be set up"),
        216 => ("/GROUP", "there is no such Group="),
        217 => ("/USER", "there is no such User="),
        218 => ("/CAPABILITIES", "its capabilities could not be set"),
        226 => ("/NAMESPACE", "its mount namespace could not be set up"),
        228 => ("/SECCOMP", "its system call filter could not be set"),
        233 => ("/RUNTIME_DIRECTORY", "its RuntimeDirectory= could not be made"),
        238 => ("/STATE_DIRECTORY", "its StateDirectory= could not be made"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use vm_agent::recording::Role;

    use super::super::samples::{clean, recording};
    use super::*;

    const MS: u64 = 1_000_000;

    fn exec(unit: &str, line: &str, program: &str, ended_ms: u64, exit: Exit) -> What {
        let argv = if program.is_empty() { Vec::new() } else { vec![format!("/bin/{program}")] };
        let (unit, line) = (unit.to_owned(), line.to_owned());
        What::Exec(Exec { unit, line, argv, pid: 7, ended: Some(ended_ms * MS), exit: Some(exit) })
    }

    fn state(sub: &str, result: &str) -> UnitState {
        UnitState { sub: sub.to_owned(), result: result.to_owned(), ..UnitState::default() }
    }

    /// ExecStop= of x.service waits for its own `tail` until TimeoutStopSec= is over: factorio-init#100.
    fn factorio() -> Vec<(u64, What)> {
        let alive = |comm: &str, role| Alive { pid: 9, comm: comm.to_owned(), role };
        let looked = [alive("sh", Role::Control), alive("tail", Role::ControlChild)];
        vec![
            (0, What::Unit(state("running", "success"))),
            (10, exec("x.service", "ExecStart", "server", 1050, Exit::Signal(15))),
            (10, exec("x.service", MAIN, "", 1050, Exit::Signal(15))),
            (1000, What::Unit(state("stop", "success"))),
            (1001, exec("x.service", "ExecStop", "sh", 21_010, Exit::Signal(15))),
            (2000, What::Alive(vec![alive("server", Role::Main)])),
            (17_000, What::Alive(looked.to_vec())),
            (21_001, What::Unit(state("stop-sigterm", "timeout"))),
            (21_020, What::Unit(state("stop-post", "timeout"))),
            (21_021, exec("x.service", "ExecStopPost", "umount", 21_030, Exit::Code(0))),
            (21_021, exec("m.service", "ExecStopPost", "umount", 21_030, Exit::Code(0))),
            (21_040, What::Unit(state("failed", "timeout"))),
        ]
    }

    fn folded(whats: Vec<(u64, What)>) -> Cycle {
        let recording = recording(None, whats.into_iter().map(|(ms, what)| (ms * MS, what)));
        let events: Vec<&Event> = recording.events.iter().collect();
        let runs = runs(&events, "x.service", (1000 * MS, 21_050 * MS));
        let (mains, execs) = runs.into_iter().partition(|run| run.line == MAIN);
        Cycle { execs, mains, reset_ns: 20_050 * MS, ..clean() }
    }

    #[test]
    fn a_timeout_is_the_lines_that_systemd_waited_for() {
        let cycle = folded(factorio());
        let timed_out: Vec<_> = cycle
            .execs
            .iter()
            .chain(&cycle.mains)
            .filter(|run| run.timed_out)
            .map(|run| &*run.line)
            .collect();
        assert_eq!(timed_out, ["ExecStop"]);
        assert_eq!(
            told(&cycle.execs[1]),
            "ExecStop sh of x.service: ended by SIGTERM after 20.009 s: its time ran out (TimeoutStopSec=); alive \
             meanwhile: control sh, control-child tail"
        );

        // The main process lets SIGTERM pass.
        let cycle = folded(vec![
            (10, exec("x.service", MAIN, "", 21_005, Exit::Signal(9))),
            (10, exec("x.service", "ExecStart", "server", 21_005, Exit::Signal(9))),
            (1000, What::Unit(state("stop-sigterm", "success"))),
            (21_000, What::Unit(state("stop-sigkill", "timeout"))),
        ]);
        assert_eq!(
            told(&cycle.mains[0]),
            "main of x.service: ended by SIGKILL, 20.005 s of the reset: its time ran out (TimeoutStopSec=)"
        );
        // Of another unit, and of a state that this is not about.
        let cycle = folded(vec![
            (1000, What::Unit(state("stop-sigterm", "success"))),
            (1001, exec("x.service", "ExecStop", "sh", 21_005, Exit::Code(0))),
            (1001, exec("m.service", MAIN, "", 21_005, Exit::Code(0))),
            (21_000, What::Unit(state("stop-sigkill", "timeout"))),
        ]);
        assert!(cycle.execs.iter().chain(&cycle.mains).all(|run| !run.timed_out));
    }

    #[test]
    fn a_start_that_times_out_is_told_as_that() {
        let cycle = folded(vec![
            (0, What::Unit(state("start-pre", "success"))),
            (1, exec("x.service", "ExecStartPre", "mount", 910, Exit::Signal(15))),
            (900, What::Unit(state("final-sigterm", "timeout"))),
        ]);
        let words = "ExecStartPre mount of x.service: ended by SIGTERM after 0.909 s: its time ran out (TimeoutStartSec=)";
        assert_eq!(told(&cycle.execs[0]), words);
    }

    #[test]
    fn what_a_manifest_says_of_a_line_is_compared() {
        let cases = [
            ("[exec.ExecStop]\nended = \"timeout\"\n[exec.main]\nended = \"SIGTERM\"\nmax_ms = 50", vec![]),
            (
                "[exec.ExecStop]\nended = \"SIGTERM\"\nmax_ms = 1000",
                vec![
                    "meanwhile: control sh, control-child tail, instead of ended by SIGTERM",
                    "ExecStop may take 1000 ms: ExecStop sh of x.service: ended by SIGTERM after 20.009 s: its time",
                ],
            ),
            (
                "[exec.main]\nended = 0",
                vec!["main of x.service: ended by SIGTERM, 0.050 s of the reset, instead of exit status 0"],
            ),
            (
                "[exec.main]\nmax_ms = 49",
                vec!["main may take 49 ms: main of x.service: ended by SIGTERM, 0.050 s"],
            ),
            (
                "[exec.ExecStopPost]\nended = \"timeout\"",
                vec!["exit status 0 after 0.009 s, instead of a timeout"],
            ),
            ("[exec.ExecReload]\nended = 0", vec!["ExecReload was not run"]),
            ("[mount_unit_exec.ExecStopPost]\nended = 0\nmax_ms = 9", vec![]),
            ("[mount_unit_exec.ExecStop]\nended = 0", vec!["mount unit's ExecStop was not run"]),
        ];
        let cycles = [folded(factorio())];
        for (text, words) in cases {
            let wrong = deviations(&cycles, &toml::from_str(text).expect(text), "x.service");
            assert_eq!(wrong.len(), words.len(), "{text}: {wrong:?}");
            for (wrong, words) in wrong.iter().zip(words) {
                assert!(wrong.words.contains(words), "{words} is not in: {wrong}");
            }
        }
    }
}
