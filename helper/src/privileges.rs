//! Giving up what an unmount does not need. A `+` line runs as root with everything that systemd has, whatever
//! `CapabilityBoundingSet=` the unit sets.
//!
//! Only for an unmount: overlayfs keeps the credentials of whoever mounted it and uses them for every access to its
//! layers as long as it is mounted (overlayfs.rst, "Permission model"), so what a mount gives up the overlay lacks.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use crate::error::HelperError;

/// What an unmount needs: umount2(2); the links under /proc of anybody's processes, and signals to the unit's; and
/// reading and clearing `work`, whatever modes are in it.
pub const FOR_UMOUNT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::KILL)
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
