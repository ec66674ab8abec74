//! What is wrong in what a user wrote: all of it at once, each with its place, and what may have been meant.

use std::fmt;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as a user would name it; empty for what is wrong on the command line.
    pub file: String,
    /// Line and column in it, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// In characters.
    pub column: usize,
    /// The key's path, what is wrong with it, and what there is instead.
    pub what: String,
}

/// As compilers print it, so that terminals and editors find the place.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file.is_empty(), self.line) {
            (true, _) => {}
            (false, 0) => write!(f, "{}: ", self.file)?,
            (false, line) => write!(f, "{}:{line}:{}: ", self.file, self.column)?,
        }
        f.write_str(&self.what)
    }
}

/// All that is wrong in what was asked for: wrong usage, and no fault of a machine. In the order of files and lines, each
/// once: scenarios share bases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct WrongInput(Vec<Problem>);

impl WrongInput {
    /// `Err` if there is any.
    ///
    /// # Errors
    /// With all of them.
    pub(crate) fn of(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort();
        problems.dedup();
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// What is wrong with no line of a file.
    pub fn new(what: impl Into<String>) -> Self {
        Self(vec![Problem { file: String::new(), line: 0, column: 0, what: what.into() }])
    }

    /// All of it.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for WrongInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "nothing was run: {one}"),
            many => {
                write!(f, "nothing was run, {} things are wrong:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// What there is in place of a word that is not known, and which of it was meant, if one is near: of many, that one alone.
pub(crate) fn instead<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let meant = meant(word, known.iter().copied());
    if !meant.is_empty() && known.len() > MANY {
        return meant.trim_end().to_owned();
    }
    format!("{meant}there are {}", known.join(", "))
}

/// More words than this are a line of their own.
const MANY: usize = 8;

/// `did you mean …? ` where a known word is near, else nothing: for words of which there are too many to list.
pub(crate) fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    nearest(word, &known).map(|one| format!("did you mean {one}? ")).unwrap_or_default()
}

/// The known word that is nearest, if it is near enough to have been meant: a letter in three may be another.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    let far = |one: &str| strsim::damerau_levenshtein(&word, &one.to_lowercase());
    let (distance, one) = known.iter().map(|one| (far(one), *one)).min_by_key(|(distance, _)| *distance)?;
    let length = word.chars().count();
    let near = (length >= 2 && distance <= (length / 3).max(1)).then_some(one);
    near.or_else(|| known.iter().copied().find(|one| length >= 3 && one.starts_with(&word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_near() {
        let known = ["main", "child", "control", "control-child", "outside"];
        for (word, meant) in [
            ("contrl", Some("control")),
            ("Main", Some("main")),
            ("mian", Some("main")),
            ("out", Some("outside")),
            ("controlchild", Some("control-child")),
            ("somebody", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(instead("x", ["aa", "bb"]), "there are aa, bb");
        assert_eq!(instead("ab", ["aa", "bcd"]), "did you mean aa? there are aa, bcd");
    }

    #[test]
    fn each_is_said_once_and_in_the_order_of_the_file() {
        let at = |line, what: &str| Problem { file: "f".to_owned(), line, column: 1, what: what.to_owned() };
        let wrong = WrongInput::of(vec![at(10, "c"), at(9, "b"), at(10, "c")]).expect_err("two");
        assert_eq!(wrong.to_string(), "nothing was run, 2 things are wrong:\n  f:9:1: b\n  f:10:1: c");
        assert_eq!(WrongInput::of(Vec::new()), Ok(()));
    }
}
