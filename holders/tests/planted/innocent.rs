//! Nobody innocent: what has the path of the mount and lies beneath it, or on something else altogether.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holders::report::KernelKind;
use holders::{Query, Verdict};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::seen;
use crate::cases::Loop;
use crate::stage::{Stage, unshare_mounts};
use crate::victim::{Result, ready, stay, victim};

/// Whether a file system can be made here that a swap file can be on.
pub(crate) fn has_ext4() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("mkfs.ext4").exists())
}

/// A loop device on a file that lay in the directory before the mount came over it.
pub(crate) fn older_loop(stage: &Stage) -> Result<()> {
    let _older = Loop::over(&stage.merged.join("image"))?;
    stage.mount()?;
    nothing_blocks(stage)
}

/// A swap file there, and one on the mount itself.
pub(crate) fn swap(stage: &Stage) -> Result<()> {
    let (disk, at) = (stage.base.join("disk"), stage.base.join("disk/mount"));
    fs::create_dir(&disk)?;
    let below = Ext4::mounted(stage, "below.img", &disk)?;
    fs::create_dir(&at)?;
    let older = Swap::on(&at.join("swap"))?;
    let above = Ext4::mounted(stage, "above.img", &at)?;
    for has_another in [false, true] {
        if has_another {
            fs::write(at.join("swap"), "another")?;
        }
        let report = Query::new(&at).run()?;
        assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    }
    fs::remove_file(at.join("swap"))?;
    let own = Swap::on(&at.join("own"))?;
    let report = Query::new(&at).run()?;
    let Verdict::HeldByKernel { holders } = seen(&report) else { panic!("{report:#?}") };
    assert_eq!(holders.iter().map(|held| &held.path).collect::<Vec<_>>(), [&at.join("own")]);
    assert_eq!(rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW), Err(Errno::BUSY));
    drop((own, above, older, below));
    Ok(())
}

/// A layer of another overlay in the directory that the mount covers.
pub(crate) fn older_layer(stage: &Stage) -> Result<()> {
    let (lower, other) = (stage.merged.join("lower"), stage.base.join("other"));
    fs::create_dir(&lower)?;
    fs::create_dir(&other)?;
    let options = CString::new(format!("lowerdir={}:/", lower.display()))?;
    rustix::mount::mount("holders-test", &other, "overlay", MountFlags::empty(), Some(&*options))?;
    stage.mount()?;
    nothing_blocks(stage)
}

/// A copy that is the root of some namespace: there every path of the machine lies on it.
pub(crate) fn copy_as_root(stage: &Stage) -> Result<()> {
    let (other, image) = (stage.base.join("other"), stage.base.join("image"));
    fs::create_dir(&other)?;
    let options = CString::new(format!("lowerdir={0}/lower:{0}/upper", stage.base.display()))?;
    rustix::mount::mount("holders-test", &other, "overlay", MountFlags::empty(), Some(&*options))?;
    let _loop = Loop::over(&image)?;
    stage.mount()?;
    let mut container = victim("container", &[&stage.merged])?;
    let pid = ready(&mut container)?;
    let report = Query::new(&stage.merged).run()?;
    let unrelated = |kind: &KernelKind| matches!(kind, KernelKind::Loop(_) | KernelKind::OverlayLayer(_));
    assert!(!report.kernel_holders.iter().any(|held| unrelated(&held.kind)), "{report:#?}");
    let holders: Vec<_> = report.holders.iter().map(|holder| holder.pid).collect();
    assert_eq!(holders, [pid], "harmless ones are listed");
    assert!(matches!(seen(&report), Verdict::Outlives { .. }), "{report:#?}");
    stage.umount()?;
    drop(container.stdin.take());
    container.wait()?;
    Ok(())
}

fn nothing_blocks(stage: &Stage) -> Result<()> {
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}

/// A small ext4, unmounted when dropped.
pub(crate) struct Ext4<'a> {
    at: &'a Path,
    device: Option<Loop>,
}

impl<'a> Ext4<'a> {
    pub(crate) fn mounted(stage: &Stage, image: &str, at: &'a Path) -> Result<Self> {
        let image = stage.base.join(image);
        File::create_new(&image)?.set_len(16 << 20)?;
        make_ext4(&image)?;
        let device = Loop::on(&image)?;
        rustix::mount::mount(format!("/dev/loop{}", device.1), at, "ext4", MountFlags::empty(), None)?;
        Ok(Self { at, device: Some(device) })
    }

    pub(crate) fn device(&self) -> PathBuf {
        format!("/dev/loop{}", self.device.as_ref().map_or(-1, |device| device.1)).into()
    }

    /// The device alone.
    pub(crate) fn unmounted(mut self) -> Option<Loop> {
        self.device.take()
    }
}

impl Drop for Ext4<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.at, UnmountFlags::NOFOLLOW).expect("unmount the ext4");
    }
}

/// A swap file in use.
struct Swap(CString);

impl Swap {
    /// The header is that of `include/linux/swap.h`, for pages of 4096 bytes.
    #[expect(unsafe_code, reason = "swapon(2) has no wrapper")]
    fn on(path: &Path) -> Result<Self> {
        const PAGES: u32 = 1024;
        let mut area = vec![0; 4096 * PAGES as usize];
        area[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
        area[1028..1032].copy_from_slice(&(PAGES - 1).to_ne_bytes());
        area[4086..4096].copy_from_slice(b"SWAPSPACE2");
        fs::write(path, area)?;
        File::open(path)?.sync_all()?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: a path that ends, and flags.
        match unsafe { libc::swapon(path.as_ptr(), 0) } {
            0 => Ok(Self(path)),
            _ => Err(format!("swapon: {}", std::io::Error::last_os_error()).into()),
        }
    }
}

impl Drop for Swap {
    #[expect(unsafe_code, reason = "swapoff(2) has no wrapper")]
    fn drop(&mut self) {
        // SAFETY: a path that ends.
        let done = unsafe { libc::swapoff(self.0.as_ptr()) };
        assert_eq!(done, 0, "swapoff: {}", std::io::Error::last_os_error());
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's own child; waited for")]
fn make_ext4(image: &Path) -> Result<()> {
    match Command::new("mkfs.ext4").arg("-q").arg(image).stdin(Stdio::null()).status()?.success() {
        true => Ok(()),
        false => Err("mkfs.ext4 failed".into()),
    }
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["container", merged] => be_in_a_container(Path::new(merged)),
        _ => return None,
    })
}

/// A process whose root directory is its own private copy of the mount.
fn be_in_a_container(merged: &Path) -> Result<()> {
    unshare_mounts()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    std::env::set_current_dir(merged)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    stay(std::process::id())
}
