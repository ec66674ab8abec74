//! Kernels and modules without their compression: a guest under emulation would unpack them slowly, the host's disk has
//! room.
//!
//! A bzImage is a boot loader's stub around a compressed vmlinux (kernel: Documentation/arch/x86/boot.rst). QEMU boots
//! the vmlinux itself where the kernel has an entry for that (CONFIG_PVH).

use std::io::Read as _;

use anyhow::{Context, Result, bail, ensure};

/// The largest vmlinux that is taken for one, in bytes: Debian's have 40 to 70 MB.
const LARGEST: usize = 512 << 20;

/// The vmlinux in a bzImage, or `None` if that kernel can't be booted as one, by its configuration.
///
/// # Errors
/// When it is no bzImage, or its compression is none of zstd, xz and lz4.
pub fn vmlinux(bzimage: &[u8], config: &str) -> Result<Option<Vec<u8>>> {
    if !config.lines().any(|line| line == "CONFIG_PVH=y") {
        return Ok(None);
    }
    let elf = unpack(payload(bzimage)?)?;
    ensure!(elf.starts_with(b"\x7fELF"), "what is in the bzImage is no ELF");
    Ok(Some(elf))
}

/// The compressed part of a bzImage, by the fields of its header.
fn payload(bzimage: &[u8]) -> Result<&[u8]> {
    let field = |at: usize, length: usize| {
        let bytes = bzimage.get(at..at + length).context("a bzImage has a longer header")?;
        anyhow::Ok(bytes.iter().rev().fold(0_usize, |all, byte| all << 8 | usize::from(*byte)))
    };
    ensure!(bzimage.get(0x202..0x206) == Some(b"HdrS"), "no bzImage: it lacks the boot header's magic");
    // setup_sects; 0 means 4.
    let sectors = match field(0x1f1, 1)? {
        0 => 4,
        sectors => sectors,
    };
    ensure!(field(0x206, 2)? >= 0x208, "a bzImage of a boot protocol before 2.08");
    let begin = (sectors + 1) * 512 + field(0x248, 4)?;
    let length = field(0x24c, 4)?;
    bzimage.get(begin..begin.saturating_add(length)).context("the bzImage is cut short")
}

/// Unpacks what a kernel's build has compressed, by its magic. It appends the length, which is left unread.
fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut rest = packed;
            let decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest).context("zstd")?;
            decoder.take(LARGEST as u64).read_to_end(&mut out).context("zstd")?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => out = unxz(packed)?,
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => out = unpack_lz4(blocks)?,
        _ => bail!(
            "a compression that is none of zstd, xz and lz4: {:02x?}",
            packed.get(..6).unwrap_or(packed)
        ),
    }
    Ok(out)
}

/// lz4's legacy frame, as `lz4 -l` writes it: blocks of 8 MiB, each after the length of its packed form.
fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    let mut buffer = vec![0; BLOCK];
    // The last four bytes are the length that the kernel's build appends.
    while let Some((length, rest)) = blocks.split_at_checked(4).filter(|_| blocks.len() > 4) {
        let length = u32::from_le_bytes(length.try_into().context("four bytes")?) as usize;
        let (block, rest) = rest.split_at_checked(length).context("lz4: a block is cut short")?;
        let unpacked = lz4_flex::block::decompress_into(block, &mut buffer).context("lz4")?;
        out.extend_from_slice(buffer.get(..unpacked).unwrap_or_default());
        ensure!(out.len() < LARGEST, "lz4: it unpacks to more than {LARGEST} bytes");
        blocks = rest;
    }
    Ok(out)
}

/// Unpacks the first xz stream of some bytes.
///
/// # Errors
/// When they are none.
pub fn unxz(packed: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let reader = lzma_rust2::XzReader::new(packed, false);
    reader.take(LARGEST as u64).read_to_end(&mut out).context("xz")?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage's header around a payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).expect("small").to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows");
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&bzimage(b"packed")).expect("payload"), b"packed");
        for (wrong, words) in [(vec![0; 600], "magic"), (Vec::new(), "magic")] {
            let error = payload(&wrong).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
        let mut short = bzimage(b"packed");
        short.truncate(2 * 512 + 18);
        payload(&short).expect_err("cut short");
    }

    #[test]
    fn lz4_blocks_are_put_together_and_the_appended_length_is_not_one() {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        // A block of literals only: a token with their number, and they themselves.
        for text in [b"\x7fELF", b"tail"] {
            packed.extend_from_slice(&5_u32.to_le_bytes());
            packed.push(0x40);
            packed.extend_from_slice(text);
        }
        packed.extend_from_slice(&8_u32.to_le_bytes());
        let image = bzimage(&packed);
        assert_eq!(vmlinux(&image, "CONFIG_PVH=y\n").expect("vmlinux").as_deref(), Some(&b"\x7fELFtail"[..]));
        assert_eq!(vmlinux(&image, "# CONFIG_PVH is not set\n").expect("no vmlinux"), None);
    }

    #[test]
    fn what_is_not_known_is_named() {
        let error = vmlinux(&bzimage(b"\x1f\x8bgzip"), "CONFIG_PVH=y").expect_err("gzip");
        assert!(error.to_string().contains("none of zstd, xz and lz4"), "{error}");
    }
}
