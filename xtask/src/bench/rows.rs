//! The rows of a benchmark and their targets; the host in words.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::bench::{self, Boot, Channel, Moments, Row, Samples, Unit};
use vm_tests::host::accel::Clock;
use vm_tests::run::guest::Guest;

use super::counts::SIDE_BY_SIDE;
use super::edit::{self, Edits};
use super::watch::{self, Saves};

/// The targets, of the medians: seconds, but for those whose name says otherwise.
pub(super) mod target {
    pub(crate) const RESTORE: f64 = 0.4;
    pub(crate) const RESTORE_RATIO: f64 = 1.0 / 20.0;
    pub(crate) const BOOT_REAL: f64 = 8.0;
    pub(crate) const BOOT_VIRTUAL: f64 = 18.0;
    pub(crate) const PING: f64 = 0.001;
    pub(crate) const COMMAND: f64 = 0.015;
    pub(crate) const PUT: f64 = 1.0;
    pub(crate) const IDLE: f64 = 0.7;
    pub(crate) const SPREAD_PERCENT: f64 = 0.1;
    pub(crate) const MEDIANS_PERCENT: f64 = 0.01;
    pub(crate) const SAVED_MIB: f64 = 200.0;
    pub(crate) const SUITE: f64 = 20.0;
    pub(crate) const RESET_RATIO: f64 = 1.5;
    pub(crate) const UMOUNT: f64 = 0.002;
    pub(crate) const PURGE_RATIO: f64 = 1.2;
    pub(crate) const MOMENT: f64 = 1.0;
    pub(crate) const SHELL: f64 = 2.0;
    pub(crate) const WATCH_UNIT: f64 = 5.0;
    pub(crate) const WATCH_PROGRAM: f64 = 10.0;
    pub(crate) const SHELL_AND_RUN: f64 = 10.0;
    pub(crate) const PAGE: f64 = 0.1;
    pub(crate) const PAGE_KIB: f64 = 50.0;
    pub(crate) const ANSWER: f64 = 0.1;
    pub(crate) const PAGE_MIB: f64 = 30.0;
    pub(crate) const UNCHANGED: f64 = 4.0;
    /// 1.5 runs a second on two cores.
    pub(crate) const EXPLORED: f64 = 2.0 / 1.5;
    pub(crate) const EXPLORED_AT_ONCE: f64 = 1.0 / 1.5;
    pub(crate) const SMALLER: f64 = 60.0;
    pub(crate) const SWEEP: f64 = 120.0;
    /// 360 s for the 111 runs of three images, on two cores.
    pub(crate) const FRESH_RUN: f64 = 360.0 / 111.0;
    pub(crate) const ONE: f64 = 3.5;
    /// Beside the build.
    pub(crate) const JUDGE: f64 = 2.0;
    pub(crate) const HELPER: f64 = 12.0;
    pub(crate) const AGENT: f64 = 18.0;
}

pub(super) fn boot_rows(guest: &Guest, boots: &[Boot]) -> Vec<Row> {
    let clock = guest.base.clock;
    let row = |what: &str, of: fn(&Boot) -> f64| {
        Row::new("boot", format!("{clock}: {what}"), Unit::Seconds, boots.iter().map(of).collect())
    };
    let target = match clock {
        Clock::Real => target::BOOT_REAL,
        Clock::Virtual => target::BOOT_VIRTUAL,
    };
    let mut rows = vec![
        row("QEMU's start to the agent", |boot| boot.agent.as_secs_f64()).target(target),
        row("QEMU's start to its greeting", |boot| boot.greeting.as_secs_f64()),
        row("QEMU's start to systemd running", |boot| boot.running.as_secs_f64()),
        row("guest time: kernel", |boot| boot.guest.kernel_secs),
        row("guest time: initramfs", |boot| boot.guest.initramfs_secs),
        row("guest time: systemd to the agent", |boot| boot.guest.agent_secs),
        row("guest time: the agent to the end", |boot| boot.guest.rest_secs),
    ];
    if clock == Clock::Real {
        // Its clock runs as the host's does, so the rest is what came before it.
        rows.push(row("firmware and decompression", |boot| {
            let guest = boot.guest;
            boot.agent.as_secs_f64() - guest.kernel_secs - guest.initramfs_secs - guest.agent_secs
        }));
    }
    rows
}

pub(super) fn restore_rows(guest: &Guest, boots: &[Boot], restores: [Samples; 4]) -> Result<Vec<Row>> {
    let clock = guest.base.clock;
    let cold: Samples = boots.iter().map(|boot| boot.agent.as_secs_f64()).collect();
    let mut rows = Vec::new();
    for (machines, samples) in SIDE_BY_SIDE.into_iter().zip(restores) {
        let ratio = samples.over(&cold);
        let name = match machines {
            1 => format!("{clock}: one machine to its answer"),
            _ => format!("{clock}: {machines} at once, to the last answer"),
        };
        let time = Row::new("restore", name, Unit::Seconds, samples);
        let ratio = Row::new("restore", "  / a cold boot to the agent", Unit::Ratio, ratio);
        rows.extend(match machines {
            1 => [time.target(target::RESTORE), ratio.target(target::RESTORE_RATIO)],
            _ => [time, ratio],
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "a file's size is far below 2^52")]
    let mib = bench::disk_bytes(guest.saved()?)? as f64 / f64::from(1 << 20);
    let saved =
        Row::new("restore", format!("{clock}: saved machine on disk"), Unit::Mebibytes, Samples(vec![mib]));
    rows.push(saved.target(target::SAVED_MIB));
    Ok(rows)
}

pub(super) fn channel_rows(guest: &Guest, channel: Channel) -> [Row; 4] {
    let clock = guest.base.clock;
    let row = |what, samples, target| {
        Row::new("channel", format!("{clock}: {what}"), Unit::Seconds, samples).target(target)
    };
    [
        row("null request", channel.ping, target::PING),
        row("/bin/true", channel.command, target::COMMAND),
        row("echo and its output", channel.echo, target::COMMAND),
        row("a file of 10 MiB", channel.put, target::PUT),
    ]
}

/// Durations in nanoseconds, a list of cycles for each run.
pub(super) fn spread_rows(idle: &[Vec<u64>], busy: &[Vec<u64>]) -> Result<Vec<Row>> {
    let seconds = |runs: &[Vec<u64>]| -> Samples {
        runs.iter().flatten().map(|ns| Duration::from_nanos(*ns).as_secs_f64()).collect()
    };
    let row = |what: String, unit, sample: f64| Row::new("spread", what, unit, Samples(vec![sample]));
    let (quiet, loaded) = (seconds(idle), seconds(busy));
    let all: Vec<Vec<u64>> = idle.iter().chain(busy).cloned().collect();
    let together = seconds(&all);
    let medians = (loaded.median() - quiet.median()).abs() / quiet.median();
    let mut rows = vec![
        Row::new("spread", "Reset, host idle (guest time)", Unit::Seconds, quiet),
        Row::new("spread", "Reset, host busy (guest time)", Unit::Seconds, loaded),
        // The cycles of a run differ by what they find done already: the target is a cycle's, over the runs.
        row("(max - min) / median, all cycles as one".to_owned(), Unit::Percent, together.spread() * 100.0),
        row("difference of the two medians".to_owned(), Unit::Percent, medians * 100.0)
            .target(target::MEDIANS_PERCENT),
    ];
    let cycles = all.iter().map(Vec::len).min().context("a run")?;
    for cycle in 0..cycles {
        let mut values: Vec<u64> = all.iter().filter_map(|run| run.get(cycle)).copied().collect();
        let of_cycle = seconds(&[values.clone()]).spread();
        let n = values.len();
        values.sort_unstable();
        values.dedup();
        let distinct = f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX));
        let number = cycle + 1;
        let spread = row(format!("cycle {number}: (max - min) / median"), Unit::Percent, of_cycle * 100.0);
        rows.push(spread.target(target::SPREAD_PERCENT));
        rows.push(row(format!("cycle {number}: distinct values to the ns, of {n}"), Unit::Count, distinct));
    }
    Ok(rows)
}

/// Seconds of the host that `shell --at` takes, its end included.
#[derive(Debug, Default)]
pub(super) struct Shells {
    /// Nothing is known of the run.
    pub(super) first: Samples,
    /// The run is remembered, and the moment is not there.
    pub(super) recalled: Samples,
    /// The moment is there.
    pub(super) again: Samples,
}

/// A look at an instant of a run: its machine, and the whole of the command.
pub(super) fn moment_rows(moments: Moments, shells: Shells) -> [Row; 6] {
    let row = |what: &str, samples, target| Row::new("moment", what, Unit::Seconds, samples).target(target);
    [
        Row::new("moment", "the run up to it", Unit::Seconds, moments.run),
        row("made, beyond that run", moments.made, target::MOMENT),
        row("opened, to the first answer", moments.opened, target::RESTORE),
        row("shell --at and its end, the moment is there", shells.again, target::SHELL),
        row("shell --at and its end, the run up to it is made", shells.recalled, target::SHELL_AND_RUN),
        row("shell --at and its end, nothing is known", shells.first, target::SHELL_AND_RUN),
    ]
}

/// The wait for a suite and for an edit's verdict, as far as it was measured.
pub(super) fn edit_rows(edits: &Edits) -> Vec<Row> {
    let Edits { runs, remembered, .. } = edits;
    let row = |what: String, samples: &Samples| Row::new("edit", what, Unit::Seconds, samples.clone());
    let of_scenario =
        |who: &str, samples| row(format!("edit of the {who}, to {}'s verdict", edit::SCENARIO), samples);
    #[expect(clippy::cast_precision_loss, reason = "a suite has far fewer runs than 2^52")]
    let each = edits.fresh.0.iter().map(|wall| wall / *runs as f64).collect();
    let ratio = edits.unchanged.over(&edits.fresh);
    let rows = [
        row(format!("suite, nothing changed: {runs} runs, {remembered} remembered"), &edits.unchanged)
            .target(target::UNCHANGED),
        row(format!("suite, fresh: {runs} runs"), &edits.fresh),
        row("  / their number".to_owned(), &each).target(target::FRESH_RUN),
        Row::new("edit", "suite, nothing changed / fresh", Unit::Ratio, ratio),
        row("edit of the judge, the build".to_owned(), &edits.judge_build),
        row(format!("  and then to {runs} verdicts"), &edits.judge).target(target::JUDGE),
        of_scenario("helper", &edits.helper).target(target::HELPER),
        of_scenario("agent", &edits.agent).target(target::AGENT),
        row(format!("{}, one cycle, nothing to build, fresh", edit::SCENARIO), &edits.one)
            .target(target::ONE),
    ];
    rows.into_iter().filter(|row| !row.samples.0.is_empty()).collect()
}

pub(super) fn watch_rows(saves: &Saves) -> [Row; 2] {
    let row = |what: &str, samples: &Samples, target| {
        let what = format!("save of {what}, to {}'s verdict", watch::SCENARIO);
        Row::new("watch", what, Unit::Seconds, samples.clone()).target(target)
    };
    [row("a unit", &saves.unit, target::WATCH_UNIT), row("the helper", &saves.helper, target::WATCH_PROGRAM)]
}

/// What has another duration, and what else has a target and is measured elsewhere.
pub(super) fn edit_notes(edits: &Edits) -> Vec<String> {
    let not: Vec<&str> = edits.not_passed.iter().map(String::as_str).collect();
    let failed = (!not.is_empty())
        .then(|| format!("edit: not passed, which has another duration: {}", not.join(", ")));
    let elsewhere = [
        "edit: two machines of the same inputs, and recordings from two checkouts: cargo test -p xtask --test repeatable",
        "edit: a fresh clone, and .ci/run in it: by hand, see docs/measurements.md",
    ];
    failed.into_iter().chain(elsewhere.map(str::to_owned)).collect()
}

/// One row of the table.
pub(super) fn line(row: &Row) -> String {
    let number = |value| number(value, row.unit);
    let numbers = format!(
        "{:8} {:48} {:>4} {:>9} {:>9} {:>9}",
        row.measurement,
        row.what,
        row.samples.0.len(),
        number(row.min),
        number(row.median),
        number(row.max)
    );
    match (row.target, row.reached) {
        (Some(target), Some(reached)) => {
            let verdict = if reached { "reached" } else { "not reached" };
            format!("{numbers}  target ≤ {}: {verdict}", number(target))
        }
        _ => numbers,
    }
}

pub(super) fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value.abs() >= 1.0 => format!("{value:.2} s"),
        Unit::Seconds if value.abs() >= 0.001 => format!("{:.1} ms", value * 1e3),
        Unit::Seconds => format!("{:.0} µs", value * 1e6),
        Unit::Mebibytes => format!("{value:.0} MiB"),
        Unit::Ratio if value < 10.0 => format!("{value:.3}"),
        Unit::Ratio => format!("{value:.1}"),
        Unit::Percent => format!("{value:.4} %"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// The load averages of /proc/loadavg; see proc_loadavg(5).
pub(super) fn load() -> Result<String> {
    let text = read("/proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

pub(super) fn cpu() -> Result<String> {
    let text = read("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or("a processor without a name", |(_, name)| name).to_owned())
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(path)).with_context(|| format!("read {path}"))
}
