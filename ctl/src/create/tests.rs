//! What keeps an instance from being made, and what is left then.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

/// A host with a game, two layers, something that is no layer, and instance 4 on port 27016. Its own sockets are played.
fn host() -> (tempfile::TempDir, Host) {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().canonicalize().unwrap();
    for name in ["instances", "installation", "overlays/maps", "overlays/tickrate", "net"] {
        fs::create_dir_all(state_dir.join(name)).unwrap();
    }
    let program = state_dir.join("installation/srcds_run");
    fs::write(&program, "").unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(state_dir.join("overlays/file"), "").unwrap();
    std::os::unix::fs::symlink("maps", state_dir.join("overlays/link")).unwrap();
    fs::write(state_dir.join("instances/4.toml"), "overlays = []").unwrap();
    fs::write(state_dir.join("instances/4.env"), "L4D2_PORT=27016").unwrap();
    fs::write(state_dir.join("net/udp"), "h\n 1: 00000000:698A 0:0 07\n").unwrap();
    fs::write(state_dir.join("net/tcp"), "h\n 1: 0100007F:698B 0:0 0A\n 2: 0100007F:698C 0:0 01\n").unwrap();
    let net = state_dir.join("net");
    (directory, Host { state_dir, net, is_root: true, ..Host::default() })
}

fn wish(layers: &[&str], port: Option<u32>) -> Wish {
    let layers = layers.iter().map(|layer| (*layer).to_owned()).collect();
    Wish { instance: "3".parse().unwrap(), layers, port, arguments: None }
}

fn names(host: &Host) -> Vec<String> {
    let mut names = names_in(&host.state_dir.join("instances")).unwrap();
    names.sort();
    names
}

/// A text without the directory's own name and ours.
fn plain(host: &Host, text: &str) -> String {
    let uid = format!("uid {} ", rustix::process::geteuid().as_raw());
    text.replace(host.state_dir.to_str().unwrap(), "/s").replace(&uid, "uid 7 ")
}

fn said(host: &Host, created: &Created) -> String {
    let all: Vec<_> = created.problems.iter().chain(&created.error).cloned().collect();
    plain(host, &all.join("\n"))
}

#[test]
fn what_is_made_is_what_the_helper_and_systemd_read() {
    let (_directory, host) = host();
    let arguments = Some("+sv_lan 1 +hostname \"a $b\"".to_owned());
    let created = create(&Wish { arguments, ..wish(&["tickrate", "maps"], Some(27020)) }, &host);
    assert!(created.ok && created.exit == Exit::Ok && created.problems.is_empty(), "{created:?}");
    assert_eq!(names(&host), ["3.env", "3.toml", "4.env", "4.toml"]);
    let state = StateDir::open(&host.state_dir).unwrap();
    let paths = state.paths(&"3".parse().unwrap());
    let place = left4me_helper::state::InstanceDir { state, paths: paths.clone() };
    let layers: Vec<_> = layers::read(&place).unwrap().overlays;
    assert_eq!(layers.iter().map(OverlayName::as_str).collect::<Vec<_>>(), ["tickrate", "maps"]);
    let variables = fs::read_to_string(variables::file(&paths.file)).unwrap();
    assert_eq!(
        variables::parse(&variables),
        [("L4D2_PORT", "27020"), ("L4D2_ARGS", "+sv_lan 1 +hostname \"a $b\"")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    for path in &created.files {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o644, "{path}");
    }
    insta::assert_snapshot!(plain(&host, &created.to_string()));
    // A second one of this name has no chance, and a third finds the next port.
    let again = create(&wish(&[], None), &host);
    insta::assert_snapshot!(said(&host, &again));
    let third = create(&Wish { instance: "5".parse().unwrap(), ..wish(&[], Some(27020)) }, &host);
    insta::assert_snapshot!(said(&host, &third));
}

/// Everything at once, and each with what to do.
#[test]
fn all_that_is_wrong_is_said_at_once_and_nothing_is_written() {
    let (_directory, mut host) = host();
    host.is_root = false;
    fs::remove_file(host.state_dir.join("installation/srcds_run")).unwrap();
    fs::write(host.state_dir.join("instances/5.env"), "L4D2_PORT=no").unwrap();
    fs::write(host.state_dir.join("instances/5.toml"), "overlays = []").unwrap();
    fs::create_dir_all(host.state_dir.join("runtime/3")).unwrap();
    fs::write(host.state_dir.join("instances/3.env"), "").unwrap();
    let layers = ["maps", "maps", "none", "file", "link", "../maps", "/srv/maps", ""];
    let arguments = Some("a\nb".to_owned());
    let created = create(&Wish { arguments, ..wish(&layers, Some(27016)) }, &host);
    assert!(!created.ok && created.files.is_empty() && created.exit == Exit::Failed);
    insta::assert_snapshot!(said(&host, &created));
    assert_eq!(names(&host), ["3.env", "4.env", "4.toml", "5.env", "5.toml"]);
    assert_eq!(fs::read_to_string(host.state_dir.join("instances/3.env")).unwrap(), "");
}

#[test]
fn each_mistake_is_found() {
    let first = |spoil: &dyn Fn(&Host), wish: &Wish| {
        let (_directory, host) = host();
        spoil(&host);
        let before = names(&host);
        let created = create(wish, &host);
        assert_eq!(created.problems.len(), 1, "{created:?}");
        assert_eq!(names(&host), before);
        plain(&host, &created.problems[0])
    };
    let nothing = |_: &Host| {};
    // Out of the way, whatever is in it.
    let remove = |name: &'static str| {
        move |host: &Host| fs::rename(host.state_dir.join(name), host.state_dir.join("away")).unwrap()
    };
    let mode = |name: &'static str, mode| {
        move |host: &Host| {
            fs::set_permissions(host.state_dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let many: Vec<_> = (0..500).map(|number| format!("l{number}")).collect();
    let make_many = |host: &Host| {
        many.iter().for_each(|name| fs::create_dir(host.state_dir.join("overlays").join(name)).unwrap());
    };
    let all: Vec<_> = [
        first(&nothing, &wish(&["none"], None)),
        first(&remove("overlays"), &wish(&["none"], None)),
        first(&mode("overlays", 0o777), &wish(&["maps"], None)),
        first(&make_many, &Wish { layers: many.clone(), ..wish(&[], None) }),
        first(&remove("installation"), &wish(&[], None)),
        first(&mode("installation/srcds_run", 0o644), &wish(&[], None)),
        first(&remove("instances"), &wish(&[], None)),
        first(&mode("instances", 0o777), &wish(&[], None)),
        first(&nothing, &wish(&[], Some(0))),
        first(&nothing, &wish(&[], Some(1023))),
        first(&nothing, &wish(&[], Some(65536))),
        first(&nothing, &wish(&[], Some(27018))),
        first(&nothing, &wish(&[], Some(27019))),
        first(&|host| fs::write(host.state_dir.join("instances/6.toml"), "x").unwrap(), &wish(&[], None)),
        first(&|host| fs::create_dir(host.state_dir.join("net/udp6")).unwrap(), &wish(&[], None)),
    ]
    .into();
    insta::assert_snapshot!(all.join("\n"));
    let (directory, host) = host();
    drop(directory);
    assert!(create(&wish(&[], None), &host).problems[0].contains("systemd-tmpfiles"));
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    // The second file can't be made; a first one that a killed create has left is written over.
    let (_directory, played) = host();
    let instances = played.state_dir.join("instances");
    fs::write(instances.join(".new-3.env"), "left by one that was killed, and longer than what comes")
        .unwrap();
    fs::create_dir(instances.join(".new-3.toml")).unwrap();
    let created = create(&wish(&[], None), &played);
    assert!(!created.ok && created.problems[0].contains("create ") && created.problems[0].contains("3.toml"));
    assert_eq!(names(&played), [".new-3.toml", "4.env", "4.toml"]);
    fs::remove_dir(instances.join(".new-3.toml")).unwrap();
    assert!(create(&wish(&[], None), &played).ok);
    assert_eq!(fs::read_to_string(instances.join("3.env")).unwrap(), "L4D2_PORT=\"27015\"\n");

    // Somebody makes one by hand at this moment: it is theirs.
    let (_directory, played) = host();
    let instances = played.state_dir.join("instances");
    let state = StateDir::open(&played.state_dir).unwrap();
    fs::write(instances.join("3.toml"), "theirs").unwrap();
    let wish = wish(&[], None);
    let error = write(&lock(&state).unwrap(), &state.paths(&wish.instance), &wish).unwrap_err();
    assert!(chain(&error).contains("File exists"), "{error}");
    assert_eq!(names(&played), ["3.toml", "4.env", "4.toml"]);
    assert_eq!(fs::read_to_string(instances.join("3.toml")).unwrap(), "theirs");
}

#[test]
fn two_at_once_do_not_get_one_port() {
    let (_directory, host) = host();
    let make = |name: &str| create(&Wish { instance: name.parse().unwrap(), ..wish(&[], None) }, &host).ok;
    let made = std::thread::scope(|scope| {
        let all = ["5", "6", "7"].map(|name| scope.spawn(move || make(name)));
        all.map(|one| one.join().unwrap())
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1, "{made:?}");
}

proptest! {
    #[test]
    fn what_is_made_can_be_read_and_all_else_leaves_nothing(
        layers in proptest::collection::vec("maps|tickrate|none|file|link|[a-z./\"\\\\é-]{0,4}", 0..3),
        port in proptest::option::of(prop_oneof![0_u32..70000, 27010_u32..27020]),
        arguments in proptest::option::of("[ -~\n\té]{0,8}"),
    ) {
        let (_directory, host) = host();
        let wish = Wish { instance: "3".parse().unwrap(), layers: layers.clone(), port, arguments };
        let created = create(&wish, &host);
        prop_assert_eq!(created.ok, created.problems.is_empty() && created.error.is_none());
        if created.ok {
            let text = fs::read_to_string(host.state_dir.join("instances/3.toml")).unwrap();
            let file = layers::parse(&text, Path::new("3.toml")).unwrap();
            prop_assert_eq!(file.overlays.iter().map(OverlayName::as_str).collect::<Vec<_>>(), layers);
            let variables = host.state_dir.join("instances/3.env");
            prop_assert_eq!(u32::from(variables::port_of(&variables).unwrap()), created.port);
            let found = variables::parse(&fs::read_to_string(variables).unwrap());
            prop_assert_eq!(found.into_iter().find(|(name, _)| name == "L4D2_ARGS").map(|(_, value)| value), wish.arguments);
        } else {
            prop_assert_eq!(names(&host), ["4.env", "4.toml"]);
        }
    }
}
