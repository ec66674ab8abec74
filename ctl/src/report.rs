//! What one action of `l4d2ctl` came to: the JSON shape, which is stable and can be read back, and the text for people.

use std::fmt;
use std::path::PathBuf;

use holders::shown;
use serde::{Deserialize, Serialize, Serializer};

use crate::actions::Action;
use crate::doctor::Finding;

/// The number in every object that `--json` prints. It goes up if a key is taken away or changes its meaning; a new key
/// leaves it as it is.
pub const SCHEMA_VERSION: u32 = 1;

/// What `--json` prints if there is no report to print: the instances could not be listed, or nothing could begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was asked for: the subcommand's name.
    pub action: String,
    /// False.
    pub ok: bool,
    /// Why not, in sentences.
    pub error: String,
}

impl Problem {
    /// The problem that kept `action` from beginning.
    #[must_use]
    pub fn new(action: &str, error: impl fmt::Display) -> Self {
        Self { schema_version: SCHEMA_VERSION, action: action.into(), ok: false, error: error.to_string() }
    }
}

/// The action's outcome. The keys are an interface: new ones may be added, none changes its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `start`, `stop`, `reset` or `status`.
    pub action: Action,
    /// The instance's name.
    pub instance: String,
    /// The unit's name.
    pub unit: String,
    /// Whether the action did all it is for. For `status`: whether the unit runs.
    pub ok: bool,
    /// systemd's ActiveState: `active`, `inactive`, `failed` and so on; empty if systemd was not reached.
    pub active_state: String,
    /// systemd's SubState.
    pub sub_state: String,
    /// systemd's Result of the service: `success`, `exit-code`, `signal`, `timeout` and so on. Where a reset has cleared
    /// the failed state it is still that of the stop.
    pub result: String,
    /// systemd's NRestarts: automatic restarts since the last start by hand.
    pub restarts: u32,
    /// The unit that mounts and unmounts the overlay.
    pub overlay: OverlayUnit,
    /// The last run of each command of both units, in the order of their life.
    pub exec: Vec<Exec>,
    /// How long each phase took.
    pub phases: Phases,
    /// What is mounted at or below `runtime/<id>` after a stop or a reset, seen by PID 1 and by this process.
    #[serde(serialize_with = "as_text")]
    pub still_mounted: Vec<PathBuf>,
    /// For `status`: whether anything is mounted at or below `runtime/<id>`; null if that cannot be read.
    pub mounted: Option<bool>,
    /// What is worth knowing and no failure, a sentence each.
    pub notes: Vec<String>,
    /// Why it is not ok, in sentences; null if it is.
    pub error: Option<String>,
    /// How `l4d2ctl` ends if it was for this alone: `ok`, `failed`, `not-running` or `no-such-unit`.
    pub exit: Exit,
}

/// The overlay's unit, in the same words as the server's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayUnit {
    /// The unit's name.
    pub unit: String,
    /// systemd's ActiveState; empty if systemd was not reached.
    pub active_state: String,
    /// systemd's SubState.
    pub sub_state: String,
    /// systemd's Result of the service.
    pub result: String,
}

/// The last run of one command of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Whose command it is: the server's unit or the overlay's.
    pub unit: String,
    /// The setting: `ExecStartPre`, `ExecStart`, `ExecStop` or `ExecStopPost`.
    pub line: String,
    /// The command with its arguments.
    pub argv: Vec<String>,
    /// The exit status; null if it has not ended, has not run, or was killed by a signal.
    pub status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// From its start to its end, microseconds of CLOCK_MONOTONIC; null if it has not ended or not run.
    pub duration_us: Option<u64>,
}

/// What the doctor found about one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The server's unit.
    pub unit: String,
    /// The file that it is read from.
    pub fragment: String,
    /// And its drop-ins.
    pub drop_ins: Vec<String>,
    /// The overlay's unit.
    pub overlay: Files,
    /// What defeats the design.
    pub findings: Vec<Finding>,
    /// Why nothing could be found out; null if it could.
    pub error: Option<String>,
}

/// A unit and what it is read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The unit's name.
    pub unit: String,
    /// The file.
    pub fragment: String,
    /// The drop-ins.
    pub drop_ins: Vec<String>,
}

impl Diagnosis {
    /// Nothing yet, of a server's unit and its overlay's.
    #[must_use]
    pub fn of(unit: impl Into<String>, overlay: impl Into<String>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            unit: unit.into(),
            overlay: Files { unit: overlay.into(), ..Files::default() },
            ..Self::default()
        }
    }
}

/// How long each phase took, microseconds; null where the action has no such phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// From the warning of the players until none of the servers ran or the grace was over; one time for all that are
    /// stopped at once.
    pub grace_us: Option<u64>,
    /// From sending the first stop job until systemd said that the last has ended; holds `umount_us`.
    pub stop_us: Option<u64>,
    /// The runs of `ExecStopPost=` that this stop caused, by systemd's own clock readings.
    pub umount_us: Option<u64>,
    /// The deletion of `runtime/<id>`, with its checks.
    pub purge_us: Option<u64>,
    /// The whole action, without the grace.
    pub total_us: u64,
}

/// The exit status of `l4d2ctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// All done.
    Ok,
    /// Something failed.
    Failed,
    /// `status` of a unit that does not run; the number `systemctl` uses.
    NotRunning,
    /// There is no such unit; the number `systemctl status` uses.
    NoSuchUnit,
}

impl Exit {
    /// The worst of several.
    #[must_use]
    pub fn worst(all: impl IntoIterator<Item = Self>) -> Self {
        let rank = |exit: &Self| match exit {
            Self::Ok => 0,
            Self::NotRunning => 1,
            Self::NoSuchUnit => 2,
            Self::Failed => 3,
        };
        all.into_iter().max_by_key(rank).unwrap_or(Self::Ok)
    }

    /// The number. 2 is missing: it is a usage error, and those have no report.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::NotRunning => 3,
            Self::NoSuchUnit => 4,
        }
    }
}

impl Report {
    /// One word or two for how it went.
    fn verdict(&self) -> &'static str {
        match (self.action, self.ok) {
            (Action::Status, true) => "running",
            (Action::Status, false) if self.error.is_some() => "unknown",
            (Action::Status, false) => "not running",
            (_, true) => "ok",
            (_, false) => "failed",
        }
    }
}

/// The text for people, without the error: that goes where errors go.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}: {}", self.action.word(), self.unit, self.verdict())?;
        if !self.active_state.is_empty() {
            let restarts = match self.restarts {
                0 => String::new(),
                1 => ", 1 restart".into(),
                more => format!(", {more} restarts"),
            };
            row(
                f,
                "state",
                &format!("{} ({}), result {}{restarts}", self.active_state, self.sub_state, self.result),
            )?;
            let OverlayUnit { active_state, sub_state, result, .. } = &self.overlay;
            row(f, "overlay", &format!("{active_state} ({sub_state}), result {result}"))?;
        }
        for exec in &self.exec {
            let end = match (exec.status, exec.signal) {
                (Some(status), _) => format!("status {status}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => continue,
            };
            let took = exec.duration_us.map_or(String::new(), milliseconds);
            let of = if exec.unit == self.overlay.unit { "overlay " } else { "" };
            row(f, &format!("{of}{}", exec.line), &format!("{end:<11}{took:>12}"))?;
        }
        let phases = [
            ("grace", self.phases.grace_us),
            ("stop", self.phases.stop_us),
            ("umount", self.phases.umount_us),
            ("purge", self.phases.purge_us),
            ("total", Some(self.phases.total_us).filter(|_| self.action != Action::Status)),
        ];
        for (name, took) in phases {
            if let Some(took) = took {
                row(f, name, &format!("{:>23}", milliseconds(took)))?;
            }
        }
        for mount in &self.still_mounted {
            row(f, "still mounted", &shown(mount))?;
        }
        for note in &self.notes {
            row(f, "note", note)?;
        }
        Ok(())
    }
}

/// Several reports as a table, a line each, without their errors.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    let mut rows =
        vec![["INSTANCE", "OUTCOME", "STATE", "RESULT", "RESTARTS", "MOUNTED", "TOTAL"].map(str::to_owned)];
    rows.extend(reports.iter().map(|report| {
        let state = match report.active_state.as_str() {
            "" => "-".to_owned(),
            state => format!("{state} ({})", report.sub_state),
        };
        let mounted = match (report.mounted, report.still_mounted.is_empty()) {
            (Some(true), _) | (None, false) => "yes",
            (Some(false), true) => "no",
            (Some(false), false) | (None, true) => "-",
        };
        let total =
            if report.action == Action::Status { "-".into() } else { milliseconds(report.phases.total_us) };
        [
            report.instance.clone(),
            report.verdict().to_owned(),
            state,
            if report.result.is_empty() { "-".into() } else { report.result.clone() },
            report.restarts.to_string(),
            mounted.to_owned(),
            total,
        ]
    }));
    columns(&rows)
}

/// Rows as lines, each column as wide as it must be.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<_> =
        (0..N).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// JSON has text only, and who may mount may name the place with bytes that are none.
fn as_text<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// A line of a report.
pub(crate) fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {name:<22}{value}")
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The report of a reset whose umount found somebody in the mount.
    fn busy() -> Report {
        let (server, overlay) = ("left4me-server@3.service", "left4me-overlay@3.service");
        let exec = |unit: &str, line: &str, argv: &[&str], status, duration_us| Exec {
            unit: unit.into(),
            line: String::from(line),
            argv: argv.iter().map(ToString::to_string).collect(),
            status,
            signal: None,
            duration_us,
        };
        Report {
            schema_version: SCHEMA_VERSION,
            action: Action::Reset,
            instance: "3".into(),
            unit: server.into(),
            ok: false,
            active_state: "inactive".into(),
            sub_state: "dead".into(),
            result: "success".into(),
            restarts: 1,
            overlay: OverlayUnit {
                unit: overlay.into(),
                active_state: "failed".into(),
                sub_state: "failed".into(),
                result: "exit-code".into(),
            },
            exec: vec![
                exec(overlay, "ExecStart", &["left4me-overlay", "mount", "3"], Some(0), Some(12_345)),
                Exec { signal: Some(15), ..exec(server, "ExecStart", &["srcds_run"], None, Some(7_000_001)) },
                exec(overlay, "ExecStopPost", &["left4me-overlay", "umount", "3"], Some(32), Some(999)),
            ],
            phases: Phases {
                grace_us: None,
                stop_us: Some(104_062),
                umount_us: Some(999),
                purge_us: None,
                total_us: 110_000,
            },
            mounted: None,
            still_mounted: vec!["/var/lib/left4me/runtime/3/merged".into()],
            notes: vec!["it was so before".into()],
            error: Some("it is busy".into()),
            exit: Exit::Failed,
        }
    }

    #[test]
    fn text() {
        insta::assert_snapshot!(busy().to_string());
    }

    #[test]
    fn tables() {
        let running = Report {
            action: Action::Status,
            ok: true,
            instance: "eu-1".into(),
            active_state: "active".into(),
            sub_state: "running".into(),
            result: "success".into(),
            restarts: 0,
            mounted: Some(true),
            still_mounted: vec![],
            ..busy()
        };
        let stopped = Report {
            ok: false,
            mounted: Some(false),
            active_state: "inactive".into(),
            sub_state: "dead".into(),
            error: None,
            ..running.clone()
        };
        let unknown = Report {
            error: Some("x".into()),
            active_state: String::new(),
            result: String::new(),
            mounted: None,
            ..stopped.clone()
        };
        insta::assert_snapshot!(table(&[busy(), running, stopped, unknown]));
    }

    #[test]
    fn the_worst_of_several_is_the_exit_status() {
        for (all, worst) in [
            (&[][..], 0),
            (&[Exit::Ok, Exit::NotRunning], 3),
            (&[Exit::NoSuchUnit, Exit::NotRunning], 4),
            (&[Exit::Failed, Exit::NoSuchUnit, Exit::Ok], 1),
        ] {
            assert_eq!(Exit::worst(all.iter().copied()).code(), worst, "{all:?}");
        }
    }

    #[test]
    fn json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&busy()).unwrap());
    }

    #[test]
    fn what_is_printed_as_json_is_read_back_equal() {
        let started = Report {
            action: Action::Start,
            ok: true,
            phases: Phases::default(),
            still_mounted: vec![],
            mounted: Some(false),
            error: None,
            exit: Exit::Ok,
            ..busy()
        };
        let reports = [busy(), started, Report { exit: Exit::NoSuchUnit, ..busy() }];
        let back: Vec<Report> = serde_json::from_str(&serde_json::to_string(&reports).unwrap()).unwrap();
        assert_eq!(back, reports);
        let problem = Problem::new("doctor", "no bus");
        let back: Problem = serde_json::from_str(&serde_json::to_string(&problem).unwrap()).unwrap();
        assert_eq!(back, problem);
        let finding =
            Finding { unit: None, setting: "Where".into(), problem: "p".into(), remedy: "r".into() };
        let diagnosis =
            Diagnosis { error: Some("x".into()), findings: vec![finding], ..Diagnosis::of("s", "o") };
        let back: Diagnosis = serde_json::from_str(&serde_json::to_string(&diagnosis).unwrap()).unwrap();
        assert_eq!(back, diagnosis);
    }

    proptest! {
        #[test]
        fn the_worst_is_one_of_them_and_no_order_hides_it(mut all in prop::collection::vec(
            prop::sample::select(vec![Exit::Ok, Exit::Failed, Exit::NotRunning, Exit::NoSuchUnit]), 1..6
        )) {
            let worst = Exit::worst(all.iter().copied());
            prop_assert!(all.contains(&worst));
            prop_assert_eq!(worst == Exit::Ok, all.iter().all(|exit| *exit == Exit::Ok));
            prop_assert_eq!(worst == Exit::Failed, all.contains(&Exit::Failed));
            all.reverse();
            prop_assert_eq!(Exit::worst(all), worst);
        }
    }
}
