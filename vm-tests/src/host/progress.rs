//! What is being made, for who waits.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

/// One line that says what is under way: a spinner with the elapsed time on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    /// Starts the line; `what` is its heading.
    #[must_use]
    pub fn start(what: &str) -> Self {
        if !io::stderr().is_terminal() {
            eprintln!("{what}");
            return Self { bar: None };
        }
        let style = indicatif::ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
            .expect("the template is a constant");
        let bar = indicatif::ProgressBar::new_spinner().with_style(style).with_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar: Some(bar) }
    }

    /// Says what is going on now. Replaces the last message on a terminal, adds a line elsewhere.
    pub fn now(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_owned()),
            None => eprintln!("  {message}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
