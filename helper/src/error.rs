//! Why the helper failed, and the exit status that says so.

use std::path::{Path, PathBuf};

use holders::mountinfo::ParseError;
use rustix::io::Errno;
use thiserror::Error;

use crate::busy::Verdict;
use crate::instance::NameError;

/// Everything that was asked for is so.
pub const EXIT_OK: u8 = 0;
/// Anything that is neither usage nor a refused `mount(2)` or `umount2(2)`.
pub const EXIT_FAILED: u8 = 1;
/// The command line makes no sense.
pub const EXIT_USAGE: u8 = 2;
/// `mount(2)` or `umount2(2)` failed; the number `mount(8)` and `umount(8)` use, so that scripts and people who
/// know those read it right.
pub const EXIT_MOUNT: u8 = 32;

/// What went wrong. Each text names the call, the path and what to do about it; the cause is the `source`.
#[derive(Debug, Error)]
pub enum HelperError {
    /// The instance name on the command line is not one.
    #[error(transparent)]
    Name(NameError),
    /// This process does not run in the mount namespace of PID 1.
    #[error(
        "not in the mount namespace of PID 1: a mount made or removed here would not be the one the system sees; start and \
         stop the instance's left4me-overlay@.service instead, and if that unit said this, `l4d2ctl doctor` names its setting \
         that gives it a namespace of its own"
    )]
    Namespace,
    /// PID 1's mount namespace may not be read.
    #[error("stat {path}: run this as root (sudo)")]
    Pid1Hidden {
        /// The namespace file.
        path: PathBuf,
        /// EACCES or EPERM.
        source: Errno,
    },
    /// The instance has no file.
    #[error(
        "no instance file {0}: create it with the list of overlays, topmost first, for example `overlays = []`"
    )]
    NoInstanceFile(PathBuf),
    /// The instance file cannot be understood.
    #[error("read {path}")]
    InstanceFile {
        /// Which file.
        path: PathBuf,
        /// Where in it and why.
        source: Box<toml::de::Error>,
    },
    /// An overlay is listed twice; overlayfs would answer ELOOP.
    #[error("read {path}: overlay \"{overlay}\" is listed twice")]
    Twice {
        /// The instance file.
        path: PathBuf,
        /// The overlay's name.
        overlay: String,
    },
    /// A layer's directory is missing.
    #[error("no layer directory {path}: {hint}")]
    NoLayer {
        /// The layer's directory.
        path: PathBuf,
        /// What would put it there.
        hint: &'static str,
    },
    /// A layer's directory, or something on the way to it, is a symlink.
    #[error(
        "open directory {0}: it is a symlink or lies behind one, and a layer is never reached through one; move the directory \
         there, or bind-mount it there"
    )]
    LinkedLayer(PathBuf),
    /// More lower layers than overlayfs takes.
    #[error("too many overlays: they and the installation are {count} layers, and overlayfs takes {most}")]
    TooManyLayers {
        /// How many there are, the installation among them.
        count: usize,
        /// How many it takes.
        most: usize,
    },
    /// The options do not fit in the page `mount(2)` copies, on a kernel that takes layers no other way.
    #[error(
        "too many overlays for this kernel: the mount options take {bytes} bytes and mount(2) copies {most} at most; list \
         fewer overlays, give them shorter names, or use Linux 6.8 or newer"
    )]
    TooLongOptions {
        /// Length of the option string, bytes.
        bytes: usize,
        /// How many `mount(2)` copies.
        most: usize,
    },
    /// Somebody other than root could swap what lies in a directory on the way to the overlay.
    #[error(
        "{path} belongs to uid {uid} with mode {mode:o}: nobody but root may write in it: `sudo chown root:root {path}` \
         and `sudo chmod go-w {path}`, or `sudo systemd-tmpfiles --create`"
    )]
    NotRoots {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The server's user is not in the user database.
    #[error(
        "no user \"{user}\" in {path}: left4me-overlay@.service makes it before it mounts; by hand: `sudo systemd-sysusers \
         --inline \"u {user} -\"`"
    )]
    NoAccount {
        /// The database.
        path: &'static str,
        /// The user.
        user: String,
    },
    /// The server's own layer belongs to another user, so the server could not write what lies there.
    #[error(
        "{path} belongs to uid {uid}, and the server runs as {user}: `sudo chown --recursive --no-dereference {user}:{user} \
         {path}` gives it what lies there, `sudo l4d2ctl reset {}` deletes it",
        instance_of(user)
    )]
    UpperOfAnotherUser {
        /// The layer.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Whose it should be.
        user: String,
    },
    /// A mount table cannot be understood, so nothing can be said about what is mounted.
    #[error("read {path}")]
    Mountinfo {
        /// Which table.
        path: PathBuf,
        /// The line and why.
        source: ParseError,
    },
    /// Something that is not an overlay is mounted where the overlay belongs.
    #[error("{path} carries a {fs_type} mount that is not ours: unmount it by hand if nobody needs it")]
    Occupied {
        /// The mountpoint.
        path: PathBuf,
        /// The type of the file system found there.
        fs_type: String,
    },
    /// Another helper or a reset works on the same instance at this moment.
    #[error(
        "lock {0}: another left4me-overlay or l4d2ctl reset still works on this instance; `sudo lslocks --output \
         PID,COMMAND,PATH` says which"
    )]
    Locked(PathBuf),
    /// The overlay could not be mounted.
    #[error("mount overlay on {path} with {options} ({})", of_the_kernel(said))]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The overlayfs options.
        options: String,
        /// What the kernel said to it besides; may be empty.
        said: String,
        /// Its error.
        source: Errno,
    },
    /// `umount2(2)` failed with EBUSY.
    #[error("umount {path}: EBUSY: {verdict}")]
    Busy {
        /// The mountpoint.
        path: PathBuf,
        /// Who holds it.
        verdict: Verdict,
    },
    /// `umount2(2)` failed otherwise.
    #[error("umount {path}")]
    Umount {
        /// The mountpoint.
        path: PathBuf,
        /// Its error.
        source: Errno,
    },
    /// `umount2(2)` returned 0, or said that nothing is mounted there, and the mount is still there.
    #[error("umount {path}: it was called and the mount with id {id} is still there; nothing was deleted")]
    NotGone {
        /// The mountpoint.
        path: PathBuf,
        /// The mount's id.
        id: u64,
    },
    /// `umount2(2)` returned 0 and the mountpoint still carries a mount: several were stacked.
    #[error("umount {path}: one mount is gone and {left} more lie at the same place; run it again for each")]
    Stacked {
        /// The mountpoint.
        path: PathBuf,
        /// How many are left.
        left: usize,
    },
    /// Deleting would go through a mount.
    #[error("nothing was deleted, since something is still mounted there: {}", listed(.0))]
    StillMounted(Vec<PathBuf>),
    /// The mountpoint is not an empty directory: the gate before every delete.
    #[error("rmdir {path}: nothing was deleted, {}", what_is_there(*source))]
    Gate {
        /// The mountpoint.
        path: PathBuf,
        /// EBUSY or ENOTEMPTY.
        source: Errno,
    },
    /// Something in a tree to delete is a mountpoint.
    #[error("delete {0}: stopped at a mount; what lies there is untouched")]
    Crossing(PathBuf),
    /// A delete that had not ended by its deadline.
    #[error(
        "delete {0}: not done by the deadline; the rest goes with the next reset (is somebody still writing there?)"
    )]
    OutOfTime(PathBuf),
    /// A file or directory that not even root may delete.
    #[error(
        "delete {0}: it, or the directory that it lies in, is immutable or append-only, which only root can have made it; if \
         it may go, `sudo chattr -R -i -a {trash}`, then reset again", trash = trash_of(.0).display()
    )]
    Protected(PathBuf),
    /// Any other system call.
    #[error("{call} {path}")]
    Call {
        /// Its name.
        call: &'static str,
        /// The path it was given.
        path: PathBuf,
        /// Its error.
        source: Errno,
    },
}

impl HelperError {
    /// Makes a [`HelperError::Call`] of a failed system call, for `map_err`.
    pub fn call(call: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Call { call, path: path.as_ref().to_owned(), source }
    }

    /// The exit status of a process that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Name(_) => EXIT_USAGE,
            Self::Mount { .. }
            | Self::Busy { .. }
            | Self::Umount { .. }
            | Self::NotGone { .. }
            | Self::Stacked { .. } => EXIT_MOUNT,
            _ => EXIT_FAILED,
        }
    }
}

/// What the kernel said to a refused mount, or where it may have said it.
fn of_the_kernel(said: &str) -> String {
    if said.is_empty() {
        "the kernel log may say more: `journalctl -k`".into()
    } else {
        format!("the kernel says: {said}")
    }
}

/// The instance whose user this is.
fn instance_of(user: &str) -> &str {
    user.strip_prefix("left4me-").unwrap_or(user)
}

/// What of a path to be deleted is named by us: what follows is named by the server's user, who is not to write a command
/// for root.
fn trash_of(path: &Path) -> &Path {
    let is_trash =
        |above: &&Path| above.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".purge-"));
    path.ancestors().filter(is_trash).last().unwrap_or(path)
}

fn listed(mounts: &[PathBuf]) -> String {
    mounts.iter().map(|mount| holders::shown(mount)).collect::<Vec<_>>().join(" ")
}

/// What makes the gate refuse.
fn what_is_there(errno: Errno) -> &'static str {
    if errno == Errno::NOTEMPTY {
        "files lie in the mountpoint itself; move them away"
    } else {
        "something is mounted or in use there"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Verdict {
        Verdict::Found(holders::Verdict::NotVisible { suspects: vec![] })
    }

    /// One of each, two where the text has two forms.
    fn all() -> Vec<HelperError> {
        let path = || PathBuf::from("/p");
        let source = Errno::PERM;
        let mount = |said: &str| HelperError::Mount {
            path: path(),
            options: "index=off".into(),
            said: said.into(),
            source,
        };
        vec![
            HelperError::Name("../x".parse::<crate::instance::Instance>().unwrap_err()),
            HelperError::Namespace,
            HelperError::Pid1Hidden { path: path(), source },
            HelperError::NoInstanceFile(path()),
            HelperError::InstanceFile {
                path: path(),
                source: Box::new(toml::from_str::<toml::Table>("x").unwrap_err()),
            },
            HelperError::Twice { path: path(), overlay: "o".into() },
            HelperError::NoLayer { path: path(), hint: "install it" },
            HelperError::LinkedLayer(path()),
            HelperError::TooManyLayers { count: 501, most: 500 },
            HelperError::TooLongOptions { bytes: 4096, most: 4095 },
            HelperError::NotRoots { path: path(), uid: 7, mode: 0o777 },
            HelperError::NoAccount { path: "/etc/passwd", user: "left4me-3".into() },
            HelperError::UpperOfAnotherUser { path: path(), uid: 7, user: "left4me-3".into() },
            HelperError::Mountinfo {
                path: path(),
                source: holders::mountinfo::parse(b"garbage\n").unwrap_err(),
            },
            HelperError::Occupied { path: path(), fs_type: "tmpfs".into() },
            HelperError::Locked(path()),
            mount(""),
            mount("no"),
            HelperError::Busy { path: path(), verdict: nobody() },
            HelperError::Umount { path: path(), source },
            HelperError::NotGone { path: path(), id: 7 },
            HelperError::Stacked { path: path(), left: 2 },
            HelperError::StillMounted(vec!["/a".into(), "/b\nc".into()]),
            HelperError::Gate { path: path(), source: Errno::NOTEMPTY },
            HelperError::Gate { path: path(), source: Errno::BUSY },
            HelperError::Crossing(path()),
            HelperError::OutOfTime(path()),
            HelperError::Protected(path()),
            HelperError::Call { call: "open", path: path(), source },
        ]
    }

    #[test]
    fn no_command_has_a_name_that_a_server_gave() {
        let path = "/s/runtime/.purge-3/upper/.purge-$(x)/y";
        let text = HelperError::Protected(path.into()).to_string();
        assert!(text.contains("`sudo chattr -R -i -a /s/runtime/.purge-3`"), "{text}");
    }

    #[test]
    fn every_error_has_its_text_and_its_cause() {
        let lines: Vec<_> = all().iter().map(|error| holders::chain::chain(error)).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_refused_system_call_of_mount_exits_as_mount_does() {
        let path = PathBuf::from("/m");
        let cases = [
            (HelperError::Busy { path: path.clone(), verdict: nobody() }, 32),
            (HelperError::Umount { path: path.clone(), source: Errno::PERM }, 32),
            (
                HelperError::Mount {
                    path: path.clone(),
                    options: String::new(),
                    said: String::new(),
                    source: Errno::INVAL,
                },
                32,
            ),
            (HelperError::NotGone { path: path.clone(), id: 7 }, 32),
            (HelperError::Stacked { path: path.clone(), left: 1 }, 32),
            (HelperError::Locked(path.clone()), 1),
            (HelperError::Call { call: "open", path, source: Errno::NOENT }, 1),
            (HelperError::Name("../x".parse::<crate::instance::Instance>().unwrap_err()), 2),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
