//! The diagnosis: mount tables of all namespaces, one walk over all tasks, what the kernel holds by itself, and
//! what each reference found does to an unmount.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::path::DecInt;

use crate::kernel;
use crate::kernel_holders;
use crate::mountinfo::{self, Device, Mount};
use crate::namespace::{self, MountNamespace};
use crate::proc;
use crate::propagation::{self, At, Fate, Fates, Table};
use crate::report::{
    Carries, CutShort, Effect, Holder, KernelHolder, Kind, Member, MountCopy, NamespaceUse, Phase, Reference,
    Report, Suspect, Unseen,
};
use crate::task;
use crate::unix_diag::{self, BoundSocket};
use crate::walk::{self, Carrier, Found, Link, MetNamespace, OnMount, TOO_LONG, Walk, Wanted};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    path: PathBuf,
    devices: Vec<Device>,
    refused: bool,
    detached: bool,
    among: Option<Vec<u32>>,
    deadline: Option<Instant>,
}

/// How long a scan takes at most if nothing else is asked for ([`Query::deadline`]).
pub const LONGEST_SCAN: Duration = Duration::from_secs(30);

/// Why there is no report.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The path is relative, or has a `..` in it.
    Path(PathBuf),
    /// The path is no mount namespace's file.
    NoNamespace(PathBuf),
    /// `/proc` could not be read.
    Proc {
        /// What was to be done.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => {
                write!(f, "{} is not an absolute path without \"..\": give the mount point", path.display())
            }
            Self::NoNamespace(path) => write!(
                f,
                "{} is no mount namespace: give a process id, /proc/PID/ns/mnt, or a place where one is bound",
                path.display()
            ),
            Self::Proc { call, path, .. } => {
                write!(f, "{call} {}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Path(_) | Self::NoNamespace(_) => None,
            Self::Proc { source, .. } => Some(source),
        }
    }
}

impl Query {
    /// Asks about the mount at `path`, an absolute path without symbolic links, in the caller's mount namespace.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            devices: Vec::new(),
            refused: false,
            detached: false,
            among: None,
            deadline: None,
        }
    }

    /// Says that an unmount was just refused with EBUSY. If nothing is found that blocks it, the verdict is then
    /// that something blocks which `/proc` does not show, not that nothing does.
    #[must_use]
    pub fn after_ebusy(mut self) -> Self {
        self.refused = true;
        self
    }

    /// Names the file system, by the device number that mountinfo showed while it was mounted: what of it is left
    /// once the path is no mount point any more. Without this only what lies at the same path in other
    /// namespaces is found. The kernel gives the number of a file system that has ended to the next one, so this is
    /// for the time right after an unmount.
    #[must_use]
    pub fn of_device(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Also finds references to mounts of the file system that lie in no namespace: a clone (`OPEN_TREE_CLONE`), or
    /// one that was unmounted lazily. They block no unmount and show no path that tells them, so every link has
    /// to be asked for its mount. Done in any case if the path is no mount point and the device is known.
    #[must_use]
    pub fn with_detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Looks at these processes only, and at the namespaces they are in: a sample that costs next to nothing beside
    /// a walk over all. Nothing else is looked for, so a verdict that nothing blocks is one on these processes,
    /// and a copy that is reached through a namespace which none of them is in counts as private.
    #[must_use]
    pub fn among(mut self, pids: impl Into<Vec<u32>>) -> Self {
        self.among = Some(pids.into());
        self
    }

    /// Ends the scan at this moment, [`LONGEST_SCAN`] from its beginning without. What it has found until then is
    /// reported, and that it was cut short is in [`Report::unseen`] and the verdict. The clock is asked at each process
    /// and every few descriptors and mappings; one call of the kernel's that takes longer is waited for.
    #[must_use]
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// Looks.
    ///
    /// Takes one walk over `/proc` (a few milliseconds for 100 processes) and reads the mount table of each mount
    /// namespace once; a second walk only if a namespace turned out to have the mount at a path of its own. Needs
    /// CAP_SYS_PTRACE to see other users' processes; what it could not see is in [`Report::unseen`]. Opens and
    /// resolves no path inside a mount.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that is not absolute; [`Error::Proc`] without a readable `/proc`. Whatever
    /// vanishes meanwhile is no error.
    pub fn run(&self) -> Result<Report, Error> {
        let is_plain = |part| !matches!(part, std::path::Component::ParentDir);
        if !self.path.is_absolute() || !self.path.components().all(is_plain) {
            return Err(Error::Path(self.path.clone()));
        }
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + LONGEST_SCAN);
        let proc_dir = proc::open_proc().map_err(proc_error("open", "/proc"))?;
        let own = own_table(proc_dir.as_fd())?;
        let target = propagation::visible_at(&own.mounts, &self.path);
        let devices = match target {
            Some(at) => vec![own.mounts[at].device],
            None => self.devices.clone(),
        };
        let mut survey = Survey {
            proc_dir: proc_dir.as_fd(),
            path: &self.path,
            target,
            devices,
            is_device_given: !self.devices.is_empty(),
            detached: self.detached,
            refused: self.refused,
            listed: if self.among.is_none() { namespace::listed().ok() } else { None },
            among: self.among.as_deref(),
            deadline,
            is_late: false,
            tables: vec![own],
            unlisted: Vec::new(),
            fates: Fates::default(),
            sockets: None,
            walk: Walk::default(),
        };
        survey.look().map_err(proc_error("list", "/proc"))?;
        Ok(survey.report())
    }
}

/// Says why the mount at `path` is busy, or what of it is left: [`Query::new`] and [`Query::run`].
///
/// ```no_run
/// let report = holders::diagnose("/var/lib/left4me/runtime/3/merged".as_ref())?;
/// println!("{}", report.verdict().line());
/// for blocker in report.blockers() {
///     println!("waiting for {} of {:?}", blocker.pid, blocker.unit);
/// }
/// # Ok::<(), holders::Error>(())
/// ```
///
/// # Errors
/// As [`Query::run`].
pub fn diagnose(path: &Path) -> Result<Report, Error> {
    Query::new(path).run()
}

pub(crate) fn proc_error(call: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    let path = PathBuf::from(path);
    move |errno| Error::Proc { call, path, source: errno.into() }
}

/// The table of the calling thread's namespace, as that thread sees it.
pub(crate) fn own_table(proc_dir: BorrowedFd<'_>) -> Result<Table, Error> {
    let own = proc::open_task(proc_dir, c"thread-self").map_err(proc_error("open", "/proc/thread-self"))?;
    let mut text = Vec::new();
    proc::read_file(own.as_fd(), c"mountinfo", &mut text)
        .map_err(proc_error("read", "/proc/thread-self/mountinfo"))?;
    let mounts = mountinfo::parse(&text).map_err(|error| Error::Proc {
        call: "parse",
        path: "/proc/thread-self/mountinfo".into(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    let inode = namespace::inode(own.as_fd()).map_err(proc_error("readlink", "/proc/thread-self/ns/mnt"))?;
    let id = namespace::unique_id(own.as_fd()).ok().flatten();
    Ok(Table { namespace: MountNamespace { inode, id }, mounts })
}

/// What is being found out.
struct Survey<'a> {
    proc_dir: BorrowedFd<'a>,
    path: &'a Path,
    /// Index into the first table, which is the caller's.
    target: Option<usize>,
    devices: Vec<Device>,
    is_device_given: bool,
    detached: bool,
    refused: bool,
    /// `None` if the kernel lists no namespaces, or not to this user.
    listed: Option<Vec<MountNamespace>>,
    among: Option<&'a [u32]>,
    deadline: Instant,
    /// The deadline has come, and something was left out.
    is_late: bool,
    tables: Vec<Table>,
    /// Namespaces without a table.
    unlisted: Vec<MountNamespace>,
    fates: Fates,
    /// Those that are bound to a file; `None` if that can't be known.
    sockets: Option<HashMap<u64, BoundSocket>>,
    walk: Walk,
}

/// A walk shows where mounts are that the next one has to look for; the second settles that, unless somebody mounts
/// all the while.
const WALKS: usize = 3;

/// The most suspects of each kind that are named.
const MOST_SUSPECTS: usize = 64;
/// The most files registered with one ring that are listed for one effect.
const MOST_OF_A_RING: usize = 64;
/// The most that is read of what `fdinfo` says, bytes: a ring may have a million files.
const MOST_FDINFO: usize = 4 << 20;

impl Survey<'_> {
    fn look(&mut self) -> Result<(), Errno> {
        let mut wanted = Wanted { carriers: self.refused, tasks: true, ..Wanted::default() };
        if self.among.is_none() {
            self.sockets = unix_diag::bound_sockets().ok();
        }
        self.settle();
        self.want(&mut wanted);
        for _ in 0..WALKS {
            let before = std::mem::take(&mut self.walk);
            self.walk = walk::walk(&wanted, self.among, Some(self.deadline))?;
            if self.walk.left.is_some() {
                self.walk.add(before);
            }
            self.read_tables();
            self.settle();
            if self.is_late() || !self.want(&mut wanted) {
                break;
            }
        }
        Ok(())
    }

    /// To be asked before something is done that is left out then.
    fn is_late(&mut self) -> bool {
        self.is_late |= self.walk.left.is_some() || Instant::now() >= self.deadline;
        self.is_late
    }

    /// Adds the places where references can be; true if there are new ones.
    fn want(&self, wanted: &mut Wanted) -> bool {
        let mut is_new = wanted.mount_points.add(self.path);
        for (at, _) in self.related() {
            let mount = self.mount(at);
            is_new |= wanted.mount_points.add(&mount.mount_point);
            if !wanted.devices.contains(&mount.device) {
                wanted.devices.push(mount.device);
                is_new = true;
            }
        }
        for &device in &self.devices {
            if !wanted.devices.contains(&device) {
                wanted.devices.push(device);
                is_new = true;
            }
        }
        let interesting = |device| {
            let is_below = |&at: &usize| self.tables[0].mounts[at].device == device;
            let below = self.target.map(|target| propagation::submounts(&self.tables[0].mounts, target));
            wanted.devices.contains(&device) || below.unwrap_or_default().iter().any(is_below)
        };
        let sockets = self.sockets.iter().flatten().filter(|(_, bound)| interesting(bound.device));
        wanted.sockets = sockets.map(|(&inode, bound)| (inode, bound.device)).collect();
        let related: HashSet<u64> = self.related().iter().map(|(at, _)| self.mount(*at).id).collect();
        wanted.devices_are_shared = self.target.is_some()
            && self.tables[0]
                .mounts
                .iter()
                .any(|mount| wanted.devices.contains(&mount.device) && !related.contains(&mount.id));
        let detached = self.detached || (self.target.is_none() && !self.devices.is_empty());
        is_new |= detached && !wanted.detached;
        wanted.detached = detached;
        is_new
    }
}

impl Survey<'_> {
    /// Reads the tables of the namespaces that the walk met or the kernel lists, and that are not known yet.
    fn read_tables(&mut self) {
        let met = std::mem::take(&mut self.walk.namespaces);
        for namespace in &met {
            if !self.is_known(namespace.inode)
                && !self.is_late()
                && let Some(table) = self.table_through(namespace)
            {
                self.tables.push(table);
            }
        }
        self.walk.namespaces = met;
        self.unlisted.clear();
        for namespace in self.listed.clone().unwrap_or_default() {
            if self.is_known(namespace.inode) {
                continue;
            }
            if self.is_late() {
                self.unlisted.push(namespace);
                continue;
            }
            match kernel::mounts_of(namespace.id.unwrap_or_default()) {
                Ok(mounts) => self.tables.push(Table { namespace, mounts }),
                // It is gone.
                Err(Errno::NOENT) => {}
                Err(_) => self.unlisted.push(namespace),
            }
        }
        let bound: Vec<u64> = self.binds().into_iter().map(|(inode, _)| inode).collect();
        let open = self.walk.namespace_files.iter().map(|file| file.inode);
        for inode in open.chain(bound).collect::<Vec<_>>() {
            let is_noted = self.unlisted.iter().any(|unlisted| unlisted.inode == inode);
            if self.listed.is_none() && !self.is_known(inode) && !is_noted {
                self.unlisted.push(MountNamespace { inode, id: None });
            }
        }
    }

    fn is_known(&self, inode: u64) -> bool {
        self.tables.iter().any(|table| table.namespace.inode == inode)
    }

    /// A namespace's table as a member sees it, with mount points made those of the namespace's root.
    fn table_through(&self, met: &MetNamespace) -> Option<Table> {
        let (pid, tid) = met.member;
        let task = proc::open_thread(self.proc_dir, pid, tid).ok()?;
        // The member may have moved, or its id be another task's by now.
        if namespace::inode(task.as_fd()) != Ok(met.inode) {
            return None;
        }
        let id = match &self.listed {
            Some(listed) => listed.iter().find(|known| known.inode == met.inode).and_then(|known| known.id),
            None => None,
        };
        let id = id.or_else(|| namespace::unique_id(task.as_fd()).ok().flatten());
        let namespace = MountNamespace { inode: met.inode, id };
        let is_whole = met.root == b"/";
        if met.root.is_empty() {
            // What the member is shown can't be told as paths from the namespace's root.
            return kernel::mounts_of(id?).ok().map(|mounts| Table { namespace, mounts });
        }
        let mut text = Vec::new();
        proc::read_file(task.as_fd(), c"mountinfo", &mut text).ok()?;
        let mut mounts = mountinfo::parse(&text).ok()?;
        if !is_whole {
            let root = PathBuf::from(OsString::from_vec(met.root.clone()));
            for mount in &mut mounts {
                let below = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
                mount.mount_point = if below == Path::new("") { root.clone() } else { root.join(below) };
            }
        }
        // A member with another root directory is shown what lies below that, and no more; the rest may be listed.
        if !is_whole
            && let Some(id) = id
            && let Ok(mut listed) = kernel::mounts_of(id)
        {
            mounts.retain(|mount| !listed.iter().any(|known| known.id == mount.id));
            listed.append(&mut mounts);
            mounts = listed;
        }
        Some(Table { namespace, mounts })
    }

    /// Where namespaces are bind mounted: inode number, mount point.
    fn binds(&self) -> Vec<(u64, PathBuf)> {
        let mounts = self.tables.iter().flat_map(|table| &table.mounts);
        let mut binds: Vec<_> = mounts
            .filter(|mount| mount.fstype == "nsfs")
            .filter_map(|mount| {
                let inode = namespace::parse_link(mount.root.as_os_str().as_bytes())?;
                Some((inode, mount.mount_point.clone()))
            })
            .collect();
        binds.sort();
        binds.dedup();
        binds
    }

    /// Concludes from the tables that are there.
    fn settle(&mut self) {
        if let Some(mount) = self.target {
            self.fates = propagation::fates(&self.tables, At { table: 0, mount });
            return;
        }
        if self.is_device_given {
            return;
        }
        // What lies at the path elsewhere, unless it is something that is mounted here as well: a unit's private
        // /tmp is a directory of the host's root.
        let (own, others) = self.tables.split_at(1);
        for table in others {
            let Some(at) = propagation::visible_at(&table.mounts, self.path) else { continue };
            let device = table.mounts[at].device;
            let is_here = own[0].mounts.iter().any(|mount| mount.device == device);
            if !is_here && !self.devices.contains(&device) {
                self.devices.push(device);
            }
        }
    }

    /// All mounts that the report is about.
    fn related(&self) -> Vec<(At, Option<Fate>)> {
        if self.target.is_some() {
            return self.fates.all().into_iter().map(|(at, fate)| (at, Some(fate))).collect();
        }
        let devices = self.devices.iter();
        devices
            .flat_map(|&device| propagation::mounts_of(&self.tables, device))
            .map(|at| (at, None))
            .collect()
    }

    fn mount(&self, at: At) -> &Mount {
        &self.tables[at.table].mounts[at.mount]
    }

    fn report(mut self) -> Report {
        let walk = std::mem::take(&mut self.walk);
        let own = &self.tables[0];
        let mut report = Report {
            path: self.path.to_owned(),
            namespace: own.namespace,
            mount: self.target.map(|at| own.mounts[at].clone()),
            lies_on: None,
            stacked: 0,
            devices: self.devices.clone(),
            copies: self.copies(),
            submounts: Vec::new(),
            holders: Vec::new(),
            kernel_holders: Vec::new(),
            suspects: Vec::new(),
            namespaces: self.namespace_uses(&walk),
            unseen: Unseen {
                processes: walk.denied,
                namespaces: self.unlisted.clone(),
                namespace_list: self.listed.is_some(),
                cut_short: None,
                bound_sockets: self.among.is_none() && self.sockets.is_none(),
                references: walk.not_kept,
            },
            refused: self.refused,
            processes: walk.processes,
        };
        match self.target {
            Some(target) => {
                let submounts = propagation::submounts(&own.mounts, target);
                report.submounts = submounts.into_iter().map(|at| own.mounts[at].clone()).collect();
                let same_place = own.mounts.iter().filter(|mount| mount.mount_point == self.path);
                report.stacked = same_place.count().saturating_sub(1);
            }
            None => {
                let lies_on = propagation::containing(&own.mounts, self.path);
                report.lies_on = lies_on.map(|(at, _)| own.mounts[at].clone());
            }
        }
        report.holders = self.holders(&walk);
        if self.among.is_none() {
            report.kernel_holders = self.kernel_holders();
            if self.refused && report.blockers().is_empty() && report.submounts.is_empty() {
                report.suspects = self.suspects(&walk);
            }
        }
        if self.is_late {
            let left = walk.left.unwrap_or_default();
            report.unseen.cut_short = Some(CutShort { processes: walk.processes, left });
        }
        report
    }

    fn copies(&self) -> Vec<MountCopy> {
        self.related()
            .into_iter()
            .filter(|(_, fate)| *fate != Some(Fate::Target))
            .map(|(at, fate)| MountCopy {
                mount: self.mount(at).clone(),
                namespace: self.tables[at.table].namespace,
                fate,
            })
            .collect()
    }

    fn namespace_uses(&self, walk: &Walk) -> Vec<NamespaceUse> {
        let tables: HashSet<usize> = self.related().into_iter().map(|(at, _)| at.table).collect();
        let mut tables: Vec<_> = tables.into_iter().filter(|&table| table != 0).collect();
        tables.sort_unstable();
        let known = tables.into_iter().map(|table| self.tables[table].namespace);
        known
            .chain(self.unlisted.iter().copied())
            .map(|namespace| self.namespace_use(walk, namespace))
            .collect()
    }

    fn namespace_use(&self, walk: &Walk, namespace: MountNamespace) -> NamespaceUse {
        let met = walk.namespaces.iter().find(|met| met.inode == namespace.inode);
        let files = walk.namespace_files.iter().filter(|file| file.inode == namespace.inode);
        let binds = self.binds().into_iter().filter(|(inode, _)| *inode == namespace.inode);
        NamespaceUse {
            namespace,
            processes: met.map_or(0, |met| met.processes),
            member: met.and_then(|met| {
                let task = proc::open_thread(self.proc_dir, met.member.0, met.member.1).ok()?;
                // Another one may have the id by now.
                if namespace::inode(task.as_fd()) != Ok(met.inode) {
                    return None;
                }
                let about = task::about_task(task.as_fd());
                Some(Member { pid: met.member.0, comm: about.comm, unit: about.unit })
            }),
            files: files.map(|file| (file.pid, file.fd)).collect(),
            binds: binds.map(|(_, at)| at).collect(),
        }
    }

    fn holders(&mut self, walk: &Walk) -> Vec<Holder> {
        let in_rings = self.files_in_rings(walk);
        let mut tasks: BTreeMap<(u32, u32), Vec<Reference>> = BTreeMap::new();
        for found in &walk.found {
            let namespace = self.namespace_of(walk, (found.pid, found.tid));
            if let Some(reference) = self.reference(found, namespace) {
                tasks.entry((found.pid, found.tid)).or_default().push(reference);
            }
        }
        for (pid, reference) in in_rings {
            tasks.entry((pid, pid)).or_default().push(reference);
        }
        let lineage = task::lineage(self.proc_dir);
        let leaders: HashMap<u32, Vec<Reference>> = tasks
            .iter()
            .filter(|((pid, tid), _)| pid == tid)
            .map(|((pid, _), references)| (*pid, references.clone()))
            .collect();
        let mut holders = Vec::new();
        for ((pid, tid), mut references) in tasks {
            if pid != tid
                && let Some(leader) = leaders.get(&pid)
            {
                references.retain(|reference| !leader.contains(reference));
            }
            if references.is_empty() {
                continue;
            }
            // Gone while it was looked at.
            let Some(known) = walk.tasks.get(&(pid, tid)) else { continue };
            let about = known.about.clone();
            holders.push(Holder {
                pid,
                tid,
                start_time: known.start_time,
                phase: if walk.ending.contains(&pid) { Phase::Ending } else { known.phase },
                relation: task::relation(&lineage, pid),
                namespace: self.namespace_of(walk, (pid, tid)),
                comm: about.comm,
                cgroup: about.cgroup,
                unit: about.unit,
                references,
            });
        }
        holders
    }

    /// The files that are registered with an io_uring instance, by process.
    fn files_in_rings(&mut self, walk: &Walk) -> Vec<(u32, Reference)> {
        let mut files = Vec::new();
        for ring in walk.carriers.iter().filter(|carrier| carrier.is_ring) {
            if self.is_late() {
                break;
            }
            let Some((_, text)) = fdinfo(self.proc_dir, ring) else { continue };
            let namespace = self.namespace_of(walk, (ring.pid, ring.pid));
            let mut kept: HashMap<Effect, usize> = HashMap::new();
            for path in registered_files(&text) {
                let Some(effect) = self.effect_at(&path, namespace) else { continue };
                let kept = kept.entry(effect).or_default();
                *kept += 1;
                if *kept <= MOST_OF_A_RING {
                    let reference = Reference {
                        kind: Kind::RegisteredFile { ring: ring.fd },
                        path,
                        mount_id: None,
                        unique_mount_id: None,
                        mount_namespace: None,
                        effect,
                    };
                    files.push((ring.pid, reference));
                }
            }
        }
        files
    }

    fn namespace_of(&self, walk: &Walk, task: (u32, u32)) -> Option<MountNamespace> {
        let inode = walk.tasks.get(&task)?.namespace?;
        let known = self.tables.iter().find(|table| table.namespace.inode == inode);
        Some(known.map_or(MountNamespace { inode, id: None }, |table| table.namespace))
    }

    /// `None` if the link turned out to have nothing to do with the mount.
    fn reference(&self, found: &Found, namespace: Option<MountNamespace>) -> Option<Reference> {
        let kind = match found.link {
            Link::Cwd => Kind::Cwd,
            Link::Root => Kind::Root,
            Link::Exe => Kind::Exe,
            Link::File(fd) => Kind::File { fd },
            Link::Mapping => Kind::Mapping,
            Link::Socket(fd) => Kind::Socket { fd },
        };
        if found.path.is_empty() {
            return self.reference_without_path(kind, found.mount?);
        }
        let (path, effect, lies_in) = if let Link::Socket(_) = found.link {
            let socket = self.sockets.as_ref()?.get(&walk::socket_inode(&found.path)?)?;
            (socket.path.clone(), self.effect_of_socket(socket, namespace)?, None)
        } else {
            let path = PathBuf::from(OsString::from_vec(found.path.clone()));
            let (effect, lies_in) = match found.mount {
                Some(mount) => self.effect_on(mount.id, mount.device),
                None => (self.effect_at(&path, namespace)?, None),
            };
            (path, effect, lies_in)
        };
        Some(Reference {
            kind,
            path,
            mount_id: found.mount.map(|mount| mount.id),
            unique_mount_id: found.mount.and_then(|mount| mount.unique),
            mount_namespace: lies_in,
            effect,
        })
    }

    /// A reference whose path is longer than a link can show: it matters if the mount does.
    fn reference_without_path(&self, kind: Kind, on: OnMount) -> Option<Reference> {
        let (effect, lies_in) = self.effect_on(on.id, on.device);
        if matches!(effect, Effect::Harmless | Effect::Unclear) {
            return None;
        }
        let mut mounts = self.tables.iter().flat_map(|table| &table.mounts);
        let mount_point = mounts.find(|mount| mount.id == on.id).map(|mount| mount.mount_point.as_path());
        Some(Reference {
            kind,
            path: mount_point.unwrap_or(Path::new("/")).join(TOO_LONG),
            mount_id: Some(on.id),
            unique_mount_id: on.unique,
            mount_namespace: lies_in,
            effect,
        })
    }

    /// What a reference to the mount with this id does, and where that mount lies.
    fn effect_on(&self, id: u64, device: Device) -> (Effect, Option<MountNamespace>) {
        if let Some((at, fate)) = self.fates.of(id) {
            return (effect_of(fate), Some(self.tables[at.table].namespace));
        }
        if let Some(target) = self.target {
            let own = &self.tables[0];
            let submounts = propagation::submounts(&own.mounts, target);
            if submounts.iter().any(|&at| own.mounts[at].id == id) {
                return (Effect::BlocksSubmount, Some(own.namespace));
            }
        }
        let listed = self.tables.iter().find_map(|table| {
            Some((table.namespace, table.mounts.iter().find(|mount| mount.id == id)?.device))
        });
        match listed {
            Some((namespace, device)) if self.target.is_none() && self.devices.contains(&device) => {
                (Effect::KeepsSuperblock, Some(namespace))
            }
            Some((namespace, _)) => (Effect::Harmless, Some(namespace)),
            // Detached: in no namespace, unless that is one which there was no time for.
            None if self.is_late => (Effect::Unclear, None),
            None if self.devices.contains(&device) => (Effect::KeepsSuperblock, None),
            None => (Effect::Unclear, None),
        }
    }

    /// What a reference does of which only the path is known, as seen from the namespace it was made in.
    fn effect_at(&self, path: &Path, namespace: Option<MountNamespace>) -> Option<Effect> {
        let path = kernel_holders::without_deleted(path);
        let tables = self.tables.iter().filter(|table| namespace.is_none_or(|own| own == table.namespace));
        let mut effects: Vec<_> = tables
            .filter_map(|table| {
                let (at, _) = propagation::containing(&table.mounts, path)?;
                let (effect, _) = self.effect_on(table.mounts[at].id, table.mounts[at].device);
                Some(effect)
            })
            .filter(|effect| *effect != Effect::Harmless)
            .collect();
        effects.dedup();
        match effects[..] {
            [] => None,
            [effect] => Some(effect),
            _ => Some(Effect::Unclear),
        }
    }

    /// What a socket does that is bound to a file. The kernel tells the file system, which of its mounts it does not:
    /// that is the one at the path, as seen from the namespace of the process that has the socket or from another, or
    /// whichever, if they are all alike.
    fn effect_of_socket(&self, socket: &BoundSocket, namespace: Option<MountNamespace>) -> Option<Effect> {
        let on_device = |mount: &&Mount| mount.device == socket.device;
        let at_path = |table: &Table| {
            let at =
                propagation::containing(&table.mounts, &socket.path).filter(|_| socket.path.is_absolute());
            at.map(|(at, _)| table.mounts[at].id)
        };
        let own = self.tables.iter().filter(|table| namespace == Some(table.namespace));
        let mounts: Vec<&Mount> =
            self.tables.iter().flat_map(|table| &table.mounts).filter(on_device).collect();
        let ids: [Vec<u64>; 3] = [
            own.filter_map(at_path).collect(),
            self.tables.iter().filter_map(at_path).collect(),
            mounts.iter().map(|mount| mount.id).collect(),
        ];
        let effects = ids.into_iter().map(|ids| -> HashSet<Effect> {
            let of_it = mounts.iter().filter(|mount| ids.contains(&mount.id));
            of_it.map(|mount| self.effect_on(mount.id, mount.device).0).collect()
        });
        let mut effects =
            effects.into_iter().find(|effects| !effects.is_empty()).unwrap_or_default().into_iter();
        match (effects.next(), effects.next()) {
            (None, _) => self.devices.contains(&socket.device).then_some(Effect::KeepsSuperblock),
            (Some(Effect::Harmless), None) => None,
            (Some(effect), None) => Some(effect),
            (Some(_), Some(_)) => Some(Effect::Unclear),
        }
    }

    fn kernel_holders(&self) -> Vec<KernelHolder> {
        let own = &self.tables[0];
        kernel_holders::kernel_files(&own.mounts)
            .into_iter()
            .filter_map(|file| {
                let is_layer = matches!(file.kind, crate::report::KernelKind::OverlayLayer(_));
                // A copy that survives at the same path could as well be the one that it is on.
                let effect = self.effect_at(&file.path, None)?;
                let effect = if is_layer { Effect::KeepsSuperblock } else { effect };
                let mounted_at = match &file.kind {
                    crate::report::KernelKind::Loop(name) => own
                        .mounts
                        .iter()
                        .filter(|mount| mount.source == format!("/dev/{name}"))
                        .map(|mount| mount.mount_point.clone())
                        .collect(),
                    _ => Vec::new(),
                };
                Some(KernelHolder { kind: file.kind, path: file.path, effect, mounted_at })
            })
            .collect()
    }

    fn suspects(&mut self, walk: &Walk) -> Vec<Suspect> {
        let mut ending: Vec<u32> = walk.ending.iter().copied().collect();
        ending.sort_unstable();
        let comm =
            |pid| walk.tasks.get(&(pid, pid)).map(|known| known.about.comm.clone()).unwrap_or_default();
        let suspect = |pid| Suspect { pid, comm: comm(pid), fd: None, carries: Carries::Rest };
        let ending: Vec<_> = ending.into_iter().take(MOST_SUSPECTS).map(suspect).collect();
        let proc_dir = self.proc_dir;
        let carriers = walk.carriers.iter().take_while(|_| !self.is_late());
        carriers
            .filter_map(|carrier| {
                let (process, text) = fdinfo(proc_dir, carrier)?;
                let carries = if carrier.is_ring {
                    Carries::Registered(field(&text, "UserFiles:")?)
                } else {
                    Carries::InFlight(field(&text, "scm_fds:")?)
                };
                if matches!(carries, Carries::Registered(0) | Carries::InFlight(0)) {
                    return None;
                }
                let comm = task::about_task(process.as_fd()).comm;
                Some(Suspect { pid: carrier.pid, comm, fd: Some(carrier.fd), carries })
            })
            .take(MOST_SUSPECTS)
            .chain(ending)
            .collect()
    }
}

/// What must hold for references to any mount of any tables, `target` being one of the first: who is told to block does,
/// and who does is told.
#[cfg(any(test, feature = "checks"))]
pub(crate) fn check_effects(tables: &[Table], target: usize) {
    let proc_dir = proc::open_proc().expect("open /proc");
    let mount = tables[0].mounts[target].clone();
    let mut survey = Survey {
        proc_dir: proc_dir.as_fd(),
        path: &mount.mount_point,
        target: Some(target),
        devices: vec![mount.device],
        is_device_given: false,
        detached: false,
        refused: false,
        listed: None,
        among: None,
        deadline: Instant::now() + LONGEST_SCAN,
        is_late: false,
        tables: tables.to_vec(),
        unlisted: Vec::new(),
        fates: Fates::default(),
        sockets: None,
        walk: Walk::default(),
    };
    survey.settle();
    let submounts = propagation::submounts(&tables[0].mounts, target);
    for (at, table) in tables.iter().enumerate() {
        for (index, other) in table.mounts.iter().enumerate() {
            // Two mounts with one id are in no table that is whole.
            if tables.iter().flat_map(|table| &table.mounts).filter(|mount| mount.id == other.id).count() > 1
            {
                continue;
            }
            let (effect, namespace) = survey.effect_on(other.id, other.device);
            assert_eq!(namespace, Some(table.namespace));
            let is_target = (at, index) == (0, target);
            let goes_along = matches!(survey.fates.of(other.id), Some((_, Fate::UnmountedAlong)));
            assert_eq!(effect == Effect::BlocksUmount, is_target || goes_along, "{other:?}");
            assert!(effect != Effect::BlocksSubmount || (at == 0 && submounts.contains(&index)), "{other:?}");
            assert!(
                effect != Effect::KeepsSuperblock
                    || other.device == mount.device
                    || survey.fates.of(other.id).is_some()
            );
            assert!(effect != Effect::Unclear, "{other:?}");
        }
    }
    // Nothing that is in no table blocks; it keeps alive what it is of.
    let unknown =
        tables.iter().flat_map(|table| &table.mounts).map(|mount| mount.id).max().unwrap_or_default();
    if let Some(unknown) = unknown.checked_add(1) {
        assert_eq!(survey.effect_on(unknown, mount.device), (Effect::KeepsSuperblock, None));
    }
    // A path alone tells less, and not more: who says so is on the target, or on a mount that goes along.
    for path in [&mount.mount_point, &mount.mount_point.join("a"), &mount.mount_point.join("a (deleted)")] {
        for table in tables {
            let told = survey.effect_at(path, Some(table.namespace));
            let shown = kernel_holders::without_deleted(path);
            let on = propagation::containing(&table.mounts, shown).map(|(on, _)| &table.mounts[on]);
            let expected = on.map(|on| survey.effect_on(on.id, on.device).0);
            let is_once = tables.iter().filter(|other| other.namespace == table.namespace).count() == 1;
            assert!(
                !is_once || told == expected.filter(|effect| *effect != Effect::Harmless),
                "{told:?} {expected:?}"
            );
        }
    }
}

fn effect_of(fate: Fate) -> Effect {
    match fate {
        Fate::Target | Fate::UnmountedAlong => Effect::BlocksUmount,
        Fate::Survives(_) => Effect::KeepsSuperblock,
    }
}

/// What `/proc/PID/fdinfo/FD` says of a descriptor, and the process's directory.
fn fdinfo(proc_dir: BorrowedFd<'_>, carrier: &Carrier) -> Option<(OwnedFd, String)> {
    let process = proc::open_task(proc_dir, DecInt::new(carrier.pid).as_c_str()).ok()?;
    let directory = proc::open_task(process.as_fd(), c"fdinfo").ok()?;
    let mut text = Vec::new();
    proc::read_start(directory.as_fd(), DecInt::new(carrier.fd).as_c_str(), &mut text, MOST_FDINFO).ok()?;
    Some((process, String::from_utf8_lossy(&text).into_owned()))
}

pub(crate) fn field(fdinfo: &str, name: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The registered files of an io_uring instance that its fdinfo names by a path; older kernels show the last
/// component only (`io_uring/fdinfo.c`).
pub(crate) fn registered_files(fdinfo: &str) -> Vec<PathBuf> {
    let lines = fdinfo.lines().skip_while(|line| !line.starts_with("UserFiles:")).skip(1);
    lines
        .map_while(|line| {
            let (number, path) = line.trim_start().split_once(": ")?;
            number.parse::<u32>().ok()?;
            Some(path)
        })
        .filter(|path| path.starts_with('/'))
        .map(|path| mountinfo::path(path.as_bytes()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_ring_has_registered() {
        let new = "pos:\t0\nflags:\t02\nUserFiles:\t3\n    0: /m/a\\040b\n    1: <none>\n    2: /x\nUserBufs:\t1\n    0: /no\n";
        assert_eq!(registered_files(new), [Path::new("/m/a b"), Path::new("/x")]);
        assert_eq!(field(new, "UserFiles:"), Some(3));
        let old = "UserFiles:\t1\n    0: name\nUserBufs:\t0\n";
        assert_eq!(registered_files(old), Vec::<PathBuf>::new());
        assert_eq!(field("pos:\t0\nscm_fds: 2\n", "scm_fds:"), Some(2));
        assert_eq!(field("", "scm_fds:"), None);
    }

    #[test]
    fn refuses_what_is_no_mount_point_by_its_looks() {
        for path in ["relative", "/a/../b", ""] {
            assert!(matches!(diagnose(Path::new(path)), Err(Error::Path(_))), "{path}");
        }
    }
}
