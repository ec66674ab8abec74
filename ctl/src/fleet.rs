//! Several instances at once, and which there are.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use holders::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;
use left4me_helper::state::StateDir;

use crate::actions::{Action, Host};
use crate::control::run;
use crate::report::Report;
use crate::units::{Activity, Units, UnitsError, is_down};
use crate::warning::{self, Running};

/// How many instances are worked on at once. A stop is systemd's work and a delete the disk's; more at once only wait
/// for each other. And each asks twelve questions at a time, of which dbus-daemon answers 128 to a connection
/// (`max_replies_per_connection`, dbus-daemon(1)).
const AT_ONCE: usize = 10;

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Of each instance: its jobs, and then deleting.
    pub timeout: Duration,
    /// How long before a stop or a reset the players are told.
    pub grace: Option<Duration>,
}

/// Does `action` to all of `instances`, several at once, and says how each went, in their order. `done` hears of each
/// end as it comes.
pub async fn run_all<U: Units + Clone>(
    units: &U,
    host: &Host,
    action: Action,
    instances: &[Instance],
    times: Times,
    done: &mut dyn FnMut(&Report),
) -> Vec<Report> {
    let begun = (host.now_us)();
    let warned = match times.grace {
        Some(grace) => Some(warn(&mut units.clone(), host, instances, grace).await),
        None => None,
    };
    let grace_us = warned.as_ref().map(|_warned| (host.now_us)().saturating_sub(begun));
    // One alone, the usual case, is worth no thread.
    let host = &Host { offload: host.offload || instances.len() > 1, ..host.clone() };
    let act = |index: usize| {
        let (mut units, warned) = (units.clone(), &warned);
        async move {
            let mut report = run(&mut units, host, action, &instances[index], times.timeout).await;
            report.phases.grace_us = grace_us;
            if let Some(note) = warned.as_ref().and_then(|notes| notes[index].clone()) {
                report.notes.insert(0, note);
            }
            (index, report)
        }
    };
    let mut reports = pin!(stream::iter((0..instances.len()).map(act)).buffer_unordered(AT_ONCE));
    let mut ended: Vec<Option<Report>> = vec![None; instances.len()];
    while let Some((index, report)) = reports.next().await {
        done(&report);
        ended[index] = Some(report);
    }
    ended.into_iter().map(|report| report.expect("every instance was worked on")).collect()
}

/// Tells the players of those servers that run, and waits for all of them together: so long, or until none runs any
/// more. A note for each instance that is warned, or should have been.
async fn warn<U: Units>(
    units: &mut U,
    host: &Host,
    instances: &[Instance],
    grace: Duration,
) -> Vec<Option<String>> {
    let deadline = Instant::now() + grace;
    let names: Vec<_> = instances.iter().map(Instance::unit).collect();
    let activity = match units.activity(&names).await {
        Ok(activity) => activity,
        Err(error) => return vec![Some(format!("no player was warned: {error}")); instances.len()],
    };
    let is_running: Vec<_> = activity.iter().map(|unit| !is_down(&unit.active_state)).collect();
    let line = warning::line(grace);
    let tell = |instance: &Instance| {
        let said = StateDir::open(&host.state_dir).and_then(|state| warning::say(&state, instance, &line));
        match said {
            Ok(true) => format!("wrote to its console \"{line}\""),
            Ok(false) => "it has no console, no player was warned".to_owned(),
            Err(error) => format!("no player was warned: {}", chain(&error)),
        }
    };
    let mut notes: Vec<_> = instances
        .iter()
        .zip(&is_running)
        .map(|(instance, is_running)| is_running.then(|| tell(instance)))
        .collect();
    let running: Vec<_> = names
        .into_iter()
        .zip(&is_running)
        .filter_map(|(unit, is_running)| is_running.then_some(unit))
        .collect();
    if !running.is_empty()
        && let Err(error) = units.wait_until_down(&running, deadline).await
    {
        // Then the stop comes early, or can't be either.
        for note in notes.iter_mut().flatten() {
            note.push_str(&format!("; the wait of {} s failed: {error}", grace.as_secs()));
        }
    }
    notes
}

/// Those of `instances` that run, and what a reset would cost them.
///
/// # Errors
/// As [`UnitsError`].
pub async fn running<U: Units>(
    units: &mut U,
    host: &Host,
    instances: &[Instance],
) -> Result<Vec<Running>, UnitsError> {
    let names: Vec<_> = instances.iter().map(Instance::unit).collect();
    let now = (host.now_us)();
    let activity = units.activity(&names).await?;
    let running = instances.iter().zip(activity).filter(|(_, unit)| !is_down(&unit.active_state));
    Ok(running
        .map(|(instance, Activity { since_us, .. })| Running {
            instance: instance.clone(),
            since: (since_us > 0).then(|| Duration::from_micros(now.saturating_sub(since_us))),
            loss: StateDir::open(&host.state_dir)
                .and_then(|state| warning::loss(&state, instance))
                .map_err(|error| chain(&error)),
        })
        .collect())
}

/// All instances, numbers first: those with a file in `instances/`, and, unless they are to be started, those that
/// have a runtime directory only. A reset is of those too of which an interrupted one has left something.
///
/// # Errors
/// The state directory cannot be read.
pub fn all_instances(state_dir: &Path, action: Action) -> Result<Vec<Instance>, HelperError> {
    let mut names = names_in(&state_dir.join("instances"))?
        .into_iter()
        .filter_map(|name| name.strip_suffix(".toml")?.parse().ok())
        .collect::<Vec<Instance>>();
    if action != Action::Start {
        let left = |name: &str| match name.strip_prefix(".purge-") {
            Some(of) if action == Action::Reset => of.parse().ok(),
            _ => name.parse().ok(),
        };
        names.extend(names_in(&state_dir.join("runtime"))?.iter().filter_map(|name| left(name)));
    }
    names.sort_by_key(|name| (name.as_str().parse::<u64>().unwrap_or(u64::MAX), name.to_string()));
    names.dedup();
    Ok(names)
}

pub(crate) fn names_in(directory: &Path) -> Result<Vec<String>, HelperError> {
    let failed = |error: std::io::Error| {
        HelperError::call("read directory", directory)(
            rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        )
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().unwrap_or_default()))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::{Arc, Mutex};

    use futures_lite::future::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::actions::DEFAULT_TIMEOUT;
    use crate::units::{Ended, Job, Lines, Names, Pair, UnitState};

    /// Plays systemd: of the servers those run that are listed, until they are stopped; and what it is asked.
    #[derive(Clone, Default)]
    struct Play {
        running: Vec<String>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Units for Play {
        async fn run(&mut self, job: Job, names: &Names, _deadline: Instant) -> Result<Ended, UnitsError> {
            self.asked.lock().unwrap().push(format!("{job:?} {}", names.server));
            let before = Pair { server: "inactive".into(), overlay: "inactive".into() };
            Ok(Ended { before, result: "done".into() })
        }

        async fn state(&mut self, _names: &Names, _asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
            let down = || UnitState { active_state: "inactive".into(), ..UnitState::default() };
            Ok(Pair { server: down(), overlay: down() })
        }

        async fn reset_failed(&mut self, _unit: &str) -> Result<(), UnitsError> {
            Ok(())
        }

        async fn requires_overlay(&mut self, _names: &Names) -> Result<bool, UnitsError> {
            Ok(true)
        }

        async fn activity(&mut self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
            let state = |unit| if self.running.contains(unit) { ("active", 5) } else { ("inactive", 0) };
            let activity = |unit| {
                let (active_state, since_us) = state(unit);
                Activity { active_state: active_state.into(), since_us }
            };
            Ok(units.iter().map(activity).collect())
        }

        async fn wait_until_down(&mut self, units: &[String], deadline: Instant) -> Result<(), UnitsError> {
            assert!(deadline > Instant::now());
            self.asked.lock().unwrap().push(format!("wait for {}", units.join(" ")));
            Ok(())
        }
    }

    const TIMES: Times = Times { timeout: DEFAULT_TIMEOUT, grace: None };

    #[test]
    fn several_are_reset_and_reported_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("mountinfo");
        fs::write(&table, "").unwrap();
        let state_dir = directory.path().canonicalize().unwrap();
        let host = Host { state_dir, mount_tables: vec![table], ..Host::default() };
        fs::create_dir_all(host.state_dir.join("runtime/3/upper")).unwrap();
        for name in 10..60 {
            fs::create_dir_all(host.state_dir.join(format!("runtime/{name}/upper/d"))).unwrap();
        }
        fs::create_dir(host.state_dir.join("runtime/.purge-9")).unwrap();
        fs::create_dir(host.state_dir.join("instances")).unwrap();
        fs::write(host.state_dir.join("instances/b.toml"), "").unwrap();
        fs::write(host.state_dir.join("instances/2.toml"), "").unwrap();
        fs::write(host.state_dir.join("instances/2.env"), "").unwrap();
        let names = |action| {
            all_instances(&host.state_dir, action)
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Action::Start), ["2", "b"]);
        let expected: Vec<_> =
            [2, 3, 9].into_iter().chain(10..60).map(|name| name.to_string()).chain(["b".into()]).collect();
        assert_eq!(names(Action::Reset), expected);
        let all = all_instances(&host.state_dir, Action::Reset).unwrap();
        let mut heard = 0;
        let reports =
            block_on(run_all(&Play::default(), &host, Action::Reset, &all, TIMES, &mut |_| heard += 1));
        assert_eq!(heard, all.len());
        assert!(reports.iter().all(|report| report.ok), "{reports:?}");
        assert!(reports.iter().map(|report| &report.instance).eq(&expected));
        assert_eq!(fs::read_dir(host.state_dir.join("runtime")).unwrap().count(), 0);
        assert_eq!(block_on(run_all(&Play::default(), &host, Action::Reset, &[], TIMES, &mut |_| ())), []);
    }

    /// One thread polls all of them: what blocks for one is done in another.
    #[test]
    fn who_waits_for_a_lock_holds_nobody_else_up() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("mountinfo");
        fs::write(&table, "").unwrap();
        let state_dir = directory.path().canonicalize().unwrap();
        let host = Host { state_dir, mount_tables: vec![table], ..Host::default() };
        let names: Vec<Instance> = ["3", "4"].map(|name| name.parse().unwrap()).into();
        for name in &names {
            fs::create_dir_all(host.state_dir.join(format!("runtime/{name}/upper"))).unwrap();
        }
        let held = fs::File::open(host.state_dir.join("runtime/3")).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let times = Times { timeout: Duration::from_millis(500), ..TIMES };
        let mut ended = Vec::new();
        let mut hear = |report: &Report| ended.push((report.instance.clone(), report.ok));
        block_on(run_all(&Play::default(), &host, Action::Reset, &names, times, &mut hear));
        assert_eq!(ended, [("4".to_owned(), true), ("3".to_owned(), false)]);
    }

    #[test]
    fn those_that_run_are_warned_and_waited_for_together() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("mountinfo");
        fs::write(&table, "").unwrap();
        let state_dir = directory.path().canonicalize().unwrap();
        let host = Host { state_dir, mount_tables: vec![table], now_us: || 3_000_005, ..Host::default() };
        let names: Vec<Instance> = ["3", "4", "5"].map(|name| name.parse().unwrap()).into();
        for name in &names {
            fs::create_dir_all(host.state_dir.join(format!("runtime/{name}/merged"))).unwrap();
        }
        fs::create_dir(host.state_dir.join("runtime/3/upper")).unwrap();
        fs::write(host.state_dir.join("runtime/3/upper/x"), "").unwrap();
        let play = Play { running: [&names[0], &names[2]].map(Instance::unit).into(), ..Play::default() };
        let times = Times { grace: Some(Duration::from_secs(30)), ..TIMES };
        let reports = block_on(run_all(&play, &host, Action::Stop, &names, times, &mut |_| ()));
        let asked = play.asked.lock().unwrap().clone();
        assert_eq!(asked[0], "wait for left4me-server@3.service left4me-server@5.service");
        assert_eq!(asked.len(), 4, "{asked:?}");
        let notes: Vec<_> = reports.iter().map(|report| report.notes.join(";")).collect();
        assert_eq!(
            notes,
            ["it has no console, no player was warned", "", "it has no console, no player was warned"]
        );
        assert!(reports.iter().all(|report| report.ok && report.phases.grace_us == Some(0)));
        let running = block_on(running(&mut play.clone(), &host, &names)).unwrap();
        let who: Vec<_> = running.iter().map(|one| one.instance.as_str()).collect();
        assert_eq!((who, running[0].since), (vec!["3", "5"], Some(Duration::from_secs(3))));
        assert_eq!(running[0].loss.as_ref().unwrap().files, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever else lies there: half-deleted, hidden, from an editor, or in another encoding.
        #[test]
        fn all_instances_are_those_that_have_something_each_once(
            files in prop::collection::vec("(\\.|A)?[ab12]{0,2}(\\.toml|\\.toml|\\.toml~|\\.env|\\.d)?", 0..8),
            directories in prop::collection::vec("(\\.purge-|é)?[ab12]{1,2}", 0..8),
        ) {
            let state = tempfile::tempdir().unwrap();
            for (place, names) in [("instances", &files), ("runtime", &directories)] {
                fs::create_dir(state.path().join(place)).unwrap();
                for name in names.iter().filter(|name| !["", "."].contains(&name.as_str())) {
                    fs::write(state.path().join(place).join(name), "").unwrap();
                }
            }
            let found = |action| -> Vec<String> {
                all_instances(state.path(), action).unwrap().iter().map(ToString::to_string).collect()
            };
            let to_start = found(Action::Start);
            for action in [Action::Stop, Action::Reset, Action::Status] {
                let all = found(action);
                prop_assert!(to_start.iter().all(|name| all.contains(name)), "{:?} of {:?}", to_start, all);
                for (at, name) in all.iter().enumerate() {
                    prop_assert!(!all[..at].contains(name), "{} twice in {:?}", name, all);
                    let has_file = files.contains(&format!("{name}.toml"));
                    prop_assert_eq!(to_start.contains(name), has_file);
                    let has_trash = action == Action::Reset && directories.contains(&format!(".purge-{name}"));
                    prop_assert!(has_file || has_trash || directories.contains(name), "{} is nowhere", name);
                }
                let numbers: Vec<u64> = all.iter().map_while(|name| name.parse().ok()).collect();
                prop_assert!(numbers.is_sorted());
                prop_assert_eq!(numbers.len(), all.iter().filter(|name| name.parse::<u64>().is_ok()).count());
                let is_name = |name: &&str| name.parse::<Instance>().is_ok();
                let trash = |name: &'_ String| action == Action::Reset && name.starts_with(".purge-");
                let must = directories.iter().map(|name| if trash(name) { &name[7..] } else { name });
                prop_assert!(must.filter(is_name).all(|name| all.iter().any(|one| one == name)));
            }
        }
    }
}
