//! What a request wants to lease.
//!
//! What lives here: the pair, whether it makes sense, and leasing it. What does not: loading it (`loads`).

use std::sync::Arc;

use weighbridge::{AcquireOrLoad, Error, Lease, SetHandle, SetKind, WeightRegistry};

use crate::place::Key;
use crate::refused::Why;

/// A base, and perhaps one of its adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wants {
    pub(crate) base: SetHandle,
    pub(crate) adapter: Option<SetHandle>,
}

impl Wants {
    /// Would a lease of this be what it says? Also of what is not resident, so that nothing is loaded in vain.
    pub(crate) fn check(self, registry: &WeightRegistry) -> Result<(), Why> {
        registry.scope(|scope| {
            let base = scope.get(self.base)?;
            if base.kind() == SetKind::Adapter {
                return Err(Why::Registry(Error::NotABase {
                    base: base.name().clone(),
                }));
            }
            let Some(set) = self.adapter else {
                return Ok(());
            };
            let adapter = scope.get(set)?;
            match adapter.base() {
                None => Err(Why::NotAnAdapter { set }),
                Some(own) if own == self.base => Ok(()),
                Some(own) => Err(Why::Registry(Error::WrongBase {
                    adapter: adapter.name().clone(),
                    bound_to: own,
                    base: scope.get(own).ok().map(|own| own.name().clone()),
                    leased: Some(base.name().clone()),
                })),
            }
        })
    }

    /// What is there.
    pub(crate) fn acquire(self, registry: &WeightRegistry, label: &str) -> Result<Lease, Error> {
        match self.adapter {
            None => registry.acquire_as(label, self.base),
            Some(adapter) => registry.acquire_as(label, [self.base, adapter]),
        }
    }

    /// What is to be loaded first.
    pub(crate) fn load(self, registry: &Arc<WeightRegistry>) -> AcquireOrLoad {
        match self.adapter {
            None => registry.acquire_or_load_async(self.base),
            Some(adapter) => registry.acquire_or_load_async([self.base, adapter]),
        }
    }

    /// Does a lease of this hold nothing that a lease of `other` would not?
    pub(crate) fn is_within(self, other: Wants) -> bool {
        self.base == other.base && (self.adapter.is_none() || self.adapter == other.adapter)
    }

    /// The adapter's generation in a lease of this.
    pub(crate) fn key(self, lease: &Lease) -> Option<Key> {
        // The lease is asked, not the handle: a replace may have come in between two requests.
        let adapter = lease.set(self.adapter?).ok()?;
        Some((adapter.handle(), adapter.generation()))
    }
}
