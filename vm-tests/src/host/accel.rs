//! Whether KVM is usable, proved by running a guest of six instructions, and what a machine runs on in the end.
//!
//! That `/dev/kvm` opens, and even that a virtual machine and a processor can be made, proves nothing: on nested
//! and paravirtual hosts KVM may be there and run a guest only as far as its instruction emulator goes. The
//! guest here is in long mode and uses `pxor` and `popcnt`, which that emulator does not know, then writes one
//! byte to a port and halts. Exactly these two exits are a yes.
//!
//! The guest runs in a child process with a limit, since a KVM that does not work may also hang: a binary that
//! asks for [`probe_in_child`] calls [`child_main_if_asked`] first thing in its `main`.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};

use serde::{Deserialize, Serialize};

use crate::host::kvm_access;
use crate::host::process::{self, Program};
use crate::scenario::WrongInput;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// The name that QEMU's `-accel` takes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// KVM where it is usable, else TCG.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// TCG in any case.
    Tcg,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("{text:?} is none of auto, kvm, tcg")),
        }
    }
}

/// What time is in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The host's. A duration depends on the host and its load.
    Real,
    /// One instruction is one nanosecond, and idle time is skipped. A duration is the same everywhere.
    Virtual,
}

impl FromStr for Clock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "real" => Ok(Self::Real),
            "virtual" => Ok(Self::Virtual),
            _ => Err(format!("{text:?} is none of real, virtual")),
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "real time",
            Self::Virtual => "virtual time",
        })
    }
}

/// Whether KVM is usable, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// It ran the guest.
    Usable,
    /// It did not, for this reason.
    Unusable(String),
}

/// What a machine runs on, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What executes instructions.
    pub accel: Accel,
    /// What its time is.
    pub clock: Clock,
    /// What is known of KVM; `None` if nobody needed to know.
    pub kvm: Option<Kvm>,
}

impl fmt::Display for Choice {
    /// One line, for instance `accelerator: TCG, virtual time (KVM: /dev/kvm does not exist)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accelerator: {}, {}", self.accel, self.clock)?;
        match (&self.kvm, self.accel) {
            (Some(Kvm::Unusable(reason)), _) => write!(f, " (KVM: {reason})"),
            (Some(Kvm::Usable), Accel::Tcg) => write!(f, " (KVM is usable, and not wanted)"),
            _ => Ok(()),
        }
    }
}

impl Choice {
    /// What to do to have KVM, where that can be said. Apart from the line, which a report repeats.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match &self.kvm {
            Some(Kvm::Unusable(reason)) if reason == DENIED => kvm_access::advice(),
            _ => None,
        }
    }
}

/// Settles what a machine runs on. Pure: the caller probes, and only if [`needs_probe`] says so.
///
/// Without a clock asked for, KVM means real time and TCG virtual time.
///
/// # Errors
/// If the wishes contradict each other or what KVM can do.
pub fn choose(wish: Wish, clock: Option<Clock>, kvm: Option<Kvm>) -> anyhow::Result<Choice> {
    let accel = match (wish, clock, &kvm) {
        (Wish::Kvm, Some(Clock::Virtual), _) => {
            return Err(WrongInput::new(
                "KVM cannot run in virtual time: ask for one or the other".to_owned(),
            )
            .into());
        }
        (Wish::Tcg, _, _) | (Wish::Auto, Some(Clock::Virtual), _) => Accel::Tcg,
        (Wish::Kvm, _, Some(Kvm::Unusable(reason))) => {
            let advice = kvm_access::advice().filter(|_| reason == DENIED);
            bail!(
                "KVM is not usable: {reason}{}",
                advice.map(|advice| format!("; {advice}")).unwrap_or_default()
            )
        }
        (Wish::Auto, _, Some(Kvm::Unusable(_))) => Accel::Tcg,
        (_, _, Some(Kvm::Usable)) => Accel::Kvm,
        (_, _, None) => bail!("KVM has not been probed"),
    };
    let clock = clock.unwrap_or(match accel {
        Accel::Kvm => Clock::Real,
        Accel::Tcg => Clock::Virtual,
    });
    Ok(Choice { accel, clock, kvm })
}

/// Whether [`choose`] has to know what KVM can do.
#[must_use]
pub fn needs_probe(wish: Wish, clock: Option<Clock>) -> bool {
    wish != Wish::Tcg && clock != Some(Clock::Virtual)
}

/// Probes if needed, and settles what a machine runs on.
///
/// # Errors
/// As [`choose`], and if the probe's child cannot be run at all.
pub async fn decide(wish: Wish, clock: Option<Clock>) -> anyhow::Result<Choice> {
    let kvm = match needs_probe(wish, clock) {
        true => Some(probe_in_child().await?),
        false => None,
    };
    choose(wish, clock, kvm)
}

/// The variable that makes a binary be the probe.
const PROBE_VAR: &str = "VM_TESTS_KVM_PROBE";

/// How long the probe may take; it takes 2 ms where it was measured.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Answers the probe and ends the process, if this process was started for it. First thing in `main`.
pub fn child_main_if_asked() {
    if std::env::var_os(PROBE_VAR).is_none() {
        return;
    }
    let answer = match probe::run() {
        Kvm::Usable => "yes\n".to_owned(),
        Kvm::Unusable(reason) => format!("no: {reason}\n"),
    };
    let written = std::io::stdout().write_all(answer.as_bytes());
    #[expect(clippy::exit, reason = "the process exists for this answer alone")]
    std::process::exit(written.is_err().into());
}

/// Runs the probe in a child of its own, which is this same binary again.
///
/// # Errors
/// If we are interrupted, or if this binary does not call [`child_main_if_asked`]. A child that fails, hangs or
/// is killed is no error: it means that KVM is not usable.
pub async fn probe_in_child() -> anyhow::Result<Kvm> {
    // Not its path: a build that runs meanwhile puts another file there.
    let program = Program::new("/proc/self/exe").env(PROBE_VAR, "1");
    match process::run(program, PROBE_LIMIT, |_, _| {}).await {
        Ok(output) => parse(&output.text()).context("this binary does not answer the KVM probe"),
        Err(process::Error::Deadline { .. }) => {
            Ok(Kvm::Unusable(format!("a guest of six instructions did not end within {PROBE_LIMIT:?}")))
        }
        Err(process::Error::Failed { status, .. }) => {
            Ok(Kvm::Unusable(format!("the probe ended with {}", process::describe(status))))
        }
        Err(error) => Err(error).context("probe KVM"),
    }
}

/// Reads what the probe's child says.
fn parse(answer: &str) -> Option<Kvm> {
    match answer.trim_end() {
        "yes" => Some(Kvm::Usable),
        other => Some(Kvm::Unusable(other.strip_prefix("no: ")?.to_owned())),
    }
}

/// The reason that has an advice.
const DENIED: &str = "/dev/kvm: permission denied";

/// Why opening `/dev/kvm` failed.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the probe's guest is x86 code"))]
fn open_failure(error: std::io::ErrorKind, text: &str) -> String {
    match error {
        std::io::ErrorKind::NotFound => {
            "/dev/kvm does not exist: no virtualization extensions, or their module is not loaded".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => DENIED.to_owned(),
        _ => format!("/dev/kvm: {text}"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod probe {
    use super::Kvm;

    pub(super) fn run() -> Kvm {
        Kvm::Unusable("guests are x86_64, this host is not".to_owned())
    }
}

/// The guest and the processor state it starts in.
#[cfg(target_arch = "x86_64")]
mod probe {
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm as Device, VcpuExit, VcpuFd};
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::{Kvm, open_failure};

    /// All the memory the guest has, in bytes.
    const MEMORY: usize = 64 << 10;

    /// `pxor xmm0,xmm0; popcnt rax,rbx; mov dx,0x3f8; mov al,0x42; out dx,al; hlt`
    const CODE: [u8; 17] = [
        0x66, 0x0f, 0xef, 0xc0, 0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x42, 0xee, 0xf4,
    ];
    const CODE_AT: usize = 0x8000;

    /// Where the tables are that map the first 2 MiB to themselves, and their first entries: present, writable,
    /// and in the last one "this is a 2 MiB page" (Intel SDM volume 3, 4.5).
    const TABLES: [(usize, u64); 3] = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83)];

    /// PE, MP, ET, NE, WP, PG.
    const CR0: u64 = 0x8001_0033;
    /// PAE, OSFXSR, OSXMMEXCPT: the latter two make `pxor` legal.
    const CR4: u64 = 0x620;
    /// LME and LMA.
    const EFER: u64 = 0x500;

    /// The guest's memory, unmapped when dropped.
    struct Memory(*mut std::ffi::c_void);

    impl Memory {
        fn map() -> rustix::io::Result<Self> {
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            #[expect(unsafe_code, reason = "a guest's memory is memory of this process")]
            // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
            unsafe { mmap_anonymous(std::ptr::null_mut(), MEMORY, prot, flags) }.map(Self)
        }

        fn write(&mut self, at: usize, bytes: &[u8]) {
            assert!(at + bytes.len() <= MEMORY, "{at:#x} is outside the guest's memory");
            #[expect(unsafe_code, reason = "a guest's memory is memory of this process")]
            // SAFETY: the range is inside the mapping, which is writable, ours alone, and not yet run by a guest.
            unsafe {
                self.0.cast::<u8>().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            #[expect(unsafe_code, reason = "a guest's memory is memory of this process")]
            // SAFETY: mapped by `map` with this length, and no reference into it exists.
            let unmapped = unsafe { munmap(self.0, MEMORY) };
            debug_assert_eq!(unmapped, Ok(()));
        }
    }

    /// One exit of the guest, as far as it matters here.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) enum Exit {
        Out(u16, u8),
        Halt,
        InternalError,
        Other(String),
    }

    /// What the exits say. The last one is the one that decides.
    pub(super) fn judge(exits: &[Exit]) -> Kvm {
        match exits {
            [Exit::Out(0x3f8, 0x42), Exit::Halt] => Kvm::Usable,
            [.., Exit::InternalError] => Kvm::Unusable(
                "exits with an internal error on a plain instruction, as nested and paravirtual hosts do"
                    .to_owned(),
            ),
            _ => Kvm::Unusable(format!("a guest of six instructions ended in {exits:?}")),
        }
    }

    pub(super) fn run() -> Kvm {
        let device = match Device::new() {
            Ok(device) => device,
            Err(error) => {
                let error = std::io::Error::from_raw_os_error(error.errno());
                return Kvm::Unusable(open_failure(error.kind(), &error.to_string()));
            }
        };
        match exits(&device) {
            Ok(exits) => judge(&exits),
            Err((call, error)) => Kvm::Unusable(format!("{call}: {error}")),
        }
    }

    /// Runs the guest until it halts or does anything else than write to a port.
    fn exits(device: &Device) -> Result<Vec<Exit>, (&'static str, String)> {
        let failed = |call| move |error: kvm_ioctls::Error| (call, error.to_string());
        // Declared before the machine, so that it is unmapped after it.
        let mut memory = Memory::map().map_err(|errno| ("mmap", errno.to_string()))?;
        for (at, entry) in TABLES {
            memory.write(at, &entry.to_le_bytes());
        }
        memory.write(CODE_AT, &CODE);

        let vm = device.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0 as u64,
        };
        #[expect(unsafe_code, reason = "KVM is given an address")]
        // SAFETY: the region is the whole mapping, which outlives the machine and which nobody else refers to.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;

        let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let cpuid =
            device.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        enter_long_mode(&vcpu).map_err(failed("KVM_SET_SREGS"))?;
        // Bit 1 of the flags is always set.
        let regs = kvm_regs { rip: CODE_AT as u64, rflags: 2, rsp: MEMORY as u64, ..Default::default() };
        vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;

        let mut exits = Vec::new();
        // Two exits are right; a third would be wrong already.
        while exits.len() < 3 {
            let exit = match vcpu.run().map_err(failed("KVM_RUN"))? {
                VcpuExit::IoOut(port, &[byte]) => Exit::Out(port, byte),
                VcpuExit::Hlt => Exit::Halt,
                VcpuExit::InternalError => Exit::InternalError,
                other => Exit::Other(format!("{other:?}")),
            };
            let goes_on = matches!(exit, Exit::Out(..));
            exits.push(exit);
            if !goes_on {
                break;
            }
        }
        Ok(exits)
    }

    fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = vcpu.get_sregs()?;
        // Flat, present, ring 0; code is 64 bit (type execute/read/accessed), data read/write/accessed.
        let segment = kvm_segment { base: 0, limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
        let data = kvm_segment { selector: 0x10, type_: 3, db: 1, ..segment };
        sregs.cs = kvm_segment { selector: 0x8, type_: 11, l: 1, ..segment };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 = CR0;
        sregs.cr3 = TABLES[0].0 as u64;
        sregs.cr4 = CR4;
        sregs.efer = EFER;
        vcpu.set_sregs(&sregs)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_two_exits_are_a_yes() {
            let out = || Exit::Out(0x3f8, 0x42);
            assert_eq!(judge(&[out(), Exit::Halt]), Kvm::Usable);
            let wrong = [
                vec![],
                vec![Exit::Halt],
                vec![out()],
                vec![out(), out(), Exit::Halt],
                vec![Exit::Out(0x3f8, 0x43), Exit::Halt],
                vec![Exit::InternalError],
                vec![out(), Exit::InternalError],
                vec![out(), Exit::Other("Shutdown".to_owned())],
            ];
            for exits in wrong {
                assert!(matches!(judge(&exits), Kvm::Unusable(_)), "{exits:?}");
            }
        }

        #[test]
        fn the_guest_fits_its_memory() {
            let mut memory = Memory::map().expect("64 KiB");
            memory.write(CODE_AT, &CODE);
            memory.write(MEMORY - 1, &[1]);
        }

        #[test]
        fn an_answer_holds_on_the_same_host() {
            // Whatever it is here: hosts differ.
            let first = run();
            assert_eq!(first, run());
            if let Kvm::Unusable(reason) = first {
                assert!(!reason.is_empty());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no() -> Kvm {
        Kvm::Unusable("for a reason".to_owned())
    }

    #[test]
    fn wishes_clocks_and_kvm_settle_the_choice() {
        use {Accel as A, Clock as C, Wish as W};
        let cases = [
            (W::Auto, None, Some(Kvm::Usable), Some((A::Kvm, C::Real))),
            (W::Auto, None, Some(no()), Some((A::Tcg, C::Virtual))),
            (W::Auto, Some(C::Real), Some(no()), Some((A::Tcg, C::Real))),
            (W::Auto, Some(C::Virtual), None, Some((A::Tcg, C::Virtual))),
            (W::Auto, Some(C::Virtual), Some(Kvm::Usable), Some((A::Tcg, C::Virtual))),
            (W::Tcg, None, None, Some((A::Tcg, C::Virtual))),
            (W::Tcg, Some(C::Real), None, Some((A::Tcg, C::Real))),
            (W::Kvm, None, Some(Kvm::Usable), Some((A::Kvm, C::Real))),
            (W::Kvm, None, Some(no()), None),
            (W::Kvm, Some(C::Virtual), Some(Kvm::Usable), None),
        ];
        for (wish, clock, kvm, expected) in cases {
            let choice = choose(wish, clock, kvm.clone());
            let got = choice.as_ref().ok().map(|choice| (choice.accel, choice.clock));
            assert_eq!(got, expected, "{wish:?} {clock:?} {kvm:?}: {choice:?}");
            if kvm.is_none() {
                assert!(!needs_probe(wish, clock), "{wish:?} {clock:?} goes without a probe");
            }
        }
    }

    #[test]
    fn a_choice_is_one_line_with_its_reason() {
        let line = |wish, clock, kvm| choose(wish, clock, kvm).expect("a choice").to_string();
        assert_eq!(line(Wish::Auto, None, Some(Kvm::Usable)), "accelerator: KVM, real time");
        assert_eq!(line(Wish::Auto, None, Some(no())), "accelerator: TCG, virtual time (KVM: for a reason)");
        assert_eq!(line(Wish::Tcg, None, None), "accelerator: TCG, virtual time");
        let refused = choose(Wish::Kvm, None, Some(no())).expect_err("kvm is not there");
        assert_eq!(refused.to_string(), "KVM is not usable: for a reason");
    }

    #[test]
    fn the_childs_answer_parses() {
        assert_eq!(parse("yes\n"), Some(Kvm::Usable));
        assert_eq!(parse("no: for a reason\n"), Some(no()));
        assert_eq!(parse("running 3 tests\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_closed_device_says_what_to_do() {
        let denied = Kvm::Unusable(open_failure(std::io::ErrorKind::PermissionDenied, ""));
        let advised = |kvm| choose(Wish::Auto, None, Some(kvm)).expect("a choice").advice().is_some();
        assert_eq!(advised(denied), std::path::Path::new("/dev/kvm").exists());
        assert!(!advised(no()), "there is nothing to do about another reason");
        assert!(open_failure(std::io::ErrorKind::NotFound, "").contains("does not exist"));
        assert_eq!(open_failure(std::io::ErrorKind::Other, "boom"), "/dev/kvm: boom");
    }
}
