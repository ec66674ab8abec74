//! Which programs of the host the harness needs, which are there, and the one command that installs the rest.
//!
//! On Debian and its descendants [`ensure`] runs that command itself where it may (root, or sudo that asks for no
//! password); elsewhere the error says what to type. What the host can do beyond programs (KVM) is
//! [`crate::host::accel`]'s business.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::host::events::Progress;
use crate::host::process::{self, Program, Sink};
use crate::scenario::WrongInput;

/// What a program is needed for. Each use asks for no more than it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Running a machine.
    Machine,
    /// Building a guest image.
    Image,
    /// Building the static guest binaries.
    GuestBinaries,
    /// Evaluating the flake.
    Flake,
    /// Looking at pages as a person does.
    Browser,
    /// Reaching a host, or a machine that stands for one.
    Ssh,
}

/// What shows that a tool is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// A program on `PATH`.
    Program(&'static str),
    /// A file, at any of these paths.
    File(&'static [&'static str]),
}

/// One thing that has to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    sign: Sign,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// When it is needed.
    pub need: Need,
    only: Only,
    /// The Debian package that has it.
    pub package: &'static str,
    /// The argument that makes it print its version.
    version_arg: &'static str,
}

/// Who needs a tool at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    All,
    NotRoot,
}

impl Tool {
    /// The program's name, or the file's first path.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.sign {
            Sign::Program(name) => name,
            Sign::File(paths) => paths[0],
        }
    }
}

/// The browser of tests.
pub const BROWSER: &str = "chromium";

/// The package of the archive's keys.
const KEYRING: &str = "debian-archive-keyring";

/// All tools, in the order in which `doctor` shows them.
pub const TOOLS: &[Tool] = &[
    Tool {
        sign: Sign::Program(QEMU),
        purpose: "runs the guests",
        need: Need::Machine,
        only: Only::All,
        package: "qemu-system-x86",
        version_arg: "--version",
    },
    Tool {
        sign: Sign::Program("mmdebstrap"),
        purpose: "builds a guest's root from Debian packages",
        need: Need::Image,
        only: Only::All,
        package: "mmdebstrap",
        version_arg: "--version",
    },
    Tool {
        sign: Sign::Program("sqfstar"),
        purpose: "packs the root as a squashfs",
        need: Need::Image,
        only: Only::All,
        package: "squashfs-tools",
        version_arg: "-version",
    },
    Tool {
        sign: Sign::Program("newuidmap"),
        purpose: "gives a user the ids that a root file system needs",
        need: Need::Image,
        only: Only::NotRoot,
        package: "uidmap",
        version_arg: "",
    },
    Tool {
        sign: Sign::File(&[
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "/usr/share/keyrings/debian-archive-keyring.pgp",
            "/etc/apt/trusted.gpg.d/debian-archive-keyring.gpg",
        ]),
        purpose: "proves that packages are Debian's",
        need: Need::Image,
        only: Only::All,
        package: KEYRING,
        version_arg: "",
    },
    Tool {
        // Where Debian, Fedora and Arch have it.
        sign: Sign::File(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a", "/usr/lib/libc.a"]),
        purpose: "makes guest binaries static",
        need: Need::GuestBinaries,
        only: Only::All,
        package: "libc6-dev",
        version_arg: "",
    },
    Tool {
        sign: Sign::Program("nix"),
        purpose: "evaluates the flake",
        need: Need::Flake,
        only: Only::All,
        package: "nix-bin",
        version_arg: "--version",
    },
    Tool {
        sign: Sign::Program(BROWSER),
        purpose: "opens pages in tests",
        need: Need::Browser,
        only: Only::All,
        package: "chromium",
        version_arg: "--version",
    },
    Tool {
        sign: Sign::Program("ssh"),
        purpose: "reaches hosts that are deployed to",
        need: Need::Ssh,
        only: Only::All,
        package: "openssh-client",
        version_arg: "-V",
    },
    Tool {
        sign: Sign::Program("python3"),
        purpose: "parses the script of the flake's test",
        need: Need::Flake,
        only: Only::All,
        package: "python3-minimal",
        version_arg: "--version",
    },
];

/// Whose package manager there is. Commands that nobody has tried are not printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distro {
    /// Debian, Ubuntu and what descends from them.
    Debian,
    /// Another one.
    Other,
}

impl Distro {
    /// The distribution we run on, from os-release(5).
    #[must_use]
    pub fn of_host() -> Self {
        let read = |path| std::fs::read_to_string(path).ok();
        match read("/etc/os-release").or_else(|| read("/usr/lib/os-release")) {
            Some(text) => Self::parse(&text),
            None => Self::Other,
        }
    }

    /// The family named by `ID`, else by `ID_LIKE`.
    fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let ids = format!("{} {}", field("ID"), field("ID_LIKE"));
        let family = ids.split_whitespace().find_map(|id| match id {
            "debian" | "ubuntu" => Some(Self::Debian),
            _ => None,
        });
        family.unwrap_or(Self::Other)
    }

    /// The command that installs packages, without a word about who runs it.
    #[must_use]
    pub fn install_command(self, packages: &[&str]) -> String {
        let packages = packages.join(" ");
        match self {
            Self::Debian => format!("apt-get install -y --no-install-recommends {packages}"),
            Self::Other => format!("install what Debian calls: {packages}"),
        }
    }

    /// The same, with sudo in front where it is needed.
    fn command_to_type(self, packages: &[&str]) -> String {
        let command = self.install_command(packages);
        match self {
            Self::Debian if !rustix::process::geteuid().is_root() => format!("sudo {command}"),
            Self::Debian | Self::Other => command,
        }
    }
}

/// An error and its causes in one line and, where a program is missing that we know, the command that installs it.
#[must_use]
pub fn explain(error: &anyhow::Error) -> String {
    let missing = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(process::Error::NotFound { program }) => hint(program),
        _ => None,
    });
    let hint = missing.map(|hint| format!(": {hint}")).unwrap_or_default();
    format!("{error:#}{hint}")
}

/// What to do about a program that is missing, if we know it: the command that installs its package.
#[must_use]
fn hint(program: &str) -> Option<String> {
    let name = Path::new(program).file_name()?.to_str()?;
    let tool = TOOLS.iter().find(|tool| matches!(tool.sign, Sign::Program(known) if known == name))?;
    let distro = Distro::of_host();
    Some(distro.command_to_type(&[tool.package]))
}

/// A tool and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tool.
    pub tool: &'static Tool,
    /// Where it is; `None` if it is missing.
    pub path: Option<PathBuf>,
}

/// The variable that names another QEMU than the one on `PATH`.
pub const QEMU_VAR: &str = "VM_TESTS_QEMU";

/// The QEMU that runs guests, as `PATH` has it.
pub const QEMU: &str = "qemu-system-x86_64";

/// Finds the programs that the given needs ask for; `qemu` is looked for in place of the usual one. Starts no program.
#[must_use]
pub fn find_all(needs: &[Need], qemu: Option<&Path>) -> Vec<Found> {
    let root = rustix::process::geteuid().is_root();
    TOOLS
        .iter()
        .filter(|tool| needs.contains(&tool.need) && !(root && tool.only == Only::NotRoot))
        .map(|tool| match qemu {
            Some(qemu) if tool.name() == QEMU => Found { tool, path: program(qemu) },
            _ => Found { tool, path: find(tool) },
        })
        .collect()
}

/// A program that is named: a path, or a name that `PATH` has.
#[must_use]
pub fn program(named: &Path) -> Option<PathBuf> {
    match named.to_str().filter(|name| !name.contains('/')) {
        Some(name) => which(name),
        None => is_program(named).then(|| named.to_owned()),
    }
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The file of the keys that Debian's archive signs with.
#[must_use]
pub fn keyring() -> Option<PathBuf> {
    find(TOOLS.iter().find(|tool| tool.package == KEYRING)?)
}

fn find(tool: &Tool) -> Option<PathBuf> {
    match tool.sign {
        Sign::Program(name) => which(name),
        Sign::File(paths) => paths.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

/// Where a program is: on `PATH`, as execvp(3) would look.
#[must_use]
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// The cargo that runs us, as it says; else the one on `PATH`.
#[must_use]
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The first line of what a program says of its version. `None` if it has none to tell.
///
/// # Errors
/// If the program cannot be run.
pub async fn version(found: &Found) -> anyhow::Result<Option<String>> {
    let Some(path) = found.path.as_deref().filter(|_| !found.tool.version_arg.is_empty()) else {
        return Ok(None);
    };
    let (shell, argument) = (Shell::new()?, found.tool.version_arg);
    let output = process::output(cmd!(shell, "{path} {argument}").into(), Duration::from_secs(10)).await?;
    Ok(output.text().lines().next().map(str::to_owned))
}

/// What is missing, with the one command that installs it all; `None` if nothing is.
#[must_use]
pub fn missing(found: &[Found], distro: Distro) -> Option<Missing> {
    let mut packages: Vec<_> =
        found.iter().filter(|one| one.path.is_none()).map(|one| one.tool.package).collect();
    packages.dedup();
    let names = found.iter().filter(|one| one.path.is_none()).map(|one| one.tool.name()).collect();
    (!packages.is_empty()).then(|| Missing { names, command: distro.command_to_type(&packages), packages })
}

/// What is missing and how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The programs and files.
    pub names: Vec<&'static str>,
    /// The packages that have them.
    pub packages: Vec<&'static str>,
    /// What to type.
    pub command: String,
}

/// Makes sure that everything the needs ask for is there, by installing it where we may; `qemu` is in place of the usual one,
/// and `logs` is the directory that gets `install.log`.
///
/// # Errors
/// With the command to type, if something is missing and we may not or cannot install it.
pub async fn ensure(needs: &[Need], qemu: Option<&Path>, logs: &Path) -> anyhow::Result<()> {
    if let Some(qemu) = qemu.filter(|qemu| needs.contains(&Need::Machine) && program(qemu).is_none()) {
        let what = format!("{}: no such program; --qemu and {QEMU_VAR} name another QEMU", qemu.display());
        return Err(WrongInput::new(what).into());
    }
    let distro = Distro::of_host();
    let Some(missing) = missing(&find_all(needs, qemu), distro) else { return Ok(()) };
    let what =
        || format!("not installed: {}; to install, type:\n  {}", missing.names.join(", "), missing.command);
    let Some(sudo) = may_install(distro).await else { bail!(what()) };
    install(&missing.packages, sudo, logs).await.with_context(what)?;
    match self::missing(&find_all(needs, qemu), distro) {
        None => Ok(()),
        Some(still) => {
            bail!("installed {}, but {} is not there", missing.packages.join(" "), still.names.join(", "))
        }
    }
}

/// Whether we can install packages without a question: as root, or by sudo. `Some(true)` is by sudo.
async fn may_install(distro: Distro) -> Option<bool> {
    if distro != Distro::Debian {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(false);
    }
    let shell = Shell::new().ok()?;
    process::output(cmd!(shell, "sudo -n true").into(), Duration::from_secs(5)).await.ok().map(|_| true)
}

/// Runs apt-get, once with the package lists as they are and once more with fresh ones.
async fn install(packages: &[&str], sudo: bool, logs: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(logs).with_context(|| format!("create {}", logs.display()))?;
    let log_path = logs.join("install.log");
    let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    let progress = Progress::start(&format!("installing {}", packages.join(" ")));

    let shell = Shell::new()?;
    let run = |arguments: &[&str]| {
        // The environment goes through env(1), since sudo drops ours.
        let env = if sudo { cmd!(shell, "sudo -n env") } else { cmd!(shell, "env") };
        let apt_get = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"];
        let dup = || log.try_clone().map(Sink::File).unwrap_or(Sink::Null);
        let program = Program::from(env.args(apt_get).args(arguments)).stdout(dup()).stderr(dup());
        process::output(program, Duration::from_secs(900))
    };
    let install = [&["install", "-y", "--no-install-recommends"][..], packages].concat();
    progress.now("apt-get install");
    match run(&install).await.map(drop) {
        // Lists that are missing or too old: E: Unable to locate package, 404 Not Found.
        Err(process::Error::Failed { .. }) => {
            progress.now("apt-get update");
            run(&["update"]).await.with_context(|| format!("see {}", log_path.display()))?;
            progress.now("apt-get install, once more");
            run(&install).await.map(drop).with_context(|| format!("see {}", log_path.display()))
        }
        result => result.with_context(|| format!("see {}", log_path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_tells_the_family() {
        let cases = [
            ("ID=debian\nVERSION_ID=12", Distro::Debian),
            ("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian", Distro::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"", Distro::Debian),
            ("ID='fedora'", Distro::Other),
            ("BUILD_ID=debian\nID=alpine", Distro::Other),
            ("", Distro::Other),
        ];
        for (text, family) in cases {
            assert_eq!(Distro::parse(text), family, "{text}");
        }
    }

    #[test]
    fn one_command_installs_all_that_is_missing() {
        let found: Vec<_> = TOOLS.iter().map(|tool| Found { tool, path: None }).collect();
        let missing = missing(&found, Distro::Debian).expect("all is missing");
        let command = "apt-get install -y --no-install-recommends qemu-system-x86 mmdebstrap squashfs-tools uidmap \
                       debian-archive-keyring libc6-dev nix-bin chromium openssh-client python3-minimal";
        assert!(missing.command.ends_with(command), "{}", missing.command);
        let there: Vec<_> =
            TOOLS.iter().map(|tool| Found { tool, path: Some(PathBuf::from("/x")) }).collect();
        assert_eq!(super::missing(&there, Distro::Debian), None);
    }

    #[test]
    fn a_hint_is_given_for_what_we_know() {
        assert!(hint("sqfstar").expect("known").contains("squashfs"));
        assert!(hint("/usr/bin/mmdebstrap").expect("known by its name").contains("mmdebstrap"));
        assert_eq!(hint("frobnicate"), None);
        let missing = |program: &str| process::Error::NotFound { program: program.to_owned() };
        let error = anyhow::Error::from(missing("sqfstar")).context("make the image");
        let (explained, hint) = (explain(&error), hint("sqfstar").expect("known"));
        assert!(explained.contains("squashfs-tools"), "{explained}");
        assert_eq!(explained, format!("make the image: program sqfstar is not installed: {hint}"));
        let unknown = explain(&missing("frobnicate").into());
        assert_eq!(unknown, "program frobnicate is not installed");
    }

    #[test]
    fn another_qemu_is_looked_for_in_place_of_the_usual_one() {
        let found = |qemu: &str| find_all(&[Need::Machine], Some(Path::new(qemu)))[0].path.clone();
        assert_eq!(found("/bin/sh"), Some(PathBuf::from("/bin/sh")));
        assert!(found("sh").is_some_and(|path| path.ends_with("sh")), "by a name on PATH");
        assert_eq!(found("/no/such/qemu"), None);
    }

    #[test]
    fn programs_are_found_as_a_shell_would() {
        assert!(which("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(which("no-such-program-here"), None);
    }
}
