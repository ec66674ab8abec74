//! Nobody innocent: what has the path of the mount and lies beneath it, or on something else altogether.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use holders::report::KernelKind;
use holders::{Query, Verdict};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{ask_the_command, seen};
use crate::disk::{Ext4, Loop, Swap};
use crate::stage::Stage;
use crate::victim::{self, Result};

/// A swap file there, and one on the mount itself.
pub(crate) fn swap(stage: &Stage) -> Result<()> {
    let (disk, at) = (stage.base.join("disk"), stage.base.join("disk/mount"));
    fs::create_dir(&disk)?;
    let below = Ext4::mounted(&stage.base.join("below.img"), &disk)?;
    fs::create_dir(&at)?;
    let older = Swap::on(&at.join("swap"))?;
    let above = Ext4::mounted(&stage.base.join("above.img"), &at)?;
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
    let container = stage.plant("private-as-root")?;
    let report = Query::new(&stage.merged).run()?;
    let unrelated = |kind: &KernelKind| matches!(kind, KernelKind::Loop(_) | KernelKind::OverlayLayer(_));
    assert!(!report.kernel_holders.iter().any(|held| unrelated(&held.kind)), "{report:#?}");
    let holders: Vec<_> = report.holders.iter().map(|holder| holder.pid).collect();
    assert_eq!(holders, [container.holder], "harmless ones are listed");
    assert!(matches!(seen(&report), Verdict::Outlives { .. }), "{report:#?}");
    Ok(stage.umount()?)
}

/// As moby#9630: of all that have `/dev/null` open one has it through a bind mount of `/dev`, and is in a chroot.
pub(crate) fn bind_of_dev(stage: &Stage) -> Result<()> {
    stage.is_plain.set(true);
    stage.mount()?;
    let dev = stage.merged.join("dev");
    fs::create_dir(&dev)?;
    rustix::mount::mount_bind("/dev", &dev)?;
    let mut chrooted = victim::victim("with-null", &[&stage.merged])?;
    let holder = victim::ready(&mut chrooted)?;
    let (mut bystanders, mut victims) = (Vec::new(), vec![chrooted]);
    for _ in 0..5 {
        let mut bystander = victim::victim("with-null", &[Path::new("/")])?;
        bystanders.push(victim::ready(&mut bystander)?);
        victims.push(bystander);
    }
    let told = ask_the_command(&[&dev])?;
    let report = Query::new(&dev).run()?;
    let blockers: Vec<_> = report.blockers().iter().map(|blocker| blocker.pid).collect();
    assert_eq!(blockers, [holder], "{report:#?}");
    assert_eq!(rustix::mount::unmount(&dev, UnmountFlags::NOFOLLOW), Err(Errno::BUSY));
    // Of a hundred that have a device's file open, a person is told of the one who blocks, and of the number of the others.
    assert!(told.lines().count() < 16, "{told}");
    assert!(told.contains("more on another mount, which do not block the unmount"), "{told}");
    // He comes first, with what to do.
    let head: Vec<_> = told.lines().take(2).collect();
    assert!(head.iter().all(|line| line.contains(&holder.to_string())), "{told}");
    for bystander in bystanders {
        assert!(!head.iter().any(|line| line.contains(&bystander.to_string())), "{told}");
    }
    for mut victim in victims {
        drop(victim.stdin.take());
        victim.wait()?;
    }
    Ok(rustix::mount::unmount(&dev, UnmountFlags::NOFOLLOW)?)
}

/// This program as one of its processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    let ["with-null", root] = words else { return None };
    let done = || {
        rustix::process::chroot(*root)?;
        std::env::set_current_dir("/")?;
        let _null = File::open("/dev/null")?;
        victim::stay(std::process::id())
    };
    Some(done())
}

fn nothing_blocks(stage: &Stage) -> Result<()> {
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}
