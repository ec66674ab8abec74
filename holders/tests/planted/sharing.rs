//! Many processes that share one memory, or one table of descriptors: what is seen of one is so for all, and is looked at
//! once.

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use holders::{Query, Report};

use crate::stage::Stage;
use crate::victim::{Result, ready, stay, victim};

/// How many processes share it with the first.
const SHARERS: usize = 30;
/// So many mappings and descriptors take much longer than all else that is looked at of a process.
const MAPPINGS: usize = 20_000;
const DESCRIPTORS: usize = 10_000;

pub(crate) fn memory(stage: &Stage) -> Result<()> {
    shared(stage, "shared-memory", "mapping")
}

pub(crate) fn descriptors(stage: &Stage) -> Result<()> {
    shared(stage, "shared-descriptors", "file")
}

fn shared(stage: &Stage, what: &str, kind: &str) -> Result<()> {
    stage.mount()?;
    let mut first = victim(what, &[&stage.merged])?;
    let pid = ready(&mut first)?;
    let first = Sharers(first);
    let all: Vec<u32> = std::iter::once(pid).chain(children(pid)?).collect();
    assert_eq!(all.len(), SHARERS + 1);
    let of_one = (0..3).map(|_| Ok(ask(stage, &[pid])?.1)).collect::<Result<Vec<_>>>()?;
    let of_one = of_one.into_iter().min().unwrap_or_default();
    let (report, of_all) = ask(stage, &all)?;
    assert!(of_all < of_one * 6, "{of_one:?} for one, {of_all:?} for {SHARERS} that share it with that one");
    // Each has it: the last of them that ends lets go.
    let mut named: Vec<u32> = report.blockers().iter().map(|blocker| blocker.pid).collect();
    named.sort_unstable();
    let mut expected = all;
    expected.sort_unstable();
    assert_eq!(named, expected);
    for holder in &report.holders {
        assert!(holder.references.iter().any(|held| held.kind.word() == kind), "{holder:#?}");
    }
    drop(first);
    Ok(())
}

/// And the processor time that it took: others may want the processor meanwhile.
fn ask(stage: &Stage, pids: &[u32]) -> Result<(Report, Duration)> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let begun = processor_time()?;
    let report = Query::new(&stage.merged).among(pids).deadline(deadline).run()?;
    assert_eq!(report.unseen.cut_short, None);
    Ok((report, processor_time()?.saturating_sub(begun)))
}

/// This thread's.
fn processor_time() -> Result<Duration> {
    Ok(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).try_into()?)
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_ascii_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// End with the first of them, which ends with its stdin.
struct Sharers(Child);

impl Drop for Sharers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("wait for the first");
    }
}

/// This program as one of the processes.
pub(crate) fn be(words: &[&str]) -> Option<Result<()>> {
    Some(match words {
        ["shared-memory", merged] => share_memory(Path::new(merged)),
        ["shared-descriptors", merged] => share_descriptors(Path::new(merged)),
        _ => return None,
    })
}

#[expect(unsafe_code, reason = "mappings that nobody looks at, and processes that share them")]
fn share_memory(merged: &Path) -> Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // By turns, so that no two neighbours are one mapping.
    let files = [File::create_new(merged.join("a"))?, File::create_new(merged.join("b"))?];
    let files = files.map(|file| file.set_len(4096).map(|()| file));
    for file in files.iter().cycle().take(MAPPINGS) {
        let file = file.as_ref().map_err(|error| error.to_string())?;
        // SAFETY: a new mapping at a place of the kernel's choice; it is never dereferenced, and stays.
        unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::SHARED, file, 0) }?;
    }
    drop(files);
    for _ in 0..SHARERS {
        const STACK: usize = 64 << 10;
        let stack = Box::leak(vec![0_u8; STACK].into_boxed_slice());
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: the stack is the child's alone and stays; `wait_for_the_end` touches nothing but that.
        let pid = unsafe {
            libc::clone(wait_for_the_end, top, libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut())
        };
        if pid < 0 {
            return Err(format!("clone: {}", std::io::Error::last_os_error()).into());
        }
    }
    stay(std::process::id())
}

#[expect(unsafe_code, reason = "processes that share a table of descriptors")]
fn share_descriptors(merged: &Path) -> Result<()> {
    let file = File::create_new(merged.join("file"))?;
    let _open = (0..DESCRIPTORS).map(|_| file.try_clone()).collect::<std::io::Result<Vec<_>>>()?;
    for _ in 0..SHARERS {
        // SAFETY: as fork(2), in a process of one thread; the child calls what may be called then, and shares the table.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
        match pid {
            0 => drop(wait_for_the_end(std::ptr::null_mut())),
            1.. => {}
            _ => return Err(format!("clone: {}", std::io::Error::last_os_error()).into()),
        }
    }
    stay(std::process::id())
}

/// That of the process that has started this one.
#[expect(unsafe_code, reason = "two system calls, in a process that may not make more")]
extern "C" fn wait_for_the_end(_: *mut libc::c_void) -> libc::c_int {
    // SAFETY: integers only; SIGKILL ends it with its parent.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        loop {
            libc::pause();
        }
    }
}
