//! The host's memory.

use anyhow::{Context as _, Result};

/// What is available without swapping, in bytes: `MemAvailable` of `/proc/meminfo`; see proc_meminfo(5).
///
/// # Errors
/// A kernel that does not say.
pub fn available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    parse_meminfo(&text).context("/proc/meminfo has no MemAvailable")
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_in_bytes() {
        assert_eq!(parse_meminfo("MemTotal: 1 kB\nMemAvailable:   20000000 kB\n"), Some(20_480_000_000));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
    }
}
