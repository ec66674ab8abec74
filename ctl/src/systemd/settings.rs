//! The settings of an instance's two units, drop-ins included, for the doctor.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all, try_join3, try_join4, try_join5};
use left4me_helper::instance::Instance;
use systemd_bus::{ExecStatus, ServiceProxy, UnitProxy, all_of_service, exec_statuses, unit_path};
use zbus::zvariant::{OwnedValue, Value};

use super::connection::Systemd;
use crate::doctor::{Bind, ExecLine, Mountpoint, OverlaySetup, Sandbox, UnitSetup};
use crate::units::UnitsError;

impl Systemd {
    /// The settings of an instance's two units, drop-ins included, for the doctor. `merged` is its mountpoint.
    ///
    /// # Errors
    /// As [`UnitsError`]. That there is no unit of the overlay is none: the doctor says so.
    pub async fn setup(&self, instance: &Instance, merged: Mountpoint) -> Result<UnitSetup, UnitsError> {
        self.wait(self.deadline, self.read_setup(instance, merged)).await
    }

    async fn read_setup(&self, instance: &Instance, merged: Mountpoint) -> Result<UnitSetup, UnitsError> {
        const AROUND: [&str; 3] = ["ExecStartPre", "ExecStop", "ExecStopPost"];
        let unit = instance.unit();
        self.keep(&[&unit]).await?;
        let loaded: UnitProxy<'_> = self.of_unit(&unit).await?;
        let service: ServiceProxy<'_> = self.of_unit(&unit).await?;
        let around = try_join_all(AROUND.map(|line| exec_statuses(&service, line)));
        let stop = try_join3(service.kill_mode(), service.send_sigkill(), service.timeout_stop_us());
        let bonds = try_join3(loaded.requires(), loaded.after(), service.user());
        let (files, around, sandbox, (stop, bonds)) =
            try_join4(read_files(&loaded), around, read_sandbox(&service), try_join(stop, bonds)).await?;
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
            around: of_each(AROUND, around).map(|(setting, run)| (setting, exec_line(run))).collect(),
            sandbox,
            kill_mode,
            send_sigkill,
            timeout_stop: timeout_of(timeout),
            overlay: self.read_overlay(&instance.overlay_unit()).await?,
        })
    }

    async fn read_overlay(&self, unit: &str) -> Result<OverlaySetup, UnitsError> {
        self.keep(&[unit]).await?;
        let (load_state, fragment, drop_ins, need_daemon_reload) =
            read_files(&self.of_unit(unit).await?).await?;
        if load_state != "loaded" {
            return Ok(OverlaySetup { unit: unit.to_owned(), load_state, ..OverlaySetup::default() });
        }
        // What gives a namespace is in so many settings that all are asked for at once.
        let settings = all_of_service(&self.connection, unit_path(unit)).await?;
        let directory: String = setting(&settings, "WorkingDirectory")?;
        let lines = |property| -> Result<_, UnitsError> {
            let statuses: Vec<ExecStatus> = setting(&settings, property)?;
            Ok(statuses.into_iter().map(exec_line).collect())
        };
        Ok(OverlaySetup {
            unit: unit.to_owned(),
            load_state,
            fragment,
            drop_ins,
            need_daemon_reload,
            exec_start: lines("ExecStartEx")?,
            exec_stop_post: lines("ExecStopPostEx")?,
            remain_after_exit: setting(&settings, "RemainAfterExit")?,
            user: setting(&settings, "User")?,
            namespaced: namespaced(&settings),
            working_directory: plain_path(&directory),
            timeout_stop: timeout_of(setting(&settings, "TimeoutStopUSec")?),
        })
    }
}

/// A unit's LoadState, file, drop-ins, and whether one of these has changed.
async fn read_files(unit: &UnitProxy<'_>) -> zbus::Result<(String, String, Vec<String>, bool)> {
    try_join4(unit.load_state(), unit.fragment_path(), unit.drop_in_paths(), unit.need_daemon_reload()).await
}

/// What of a service's settings has to do with mounts: ten questions.
pub(super) async fn read_sandbox(service: &ServiceProxy<'_>) -> zbus::Result<Sandbox> {
    const ROOTS: [&str; 2] = ["RootDirectory", "RootImage"];
    const BINDS: [&str; 2] = ["BindPaths", "BindReadOnlyPaths"];
    const PATHS: [&str; 3] = ["ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths"];
    let properties = service.inner();
    let (roots, binds, (paths, temporary), mount_flags, directory) = try_join5(
        try_join_all(ROOTS.map(|setting| properties.get_property::<String>(setting))),
        try_join_all(
            BINDS.map(|setting| properties.get_property::<Vec<(String, String, bool, u64)>>(setting)),
        ),
        try_join(
            try_join_all(PATHS.map(|setting| properties.get_property::<Vec<String>>(setting))),
            service.temporary_file_system(),
        ),
        service.mount_flags(),
        service.working_directory(),
    )
    .await?;
    let roots = ROOTS.into_iter().zip(roots).filter(|(_setting, root)| !root.is_empty());
    let bind = |(setting, (source, destination, ..)): (_, (String, String, bool, u64))| Bind {
        setting,
        source: plain_path(&source),
        destination: plain_path(&destination),
    };
    let temporary = temporary.into_iter().map(|(path, _options)| ("TemporaryFileSystem", path));
    let mounted_over = of_each(PATHS, paths).chain(temporary);
    Ok(Sandbox {
        mount_flags,
        roots: roots.map(|(setting, root)| (setting, root.into())).collect(),
        binds: of_each(BINDS, binds).map(bind).collect(),
        mounted_over: mounted_over.map(|(setting, path)| (setting, plain_path(&path))).collect(),
        working_directory: plain_path(&directory),
    })
}

/// Each entry with its setting.
fn of_each<T, const N: usize>(
    settings: [&'static str; N],
    entries: Vec<Vec<T>>,
) -> impl Iterator<Item = (&'static str, T)> {
    let of = |(setting, entries): (_, Vec<T>)| entries.into_iter().map(move |entry| (setting, entry));
    settings.into_iter().zip(entries).flat_map(of)
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

fn exec_line(ExecStatus { argv, flags, .. }: ExecStatus) -> ExecLine {
    ExecLine { argv, flags }
}

/// A timeout in microseconds; none if it is `infinity`.
fn timeout_of(us: u64) -> Option<Duration> {
    (us != u64::MAX).then(|| Duration::from_micros(us))
}
