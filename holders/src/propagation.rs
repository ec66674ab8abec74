//! Which mounts an unmount asks, and what becomes of the copies: a fold over the mount tables of all namespaces.
//!
//! `umount2(2)` of a mount asks that mount, and at each mount to which its *parent* propagates the mount at the
//! same place, whether anything refers to it (`fs/pnode.c:propagate_mount_busy`). One that is in use makes the
//! call fail with EBUSY, whosever namespace it is in. Not asked are: a private copy, a copy that was moved away
//! or bound elsewhere, and a copy with a mount of its own on it (unless that covers it wholly); these survive.
//! That a namespace has a copy is no reference to it.
//!
//! Pure: mount tables in, answers out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::mountinfo::{Device, Mount};
use crate::namespace::MountNamespace;

/// The mount table of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Whose it is.
    pub namespace: MountNamespace,
    /// As mountinfo lists them, with mount points as seen from the namespace's own root directory.
    pub mounts: Vec<Mount>,
}

/// What an unmount of the target does with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is the mount that is to be unmounted.
    Target,
    /// Propagation reaches it: a reference to it blocks the unmount, and without one it is unmounted along.
    UnmountedAlong,
    /// Nothing reaches it: references to it block nothing, and it keeps the superblock alive.
    Survives(Reason),
}

/// Why an unmount does not reach a mount of the same file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The mount that it lies on does not receive from the target's parent: it is private, or in another peer
    /// group.
    NotPropagated,
    /// It lies elsewhere than the target: bound, moved, or mounted anew.
    Elsewhere,
    /// It would be reached, but has a mount of its own on it, so that the kernel leaves it.
    HasSubmount,
}

/// A mount of one of the tables, by its place in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct At {
    /// Index of the table.
    pub table: usize,
    /// Index of the mount in it.
    pub mount: usize,
}

/// The fate of every mount that has to do with the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    by_id: HashMap<u64, (At, Fate)>,
}

impl Fates {
    /// Where the mount with this id is, and its fate.
    #[must_use]
    pub fn of(&self, mount_id: u64) -> Option<(At, Fate)> {
        self.by_id.get(&mount_id).copied()
    }

    /// All of them, in the order of the tables.
    #[must_use]
    pub fn all(&self) -> Vec<(At, Fate)> {
        let mut all: Vec<_> = self.by_id.values().copied().collect();
        all.sort_by_key(|(at, _)| (at.table, at.mount));
        all
    }
}

/// The mount that is visible at exactly `path`, an absolute path without symbolic links; `None` if it is no mount
/// point. Found by walking down the tree: the last line for a path is not always the visible one.
#[must_use]
pub fn visible_at(mounts: &[Mount], path: &Path) -> Option<usize> {
    let (at, exact) = containing(mounts, path)?;
    exact.then_some(at)
}

/// The mount that `path` lies on, and whether it is its mount point.
#[must_use]
pub fn containing(mounts: &[Mount], path: &Path) -> Option<(usize, bool)> {
    let ids: HashSet<u64> = mounts.iter().map(|mount| mount.id).collect();
    // The root's parent is itself, or not in the table.
    let mut at = mounts.iter().position(|mount| {
        mount.mount_point == Path::new("/") && (mount.parent == mount.id || !ids.contains(&mount.parent))
    })?;
    let on = |at: usize, point: &Path| {
        mounts.iter().position(|mount| {
            mount.parent == mounts[at].id && mount.id != mounts[at].id && mount.mount_point == point
        })
    };
    let mut point = PathBuf::from("/");
    let mut is_mount_point = true;
    // A table can't be deeper than it is long; a broken one could have a cycle.
    let mut steps = mounts.len();
    let mut climb = |at: &mut usize, point: &Path| {
        let mut climbed = false;
        while let Some(next) = on(*at, point) {
            if steps == 0 {
                break;
            }
            steps -= 1;
            *at = next;
            climbed = true;
        }
        climbed
    };
    climb(&mut at, &point);
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                point.push(name);
                is_mount_point = climb(&mut at, &point);
            }
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some((at, is_mount_point))
}

/// The fates of all mounts of the target's file system, and of whatever else lies where propagation would
/// unmount. If the target is a bind mount of a directory, of all mounts of that directory or of one below it: that
/// the file system has others is then a matter of course.
#[must_use]
pub fn fates(tables: &[Table], target: At) -> Fates {
    let mount = &tables[target.table].mounts[target.mount];
    let mut fates = Fates::default();
    let receivers = receivers(tables, target);
    let groups = mount.propagation.shared.map(|group| receiving(tables, group)).unwrap_or_default();
    for (table, others) in tables.iter().enumerate() {
        for (index, other) in others.mounts.iter().enumerate() {
            if other.device == mount.device && other.root.starts_with(&mount.root) {
                let fate = if is_propagated_copy(others, other, &groups) {
                    Fate::UnmountedAlong
                } else {
                    Fate::Survives(reason(&receivers, tables, target, table, other))
                };
                fates.by_id.insert(other.id, (At { table, mount: index }, fate));
            }
        }
    }
    for receiver in &receivers {
        let mounts = &tables[receiver.table].mounts;
        let Some(copy) = mounts.iter().position(|copy| {
            copy.parent == receiver.parent && copy.id != receiver.parent && copy.mount_point == receiver.place
        }) else {
            continue;
        };
        let at = At { table: receiver.table, mount: copy };
        let fate = if has_partial_cover(mounts, copy) {
            Fate::Survives(Reason::HasSubmount)
        } else {
            Fate::UnmountedAlong
        };
        fates.by_id.insert(mounts[copy].id, (at, fate));
    }
    fates.by_id.insert(mount.id, (target, Fate::Target));
    fates
}

/// The mounts that lie on the target or below it, in the order of the table. One of them is enough for EBUSY.
#[must_use]
pub fn submounts(mounts: &[Mount], target: usize) -> Vec<usize> {
    let mut inside = HashSet::from([mounts[target].id]);
    let mut found = HashSet::new();
    // A child can stand before its parent in the table of a kernel that sorts by age.
    loop {
        let before = found.len();
        for (at, mount) in mounts.iter().enumerate() {
            if inside.contains(&mount.parent) && mount.id != mounts[target].id && found.insert(at) {
                inside.insert(mount.id);
            }
        }
        if found.len() == before {
            let mut found: Vec<_> = found.into_iter().collect();
            found.sort_unstable();
            return found;
        }
    }
}

/// Where a copy of the target is looked for: on the mount `parent`, at `place`.
struct Receiver {
    table: usize,
    parent: u64,
    place: PathBuf,
}

/// For a table that does not show the mount below the copy, as that of a task whose root directory the copy is:
/// the copy's own peer group then says that it was made by propagation. That it was not moved since is assumed.
fn is_propagated_copy(table: &Table, copy: &Mount, groups: &HashSet<u64>) -> bool {
    let shows_parent = table.mounts.iter().any(|mount| mount.id == copy.parent);
    let group = copy.propagation.shared.or(copy.propagation.master);
    !shows_parent && copy.mount_point != Path::new("/") && group.is_some_and(|group| groups.contains(&group))
}

/// The peer group and all that receive from it.
fn receiving(tables: &[Table], group: u64) -> HashSet<u64> {
    let mut groups = HashSet::from([group]);
    loop {
        let mounts = tables.iter().flat_map(|table| &table.mounts);
        let receiving =
            mounts.filter(|mount| mount.propagation.master.is_some_and(|master| groups.contains(&master)));
        // A slave that is not shared onwards has no group; it goes by its master's.
        let more: Vec<u64> = receiving.filter_map(|mount| mount.propagation.shared).collect();
        let before = groups.len();
        groups.extend(more);
        if groups.len() == before {
            return groups;
        }
    }
}

/// `propagation_next` of `fs/pnode.c`: all peers of the target's parent, and all that are slaves of one of them or
/// of such a slave's peers.
fn receivers(tables: &[Table], target: At) -> Vec<Receiver> {
    let mounts = &tables[target.table].mounts;
    let mount = &mounts[target.mount];
    let Some(parent) = mounts.iter().find(|other| other.id == mount.parent && other.id != mount.id) else {
        return Vec::new();
    };
    let Some(group) = parent.propagation.shared else { return Vec::new() };
    let Some(place) = place_in_filesystem(parent, &mount.mount_point) else { return Vec::new() };

    let mut receivers = Vec::new();
    let mut groups = HashSet::from([group]);
    let mut to_do = VecDeque::from([group]);
    let mut seen = HashSet::from([parent.id]);
    while let Some(group) = to_do.pop_front() {
        for (table, others) in tables.iter().enumerate() {
            for other in &others.mounts {
                let receives =
                    other.propagation.shared == Some(group) || other.propagation.master == Some(group);
                if !receives || !seen.insert(other.id) {
                    continue;
                }
                if let Some(group) = other.propagation.shared
                    && groups.insert(group)
                {
                    to_do.push_back(group);
                }
                if let Some(place) = place_on(other, &place) {
                    receivers.push(Receiver { table, parent: other.id, place });
                }
            }
        }
    }
    receivers
}

/// Which directory of the parent's file system a mount point is.
fn place_in_filesystem(parent: &Mount, mount_point: &Path) -> Option<PathBuf> {
    Some(joined(&parent.root, mount_point.strip_prefix(&parent.mount_point).ok()?))
}

/// Where a directory of the file system is to be seen through this mount of it.
fn place_on(mount: &Mount, place: &Path) -> Option<PathBuf> {
    Some(joined(&mount.mount_point, place.strip_prefix(&mount.root).ok()?))
}

fn joined(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str() == OsStr::new("") { path.to_owned() } else { path.join(below) }
}

/// Why the walk over the receivers does not come by this mount of the target's file system.
fn reason(receivers: &[Receiver], tables: &[Table], target: At, table: usize, mount: &Mount) -> Reason {
    let original = &tables[target.table].mounts[target.mount];
    let lies_on_receiver =
        receivers.iter().any(|receiver| receiver.table == table && receiver.parent == mount.parent);
    let lies_on_copy = tables[table]
        .mounts
        .iter()
        .any(|other| other.id == mount.parent && other.id != mount.id && other.device == mount.device);
    if table == target.table || lies_on_receiver || lies_on_copy || mount.root != original.root {
        Reason::Elsewhere
    } else {
        Reason::NotPropagated
    }
}

/// Whether a mount lies on the copy that does not cover it wholly.
fn has_partial_cover(mounts: &[Mount], copy: usize) -> bool {
    let (id, point) = (mounts[copy].id, &mounts[copy].mount_point);
    mounts.iter().any(|child| child.parent == id && child.id != id && child.mount_point != *point)
}

/// Which of the tables' mounts are of this file system.
#[must_use]
pub fn mounts_of(tables: &[Table], device: Device) -> Vec<At> {
    let mut found = Vec::new();
    for (table, others) in tables.iter().enumerate() {
        for (mount, other) in others.mounts.iter().enumerate() {
            if other.device == device {
                found.push(At { table, mount });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    /// Each namespace's table as mountinfo text; options and types are filled in.
    fn tables(texts: &[&str]) -> Vec<Table> {
        texts
            .iter()
            .enumerate()
            .map(|(number, text)| Table {
                namespace: MountNamespace { inode: number as u64, id: None },
                mounts: text
                    .split('|')
                    .map(str::trim)
                    .filter(|line| !line.is_empty())
                    .map(|line| mountinfo::parse(format!("{line} - t s rw").as_bytes()).unwrap().remove(0))
                    .collect(),
            })
            .collect()
    }

    /// PID 1's namespace: everything shared, as systemd has it, and the overlay 50.
    const HOST: &str = "20 1 8:1 / / rw shared:1 | 50 20 0:42 / /run/m rw shared:9";

    /// Fates of the mounts of `0:42` and others in the way, as `id=fate`, but for the target.
    fn fates_of(texts: &[&str]) -> String {
        let tables = tables(texts);
        let target = At { table: 0, mount: visible_at(&tables[0].mounts, Path::new("/run/m")).unwrap() };
        let told: Vec<String> = fates(&tables, target)
            .all()
            .into_iter()
            .filter(|(_, fate)| *fate != Fate::Target)
            .map(|(at, fate)| {
                let fate = match fate {
                    Fate::Target => "target",
                    Fate::UnmountedAlong => "along",
                    Fate::Survives(Reason::NotPropagated) => "private",
                    Fate::Survives(Reason::Elsewhere) => "elsewhere",
                    Fate::Survives(Reason::HasSubmount) => "submount",
                };
                format!("{}={fate}", tables[at.table].mounts[at.mount].id)
            })
            .collect();
        told.join(" ")
    }

    #[test]
    fn propagation_decides_what_is_asked() {
        let cases: [(&str, &[&str], &str); 25] = [
            ("alone", &[HOST], ""),
            (
                "a slave copy",
                &[HOST, "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9"],
                "60=along",
            ),
            (
                "a shared copy",
                &[HOST, "30 1 8:1 / / rw shared:1 | 60 30 0:42 / /run/m rw shared:9"],
                "60=along",
            ),
            // What decides is the parent, not the copy itself.
            ("a private parent", &[HOST, "30 1 8:1 / / rw | 60 30 0:42 / /run/m rw master:9"], "60=private"),
            (
                "a private copy on a slave parent",
                &[HOST, "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw"],
                "60=along",
            ),
            (
                "a slave that is shared onwards, as systemd's sandboxes are",
                &[HOST, "30 1 8:1 / / rw shared:2 master:1 | 60 30 0:42 / /run/m rw shared:10 master:9"],
                "60=along",
            ),
            (
                "a slave of the slave",
                &[
                    HOST,
                    "30 1 8:1 / / rw shared:2 master:1 | 60 30 0:42 / /run/m rw shared:10 master:9",
                    "40 1 8:1 / / rw master:2 | 70 40 0:42 / /run/m rw master:10",
                ],
                "60=along 70=along",
            ),
            (
                "a slave whose master can't be seen",
                &[HOST, "40 1 8:1 / / rw master:77 | 70 40 0:42 / /run/m rw master:10"],
                "70=private",
            ),
            (
                "another file system below the path on the way",
                &[HOST, "30 1 8:1 / / rw master:1 | 35 30 0:50 / /run rw | 60 35 0:42 / /run/m rw"],
                "60=private",
            ),
            (
                "a copy with a mount on it",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 60 0:51 / /run/m/sub rw",
                ],
                "60=submount",
            ),
            (
                "a copy that is covered",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 60 0:51 / /run/m rw",
                ],
                "60=along",
            ),
            (
                "a copy that is covered twice",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 60 0:51 / /run/m rw | 62 61 0:52 / /run/m rw",
                ],
                "60=along",
            ),
            (
                "a copy that is covered and has a mount on it",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 60 0:51 / /run/m/sub rw | 62 60 0:52 / /run/m rw",
                ],
                "60=submount",
            ),
            (
                "a copy that was moved",
                &[HOST, "30 1 8:1 / / rw master:1 | 60 30 0:42 / /bind rw master:9"],
                "60=elsewhere",
            ),
            (
                "a bind mount beside the copy",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 30 0:42 /sub /mnt rw master:9",
                ],
                "60=along 61=elsewhere",
            ),
            (
                "a bind mount in the same namespace",
                &[
                    "20 1 8:1 / / rw shared:1 | 50 20 0:42 / /run/m rw shared:9 | 51 20 0:42 / /mnt rw shared:9",
                ],
                "51=elsewhere",
            ),
            (
                "the copy was bound onto itself: a mount on the copy covers it",
                &[
                    HOST,
                    "30 1 8:1 / / rw master:1 | 60 30 0:42 / /run/m rw master:9 | 61 60 0:42 / /run/m rw master:9",
                ],
                "60=along 61=elsewhere",
            ),
            (
                "a container that sees the tree at another place",
                &[
                    HOST,
                    "30 1 0:60 / / rw | 31 30 8:1 /run /data rw master:1 | 60 31 0:42 / /data/m rw master:9",
                ],
                "60=along",
            ),
            (
                "a task whose root directory the copy is",
                &[HOST, "60 30 0:42 / /run/m rw master:9"],
                "60=along",
            ),
            ("a private mount as a root directory", &[HOST, "60 30 0:42 / /run/m rw"], "60=private"),
            (
                "a container that sees another part of the tree",
                &[HOST, "30 1 0:60 / / rw | 31 30 8:1 /home /data rw master:1"],
                "",
            ),
            (
                "the parent's directory bound in the same namespace",
                &[
                    "20 1 8:1 / / rw shared:1 | 50 20 0:42 / /run/m rw shared:9 | 21 20 8:1 /run /r rw shared:1 | 51 21 0:42 / /r/m rw shared:9",
                ],
                "51=along",
            ),
            (
                "another file system in the copy's place",
                &[HOST, "30 1 8:1 / / rw master:1 | 60 30 0:77 / /run/m rw"],
                "60=along",
            ),
            (
                "a directory of the root file system, bound",
                &[
                    "20 1 8:1 / / rw shared:1 | 50 20 8:1 /srv/x /run/m rw shared:1 | 51 20 8:1 /srv /a rw shared:1 | 52 20 8:1 /srv/x/y /b rw shared:1",
                ],
                "52=elsewhere",
            ),
            (
                "a parent that does not propagate",
                &[
                    "20 1 8:1 / / rw | 50 20 0:42 / /run/m rw shared:9",
                    "30 1 8:1 / / rw | 60 30 0:42 / /run/m rw shared:9",
                ],
                "60=private",
            ),
        ];
        for (name, texts, expected) in cases {
            assert_eq!(fates_of(texts), expected, "{name}");
        }
    }

    #[test]
    fn the_visible_mount_is_the_top_of_the_tree() {
        let cases = [
            ("20 1 8:1 / / rw", "/", Some(20)),
            ("20 1 8:1 / / rw", "/m", None),
            ("20 1 8:1 / / rw | 50 20 0:42 / /m rw", "/m", Some(50)),
            ("20 1 8:1 / / rw | 50 20 0:42 / /m rw", "/m/", Some(50)),
            ("20 1 8:1 / / rw | 50 20 0:42 / /m rw", "/m/a", None),
            ("20 1 8:1 / / rw | 50 20 0:42 / /m rw", "/m/../m", None),
            // The lower one stands later in the table: it was tucked beneath by propagation.
            ("20 1 8:1 / / rw | 50 51 0:42 / /m rw | 51 20 0:43 / /m rw", "/m", Some(50)),
            // The whole parent is covered.
            ("20 1 8:1 / / rw | 21 20 0:5 / /a rw | 50 21 0:42 / /a/m rw | 22 21 0:6 / /a rw", "/a/m", None),
            // A covered root, as a switch from the initramfs leaves it.
            ("1 1 0:2 / / rw | 20 1 8:1 / / rw | 50 20 0:42 / /m rw", "/m", Some(50)),
            ("", "/m", None),
            // Nonsense ends.
            ("20 1 8:1 / / rw | 21 20 0:1 / / rw | 20 21 0:1 / / rw", "/m", None),
        ];
        for (text, path, expected) in cases {
            let table = tables(&[text]).remove(0);
            let found = visible_at(&table.mounts, Path::new(path)).map(|at| table.mounts[at].id);
            assert_eq!(found, expected, "{path} in {text}");
        }
    }

    #[test]
    fn submounts_are_found_at_any_depth() {
        let table = tables(&[
            "20 1 8:1 / / rw | 62 61 0:3 / /m/a/b rw | 50 20 0:42 / /m rw | 61 50 0:2 / /m/a rw | 63 20 0:4 / /mm rw",
        ])
        .remove(0);
        let found: Vec<_> = submounts(&table.mounts, 2).into_iter().map(|at| table.mounts[at].id).collect();
        assert_eq!(found, [62, 61]);
    }
}
