//! Who swaps directories for links to somewhere else, so that one who lists a directory and then enters it finds a link.
//!
//! renameat2(RENAME_EXCHANGE) swaps the two at one instant, as often as the machine can: at no time is the name not there.
//! The attackers of the helper's tests and of the scenarios (`vm-attack`) are this one.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, symlinkat, unlinkat};
use rustix::io::Errno;

/// What the directories hold, so that somebody finds something in them and does not just remove them.
const CONTENT: [&str; 2] = ["bait-1", "bait-2"];

/// Names in a directory, each with a directory and a link behind it that change places.
#[derive(Debug)]
pub(crate) struct Swapper {
    directory: OwnedFd,
    pairs: Vec<Pair>,
    /// How often a name has become a link that was a directory.
    pub(crate) shown: u64,
}

#[derive(Debug)]
struct Pair {
    name: String,
    /// Where the other one of the two is.
    spare: String,
    target: String,
    is: Is,
}

/// What lies at a pair's name. Nobody else makes anything there, so that this is known, not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Unmade,
    Directory,
    Link,
}

impl Swapper {
    /// Nothing is made before [`Self::plant`]. The targets take turns.
    pub(crate) fn new(
        directory: OwnedFd,
        names: impl IntoIterator<Item = String>,
        targets: &[String],
    ) -> Self {
        let pair = |(name, target): (String, &String)| Pair {
            spare: format!(".{name}"),
            name,
            target: target.clone(),
            is: Is::Unmade,
        };
        let pairs = names.into_iter().zip(targets.iter().cycle()).map(pair).collect();
        Self { directory, pairs, shown: 0 }
    }

    /// Makes the pairs that are not there, and says how many are. A directory that is being deleted, or was taken
    /// away from us, takes none.
    pub(crate) fn plant(&mut self) -> usize {
        for pair in &mut self.pairs {
            if pair.is == Is::Unmade && pair.plant(&self.directory) {
                pair.is = Is::Directory;
            }
        }
        self.pairs.iter().filter(|pair| pair.is != Is::Unmade).count()
    }

    /// Swaps each pair once, and says how many have swapped. One that has lost its directory or its link does not.
    pub(crate) fn swap(&mut self) -> usize {
        let mut swapped = 0;
        for pair in &mut self.pairs {
            let is = match pair.is {
                Is::Unmade => continue,
                Is::Directory => Is::Link,
                Is::Link => Is::Directory,
            };
            let directory = &self.directory;
            if renameat_with(directory, &pair.name, directory, &pair.spare, RenameFlags::EXCHANGE).is_err() {
                pair.is = Is::Unmade;
                continue;
            }
            pair.is = is;
            swapped += 1;
            self.shown += u64::from(is == Is::Link);
        }
        swapped
    }
}

impl Pair {
    /// Whether both are made, after what is left of an earlier pair was removed.
    fn plant(&self, directory: &OwnedFd) -> bool {
        [&self.name, &self.spare].into_iter().all(|name| clear(directory, name))
            && mkdirat(directory, &self.name, Mode::RWXU).is_ok()
            && CONTENT.iter().all(|file| {
                let file = format!("{}/{file}", self.name);
                openat(directory, file, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR).is_ok()
            })
            && symlinkat(&self.target, directory, &self.spare).is_ok()
    }
}

/// Whether nothing has the name any more.
fn clear(directory: &OwnedFd, name: &str) -> bool {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return true,
        Err(Errno::ISDIR) => {}
        Err(_) => return false,
    }
    // A directory, and ours alone: it becomes no link before we make it one.
    for file in CONTENT {
        match unlinkat(directory, format!("{name}/{file}"), AtFlags::empty()) {
            Ok(()) | Err(_) => {}
        }
    }
    matches!(unlinkat(directory, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT))
}
