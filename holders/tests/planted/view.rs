//! Asked from where not everything is to be seen: it says so, and never that nothing blocks.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;

use crate::stage::Stage;
use crate::victim::Result;

/// From a pid namespace with a `/proc` of its own, as in a container.
pub(crate) fn pid_namespace(stage: &Stage) -> Result<()> {
    let flags = ["unshare", "--pid", "--fork", "--mount-proc", "--propagation", "unchanged"];
    not_all_is_seen(stage, &flags, "this pid namespace only")
}

/// The same with the `/proc` of the machine, which shows everything.
pub(crate) fn pid_namespace_with_the_whole_proc(stage: &Stage) -> Result<()> {
    stage.mount()?;
    let planter = stage.plant("cwd")?;
    let (said, status) = ask(&["unshare", "--pid", "--fork"], &stage.merged)?;
    assert_eq!(status, Some(32), "{said}");
    assert!(said.contains(&format!("held by {} (", planter.holder)), "{said}");
    Ok(())
}

/// As an ordinary user with a `/proc` that hides other users' processes.
pub(crate) fn hidden(stage: &Stage) -> Result<()> {
    // The program itself has to be within reach.
    let program = stage.base.join("holders");
    std::fs::copy(env!("CARGO_BIN_EXE_holders"), &program)?;
    let script = format!(
        "mount -t proc -o hidepid=invisible proc /proc && exec setpriv --reuid=65534 --regid=65534 --clear-groups {} \"$1\"",
        program.display()
    );
    not_all_is_seen(
        stage,
        &["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", &script],
        "hides",
    )
}

/// As root without CAP_SYS_PTRACE.
pub(crate) fn unprivileged_root(stage: &Stage) -> Result<()> {
    let flags = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];
    not_all_is_seen(stage, &flags, "could not be inspected")
}

fn not_all_is_seen(stage: &Stage, through: &[&str], said_so: &str) -> Result<()> {
    stage.mount()?;
    let planter = stage.plant("cwd")?;
    assert_eq!(stage.umount(), Err(Errno::BUSY));
    let (said, status) = ask(through, &stage.merged)?;
    assert_eq!(status, Some(34), "{said}");
    assert!(said.contains(said_so), "{said}");
    assert!(said.contains("holders --device ") && !said.contains("merged: nothing blocks"), "{said}");
    drop(planter);
    Ok(stage.umount()?)
}

#[expect(clippy::disallowed_methods, reason = "the command under test, as somebody else; waited for")]
fn ask(through: &[&str], merged: &Path) -> Result<(String, Option<i32>)> {
    let output = Command::new(through[0])
        .args(&through[1..])
        .arg(env!("CARGO_BIN_EXE_holders"))
        .arg(merged)
        .stdin(Stdio::null())
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8(said)?, output.status.code()))
}
