//! Whole files: loading one under a name, and reading it by tensor name.
//!
//! What lives here: [`FlatRegistry::load`], the [`WeightLoader`] contract, [`Loaded`]. What does not:
//! the formats (`source`).

use safetensors::SafeTensors;

use super::address::Registered;
use super::offer::{Offer, itself};
use super::registry::FlatRegistry;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::identity::Identity;
use crate::names::SetName;
use crate::registry::{Lease, LeasedSet, Operation};
use crate::source::Source;

impl FlatRegistry {
    /// Publishes a checkpoint or an adapter in the registry underneath, once: the same content under
    /// the same name again is the same set, whatever path it comes from; other content, as of a file
    /// that was changed, is a conflict. A set that is [evicted](crate::WeightRegistry::evict) is not brought
    /// back by that: the registry underneath [loads](crate::WeightRegistry::load) it.
    ///
    /// To know the content it is read and hashed each time, and takes room in the ledger meanwhile;
    /// a source that declares its revision is compared by that, unread.
    ///
    /// # Errors
    /// [`Error::AlreadyPublished`] with both sides, [`Error::AlreadyRegistered`] if the name is that of a
    /// weight of this registry; [`Error::SourceChanged`] if a file changes while it is read;
    /// otherwise as [`WeightRegistry::publish`](crate::WeightRegistry::publish).
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use weighbridge::WeightRegistry;
    /// use weighbridge::flat::{FlatRegistry, Loaded, Registered, WeightLoader};
    /// use weighbridge::source::Checkpoint;
    ///
    /// # let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().build()?));
    /// let llama = flat.load("llama", Checkpoint::open("fixtures/tiny-llama")?)?.handle();
    /// let again = flat.load("llama", Checkpoint::open("fixtures/tiny-llama-sharded")?)?;
    /// assert_eq!(again, Registered::Reused(llama)); // other files, the same content
    ///
    /// let weights = Loaded::new(flat.registry().acquire(llama)?, llama)?;
    /// assert!(weights.names().any(|name| name == "lm_head.weight"));
    /// assert!(weights.tensor_bytes("lm_head.weight").is_some());
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn load(
        &self,
        name: impl Into<SetName>,
        source: impl Source,
    ) -> Result<Registered<SetHandle>, Error> {
        let name = name.into();
        name.validate()?;
        let registry = &**self.registry();
        registry.at_home()?;
        let base = source.base();
        // What its aliases are is part of what it is, and known when it is staged.
        if let Some(revision) = source.declared()
            && source.plan().aliases().is_empty()
        {
            let offer = Offer {
                identity: &Identity::declared(source.plan(), revision),
                base,
                plan: source.plan(),
            };
            let known = self.compare(&self.books(), &name, &offer, true);
            if let Some(known) = known {
                // The lock is free.
                let refused =
                    |error: &Error| registry.note_refusal(Operation::Publish, &name, error);
                return known.map(Registered::Reused).inspect_err(refused);
            }
        }
        let staged = registry.stage(source)?;
        // What was staged for nothing is freed when the lock is free again.
        let mut left = None;
        let answer = registry.observe_whole(Operation::Publish, name.clone(), itself, || {
            // Two loads of one name: the second one finds the first.
            let mut books = self.books();
            let failed = match registry.publish_staged(name.clone(), staged) {
                Ok(set) => {
                    books.beside(registry, set);
                    return Ok(Registered::Created(set));
                }
                Err(failed) => failed,
            };
            let (error, staged) = failed.into_parts();
            let offer = staged.as_ref().map(|staged| Offer::of(staged, base));
            let known = offer.and_then(|offer| self.compare(&books, &name, &offer, true));
            left = staged;
            known.map_or(Err(error), |known| known.map(Registered::Reused))
        });
        drop(left);
        answer
    }
}

/// Weights by name: the least that code which builds a model needs to know.
pub trait WeightLoader {
    /// The names of all tensors.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// The bytes of one. `None`: there is no such tensor, or its dtype is not known.
    fn tensor_bytes(&self, name: &str) -> Option<&[u8]>;
}

/// A leased set as a [`WeightLoader`]: it holds the bytes it lends. Looking one up is O(1).
#[derive(Debug, Clone)]
pub struct Loaded {
    lease: Lease,
    set: SetHandle,
}

impl Loaded {
    /// One set of a lease.
    ///
    /// # Errors
    /// [`Error::NotInLease`].
    pub fn new(lease: Lease, set: SetHandle) -> Result<Self, Error> {
        lease.set(set)?;
        Ok(Loaded { lease, set })
    }

    /// The set: dtypes, shapes, an adapter's modules.
    pub fn set(&self) -> LeasedSet<'_> {
        match self.lease.set(self.set) {
            Ok(set) => set,
            Err(_) => unreachable!("checked by new; a lease does not change"),
        }
    }
}

impl WeightLoader for Loaded {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.set().layout().tensors().map(|(_, info)| info.name()))
    }

    fn tensor_bytes(&self, name: &str) -> Option<&[u8]> {
        Some(self.set().get(name).ok()?.bytes())
    }
}

/// A file that is in memory and in no registry, for tests of code that takes a loader.
impl WeightLoader for SafeTensors<'_> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names().into_iter())
    }

    fn tensor_bytes(&self, name: &str) -> Option<&[u8]> {
        Some(self.tensor(name).ok()?.data())
    }
}
