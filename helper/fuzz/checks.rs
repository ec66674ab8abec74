//! What must hold for any input, one function a parser or planner. The fuzz targets call these with what libFuzzer
//! makes up; `ctl/tests/corpus.rs` calls them with the corpus, as an ordinary test.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
pub use control::control;
pub use holders::checks::{kernel_files, propagation, statmount, task, verdict};
use left4me_ctl::cli;
use left4me_ctl::doctor::{self, Bind, ExecLine, Mountpoint, OverlaySetup, Sandbox, UnitSetup};
use left4me_ctl::neighbours::{self, MountUnit, Neighbours, Service, mountpoint};
use left4me_helper::arguments::{Action, Command, MAX_WAIT};
use left4me_helper::cgroup::UnitCgroup;
use left4me_helper::error::HelperError;
use left4me_helper::instance::{Instance, STATE_DIR};
use left4me_helper::unit_end::{Next, Plan, Wait};
use left4me_helper::{account, busy_note, journal, layers, mountinfo, overlay, tree};

mod control;

/// What must hold for an input.
pub type Check = fn(&[u8]);

/// The checks, by the name of their fuzz target and of their directory in the corpus.
pub const CHECKS: [(&str, Check); 19] = [
    ("mountinfo", mountinfo),
    ("instance_name", instance_name),
    ("instance_file", instance_file),
    ("passwd", passwd),
    ("cgroup", cgroup),
    ("journal", journal),
    ("busy_note", busy_note),
    ("unit_end", unit_end),
    ("arguments", arguments),
    ("ctl_arguments", ctl_arguments),
    ("doctor", doctor),
    ("control", control),
    ("purge", purge),
    // Those of the library and the command `holders` stand beside what they check.
    ("kernel_files", kernel_files),
    ("task", task),
    ("statmount", statmount),
    ("propagation", propagation),
    ("verdict", verdict),
    ("holders_arguments", holders_arguments),
];

/// A mount table: an error or mounts, of which each found one is where it was asked for.
pub fn mountinfo(data: &[u8]) {
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
pub fn instance_name(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let Ok(instance) = name.parse::<Instance>() else { return };
    let paths = instance.paths(Path::new(STATE_DIR));
    assert_eq!(paths.runtime.parent(), Some(Path::new("/var/lib/left4me/runtime")));
    assert_eq!(paths.file.parent(), Some(Path::new("/var/lib/left4me/instances")));
    assert_eq!(instance.unit(), format!("left4me-server@{name}.service"));
}

/// An instance file: an error, or a plan whose options are the four that it is meant to have.
pub fn instance_file(data: &[u8]) {
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
pub fn passwd(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if account::parse(&text, "left4me").is_some() {
        assert!(text.lines().any(|line| line.starts_with("left4me:")));
    }
}

/// A `/proc/PID/cgroup`: who belongs to the unit has its name in it, below nothing but slices.
pub fn cgroup(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let unit = "left4me-server@3.service";
    let server = UnitCgroup::below("0::/init.scope", unit);
    if let Some(path) = server.path(text) {
        let above = path.strip_suffix(unit).and_then(|above| above.strip_suffix('/')).expect("its last part");
        assert!(above.split('/').skip(1).all(|part| part.ends_with(".slice")), "{path}");
        assert!(server.has(text) && text.contains(path));
    }
}

/// A journal entry: a value is never taken for another field.
pub fn journal(data: &[u8]) {
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

/// The note of a refused unmount: a line of it, if it is of the time that is asked about.
pub fn busy_note(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(line) = busy_note::parse_note(&text, &(1..=9)) {
        assert!(text.contains(&line) && !line.ends_with('\n'));
        assert_eq!(busy_note::parse_note(&text, &(10..=u64::MAX)), None);
    }
}

/// A wait: two bytes of milliseconds, one that says whether the unit is ended, and how long each wait took in 64 ms.
pub fn unit_end(data: &[u8]) {
    let Some((&[low, high, end], pauses)) = data.split_first_chunk::<3>() else { return };
    let limit = Duration::from_millis(u16::from_le_bytes([low, high]).into());
    let wait = Wait { limit, end_unit: end & 1 != 0 };
    let mut plan = Plan::new(wait);
    let (mut now, mut last, mut ended) = (Duration::ZERO, Duration::ZERO, 0);
    for pause in pauses {
        match plan.next(now) {
            Next::Wait(until) => {
                assert!(now < until && last <= until && until <= limit);
                last = until;
                now += Duration::from_millis(64) * u32::from(*pause);
            }
            Next::End => {
                assert!(wait.end_unit && now < limit);
                ended += 1;
            }
            Next::GiveUp => assert!(now >= limit),
        }
    }
    assert!(ended <= 1);
}

/// A directory for a scene: in memory where that can be, as a disk takes twenty times as long for what is thrown away.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_not_there| tempfile::tempdir()).expect("a directory")
}

/// A tree that bytes say, deleted with a deadline in the past and then with one far off: all of it, and nothing that a
/// link in it leads to. Each byte is a step with a name of four: down into a directory, many levels at once, a file, a
/// link, or up again.
pub fn purge(data: &[u8]) {
    let place = place();
    let (tree, outside) = (place.path().join("t"), place.path().join("outside"));
    for directory in [&tree, &outside] {
        fs::create_dir(directory).expect("mkdir");
    }
    fs::write(outside.join("file"), "kept").expect("write");
    let targets = ["/", "..", ".", "../outside", "../../outside/file", ".moved-0"];
    let mut at = tree.clone();
    for &byte in data.iter().take(24) {
        // What a delete calls what lies too deep is a name like any other.
        let name = at.join(["a", ".moved-0", ".moved-1", "b\nc"][usize::from(byte >> 6)]);
        let down = match byte % 8 {
            0..=2 => name,
            3 => (0..tree::MAX_DEPTH + 2).fold(name, |path, _| path.join("d")),
            // What has the name already keeps it.
            4 | 5 => {
                drop(fs::File::create_new(name));
                continue;
            }
            6 => {
                drop(symlink(targets[usize::from(byte >> 3) % targets.len()], name));
                continue;
            }
            _ => {
                at = at.parent().filter(|up| up.starts_with(&tree)).unwrap_or(&tree).to_owned();
                continue;
            }
        };
        let is_plain = down.ancestors().take_while(|up| *up != tree).all(|up| !up.is_symlink());
        if is_plain && fs::create_dir_all(&down).is_ok() {
            at = down;
        }
    }
    let parent = fs::File::open(place.path()).expect("open");
    let delete = |deadline| tree::remove_tree(&parent, "t", &tree, deadline);
    match delete(Instant::now()) {
        Ok(()) => assert!(!tree.exists()),
        Err(error) => assert!(matches!(error, HelperError::OutOfTime(_)) && tree.exists(), "{error}"),
    }
    delete(Instant::now() + Duration::from_secs(60)).expect("all of it can be deleted");
    assert!(!tree.exists());
    assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "kept");
    assert_eq!(fs::read_dir(place.path()).expect("list").count(), 1);
}

/// The command line of `left4me-overlay`, its words parted by zero bytes.
pub fn arguments(data: &[u8]) {
    let parsed = left4me_helper::arguments::parse(command_line("left4me-overlay", data));
    if let Ok(Command::Run(request)) = parsed {
        let name = request.instance.as_str().as_bytes();
        assert!(data.split(|&byte| byte == 0).any(|word| word == name));
        assert!(request.wait.limit <= Duration::from_secs(MAX_WAIT));
        assert!(request.action == Action::Umount || !request.wait.end_unit);
    }
}

/// That of `l4d2ctl`.
pub fn ctl_arguments(data: &[u8]) {
    let Ok(cli::Cli { command }) = cli::Cli::try_parse_from(command_line("l4d2ctl", data)) else { return };
    let how = match &command {
        cli::Command::Start(target)
        | cli::Command::Stop(cli::StopTarget { target, .. })
        | cli::Command::Reset(cli::ResetTarget { target, .. }) => {
            assert_eq!(target.all, target.ids.is_empty());
            &target.how
        }
        cli::Command::Status(target) | cli::Command::Doctor(target) => &target.how,
        cli::Command::List(how) | cli::Command::Destroy(cli::DestroyTarget { how, .. }) => how,
        cli::Command::Create(_) => return,
    };
    assert!((1..=86_400).contains(&how.timeout));
}

/// That of `holders`.
pub fn holders_arguments(data: &[u8]) {
    holders::checks::command_line(data);
}

fn command_line(program: &str, data: &[u8]) -> impl Iterator<Item = OsString> {
    let words = data.split(|&byte| byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
    std::iter::once(program.into()).chain(words)
}

/// The units' settings, one a line: the words of the overlay's two Exec lines, what is bound, what is mounted over, `KillMode=`. Then
/// those of another service: what is bound and to where, what is mounted over, its working directory, its root; and the
/// name of a mount unit.
pub fn doctor(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap_or_default();
    let mut exec = || {
        let argv = next().split(' ').map(str::to_owned).collect();
        vec![ExecLine { argv, flags: vec!["privileged".into()] }]
    };
    let (exec_start, exec_stop_post) = (exec(), exec());
    let bind = |source: &str, to: &str| {
        vec![Bind { setting: "BindPaths", source: source.into(), destination: to.into() }]
    };
    let setup = UnitSetup {
        merged: Mountpoint::new(vec!["/m".into()]),
        overlay: OverlaySetup {
            load_state: "loaded".into(),
            exec_start,
            exec_stop_post,
            ..OverlaySetup::default()
        },
        sandbox: Sandbox {
            binds: bind(next(), "/mnt"),
            mounted_over: vec![("ReadOnlyPaths", next().into())],
            ..Sandbox::default()
        },
        kill_mode: next().into(),
        send_sigkill: true,
        timeout_stop: Some(Duration::from_secs(15)),
        ..UnitSetup::default()
    };
    let found = doctor::lint(&setup);
    assert!(found.iter().all(|finding| !finding.to_string().contains('\n')), "{found:?}");
    let finds = |setting: &str| found.iter().any(|finding| finding.setting == setting);
    let word = |line: &ExecLine, wanted: &str| line.argv.iter().any(|word| word == wanted);
    assert!(word(&setup.overlay.exec_start[0], "mount") || finds("ExecStart"));
    assert!(word(&setup.overlay.exec_stop_post[0], "umount") || finds("ExecStopPost"));
    assert!(!setup.sandbox.binds[0].source.starts_with("/m") || finds("BindPaths"));
    assert!(!setup.sandbox.mounted_over[0].1.starts_with("/m/x") || finds("ReadOnlyPaths"));
    assert!(setup.kill_mode != "process" || finds("KillMode"));

    let mut sandbox = Sandbox {
        binds: bind(next(), next()),
        mounted_over: vec![("ReadOnlyPaths", next().into())],
        working_directory: next().into(),
        ..Sandbox::default()
    };
    sandbox
        .roots
        .extend(Some(next()).filter(|root| !root.is_empty()).map(|root| ("RootDirectory", root.into())));
    let at = mountpoint(next());
    let mounts = at.iter().map(|at| MountUnit {
        unit: "m.mount".into(),
        at: at.clone(),
        configured: true,
        active: false,
    });
    let around = Neighbours {
        mounts: mounts.collect(),
        services: vec![Service { unit: "s.service".into(), sandbox: sandbox.clone() }],
    };
    let found = neighbours::lint(&setup, &around);
    assert!(found.iter().all(|finding| !finding.to_string().contains('\n')), "{found:?}");
    let finds = |setting: &str| found.iter().any(|finding| finding.setting == setting);
    let inside = |path: &Path| path.starts_with("/m");
    let own_root = sandbox.roots.iter().any(|(_setting, root)| root != Path::new("/"));
    assert_eq!(finds("RootDirectory"), sandbox.roots.iter().any(|(_setting, root)| inside(root)));
    assert_eq!(finds("WorkingDirectory"), inside(&sandbox.working_directory) && !own_root);
    assert!(!inside(&sandbox.binds[0].source) || finds("BindPaths"));
    // What lies beside merged is in its runtime directory, which is the root here.
    assert_eq!(finds("Where"), at.is_some_and(|at| at.is_absolute()));
    let unrelated = |path: &Path| !inside(path);
    let none = sandbox.binds.iter().all(|bind| unrelated(&bind.source) && unrelated(&bind.destination))
        && unrelated(&sandbox.mounted_over[0].1)
        && unrelated(&sandbox.working_directory)
        && sandbox.roots.iter().all(|(_setting, root)| unrelated(root));
    assert!(!none || found.iter().all(|finding| finding.setting == "Where"), "{found:?}");
}
