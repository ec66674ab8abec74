//! A machine that a test plays: servers that are what it says, and jobs that end when it says.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};

use left4me_broker::game::Players;
use left4me_broker::host::{Diagnoses, Host, Loss, Server, Servers};
use left4me_broker::journal::{Journal, Line};
use left4me_broker::verbs::Deed;
use left4me_ctl::actions::Action;
use left4me_ctl::control::not_begun;
use left4me_ctl::list::Row;
use left4me_ctl::report::{Diagnosis, Exit, Report};
use left4me_ctl::units::UnitsError;
use left4me_helper::instance::Instance;

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Played {
    play: Mutex<Play>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Play {
    /// The servers' ActiveState.
    servers: BTreeMap<String, String>,
    /// Jobs wait until this is false.
    is_held: bool,
    /// Why the next jobs fail.
    failure: Option<String>,
    /// What was done.
    done: Vec<String>,
    /// Who plays on each.
    players: Option<Players>,
    /// Who holds what is mounted.
    held: Option<String>,
    /// What each said.
    said: Vec<String>,
    /// Counts changes that systemd would tell of.
    version: u64,
}

impl Played {
    /// With servers that are down.
    pub(crate) fn new(names: &[&str]) -> Self {
        let servers = names.iter().map(|name| ((*name).to_owned(), "inactive".to_owned())).collect();
        Self { play: Mutex::new(Play { servers, ..Play::default() }), changed: Condvar::new() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Play) -> T) -> T {
        let mut play = self.play.lock().unwrap();
        let value = change(&mut play);
        play.version += 1;
        drop(play);
        self.changed.notify_all();
        value
    }

    /// A unit's state changes behind everybody's back.
    pub(crate) fn set(&self, name: &str, active_state: &str) {
        self.with(|play| play.servers.insert(name.into(), active_state.into()));
    }

    /// Jobs wait, or go on.
    pub(crate) fn hold(&self, is_held: bool) {
        self.with(|play| play.is_held = is_held);
    }

    /// Why the next jobs fail; none if they do not.
    pub(crate) fn fail(&self, why: Option<&str>) {
        self.with(|play| play.failure = why.map(str::to_owned));
    }

    /// So many play, on a map.
    pub(crate) fn players(&self, people: u8, map: &str) {
        self.with(|play| play.players = Some(Players { people, places: 8, bots: 1, map: map.into() }));
    }

    /// Somebody holds what is mounted.
    pub(crate) fn held(&self, by: &str) {
        self.with(|play| play.held = Some(by.into()));
    }

    /// The servers say something.
    pub(crate) fn say(&self, text: &str) {
        self.with(|play| play.said.push(text.into()));
    }

    /// What was done.
    pub(crate) fn done(&self) -> Vec<String> {
        self.play.lock().unwrap().done.clone()
    }
}

fn report(action: Action, instance: &Instance) -> Report {
    let mut report = not_begun(action, instance, &UnitsError::Deadline);
    (report.error, report.exit, report.ok) = (None, Exit::Ok, true);
    report
}

impl Host for Played {
    fn act(&self, deed: Deed, instance: &Instance) -> Report {
        let play = self.play.lock().unwrap();
        let mut play = self.changed.wait_while(play, |play| play.is_held).unwrap();
        play.done.push(format!("{deed} {instance}"));
        let failure = play.failure.clone();
        let state = if deed == Deed::Start { "active" } else { "inactive" };
        let state = if failure.is_some() { "failed" } else { state };
        play.servers.insert(instance.to_string(), state.into());
        play.version += 1;
        drop(play);
        self.changed.notify_all();
        let action = deed.action();
        let mut report = report(action, instance);
        report.ok = failure.is_none();
        report.active_state = state.into();
        report.phases.stop_us = Some(104_062);
        report.phases.total_us = 110_000;
        report.exit = if report.ok { Exit::Ok } else { Exit::Failed };
        report.error = failure;
        report
    }

    fn servers(&self) -> Servers {
        let play = self.play.lock().unwrap();
        let row = |(name, state): (&String, &String)| Row {
            schema_version: 1,
            action: "list".into(),
            instance: name.clone(),
            unit: format!("left4me-server@{name}.service"),
            ok: true,
            has_file: true,
            active_state: state.clone(),
            port: Some(27015),
            layers: Some(vec!["workshop".into()]),
            mounted: Some(state == "active"),
            error: None,
        };
        Servers { servers: play.servers.iter().map(row).collect(), servers_error: None }
    }

    fn server(&self, instance: &Instance) -> Server {
        let mut report = report(Action::Status, instance);
        report.active_state =
            self.play.lock().unwrap().servers.get(instance.as_str()).cloned().unwrap_or_default();
        report.ok = report.active_state == "active";
        let play = self.play.lock().unwrap();
        let line = |text: &String| Line {
            at_ms: 1_795_771_037_060,
            from: "srcds_run".into(),
            priority: 6,
            text: text.clone(),
        };
        let journal = Journal { lines: play.said.iter().map(line).collect(), error: None };
        let loss = Loss { text: Some("2 files, 3.0 MiB".into()), error: None };
        Server { report, loss, players: play.players.clone(), held: play.held.clone(), journal }
    }

    fn doctor(&self) -> Diagnoses {
        let names: Vec<_> = self.play.lock().unwrap().servers.keys().cloned().collect();
        let of = |name: &String| {
            Diagnosis::of(format!("left4me-server@{name}.service"), format!("left4me-overlay@{name}.service"))
        };
        Diagnoses { diagnoses: names.iter().map(of).collect(), error: None }
    }

    fn watch(&self, changed: &dyn Fn()) -> Result<(), String> {
        let mut seen = 0;
        loop {
            let play = self.play.lock().unwrap();
            let play = self.changed.wait_while(play, |play| play.version == seen).unwrap();
            seen = play.version;
            drop(play);
            changed();
        }
    }
}
