//! JSON as it is written: members in their order, those that are there twice included.
//!
//! What lives here: a value that the bodies' own readings of documents begin with. What does not: what a
//! document means. (`serde_json::Value` sorts members and keeps the last of equal ones.)

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

#[derive(Debug, Clone, PartialEq)]
pub enum Ordered {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    List(Vec<Ordered>),
    Table(Vec<(String, Ordered)>),
}

/// The members of a document that is an object; `None` if it is none.
pub fn members(document: &[u8]) -> Option<Vec<(String, Ordered)>> {
    match serde_json::from_slice(document) {
        Ok(Ordered::Table(members)) => Some(members),
        _ => None,
    }
}

/// The only member of this name; `None` if there is none, or more than one.
pub fn only<'m>(members: &'m [(String, Ordered)], name: &str) -> Option<&'m Ordered> {
    let mut found = members.iter().filter(|(key, _)| key == name);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}

/// Is no name there twice?
pub fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> bool {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Ordered;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Ordered, E> {
        Ok(Ordered::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Ordered, E> {
        Ok(Ordered::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Ordered, E> {
        Ok(Ordered::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Ordered, E> {
        Ok(Ordered::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Ordered, E> {
        Ok(Ordered::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ordered, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Ordered::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Ordered, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = table.next_entry()? {
            members.push(member);
        }
        Ok(Ordered::Table(members))
    }
}
