//! What must hold for any input to a parser or planner of this crate, one function each: those that have no public name
//! are reached by this alone.
//!
//! The fuzz targets and their corpus (`helper/fuzz`) call these, by the feature `checks`, and the property tests below.
//! [`crate::mountinfo`] is public and has its check there.

pub mod machine;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cgroup;
use crate::effect::Mounts;
use crate::fdinfo::{field, registered_files};
use crate::kernel::mount_of_answer;
use crate::kernel_holders::{exports, fixed_interpreter, layers, lio_file, swap_files, uprobes};
use crate::mountinfo::{self, Mount};
use crate::namespace::{MountNamespace, parse_link};
use crate::printable::printable;
use crate::proc::without_deleted;
use crate::propagation::{At, Fate, Reason, Table, containing, fates, submounts, visible_at};
use crate::report::samples::{copy, holder, loop_device, mount, mounted, not_mounted};
use crate::report::{Effect, Phase, Relation, Report, Unseen};
use crate::stat::Stat;
use crate::task::phase_from;
use crate::unix_diag::{self, Message};
use crate::verdict::Verdict;
use crate::walk::{MountPoints, mapped_paths, socket_inode};

/// What the kernel tells of files that no process has: `/proc/swaps`, an answer of unix_diag, an entry of binfmt_misc, the
/// options of an overlay.
pub fn kernel_files(data: &[u8]) {
    for file in swap_files(data) {
        assert!(!file.path.as_os_str().is_empty());
    }
    for message in unix_diag::messages(data) {
        let Message::Bound(inode, bound) = message else { continue };
        assert!(inode <= u64::from(u32::MAX) && bound.device.minor < 1 << 20);
        assert!(!bound.path.as_os_str().as_bytes().contains(&0));
    }
    for file in uprobes(data) {
        assert!(!file.path.as_os_str().as_bytes().contains(&b'\n'));
    }
    // These have escapes, so any path may be in them.
    for file in exports(data, data) {
        assert!(file.path.is_absolute());
    }
    drop(lio_file(data));
    if let Some(path) = fixed_interpreter(data) {
        assert!(!path.as_os_str().as_bytes().contains(&b'\n'));
    }
    let super_options = String::from_utf8_lossy(data).into_owned();
    for layer in layers(&Mount { super_options, ..mount("1 1 0:5 / /m rw - overlay o rw") }) {
        let bytes = layer.path.as_os_str().as_bytes();
        assert!(layer.path.is_absolute() && !bytes.contains(&b':') && !bytes.contains(&b','));
    }
}

/// What a task's own files say: `stat`, `cgroup`, `environ`, `maps`, `fdinfo`, its links and its name.
pub fn task(data: &[u8]) {
    for field in Stat::parse(data).into_iter().flat_map(Stat::fields) {
        assert!(!field.is_empty() && !field.contains([')', ' ']));
    }
    let text = String::from_utf8_lossy(data);
    assert!(
        !printable(&text).contains(|one: char| one.is_control() || matches!(one, '\u{202a}'..='\u{202e}'))
    );
    let cgroup = cgroup::path_of(&text).unwrap_or_default();
    assert!(!cgroup.contains('\n'));
    if let Some(unit) = cgroup::unit_of(cgroup) {
        assert!(!unit.contains('/') && cgroup.split('/').any(|part| part == unit));
    }
    let has = |name: &[u8]| data.split(|&byte| byte == 0).any(|variable| variable.starts_with(name));
    match phase_from(7, cgroup, data) {
        Phase::Start | Phase::Child => assert!(has(b"SYSTEMD_EXEC_PID=")),
        Phase::Stop => assert!(has(b"SYSTEMD_EXEC_PID=") && has(b"SERVICE_RESULT=")),
        Phase::Control => assert!(has(b"MAINPID=") || cgroup.ends_with("/.control")),
        Phase::Ending => panic!("its environment is gone, and says nothing"),
        Phase::Unknown => assert!(!cgroup.ends_with("/.control")),
    }
    assert!(socket_inode(data).is_none() || data.starts_with(b"socket:["));
    assert!(parse_link(data).is_none() || data.starts_with(b"mnt:["));
    for (_range, path) in mapped_paths(data) {
        assert!(path.starts_with(b"/") && !path.contains(&b'\n'));
    }
    what_a_descriptor_says(&text);
    let mut points = MountPoints::default();
    assert!(points.add(Path::new("/m/")) && !points.add(Path::new("/m")));
    let rest = data.strip_prefix(b"/m");
    let is_there = |rest: &[u8]| rest.is_empty() || rest[0] == b'/' || rest == b" (deleted)";
    assert_eq!(points.have(data), rest.is_some_and(is_there));
}

/// A descriptor's `fdinfo`, of a socket or of an io_uring instance: registered files are those of one list in it.
fn what_a_descriptor_says(text: &str) {
    let files = registered_files(text);
    assert!(files.iter().all(|path| path.is_absolute()));
    let below = text.lines().skip_while(|line| !line.starts_with("UserFiles:")).skip(1);
    let list = below.take_while(|line| {
        line.trim_start().starts_with(|first: char| first.is_ascii_digit() || first == '+')
    });
    assert!(files.len() <= list.filter(|line| line.contains(": /")).count(), "{files:?}");
    for name in ["UserFiles:", "scm_fds:"] {
        let says = |number: u32| {
            let has =
                |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.trim().parse() == Ok(number));
            text.lines().any(has)
        };
        assert!(field(text, name).is_none_or(says));
    }
}

/// The answer of statmount(2): three offsets, then the text that they are into.
pub fn statmount(data: &[u8]) {
    let Some((offsets, text)) = data.split_at_checked(12) else { return };
    let offset =
        |at: usize| u32::from_le_bytes([offsets[at], offsets[at + 1], offsets[at + 2], offsets[at + 3]]);
    let mount = mount_of_answer([offset(0), offset(4), offset(8)], text);
    for path in [&mount.root, &mount.mount_point] {
        assert!(path.as_os_str().len() <= text.len());
    }
}

/// Mount tables, one a namespace, parted by zero bytes. The first is the caller's.
pub fn propagation(data: &[u8]) {
    let table = |(number, text): (usize, &[u8])| {
        let namespace = MountNamespace { inode: number as u64, id: None };
        Some(Table { namespace, mounts: mountinfo::parse(text).ok()? })
    };
    let tables: Option<Vec<Table>> = data.split(|&byte| byte == 0).enumerate().map(table).collect();
    let Some(tables) = tables else { return };
    let mounts = &tables[0].mounts;
    for path in ["/", "/run", "/run/m", "/run/m/a"].map(Path::new) {
        let Some((on, exact)) = containing(mounts, path) else { continue };
        assert!(path.starts_with(&mounts[on].mount_point));
        assert_eq!(visible_at(mounts, path), exact.then_some(on));
        if exact {
            assert_eq!(mounts[on].mount_point, path);
            what_an_unmount_asks(&tables, At { table: 0, mount: on });
            check_effects(&tables, on);
        }
    }
}

fn what_an_unmount_asks(tables: &[Table], target: At) {
    let mounts = &tables[target.table].mounts;
    let mount = &mounts[target.mount];
    let fates = fates(tables, target);
    assert_eq!(fates.of(mount.id), Some((target, Fate::Target)));
    for (at, fate) in fates.all() {
        let other = &tables[at.table].mounts[at.mount];
        assert_eq!(fate == Fate::Target, at == target);
        // Another file system has to do with it only where propagation goes.
        assert!(
            other.device == mount.device
                || matches!(fate, Fate::UnmountedAlong | Fate::Survives(Reason::HasSubmount))
        );
        let has_child = |child: &Mount| child.parent == other.id && child.id != other.id;
        assert!(fate != Fate::Survives(Reason::HasSubmount) || tables[at.table].mounts.iter().any(has_child));
    }
    let submounts = submounts(mounts, target.mount);
    assert!(submounts.is_sorted_by(|one, next| one < next) && !submounts.contains(&target.mount));
    let direct = |child: &Mount| child.parent == mount.id && child.id != mount.id;
    assert_eq!(submounts.is_empty(), !mounts.iter().any(direct));
}

/// What must hold for references to any mount of any tables, `target` being one of the first: who is told to block does,
/// and who does is told.
fn check_effects(tables: &[Table], target: usize) {
    let mount = tables[0].mounts[target].clone();
    let devices = vec![mount.device];
    let mut known = Mounts { target: Some(target), devices, tables: tables.to_vec(), ..Mounts::default() };
    known.settle();
    let lie_on_it = submounts(&tables[0].mounts, target);
    for (at, table) in tables.iter().enumerate() {
        for (index, other) in table.mounts.iter().enumerate() {
            // Two mounts with one id are in no table that is whole.
            if tables.iter().flat_map(|table| &table.mounts).filter(|mount| mount.id == other.id).count() > 1
            {
                continue;
            }
            let (effect, namespace) = known.effect_on(other.id, other.device);
            assert_eq!(namespace, Some(table.namespace));
            let is_target = (at, index) == (0, target);
            let goes_along = matches!(known.fates.of(other.id), Some((_, Fate::UnmountedAlong)));
            assert_eq!(effect == Effect::BlocksUmount, is_target || goes_along, "{other:?}");
            assert!(effect != Effect::BlocksSubmount || (at == 0 && lie_on_it.contains(&index)), "{other:?}");
            assert!(
                effect != Effect::KeepsSuperblock
                    || other.device == mount.device
                    || known.fates.of(other.id).is_some()
            );
            assert!(effect != Effect::Unclear, "{other:?}");
        }
    }
    // Nothing that is in no table blocks; it keeps alive what it is of.
    let unknown =
        tables.iter().flat_map(|table| &table.mounts).map(|mount| mount.id).max().unwrap_or_default();
    if let Some(unknown) = unknown.checked_add(1) {
        assert_eq!(known.effect_on(unknown, mount.device), (Effect::KeepsSuperblock, None));
    }
    // A path alone tells less, and not more: who says so is on the target, or on a mount that goes along.
    for path in [&mount.mount_point, &mount.mount_point.join("a"), &mount.mount_point.join("a (deleted)")] {
        for table in tables {
            let told = known.effect_at(path, Some(table.namespace));
            let shown = without_deleted(path);
            let on = containing(&table.mounts, shown).map(|(on, _)| &table.mounts[on]);
            let expected = on.map(|on| known.effect_on(on.id, on.device).0);
            let is_once = tables.iter().filter(|other| other.namespace == table.namespace).count() == 1;
            assert!(
                !is_once || told == expected.filter(|effect| *effect != Effect::Harmless),
                "{told:?} {expected:?}"
            );
        }
    }
}

/// A name that forges a line and clears a terminal: whoever may make a file, or a mount, may choose it.
const FORGED: &str = "\nforged: \x1b[2J\u{9b}2J";

/// A report that the bytes say, and what it comes to: the first its parts, each that follows a holder.
pub fn verdict(data: &[u8]) {
    let Some((&parts, holders)) = data.split_first() else { return };
    let has = |bit: u8| parts & (1 << bit) != 0;
    let relations = [Relation::Caller, Relation::Ancestor, Relation::Other];
    let effects = [
        Effect::BlocksUmount,
        Effect::BlocksSubmount,
        Effect::KeepsSuperblock,
        Effect::Harmless,
        Effect::Unclear,
    ];
    let holders = holders.iter().enumerate().map(|(number, &byte)| {
        let (relation, effect) = (relations[usize::from(byte % 3)], effects[usize::from(byte / 3 % 5)]);
        // Several threads of a process, by chance.
        let mut holder = holder(1 + (number / 2) as u32, relation, effect);
        holder.references[0].path.push(FORGED);
        holder
    });
    let submount = || {
        let mut mount = mount("90 61 0:50 / /srv/merged/sub rw - tmpfs t rw");
        mount.mount_point.push(FORGED);
        mount.fstype.push_str(FORGED);
        mount
    };
    let image = |effect| {
        let mut device = loop_device(effect);
        device.path.push(FORGED);
        device.mounted_at[0].push(FORGED);
        device
    };
    let copy = |fate| {
        let mut copy = copy(fate);
        copy.mount.mount_point.push(FORGED);
        copy
    };
    let base = if has(0) { mounted() } else { not_mounted() };
    let kernel_effect = if has(3) { Effect::BlocksUmount } else { Effect::KeepsSuperblock };
    let report = Report {
        refused: has(1),
        submounts: if has(2) { vec![submount()] } else { vec![] },
        kernel_holders: if has(4) { vec![image(kernel_effect)] } else { vec![] },
        copies: match (has(5), has(6)) {
            (false, _) => vec![],
            (true, false) => vec![copy(has(0).then_some(Fate::UnmountedAlong))],
            (true, true) => vec![copy(has(0).then_some(Fate::Survives(Reason::NotPropagated)))],
        },
        unseen: Unseen { processes: usize::from(has(7)), ..base.unseen.clone() },
        holders: holders.collect(),
        ..base
    };
    let verdict = report.verdict();
    let line = verdict.line();
    assert!(!line.is_empty() && !line.contains(char::is_control), "{line}");
    assert!(verdict.advice().iter().all(|line| !line.contains(char::is_control)), "{:?}", verdict.advice());
    let text = report.to_string();
    assert!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
    let does = |wanted: Effect| {
        let of_tasks = report.holders.iter().flat_map(|holder| &holder.references).map(|held| held.effect);
        of_tasks.chain(report.kernel_holders.iter().map(|held| held.effect)).any(|effect| effect == wanted)
    };
    // umount(2) fails for what refers to the mount, for what lies on it, and for a reason that it has told us of.
    let is_busy = has(0) && (does(Effect::BlocksUmount) || has(2) || has(1));
    let told = if is_busy { Some(true) } else { (!has(7)).then_some(false) };
    let may_be_alive = matches!(verdict, Verdict::AliveElsewhere { .. });
    assert_eq!(verdict.blocks_umount(), if may_be_alive { Some(false) } else { told }, "{verdict:?}");
    match &verdict {
        Verdict::HeldByYourself { blockers } => {
            assert!(
                !blockers.is_empty() && blockers.iter().all(|blocker| blocker.relation != Relation::Other)
            );
        }
        Verdict::HeldByProcess { blockers } => {
            assert!(blockers.iter().any(|blocker| blocker.relation == Relation::Other));
        }
        _ => assert!(report.blockers().is_empty() || !has(0), "{verdict:?} leaves out who blocks it"),
    }
    for blocker in report.blockers() {
        let of_it = |held: &&crate::report::Holder| held.pid == blocker.pid;
        let references = report.holders.iter().filter(of_it).flat_map(|holder| &holder.references);
        assert!(
            references.clone().any(|held| held.effect == Effect::BlocksUmount),
            "{} is accused",
            blocker.pid
        );
    }
}

/// A command line, its words parted by zero bytes, and the path that its first word means.
#[cfg(feature = "cli")]
pub fn command_line(data: &[u8]) {
    use std::ffi::OsStr;
    use std::path::{Component, PathBuf};

    use crate::cli::{Command, MAX_RATE, parse, resolve};

    let words: Vec<&OsStr> = data.split(|&byte| byte == 0).map(OsStr::from_bytes).collect();
    let args = std::iter::once(OsStr::new("holders")).chain(words.iter().copied());
    match parse(args.map(OsStr::to_owned)) {
        Ok(Command::Watch(watch)) => assert!((0.0..=MAX_RATE).contains(&watch.rate)),
        Ok(_) => {}
        Err(problem) => assert!(!problem.is_empty()),
    }
    let table = b"20 1 8:1 / / rw - ext4 s rw\n21 20 8:2 / /var rw - ext4 s rw\n\
                  22 21 0:42 / /var/m rw - overlay o rw\n23 20 0:43 / /alone rw - tmpfs t rw\n";
    let mounts = mountinfo::parse(table).expect("a table");
    let read_link = |path: &Path| {
        let is_inside = ["/var/m", "/alone"].iter().any(|mount| path.starts_with(mount));
        assert!(!is_inside, "{} was looked at", path.display());
        words.get(1).filter(|_| path == Path::new("/link")).map(PathBuf::from)
    };
    if let Ok(path) = resolve(Path::new(words[0]), Path::new("/var"), &mounts, read_link) {
        assert!(path.is_absolute());
        assert!(!path.components().any(|part| part == Component::ParentDir), "{}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..200)
    }

    /// Lines that are mountinfo and have much to do with each other, in up to three tables.
    fn tables() -> impl Strategy<Value = Vec<u8>> {
        let line = "[1-6] [1-6] 0:[12] /(a)? /(run(/m(/a)?)?)? rw (shared:[12] )?(master:[12] )?- t s rw";
        let table = vec(line, 0..7)
            .prop_map(|lines| format!("1 1 0:1 / / rw shared:1 - t s rw\n{}", lines.join("\n")));
        vec(table, 1..4).prop_map(|tables| tables.join("\0").into_bytes())
    }

    proptest! {
        #[test]
        fn kernel_files_of_anything(
            data in bytes(), text in "(head\n)?((/[a\\\\07 ]{0,6} +file|[0-9 ]{0,8}/[a ]{0,3}|flags: F?|interpreter /a?|lowerdir=[/a:,]{0,9})\n?){0,5}"
        ) {
            kernel_files(&data);
            kernel_files(text.as_bytes());
            // An answer of unix_diag whose attributes are anything.
            let length = u32::try_from(32 + data.len()).expect("a short one");
            let mut answer = length.to_ne_bytes().to_vec();
            answer.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            answer.extend([0; 15]);
            answer.extend(&data);
            kernel_files(&answer);
        }

        #[test]
        fn a_task_that_says_anything(
            data in bytes(), text in "(0::|12:cpu:)?(/a\\.service)?(/\\.control)?\0?(SYSTEMD_EXEC_PID=[67x]?\0|MAINPID=1\0|SERVICE_RESULT=\0){0,3}|[0-9]{0,3} \\([()a ]{0,5}\\)? [0-9 S]{0,9}|(mnt|socket):\\[[0-9]{0,22}\\]?|(0: /no\n)?(scm_fds|UserFiles):[ \t][0-9]{0,11}\n( {0,4}[+0-9]{1,3}: ?[/a<\\\\04]{0,6}\n){0,3}(UserBufs: 1\n0: /no)?|/m[/a]{0,3}( \\(deleted\\))?"
        ) {
            task(&data);
            task(text.as_bytes());
        }

        #[test]
        fn an_answer_with_any_offsets(offsets in vec(prop_oneof![0_u32..300, any::<u32>()], 3), text in bytes()) {
            let offsets = offsets.iter().flat_map(|offset| offset.to_le_bytes());
            statmount(&offsets.chain(text).collect::<Vec<u8>>());
        }

        #[test]
        fn any_tables_have_fates(data in bytes(), tables in tables()) {
            propagation(&data);
            propagation(&tables);
        }

        #[test]
        fn a_verdict_accuses_nobody_who_does_not_block(data in vec(any::<u8>(), 0..6)) {
            verdict(&data);
        }
    }

    #[cfg(feature = "cli")]
    proptest! {
        #[test]
        fn any_command_line(
            data in bytes(), words in vec("ns|watch|--json|--busy|--rate=?[0-9.e-]{0,4}|--device|[0-9]:[0-9]|/?(link|var|m|alone|\\.{1,2}|/){0,5}", 0..5)
        ) {
            command_line(&data);
            command_line(words.join("\0").as_bytes());
        }
    }
}
