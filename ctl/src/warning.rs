//! Before a running server is stopped: what it would lose, the question about that, and the line on its console.
//!
//! Both look into places that the server's user writes in: `upper` is counted through directory descriptors, with a
//! bound, and through no link; the console is opened only if it is a FIFO, and without waiting for its reader.

use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use left4me_helper::error::HelperError;
use left4me_helper::instance::Instance;
use left4me_helper::state::{StateDir, beneath, directory_beneath, proc_path};
use left4me_helper::tree::MAX_DEPTH;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// How many entries of any kind are looked at: where there are more, their number does not matter.
pub const MAX_ENTRIES: u64 = 10_000;

/// The FIFO by which a server reads commands, at the top of `merged`.
pub const CONSOLE: &str = "console";

/// What a server wrote, and a reset deletes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Regular files in `upper`.
    pub files: u64,
    /// The room that these take, bytes.
    pub bytes: u64,
    /// Whether there is more: [`MAX_ENTRIES`] were looked at, or something could not be read.
    pub is_more: bool,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.is_more { "more than " } else { "" };
        let files = if self.files == 1 { "file" } else { "files" };
        // One digit behind the point; 2^20 bytes are a MiB.
        let tenths = self.bytes.saturating_mul(10) / (1 << 20);
        write!(f, "{more}{} {files}, {more}{}.{} MiB", self.files, tenths / 10, tenths % 10)
    }
}

/// Counts what `instance` has in `upper`, nothing if it has none.
///
/// # Errors
/// The way there may not be gone.
pub fn loss(state: &StateDir, instance: &Instance) -> Result<Loss, HelperError> {
    let paths = state.paths(instance);
    let mut loss = Loss::default();
    let Some(runtimes) = state.runtime()? else { return Ok(loss) };
    match directory_beneath(&runtimes, &Path::new(instance.as_str()).join("upper")) {
        Ok(upper) => count(&upper, 0, &mut 0, &mut loss),
        Err(Errno::NOENT) => {}
        Err(source) => return Err(HelperError::call("open directory", paths.upper)(source)),
    }
    Ok(loss)
}

fn count(directory: &OwnedFd, depth: usize, seen: &mut u64, loss: &mut Loss) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 8 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else {
            loss.is_more = true;
            return;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if *seen == MAX_ENTRIES {
            loss.is_more = true;
            return;
        }
        *seen += 1;
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            // Gone since, or not ours to look at.
            loss.is_more = true;
            continue;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                loss.files += 1;
                // In units of 512 bytes whatever the file system has (stat(2)): a sparse file is as large as it is.
                let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
                loss.bytes = loss.bytes.saturating_add(bytes);
            }
            FileType::Directory => match enter(directory.as_fd(), name) {
                Ok(inner) if depth < MAX_DEPTH => count(&inner, depth + 1, seen, loss),
                _ => loss.is_more = true,
            },
            // Links take nothing; a device is overlayfs' mark for what was deleted.
            _ => {}
        }
    }
}

fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

/// A server that runs and is to be reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its instance.
    pub instance: Instance,
    /// For how long; none if systemd does not say.
    pub since: Option<Duration>,
    /// What it would lose, or why that is not known.
    pub loss: Result<Loss, String>,
}

/// What is asked before servers that run are reset, of so many instances in all.
#[must_use]
pub fn question(running: &[Running], all: usize) -> String {
    let mut text = match (running.len(), all) {
        (1, 1) => "This server runs, and what it wrote will be deleted:\n".to_owned(),
        (some, all) => format!("{some} of {all} servers run, and what they wrote will be deleted:\n"),
    };
    for Running { instance, since, loss } in running {
        let since = since.map_or(String::new(), |since| format!(" has run for {};", spoken(since)));
        let loss = match loss {
            Ok(loss) => loss.to_string(),
            Err(why) => format!("how much is not known ({why})"),
        };
        text.push_str(&format!("  {instance}{since} {loss}\n"));
    }
    if all > running.len() && !running.is_empty() {
        text.push_str("What the others have left will be deleted too.\n");
    }
    let them = if running.len() == 1 { "it" } else { "them" };
    text.push_str(&format!("Stop {them} and delete? [y/N] "));
    text
}

/// Whether an answer to [`question`] agrees.
#[must_use]
pub fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

/// The line that players read before their server is stopped.
#[must_use]
pub fn line(grace: Duration) -> String {
    format!("say Server restarts in {} s", grace.as_secs())
}

/// Writes a line to the console of `instance`: `false` if it has none that somebody reads. It is closed at once, and
/// nothing here waits for the server.
///
/// # Errors
/// The way there may not be gone, or the server has not read what is in the console already.
pub fn say(state: &StateDir, instance: &Instance, line: &str) -> Result<bool, HelperError> {
    let path: PathBuf = state.paths(instance).merged.join(CONSOLE);
    let failed = |call| {
        let path = path.clone();
        move |source| HelperError::call(call, path)(source)
    };
    let Some(runtimes) = state.runtime()? else { return Ok(false) };
    let opened = directory_beneath(&runtimes, &Path::new(instance.as_str()).join("merged"))
        // The path alone: opened to be written, a file that lies in a lower layer would be copied up first.
        .and_then(|merged| beneath(merged.as_fd(), Path::new(CONSOLE), OFlags::PATH | OFlags::NOFOLLOW));
    let place = match opened {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(false),
        Err(source) => return Err(failed("open")(source)),
    };
    let stat = rustix::fs::fstat(&place).map_err(failed("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Ok(false);
    }
    // Through the descriptor, so that it is still this FIFO. ENXIO: nobody has it open to read (fifo(7)).
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let console = match rustix::fs::open(proc_path(&place), flags, Mode::empty()) {
        Ok(console) => console,
        Err(Errno::NXIO) => return Ok(false),
        Err(source) => return Err(failed("open")(source)),
    };
    // Less than PIPE_BUF, so all of it or nothing (pipe(7)).
    rustix::io::write(&console, format!("{line}\n").as_bytes()).map_err(failed("write"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn instance() -> (tempfile::TempDir, StateDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = directory.path().join("runtime/3");
        for name in ["upper", "merged"] {
            fs::create_dir_all(runtime.join(name)).unwrap();
        }
        let state = StateDir::open(directory.path()).unwrap();
        (directory, state, runtime)
    }

    fn three() -> Instance {
        "3".parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "a directory of the test, in which nothing is mounted")]
    #[test]
    fn what_is_lost_is_counted_with_a_bound_and_through_no_link() {
        let (directory, state, runtime) = instance();
        assert_eq!(loss(&state, &"4".parse().unwrap()).unwrap(), Loss::default());
        let upper = runtime.join("upper");
        assert_eq!(loss(&state, &three()).unwrap().to_string(), "0 files, 0.0 MiB");
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/b/log"), vec![1; 3 << 20]).unwrap();
        symlink("/", upper.join("a/root")).unwrap();
        symlink(upper.join("a"), upper.join("again")).unwrap();
        // As large as it says and takes no room.
        fs::File::create(upper.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let found = loss(&state, &three()).unwrap();
        assert_eq!((found.files, found.bytes >> 20, found.is_more), (2, 3, false));
        assert_eq!(found.to_string(), "2 files, 3.0 MiB");
        let deep = (0..MAX_DEPTH + 2).fold(upper.clone(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        assert!(loss(&state, &three()).unwrap().is_more);
        // The server's user can make as many as it likes, of any kind.
        fs::remove_dir_all(&upper).unwrap();
        fs::create_dir(&upper).unwrap();
        for number in 0..MAX_ENTRIES {
            symlink("x", upper.join(format!("l{number}"))).unwrap();
        }
        assert!(!loss(&state, &three()).unwrap().is_more);
        fs::write(upper.join("z"), "").unwrap();
        let found = loss(&state, &three()).unwrap();
        assert!(found.is_more && found.to_string().starts_with("more than "), "{found}");
        drop(directory);
    }

    #[test]
    fn the_question_says_who_runs_since_when_and_what_is_lost() {
        let running = |name: &str, since: u64, loss| Running {
            instance: name.parse().unwrap(),
            since: Some(Duration::from_secs(since)),
            loss,
        };
        let found = Ok(Loss { files: 12, bytes: 5 << 19, is_more: false });
        let one = running("3", 40, found.clone());
        let unknown = Err("open directory /x: Permission denied".into());
        let several = [running("3", 11_520, found), running("eu-1", 187_200, unknown)];
        insta::assert_snapshot!(format!("{}\n---\n{}", question(&[one], 1), question(&several, 3)));
        for (answer, agrees) in [("y\n", true), ("YES\n", true), ("", false), ("\n", false), ("yep\n", false)]
        {
            assert_eq!(is_yes(answer), agrees, "{answer:?}");
        }
    }

    #[test]
    fn a_line_goes_to_a_console_that_somebody_reads() {
        let (_directory, state, runtime) = instance();
        let console = runtime.join("merged/console");
        let line = line(Duration::from_secs(120));
        assert_eq!(line, "say Server restarts in 120 s");
        assert!(!say(&state, &three(), &line).unwrap(), "there is none");
        assert!(!say(&state, &"4".parse().unwrap(), &line).unwrap(), "nor an instance");
        rustix::fs::mkfifoat(rustix::fs::CWD, &console, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(!say(&state, &three(), &line).unwrap(), "nobody reads");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&console, flags, Mode::empty()).unwrap();
        assert!(say(&state, &three(), &line).unwrap());
        let mut said = String::new();
        let mut reader = fs::File::from(reader);
        // It is closed already, so this is all.
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "say Server restarts in 120 s\n");
        // One that nobody empties: no wait.
        let full = loop {
            if let Err(error) = say(&state, &three(), &line) {
                break error;
            }
        };
        assert!(holders::chain::chain(&full).contains("write "), "{full}");
    }

    #[test]
    fn what_is_no_fifo_is_no_console_and_stays_as_it_is() {
        let (directory, state, runtime) = instance();
        let console = runtime.join("merged/console");
        let outside = directory.path().join("outside");
        rustix::fs::mkfifoat(rustix::fs::CWD, &outside, Mode::RUSR | Mode::WUSR).unwrap();
        let reader = rustix::fs::open(&outside, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let is_heard = |what: &str| {
            let heard = say(&state, &three(), "x").unwrap();
            assert!(!heard, "{what}");
        };
        symlink(&outside, &console).unwrap();
        is_heard("a link");
        fs::remove_file(&console).unwrap();
        fs::write(&console, "precious").unwrap();
        is_heard("a file");
        assert_eq!(fs::read(&console).unwrap(), b"precious");
        fs::remove_file(&console).unwrap();
        fs::create_dir(&console).unwrap();
        is_heard("a directory");
        fs::remove_dir(&console).unwrap();
        let socket = UnixListener::bind(&console).unwrap();
        is_heard("a socket");
        drop((socket, reader));
    }
}
