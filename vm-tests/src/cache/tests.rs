//! Keys, locks, entries and their removal.

use std::path::Path;
use std::time::Duration;

use super::entry::*;
use super::key::*;
use super::lock::*;
use super::remove::*;
use crate::host::process;
use crate::host::process::Identity;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

#[test]
fn keys_tell_inputs_apart() {
    let key = |inputs: Inputs| inputs.key();
    let base = || Inputs::new("image", 1);
    let keys = [
        key(base()),
        key(Inputs::new("image", 2)),
        key(base().text("a", "bc")),
        key(base().text("ab", "c")),
        key(base().list("l", &["a", "b"])),
        key(base().list("l", &["ab"])),
        key(base().list("l", &["a"]).list("b", &[""; 0])),
    ];
    for (n, key) in keys.iter().enumerate() {
        assert!(!keys[..n].contains(key), "key {n} is not new");
    }
    assert_eq!(keys[2], base().text("a", "bc").key(), "the same inputs give the same key");
    assert_eq!(keys[0].short().len(), 12);
}

#[test]
fn an_entry_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let target = dir.path().join("entry");
    block_on(async {
        let lock =
            Lock::exclusive(&dir.path().join("lock"), |_| panic!("nobody has it")).await.expect("a lock");
        let no_dead = async |path: &Path| panic!("{} is not dead", path.display());

        let staging = Staging::begin(&target, &lock, no_dead).await.expect("begin");
        std::fs::write(staging.path().join("file"), "half").expect("write");
        drop(staging);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "only the lock is left");

        for text in ["first", "second"] {
            let staging = Staging::begin(&target, &lock, no_dead).await.expect("begin");
            std::fs::write(staging.path().join("file"), text).expect("write");
            staging.commit().expect("commit");
            assert_eq!(std::fs::read_to_string(target.join("file")).expect("read"), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2, "lock and entry");

        std::mem::forget(Staging::begin(&target, &lock, no_dead).await.expect("begin"));
        let mut dead = 0;
        let count = async |_: &Path| {
            dead += 1;
            Ok(())
        };
        drop(Staging::begin(&target, &lock, count).await.expect("begin after a dead build"));
        assert_eq!(dead, 1);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2, "lock and entry");
    });
}

#[test]
fn a_second_lock_waits_for_the_first_and_says_so() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let path = dir.path().join("lock");
    block_on(async {
        let first = Lock::exclusive(&path, |_| panic!("nobody has it")).await.expect("a lock");
        let mut said = String::new();
        let mut first = Some(first);
        let second = Lock::exclusive(&path, |who| {
            who.clone_into(&mut said);
            drop(first.take());
        });
        let second = tokio::time::timeout(Duration::from_secs(20), second).await;
        second.expect("in time").expect("a lock");
        assert_eq!(said, format!("process {}", std::process::id()));
    });
}

#[test]
fn what_a_dead_holder_left_is_ended() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let path = dir.path().join("lock");
    let lives = Duration::from_secs(20);
    block_on(async {
        // A child that holds the lock, and a file that says a process has it which is no more.
        let lock = Lock::exclusive(&path, |_| panic!("nobody has it")).await.expect("a lock");
        let program = process::Program::new("sleep").arg("1000").pass_fd(lock.share().expect("a handle"), 9);
        let mut child = program.spawn().expect("it starts");
        drop(lock);
        let started = Identity::own().expect("us").started + 1;
        let gone = Identity { pid: std::process::id(), started };
        let holder = Holder { process: gone, group: Some(child.pid()) };
        std::fs::write(&path, holder.line()).expect("write");

        let lock = tokio::time::timeout(lives, Lock::exclusive(&path, |_| {})).await;
        drop(lock.expect("in time").expect("a lock"));
        let status = tokio::time::timeout(lives, child.wait()).await.expect("in time").expect("a status");
        assert_eq!(process::describe(status), "killed by SIGKILL");
    });
}

#[test]
fn a_holder_is_one_line() {
    let process = Identity { pid: 7, started: 1234 };
    for group in [None, Some(42)] {
        let holder = Holder { process, group };
        assert_eq!(Holder::parse(&holder.line()), Some(holder));
    }
    assert_eq!(Holder::parse(""), None);
    assert_eq!(Holder::parse("7 12"), None);
}

#[test]
fn deleting_a_tree_does_not_follow_links_and_takes_a_missing_one() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let (keep, tree) = (dir.path().join("keep"), dir.path().join("tree"));
    std::fs::create_dir_all(tree.join("a/b")).expect("dirs");
    std::fs::create_dir(&keep).expect("dir");
    std::fs::write(keep.join("file"), "").expect("file");
    std::os::unix::fs::symlink(&keep, tree.join("a/link")).expect("link");
    remove_tree(&tree).expect("delete");
    assert!(!tree.exists() && keep.join("file").exists());
    remove_tree(&tree).expect("a missing tree is fine");
    remove_tree(Path::new("/proc")).expect_err("a mount is not deleted");
}

#[test]
fn deleting_stops_at_a_mount() {
    // /proc is a mount below /, and the only thing this could do is fail.
    let error = remove_tree(Path::new("/proc")).expect_err("a mount");
    // An ordinary user is refused before that, as / is not theirs.
    let expected = if rustix::process::geteuid().is_root() { "it is a mount" } else { "Permission denied" };
    assert!(format!("{error:#}").contains(expected), "{error:#}");
}
