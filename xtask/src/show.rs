//! Shows the harness's events: work in progress as a spinner with the elapsed time on a terminal, all else as lines.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vm_tests::host::events::{self, Event};

/// Where there is no terminal, work in progress says so again after this time: a job's log that is silent looks dead.
const QUIET: Duration = Duration::from_secs(30);

/// How work in progress is shown.
enum Shown {
    /// On a terminal.
    Spinner(ProgressBar),
    /// By a thread that ends with this sender.
    Lines { _until_dropped: Sender<()> },
}

/// Shows all events from now on.
pub(crate) fn events() {
    let shown: Mutex<BTreeMap<u64, Shown>> = Mutex::default();
    let spinners = MultiProgress::new();
    events::listen(move |event| {
        // Nothing that a panic leaves half done is looked at again.
        let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Begun(work) if io::stderr().is_terminal() => {
                let bar = spinners.add(spinner(&work.what));
                bar.enable_steady_tick(Duration::from_millis(100));
                shown.insert(work.number, Shown::Spinner(bar));
            }
            Event::Begun(work) => {
                eprintln!("{event}");
                shown.extend(lines(&work.what).map(|lines| (work.number, lines)));
            }
            Event::Now(work, message) => match shown.get(&work.number) {
                Some(Shown::Spinner(bar)) => bar.set_message(message.clone()),
                _ => eprintln!("{event}"),
            },
            Event::Over(work) => {
                if let Some(Shown::Spinner(bar)) = shown.remove(&work.number) {
                    bar.finish_and_clear();
                }
            }
            // Above the spinners, which would be on the same line. A line that can't be written is nobody's to read.
            _ => match shown.values().any(|one| matches!(one, Shown::Spinner(_))) {
                true => drop(spinners.println(event.to_string())),
                false => eprintln!("{event}"),
            },
        }
    });
}

fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
        .expect("the template is a constant");
    ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned())
}

/// A line from time to time, until what this returns is dropped; none if there can be no thread.
fn lines(what: &str) -> Option<Shown> {
    let (until, dropped) = channel::<()>();
    let (what, begun) = (what.to_owned(), Instant::now());
    let tell = move || {
        while dropped.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
            eprintln!("  {what}: {} s so far", begun.elapsed().as_secs());
        }
    };
    thread::Builder::new().name("progress".to_owned()).spawn(tell).ok()?;
    Some(Shown::Lines { _until_dropped: until })
}
