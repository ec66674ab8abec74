//! The runs of a service's Exec lines, and of its main process, as systemd tells them once they have ended.
//!
//! The main process is asked for by itself (`ExecMain*`): of Type=forking it is none that an Exec line started, and a line
//! whose process became the main one says no more of it than when it began.

use std::collections::HashSet;

use anyhow::{Context, Result};
use futures_util::future::{try_join, try_join_all};
use systemd_bus::{ExecStatus, ServiceProxy, exec_statuses};
use vm_agent::recording::{EXEC_LINES, Exec, MAIN, What};
use vm_agent::wire::Exit;
use zbus::block_on;
use zbus::zvariant::{OwnedValue, Value};

use super::clock::Clock;
use super::events::Sink;

/// What systemd tells of the main process, org.freedesktop.systemd1(5); in the order of [`main_process`].
const MAIN_PROPERTIES: [&str; 5] = [
    "ExecMainPID",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
    "ExecMainCode",
    "ExecMainStatus",
];

/// The runs of one service that were recorded.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// By line, process id and start in microseconds.
    recorded: HashSet<(&'static str, u32, u64)>,
}

impl Runs {
    /// Records every run that has ended since the last time, and on demand those that have not.
    ///
    /// # Errors
    /// What D-Bus says.
    pub(super) fn record(
        &mut self,
        service: &ServiceProxy<'_>,
        unit: &str,
        sink: &Sink,
        running_too: bool,
    ) -> Result<()> {
        let of_lines = try_join_all(EXEC_LINES.map(|line| exec_statuses(service, line)));
        let of_main = try_join_all(MAIN_PROPERTIES.map(|name| service.inner().get_property(name)));
        let (of_lines, of_main) = block_on(try_join(of_lines, of_main))
            .context("the runs of Exec lines and of the main process")?;
        let of_lines = EXEC_LINES.into_iter().zip(of_lines);
        for (line, runs) in of_lines.chain([(MAIN, vec![main_process(&of_main)])]) {
            for run in runs {
                let key = (line, run.pid, run.started_us);
                let is_new = !self.recorded.contains(&key);
                if run.started_us != 0 && is_new && (running_too || run.exited_us != 0) {
                    self.recorded.insert(key);
                    let at = sink.clock.at_us(run.started_us);
                    sink.send(at, What::Exec(exec(run, unit, line, sink.clock)));
                }
            }
        }
        Ok(())
    }
}

/// Of the values of [`MAIN_PROPERTIES`]; one that never ran where one of them is of another type than documented.
fn main_process(values: &[OwnedValue]) -> ExecStatus {
    let values: Vec<&Value<'_>> = values.iter().map(|value| &**value).collect();
    match values.as_slice() {
        [
            Value::U32(pid),
            Value::U64(started_us),
            Value::U64(exited_us),
            Value::I32(code),
            Value::I32(status),
        ] => ExecStatus {
            pid: *pid,
            started_us: *started_us,
            // Of the run before, while this one has not ended.
            exited_us: if exited_us < started_us { 0 } else { *exited_us },
            code: *code,
            status: *status,
            ..ExecStatus::default()
        },
        _ => ExecStatus::default(),
    }
}

/// A run of one of the unit's lines as an event.
fn exec(run: ExecStatus, unit: &str, line: &str, clock: Clock) -> Exec {
    let ended = (run.exited_us != 0).then(|| clock.at_us(run.exited_us));
    let is_exit = run.code == nix::libc::CLD_EXITED;
    let exit = ended.map(|_| if is_exit { Exit::Code(run.status) } else { Exit::Signal(run.status) });
    Exec { unit: unit.to_owned(), line: line.to_owned(), argv: run.argv, pid: run.pid, ended, exit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_process_is_known_by_its_properties() {
        let values = |pid: Value<'static>, exited_us: u64| -> Vec<OwnedValue> {
            let values = [pid, 5_000_u64.into(), exited_us.into(), 2_i32.into(), 15_i32.into()];
            values.map(|value| OwnedValue::try_from(value).expect("no descriptor is in it")).into()
        };
        let main = main_process(&values(7_u32.into(), 9_000));
        assert_eq!(
            (main.pid, main.started_us, main.exited_us, main.code, main.status),
            (7, 5_000, 9_000, 2, 15)
        );
        assert_eq!(main_process(&values(7_u32.into(), 4_000)).exited_us, 0, "the end of the run before");
        assert_eq!(main_process(&values("7".into(), 9_000)), ExecStatus::default());
    }

    #[test]
    fn a_run_is_told_with_its_line_and_by_our_clock() {
        let argv = vec!["/bin/x".to_owned(), "3".to_owned()];
        let run = ExecStatus {
            argv: argv.clone(),
            started_us: 2_000,
            exited_us: 4_000,
            pid: 77,
            code: 1,
            status: 32,
            ..ExecStatus::default()
        };
        let exec = exec(run, "x.service", "ExecStopPost", Clock::began_at(1_000_000));
        let expected = Exec {
            unit: "x.service".to_owned(),
            line: "ExecStopPost".to_owned(),
            argv,
            pid: 77,
            ended: Some(3_000_000),
            exit: Some(Exit::Code(32)),
        };
        assert_eq!(exec, expected);
    }

    #[test]
    fn tells_a_signal_from_a_status() {
        let run = |code, exited_us| ExecStatus {
            started_us: 1,
            exited_us,
            code,
            status: 9,
            ..ExecStatus::default()
        };
        let cases = [
            (run(1, 5), Some(Exit::Code(9))),
            (run(2, 5), Some(Exit::Signal(9))),
            (run(3, 5), Some(Exit::Signal(9))),
            (run(0, 0), None),
        ];
        for (run, exit) in cases {
            assert_eq!(exec(run, "x.service", "ExecStart", Clock::began_at(0)).exit, exit);
        }
    }
}
