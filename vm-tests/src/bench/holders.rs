//! The accuracy benchmark: the answers of `holders` and other tools for a mount that is held in 75 ways, compared with
//! the result of umount2(2); the cost of a scan; the latency of `holders watch`.
//!
//! The guest's part is `holders/examples/fixture`, which holds the mount, asks the tools and judges. It runs in restored
//! machines, by a session that they have before their first instruction, so in virtual time the numbers are the same in
//! every run. Its output is parsed into values, and those are laid out as tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use vm_agent::wire::{Body, Session};

use super::samples::Samples;
use crate::host::events::{self, Event};
use crate::image::programs::GuestBinaries;
use crate::machine::Cancel;
use crate::run::guest::{self, Guest};
use crate::scenario::bundle::Bundle;

/// The longest that the guest may take for one of the three parts.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Where the programs are in the guest.
const HOLDERS: &str = "/usr/local/bin/holders";
const FIXTURE: &str = "/usr/local/libexec/fixture";

/// What some cases take. Not there for what is measured.
const MODULES: &str =
    "modprobe --all nfsd target_core_file && mount -t configfs configfs /sys/kernel/config; ";

/// The tools, in the order of the tables' columns.
pub const TOOLS: [&str; 4] = ["holders", "fuser", "lsof", "lsns"];

/// How often each scan is measured, and each event waited for.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Of a scan.
    pub scans: u32,
    /// Of an unmount and a new holder.
    pub events: u32,
}

/// With how many more processes a scan is measured.
pub const MORE_PROCESSES: [u32; 2] = [100, 500];

/// All that was found out on one guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accuracy {
    /// The guest's short name.
    pub guest: String,
    /// What the image is, in one line.
    pub image: String,
    /// The accelerator and the clock and why, in one line.
    pub choice: String,
    /// In the order in which they were planted.
    pub cases: Vec<Case>,
    /// By number of processes.
    pub costs: Vec<Cost>,
    /// How soon `holders watch` reports.
    pub watch: Watch,
}

/// One way to hold a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// Its name.
    pub case: String,
    /// Why it could not be planted; the rest is empty then.
    #[serde(default)]
    pub not_planted: Option<String>,
    /// What umount2 answered: `ok`, `EBUSY` or `not mounted`.
    #[serde(default)]
    pub umount: String,
    /// Whether the file system was alive after the unmount.
    #[serde(default)]
    pub outlives: bool,
    /// Whether umount2 did what the table of cases says.
    #[serde(default)]
    pub as_planned: bool,
    /// The process that planted.
    #[serde(default)]
    pub holder: u32,
    /// By tool.
    #[serde(default)]
    pub answers: BTreeMap<String, Answer>,
}

/// What a tool said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// What that is worth.
    pub worth: Worth,
    /// Its verdict and whom it named.
    pub said: String,
}

/// What an answer is worth; the fixture's `judge.rs` says when it is which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Worth {
    /// It is so.
    Right,
    /// It says that it can't see all.
    CannotSee,
    /// It says nothing, and there is something to say.
    Silent,
    /// It names somebody who does not make the unmount fail.
    Wrong,
}

impl Worth {
    const ALL: [Self; 4] = [Self::Right, Self::CannotSee, Self::Silent, Self::Wrong];

    /// As in tables.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::CannotSee => "can't see",
            Self::Silent => "silent",
            Self::Wrong => "wrong",
        }
    }
}

/// What one scan costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cost {
    /// How many processes were there besides the guest's own.
    pub more_processes: u32,
    /// How many processes `holders` scanned.
    pub processes: u32,
    /// How many links the bare loop read.
    pub links: u32,
    /// And without those of mappings.
    pub links_without_mappings: u32,
    /// By what was measured: the tools, `diagnosis`, `sample`, and the bare loop in its three kinds.
    pub costs: BTreeMap<String, Times>,
}

/// Nanoseconds of guest time, one for each round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Times {
    /// From fork to wait, or from call to return.
    pub wall_ns: Vec<u64>,
    /// Processor time.
    pub cpu_ns: Vec<u64>,
}

/// How soon `holders watch` reports, nanoseconds of guest time, one for each round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Watch {
    /// From umount2's return to the line.
    pub unmount_ns: Vec<u64>,
    /// From chdir's return in a process of the unit to the line.
    pub holder_ns: Vec<u64>,
}

/// Finds out all of it on one guest, in three machines one after the other.
///
/// # Errors
/// As [`Machine::race`]; when the fixture fails, or prints what is not understood.
pub async fn measure(
    guest: &Guest,
    programs: &GuestBinaries,
    rounds: Rounds,
    directory: &Path,
    cancel: Cancel,
) -> Result<Accuracy> {
    let more = MORE_PROCESSES.map(|count| count.to_string()).join(",");
    let (scans, events) = (rounds.scans.to_string(), rounds.events.to_string());
    let mut texts = Vec::new();
    for (name, args) in [("judge", vec![]), ("cost", vec![&scans, &more]), ("watch", vec![&events])] {
        events::tell(Event::Measuring { guest: guest.name.clone(), part: name });
        let command = format!(
            "{FIXTURE} {name} {HOLDERS} {}",
            args.iter().map(|arg| arg.as_str()).collect::<Vec<_>>().join(" ")
        );
        let prepare = if name == "judge" { MODULES } else { "" };
        texts.push(
            fixture(guest, programs, (prepare, &command), &directory.join(name), cancel.clone()).await?,
        );
    }
    let [judged, costs, watch] = texts.as_slice() else { unreachable!("three parts") };
    let mut watch = lines::<Watch>(watch)?;
    Ok(Accuracy {
        guest: guest.name.clone(),
        image: guest.image.clone(),
        choice: guest.choice.clone(),
        cases: lines(judged)?,
        costs: lines(costs)?,
        watch: watch.pop().context("fixture watch printed nothing")?,
    })
}

async fn fixture(
    guest: &Guest,
    programs: &GuestBinaries,
    (prepare, command): (&str, &str),
    directory: &Path,
    cancel: Cancel,
) -> Result<String> {
    const OUTPUT: &str = "/run/fixture.jsonl";
    let mut bundle = Bundle::default();
    bundle.file(programs.path("holders")?, HOLDERS, Some(0o755))?;
    bundle.file(programs.path("fixture")?, FIXTURE, Some(0o755))?;
    // The agent's unit may have as many tasks as systemd gives one, which is fewer than the crowd.
    let script = format!("echo $$ >/sys/fs/cgroup/cgroup.procs; {prepare}exec {command} >{OUTPUT}");
    let setup = vec![["sh", "-c", &script].map(str::to_owned).to_vec()];
    let session = Session { files: bundle.into_files(), setup, ..Session::default() };
    let mut machine = guest::restore(guest, Some(session), directory, cancel).await?;
    let done = async {
        match guest::session(&mut machine, guest.base.clock, command, DEADLINE).await? {
            Body::Done => {}
            other => anyhow::bail!("unexpected answer from the guest: {other:?}"),
        }
        let output = machine.run(&["cat", OUTPUT], DEADLINE).await?;
        ensure!(output.exit.success(), "cat {OUTPUT}: {}", output.exit);
        Ok(output.text())
    }
    .await;
    machine.finish(done).await
}

fn lines<T: for<'de> Deserialize<'de>>(text: &str) -> Result<Vec<T>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("fixture printed {line}")))
        .collect()
}

impl Accuracy {
    /// How many of a tool's answers are worth what.
    #[must_use]
    pub fn count(&self, tool: &str, worth: Worth) -> usize {
        let answers = self.cases.iter().filter_map(|case| case.answers.get(tool));
        answers.filter(|answer| answer.worth == worth).count()
    }

    /// How many cases could be planted.
    #[must_use]
    pub fn planted(&self) -> usize {
        self.cases.iter().filter(|case| case.not_planted.is_none()).count()
    }

    /// What is not as it should be: `holders` wrong or silent, a case that the kernel did not treat as the table of
    /// cases says.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let planted = self.cases.iter().filter(|case| case.not_planted.is_none());
        planted
            .flat_map(|case| {
                let what = format!("{}: {}", self.guest, case.case);
                let kernel = (!case.as_planned).then(|| {
                    format!(
                        "{what}: umount2 answered {}, file system alive after it: {}",
                        case.umount, case.outlives
                    )
                });
                let answer = case
                    .answers
                    .get("holders")
                    .filter(|answer| matches!(answer.worth, Worth::Wrong | Worth::Silent));
                let holders = answer.map(|answer| {
                    format!(
                        "{what}: holders is {}: {}, planted by {}",
                        answer.worth.words(),
                        answer.said,
                        case.holder
                    )
                });
                kernel.into_iter().chain(holders)
            })
            .collect()
    }
}

/// The table of counts: a line for each guest and tool, in Markdown.
#[must_use]
pub fn summary(accuracies: &[Accuracy]) -> String {
    let mut rows = vec![row(["Guest", "Tool", "right", "can't see", "silent", "wrong"])];
    rows.push(row(["---", "---", "--:", "--:", "--:", "--:"]));
    for accuracy in accuracies {
        for tool in TOOLS {
            let counts = Worth::ALL.map(|worth| accuracy.count(tool, worth).to_string());
            let [right, cannot_see, silent, wrong] = counts.each_ref().map(String::as_str);
            rows.push(row([&accuracy.guest, &format!("`{tool}`"), right, cannot_see, silent, wrong]));
        }
    }
    rows.join("\n")
}

/// The table of cases, in Markdown. Where guests differ a cell has one after the other.
#[must_use]
pub fn cases(accuracies: &[Accuracy]) -> String {
    let mut rows = vec![
        row(["Case", "umount2", "`holders`", "`fuser -vm`", "`lsof`", "`lsns`"]),
        row(["---", "---", "---", "---", "---", "---"]),
    ];
    let names = accuracies
        .first()
        .map(|accuracy| accuracy.cases.iter().map(|case| case.case.as_str()))
        .into_iter()
        .flatten();
    for name in names {
        let of: Vec<(&str, &Case)> = accuracies
            .iter()
            .filter_map(|accuracy| {
                Some((accuracy.guest.as_str(), accuracy.cases.iter().find(|case| case.case == name)?))
            })
            .collect();
        let umount = cell(of.iter().map(|(guest, case)| (*guest, umount_words(case))).collect());
        let tools = TOOLS.map(|tool| {
            let words = of.iter().map(|(guest, case)| {
                (*guest, case.answers.get(tool).map_or("-", |answer| answer.worth.words()).to_owned())
            });
            cell(words.collect())
        });
        let [holders, fuser, lsof, lsns] = tools.each_ref().map(String::as_str);
        rows.push(row([name, &umount, holders, fuser, lsof, lsns]));
    }
    rows.join("\n")
}

fn umount_words(case: &Case) -> String {
    match (&case.not_planted, case.outlives) {
        (Some(_), _) => "not planted".to_owned(),
        (None, true) => format!("{}, alive", case.umount),
        (None, false) => case.umount.clone(),
    }
}

/// One value if all guests have the same, else each guest's.
fn cell(of: Vec<(&str, String)>) -> String {
    match of.split_first() {
        Some(((_, first), rest)) if rest.iter().all(|(_, other)| other == first) => first.clone(),
        _ => of.iter().map(|(guest, words)| format!("{words} ({guest})")).collect::<Vec<_>>().join(", "),
    }
}

/// What the costs are compared with, and by how much they may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// What is compared, with what.
    pub what: String,
    /// The one divided by the other, or milliseconds.
    pub is: f64,
    /// The most that it should be.
    pub at_most: f64,
}

impl Bound {
    /// Whether it is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.is <= self.at_most
    }
}

/// What one scan should cost at most, and how soon the watch should report.
#[must_use]
pub fn bounds(accuracy: &Accuracy) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let bound = |what: String, is: f64, at_most: f64| Bound { what, is, at_most };
    for cost in &accuracy.costs {
        let cpu = |name: &str| cost.median(name, |times| &times.cpu_ns);
        let wall = |name: &str| cost.median(name, |times| &times.wall_ns);
        let count = cost.more_processes;
        let at = |what: &str| format!("{count} more processes: {what}");
        let faster = |of: &dyn Fn(&str) -> f64| of("fuser").min(of("lsof"));
        bounds.extend([
            bound(
                at("holders / the faster of fuser and lsof, processor time"),
                cpu("holders") / faster(&cpu),
                0.5,
            ),
            bound(
                at("holders / the faster of fuser and lsof, wall time"),
                wall("holders") / faster(&wall),
                0.5,
            ),
            bound(at("a diagnosis / the bare loop"), cpu("diagnosis") / cpu("bare loop"), 1.3),
            bound(at("a sample of two tasks / a diagnosis"), cpu("sample") / cpu("diagnosis"), 0.05),
        ]);
    }
    let longest =
        |ns: &[u64]| ns.iter().max().map_or(f64::NAN, |&ns| Duration::from_nanos(ns).as_secs_f64() * 1e3);
    bounds.extend([
        bound("watch: an unmount, the longest, ms".to_owned(), longest(&accuracy.watch.unmount_ns), 1.0),
        bound("watch: a new holder, the longest, ms".to_owned(), longest(&accuracy.watch.holder_ns), 5.0),
    ]);
    bounds
}

impl Cost {
    /// The median of what was measured under this name, nanoseconds; NaN if nothing was.
    fn median(&self, name: &str, of: fn(&Times) -> &Vec<u64>) -> f64 {
        let times = self.costs.get(name).map(of).map(Vec::as_slice).unwrap_or_default();
        times.iter().map(|&ns| Duration::from_nanos(ns).as_secs_f64() * 1e9).collect::<Samples>().median()
    }
}

/// The table of costs: medians in milliseconds of guest time, in Markdown.
#[must_use]
pub fn costs(accuracies: &[Accuracy]) -> String {
    let mut rows = vec![
        row(["Guest", "Processes", "What", "wall time", "processor time"]),
        row(["---", "--:", "---", "--:", "--:"]),
    ];
    for accuracy in accuracies {
        for cost in &accuracy.costs {
            let order = TOOLS.into_iter().chain([
                "diagnosis",
                "bare loop",
                "bare loop, mappings as text",
                "bare loop without mappings",
                "sample",
            ]);
            for name in order {
                let ms = |of| format!("{:.2} ms", cost.median(name, of) / 1e6);
                let processes = cost.processes.to_string();
                let (wall, cpu) = (ms(|times| &times.wall_ns), ms(|times| &times.cpu_ns));
                rows.push(row([&accuracy.guest, &processes, name, &wall, &cpu]));
            }
        }
    }
    rows.join("\n")
}

fn row<const N: usize>(cells: [&str; N]) -> String {
    format!("| {} |", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accuracy(guest: &str, worth: Worth) -> Accuracy {
        let judged = format!(
            r#"{{"case":"cwd","umount":"EBUSY","outlives":false,"visible":true,"as_planned":true,"holder":7,"answers":{{"holders":{{"worth":"right","said":"held-by-process {{7}}"}},"lsns":{{"worth":{},"said":"{{}}"}}}}}}
{{"case":"loop","not_planted":"no loop"}}"#,
            serde_json::to_string(&worth).expect("a word")
        );
        let costs = r#"{"more_processes":100,"processes":109,"links":5,"links_without_mappings":3,"costs":{"holders":{"wall_ns":[40,50,60],"cpu_ns":[4]},"fuser":{"wall_ns":[100],"cpu_ns":[9]},"lsof":{"wall_ns":[200],"cpu_ns":[7]}}}"#;
        Accuracy {
            guest: guest.to_owned(),
            image: String::new(),
            choice: String::new(),
            cases: lines(&judged).expect("cases"),
            costs: lines(costs).expect("costs"),
            watch: Watch { unmount_ns: vec![10, 900_000], holder_ns: vec![6_000_000] },
        }
    }

    #[test]
    fn guests_that_agree_share_a_cell() {
        let accuracies = [accuracy("a", Worth::Silent), accuracy("b", Worth::Wrong)];
        let table = cases(&accuracies);
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| cwd | EBUSY | right | - | - | silent (a), wrong (b) |",
                "| loop | not planted | - | - | - | - |"
            ]
        );
        assert!(summary(&accuracies).contains("| b | `lsns` | 0 | 0 | 0 | 1 |"), "{}", summary(&accuracies));
        assert_eq!(accuracies[0].planted(), 1);
    }

    #[test]
    fn a_fault_is_reported() {
        let mut accuracy = accuracy("a", Worth::Wrong);
        assert_eq!(accuracy.faults(), [""; 0], "what another tool says is none");
        accuracy.cases[0].as_planned = false;
        accuracy.cases[0].answers.get_mut("holders").expect("an answer").worth = Worth::Silent;
        let faults = accuracy.faults();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[1].contains("a: cwd: holders is silent"), "{faults:?}");
    }

    #[test]
    fn bounds_are_of_medians_and_of_the_longest() {
        let bounds = bounds(&accuracy("a", Worth::Right));
        let of = |what: &str| bounds.iter().find(|bound| bound.what.contains(what)).expect(what);
        assert_eq!((of("wall time").is, of("wall time").is_kept()), (0.5, true));
        assert!(
            (of("lsof, processor time").is - 4.0 / 7.0).abs() < 1e-9 && !of("lsof, processor time").is_kept()
        );
        assert!(of("an unmount").is_kept() && !of("a new holder").is_kept());
        assert!(!of("the bare loop").is_kept(), "what was not measured is not kept");
    }
}
