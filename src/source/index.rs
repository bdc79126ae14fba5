//! The index of a sharded checkpoint: which tensor is in which file.
//!
//! What lives here: `model.safetensors.index.json`, read within bounds. What does not: opening the
//! shards (`checkpoint`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Component, Path};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::file::{SourceFile, malformed};
use super::guard::Refusal;
use super::header::{NAME_CAP, check_name, shown};
use super::json;
use super::options::OpenOptions;
use super::scan::{Scan, WEIGHT_MAP};
use crate::error::Error;

/// Longest index in bytes.
const INDEX_CAP: u64 = 64 << 20;
/// Most shards.
const SHARD_CAP: usize = 4096;
/// Longest name of a shard in bytes: what file systems have.
const SHARD_NAME_CAP: usize = 255;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By file name, its number.
    pub(super) shards: BTreeMap<Box<str>, usize>,
    /// By tensor, the number of its shard.
    pub(super) tensors: HashMap<Box<str>, usize>,
}

impl Index {
    pub(super) fn read(file: &SourceFile, options: &OpenOptions) -> Result<Self, Error> {
        let refusal = Refusal::default();
        let table = Table {
            path: file.path(),
            refusal: &refusal,
        };
        let scan = Scan::index(options.tensors);
        let document = file.small(INDEX_CAP)?;
        json::read(file.path(), &document, &scan, &refusal, Whole(table))
    }

    /// The file name of a shard.
    pub(super) fn shard(&self, number: usize) -> Option<&str> {
        let mut shards = self.shards.iter();
        shards.find_map(|(name, &its)| (its == number).then_some(&**name))
    }
}

/// The whole document.
struct Whole<'a>(Table<'a>);

/// Its `weight_map`.
struct Table<'a> {
    path: &'a Path,
    refusal: &'a Refusal,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a {WEIGHT_MAP}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut table = Some(self.0);
        let mut index = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != WEIGHT_MAP {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let Some(table) = table.take() else {
                return Err(A::Error::custom(format_args!("{key:?} is there twice")));
            };
            index = Some(map.next_value_seed(table)?);
        }
        index.ok_or_else(|| A::Error::missing_field(WEIGHT_MAP))
    }
}

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = Index::default();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            let stop = |reason: String| {
                self.refusal.stop(Error::Malformed {
                    file: self.path.to_owned(),
                    tensor: Some(shown(&tensor)),
                    reason,
                })
            };
            check_name(&tensor, NAME_CAP).map_err(stop)?;
            if !is_plain(&shard) {
                let shard = shown(&shard);
                return Err(stop(format!(
                    "is in the shard {shard:?}; a shard is a file name without a path"
                )));
            }
            let next = index.shards.len();
            if next == SHARD_CAP && !index.shards.contains_key(&*shard) {
                let reason = format!("names more than {SHARD_CAP} shards");
                return Err(self.refusal.stop(malformed(self.path, reason)));
            }
            let number = *index.shards.entry(shard.into()).or_insert(next);
            if index.tensors.contains_key(&*tensor) {
                return Err(stop("is there twice".to_owned()));
            }
            index.tensors.insert(tensor.into(), number);
        }
        Ok(index)
    }
}

/// A shard is a file in the checkpoint's own directory.
fn is_plain(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) && check_name(shard, SHARD_NAME_CAP).is_ok()
        && !shard.contains(['/', '\\'])
}
