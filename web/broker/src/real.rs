//! This machine: what `l4d2ctl` does, through its library.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use async_io::block_on;
use holders::Query;
use holders::chain::chain;
use left4me_ctl::actions::{self, Action, DEFAULT_TIMEOUT};
use left4me_ctl::doctor::{self, Mountpoint};
use left4me_ctl::report::{Diagnosis, Files, Report};
use left4me_ctl::systemd::Systemd;
use left4me_ctl::units::UnitsError;
use left4me_ctl::{control, fleet, list, neighbours, variables, warning};
use left4me_helper::busy;
use left4me_helper::instance::Instance;
use left4me_helper::state::StateDir;
use systemd_bus::call;
use zbus::blocking::{Connection, MessageIterator};

use crate::game::{self, Players};
use crate::host::{Diagnoses, Host, Loss, Server, Servers};
use crate::journal;
use crate::refused::Watched;
use crate::verbs::Deed;

/// What questions may take on top of a job, and alone.
const MARGIN: Duration = Duration::from_secs(10);

/// How long may be looked for who holds a mount.
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// How many changes may wait for us: more are one.
const QUEUED: usize = 64;

/// This machine.
#[derive(Debug, Default)]
pub struct Machine(actions::Host);

impl Host for Machine {
    fn act(&self, deed: Deed, instance: &Instance) -> Report {
        let action = deed.action();
        let merged = instance.paths(&self.0.state_dir).merged;
        let watched = (deed != Deed::Start).then(|| Watched::begin(instance, merged)).flatten();
        let mut report = block_on(async {
            match connect(DEFAULT_TIMEOUT).await {
                Ok(mut systemd) => {
                    control::run(&mut systemd, &self.0, action, instance, DEFAULT_TIMEOUT).await
                }
                Err(error) => control::not_begun(action, instance, &error),
            }
        });
        let held = watched.and_then(|watched| watched.end(!report.still_mounted.is_empty()));
        if let (Some(error), Some(held)) = (&mut report.error, held) {
            error.push_str(&format!("; while its unit unmounted it, it was {held}"));
        }
        report
    }

    fn servers(&self) -> Servers {
        block_on(async {
            let mut systemd = connect(Duration::ZERO).await;
            match list::rows(systemd.as_mut().map_err(|error| error.clone()), &self.0).await {
                Ok((servers, error)) => {
                    Servers { servers, servers_error: error.map(|error| error.to_string()) }
                }
                Err(error) => Servers { servers: Vec::new(), servers_error: Some(chain(&error)) },
            }
        })
    }

    fn server(&self, instance: &Instance) -> Server {
        let report = block_on(async {
            match connect(Duration::ZERO).await {
                Ok(mut systemd) => {
                    control::run(&mut systemd, &self.0, Action::Status, instance, MARGIN).await
                }
                Err(error) => control::not_begun(Action::Status, instance, &error),
            }
        });
        let loss = StateDir::open(&self.0.state_dir).and_then(|state| warning::loss(&state, instance));
        let loss = match loss {
            Ok(loss) => Loss { text: Some(loss.to_string()), error: None },
            Err(error) => Loss { text: None, error: Some(chain(&error)) },
        };
        let players = (report.active_state == "active").then(|| self.players(instance)).flatten();
        let held = self.held(instance, &report);
        Server { report, loss, players, held, journal: journal::tail(instance) }
    }

    fn doctor(&self) -> Diagnoses {
        let state_dir = self.0.state_dir.as_path();
        let instances = match fleet::all_instances(state_dir, Action::Status) {
            Ok(instances) => instances,
            Err(error) => return Diagnoses { diagnoses: Vec::new(), error: Some(chain(&error)) },
        };
        block_on(async {
            match connect(Duration::ZERO).await {
                Ok(systemd) => diagnoses(&systemd, &instances, state_dir).await,
                Err(error) => Diagnoses { diagnoses: Vec::new(), error: Some(error.to_string()) },
            }
        })
    }

    fn watch(&self, changed: &dyn Fn()) -> Result<(), String> {
        let watch = || -> zbus::Result<()> {
            let connection = Connection::system()?;
            let rule = call::unit_changes()?;
            let mut messages = MessageIterator::for_match_rule(rule, &connection, Some(QUEUED))?;
            // systemd tells nobody of anything before somebody subscribes, org.freedesktop.systemd1(5).
            connection.call_method(
                Some("org.freedesktop.systemd1"),
                "/org/freedesktop/systemd1",
                Some("org.freedesktop.systemd1.Manager"),
                "Subscribe",
                &(),
            )?;
            changed();
            messages.try_for_each(|message| {
                let message = message?;
                let header = message.header();
                // Those of the host's other units are none of ours.
                if header.path().is_some_and(|path| path.contains("/left4me_2d")) {
                    changed();
                }
                Ok(())
            })
        };
        watch().map_err(|error| format!("systemd's changes: {error}"))
    }
}

impl Machine {
    /// Who plays, asked where the instance's variables say that the game listens.
    fn players(&self, instance: &Instance) -> Option<Players> {
        let file = variables::file(&instance.paths(&self.0.state_dir).file);
        let port = variables::port_of(&file).ok()?;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let address = variables::parse(&text).into_iter().rfind(|(name, _)| name == "L4D2_IP");
        let address = address.and_then(|(_, text)| text.parse().ok());
        game::ask(
            address.filter(|address: &Ipv4Addr| !address.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST),
            port,
        )
    }

    /// Who holds the mount of a server that is down. Of one that runs, it is the server.
    fn held(&self, instance: &Instance, report: &Report) -> Option<String> {
        let is_down = matches!(report.active_state.as_str(), "inactive" | "failed");
        if !is_down || report.mounted != Some(true) {
            return None;
        }
        let merged = instance.paths(&self.0.state_dir).merged;
        let verdict = match Query::new(merged).deadline(Instant::now() + LONGEST_LOOK).run() {
            Ok(report) => busy::Verdict::Found(report.verdict()),
            Err(error) => busy::Verdict::NoLook(error),
        };
        Some(verdict.to_string())
    }
}

async fn connect(job: Duration) -> Result<Systemd, UnitsError> {
    Systemd::connect(Instant::now() + job + MARGIN).await
}

async fn diagnoses(systemd: &Systemd, instances: &[Instance], state_dir: &Path) -> Diagnoses {
    let runtimes: Vec<_> = doctor::names(state_dir).iter().map(|name| name.join("runtime")).collect();
    let around = systemd.neighbours(&runtimes).await;
    let error = around.as_ref().err().map(|error| format!("the other units: {error}"));
    let mut diagnoses = Vec::new();
    for instance in instances {
        let diagnosis = Diagnosis::of(instance.unit(), instance.overlay_unit());
        diagnoses.push(match systemd.setup(instance, Mountpoint::of(instance, state_dir)).await {
            Ok(setup) => {
                let others = around.as_ref().map(|around| neighbours::lint(&setup, around));
                let findings = doctor::lint(&setup).into_iter().chain(others.unwrap_or_default()).collect();
                let overlay = Files {
                    unit: setup.overlay.unit,
                    fragment: setup.overlay.fragment,
                    drop_ins: setup.overlay.drop_ins,
                };
                let (fragment, drop_ins) = (setup.fragment, setup.drop_ins);
                Diagnosis { findings, fragment, drop_ins, overlay, ..diagnosis }
            }
            Err(error) => Diagnosis { error: Some(error.to_string()), ..diagnosis },
        });
    }
    Diagnoses { diagnoses, error }
}
