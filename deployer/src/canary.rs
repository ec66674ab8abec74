//! A server of the deploy's own: it goes through Start and Reset with the new version's units and programs, and is judged. Its one
//! layer has a `srcds_run` that is this program, so no game is needed, and nothing of the users' is used but read.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::inotify;

use crate::host::{Host, command, durable};
use crate::wire::CONTROL;

/// Its instance's name, and its layer's.
pub const NAME: &str = "deploy-canary";

/// What it makes in its working directory when it runs.
const READY: &str = "deploy-canary.ready";

/// How long a start or a reset of it may take.
const LIMIT: Duration = Duration::from_secs(40);

const STATE: &str = "/var/lib/left4me";
const SERVER: &str = "left4me-server@deploy-canary.service";
const OVERLAY: &str = "left4me-overlay@deploy-canary.service";

/// Whether this program was started as a server's: then it is [`serve`]'s turn.
#[must_use]
pub fn is_asked_for(argv0: &str) -> bool {
    argv0.ends_with("/merged/srcds_run")
}

/// Is the server: shows that it runs, and waits for SIGTERM, which ends it.
///
/// # Errors
/// It may not write where a server may.
pub fn serve() -> Result<()> {
    fs::write(".deploy-canary", "a server may write here").context("write to the working directory")?;
    fs::rename(".deploy-canary", READY).with_context(|| format!("rename {READY}"))?;
    loop {
        rustix::event::pause();
    }
}

fn layer(host: &Host) -> PathBuf {
    host.at(STATE).join("overlays").join(NAME)
}

fn file(host: &Host) -> PathBuf {
    host.at(STATE).join("instances").join(format!("{NAME}.toml"))
}

fn runtime(host: &Host) -> PathBuf {
    host.at(STATE).join("runtime").join(NAME)
}

/// Makes it, starts it, looks, resets it, looks, and removes it.
///
/// # Errors
/// Says what is not as it must be.
pub fn run(host: &Host) -> Result<()> {
    remove(host)?;
    let result = start_and_reset(host);
    let removed = remove(host);
    result?;
    removed
}

fn start_and_reset(host: &Host) -> Result<()> {
    let program = fs::read("/proc/self/exe").context("read /proc/self/exe")?;
    durable::directories(&layer(host))?;
    durable::file(&layer(host).join("srcds_run"), 0o755, &program)?;
    durable::file(&file(host), 0o644, format!("overlays = [\"{NAME}\"]\n").as_bytes())?;

    let deadline = Instant::now() + LIMIT;
    command::ok(&[CONTROL, "start", NAME], deadline).context("the canary's start")?;
    ready(&runtime(host).join("upper"), deadline)?;
    let shown = show(SERVER)?;
    ensure!(shown.starts_with("active success"), "the canary's server is {shown} after its start");
    let shown = show(OVERLAY)?;
    ensure!(shown.starts_with("active success"), "the canary's overlay is {shown} after its start");
    ensure!(is_mounted(host)?, "the canary runs, and its overlay is not mounted");

    let begun = Instant::now();
    command::ok(&[CONTROL, "reset", NAME], Instant::now() + LIMIT).context("the canary's reset")?;
    let took = begun.elapsed();
    for unit in [SERVER, OVERLAY] {
        let shown = show(unit)?;
        ensure!(shown.starts_with("inactive success"), "the canary's {unit} is {shown} after its reset");
    }
    ensure!(!is_mounted(host)?, "the canary's overlay is still mounted after its reset");
    ensure!(!runtime(host).exists(), "{} is still there after its reset", runtime(host).display());
    // A stop that needs SIGKILL takes TimeoutStopSec=, 15 s.
    ensure!(took < Duration::from_secs(14), "the canary's reset took {took:?}");
    Ok(())
}

/// Waits until the server has shown that it runs.
fn ready(upper: &Path, deadline: Instant) -> Result<()> {
    let what = || format!("watch {}", upper.display());
    let watch: OwnedFd = inotify::init(inotify::CreateFlags::CLOEXEC).with_context(what)?;
    inotify::add_watch(&watch, upper, inotify::WatchFlags::MOVED_TO).with_context(what)?;
    let file = upper.join(READY);
    while !file.exists() {
        if !command::readable(&watch, deadline)? {
            bail!("the canary has not shown that it runs: {} is missing", file.display());
        }
        let mut buffer = [0; 4096];
        rustix::io::read(&watch, &mut buffer).with_context(what)?;
    }
    let owner = fs::metadata(&file).with_context(|| format!("stat {}", file.display()))?.uid();
    ensure!(owner != 0, "the canary's server runs as root");
    Ok(())
}

fn show(unit: &str) -> Result<String> {
    let argv = ["systemctl", "show", "--value", "--property=ActiveState,Result", unit];
    let shown = command::ok(&argv, Instant::now() + crate::facts::QUICK)?;
    // In the order of systemd's list, whichever was asked for.
    let mut words: Vec<&str> = shown.split_whitespace().collect();
    words.sort_by_key(|word| !["active", "inactive", "failed", "activating", "deactivating"].contains(word));
    Ok(words.join(" "))
}

fn is_mounted(host: &Host) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/1/mountinfo").context("read /proc/1/mountinfo")?;
    let at = runtime(host).join("merged");
    Ok(mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|path| Path::new(path) == at)))
}

/// Removes it, and what a broken off deploy has left of it.
///
/// # Errors
/// It does not stop, or is still mounted; the calls', with the path.
pub fn remove(host: &Host) -> Result<()> {
    let is_up = || -> Result<bool> {
        Ok(is_mounted(host)?
            || !show(SERVER)?.starts_with("inactive")
            || !show(OVERLAY)?.starts_with("inactive"))
    };
    if is_left(host) && is_up()? {
        let argv = [CONTROL, "reset", NAME];
        command::ok(&argv, Instant::now() + LIMIT).context("the canary's reset")?;
    }
    if is_left(host) {
        // A unit that has failed is one that monitoring complains of; one that has not is an error here.
        command::run(
            &["systemctl", "reset-failed", SERVER, OVERLAY],
            &[],
            Instant::now() + crate::facts::QUICK,
        )?;
    }
    ensure!(
        !is_mounted(host)?,
        "the canary's overlay is still mounted at {}/merged",
        runtime(host).display()
    );
    if file(host).exists() {
        durable::remove(&file(host))?;
    }
    // After a power cut: nothing is mounted below, which was just looked at.
    durable::remove_tree(&runtime(host))?;
    durable::remove_tree(&layer(host))
}

/// Whether something of it is there.
#[must_use]
fn is_left(host: &Host) -> bool {
    file(host).exists() || layer(host).exists() || runtime(host).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_server_by_its_name_alone() {
        assert!(is_asked_for("/var/lib/left4me/runtime/deploy-canary/merged/srcds_run"));
        assert!(!is_asked_for("/usr/local/libexec/left4me/left4me-deploy"));
    }
}
