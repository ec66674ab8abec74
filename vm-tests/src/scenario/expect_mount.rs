//! What must become of one mount.

use serde::Deserialize;

use super::outcome::{ExpectedRemount, ExpectedUmount};
use super::verdict::MountVerdict;

/// What must become of one of `other_mounts`. What is left out must be clean, as for `mount`, whose keys are in
/// [`Expect`](super::Expect) itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpectMount {
    /// Whether it is a mount point, in PID 1's mount namespace, when the reset begins. Left out: it is.
    pub(super) mounted_before: Option<bool>,
    /// How its last umount2(2) went. Left out: `ok` or none at all, and if the mount is meant to stay, anything.
    pub umount: Option<ExpectedUmount>,
    /// The verdict on who kept it, in [`MountVerdict::words`]. Left out: nobody.
    #[serde(deserialize_with = "MountVerdict::from_words")]
    pub verdict: Option<MountVerdict>,
    /// Who holds it when it is unmounted, as `<role> <comm> (<kind>, …)`; empty: nobody.
    pub holders: Vec<String>,
    /// Words that `holders` says of the unmount that was refused, each anywhere in its verdict or its advice.
    pub advice: Vec<String>,
    /// Units that must be seen in a namespace with a copy of it, and nothing held in it.
    pub listed: Vec<String>,
    /// Whether it is still a mount point afterwards.
    pub mounted: bool,
    /// Where its file system is still mounted after it was unmounted, as `<unit>: <path>`.
    pub mounted_elsewhere: Vec<String>,
    /// The next mount of the same layers. Left out: silent or not tried.
    pub remount: Option<ExpectedRemount>,
}

impl ExpectMount {
    /// Whether it must be there when the reset begins.
    #[must_use]
    pub fn mounted_before(&self) -> bool {
        self.mounted_before.unwrap_or(true)
    }
}
