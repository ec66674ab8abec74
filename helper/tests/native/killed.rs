//! Every program killed before each of its system calls: the next one goes on from there.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::stage::{
    Host, STATE, helper, merged, mount_is_sound, mounts_at, purge, reset_is_sound, runtime, umount_is_sound,
    umount_is_sound_if_made,
};

/// Where the counting of system calls begins: at the first one that is not the start-up's. The helper begins with
/// chdir(2), a reset with the openat2(2) of `runtime`.
const FIRST_CALLS: [i64; 2] = [nix::libc::SYS_chdir, nix::libc::SYS_openat2];

/// Runs a program and kills it by SIGKILL as it enters its system call number `nth`, counted from 0 at the first of
/// its own. `false` if it ended before.
#[expect(clippy::zombie_processes, reason = "waitpid(2) reaps it, as a tracee")]
fn killed_at(mut program: Command, nth: usize) -> bool {
    program.stdout(Stdio::null()).stderr(Stdio::null());
    #[expect(unsafe_code, reason = "a tracee asks to be traced between fork and exec")]
    // SAFETY: ptrace(2) is a bare system call: no allocation, no lock.
    unsafe {
        program.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let child = program.spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)
        .unwrap();
    let mut entered = None;
    let mut entry = true;
    loop {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) if entry => {
                if entered.is_none()
                    && FIRST_CALLS.contains(&ptrace::getregs(pid).unwrap().orig_rax.cast_signed())
                {
                    entered = Some(0);
                }
                if entered == Some(nth) {
                    kill(pid, Signal::SIGKILL).unwrap();
                    assert!(matches!(
                        waitpid(pid, None).unwrap(),
                        WaitStatus::Signaled(_, Signal::SIGKILL, _)
                    ));
                    return true;
                }
                entered = entered.map(|count| count + 1);
                entry = false;
            }
            WaitStatus::PtraceSyscall(_) => entry = true,
            WaitStatus::Exited(_, status) => {
                assert_eq!(status, 0, "it failed by itself");
                return false;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Every system call of each program is a step, and a kill before it a case: found by counting, not by luck. The last
/// number is that of a run that was not killed.
pub(crate) fn killed_at_every_step() {
    let _host = Host::new("kill");
    let mut cases = Vec::new();
    for nth in 0.. {
        let killed = killed_at(helper(&["mount", "3"]), nth);
        // By turns: a second mount goes on from there, or an unmount, or a reset where nothing is mounted yet.
        match nth % 3 {
            0 => mount_is_sound("3"),
            1 => umount_is_sound_if_made(),
            _ if mounts_at(&merged("3")).is_empty() => {}
            _ => mount_is_sound("3"),
        }
        umount_is_sound_if_made();
        reset_is_sound();
        if !killed {
            cases.push(("mount", nth));
            break;
        }
    }
    for nth in 0.. {
        mount_is_sound("3");
        fs::write(merged("3").join("written"), "kept").unwrap();
        let killed = killed_at(helper(&["umount", "3"]), nth);
        if nth % 2 == 0 {
            umount_is_sound("3");
        }
        mount_is_sound("3");
        assert_eq!(fs::read_to_string(merged("3").join("written")).unwrap(), "kept");
        umount_is_sound("3");
        reset_is_sound();
        if !killed {
            cases.push(("umount", nth));
            break;
        }
    }
    for nth in 0.. {
        mount_is_sound("3");
        for index in 0..8 {
            fs::create_dir_all(merged("3").join(format!("{index}/below"))).unwrap();
            fs::write(merged("3").join(format!("{index}/file")), "kept").unwrap();
        }
        umount_is_sound("3");
        // What an earlier reset left, so that deleting that is among the steps.
        fs::create_dir_all(Path::new(STATE).join("runtime/.purge-3/upper/old")).unwrap();
        let killed = killed_at(purge(), nth);
        // Never half a layer where a start would use it: all that the server wrote is there, or nothing of it.
        let upper = runtime("3").join("upper");
        if upper.exists() {
            let whole = (0..8).all(|index| {
                upper.join(format!("{index}/file")).exists() && upper.join(format!("{index}/below")).exists()
            });
            assert!(whole, "after {nth} calls of the reset");
        }
        if nth % 2 == 0 {
            mount_is_sound("3");
            assert!(!Path::new(STATE).join("runtime/.purge-3").exists(), "the mount sweeps what was left");
            umount_is_sound("3");
        }
        reset_is_sound();
        if !killed {
            cases.push(("reset", nth));
            break;
        }
    }
    eprintln!("kills before each system call: {cases:?}");
    assert!(cases.iter().all(|(_, count)| *count > 20), "{cases:?}");
}
