//! The stand-in for a server, under its start script, is what it says: on the machine's own kernel, in the fixture's files.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A server in a process group and an installation of its own. SIGKILL for all of it on drop.
struct Server {
    script: Pid,
    place: tempfile::TempDir,
}

impl Server {
    #[expect(
        clippy::disallowed_methods,
        clippy::zombie_processes,
        reason = "killed with its group, and reaped, on drop"
    )]
    fn start(arguments: &[&str]) -> Self {
        // The game comes to us once its script has ended.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let installation =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/game/var/lib/left4me/installation");
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("left4dead2/bin")).unwrap();
        for file in ["srcds_run", "left4dead2/pak01_dir.vpk", "left4dead2/bin/server.so"] {
            fs::copy(installation.join(file), place.path().join(file)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_vm-game"), place.path().join("srcds_linux")).unwrap();
        // Port 0 is any: tests run side by side.
        let child = Command::new(place.path().join("srcds_run"))
            .args(["-game", "left4dead2", "-console", "-port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let server = Self { script: Pid::from_raw(child.id().cast_signed()), place };
        server.wait_for("server.ready", "");
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().canonicalize().unwrap().join(name)
    }

    /// Waits until a file is there and has some words.
    fn wait_for(&self, name: &str, words: &str) {
        let events = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        events.add_watch(self.place.path(), AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY).unwrap();
        while !fs::read_to_string(self.path(name)).is_ok_and(|text| text.contains(words)) {
            let mut polled = [PollFd::new(&events, PollFlags::IN)];
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_ne!(poll(&mut polled, Some(&limit)), Ok(0), "no {words:?} in {name}");
            events.read_events().unwrap();
        }
    }

    /// The game: the script's only child.
    fn game(&self) -> Pid {
        self.child().expect("a game")
    }

    fn child(&self) -> Option<Pid> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.script)).unwrap();
        children.trim().parse().ok().map(Pid::from_raw)
    }

    fn holds_all(&self, game: Pid, program: &str, class: u8) {
        let process = PathBuf::from(format!("/proc/{game}"));
        let link = |name: &str| fs::read_link(process.join(name)).unwrap();
        assert_eq!((link("cwd"), link("exe")), (self.path(""), self.path(program)));
        assert_eq!(link("fd/0"), self.path("console"));
        assert_eq!(fs::read(process.join("exe")).unwrap()[4], class, "ELFCLASS32 is 1, ELFCLASS64 is 2");
        let open: Vec<_> = fs::read_dir(process.join("fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
            .collect();
        assert!(open.contains(&self.path("server.log")), "{open:?}");
        assert!(open.iter().any(|open| open.to_string_lossy().starts_with("socket:")), "{open:?}");
        let maps = fs::read_to_string(process.join("maps")).unwrap();
        let library = self.path("left4dead2/bin/server.so");
        let is_code = |line: &str| line.contains(" r-xp ") && line.ends_with(library.to_str().unwrap());
        assert!(maps.lines().any(is_code), "{maps}");
        let status = fs::read_to_string(process.join("status")).unwrap();
        let number = |name: &str| -> u32 {
            let field = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            field.trim().trim_end_matches(" kB").parse().unwrap()
        };
        assert_eq!(number("Threads:"), 12);
        assert!(number("VmRSS:") >= 30 * 1024, "{status}");
    }

    /// As systemd does it: SIGTERM to all at once.
    fn stop(&self, game: Pid) {
        killpg(self.script, Signal::SIGTERM).unwrap();
        let ended = waitpid(self.script, None);
        assert!(matches!(ended, Ok(WaitStatus::Signaled(_, Signal::SIGTERM, _))), "{ended:?}");
        // If the game was the first to end, its script may have reaped it.
        let ended = waitpid(game, None);
        assert!(
            matches!(ended, Ok(WaitStatus::Signaled(_, Signal::SIGTERM, _)) | Err(Errno::ECHILD)),
            "{ended:?}"
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match killpg(self.script, Signal::SIGKILL) {
            Ok(()) | Err(_) => {}
        }
        while waitpid(Pid::from_raw(-self.script.as_raw()), None).is_ok() {}
    }
}

#[test]
fn a_server() {
    let server = Server::start(&["--memory-mib", "30", "--threads", "12"]);
    let game = server.game();
    server.holds_all(game, "srcds_linux", 2);
    fs::write(server.path("console"), "say hello\n").unwrap();
    server.wait_for("server.log", "say hello\n");
    server.stop(game);
}

#[test]
fn a_32_bit_server() {
    let server = Server::start(&["--memory-mib", "30", "--threads", "12", "--32-bit"]);
    let game = server.game();
    server.holds_all(game, "srcds_linux32", 1);
    server.stop(game);
}

#[test]
fn a_game_that_quits_is_started_again_unless_that_is_not_wanted() {
    let server = Server::start(&["--memory-mib", "1", "-norestart"]);
    fs::write(server.path("console"), "quit\n").unwrap();
    assert_eq!(
        waitpid(server.script, None),
        Ok(WaitStatus::Exited(server.script, 0)),
        "the script is the game"
    );
    let server = Server::start(&["--memory-mib", "1"]);
    let game = server.game();
    kill(game, Signal::SIGKILL).unwrap();
    // The script goes on, in the pause before the next one.
    while server.child().is_none_or(|child| child == game) {
        std::thread::yield_now();
    }
}
