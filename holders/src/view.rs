//! Whether a `/proc` shows all processes of the machine. If it does not, who is hidden is not counted as one that could not
//! be looked at: nothing tells how many there are.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::AtFlags;

use crate::proc::{LINK_ROOM, open_task, read_link};
use crate::report::PartialView;

/// The initial pid namespace, by the number it has on every machine (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const INITIAL: &[u8] = b"pid:[4026531836]";

/// `None` if all processes are shown.
pub(crate) fn partial(proc_dir: BorrowedFd<'_>) -> Option<PartialView> {
    // Which is always there, and can be opened by whoever may not see it (`fs/proc/base.c:pid_getattr`).
    let first = open_task(proc_dir, c"1").and_then(|first| {
        rustix::fs::statat(proc_dir, c"1", AtFlags::empty())?;
        Ok(first)
    });
    let Ok(first) = first else { return Some(PartialView::Hidden) };
    let mut room = LINK_ROOM;
    // Of the first process that this `/proc` has; who may not look at that is told by the own one.
    if let Ok(shown) = read_link(first.as_fd(), c"ns/pid", &mut room) {
        return (shown != INITIAL).then_some(PartialView::PidNamespace);
    }
    let own = open_task(proc_dir, c"thread-self").ok()?;
    let shown = read_link(own.as_fd(), c"ns/pid", &mut room).ok()?;
    (shown != INITIAL).then_some(PartialView::PidNamespace)
}
