//! What a run in virtual time is made of: all that its guest can see. Their hash names the run before it is run, and two runs
//! of one hash have the same recording.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use vm_agent::wire::{PROTOCOL, Put, Session};

use super::guest::Guest;
use super::input::{Difference, Input, Kind};
use crate::cache::{self, Key};
use crate::machine::config::Ram;

/// Goes up when a run comes to differ by something that is none of its inputs.
const RECIPE: u32 = 1;

/// All inputs of a run, in the order in which they have effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs(pub Vec<Input>);

impl Inputs {
    /// Of a session on a guest of the size that the guest's base says.
    ///
    /// # Errors
    /// If there is no saved machine of that size.
    pub fn of(guest: &Guest, session: &Session) -> Result<Self> {
        let base = &guest.base;
        let mut all = Self(Vec::new());
        all.add(Kind::Qemu, "version", &base.build.version);
        for (name, hash) in &base.build.files {
            all.add(Kind::Qemu, name, hash);
        }
        let clock = if base.abilities.still_clock { "stands still" } else { "is the host's" };
        all.add(Kind::Qemu, "its clock", clock);
        for (number, word) in base.neutral_argv(Ram::Restoring("ram".into())).iter().enumerate() {
            all.add(Kind::Argument, &number.to_string(), word);
        }
        all.0.extend(guest.explained.iter().filter(|one| one.kind == Kind::Package).cloned());
        all.add(Kind::Image, "contents", &base.root_key);
        all.0.extend(guest.explained.iter().filter(|one| one.kind == Kind::Program).cloned());
        all.add(Kind::Machine, "RAM and devices", &guest.saved()?.hash);
        // All of it by name, so that nothing that is added to a session is forgotten here.
        // Without its stop: up to there it is the run without one.
        let Session { files, user, setup, plan, stop: _ } = session;
        let mut paths = Vec::new();
        for file in files {
            let Put { path, mode, symlink, offset, last, bytes } = file;
            let kind = if *symlink { "link" } else { "file" };
            let part = if *offset == 0 && *last { String::new() } else { format!(" at {offset}, {last}") };
            // A later one replaces an earlier one of its path.
            let name = match paths.iter().filter(|known| *known == path).count() {
                0 => path.to_owned(),
                before => format!("{path} ({})", before + 1),
            };
            all.add(Kind::File, &name, &format!("{kind} {mode:o}{part} {}", cache::hash_bytes(bytes)));
            paths.push(path.to_owned());
        }
        // Not in the names, or a file more would be a change of all that follow.
        all.add(Kind::File, "order", &cache::hash_bytes(serde_json::to_string(&paths)?.as_bytes()));
        if let Some(user) = user {
            all.add(Kind::SetUp, "user", user);
        }
        for (number, argv) in setup.iter().enumerate() {
            all.add(Kind::SetUp, &number.to_string(), &serde_json::to_string(argv)?);
        }
        let plan = serde_json::to_value(plan)?;
        for (name, value) in plan.as_object().into_iter().flatten() {
            all.add(Kind::Plan, name, &value.to_string());
        }
        Ok(all)
    }

    /// And an end that the host makes, with these words of its own.
    ///
    /// # Errors
    /// None that is known: what has a form has a JSON.
    pub(super) fn ended_by_the_host(mut self, guest: &Guest, name: &str, words: &[&str]) -> Result<Self> {
        // The initramfs of the boot after a shutdown, which is in no saved RAM.
        let programs: Vec<&Input> = guest.explained.iter().filter(|one| one.kind == Kind::Program).collect();
        let argv = guest.base.neutral_argv(Ram::Fresh);
        let all = serde_json::to_string(&(words, programs, argv))?;
        self.add(Kind::End, name, &cache::hash_bytes(all.as_bytes()));
        Ok(self)
    }

    /// Whether two runs of these inputs are the same to the last event. One that the host ends is the same up to there: at which
    /// instant of the guest's time the host gets round to it is in no input.
    #[must_use]
    pub fn repeat(&self) -> bool {
        self.0.iter().all(|one| one.kind != Kind::End)
    }

    /// The number of cycles in the plan.
    #[must_use]
    pub fn cycles(&self) -> Option<u32> {
        let cycles = self.0.iter().find(|one| one.kind == Kind::Plan && one.name == "cycles")?;
        cycles.value.parse().ok()
    }

    fn add(&mut self, kind: Kind, name: &str, value: &str) {
        self.0.push(Input { kind, name: name.to_owned(), value: value.to_owned() });
    }

    /// The hash of all: the run's name before it is run.
    ///
    /// # Errors
    /// None that is known: what has a form has a JSON.
    pub fn key(&self) -> Result<Key> {
        let all: Vec<&Input> = self.0.iter().filter(|one| !one.kind.explains()).collect();
        let all = serde_json::to_string(&all).context("a run's inputs")?;
        let inputs = cache::Inputs::new("run", RECIPE).text("protocol", &PROTOCOL.to_string());
        Ok(inputs.text("inputs", &all).key())
    }

    /// What is not the same in another run's, in order: a kind, a name, the value here and there; `None` where there is no
    /// such input.
    #[must_use]
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<Difference<'a>> {
        // What explains may be missing on one side: an external image, a report of an older version.
        let in_both = |kind: Kind| {
            let has = |all: &Self| all.0.iter().any(|one| one.kind == kind);
            !kind.explains() || (has(self) && has(other))
        };
        let value = |all: &'a Self, one: &Input| {
            let found = all.0.iter().find(|it| (it.kind, &it.name) == (one.kind, &one.name));
            found.map(|it| it.value.as_str())
        };
        let here = self.0.iter().filter(|one| value(other, one) != Some(&one.value));
        let here = here.map(|one| Difference {
            kind: one.kind,
            name: &one.name,
            here: Some(&one.value),
            there: value(other, one),
        });
        let there = other.0.iter().filter(|one| value(self, one).is_none());
        let there = there.map(|one| Difference {
            kind: one.kind,
            name: &one.name,
            here: None,
            there: Some(&one.value),
        });
        let mut all: Vec<_> = here.chain(there).filter(|difference| in_both(difference.kind)).collect();
        all.sort_by_key(|difference| difference.kind);
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use vm_agent::recording::Plan;

    use super::*;
    use crate::host::accel::{Accel, Clock};
    use crate::machine::base::Base;
    use crate::machine::config::Abilities;
    use crate::machine::qemu::Build;
    use crate::machine::saved::Saved;

    /// A guest that nobody can start.
    pub(in crate::run) fn guest() -> Guest {
        let base = Base {
            qemu: "false".into(),
            build: Build {
                version: "QEMU 7.2".to_owned(),
                files: BTreeMap::from([("bios.bin".to_owned(), "b105".to_owned())]),
            },
            abilities: Abilities { private_readonly: true, fast_strings: true, still_clock: true },
            root: "root".into(),
            root_key: "root of trixie".to_owned(),
            root_bytes: 0,
            kernel: "kernel".into(),
            initramfs: "initramfs".into(),
            accel: Accel::Tcg,
            clock: Clock::Virtual,
            memory_mib: crate::scenario::DEFAULT_MEMORY_MIB,
            seed: 1,
        };
        let saved = Saved { ram: "ram".into(), state: "state".into(), hash: "5a7ed".to_owned() };
        Guest {
            name: "trixie".to_owned(),
            lock: None,
            packages: Vec::new(),
            saved: BTreeMap::from([(base.memory_mib, saved)]),
            base,
            image: "Debian".to_owned(),
            explained: Vec::new(),
            choice: "TCG".to_owned(),
            installed: None,
            programs: BTreeMap::new(),
        }
    }

    fn session() -> Session {
        let file = |path: &str, text: &str| Put {
            path: path.to_owned(),
            mode: 0o644,
            symlink: false,
            offset: 0,
            last: true,
            bytes: text.as_bytes().to_vec(),
        };
        Session {
            files: vec![file("/a", "a file"), file("/b", "another")],
            setup: vec![vec!["mkdir".to_owned(), "/x".to_owned()]],
            user: None,
            plan: Some(Plan::default()),
            ..Session::default()
        }
    }

    /// What one of them is changed by: a byte of a file, a key of the manifest, the guest's own programs and kernel (which are
    /// in the saved machine), QEMU.
    #[test]
    fn a_change_of_any_input_is_another_run() {
        type Change = fn(&mut Guest, &mut Session);
        let changes: [(Kind, Change); 18] = [
            (Kind::SetUp, |_, session| session.user = Some("u".to_owned())),
            (Kind::File, |_, session| session.files[0].bytes[0] ^= 1),
            (Kind::File, |_, session| session.files[0].mode = 0o755),
            (Kind::File, |_, session| session.files[0].symlink = true),
            (Kind::File, |_, session| session.files[0].path.push('x')),
            (Kind::File, |_, session| session.files.reverse()),
            (Kind::File, |_, session| session.files.truncate(1)),
            (Kind::SetUp, |_, session| session.setup[0].push("y".to_owned())),
            (Kind::SetUp, |_, session| session.setup[0] = vec!["mkdir /x".to_owned()]),
            (Kind::Plan, |_, session| session.plan.iter_mut().for_each(|plan| plan.cycles += 1)),
            (Kind::Plan, |_, session| session.plan = None),
            (Kind::Machine, |guest, _| guest.saved.values_mut().for_each(|saved| saved.hash.push('x'))),
            (Kind::Image, |guest, _| guest.base.root_key.push('x')),
            (Kind::Argument, |guest, _| guest.base.seed += 1),
            (Kind::Argument, |guest, _| guest.base.abilities.fast_strings = false),
            (Kind::Qemu, |guest, _| guest.base.abilities.still_clock = false),
            (Kind::Qemu, |guest, _| guest.base.build.version.push('x')),
            (Kind::Qemu, |guest, _| guest.base.build.files.values_mut().for_each(|hash| hash.push('x'))),
        ];
        let of = |guest: &Guest, session: &Session| Inputs::of(guest, session).expect("inputs");
        let before = of(&guest(), &session());
        let mut keys = vec![before.key().expect("key").as_str().to_owned()];
        assert!(before.differences(&of(&guest(), &session())).is_empty());
        for (number, (kind, change)) in changes.into_iter().enumerate() {
            let (mut guest, mut session) = (guest(), session());
            change(&mut guest, &mut session);
            let after = of(&guest, &session);
            let key = after.key().expect("key").as_str().to_owned();
            assert!(!keys.contains(&key), "change {number} of {kind} is none");
            keys.push(key);
            let differences = before.differences(&after);
            assert_eq!(differences.first().map(|one| one.kind), Some(kind), "{number}: {differences:?}");
        }
    }

    #[test]
    fn what_explains_a_difference_is_named_before_it_and_is_no_other_run() {
        let with = |version: &str| {
            let mut guest = guest();
            let package = |name: &str, value: &str| Input {
                kind: Kind::Package,
                name: name.to_owned(),
                value: value.to_owned(),
            };
            guest.explained = vec![package("libc6", "2.41"), package("systemd", version)];
            Inputs::of(&guest, &session()).expect("inputs")
        };
        let (one, other) = (with("257.8"), with("257.9"));
        assert_eq!(one.key().expect("key"), other.key().expect("key"));
        let lines: Vec<String> = one.differences(&other).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["package of the image systemd: 257.8 -> 257.9"]);
        let without = Inputs::of(&guest(), &session()).expect("inputs");
        assert!(one.differences(&without).is_empty() && without.differences(&one).is_empty());
    }

    #[test]
    fn a_difference_is_a_line() {
        let (guest, mut other) = (guest(), session());
        other.files[0].bytes.push(b'x');
        let inputs = [session(), other].map(|session| Inputs::of(&guest, &session).expect("inputs"));
        let lines: Vec<String> = inputs[0].differences(&inputs[1]).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["file /a: file 644 7365d029861e -> file 644 c46e5f9a62cc"]);
    }
}
