//! The step `docs` of `cargo xtask check`: statements of documents about the repository must be true.
//!
//! - A `cargo xtask …` command is one that the real parser takes, flags and values included.
//! - So is each one in CI's workflow, and its shards are all there are.
//! - A relative link leads somewhere, and a path in backticks that looks like one of the repository is there.
//! - ARCHITECTURE.md's code map names every crate and every source file, and none that is not there.
//! - Every source file says at its top what it is (`//!`).
//!
//! Whether the sentences in between are true is for people. Reading text is apart from reading files, and tested.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Command;
use clap::error::ErrorKind;

use crate::{left4me, workflow};

/// The documents at the root; those below `docs/` are added to them.
const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];

/// The document with the code map.
const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// A path that ends so is meant to be a file, wherever its first directory is.
const FILE_EXTENSIONS: [&str; 5] = ["rs", "md", "toml", "yml", "snap"];

/// Checks everything; `commands` is the parser of `cargo xtask`.
///
/// # Errors
/// All that is wrong, a line each: document, line number, what.
pub(crate) fn check(commands: &Command) -> Result<()> {
    let root = left4me::workspace()?.root;
    let problems = problems(&root, commands)?;
    ensure!(problems.is_empty(), "\n  {}", problems.join("\n  "));
    Ok(())
}

fn problems(root: &Path, parser: &Command) -> Result<Vec<String>> {
    let repository = Repository::read(root)?;
    let mut problems = Vec::new();
    for document in &repository.documents {
        let text = read(&root.join(document))?;
        let shown = document.display();
        problems.extend(
            text_problems(&text, &repository, document, parser)
                .into_iter()
                .map(|(line, what)| format!("{shown}:{line}: {what}")),
        );
        if document == Path::new(ARCHITECTURE) {
            let gaps = code_map_gaps(&text, &repository.sources);
            problems.extend(gaps.into_iter().map(|what| format!("{shown}: {what}")));
        }
    }
    problems.extend(workflow_problems(&read(&root.join(workflow::FILE))?, parser));
    for source in &repository.sources {
        if !read(&root.join(source))?.starts_with("//!") {
            problems.push(format!("{}: does not begin with `//!`: say what the file is", source.display()));
        }
    }
    Ok(problems)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// What there is. All paths are relative to the root.
#[derive(Debug)]
struct Repository {
    root: PathBuf,
    /// The names in the root directory.
    top: Vec<String>,
    documents: Vec<PathBuf>,
    /// Every `.rs` file.
    sources: Vec<PathBuf>,
}

impl Repository {
    fn read(root: &Path) -> Result<Self> {
        let top = list(root)?.into_iter().map(|(name, _is_directory)| name).collect();
        let mut files = Vec::new();
        walk(root, Path::new(""), &mut files)?;
        let in_docs = |path: &&PathBuf| path.starts_with("docs") && has_extension(path, "md");
        let documents = DOCUMENTS.iter().map(PathBuf::from).chain(files.iter().filter(in_docs).cloned());
        let sources = files.iter().filter(|path| has_extension(path, "rs"));
        Ok(Self {
            root: root.to_owned(),
            top,
            documents: documents.collect(),
            sources: sources.cloned().collect(),
        })
    }

    fn has(&self, path: &Path) -> bool {
        self.root.join(path).exists()
    }

    /// Whether a path is there, or is the end of a source file's, as in the code map.
    fn names(&self, path: &Path) -> bool {
        self.has(path) || self.sources.iter().any(|source| source.ends_with(path))
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The names in a directory in their order, and whether each is a directory itself.
fn list(directory: &Path) -> Result<Vec<(String, bool)>> {
    let what = || format!("list {}", directory.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(what)? {
        let entry = entry.with_context(what)?;
        let is_directory = entry.file_type().with_context(what)?.is_dir();
        names.push((entry.file_name().to_string_lossy().into_owned(), is_directory));
    }
    names.sort();
    Ok(names)
}

/// Every file but what is built (`target`) and what is hidden.
fn walk(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for (name, is_directory) in list(&root.join(below))? {
        let path = below.join(&name);
        if !is_directory {
            files.push(path);
        } else if name != "target" && !name.starts_with('.') {
            walk(root, &path, files)?;
        }
    }
    Ok(())
}

/// What is wrong in a document, by line number.
fn text_problems(
    text: &str,
    repository: &Repository,
    document: &Path,
    parser: &Command,
) -> Vec<(usize, String)> {
    let mut problems = Vec::new();
    for (line, command) in commands(text) {
        if let Some(why) = refused(parser, &command) {
            problems.push((line, format!("`{command}`: {why}")));
        }
    }
    let beside = document.parent().unwrap_or(Path::new(""));
    for (line, target) in links(text) {
        if !repository.has(&beside.join(&target)) {
            problems.push((line, format!("a link leads to {target}, which is not there")));
        }
    }
    for (line, path) in code_spans(text)
        .into_iter()
        .filter_map(|(line, span)| repository_path(span, &repository.top).map(|path| (line, path)))
    {
        if !repository.names(Path::new(&path)) {
            problems.push((line, format!("`{path}` is not there")));
        }
    }
    problems.sort();
    problems
}

/// What is wrong in CI's workflow.
fn workflow_problems(text: &str, parser: &Command) -> Vec<String> {
    let wrong = workflow::commands(text).into_iter().filter_map(|(line, command)| {
        let why = refused(parser, &command)?;
        Some(format!("{}:{line}: `{command}`: {why}", workflow::FILE))
    });
    wrong.collect()
}

/// A document's lines with their numbers, and whether each is in a fenced block.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        Some((index + 1, line, fenced))
    })
}

/// What stands between single backticks, outside fenced blocks.
fn code_spans(text: &str) -> Vec<(usize, &str)> {
    lines(text)
        .filter(|(_, _, fenced)| !fenced)
        .flat_map(|(number, line, _)| line.split('`').skip(1).step_by(2).map(move |span| (number, span)))
        .collect()
}

/// The `cargo xtask` commands: lines of fenced blocks, and code spans in the text. `$ ` and settings of
/// variables before one are not part of it.
fn commands(text: &str) -> Vec<(usize, String)> {
    let fenced = lines(text).filter(|(_, _, fenced)| *fenced).map(|(number, line, _)| (number, line));
    let mut found: Vec<(usize, String)> = fenced
        .chain(code_spans(text))
        .filter_map(|(number, line)| Some((number, command(line)?.to_owned())))
        .collect();
    found.sort();
    found
}

fn command(line: &str) -> Option<&str> {
    let mut rest = line.trim().trim_start_matches("$ ");
    while let Some((word, after)) = rest.split_once(' ') {
        let is_setting = word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        });
        if !is_setting {
            break;
        }
        rest = after.trim_start();
    }
    // `cargo xtask …` speaks of all of them.
    (rest.starts_with("cargo xtask ") && !rest.contains('…')).then_some(rest)
}

/// Why the parser does not take a command, in its own words.
fn refused(parser: &Command, command: &str) -> Option<String> {
    let words = match words(command) {
        Some(words) => words,
        None => return Some("a quote is not closed".to_owned()),
    };
    // `cargo` and `xtask` are the program's name.
    let arguments = std::iter::once("cargo xtask".to_owned()).chain(words.into_iter().skip(2));
    let error = parser.clone().try_get_matches_from(arguments).err()?;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return None;
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Some(first.trim_start_matches("error: ").to_owned())
}

/// The words of a command line as a shell splits them, as far as documents need it: blanks, quotes, and an end
/// at a comment or an operator. `None` if a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | ';' | '&' | '>') => break,
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Where relative links lead to, without what follows `#`.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line, _) in lines(text).filter(|(_, _, fenced)| !fenced) {
        let inline = line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        let definition = line.strip_prefix('[').and_then(|rest| Some(rest.split_once("]: ")?.1));
        for target in inline.chain(definition) {
            let path = target.split('#').next().unwrap_or_default().trim();
            let is_relative = !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:");
            if is_relative {
                found.push((number, path.to_owned()));
            }
        }
    }
    found
}

/// The path that a code span names, if it looks like one of the repository: a Rust file's name, or relative, with a
/// slash in it, and it begins at the root or ends as a source file does. A part with a placeholder and all after it
/// is cut off.
fn repository_path(span: &str, top: &[String]) -> Option<String> {
    let span = span.trim_end_matches('/');
    let is_relative = !span.starts_with(['/', '.', '~', '$', '-', '<']) || span.starts_with(".ci/");
    if !is_relative || span.contains([' ', ':', '(', '=', '"']) || span.starts_with("target") {
        return None;
    }
    let Some((first, _)) = span.split_once('/') else {
        return span.ends_with(".rs").then(|| span.to_owned());
    };
    let is_file = Path::new(span)
        .extension()
        .is_some_and(|found| FILE_EXTENSIONS.iter().any(|extension| found == *extension));
    if !is_file && !top.iter().any(|name| name == first) {
        return None;
    }
    let plain: Vec<&str> = span.split('/').take_while(|part| !part.contains(['<', '*', '…', '{'])).collect();
    (!plain.is_empty()).then(|| plain.join("/"))
}

/// What the code map lacks, and what it has too much.
///
/// The code map is the section `## Code map`. Below it, a directory of sources has a heading with its path in
/// backticks (`### ... holders/src`), and each item below that begins with the files it is about.
fn code_map_gaps(text: &str, sources: &[PathBuf]) -> Vec<String> {
    let map: Vec<(&str, Vec<&str>)> = code_map(text);
    let mut gaps = Vec::new();
    let mut directories: Vec<PathBuf> = sources.iter().filter_map(|path| source_directory(path)).collect();
    directories.dedup();
    for directory in &directories {
        let shown = directory.display().to_string();
        let Some((_, named)) = map.iter().find(|(heading, _)| *heading == shown) else {
            gaps.push(format!("the code map has no heading for `{shown}`"));
            continue;
        };
        let there: Vec<String> = sources
            .iter()
            .filter(|path| source_directory(path).as_ref() == Some(directory))
            .filter_map(|path| Some(path.strip_prefix(directory).ok()?.display().to_string()))
            .collect();
        for name in there.iter().filter(|name| !named.contains(&name.as_str())) {
            gaps.push(format!("the code map does not name `{shown}/{name}`"));
        }
        for name in named.iter().filter(|name| !there.iter().any(|there| there == *name)) {
            gaps.push(format!("the code map names `{shown}/{name}`, which is not there"));
        }
    }
    gaps
}

/// The `src` directory that a file belongs to, which is a crate's; `None` for a file of tests.
fn source_directory(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|above| above.file_name().is_some_and(|name| name == "src")).map(Path::to_owned)
}

/// The code map's headings and the files that are named below each.
fn code_map(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut map: Vec<(&str, Vec<&str>)> = Vec::new();
    let inside = lines(text)
        .skip_while(|(_, line, _)| *line != "## Code map")
        .skip(1)
        .take_while(|(_, line, _)| !line.starts_with("## "));
    for (_, line, _) in inside {
        let spans = || line.split('`').skip(1).step_by(2);
        if line.starts_with("### ") {
            map.extend(spans().next().map(|heading| (heading, Vec::new())));
        } else if line.starts_with("- ")
            && let Some((_, named)) = map.last_mut()
        {
            let names = line.split_once(": ").map_or(line, |(names, _)| names);
            named.extend(names.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    const TEXT: &str = "\
# Title with `cargo xtask doctor`
```sh
$ cargo xtask vm-test 936c8bb   # the bug
VM_TESTS_MIRROR=http://m/x cargo xtask image --image sid
cargo xtask vm-test --cycels 3
cargo xtask …
make
```
See [the map](ARCHITECTURE.md#code-map), [the web](https://example.org/x) and [here](#title), not [that](docs/none.md).
[one]: docs/one.md
The files are `xtask/src/cli.rs`, `vm-tests/scenarios/<name>/files` and `target/vm-test/x.rs`.
";

    #[test]
    fn commands_are_found_and_parsed() {
        let found = commands(TEXT);
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 3, 4, 5]);
        let wrong: Vec<_> = found
            .iter()
            .filter_map(|(line, command)| Some((line, refused(&Cli::command(), command)?)))
            .collect();
        assert_eq!(wrong, [(&5, "unexpected argument '--cycels' found".to_owned())]);
        assert_eq!(refused(&Cli::command(), "cargo xtask --help"), None);
        assert!(refused(&Cli::command(), "cargo xtask frobnicate").is_some());
        assert!(refused(&Cli::command(), "cargo xtask image --image potato").is_some());
        assert!(refused(&Cli::command(), "cargo xtask vm-test 'x").expect("no").contains("quote"));
    }

    #[test]
    fn a_command_of_the_workflow_that_is_none_is_named() {
        let text = "  run: .ci/run --no-sweet\n  run: .ci/run --no-suite\n  run: true\n";
        let expected = ".github/workflows/ci.yml:1: `cargo xtask check --no-sweet`: unexpected argument '--no-sweet' found";
        assert_eq!(workflow_problems(text, &Cli::command()), [expected]);
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        let cases: [(&str, &[&str]); 5] = [
            ("a  b", &["a", "b"]),
            ("a 'b c' \"d\"e", &["a", "b c", "de"]),
            ("a # b", &["a"]),
            ("a b#c && d", &["a", "b#c"]),
            ("a ''", &["a", ""]),
        ];
        for (line, expected) in cases {
            assert_eq!(words(line).expect("closed"), expected, "{line}");
        }
        assert_eq!(words("a \"b"), None);
    }

    #[test]
    fn only_relative_links_count() {
        let expected = [(9, "ARCHITECTURE.md"), (9, "docs/none.md"), (10, "docs/one.md")];
        assert_eq!(links(TEXT), expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn paths_of_the_repository_are_told_from_others() {
        let top = ["xtask", "vm-tests", "docs"].map(str::to_owned);
        let cases = [
            ("xtask/src/cli.rs", Some("xtask/src/cli.rs")),
            ("vm-tests/scenarios/<name>/files/", Some("vm-tests/scenarios")),
            ("docs/", None),
            ("gone/src/lib.rs", Some("gone/src/lib.rs")),
            (".ci/run", None),
            ("target/vm-test/x.rs", None),
            ("/var/lib/x.toml", None),
            ("<name>/scenario.toml", None),
            ("start/reset", None),
            ("vm-tests/tests scenarios", None),
            ("cli.rs", Some("cli.rs")),
            ("report.json", None),
        ];
        for (span, expected) in cases {
            assert_eq!(repository_path(span, &top).as_deref(), expected, "{span}");
        }
        let dotted = [".ci".to_owned()];
        assert_eq!(repository_path(".ci/run", &dotted).as_deref(), Some(".ci/run"));
    }

    #[test]
    fn the_code_map_is_compared_both_ways() {
        let text = "\
## Code map
### `a/src`: one
- `lib.rs`, `x/y.rs`: what; not `other.rs`
- `gone.rs`: what
## Next
### `b/src`
- `lib.rs`: what
";
        let sources = ["a/src/lib.rs", "a/src/new.rs", "a/src/x/y.rs", "a/tests/t.rs", "b/src/lib.rs"];
        let gaps = code_map_gaps(text, &sources.map(PathBuf::from));
        let expected = [
            "the code map does not name `a/src/new.rs`",
            "the code map names `a/src/gone.rs`, which is not there",
            "the code map has no heading for `b/src`",
        ];
        assert_eq!(gaps, expected);
    }

    #[test]
    fn this_repositorys_code_map_is_whole() {
        let root = left4me::workspace().expect("the workspace").root;
        let repository = Repository::read(&root).expect("the repository");
        let text = read(&root.join(ARCHITECTURE)).expect(ARCHITECTURE);
        assert_eq!(code_map_gaps(&text, &repository.sources), Vec::<String>::new());
    }

    #[test]
    fn the_program_in_the_documents_is_the_examples() {
        let root = left4me::workspace().expect("the workspace").root;
        let text = read(&root.join("docs/running.md")).expect("the document");
        let program = read(&root.join("vm-tests/examples/elsewhere/src/main.rs")).expect("the program");
        let (_, block) = text.split_once("```rust\n").expect("a block of Rust");
        let (shown, _) = block.split_once("```").expect("its end");
        assert!(program.ends_with(shown), "docs/running.md shows another program:\n{shown}");
    }
}
