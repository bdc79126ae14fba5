//! Provenance: what a lease held, as a record to keep.
//!
//! What lives here: the owned record, how it prints and how it is serialised. What does not: making
//! one (`Lease::provenance`), identities and cache keys themselves (`identity`).

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::handle::{Generation, SetHandle, SetKind};
use crate::identity::{CacheKey, Identity};
use crate::names::SetName;

/// Which weights a request was computed with: what an audit log keeps of a lease. It holds neither
/// bytes nor a lease, however long it is kept.
///
/// Printed, it has a line for each set. Serialised, it is
/// `{"number", "cache_key", "sets": [{"namespace", "name", "kind", "generation", "identity",
/// "handle", "base"}]}`, where `base` is null or `{"namespace", "name", "generation", "handle"}`,
/// with null for the names of a base that was not in the lease. Keys are added, never changed.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let set = registry.publish("s", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
/// let record = registry.acquire(set)?.provenance();
/// assert_eq!(record.sets[0].name.name(), "s");
/// assert!(record.to_string().starts_with("\"s\" generation 1, checkpoint, blake3:"));
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// The commit as of which all sets were current together.
    pub number: Generation,
    /// The lease's [`cache_key`](crate::Lease::cache_key).
    pub cache_key: CacheKey,
    /// The sets, in the order in which they were leased.
    pub sets: Vec<SetProvenance>,
}

/// One set of a [`Provenance`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetProvenance {
    /// Its name.
    pub name: SetName,
    /// Its handle.
    pub handle: SetHandle,
    /// Checkpoint or adapter.
    pub kind: SetKind,
    /// The leased generation.
    pub generation: Generation,
    /// What that generation is.
    pub identity: Identity,
    /// What an adapter stands on.
    pub base: Option<BaseProvenance>,
}

/// The base that an adapter's generation is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseProvenance {
    /// The base set.
    pub handle: SetHandle,
    /// The generation of it that the adapter was checked against.
    pub generation: Generation,
    /// Its name, if it was in the same lease.
    pub name: Option<SetName>,
}

impl fmt::Display for Provenance {
    /// One line for each set; names are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, set) in self.sets.iter().enumerate() {
            if index != 0 {
                f.write_str("\n")?;
            }
            write!(f, "{set}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SetProvenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SetProvenance {
            name,
            kind,
            generation,
            identity,
            base,
            ..
        } = self;
        // A declared revision is the caller's text.
        let identity = identity.to_string();
        write!(
            f,
            "{name:?} generation {generation}, {kind}, {}",
            identity.escape_debug()
        )?;
        let Some(base) = base else { return Ok(()) };
        match &base.name {
            Some(name) => write!(f, ", on {name:?} generation {}", base.generation),
            None => write!(f, ", on {} generation {}", base.handle, base.generation),
        }
    }
}

impl Serialize for Provenance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("Provenance", 3)?;
        record.serialize_field("number", &self.number.number())?;
        record.serialize_field("cache_key", &self.cache_key.to_string())?;
        record.serialize_field("sets", &self.sets)?;
        record.end()
    }
}

impl Serialize for SetProvenance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("SetProvenance", 7)?;
        record.serialize_field("namespace", self.name.namespace())?;
        record.serialize_field("name", self.name.name())?;
        record.serialize_field("kind", &self.kind.to_string())?;
        record.serialize_field("generation", &self.generation.number())?;
        record.serialize_field("identity", &self.identity.to_string())?;
        record.serialize_field("handle", &self.handle.to_string())?;
        record.serialize_field("base", &self.base)?;
        record.end()
    }
}

impl Serialize for BaseProvenance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("BaseProvenance", 4)?;
        record.serialize_field("namespace", &self.name.as_ref().map(SetName::namespace))?;
        record.serialize_field("name", &self.name.as_ref().map(SetName::name))?;
        record.serialize_field("generation", &self.generation.number())?;
        record.serialize_field("handle", &self.handle.to_string())?;
        record.end()
    }
}
