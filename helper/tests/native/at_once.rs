//! Several programs at once, for one instance and for fifty.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::stage::{
    Host, STATE, helper, merged, mount_is_sound, mounts_at, runtime, stderr, umount_is_sound,
};

pub(crate) fn two_at_once() {
    let _host = Host::new("two");
    let at_once = |verb: &str| {
        let all: Vec<Child> = (0..20)
            .map(|_| helper(&[verb, "3"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        let said: Vec<_> = all.into_iter().map(|one| one.wait_with_output().unwrap()).collect();
        assert!(said.iter().all(|output| output.status.success()), "{said:?}");
        said.iter().filter(|output| !String::from_utf8_lossy(&output.stdout).contains("not")).count()
    };
    for _ in 0..20 {
        at_once("mount");
        assert_eq!(mounts_at(&merged("3")).len(), 1);
        assert_eq!(at_once("umount"), 1, "one of them unmounted it");
        assert!(mounts_at(&merged("3")).is_empty());
    }
    // Somebody holds instance 3: 4 does not wait for that, 3 does, and says so when its time is up.
    let lock = fs::File::open(runtime("3")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    mount_is_sound("4");
    umount_is_sound("4");
    let output = helper(&["mount", "--wait", "0", "3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("still works on this instance"), "{}", stderr(&output));
    // The lock goes with its owner.
    let waiting = helper(&["mount", "--wait", "60", "3"]).stdout(Stdio::null()).spawn().unwrap();
    drop(lock);
    assert!(waiting.wait_with_output().unwrap().status.success());
    umount_is_sound("3");
}

pub(crate) fn fifty_at_once() {
    let _host = Host::new("fifty");
    let instances: Vec<_> = (100..150).map(|instance| instance.to_string()).collect();
    for instance in &instances {
        fs::write(Path::new(STATE).join(format!("instances/{instance}.toml")), "overlays = []\n").unwrap();
    }
    for (verb, mounts) in [("mount", 1), ("umount", 0)] {
        let all: Vec<_> = instances
            .iter()
            .map(|instance| helper(&[verb, instance]).stdout(Stdio::null()).spawn().unwrap())
            .collect();
        for child in all {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{verb}");
        }
        assert!(instances.iter().all(|instance| mounts_at(&merged(instance)).len() == mounts), "{verb}");
    }
}
