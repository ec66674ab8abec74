//! What is not as expected, in words, as it is found.

/// Empty if all is as expected.
#[derive(Debug, Default)]
pub(super) struct Wrong(pub(super) Vec<String>);

impl Wrong {
    /// Keeps the words if this is not so.
    pub(super) fn check(&mut self, right: bool, words: String) {
        if !right {
            self.0.push(words);
        }
    }

    /// Keeps both lists if they differ.
    pub(super) fn equal(&mut self, what: &str, is: &[String], expected: &[String]) {
        self.check(is == expected, format!("{what}: {is:?} instead of {expected:?}"));
    }
}
