//! JSON objects with distinct keys.
//!
//! What lives here: objects that refuse a key that comes twice (serde_json keeps the last one, which
//! hides conflicts in headers and indices), by key or in the file's order. What does not: what the
//! values mean.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A JSON object whose keys are all different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Distinct<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Distinct<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Distinct<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if seen.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("{key:?} is there twice")));
                    }
                    seen.insert(key, map.next_value()?);
                }
                Ok(Distinct(seen))
            }
        }

        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// A JSON object whose keys are all different, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InOrder<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = InOrder<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut seen, mut entries) = (BTreeSet::new(), Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("{key:?} is there twice")));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(InOrder(entries))
            }
        }

        deserializer.deserialize_map(Keys(PhantomData))
    }
}
