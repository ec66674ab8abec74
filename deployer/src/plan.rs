//! What a deploy would change, looked up without changing anything.

use std::fs;

use anyhow::{Context as _, Result};
use similar::TextDiff;

use crate::facts::Facts;
use crate::host::Host;
use crate::links::{self, Place};
use crate::servers::{self, Servers};
use crate::state::{self, Pending};
use crate::store;
use crate::wire::{
    Entry, Id, Item, Manifest, OVERLAY_UNIT, Plan, Refusal, SERVER_UNIT, Target, What, Word, sum,
};

/// Where a unit hides one of ours: systemd.unit(5), the search path before `/usr/local/lib`.
const BEFORE_OURS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// The longest text whose diff is shown, in bytes.
const LONGEST: u64 = 256 << 10;

/// What the host has now.
#[derive(Debug, Clone)]
pub struct Before {
    /// The version; what was unpacked by hand counts as one. None, no version at all.
    pub manifest: Option<Manifest>,
    /// Whether it has to be kept as a version first.
    pub is_by_hand: bool,
}

impl Before {
    /// Of this host, as far as it is about these paths.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn look(host: &Host, paths: &std::collections::BTreeSet<String>) -> Result<Self> {
        let current = store::current(host)?;
        if !links::files(host, paths)?.is_empty() {
            // All that is seen at the places: an archive may have been unpacked over a deploy.
            let seen: Vec<String> = paths.iter().filter(|path| host.at(path).is_file()).cloned().collect();
            return Ok(Self { manifest: Some(store::adoptable(host, &seen)?), is_by_hand: true });
        }
        let manifest = match &current {
            Some(id) => Some(
                store::manifest(host, id)?
                    .with_context(|| format!("version {id} is in use and has no manifest"))?,
            ),
            None => None,
        };
        Ok(Self { manifest, is_by_hand: false })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> Option<Id> {
        self.manifest.as_ref().map(Manifest::id)
    }
}

/// A version that is meant, found.
#[derive(Debug)]
struct Wanted<'a> {
    /// None, no version at all.
    manifest: Option<Manifest>,
    texts: Option<&'a std::collections::BTreeMap<String, String>>,
}

/// Makes a plan.
///
/// # Errors
/// The host can't be looked at.
pub fn make(host: &Host, target: &Target) -> Result<Plan> {
    let log = state::read_log(host)?;
    let current = store::current(host)?;
    let wanted = match target {
        Target::New { manifest, texts } => {
            store::check(manifest)?;
            Wanted { manifest: Some(manifest.clone()), texts: Some(texts) }
        }
        Target::Back(number) => {
            let all = state::back(&log, current.as_ref());
            let Some(id) = all.get(usize::try_from(*number)?) else {
                let last = all.len().saturating_sub(1);
                let next = match last {
                    0 => "cargo xtask deploy HOST --history shows what was deployed".to_owned(),
                    last => format!("cargo xtask deploy HOST --rollback {last} is the furthest"),
                };
                let why = format!("there is no version {number} before the current one");
                return refused(host, Refusal::new(why, next));
            };
            let manifest = match id {
                None => None,
                Some(id) => match store::manifest(host, id)? {
                    Some(manifest) => Some(manifest),
                    None => {
                        let why = format!("version {id} is not on the host any more");
                        let next = "check its commit out and deploy it: cargo xtask deploy HOST";
                        return refused(host, Refusal::new(why, next));
                    }
                },
            };
            Wanted { manifest, texts: None }
        }
    };
    let mut plan = of(host, &wanted, &log)?;
    plan.refusals.extend(state::holder(host).map(|who| held_by(&who)));
    Ok(plan)
}

/// Another deploy has the lock.
pub(crate) fn held_by(who: &str) -> Refusal {
    let next = "wait for its end; what became of it: cargo xtask deploy HOST --history";
    Refusal::new(format!("the host is being deployed to by {who}"), next)
}

/// As [`make`], of a version that is on the host, or of none: what an apply makes, which
/// has the lock, to see whether all is as it was planned.
///
/// # Errors
/// As [`make`].
pub fn again(host: &Host, to: Option<&Id>) -> Result<Plan> {
    let manifest = match to {
        Some(id) => {
            Some(store::manifest(host, id)?.with_context(|| format!("version {id} is not on the host"))?)
        }
        None => None,
    };
    of(host, &Wanted { manifest, texts: None }, &state::read_log(host)?)
}

fn refused(host: &Host, refusal: Refusal) -> Result<Plan> {
    let current = store::current(host)?.unwrap_or_else(|| "nothing".to_owned());
    Ok(Plan {
        host: String::new(),
        from: current,
        to: "unknown".to_owned(),
        to_id: None,
        items: Vec::new(),
        instances: Vec::new(),
        reloads: Vec::new(),
        refusals: vec![refusal],
        missing: Vec::new(),
        is_nothing: false,
        digest: String::new(),
    })
}

fn of(host: &Host, wanted: &Wanted<'_>, log: &[Entry]) -> Result<Plan> {
    let facts = Facts::read(host)?;
    let paths = links::known(host, wanted.manifest.as_ref())?;
    let before = Before::look(host, &paths)?;
    let servers = servers::look(host)?;
    let mut refusals = in_the_way(host, &facts, &before, wanted.manifest.as_ref(), &servers)?;
    let mut items = Vec::new();
    for path in &paths {
        let item = item(host, path, &before, wanted)?;
        if item.word == Word::Refused {
            let next = format!("move it away, then deploy again: mv {path} {path}.old");
            refusals.push(Refusal::new(format!("{path} is {}", item.note), next));
        }
        // What neither has is of a third version.
        if item.word != Word::Same || has(&before, path) || wants(wanted, path) {
            items.push(item);
        }
    }
    if let Some(manifest) = &wanted.manifest {
        for what in facts.against(manifest).1 {
            items.push(Item { what: "host".to_owned(), word: Word::Unknown, note: what, diff: None });
        }
    }
    let to = name(wanted.manifest.as_ref());
    let from = match before.is_by_hand {
        true => "files that were unpacked by hand".to_owned(),
        false => name(before.manifest.as_ref()),
    };
    let instances = servers
        .iter()
        .filter_map(|(unit, is)| instance(host, unit, is, log, &to).transpose())
        .collect::<Result<_>>()?;
    let is_nothing = !before.is_by_hand
        && before.id() == wanted.manifest.as_ref().map(Manifest::id)
        && items.iter().all(|item| item.word != Word::Change);
    let mut plan = Plan {
        host: format!(
            "{}, systemd {}, Linux {}.{}",
            facts.system, facts.systemd, facts.kernel.0, facts.kernel.1
        ),
        from,
        to,
        to_id: wanted.manifest.as_ref().map(Manifest::id),
        reloads: if is_nothing { Vec::new() } else { reloads(wanted.manifest.as_ref()) },
        missing: wanted
            .manifest
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |manifest| store::missing(host, manifest))?,
        items,
        instances,
        refusals,
        is_nothing,
        digest: String::new(),
    };
    let words: Vec<_> = plan.items.iter().map(|item| (&item.what, item.word, &item.note)).collect();
    plan.digest = sum(&serde_json::to_vec(&(&plan.from, before.id(), &plan.to_id, words))?);
    Ok(plan)
}

fn has(before: &Before, path: &str) -> bool {
    before.manifest.as_ref().is_some_and(|manifest| manifest.files.contains_key(path))
}

fn wants(wanted: &Wanted<'_>, path: &str) -> bool {
    wanted.manifest.as_ref().is_some_and(|manifest| manifest.files.contains_key(path))
}

/// A version in words.
#[must_use]
pub fn name(manifest: Option<&Manifest>) -> String {
    manifest.map_or_else(|| "nothing".to_owned(), Manifest::name)
}

/// What is run after the switch, in the order in which it is run.
#[must_use]
pub fn reloads(to: Option<&Manifest>) -> Vec<String> {
    let mut all = Vec::new();
    for path in to.iter().flat_map(|manifest| manifest.files.keys()) {
        if path.starts_with("/usr/local/lib/sysusers.d/") {
            all.insert(0, format!("systemd-sysusers {path}"));
        } else if path.starts_with("/usr/local/lib/tmpfiles.d/") {
            all.push(format!("systemd-tmpfiles --create {path}"));
        }
    }
    all.push("systemctl daemon-reload".to_owned());
    all
}

/// What keeps a deploy from being begun.
fn in_the_way(
    host: &Host,
    facts: &Facts,
    before: &Before,
    to: Option<&Manifest>,
    servers: &Servers,
) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    if let Some(version) = &facts.package {
        let why = format!("the host has the package left4me {version}, which dpkg upgrades");
        let next = "upgrade it: cargo xtask dist, then apt install ./left4me_VERSION_amd64.deb on the host; or change \
                    over: l4d2ctl stop --all, apt remove left4me, and deploy again (instances and layers stay)";
        refusals.push(Refusal::new(why, next));
    }
    if let Some(pending) = Pending::read(host)? {
        let why = format!("a deploy is on trial: {}", pending.words());
        let next =
            "wait until it is confirmed or put back; to put it back now: cargo xtask deploy HOST --put-back";
        refusals.push(Refusal::new(why, next));
    }
    for (directory, unit) in
        BEFORE_OURS.iter().flat_map(|directory| [(directory, SERVER_UNIT), (directory, OVERLAY_UNIT)])
    {
        let name = unit.rsplit_once('/').map_or(unit, |(_, name)| name);
        if host.at(directory).join(name).exists() {
            let why = format!("{directory}/{name} hides the version's own unit");
            let next = format!(
                "keep your changes as a drop-in (systemctl edit {name}) and remove {directory}/{name}"
            );
            refusals.push(Refusal::new(why, next));
        }
    }
    refusals.extend(to.map(|manifest| facts.against(manifest).0).unwrap_or_default());
    let units = || servers.keys().cloned().collect::<Vec<_>>().join(", ");
    let stop = "stop them, and deploy again: l4d2ctl stop --all";
    match (&before.manifest, to) {
        _ if servers.is_empty() => {}
        (Some(_), None) => {
            refusals.push(Refusal::new(
                format!("without left4me nothing would unmount what runs: {}", units()),
                stop,
            ));
        }
        (Some(from), Some(to)) if from.interface != to.interface => {
            let why = format!(
                "the new version can't stop what the old one has started (interface {} and {}): {}",
                to.interface,
                from.interface,
                units()
            );
            refusals.push(Refusal::new(why, stop));
        }
        _ => {}
    }
    Ok(refusals)
}

fn item(host: &Host, path: &str, before: &Before, wanted: &Wanted<'_>) -> Result<Item> {
    let make = |word, note: String, diff| Item { what: path.to_owned(), word, note, diff };
    let place = links::look(host, path)?;
    let old = before.manifest.as_ref().and_then(|manifest| manifest.files.get(path));
    let new = wanted.manifest.as_ref().and_then(|manifest| manifest.files.get(path));
    if let Place::Foreign(what) = place {
        return Ok(match new {
            Some(_) => make(Word::Refused, what, None),
            None => make(Word::Same, format!("{what}, and not touched"), None),
        });
    }
    Ok(match (old, new) {
        (None, None) => make(Word::Same, "in neither version".to_owned(), None),
        (None, Some(new)) => {
            make(Word::Change, format!("new, mode {:o}, {} bytes", new.mode, new.size), None)
        }
        (Some(_), None) => make(Word::Change, "removed".to_owned(), None),
        (Some(old), Some(new)) if old == new => match place {
            Place::Ours => make(Word::Same, String::new(), None),
            Place::Free => make(Word::Change, "its link is missing".to_owned(), None),
            _by_hand => make(Word::Change, "the same bytes, as a link to the version".to_owned(), None),
        },
        (Some(old), Some(new)) if old.sha256 == new.sha256 => {
            make(Word::Change, format!("mode {:o}, was {:o}", new.mode, old.mode), None)
        }
        (Some(old), Some(new)) => {
            let note = format!("{} bytes, were {}", new.size, old.size);
            make(Word::Change, note, diff(host, path, old.size.max(new.size), wanted)?)
        }
    })
}

/// The diff of a text, as it is seen at its path, to what it will be.
fn diff(host: &Host, path: &str, size: u64, wanted: &Wanted<'_>) -> Result<Option<String>> {
    if size > LONGEST {
        return Ok(None);
    }
    let Ok(old) = fs::read_to_string(host.at(path)) else { return Ok(None) };
    let new = match (wanted.texts, &wanted.manifest) {
        (Some(texts), _) => texts.get(path).cloned(),
        (None, Some(manifest)) => fs::read_to_string(host.in_version(&manifest.id(), path)).ok(),
        (None, None) => None,
    };
    let Some(new) = new else { return Ok(None) };
    let diff = TextDiff::from_lines(&old, &new);
    Ok(Some(diff.unified_diff().context_radius(2).header(path, path).to_string()))
}

/// What a running server has, and will have. Its overlay's unit is told with it.
fn instance(host: &Host, unit: &str, is: &servers::Unit, log: &[Entry], to: &str) -> Result<Option<Item>> {
    if !unit.starts_with("left4me-server@") && is.active != "failed" {
        return Ok(None);
    }
    let now = match running(log, &state::boot(), is.since_boot_us) {
        Some(Some(id)) => Some(match store::manifest(host, &id)? {
            Some(manifest) => manifest.name(),
            None => id,
        }),
        Some(None) | None => None,
    };
    let word = match &now {
        None => Word::Unknown,
        Some(now) if now == to => Word::Same,
        Some(_) => Word::Change,
    };
    let now = now.unwrap_or_else(|| "a version that no deploy has brought".to_owned());
    let note = format!("{}, runs {now}, after its next start {to}", is.active);
    Ok(Some(Item { what: unit.to_owned(), word, note, diff: None }))
}

/// The version that was in use at a moment of this boot, by the log: moments of a boot, as a clock may be set. `None` if no log
/// goes so far.
fn running(log: &[Entry], boot: &str, since_boot_us: u64) -> Option<Option<Id>> {
    let switches = log.iter().filter(|entry| entry.what != What::Confirmed);
    let is_before = |entry: &&Entry| entry.boot != boot || entry.since_boot_ns / 1000 <= since_boot_us;
    match switches.clone().rfind(is_before) {
        Some(entry) => Some(entry.to.clone()),
        None => switches.clone().next().map(|first| first.from.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(what: What, boot: &str, at: u64, from: Option<&str>, to: &str) -> Entry {
        Entry {
            what,
            at: 0,
            boot: boot.to_owned(),
            since_boot_ns: at * 1000,
            token: String::new(),
            by: String::new(),
            from: from.map(str::to_owned),
            to: Some(to.to_owned()),
            note: String::new(),
        }
    }

    #[test]
    fn what_a_server_runs_is_what_was_in_use_when_it_started() {
        let log = [
            entry(What::Switch, "one", 900, Some("0"), "a"),
            entry(What::Confirmed, "one", 950, Some("0"), "a"),
            entry(What::Switch, "two", 100, Some("a"), "b"),
            entry(What::PutBack, "two", 200, Some("a"), "a"),
            entry(What::Switch, "two", 300, Some("a"), "c"),
        ];
        let of = |boot, at| running(&log, boot, at).flatten().unwrap_or_default();
        let found = [of("two", 50), of("two", 150), of("two", 250), of("two", 350), of("three", 1)];
        assert_eq!(found, ["a", "b", "a", "c", "c"]);
        assert_eq!(running(&log[..2], "one", 10), Some(Some("0".to_owned())));
        assert_eq!(running(&[], "one", 10), None);
    }

    #[test]
    fn users_come_before_directories_and_systemd_last() {
        let mut files = std::collections::BTreeMap::new();
        let file = crate::wire::File { mode: 0o644, size: 1, sha256: String::new() };
        for path in ["/usr/local/lib/tmpfiles.d/left4me.conf", "/usr/local/lib/sysusers.d/left4me.conf"] {
            files.insert(path.to_owned(), file.clone());
        }
        let any = ((0, 0), (9, 9));
        let manifest =
            Manifest { version: "1".to_owned(), interface: 1, systemd: (1, 2), kernel: any, files };
        let words: Vec<String> = reloads(Some(&manifest))
            .iter()
            .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(words, ["systemd-sysusers", "systemd-tmpfiles", "systemctl"]);
        assert_eq!(reloads(None), ["systemctl daemon-reload"]);
    }
}
