//! The words of the flat registry: addresses, handles, kinds, answers.
//!
//! What lives here: plain values. What does not: resolving them (`registry`, `read`).

use std::fmt;
use std::sync::Arc;

use crate::Dtype;
use crate::handle::SetHandle;
use crate::names::SetName;

/// The name of a weight: alone, or within an adapter.
///
/// `"embed"` is a weight of the base model, `("pirate", "q_proj.lora_A")` a slice of the adapter
/// `pirate`. Two adapters with the same tensor names, which is what adapters of one base have, are
/// two different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address<'n> {
    pub(super) adapter: Option<&'n str>,
    pub(super) name: &'n str,
}

impl<'n> From<&'n str> for Address<'n> {
    fn from(name: &'n str) -> Self {
        Address {
            adapter: None,
            name,
        }
    }
}

impl<'n> From<&'n String> for Address<'n> {
    fn from(name: &'n String) -> Self {
        Address::from(name.as_str())
    }
}

impl<'n> From<(&'n str, &'n str)> for Address<'n> {
    fn from((adapter, name): (&'n str, &'n str)) -> Self {
        Address {
            adapter: Some(adapter),
            name,
        }
    }
}

/// Names one weight that was registered alone, for as long as it is registered: `Copy`, 12 bytes.
///
/// It knows its registry and its tenancy. In another registry, or after the weight was
/// unregistered, it resolves to an error, never to another weight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlatHandle(pub(super) SetHandle);

impl FlatHandle {
    /// The set of one that it is to the registry underneath: lease several of them together with
    /// [`WeightRegistry::acquire`](crate::WeightRegistry::acquire) to have them as of one instant.
    pub fn set(self) -> SetHandle {
        self.0
    }
}

impl fmt::Debug for FlatHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}", self.0)
    }
}

impl fmt::Display for FlatHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a registered weight is. Its role follows from its address: what has an adapter is a slice
/// of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlatKind {
    /// A weight of the base model.
    Base,
    /// A slice of an adapter.
    Lora,
    /// A second name for another weight, whichever role that has.
    TiedAlias {
        /// The weight whose bytes these are. It is never an alias itself.
        target: FlatHandle,
    },
}

/// One registered weight, as [`FlatRegistry::entry`](super::FlatRegistry::entry) tells it. Metadata:
/// it holds no bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlatEntry {
    /// Its handle.
    pub handle: FlatHandle,
    /// Its name in the registry underneath; [`SetName::name`] is the one it was registered by.
    pub name: SetName,
    /// The adapter it was registered for.
    pub adapter: Option<Arc<str>>,
    /// Its kind.
    pub kind: FlatKind,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Box<[usize]>,
    /// Its bytes; 0 for an alias, which has none of its own.
    pub bytes: u64,
}

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Registered<H = FlatHandle> {
    /// It is new.
    Created(H),
    /// The same was there already, under the same name; nothing was changed.
    Reused(H),
}

impl<H: Copy> Registered<H> {
    /// The handle, either way.
    pub fn handle(self) -> H {
        match self {
            Registered::Created(handle) | Registered::Reused(handle) => handle,
        }
    }

    /// Was it registered by this very call?
    pub fn is_new(self) -> bool {
        matches!(self, Registered::Created(_))
    }
}
