//! A new instance: its two files in `instances/`. All that can be wrong is looked at before anything is written, and said
//! at once.
//!
//! [`refusals`] decides, over what [`look`] has found; [`write`] writes. Both are done under a lock on `instances`, so that two
//! who make an instance at once do not get one name or one port. The instance is its `.toml`, which is there as a whole or
//! not at all: it comes last, by a rename of what is on the disk already.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holders::chain::chain;
use left4me_helper::error::HelperError;
use left4me_helper::instance::{Instance, Paths};
use left4me_helper::layers::{self, OverlayName};
use left4me_helper::lock::RuntimeLock;
use left4me_helper::overlay::MAX_LAYERS;
use left4me_helper::state::StateDir;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::actions::{Action, Host};
use crate::fleet::{all_instances, names_in};
use crate::list::list_of;
use crate::ports::{self, Used};
use crate::report::{Exit, SCHEMA_VERSION, row};
use crate::variables::{self, DEFAULT_PORT, PortError};

/// The lowest port that the unit's server can have: it has no CAP_NET_BIND_SERVICE (ip(7), `ip_unprivileged_port_start`).
pub const MIN_PORT: u32 = 1024;

/// Where the instances' files lie, in the state directory.
const INSTANCES: &str = "instances";

/// How long another one who makes or destroys an instance is waited for.
const LOCK: Duration = Duration::from_secs(10);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The name.
    pub instance: Instance,
    /// The layers' names, topmost first, as they were typed.
    pub layers: Vec<String>,
    /// The port; any number that was typed.
    pub port: Option<u32>,
    /// What else the server is given on its command line.
    pub arguments: Option<String>,
}

impl Wish {
    fn port(&self) -> u32 {
        self.port.unwrap_or(u32::from(DEFAULT_PORT))
    }

    /// Its two files' texts: the layers, and the variables.
    fn texts(&self) -> (String, String) {
        let layers: Vec<_> = self.layers.iter().map(|name| format!("\"{name}\"")).collect();
        let mut variables = variables::line(variables::PORT, &self.port().to_string());
        if let Some(arguments) = &self.arguments {
            variables.push_str(&variables::line(variables::ARGUMENTS, arguments));
        }
        let note = "# The first layer is topmost: its files hide those of the next.\n";
        (format!("{note}overlays = [{}]\n", layers.join(", ")), variables)
    }
}

/// Why an instance is not made, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not root.
    #[error("no rights to do this: only root writes in {0}; use sudo")]
    NotRoot(PathBuf),
    /// The package, or the archive's files, are not set up.
    #[error("there is no directory {0}: `sudo systemd-tmpfiles --create` makes it")]
    NoDirectory(PathBuf),
    /// There is one.
    #[error(
        "there is an instance {instance} already: {file}; `l4d2ctl list` shows all, `sudo l4d2ctl destroy {instance}` deletes it"
    )]
    Exists {
        /// Its name.
        instance: Instance,
        /// Its file.
        file: PathBuf,
    },
    /// An earlier one of this name has left something, which the new one would have.
    #[error(
        "an earlier instance {instance} has left {left}, which the new one would have: `sudo l4d2ctl destroy {instance}` deletes it"
    )]
    Left {
        /// The name.
        instance: Instance,
        /// What is there.
        left: PathBuf,
    },
    /// No name of a layer: a path for example.
    #[error("{name}; a layer is a directory in {overlays} and is named by its name alone")]
    LayerName {
        /// What is wrong with the name.
        name: String,
        /// Where layers lie.
        overlays: PathBuf,
    },
    /// The same layer twice.
    #[error("layer {0} is named twice: overlayfs takes each once")]
    LayerTwice(String),
    /// No such layer.
    #[error("no layer {name}: there is no directory {directory}; {there}")]
    NoLayer {
        /// Its name.
        name: String,
        /// Where it would be.
        directory: PathBuf,
        /// Which there are.
        there: String,
    },
    /// Something that is no directory.
    #[error("layer {name}: {path} is not a directory: a layer's files lie in one")]
    LayerNoDirectory {
        /// Its name.
        name: String,
        /// What is there.
        path: PathBuf,
    },
    /// More than overlayfs takes.
    #[error("{count} layers are too many: overlayfs takes {} and the installation", MAX_LAYERS - 1)]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// No game.
    #[error("no installation: {program} is not there; install the game such that it is")]
    NoInstallation {
        /// Its start script.
        program: PathBuf,
    },
    /// A game that nobody can run.
    #[error("{program} is no program that may be run: `sudo chmod a+rx {program}`, if it is the game's")]
    NoProgram {
        /// Its start script.
        program: PathBuf,
    },
    /// No port, or one that the server has no rights to.
    #[error("port {port}: must be from {MIN_PORT} to 65535, as a server has no rights to a lower one{}", free_words(*.free))]
    PortRange {
        /// What was typed.
        port: u32,
        /// One that is free.
        free: Option<u16>,
    },
    /// Another instance's port.
    #[error("port {port} is that of instance {other} ({file}){}", free_words(*.free))]
    PortOfInstance {
        /// The port.
        port: u32,
        /// Whose it is.
        other: Instance,
        /// Where that is said.
        file: PathBuf,
        /// One that is free.
        free: Option<u16>,
    },
    /// A port that some process has.
    #[error("port {port} is in use now ({at}): `sudo ss --udp --tcp --listening --processes 'sport = :{port}'` says by whom{}", free_words(*.free))]
    PortInUse {
        /// The port.
        port: u32,
        /// How it is used.
        at: String,
        /// One that is free.
        free: Option<u16>,
    },
    /// Another instance's port is not known, so it may be this one.
    #[error("the port of instance {other} is not known: {why}; correct that file")]
    PortUnknown {
        /// Whose.
        other: Instance,
        /// Why not.
        why: String,
    },
    /// Arguments that no file of variables can hold, or no command line.
    #[error(
        "the arguments have a line break or another control character in them: a server's command line is one line"
    )]
    Arguments,
    /// What could not be looked at.
    #[error("{0}")]
    Unknown(String),
}

/// The end of a sentence about a port that is not to be had.
fn free_words(free: Option<u16>) -> String {
    free.map_or(String::new(), |free| format!("; `--port {free}` is free"))
}

/// What there is already, as far as it matters.
#[derive(Debug, Default)]
struct Found {
    is_root: bool,
    instances: PathBuf,
    overlays: PathBuf,
    /// Of this name: its file, if it is there, and what else is.
    file: Option<PathBuf>,
    left: Vec<PathBuf>,
    /// The layers that were asked for by a good name, and how each is.
    layers: BTreeMap<String, Layer>,
    /// All layers that there are.
    all_layers: Vec<String>,
    /// The game's start script, and what is wrong with it.
    program: PathBuf,
    installation: Installation,
    /// The others' ports, and where each is said.
    ports: Vec<(Instance, PathBuf, Result<u16, String>)>,
    used: Vec<Used>,
    unknown: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layer {
    Good,
    Missing,
    NoDirectory,
    Bad(String),
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Installation {
    #[default]
    Good,
    Missing,
    NoProgram,
    Bad(String),
}

/// Everything that is wrong with a wish, in the order of the command line.
fn refusals(wish: &Wish, found: &Found) -> Vec<Refusal> {
    let mut all = Vec::new();
    if !found.is_root {
        all.push(Refusal::NotRoot(found.instances.clone()));
    }
    let instance = || wish.instance.clone();
    if let Some(file) = &found.file {
        all.push(Refusal::Exists { instance: instance(), file: file.clone() });
    } else {
        all.extend(found.left.iter().map(|left| Refusal::Left { instance: instance(), left: left.clone() }));
    }
    all.extend(layer_refusals(wish, found));
    let program = || found.program.clone();
    match &found.installation {
        Installation::Good => {}
        Installation::Missing => all.push(Refusal::NoInstallation { program: program() }),
        Installation::NoProgram => all.push(Refusal::NoProgram { program: program() }),
        Installation::Bad(why) => all.push(Refusal::Unknown(why.clone())),
    }
    all.extend(port_refusals(wish, found));
    if wish.arguments.as_ref().is_some_and(|text| text.chars().any(char::is_control)) {
        all.push(Refusal::Arguments);
    }
    all.extend(found.unknown.iter().cloned().map(Refusal::Unknown));
    all
}

fn layer_refusals(wish: &Wish, found: &Found) -> Vec<Refusal> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for name in &wish.layers {
        if let Err(wrong) = OverlayName::try_from(name.clone()) {
            all.push(Refusal::LayerName { name: wrong, overlays: found.overlays.clone() });
            continue;
        }
        if !seen.insert(name) {
            all.push(Refusal::LayerTwice(name.clone()));
            continue;
        }
        let (path, name) = (found.overlays.join(name), name.clone());
        match found.layers.get(&name) {
            Some(Layer::Missing) => {
                let there = match found.all_layers.as_slice() {
                    [] => "there is no layer yet".to_owned(),
                    some => format!("there are: {}", some.join(", ")),
                };
                all.push(Refusal::NoLayer { name, directory: path, there });
            }
            Some(Layer::NoDirectory) => all.push(Refusal::LayerNoDirectory { name, path }),
            Some(Layer::Bad(why)) => all.push(Refusal::Unknown(why.clone())),
            Some(Layer::Good) | None => {}
        }
    }
    if seen.len() >= MAX_LAYERS {
        all.push(Refusal::TooManyLayers { count: seen.len() });
    }
    all
}

fn port_refusals(wish: &Wish, found: &Found) -> Vec<Refusal> {
    let (port, free) = (wish.port(), free_port(found));
    if !(MIN_PORT..=u32::from(u16::MAX)).contains(&port) {
        return vec![Refusal::PortRange { port, free }];
    }
    let mut all = Vec::new();
    for (other, file, said) in &found.ports {
        let (other, file) = (other.clone(), file.clone());
        match said {
            Ok(theirs) if u32::from(*theirs) == port => {
                all.push(Refusal::PortOfInstance { port, other, file, free });
            }
            Ok(_) => {}
            Err(why) => all.push(Refusal::PortUnknown { other, why: why.clone() }),
        }
    }
    let at: Vec<_> =
        found.used.iter().filter(|used| u32::from(used.at.port()) == port).map(ToString::to_string).collect();
    if !at.is_empty() {
        all.push(Refusal::PortInUse { port, at: at.join(", "), free });
    }
    all
}

/// The first port from the default one that nobody has.
fn free_port(found: &Found) -> Option<u16> {
    let of_others: BTreeSet<_> = found.ports.iter().filter_map(|(_, _, port)| port.as_ref().ok()).collect();
    let used: BTreeSet<_> = found.used.iter().map(|used| used.at.port()).collect();
    (DEFAULT_PORT..u16::MAX).find(|port| !of_others.contains(port) && !used.contains(port))
}

/// Looks at all that [`refusals`] wants to know. What can't be looked at is a refusal of its own.
fn look(wish: &Wish, host: &Host, state: &StateDir) -> Found {
    let paths = state.paths(&wish.instance);
    let mut found = Found {
        is_root: host.is_root,
        instances: state.path().join(INSTANCES),
        overlays: state.path().join("overlays"),
        program: state.path().join("installation/srcds_run"),
        ..Found::default()
    };
    let is_there = |path: &Path| !crate::control::is_missing(path);
    found.file = is_there(&paths.file).then(|| paths.file.clone());
    let left = [variables::file(&paths.file), paths.runtime.clone(), paths.trash.clone()];
    found.left = left.into_iter().filter(|path| is_there(path)).collect();
    for name in wish.layers.iter().filter(|name| OverlayName::try_from((*name).clone()).is_ok()) {
        let layer = match layers::open(state, &found.overlays.join(name)) {
            Ok(_layer) => Layer::Good,
            Err(HelperError::NoLayer { .. }) => Layer::Missing,
            Err(HelperError::Call { source: Errno::NOTDIR, .. }) => Layer::NoDirectory,
            Err(error) => Layer::Bad(chain(&error)),
        };
        found.layers.insert(name.clone(), layer);
    }
    match names_in(&found.overlays) {
        Ok(names) => found.all_layers = names,
        Err(error) => found.unknown.push(chain(&error)),
    }
    let is_layer = |name: &String| layers::open(state, &state.path().join("overlays").join(name)).is_ok();
    found.all_layers.retain(is_layer);
    found.all_layers.sort();
    found.installation = installation(state);
    match all_instances(state.path(), Action::Start) {
        Ok(others) => {
            for other in others.into_iter().filter(|other| *other != wish.instance) {
                let file = variables::file(&state.paths(&other).file);
                let port = variables::port_of(&file).map_err(|error: PortError| chain(&error));
                found.ports.push((other, file, port));
            }
        }
        Err(error) => found.unknown.push(chain(&error)),
    }
    match ports::in_use(&host.net) {
        Ok(used) => found.used = used,
        Err(error) => found.unknown.push(chain(&error)),
    }
    found
}

/// How the game's start script is.
fn installation(state: &StateDir) -> Installation {
    let directory = match layers::open(state, &state.path().join("installation")) {
        Ok(directory) => directory,
        Err(HelperError::NoLayer { .. }) => return Installation::Missing,
        Err(error) => return Installation::Bad(chain(&error)),
    };
    match rustix::fs::statat(&directory, "srcds_run", AtFlags::empty()) {
        Err(Errno::NOENT) => Installation::Missing,
        Ok(stat)
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_mode & 0o111 != 0 =>
        {
            Installation::Good
        }
        _ => Installation::NoProgram,
    }
}

/// What became of it. The keys are an interface, as those of [`Report`](crate::report::Report).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `create`.
    pub action: String,
    /// The instance's name.
    pub instance: String,
    /// Whether it was made.
    pub ok: bool,
    /// Its files, as they are now: none if it was not made.
    pub files: Vec<String>,
    /// Its layers, topmost first.
    pub layers: Vec<String>,
    /// Its port.
    pub port: u32,
    /// Everything that keeps it from being made, a sentence each.
    pub problems: Vec<String>,
    /// Why it was not made; null if it was.
    pub error: Option<String>,
    /// How `l4d2ctl` ends: `ok` or `failed`.
    pub exit: Exit,
}

/// Makes the instance, or says all that is wrong with it.
#[must_use]
pub fn create(wish: &Wish, host: &Host) -> Created {
    let mut created = Created {
        schema_version: SCHEMA_VERSION,
        action: "create".into(),
        instance: wish.instance.to_string(),
        ok: false,
        files: Vec::new(),
        layers: wish.layers.clone(),
        port: wish.port(),
        problems: Vec::new(),
        error: None,
        exit: Exit::Failed,
    };
    match make(wish, host, &mut created.problems) {
        Ok(paths) if created.problems.is_empty() => {
            created.files = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
            created.ok = true;
            created.exit = Exit::Ok;
        }
        Ok(_nothing) => created.error = Some(format!("instance {} was not made", wish.instance)),
        Err(error) => {
            created.problems.push(chain(&error));
            created.error =
                Some(format!("instance {} was not made, and nothing of it is left", wish.instance));
        }
    }
    created
}

/// The text for people, without what goes where errors go.
impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, .. } = self;
        if !self.ok {
            return Ok(());
        }
        writeln!(f, "create {instance}: ok")?;
        for file in &self.files {
            row(f, "file", file)?;
        }
        row(f, "layers", &list_of(&self.layers))?;
        row(f, "port", &self.port.to_string())?;
        row(f, "to start it", &format!("sudo l4d2ctl start {instance}"))?;
        row(f, "with the host", &format!("sudo systemctl enable left4me-server@{instance}"))
    }
}

fn make(wish: &Wish, host: &Host, problems: &mut Vec<String>) -> Result<Vec<PathBuf>, HelperError> {
    let opened = StateDir::open(&host.state_dir).and_then(|state| Ok((lock(&state)?, state)));
    let (lock, state) = match opened {
        Ok(opened) => opened,
        Err(HelperError::Call { path, source: Errno::NOENT, .. }) => {
            problems.push(Refusal::NoDirectory(path).to_string());
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let refused = refusals(wish, &look(wish, host, &state));
    problems.extend(refused.iter().map(ToString::to_string));
    if !problems.is_empty() {
        return Ok(Vec::new());
    }
    write(&lock, &state.paths(&wish.instance), wish)
}

/// Locks `instances`, against others who make or destroy instances.
pub(crate) fn lock(state: &StateDir) -> Result<RuntimeLock, HelperError> {
    let (parent, path) = (Path::new("."), state.path().join(INSTANCES));
    let parent = state.directory(parent).map_err(HelperError::call("open directory", state.path()))?;
    let lock = RuntimeLock::take(parent, INSTANCES, &path, Instant::now() + LOCK)?;
    let lock = lock.ok_or_else(|| HelperError::call("open directory", &path)(Errno::NOENT))?;
    left4me_helper::state::require_roots(&lock, &path)?;
    Ok(lock)
}

/// Writes both files, whole, or leaves neither.
fn write(instances: &RuntimeLock, paths: &Paths, wish: &Wish) -> Result<Vec<PathBuf>, HelperError> {
    let (layers, variables) = wish.texts();
    let files = [(variables::file(&paths.file), variables), (paths.file.clone(), layers)];
    let mut unfinished = Unfinished { directory: instances.as_fd(), names: Vec::new() };
    for (path, text) in &files {
        unfinished.put(path, text)?;
    }
    for (path, _) in &files {
        unfinished.rename(path)?;
    }
    let path = || paths.file.parent().unwrap_or(&paths.file);
    // As a lock it is open to be read, which is enough to fsync(2) it.
    rustix::fs::fsync(instances).map_err(|errno| HelperError::call("fsync", path())(errno))?;
    unfinished.names.clear();
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// Files that are taken away again if this is dropped.
struct Unfinished<'a> {
    directory: BorrowedFd<'a>,
    names: Vec<OsString>,
}

impl Unfinished<'_> {
    /// Writes what is to be `path` to the disk, under another name. One that a killed `create` has left is written over: the
    /// directory is locked.
    fn put(&mut self, path: &Path, text: &str) -> Result<(), HelperError> {
        let name = new_name(path);
        self.names.push(name.clone());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.directory, &name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(HelperError::call("create", path))?);
        // Whatever the umask is: `l4d2ctl list` is anybody's.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644)).map_err(HelperError::call("chmod", path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
            HelperError::call("write", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
    }

    /// Gives it its name, if nobody has that.
    fn rename(&mut self, path: &Path) -> Result<(), HelperError> {
        let (new, name) = (new_name(path), file_name(path));
        rustix::fs::renameat_with(self.directory, &new, self.directory, &name, RenameFlags::NOREPLACE)
            .map_err(HelperError::call("rename a new file to", path))?;
        self.names.retain(|one| *one != new);
        self.names.push(name);
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            match rustix::fs::unlinkat(self.directory, name, AtFlags::empty()) {
                // What could not be made need not go, and why it could not is what is reported.
                Ok(()) | Err(_) => {}
            }
        }
    }
}

fn file_name(path: &Path) -> OsString {
    path.file_name().unwrap_or(path.as_os_str()).to_owned()
}

/// `.new-3.toml` for `3.toml`. No instance's name starts with a dot.
fn new_name(path: &Path) -> OsString {
    let mut name = OsString::from(".new-");
    name.push(file_name(path));
    name
}

#[cfg(test)]
mod tests;
