//! References that no process has.

use std::fs;

use holders::report::KernelKind;
use holders::{Query, Verdict};
use rustix::io::Errno;

use super::seen;
use crate::kernel_side::Probe;
use crate::stage::Stage;
use crate::victim::Result;

/// A probe on a program in the mount.
pub(crate) fn uprobe(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let program = stage.merged.join("program");
    fs::copy("/proc/self/exe", &program)?;
    let name = format!("holders/test{}", std::process::id());
    let probe = Probe::on(&program, &name)?;
    let report = Query::new(&stage.merged).run()?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let Verdict::HeldByKernel { holders } = seen(&report) else { panic!("{report:#?}") };
    assert!(matches!(&holders[..], [held] if held.kind == KernelKind::Uprobe(name.clone())), "{report:#?}");
    let advice = report.verdict().of_what_was_seen().advice().concat();
    assert!(advice.contains(&format!("echo -:{name} >> ")), "{advice}");
    drop(probe);
    Ok(stage.umount()?)
}
