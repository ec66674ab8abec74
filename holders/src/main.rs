//! `holders`: who keeps a mount busy. What is left to this file: the order of things and the exit status.

use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use holders::chain::chain;
use holders::cli::{self, Command, Diagnose, Namespace, NamespaceOf};
use holders::mountinfo::{self, Device, Mount};
use holders::{Query, Verdict, propagation};

mod watch;

const EXIT_OK: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// As mount(8) and umount(8) say that a mount failed.
const EXIT_BUSY: u8 = 32;
const EXIT_OUTLIVES: u8 = 33;
const EXIT_NOT_ALLOWED: u8 = 34;

fn main() -> ExitCode {
    let current = std::env::current_dir().unwrap_or_else(|_gone| PathBuf::from("/"));
    // First of all: a shell inside the mount has started this process there, and it is not to hold it too.
    if let Err(error) = std::env::set_current_dir("/") {
        complain(&format!("chdir /: {error}"));
        return ExitCode::from(EXIT_FAILED);
    }
    let done = match cli::parse(std::env::args_os()) {
        Ok(Command::Help) => print(cli::HELP, EXIT_OK),
        Ok(Command::Version) => print(&format!("holders {}\n", env!("CARGO_PKG_VERSION")), EXIT_OK),
        Ok(Command::Diagnose(asked)) => diagnose(&asked, &current),
        Ok(Command::Namespace(asked)) => namespace(&asked, &current),
        Ok(Command::Watch(asked)) => watch(asked, &current),
        Err(problem) => {
            complain(&format!("{problem}\nTry: holders --help"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&chain(&*error));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn diagnose(asked: &Diagnose, current: &Path) -> Result<u8, Failure> {
    // A file of that name would be asked about as ./NAME.
    let unit = if asked.is_layer { None } else { cli::mount_unit(&asked.path) };
    let mut resolved = resolve(unit.as_ref().unwrap_or(&asked.path), current)?;
    let block_device = if asked.is_layer { None } else { block_device(&resolved) };
    if let Some(device) = block_device
        && let Some(mount) = resolved.mounts.iter().find(|mount| {
            mount.device == device || (mount.device.major == 0 && Path::new(&mount.source) == resolved.path)
        })
    {
        resolved.path = mount.mount_point.clone();
    }
    let query = Query::new(&resolved.path);
    let mut query = match block_device {
        Some(device) if propagation::visible_at(&resolved.mounts, &resolved.path).is_none() => {
            query.of_block_device(device)
        }
        _ if asked.is_layer => query.of_layer(),
        _ => query,
    };
    query = query.deadline(Instant::now() + asked.deadline);
    if asked.is_busy {
        query = query.after_ebusy();
    }
    if asked.detached {
        query = query.with_detached();
    }
    if let Some(device) = asked.device {
        query = query.of_device(device);
    }
    let report = query.run()?;
    // Where something is left of it elsewhere, that is the answer, whatever became of the path.
    let is_unknown =
        matches!(report.verdict().of_what_was_seen(), Verdict::NotMounted { devices } if devices.is_empty());
    if is_unknown && report.lies_on.as_ref().is_some_and(|mount| cli::may_look(mount, &resolved.mounts)) {
        std::fs::symlink_metadata(&report.path).map_err(|error| {
            format!("{}: {error}: give a mount point, or what was one", report.path.display())
        })?;
    }
    let text = match asked {
        Diagnose { json: true, .. } => format!("{:#}\n", report.to_json()),
        Diagnose { all: true, .. } => format!("{report:#}"),
        _ => report.to_string(),
    };
    print(&text, status(&report.verdict()))
}

fn namespace(asked: &Namespace, current: &Path) -> Result<u8, Failure> {
    let report = match &asked.of {
        NamespaceOf::Process(pid) => holders::ns::of_process(*pid)?,
        NamespaceOf::File(file) => holders::ns::of_file(&current.join(file))?,
    };
    let text = if asked.json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    print(&text, EXIT_OK)
}

fn watch(asked: cli::Watch, current: &Path) -> Result<u8, Failure> {
    let plan = watch::Plan {
        path: resolve(&asked.path, current)?.path,
        unit: asked.unit,
        rate: asked.rate,
        until_unmounted: asked.until_unmounted,
    };
    let done = watch::watch(&plan, |scan| {
        let line = if asked.json { scan.json().to_string() } else { scan.line() };
        write(&format!("{line}\n"))
    });
    match done {
        // It is for as long as somebody reads it.
        Err(error)
            if error
                .downcast_ref()
                .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(EXIT_OK)
        }
        done => done.map(|()| EXIT_OK),
    }
}

/// The path that is meant, and the mount table that it was looked up by.
struct Resolved {
    path: PathBuf,
    mounts: Vec<Mount>,
}

/// The device that the path is the file of. Looked at only where that can make nothing busy.
fn block_device(resolved: &Resolved) -> Option<Device> {
    let (on, is_mount_point) = propagation::containing(&resolved.mounts, &resolved.path)?;
    if is_mount_point || !cli::may_look(&resolved.mounts[on], &resolved.mounts) {
        return None;
    }
    let file =
        std::fs::symlink_metadata(&resolved.path).ok().filter(|file| file.file_type().is_block_device())?;
    let number = file.rdev();
    Some(Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

fn resolve(given: &Path, current: &Path) -> Result<Resolved, Failure> {
    // By the name that also holds where `/proc` is another pid namespace's.
    let mounts = mountinfo::parse(&std::fs::read("/proc/thread-self/mountinfo")?)?;
    let path = cli::resolve(given, current, &mounts, |path| std::fs::read_link(path).ok())?;
    Ok(Resolved { path, mounts })
}

fn status(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Outlives { .. } | Verdict::AliveElsewhere { .. } => EXIT_OUTLIVES,
        verdict => match verdict.blocks_umount() {
            Some(true) => EXIT_BUSY,
            Some(false) => EXIT_OK,
            None => EXIT_NOT_ALLOWED,
        },
    }
}

/// An answer that nobody got is none: its status says so, whatever it would have been, and `print!` would panic.
fn print(text: &str, status: u8) -> Result<u8, Failure> {
    write(text)?;
    Ok(status)
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let done = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    done.map_err(|error| io::Error::new(error.kind(), format!("write to stdout: {error}")))
}

/// If not even that can be written, the status has to do.
fn complain(text: &str) {
    drop(writeln!(io::stderr(), "holders: {text}"));
}
