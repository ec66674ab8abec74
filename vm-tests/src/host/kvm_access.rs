//! What to do where `/dev/kvm` is there and may not be opened: by its real owner, group and mode, which differ from host to
//! host and from container to container.

use std::os::unix::fs::MetadataExt as _;

/// The device of the kernel's virtual machines.
const DEVICE: &str = "/dev/kvm";

/// The device's owner and mode, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Access {
    /// The permission bits.
    mode: u32,
    gid: u32,
    /// The group's name, if it has one here.
    group: Option<String>,
    /// Whether the process that was refused is root's.
    root: bool,
}

/// What to do about it, as the device is now; `None` if it can't be looked at.
#[must_use]
pub(super) fn advice() -> Option<String> {
    let device = std::fs::metadata(DEVICE).ok()?;
    let gid = nix::unistd::Gid::from_raw(device.gid());
    let group = nix::unistd::Group::from_gid(gid).ok().flatten().map(|group| group.name);
    let root = rustix::process::geteuid().is_root();
    Some(words(&Access { mode: device.mode() & 0o777, gid: device.gid(), group, root }))
}

fn words(access: &Access) -> String {
    let Access { mode, gid, group, root } = access;
    let may_group = mode & 0o060 == 0o060;
    match group {
        _ if *root => format!("root is refused {DEVICE}: give the container the device, with its permission"),
        Some(group) if may_group && *gid != 0 => {
            format!(
                "to use KVM: `sudo usermod -aG {group} $USER`, and log in again ({DEVICE} is for the group {group})"
            )
        }
        None if may_group => format!(
            "to use KVM: {DEVICE} is for the group with number {gid}, which has no name here: \
             `sudo groupadd -g {gid} kvm && sudo usermod -aG kvm $USER`, and log in again"
        ),
        _ => format!(
            "to use KVM until the next boot: `sudo chgrp $(id -gn) {DEVICE} && sudo chmod g+rw {DEVICE}` (its mode is {mode:03o} and \
             its group {})",
            group.clone().unwrap_or_else(|| gid.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_for_the_device_that_is_there() {
        let cases = [
            (0o660, 104, Some("kvm"), false, "usermod -aG kvm"),
            (0o660, 104, Some("libvirt"), false, "usermod -aG libvirt"),
            (0o660, 992, None, false, "groupadd -g 992"),
            (0o600, 0, Some("root"), false, "mode is 600"),
            // Nobody is to join the group of root.
            (0o660, 0, Some("root"), false, "chgrp"),
            (0o600, 104, Some("kvm"), false, "g+rw"),
            (0o600, 0, Some("root"), true, "container"),
        ];
        for (mode, gid, group, root, expected) in cases {
            let access = Access { mode, gid, group: group.map(str::to_owned), root };
            assert!(words(&access).contains(expected), "{access:?}: {}", words(&access));
        }
    }
}
