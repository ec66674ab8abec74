//! The deviations of a cycle from a scenario's `expect`. Pure.

use std::fmt;
use std::time::Duration;

use vm_agent::recording::Recording;
use vm_agent::wire::Exit;

use super::cycle::Cycle;
use super::cycle::MountOutcome;
use super::shutdown;
use super::snapshot::exit_words;
use super::words::telling;
use super::wrong::Wrong;
use crate::scenario::Expect;

/// Something that is not as the manifest expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Of which cycle; `None` of the run.
    pub cycle: Option<u32>,
    /// What.
    pub words: String,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cycle {
            Some(cycle) => write!(f, "cycle {cycle}: {}", self.words),
            None => write!(f, "{}", self.words),
        }
    }
}

/// What is not as expected in a whole run; empty if all is.
pub(super) fn deviations(recording: &Recording, cycles: &[Cycle], expect: &Expect) -> Vec<Deviation> {
    let mut deviations = Vec::new();
    for cycle in cycles {
        let words = of_cycle(cycle, expect).into_iter();
        deviations.extend(words.map(|words| Deviation { cycle: Some(cycle.number), words }));
    }
    let planned = recording.plan.cycles as usize;
    if cycles.len() != planned {
        let words = format!("{} of {planned} cycles were run", cycles.len());
        deviations.push(Deviation { cycle: None, words });
    }
    deviations
}

/// What is not as expected, in words; empty if all is.
pub(super) fn of_cycle(cycle: &Cycle, expect: &Expect) -> Vec<String> {
    let mut wrong = Wrong::default();
    wrong.equal("left over after the reset", &cycle.left_over, &expect.left_over);
    wrong.equal("devices that are not free", &cycle.kept_devices, &expect.kept_devices);
    wrong.equal("left in the cgroup", &cycle.left_processes(), &expect.left_processes);
    wrong.equal("failed units", &cycle.failed_units(), &expect.failed_units());
    wrong.equal("kernel warnings", &cycle.kernel_warnings, &expect.kernel_warnings);
    wrong.equal("core dumps", &cycle.core_dumps, &expect.core_dumps);
    wrong.equal("lost events", &cycle.lost, &[]);

    wrong.check(cycle.end.is_some(), "what the reset left was not inspected".to_owned());
    let start = Some(Exit::Code(expect.start_exit));
    let said = |stderr: &str| telling(stderr).last().map(|line| format!(": {line}")).unwrap_or_default();
    wrong.check(
        cycle.start_exit == start,
        wrong_exit("start", cycle.start_exit, start, cycle.start_ns)
            + &said(&cycle.start_stderr)
            + &start_limit(cycle),
    );
    let before = &cycle.before;
    wrong.check(
        before.active == expect.active_state_before(),
        format!("the unit is {} when the reset begins, not {}", before.active, expect.active_state_before()),
    );
    let reset = Some(Exit::Code(expect.reset_exit));
    wrong.check(
        cycle.reset_exit == reset,
        wrong_exit("reset", cycle.reset_exit, reset, cycle.reset_ns) + &said(&cycle.reset_stderr),
    );
    let secs = |duration: Duration| format!("{:.3}", duration.as_secs_f64());
    let (took, min, max) = (Duration::from_nanos(cycle.reset_ns), expect.reset_min(), expect.reset_max());
    wrong.check(
        (min..max).contains(&took),
        match max {
            Duration::MAX => format!("reset took {} s, not {} s or more", secs(took), secs(min)),
            max => format!("reset took {} s, not {} to {} s", secs(took), secs(min), secs(max)),
        },
    );
    wrong.check(
        cycle.unit.active == expect.active_state(),
        format!("the unit is {} after the reset, not {}", cycle.unit.active, expect.active_state()),
    );
    let mount_unit = cycle.mount_unit.as_ref().map(|unit| unit.state.active.as_str());
    let expected = expect.mount_unit_state();
    wrong.check(
        mount_unit == expected,
        format!(
            "the mount's unit is {} after the reset, not {}",
            mount_unit.unwrap_or("not there"),
            expected.unwrap_or("there")
        ),
    );
    wrong.check(
        cycle.unit.restarts == 0,
        format!("the unit was restarted: NRestarts {}", cycle.unit.restarts),
    );
    let stop_post = expect.exec_stop_post.map(|expected| expected.0);
    let is_expected = match (cycle.exec_stop_post(), stop_post) {
        (_, None) => post_not_named(cycle, expect).is_none_or(Exit::success),
        (ended, expected) => ended == expected,
    };
    let (ended, stop_post) = (cycle.exec_stop_post(), stop_post.or(Some(Exit::Code(0))));
    wrong.check(
        is_expected,
        format!("ExecStopPost: {} instead of {}", exit_words(ended), exit_words(stop_post)),
    );
    for words in &expect.reset_stderr {
        wrong.check(
            reset_says(cycle, words),
            format!("the reset's stderr has no {words:?}: {:?}", cycle.reset_stderr.trim_end()),
        );
    }
    wrong.0.extend(shutdown::deviations(cycle, expect));
    wrong.0.extend(MountOutcome::of("", cycle).deviations(&expect.mount()));
    for mount in &cycle.other_mounts {
        let expected = expect.other_mounts.get(&mount.path).cloned().unwrap_or_default();
        wrong.0.extend(mount.deviations(&expected).iter().map(|words| format!("{}: {words}", mount.path)));
    }
    wrong.0
}

/// How the last ExecStopPost ended of which the manifest has no line in `exec`.
fn post_not_named(cycle: &Cycle, expect: &Expect) -> Option<Exit> {
    let mut posts = cycle.execs.iter().rev().filter(|run| run.line == "ExecStopPost");
    posts.find(|run| !expect.says_how_stop_post_ends(&run.unit)).and_then(|run| run.exit)
}

/// What a start that failed was about, if it was one too many.
fn start_limit(cycle: &Cycle) -> String {
    let results = [Some(&cycle.unit), cycle.mount_unit.as_ref().map(|unit| &unit.state)];
    if results.into_iter().flatten().any(|state| state.result == "start-limit-hit") {
        "; systemd's start limit was hit: StartLimitBurst= starts within StartLimitIntervalSec=, by default 5 in 10 s"
            .to_owned()
    } else {
        String::new()
    }
}

/// Whether the reset command wrote these words to stderr; see [`Expect::reset_stderr`].
fn reset_says(cycle: &Cycle, words: &str) -> bool {
    if !words.contains("{pid}") {
        return cycle.reset_stderr.contains(words);
    }
    let mut holders = cycle.holders_at_umount.iter();
    holders.any(|holder| cycle.reset_stderr.contains(&words.replace("{pid}", &holder.pid.to_string())))
}

/// Of a command of the plan, which is ended if it takes too long.
fn wrong_exit(what: &str, is: Option<Exit>, expected: Option<Exit>, took_ns: u64) -> String {
    let took = Duration::from_nanos(took_ns).as_secs_f64();
    let is = match is {
        Some(exit) => exit.to_string(),
        None if took_ns == 0 => "it never ran".to_owned(),
        None => format!("no end within {took:.0} s (command_timeout_secs), so it was killed,"),
    };
    format!("{what}: {is} instead of {}", exit_words(expected))
}
