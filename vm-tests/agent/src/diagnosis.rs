//! What `holders` says of the watched mount at one moment, as the recording keeps it: the harness has no diagnosis of its
//! own.

use std::time::Duration;

use crate::recording::{Blocker, Diagnosis, Found, Kind, Namespace, Role, Why};
use holders::Report;
use holders::report::{Effect, Person};

impl Diagnosis {
    /// Of a report; `role` is that of a process, by its id and its cgroup.
    #[must_use]
    pub fn of(report: &Report, why: Why, cost_ns: u64, role: impl Fn(u32, &str) -> Role) -> Self {
        let wanted = if report.mount.is_some() { Effect::BlocksUmount } else { Effect::KeepsSuperblock };
        let mut blockers: Vec<Blocker> = Vec::new();
        for holder in &report.holders {
            let mut kinds: Vec<Kind> = holder
                .references
                .iter()
                .filter(|held| held.effect == wanted)
                .map(|held| kind(held.kind))
                .collect();
            if kinds.is_empty() {
                continue;
            }
            // Its threads say the same again.
            if let Some(known) = blockers.iter_mut().find(|known| known.pid == holder.pid) {
                known.kinds.append(&mut kinds);
                continue;
            }
            let person = holder.person.as_ref();
            blockers.push(Blocker {
                pid: holder.pid,
                comm: holder.comm.clone(),
                role: role(holder.pid, &holder.cgroup),
                unit: holder.unit.clone().unwrap_or_default(),
                namespace: holder.namespace.map_or(Namespace { inode: 0, id: None }, |namespace| Namespace {
                    inode: namespace.inode,
                    id: namespace.id,
                }),
                kinds,
                command: person.map(|person| person.command.clone()).unwrap_or_default(),
                user: person.map(|person| person.user.clone()).unwrap_or_default(),
                age_secs: person.map_or(0, |person| person.age.as_secs()),
            });
        }
        for blocker in &mut blockers {
            blocker.kinds.sort_unstable();
            blocker.kinds.dedup();
        }
        let found = Found::of(&report.verdict());
        Self { why, cost_ns, found, line: report.line(), advice: report.told(), blockers }
    }
}

impl Found {
    /// The recorder is root, in the first pid namespace: what it was not shown is recorded as lost, and no verdict.
    fn of(verdict: &holders::Verdict) -> Self {
        use holders::Verdict;
        match verdict.of_what_was_seen() {
            Verdict::HeldByYourself { .. } | Verdict::HeldByProcess { .. } => Self::HeldByProcess,
            Verdict::HeldByKernel { .. } => Self::HeldByKernel,
            Verdict::Submounts { .. } => Self::Submounts,
            Verdict::Outlives { .. } => Self::Outlives,
            Verdict::AliveElsewhere { .. } => Self::AliveElsewhere,
            Verdict::OnlyListed { .. } => Self::OnlyListed,
            Verdict::NotMounted { .. } => Self::NotMounted,
            Verdict::Free => Self::Free,
            // The others are those that `of_what_was_seen` looks through.
            _ => Self::NotVisible,
        }
    }
}

impl Blocker {
    /// As one line: `scratch-indexer.service: sleep 600 (working directory), pid 181 of root for 12 s`.
    #[must_use]
    pub fn named(&self) -> String {
        let unit = Some(self.unit.as_str()).filter(|unit| !unit.is_empty());
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.in_words().to_owned()).collect();
        let command = if self.command.is_empty() { &self.comm } else { &self.command };
        let age = Duration::from_secs(self.age_secs);
        Person { command: command.clone(), user: self.user.clone(), age }.named(unit, &kinds, self.pid)
    }
}

fn kind(kind: holders::report::Kind) -> Kind {
    use holders::report::Kind as Seen;
    match kind {
        Seen::Cwd => Kind::Cwd,
        Seen::Root => Kind::Root,
        Seen::Exe => Kind::Exe,
        Seen::File { .. } => Kind::File,
        Seen::Mapping => Kind::Mapping,
        Seen::Socket { .. } => Kind::Socket,
        Seen::Call { .. } => Kind::Call,
        Seen::RegisteredFile { .. } => Kind::IoUring,
    }
}
