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
    #[inline]
    pub(crate) fn weight(self, ordinal: u32) -> WeightHandle {
        WeightHandle {
            home: u64::from(self.registry) << 32 | u64::from(self.slot),
            within: u64::from(self.tag) << 32 | u64::from(ordinal),
        }
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
    /// Registry and slot.
    home: u64,
    /// Tag and ordinal: the handles of one set's tensors are a range, so that one comparison says of a
    /// difference whether it is an ordinal of this set.
    within: u64,
}

impl WeightHandle {
    /// The set this tensor belongs to.
    #[inline]
    pub fn set(self) -> SetHandle {
        SetHandle {
            registry: (self.home >> 32) as u32,
            slot: self.home as u32,
            tag: (self.within >> 32) as u32,
        }
    }

    /// The tensor's ordinal in its set: dense, append-only, never reused.
    #[inline]
    pub fn ordinal(self) -> u32 {
        self.within as u32
    }

    /// What must be added to `first`, the handle of a set's first tensor, to be this: an ordinal, if it is
    /// of the same set. Otherwise more than any, or nothing.
    #[inline(always)]
    pub(crate) fn beyond(self, first: WeightHandle) -> Option<u64> {
        (self.home == first.home).then(|| self.within.wrapping_sub(first.within))
    }
}

impl fmt::Debug for WeightHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {} of {:?}", self.ordinal(), self.set())
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

    #[test]
    fn handles_of_tensors_are_what_they_are_made_of_and_sort_like_it() {
        let set = |registry, slot, tag| SetHandle {
            registry,
            slot,
            tag,
        };
        let (mut all, ends) = (Vec::new(), [0, 1, u32::MAX]);
        for registry in ends {
            for slot in ends {
                for tag in ends {
                    all.extend(ends.map(|ordinal| (set(registry, slot, tag), ordinal)));
                }
            }
        }
        let handles = || all.iter().map(|&(set, ordinal)| set.weight(ordinal));
        assert!(handles().is_sorted());
        for (&(set, ordinal), handle) in all.iter().zip(handles()) {
            assert_eq!((handle.set(), handle.ordinal()), (set, ordinal));
            for &(other, _) in &all {
                let beyond = handle.beyond(other.weight(0));
                let ordinal_of = beyond.filter(|&beyond| beyond <= u64::from(u32::MAX));
                assert_eq!(ordinal_of, (other == set).then_some(ordinal.into()));
            }
        }
    }
}
