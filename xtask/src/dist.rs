//! `cargo xtask dist`: what a host gets, as an archive and as a package of Debian, with the list of what is in it.
//!
//! `manifest` is the list, `contents` reads what it names, `pack` makes bytes of that, `parts` says what programs are made of.

mod contents;
mod date;
mod manifest;
mod pack;
mod parts;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use vm_tests::cache;
use vm_tests::host::process::{self, Program};
use vm_tests::host::tools::{self, Need};
use vm_tests::image::programs;
use vm_tests::workspace::Workspace;
use xshell::{Shell, cmd};

use crate::left4me;
use date::Date;
use manifest::{Kind, Manifest};

pub(crate) use manifest::TREE;

/// Packs what a host gets: an archive and a .deb in target/dist, a list of what the programs are made of (CycloneDX), and
/// SHA256SUMS.
///
/// The same commit gives the same bytes wherever they are packed. All times in them are SOURCE_DATE_EPOCH; without it, the
/// time of the last commit.
#[derive(Debug, Args)]
pub(crate) struct DistArgs {
    /// Pack the programs that lie in this directory, instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Pack the operator's page, too: an archive, a .deb and a list of its own
    #[arg(long)]
    page: bool,
}

/// The version; the package's has a revision of its own.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const DEBIAN_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-1");

/// The variable by which a build is given its time: <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH_VAR: &str = "SOURCE_DATE_EPOCH";

/// Packages of programs that are built in one go, as `vm_tests::image::programs` builds them: features of one are the other's.
const BUILDS: [&[&str]; 2] = [
    &[
        "--package",
        "left4me-ctl",
        "--package",
        "left4me-helper",
        "--package",
        "vm-agent",
        "--features",
        "vm-agent/guest",
    ],
    &["--package", "holders"],
];

/// Each program's package.
const PACKAGES: [(&str, &str); 5] = [
    ("holders", "holders"),
    ("l4d2ctl", "left4me-ctl"),
    ("left4me-broker", "left4me-broker"),
    ("left4me-overlay", "left4me-helper"),
    ("left4me-web", "left4me-web"),
];

/// The page's programs, each of a package of its name, and built alone.
pub(crate) const PAGE_PROGRAMS: [&str; 2] = ["left4me-broker", "left4me-web"];
const PAGE_BUILDS: [&[&str]; 2] = [&["--package", PAGE_PROGRAMS[0]], &["--package", PAGE_PROGRAMS[1]]];

/// What the packages of the product, and of its page, are called.
const PRODUCT: &str = "left4me";
const PAGE: &str = "left4me-web";

/// The programs that a host gets and scenarios deploy by name.
pub(crate) const PROGRAMS: [&str; 2] = ["l4d2ctl", "left4me-overlay"];

/// The time in a package that is made for machines: the same for every commit, so that its bytes are those of the tree.
const MACHINES_EPOCH: u64 = 1_767_225_600;

/// Each path that the archive has on a host, with the one that the .deb has in its place.
pub(crate) fn paths(root: &Path) -> Result<BTreeMap<String, String>> {
    let manifest = Manifest::read(root)?;
    let files = manifest.files.iter().filter(|(_, file)| file.only.is_none()).map(|(to, _)| to);
    let both = files.chain(manifest.programs.keys());
    both.map(|to| Ok((manifest.path(to, Kind::Archive)?, manifest.path(to, Kind::Deb)?))).collect()
}

/// The .deb for a machine, of the programs that machines run: that of `dist`, but for the time in it.
pub(crate) async fn package(workspace: &Workspace) -> Result<Vec<u8>> {
    let manifest = Manifest::read(&workspace.root)?;
    let programs = build(workspace, &manifest).await?;
    let mut packages = packages(&workspace.root, PRODUCT, &manifest, &programs, MACHINES_EPOCH)?;
    packages.remove(&format!("left4me_{DEBIAN_VERSION}_amd64.deb")).context("no .deb was packed")
}

/// What the archive has, by its paths on a host, each file with its mode: the files of a deploy.
pub(crate) async fn on_host(workspace: &Workspace) -> Result<BTreeMap<String, (u32, Vec<u8>)>> {
    let manifest = Manifest::read(&workspace.root)?;
    let programs = build(workspace, &manifest).await?;
    in_archive(workspace, &manifest, &programs)
}

/// The same of the page's archive.
pub(crate) async fn page_on_host(workspace: &Workspace) -> Result<BTreeMap<String, (u32, Vec<u8>)>> {
    let manifest = Manifest::page(&workspace.root)?;
    let programs = build_page(workspace, &manifest).await?;
    in_archive(workspace, &manifest, &programs)
}

fn in_archive(
    workspace: &Workspace,
    manifest: &Manifest,
    programs: &BTreeMap<String, Vec<u8>>,
) -> Result<BTreeMap<String, (u32, Vec<u8>)>> {
    let contents = contents::on_host(&workspace.root, manifest, programs, Kind::Archive, &[])?;
    Ok(contents.into_iter().map(|(path, member)| (format!("/{path}"), (member.mode, member.bytes))).collect())
}

/// Packs, and prints what it has made.
pub(crate) async fn run(args: &DistArgs) -> Result<()> {
    let workspace = left4me::workspace()?;
    let manifest = Manifest::read(&workspace.root)?;
    let epoch = epoch(&workspace.root).await?;
    let programs = match &args.programs {
        Some(directory) => read(&manifest, |name| Ok(directory.join(name)))?,
        None => build(&workspace, &manifest).await?,
    };
    let mut files = packages(&workspace.root, PRODUCT, &manifest, &programs, epoch)?;
    let list = parts(&workspace.root, &BUILDS, &programs, epoch).await?;
    files.insert(format!("{PRODUCT}-{VERSION}.cdx.json"), list.into_bytes());
    if args.page {
        let manifest = Manifest::page(&workspace.root)?;
        let programs = match &args.programs {
            Some(directory) => read(&manifest, |name| Ok(directory.join(name)))?,
            None => build_page(&workspace, &manifest).await?,
        };
        files.append(&mut packages(&workspace.root, PAGE, &manifest, &programs, epoch)?);
        let list = parts(&workspace.root, &PAGE_BUILDS, &programs, epoch).await?;
        files.insert(format!("{PAGE}-{VERSION}.cdx.json"), list.into_bytes());
    }
    let sums: String =
        files.iter().map(|(name, bytes)| format!("{}  {name}\n", cache::hash_bytes(bytes))).collect();

    let directory = workspace.target.join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    };
    for (name, bytes) in &files {
        write(name, bytes)?;
    }
    write("SHA256SUMS", sums.as_bytes())?;
    print!("{sums}");
    println!("dist: {} files and SHA256SUMS in {}", files.len(), directory.display());
    println!("dist: packed with {EPOCH_VAR}={epoch}, {}", Date::of(epoch).rfc_2822());
    Ok(())
}

/// The archive and the .deb, by their names.
fn packages(
    root: &Path,
    name: &str,
    manifest: &Manifest,
    programs: &BTreeMap<String, Vec<u8>>,
    epoch: u64,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut values = vec![
        ("version", VERSION.to_owned()),
        ("debian_version", DEBIAN_VERSION.to_owned()),
        ("date", Date::of(epoch).rfc_2822()),
    ];
    let archive = contents::on_host(root, manifest, programs, Kind::Archive, &values)?;
    let deb = contents::on_host(root, manifest, programs, Kind::Deb, &values)?;
    values.push(("installed_kib", contents::installed_kib(&deb).to_string()));
    let control = contents::control(root, manifest, &values)?;
    Ok(BTreeMap::from([
        (format!("{name}-{VERSION}-x86_64.tar.zst"), pack::archive(&archive, name, epoch)?),
        (format!("{name}_{DEBIAN_VERSION}_amd64.deb"), pack::deb(&control, &deb, epoch)?),
    ]))
}

/// The time of everything that is packed, in seconds since 1970.
async fn epoch(root: &Path) -> Result<u64> {
    if let Some(given) = std::env::var_os(EPOCH_VAR).filter(|given| !given.is_empty()) {
        let number = given.to_str().and_then(|text| text.parse().ok());
        return number.with_context(|| format!("{EPOCH_VAR}: {} is no number of seconds", given.display()));
    }
    let shell = Shell::new()?;
    shell.change_dir(root);
    let asked = ask(cmd!(shell, "git log -1 --format=%ct").into()).await;
    let text =
        asked.with_context(|| format!("ask git for the last commit's time; {EPOCH_VAR} gives another"))?;
    text.trim().parse().with_context(|| format!("git's time of the last commit: {text}"))
}

async fn build(workspace: &Workspace, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>> {
    tools::ensure(&[Need::GuestBinaries], None, &workspace.target).await?;
    let guest = programs::guest_binaries(workspace).await?;
    let holders = programs::holders(workspace).await?;
    read(
        manifest,
        |name| if name == "holders" { Ok(holders.clone()) } else { Ok(guest.path(name)?.to_owned()) },
    )
}

/// The page's programs, each in a build of its own: those of the product are the same bytes with and without it.
async fn build_page(workspace: &Workspace, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>> {
    tools::ensure(&[Need::GuestBinaries], None, &workspace.target).await?;
    let mut built = BTreeMap::new();
    for one in manifest.programs.values() {
        let path = programs::program(workspace, &one.program, &one.program).await?;
        built.insert(one.program.clone(), path);
    }
    read(manifest, |name| built.get(name).cloned().with_context(|| format!("{name} was not built")))
}

/// The programs of the list, each proved to be static.
fn read(manifest: &Manifest, path: impl Fn(&str) -> Result<PathBuf>) -> Result<BTreeMap<String, Vec<u8>>> {
    let read = manifest.programs.values().map(|one| {
        let path = path(&one.program)?;
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        match programs::interpreter(&bytes).with_context(|| format!("read {} as ELF", path.display()))? {
            None => Ok((one.program.clone(), bytes)),
            Some(loader) => bail!("{} is not static: it asks for {loader}", path.display()),
        }
    });
    read.collect()
}

/// The list of what the programs are made of, as JSON.
async fn parts(
    root: &Path,
    builds: &[&[&str]],
    programs: &BTreeMap<String, Vec<u8>>,
    epoch: u64,
) -> Result<String> {
    let (shell, cargo) = (Shell::new()?, tools::cargo());
    shell.change_dir(root);
    let mut trees = parts::Trees::new();
    let format = parts::FORMAT;
    for &packages in builds {
        let tree = cmd!(
            shell,
            "{cargo} tree --locked {packages...} --target x86_64-unknown-linux-gnu --edges normal,no-proc-macro
             --no-dedupe --prefix depth --format {format}"
        );
        trees.append(&mut parts::trees(&ask(tree.into()).await.context("ask cargo for the crates")?)?);
    }
    let lock = root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("read {}", lock.display()))?;
    let made = programs.iter().map(|(name, bytes)| {
        let package =
            PACKAGES.iter().find(|(program, _package)| program == name).map(|(_, package)| *package);
        let crates = package.and_then(|package| trees.get(package));
        let crates = crates.with_context(|| format!("{name}: no package is known to have it"))?;
        Ok(parts::Program { name, sha256: cache::hash_bytes(bytes), crates })
    });
    let made: Vec<_> = made.collect::<Result<_>>()?;
    let libraries = libraries(&shell).await?;
    let (time, sums) = (Date::of(epoch).rfc_3339(), parts::checksums(&lock)?);
    let list = parts::list(VERSION, &time, &made, &libraries, &sums);
    Ok(format!("{list:#}\n"))
}

/// What every program has besides crates: Rust's own library, and the C library's libc.a.
async fn libraries(shell: &Shell) -> Result<[parts::Library; 2]> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let rust = ask(cmd!(shell, "{rustc} --version").into()).await.context("ask rustc for its version")?;
    let libc = ask(cmd!(shell, "getconf GNU_LIBC_VERSION").into()).await.context("ask for libc's version")?;
    let word = |text: &str| text.split_whitespace().nth(1).map(str::to_owned);
    let version = |text: &str| word(text).with_context(|| format!("no version: {text}"));
    Ok([
        parts::Library { name: "rust-std", version: version(&rust)?, licence: "MIT OR Apache-2.0" },
        parts::Library { name: "glibc", version: version(&libc)?, licence: "LGPL-2.1-or-later" },
    ])
}

async fn ask(program: Program) -> Result<String, process::Error> {
    Ok(process::output(program, Duration::from_secs(60)).await?.text())
}

#[cfg(test)]
mod tests;
