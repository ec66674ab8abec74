//! The delete, against trees that are deep, wide, oddly named or hostile: its source is part of this program, so that a
//! test can take the flags of its lookup away.

mod error {
    pub(crate) use left4me_helper::error::HelperError;
}
#[path = "support/playground.rs"]
mod playground;
#[path = "support/sealed.rs"]
mod sealed;
#[path = "support/swapper.rs"]
mod swapper;
#[path = "../src/tree.rs"]
#[expect(unreachable_pub, reason = "public in its library")]
mod tree;
#[path = "support/trials.rs"]
mod trials;

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use error::HelperError;
use tree::{Lookup, remove_tree, remove_tree_by};

fn main() -> ExitCode {
    let tests = [
        playground::test(deep_wide_and_oddly_named, || None),
        playground::test(
            links_in_the_place_of_directories_are_followed_by_none_but_a_delete_without_its_flags,
            || None,
        ),
        playground::test(a_mount_in_the_tree_is_emptied_by_none_but_a_delete_that_crosses_mounts, || None),
        playground::test(it_never_leaves_its_directory, || None),
    ];
    let plain: [(&str, fn()); 2] = [
        ("a_link_in_place_of_the_tree_is_refused", a_link_in_place_of_the_tree_is_refused),
        (
            "a_delete_without_end_meets_its_deadline_and_the_next_one_goes_on",
            a_delete_without_end_meets_its_deadline_and_the_next_one_goes_on,
        ),
    ];
    let plain = plain.map(|(name, run)| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    });
    trials::main(&tests, &[], plain.into())
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// Far beyond what anything here takes.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

fn delete(parent: &Path, name: &str) -> Result<(), HelperError> {
    remove_tree(open(parent), name, &parent.join(name), soon())
}

fn deep_wide_and_oddly_named() {
    // For root alone no mode is in the way.
    let parent = tempfile::tempdir().unwrap();
    let tree = parent.path().join("t");
    fs::create_dir(&tree).unwrap();
    // Deeper than a path can say and than descriptors would last: made step by step.
    let mut at = open(&tree);
    for _ in 0..10_000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(at);
    for name in [".moved-0", ".moved-1", "a b", "-x", "wide"] {
        fs::create_dir(tree.join(name)).unwrap();
        fs::create_dir(tree.join(name).join(".moved-2")).unwrap();
    }
    for index in 0..2000 {
        fs::write(tree.join("wide").join(index.to_string()), "").unwrap();
    }
    fs::set_permissions(tree.join("wide/.moved-2"), fs::Permissions::from_mode(0o0)).unwrap();
    delete(parent.path(), "t").unwrap();
    assert!(!tree.exists());
    delete(parent.path(), "t").unwrap();
}

fn a_link_in_place_of_the_tree_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("other")).unwrap();
    symlink("other", parent.path().join("t")).unwrap();
    assert!(delete(parent.path(), "t").is_err());
    assert!(parent.path().join("other").is_dir());
}

fn a_delete_without_end_meets_its_deadline_and_the_next_one_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    for index in 0..200 {
        fs::create_dir_all(parent.path().join(format!("t/{index}/a"))).unwrap();
    }
    let past = remove_tree(open(parent.path()), "t", Path::new("/x/t"), Instant::now());
    assert!(matches!(past, Err(HelperError::OutOfTime(_))), "{past:?}");
    delete(parent.path(), "t").unwrap();
    assert!(!parent.path().join("t").exists());
}

/// A delete of one tree while somebody swaps what is in it.
struct Fight {
    result: Result<(), HelperError>,
    /// How often the attacker has put a link in the place of a directory.
    links: u64,
    is_victim_whole: bool,
}

/// Deletes a tree of names that are a directory in one moment and a link to another tree in the next.
fn fight(lookup: Lookup) -> Fight {
    let parent = tempfile::tempdir().unwrap();
    let (tree, victim) = (parent.path().join("t"), parent.path().join("victim"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "kept").unwrap();
    let targets = [victim.to_str().unwrap().to_owned(), "../victim".to_owned()];
    let names = (0..NAMES).map(|name| name.to_string());
    let mut swapper = swapper::Swapper::new(open(&tree), names, &targets);
    assert_eq!(swapper.plant(), NAMES);
    let (began, begin) = std::sync::mpsc::sync_channel(0);
    let attacker = std::thread::spawn(move || {
        swapper.swap();
        began.send(()).unwrap();
        // Until none of the names is there any more.
        while swapper.swap() > 0 {}
        swapper.shown
    });
    begin.recv().unwrap();
    let result = remove_tree_by(lookup, open(parent.path()).as_fd(), "t", &tree, soon());
    if result.is_err() {
        // It has given up: nothing takes the names away, so the tree goes.
        fs::rename(&tree, parent.path().join("lost")).unwrap();
        delete(parent.path(), "lost").unwrap();
    }
    let links = attacker.join().unwrap();
    let is_victim_whole = fs::read(victim.join("file")).is_ok_and(|content| content == b"kept");
    Fight { result, links, is_victim_whole }
}

fn links_in_the_place_of_directories_are_followed_by_none_but_a_delete_without_its_flags() {
    // As it was built wrong: the attacker wins at once, so he really shows links to a delete.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let careless = Lookup { flags, resolve: ResolveFlags::empty() };
    let lost = until(careless, &|fight| !fight.is_victim_whole);
    let lost = lost.expect("an attacker who never wins is none");
    // With what keeps it beneath the tree alone he makes it give up.
    let beneath = Lookup { flags, resolve: ResolveFlags::BENEATH };
    let stopped = until(beneath, &|fight| {
        assert!(fight.is_victim_whole);
        matches!(fight.result, Err(HelperError::Crossing(_)))
    });
    let stopped = stopped.expect("an attacker who never shows a link is none");
    // As it is: nothing is lost, and each delete is done.
    let mut links = 0;
    for _ in 0..FIGHTS {
        let fight = fight(Lookup::SAFE);
        fight.result.unwrap();
        assert!(fight.is_victim_whole);
        links += fight.links;
    }
    assert!(links >= 10_000, "{links} links are no attack");
    eprintln!(
        "lost in fight {lost} without flags, given up in fight {stopped} with BENEATH alone; {links} links \
         in {FIGHTS} fights as it is"
    );
}

/// The first one is lost without the flags, on one core as on two.
const FIGHTS: u32 = 50;

/// Enough for a delete to be interrupted on its way through them, where attacker and delete share a core.
const NAMES: usize = 500;

/// The number of the first fight that ends so; `None` if none does for a long time.
fn until(lookup: Lookup, is_over: &dyn Fn(Fight) -> bool) -> Option<u32> {
    let deadline = soon();
    (1..).take_while(|_| Instant::now() < deadline).find(|_| is_over(fight(lookup)))
}

/// What no lookup flag but NO_XDEV sees: no link leads there.
fn a_mount_in_the_tree_is_emptied_by_none_but_a_delete_that_crosses_mounts() {
    let crossing = Lookup { resolve: Lookup::SAFE.resolve.difference(ResolveFlags::NO_XDEV), ..Lookup::SAFE };
    for (lookup, is_kept) in [(Lookup::SAFE, true), (crossing, false)] {
        let parent = tempfile::tempdir().unwrap();
        let (inside, victim) = (parent.path().join("t/d"), parent.path().join("victim"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "kept").unwrap();
        rustix::mount::mount_bind(&victim, &inside).unwrap();
        let result =
            remove_tree_by(lookup, open(parent.path()).as_fd(), "t", &parent.path().join("t"), soon());
        assert!(matches!(result, Err(HelperError::Crossing(_))), "{result:?}");
        assert_eq!(victim.join("file").exists(), is_kept, "{lookup:?}");
        rustix::mount::unmount(&inside, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

/// One step of making a tree: where, and what. Links point outside, at a directory, a file and up.
#[derive(Debug, Clone)]
enum Make {
    Directory(Vec<u8>),
    File(Vec<u8>),
    Link(Vec<u8>, &'static str),
}

fn make() -> impl Strategy<Value = Make> {
    let path = prop::collection::vec(0u8..3, 1..6);
    let outside = prop::sample::select(vec!["../..", "..", "/", "../../outside", "../outside/file", "."]);
    prop_oneof![
        path.clone().prop_map(Make::Directory),
        path.clone().prop_map(Make::File),
        (path, outside).prop_map(|(path, target)| Make::Link(path, target)),
    ]
}

fn it_never_leaves_its_directory() {
    let config = ProptestConfig {
        cases: 64,
        // The failing input is in the message; there is nowhere to write it.
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let ran = proptest::test_runner::TestRunner::new(config)
        .run(&prop::collection::vec(make(), 0..40), |steps| stays_in_its_directory(&steps));
    ran.unwrap_or_else(|error| panic!("{error}"));
}

fn stays_in_its_directory(steps: &[Make]) -> Result<(), TestCaseError> {
    let parent = tempfile::tempdir().unwrap();
    let (tree, outside) = (parent.path().join("t"), parent.path().join("outside"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let absolute = |path: &[u8]| path.iter().fold(tree.clone(), |at, step| at.join(step.to_string()));
    let through_link =
        |path: &Path| path.ancestors().skip(1).take_while(|at| *at != tree).any(Path::is_symlink);
    for step in steps {
        let (Make::Directory(path) | Make::File(path) | Make::Link(path, _)) = step;
        let path = absolute(path);
        if through_link(&path) || path.is_symlink() || path.exists() {
            continue;
        }
        // A file may be in the way of a directory: such a step makes nothing.
        if fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        match step {
            Make::Directory(_) => fs::create_dir(&path).unwrap(),
            Make::File(_) => fs::write(&path, "").unwrap(),
            Make::Link(_, target) => symlink(target, &path).unwrap(),
        }
    }
    delete(parent.path(), "t").unwrap();
    prop_assert!(!tree.exists());
    prop_assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    prop_assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    Ok(())
}
