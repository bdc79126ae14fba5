//! Where weights are: for engines that read memory which the host cannot, or by its address.
//!
//! What lives here: [`WeightPlace`]. What does not: reading (`lease`), who owns the memory (`memory`).

use std::any::Any;
use std::fmt;

use super::lease::{Lease, LeasedSet};
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::layout::TensorInfo;
use crate::memory::{Memory, Owner};

/// Where one tensor is, as long as its lease lives.
///
/// # Examples
/// See [`Owner`].
#[derive(Clone, Copy)]
pub struct WeightPlace<'l> {
    info: &'l TensorInfo,
    memory: &'l Memory,
    offset: u64,
}

impl Lease {
    /// Where a tensor is. As [`weight`](Self::weight), also for memory that the host cannot read, and
    /// for dtypes that are not known. Runs no code of an owner's.
    ///
    /// # Errors
    /// [`Error::NotInLease`], [`Error::NoSuchTensor`], [`Error::InPart`]. Progress: wait-free, errors included (those
    /// allocate their texts).
    #[inline]
    pub fn place(&self, weight: WeightHandle) -> Result<WeightPlace<'_>, Error> {
        self.set(weight.set())?.place_of(weight.ordinal())
    }
}

impl<'l> LeasedSet<'l> {
    /// Where a tensor is, by its name. Prefer [`Lease::place`] with a handle that was resolved once.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn place(&self, tensor: &str) -> Result<WeightPlace<'l>, Error> {
        match self.layout().ordinal(tensor) {
            Some(ordinal) => self.place_of(ordinal),
            None => Err(self.no_such_tensor(tensor.to_owned())),
        }
    }

    #[inline]
    fn place_of(&self, ordinal: u32) -> Result<WeightPlace<'l>, Error> {
        let facts = &self.meta().facts;
        let found = facts.layout.tensor(ordinal).and_then(|info| {
            let place = facts.extents.place(ordinal)?;
            let memory = self.hold.storage().memory(place)?;
            Some(WeightPlace {
                info,
                memory,
                offset: place.offset,
            })
        });
        found.ok_or_else(|| {
            let info = facts.layout.tensor(ordinal);
            let in_part = info.and_then(|info| self.in_part(info));
            let name = || self.meta().record.tensor_name(ordinal);
            in_part.unwrap_or_else(|| self.no_such_tensor(name()))
        })
    }
}

impl<'l> WeightPlace<'l> {
    /// The table entry: name, dtype, shape, length.
    pub fn info(&self) -> &'l TensorInfo {
        self.info
    }

    /// The address of its first byte: the host's, or whatever its owner's addresses mean.
    ///
    /// It is good for as long as the lease is held. A generation is no key for it: what was
    /// [evicted](crate::WeightRegistry::evict) and loaded again is somewhere else, under the same number.
    #[inline]
    pub fn address(&self) -> u64 {
        // `Memory::of` has checked that its end is an address.
        self.memory.address() + self.offset
    }

    /// Where it starts in its memory.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Can the host read it?
    pub fn is_host_readable(&self) -> bool {
        self.memory.is_host_readable()
    }

    /// Who owns the memory; `None`: it is an arena of the registry's.
    pub fn owner(&self) -> Option<&'l dyn Owner> {
        self.memory.owner()
    }

    /// The same, if it is of the type that the caller knows.
    pub fn owner_as<O: Owner>(&self) -> Option<&'l O> {
        let owner: &dyn Any = self.memory.owner()?;
        owner.downcast_ref()
    }
}

impl fmt::Debug for WeightPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightPlace")
            .field("name", &self.info.name())
            .field("address", &format_args!("{:#x}", self.address()))
            .field("byte_len", &self.info.byte_len())
            .finish_non_exhaustive()
    }
}
