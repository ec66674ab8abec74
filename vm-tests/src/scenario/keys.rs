//! Which keys a manifest has: asked of the types that serde reads it into, so that no list is kept beside them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::inherit::BASE;
use super::manifest::Manifest;
use super::tree::join;

/// The keys of a manifest by the path of their table, which is empty for those in none.
#[must_use]
pub fn keys() -> BTreeMap<String, Vec<String>> {
    let mut keys = of::<Manifest>();
    keys.entry(String::new()).or_default().push(BASE.to_owned());
    keys.values_mut().for_each(|names| names.sort());
    keys
}

/// The name of a table that has any: one of a map, as `expect.exec.*`.
pub(super) const ANY: &str = "*";

/// What a map takes as a key: anything, or an Exec line.
const TAKEN: [&str; 2] = [ANY, "ExecStart"];

/// Asks for the struct at each path, the outermost first. A list of tables has the path of its key.
fn of<T: DeserializeOwned>() -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    // What leads there, and its name.
    let mut paths: Vec<(Vec<&'static str>, String)> = vec![Default::default()];
    while let Some((path, table)) = paths.pop() {
        let asked = RefCell::new(None);
        // It never succeeds: what it asked for is noted.
        if T::deserialize(Probe { path: &path, asked: &asked }).is_ok() {
            continue;
        }
        let below = |name: &'static str| [&path[..], &[name]].concat();
        match asked.take() {
            Some(Asked::Fields(names)) => {
                paths.extend(names.iter().map(|name| (below(name), join(&table, name))));
                all.insert(table, names.iter().map(|name| (*name).to_owned()).collect());
            }
            Some(Asked::Map) => {
                paths.extend(TAKEN.into_iter().map(|name| (below(name), format!("{table}.{ANY}"))));
            }
            None => {}
        }
    }
    all
}

/// What a type asks for at the end of a path.
enum Asked {
    Fields(&'static [&'static str]),
    Map,
}

/// Leads serde to one key and notes what is asked for there.
#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [&'static str],
    asked: &'a RefCell<Option<Asked>>,
}

/// The probe has seen what there is to see.
#[derive(Debug)]
struct Seen;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seen")
    }
}

impl std::error::Error for Seen {}

impl serde::de::Error for Seen {
    fn custom<T: fmt::Display>(_what: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Seen;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Seen> {
        Err(Seen)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Seen> {
        match self.path {
            [] => {
                self.asked.replace(Some(Asked::Fields(fields)));
                Err(Seen)
            }
            _ => visitor.visit_map(self),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Seen> {
        match self.path {
            [] => {
                self.asked.replace(Some(Asked::Map));
                Err(Seen)
            }
            _ => visitor.visit_map(self),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Seen> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Seen> {
        visitor.visit_seq(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Seen;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Seen> {
        let name = self.path.first().ok_or(Seen)?;
        let key: StrDeserializer<'_, Seen> = (*name).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Seen> {
        let path = self.path.get(1..).unwrap_or_default();
        seed.deserialize(Probe { path, ..*self })
    }
}

impl<'de> SeqAccess<'de> for Probe<'_> {
    type Error = Seen;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Seen> {
        seed.deserialize(*self).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_found() {
        let keys = keys();
        let tables: Vec<&str> = keys.keys().map(String::as_str).collect();
        for table in ["", "check", "deploy", "expect", "expect.exec.*", "expect.other_mounts.*", "history"] {
            assert!(tables.contains(&table), "{table} is not in {tables:?}");
        }
        for (table, name) in
            [("", "unit"), ("", "base"), ("deploy", "text"), ("expect", "verdict"), ("history", "step")]
        {
            assert!(keys[table].iter().any(|one| one == name), "{table}.{name}");
        }
        assert!(!keys["expect"].iter().any(|one| one == "unit"), "what a manifest does not give");
    }
}
