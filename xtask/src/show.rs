//! Shows the harness's events: work in progress as a spinner with the elapsed time on a terminal, all else as lines.

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use vm_tests::host::events::{self, Event};

/// Shows all events from now on.
pub(crate) fn events() {
    let bar: Mutex<Option<ProgressBar>> = Mutex::default();
    events::listen(move |event| {
        // Nothing that a panic leaves half done is looked at again.
        let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (event, &*bar) {
            (Event::Begun(what), _) if io::stderr().is_terminal() => *bar = Some(spinner(what)),
            (Event::Now(message), Some(bar)) => bar.set_message(message.clone()),
            (Event::Over, _) => bar.take().iter().for_each(ProgressBar::finish_and_clear),
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
