//! The flags that make a program the same bytes from any directory, for any user and any `CARGO_HOME`: what they are, and
//! what whoever runs cargo has said already.
//!
//! A program names the sources of its panics. Cargo has a workspace's sources relative to its root, and all else by its full
//! path: crates in `CARGO_HOME`, what build scripts write, and std's own if rustup has them. Each of these directories gets a
//! name of its own here (rustc's `--remap-path-prefix`). Cargo's `trim-paths`, which will do the same, is not stable.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use memchr::memmem;

use crate::host::process::Program;

/// Whoever starts the first program of a machine has no libc there.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// The directories whose names would get into a program.
#[derive(Debug, Clone)]
pub(super) struct Directories {
    /// The root of the workspace whose packages are built.
    pub(super) sources: PathBuf,
    /// Cargo's target directory.
    pub(super) target: PathBuf,
    /// `CARGO_HOME`.
    pub(super) cargo_home: PathBuf,
    /// Where rustc has std's sources, if it has them.
    pub(super) std_sources: PathBuf,
    /// What rustc calls them where it has not.
    pub(super) std_name: String,
}

impl Directories {
    /// rustc's flags: static, and with a name for each directory. Where one lies in another, the inner one's name is meant:
    /// rustc takes the last that fits.
    ///
    /// # Errors
    /// If a path is no UTF-8, which rustc's flags have to be.
    pub(super) fn flags(&self) -> Result<Vec<String>> {
        let names = self.names()?.into_iter();
        let names = names.map(|(path, name)| format!("--remap-path-prefix={path}={name}"));
        Ok([STATIC.to_owned()].into_iter().chain(names).collect())
    }

    /// The C compiler's: a name for each directory. The `cc` crate divides them by spaces, so a path with one keeps its own.
    ///
    /// # Errors
    /// As [`Self::flags`].
    pub(super) fn flags_for_c(&self) -> Result<String> {
        let names = self.names()?;
        let names = names.iter().filter(|(path, _)| !path.contains(char::is_whitespace));
        let flags: Vec<_> = names.map(|(path, name)| format!("-ffile-prefix-map={path}={name}")).collect();
        Ok(flags.join(" "))
    }

    /// Each directory with its name, the inner ones last.
    fn names(&self) -> Result<Vec<(String, String)>> {
        // Cargo passes paths as it was given them, the linker and debug info have them resolved; part of a CARGO_HOME may be a
        // link to a shared one.
        let (registry, git) = (self.cargo_home.join("registry"), self.cargo_home.join("git"));
        let named = [
            (&self.sources, "/workspace"),
            (&self.target, "/workspace/target"),
            (&self.cargo_home, "/cargo"),
            (&registry, "/cargo/registry"),
            (&git, "/cargo/git"),
            (&self.std_sources, self.std_name.as_str()),
        ];
        let mut names = BTreeSet::new();
        for (directory, name) in named {
            for path in [Some(directory.clone()), directory.canonicalize().ok()].into_iter().flatten() {
                let Some(path) = path.to_str() else {
                    bail!("{}: no UTF-8, as rustc's flags have to be", path.display());
                };
                names.insert((path.len(), path.to_owned(), name.to_owned()));
            }
        }
        Ok(names.into_iter().map(|(_length, path, name)| (path, name)).collect())
    }

    /// Those that a program names after all. One that lies where a name of ours says, as `/cargo` may, has nothing to hide.
    ///
    /// # Errors
    /// As [`Self::flags`].
    pub(super) fn named_in(&self, program: &[u8]) -> Result<Vec<String>> {
        let names = self.names()?;
        let is_ours = |path: &str| names.iter().any(|(_, name)| name.contains(path));
        let paths = names.iter().map(|(path, _)| path).filter(|path| !is_ours(path));
        // With what follows a directory in each path below it: `/home/anna` is not in `/home/annabel`.
        let named = paths.filter(|path| memmem::find(program, format!("{path}/").as_bytes()).is_some());
        Ok(named.cloned().collect())
    }
}

/// Where crates are kept: `CARGO_HOME`, or `.cargo` in the user's home.
///
/// # Errors
/// If the environment names neither.
pub fn cargo_home() -> Result<PathBuf> {
    let said = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = said.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    std::path::absolute(home.context("find CARGO_HOME: HOME is not set")?).context("CARGO_HOME")
}

/// Gives a cargo that is run in `here` our flags, after those that it was given by whoever runs us: cargo takes flags from
/// one place only, the first of `CARGO_ENCODED_RUSTFLAGS`, `RUSTFLAGS`, `target.*.rustflags` and `build.rustflags`.
///
/// # Errors
/// If a flag in the environment is no UTF-8, or a configuration file can't be read.
pub(super) fn add(
    program: Program,
    ours: &[String],
    triple: &str,
    here: &Path,
    cargo_home: &Path,
) -> Result<Program> {
    let variable = |name| std::env::var_os(name);
    let env = match (variable("CARGO_ENCODED_RUSTFLAGS"), variable("RUSTFLAGS")) {
        (None, None) => None,
        (encoded, plain) => Some(of_environment(encoded.as_deref(), plain.as_deref())?),
    };
    Ok(match env {
        Some(theirs) => program.env("CARGO_ENCODED_RUSTFLAGS", [&theirs, ours].concat().join(SEPARATOR)),
        None => {
            // Cargo adds these to target.TRIPLE.rustflags of its files, and then leaves out what build.rustflags says.
            let mut files = configuration(here, cargo_home)?;
            if let Some(flags) = std::env::var_os("CARGO_BUILD_RUSTFLAGS") {
                let flags = flags.to_str().context("CARGO_BUILD_RUSTFLAGS is no UTF-8")?.to_owned();
                files.push(format!("build.rustflags = {}", toml::Value::String(flags)).parse()?);
            }
            let theirs = of_files(&files, triple);
            let all = theirs.into_iter().chain(ours.iter().cloned()).map(toml::Value::String).collect();
            let key = format!("target.{triple}.rustflags={}", toml::Value::Array(all));
            program.args(["--config".into(), OsString::from(key)])
        }
    })
}

/// Between the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// The flags in the environment.
fn of_environment(encoded: Option<&OsStr>, plain: Option<&OsStr>) -> Result<Vec<String>> {
    let text = |name: &str, value: &OsStr| {
        value.to_str().map(str::to_owned).with_context(|| format!("{name} is no UTF-8"))
    };
    let (flags, separator) = match (encoded, plain) {
        (Some(encoded), _) => (text("CARGO_ENCODED_RUSTFLAGS", encoded)?, SEPARATOR),
        (None, Some(plain)) => (text("RUSTFLAGS", plain)?, " "),
        (None, None) => return Ok(Vec::new()),
    };
    Ok(flags.split(separator).map(str::trim).filter(|flag| !flag.is_empty()).map(str::to_owned).collect())
}

/// Cargo's configuration files for a directory, those that win last.
fn configuration(here: &Path, cargo_home: &Path) -> Result<Vec<toml::Table>> {
    let mut places: Vec<PathBuf> = here.ancestors().map(|directory| directory.join(".cargo")).collect();
    if !places.iter().any(|place| place == cargo_home) {
        places.push(cargo_home.to_owned());
    }
    places.reverse();
    let mut read = Vec::new();
    for place in places {
        // The older name wins where both are there.
        let file =
            ["config", "config.toml"].map(|name| place.join(name)).into_iter().find(|file| file.is_file());
        let Some(file) = file else { continue };
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        read.push(text.parse().with_context(|| format!("parse {}", file.display()))?);
    }
    Ok(read)
}

/// What `build.rustflags` says in files, unless one of them has flags for this target, which win.
fn of_files(files: &[toml::Table], triple: &str) -> Vec<String> {
    let is_ours = |name: &str| name == triple || name.starts_with("cfg(");
    let targets = files.iter().filter_map(|file| file.get("target")?.as_table());
    let mut targets = targets.flatten().filter(|(name, _)| is_ours(name));
    if targets.any(|(_, target)| target.get("rustflags").is_some()) {
        return Vec::new();
    }
    let said = files.iter().filter_map(|file| file.get("build")?.get("rustflags"));
    said.flat_map(|flags| match flags {
        toml::Value::String(flags) => flags.split_whitespace().map(str::to_owned).collect(),
        toml::Value::Array(flags) => {
            flags.iter().filter_map(|flag| Some(flag.as_str()?.to_owned())).collect()
        }
        _ => Vec::new(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(cargo_home: &str) -> Directories {
        Directories {
            sources: "/no/such/checkout".into(),
            target: "/no/such/checkout/target".into(),
            cargo_home: cargo_home.into(),
            std_sources: "/no/such/toolchain/lib/rustlib/src/rust".into(),
            std_name: "/rustc/0123".to_owned(),
        }
    }

    /// Which name a path gets by these flags: rustc takes the last that fits.
    fn named(flags: &[String], path: &str) -> String {
        let mut names =
            flags.iter().filter_map(|flag| flag.strip_prefix("--remap-path-prefix=")?.rsplit_once('='));
        let last = names.rfind(|(from, _)| Path::new(path).starts_with(from));
        last.map_or(path.to_owned(), |(from, to)| path.replacen(from, to, 1))
    }

    #[test]
    fn a_directory_has_a_name_that_does_not_say_where_it_is() {
        for cargo_home in
            ["/no/such/home/.cargo", "/no/such/checkout/.cargo", "/no", "/no/such/checkout/target/c"]
        {
            let flags = directories(cargo_home).flags().expect("UTF-8");
            assert_eq!(flags[0], STATIC);
            let cases = [
                (format!("{cargo_home}/registry/src/a-1/lib.rs"), "/cargo/registry/src/a-1/lib.rs"),
                ("/no/such/checkout/helper/src/main.rs".to_owned(), "/workspace/helper/src/main.rs"),
                ("/no/such/checkout/target/guest/out/a.rs".to_owned(), "/workspace/target/guest/out/a.rs"),
                (
                    "/no/such/toolchain/lib/rustlib/src/rust/library/a.rs".to_owned(),
                    "/rustc/0123/library/a.rs",
                ),
            ];
            for (path, name) in cases {
                assert_eq!(named(&flags, &path), name, "CARGO_HOME={cargo_home}");
            }
        }
    }

    #[test]
    fn a_directory_that_a_program_names_is_seen() {
        let directories = directories("/cargo");
        for (program, named) in [
            ("panicked at /no/such/checkout/helper/src/main.rs:3", "/no/such/checkout"),
            ("\0/no/such/toolchain/lib/rustlib/src/rust/a.rs", "/no/such/toolchain/lib/rustlib/src/rust"),
            ("/workspace/helper/src/main.rs", ""),
            ("/no/such/checkouts/helper", ""),
            // Its own name.
            ("/cargo/registry/src/a.rs", ""),
        ] {
            let found = directories.named_in(program.as_bytes()).expect("UTF-8");
            assert_eq!(found.join(" "), named, "{program:?}");
        }
    }

    #[test]
    fn a_link_and_where_it_leads_have_one_name() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (real, home) = (scratch.path().join("shared"), scratch.path().join("home"));
        std::fs::create_dir_all(&real).expect("mkdir");
        std::fs::create_dir_all(&home).expect("mkdir");
        std::os::unix::fs::symlink(&real, home.join("registry")).expect("symlink");
        let flags = directories(home.to_str().expect("UTF-8")).flags().expect("UTF-8");
        for path in [home.join("registry/a.rs"), real.join("a.rs")] {
            assert_eq!(named(&flags, path.to_str().expect("UTF-8")), "/cargo/registry/a.rs");
        }
    }

    #[test]
    fn flags_that_are_there_already_are_kept_in_order() {
        let flags = |encoded: Option<&str>, plain: Option<&str>| {
            of_environment(encoded.map(OsStr::new), plain.map(OsStr::new)).expect("UTF-8")
        };
        assert_eq!(flags(Some("-Ca\u{1f}-C b"), Some("-Cc")), ["-Ca", "-C b"]);
        assert_eq!(flags(None, Some(" -C a  -Cb ")), ["-C", "a", "-Cb"]);
        assert_eq!(flags(Some(""), Some("-Cc")), [""; 0]);
        let files = |texts: &[&str]| {
            let parsed: Vec<toml::Table> = texts.iter().map(|text| text.parse().expect("TOML")).collect();
            of_files(&parsed, "x86_64-unknown-linux-gnu")
        };
        let (one, two) = ("build.rustflags = '-Ca -Cb'", "build.rustflags = ['-Cc']");
        assert_eq!(files(&[one, two]), ["-Ca", "-Cb", "-Cc"]);
        assert_eq!(files(&[one, "target.aarch64-unknown-linux-gnu.rustflags = []"]), ["-Ca", "-Cb"]);
        for wins in ["target.x86_64-unknown-linux-gnu.rustflags = []", "target.'cfg(unix)'.rustflags = '-Cd'"]
        {
            assert_eq!(files(&[one, wins]), [""; 0], "{wins}: cargo adds it itself");
        }
    }

    #[test]
    fn the_file_of_the_directory_itself_wins() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (here, home) = (scratch.path().join("a/b"), scratch.path().join("home"));
        for (place, flag) in [(&home, "home"), (&here.join(".cargo"), "here")] {
            std::fs::create_dir_all(place).expect("mkdir");
            std::fs::write(place.join("config.toml"), format!("build.rustflags = '{flag}'")).expect("write");
        }
        let flags = of_files(&configuration(&here, &home).expect("read"), "x");
        assert!(flags.ends_with(&["home".to_owned(), "here".to_owned()]), "{flags:?}");
    }
}
