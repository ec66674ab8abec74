//! What a reference does to an unmount, by the mount tables alone.

use std::collections::HashSet;
use std::path::Path;

use crate::beneath;
use crate::mount::{Device, Mount};
use crate::namespace::MountNamespace;
use crate::proc;
use crate::propagation::{self, At, Fate, Fates, Table};
use crate::report::Effect;

/// The mounts of all namespaces that are known, and what is asked of them.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    /// Index into the first table, which is the caller's.
    pub(crate) target: Option<usize>,
    pub(crate) devices: Vec<Device>,
    pub(crate) tables: Vec<Table>,
    /// What becomes of them when the target is unmounted: [`Mounts::settle`].
    pub(crate) fates: Fates,
    /// There was no time for some of the tables.
    pub(crate) is_late: bool,
}

impl Mounts {
    /// Concludes from the tables that are there.
    pub(crate) fn settle(&mut self) {
        if let Some(mount) = self.target {
            self.fates = propagation::fates(&self.tables, At { table: 0, mount });
        }
    }

    /// All mounts that the report is about.
    pub(crate) fn related(&self) -> Vec<(At, Option<Fate>)> {
        if self.target.is_some() {
            return self.fates.all().into_iter().map(|(at, fate)| (at, Some(fate))).collect();
        }
        let devices = self.devices.iter();
        devices
            .flat_map(|&device| propagation::mounts_of(&self.tables, device))
            .map(|at| (at, None))
            .collect()
    }

    pub(crate) fn mount(&self, at: At) -> &Mount {
        &self.tables[at.table].mounts[at.mount]
    }

    /// Whether something is mounted of this device, or asked about.
    pub(crate) fn have(&self, device: Device) -> bool {
        self.devices.contains(&device)
            || self.tables.iter().flat_map(|table| &table.mounts).any(|mount| mount.device == device)
    }

    /// What a reference to the mount with this id does, and where that mount lies.
    pub(crate) fn effect_on(&self, id: u64, device: Device) -> (Effect, Option<MountNamespace>) {
        if let Some((at, fate)) = self.fates.of(id) {
            return (effect_of(fate), Some(self.tables[at.table].namespace));
        }
        if let Some(target) = self.target {
            let own = &self.tables[0];
            let submounts = propagation::submounts(&own.mounts, target);
            if submounts.iter().any(|&at| own.mounts[at].id == id) {
                return (Effect::BlocksSubmount, Some(own.namespace));
            }
        }
        let listed = self.tables.iter().find_map(|table| {
            Some((table.namespace, table.mounts.iter().find(|mount| mount.id == id)?.device))
        });
        match listed {
            Some((namespace, device)) if self.target.is_none() && self.devices.contains(&device) => {
                (Effect::KeepsSuperblock, Some(namespace))
            }
            Some((namespace, _)) => (Effect::Harmless, Some(namespace)),
            // Detached: in no namespace, unless that is one which there was no time for.
            None if self.is_late => (Effect::Unclear, None),
            None if self.devices.contains(&device) => (Effect::KeepsSuperblock, None),
            None => (Effect::Unclear, None),
        }
    }

    /// What a reference does of which only the path is known, as seen from the namespace it was made in.
    pub(crate) fn effect_at(&self, path: &Path, namespace: Option<MountNamespace>) -> Option<Effect> {
        let path = proc::without_deleted(path);
        let tables = self.tables.iter().filter(|table| namespace.is_none_or(|own| own == table.namespace));
        let mut effects: Vec<_> = tables
            .filter_map(|table| {
                let (at, _) = propagation::containing(&table.mounts, path)?;
                let (effect, _) = self.effect_on(table.mounts[at].id, table.mounts[at].device);
                Some(effect)
            })
            .filter(|effect| *effect != Effect::Harmless)
            .collect();
        effects.dedup();
        match effects[..] {
            [] => None,
            [effect] => Some(effect),
            _ => Some(Effect::Unclear),
        }
    }

    /// The same where the path is all there is, as somebody wrote it or the kernel shows it: if the directory that the mount
    /// covers has such a file, too, it may be that one.
    pub(crate) fn effect_by_path(&self, path: &Path, namespace: MountNamespace) -> Option<Effect> {
        let effect = self.effect_at(path, Some(namespace))?;
        let own = &self.tables[0].mounts;
        let (on, _) = propagation::containing(own, path)?;
        Some(if beneath::is_there(own, on, path) == Ok(false) { effect } else { Effect::Unclear })
    }

    /// What a reference does of which the kernel tells the file system, and not which of its mounts: that is the one at
    /// the path, as seen from the namespace it was made in or from another, or whichever, if they are all alike.
    pub(crate) fn effect_of_file(
        &self,
        device: Device,
        path: &Path,
        namespace: Option<MountNamespace>,
    ) -> Option<Effect> {
        let on_device = |mount: &&Mount| mount.device == device;
        let at_path = |table: &Table| {
            let at = propagation::containing(&table.mounts, path).filter(|_| path.is_absolute());
            at.map(|(at, _)| table.mounts[at].id)
        };
        let own = self.tables.iter().filter(|table| namespace == Some(table.namespace));
        let mounts: Vec<&Mount> =
            self.tables.iter().flat_map(|table| &table.mounts).filter(on_device).collect();
        let ids: [Vec<u64>; 3] = [
            own.filter_map(at_path).collect(),
            self.tables.iter().filter_map(at_path).collect(),
            mounts.iter().map(|mount| mount.id).collect(),
        ];
        let effects = ids.into_iter().map(|ids| -> HashSet<Effect> {
            let of_it = mounts.iter().filter(|mount| ids.contains(&mount.id));
            of_it.map(|mount| self.effect_on(mount.id, mount.device).0).collect()
        });
        let mut effects =
            effects.into_iter().find(|effects| !effects.is_empty()).unwrap_or_default().into_iter();
        match (effects.next(), effects.next()) {
            (None, _) => self.devices.contains(&device).then_some(Effect::KeepsSuperblock),
            (Some(Effect::Harmless), None) => None,
            (Some(effect), None) => Some(effect),
            (Some(_), Some(_)) => Some(Effect::Unclear),
        }
    }
}

fn effect_of(fate: Fate) -> Effect {
    match fate {
        Fate::Target | Fate::UnmountedAlong => Effect::BlocksUmount,
        Fate::Survives(_) => Effect::KeepsSuperblock,
    }
}
