//! An option's value, as far as it matters: what is in a list or a table is read and forgotten.
//!
//! What lives here: [`Setting`]. What does not: what an option means (`config`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::super::header::shown;

/// An option's value, as far as it matters.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Setting {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    /// Is there something in it?
    List(bool),
    Table(bool),
}

impl Setting {
    /// `null`, `false`, nothing in it.
    pub(super) fn is_off(&self) -> bool {
        match self {
            Setting::Null => true,
            Setting::Flag(flag) => !flag,
            Setting::List(filled) | Setting::Table(filled) => !filled,
            Setting::Text(text) => text.is_empty(),
            Setting::Number(_) => false,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Null => f.write_str("null"),
            Setting::Flag(flag) => flag.fmt(f),
            Setting::Number(number) => number.fmt(f),
            Setting::Text(text) => write!(f, "{:?}", shown(text)),
            Setting::List(filled) => f.write_str(if *filled { "[…]" } else { "[]" }),
            Setting::Table(filled) => f.write_str(if *filled { "{…}" } else { "{}" }),
        }
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Setting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Setting, E> {
                Ok(Setting::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Setting, E> {
                Ok(Setting::Flag(flag))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Setting, E> {
                Ok(Setting::Number(number as f64))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Setting, E> {
                Ok(Setting::Number(number as f64))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Setting, E> {
                Ok(Setting::Number(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Setting, E> {
                Ok(Setting::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Setting, A::Error> {
                let mut filled = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    filled = true;
                }
                Ok(Setting::List(filled))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Setting, A::Error> {
                let mut filled = false;
                while table.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    filled = true;
                }
                Ok(Setting::Table(filled))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
