//! The settings of an instance's two units, drop-ins included, for the doctor.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all, try_join3, try_join4, try_join5};
use left4me_helper::instance::Instance;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};

use super::bus::{ExecEntry, PROPERTIES, SERVICE, UNIT, unit_path};
use super::connection::Systemd;
use crate::doctor::{Bind, ExecLine, Mountpoint, OverlaySetup, Sandbox, UnitSetup};
use crate::units::UnitsError;

impl Systemd {
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
        let reply = self.ask(&path, PROPERTIES, "GetAll", &(SERVICE)).await?;
        let settings: Settings = reply.body().deserialize()?;
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
    pub(super) async fn read_sandbox(&self, path: &OwnedObjectPath) -> Result<Sandbox, UnitsError> {
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
}

/// A path without what systemd leaves in front of it: `-` and `+` (systemd.exec(5), ReadWritePaths=), and `!`, which it
/// says for the `-` of `WorkingDirectory=` (`src/core/dbus-execute.c:property_get_working_directory`).
pub(super) fn plain_path(setting: &str) -> PathBuf {
    setting.trim_start_matches(['-', '+', '!']).into()
}

/// All settings of a service, as the bus has them.
pub(super) type Settings = HashMap<String, OwnedValue>;

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
pub(super) const NAMESPACED: [&str; 30] = [
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
pub(super) fn namespaced(settings: &Settings) -> Vec<&'static str> {
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
pub(super) const MS_SHARED: u64 = 1 << 20;

fn exec_lines(entries: Vec<ExecEntry>) -> Vec<ExecLine> {
    entries.into_iter().map(|(_, argv, flags, ..)| ExecLine { argv, flags }).collect()
}

/// A timeout in microseconds; none if it is `infinity`.
fn timeout_of(us: u64) -> Option<Duration> {
    (us != u64::MAX).then(|| Duration::from_micros(us))
}
