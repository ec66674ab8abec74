//! By whatever name one asks: a layer, a block device.

use std::fs::File;
use std::path::PathBuf;

use holders::{Query, Verdict};
use rustix::io::Errno;

use super::{ask_the_command, seen};
use crate::disk::Ext4;
use crate::stage::Stage;
use crate::victim::Result;

/// As snapd#11914: mounted twice at one place, and unmounted once.
pub(crate) fn twice(stage: &Stage) -> Result<()> {
    stage.mount()?;
    rustix::mount::mount_bind(&stage.merged, &stage.merged)?;
    let told = ask_the_command(&[&stage.merged])?;
    assert!(told.contains("\nstacked below it at the same path: 1 (unmount each)\n"), "{told}");
    stage.umount()?;
    assert_eq!(rustix::fs::rmdir(&stage.merged), Err(Errno::BUSY));
    let report = Query::new(&stage.merged).run()?;
    assert!(report.mount.is_some() && report.stacked == 0, "the other one: {report:#?}");
    assert_eq!(seen(&report), Verdict::Free, "{report:#?}");
    Ok(stage.umount()?)
}

/// An overlay that is unmounted here and lives on in another namespace: its layers are in use.
pub(crate) fn layer(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let planter = stage.plant("private-nothing")?;
    stage.umount()?;
    assert_eq!(stage.mount(), Err(Errno::BUSY));
    let upper = stage.base.join("upper");
    let report = Query::new(&upper).of_layer().run()?;
    let Verdict::AliveElsewhere { copies, .. } = seen(&report) else { panic!("{report:#?}") };
    assert!(matches!(&copies[..], [copy] if copy.mount.mount_point == stage.merged), "{report:#?}");
    assert!(
        report
            .namespaces
            .iter()
            .any(|used| used.member.as_ref().is_some_and(|one| one.pid == planter.holder))
    );
    let told = ask_the_command(&["--layer".as_ref(), &upper])?;
    assert!(told.contains(": in use as a layer of an overlay: mount at "), "{told}");
    let unused = Query::new(stage.base.join("merged")).of_layer().run()?;
    assert!(unused.line().contains("no overlay that can be seen has this layer"), "{}", unused.line());
    Ok(())
}

/// A device with a file system in use, then one that somebody has open.
pub(crate) fn block_device(stage: &Stage) -> Result<()> {
    let mut mounted = Ext4::mounted(&stage.base.join("image"), &stage.merged)?;
    let path = PathBuf::from(format!("/dev/loop{}", mounted.device.as_ref().ok_or("no device")?.1));
    let planter = stage.plant("cwd")?;
    let told = ask_the_command(&[&path])?;
    assert!(told.contains(&format!("held by {} (", planter.holder)), "{told}");
    drop(planter);
    let open = File::open(&path)?;
    let device = mounted.device.take();
    drop(mounted);
    let told = ask_the_command(&[&path])?;
    assert!(told.contains(&format!(": in use: used by process {}", std::process::id())), "{told}");
    drop((open, device));
    let told = ask_the_command(&[&path])?;
    assert!(
        told.contains("no inspected process refers to it") || told.contains("nothing is left of"),
        "{told}"
    );
    Ok(())
}
