//! Shows the harness's events: work in progress as a spinner with the elapsed time on a terminal, all else as lines.

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
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
    let shown: Mutex<Option<Shown>> = Mutex::default();
    events::listen(move |event| {
        // Nothing that a panic leaves half done is looked at again.
        let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (event, &*shown) {
            (Event::Begun(what), _) if io::stderr().is_terminal() => {
                *shown = Some(Shown::Spinner(spinner(what)))
            }
            (Event::Begun(what), _) => {
                eprintln!("{event}");
                *shown = lines(what);
            }
            (Event::Now(message), Some(Shown::Spinner(bar))) => bar.set_message(message.clone()),
            (Event::Over, _) => {
                if let Some(Shown::Spinner(bar)) = shown.take() {
                    bar.finish_and_clear();
                }
            }
            // Above the spinner, which would be on the same line.
            (_, Some(Shown::Spinner(bar))) => bar.println(event.to_string()),
            _ => eprintln!("{event}"),
        }
    });
}

fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
        .expect("the template is a constant");
    let bar = ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
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
