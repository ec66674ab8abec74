//! The flake, as far as it can be seen without nixpkgs: it is evaluated with the stand-in that `nix/stand-in` has, the units'
//! text is compared with the shipped one, and mistakes that people make in such a flake are seen.
//!
//! Nix is the one on `PATH`, installed where it is missing. It works in a store of its own, which goes afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;
use vm_tests::host::process::{self, Program};
use vm_tests::host::tools::{self, Need};

#[path = "flake/page.rs"]
mod page;

/// Of one evaluation, on a busy host.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where a Debian host has the units.
const UNITS: &str = "deploy/files/usr/local/lib/systemd/system";

/// The document whose first block of Nix is a host with one server, and the second that host's flake.
const DOCUMENT: &str = "docs/nixos.md";

/// Nix is there, or why not. The first test installs it, and the others wait for that.
static NIX: OnceLock<Result<(), String>> = OnceLock::new();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = vec![
        trial("the-documents-one-server", one_server),
        trial("the-documents-flake-of-a-host", hosts_flake),
        trial("three-servers", three_servers),
        trial("outputs", outputs),
        trial("the-package-has-what-the-manifest-lists", package),
        trial("the-operators-page-if-it-is-enabled", page::enabled),
        trial("the-pages-package-has-what-its-manifest-lists", page::package),
    ];
    trials.extend(
        MISTAKES.iter().map(|mistake| trial(mistake.name, async |tree: &Tree| mistake.is_seen(tree).await)),
    );
    trials.extend(REFUSED.iter().map(|&(name, host, words)| {
        trial(name, async move |tree: &Tree| {
            let said = failure(tree.seen(&tree.file("host.nix", host)?).await)?;
            ensure!(said.contains(words), "not for the reason {words:?}: {said}");
            Ok(())
        })
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test with a copy of the flake of its own.
fn trial(name: &'static str, case: impl AsyncFnOnce(&Tree) -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ensure = || {
            let logs = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let installed = runtime.block_on(tools::ensure(&[Need::Flake], None, logs));
            installed.map_err(|error| format!("{error:#}"))
        };
        NIX.get_or_init(ensure).clone()?;
        let whole = async {
            let tree = Tree::copy()?;
            let result = case(&tree).await;
            tree.remove().await.and(result)
        };
        runtime.block_on(whole).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// The documents' configuration is what they say it is.
async fn one_server(tree: &Tree) -> Result<()> {
    let [configuration, _flake] = blocks()?;
    let lines = configuration.lines().count();
    ensure!(lines <= 10, "{DOCUMENT}: a server takes {lines} lines, and ten were promised");
    let seen = tree.right(&tree.file("host.nix", &configuration)?).await?;
    ensure!(seen["wants"] == json!(["left4me-server@3.service"]), "{}", seen["wants"]);
    ensure!(seen["ports"] == json!([27015]), "{}", seen["ports"]);
    Ok(())
}

/// The documents' flake of a host takes the module, and the configuration beside it.
async fn hosts_flake(tree: &Tree) -> Result<()> {
    let [configuration, flake] = blocks()?;
    let host = tree.path.join("host");
    fs::create_dir_all(&host).with_context(|| format!("create {}", host.display()))?;
    tree.file("host/flake.nix", &flake)?;
    tree.file("host/configuration.nix", &configuration)?;
    let wants = tree.evaluated("xtask/tests/flake/documented.nix", &host).await?;
    ensure!(wants == json!(["left4me-server@3.service"]), "{wants}");
    Ok(())
}

/// The document's first two blocks of Nix: a host's configuration, and its flake.
fn blocks() -> Result<[String; 2]> {
    let text = fs::read_to_string(root().join(DOCUMENT)).with_context(|| format!("read {DOCUMENT}"))?;
    let mut blocks = text.split("```nix\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut next =
        || blocks.next().map(str::to_owned).with_context(|| format!("{DOCUMENT} has no such block"));
    Ok([next()?, next()?])
}

/// Every option ends up where systemd, the helper or NixOS reads it.
async fn three_servers(tree: &Tree) -> Result<()> {
    let seen = tree.right(&root().join("xtask/tests/flake/three.nix")).await?;
    let expected = json!({
        "units": {
            "left4me-overlay@3.service": "[Service]\nX-RestartIfChanged=false\n",
            "left4me-overlay@eu-1.service": "[Service]\nX-RestartIfChanged=false\n",
            "left4me-overlay@x_y.service": "[Service]\nX-RestartIfChanged=false\n",
            "left4me-server@3.service": "[Service]\nX-RestartIfChanged=false\nEnvironment=PATH=/run/current-system/sw/bin\n",
            "left4me-server@eu-1.service": "[Service]\nX-RestartIfChanged=false\nEnvironment=PATH=/run/current-system/sw/bin\nTasksMax=1024\nCPUQuota=50%\nMemoryMax=6G\n\
                LimitFSIZE=1G\nIPAddressDeny=10.0.0.0/8 fe80::/10\nSocketBindDeny=any\nSocketBindAllow=udp:27016\n\
                SocketBindAllow=tcp:27016\n",
            "left4me-server@x_y.service": "[Service]\nX-RestartIfChanged=false\nEnvironment=PATH=/run/current-system/sw/bin\nIOWeight=50\n",
        },
        "wants": ["left4me-server@3.service", "left4me-server@eu-1.service"],
        "files": [
            "f+ /var/lib/left4me/instances/3.toml 0644 root root - overlays = [\"maps\",\"a.1\"]\\n",
            "f+ /var/lib/left4me/instances/3.env 0644 root root - L4D2_IP=\"0.0.0.0\"\\nL4D2_PORT=\"27015\"\\n\
                L4D2_MAP=\"c1m1_hotel\"\\nL4D2_ARGS=\"\"\\n",
            "f+ /var/lib/left4me/instances/eu-1.toml 0644 root root - overlays = []\\n",
            "f+ /var/lib/left4me/instances/eu-1.env 0644 root root - L4D2_IP=\"0.0.0.0\"\\nL4D2_PORT=\"27016\"\\n\
                L4D2_MAP=\"c1m1_hotel\"\\nL4D2_ARGS=\"+hostname \\\\\"50%% off \\\\$x \\\\\\\\ \\\\`\\\\\" \"\\n",
            "f+ /var/lib/left4me/instances/x_y.toml 0644 root root - overlays = []\\n",
            "f+ /var/lib/left4me/instances/x_y.env 0644 root root - L4D2_IP=\"192.0.2.1\"\\nL4D2_PORT=\"27017\"\\n\
                L4D2_MAP=\"c2m1_highway\"\\nL4D2_ARGS=\"\"\\n",
        ],
        "ports": [27015, 27016, 27017],
        "accounts": {
            "left4me-3": { "uid": null, "group": "left4me-3", "extraGroups": ["left4me"] },
            "left4me-eu-1": { "uid": 801, "group": "left4me-eu-1", "extraGroups": ["left4me"] },
            "left4me-x_y": { "uid": null, "group": "left4me-x_y", "extraGroups": ["left4me"] },
        },
        "groups": { "left4me": null, "left4me-3": null, "left4me-eu-1": 801, "left4me-x_y": null },
    });
    for (what, expected) in expected.as_object().context("an object")? {
        let seen = match what.as_str() {
            "units" => drop_ins(&seen)?,
            "files" => of_instances(&seen["rules"])?,
            what => seen[what].clone(),
        };
        ensure!(seen == *expected, "{what}:\n{seen:#}\nnot:\n{expected:#}");
    }
    Ok(())
}

async fn outputs(tree: &Tree) -> Result<()> {
    let seen = tree.right(&root().join("xtask/tests/flake/three.nix")).await?;
    let expected = json!({
        "apps": ["vm-test"],
        "checks": [
            "clippy", "format", "guest-programs", "harness", "holders", "left4me", "left4me-web", "unit-tests", "units", "vm",
            "xtask",
        ],
        "devShells": ["default"],
        "nixosConfigurations": ["guest"],
        "nixosModules": ["default", "left4me"],
        "packages": ["default", "guest", "guest-programs", "holders", "left4me", "left4me-web", "xtask"],
    });
    ensure!(seen["outputs"] == expected, "{:#}", seen["outputs"]);
    // What CI builds and runs is there.
    let workflow =
        fs::read_to_string(root().join(".github/workflows/ci.yml")).context("read the workflow")?;
    let named: Vec<&str> = workflow
        .lines()
        .filter(|line| line.trim_start().trim_start_matches("- ").starts_with("run: nix "))
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.strip_prefix(".#"))
        .collect();
    ensure!(named.len() > 2, "the workflow builds {named:?} only");
    let known = |name: &&str| {
        ["apps", "packages"].iter().any(|kind| {
            expected[kind].as_array().is_some_and(|names| names.iter().any(|known| known == name))
        })
    };
    ensure!(named.iter().all(known), "not all are outputs: {named:?}");
    Ok(())
}

/// Where the package has the manifest's places; not those that the module has.
const PLACES: &[(&str, &str)] = &[
    ("{bin}", "bin"),
    ("{libexec}", "libexec"),
    ("{man}", "share/man"),
    ("{bash}", "share/bash-completion/completions"),
    ("{fish}", "share/fish/vendor_completions.d"),
    ("{zsh}", "share/zsh/site-functions"),
    ("{doc}", "share/doc/left4me"),
];

async fn package(tree: &Tree) -> Result<()> {
    let out = installed(tree, "deploy/manifest.toml", "install", PLACES).await?;
    let page = fs::read_to_string(out.join("share/man/man8/left4me-overlay.8"))?;
    let helper = format!("{}/libexec/left4me/", out.display());
    ensure!(
        page.contains(&helper) && !page.contains("/usr/local/"),
        "the page's paths are not the package's: {page}"
    );
    Ok(())
}

/// A package's last step is run, with programs that are none; where it has put the files, which are those of the list.
async fn installed(tree: &Tree, list_of_it: &str, step: &str, places: &[(&str, &str)]) -> Result<PathBuf> {
    let text = fs::read_to_string(root().join(list_of_it)).context("read the manifest")?;
    let manifest: toml::Table = text.parse().context("parse the manifest")?;
    let table = |name: &str| manifest[name].as_table().cloned().with_context(|| format!("no {name}"));
    let (programs, files) = (table("programs")?, table("files")?);

    let out = tree.path.join("out");
    fs::create_dir_all(out.join("bin"))?;
    for program in programs.values() {
        let name = program["program"].as_str().context("a program's name")?;
        copy(Path::new("/bin/sh"), &out.join("bin").join(name))?;
    }
    let seen = tree.seen(&root().join("xtask/tests/flake/three.nix")).await?;
    // What nixpkgs has of it in every build.
    let substitute = "substituteInPlace() { files=; \
                      while [ \"$1\" != --replace-quiet ]; do files=\"$files $1\"; shift; done; \
                      sed -i \"s|$2|$3|g\" $files; }";
    let script = format!("set -eu\n{substitute}\n{}", seen[step].as_str().context("no script")?);
    process::output(Program::new("sh").arg("-c").arg(script).env("out", &out), DEADLINE).await?;

    let of_nixos =
        files.iter().filter(|(_, file)| file.get("only").and_then(|only| only.as_str()) != Some("deb"));
    let keys = programs.keys().chain(of_nixos.map(|(key, _)| key));
    let mut expected: Vec<String> = keys
        .filter_map(|key| {
            places.iter().find_map(|(place, here)| Some(format!("{here}{}", key.strip_prefix(place)?)))
        })
        .collect();
    expected.sort();
    let mut there = Vec::new();
    list(&out, &out, &mut there)?;
    there.sort();
    ensure!(there == expected, "{there:#?}\nnot:\n{expected:#?}");
    Ok(out)
}

/// The files below a directory, by their paths from `root`.
fn list(root: &Path, directory: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(root, &path, files)?;
        } else {
            files.push(path.strip_prefix(root)?.display().to_string());
        }
    }
    Ok(())
}

/// What somebody does to the flake without noticing.
struct Mistake {
    name: &'static str,
    file: &'static str,
    /// What is replaced, and by what. Without it the file is removed.
    change: Option<(&'static str, &'static str)>,
    /// A part of what is said about it.
    words: &'static str,
}

impl Mistake {
    const fn new(
        name: &'static str,
        file: &'static str,
        from: &'static str,
        to: &'static str,
        words: &'static str,
    ) -> Self {
        Self { name, file, change: Some((from, to)), words }
    }

    async fn is_seen(&self, tree: &Tree) -> Result<()> {
        let path = tree.flake().join(self.file);
        match self.change {
            None => fs::remove_file(&path)?,
            Some((from, to)) => {
                let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                ensure!(text.matches(from).count() == 1, "{} has {from:?} not once", self.file);
                fs::write(&path, text.replace(from, to))?;
            }
        }
        let said = failure(tree.right(&root().join("xtask/tests/flake/three.nix")).await)?;
        ensure!(said.contains(self.words), "not for the reason {:?}: {said}", self.words);
        Ok(())
    }
}

const SERVER: &str = "deploy/files/usr/local/lib/systemd/system/left4me-server@.service";
const OVERLAY: &str = "deploy/files/usr/local/lib/systemd/system/left4me-overlay@.service";

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    Mistake::new("a-syntax-error", "nix/module.nix", "instances = lib.attrNames cfg.instances;", "instances = lib.attrNames", "syntax error"),
    Mistake::new("an-undefined-variable", "nix/module.nix", "map (id: \"left4me-server@${id}.service\")", "map (id: \"left4me-server@${name}.service\")", "undefined variable"),
    Mistake::new("a-default-of-the-wrong-type", "nix/module.nix", "default = 27015;", "default = \"27015\";", "port is not of type port"),
    Mistake::new("a-misspelt-option-of-ours-in-use", "nix/vm-test.nix", "port = 27016;", "prot = 27016;", "services.left4me.instances.3.prot does not exist"),
    Mistake { name: "a-missing-unit", file: OVERLAY, change: None, words: "left4me-overlay@.service" },
    Mistake::new("an-at-sign-in-a-path", "nix/tree.nix", "(builtins.readFile one.source)) (at \"units\")", "(builtins.readFile ../deploy/files/left4me-server@.service)) (at \"units\")", "syntax error"),
    Mistake::new("a-misspelt-option-of-nixos", "nix/module.nix", "systemd.tmpfiles.rules =", "systemd.tmpfile.rules =", "systemd.tmpfile does not exist"),
    Mistake::new("an-option-of-nixos-of-the-wrong-type", "nix/module.nix", "environment.systemPackages = [ cfg.package ];", "environment.systemPackages = cfg.package;", "environment.systemPackages is not of type list"),
    Mistake::new("a-misspelt-option-of-a-user", "nix/module.nix", "isSystemUser = true;", "isSystmUser = true;", "isSystmUser does not exist"),
    Mistake::new("a-program-without-a-place-in-the-store", OVERLAY, "ExecStartPre=/usr/bin/", "ExecStartPre=/usr/sbin/", "names a path that NixOS does not have"),
    Mistake::new("a-check-of-a-missing-file", "flake.nix", "import ./nix/vm-test.nix", "import ./nix/vmtest.nix", "vmtest.nix"),
    Mistake::new("a-package-that-there-is-not", "flake.nix", "pkgs.squashfsTools", "pkgs.squashfstool", "attribute 'squashfstool' missing"),
    Mistake::new("an-option-of-a-tests-machine-of-the-wrong-type", "nix/vm-test.nix", "port = 27016;\n        };\n      };", "port = 27016;\n        };\n      };\n      virtualisation.memorySize = \"2G\";", "virtualisation.memorySize is not of type"),
    Mistake::new("an-app-without-a-program", "flake.nix", "program = lib.getExe (", "programm = lib.getExe (", "program"),
    Mistake::new("a-syntax-error-in-the-tests-script", "nix/vm-test.nix", "for cycle in range(5):", "for cycle in range(5)", "SyntaxError"),
    // Beyond those of a flake in general.
    Mistake::new("a-unit-that-is-not-quite-the-shipped-one", "nix/units.nix", "text = here theirs;", "text = here theirs + \"Nice=5\\n\";", "is not the shipped unit"),
    Mistake::new("a-path-that-is-in-no-unit-any-more", "nix/units.nix", "\"/usr/bin/systemd-sysusers\" =", "\"/usr/bin/nsenter\" = \"/nowhere\";\n\"/usr/bin/systemd-sysusers\" =", "no unit names /usr/bin/nsenter"),
    Mistake::new("a-unit-with-another-program", SERVER, "ExecStart=/var/lib/", "ExecStartPre=/bin/true\nExecStart=/var/lib/", "names a path that NixOS does not have"),
    Mistake::new("a-unit-that-the-module-makes-up", "nix/module.nix", "lib.mapAttrs (_: text: { inherit text; })", "lib.mapAttrs (_: text: { text = text + \"# ours\\n\"; })", "is not the shipped one"),
    Mistake::new("a-helper-elsewhere", "nix/tree.nix", "libexec = \"libexec\";", "libexec = \"bin\";", "is not the shipped one"),
    Mistake::new("a-place-that-nixos-has-not", "deploy/manifest.toml", "\"{zsh}/", "\"{csh}/", "NixOS has no such place"),
    Mistake::new("a-file-that-only-the-manifest-has", "deploy/manifest.toml", "\"{zsh}/_l4d2ctl\"", "\"{zsh}/_l4d3ctl\"", "no such file"),
    Mistake::new("a-user-that-debian-alone-gets", "deploy/files/usr/local/lib/sysusers.d/left4me.conf", "g     left4me -", "u     left4me -", "knows groups only"),
    Mistake::new("a-misspelt-option-of-the-guest", "nix/guest.nix", "useDHCP = false;", "useDhcp = false;", "networking.useDhcp does not exist"),
    Mistake::new("a-guest-without-a-kernel", "nix/guest-image.nix", "${build.kernel}/", "${build.kernal}/", "attribute 'kernal' missing"),
    Mistake::new("a-guest-without-a-name", "nix/guest-image.nix", "name = \"name\";", "name = \"nam\";", "and the harness reads"),
    Mistake::new("a-harness-without-a-guest", "flake.nix", "inherit (own) guest xtask;", "inherit (own) gest xtask;", "required argument 'guest'"),
    Mistake::new("a-scenario-that-there-is-not", "nix/harness-test.nix", "overlay-unit\n", "overlay-units\n", "there is no such scenario"),
    Mistake::new("a-check-without-a-command", "flake.nix", "command = \"cargo clippy", "comand = \"cargo clippy", "required argument 'command'"),
    Mistake::new("lints-that-are-warnings", "flake.nix", " -- --deny warnings\";", "\";", "the check clippy has no"),
    Mistake::new("an-argument-that-nixpkgs-has-not", "nix/cargo-check.nix", "nativeBuildInputs = tools;", "nativeBuildInput = tools;", "buildRustPackage has no nativeBuildInput"),
    Mistake::new("a-program-of-the-page-elsewhere", "web/units/left4me-broker.service", "ExecStart=/usr/local/libexec/", "ExecStart=/usr/local/bin/", "names a path that NixOS does not have"),
    Mistake::new("a-member-that-is-not-there", "Cargo.toml", "\nmembers = [", "\nmembers = [\"nobody\", ", "no such file"),
];

/// Hosts that are refused, and why.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "a-name-that-is-none",
        "{ services.left4me = { enable = true; instances.EU = { }; }; }",
        "\"EU\": a name has 1 to 23",
    ),
    (
        "two-servers-on-one-port",
        "{ services.left4me = { enable = true; instances = { a = { }; b = { }; }; }; }",
        "more than one server has port 27015",
    ),
    (
        "a-layer-outside",
        "{ services.left4me = { enable = true; instances.a.layers = [ \"../x\" ]; }; }",
        "instances.a.layers is not of type string that matches",
    ),
    (
        "a-port-that-is-none",
        "{ services.left4me = { enable = true; instances.a.port = 70000; }; }",
        "instances.a.port is not of type port",
    ),
    (
        "arguments-of-two-lines",
        "{ services.left4me = { enable = true; instances.a.arguments = \"+map x\\nL4D2_IP=::\"; }; }",
        "instances.a.arguments is not of type string that matches",
    ),
    (
        "a-page-without-servers",
        "{ services.left4me.page.enable = true; }",
        "it is of no use without services.left4me.enable",
    ),
    (
        "a-page-with-a-name-of-two-words",
        "{ services.left4me = { enable = true; page = { enable = true; hostName = \"a --name b\"; }; }; }",
        "page.hostName is not of type",
    ),
];

/// A copy of what the flake is made of, and a store for its evaluation.
struct Tree {
    directory: TempDir,
    path: PathBuf,
}

impl Tree {
    fn copy() -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory")?;
        // Nix takes no store that is reached through a link.
        let path = fs::canonicalize(directory.path())?;
        let tree = Self { directory, path };
        for name in [
            "flake.nix",
            "flake.lock",
            "Cargo.toml",
            "Cargo.lock",
            "CHANGELOG.md",
            "LICENSE",
            "docs",
            "nix",
            "deploy",
            "web",
        ] {
            copy(&root().join(name), &tree.flake().join(name))?;
        }
        let manifest = fs::read_to_string(tree.flake().join("Cargo.toml"))?;
        let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")?.strip_suffix(']'));
        for member in members.context("no members in Cargo.toml")?.split(',') {
            fs::create_dir_all(tree.flake().join(member.trim().trim_matches('"')))?;
        }
        Ok(tree)
    }

    fn flake(&self) -> PathBuf {
        self.path.join("flake")
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Fails unless all is as it should be with the flake on this host; what was seen of the host.
    async fn right(&self, host: &Path) -> Result<Value> {
        let flake = self.flake();
        let stand_in = format!("path:{}/nix/stand-in", flake.display());
        let check = self
            .nix("nix")
            .args(["flake", "check", "--no-build", "--no-write-lock-file", "--override-input", "nixpkgs"])
            .arg(stand_in)
            .arg(format!("path:{}", flake.display()));
        process::output(check, DEADLINE).await?;
        let seen = self.seen(host).await?;
        let script = self.file("script.py", seen["script"].as_str().context("no script")?)?;
        let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
        process::output(Program::new("python3").args(["-c", parse]).arg(script), DEADLINE).await?;
        units_are_the_shipped_ones(&seen, &self.path)?;
        checks_run_something(&seen)?;
        Ok(seen)
    }

    async fn seen(&self, host: &Path) -> Result<Value> {
        self.evaluated("xtask/tests/flake/seen.nix", host).await
    }

    /// The value of a file of this test's, of the flake and a host.
    async fn evaluated(&self, file: &str, host: &Path) -> Result<Value> {
        let evaluate = self
            .nix("nix-instantiate")
            .args(["--eval", "--strict", "--json", "--read-write-mode"])
            .arg(root().join(file))
            .args(["--argstr", "root"])
            .arg(self.flake())
            .args(["--argstr", "host"])
            .arg(host);
        let said = process::output(evaluate, DEADLINE).await?;
        serde_json::from_slice(&said.stdout).context("what Nix says is not JSON")
    }

    /// Nix with nothing of this host's: no store, no daemon, no settings, no network.
    fn nix(&self, program: &str) -> Program {
        let settings = "experimental-features = nix-command flakes\nsubstitute = false\nbuild-users-group =\nflake-registry =\n";
        let at = |name: &str| self.path.join(name);
        Program::new(program)
            .env("NIX_STORE_DIR", at("store"))
            .env("NIX_STATE_DIR", at("state"))
            .env("NIX_LOG_DIR", at("log"))
            .env("NIX_CONF_DIR", at("conf"))
            .env("NIX_USER_CONF_FILES", "")
            .env("NIX_CONFIG", settings)
            .env("NIX_REMOTE", "local")
            .env("HOME", at("home"))
            .env("XDG_CACHE_HOME", at("cache"))
            .current_dir(&self.path)
    }

    /// A store's directories are read-only: who is not root makes them his again first.
    async fn remove(self) -> Result<()> {
        let writable = Program::new("chmod").args(["-R", "u+w"]).arg(&self.path);
        process::output(writable, DEADLINE).await?;
        self.directory.close().context("remove the store")
    }
}

/// The guest has what the harness reads of one, and the checks that are commands run what there is.
fn checks_run_something(seen: &Value) -> Result<()> {
    let parts = json!(["kernel", "modules", "root.squashfs", "name"]);
    ensure!(seen["guest"] == parts, "the guest has {}, and the harness reads {parts}", seen["guest"]);
    let command = |check: &str| seen["checks"][check].as_str().unwrap_or_default().trim().to_owned();
    let harness = command("harness");
    let run = harness.lines().last().unwrap_or_default();
    ensure!(run.trim().starts_with("xtask vm-test --image nixos --guest "), "the harness is not run: {run}");
    let scenario = run.split_whitespace().next_back().unwrap_or_default();
    let directory = root().join("vm-tests/scenarios").join(scenario);
    ensure!(
        directory.join("scenario.toml").is_file(),
        "the harness runs {scenario}, and there is no such scenario"
    );
    for (check, words) in
        [("clippy", "-- --deny warnings\n"), ("unit-tests", "cargo test --offline --workspace ")]
    {
        let command = command(check);
        ensure!(command.contains(words), "the check {check} has no {words:?}: {command}");
    }
    Ok(())
}

/// The two units are those of a Debian host, byte for byte, once the programs' paths in the store are Debian's.
fn units_are_the_shipped_ones(seen: &Value, scratch: &Path) -> Result<()> {
    for name in ["left4me-server@.service", "left4me-overlay@.service"] {
        let debians = debians(seen, name, scratch)?;
        let shipped =
            fs::read_to_string(root().join(UNITS).join(name)).with_context(|| format!("read {name}"))?;
        let differ = debians.lines().zip(shipped.lines()).find(|(one, other)| one != other);
        ensure!(debians == shipped, "{name} is not the shipped one: {differ:?}");
    }
    Ok(())
}

/// A unit's text, with Debian's paths in place of those in the store.
fn debians(seen: &Value, name: &str, scratch: &Path) -> Result<String> {
    let unit = &seen["units"][name];
    ensure!(unit["overrideStrategy"] == "asDropinIfExists", "{name} is a drop-in");
    let text = unit["text"].as_str().with_context(|| format!("no {name}"))?;
    let store = format!("{}/store/", scratch.display());
    let mut pieces = text.split(store.as_str());
    let mut debians = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // hash-name/directory/...
        let (_package, rest) = piece.split_once('/').unwrap_or((piece, ""));
        let place = if rest.starts_with("libexec/") { "/usr/local/" } else { "/usr/" };
        debians.push_str(place);
        debians.push_str(rest);
    }
    Ok(debians)
}

/// The instances' drop-ins.
fn drop_ins(seen: &Value) -> Result<Value> {
    let units = seen["units"].as_object().context("no units")?;
    let of_instances = units.iter().filter(|(_, unit)| unit["overrideStrategy"] == "asDropin");
    let texts: BTreeMap<_, _> =
        of_instances.map(|(name, unit)| (name.clone(), unit["text"].clone())).collect();
    Ok(json!(texts))
}

/// The lines that write instances' files, the others being the shipped file's.
fn of_instances(rules: &Value) -> Result<Value> {
    let rules = rules.as_array().context("no rules")?;
    let (files, directories): (Vec<_>, Vec<_>) =
        rules.iter().filter_map(Value::as_str).partition(|rule| rule.starts_with("f+ "));
    let shipped = fs::read_to_string(root().join("deploy/files/usr/local/lib/tmpfiles.d/left4me.conf"))?;
    let lines: Vec<_> = shipped.lines().filter(|line| !line.starts_with('#')).collect();
    ensure!(directories == lines, "{directories:?} are not the shipped directories");
    Ok(json!(files))
}

/// What was said of what should fail.
fn failure(result: Result<Value>) -> Result<String> {
    match result {
        Ok(_seen) => anyhow::bail!("nobody noticed"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to.parent().context("no parent")?).with_context(what)?;
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).with_context(what);
    }
    fs::create_dir_all(to).with_context(what)?;
    for entry in fs::read_dir(from).with_context(what)? {
        let entry = entry.with_context(what)?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace")
}
