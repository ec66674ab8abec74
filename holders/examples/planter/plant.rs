//! The ways to pin a mount, as a table of cases, and the code that does each: `planter CASE PATH`.
//!
//! It says `ready PID` once the reference is there, PID being the process that has it, and undoes everything when its
//! stdin ends. It needs root, and a mount that nobody needs: PATH has to be an empty directory of an overlay or a
//! tmpfs, on a mount that is shared. Files that it needs lie in PATH, and beside it as `PATH.NAME`.

use std::error::Error;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;

use holders::stat::Stat;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A way to pin a mount, and what the kernel makes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What umount2(2) of the path says while it lasts.
    pub(crate) umount: Umount,
    /// Whether the file system is alive after an unmount that went well.
    pub(crate) outlives: bool,
    /// Whether anything under `/proc` or `/sys` shows it.
    pub(crate) visible: bool,
}

/// What umount2(2) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Umount {
    /// It succeeds.
    Done,
    /// EBUSY.
    Busy,
    /// The case has detached the mount by itself.
    NotMounted,
}

const fn busy(name: &'static str) -> Case {
    Case { name, umount: Umount::Busy, outlives: false, visible: true }
}

const fn free(name: &'static str) -> Case {
    Case { name, umount: Umount::Done, outlives: false, visible: true }
}

const fn outlives(name: &'static str) -> Case {
    Case { name, umount: Umount::Done, outlives: true, visible: true }
}

const fn hidden(name: &'static str) -> Case {
    Case { name, umount: Umount::Busy, outlives: false, visible: false }
}

const fn detached(name: &'static str) -> Case {
    Case { name, umount: Umount::NotMounted, outlives: true, visible: true }
}

/// All cases. A prefix is the mount namespace that the reference is made in: `slave-`, `shared-`, `private-`.
pub(crate) const CASES: &[Case] = &[
    free("nothing"),
    busy("cwd"),
    busy("root"),
    busy("exe"),
    busy("file"),
    busy("opath"),
    busy("mmap"),
    busy("deleted"),
    busy("thread-cwd"),
    busy("thread-file"),
    busy("leaderless"),
    busy("pidns-cwd"),
    busy("open-tree"),
    outlives("cloned-tree"),
    busy("socket"),
    busy("socket-relative"),
    busy("loop"),
    hidden("scm-rights"),
    busy("io-uring"),
    free("inotify"),
    free("zombie"),
    free("lock-released"),
    busy("submount"),
    busy("submount-cwd"),
    outlives("bind"),
    outlives("bind-file"),
    outlives("overlay-layer"),
    free("slave-nothing"),
    busy("slave-cwd"),
    busy("slave-root"),
    busy("slave-exe"),
    busy("slave-file"),
    busy("slave-opath"),
    busy("slave-mmap"),
    busy("slave-thread-cwd"),
    free("shared-nothing"),
    busy("shared-cwd"),
    busy("shared-file"),
    busy("shared-mmap"),
    outlives("private-nothing"),
    outlives("private-cwd"),
    outlives("private-root"),
    outlives("private-exe"),
    outlives("private-file"),
    outlives("private-opath"),
    outlives("private-mmap"),
    outlives("slave-submount"),
    outlives("slave-submount-cwd"),
    outlives("slave-moved"),
    outlives("slave-self-bind"),
    free("slave-topper"),
    free("slave-topper-cwd"),
    outlives("slave-bind"),
    outlives("slave-bind-file"),
    busy("slave-proc-root-file"),
    busy("container-cwd"),
    free("nsfs-fd"),
    free("nsfs-bind"),
    outlives("nsfs-fd-submount"),
    detached("detached-cwd"),
    detached("detached-file"),
];

/// What keeps a planted case there.
#[derive(Default)]
struct Planted {
    kept: Vec<Box<dyn Send>>,
    /// The process that has the reference, if it is not this one.
    holder: Option<Child>,
}

/// The whole program, for those who have it as a module; a first argument `planter` is skipped.
pub(crate) fn run(mut args: Vec<OsString>) -> ExitCode {
    if args.first().is_some_and(|first| first == "planter") {
        args.remove(0);
    }
    let done = match args.as_slice() {
        [list] if list == "--list" => {
            for case in CASES {
                println!("{}\t{:?}\t{}\t{}", case.name, case.umount, case.outlives, case.visible);
            }
            return ExitCode::SUCCESS;
        }
        [wait] if wait == "wait" => ready(std::process::id()).and_then(|()| end_of_input()),
        [case, path] => {
            let (name, path) = (case.to_string_lossy(), Path::new(path));
            plant(&name, path).and_then(|mut planted| {
                match &mut planted.holder {
                    // It reads the same stdin, and says by itself that it is ready.
                    Some(holder) => holder.wait().map(drop).map_err(Into::into),
                    None => ready(std::process::id()).and_then(|()| end_of_input()),
                }
            })
        }
        _ => Err("usage: planter CASE PATH | planter --list".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("planter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ready(pid: u32) -> Result<()> {
    println!("ready {pid}");
    Ok(io::stdout().flush()?)
}

fn end_of_input() -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn plant(name: &str, path: &Path) -> Result<Planted> {
    if !CASES.iter().any(|case| case.name == name) {
        return Err(format!("no case {name:?}; planter --list").into());
    }
    std::env::set_current_dir("/")?;
    let namespaces = [
        ("slave-", Some(MountPropagationFlags::DOWNSTREAM)),
        ("private-", Some(MountPropagationFlags::PRIVATE)),
        ("shared-", None),
    ];
    for (prefix, propagation) in namespaces {
        if let Some(rest) = name.strip_prefix(prefix) {
            if rest != "proc-root-file" {
                new_mount_namespace(propagation)?;
            }
            return reference(rest, path);
        }
    }
    reference(name, path)
}

#[expect(
    unsafe_code,
    reason = "a namespace or a table of its own, in a program that shares neither with a guard"
)]
fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: no I/O safety is relied on across the call: FILES is only used in a thread that opens its own.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|error| format!("unshare: {error}").into())
}

fn new_mount_namespace(propagation: Option<MountPropagationFlags>) -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    if let Some(propagation) = propagation {
        rustix::mount::mount_change("/", propagation | MountPropagationFlags::REC)
            .map_err(|error| format!("make / {propagation:?}: {error}"))?;
    }
    Ok(())
}

fn reference(name: &str, path: &Path) -> Result<Planted> {
    let mut planted = Planted::default();
    let beside = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
    match name {
        "nothing" => {}
        "cwd" => std::env::set_current_dir(path)?,
        "root" => {
            let outside = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            rustix::process::chroot(path)?;
            // Only the root directory is to be in the mount.
            rustix::process::fchdir(outside)?;
        }
        "exe" => {
            let program = path.join("planter-program");
            fs::copy("/proc/self/exe", &program)?;
            return Err(command(&program).args(["planter", "wait"]).exec().into());
        }
        "file" => planted.kept.push(Box::new(file(path)?)),
        "opath" => {
            file(path)?;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            planted.kept.push(Box::new(rustix::fs::open(path.join("planted"), flags, Mode::empty())?));
        }
        "mmap" => map(&file(path)?)?,
        "deleted" => {
            planted.kept.push(Box::new(file(path)?));
            fs::remove_file(path.join("planted"))?;
        }
        "thread-cwd" => {
            let path = path.to_owned();
            in_thread(move || {
                unshare(UnshareFlags::FS)?;
                std::env::set_current_dir(path)?;
                Ok(None)
            })?;
        }
        "thread-file" => {
            let path = path.to_owned();
            in_thread(move || {
                unshare(UnshareFlags::FILES)?;
                file(&path).map(Some)
            })?;
        }
        "leaderless" => {
            std::env::set_current_dir(path)?;
            std::thread::spawn(|| {
                let done = first_thread_gone()
                    .and_then(|()| ready(std::process::id()))
                    .and_then(|()| end_of_input());
                end(if done.is_ok() { 0 } else { 1 })
            });
            end_this_thread();
        }
        "pidns-cwd" => {
            unshare(UnshareFlags::NEWPID)?;
            let child = command("/proc/self/exe")
                .args(["planter", "wait"])
                .current_dir(path)
                .stdout(Stdio::piped())
                .spawn()?;
            planted.holder = Some(child);
            relay_ready(planted.holder.as_mut())?;
        }
        "open-tree" => {
            let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
            planted.kept.push(Box::new(rustix::mount::open_tree(rustix::fs::CWD, path, flags)?));
        }
        "cloned-tree" => {
            let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
            planted.kept.push(Box::new(rustix::mount::open_tree(rustix::fs::CWD, path, flags)?));
        }
        "socket" => planted.kept.push(Box::new(UnixListener::bind(path.join("socket"))?)),
        "socket-relative" => {
            std::env::set_current_dir(path)?;
            planted.kept.push(Box::new(UnixListener::bind("socket")?));
            std::env::set_current_dir("/")?;
        }
        "loop" => planted.kept.push(Box::new(Loop::over(&path.join("image"))?)),
        "scm-rights" => planted.kept.push(Box::new(in_flight(file(path)?)?)),
        "io-uring" => planted.kept.push(Box::new(registered(&file(path)?)?)),
        "inotify" => {
            let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)?;
            rustix::fs::inotify::add_watch(&watch, path, rustix::fs::inotify::WatchFlags::ALL_EVENTS)?;
            planted.kept.push(Box::new(watch));
        }
        "zombie" => {
            let child = command("/proc/self/exe")
                .args(["planter", "--list"])
                .current_dir(path)
                .stdout(Stdio::null())
                .spawn()?;
            let pid = rustix::process::Pid::from_child(&child);
            let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            rustix::process::waitid(rustix::process::WaitId::Pid(pid), options)?;
            planted.kept.push(Box::new(child));
        }
        "lock-released" => {
            let file = file(path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        }
        "submount" | "submount-cwd" => {
            let sub = path.join("sub");
            mount_tmpfs(&sub)?;
            if name == "submount-cwd" {
                std::env::set_current_dir(&sub)?;
            }
        }
        "bind" => bind(path, &beside("bind"))?,
        "bind-file" => {
            bind(path, &beside("bind"))?;
            planted.kept.push(Box::new(file(&beside("bind"))?));
        }
        "moved" => {
            let place = beside("moved");
            fs::create_dir(&place)?;
            // A mount on a shared parent can't be moved; this namespace's are slaves.
            rustix::mount::mount_move(path, &place)?;
        }
        "self-bind" => rustix::mount::mount_bind(path, path)?,
        "topper" | "topper-cwd" => {
            mount_tmpfs(path)?;
            if name == "topper-cwd" {
                std::env::set_current_dir(path)?;
            }
        }
        "overlay-layer" => {
            let (lower, merged) = (path.join("lower"), beside("other"));
            fs::create_dir(&lower)?;
            fs::create_dir(&merged)?;
            let options = CString::new(format!("lowerdir={}:/", lower.display()))?;
            mount("overlay", &merged, "overlay", Some(&options))?;
        }
        "proc-root-file" => {
            file(path)?;
            let mut slave = helper_in_slave_namespace(path, "nothing")?;
            let inside =
                PathBuf::from(format!("/proc/{}/root{}", slave.id(), path.join("planted").display()));
            planted.kept.push(Box::new(File::open(inside)?));
            // It ends with the stdin that it shares.
            slave.stdout = None;
        }
        "container-cwd" => {
            // A tree that has the parent of PATH at another place, as a container has a volume.
            let parent = path.parent().ok_or("PATH has no parent")?;
            new_mount_namespace(Some(MountPropagationFlags::DOWNSTREAM))?;
            let root = beside("container");
            mount_tmpfs(&root)?;
            let volume = root.join("volume");
            fs::create_dir(&volume)?;
            rustix::mount::mount_bind_recursive(parent, &volume)?;
            std::env::set_current_dir(&root)?;
            pivot_root()?;
            rustix::mount::unmount(".", UnmountFlags::DETACH)?;
            let name = path.file_name().ok_or("PATH has no name")?;
            std::env::set_current_dir(Path::new("/volume").join(name))?;
        }
        "nsfs-fd" | "nsfs-fd-submount" | "nsfs-bind" => {
            let inner = if name == "nsfs-fd-submount" { "submount" } else { "nothing" };
            let mut slave = helper_in_younger_namespace(path, inner)?;
            let link = format!("/proc/{}/ns/mnt", slave.id());
            if name == "nsfs-bind" {
                let place = beside("ns");
                // The namespace's file can only be bound where that mount is not propagated into it.
                File::create(&place)?;
                rustix::mount::mount_bind(&place, &place)?;
                rustix::mount::mount_change(&place, MountPropagationFlags::PRIVATE)?;
                rustix::mount::mount_bind(&link, &place)?;
            } else {
                planted.kept.push(Box::new(File::open(&link)?));
            }
            slave.kill()?;
            slave.wait()?;
        }
        "detached-cwd" | "detached-file" => {
            if name == "detached-cwd" {
                std::env::set_current_dir(path)?;
            } else {
                planted.kept.push(Box::new(rustix::fs::open(path, OFlags::RDONLY, Mode::empty())?));
            }
            rustix::mount::unmount(path, UnmountFlags::DETACH)?;
        }
        _ => return Err(format!("no case {name:?} in this namespace").into()),
    }
    Ok(planted)
}

/// Creates and opens a file in the mount.
fn file(directory: &Path) -> Result<File> {
    let path = directory.join("planted");
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
    file.write_all(&[b'x'; 4096])?;
    Ok(file)
}

fn mount(fstype: &str, at: &Path, source: &str, options: Option<&CString>) -> Result<()> {
    rustix::mount::mount(source, at, fstype, MountFlags::empty(), options.map(CString::as_c_str))
        .map_err(|error| format!("mount {fstype} at {}: {error}", at.display()).into())
}

fn mount_tmpfs(at: &Path) -> Result<()> {
    if !at.exists() {
        fs::create_dir(at)?;
    }
    mount("tmpfs", at, "planter", None)
}

fn bind(path: &Path, place: &Path) -> Result<()> {
    fs::create_dir(place)?;
    Ok(rustix::mount::mount_bind(path, place)?)
}

#[expect(unsafe_code, reason = "a mapping that nobody looks at")]
fn map(file: &File) -> Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // SAFETY: a new mapping at a place of the kernel's choice; it is never dereferenced, and stays.
    unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
    Ok(())
}

/// Runs `own` in a thread that stays; what it returns stays with it, in its own table if it unshared that.
fn in_thread(own: impl FnOnce() -> Result<Option<File>> + Send + 'static) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (done, _kept) = match own() {
            Ok(kept) => (Ok(()), kept),
            Err(error) => (Err(error.to_string()), None),
        };
        if sender.send(done).is_ok() {
            // It ends with the process.
            std::thread::park();
        }
    });
    receiver.recv()?.map_err(Into::into)
}

/// Waits until the process's first thread is a zombie, by the event of its end: a poll of a pidfd of a thread is
/// newer than some kernels, so its state is asked until it has changed, without a pause.
fn first_thread_gone() -> Result<()> {
    loop {
        let stat = fs::read(format!("/proc/self/task/{}/stat", std::process::id()))?;
        if Stat::parse(&stat).is_some_and(Stat::has_ended) {
            return Ok(());
        }
        std::thread::yield_now();
    }
}

#[expect(unsafe_code, reason = "to end one thread only")]
fn end_this_thread() -> ! {
    // SAFETY: exit(2) ends the calling thread; nothing that another one uses lies on its stack.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit(2) returned")
}

#[expect(clippy::exit, reason = "the first thread is gone, so no main can return")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

#[expect(clippy::disallowed_methods, reason = "this program again; it ends with the stdin that it shares")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// A child in a slave namespace of its own that has planted `case` there and waits.
fn helper_in_slave_namespace(path: &Path, case: &str) -> Result<Child> {
    let mut child = command("/proc/self/exe")
        .arg("planter")
        .arg(format!("slave-{case}"))
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = [0; 6];
    child.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut line)?;
    Ok(child)
}

/// The same, in a namespace whose id is higher than this one's: the file of a lower one can't be bound here
/// (`fs/namespace.c:mnt_ns_loop`). Each processor hands out ids from a batch of its own, so one after the other is
/// tried.
fn helper_in_younger_namespace(path: &Path, case: &str) -> Result<Child> {
    let id = |pid| holders::namespace::MountNamespace::of(pid).map(|namespace| namespace.id);
    let own = id(std::process::id())?;
    let allowed = rustix::thread::sched_getaffinity(None)?;
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)) {
        let mut one = rustix::thread::CpuSet::new();
        one.set(cpu);
        rustix::thread::sched_setaffinity(None, &one)?;
        let helper = helper_in_slave_namespace(path, case);
        rustix::thread::sched_setaffinity(None, &allowed)?;
        let mut helper = helper?;
        if id(helper.id())? >= own {
            return Ok(helper);
        }
        helper.kill()?;
        helper.wait()?;
    }
    Err("every processor makes namespaces that are older than this one".into())
}

/// Passes on that a child is ready, with its process id in this pid namespace.
fn relay_ready(child: Option<&mut Child>) -> Result<()> {
    let child = child.ok_or("no child")?;
    child.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut [0; 6])?;
    ready(child.id())
}

fn in_flight(file: File) -> Result<(UnixStream, UnixStream)> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let (sender, receiver) = UnixStream::pair()?;
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err("no room for one descriptor".into());
    }
    sendmsg(&sender, &[io::IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    Ok((sender, receiver))
}

#[expect(unsafe_code, reason = "io_uring has no wrapper in rustix that registers")]
fn registered(file: &File) -> Result<OwnedFd> {
    const IORING_REGISTER_FILES: libc::c_ulong = 2;
    // `struct io_uring_params`, all zero, is 120 bytes.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes that it is given.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(format!("io_uring_setup: {}", io::Error::last_os_error()).into());
    }
    // SAFETY: the call succeeded, so it answered with a descriptor that is new and nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(i32::try_from(ring)?) };
    let files = [file.as_raw_fd()];
    // SAFETY: the kernel reads one descriptor number from the array.
    let done = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), IORING_REGISTER_FILES, files.as_ptr(), 1)
    };
    if done < 0 {
        return Err(format!("io_uring_register: {}", io::Error::last_os_error()).into());
    }
    Ok(ring)
}

fn pivot_root() -> Result<()> {
    Ok(rustix::process::pivot_root(".", ".")?)
}

/// A loop device, by its number too; freed when dropped.
pub(crate) struct Loop(File, pub(crate) i32);

impl Loop {
    const SET_FD: rustix::ioctl::Opcode = 0x4C00;
    const CLR_FD: rustix::ioctl::Opcode = 0x4C01;
    const CTL_GET_FREE: libc::c_ulong = 0x4C82;

    pub(crate) fn over(path: &Path) -> Result<Self> {
        File::create_new(path)?.set_len(1 << 20)?;
        Self::on(path)
    }

    /// On a file that is there.
    #[expect(unsafe_code, reason = "the ioctls of loop(4)")]
    pub(crate) fn on(path: &Path) -> Result<Self> {
        let image = File::options().read(true).write(true).open(path)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: an ioctl without an argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), Self::CTL_GET_FREE) };
        if number < 0 {
            return Err(format!("LOOP_CTL_GET_FREE: {}", io::Error::last_os_error()).into());
        }
        let device = File::options().read(true).write(true).open(format!("/dev/loop{number}"))?;
        // SAFETY: the argument is a descriptor number, which is open.
        let setter = unsafe {
            rustix::ioctl::IntegerSetter::<{ Self::SET_FD }>::new_usize(usize::try_from(image.as_raw_fd())?)
        };
        // SAFETY: as above.
        unsafe { rustix::ioctl::ioctl(&device, setter) }?;
        Ok(Self(device, number))
    }
}

impl Drop for Loop {
    #[expect(unsafe_code, reason = "the ioctls of loop(4)")]
    fn drop(&mut self) {
        // SAFETY: an ioctl without an argument.
        let done = unsafe { rustix::ioctl::ioctl(&self.0, rustix::ioctl::NoArg::<{ Self::CLR_FD }>::new()) };
        if let Err(error) = done {
            eprintln!("planter: free /dev/loop{}: {error}", self.1);
        }
    }
}
