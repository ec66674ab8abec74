//! An instance deleted for good: what its server wrote, its files, and the links that start it with the host.
//!
//! A server that runs is refused, as a reset is another decision. All else is what there is: [`control::run`] with
//! [`Action::Reset`] unmounts what an earlier stop left, checks, and deletes. The instance's own file goes last: whatever
//! fails before leaves an instance that can be destroyed again. From then on no start can begin; one that had read the file before
//! is taken back.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holders::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;
use left4me_helper::lock::RuntimeLock;
use left4me_helper::state::StateDir;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::actions::{Action, Host};
use crate::control::{self, is_missing};
use crate::create::lock;
use crate::report::{Exit, SCHEMA_VERSION, row};
use crate::units::{Activity, Names, UnitFiles, Units, UnitsError, is_down};
use crate::variables;
use crate::warning::{self, Loss};

/// What there is of an instance, and would be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Its name.
    pub instance: Instance,
    /// Its files, `.toml` and `.env`: those that are there.
    pub files: Vec<PathBuf>,
    /// Its runtime directory, if it is there.
    pub runtime: Option<PathBuf>,
    /// What an interrupted reset has left of it.
    pub trash: Option<PathBuf>,
    /// What its server wrote, or why that is not known.
    pub loss: Result<Loss, String>,
}

/// Why an instance is not destroyed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not root.
    #[error("no rights to do this: only root deletes an instance; use sudo. Nothing was deleted")]
    NotRoot,
    /// There is nothing of it.
    #[error(
        "there is no instance {instance}: neither {file} nor {runtime} is there; `l4d2ctl list` shows all"
    )]
    None {
        /// Its name.
        instance: Instance,
        /// Its file.
        file: PathBuf,
        /// Its runtime directory.
        runtime: PathBuf,
    },
    /// Its server runs.
    #[error(
        "{unit} is {active_state}, and a server that runs is not destroyed: `sudo l4d2ctl stop {instance}` first. Nothing was deleted"
    )]
    Runs {
        /// The server's unit.
        unit: String,
        /// How it is.
        active_state: String,
        /// Its name.
        instance: Instance,
    },
    /// Its server was started while it was destroyed.
    #[error(
        "{unit} is {active_state}: somebody has started it meanwhile, and its files are gone: `sudo l4d2ctl stop {instance}`, \
         then `sudo l4d2ctl destroy {instance}` again"
    )]
    Started {
        /// The server's unit.
        unit: String,
        /// How it is.
        active_state: String,
        /// Its name.
        instance: Instance,
    },
    /// The answer was no.
    #[error("nothing was deleted")]
    No,
    /// Nobody is there to be asked.
    #[error("nobody is at a terminal to be asked, and --yes is not given: nothing was deleted")]
    Unasked,
    /// The disk.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// systemd.
    #[error(transparent)]
    Units(#[from] UnitsError),
}

impl Refusal {
    /// How `l4d2ctl` ends with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::None { .. } => Exit::NoSuchUnit,
            _ => Exit::Failed,
        }
    }
}

/// Finds out what would be deleted.
///
/// # Errors
/// [`Refusal`]: it can't be, whatever is answered.
pub async fn look<U: Units>(units: &mut U, host: &Host, instance: &Instance) -> Result<Doomed, Refusal> {
    if !host.is_root {
        return Err(Refusal::NotRoot);
    }
    let state = StateDir::open(&host.state_dir)?;
    let paths = state.paths(instance);
    let there = |path: &Path| (!is_missing(path)).then(|| path.to_owned());
    let doomed = Doomed {
        instance: instance.clone(),
        files: [&paths.file, &variables::file(&paths.file)]
            .into_iter()
            .filter_map(|path| there(path))
            .collect(),
        runtime: there(&paths.runtime),
        trash: there(&paths.trash),
        loss: warning::loss(&state, instance).map_err(|error| chain(&error)),
    };
    // Of one that runs and of which nothing is left, that it runs is the news.
    refuse_running(units, instance).await?;
    if doomed.files.is_empty() && doomed.runtime.is_none() && doomed.trash.is_none() {
        let (file, runtime) = (paths.file, paths.runtime);
        return Err(Refusal::None { instance: instance.clone(), file, runtime });
    }
    Ok(doomed)
}

async fn refuse_running<U: Units>(units: &mut U, instance: &Instance) -> Result<(), Refusal> {
    let unit = Names::of(instance).server;
    let activity = units.activity(std::slice::from_ref(&unit)).await?;
    match activity.into_iter().next() {
        Some(server) if !is_down(&server.active_state) => {
            Err(Refusal::Runs { unit, active_state: server.active_state, instance: instance.clone() })
        }
        _ => Ok(()),
    }
}

/// What is asked before.
#[must_use]
pub fn question(doomed: &Doomed) -> String {
    let Doomed { instance, .. } = doomed;
    let mut text = format!("Of instance {instance} will be deleted:\n");
    for file in &doomed.files {
        text.push_str(&format!("  {}\n", file.display()));
    }
    if let Some(runtime) = &doomed.runtime {
        let loss = match &doomed.loss {
            Ok(loss) => loss.to_string(),
            Err(why) => format!("how much is not known ({why})"),
        };
        text.push_str(&format!("  {}: what its server wrote, {loss}\n", runtime.display()));
    }
    if let Some(trash) = &doomed.trash {
        text.push_str(&format!("  {}: what an interrupted reset left\n", trash.display()));
    }
    text.push_str(&format!(
        "{} will not start with the host any more.\nDelete all of it? [y/N] ",
        instance.unit()
    ));
    text
}

/// What became of it. The keys are an interface, as those of [`Report`](crate::report::Report).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `destroy`.
    pub action: String,
    /// The instance's name.
    pub instance: String,
    /// Whether nothing of it is left.
    pub ok: bool,
    /// The files, directories and links that were deleted.
    pub deleted: Vec<String>,
    /// What is worth knowing and no failure, a sentence each.
    pub notes: Vec<String>,
    /// Why something is left, in sentences; null if nothing is.
    pub error: Option<String>,
    /// How `l4d2ctl` ends: `ok`, `failed` or `no-such-unit`.
    pub exit: Exit,
}

impl Destroyed {
    /// Nothing yet.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            action: "destroy".into(),
            instance: instance.to_string(),
            ok: false,
            deleted: Vec::new(),
            notes: Vec::new(),
            error: None,
            exit: Exit::Failed,
        }
    }

    /// That it was refused.
    #[must_use]
    pub fn refused(instance: &Instance, refusal: &Refusal) -> Self {
        Self { error: Some(chain(refusal)), exit: refusal.exit(), ..Self::of(instance) }
    }
}

/// The text for people, without the error.
impl fmt::Display for Destroyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "destroy {}: {}", self.instance, if self.ok { "ok" } else { "failed" })?;
        self.deleted.iter().try_for_each(|path| row(f, "deleted", path))?;
        self.notes.iter().try_for_each(|note| row(f, "note", note))
    }
}

/// Deletes what [`look`] has found.
pub async fn destroy<U: Units + UnitFiles>(
    units: &mut U,
    host: &Host,
    doomed: &Doomed,
    timeout: Duration,
) -> Destroyed {
    let mut destroyed = Destroyed::of(&doomed.instance);
    match carry_out(units, host, doomed, timeout, &mut destroyed).await {
        Ok(()) if destroyed.error.is_none() => {
            destroyed.ok = true;
            destroyed.exit = Exit::Ok;
        }
        Ok(()) => {}
        Err(refusal) => {
            destroyed.error = Some(chain(&refusal));
            destroyed.exit = refusal.exit();
        }
    }
    destroyed
}

async fn carry_out<U: Units + UnitFiles>(
    units: &mut U,
    host: &Host,
    doomed: &Doomed,
    timeout: Duration,
    destroyed: &mut Destroyed,
) -> Result<(), Refusal> {
    let instance = &doomed.instance;
    let state = StateDir::open(&host.state_dir)?;
    // One who makes an instance of this name at this moment waits.
    let instances = lock(&state)?;
    // An answer takes its time.
    refuse_running(units, instance).await?;
    // Before anything is deleted: a host that goes down now does not start what is half gone.
    destroyed.deleted.extend(units.disable(&instance.unit()).await?);
    let paths = state.paths(instance);
    let has_runtime = [&paths.runtime, &paths.trash].into_iter().any(|path| !is_missing(path));
    if has_runtime || !is_missing(&paths.file) {
        let report = control::run(units, host, Action::Reset, instance, timeout).await;
        destroyed.notes.extend(report.notes);
        if let Some(error) = report.error {
            destroyed.error = Some(again(&error, instance));
            return Ok(());
        }
        let gone = [&doomed.runtime, &doomed.trash].into_iter().flatten();
        destroyed.deleted.extend(gone.map(|path| path.to_string_lossy().into_owned()));
    }
    for path in [variables::file(&paths.file), paths.file] {
        if unlink(&instances, &path)? {
            destroyed.deleted.push(path.to_string_lossy().into_owned());
        }
    }
    rustix::fs::fsync(&instances).map_err(HelperError::call("fsync", state.path().join("instances")))?;
    if let Some(error) = take_back(units, host, instance, timeout, destroyed).await? {
        destroyed.error = Some(error);
        return Ok(());
    }
    for unit in Names::of(instance).each() {
        let drop_ins = host.units.join(format!("{unit}.d"));
        if !is_missing(&drop_ins) {
            let text = format!("{} stays, and would be of another instance of this name", drop_ins.display());
            destroyed.notes.push(text);
        }
    }
    destroyed.notes.push(format!("the user {} stays, as files elsewhere may be its", instance.user()));
    Ok(())
}

/// Takes back a start that had read the instance's file before that went: its overlay may be mounted by now, with the server
/// waiting for it and down. One that begins later finds no file. Returns why it could not be taken back.
async fn take_back<U: Units>(
    units: &mut U,
    host: &Host,
    instance: &Instance,
    timeout: Duration,
    destroyed: &mut Destroyed,
) -> Result<Option<String>, Refusal> {
    let paths = instance.paths(&host.state_dir);
    let names = Names::of(instance);
    let names = names.each().map(Clone::clone);
    let mut now = units.activity(&names).await?;
    refuse_started(&names, &now, instance)?;
    let has_runtime = [&paths.runtime, &paths.trash].into_iter().any(|path| !is_missing(path));
    if has_runtime || now.iter().any(|unit| !is_down(&unit.active_state)) {
        let report = control::run(units, host, Action::Reset, instance, timeout).await;
        destroyed.notes.extend(report.notes);
        match report.error {
            None => {
                destroyed.notes.push("somebody was starting it meanwhile: that start was taken back".into())
            }
            // It has failed by itself, for want of the file.
            Some(_) if report.exit == Exit::NoSuchUnit => {}
            Some(error) => return Ok(Some(again(&error, instance))),
        }
        now = units.activity(&names).await?;
        refuse_started(&names, &now, instance)?;
    }
    // A failed unit of an instance that there is not would be failed for ever.
    for (unit, now) in names.iter().zip(now) {
        if now.active_state == "failed" {
            units.reset_failed(unit).await?;
        }
    }
    Ok(None)
}

/// Refuses to call it destroyed while its server, the first of `names`, is up.
fn refuse_started(names: &[String], now: &[Activity], instance: &Instance) -> Result<(), Refusal> {
    match (names, now) {
        ([unit, ..], [server, ..]) if !is_down(&server.active_state) => Err(Refusal::Started {
            unit: unit.clone(),
            active_state: server.active_state.clone(),
            instance: instance.clone(),
        }),
        _ => Ok(()),
    }
}

/// What went wrong, and that it can be tried again.
fn again(error: &str, instance: &Instance) -> String {
    format!("{error}; then `sudo l4d2ctl destroy {instance}` again")
}

/// Deletes a file of `instances`; false if it is not there.
fn unlink(instances: &RuntimeLock, path: &Path) -> Result<bool, HelperError> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    match rustix::fs::unlinkat(instances, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(source) => Err(HelperError::call("delete", path)(source)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
