//! The game as a 32-bit program, which a real server's is: its system calls and its end take the kernel's other entry.
//!
//! There is no 32-bit target to build for everywhere, so the program is some 30 instructions, assembled as a part of this
//! one, and written as an ELF file with a header made by hand (elf(5)). It touches memory, maps the library, starts threads,
//! makes `server.ready` and waits for ever; SIGTERM ends it. What else a server holds is open already, and is inherited.

#![expect(unsafe_code, reason = "the assembler gives the program as symbols")]

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result};
use rustix::io::FdFlags;

/// Beside the 64-bit one, so in the mount; its name is how a snapshot tells them apart.
const PROGRAM: &str = "srcds_linux32";

/// Where the kernel puts the file's only segment: headers, three parameters, the name of a file, code.
const BASE: u32 = 0x0804_8000;
const PARAMETERS: u32 = BASE + 0x34 + 2 * 0x20;
const READY: u32 = PARAMETERS + 12;
const CODE: u32 = READY + READY_NAME.len() as u32;
const READY_NAME: &[u8] = b"server.ready\0";

// System calls by int 0x80, with the numbers of arch/x86/entry/syscalls/syscall_32.tbl: number in eax, arguments in ebx,
// ecx, edx, esi, edi, ebp, result in eax. No instruction uses the stack, which is why all threads may have the same one.
std::arch::global_asm!(
    ".pushsection .rodata.program32, \"a\"",
    ".globl vm_game_program32, vm_game_program32_end",
    ".code32",
    "vm_game_program32:",
    // Memory: mmap2(0, bytes, READ|WRITE, PRIVATE|ANONYMOUS|NORESERVE, -1, 0)
    "mov eax, 192; xor ebx, ebx; mov ecx, [{bytes}]; mov edx, 3",
    "mov esi, 0x4022; mov edi, -1; xor ebp, ebp; int 0x80",
    "cmp eax, -4095; jae 9f",
    // madvise(NOHUGEPAGE), which a kernel without huge pages does not know; madvise(POPULATE_WRITE)
    "mov ebx, eax; mov edx, 15; mov eax, 219; int 0x80",
    "mov edx, 23; mov eax, 219; int 0x80; test eax, eax; jnz 9f",
    // The library's code: mmap2(0, 160 KiB, READ|EXEC, PRIVATE|POPULATE, library, 0)
    "mov eax, 192; xor ebx, ebx; mov ecx, 0x28000; mov edx, 5; mov esi, 0x8002",
    "mov edi, [{library}]; int 0x80; cmp eax, -4095; jae 9f",
    // Threads: clone(VM|FS|FILES|SIGHAND|THREAD|SYSVSEM), which returns twice
    "mov ebp, [{threads}]",
    "5: dec ebp; jz 6f",
    "mov eax, 120; mov ebx, 0x50f00; xor ecx, ecx; xor edx, edx; xor esi, esi; xor edi, edi; int 0x80",
    "test eax, eax; jz 7f; js 9f; jmp 5b",
    // creat("server.ready", 0644)
    "6: mov eax, 8; mov ebx, {ready}; mov ecx, 0x1a4; int 0x80",
    "test eax, eax; js 9f",
    // pause()
    "7: mov eax, 29; int 0x80; jmp 7b",
    // exit_group(the error)
    "9: neg eax; mov ebx, eax; mov eax, 252; int 0x80; ud2",
    "vm_game_program32_end:",
    ".code64",
    ".popsection",
    bytes = const PARAMETERS,
    threads = const PARAMETERS + 4,
    library = const PARAMETERS + 8,
    ready = const READY,
);

/// Goes on as that program, with so much memory and so many threads. What is in `inherited` stays open.
///
/// # Errors
/// If it can't be made or run. It does not return otherwise.
pub(crate) fn run(memory_mib: u32, threads: u32, inherited: &[BorrowedFd<'_>]) -> Result<()> {
    let library = File::open("left4dead2/bin/server.so").context("open left4dead2/bin/server.so")?;
    for open in inherited.iter().copied().chain([library.as_fd()]) {
        rustix::io::fcntl_setfd(open, FdFlags::empty()).context("keep a descriptor open")?;
    }
    let bytes = memory_mib
        .max(1)
        .checked_shl(20)
        .filter(|_| memory_mib < 4096)
        .context("--32-bit: less than 4096 MiB")?;
    let program = elf([bytes, threads.max(1), library.as_raw_fd().cast_unsigned()])?;
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o755).open(PROGRAM)?;
    file.write_all(&program).with_context(|| format!("write {PROGRAM}"))?;
    // A program that is open for writing is not run.
    drop(file);
    let name = CString::new(PROGRAM).expect("no NUL");
    let Err(errno) = nix::unistd::execv(&name, &[&name]);
    Err(errno).with_context(|| format!("run {PROGRAM}"))
}

/// The file.
fn elf(parameters: [u32; 3]) -> Result<Vec<u8>> {
    let code = code();
    let size = CODE - BASE + u32::try_from(code.len())?;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_386
    file.extend([2_u16, 3].map(u16::to_le_bytes).concat());
    // Version, entry point, program headers, section headers, flags
    file.extend([1, CODE, 0x34, 0, 0].map(u32::to_le_bytes).concat());
    // Sizes and counts of header, program headers, section headers
    file.extend([0x34_u16, 0x20, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    // PT_LOAD: offset, address twice, size twice, readable and executable, alignment
    file.extend([1, 0, BASE, BASE, size, size, 5, 0x1000].map(u32::to_le_bytes).concat());
    // PT_GNU_STACK, readable and writable: without it stack and data could be executed, which the kernel warns of
    file.extend([0x6474_e551, 0, 0, 0, 0, 0, 6, 0].map(u32::to_le_bytes).concat());
    file.extend(parameters.map(u32::to_le_bytes).concat());
    file.extend(READY_NAME);
    file.extend(code);
    Ok(file)
}

fn code() -> &'static [u8] {
    unsafe extern "C" {
        static vm_game_program32: u8;
        static vm_game_program32_end: u8;
    }
    let (start, end) = (&raw const vm_game_program32, &raw const vm_game_program32_end);
    // SAFETY: the bytes between these two symbols of one read-only section.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
