//! What must hold for any input, one function a parser or planner. The fuzz targets call these with what libFuzzer
//! makes up; `helper/tests/corpus.rs` calls them with the corpus, as an ordinary test.

use std::path::Path;

use left4me_helper::cgroup::UnitCgroup;
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::{account, journal, layers, mountinfo, overlay};

/// What must hold for an input.
pub(crate) type Check = fn(&[u8]);

/// The checks, by the name of their fuzz target and of their directory in the corpus.
pub(crate) const CHECKS: [(&str, Check); 6] = [
    ("mountinfo", mountinfo),
    ("instance_name", instance_name),
    ("instance_file", instance_file),
    ("passwd", passwd),
    ("cgroup", cgroup),
    ("journal", journal),
];

/// A mount table: an error or mounts, of which each found one is where it was asked for.
pub(crate) fn mountinfo(data: &[u8]) {
    let Ok(mounts) = holders::mountinfo::parse(data) else { return };
    for mount in &mounts {
        let at = holders::mountinfo::parse_at(data, &mount.mount_point).expect("every line was parsed");
        assert!(at.contains(mount));
    }
    for below in mountinfo::below(&mounts, &[Path::new("/var/lib")]) {
        assert!(below.starts_with("/var/lib"));
    }
}

/// A name from a command line: whatever is taken stays in its directory.
pub(crate) fn instance_name(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let Ok(instance) = name.parse::<Instance>() else { return };
    let paths = instance.paths(Path::new(STATE_DIR));
    assert_eq!(paths.runtime.parent(), Some(Path::new("/var/lib/left4me/runtime")));
    assert_eq!(paths.file.parent(), Some(Path::new("/var/lib/left4me/instances")));
    assert_eq!(instance.unit(), format!("left4me-server@{name}.service"));
}

/// An instance file: an error, or a plan whose options are the four that it is meant to have.
pub(crate) fn instance_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(file) = layers::parse(text, Path::new("3.toml")) else { return };
    let paths = "3".parse::<Instance>().expect("a name").paths(Path::new(STATE_DIR));
    let lower = layers::lower(&file, Path::new(STATE_DIR));
    let count = lower.len();
    let Ok(plan) = overlay::plan(&paths, lower) else {
        assert!(count > overlay::MAX_LAYERS);
        return;
    };
    let keys: Vec<_> = plan.options.split(',').filter_map(|option| Some(option.split_once('=')?.0)).collect();
    assert_eq!(keys, ["lowerdir", "upperdir", "workdir", "index"]);
    assert_eq!(plan.options.split(':').count(), count);
}

/// A user database.
pub(crate) fn passwd(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if account::parse(&text, account::USER).is_some() {
        assert!(text.lines().any(|line| line.starts_with("left4me:")));
    }
}

/// A `/proc/PID/cgroup`: a task that is in the unit is in the unit's cgroup.
pub(crate) fn cgroup(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(unit) = UnitCgroup::parse(text, "left4me-server@3.service") {
        assert!(unit.holds(text));
        assert!(!unit.holds("0::/"));
    }
}

/// A journal entry: a value is never taken for another field.
pub(crate) fn journal(data: &[u8]) {
    let value = String::from_utf8_lossy(data).into_owned();
    let datagram = journal::encode(&[("MESSAGE", value.clone()), ("PRIORITY", "3".into())]);
    if value.contains('\n') {
        let length = u64::from_le_bytes(datagram[8..16].try_into().expect("eight bytes"));
        assert_eq!(length, value.len() as u64);
        assert_eq!(&datagram[16 + value.len()..], b"\nPRIORITY=3\n");
    } else {
        assert_eq!(datagram, format!("MESSAGE={value}\nPRIORITY=3\n").into_bytes());
    }
}
