//! A place to plant on: an overlay on a shared tmpfs, in a mount namespace of the calling thread's own.

use std::error::Error;
use std::ffi::CString;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// An overlay on a shared tmpfs, in a mount namespace that ends with the trial's thread.
pub(crate) struct Stage {
    _directory: tempfile::TempDir,
    pub(crate) base: PathBuf,
    pub(crate) merged: PathBuf,
}

impl Stage {
    pub(crate) fn set_up() -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let base = directory.path().canonicalize()?;
        unshare_mounts()?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount("holders-test", &base, "tmpfs", MountFlags::empty(), None)?;
        rustix::mount::mount_change(&base, MountPropagationFlags::SHARED)?;
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(base.join(name))?;
        }
        Ok(Self { _directory: directory, merged: base.join("merged"), base })
    }

    pub(crate) fn mount(&self) -> Result<(), Errno> {
        // With index=on a second mount of layers that are in use is EBUSY: that tells whether the first lives.
        let base = self.base.display();
        let options =
            format!("lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,index=on,metacopy=off");
        let options = CString::new(options).map_err(|_nul| Errno::INVAL)?;
        rustix::mount::mount("holders-test", &self.merged, "overlay", MountFlags::empty(), Some(&*options))
    }

    pub(crate) fn umount(&self) -> Result<(), Errno> {
        rustix::mount::unmount(&self.merged, UnmountFlags::NOFOLLOW)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test's own child; it ends with its stdin, and with the guard"
    )]
    pub(crate) fn plant(&self, case: &str) -> Result<Planter, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["planter", case])
            .arg(&self.merged)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let planter = |holder| Planter { child, holder };
        match line.trim().strip_prefix("ready ").map(str::parse) {
            Some(pid) => Ok(planter(pid?)),
            None => {
                drop(planter(0));
                Err(format!("the planter of {case} said {line:?}").into())
            }
        }
    }
}

#[expect(unsafe_code, reason = "a mount namespace for this thread alone")]
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: the descriptor table stays shared; nothing else in this program goes by this thread's directories.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Ends with its stdin, or else by force.
pub(crate) struct Planter {
    child: Child,
    pub(crate) holder: u32,
}

impl Drop for Planter {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("wait for the planter");
    }
}
