//! systemd over the system bus: this file and `job.rs` are the only ones that speak D-Bus.
//!
//! A job's end is the signal `JobRemoved`; what is sent for it, and whom it is believed of, is in `job.rs`. The match
//! asks for this unit only: a busy machine's other jobs wake nobody here. systemd sends that signal to whoever asked for
//! the job (`src/core/dbus-job.c:bus_job_send_removed_signal`), subscribed or not; to subscribe would have it tell of
//! every change of every unit.
//!
//! A question to systemd goes through the bus daemon and back, four changes of process, and a reset is little more than
//! questions. So questions that do not depend on each other are all sent before the first answer is waited for, and
//! whoever waits does the connection's work too ([`Systemd::wait`]): there is no thread in between.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_io::{Timer, block_on};
use futures_lite::{StreamExt, future};
use futures_util::future::{try_join, try_join_all, try_join3, try_join4, try_join5};
use left4me_helper::instance::Instance;
use zbus::connection::Builder;
use zbus::message::Body;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, Message, MessageStream};

use crate::doctor::{Bind, ExecLine, Mountpoint, OverlaySetup, Sandbox, UnitSetup};
use crate::job::{Heard, JobWatch, Question};
use crate::neighbours::{MountUnit, Neighbours, Service, mountpoint};
use crate::units::{
    Activity, Ended, ExecRun, Job, Lines, Names, Pair, UnitState, Units, UnitsError, is_down,
};

const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(crate) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
pub(crate) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const UNITS_PATH: &str = "/org/freedesktop/systemd1/unit/";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The settings whose runs are reported, in the order of a unit's life, each with its property.
const EXEC_PROPERTIES: [(&str, &str); 4] = [
    ("ExecStartPre", "ExecStartPreEx"),
    ("ExecStart", "ExecStartEx"),
    ("ExecStop", "ExecStopEx"),
    ("ExecStopPost", "ExecStopPostEx"),
];

/// Which lines are asked about: of the server's unit, and of the overlay's, which has no `ExecStop=`. Each question is a way
/// through the bus daemon and back, so after a stop it is only what a stop runs, and how the server itself ended.
fn lines(asked: Lines) -> Pair<&'static [(&'static str, &'static str)]> {
    const OF_OVERLAY: [(&str, &str); 3] = [EXEC_PROPERTIES[0], EXEC_PROPERTIES[1], EXEC_PROPERTIES[3]];
    match asked {
        Lines::All => Pair { server: &EXEC_PROPERTIES, overlay: &OF_OVERLAY },
        Lines::OfStop => Pair { server: &EXEC_PROPERTIES[1..], overlay: &OF_OVERLAY[2..] },
    }
}

/// An entry of an `Exec*Ex` property, `(sasasttttuii)`: path, argv, flags, start and exit time each by the wall and
/// the monotonic clock (microseconds), PID, code and status; org.freedesktop.systemd1(5).
type ExecEntry = (String, Vec<String>, Vec<String>, u64, u64, u64, u64, u32, i32, i32);

/// How many services are asked about at once. Each takes the ten questions of [`Systemd::read_sandbox`], and dbus-daemon
/// lets a connection wait for 128 answers (`max_replies_per_connection`, dbus-daemon(1)).
const SERVICES_AT_ONCE: usize = 12;

/// How many questions are under way at once where each is about another unit.
const QUESTIONS_AT_ONCE: usize = 10 * SERVICES_AT_ONCE;

/// An entry of `ListUnitsByNames` or `ListUnitsByPatterns`, org.freedesktop.systemd1(5): name, description, LoadState,
/// ActiveState, SubState, followed unit, path, and the job's id, type and path.
pub(crate) type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// What is of interest in a [`ListedUnit`].
pub(crate) struct Listed {
    pub(crate) load_state: String,
    pub(crate) active_state: String,
    pub(crate) sub_state: String,
}

/// Both units of a `ListUnitsByNames` that named the server's, then the overlay's. A unit may be listed under another
/// name than the one that was asked for, but all are in the order in which they were.
pub(crate) fn listed(names: &Names, body: &Body) -> Result<Pair<Listed>, UnitsError> {
    let units: Vec<ListedUnit> = body.deserialize().map_err(|error| explain(&error))?;
    let mut units = units.into_iter().map(|(_, _, load_state, active_state, sub_state, ..)| Listed {
        load_state,
        active_state,
        sub_state,
    });
    let mut next = |unit: &str| {
        units.next().ok_or_else(|| UnitsError::NoSuchUnit(format!("Unit {unit} could not be found.")))
    };
    Ok(Pair { server: next(&names.server)?, overlay: next(&names.overlay)? })
}

/// A connection to systemd. It keeps the units it was told about loaded, until it is dropped.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: Connection,
    deadline: Instant,
    /// Units that systemd was told to keep, and has kept.
    kept: Option<Names>,
}

impl Systemd {
    /// Connects. Everything asked through it, but for the jobs' own deadlines, must be answered by `deadline`.
    ///
    /// # Errors
    /// No system bus.
    pub fn connect(deadline: Instant) -> Result<Self, UnitsError> {
        let connecting = async {
            // It drives itself until it is there.
            let connected = async { Builder::system()?.internal_executor(false).build().await };
            connected.await.map_err(|error| UnitsError::Unreachable(error.to_string()))
        };
        Ok(Self { connection: block_on(by(deadline, connecting))?, deadline, kept: None })
    }

    /// Waits for an answer, up to a deadline, and does the connection's work meanwhile. Several threads may wait at once.
    fn wait<T>(
        &self,
        deadline: Instant,
        answer: impl Future<Output = Result<T, UnitsError>>,
    ) -> Result<T, UnitsError> {
        let work = async {
            loop {
                self.connection.executor().tick().await;
            }
        };
        block_on(future::or(by(deadline, answer), work))
    }

    async fn manager<B>(&self, method: &str, body: &B) -> Result<Message, UnitsError>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        self.connection
            .call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, body)
            .await
            .map_err(|error| explain(&error))
    }

    async fn run_job(&self, job: Job, names: &Names) -> Result<Ended, UnitsError> {
        let unit = job.unit(names);
        let mut messages = MessageStream::from(&self.connection);
        let mut watch = JobWatch::new(names, unit);
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path='{MANAGER_PATH}',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
        );
        let mut calls = Vec::new();
        // Without a bus in between everything comes anyway.
        if self.connection.is_bus() {
            calls.push((Question::Match, bus_call("AddMatch", &rule)?));
        }
        for name in names.each() {
            calls.push((Question::Keep, manager_call("RefUnit", name)?));
        }
        calls.push((Question::Before, manager_call("ListUnitsByNames", &(names.each().to_vec()))?));
        for name in job.resets_failed(names) {
            calls.push((Question::Count, manager_call("ResetFailedUnit", &name)?));
        }
        calls.push((Question::Queue, manager_call(job.method(), &(unit, "replace"))?));
        for (question, call) in &calls {
            watch.asked(*question, call.primary_header().serial_num());
            self.send(call).await?;
        }
        let ended = loop {
            let message = messages.next().await.ok_or_else(gone)?.map_err(|error| explain(&error))?;
            match watch.hear(&message)? {
                Heard::Nothing => {}
                Heard::Doubt if self.connection.is_bus() => {
                    let call = bus_call("GetNameOwner", &SYSTEMD)?;
                    watch.asked(Question::Owner, call.primary_header().serial_num());
                    self.send(&call).await?;
                }
                Heard::Doubt => {}
                Heard::Ended(ended) => break ended,
            }
        };
        if self.connection.is_bus() {
            // The bus lets a connection have only so many, and a reset of all has a job for each instance.
            self.send(&bus_call("RemoveMatch", &rule)?).await?;
        }
        Ok(ended)
    }

    async fn send(&self, call: &Message) -> Result<(), UnitsError> {
        self.connection.send(call).await.map_err(|error| explain(&error))
    }

    /// Has systemd keep the unit loaded. Who may not ask for that gets the same answers, each after systemd has read the
    /// unit's files again.
    async fn keep(&self, unit: &str) -> Result<(), UnitsError> {
        drop(self.manager("RefUnit", &(unit)).await);
        Ok(())
    }

    /// Has both units loaded, if they are not.
    async fn listed(&self, names: &Names) -> Result<Pair<Listed>, UnitsError> {
        let reply = self.manager("ListUnitsByNames", &(names.each().to_vec())).await?;
        listed(names, &reply.body())
    }

    async fn active_states(&self, units: &[String]) -> Result<Vec<String>, UnitsError> {
        let reply = self.manager("ListUnitsByNames", &(units)).await?;
        let listed: Vec<ListedUnit> = reply.body().deserialize().map_err(|error| explain(&error))?;
        Ok(listed.into_iter().map(|(_, _, _, active_state, ..)| active_state).collect())
    }

    async fn read_activity(&self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        let mut all = Vec::new();
        let states = self.active_states(units).await?;
        for some in units.iter().zip(states).collect::<Vec<_>>().chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(unit, active_state)| async move {
                let active_state = active_state.clone();
                if is_down(&active_state) {
                    return Ok(Activity { active_state, since_us: 0 });
                }
                let path = unit_path(unit)?;
                let since_us = self.property(&path, UNIT, "ActiveEnterTimestampMonotonic").await?;
                Ok(Activity { active_state, since_us })
            });
            all.extend(try_join_all(asked).await?);
        }
        Ok(all)
    }

    /// systemd tells of a unit's changes whoever keeps it (`src/core/dbus-unit.c:bus_unit_send_change_signal`). Who may
    /// not keep it hears nothing, and waits to the end.
    async fn watch_until_down(&self, units: &[String]) -> Result<(), UnitsError> {
        let mut messages = MessageStream::from(&self.connection);
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',path_namespace='/org/freedesktop/systemd1/unit',interface='{PROPERTIES}',\
             member='PropertiesChanged',arg0='{UNIT}'"
        );
        if self.connection.is_bus() {
            self.send(&bus_call("AddMatch", &rule)?).await?;
        }
        for unit in units {
            self.send(&manager_call("RefUnit", unit)?).await?;
        }
        let is_change = |message: &Message| {
            let header = message.header();
            header.member().is_some_and(|member| member.as_str() == "PropertiesChanged")
                && header.path().is_some_and(|path| path.as_str().starts_with(UNITS_PATH))
        };
        loop {
            let mut has_changed = false;
            // What is told meanwhile is taken off the queue, which would hold up the answer once it is full.
            let drain = async {
                while let Some(message) = messages.next().await {
                    has_changed |= message.as_ref().is_ok_and(is_change);
                }
                Err(gone())
            };
            let states = future::or(self.active_states(units), drain).await?;
            if states.iter().all(|state| is_down(state)) {
                break;
            }
            // Whoever tells it: it is asked again, and systemd answers.
            while !has_changed {
                let message = messages.next().await.ok_or_else(gone)?.map_err(|error| explain(&error))?;
                has_changed = is_change(&message);
            }
        }
        if self.connection.is_bus() {
            self.send(&bus_call("RemoveMatch", &rule)?).await?;
        }
        Ok(())
    }

    /// `is_kept` says that the units stay loaded as they are.
    async fn read_state(
        &self,
        names: &Names,
        asked: Lines,
        is_kept: bool,
    ) -> Result<Pair<UnitState>, UnitsError> {
        let lines = lines(asked);
        let paths = Pair { server: unit_path(&names.server)?, overlay: unit_path(&names.overlay)? };
        let kept = async {
            if !is_kept {
                try_join(self.keep(&names.server), self.keep(&names.overlay)).await?;
            }
            Ok(())
        };
        // Asked at once: answers of one moment, or nearly.
        let restarts = self.property(&paths.server, SERVICE, "NRestarts");
        let (_, listed, server, overlay, restarts) = try_join5(
            kept,
            self.listed(names),
            self.read_runs(&paths.server, lines.server),
            self.read_runs(&paths.overlay, lines.overlay),
            restarts,
        )
        .await?;
        let state = |listed: Listed, (result, exec): (String, Vec<ExecRun>), restarts| {
            let Listed { load_state, active_state, sub_state } = listed;
            UnitState { load_state, active_state, sub_state, result, restarts, exec }
        };
        Ok(Pair {
            server: state(listed.server, server, restarts),
            overlay: state(listed.overlay, overlay, 0),
        })
    }

    /// A service's result and its commands' last runs.
    async fn read_runs(
        &self,
        path: &OwnedObjectPath,
        properties: &[(&'static str, &str)],
    ) -> Result<(String, Vec<ExecRun>), UnitsError> {
        let runs = properties.iter().map(|&(line, property)| async move {
            let entries: Vec<ExecEntry> = self.property(path, SERVICE, property).await?;
            Ok(entries.into_iter().map(move |entry| exec_run(line, entry)))
        });
        let (result, runs) =
            try_join(self.property::<String>(path, SERVICE, "Result"), try_join_all(runs)).await?;
        Ok((result, runs.into_iter().flatten().collect()))
    }

    /// The settings of an instance's two units, drop-ins included, for the doctor. `merged` is its mountpoint.
    ///
    /// # Errors
    /// As [`UnitsError`]. That there is no unit of the overlay is none: the doctor says so.
    pub fn setup(&self, instance: &Instance, merged: Mountpoint) -> Result<UnitSetup, UnitsError> {
        self.wait(self.deadline, self.read_setup(instance, merged))
    }

    async fn read_setup(&self, instance: &Instance, merged: Mountpoint) -> Result<UnitSetup, UnitsError> {
        let unit = instance.unit();
        let path = unit_path(&unit)?;
        let around = ["ExecStartPre", "ExecStop", "ExecStopPost"].map(|setting| {
            let path = &path;
            async move {
                let entries: Vec<ExecEntry> = self.property(path, SERVICE, &format!("{setting}Ex")).await?;
                Ok(exec_lines(entries).into_iter().map(move |line| (setting, line)))
            }
        });
        let stop = try_join3(
            self.property(&path, SERVICE, "KillMode"),
            self.property(&path, SERVICE, "SendSIGKILL"),
            self.property::<u64>(&path, SERVICE, "TimeoutStopUSec"),
        );
        let bonds = try_join3(
            self.property(&path, UNIT, "Requires"),
            self.property(&path, UNIT, "After"),
            self.property(&path, SERVICE, "User"),
        );
        let ((), files, around, sandbox, (stop, bonds)) = try_join5(
            self.keep(&unit),
            self.read_files(&path),
            try_join_all(around),
            self.read_sandbox(&path),
            try_join(stop, bonds),
        )
        .await?;
        let (load_state, fragment, drop_ins, need_daemon_reload) = files;
        if load_state != "loaded" {
            return Err(UnitsError::NoSuchUnit(format!("Unit {unit} is {load_state}.")));
        }
        let (kill_mode, send_sigkill, timeout) = stop;
        let (requires, after, user) = bonds;
        Ok(UnitSetup {
            unit,
            own_user: format!("left4me-{instance}"),
            merged,
            fragment,
            drop_ins,
            need_daemon_reload,
            requires,
            after,
            user,
            around: around.into_iter().flatten().collect(),
            sandbox,
            kill_mode,
            send_sigkill,
            timeout_stop: timeout_of(timeout),
            overlay: self.read_overlay(&instance.overlay_unit()).await?,
        })
    }

    /// A unit's LoadState, file, drop-ins, and whether one of these has changed.
    async fn read_files(
        &self,
        path: &OwnedObjectPath,
    ) -> Result<(String, String, Vec<String>, bool), UnitsError> {
        try_join4(
            self.property::<String>(path, UNIT, "LoadState"),
            self.property(path, UNIT, "FragmentPath"),
            self.property(path, UNIT, "DropInPaths"),
            self.property(path, UNIT, "NeedDaemonReload"),
        )
        .await
    }

    async fn read_overlay(&self, unit: &str) -> Result<OverlaySetup, UnitsError> {
        let path = unit_path(unit)?;
        self.keep(unit).await?;
        let (load_state, fragment, drop_ins, need_daemon_reload) = self.read_files(&path).await?;
        if load_state != "loaded" {
            return Ok(OverlaySetup { unit: unit.to_owned(), load_state, ..OverlaySetup::default() });
        }
        // What gives a namespace is in so many settings that all are asked for at once.
        let reply = self
            .connection
            .call_method(Some(SYSTEMD), &path, Some(PROPERTIES), "GetAll", &(SERVICE))
            .await
            .map_err(|error| explain(&error))?;
        let settings: Settings = reply.body().deserialize().map_err(|error| explain(&error))?;
        let directory: String = setting(&settings, "WorkingDirectory")?;
        Ok(OverlaySetup {
            unit: unit.to_owned(),
            load_state,
            fragment,
            drop_ins,
            need_daemon_reload,
            exec_start: exec_lines(setting(&settings, "ExecStartEx")?),
            exec_stop_post: exec_lines(setting(&settings, "ExecStopPostEx")?),
            remain_after_exit: setting(&settings, "RemainAfterExit")?,
            user: setting(&settings, "User")?,
            namespaced: namespaced(&settings),
            working_directory: plain_path(&directory),
            timeout_stop: timeout_of(setting(&settings, "TimeoutStopUSec")?),
        })
    }

    /// What of a service's settings has to do with mounts.
    async fn read_sandbox(&self, path: &OwnedObjectPath) -> Result<Sandbox, UnitsError> {
        let roots = ["RootDirectory", "RootImage"].map(|setting| async move {
            let root: String = self.property(path, SERVICE, setting).await?;
            Ok((setting, PathBuf::from(root)))
        });
        let binds = ["BindPaths", "BindReadOnlyPaths"].map(|setting| async move {
            let entries: Vec<(String, String, bool, u64)> = self.property(path, SERVICE, setting).await?;
            Ok(entries.into_iter().map(move |(source, destination, ..)| Bind {
                setting,
                source: plain_path(&source),
                destination: plain_path(&destination),
            }))
        });
        let paths = ["ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths"].map(|setting| async move {
            let paths: Vec<String> = self.property(path, SERVICE, setting).await?;
            Ok(paths.into_iter().map(move |path| (setting, plain_path(&path))))
        });
        let temporary = async {
            let entries: Vec<(String, String)> = self.property(path, SERVICE, "TemporaryFileSystem").await?;
            Ok(entries.into_iter().map(|(path, _options)| ("TemporaryFileSystem", plain_path(&path))))
        };
        let flags = self.property(path, SERVICE, "MountFlags");
        let directory = self.property::<String>(path, SERVICE, "WorkingDirectory");
        let (roots, binds, (paths, temporary), mount_flags, directory) = try_join5(
            try_join_all(roots),
            try_join_all(binds),
            try_join(try_join_all(paths), temporary),
            flags,
            directory,
        )
        .await?;
        Ok(Sandbox {
            mount_flags,
            roots: roots.into_iter().filter(|(_setting, root)| !root.as_os_str().is_empty()).collect(),
            binds: binds.into_iter().flatten().collect(),
            mounted_over: paths.into_iter().flatten().chain(temporary).collect(),
            working_directory: plain_path(&directory),
        })
    }

    /// What else systemd has loaded that can matter to an instance, for the doctor. `runtimes` is the directory that has
    /// the instances' runtime directories, by each of its names.
    ///
    /// # Errors
    /// As [`UnitsError`]; a unit that goes away meanwhile is none.
    pub fn neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        self.wait(self.deadline, self.read_neighbours(runtimes))
    }

    async fn read_neighbours(&self, runtimes: &[PathBuf]) -> Result<Neighbours, UnitsError> {
        let any_state: &[&str] = &[];
        let patterns = &["*.service", "*.mount", "*.automount"][..];
        let reply = self.manager("ListUnitsByPatterns", &(any_state, patterns)).await?;
        let mut listed: Vec<ListedUnit> = reply.body().deserialize().map_err(|error| explain(&error))?;
        listed.retain(|(_name, _description, load_state, ..)| load_state == "loaded");
        // systemd's order is that of a hash table.
        listed.sort_by(|one, other| one.0.cmp(&other.0));
        let (services, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|(name, ..)| name.ends_with(".service"));
        let mut neighbours = Neighbours::default();
        for some in services.chunks(SERVICES_AT_ONCE) {
            let asked = some.iter().map(|(unit, _, _, _, _, _, path, ..)| async move {
                let sandbox = still_there(self.read_sandbox(path).await)?;
                Ok(sandbox.map(|sandbox| Service { unit: unit.clone(), sandbox }))
            });
            neighbours.services.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        // Where a mount unit mounts is its name, so there is nothing to ask about those that are elsewhere.
        let mounts: Vec<_> = others
            .into_iter()
            .filter_map(|(unit, _, _, active_state, _, _, path, ..)| {
                let at = mountpoint(&unit)
                    .filter(|at| runtimes.iter().any(|runtimes| at.starts_with(runtimes)))?;
                Some((path, unit, at, !is_down(&active_state)))
            })
            .collect();
        for some in mounts.chunks(QUESTIONS_AT_ONCE) {
            let asked = some.iter().map(|(path, unit, at, active)| async move {
                let fragment = still_there(self.property::<String>(path, UNIT, "FragmentPath").await)?;
                Ok(fragment.map(|fragment| MountUnit {
                    unit: unit.clone(),
                    at: at.clone(),
                    configured: !fragment.is_empty(),
                    active: *active,
                }))
            });
            neighbours.mounts.extend(try_join_all(asked).await?.into_iter().flatten());
        }
        Ok(neighbours)
    }

    async fn property<T>(&self, path: &OwnedObjectPath, interface: &str, name: &str) -> Result<T, UnitsError>
    where
        T: TryFrom<OwnedValue, Error = zbus::zvariant::Error>,
    {
        let reply = self
            .connection
            .call_method(Some(SYSTEMD), path, Some(PROPERTIES), "Get", &(interface, name))
            .await
            .map_err(|error| explain(&error))?;
        let value: OwnedValue = reply.body().deserialize().map_err(|error| explain(&error))?;
        T::try_from(value).map_err(|error| UnitsError::Other(format!("property {name}: {error}")))
    }
}

impl Units for Systemd {
    fn run(&mut self, job: Job, names: &Names, deadline: Instant) -> Result<Ended, UnitsError> {
        let ended = self.wait(deadline, self.run_job(job, names));
        self.kept = ended.is_ok().then(|| names.clone());
        ended
    }

    fn state(&mut self, names: &Names, asked: Lines) -> Result<Pair<UnitState>, UnitsError> {
        let is_kept = self.kept.as_ref() == Some(names);
        self.wait(self.deadline, self.read_state(names, asked, is_kept))
    }

    fn reset_failed(&mut self, unit: &str) -> Result<(), UnitsError> {
        self.wait(self.deadline, self.manager("ResetFailedUnit", &(unit))).map(drop)
    }

    fn requires_overlay(&mut self, names: &Names) -> Result<bool, UnitsError> {
        let path = unit_path(&names.server)?;
        let required: Vec<String> = self.wait(self.deadline, self.property(&path, UNIT, "Requires"))?;
        Ok(required.contains(&names.overlay))
    }

    fn activity(&mut self, units: &[String]) -> Result<Vec<Activity>, UnitsError> {
        self.wait(self.deadline, self.read_activity(units))
    }

    fn wait_until_down(&mut self, units: &[String], deadline: Instant) -> Result<(), UnitsError> {
        match self.wait(deadline, self.watch_until_down(units)) {
            Err(UnitsError::Deadline) => Ok(()),
            result => result,
        }
    }
}

/// The future's answer, or [`UnitsError::Deadline`].
async fn by<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, UnitsError>>,
) -> Result<T, UnitsError> {
    future::or(answer, async {
        Timer::at(deadline).await;
        Err(UnitsError::Deadline)
    })
    .await
}

/// The object that systemd has for a unit, loaded or not: all but letters and digits as `_` and two hexadecimal digits, a
/// digit at the start too, and nothing at all as `_` (`sd_bus_path_encode(3)`).
fn unit_path(unit: &str) -> Result<OwnedObjectPath, UnitsError> {
    let mut path = String::from(UNITS_PATH);
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    if unit.is_empty() {
        path.push('_');
    }
    OwnedObjectPath::try_from(path).map_err(|error| UnitsError::Other(format!("unit {unit}: {error}")))
}

/// A path without what systemd leaves in front of it: `-` and `+` (systemd.exec(5), ReadWritePaths=), and `!`, which it
/// says for the `-` of `WorkingDirectory=` (`src/core/dbus-execute.c:property_get_working_directory`).
fn plain_path(setting: &str) -> PathBuf {
    setting.trim_start_matches(['-', '+', '!']).into()
}

/// None of a unit that is gone since it was listed.
fn still_there<T>(answer: Result<T, UnitsError>) -> Result<Option<T>, UnitsError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(UnitsError::NoSuchUnit(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All settings of a service, as the bus has them.
type Settings = HashMap<String, OwnedValue>;

fn setting<T>(settings: &Settings, name: &str) -> Result<T, UnitsError>
where
    T: TryFrom<OwnedValue, Error = zbus::zvariant::Error>,
{
    let missing = || UnitsError::Other(format!("property {name}: there is none"));
    let value = settings.get(name).ok_or_else(missing)?.try_clone();
    value.and_then(T::try_from).map_err(|error| UnitsError::Other(format!("property {name}: {error}")))
}

/// The settings that give a service's commands a mount namespace of their own
/// (`src/core/exec-invoke.c:exec_needs_mount_namespace`), and those of its own root, which has no place for an overlay.
const NAMESPACED: [&str; 30] = [
    "RootDirectory",
    "RootImage",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "NoExecPaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "BindLogSockets",
    "TemporaryFileSystem",
    "MountImages",
    "ExtensionImages",
    "ExtensionDirectories",
    "MountFlags",
    "DynamicUser",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateIPC",
    "PrivatePIDs",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
];

/// Those of [`NAMESPACED`] that are set. A systemd that does not know one has none of it.
fn namespaced(settings: &Settings) -> Vec<&'static str> {
    let is_set = |name: &&str| match settings.get(*name).map(|value| &**value) {
        Some(Value::Bool(is)) => *is,
        // Each setting's word for what is so without it.
        Some(Value::Str(word)) => !["", "no", "default", "all"].contains(&word.as_str()),
        Some(Value::Array(entries)) => !entries.is_empty(),
        Some(Value::U64(flags)) => ![0, MS_SHARED].contains(flags),
        _ => false,
    };
    NAMESPACED.into_iter().filter(is_set).collect()
}

/// mount(2)'s flag, as `MountFlags` has it: what is so without it.
const MS_SHARED: u64 = 1 << 20;

fn exec_lines(entries: Vec<ExecEntry>) -> Vec<ExecLine> {
    entries.into_iter().map(|(_, argv, flags, ..)| ExecLine { argv, flags }).collect()
}

/// A timeout in microseconds; none if it is `infinity`.
fn timeout_of(us: u64) -> Option<Duration> {
    (us != u64::MAX).then(|| Duration::from_micros(us))
}

fn exec_run(line: &'static str, entry: ExecEntry) -> ExecRun {
    let (_path, argv, _flags, _start, started_us, _exit, exited_us, _pid, code, status) = entry;
    ExecRun { line, argv, started_us, exited_us, code, status }
}

/// A call of systemd's manager.
fn manager_call<B>(method: &str, body: &B) -> Result<Message, UnitsError>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    call(SYSTEMD, MANAGER_PATH, MANAGER, method, body)
}

/// A call of the bus itself.
fn bus_call<B>(method: &str, body: &B) -> Result<Message, UnitsError>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", method, body)
}

fn call<B>(to: &str, path: &str, interface: &str, method: &str, body: &B) -> Result<Message, UnitsError>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    Message::method_call(path, method)
        .and_then(|call| call.destination(to))
        .and_then(|call| call.interface(interface))
        .and_then(|call| call.build(body))
        .map_err(|error| explain(&error))
}

fn gone() -> UnitsError {
    UnitsError::Unreachable("the connection ended before the job did".into())
}

pub(crate) fn explain(error: &zbus::Error) -> UnitsError {
    match error {
        zbus::Error::MethodError(name, detail, _) => {
            explain_reply(name.as_str(), detail.as_deref().unwrap_or_else(|| name.as_str()))
        }
        other => UnitsError::Other(other.to_string()),
    }
}

/// What an error reply means to us; the names are in systemd's bus-common-errors.h and the D-Bus specification.
fn explain_reply(name: &str, detail: &str) -> UnitsError {
    let detail = detail.to_owned();
    match name {
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.AuthFailed"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => UnitsError::Denied(detail),
        "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.DBus.Error.UnknownObject" => {
            UnitsError::NoSuchUnit(detail)
        }
        "org.freedesktop.DBus.Error.ServiceUnknown"
        | "org.freedesktop.DBus.Error.NameHasNoOwner"
        | "org.freedesktop.DBus.Error.NoReply" => UnitsError::Unreachable(detail),
        _ => UnitsError::Other(detail),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_replies() {
        let denied = |text: &str| UnitsError::Denied(text.into());
        for (name, expected) in [
            ("org.freedesktop.DBus.Error.AccessDenied", denied("x")),
            ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", denied("x")),
            ("org.freedesktop.systemd1.NoSuchUnit", UnitsError::NoSuchUnit("x".into())),
            ("org.freedesktop.DBus.Error.UnknownObject", UnitsError::NoSuchUnit("x".into())),
            ("org.freedesktop.DBus.Error.ServiceUnknown", UnitsError::Unreachable("x".into())),
            ("org.freedesktop.systemd1.TransactionIsDestructive", UnitsError::Other("x".into())),
        ] {
            assert_eq!(explain_reply(name, "x"), expected, "{name}");
        }
    }

    #[test]
    fn an_exec_entry_comes_off_the_wire() {
        use zbus::zvariant::Value;
        let entry: ExecEntry = ("/x".into(), vec!["/x".into(), "a".into()], vec![], 10, 20, 30, 45, 7, 1, 32);
        let value = OwnedValue::try_from(Value::from(vec![entry])).unwrap();
        assert_eq!(value.value_signature().to_string(), "a(sasasttttuii)");
        let back = Vec::<ExecEntry>::try_from(value).unwrap();
        let expected = ExecRun {
            line: "ExecStopPost",
            argv: vec!["/x".into(), "a".into()],
            started_us: 20,
            exited_us: 45,
            code: 1,
            status: 32,
        };
        assert_eq!(
            back.into_iter().map(|entry| exec_run("ExecStopPost", entry)).collect::<Vec<_>>(),
            [expected]
        );
    }

    #[test]
    fn a_deadline_ends_a_wait() {
        let never = future::pending::<Result<(), UnitsError>>();
        assert_eq!(block_on(by(Instant::now(), never)), Err(UnitsError::Deadline));
        assert_eq!(block_on(by(Instant::now(), async { Ok(3) })), Ok(3));
    }

    #[test]
    fn units_have_paths() {
        for (unit, name) in [
            (UNIT_NAME, "left4me_2dserver_403_2eservice"),
            ("3.service", "_33_2eservice"),
            ("a_b@x\\x2dy.service", "a_5fb_40x_5cx2dy_2eservice"),
            ("", "_"),
        ] {
            let path = unit_path(unit).unwrap();
            assert_eq!(path.as_str().strip_prefix("/org/freedesktop/systemd1/unit/"), Some(name));
        }
    }

    const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/left4me_2dserver_403_2eservice";
    const UNIT_NAME: &str = "left4me-server@3.service";
    const OVERLAY_PATH: &str = "/org/freedesktop/systemd1/unit/left4me_2doverlay_403_2eservice";
    const OVERLAY_NAME: &str = "left4me-overlay@3.service";

    fn three() -> Instance {
        "3".parse().unwrap()
    }

    fn names() -> Names {
        Names::of(&three())
    }

    fn merged() -> Mountpoint {
        Mountpoint::new(vec!["/m".into()])
    }

    /// How every job ends that does.
    fn done() -> Ended {
        let before = Pair { server: "failed".into(), overlay: "active".into() };
        Ended { before, result: "done".into() }
    }

    /// systemd's manager, as far as it is asked. It says that a job is gone before it answers the request for it.
    struct Manager {
        /// Whether somebody else sends ends of jobs as well, which only a connection without a bus lets us play.
        is_forged: bool,
        /// How often it was asked about four units.
        down: std::sync::atomic::AtomicUsize,
    }

    impl Manager {
        fn new(is_forged: bool) -> Self {
            Self { is_forged, down: std::sync::atomic::AtomicUsize::new(0) }
        }
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl Manager {
        fn ref_unit(&self, name: &str) -> zbus::fdo::Result<()> {
            if [UNIT_NAME, OVERLAY_NAME].contains(&name) {
                Ok(())
            } else {
                Err(zbus::fdo::Error::AccessDenied("no".into()))
            }
        }

        fn reset_failed_unit(&self, _name: &str) {}

        async fn stop_unit(
            &self,
            name: &str,
            mode: &str,
            #[zbus(connection)] connection: &Connection,
        ) -> zbus::fdo::Result<OwnedObjectPath> {
            assert_eq!(mode, "replace");
            self.ref_unit(name)?;
            let job = |number: u32| {
                OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
            };
            if self.is_forged {
                // Anybody may send us a signal, and number and unit are no secret.
                let forged = Message::signal(MANAGER_PATH, MANAGER, "JobRemoved").unwrap();
                let forged = forged.sender(":1.66").unwrap().build(&(8_u32, job(8), name, "failed"));
                connection.send(&forged.unwrap()).await.unwrap();
            }
            for (number, unit, result) in
                [(6, "other.service", "failed"), (7, name, "canceled"), (8, name, "done")]
            {
                let body = (number, job(number), unit, result);
                connection
                    .emit_signal(None::<&str>, MANAGER_PATH, MANAGER, "JobRemoved", &body)
                    .await
                    .unwrap();
            }
            Ok(job(8))
        }

        /// Never ends its job.
        fn start_unit(&self, _name: &str, _mode: &str) -> OwnedObjectPath {
            OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/9").unwrap()
        }

        /// A crowd of services that all are the one above, one that has gone since, and what is not asked about.
        fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<ListedUnit> {
            assert!(states.is_empty());
            assert_eq!(patterns, ["*.service", "*.mount", "*.automount"]);
            let unit = |name: &str, load: &str, active: &str, path: &str| -> ListedUnit {
                let path = OwnedObjectPath::try_from(path).unwrap();
                let [name, load, active] = [name, load, active].map(String::from);
                let [about, sub, none] = ["x", "dead", ""].map(String::from);
                (name, about, load, active, sub, none.clone(), path, 0, none, OwnedObjectPath::default())
            };
            let gone = "/org/freedesktop/systemd1/unit/gone";
            let mut units: Vec<_> = (0..CROWD)
                .rev()
                .map(|number| unit(&format!("s{number:03}.service"), "loaded", "active", UNIT_PATH))
                .collect();
            units.extend([
                unit("s000-gone.service", "loaded", "inactive", gone),
                unit("s000-masked.service", "masked", "inactive", gone),
                unit("r-3-merged.mount", "loaded", "active", UNIT_PATH),
                unit("r-4-merged.mount", "loaded", "active", gone),
                unit("r-5.automount", "loaded", "failed", UNIT_PATH),
                unit("r-6.mount", "not-found", "inactive", gone),
                unit("home.mount", "loaded", "active", gone),
                unit("-.mount", "loaded", "active", gone),
            ]);
            units
        }

        /// The server has failed and the overlay is active. Of four others one goes down each time they are asked about,
        /// which is told.
        async fn list_units_by_names(
            &self,
            names: Vec<String>,
            #[zbus(connection)] connection: &Connection,
        ) -> Vec<ListedUnit> {
            let down =
                self.down.fetch_add(usize::from(names.len() == 4), std::sync::atomic::Ordering::Relaxed);
            if names.len() == 4 {
                let changed = std::collections::HashMap::<&str, zbus::zvariant::Value<'_>>::new();
                let body = (UNIT, changed, &["x"][..]);
                let signal = "PropertiesChanged";
                connection.emit_signal(None::<&str>, UNIT_PATH, PROPERTIES, signal, &body).await.unwrap();
            }
            let states = ["failed", "active"].into_iter().cycle();
            let unit = |(name, active): (String, &str)| {
                let path = OwnedObjectPath::try_from(UNIT_PATH).unwrap();
                let [about, load, active, sub, none] = ["x", "loaded", active, "dead", ""].map(String::from);
                (name, about, load, active, sub, none.clone(), path, 0, none, OwnedObjectPath::default())
            };
            if names.len() == 4 {
                let states = (0..4).map(|at| if at < down { "inactive" } else { "active" });
                return names.into_iter().zip(states).map(unit).collect();
            }
            names.into_iter().zip(states).map(unit).collect()
        }
    }

    /// More than the bus would let us ask about at once.
    const CROWD: usize = 300;

    struct Unit;

    #[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
    impl Unit {
        #[zbus(property)]
        fn load_state(&self) -> &str {
            "loaded"
        }
        #[zbus(property)]
        fn fragment_path(&self) -> &str {
            "/x.service"
        }
        #[zbus(property)]
        fn drop_in_paths(&self) -> Vec<String> {
            vec!["/x.service.d/a.conf".into()]
        }
        #[zbus(property)]
        fn need_daemon_reload(&self) -> bool {
            true
        }
        #[zbus(property)]
        fn active_enter_timestamp_monotonic(&self) -> u64 {
            77
        }
        #[zbus(property)]
        fn after(&self) -> Vec<String> {
            vec![OVERLAY_NAME.into()]
        }
        #[zbus(property)]
        fn requires(&self) -> Vec<String> {
            vec!["-.mount".into(), OVERLAY_NAME.into()]
        }
    }

    struct Service;

    #[zbus::interface(name = "org.freedesktop.systemd1.Service")]
    impl Service {
        #[zbus(property)]
        fn result(&self) -> &str {
            "exit-code"
        }
        #[zbus(property, name = "NRestarts")]
        fn n_restarts(&self) -> u32 {
            2
        }
        #[zbus(property)]
        fn exec_start_pre_ex(&self) -> Vec<ExecEntry> {
            vec![]
        }
        #[zbus(property)]
        fn exec_start_ex(&self) -> Vec<ExecEntry> {
            vec![("/s".into(), vec!["/s".into()], vec![], 1, 2, 3, 4, 5, 2, 15)]
        }
        #[zbus(property)]
        fn user(&self) -> &str {
            "left4me"
        }
        #[zbus(property)]
        fn remain_after_exit(&self) -> bool {
            true
        }
        #[zbus(property)]
        fn mount_flags(&self) -> u64 {
            0
        }
        #[zbus(property)]
        fn root_directory(&self) -> &str {
            ""
        }
        #[zbus(property)]
        fn root_image(&self) -> &str {
            ""
        }
        #[zbus(property)]
        fn bind_paths(&self) -> Vec<(String, String, bool, u64)> {
            vec![("/m/x".into(), "/y".into(), false, 0)]
        }
        #[zbus(property)]
        fn bind_read_only_paths(&self) -> Vec<(String, String, bool, u64)> {
            vec![]
        }
        #[zbus(property)]
        fn read_only_paths(&self) -> Vec<String> {
            vec![]
        }
        #[zbus(property)]
        fn read_write_paths(&self) -> Vec<String> {
            vec!["-/m".into()]
        }
        #[zbus(property)]
        fn inaccessible_paths(&self) -> Vec<String> {
            vec![]
        }
        #[zbus(property)]
        fn temporary_file_system(&self) -> Vec<(String, String)> {
            vec![("/m/t".into(), "ro".into())]
        }
        #[zbus(property)]
        fn kill_mode(&self) -> &str {
            "process"
        }
        #[zbus(property)]
        fn working_directory(&self) -> &str {
            "!/m"
        }
        #[zbus(property, name = "SendSIGKILL")]
        fn send_sigkill(&self) -> bool {
            true
        }
        #[zbus(property, name = "TimeoutStopUSec")]
        fn timeout_stop_usec(&self) -> u64 {
            u64::MAX
        }
        #[zbus(property)]
        fn exec_stop_ex(&self) -> Vec<ExecEntry> {
            vec![]
        }
        #[zbus(property)]
        fn exec_stop_post_ex(&self) -> Vec<ExecEntry> {
            vec![("/n".into(), vec!["/n".into()], vec!["privileged".into()], 1, 20, 3, 45, 5, 1, 32)]
        }
    }

    /// A connection to the systemd above, over a socket pair.
    fn played() -> (Systemd, Connection) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = Builder::async_io_unix_stream(theirs)
            .server(zbus::Guid::generate())
            .unwrap()
            .p2p()
            .serve_at(MANAGER_PATH, Manager::new(true))
            .unwrap()
            .serve_at(UNIT_PATH, Unit)
            .unwrap()
            .serve_at(UNIT_PATH, Service)
            .unwrap()
            .serve_at(OVERLAY_PATH, Unit)
            .unwrap()
            .serve_at(OVERLAY_PATH, Service)
            .unwrap()
            .build();
        let client = Builder::async_io_unix_stream(ours).p2p().internal_executor(false).build();
        let (server, client) = block_on(future::try_zip(server, client)).unwrap();
        (Systemd { connection: client, deadline: soon(), kept: None }, server)
    }

    #[test]
    fn the_setup_comes_off_the_wire() {
        let (systemd, _server) = played();
        let setup = systemd.setup(&three(), merged()).unwrap();
        let sandbox = Sandbox {
            binds: vec![Bind { setting: "BindPaths", source: "/m/x".into(), destination: "/y".into() }],
            mounted_over: vec![("ReadWritePaths", "/m".into()), ("TemporaryFileSystem", "/m/t".into())],
            working_directory: "/m".into(),
            ..Sandbox::default()
        };
        assert_eq!(setup.sandbox, sandbox);
        assert_eq!((setup.timeout_stop, setup.kill_mode.as_str()), (None, "process"));
        assert_eq!((setup.own_user.as_str(), setup.user.as_str()), ("left4me-3", "left4me"));
        assert_eq!(
            (setup.around[0].0, &setup.around[0].1.flags[0]),
            ("ExecStopPost", &"privileged".to_owned())
        );
        assert_eq!(setup.overlay.namespaced, ["ReadWritePaths", "BindPaths", "TemporaryFileSystem"]);
        let found = crate::doctor::lint(&setup);
        let of = |unit: Option<&str>| -> Vec<_> {
            found.iter().filter(|found| found.unit.as_deref() == unit).map(|found| found.setting).collect()
        };
        assert_eq!(
            of(None),
            ["daemon-reload", "User", "BindPaths", "TemporaryFileSystem", "KillMode", "TimeoutStopSec"]
        );
        let expected = [
            "daemon-reload",
            "ExecStart",
            "ExecStopPost",
            "User",
            "ReadWritePaths",
            "BindPaths",
            "TemporaryFileSystem",
            "WorkingDirectory",
        ];
        assert_eq!(of(Some(OVERLAY_NAME)), expected);
    }

    #[test]
    fn what_gives_a_namespace_is_what_is_set() {
        let settings = |value: Value<'static>| -> Settings {
            let of =
                |name: &str| (name.to_owned(), OwnedValue::try_from(value.try_clone().unwrap()).unwrap());
            NAMESPACED.iter().map(|name| of(name)).collect()
        };
        let none = [Value::from(false), "no".into(), "".into(), 0_u64.into(), MS_SHARED.into()];
        for value in none.into_iter().chain([Vec::<String>::new().into(), "default".into(), "all".into()]) {
            assert_eq!(namespaced(&settings(value)), [""; 0]);
        }
        for value in
            [Value::from(true), "strict".into(), "/x".into(), (1_u64 << 19).into(), vec!["/x"].into()]
        {
            assert_eq!(namespaced(&settings(value)), NAMESPACED);
        }
        assert_eq!(namespaced(&Settings::new()), [""; 0], "an older systemd");
    }

    #[test]
    fn the_neighbours_come_off_the_wire_and_those_that_go_meanwhile_are_no_error() {
        let (systemd, _server) = played();
        let neighbours = systemd.neighbours(&["/r".into()]).unwrap();
        let names: Vec<_> = neighbours.services.iter().map(|service| service.unit.as_str()).collect();
        assert_eq!(names, (0..CROWD).map(|number| format!("s{number:03}.service")).collect::<Vec<_>>());
        let setup = systemd.setup(&three(), merged()).unwrap();
        assert!(neighbours.services.iter().all(|service| service.sandbox == setup.sandbox));
        let mount = |unit: &str, at: &str, active| MountUnit {
            unit: unit.into(),
            at: at.into(),
            configured: true,
            active,
        };
        let expected =
            [mount("r-3-merged.mount", "/r/3/merged", true), mount("r-5.automount", "/r/5", false)];
        assert_eq!(neighbours.mounts, expected);
    }

    /// Far beyond what a socket pair needs.
    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_secs(30)
    }

    #[test]
    fn a_job_that_is_gone_before_its_reply_is_not_missed() {
        let (mut systemd, _server) = played();
        assert_eq!(systemd.run(Job::Stop, &names(), soon()), Ok(done()));
        assert_eq!(systemd.run(Job::StopServer, &names(), soon()), Ok(done()), "and again on one connection");
    }

    /// A bus of our own, ended with the test.
    struct Bus {
        daemon: std::process::Child,
        address: String,
        _directory: tempfile::TempDir,
    }

    impl Bus {
        #[expect(clippy::disallowed_methods, reason = "a program that the test kills and waits for")]
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (config, socket) = (directory.path().join("config"), directory.path().join("bus"));
            let text = format!(
                "<busconfig><listen>unix:path={}</listen><policy context='default'><allow send_destination='*'/>\
                 <allow receive_sender='*'/><allow own='*'/></policy></busconfig>",
                socket.display()
            );
            std::fs::write(&config, text).unwrap();
            let mut daemon = std::process::Command::new("dbus-daemon")
                .args(["--nofork", "--nopidfile", "--print-address"])
                .arg(format!("--config-file={}", config.display()))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("dbus-daemon: install the package of that name");
            // It prints where it listens once it does.
            let mut address = String::new();
            let mut said = std::io::BufReader::new(daemon.stdout.take().unwrap());
            std::io::BufRead::read_line(&mut said, &mut address).unwrap();
            Self { daemon, address: address.trim_end().to_owned(), _directory: directory }
        }

        fn connect(&self) -> Builder<'_> {
            Builder::address(self.address.as_str()).unwrap()
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            self.daemon.kill().unwrap();
            self.daemon.wait().unwrap();
        }
    }

    #[test]
    #[ignore = "runs dbus-daemon(1), which not every machine has"]
    fn on_a_bus_a_flood_of_forged_ends_neither_ends_nor_holds_up_a_job() {
        let bus = Bus::start();
        let server = bus.connect().name(SYSTEMD).unwrap().serve_at(MANAGER_PATH, Manager::new(false));
        let _server = block_on(server.unwrap().build()).unwrap();
        let client = block_on(bus.connect().internal_executor(false).build()).unwrap();
        let victim = client.unique_name().unwrap().to_string();
        let forger = block_on(bus.connect().build()).unwrap();
        let forge = |count: u32| {
            let job = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/8").unwrap();
            for _ in 0..count {
                let body = (8_u32, &job, OVERLAY_NAME, "failed");
                let to = Some(victim.as_str());
                block_on(forger.emit_signal(to, MANAGER_PATH, MANAGER, "JobRemoved", &body)).unwrap();
            }
        };
        let mut systemd = Systemd { connection: client, deadline: soon(), kept: None };
        forge(500);
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Not without end: what is faster than this process reads only grows a queue in the bus.
                for _ in 0..200 {
                    if is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    forge(10);
                }
            });
            let results = [(); 20].map(|()| systemd.run(Job::Stop, &names(), soon()));
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(results, [(); 20].map(|()| Ok(done())));
        });
    }

    #[test]
    fn a_job_that_never_ends_meets_its_deadline_and_a_refusal_is_a_refusal() {
        let (mut systemd, _server) = played();
        let deadline = Instant::now() + std::time::Duration::from_millis(50);
        assert_eq!(systemd.run(Job::Start, &names(), deadline), Err(UnitsError::Deadline));
        assert_eq!(systemd.run(Job::Mount, &names(), deadline), Err(UnitsError::Deadline));
        let others = Names::of(&"4".parse().unwrap());
        assert_eq!(systemd.run(Job::Stop, &others, soon()), Err(UnitsError::Denied("no".into())));
    }

    #[test]
    fn a_wait_ends_when_the_last_unit_is_down_or_at_its_deadline() {
        let (mut systemd, _server) = played();
        let four = ["1", "2", "3", "4"].map(|name| format!("{name}.service"));
        assert_eq!(systemd.wait_until_down(&four, soon()), Ok(()));
        let (mut systemd, _server) = played();
        let began = Instant::now();
        let deadline = began + Duration::from_millis(50);
        assert_eq!(systemd.wait_until_down(&names().each().map(Clone::clone), deadline), Ok(()));
        assert!(began.elapsed() >= Duration::from_millis(50));
        let activity = |active: &str, since_us| Activity { active_state: active.into(), since_us };
        assert_eq!(
            systemd.activity(&names().each().map(Clone::clone)),
            Ok(vec![activity("failed", 0), activity("active", 77)])
        );
    }

    #[test]
    fn the_state_comes_off_the_wire() {
        let (mut systemd, _server) = played();
        let Pair { server, overlay } = systemd.state(&names(), Lines::All).unwrap();
        assert_eq!((server.active_state.as_str(), overlay.active_state.as_str()), ("failed", "active"));
        assert_eq!((server.result.as_str(), server.restarts, overlay.restarts), ("exit-code", 2, 0));
        for state in [server, overlay] {
            let runs: Vec<_> =
                state.exec.iter().map(|run| (run.line, run.started_us, run.code, run.status)).collect();
            assert_eq!(runs, [("ExecStart", 2, 2, 15), ("ExecStopPost", 20, 1, 32)]);
        }
        let of_stop = systemd.state(&names(), Lines::OfStop).unwrap();
        let lines = of_stop.each().map(|state| state.exec.iter().map(|run| run.line).collect::<Vec<_>>());
        assert_eq!(lines, [vec!["ExecStart", "ExecStopPost"], vec!["ExecStopPost"]]);
        assert_eq!(systemd.requires_overlay(&names()), Ok(true));
        assert_eq!(systemd.reset_failed(UNIT_NAME), Ok(()));
    }

    proptest! {
        /// systemd.exec(5): "-", "+", or both, in this order, in front of an absolute path. systemd refuses another.
        #[test]
        fn a_settings_path_is_what_follows_its_marks(
            mark in prop::sample::select(vec!["", "-", "+", "-+"]), path in "(/[-+a-z. ]{0,4}){1,4}"
        ) {
            prop_assert_eq!(plain_path(&format!("{mark}{path}")), PathBuf::from(&path));
        }

        /// Whichever reply an error is, what systemd says in it is what is said; and no other than its own is 'no unit'.
        #[test]
        fn an_error_reply_comes_through_in_its_own_words(
            name in "org\\.freedesktop\\.(DBus\\.Error|systemd1)\\.(AccessDenied|AuthFailed|NoReply|NoSuchUnit|[A-Z][a-z]{0,8})",
            detail in "[ -~]{0,40}"
        ) {
            let error = explain_reply(&name, &detail);
            prop_assert!(error.to_string().contains(&detail), "{}", error);
            let is_no_unit = matches!(error, UnitsError::NoSuchUnit(_));
            prop_assert_eq!(is_no_unit, name == "org.freedesktop.systemd1.NoSuchUnit");
            prop_assert!(!matches!(error, UnitsError::Denied(_)) || name.starts_with("org.freedesktop.DBus.Error.A"));
        }
    }
}
