//! What the deployed programs take, in guest time: resets, unmounts, purges.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vm_agent::recording::{Plan, Recording, Step, What};
use vm_agent::wire::{Body, Session};

use super::guest::{DEADLINE, text};
use super::samples::Samples;
use crate::judge::cycle::Cycle;
use crate::judge::{Judgement, fold};
use crate::machine::{Cancel, Machine};
use crate::run::guest::{self, Guest};
use crate::run::one::{self, Bounds};
use crate::scenario::Scenario;

/// The service that does nothing, for [`reset_and_stop`].
const EMPTY_SERVICE: &str = "vm-bench-empty.service";

/// The same with an `ExecStopPost=`.
const STOP_POST_SERVICE: &str = "vm-bench-stop-post.service";

/// The same as an instance that `l4d2ctl` stops, by its number.
const STOP_POST_SERVER: (&str, &str) = ("left4me-server@990.service", "990");

/// Runs a scenario as `cargo xtask vm-test` does, and returns each cycle's Reset in nanoseconds of guest time.
///
/// # Errors
/// As [`one::run`]; a run that is not as its manifest expects has other durations, and is one too.
pub async fn resets(
    guest: &Guest,
    scenario: &Scenario,
    bounds: Bounds,
    directory: &Path,
    cancel: Cancel,
) -> Result<Vec<u64>> {
    let run = one::run(guest, scenario, bounds, directory, cancel).await?;
    let Judgement { cycles, deviations, .. } = run.judgement;
    let words: Vec<String> = deviations.iter().map(ToString::to_string).collect();
    ensure!(words.is_empty(), "{}: {}", scenario.name, words.join("; "));
    Ok(cycles.iter().map(|cycle| cycle.reset_ns).collect())
}

/// Guest times of ways to bring a unit down, in seconds, taken by turns, without umount2(2) and the recorder's scans.
#[derive(Debug, Clone, Default)]
pub struct ResetAndStop {
    /// The scenario's Reset.
    pub reset: Samples,
    /// `systemctl stop` of a service that does nothing.
    pub stop: Samples,
    /// The same of one that has an `ExecStopPost=+` that does nothing, too: what systemd takes for the line by itself.
    pub stop_post: Samples,
    /// The same by `l4d2ctl stop`: what is left for the unit's settings, the unmount and the delete is beyond this.
    pub stop_post_by_ctl: Samples,
}

/// Measures a scenario's Reset and a `systemctl stop` of an empty service in one machine by turns, each recorded in the
/// same way. A first round of both is not counted: it loads programs.
///
/// # Errors
/// As [`one::run`].
pub async fn reset_and_stop(
    guest: &Guest,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<ResetAndStop> {
    let mut machine = guest::prepare_shell(guest, Some(scenario), None, directory, cancel).await?;
    let measured = async {
        let services = "set -e
            printf '[Service]\\nType=exec\\nExecStart=sleep infinity\\n' >/run/systemd/system/$1
            (cat /run/systemd/system/$1; echo ExecStopPost=+true) >/run/systemd/system/$2
            cp /run/systemd/system/$2 /run/systemd/system/$3
            systemctl daemon-reload";
        let (server, instance) = STOP_POST_SERVER;
        text(&mut machine, &["sh", "-c", services, "sh", EMPTY_SERVICE, STOP_POST_SERVICE, server]).await?;
        let reset = scenario.plan(Some(1));
        let stop = |service: &str, by: &[&str]| Plan {
            unit: service.to_owned(),
            mount_unit: None,
            mount: Some("/run/vm-bench/nothing".to_owned()),
            ..plan(scenario, &["systemctl", "start", service], by)
        };
        let systemctl = |service: &str| stop(service, &["systemctl", "stop", service]);
        let (empty, stop_post) = (systemctl(EMPTY_SERVICE), systemctl(STOP_POST_SERVICE));
        let by_ctl = stop(server, &["l4d2ctl", "stop", instance]);
        let mut both = ResetAndStop::default();
        for round in 0..=rounds {
            for (plan, samples) in [
                (&reset, &mut both.reset),
                (&empty, &mut both.stop),
                (&stop_post, &mut both.stop_post),
                (&by_ctl, &mut both.stop_post_by_ctl),
            ] {
                let took = Duration::from_nanos(one_cycle(&mut machine, plan).await?.own_ns);
                if round > 0 {
                    samples.0.push(took.as_secs_f64());
                }
            }
        }
        Ok(both)
    }
    .await;
    machine.finish(measured).await
}

/// Runs a plan of one cycle and returns its Reset's guest time.
async fn one(machine: &mut Machine, plan: &Plan) -> Result<Duration> {
    Ok(Duration::from_nanos(one_cycle(machine, plan).await?.cycle.reset_ns))
}

/// A cycle, what its reset command wrote to stdout, and its reset's guest time without what is not its own.
struct Recorded {
    cycle: Cycle,
    stdout: String,
    own_ns: u64,
}

/// Runs a plan of one cycle, whose Reset must succeed.
async fn one_cycle(machine: &mut Machine, plan: &Plan) -> Result<Recorded> {
    let guest = machine.guest();
    let session = Session { plan: Some(plan.clone()), ..Session::default() };
    let recorded = async { guest.begin_session(session).await?.next().await };
    let recording: Recording = match machine.race("the recording", DEADLINE, recorded).await? {
        Body::Recorded(recording) => *recording,
        other => bail!("unexpected answer from the guest: {other:?}"),
    };
    let mut cycles = fold::cycles(&recording);
    let (Some(cycle), true) = (cycles.pop(), cycles.is_empty()) else {
        bail!("not one cycle was recorded");
    };
    ensure!(
        cycle.reset_exit.is_some_and(|exit| exit.success()),
        "{}: {:?}: {}",
        plan.reset.join(" "),
        cycle.reset_exit,
        cycle.reset_stderr
    );
    let own_ns = own_ns(&recording).context("no reset was recorded")?;
    let stdout = recording.events.into_iter().find_map(|event| match event.what {
        What::StepEnds(end) if end.step == Step::Reset => Some(end.stdout),
        _ => None,
    });
    Ok(Recorded { cycle, stdout: stdout.unwrap_or_default(), own_ns })
}

/// The reset's time, from fork to wait, without its calls of umount2(2) and without the recorder's scans. A scan can
/// come while a call is not done yet, so what both cover is taken away once.
fn own_ns(recording: &Recording) -> Option<u64> {
    let events = &recording.events;
    let begun = events.iter().find_map(|event| match event.what {
        What::StepBegins(Step::Reset) => Some(event.at),
        _ => None,
    })?;
    let ended = events.iter().find_map(|event| match &event.what {
        What::StepEnds(end) if end.step == Step::Reset => Some(event.at),
        _ => None,
    })?;
    let others = events.iter().filter_map(|event| match &event.what {
        What::UmountCall(call) => Some((event.at, call.returned)),
        What::Scan(scan) => Some((event.at, event.at + scan.cost_ns)),
        _ => None,
    });
    Some(uncovered(begun, ended, others.collect()))
}

/// How much of the time from `begun` to `ended` no span covers.
pub(super) fn uncovered(begun: u64, ended: u64, mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut own, mut at) = (0, begun);
    for (from, to) in spans {
        own += from.min(ended).saturating_sub(at);
        at = at.max(to.min(ended));
    }
    own + ended.saturating_sub(at)
}

/// Guest times of the deployed programs, in seconds, with no recorder beside them.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// `left4me-overlay umount` from fork to wait, without what umount2(2) takes by itself.
    pub umount: Samples,
    /// umount2(2) of such an overlay.
    pub call: Samples,
    /// `left4me-overlay --version`, from fork to wait: what a program costs that does nothing.
    pub nothing: Samples,
}

/// Guest times of deleting [`PURGED_FILES`], in seconds.
#[derive(Debug, Clone, Default)]
pub struct Purges {
    /// Deleting a runtime directory of [`PURGED_FILES`] by a reset, as it says itself.
    pub purge: Samples,
    /// `rm -rf` of another such directory, from fork to wait.
    pub rm: Samples,
}

/// How many files are purged: 100 directories of so many hundredths.
pub const PURGED_FILES: u32 = 100_000;

const HELPER: &str = "/usr/local/libexec/left4me/left4me-overlay";

/// Where the program is put that times others in the guest.
const TIMER: &str = "/run/vm-bench/vm-time";

/// A scenario's plan with other commands, of one cycle.
fn plan(scenario: &Scenario, start: &[&str], reset: &[&str]) -> Plan {
    let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Plan {
        start: argv(start),
        reset: argv(reset),
        removed: Vec::new(),
        free_devices: Vec::new(),
        during: Vec::new(),
        checks: Vec::new(),
        boot_checks: Vec::new(),
        recover: Vec::new(),
        ..scenario.plan(Some(1))
    }
}

/// Measures the helper's unmount in one machine with a scenario's files. A first round is not counted: it loads programs.
///
/// # Errors
/// As [`one::run`].
pub async fn programs(
    guest: &Guest,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Programs> {
    let mut machine = guest::prepare_shell(guest, Some(scenario), None, directory, cancel).await?;
    let measured = async {
        let timer = guest.programs.get("vm-time").context("vm-time was not built")?;
        let timer = std::fs::read(timer).with_context(|| format!("read {}", timer.display()))?;
        let guest = machine.guest();
        machine.race("the timer to be put", DEADLINE, guest.put_bytes(TIMER, 0o755, &timer)).await?;
        let merged = scenario.mount_or_root();
        let mut programs = Programs::default();
        for round in 0..=rounds {
            let mut times = [Duration::ZERO; 3];
            for (time, argv) in times.iter_mut().zip([
                [TIMER, HELPER, "umount", "3"].as_slice(),
                &[TIMER, "--umount2", merged],
                &[TIMER, HELPER, "--version"],
            ]) {
                text(&mut machine, &[HELPER, "mount", "3"]).await?;
                let output = text(&mut machine, argv).await?;
                let nanos = output.lines().last().context("vm-time wrote nothing")?;
                *time = Duration::from_nanos(nanos.parse().with_context(|| format!("a time: {nanos}"))?);
            }
            let [umount, call, nothing] = times.map(|time| time.as_secs_f64());
            if round > 0 {
                programs.umount.0.push(umount - call);
                programs.call.0.push(call);
                programs.nothing.0.push(nothing);
            }
        }
        Ok(programs)
    }
    .await;
    machine.finish(measured).await
}

/// Measures a purge beside `rm -rf`, by turns in one machine with a scenario's files.
///
/// # Errors
/// As [`one::run`].
pub async fn purges(
    guest: &Guest,
    scenario: &Scenario,
    rounds: usize,
    directory: &Path,
    cancel: Cancel,
) -> Result<Purges> {
    let mut machine = guest::prepare_shell(guest, Some(scenario), None, directory, cancel).await?;
    let measured = async {
        // A file system with room for so many names: the usual one has 65,536 inodes.
        let room = "set -e
            umount /var/lib/left4me
            mkfs.ext4 -q -F -N 150000 /dev/ram0
            mount /dev/ram0 /var/lib/left4me
            systemd-tmpfiles --create";
        text(&mut machine, &["sh", "-c", room]).await?;
        let files = format!(
            "set -e
            run=/var/lib/left4me/runtime/3
            mkdir -p $run/upper $run/work $run/merged
            cd $run/upper
            for directory in $(seq 100); do
                mkdir $directory
                (cd $directory && seq {} | xargs touch)
            done",
            PURGED_FILES / 100
        );
        let make = ["sh", "-c", &files];
        let purge = plan(scenario, &make, &["l4d2ctl", "reset", "--json", "3"]);
        let rm = plan(scenario, &make, &["rm", "-rf", "/var/lib/left4me/runtime/3"]);
        let mut purges = Purges::default();
        for _round in 0..rounds {
            let report = one_cycle(&mut machine, &purge).await?.stdout;
            let report: serde_json::Value = serde_json::from_str(&report).context("the reset's report")?;
            let micros =
                report.pointer("/phases/purge_us").and_then(serde_json::Value::as_u64).context("purge_us")?;
            purges.purge.0.push(Duration::from_micros(micros).as_secs_f64());
            purges.rm.0.push(one(&mut machine, &rm).await?.as_secs_f64());
        }
        Ok(purges)
    }
    .await;
    machine.finish(measured).await
}
