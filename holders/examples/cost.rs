//! What one diagnosis costs, beside a bare loop over the same readlinks: `cost PATH [ROUNDS]`.
//!
//! Prints the least and the median of the rounds, in microseconds of this process's processor time. The bare loop is the floor: for each process it
//! reads `exe`, `cwd`, `root`, `ns/mnt` and all of `fd`, relative to directories that it opens once, into one
//! buffer, and looks at nothing of what it reads; of each further thread `cwd`, `root` and `ns/mnt`; and of each
//! process `map_files`, which is how a mapping is a link. Kernel threads are left out, as in the diagnosis.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let path = PathBuf::from(args.next().ok_or("usage: cost PATH [ROUNDS]")?);
    let rounds: usize = match args.next() {
        Some(rounds) => rounds.to_string_lossy().parse()?,
        None => 21,
    };
    let mut floor = Vec::new();
    let mut without_mappings = Vec::new();
    let mut diagnoses = Vec::new();
    let mut samples = Vec::new();
    let (mut links, mut links_without_mappings) = (0, 0);
    let mut processes = 0;
    for _ in 0..rounds {
        floor.push(timed(|| links = bare_loop(true))?);
        without_mappings.push(timed(|| links_without_mappings = bare_loop(false))?);
        let start = processor_time();
        processes = holders::diagnose(&path)?.processes;
        diagnoses.push(processor_time() - start);
        let start = processor_time();
        holders::Query::new(&path).among([std::process::id()]).run()?;
        samples.push(processor_time() - start);
    }
    println!("{processes} processes, {links} links, {links_without_mappings} without mappings");
    for (name, times) in [
        ("bare loop", &mut floor),
        ("without map_files", &mut without_mappings),
        ("diagnosis", &mut diagnoses),
        ("sample of one", &mut samples),
    ] {
        times.sort();
        println!(
            "{name:18} min {:6} us, median {:6} us",
            times[0].as_micros(),
            times[rounds / 2].as_micros()
        );
    }
    Ok(())
}

fn timed(work: impl FnOnce()) -> Result<Duration, Box<dyn std::error::Error>> {
    let start = processor_time();
    work();
    Ok(processor_time() - start)
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn bare_loop(mappings: bool) -> usize {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut links = 0;
    let Ok(proc_dir) = open(rustix::fs::CWD, c"/proc") else { return 0 };
    for pid in names(proc_dir.as_fd()) {
        let Ok(process) = open(proc_dir.as_fd(), &pid) else { continue };
        if !read(process.as_fd(), c"exe", &mut buffer, &mut links) {
            continue;
        }
        for name in [c"cwd", c"root", c"ns/mnt"] {
            read(process.as_fd(), name, &mut buffer, &mut links);
        }
        for directory in [Some(c"fd"), mappings.then_some(c"map_files")].into_iter().flatten() {
            let Ok(directory) = open(process.as_fd(), directory) else { continue };
            for name in names(directory.as_fd()) {
                read(directory.as_fd(), &name, &mut buffer, &mut links);
            }
        }
        let Ok(threads) = open(process.as_fd(), c"task") else { continue };
        for tid in names(threads.as_fd()).iter().filter(|&tid| *tid != pid) {
            let Ok(thread) = open(threads.as_fd(), tid) else { continue };
            for name in [c"cwd", c"root", c"ns/mnt"] {
                read(thread.as_fd(), name, &mut buffer, &mut links);
            }
        }
    }
    links
}

fn open(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The entries that begin with a digit or, as mappings do, with a hexadecimal one.
fn names(directory: BorrowedFd<'_>) -> Vec<std::ffi::CString> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        let first = entry.file_name().to_bytes()[0];
        if first.is_ascii_digit() || entry.file_name().to_bytes().contains(&b'-') {
            names.push(entry.file_name().to_owned());
        }
    }
    names
}

fn read(directory: BorrowedFd<'_>, name: &CStr, buffer: &mut [MaybeUninit<u8>], links: &mut usize) -> bool {
    let is_read = rustix::fs::readlinkat_raw(directory, name, buffer).is_ok();
    *links += usize::from(is_read);
    is_read
}
