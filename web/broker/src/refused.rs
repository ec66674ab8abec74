//! Who held a mount while a server's own unit unmounted it in vain, as units did before the overlay had one of its own. At 936c8bb
//! that was the unit's helper itself, which is gone when the job has failed: so what the unit starts while the job runs is scanned. A
//! scan that came too late for it is made up for by what systemd knows: which command it ran in which directory.
//!
//! Today's server has no such command, and costs a question to systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use async_io::block_on;
use holders::{cgroup, shown};
use left4me_helper::instance::Instance;
use systemd_bus::{ExecStatus, ServiceProxy, exec_statuses, object, unit_path};
use zbus::connection::Builder;

/// The line of a unit that unmounts by itself.
const LINE: &str = "ExecStopPost";

/// How long systemd may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Between two scans: that a process has entered a mount is no event for who traces nobody.
const PAUSE: Duration = Duration::from_millis(10);

/// Where systemd has the units' control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What of a process shows that it is in a mount, and what that is.
const LINKS: [(&str, &str); 3] =
    [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")];

/// A unit that unmounts by itself, with who scans it.
#[derive(Debug)]
pub(crate) struct Watched {
    unit: String,
    merged: PathBuf,
    service: ServiceProxy<'static>,
    before: Vec<ExecStatus>,
    ends: Sender<()>,
    thread: JoinHandle<Option<String>>,
}

impl Watched {
    /// Begins, if the unit has such a line. Whatever fails here fails in the job, too, which says so.
    pub(crate) fn begin(instance: &Instance, merged: PathBuf) -> Option<Self> {
        let unit = instance.unit();
        let (service, before, group) = block_on(asked(&unit)).ok()?;
        if before.is_empty() || group.is_empty() {
            return None;
        }
        let directory = Path::new(CGROUPS).join(group.trim_start_matches('/'));
        let (ends, ended) = mpsc::channel();
        let (name, mount) = (unit.clone(), merged.clone());
        let thread = std::thread::Builder::new().name("refused".into());
        let thread = thread.spawn(move || seen(&name, &mount, &directory, &ended)).ok()?;
        Some(Self { unit, merged, service, before, ends, thread })
    }

    /// Ends; who held the mount, if that is `left`.
    pub(crate) fn end(self, left: bool) -> Option<String> {
        drop(self.ends);
        let seen = self.thread.join().ok().flatten();
        if !left {
            return None;
        }
        let (unit, merged) = (self.unit.as_str(), self.merged.as_path());
        seen.or_else(|| {
            let (after, directory) = block_on(ran(&self.service)).ok()?;
            deduced(unit, merged, &self.before, &after, &directory)
        })
    }
}

/// A service, its commands, and its control group.
async fn asked(unit: &str) -> zbus::Result<(ServiceProxy<'static>, Vec<ExecStatus>, String)> {
    let bus = Builder::system()?.method_timeout(ANSWER).build().await?;
    let service: ServiceProxy<'static> = object(&bus, unit_path(unit)).await?;
    let commands = exec_statuses(&service, LINE).await?;
    let group = service.control_group().await?;
    Ok((service, commands, group))
}

/// Its commands as they ran, and in which directory.
async fn ran(service: &ServiceProxy<'static>) -> zbus::Result<(Vec<ExecStatus>, String)> {
    Ok((exec_statuses(service, LINE).await?, service.working_directory().await?))
}

/// Who was in the mount when somebody was last, of the processes that came with the job: the server itself is in it, and ends before.
/// Three links of each: a whole scan takes longer than such a command on a slow machine.
fn seen(unit: &str, merged: &Path, group: &Path, ended: &Receiver<()>) -> Option<String> {
    let server = cgroup::processes(group);
    let mut held = None;
    loop {
        let new = cgroup::processes(group).into_iter().filter(|pid| !server.contains(pid));
        let holders: Vec<_> = new.filter_map(|pid| holder(unit, merged, pid)).collect();
        if !holders.is_empty() {
            held = Some(format!("held by {}", holders.join("; ")));
        }
        if ended.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
            return held;
        }
    }
}

/// As `holders` says it: `35259 (left4me-overlay) of left4me-server@3.service: working directory`. The links are read, not followed.
fn holder(unit: &str, merged: &Path, pid: u32) -> Option<String> {
    let process = Path::new("/proc").join(pid.to_string());
    let is_in = |link: &str| fs::read_link(process.join(link)).is_ok_and(|path| path.starts_with(merged));
    let kinds = LINKS.iter().filter(|(link, _)| is_in(link)).map(|(_, kind)| *kind).collect::<Vec<_>>();
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let name = shown(Path::new(name.trim_end_matches('\n')));
    (!kinds.is_empty()).then(|| format!("{pid} ({name}) of {unit}: {}", kinds.join(", ")))
}

/// A command that ran since `before`, was refused, and was started in the mount.
fn deduced(
    unit: &str,
    merged: &Path,
    before: &[ExecStatus],
    after: &[ExecStatus],
    directory: &str,
) -> Option<String> {
    // `!` is what systemd says for the `-` of `WorkingDirectory=-`.
    let directory = Path::new(directory.trim_start_matches(['!', '-']));
    let is_new = |run: &&ExecStatus| !before.iter().any(|old| old.started_us == run.started_us);
    let failed = after.iter().filter(is_new).find(|run| run.status != 0)?;
    let name = Path::new(&failed.path).file_name().unwrap_or_default();
    directory.starts_with(merged).then(|| {
        format!(
            "held by {} ({}) of {unit}: working directory, as systemd started it with WorkingDirectory={} (no scan saw it \
             alive)",
            failed.pid,
            shown(Path::new(name)),
            shown(directory)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = "left4me-server@3.service";

    fn run(started_us: u64, status: i32) -> ExecStatus {
        ExecStatus {
            path: "/usr/local/libexec/left4me/left4me-overlay".into(),
            started_us,
            pid: 314,
            status,
            ..ExecStatus::default()
        }
    }

    #[test]
    fn a_command_that_was_started_in_the_mount_held_it() {
        let merged = Path::new("/m/3/merged");
        let deduced = |before, after, directory| deduced(UNIT, merged, &[before], &[after], directory);
        let held = deduced(run(0, 0), run(7, 32), "!/m/3/merged").unwrap();
        assert!(held.starts_with("held by 314 (left4me-overlay) of left4me-server@3.service"), "{held}");
        assert!(held.contains("WorkingDirectory=/m/3/merged"), "{held}");
        // It was not refused, has not run again, or was elsewhere.
        assert_eq!(deduced(run(0, 0), run(7, 0), "/m/3/merged"), None);
        assert_eq!(deduced(run(7, 32), run(7, 32), "/m/3/merged"), None);
        assert_eq!(deduced(run(0, 0), run(7, 32), "/m/3/merged2"), None);
        assert_eq!(deduced(run(0, 0), run(7, 32), ""), None);
    }

    #[test]
    fn who_comes_with_the_job_is_seen_in_the_mount_and_who_was_there_is_not() {
        let group = tempfile::tempdir().unwrap();
        let merged = std::env::current_dir().unwrap();
        let procs = group.path().join("cgroup.procs");
        let own = std::process::id();
        fs::write(&procs, format!("{own}\n")).unwrap();
        let (ends, ended) = mpsc::channel();
        drop(ends);
        assert_eq!(seen(UNIT, &merged, group.path(), &ended), None);

        let held = holder(UNIT, &merged, own).unwrap();
        assert!(held.starts_with(&format!("{own} (")), "{held}");
        assert!(held.contains(") of left4me-server@3.service: working directory"), "{held}");
        assert_eq!(holder(UNIT, Path::new("/nowhere"), own), None);
        assert_eq!(holder(UNIT, &merged, u32::MAX), None);
    }
}
