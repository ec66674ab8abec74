//! Drops the capabilities that an unmount does not need. A `+` line runs as root with all that systemd has, whatever
//! `CapabilityBoundingSet=` the unit sets.
//!
//! For an unmount only: overlayfs keeps the credentials of the process that mounted it and uses them for every access to
//! its layers while it is mounted (overlayfs.rst, "Permission model"), so the overlay would lack what a mount drops.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use crate::error::HelperError;

/// What an unmount needs: umount2(2); the links under /proc of anybody's processes; and reading and clearing `work`,
/// whatever modes are in it.
pub const FOR_UMOUNT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER);

/// Gives up every capability of this process that is not in `kept`, and the way to new ones.
///
/// # Errors
/// capget(2), capset(2) or prctl(2) failed: the system has forbidden it, and goes on no worse than before.
pub fn keep_only(kept: CapabilitySet) -> Result<(), HelperError> {
    let failed = |call| HelperError::call(call, "/proc/self/status");
    set_no_new_privs(true).map_err(failed("prctl PR_SET_NO_NEW_PRIVS"))?;
    let now = capabilities(None).map_err(failed("capget"))?;
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(failed("capset"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> (CapabilitySet, CapabilitySet, CapabilitySet) {
        let now = capabilities(None).unwrap();
        (now.effective, now.permitted, now.inheritable)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Each thread has capabilities of its own, capabilities(7): what one gives up here the tests beside it keep.
        #[test]
        fn what_was_given_up_does_not_come_back(first: u64, then: u64) {
            let [first, then] = [first, then].map(CapabilitySet::from_bits_truncate);
            let before = now();
            let given_up = move || {
                keep_only(first).unwrap();
                let after_first = now();
                keep_only(then).unwrap();
                (after_first, now(), rustix::thread::no_new_privs().unwrap())
            };
            let (after_first, after_both, no_new_privileges) = std::thread::spawn(given_up).join().unwrap();
            let none = CapabilitySet::empty();
            prop_assert_eq!(after_first, (before.0 & first, before.1 & first, none));
            prop_assert_eq!(after_both, (before.0 & first & then, before.1 & first & then, none));
            prop_assert!(no_new_privileges);
            prop_assert_eq!(now(), before, "and this thread has all that it had");
        }
    }
}
