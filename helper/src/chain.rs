//! An error with its causes, as text.

use std::error::Error;

/// The whole chain of an error in one line, outermost first.
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
    use rustix::io::Errno;

    use super::*;
    use crate::error::HelperError;

    #[test]
    fn the_chain_is_printed_once() {
        let error = HelperError::Umount { path: "/m".into(), source: Errno::PERM };
        assert_eq!(chain(&error), "umount /m: Operation not permitted (os error 1)");
    }
}
