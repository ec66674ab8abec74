//! The static binaries that run inside a guest: built by cargo, and proved to be static.
//!
//! They are the harness's own (`vm-agent`, `vm-init`) and the deployed software's. All are linked statically, so
//! that one build runs in every guest, whatever libc it has, and before there is any root file system. Cargo
//! decides what is out of date; a target directory of its own keeps the other flags from rebuilding the
//! workspace, and cargo from waiting for the cargo that runs us.
//!
//! The same sources, compiler and libc give the same bytes wherever they are built: see `flags`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::host::events::{self, Event};
use crate::host::process::{self, Program, Stream};
use crate::host::tools;
use crate::image::flags::{self, Directories};
use crate::workspace::{self, OWN, Package, Workspace};

pub use crate::image::flags::cargo_home;

/// A cold build takes two minutes on two old cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// [`OWN`] lies beside the library, wherever that lies.
const OWN_MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/agent/Cargo.toml");

/// What goes into a guest: small, quick to load under emulation. Unwinding stays on: guards need it. Given on the command
/// line, since cargo reads profiles from the workspace alone that it is run in. Two codegen units occupy two cores; four are a fifth
/// more to compile after an edit, and programs that are larger and no quicker.
const PROFILE: [&str; 5] =
    ["inherits='release'", "opt-level=2", "debug=false", "strip=true", "codegen-units=2"];

/// The same sources in seconds, for whoever waits after each edit: cargo compiles anew what an edit has changed of a crate, and not the
/// crate. Other bytes than [`PROFILE`] gives.
const QUICK_PROFILE: [&str; 6] = [
    "inherits='release'",
    "opt-level=1",
    "debug=false",
    "strip=true",
    "incremental=true",
    "codegen-units=256",
];

/// How programs of a workspace are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// As a host gets them: the same bytes wherever they are built.
    #[default]
    Shipped,
    /// Anew in seconds after an edit, as other bytes. The first build takes as long as any.
    Quick,
}

impl Mode {
    fn profile(self) -> &'static [&'static str] {
        match self {
            Self::Shipped => &PROFILE,
            Self::Quick => &QUICK_PROFILE,
        }
    }

    /// Below the target directory.
    fn directory(self) -> &'static str {
        match self {
            Self::Shipped => "guest",
            Self::Quick => "guest-quick",
        }
    }
}

/// The guest's binaries, each proved to be static.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestBinaries {
    by_name: BTreeMap<String, PathBuf>,
}

impl GuestBinaries {
    /// Those of a workspace that lie in this directory already.
    ///
    /// # Errors
    /// If one is missing, or is not static.
    pub fn of_directory(workspace: &Workspace, directory: &Path) -> anyhow::Result<Self> {
        let packages = [&OWN].into_iter().chain(workspace.packages);
        let names = packages.flat_map(|package| package.binaries);
        let by_name = names.map(|name| ((*name).to_owned(), directory.join(name))).collect();
        let what = || format!("{}: `cargo xtask programs` builds and lists them", directory.display());
        Self::proved(by_name).with_context(what)
    }

    fn proved(by_name: BTreeMap<String, PathBuf>) -> anyhow::Result<Self> {
        for path in by_name.values() {
            let elf = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            match interpreter(&elf).with_context(|| format!("read {} as ELF", path.display()))? {
                None => {}
                Some(loader) => bail!("{} is not static: it asks for {loader}", path.display()),
            }
        }
        Ok(Self { by_name })
    }

    /// The path of one of them.
    ///
    /// # Errors
    /// If cargo built no such binary.
    pub fn path(&self, name: &str) -> anyhow::Result<&Path> {
        let known = || self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let path = self
            .by_name
            .get(name)
            .with_context(|| format!("no guest binary {name}; there are {}", known()))?;
        Ok(path)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.by_name.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }
}

/// Builds the guest's binaries where they are out of date: the harness's own, and those of the workspace. In one build where
/// the harness is a part of the workspace, as they share dependencies; else from the harness's own sources, since cargo takes
/// no features of a dependency from the workspace that has it.
///
/// Cargo's progress and diagnostics are told as they come.
///
/// # Errors
/// If the build fails (cargo has said why), if a binary is not static, or on an interrupt.
pub async fn guest_binaries(workspace: &Workspace) -> anyhow::Result<GuestBinaries> {
    Builder::new(workspace)?.guest_binaries().await
}

/// The same, with those of the workspace as [`Mode::Quick`] gives them. The harness's own are in saved machines, and stay what they
/// are.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn guest_binaries_quickly(workspace: &Workspace) -> anyhow::Result<GuestBinaries> {
    Builder::new(workspace)?.guest_binaries_quickly().await
}

/// Which programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// [`guest_binaries`].
    Guests,
    /// All that guests and hosts get: those, [`holders`], [`perturber`], and each of these by itself, as [`program`] builds it: a package
    /// and its binary.
    All(&'a [(&'a str, &'a str)]),
}

/// Builds programs as [`guest_binaries`] does.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn build(workspace: &Workspace, which: Which<'_>) -> anyhow::Result<GuestBinaries> {
    Builder::new(workspace)?.which(which).await
}

/// Which directories of this build its programs name: none, if each has its name of `flags`. A line for each, in words.
///
/// # Errors
/// If a program can't be read.
pub async fn named_directories(
    workspace: &Workspace,
    programs: &GuestBinaries,
) -> anyhow::Result<Vec<String>> {
    let builder = Builder::new(workspace)?;
    let compiler = Compiler::ask(&workspace.root).await?;
    let sources = [&builder.own_sources, &workspace.root];
    let directories = sources.map(|sources| builder.directories(sources, &compiler));
    let mut said = Vec::new();
    for (name, path) in programs.iter() {
        let program = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let mut named = BTreeSet::new();
        for directories in &directories {
            named.extend(directories.named_in(&program)?);
        }
        said.extend(named.into_iter().map(|directory| format!("{name} names {directory}")));
    }
    Ok(said)
}

/// As [`build`], of a copy of a workspace that has the harness in it, at the same place: with crates from another `CARGO_HOME`, and
/// nothing from the network. Whether the place gets into a program is seen so.
///
/// # Errors
/// As [`guest_binaries`]; if the workspace lacks the harness, or the copy.
pub async fn build_copy(
    workspace: &Workspace,
    which: Which<'_>,
    copy: &Workspace,
    cargo_home: &Path,
) -> anyhow::Result<GuestBinaries> {
    let builder = Builder::new(workspace)?;
    let inside = builder.own_sources.join("vm-tests/agent/Cargo.toml");
    ensure!(workspace.has(&inside), "{} is no part of {}", inside.display(), workspace.root.display());
    let inside = inside.strip_prefix(&builder.own_sources)?.to_owned();
    let copied = Builder {
        workspace: copy,
        own: copy.root.join(inside),
        own_sources: copy.root.clone(),
        cargo_home: cargo_home.to_owned(),
        offline: true,
    };
    copied.which(which).await
}

/// Cargo's arguments for a package's binaries.
fn arguments(package: &Package) -> Vec<&'static str> {
    let binaries = package.binaries.iter().flat_map(|binary| ["--bin", binary]);
    ["--package", package.name].into_iter().chain(binaries).collect()
}

/// Builds `holders`, for whoever looks around in a guest. Apart from the others: in one build with them, cargo would give the
/// root helper the features that only the command needs.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn holders(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    Ok(Builder::new(workspace)?.own(&HOLDERS).await?.path("holders")?.to_owned())
}

/// Cargo's arguments for it.
const HOLDERS: [&str; 4] = ["--package", "holders", "--bin", "holders"];

/// The name of what holds processes of a guest, among a guest's programs if it has it.
pub const PERTURBER: &str = "vm-perturb";

/// Builds what holds processes of a guest, for `explore` alone: apart from the others, which keep their bytes.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn perturber(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    Ok(Builder::new(workspace)?.own(&PERTURB).await?.path(PERTURBER)?.to_owned())
}

/// Cargo's arguments for it.
const PERTURB: [&str; 6] = ["--features", "vm-perturb/guest", "--package", PERTURBER, "--bin", PERTURBER];

/// Builds one program of a workspace, apart from the others: features that it asks for are none of theirs.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn program(workspace: &Workspace, package: &str, name: &str) -> anyhow::Result<PathBuf> {
    Ok(Builder::new(workspace)?.alone(package, name).await?.path(name)?.to_owned())
}

/// Builds what the accuracy benchmark runs in a guest: `holders` and `fixture`.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn accuracy_binaries(workspace: &Workspace) -> anyhow::Result<GuestBinaries> {
    Builder::new(workspace)?.own(&["--package", "holders", "--bin", "holders", "--example", "fixture"]).await
}

/// What is built from where.
#[derive(Debug)]
struct Builder<'a> {
    workspace: &'a Workspace,
    /// [`OWN`]'s manifest, and the root of the workspace that it is in.
    own: PathBuf,
    own_sources: PathBuf,
    cargo_home: PathBuf,
    /// Whether nothing may come from the network.
    offline: bool,
}

impl<'a> Builder<'a> {
    fn new(workspace: &'a Workspace) -> anyhow::Result<Self> {
        let own = PathBuf::from(OWN_MANIFEST);
        // The same for every workspace that uses this checkout of the harness: other flags would be another build.
        let own_sources = workspace::around(&own).or(own.parent()).unwrap_or(&own).to_owned();
        Ok(Self { workspace, own, own_sources, cargo_home: flags::cargo_home()?, offline: false })
    }

    async fn guest_binaries(&self) -> anyhow::Result<GuestBinaries> {
        let own = [&["--features", "vm-agent/guest"][..], &arguments(&OWN)].concat();
        let theirs: Vec<&str> = self.workspace.packages.iter().flat_map(arguments).collect();
        if self.workspace.has(&self.own) {
            return self.own(&[&own[..], &theirs].concat()).await;
        }
        let mut all = self.own(&own).await?;
        if !theirs.is_empty() {
            let theirs = self.build(&self.workspace.root, &[], &theirs, Mode::Shipped).await?;
            all.by_name.extend(theirs.by_name);
        }
        Ok(all)
    }

    async fn which(&self, which: Which<'_>) -> anyhow::Result<GuestBinaries> {
        let mut all = self.guest_binaries().await?;
        let Which::All(alone) = which else { return Ok(all) };
        for what in [&HOLDERS[..], &PERTURB] {
            all.by_name.extend(self.own(what).await?.by_name);
        }
        for (package, name) in alone {
            all.by_name.extend(self.alone(package, name).await?.by_name);
        }
        Ok(all)
    }

    /// One program of the workspace, in a build of its own.
    async fn alone(&self, package: &str, name: &str) -> anyhow::Result<GuestBinaries> {
        let what = ["--package", package, "--bin", name];
        self.build(&self.workspace.root, &[], &what, Mode::Shipped).await
    }

    async fn guest_binaries_quickly(&self) -> anyhow::Result<GuestBinaries> {
        let theirs: Vec<&str> = self.workspace.packages.iter().flat_map(arguments).collect();
        if theirs.is_empty() {
            return self.guest_binaries().await;
        }
        let mut own = [&["--features", "vm-agent/guest"][..], &arguments(&OWN)].concat();
        if self.workspace.has(&self.own) {
            // Named, and none of their programs: so dependencies have the features that they have in one build with them.
            own.extend(self.workspace.packages.iter().flat_map(|package| ["--package", package.name]));
        }
        let root = &self.workspace.root;
        let (mut all, theirs) =
            tokio::try_join!(self.own(&own), self.build(root, &[], &theirs, Mode::Quick))?;
        all.by_name.extend(theirs.by_name);
        Ok(all)
    }

    /// Builds what is in one workspace with [`OWN`].
    async fn own(&self, what: &[&str]) -> anyhow::Result<GuestBinaries> {
        let own = self.own.to_str().context("the harness's path is no UTF-8")?;
        self.build(&self.own_sources, &["--manifest-path", own], what, Mode::Shipped).await
    }

    fn directories(&self, sources: &Path, compiler: &Compiler) -> Directories {
        Directories {
            sources: sources.to_owned(),
            target: self.workspace.target.clone(),
            cargo_home: self.cargo_home.clone(),
            std_sources: compiler.sysroot.join("lib/rustlib/src/rust"),
            std_name: format!("/rustc/{}", compiler.commit),
        }
    }

    async fn build(
        &self,
        sources: &Path,
        of: &[&str],
        what: &[&str],
        mode: Mode,
    ) -> anyhow::Result<GuestBinaries> {
        let root = &self.workspace.root;
        let compiler = Compiler::ask(root).await?;
        let directories = self.directories(sources, &compiler);
        let (shell, cargo, target) =
            (Shell::new()?, tools::cargo(), self.workspace.target.join(mode.directory()));
        shell.change_dir(root);
        let profile =
            mode.profile().iter().flat_map(|part| ["--config".to_owned(), format!("profile.guest.{part}")]);
        let offline = self.offline.then_some("--offline");
        let triple = &compiler.host;
        let build = cmd!(
            shell,
            "{cargo} build --profile guest {profile...} {offline...} {of...} {what...} --target {triple}
             --target-dir {target} --message-format=json-render-diagnostics"
        );
        let color = if io::stderr().is_terminal() { "always" } else { "auto" };
        let program = Program::from(build).env("CARGO_HOME", &self.cargo_home).env("CARGO_TERM_COLOR", color);
        // Crates that are C have paths in them, too (`__FILE__`).
        let for_c = format!("CFLAGS_{}", triple.replace('-', "_"));
        let program = program.env(for_c, directories.flags_for_c()?);
        let program = flags::add(program, &directories.flags()?, triple, root, &self.cargo_home)?;
        // Line by line, as an image may be built meanwhile, with a progress of its own.
        let tell = |stream, line: &str| match stream {
            Stream::Stderr => events::tell(Event::Note(line.to_owned())),
            Stream::Stdout => {}
        };
        let built = process::run(program, BUILD_LIMIT, tell).await;
        let output = built.context("build the guest's static binaries")?;
        let by_name = executables(&output.text()).context("read what cargo built")?;
        ensure!(!by_name.is_empty(), "cargo built no guest binary");
        GuestBinaries::proved(by_name)
    }
}

/// What rustc says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Compiler {
    /// The triple that it builds for by itself, for instance `x86_64-unknown-linux-gnu`.
    ///
    /// It is given to cargo as `--target`, since only then are build scripts and macros spared the static flag.
    host: String,
    /// The commit that it was built from.
    commit: String,
    /// Where its libraries lie.
    sysroot: PathBuf,
}

impl Compiler {
    async fn ask(workspace: &Path) -> anyhow::Result<Self> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let shell = Shell::new()?;
        shell.change_dir(workspace);
        let ask = async |question: &[&str]| {
            process::output(cmd!(shell, "{rustc} {question...}").into(), Duration::from_secs(60)).await
        };
        let (version, sysroot) = tokio::join!(ask(&["--version", "--verbose"]), ask(&["--print", "sysroot"]));
        let version = version.context("ask rustc for its host")?.text();
        let sysroot = sysroot.context("ask rustc for its sysroot")?.text();
        let line = |name: &str| {
            let said = version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            said.map(str::to_owned).with_context(|| format!("rustc does not say its {name}"))
        };
        Ok(Self { host: line("host")?, commit: line("commit-hash")?, sysroot: sysroot.trim().into() })
    }
}

/// A line of cargo's JSON output, as far as it matters here. See "External tools" in the Cargo book.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// The executables that a build made or found fresh.
fn executables(messages: &str) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("cargo's message {line}"))?;
        if let ("compiler-artifact", Some(path), Some(target)) =
            (message.reason.as_str(), message.executable, message.target)
        {
            found.insert(target.name, path);
        }
    }
    Ok(found)
}

/// The dynamic loader that an ELF file asks for; `None` means that it is static. See elf(5).
///
/// # Errors
/// If it is not a 64-bit little-endian ELF file, or cut short.
pub fn interpreter(elf: &[u8]) -> anyhow::Result<Option<String>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let headers_at = usize::try_from(number(elf, 0x20, 8)?)?;
    let (size, count) = (usize::try_from(number(elf, 0x36, 2)?)?, usize::try_from(number(elf, 0x38, 2)?)?);
    for n in 0..count {
        let at = headers_at.checked_add(n * size).context("a program header is out of bounds")?;
        const PT_INTERP: u64 = 3;
        if number(elf, at, 4)? == PT_INTERP {
            let start = usize::try_from(number(elf, at + 8, 8)?)?;
            let length = usize::try_from(number(elf, at + 32, 8)?)?;
            let path = start.checked_add(length).and_then(|end| elf.get(start..end));
            let path = path.context("the loader's path is out of bounds")?;
            return Ok(Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

/// A little-endian number of up to 8 bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> anyhow::Result<u64> {
    let field = at.checked_add(length).and_then(|end| bytes.get(at..end)).context("cut short")?;
    Ok(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and one program header of a type, which holds a path.
    fn elf(kind: u8, path: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 0x40 + 0x38];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[0x20], elf[0x36], elf[0x38]) = (0x40, 0x38, 1);
        elf[0x40] = kind;
        elf[0x40 + 8] = u8::try_from(elf.len()).expect("small");
        elf[0x40 + 32] = u8::try_from(path.len()).expect("small");
        elf.extend_from_slice(path);
        elf
    }

    #[test]
    fn every_program_of_ours_is_built() {
        let manifest = std::fs::read_to_string(OWN_MANIFEST).expect("read");
        let manifest: toml::Table = toml::from_str(&manifest).expect("a manifest");
        let programs = manifest["bin"].as_array().expect("programs").iter();
        let names: Vec<&str> = programs.filter_map(|program| program.get("name")?.as_str()).collect();
        assert_eq!(OWN.binaries, names);
    }

    #[test]
    fn a_loader_shows_that_a_binary_is_not_static() {
        assert_eq!(interpreter(&elf(1, b"")).expect("an ELF file"), None);
        let dynamic = elf(3, b"/lib64/ld.so\0");
        assert_eq!(interpreter(&dynamic).expect("an ELF file").as_deref(), Some("/lib64/ld.so"));
        interpreter(b"#!/bin/sh").expect_err("a script");
        for length in 6..dynamic.len() {
            interpreter(&dynamic[..length]).expect_err("cut short");
        }
    }

    #[test]
    fn this_test_is_an_elf_file() {
        let own = std::fs::read("/proc/self/exe").expect("our own binary");
        interpreter(&own).expect("an ELF file");
    }

    proptest::proptest! {
        #[test]
        fn nonsense_does_not_panic(mut bytes: Vec<u8>) {
            bytes.splice(..0, *b"\x7fELF\x02\x01");
            drop(interpreter(&bytes));
        }
    }

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"vm-agent"},"executable":"/t/vm-agent"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = executables(messages).expect("valid");
        assert_eq!(found, BTreeMap::from([("vm-agent".to_owned(), PathBuf::from("/t/vm-agent"))]));
    }
}
