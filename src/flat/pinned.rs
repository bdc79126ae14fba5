//! The guard: one weight, held and readable.
//!
//! What lives here: [`Pinned`]. What does not: taking one (`read`), what a lease is (`registry`).

use std::fmt;

use super::address::FlatHandle;
use crate::Dtype;
use crate::error::Error;
use crate::handle::Generation;
use crate::identity::{CacheKey, Identity};
use crate::layout::{Layout, TensorInfo};
use crate::names::SetName;
use crate::registry::{Lease, LeasedSet, Weight};

/// What the one tensor of a flat weight's set is called. Its name is that of the set; so all weights
/// of one dtype and shape share one layout.
pub(super) const TENSOR: &str = "weight";

/// The one tensor of a flat weight's set; `None` if it is none.
pub(super) fn only(layout: &Layout) -> Option<&TensorInfo> {
    let tensor = layout.tensor(0)?;
    (layout.len() == 1 && tensor.name() == TENSOR).then_some(tensor)
}

/// What was asked for is not there: this is no flat weight's set.
pub(super) fn no_weight(set: &SetName, generation: Generation) -> Error {
    Error::NoSuchTensor {
        set: set.clone(),
        generation,
        tensor: TENSOR.to_owned(),
    }
}

/// One weight, held: while this lives its bytes stay where they are and what they are, also if the
/// weight is unregistered meanwhile.
///
/// It is a [`Lease`]: `Send + Sync + Clone + 'static`, released exactly once, when it is dropped, on
/// every path. It may outlive the registry.
///
/// Progress: everything here is wait-free; the drop of the last guard of an unregistered weight
/// hands the bytes to the reclaimer and frees nothing itself.
///
/// # Examples
/// ```
/// # use std::sync::Arc;
/// # use weighbridge::{Dtype, WeightRegistry, flat::FlatRegistry};
/// # let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().build()?));
/// let bias = flat.register("bias", Dtype::U8, [4], &[7; 4])?.handle();
/// let pinned = flat.get(bias)?;
/// assert_eq!(flat.pin_count(bias)?, 1);
///
/// flat.unregister(bias)?; // does not wait for the guard
/// let elsewhere = pinned.clone();
/// drop(pinned);
/// let sum = std::thread::spawn(move || elsewhere.bytes().iter().sum::<u8>());
/// assert_eq!(sum.join().unwrap(), 28);
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Clone)]
pub struct Pinned {
    lease: Lease,
}

impl Pinned {
    /// Of a lease of one flat weight's set.
    ///
    /// # Errors
    /// As [`Lease::weight`], if the set is not that of a flat weight.
    pub(super) fn new(lease: Lease) -> Result<Self, Error> {
        let Some(set) = lease.sets().next() else {
            unreachable!("a lease of one set")
        };
        match (only(set.layout()), set.iter().next()) {
            (Some(_), Some(read)) => read.map(drop)?,
            // A stranger's set, published under a name of ours.
            _ => return Err(no_weight(set.name(), set.generation())),
        }
        Ok(Pinned { lease })
    }

    fn set(&self) -> LeasedSet<'_> {
        match self.lease.sets().next() {
            Some(set) => set,
            None => unreachable!("checked by new; a lease does not change"),
        }
    }

    /// The tensor.
    pub fn weight(&self) -> Weight<'_> {
        match self.set().iter().next() {
            Some(Ok(weight)) => weight,
            _ => unreachable!("checked by new; a lease does not change"),
        }
    }

    /// The bytes: row-major, little-endian, starting at a multiple of 64.
    pub fn bytes(&self) -> &[u8] {
        self.weight().bytes()
    }

    /// The dtype.
    pub fn dtype(&self) -> Dtype {
        self.weight().dtype()
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        self.weight().shape()
    }

    /// The name it was registered by. Of an alias: its target's.
    pub fn name(&self) -> &str {
        self.set().name().name()
    }

    /// The weight that is held. Of an alias: its target.
    pub fn handle(&self) -> FlatHandle {
        FlatHandle(self.set().handle())
    }

    /// The commit that registered it. (handle, generation) is never reused.
    pub fn generation(&self) -> Generation {
        self.set().generation()
    }

    /// What it is: the content's hash.
    pub fn identity(&self) -> &Identity {
        self.set().identity()
    }

    /// See [`Lease::cache_key`].
    pub fn cache_key(&self) -> CacheKey {
        self.lease.cache_key()
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .finish_non_exhaustive()
    }
}
