//! Makes sure of everything that a machine needs: tools, image, guest programs, initramfs, accelerator.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use vm_tests::cache;
use vm_tests::cache::Key;
use vm_tests::host::accel::{self, Clock, Wish};
use vm_tests::host::signals::Interrupts;
use vm_tests::host::tools::{self, Need};
use vm_tests::image::external::{self, External};
use vm_tests::image::initramfs;
use vm_tests::image::programs;
use vm_tests::image::{self, EXTERNAL, Request, Suite};
use vm_tests::machine::Cancel;
use vm_tests::machine::base::Base;
use vm_tests::machine::config::Abilities;
use vm_tests::machine::saved;
use vm_tests::run::Prepared;
use vm_tests::scenario::{DEFAULT_MEMORY_MIB, Scenario};

/// What a machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// Debian suite of the guest: bookworm, trixie or sid; vm-test and bench holders take several, with commas
    #[arg(long, value_name = "SUITE", value_delimiter = ',', default_values_t = [Suite::default()])]
    pub(crate) image: Vec<Suite>,

    /// Kernel of an external image (bzImage or vmlinux), in place of --image
    #[arg(long, value_name = "FILE", requires_all = ["modules", "root"], conflicts_with = "image")]
    pub(crate) kernel: Option<PathBuf>,

    /// Modules of that kernel: the directory with modules.dep
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,

    /// Root file system of the external image, with systemd: squashfs, erofs, ext4 or btrfs. It is never written to
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) root: Option<PathBuf>,

    /// QEMU to run, in place of the one on PATH
    #[arg(long, value_name = "PROGRAM", env = "VM_TESTS_QEMU")]
    pub(crate) qemu: Option<PathBuf>,

    /// Accelerator: auto uses KVM if it runs a guest, else TCG; kvm fails if KVM runs no guest
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    pub(crate) accel: Wish,

    /// Clock of the guest: real is the host's; virtual counts instructions and skips idle time, so a duration is the
    /// same on every host [default: virtual without KVM, else real]
    #[arg(long, value_name = "real|virtual")]
    pub(crate) clock: Option<Clock>,

    /// Mirror for packages, in place of Debian's servers
    #[arg(long, value_name = "URL", env = image::MIRROR_VAR)]
    pub(crate) mirror: Option<String>,
}

impl MachineArgs {
    /// Machines of these suites, all else by default.
    pub(crate) fn of_suites(suites: &[Suite]) -> Self {
        Self {
            image: suites.to_vec(),
            kernel: None,
            modules: None,
            root: None,
            qemu: std::env::var_os("VM_TESTS_QEMU").map(PathBuf::from),
            accel: Wish::Auto,
            clock: None,
            mirror: std::env::var(image::MIRROR_VAR).ok(),
        }
    }

    /// How many guests that makes.
    pub(crate) fn guests(&self) -> usize {
        if self.kernel.is_some() {
            1
        } else {
            self.image.iter().map(|suite| suite.as_str()).collect::<BTreeSet<_>>().len()
        }
    }

    /// By absolute paths: the suite runs elsewhere.
    fn external(&self) -> Result<Option<External>> {
        let (Some(kernel), Some(modules), Some(root)) = (&self.kernel, &self.modules, &self.root) else {
            return Ok(None);
        };
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("the absolute path of {}", path.display()))
        };
        Ok(Some(External { kernel: absolute(kernel)?, modules: absolute(modules)?, root: absolute(root)? }))
    }
}

/// What is not the machine's.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) scenarios: &'a [Scenario],
    /// The sizes of machine that are needed; the scenarios' are not added by themselves.
    pub(crate) memory_mib: BTreeSet<u32>,
    pub(crate) cycles: Option<u32>,
    pub(crate) deadline_secs: u64,
    /// Gets one directory per guest.
    pub(crate) results: &'a Path,
}

/// Prepares one guest, for a command that runs no more than one.
pub(crate) async fn prepare_one(
    machine: &MachineArgs,
    wanted: Wanted<'_>,
    cancel: Cancel,
) -> Result<Prepared> {
    ensure!(machine.image.len() == 1, "--image: one suite at a time here; vm-test takes several");
    prepare(machine, wanted, cancel).await?.pop().context("a guest")
}

/// Installs, builds and chooses; says in one line on what the machines will run. One result for each guest, in the order
/// they were asked for.
pub(crate) async fn prepare(
    machine: &MachineArgs,
    wanted: Wanted<'_>,
    cancel: Cancel,
) -> Result<Vec<Prepared>> {
    tools::ensure(&[Need::Machine, Need::GuestBinaries]).await?;
    let choice = accel::decide(machine.accel, machine.clock).await?;
    eprintln!("{choice}");
    let qemu = match &machine.qemu {
        Some(program) => std::path::absolute(program).context("--qemu")?,
        None => tools::which("qemu-system-x86_64").context("find qemu-system-x86_64 on PATH")?,
    };
    let abilities = Abilities::ask(&qemu).await?;
    let programs = programs::guest_binaries().await?;
    let mut all = Vec::new();
    for system in systems(machine).await? {
        let results = wanted.results.join(&system.name);
        std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
        let initramfs = results.join("initramfs.img");
        let mut bytes = Vec::new();
        initramfs::write(&mut bytes, &system.modules, programs.path("vm-init")?, programs.path("vm-agent")?)?;
        std::fs::File::create(&initramfs)
            .and_then(|mut file| file.write_all(&bytes))
            .with_context(|| format!("write {}", initramfs.display()))?;
        let base = Base {
            qemu: qemu.clone(),
            abilities,
            root_bytes: std::fs::metadata(&system.root)
                .with_context(|| format!("stat {}", system.root.display()))?
                .len(),
            root: system.root,
            root_key: system.root_key.as_str().to_owned(),
            kernel: system.kernel,
            initramfs,
            accel: choice.accel,
            clock: choice.clock,
            memory_mib: DEFAULT_MEMORY_MIB,
        };
        let mut saved = BTreeMap::new();
        for memory_mib in &wanted.memory_mib {
            let base = Base { memory_mib: *memory_mib, ..base.clone() };
            let machine = saved::ensure(&base, cancel.clone())
                .await
                .with_context(|| format!("the machine of {} with {memory_mib} MiB", system.name))?;
            saved.insert(*memory_mib, machine);
        }
        all.push(Prepared {
            guest: system.name,
            base,
            saved,
            image: system.description,
            programs: programs.iter().map(|(name, path)| (name.to_owned(), path.to_owned())).collect(),
            choice: choice.to_string(),
            cycles: wanted.cycles,
            deadline_secs: wanted.deadline_secs,
            results,
            scenarios: wanted.scenarios.iter().map(|scenario| scenario.directory.clone()).collect(),
        });
    }
    Ok(all)
}

/// What a guest boots.
struct System {
    /// Short, and a directory's name.
    name: String,
    kernel: PathBuf,
    modules: PathBuf,
    root: PathBuf,
    root_key: Key,
    /// One line.
    description: String,
}

/// The systems that are asked for, built where they are not there.
async fn systems(machine: &MachineArgs) -> Result<Vec<System>> {
    if let Some(external) = machine.external()? {
        let mappable = external::mappable_root(&external).await?;
        let description = format!("{}, kernel {}", external.root.display(), external.kernel.display());
        return Ok(vec![System {
            name: EXTERNAL.to_owned(),
            kernel: external.kernel,
            modules: external.modules,
            root: mappable.root,
            root_key: mappable.root_key,
            description,
        }]);
    }
    let mirror = machine.mirror.clone().filter(|mirror| !mirror.is_empty());
    let mut systems: Vec<System> = Vec::new();
    for suite in &machine.image {
        if systems.iter().any(|system| system.name == suite.as_str()) {
            continue;
        }
        let image = image::ensure(&Request { suite: *suite, mirror: mirror.clone(), rebuild: false }).await?;
        systems.push(System {
            name: suite.to_string(),
            root_key: image.content_key(),
            description: format!("Debian {suite}, kernel {}", image.manifest.kernel_version),
            kernel: image.kernel,
            modules: image.modules,
            root: image.root,
        });
    }
    Ok(systems)
}

/// Cancelled when the user interrupts.
pub(crate) fn cancel_on_interrupt() -> Result<Cancel> {
    let cancel = Cancel::new();
    let mut interrupts = Interrupts::listen().context("listen for signals")?;
    let cancelled = cancel.clone();
    tokio::spawn(async move {
        interrupts.next().await;
        cancel.cancel();
    });
    Ok(cancelled)
}

/// Where scenarios are that are named without a path.
pub(crate) fn scenarios_root() -> Result<PathBuf> {
    Ok(cache::workspace()?.join("vm-tests/scenarios"))
}
