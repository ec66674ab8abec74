//! `cargo xtask vm-test --image nixos --guest DIR`, on a guest that has NixOS' shape and is none: what that is says
//! `vm-tests/fixtures/store-guest/README.md`. The product's own scenario has the outcome there that it has on Debian, and a
//! path of Debian's, planted, is seen.

#[path = "../src/left4me.rs"]
mod left4me;
#[path = "store-guest/root.rs"]
mod root;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use root::{Root, store};
use serde::Deserialize;
use vm_tests::host::accel;
use vm_tests::host::events;
use vm_tests::host::process::{self, Program, Sink};
use vm_tests::host::tools::{self, Need};
use vm_tests::image::{self, Request, Suite, programs};
use vm_tests::workspace::Workspace;

/// Of Nix, and of a second's work with squashfs.
const DEADLINE: Duration = Duration::from_secs(300);
/// A boot and some runs, with the builds before them.
const VM_DEADLINE: Duration = Duration::from_secs(1800);

/// The guest's name: it is not called NixOS.
const NAME: &str = "store-guest";

/// What is run on it: the product's scenario, as it is; what the module adds to that; and one that plants a path.
const SCENARIOS: [&str; 3] =
    ["overlay-unit", "xtask/tests/store-guest/as-configured", "xtask/tests/store-guest/planted-path"];

fn main() -> ExitCode {
    accel::child_main_if_asked();
    let arguments = Arguments::from_args();
    events::listen_to_lines(|line| eprintln!("{line}"));
    let trial = Trial::test("store-guest", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(store_guest()).map_err(|error| Failed::from(format!("{error:#}")))
    });
    let list = Trial::test("a-list-is-reshaped", || {
        root::is_reshaped().map_err(|error| format!("{error:#}").into())
    });
    libtest_mimic::run(&arguments, vec![list, trial]).exit_code()
}

async fn store_guest() -> Result<()> {
    let workspace = left4me::workspace()?;
    let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join(NAME);
    make_guest(&workspace, &here).await?;
    let results = here.join("results");
    let run = Program::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["vm-test", "--image", "nixos", "--clock", "virtual", "--guest"])
        .arg(&here)
        .arg("--results")
        .arg(&results)
        .args(SCENARIOS)
        .current_dir(&workspace.root)
        .stdout(Sink::Inherit)
        .stderr(Sink::Inherit);
    let mut child = run.spawn()?;
    let status = tokio::time::timeout(VM_DEADLINE, child.wait()).await.context("it takes too long")??;
    ensure!(
        status.success(),
        "{}: {}; results: {}",
        child.argv(),
        process::describe(status),
        results.display()
    );
    // By its own name.
    for scenario in SCENARIOS.iter().filter_map(|path| path.rsplit('/').next()) {
        let report = results.join(NAME).join(scenario).join("report.json");
        ensure!(report.is_file(), "no {}", report.display());
    }
    Ok(())
}

/// What the NixOS module makes of the host that `nix/guest.nix` describes.
#[derive(Debug, Deserialize)]
struct Configured {
    units: BTreeMap<String, Unit>,
    rules: Vec<String>,
    groups: Vec<String>,
    users: BTreeMap<String, User>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unit {
    text: String,
    override_strategy: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    group: String,
    extra_groups: Vec<String>,
}

/// The directory that `nix build .#guest` makes, for this guest: the trixie image in another shape.
async fn make_guest(workspace: &Workspace, here: &Path) -> Result<()> {
    let request = Request {
        suite: Suite::Trixie,
        mirror: std::env::var(image::MIRROR_VAR).ok().filter(|mirror| !mirror.is_empty()),
        ..Request::default()
    };
    // squashfs-tools: an image may be there that another machine has made.
    tools::ensure(&[Need::Image], None, here).await?;
    let image = image::ensure(&request, &workspace.cache()?).await?;
    let binaries = programs::guest_binaries(workspace).await?;
    let configured = configured(workspace, here).await?;

    fs::create_dir_all(here).with_context(|| format!("create {}", here.display()))?;
    let (list, empty) = (here.join("list"), here.join("empty"));
    process::output(Program::new("unsquashfs").arg("-pf").arg(&list).arg(&image.root), DEADLINE).await?;
    let mut root = Root::parse(fs::read(&list).with_context(|| format!("read {}", list.display()))?)?;
    root.reshape()?;
    let read = |name: &str| fs::read(binaries.path(name)?).with_context(|| format!("read {name}"));
    let (helper, ctl) = (read("left4me-overlay")?, read("l4d2ctl")?);
    install(&mut root, &helper, &ctl, &configured)?;
    has_the_shape(&root)?;

    fs::write(&list, root.into_bytes()).with_context(|| format!("write {}", list.display()))?;
    fs::create_dir_all(&empty).with_context(|| format!("create {}", empty.display()))?;
    let squashfs = here.join("root.squashfs");
    let pack = Program::new("mksquashfs")
        .args([&empty, &squashfs])
        .args([
            "-noappend",
            "-noI",
            "-noD",
            "-noF",
            "-noX",
            "-no-progress",
            "-quiet",
            "-root-mode",
            "0755",
            "-pf",
        ])
        .arg(&list)
        .env("SOURCE_DATE_EPOCH", root::STAMP);
    process::output(pack, DEADLINE).await?;
    fs::remove_file(&list).with_context(|| format!("delete {}", list.display()))?;
    for (name, target) in [("kernel", &image.kernel), ("modules", &image.modules)] {
        replace_link(&here.join(name), target)?;
    }
    fs::write(here.join("name"), format!("{NAME}\n")).context("write the guest's name")
}

fn replace_link(at: &Path, target: &PathBuf) -> Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("delete {}", at.display()));
        }
        _gone => {}
    }
    std::os::unix::fs::symlink(target, at).with_context(|| format!("link {}", at.display()))
}

/// Asks Nix, with the stand-in for nixpkgs, in a store of its own that nothing is put into.
async fn configured(workspace: &Workspace, here: &Path) -> Result<Configured> {
    tools::ensure(&[Need::Flake], None, here).await?;
    let scratch = tempfile::tempdir().context("make a directory")?;
    let mut evaluate = Program::new("nix-instantiate")
        .args(["--eval", "--strict", "--json"])
        .arg(workspace.root.join("xtask/tests/store-guest/configured.nix"))
        .args(["--argstr", "root"])
        .arg(&workspace.root)
        .args(["--argstr", "left4me", &store("left4me"), "--argstr", "systemd", &store("systemd")])
        .env("NIX_USER_CONF_FILES", "")
        .env("NIX_REMOTE", "local")
        .env("HOME", scratch.path());
    for variable in ["NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_CONF_DIR"] {
        evaluate = evaluate.env(variable, scratch.path().join(variable));
    }
    let said = process::output(evaluate, DEADLINE).await?;
    serde_json::from_slice(&said.stdout).context("what Nix says is not JSON")
}

/// The product, as its module configures it, and the script that a guest starts by.
fn install(root: &mut Root, helper: &[u8], ctl: &[u8], configured: &Configured) -> Result<()> {
    let [system, etc, path, units] = ["system", "etc", "system-path", "system-units"].map(store);
    let (package, systemd) = (store("left4me"), store("systemd"));
    root.put(&format!("{package}/bin/l4d2ctl"), "755 0 0", ctl);
    root.put(&format!("{package}/libexec/left4me/left4me-overlay"), "755 0 0", helper);
    root.link(&format!("{path}/bin/l4d2ctl"), &format!("{package}/bin/l4d2ctl"));

    for (name, unit) in &configured.units {
        // A name in the store has no @, but what is in it may.
        let at = format!("{}/{name}", store(&format!("unit-{}", name.replace('@', "-"))));
        root.put(&at, "444 0 0", unit.text.as_bytes());
        match unit.override_strategy.as_str() {
            "asDropin" => root.link(&format!("{units}/{name}.d/overrides.conf"), &at),
            _whole => root.link(&format!("{units}/{name}"), &at),
        }
    }
    root.link(&format!("{etc}/etc/systemd/system"), &units);
    let rules = configured.rules.iter().map(|rule| format!("{rule}\n")).collect::<String>();
    root.put(&format!("{etc}/etc/tmpfiles.d/00-nixos.conf"), "444 0 0", rules.as_bytes());
    accounts(root, &format!("{etc}/etc"), configured)?;

    root.link(&format!("{system}/etc"), &format!("{etc}/etc"));
    root.link(&format!("{system}/sw"), &path);
    root.link(&format!("{system}/systemd"), &systemd);
    let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vm-tests/fixtures/store-guest/init");
    let text = fs::read_to_string(&init).with_context(|| format!("read {}", init.display()))?;
    let text = [("@path@", &path), ("@system@", &system), ("@systemd@", &systemd)]
        .into_iter()
        .fold(text, |text, (name, to)| text.replace(name, to));
    root.put(&format!("{system}/init"), "555 0 0", text.as_bytes());
    root.link("/init", &format!("{system}/init"));
    Ok(())
}

/// Users and groups of the module's, by numbers that are free in a Debian image.
fn accounts(root: &mut Root, etc: &str, configured: &Configured) -> Result<()> {
    let number = |name: &str| configured.groups.iter().position(|group| group == name).map(|at| 900 + at);
    let mut groups = root.text(&format!("{etc}/group"))?;
    for name in &configured.groups {
        let members = configured.users.iter().filter(|(_, user)| user.extra_groups.contains(name));
        let members: Vec<&str> = members.map(|(user, _)| user.as_str()).collect();
        groups += &format!("{name}:x:{}:{}\n", number(name).context("a number")?, members.join(","));
    }
    let mut users = root.text(&format!("{etc}/passwd"))?;
    for (name, user) in &configured.users {
        let id = number(&user.group).with_context(|| format!("{name} has no group {}", user.group))?;
        users += &format!("{name}:x:{id}:{id}::/var/empty:/run/current-system/sw/bin/nologin\n");
    }
    root.put(&format!("{etc}/group"), "644 0 0", groups.as_bytes());
    root.put(&format!("{etc}/passwd"), "644 0 0", users.as_bytes());
    Ok(())
}

/// What the guest is for: a program that is found at one of Debian's places is found nowhere.
fn has_the_shape(root: &Root) -> Result<()> {
    for path in root.paths() {
        let is_out = ["/usr/bin", "/usr/sbin", "/usr/local", "/bin", "/sbin", "/etc"]
            .iter()
            .any(|out| path == *out || path.starts_with(&format!("{out}/")));
        ensure!(!is_out, "{path} is in the root of a guest that has nothing there");
    }
    Ok(())
}
