//! The static binaries that run inside a guest: built by cargo, and proved to be static.
//!
//! They are the harness's own (`vm-agent`, `vm-init`) and the deployed software's. All are linked statically, so
//! that one build runs in every guest, whatever libc it has, and before there is any root file system. Cargo
//! decides what is out of date; a target directory of its own keeps the other flags from rebuilding the
//! workspace, and cargo from waiting for the cargo that runs us.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::host::process::{self, Program, Sink};
use crate::host::tools;
use crate::workspace::{OWN, Package, Workspace};

/// A cold build takes two minutes on two old cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// [`OWN`] lies beside the library, wherever that lies.
const OWN_MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/agent/Cargo.toml");

/// What goes into a guest: small, quick to load under emulation. Unwinding stays on: guards need it. Given on the command
/// line, since cargo reads profiles from the workspace alone that it is run in.
const PROFILE: [&str; 5] =
    ["inherits='release'", "opt-level=2", "debug=false", "strip=true", "codegen-units=4"];

/// The guest's binaries, each proved to be static.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestBinaries {
    by_name: BTreeMap<String, PathBuf>,
}

impl GuestBinaries {
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
/// Cargo's progress and diagnostics go to stderr as they come.
///
/// # Errors
/// If the build fails (cargo has said why), if a binary is not static, or on an interrupt.
pub async fn guest_binaries(workspace: &Workspace) -> anyhow::Result<GuestBinaries> {
    let own =
        &[&["--manifest-path", OWN_MANIFEST, "--features", "vm-agent/guest"][..], &arguments(&OWN)].concat();
    let theirs: Vec<&str> = workspace.packages.iter().flat_map(arguments).collect();
    if workspace.has(Path::new(OWN_MANIFEST)) {
        return build(workspace, &[&own[..], &theirs].concat()).await;
    }
    let mut all = build(workspace, own).await?;
    if !theirs.is_empty() {
        all.by_name.extend(build(workspace, &theirs).await?.by_name);
    }
    Ok(all)
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
    let holders = ["--manifest-path", OWN_MANIFEST, "--package", "holders", "--bin", "holders"];
    Ok(build(workspace, &holders).await?.path("holders")?.to_owned())
}

/// Builds what the accuracy benchmark runs in a guest: `holders` and `fixture`.
///
/// # Errors
/// As [`guest_binaries`].
pub async fn accuracy_binaries(workspace: &Workspace) -> anyhow::Result<GuestBinaries> {
    let holders = ["--package", "holders", "--bin", "holders", "--example", "fixture"];
    build(workspace, &[&["--manifest-path", OWN_MANIFEST][..], &holders].concat()).await
}

async fn build(workspace: &Workspace, what: &[&str]) -> anyhow::Result<GuestBinaries> {
    let triple = host_triple(&workspace.root).await?;
    let (shell, cargo, target) = (Shell::new()?, tools::cargo(), workspace.target.join("guest"));
    shell.change_dir(&workspace.root);
    let profile = PROFILE.iter().flat_map(|part| ["--config".to_owned(), format!("profile.guest.{part}")]);
    let build = cmd!(
        shell,
        "{cargo} build --profile guest {profile...} {what...} --target {triple} --target-dir {target}
         --message-format=json-render-diagnostics"
    );
    let program = Program::from(build)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // It would win over RUSTFLAGS.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Sink::Inherit);
    let output = process::output(program, BUILD_LIMIT).await.context("build the guest's static binaries")?;
    let by_name = executables(&output.text()).context("read what cargo built")?;
    ensure!(!by_name.is_empty(), "cargo built no guest binary");
    for path in by_name.values() {
        let elf = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        match interpreter(&elf).with_context(|| format!("read {} as ELF", path.display()))? {
            None => {}
            Some(loader) => bail!("{} is not static: it asks for {loader}", path.display()),
        }
    }
    Ok(GuestBinaries { by_name })
}

/// The triple that rustc builds for by itself, for instance `x86_64-unknown-linux-gnu`.
///
/// It is given to cargo as `--target`, since only then are build scripts and macros spared the static flag.
async fn host_triple(workspace: &Path) -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let shell = Shell::new()?;
    shell.change_dir(workspace);
    let ask = cmd!(shell, "{rustc} --version --verbose").into();
    let output = process::output(ask, Duration::from_secs(60)).await.context("ask rustc for its host")?;
    let text = output.text();
    let host =
        text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not name its host")?;
    Ok(host.to_owned())
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
