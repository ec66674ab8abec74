//! Which other units keep an instance's overlay busy, or alive behind a successful umount: rules over what systemd has
//! loaded besides the server's own unit.
//!
//! [`lint`] is pure; `systemd.rs` reads the [`Neighbours`]. A rule is here if a run has shown the harm: the scenario
//! `product-doctor` for what keeps an overlay alive, `holder-outside` for a working directory, and the table of `cargo
//! xtask bench holders` for a mount on it and for a loop device. `product-doctor` also shows what does no harm, and is
//! not reported: an ordinary sandbox, `MountFlags=slave`, a bind of a directory above merged, a mount over merged or
//! over a directory above it. A namespace has the overlay with these too, but an unmount propagates to its copy.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::doctor::{Finding, MS_PRIVATE, Mountpoint, Sandbox, UnitSetup};

/// What systemd has loaded, as far as it can matter to an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// The services, those of servers too.
    pub services: Vec<Service>,
    /// The mount and automount units.
    pub mounts: Vec<MountUnit>,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// The unit's name.
    pub unit: String,
    /// What its processes see.
    pub sandbox: Sandbox,
}

/// A mount or automount unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountUnit {
    /// The unit's name.
    pub unit: String,
    /// `Where=`.
    pub at: PathBuf,
    /// Whether it has a file, or a line in fstab(5). One that has none is what systemd has found in the mount table: a
    /// mounted overlay of ours is one.
    pub configured: bool,
    /// Whether it is mounted, or about to be.
    pub active: bool,
}

/// The mountpoint of a mount or automount unit, which is its name (systemd.unit(5), "String escaping for inclusion in
/// unit names"). None for another unit, and for a name that is a hash, as that of a very long path is.
#[must_use]
pub fn mountpoint(unit: &str) -> Option<PathBuf> {
    let name = unit.strip_suffix(".mount").or_else(|| unit.strip_suffix(".automount"))?;
    if name == "-" {
        return Some("/".into());
    }
    let mut path = vec![b'/'];
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        path.push(match first {
            b'-' => b'/',
            b'\\' => {
                let (code, after) = rest.split_first_chunk()?;
                rest = after;
                let [b'x', high, low] = *code else { return None };
                let [high, low] = [high, low].map(|digit| char::from(digit).to_digit(16));
                u8::try_from(high? << 4 | low?).ok()?
            }
            other => other,
        });
    }
    Some(OsString::from_vec(path).into())
}

/// Every rule that another unit breaks for this server, unit by unit in their order.
#[must_use]
pub fn lint(setup: &UnitSetup, neighbours: &Neighbours) -> Vec<Finding> {
    let mut found = Vec::new();
    let is_own = |service: &&Service| [&setup.unit, &setup.overlay.unit].contains(&&service.unit);
    for service in neighbours.services.iter().filter(|service| !is_own(service)) {
        // A drop-in of all servers is reported once for each of them, not once for each pair.
        let told_of_itself =
            setup.sandbox.mount_flags & MS_PRIVATE != 0 && template(&service.unit) == template(&setup.unit);
        service_rules(&service.sandbox, &setup.merged, told_of_itself, &mut |setting, problem, remedy| {
            found.push(Finding {
                unit: Some(service.unit.clone()),
                setting: setting.into(),
                problem,
                remedy: remedy.into(),
            });
        });
    }
    for mount in &neighbours.mounts {
        if let Some((problem, remedy)) = mount_rule(mount, &setup.merged) {
            let unit = Some(mount.unit.clone());
            found.push(Finding { unit, setting: "Where".into(), problem, remedy: remedy.into() });
        }
    }
    found
}

/// The part of an instance's name that all instances have; the name itself for a unit that is none.
fn template(unit: &str) -> &str {
    unit.split_once('@').map_or(unit, |(template, _instance)| template)
}

fn service_rules(
    sandbox: &Sandbox,
    merged: &Mountpoint,
    flags_are_told: bool,
    find: &mut impl FnMut(&'static str, String, &str),
) {
    // A service leaves its copy behind with the root that it came from, if it gets another one.
    let keeps_copy =
        sandbox.roots.iter().all(|(setting, root)| *setting == "RootDirectory" && merged.is_below(root));
    if sandbox.mount_flags & MS_PRIVATE != 0 && keeps_copy && !flags_are_told {
        find(
            "MountFlags",
            "private: started while the overlay is mounted, the service keeps a copy that umount does not reach, and \
             the next mount finds its upper layer in use"
                .into(),
            "remove the setting, or use PrivateMounts=yes, and restart the service",
        );
    }
    for (setting, root) in sandbox.roots.iter().filter(|(_, root)| merged.holds(root)) {
        let root = root.display();
        if *setting == "RootImage" {
            find(
                setting,
                format!("{root} lies in the overlay, and its loop device makes the umount fail with EBUSY"),
                "keep the image elsewhere, and restart the service",
            );
        } else {
            find(
                setting,
                format!(
                    "{root} lies in the overlay, and as the service's root keeps it alive behind a successful umount; \
                     the next mount finds its upper layer in use"
                ),
                "give the service a root elsewhere, and restart it",
            );
        }
    }
    for bind in sandbox.binds.iter().filter(|bind| merged.holds(&bind.source)) {
        find(
            bind.setting,
            format!(
                "a bind of {} keeps the overlay alive behind a successful umount, and the next mount finds its upper \
                 layer in use",
                bind.source.display()
            ),
            "use it by its path, or bind a directory above merged, and restart the service",
        );
    }
    // With a root of its own a service has other things at these paths.
    if sandbox.roots.iter().any(|(_, root)| root != Path::new("/")) {
        return;
    }
    for (setting, path) in sandbox.mounts_within(merged) {
        find(
            setting,
            format!(
                "a mount at {} lies on the service's copy of the overlay and keeps that alive behind a successful \
                 umount; the next mount finds its upper layer in use",
                path.display()
            ),
            "give merged itself or a directory above it, and restart the service",
        );
    }
    if merged.holds(&sandbox.working_directory) {
        find(
            "WorkingDirectory",
            format!(
                "{} lies in the overlay: while the service runs, umount fails with EBUSY",
                sandbox.working_directory.display()
            ),
            "set another directory, and restart the service",
        );
    }
}

/// What is wrong with a mount unit, and what to do.
fn mount_rule(mount: &MountUnit, merged: &Mountpoint) -> Option<(String, &'static str)> {
    const REMEDY: &str = "unmount it, and remove its unit or its line in /etc/fstab";
    let at = mount.at.display();
    if merged.is(&mount.at) {
        // The overlay itself is a mount unit as well, one without a file.
        let problem = || format!("it mounts at {at}, where left4me-overlay mounts the overlay");
        return mount.configured.then(|| (problem(), "remove its unit or its line in /etc/fstab"));
    }
    if !mount.configured && !mount.active {
        return None;
    }
    if merged.holds(&mount.at) {
        return Some((format!("a mount at {at}, on the overlay, makes the umount fail with EBUSY"), REMEDY));
    }
    merged.has_beside(&mount.at).then(|| {
        (
            format!("a mount at {at}, in the runtime directory, makes a reset refuse to delete anything"),
            REMEDY,
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::doctor::Bind;

    const MERGED: &str = "/var/lib/left4me/runtime/3/merged";

    fn server() -> UnitSetup {
        UnitSetup {
            unit: "left4me-server@3.service".into(),
            merged: Mountpoint::new(vec![MERGED.into()]),
            ..UnitSetup::default()
        }
    }

    fn service(unit: &str, sandbox: Sandbox) -> Neighbours {
        Neighbours { services: vec![Service { unit: unit.into(), sandbox }], mounts: vec![] }
    }

    /// A mount that is there and has no file, as systemd finds it in the mount table.
    fn mounted(at: &str) -> Neighbours {
        let mount = MountUnit { unit: "m.mount".into(), at: at.into(), configured: false, active: true };
        Neighbours { services: vec![], mounts: vec![mount] }
    }

    fn configured(at: &str) -> Neighbours {
        let mut neighbours = mounted(at);
        neighbours.mounts[0].configured = true;
        neighbours.mounts[0].active = false;
        neighbours
    }

    fn bind(source: &str, destination: &str) -> Sandbox {
        let (setting, source, destination) = ("BindReadOnlyPaths", source.into(), destination.into());
        Sandbox { binds: vec![Bind { setting, source, destination }], ..Sandbox::default() }
    }

    fn over(setting: &'static str, path: &str) -> Sandbox {
        Sandbox { mounted_over: vec![(setting, path.into())], ..Sandbox::default() }
    }

    fn root(setting: &'static str, root: &str) -> Sandbox {
        Sandbox { roots: vec![(setting, root.into())], ..Sandbox::default() }
    }

    fn inside(path: &str) -> String {
        format!("{MERGED}/{path}")
    }

    /// What is found, one line each.
    fn report(setup: &UnitSetup, neighbours: &Neighbours) -> String {
        lint(setup, neighbours).iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let flags = |mount_flags| Sandbox { mount_flags, ..Sandbox::default() };
        let directory = |path: &str| Sandbox { working_directory: path.into(), ..Sandbox::default() };
        let rows = [
            service("a.service", flags(MS_PRIVATE)),
            service("a.service", bind(MERGED, "/mnt")),
            service("a.service", bind(&inside("left4dead2"), "/mnt")),
            service("a.service", bind("/srv/maps", &inside("maps"))),
            service("a.service", root("RootDirectory", &inside("root"))),
            service("a.service", root("RootImage", &inside("root.img"))),
            service("a.service", over("ReadOnlyPaths", &inside("cfg"))),
            service("a.service", directory(MERGED)),
            configured(MERGED),
            mounted(&inside("maps")),
            configured(&inside("maps")),
            mounted("/var/lib/left4me/runtime/3"),
            configured("/var/lib/left4me/runtime/3/upper"),
        ];
        let all: Vec<_> = rows
            .iter()
            .map(|row| {
                assert_eq!(lint(&server(), row).len(), 1, "{row:?}");
                report(&server(), row)
            })
            .collect();
        insta::assert_snapshot!(all.concat());
    }

    #[test]
    fn what_does_no_harm_is_not_reported() {
        let with_root = |sandbox: Sandbox| Sandbox {
            roots: vec![("RootDirectory", "/srv/root".into())],
            working_directory: MERGED.into(),
            ..sandbox
        };
        for row in [
            service("a.service", Sandbox::default()),
            service("a.service", Sandbox { mount_flags: 1 << 19, ..Sandbox::default() }),
            service("a.service", bind("/var/lib/left4me", "/mnt")),
            service("a.service", bind("/", "/mnt")),
            service("a.service", bind("/srv/empty", MERGED)),
            service("a.service", bind("/srv/empty", "/var/lib/left4me")),
            service("a.service", bind(&inside("x").replace("/3/", "/30/"), "/mnt")),
            service("a.service", over("InaccessiblePaths", MERGED)),
            service("a.service", over("TemporaryFileSystem", "/var/lib/left4me")),
            service("a.service", root("RootDirectory", "/var/lib/left4me")),
            service("a.service", root("RootDirectory", "/")),
            service("a.service", with_root(Sandbox { mount_flags: MS_PRIVATE, ..Sandbox::default() })),
            service("a.service", with_root(over("ReadOnlyPaths", &inside("cfg")))),
            service("a.service", with_root(bind("/srv/maps", &inside("maps")))),
            // The server's own unit is the doctor's other half.
            service("left4me-server@3.service", bind(MERGED, "/mnt")),
            mounted(MERGED),
            mounted("/var/lib/left4me"),
            mounted("/var/lib/left4me/runtime/30/merged"),
            configured("/var/lib/left4me/runtime"),
        ] {
            assert_eq!(lint(&server(), &row), [], "{row:?}");
        }
        // One that was mounted and whose unit is still there, as another refers to it.
        let mut gone = mounted(&inside("maps"));
        gone.mounts[0].active = false;
        assert_eq!(lint(&server(), &gone), []);
    }

    #[test]
    fn a_drop_in_of_all_servers_is_told_of_each_once() {
        let private = Sandbox { mount_flags: MS_PRIVATE, ..Sandbox::default() };
        let fourth = service("left4me-server@4.service", private.clone());
        assert_eq!(lint(&server(), &fourth).len(), 1, "the third has it not");
        let third = UnitSetup { sandbox: private.clone(), ..server() };
        assert_eq!(lint(&third, &fourth), []);
        assert_eq!(lint(&third, &service("a.service", private)).len(), 1);
    }

    #[test]
    fn where_the_state_directory_is_a_link_its_real_name_counts_too() {
        // A mount unit has the name that the mount table has.
        let real = "/srv/left4me/runtime/3/merged";
        let merged = Mountpoint::new(vec![MERGED.into(), real.into()]);
        let setup = UnitSetup { merged, ..server() };
        for at in [real.to_owned(), format!("{real}/maps"), "/srv/left4me/runtime/3/upper".into()] {
            assert_eq!(lint(&setup, &configured(&at)).len(), 1, "{at}");
            assert_eq!(lint(&server(), &configured(&at)), [], "{at}");
        }
        assert_eq!(lint(&setup, &service("a.service", bind(real, "/mnt"))).len(), 1);
    }

    #[test]
    fn a_root_of_slash_is_none_and_one_above_merged_has_the_copy() {
        let sandbox = Sandbox { working_directory: MERGED.into(), ..root("RootDirectory", "/") };
        assert_eq!(lint(&server(), &service("a.service", sandbox)).len(), 1);
        for (above, expected) in [("/var/lib/left4me", 1), ("/var/lib/left4you", 0)] {
            let sandbox = Sandbox { mount_flags: MS_PRIVATE, ..root("RootDirectory", above) };
            assert_eq!(lint(&server(), &service("a.service", sandbox)).len(), expected, "{above}");
        }
    }

    #[test]
    fn a_name_is_a_mountpoint() {
        for (unit, expected) in [
            ("-.mount", Some("/")),
            ("home.mount", Some("/home")),
            ("var-lib-left4me-runtime-3-merged.mount", Some(MERGED)),
            (r"srv-a\x2db.automount", Some("/srv/a-b")),
            (r"srv-\xc3\xa9.mount", Some("/srv/é")),
            (r"srv-\x2.mount", None),
            (r"srv-\y2d.mount", None),
            (r"srv-\x+1.mount", None),
            ("srv.service", None),
        ] {
            assert_eq!(mountpoint(unit), expected.map(PathBuf::from), "{unit}");
        }
    }

    proptest! {
        /// What systemd-escape(1) does for a path, undone.
        #[test]
        fn a_mountpoint_comes_back_from_its_name(parts in prop::collection::vec("[a-zA-Z0-9:_.é\\\\-]{1,8}", 1..5)) {
            let escape = |part: &String| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'.');
                part.bytes()
                    .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("\\x{byte:02x}") })
                    .collect::<String>()
            };
            let name = parts.iter().map(escape).collect::<Vec<_>>().join("-") + ".mount";
            prop_assert_eq!(mountpoint(&name), Some(PathBuf::from(format!("/{}", parts.join("/")))));
        }

        #[test]
        fn never_panics_and_says_one_line(name in "([a-z-]|\\\\x?[0-9é]?){0,9}(.mount)?", path in "(/[a-z.é]{0,4}){0,3}") {
            let setup = UnitSetup { merged: Mountpoint::new(vec!["/m".into()]), ..UnitSetup::default() };
            let sandbox = Sandbox { working_directory: (&path).into(), ..bind(&path, &path) };
            let at = mountpoint(&name).unwrap_or_default();
            let mounts = vec![MountUnit { unit: name, at, configured: true, active: true }];
            for finding in lint(&setup, &Neighbours { mounts, ..service("x", sandbox) }) {
                prop_assert!(!finding.to_string().contains('\n'));
            }
        }
    }
}
