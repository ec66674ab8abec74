//! What is looked at before a version is used: its bytes, its programs, its units.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::host::{Host, command, durable};
use crate::store;
use crate::wire::{CONTROL, DEPLOYER, HELPER, Id, Manifest, OVERLAY_UNIT, SERVER_UNIT};

/// Of one program, or of all units.
const LIMIT: Duration = Duration::from_secs(30);

/// What is wrong with a version that is on the host; nothing, if it may be used.
///
/// # Errors
/// It can't be looked at.
pub fn version(host: &Host, id: &Id, manifest: &Manifest) -> Result<Vec<String>> {
    let mut wrong = store::damage(host, id, manifest)?;
    for path in [HELPER, CONTROL, DEPLOYER].into_iter().filter(|path| manifest.files.contains_key(*path)) {
        let at = host.in_version(id, path);
        let at = at.to_str().context("a version's path is UTF-8")?;
        match command::run(&[at, "--version"], &[], Instant::now() + LIMIT) {
            Ok(ended) if ended.status.success() => {}
            Ok(ended) => {
                wrong.push(format!("{path} does not run: {}: {}", ended.status, command::said(&ended)))
            }
            Err(error) => wrong.push(format!("{path} does not run: {error:#}")),
        }
    }
    wrong.extend(units(host, id)?);
    Ok(wrong)
}

/// What systemd has against the units. They are looked at with the version's own programs in their paths: on a first deploy there
/// are no others. What a server runs comes from its installation, and is not looked at.
fn units(host: &Host, id: &Id) -> Result<Vec<String>> {
    // Below /run: in memory.
    let directory = host.at("/run/left4me-deploy-verify");
    durable::remove_tree(&directory)?;
    durable::directories(&directory)?;
    let mut paths = Vec::new();
    for unit in [SERVER_UNIT, OVERLAY_UNIT] {
        let from = host.in_version(id, unit);
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        let programs = host.in_version(id, "/usr/local/libexec/left4me/");
        let text = text.replace("/usr/local/libexec/left4me/", &format!("{}/", programs.display()));
        let text = text.replace("=/var/lib/left4me/runtime/%i/merged/srcds_run", "=/bin/true");
        let name = unit.rsplit_once('/').map_or(unit, |(_, name)| name);
        let at = directory.join(name);
        fs::write(&at, text).with_context(|| format!("write {}", at.display()))?;
        paths.push(at.to_string_lossy().into_owned());
    }
    // The one that requires the other is enough to have both looked at; each once, as an instance.
    let instances: Vec<String> = paths.iter().map(|path| path.replace("@.", "@deploy-canary.")).collect();
    let mut argv = vec!["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"];
    for (instance, path) in instances.iter().zip(&paths) {
        fs::rename(path, instance).with_context(|| format!("rename {path}"))?;
        argv.push(instance);
    }
    let path = format!("{}:", directory.display());
    let ended = command::run(
        &argv,
        &[("SYSTEMD_UNIT_PATH", &path), ("SYSTEMD_LOG_LEVEL", "warning")],
        Instant::now() + LIMIT,
    )?;
    durable::remove_tree(&directory)?;
    let said = command::said(&ended);
    Ok(if ended.status.success() && said.is_empty() {
        Vec::new()
    } else {
        vec![format!("its units: {said}")]
    })
}
