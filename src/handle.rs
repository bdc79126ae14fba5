//! Handles, kinds of sets and generation numbers: plain `Copy` values that name things in a registry.
//!
//! What lives here: the integers and how they print. What does not: resolving them (`core`,
//! `registry`), and names (`names`).

use std::fmt;

use serde::{Serialize, Serializer};

/// Names a set in one registry for as long as the set is published.
///
/// A handle is 12 bytes: the registry it belongs to, the slot the set sits in, and the tag that
/// tells successive tenants of that slot apart. A handle of a retired set, or of another registry,
/// resolves to an error; it never means another set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetHandle {
    pub(crate) registry: u32,
    pub(crate) slot: u32,
    pub(crate) tag: u32,
}

impl SetHandle {
    /// What a registry's names say of it.
    pub(crate) fn packed(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.tag)
    }

    /// What `packed` was in `registry`.
    #[inline]
    pub(crate) fn unpacked(registry: u32, packed: u64) -> Self {
        let (slot, tag) = ((packed >> 32) as u32, packed as u32);
        SetHandle {
            registry,
            slot,
            tag,
        }
    }

    /// The handle of tensor `ordinal` of this set.
    pub(crate) fn weight(self, ordinal: u32) -> WeightHandle {
        WeightHandle { set: self, ordinal }
    }
}

impl fmt::Debug for SetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set {}:{}#{}", self.registry, self.slot, self.tag)
    }
}

impl fmt::Display for SetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// As it prints, which is for people and for comparing: nothing reads it back.
impl Serialize for SetHandle {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Names one tensor of a set: a set handle and an ordinal, 16 bytes.
///
/// Ordinals are given by tensor name and only ever appended during the life of the set. A handle
/// that was made before a swap therefore means the same tensor after it; where the new generation
/// lacks the tensor, reading it is an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightHandle {
    pub(crate) set: SetHandle,
    pub(crate) ordinal: u32,
}

impl WeightHandle {
    /// The set this tensor belongs to.
    pub fn set(self) -> SetHandle {
        self.set
    }

    /// The tensor's ordinal in its set: dense, append-only, never reused.
    pub fn ordinal(self) -> u32 {
        self.ordinal
    }
}

impl fmt::Debug for WeightHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {} of {:?}", self.ordinal, self.set)
    }
}

impl fmt::Display for WeightHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What kind of set this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SetKind {
    /// Weights that stand on their own: a checkpoint, or tensors registered alone.
    Checkpoint,
    /// A LoRA adapter, bound to a base set.
    Adapter,
}

impl SetKind {
    /// Whoever is bound to a base is an adapter.
    pub(crate) fn of(base: Option<SetHandle>) -> Self {
        match base {
            Some(_) => SetKind::Adapter,
            None => SetKind::Checkpoint,
        }
    }
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SetKind::Checkpoint => "checkpoint",
            SetKind::Adapter => "adapter",
        })
    }
}

/// One immutable version of a set: the number of the commit that made it current.
///
/// One clock numbers the commits of a registry, so generation numbers are monotone over the whole
/// registry, are shared by the sets of one transaction, and are not consecutive per set. The pair
/// (set, generation) is never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Generation(pub(crate) u64);

impl Generation {
    /// The commit number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_as_small_as_promised() {
        assert_eq!(size_of::<SetHandle>(), 12);
        assert_eq!(size_of::<WeightHandle>(), 16);
    }
}
