//! A manifest's values, each with the file and the place where it stands: what is laid over a base keeps its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;

/// A manifest's text.
#[derive(Debug)]
pub(super) struct Source {
    /// The file as a user would name it.
    pub(super) shown: String,
    /// The directory that its paths are relative to, absolute.
    pub(super) directory: PathBuf,
    text: String,
}

/// A place in a manifest.
#[derive(Debug, Clone)]
pub(super) struct At {
    pub(super) source: Rc<Source>,
    /// In bytes.
    offset: usize,
}

impl At {
    /// Something is wrong here.
    pub(super) fn problem(&self, what: String) -> Problem {
        let text = self.source.text.get(..self.offset).unwrap_or(&self.source.text);
        let line = text.rsplit('\n').next().unwrap_or_default();
        Problem {
            file: self.source.shown.clone(),
            line: text.matches('\n').count() + 1,
            column: line.chars().count() + 1,
            what,
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// As TOML has them.
#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    /// Each value with the place of its key.
    Table(BTreeMap<String, (At, Node)>),
}

/// Reads a manifest.
///
/// # Errors
/// All that is no TOML.
pub(super) fn parse(file: &Path, shown: String, text: String) -> Result<Node, Vec<Problem>> {
    let whole = file.canonicalize().unwrap_or(file.to_owned());
    let directory = whole.parent().unwrap_or(Path::new("")).to_owned();
    let source = Rc::new(Source { shown, directory, text });
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            At { source: Rc::clone(&source), offset }.problem(error.message().to_owned())
        })
        .collect();
    let at = At { source: Rc::clone(&source), offset: 0 };
    let root = Node { at, value: of_table(table.get_ref(), &source, &mut problems) };
    if problems.is_empty() { Ok(root) } else { Err(problems) }
}

fn of_table(table: &DeTable<'_>, source: &Rc<Source>, problems: &mut Vec<Problem>) -> Value {
    let entries = table.iter().map(|(key, value)| {
        let at = At { source: Rc::clone(source), offset: key.span().start };
        (key.get_ref().to_string(), (at, of_value(value, source, problems)))
    });
    Value::Table(entries.collect())
}

fn of_value(value: &Spanned<DeValue<'_>>, source: &Rc<Source>, problems: &mut Vec<Problem>) -> Node {
    let at = At { source: Rc::clone(source), offset: value.span().start };
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(why) => {
                problems.push(at.problem(format!("{number}: {why}")));
                Value::Integer(0)
            }
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        // No key is one.
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| of_value(item, source, problems)).collect())
        }
        DeValue::Table(table) => of_table(table, source, problems),
    };
    Node { at, value }
}

impl Node {
    /// The value of a key, where this is a table that has it.
    pub(super) fn entry(&mut self, name: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Table(table) => table.get_mut(name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Where the value at a path stands, as `deploy.trees[0]` (see [`join`]), or the nearest above it that is there.
    pub(super) fn place_of(&self, path: &str) -> &At {
        let (mut node, mut rest) = (self, path);
        while !rest.is_empty() {
            let next = match &node.value {
                Value::Array(items) => rest.strip_prefix('[').and_then(|rest| {
                    let (index, rest) = rest.split_once(']')?;
                    Some((items.get(index.parse::<usize>().ok()?)?, rest.trim_start_matches('.')))
                }),
                // The longest name first: one may have a dot in it.
                Value::Table(entries) => entries.iter().rev().find_map(|(name, (_, node))| {
                    let rest = rest.strip_prefix(&*shown_key(name))?;
                    let ends = rest.is_empty() || rest.starts_with(['.', '[']);
                    ends.then_some((node, rest.trim_start_matches('.')))
                }),
                _ => None,
            };
            let Some(found) = next else { break };
            (node, rest) = found;
        }
        &node.at
    }
}

/// The path of a key below another path.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = shown_key(key);
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A key as TOML has it: bare, or in quotes.
fn shown_key(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("{key:?}") }
}
