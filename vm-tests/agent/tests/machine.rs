//! The recorder's sources on the kernel that this runs on. It takes root and the first pid namespace: without, they are
//! reported as ignored, with the reason.

#[expect(dead_code, reason = "the recorder uses more of it")]
#[path = "../src/record/proc_connector.rs"]
mod proc_connector;
#[expect(dead_code, reason = "the recorder uses more of it")]
#[path = "../src/record/umounts.rs"]
mod umounts;

use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Trial};

use self::proc_connector::{ProcConnector, ProcessEvent};
use self::umounts::{INSTANCE, PROBE_EVENT, TRACEFS, TraceLine, UmountTrace};

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("sees-a-process", || Ok(sees_a_process())),
        Trial::ignorable_test("traces-a-call", || Ok(traces_a_call())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Whether process ids are those of the kernel's own tables: the inode number of the first pid namespace is fixed
/// (PROC_PID_INIT_INO in linux/proc_ns.h). The guest's agent always is in it; a unit test may not be.
fn in_the_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.to_string_lossy() == "pid:[4026531836]")
}

#[expect(clippy::disallowed_methods, reason = "the test's own child; waited for")]
fn sees_a_process() -> Completion {
    if !in_the_initial_pid_namespace() {
        return Completion::ignored_with("in a container, whose process ids are not those of the events");
    }
    let connector = match ProcConnector::open() {
        Ok(connector) => connector,
        Err(error) => return Completion::ignored_with(format!("no proc connector to be had: {error:#}")),
    };
    assert!(Command::new("true").status().unwrap().success());
    let events = connector.read().unwrap().events;
    let own = std::process::id();
    let child = events.iter().find_map(|event| match event {
        ProcessEvent::Fork { parent, child } if *parent == own => Some(*child),
        _ => None,
    });
    let child = child.expect("a fork");
    assert!(events.contains(&ProcessEvent::Exec { pid: child }), "{events:?}");
    assert!(events.contains(&ProcessEvent::Exit { pid: child }), "{events:?}");
    Completion::Completed
}

fn traces_a_call() -> Completion {
    if !in_the_initial_pid_namespace() {
        return Completion::ignored_with("in a container, whose process ids are not those of the trace");
    }
    let mut trace = match UmountTrace::open() {
        Ok(trace) => trace,
        Err(error) => return Completion::ignored_with(format!("no tracer to be had: {error:#}")),
    };
    let has_probe = Path::new(TRACEFS).join("events").join(PROBE_EVENT).exists();
    let failed = rustix::mount::unmount("/no/such/mount", rustix::mount::UnmountFlags::empty());
    assert_eq!(failed, Err(rustix::io::Errno::NOENT));
    trace.mark_end().unwrap();
    let mut lines = Vec::new();
    while !lines.contains(&TraceLine::End) {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(trace.fd(), rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "no wake-up: {lines:?}");
        lines.extend(trace.read().unwrap());
    }
    let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let results: Vec<i64> = lines
        .iter()
        .filter_map(|line| match line {
            TraceLine::Returned { tid, result, .. } if *tid == own => Some(*result),
            _ => None,
        })
        .collect();
    assert_eq!(results, [-2], "{lines:?}");
    let named = |line: &TraceLine| matches!(line, TraceLine::Entered { tid, path: Some(path), .. } if *tid == own && path == "/no/such/mount");
    assert_eq!(lines.iter().any(named), has_probe, "{lines:?}");
    drop(trace);
    assert!(!Path::new(TRACEFS).join("events").join(PROBE_EVENT).exists());
    assert!(!Path::new(TRACEFS).join("instances").join(INSTANCE).exists());
    Completion::Completed
}
