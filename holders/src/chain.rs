//! An error with its causes, as text.

use std::error::Error;

/// The whole chain of an error in one line, outermost first. A cause may be a program's output, with a newline at its end.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(cause.to_string().trim_end());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("umount /m")]
    struct Umount(#[source] std::io::Error);

    #[test]
    fn the_chain_is_printed_once() {
        let error = Umount(std::io::Error::from_raw_os_error(1));
        assert_eq!(chain(&error), "umount /m: Operation not permitted (os error 1)");
        assert_eq!(chain(&Umount(std::io::Error::other("said so\n"))), "umount /m: said so");
    }
}
