//! Makes sure of everything that a machine needs: tools, accelerator, image, guest programs, initramfs, saved machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::guest::Guest;
use super::input::{Input, Kind};
use super::installed::Installed;
use crate::cache::{self, Key};
use crate::host::accel::{self, Clock, Wish};
use crate::host::cores;
use crate::host::events::{self, Event};
use crate::host::tools::{self, Need, QEMU_VAR};
use crate::image::external::{self, External};
use crate::image::packages::{Lock, Package};
use crate::image::programs::{GuestBinaries, Mode, PERTURBER};
use crate::image::{self, Image, NoSuchPackage, Request, Suite, initramfs, programs};
use crate::machine::Cancel;
use crate::machine::base::{Base, SEED};
use crate::machine::config::Abilities;
use crate::machine::qemu::Build;
use crate::machine::saved::{self, Saved};
use crate::scenario::{DEFAULT_MEMORY_MIB, Wanted, WrongInput};
use crate::workspace::Workspace;

/// The machines that are asked for.
#[derive(Debug, Clone)]
pub struct Machines {
    /// The guests' Debian suites; one that is named twice is one guest.
    pub suites: Vec<Suite>,
    /// An external image, in place of them.
    pub external: Option<External>,
    /// The directory with the guest's programs; `None` builds them.
    pub programs: Option<PathBuf>,
    /// How the workspace's are built.
    pub mode: Mode,
    /// The QEMU to run; `None` is the one on `PATH`.
    pub qemu: Option<PathBuf>,
    /// What executes the guest's instructions.
    pub accel: Wish,
    /// The guest's time; `None` is the accelerator's choice.
    pub clock: Option<Clock>,
    /// Where packages come from; `None`, or an empty one, is Debian's own servers.
    pub mirror: Option<String>,
}

impl Default for Machines {
    /// One of the default suite; QEMU and mirror as `$VM_TESTS_QEMU` and `$VM_TESTS_MIRROR` say.
    fn default() -> Self {
        Self {
            suites: vec![Suite::default()],
            external: None,
            programs: None,
            mode: Mode::default(),
            qemu: std::env::var_os(QEMU_VAR).map(PathBuf::from),
            accel: Wish::Auto,
            clock: None,
            mirror: std::env::var(image::MIRROR_VAR).ok(),
        }
    }
}

impl Machines {
    /// How many guests that makes.
    #[must_use]
    pub fn guests(&self) -> usize {
        self.external.as_ref().map_or_else(|| self.suites().len(), |_one| 1)
    }

    /// That it is one guest.
    ///
    /// # Errors
    /// [`WrongInput`] for several.
    pub fn only_one(&self) -> Result<(), WrongInput> {
        match self.guests() {
            1 => Ok(()),
            _several => Err(WrongInput::new("--image: one suite at a time here; vm-test takes several")),
        }
    }

    /// What they bring themselves, where the product is installed in them.
    pub(super) fn installed(&self, workspace: &Workspace) -> Option<Installed> {
        let external = self.external.as_ref()?;
        external.installed.as_ref().map(|_name| Installed::of(workspace))
    }

    /// Their guests' names, in the order they were asked for.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.external {
            Some(one) => vec![one.name().to_owned()],
            None => self.suites().iter().map(Suite::to_string).collect(),
        }
    }

    /// In the order they were asked for, each once.
    fn suites(&self) -> Vec<Suite> {
        let mut once = Vec::new();
        for suite in &self.suites {
            if !once.contains(suite) {
                once.push(*suite);
            }
        }
        once
    }
}

/// Prepares one guest, where no more than one is wanted.
///
/// # Errors
/// As [`prepare`]; more suites than one.
pub async fn prepare_one(
    workspace: &Workspace,
    machines: &Machines,
    wanted: &[Wanted],
    results: &Path,
    cancel: Cancel,
) -> Result<Guest> {
    machines.only_one()?;
    let prepared = prepare(workspace, machines, wanted, results, cancel.clone()).await?;
    let mut guest = prepared.into_iter().next_back().context("a guest")?;
    let sizes: Vec<u32> = guest.saved.keys().copied().collect();
    for memory_mib in sizes {
        make_sure(&mut guest, memory_mib, &workspace.cache()?, cancel.clone()).await?;
    }
    Ok(guest)
}

/// Looks whether a guest's machine of this size is as it was saved, and makes it anew if it is not.
///
/// # Errors
/// Those of the boot; a machine of virtual time that comes out as another one.
pub async fn make_sure(guest: &mut Guest, memory_mib: u32, cache: &Path, cancel: Cancel) -> Result<()> {
    let base = Base { memory_mib, ..guest.base.clone() };
    let what = || format!("the machine of {} with {memory_mib} MiB", guest.name);
    let machine = saved::ensure(&guest.name, &base, cache, cancel).await.with_context(what)?;
    let was = guest.saved.get(&memory_mib).map(|saved| &saved.hash);
    if base.clock == Clock::Virtual && was.is_some_and(|was| *was != machine.hash) {
        bail!("{} was damaged, and what was made anew is not the same: run it again", what());
    }
    guest.saved.insert(memory_mib, machine);
    Ok(())
}

/// Installs, builds and chooses; tells in one line on what the machines will run. One result for each guest, in the order
/// they were asked for, with saved machines of the sizes that are wanted; one more for each list of packages. `results` gets
/// a directory for each guest. Machines that are there are not looked at: see [`make_sure`].
///
/// # Errors
/// Whatever is not there and can't be had, and what to do about it.
pub async fn prepare(
    workspace: &Workspace,
    machines: &Machines,
    wanted: &[Wanted],
    results: &Path,
    cancel: Cancel,
) -> Result<Vec<Guest>> {
    let cache = workspace.cache()?;
    // Nothing is installed for what is not there.
    machines.external.as_ref().map_or(Ok(()), External::check)?;
    let builds = machines.programs.is_none().then_some(Need::GuestBinaries);
    let needs: Vec<Need> = [Need::Machine].into_iter().chain(builds).collect();
    tools::ensure(&needs, machines.qemu.as_deref(), &cache).await?;
    let named = machines.qemu.as_deref().unwrap_or(Path::new(tools::QEMU));
    let qemu = tools::program(named).with_context(|| format!("find {} on PATH", named.display()))?;
    let qemu = std::path::absolute(qemu).context("the path of QEMU")?;
    // Each of them runs a program or two.
    let (choice, abilities, build) = tokio::try_join!(
        accel::decide(machines.accel, machines.clock),
        Abilities::ask(&qemu),
        Build::of(&qemu)
    )?;
    events::tell(Event::Note(choice.to_string()));
    if choice.clock == Clock::Virtual && !abilities.still_clock {
        events::tell(Event::Note(format!(
            "{} takes no library from LD_PRELOAD, since it is static, has capabilities of its own, or this host is no x86-64: the \
             host's clock gets into a guest that runs for 10 s of its time or more, and its recording may differ by nanoseconds",
            qemu.display()
        )));
    }
    choice.advice().map(Event::Note).into_iter().for_each(events::tell);
    // Before anything is compiled, which takes minutes, as it may ask for a password.
    if requests(machines, wanted).iter().any(|request| !request.dir(&cache).exists()) {
        tools::ensure(&[Need::Image], None, &cache).await?;
    }
    // An image waits for a mirror half of the time, and a build for the processor.
    let (systems, programs) =
        tokio::try_join!(systems(workspace, machines, wanted, &cache), guest_binaries(workspace, machines))?;
    let perturber = match wanted.iter().any(|one| one.holds) {
        true => Some((PERTURBER.to_owned(), programs::perturber(workspace).await?)),
        false => None,
    };
    let harness = ["vm-init", "vm-agent"].map(|name| program(&programs, name));
    let harness = harness.into_iter().collect::<Result<Vec<Input>>>()?;
    let (mut guests, mut sizes) = (Vec::new(), Vec::new());
    for system in systems {
        let results = results.join(&system.name);
        std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
        let initramfs = results.join(format!("initramfs-{}.img", system.root_key.short()));
        let mut bytes = Vec::new();
        initramfs::write(&mut bytes, &system.modules, programs.path("vm-init")?, programs.path("vm-agent")?)?;
        std::fs::write(&initramfs, bytes).with_context(|| format!("write {}", initramfs.display()))?;
        let base = Base {
            qemu: qemu.clone(),
            build: build.clone(),
            abilities,
            root_bytes: std::fs::metadata(&system.root).context("look at the root")?.len(),
            root: system.root,
            root_key: system.root_key.as_str().to_owned(),
            kernel: system.kernel,
            initramfs,
            accel: choice.accel,
            clock: choice.clock,
            memory_mib: DEFAULT_MEMORY_MIB,
            seed: SEED,
        };
        sizes.extend(system.memory_mib.iter().map(|size| (guests.len(), *size)));
        guests.push(Guest {
            name: system.name,
            packages: system.packages,
            lock: system.lock.as_ref().map(|lock| lock.name().to_owned()),
            base,
            saved: BTreeMap::new(),
            image: system.description,
            explained: [system.lock.map(packages_of).unwrap_or_default(), harness.clone()].concat(),
            choice: choice.to_string(),
            installed: machines.installed(workspace),
            programs: programs
                .iter()
                .map(|(name, path)| (name.to_owned(), path.to_owned()))
                .chain(perturber.clone())
                .collect(),
        });
    }
    // One boot is one busy thread.
    let booted: Vec<(usize, u32, Saved)> = stream::iter(sizes)
        .map(|(number, memory_mib)| machine_of(&guests, number, memory_mib, &cache, &cancel))
        .buffered(cores())
        .try_collect()
        .await?;
    for (number, memory_mib, machine) in booted {
        if let Some(guest) = guests.get_mut(number) {
            guest.saved.insert(memory_mib, machine);
        }
    }
    Ok(guests)
}

/// The machine of this size of one of the guests, booted where there is none.
async fn machine_of(
    guests: &[Guest],
    number: usize,
    memory_mib: u32,
    cache: &Path,
    cancel: &Cancel,
) -> Result<(usize, u32, Saved)> {
    let guest = guests.get(number).context("a guest")?;
    let base = Base { memory_mib, ..guest.base.clone() };
    let machine = match saved::find(&base, cache)? {
        Some(machine) => machine,
        None => saved::ensure(&guest.name, &base, cache, cancel.clone())
            .await
            .with_context(|| format!("the machine of {} with {memory_mib} MiB", guest.name))?,
    };
    Ok((number, memory_mib, machine))
}

async fn guest_binaries(workspace: &Workspace, machines: &Machines) -> Result<GuestBinaries> {
    match (&machines.programs, machines.mode) {
        (Some(directory), _) => GuestBinaries::of_directory(workspace, directory),
        (None, Mode::Shipped) => programs::guest_binaries(workspace).await,
        (None, Mode::Quick) => programs::guest_binaries_quickly(workspace).await,
    }
}

fn packages_of(lock: Lock) -> Vec<Input> {
    let input =
        |(name, package): (String, Package)| Input { kind: Kind::Package, name, value: package.version };
    lock.packages.0.into_iter().map(input).collect()
}

fn program(programs: &GuestBinaries, name: &str) -> Result<Input> {
    let value = cache::hash_file(programs.path(name)?)?;
    Ok(Input { kind: Kind::Program, name: name.to_owned(), value })
}

/// What a guest boots.
struct System {
    /// Short, and a directory's name.
    name: String,
    /// Beside the usual ones.
    packages: Vec<String>,
    /// The sizes of its machines.
    memory_mib: BTreeSet<u32>,
    kernel: PathBuf,
    modules: PathBuf,
    root: PathBuf,
    root_key: Key,
    /// All of its packages; none of an external image.
    lock: Option<Lock>,
    /// One line.
    description: String,
}

/// The systems that are asked for, built where they are not there.
async fn systems(
    workspace: &Workspace,
    machines: &Machines,
    wanted: &[Wanted],
    cache: &Path,
) -> Result<Vec<System>> {
    if let Some(external) = machines.external.clone() {
        let mappable = external::mappable_root(&external, cache).await?;
        let description = format!("{}, kernel {}", external.root.display(), external.kernel.display());
        return Ok(vec![System {
            name: external.name().to_owned(),
            // It is as it is.
            packages: Vec::new(),
            memory_mib: wanted.iter().map(|one| one.memory_mib).collect(),
            kernel: external.kernel,
            modules: external.modules,
            root: mappable.root,
            root_key: mappable.root_key,
            lock: None,
            description,
        }]);
    }
    let of = |suite| images(suite, wanted).into_iter().map(move |(packages, sizes)| (suite, packages, sizes));
    let asked: Vec<_> = machines.suites().into_iter().flat_map(of).collect();
    let systems: Vec<System> = stream::iter(asked)
        .map(|(suite, packages, sizes)| async move {
            let request = request(machines, suite, &packages);
            let image = image::ensure(&request, cache).await.map_err(|error| blame(error, wanted))?;
            system(workspace, suite, packages, sizes, image)
        })
        .buffered(cores())
        .try_collect()
        .await?;
    if systems.is_empty() {
        let names: Vec<&str> = wanted.iter().map(|one| one.by.as_str()).collect();
        let what = format!(
            "{}: for none of these images: give --image one of those that `images` names",
            names.join(", ")
        );
        return Err(WrongInput::new(what).into());
    }
    Ok(systems)
}

/// What a guest of this image boots; tells what has moved since the suite's lock.
fn system(
    workspace: &Workspace,
    suite: Suite,
    packages: Vec<String>,
    memory_mib: BTreeSet<u32>,
    image: Image,
) -> Result<System> {
    let lock = image.lock();
    // What a scenario wants besides has no lock file.
    let file = if packages.is_empty() { Lock::load(&workspace.images, suite)? } else { None };
    file.and_then(|file| file.moved(&lock)).map(Event::Note).into_iter().for_each(events::tell);
    let kernel = &image.manifest.kernel_version;
    let description = match packages.as_slice() {
        [] => format!("Debian {suite}, kernel {kernel}"),
        packages => format!("Debian {suite}, kernel {kernel}, with {}", packages.join(", ")),
    };
    Ok(System {
        name: suite.to_string(),
        packages,
        memory_mib,
        root_key: image.content_key(),
        lock: Some(lock),
        description,
        kernel: image.kernel,
        modules: image.modules,
        root: image.root,
    })
}

fn request(machines: &Machines, suite: Suite, packages: &[String]) -> Request {
    let mirror = machines.mirror.clone().filter(|mirror| !mirror.is_empty());
    Request { suite, packages: packages.to_owned(), mirror, rebuild: false }
}

/// All images that are wanted.
fn requests(machines: &Machines, wanted: &[Wanted]) -> Vec<Request> {
    if machines.external.is_some() {
        return Vec::new();
    }
    let of = |suite| {
        let images = images(suite, wanted).into_keys();
        images.map(|packages| request(machines, suite, &packages)).collect::<Vec<_>>()
    };
    machines.suites().into_iter().flat_map(of).collect()
}

/// The images of a suite that are wanted: one for each list of packages, with the sizes of its machines.
fn images(suite: Suite, wanted: &[Wanted]) -> BTreeMap<Vec<String>, BTreeSet<u32>> {
    let mut images: BTreeMap<Vec<String>, BTreeSet<u32>> = BTreeMap::new();
    for one in wanted.iter().filter(|one| one.images.is_empty() || one.images.contains(&suite)) {
        images.entry(one.packages.clone()).or_default().insert(one.memory_mib);
    }
    images
}

/// A package that is not there is an error in a manifest.
fn blame(error: anyhow::Error, wanted: &[Wanted]) -> anyhow::Error {
    let Some(NoSuchPackage { packages, .. }) = error.downcast_ref() else { return error };
    let asks = |one: &&Wanted| packages.iter().any(|package| one.packages.contains(package));
    let names: Vec<&str> = wanted.iter().filter(asks).map(|one| one.by.as_str()).collect();
    WrongInput::new(format!("{}: packages: {}", names.join(", "), error.root_cause())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_of_packages_is_an_image_of_the_suites_that_want_it() {
        let wanted = |by: &str, packages: &[&str], images: &[Suite], memory_mib| Wanted {
            by: by.to_owned(),
            packages: packages.iter().map(|one| (*one).to_owned()).collect(),
            images: images.to_vec(),
            memory_mib,
            holds: false,
        };
        let all = [
            wanted("a", &[], &[], 512),
            wanted("b", &[], &[], 2048),
            wanted("c", &["x", "y"], &[Suite::Trixie], 512),
            wanted("d", &["x"], &[], 512),
        ];
        let seen = |suite| {
            let images = images(suite, &all).into_iter();
            images.map(|(packages, sizes)| (packages.join("+"), sizes.len())).collect::<Vec<_>>()
        };
        assert_eq!(seen(Suite::Trixie), [("".to_owned(), 2), ("x".to_owned(), 1), ("x+y".to_owned(), 1)]);
        assert_eq!(seen(Suite::Sid), [("".to_owned(), 2), ("x".to_owned(), 1)]);

        let no = NoSuchPackage { suite: Suite::Trixie, packages: vec!["y".to_owned()] };
        let error = blame(anyhow::Error::from(no).context("build the image"), &all);
        assert!(error.is::<WrongInput>(), "{error:#}");
        assert!(error.to_string().contains("c: packages: Debian trixie has no package y"), "{error:#}");
        assert!(!blame(anyhow::anyhow!("no space"), &all).is::<WrongInput>());
    }
}
