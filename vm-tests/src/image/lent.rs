//! Whether the host lends us the ids that a root's files have.

use anyhow::{Context as _, bail, ensure};

/// Whether this user can build at all: the files of a root belong to many ids, which the host has to lend.
pub(super) fn check_user() -> anyhow::Result<()> {
    for (path, closed) in
        [("/proc/sys/kernel/unprivileged_userns_clone", "0"), ("/proc/sys/user/max_user_namespaces", "0")]
    {
        // Not every kernel has the first.
        if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == closed) {
            bail!("user namespaces are switched off: {path} is {closed}");
        }
    }
    let user = nix::unistd::Uid::effective();
    if user.is_root() {
        return Ok(());
    }
    let name = nix::unistd::User::from_uid(user).context("look up our user")?.map(|user| user.name);
    let name = name.with_context(|| format!("user {user} has no name, which /etc/subuid goes by"))?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        ensure!(
            lends_ids(&text, &name, user.as_raw()),
            "{file} lends user {name} no ids to build an image with; to get some, type:\n  \
             sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        );
    }
    Ok(())
}

/// Whether a subuid(5) file gives a user at least the 65536 ids that a root file system may use.
pub(super) fn lends_ids(text: &str, name: &str, uid: u32) -> bool {
    text.lines().any(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [user, _start, count] => {
            (user == name || user == uid.to_string()) && count.trim().parse::<u64>().is_ok_and(|n| n >= 65536)
        }
        _ => false,
    })
}
