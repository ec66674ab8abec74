//! Makes a value of a manifest's tree by serde and, where it can't, goes on: all that is wrong is reported at once.
//!
//! serde ends at the first error. So what was wrong is noted and left out, what is missing is filled in, and serde begins
//! anew, until nothing is wrong any more. What is known of the types (keys, defaults, words) is in their `Deserialize`
//! alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::inherit::BASE;
use super::problem::{Problem, instead};
use super::tree::{At, Node, Value, join};

/// What was found.
#[derive(Debug)]
pub(super) struct Decoded<T> {
    /// The value, with what is wrong left out. `None` where nothing is left.
    pub(super) value: Option<T>,
    /// All that is wrong.
    pub(super) problems: Vec<Problem>,
    /// The paths of what was left out or filled in: of these, nothing more is to be said.
    pub(super) without: BTreeSet<String>,
}

/// Makes a value of a tree. `keys` are the names of all keys that there are, by the path of their table, to tell where a key
/// belongs that stands in the wrong one.
pub(super) fn decode<T: DeserializeOwned>(root: &Node, keys: &BTreeMap<String, Vec<String>>) -> Decoded<T> {
    let notes = RefCell::new(Notes::default());
    let value = loop {
        let decoder = Decoder { node: root, path: String::new(), notes: &notes, keys };
        let error = match T::deserialize(decoder) {
            Ok(value) => break Some(value),
            Err(error) => error.at(&root.at, ""),
        };
        let mut notes = notes.borrow_mut();
        let Some((at, path)) = error.place else { break None };
        let again = match error.fault {
            Fault::Missing(name) => {
                let path = join(&path, name);
                // What was left out for another reason is there.
                if !notes.left_out.contains(&path) {
                    notes.problems.push(at.problem(format!("{path}: missing")));
                }
                notes.filled.insert(path)
            }
            // What stands for it is no value of its type either.
            Fault::Wrong(_) if notes.left_out.contains(&path) => notes.dropped.insert(path),
            Fault::Wrong(what) => {
                let shown = if path.is_empty() { what } else { format!("{path}: {what}") };
                notes.problems.push(at.problem(shown));
                !path.is_empty() && notes.left_out.insert(path)
            }
        };
        if !again {
            break None;
        }
    };
    let Notes { problems, left_out, filled, .. } = notes.into_inner();
    Decoded { value, problems, without: left_out.into_iter().chain(filled).collect() }
}

/// What has been found so far, by paths.
#[derive(Debug, Default)]
struct Notes {
    problems: Vec<Problem>,
    left_out: BTreeSet<String>,
    /// Of what was left out, the items that nothing can stand for.
    dropped: BTreeSet<String>,
    filled: BTreeSet<String>,
}

/// Why serde stopped.
#[derive(Debug)]
struct Error {
    fault: Fault,
    place: Option<(At, String)>,
}

#[derive(Debug)]
enum Fault {
    Missing(&'static str),
    Wrong(String),
}

impl Error {
    /// Where it is, unless that is known more exactly.
    fn at(mut self, at: &At, path: &str) -> Self {
        self.place.get_or_insert_with(|| (at.clone(), path.to_owned()));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::Missing(name) => write!(f, "{name} is missing"),
            Fault::Wrong(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { fault: Fault::Wrong(what.to_string()), place: None }
    }

    fn missing_field(name: &'static str) -> Self {
        Self { fault: Fault::Missing(name), place: None }
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::custom(format!("{word:?}: {}", instead(word, known.iter().copied())))
    }

    fn invalid_type(is: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let list = ["a sequence", "a list"].iter().any(|words| wanted.to_string().starts_with(words));
        let hint = match is {
            Unexpected::Str(text) if list => {
                let words: Vec<&str> = text.split_whitespace().collect();
                format!(": write {words:?}")
            }
            Unexpected::Map if list => ": write [[…]] with two brackets, or […]".to_owned(),
            _ => String::new(),
        };
        Self::custom(format!("{} where {} is wanted{hint}", found(is), in_toml(wanted)))
    }

    fn invalid_value(is: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        match is {
            Unexpected::Signed(number) => Self::custom(format!("{number}: give {}", in_toml(wanted))),
            is => Self::custom(format!("{} where {} is wanted", found(is), in_toml(wanted))),
        }
    }
}

/// What stands there, in a manifest's words.
fn found(is: Unexpected<'_>) -> String {
    match is {
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// What serde expects, in a manifest's words.
fn in_toml(wanted: &dyn Expected) -> String {
    match wanted.to_string().as_str() {
        text if matches!(text, "a string" | "path string") || text.starts_with("enum ") => {
            "a text in quotes".to_owned()
        }
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => "a whole number from 0".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        text if text == "a map" || text.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

/// A value that serde reads.
#[derive(Debug, Clone)]
struct Decoder<'a> {
    node: &'a Node,
    path: String,
    notes: &'a RefCell<Notes>,
    keys: &'a BTreeMap<String, Vec<String>>,
}

impl<'a> Decoder<'a> {
    fn child(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, ..self.clone() }
    }

    fn is_left_out(&self, path: &str) -> bool {
        self.notes.borrow().left_out.contains(path)
    }

    /// The entries of a table that are to be read: those of a struct's fields, or all.
    fn entries(&self, fields: Option<&'static [&'static str]>) -> Entries<'a> {
        let Value::Table(table) = &self.node.value else {
            return Entries { here: self.clone(), entries: Vec::new(), value: None };
        };
        let mut entries: Vec<Entry<'a>> = Vec::new();
        for (name, (key, node)) in table {
            let path = join(&self.path, name);
            if self.is_left_out(&path) {
                continue;
            }
            match fields {
                Some(fields) if !fields.contains(&name.as_str()) => {
                    let what = format!("{path}: unknown key: {}", self.meant(name, fields));
                    let mut notes = self.notes.borrow_mut();
                    notes.problems.push(key.problem(what));
                    notes.left_out.insert(path);
                }
                _ => entries.push((name.clone(), Some((key, node)))),
            }
        }
        let notes = self.notes.borrow();
        let filled =
            fields.into_iter().flatten().filter(|name| notes.filled.contains(&join(&self.path, name)));
        entries.extend(filled.map(|name| ((*name).to_owned(), None)));
        Entries { here: self.clone(), entries, value: None }
    }

    /// Where an unknown key belongs, or what there is.
    fn meant(&self, name: &str, here: &[&'static str]) -> String {
        let elsewhere = self.keys.iter().find(|(_, names)| names.iter().any(|one| one == name));
        match elsewhere {
            Some((table, _)) if table.is_empty() => {
                "it is a key of no table: write it above the first [table]".to_owned()
            }
            Some((table, _)) => format!("it is a key of {table}"),
            None => {
                // Which is read before anything else.
                let base = self.path.is_empty().then_some(BASE);
                let mut here: Vec<&str> = here.iter().copied().chain(base).collect();
                here.sort_unstable();
                instead(name, here)
            }
        }
    }
}

impl<'de> Deserializer<'de> for Decoder<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Array(items) => visitor.visit_seq(Items { here: self.clone(), items, next: 0 }),
            Value::Table(_) => visitor.visit_map(self.entries(None)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Table(_) => visitor.visit_map(self.entries(Some(fields))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Table(_) => visitor.visit_enum(MapAccessDeserializer::new(self.entries(None))),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// The items of a list.
struct Items<'a> {
    here: Decoder<'a>,
    items: &'a [Node],
    next: usize,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let (item, path) = loop {
            let Some(item) = self.items.get(self.next) else { return Ok(None) };
            let path = format!("{}[{}]", self.here.path, self.next);
            self.next += 1;
            if !self.here.notes.borrow().dropped.contains(&path) {
                break (item, path);
            }
        };
        let value = match self.here.is_left_out(&path) {
            false => seed.deserialize(self.here.child(item, path.clone())),
            // Its place is kept: the others have their numbers by it.
            true => seed.deserialize(Filler),
        };
        value.map(Some).map_err(|error| error.at(&item.at, &path))
    }
}

/// The entries of a table; one without a value is filled in.
struct Entries<'a> {
    here: Decoder<'a>,
    entries: Vec<Entry<'a>>,
    value: Option<Entry<'a>>,
}

/// A key and, unless it is filled in, its place and its value.
type Entry<'a> = (String, Option<(&'a At, &'a Node)>);

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.pop() else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = entry.0.as_str().into_deserializer();
        let key = seed.deserialize(key).map_err(|error| match entry.1 {
            Some((at, _)) => error.at(at, &join(&self.here.path, &entry.0)),
            None => error,
        })?;
        self.value = Some(entry);
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, node) = self.value.take().ok_or_else(|| Error::custom("a value without a key"))?;
        let path = join(&self.here.path, &name);
        match node {
            Some((_, node)) => seed
                .deserialize(self.here.child(node, path.clone()))
                .map_err(|error| error.at(&node.at, &path)),
            None => seed.deserialize(Filler).map_err(|error| error.at(&self.here.node.at, &path)),
        }
    }
}

/// Stands for what is missing: empty, zero or false.
struct Filler;

impl IntoDeserializer<'_, Error> for Filler {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Filler {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(SeqDeserializer::<_, Error>::new(std::iter::empty::<u8>()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let none = std::iter::empty::<(&str, u8)>();
        visitor.visit_map(MapDeserializer::<_, Error>::new(none))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(MapDeserializer::new(fields.iter().map(|name| (*name, Self))))
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(0)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(0)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(0)
    }

    forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct
        newtype_struct enum identifier ignored_any
    }
}
