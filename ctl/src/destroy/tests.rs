//! What is deleted, in which order, and what is left if it can't be.

use std::fs;
use std::time::Instant;

use futures_lite::future::block_on;

use super::*;
use crate::actions::DEFAULT_TIMEOUT;
use crate::units::{Activity, Ended, Job, Lines, Pair, UnitState};

/// Plays systemd: how the units are at each time it is asked about, of which the last stays, and what is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Play {
    pub(crate) active: Vec<&'static str>,
    pub(crate) links: Vec<String>,
    pub(crate) refuses: Option<UnitsError>,
    /// What a start makes that is under way.
    makes: Option<PathBuf>,
    pub(crate) asked: Vec<String>,
}

impl Play {
    pub(crate) fn of(active: &[&'static str]) -> Self {
        Self { active: active.to_vec(), ..Self::default() }
    }
}

impl Units for Play {
    async fn run(&mut self, job: Job, names: &Names, _deadline: Instant) -> Result<Ended, UnitsError> {
        self.asked.push(format!("{job:?} {}", job.unit(names)));
        let before = Pair { server: "inactive".into(), overlay: "inactive".into() };
        Ok(Ended { before, result: "done".into() })
    }

    async fn state(&mut self, _names: &Names, _asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        let down = || UnitState { active_state: "inactive".into(), ..UnitState::default() };
        Ok(Pair { server: down(), overlay: down() })
    }

    async fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.asked.push(format!("reset-failed {unit}"));
        Ok(())
    }

    async fn requires_overlay(&mut self, _names: &Names) -> Result<bool, UnitsError> {
        Ok(true)
    }

    async fn activity(&mut self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        self.asked.push(format!("activity {}", units.join(" ")));
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        let now = if self.active.len() > 1 { self.active.remove(0) } else { self.active[0] };
        if let Some(path) = self.makes.as_ref().filter(|_| now.contains("activating")) {
            fs::create_dir_all(path).unwrap();
        }
        // One word for all of them, or one for each.
        let each = now.split(' ').cycle().take(units.len());
        Ok(each.map(|now| Activity { active_state: now.into(), since_us: 0 }).collect())
    }

    async fn wait_until_down(&mut self, _units: &[String], _deadline: Instant) -> Result<(), UnitsError> {
        unreachable!("nothing here waits for a server")
    }
}

impl UnitFiles for Play {
    async fn disable(&mut self, unit: &str) -> Result<Vec<String>, UnitsError> {
        self.asked.push(format!("disable {unit}"));
        Ok(self.links.clone())
    }
}

/// A host with instance 3, of which a server has written something.
fn host() -> (tempfile::TempDir, Host) {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().canonicalize().unwrap();
    for name in ["runtime/3/upper", "runtime/3/work", "runtime/3/merged", "instances", "units"] {
        fs::create_dir_all(state_dir.join(name)).unwrap();
    }
    fs::write(state_dir.join("runtime/3/upper/precious"), "").unwrap();
    for name in ["3.toml", "3.env", "4.toml"] {
        fs::write(state_dir.join("instances").join(name), "overlays = []").unwrap();
    }
    let table = state_dir.join("mountinfo");
    fs::write(&table, "").unwrap();
    let units = state_dir.join("units");
    (directory, Host { state_dir, units, mount_tables: vec![table], is_root: true, ..Host::default() })
}

fn three() -> Instance {
    "3".parse().unwrap()
}

/// The whole way, agreed to.
fn all_of_it(play: &mut Play, host: &Host) -> Destroyed {
    block_on(async {
        match look(play, host, &three()).await {
            Ok(doomed) => destroy(play, host, &doomed, DEFAULT_TIMEOUT).await,
            Err(refusal) => Destroyed::refused(&three(), &refusal),
        }
    })
}

fn without_directory(host: &Host, text: &str) -> String {
    text.replace(host.state_dir.to_str().unwrap(), "/s")
}

fn left(host: &Host) -> Vec<String> {
    let mut all = Vec::new();
    for directory in ["instances", "runtime"] {
        let entries = fs::read_dir(host.state_dir.join(directory)).unwrap();
        all.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    }
    all.sort();
    all
}

const WHOLE: [&str; 4] = ["3", "3.env", "3.toml", "4.toml"];

#[test]
fn all_of_it_goes_and_nothing_else() {
    let (_directory, host) = host();
    fs::create_dir_all(host.units.join("left4me-server@3.service.d")).unwrap();
    let mut play =
        Play { links: vec!["/s/wants/left4me-server@3.service".into()], ..Play::of(&["inactive"]) };
    let doomed = block_on(look(&mut play, &host, &three())).unwrap();
    insta::assert_snapshot!(without_directory(&host, &question(&doomed)));
    play.asked.clear();
    let destroyed = block_on(destroy(&mut play, &host, &doomed, DEFAULT_TIMEOUT));
    assert_eq!((destroyed.ok, destroyed.exit), (true, Exit::Ok), "{destroyed:?}");
    insta::assert_snapshot!(without_directory(&host, &destroyed.to_string()));
    assert_eq!(left(&host), ["4.toml"]);
    let server = "activity left4me-server@3.service";
    let both = "activity left4me-server@3.service left4me-overlay@3.service";
    let order = [server, "disable left4me-server@3.service", "Stop left4me-overlay@3.service", both];
    assert_eq!(play.asked, order);
    let again = all_of_it(&mut play, &host);
    assert_eq!(again.exit, Exit::NoSuchUnit);
    insta::assert_snapshot!(without_directory(&host, &again.error.unwrap()));
}

#[test]
fn what_is_refused_leaves_all_of_it() {
    let (_directory, host) = host();
    let refused = |mut play: Play, host: &Host| {
        let destroyed = all_of_it(&mut play, host);
        assert!(!destroyed.ok && destroyed.exit == Exit::Failed && destroyed.deleted.is_empty());
        assert_eq!(left(host), WHOLE);
        assert!(!play.asked.iter().any(|asked| asked.starts_with("Stop")), "{:?}", play.asked);
        destroyed.error.unwrap()
    };
    let mut all = Vec::new();
    for active in ["active", "activating", "deactivating", "reloading"] {
        all.push(refused(Play::of(&[active]), &host));
    }
    // Between the question and the answer.
    all.push(refused(Play::of(&["inactive", "active"]), &host));
    all.push(refused(Play { refuses: Some(UnitsError::Unreachable("no".into())), ..Play::default() }, &host));
    all.push(refused(Play::of(&["inactive"]), &Host { is_root: false, ..host.clone() }));
    all.extend([Refusal::No.to_string(), Refusal::Unasked.to_string()]);
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn what_is_still_mounted_keeps_all_of_it_and_can_be_tried_again() {
    let (_directory, host) = host();
    let merged = host.state_dir.join("runtime/3/merged");
    let line = format!("1 2 0:3 / {} rw - overlay overlay rw\n", merged.display());
    fs::write(&host.mount_tables[0], line).unwrap();
    let mut play = Play::of(&["failed"]);
    let destroyed = all_of_it(&mut play, &host);
    assert_eq!((destroyed.ok, destroyed.exit), (false, Exit::Failed));
    assert_eq!(left(&host), WHOLE);
    insta::assert_snapshot!(without_directory(&host, &destroyed.error.unwrap()));
    // By the ways that a stop has: the overlay's unit is started and stopped, once.
    assert!(play.asked.contains(&"Mount left4me-overlay@3.service".to_owned()), "{:?}", play.asked);
    fs::write(&host.mount_tables[0], "").unwrap();
    assert!(all_of_it(&mut play, &host).ok);
    assert_eq!(left(&host), ["4.toml"]);
}

#[test]
fn what_an_interrupted_one_has_left_goes() {
    for keep in ["runtime/3", "runtime/.purge-3", "instances/3.toml", "instances/3.env"] {
        let (_directory, host) = host();
        fs::rename(host.state_dir.join("runtime/3"), host.state_dir.join("runtime/.purge-3")).unwrap();
        fs::create_dir(host.state_dir.join("runtime/3")).unwrap();
        let all = ["runtime/3", "runtime/.purge-3", "instances/3.toml", "instances/3.env"];
        for (at, other) in all.into_iter().enumerate().filter(|(_, other)| *other != keep) {
            fs::rename(host.state_dir.join(other), host.state_dir.join(at.to_string())).unwrap();
        }
        let destroyed = all_of_it(&mut Play::of(&["inactive"]), &host);
        assert!(destroyed.ok, "{keep}: {destroyed:?}");
        assert!(destroyed.deleted.iter().any(|path| path.ends_with(keep)), "{keep}: {destroyed:?}");
        assert_eq!(left(&host), ["4.toml"], "{keep}");
    }
}

#[test]
fn one_that_was_started_meanwhile_is_told() {
    let (_directory, host) = host();
    let destroyed = all_of_it(&mut Play::of(&["inactive", "inactive", "active"]), &host);
    assert!(!destroyed.ok);
    assert!(destroyed.error.unwrap().contains("started it meanwhile"));
    assert_eq!(left(&host), ["4.toml"]);
}

#[test]
fn a_start_that_has_read_the_file_before_it_went_is_taken_back() {
    let (_directory, host) = host();
    let overlay = "left4me-overlay@3.service";
    let stops = |play: &Play| play.asked.iter().filter(|asked| **asked == format!("Stop {overlay}")).count();
    // The overlay is mounted, and the server waits for it: it is down.
    let mut play = Play {
        makes: Some(host.state_dir.join("runtime/3/upper")),
        ..Play::of(&["inactive", "inactive", "inactive activating", "inactive"])
    };
    let destroyed = all_of_it(&mut play, &host);
    assert!(destroyed.ok, "{destroyed:?}");
    assert!(destroyed.notes.iter().any(|note| note.contains("that start was taken back")), "{destroyed:?}");
    assert_eq!((stops(&play), left(&host)), (2, vec!["4.toml".to_owned()]));
}

#[test]
fn a_start_that_found_no_file_any_more_leaves_no_failed_unit() {
    for meanwhile in ["inactive failed", "inactive activating"] {
        let (_directory, host) = host();
        let mut play = Play::of(&["inactive", "inactive", meanwhile, "inactive failed"]);
        let destroyed = all_of_it(&mut play, &host);
        assert!(destroyed.ok, "{destroyed:?}");
        assert_eq!(play.asked.last().unwrap(), "reset-failed left4me-overlay@3.service");
    }
}
