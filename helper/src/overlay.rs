//! Mounting and unmounting an instance's overlay: the plan is a value, applying it makes the system calls.
//!
//! Absent on purpose: a retry, a lazy unmount, and any access inside `merged`. EBUSY means that something holds the mount:
//! name it once, and leave everything as it is.
//!
//! Each step can be the last one, because a SIGKILL or a power cut may come after any of them. So each step continues from
//! what it finds: directories that exist already, an owner that is not yet right, a mount, a `work` that was not cleared, a
//! runtime directory that a reset has half removed. Until `move_mount(2)` the new mount is attached to a descriptor only and
//! ends with this process.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::account::Account;
use crate::busy_note;
use crate::error::HelperError;
use crate::instance::Paths;
use crate::layers;
use crate::lock::RuntimeLock;
use crate::mountinfo;
use crate::state::{InstanceDir, directory_beneath, proc_path, require_roots};
use crate::tree::remove_tree;
use crate::unit_end::{self, Processes, Wait};
use holders::chain::chain;

/// The longest option string `mount(2)` takes, bytes: one page less the final NUL
/// (fs/namespace.c:copy_mount_options).
pub const MAX_OPTIONS: usize = 4095;

/// The most lower layers overlayfs takes (fs/overlayfs/ovl_entry.h: OVL_MAX_STACK).
pub const MAX_LAYERS: usize = 500;

/// How long what a crash left in `work` may take to delete.
const CLEAR: Duration = Duration::from_secs(5);

/// Where it is mounted, in `runtime/<id>`.
const MERGED: &str = "merged";

/// The mount table of this process.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Who a directory is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Root: the server must not be able to swap or write it.
    Root,
    /// The server's user.
    Server,
}

/// A directory in `runtime/<id>` that a mount needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its name in `runtime/<id>`.
    pub name: &'static str,
    /// Who it belongs to.
    pub owner: Owner,
    /// Its mode when it is made.
    pub mode: u32,
}

/// The mode of `runtime/<id>`, which is root's and its group the server's: the server goes through it, and nobody but root
/// can open it. So nobody else can stand in `merged` or read what the server wrote, and not even the server can hold the
/// lock (flock(2) takes any open descriptor).
pub const RUNTIME_MODE: u32 = 0o710;

/// The directories a mount needs. The mode and owner of `upper` are what the root of `merged` shows; `work` is
/// overlayfs' own. The mountpoint is root's: were it the server's, a file put there while nothing is mounted would
/// keep every later reset from its `rmdir`.
pub const DIRECTORIES: [Directory; 3] = [
    Directory { name: "upper", owner: Owner::Server, mode: 0o750 },
    Directory { name: "work", owner: Owner::Root, mode: 0o700 },
    Directory { name: MERGED, owner: Owner::Root, mode: 0o755 },
];

/// What mounting an instance comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// The lower layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// All of it as options of `mount(2)`, escaped; for kernels without `lowerdir+` and for messages.
    pub options: String,
}

/// Makes the plan to mount `lower` under `paths`. No system call.
///
/// `index=off` whatever the kernel's default is: with an index overlayfs remembers the topmost lower layer in
/// `upper` and refuses (ESTALE) once the list of overlays changes (overlayfs.rst, "Inodes index").
///
/// # Errors
/// [`HelperError::TooManyLayers`] if there are more than overlayfs takes.
pub fn plan(paths: &Paths, lower: Vec<PathBuf>) -> Result<MountPlan, HelperError> {
    if lower.len() > MAX_LAYERS {
        return Err(HelperError::TooManyLayers { count: lower.len(), most: MAX_LAYERS });
    }
    let joined: Vec<_> = lower.iter().map(|path| escape(path)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off",
        joined.join(":"),
        escape(&paths.upper),
        escape(&paths.work)
    );
    Ok(MountPlan { lower, options })
}

/// A path as overlayfs reads it in an option string: `,` ends an option, `:` a lower layer, and `\` takes the meaning
/// from what follows (fs/overlayfs/params.c: ovl_next_opt, ovl_parse_param_split_lowerdirs). All three get a `\`.
fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, '\\' | ':' | ',') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// How a mount or an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done now.
    Done,
    /// It was so already.
    Already,
}

/// Makes the directories and mounts, or finds it mounted. Waits for another helper or a reset up to `deadline`.
///
/// # Errors
/// A layer is missing, something else is mounted there, another helper is still at work, or a system call failed.
pub fn mount(
    place: &InstanceDir,
    plan: &MountPlan,
    server: Account,
    deadline: Instant,
) -> Result<Outcome, HelperError> {
    mount_by(&METHODS, place, plan, server, deadline)
}

/// [`mount`], by the first of `methods` that the kernel knows.
///
/// # Errors
/// As [`mount`].
pub fn mount_by(
    methods: &[Method],
    InstanceDir { state, paths }: &InstanceDir,
    plan: &MountPlan,
    server: Account,
    deadline: Instant,
) -> Result<Outcome, HelperError> {
    // What is mounted needs no layer any more: a start that is only there to have it unmounted has to succeed.
    let lower = || plan.lower.iter().map(|layer| layers::open(state, layer)).collect::<Result<Vec<_>, _>>();
    let runtimes = state
        .runtime()?
        .ok_or_else(|| HelperError::call("open directory", &paths.all_runtimes)(Errno::NOENT))?;
    let is_mounted = match directory_beneath(&runtimes, Path::new(&paths.name)) {
        Ok(runtime) => top(runtime, paths)?.is_some(),
        // It is not there yet; what else may be wrong with it is said when it is made.
        Err(_) => false,
    };
    let opened = if is_mounted { None } else { Some(lower()?) };
    let runtime = make_runtime(&runtimes, paths, server, deadline)?;
    // Again, with the lock: another helper may have been at it.
    if top(&runtime, paths)?.is_some() {
        return Ok(Outcome::Already);
    }
    let lower = opened.map_or_else(lower, Ok)?;
    // What an earlier unmount was refused for is not so any more.
    busy_note::remove_note(&runtime, &paths.runtime)?;
    let [upper, work, merged] = [&DIRECTORIES[0], &DIRECTORIES[1], &DIRECTORIES[2]]
        .map(|directory| ensure_directory(&runtime, directory, paths, server));
    attach(&Layers { lower, upper: upper?, work: work?, merged: merged? }, paths, plan, methods)?;
    Ok(Outcome::Done)
}

/// Waits for the server's processes to end, as [`unit_end::wait`] does, unmounts once, and removes what overlayfs leaves in
/// `work`. `merged` stays. `note` gets lines for the journal.
///
/// # Errors
/// [`HelperError::Busy`] with the holders; any other refusal of `umount2(2)`; residue that cannot be removed.
pub fn umount(
    InstanceDir { state, paths }: &InstanceDir,
    server: &mut impl Processes,
    wait: &Wait,
    note: &mut dyn FnMut(String),
) -> Result<Outcome, HelperError> {
    let began = Instant::now();
    let Some(runtimes) = state.runtime()? else { return Ok(Outcome::Already) };
    let Some(runtime) = RuntimeLock::take(&runtimes, &paths.name, &paths.runtime, began + wait.limit)? else {
        return Ok(Outcome::Already);
    };
    let Some(meant) = top(&runtime, paths)? else {
        clear_work(&runtime, paths)?;
        return Ok(Outcome::Already);
    };
    unit_end::wait(server, wait, began, note);
    // Through the descriptor of runtime/<id>, so that no name on the way is looked up again; NOFOLLOW for the last.
    let outcome =
        match rustix::mount::unmount(format!("{}/{MERGED}", proc_path(&runtime)), UnmountFlags::NOFOLLOW) {
            Ok(()) => Outcome::Done,
            // Somebody else unmounted it since the table was read: EINVAL is 'not a mountpoint'.
            Err(Errno::INVAL | Errno::NOENT) => Outcome::Already,
            Err(Errno::BUSY) => {
                let verdict = busy_note::verdict(&paths.merged);
                if let Err(error) = busy_note::leave_note(&runtime, &paths.runtime, &verdict) {
                    note(chain(&error));
                }
                return Err(HelperError::Busy { path: paths.merged.clone(), verdict });
            }
            Err(source) => return Err(HelperError::Umount { path: paths.merged.clone(), source }),
        };
    if is_bare(&runtime) != Some(true) {
        let left = mountinfo::at(Path::new(MOUNTINFO), &paths.merged)?;
        if left.iter().any(|mount| mount.id == meant) {
            return Err(HelperError::NotGone { path: paths.merged.clone(), id: meant });
        }
        if !left.is_empty() {
            return Err(HelperError::Stacked { path: paths.merged.clone(), left: left.len() });
        }
    }
    clear_work(&runtime, paths)?;
    Ok(outcome)
}

/// The id of the overlay that lies topmost at `merged`; `None` if nothing is mounted there. The mount table, a text of all
/// mounts, is read only where the kernel has no other answer, before Linux 6.8.
fn top(runtime: impl AsFd, paths: &Paths) -> Result<Option<u64>, HelperError> {
    if is_bare(&runtime) == Some(true) {
        return Ok(None);
    }
    let topmost = match holders::mountinfo::mount_of(&runtime, Path::new(MERGED)) {
        Ok(mount) => Some(mount),
        Err(_) => mountinfo::at(Path::new(MOUNTINFO), &paths.merged)?.pop(),
    };
    match topmost {
        None => Ok(None),
        Some(mount) if mount.fstype == "overlay" => Ok(Some(mount.id)),
        Some(mount) => Err(HelperError::Occupied { path: paths.merged.clone(), fs_type: mount.fstype }),
    }
}

/// Whether nothing is mounted on `merged`: it is not there, or no mount's root. One call, where the mount table is a text of
/// all mounts. `None` if the kernel does not say, as before Linux 5.8.
fn is_bare(runtime: impl AsFd) -> Option<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(runtime, MERGED, flags, StatxFlags::empty()) {
        Err(Errno::NOENT) => Some(true),
        Err(_) => None,
        Ok(merged) if !merged.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => None,
        Ok(merged) => Some(!merged.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
    }
}

/// The directories of a mount, each held open, so that none can be another one by the time it is used.
#[derive(Debug)]
struct Layers {
    lower: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
    merged: OwnedFd,
}

/// How the layers are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By their descriptors: Linux 6.13 and newer.
    Descriptors,
    /// By their names, each a parameter of its own: Linux 6.8 and newer.
    Names,
    /// By one escaped option string: any.
    Options,
}

/// All methods, the one to prefer first.
pub const METHODS: [Method; 3] = [Method::Descriptors, Method::Names, Method::Options];

/// Why a method did not mount.
#[derive(Debug)]
enum Refused {
    /// The kernel does not know this method.
    Unknown,
    /// The kernel's overlayfs takes an option string only.
    OptionsOnly,
    /// It knows it, and says no.
    Failed(HelperError),
}

/// Makes the mount and puts it on `merged`: by the first method that the kernel knows. That is one attempt: a method
/// is unknown before anything was mounted by it.
fn attach(layers: &Layers, paths: &Paths, plan: &MountPlan, methods: &[Method]) -> Result<(), HelperError> {
    let mut options_only = false;
    for method in methods {
        // Such a kernel would log an error for `lowerdir+`, at every mount.
        if options_only && *method == Method::Names {
            continue;
        }
        match attach_by(*method, layers, paths, plan) {
            Err(Refused::Unknown) => {}
            Err(Refused::OptionsOnly) => options_only = true,
            Err(Refused::Failed(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
    Err(mount_error(paths, plan, Errno::NOSYS, String::new()))
}

fn attach_by(method: Method, layers: &Layers, paths: &Paths, plan: &MountPlan) -> Result<(), Refused> {
    let by_name = match method {
        Method::Descriptors => false,
        Method::Names => true,
        Method::Options => return attach_by_options(layers, paths, plan).map_err(Refused::Failed),
    };
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Err(Refused::Unknown),
        Err(source) => return Err(Refused::Failed(mount_error(paths, plan, source, String::new()))),
    };
    let failed = |source| Refused::Failed(mount_error(paths, plan, source, said(&context)));
    let set = |key: &str, name: &Path, descriptor: &OwnedFd| {
        if by_name {
            fsconfig_set_string(&context, key, name)
        } else {
            fsconfig_set_fd(&context, key, descriptor)
        }
    };
    fsconfig_set_string(&context, "source", "overlay").map_err(failed)?;
    for (index, (name, descriptor)) in plan.lower.iter().zip(&layers.lower).enumerate() {
        match set("lowerdir+", name, descriptor) {
            // 6.1's overlayfs is not converted to this interface (fs/fsopen.c, vfs_fsconfig_locked: EOPNOTSUPP for a
            // descriptor); 6.12 has the parameter, but not with a descriptor; a name longer than 255 bytes does not fit
            // in a parameter.
            Err(Errno::OPNOTSUPP) if index == 0 => return Err(Refused::OptionsOnly),
            Err(Errno::INVAL) if index == 0 || by_name => return Err(Refused::Unknown),
            result => result.map_err(failed)?,
        }
    }
    // As a name, unlike `lowerdir+`, these two are unescaped (fs/overlayfs/params.c: ovl_mount_dir).
    set("upperdir", Path::new(&escape(&paths.upper)), &layers.upper).map_err(failed)?;
    set("workdir", Path::new(&escape(&paths.work)), &layers.work).map_err(failed)?;
    fsconfig_set_string(&context, "index", "off").map_err(failed)?;
    match fsconfig_create(&context) {
        // Where overlayfs is not yet converted to this interface, parameters are checked only now.
        Err(Errno::INVAL) if by_name => return Err(Refused::Unknown),
        result => result.map_err(failed)?,
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", &layers.merged, "", flags).map_err(failed)
}

fn attach_by_options(layers: &Layers, paths: &Paths, plan: &MountPlan) -> Result<(), HelperError> {
    if plan.options.len() > MAX_OPTIONS {
        return Err(HelperError::TooLongOptions { bytes: plan.options.len(), most: MAX_OPTIONS });
    }
    let failed = |source| mount_error(paths, plan, source, String::new());
    let options = CString::new(plan.options.as_str()).map_err(|_nul| failed(Errno::INVAL))?;
    // mount(2) looks its target up by name and follows links: this one leads to the descriptor.
    rustix::mount::mount(
        "overlay",
        proc_path(&layers.merged),
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(failed)
}

fn mount_error(paths: &Paths, plan: &MountPlan, source: Errno, said: String) -> HelperError {
    HelperError::Mount { path: paths.merged.clone(), options: plan.options.clone(), said, source }
}

/// What the kernel has to say about a file system context: messages as `e overlay: ...`, one a read(2)
/// (Documentation/filesystems/mount_api.rst).
fn said(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(String::from_utf8_lossy(&buffer[..length]).trim());
    }
    text
}

/// Makes `runtime/<id>`, root's, or takes the one that is there; locked. `runtime` itself is tmpfiles.d's.
fn make_runtime(
    runtimes: &OwnedFd,
    paths: &Paths,
    server: Account,
    deadline: Instant,
) -> Result<RuntimeLock, HelperError> {
    let mode = Mode::from_raw_mode(RUNTIME_MODE);
    // A turn of this loop that does not end it means that a reset took the directory away after it was made.
    loop {
        match rustix::fs::mkdirat(runtimes, paths.name.as_str(), mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(HelperError::call("mkdir", &paths.runtime)(source)),
        }
        if let Some(runtime) = RuntimeLock::take(runtimes, &paths.name, &paths.runtime, deadline)? {
            require_roots(&runtime, &paths.runtime)?;
            // It says who may enter, whatever the umask was when it was made, by whomever.
            give_to(&runtime, Account { uid: 0, gid: server.gid }, &paths.runtime)?;
            rustix::fs::fchmod(&runtime, mode).map_err(HelperError::call("chmod", &paths.runtime))?;
            return Ok(runtime);
        }
    }
}

/// Makes one directory below `runtime/<id>` or takes the one that is there, with the right owner. A symlink or a
/// file in its place is an error. Only called while nothing is mounted, so it never touches the overlay.
fn ensure_directory(
    runtime: &RuntimeLock,
    directory: &Directory,
    paths: &Paths,
    server: Account,
) -> Result<OwnedFd, HelperError> {
    let path = paths.runtime.join(directory.name);
    let mode = Mode::from_raw_mode(directory.mode);
    let made = match rustix::fs::mkdirat(runtime, directory.name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(source) => return Err(HelperError::call("mkdir", &path)(source)),
    };
    let opened = directory_beneath(runtime, Path::new(directory.name))
        .map_err(HelperError::call("open directory", &path))?;
    if made {
        rustix::fs::fchmod(&opened, mode).map_err(HelperError::call("chmod", &path))?;
    }
    let owner = match directory.owner {
        Owner::Root => Account { uid: 0, gid: 0 },
        Owner::Server => server,
    };
    let stat = rustix::fs::fstat(&opened).map_err(HelperError::call("fstat", &path))?;
    // Root's is one that a killed mount made. What lies in another user's is that user's, too, and is not taken away.
    if stat.st_uid != 0 && stat.st_uid != owner.uid {
        return Err(HelperError::UpperOfAnotherUser { path, uid: stat.st_uid, user: paths.user.clone() });
    }
    give_to(&opened, owner, &path)?;
    Ok(opened)
}

/// Makes an open directory belong to `owner`, if it does not.
fn give_to(directory: impl AsFd, owner: Account, path: &Path) -> Result<(), HelperError> {
    let stat = rustix::fs::fstat(&directory).map_err(HelperError::call("fstat", path))?;
    if (stat.st_uid, stat.st_gid) == (owner.uid, owner.gid) {
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    rustix::fs::fchown(&directory, Some(uid), Some(gid)).map_err(HelperError::call("chown", path))
}

/// Removes `work/work`: an empty directory of mode 000 after a clean unmount (fs/overlayfs/super.c:
/// ovl_workdir_create), with remains of half-done copies after a crash.
fn clear_work(runtime: &RuntimeLock, paths: &Paths) -> Result<(), HelperError> {
    let work = match directory_beneath(runtime, Path::new("work")) {
        Ok(work) => work,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(HelperError::call("open directory", &paths.work)(source)),
    };
    match rustix::fs::unlinkat(&work, "work", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY) => remove_tree(&work, "work", &paths.work.join("work"), Instant::now() + CLEAR),
        Err(source) => Err(HelperError::call("rmdir", paths.work.join("work"))(source)),
    }
}

#[cfg(test)]
mod tests;
