//! A clock of the host's that stands still, for a QEMU whose guest counts instructions.
//!
//! QEMU asks gettimeofday(2) when it empties the guest's TLB, and makes it smaller if it was little used for 100 ms of the host's
//! time (`accel/tcg/cputlb.c`: `tlb_mmu_resize_locked`, from 4.0 on). Which entries a TLB still has is nothing that a program
//! sees, but a kernel can: a processor sets a page's accessed bit when it walks the page table, which it does for what is not in the
//! TLB. Linux' khugepaged, which looks at each process every 10 s, counts such pages one by one (`mm/khugepaged.c`:
//! `hpage_collapse_scan_pmd`).
//!
//! Seen as a run that was 2 ns, two instructions, shorter than all others. Planted: ten cycles of a server of 1000 MiB (20 s of guest
//! time) have one recording where that clock stands still, each time, and another one where it jumps by a second at each look; with
//! transparent huge pages off (`/sys/kernel/mm/transparent_hugepage/enabled`) they have the same with both.
//!
//! No option of QEMU's has it leave its TLB alone. So it gets a library of one function in `LD_PRELOAD` (ld.so(8)), whose
//! answer is always the same. That is 4 KiB which are put together here: a library that a compiler made for this host need not
//! be one that a QEMU from elsewhere, with another libc, can load.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::host::process::{self, Program};

/// The file descriptor on which ld.so finds the library.
const LIBRARY_FD: i32 = 6;

/// What ld.so reads which libraries to load first from.
const PRELOAD: &str = "LD_PRELOAD";

/// The seconds that the clock shows: of 2023.
const SECONDS: u32 = 1_700_000_000;

/// Has a program see that clock.
pub(super) fn give(program: Program) -> Result<Program> {
    let mut library = format!("/proc/self/fd/{LIBRARY_FD}");
    // What the host's owner has every program load comes behind it.
    let usual = std::env::var_os(PRELOAD).unwrap_or_default();
    if !usual.is_empty() {
        library.push(':');
    }
    let mut preload = OsString::from(library);
    preload.push(usual);
    Ok(program.pass_fd(open()?, LIBRARY_FD).env(PRELOAD, preload))
}

/// Whether a program would see it: a static one does not, nor one that has capabilities by its file (ld.so(8),
/// "Secure-execution mode").
///
/// # Errors
/// If it can't be run.
pub(super) async fn is_seen_by(program: &Path) -> Result<bool> {
    if LIBRARY.is_none() {
        return Ok(false);
    }
    // ld.so says what it would load, and does not run the program: as ldd(1). A program that ignores it ends at once.
    let asked = give(Program::new(program).arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1"))?;
    let said = process::output(asked, Duration::from_secs(10)).await?.text();
    Ok(said.contains(&format!("/proc/self/fd/{LIBRARY_FD}")))
}

/// Its file, which is no path's: ld.so takes a colon or a space in one for its end.
fn open() -> Result<OwnedFd> {
    let file = memfd_create("still-clock", MemfdFlags::CLOEXEC).context("memfd_create")?;
    let mut file = File::from(file);
    file.write_all(&LIBRARY.map(library).unwrap_or_default()).context("write a library to a memfd")?;
    Ok(file.into())
}

/// The code of `int gettimeofday(struct timeval *tv, void *)`, and the ELF machine it is for; `None` on hosts that have none yet.
const LIBRARY: Option<(u16, [u8; 29])> = if cfg!(target_arch = "x86_64") {
    let [a, b, c, d] = SECONDS.to_le_bytes();
    Some((
        62,
        [
            0xf3, 0x0f, 0x1e, 0xfa, // endbr64
            0x48, 0xc7, 0x07, a, b, c, d, // mov qword ptr [rdi], SECONDS
            0x48, 0xc7, 0x47, 0x08, 0, 0, 0, 0, // mov qword ptr [rdi + 8], 0
            0x31, 0xc0, // xor eax, eax
            0xc3, // ret
            0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // int3
        ],
    ))
} else {
    None
};

/// A shared library with this code as its `gettimeofday` (elf(5)): one page to be read and executed, and one with the dynamic section,
/// which ld.so writes to.
fn library((machine, code): (u16, [u8; 29])) -> Vec<u8> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    const SEGMENTS: usize = 4;
    const PAGE: usize = 4096;
    const NAMES: &[u8] = b"\0gettimeofday\0";
    let word = |value: usize| (value as u64).to_le_bytes();
    let half = |value: u32| value.to_le_bytes();

    let symbols = HEADER + SEGMENTS * SEGMENT;
    let hash = symbols + 2 * 24;
    let names = hash + 5 * 4;
    let text = (names + NAMES.len()).next_multiple_of(16);
    let end = text + code.len();
    // DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL.
    let dynamic = [(4, hash), (5, names), (6, symbols), (10, NAMES.len()), (11, 24), (0, 0)];
    let dynamic: Vec<u8> =
        dynamic.iter().flat_map(|(tag, value)| [word(*tag), word(*value)].concat()).collect();

    let mut file = Vec::new();
    // 64 bits, little-endian, version 1, any ABI; a shared object.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0");
    file.extend(machine.to_le_bytes());
    file.extend(half(1));
    // No entry; segments after this; no sections.
    file.extend([word(0), word(HEADER), word(0)].concat());
    file.extend(half(0));
    for size in [HEADER, SEGMENT, SEGMENTS, 0, 0, 0] {
        file.extend((size as u16).to_le_bytes());
    }
    // PT_LOAD, PT_LOAD, PT_DYNAMIC, PT_GNU_STACK; their flags: 4 to read, 2 to write, 1 to execute.
    let segments = [(1, 5, 0, end, PAGE), (1, 6, PAGE, dynamic.len(), PAGE), (2, 6, PAGE, dynamic.len(), 8)];
    for (kind, flags, at, size, align) in segments.into_iter().chain([(0x6474_e551, 6, 0, 0, 16)]) {
        file.extend([half(kind), half(flags)].concat());
        file.extend([word(at), word(at), word(at), word(size), word(size), word(align)].concat());
    }
    // The symbol that each table begins with, and a global function in some section.
    file.extend([0; 24]);
    file.extend(half(1));
    file.extend([0x12, 0, 1, 0]);
    file.extend([word(text), word(code.len())].concat());
    // One bucket, two symbols; the bucket's first is ours, and the last.
    for value in [1, 2, 1, 0, 0] {
        file.extend(half(value));
    }
    file.extend(NAMES);
    file.resize(text, 0);
    file.extend(code);
    file.resize(PAGE, 0);
    file.extend(dynamic);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_program_sees_the_clock_stand_still() {
        // Of gettimeofday(2), unlike date(1).
        let shows = || Program::new("bash").args(["-c", "echo $EPOCHREALTIME"]);
        let still = process::output(give(shows()).expect("a library"), DEADLINE).await.expect("bash");
        assert_eq!(still.text().replace(',', "."), format!("{SECONDS}.000000\n"));
        let usual = process::output(shows(), DEADLINE).await.expect("bash").text();
        assert!(!usual.starts_with(&SECONDS.to_string()), "{usual}");
        assert!(is_seen_by(Path::new("bash")).await.expect("ld.so"));
    }

    #[tokio::test]
    async fn a_static_program_does_not_see_it() {
        // The one that each system with glibc has.
        let ldconfig = Path::new("/sbin/ldconfig");
        if ldconfig.exists() {
            assert!(!is_seen_by(ldconfig).await.expect("its version"));
        }
    }
}
