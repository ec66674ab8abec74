//! Mounting and unmounting an instance's overlay: the plan is a value, applying it makes the system calls.
//!
//! What is absent on purpose: a retry, a lazy unmount, and any look inside `merged`. EBUSY means that somebody
//! holds the mount; the answer is to name them, once, and to leave everything as it is.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::account::Account;
use crate::busy;
use crate::error::HelperError;
use crate::instance::Paths;
use crate::lock::RuntimeLock;
use crate::mountinfo;
use crate::purge;

/// The longest option string `mount(2)` takes, bytes: one page less the final NUL
/// (fs/namespace.c:copy_mount_options).
pub const MAX_OPTIONS: usize = 4095;

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

/// The directories a mount needs. The mode of `upper` is what the root of `merged` shows; `work` is overlayfs' own.
pub const DIRECTORIES: [Directory; 3] = [
    Directory { name: "upper", owner: Owner::Server, mode: 0o755 },
    Directory { name: "work", owner: Owner::Root, mode: 0o700 },
    Directory { name: "merged", owner: Owner::Server, mode: 0o755 },
];

/// What mounting an instance comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// The lower layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The overlayfs options.
    pub options: String,
}

/// Makes the plan to mount `lower` under `paths`. No system call.
///
/// `index=off` whatever the kernel's default is: with an index overlayfs remembers the topmost lower layer in
/// `upper` and refuses (ESTALE) once the list of overlays changes (overlayfs.rst, "Inodes index").
///
/// # Errors
/// [`HelperError::TooManyLayers`] if the options do not fit in a page.
pub fn plan(paths: &Paths, lower: Vec<PathBuf>) -> Result<MountPlan, HelperError> {
    // Every component is a constant or a checked name, so none holds a ':', ',' or '\' that overlayfs would split at.
    let joined: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off",
        joined.join(":"),
        paths.upper.display(),
        paths.work.display()
    );
    if options.len() > MAX_OPTIONS {
        return Err(HelperError::TooManyLayers { bytes: options.len() });
    }
    Ok(MountPlan { lower, options })
}

/// How a mount or an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done now.
    Done,
    /// It was so already.
    Already,
}

/// Makes the directories and mounts, or finds it mounted.
///
/// # Errors
/// A layer is missing, something else is mounted there, another helper is at work, or a system call failed.
pub fn mount(paths: &Paths, plan: &MountPlan, server: Account) -> Result<Outcome, HelperError> {
    for layer in &plan.lower {
        require_layer(layer)?;
    }
    make_runtime(paths)?;
    let runtime = RuntimeLock::take(&paths.runtime)?
        .ok_or_else(|| HelperError::call("open", &paths.runtime)(Errno::NOENT))?;
    let mounts = mountinfo::read(Path::new(MOUNTINFO))?;
    match mountinfo::at(&mounts, &paths.merged).last() {
        Some(mount) if mount.fs_type == "overlay" => return Ok(Outcome::Already),
        Some(mount) => {
            return Err(HelperError::Occupied { path: paths.merged.clone(), fs_type: mount.fs_type.clone() });
        }
        None => {}
    }
    for directory in &DIRECTORIES {
        ensure_directory(&runtime, directory, paths, server)?;
    }
    let failed =
        |source| HelperError::Mount { path: paths.merged.clone(), options: plan.options.clone(), source };
    let options = CString::new(plan.options.as_str()).map_err(|_nul| failed(Errno::INVAL))?;
    // mount(2) follows a symlink at the target; there is none, as only root can write in runtime/<id> and
    // ensure_directory refuses one.
    rustix::mount::mount(
        "overlay",
        &paths.merged,
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(failed)?;
    Ok(Outcome::Done)
}

/// Unmounts once, and removes what overlayfs leaves in `work`. `merged` stays.
///
/// # Errors
/// [`HelperError::Busy`] with the holders; any other refusal of `umount2(2)`; residue that cannot be removed.
pub fn umount(paths: &Paths) -> Result<Outcome, HelperError> {
    let Some(runtime) = RuntimeLock::take(&paths.runtime)? else { return Ok(Outcome::Already) };
    let mounts = mountinfo::read(Path::new(MOUNTINFO))?;
    let outcome = if mountinfo::at(&mounts, &paths.merged).is_empty() {
        Outcome::Already
    } else {
        match rustix::mount::unmount(&paths.merged, UnmountFlags::NOFOLLOW) {
            Ok(()) => Outcome::Done,
            // Somebody else unmounted it since the table was read: EINVAL is 'not a mountpoint'.
            Err(Errno::INVAL | Errno::NOENT) => Outcome::Already,
            Err(Errno::BUSY) => {
                let holders = busy::who_holds(&paths.merged);
                return Err(HelperError::Busy { path: paths.merged.clone(), holders });
            }
            Err(source) => return Err(HelperError::Umount { path: paths.merged.clone(), source }),
        }
    };
    let left = mountinfo::at(&mountinfo::read(Path::new(MOUNTINFO))?, &paths.merged).len();
    if left > 0 {
        return Err(HelperError::Stacked { path: paths.merged.clone(), left });
    }
    clear_work(&runtime, paths)?;
    Ok(outcome)
}

fn require_layer(path: &Path) -> Result<(), HelperError> {
    match rustix::fs::stat(path) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(_) => Err(HelperError::call("open directory", path)(Errno::NOTDIR)),
        Err(Errno::NOENT) => Err(HelperError::NoLayer {
            path: path.to_owned(),
            hint: if path.ends_with("installation") {
                "install the game there first"
            } else {
                "create the overlay, or take it off the list in the instance file"
            },
        }),
        Err(source) => Err(HelperError::call("stat", path)(source)),
    }
}

/// Makes `runtime/<id>`, root's. `runtime` itself is tmpfiles.d's.
fn make_runtime(paths: &Paths) -> Result<(), HelperError> {
    match rustix::fs::mkdir(&paths.runtime, Mode::from_raw_mode(0o755)) {
        // The mode again, since the umask has a say in mkdir(2).
        Ok(()) => rustix::fs::chmod(&paths.runtime, Mode::from_raw_mode(0o755))
            .map_err(HelperError::call("chmod", &paths.runtime)),
        Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(HelperError::call("mkdir", &paths.runtime)(source)),
    }
}

/// Makes one directory below `runtime/<id>` or takes the one that is there, with the right owner. A symlink or a
/// file in its place is an error. Only called while nothing is mounted, so it never touches the overlay.
fn ensure_directory(
    runtime: &RuntimeLock,
    directory: &Directory,
    paths: &Paths,
    server: Account,
) -> Result<(), HelperError> {
    let path = paths.runtime.join(directory.name);
    let mode = Mode::from_raw_mode(directory.mode);
    let made = match rustix::fs::mkdirat(runtime, directory.name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(source) => return Err(HelperError::call("mkdir", &path)(source)),
    };
    let opened =
        open_directory(runtime, directory.name).map_err(HelperError::call("open directory", &path))?;
    if made {
        rustix::fs::fchmod(&opened, mode).map_err(HelperError::call("chmod", &path))?;
    }
    let (uid, gid) = match directory.owner {
        Owner::Root => (0, 0),
        Owner::Server => (server.uid, server.gid),
    };
    let stat = rustix::fs::fstat(&opened).map_err(HelperError::call("fstat", &path))?;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        let group = Some(rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&opened, owner, group).map_err(HelperError::call("chown", &path))?;
    }
    Ok(())
}

/// Removes `work/work`: an empty directory of mode 000 after a clean unmount (fs/overlayfs/super.c:
/// ovl_workdir_create), with remains of half-done copies after a crash.
fn clear_work(runtime: &RuntimeLock, paths: &Paths) -> Result<(), HelperError> {
    let work = match open_directory(runtime, "work") {
        Ok(work) => work,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(HelperError::call("open directory", &paths.work)(source)),
    };
    match rustix::fs::unlinkat(&work, "work", AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY) => purge::remove_tree(&work, c"work", &paths.work.join("work")),
        Err(source) => Err(HelperError::call("rmdir", paths.work.join("work"))(source)),
    }
}

fn open_directory(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Instance, STATE_DIR};
    use crate::layers;

    fn plan_for(id: &str, file: &str) -> Result<MountPlan, HelperError> {
        let state = Path::new(STATE_DIR);
        let paths = id.parse::<Instance>().unwrap().paths(state);
        plan(&paths, layers::lower(&layers::parse(file, &paths.file).unwrap(), state))
    }

    #[test]
    fn plans() {
        for (id, file, options) in [
            (
                "3",
                "overlays = []",
                "lowerdir=/var/lib/left4me/installation,upperdir=/var/lib/left4me/runtime/3/upper,\
                 workdir=/var/lib/left4me/runtime/3/work,index=off",
            ),
            (
                "eu-1",
                "overlays = [\"top\", \"base.v2\"]",
                "lowerdir=/var/lib/left4me/overlays/top:/var/lib/left4me/overlays/base.v2:\
                 /var/lib/left4me/installation,upperdir=/var/lib/left4me/runtime/eu-1/upper,\
                 workdir=/var/lib/left4me/runtime/eu-1/work,index=off",
            ),
        ] {
            assert_eq!(plan_for(id, file).unwrap().options, options);
        }
    }

    #[test]
    fn too_many_layers_are_refused_before_the_kernel_cuts_them() {
        let many = |count: usize| {
            let names: Vec<_> = (0..count).map(|index| format!("\"{index:0>40}\"")).collect();
            format!("overlays = [{}]", names.join(","))
        };
        assert!(plan_for("3", &many(50)).is_ok());
        let error = plan_for("3", &many(80)).unwrap_err();
        assert!(error.to_string().contains("copies 4095 at most"), "{error}");
    }

    #[test]
    fn only_the_servers_own_layer_is_the_servers() {
        let servers: Vec<_> =
            DIRECTORIES.iter().filter(|entry| entry.owner == Owner::Server).map(|entry| entry.name).collect();
        assert_eq!(servers, ["upper", "merged"]);
    }

    #[test]
    fn a_missing_layer_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let text = require_layer(&directory.path().join("installation")).unwrap_err().to_string();
        assert!(text.ends_with("/installation: install the game there first"), "{text}");
        let file = directory.path().join("f");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(require_layer(&file), Err(HelperError::Call { source: Errno::NOTDIR, .. })));
    }
}
