//! Printing for a reader who may go before the end, as `head` does: `print!` and its kin of this crate.
//!
//! Those of std panic then. What a command still has to say is for nobody, but it comes to its end and to its exit status: a
//! machine that runs is stopped in order, and a verdict is not lost. So not SIGPIPE either, which ends most programs there: it
//! is also the signal of each socket and pipe to a machine that has died.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

macro_rules! print {
    ($($text:tt)*) => { $crate::out::write(::std::io::stdout(), format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::out::write(::std::io::stderr(), format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes it there; to nobody if the reader is gone.
///
/// # Panics
/// As std's, if it can't be written for another reason: a full disk.
pub(crate) fn write(mut to: impl Write, text: Arguments<'_>) {
    match to.write_fmt(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("failed printing: {error}"),
        _written_or_for_nobody => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _text: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_no_failure() {
        write(Refuses(ErrorKind::BrokenPipe), format_args!("a"));
    }

    #[test]
    #[should_panic(expected = "failed printing")]
    fn a_full_disk_is_one() {
        write(Refuses(ErrorKind::StorageFull), format_args!("a"));
    }
}
