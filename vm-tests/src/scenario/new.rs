//! A first scenario for who has none: a manifest with comments that works, and the unit's file beside it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

use super::problem::{Problem, WrongInput};
use super::rules::{not_a_unit, not_a_user, not_absolute};

/// What a new scenario is about.
#[derive(Debug, Clone, Default)]
pub struct New {
    /// The unit under test, with `.service`.
    pub unit: String,
    /// The user whose manager has it; `None`: it is one of the system.
    pub user: Option<String>,
    /// Where it mounts; `None` is `/srv/` and the unit's name for the stand-in, and nothing watched for another unit or a user's,
    /// which may not mount.
    pub mount: Option<String>,
    /// The unit's file; `None` is a stand-in that mounts a tmpfs and works in it.
    pub unit_file: Option<PathBuf>,
    /// What else the guest gets: a directory that is laid over its `/`, or `FILE:/PATH/IN/THE/GUEST`.
    pub files: Vec<String>,
}

/// Writes a scenario, and returns what was written. Nothing that is there is overwritten, and what is wrong is said before
/// anything is written.
///
/// # Errors
/// [`WrongInput`], with all that is wrong; files that can't be read or written.
pub fn write(directory: &Path, new: &New) -> Result<Vec<PathBuf>> {
    let files = files(directory, new)?;
    for (path, mode, bytes) in &files {
        let what = || format!("write {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(what)?;
        }
        std::fs::write(path, bytes).with_context(what)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode)).with_context(what)?;
    }
    Ok(files.into_iter().map(|(path, ..)| path).collect())
}

/// A file to write: where, its mode, what is in it.
type File = (PathBuf, u32, Vec<u8>);

/// The plan: all files of the scenario.
fn files(directory: &Path, new: &New) -> Result<Vec<File>> {
    let mut wrong: Vec<String> = Vec::new();
    let default = format!("/srv/{}", stem(&new.unit));
    let mounts = new.unit_file.is_none() && new.user.is_none();
    let mount = new.mount.as_ref().or(mounts.then_some(&default)).map(String::as_str);
    wrong.extend(not_a_unit(&new.unit).map(|what| format!("--unit: {what}")));
    wrong.extend(new.user.as_deref().and_then(not_a_user).map(|what| format!("--user: {what}")));
    if new.user.is_some() && new.unit_file.is_none() && new.mount.is_some() {
        wrong.push(
            "--mount: a user's unit may not mount by itself: give --unit-file, too, and have start mount it"
                .to_owned(),
        );
    }
    wrong.extend(mount.and_then(not_absolute).map(|what| format!("--mount: {what}")));

    let in_guest = |path: &str| directory.join("files").join(path.trim_start_matches('/'));
    let units = match &new.user {
        Some(user) => format!("home/{user}/.config/systemd/user"),
        None => "etc/systemd/system".to_owned(),
    };
    let unit_path = in_guest(&format!("{units}/{}", file_name(&new.unit)));
    let mut files: Vec<File> = Vec::new();
    match &new.unit_file {
        None => files.push((unit_path, 0o644, stand_in(&new.unit, mount).into_bytes())),
        Some(from) => match std::fs::read(from) {
            Ok(bytes) => files.push((unit_path, 0o644, bytes)),
            Err(error) => wrong.push(format!("--unit-file {}: {error}", from.display())),
        },
    }
    let mut trees = Vec::new();
    for one in &new.files {
        match one.split_once(':') {
            None if Path::new(one).is_dir() => trees.push(relative(directory, Path::new(one))?),
            None if Path::new(one).exists() => {
                wrong.push(format!("--files {one}: say where it goes: {one}:/path/in/the/guest"));
            }
            None => wrong.push(format!("--files {one}: it is not there")),
            Some((from, to)) => match (not_absolute(to), read(Path::new(from))) {
                (None, Ok((mode, bytes))) => files.push((in_guest(to), mode, bytes)),
                (Some(what), _) => wrong.push(format!("--files {one}: {what}")),
                (None, Err(error)) => wrong.push(format!("--files {from}: {error}")),
            },
        }
    }
    let manifest = manifest(new, mount, &trees);
    files.insert(0, (directory.join("scenario.toml"), 0o644, manifest.into_bytes()));
    let there = files.iter().filter(|(path, ..)| path.symlink_metadata().is_ok());
    wrong.extend(
        there.map(|(path, ..)| format!("{} is there already: nothing is overwritten", path.display())),
    );
    let problem = |what| Problem { file: String::new(), line: 0, column: 0, what };
    WrongInput::of(wrong.into_iter().map(problem).collect())?;
    Ok(files)
}

fn read(file: &Path) -> std::io::Result<(u32, Vec<u8>)> {
    let bytes = std::fs::read(file)?;
    Ok((std::fs::metadata(file)?.permissions().mode() & 0o7777, bytes))
}

/// A unit's name without its type, as a part of a path.
fn stem(unit: &str) -> String {
    unit.rsplit_once('.').map_or(unit, |(stem, _)| stem).replace('@', "-")
}

/// The file of a unit: an instance's is its template's.
fn file_name(unit: &str) -> String {
    match (unit.split_once('@'), unit.rsplit_once('.')) {
        (Some((template, _)), Some((_, kind))) => format!("{template}@.{kind}"),
        _ => unit.to_owned(),
    }
}

/// A unit that passes: it mounts and works in the mount, if there is one.
fn stand_in(unit: &str, mount: Option<&str>) -> String {
    let lines = match mount {
        Some(mount) => format!(
            "ExecStartPre=mkdir -p {mount}
ExecStartPre=mount -t tmpfs scenario {mount}
ExecStart=sh -c 'cd {mount} && exec sleep infinity'
ExecStopPost=umount {mount}"
        ),
        None => "ExecStart=sleep infinity".to_owned(),
    };
    format!(
        "# A stand-in for {unit}: put your own unit here, and what it starts below files/, too.
[Service]
Type=exec
{lines}
"
    )
}

fn manifest(new: &New, mount: Option<&str>, trees: &[String]) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let unit = text(&new.unit);
    let (description, mount, umount) = match mount.map(text) {
        Some(mount) => {
            let umount = format!("\n    [\"umount\", {mount}],");
            ("leaves no mount when it stops", format!("mount = {mount}"), umount)
        }
        None => ("ends cleanly when it stops", "# mount = \"/srv/demo\"".to_owned(), String::new()),
    };
    let description = text(&format!("{} {description}", new.unit));
    let (user, systemctl) = match &new.user {
        Some(user) => {
            let name = text(user);
            let user = format!(
                "
# Of the manager of this user, who is made with what lies in files/home/{user}.
user = {name}"
            );
            (user, format!("\"runuser\", \"-u\", {name}, \"--\", \"systemctl\", \"--user\""))
        }
        None => (String::new(), "\"systemctl\"".to_owned()),
    };
    let trees: Vec<String> = trees.iter().map(|tree| text(tree)).collect();
    let deploy = match trees.as_slice() {
        [] => "# Directories of the host that are laid over the machine's / before files/, by their paths from here:
# [deploy]
# trees = [\"../../deploy\"]"
            .to_owned(),
        trees => format!(
            "# Laid over the machine's / before files/. The paths are from here.
[deploy]
trees = [{}]",
            trees.join(", ")
        ),
    };
    // Nobody knows how long another unit takes.
    let bound = if new.unit_file.is_none() { "" } else { "# " };
    format!(
        "# A machine boots with systemd, gets files/ laid over its /, and runs the cycles: start, reset, and who held the
# mount meanwhile. docs/scenarios.md has all keys, each with an example.
description = {description}
unit = {unit}{user}
# What is watched, if it mounts: it must be mounted when the reset begins, and gone when it has ended.
{mount}
cycles = 3

# Once, before the first cycle.
setup = [[{systemctl}, \"daemon-reload\"]]
# It must return when the unit is up and its mount is there.
start = [{systemctl}, \"start\", {unit}]
reset = [{systemctl}, \"stop\", {unit}]
# After a cycle that left something, so that the next one begins clean. Not measured.
recover = [{umount}
    [{systemctl}, \"reset-failed\", {unit}],
]

{deploy}

# What every cycle must be. What is left out must be clean: the unit inactive, nothing mounted, nobody who held it.
[expect]
# In milliseconds of the machine's time.
{bound}reset_max_ms = 1000
"
    )
}

/// A path from a directory, which need not be there yet.
fn relative(from: &Path, to: &Path) -> Result<String> {
    let whole = |path: &Path| -> Result<PathBuf> {
        let path = std::path::absolute(path).with_context(|| format!("the path of {}", path.display()))?;
        // What is there may be a link, or be named with `..`.
        let there = path.ancestors().find(|above| above.exists()).unwrap_or(&path);
        let rest = path.strip_prefix(there)?;
        Ok(there.canonicalize().with_context(|| format!("find {}", there.display()))?.join(rest))
    };
    let (from, to) = (whole(from)?, whole(to)?);
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    let up = from.iter().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.into_iter().skip(common)).collect();
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    fn demo() -> New {
        New { unit: "demo.service".to_owned(), ..New::default() }
    }

    #[test]
    fn it_is_a_scenario_and_is_not_overwritten() {
        let root = tempfile::tempdir().expect("tempdir");
        let directory = root.path().join("a/first");
        let written = write(&directory, &demo()).expect("write");
        let at = |name: &str| directory.join(name);
        assert_eq!(written, [at("scenario.toml"), at("files/etc/systemd/system/demo.service")]);
        let read = |path: &PathBuf| std::fs::read_to_string(path).expect("read");
        insta::assert_snapshot!("new", written.iter().map(read).collect::<Vec<_>>().join("\n"));
        let Scenario { name, manifest, .. } = Scenario::load(&directory).expect("it is right");
        assert_eq!((name.as_str(), manifest.mount.as_deref()), ("first", Some("/srv/demo")));

        std::fs::write(at("scenario.toml"), "mine").expect("write");
        let error = write(&directory, &demo()).expect_err("it is there").to_string();
        assert!(
            error.contains("scenario.toml is there already") && error.contains("demo.service is there"),
            "{error}"
        );
        assert_eq!(read(&at("scenario.toml")), "mine");
    }

    #[test]
    fn a_unit_of_a_users_manager_is_in_the_home_directory_and_mounts_nothing() {
        let root = tempfile::tempdir().expect("tempdir");
        let directory = root.path().join("first");
        let new = New { user: Some("alice".to_owned()), ..demo() };
        let written = write(&directory, &new).expect("write");
        assert_eq!(written[1], directory.join("files/home/alice/.config/systemd/user/demo.service"));
        let read = |path: &PathBuf| std::fs::read_to_string(path).expect("read");
        insta::assert_snapshot!("new_of_a_user", written.iter().map(read).collect::<Vec<_>>().join("\n"));
        let Scenario { manifest, .. } = Scenario::load(&directory).expect("it is right");
        assert_eq!((manifest.user.as_deref(), manifest.mount), (Some("alice"), None));

        let new = New { user: Some("Alice".to_owned()), mount: Some("/m".to_owned()), ..demo() };
        let error = write(&root.path().join("second"), &new).expect_err("wrong").to_string();
        assert!(error.contains("--user: \"Alice\"") && error.contains("--mount: a user's unit"), "{error}");
    }

    #[test]
    fn what_the_user_has_is_taken() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("deploy/etc")).expect("mkdir");
        std::fs::write(at("mine.service"), "[Service]\n").expect("write");
        std::fs::write(at("server"), "#!/bin/sh\n").expect("write");
        std::fs::set_permissions(at("server"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let new = New {
            unit: "game@3.service".to_owned(),
            user: None,
            mount: Some("/var/lib/game".to_owned()),
            unit_file: Some(at("mine.service")),
            files: vec![
                at("deploy").display().to_string(),
                format!("{}:/usr/local/bin/server", at("server").display()),
            ],
        };
        let directory = at("scenarios/first");
        let written = write(&directory, &new).expect("write");
        assert_eq!(written[1], directory.join("files/etc/systemd/system/game@.service"));
        let mode = std::fs::metadata(directory.join("files/usr/local/bin/server"))
            .expect("it is there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        let manifest = Scenario::load(&directory).expect("it is right").manifest;
        assert_eq!(manifest.deploy.trees, [Path::new("../../deploy")]);
        assert_eq!(
            (manifest.unit.as_str(), manifest.mount.as_deref()),
            ("game@3.service", Some("/var/lib/game"))
        );
    }

    #[test]
    fn a_unit_of_the_users_need_not_mount() {
        let root = tempfile::tempdir().expect("tempdir");
        std::fs::write(root.path().join("x"), "[Service]\n").expect("write");
        let directory = root.path().join("first");
        write(&directory, &New { unit_file: Some(root.path().join("x")), ..demo() }).expect("write");
        let manifest = Scenario::load(&directory).expect("it is right").manifest;
        assert_eq!((manifest.mount, manifest.recover.len()), (None, 1));
        assert_eq!(manifest.description, "demo.service ends cleanly when it stops");
    }

    #[test]
    fn all_that_is_wrong_is_said_and_nothing_is_written() {
        let root = tempfile::tempdir().expect("tempdir");
        let file = root.path().join("x");
        std::fs::write(&file, "").expect("write");
        let new = New {
            unit: "demo".to_owned(),
            user: None,
            mount: Some("srv".to_owned()),
            unit_file: Some("/no/such".into()),
            files: vec![
                file.display().to_string(),
                "/no/tree".to_owned(),
                format!("{}:bin/x", file.display()),
            ],
        };
        let error = write(&root.path().join("first"), &new).expect_err("all wrong");
        let words = error.to_string();
        for part in
            ["--unit: ", "--mount: ", "--unit-file /no/such", "say where it goes", "it is not there", "bin/x"]
        {
            assert!(words.contains(part), "{part} is not in {words}");
        }
        assert!(error.is::<WrongInput>() && !root.path().join("first").exists());
    }
}
