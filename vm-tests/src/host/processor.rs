//! The processor time of this process and of its children.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// What this process and those of its children that have ended have used, and theirs; see getrusage(2).
///
/// # Errors
/// As getrusage(2).
pub fn used() -> Result<Duration> {
    let mut micros = 0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who).context("getrusage")?;
        micros += (usage.user_time() + usage.system_time()).num_microseconds();
    }
    Ok(Duration::from_micros(u64::try_from(micros).context("a negative time")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_never_less_later() {
        let before = used().expect("used");
        assert!(used().expect("used") >= before && before > Duration::ZERO);
    }
}
