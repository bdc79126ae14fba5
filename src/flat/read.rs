//! The reading side: looking up, pinning, asking the books.
//!
//! What lives here: everything that changes nothing. What does not: the guard (`pinned`), the books
//! themselves (`index`).

use std::sync::Arc;

use super::address::{Address, FlatEntry, FlatHandle, FlatKind};
use super::index::{Totals, alias_of};
use super::pinned::{Pinned, no_weight, only};
use super::registry::FlatRegistry;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::registry::Lease;

impl FlatRegistry {
    /// The handle of a name. Resolve it once and keep it.
    ///
    /// Progress: as [`WeightRegistry::lookup`](crate::WeightRegistry::lookup); never takes a lock
    /// that a writer holds.
    pub fn lookup<'n>(&self, address: impl Into<Address<'n>>) -> Option<FlatHandle> {
        let Address { adapter, name } = address.into();
        let set = match adapter {
            None => self.registry().lookup((self.namespace(), name)),
            Some(adapter) => {
                let namespace = self.adapter_namespace(adapter);
                self.registry().lookup((&*namespace, name))
            }
        };
        set.map(FlatHandle)
    }

    /// A weight, pinned: the guard is the pin, and dropping it is the release. An alias gives its
    /// target.
    ///
    /// Progress: lock-free; twice the work for an alias.
    ///
    /// # Errors
    /// [`Error::StaleHandle`] if it was unregistered; [`Error::WrongRegistry`],
    /// [`Error::OtherNamespace`] if it is not of this registry; [`Error::NoSuchTensor`] if somebody else
    /// published it under a name of ours, or replaced it, and it is no weight; [`Error::NotResident`] if it,
    /// or what it is an alias of, has no bytes now in the registry underneath.
    pub fn get(&self, weight: FlatHandle) -> Result<Pinned, Error> {
        self.pin_by(weight, |set| self.registry().acquire(set))
    }

    /// [`get`](Self::get), with a name that a wait for this weight's end can report.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn pin_as(&self, label: &str, weight: FlatHandle) -> Result<Pinned, Error> {
        self.pin_by(weight, |set| self.registry().acquire_as(label, set))
    }

    fn pin_by(
        &self,
        weight: FlatHandle,
        acquire: impl Fn(SetHandle) -> Result<Lease, Error>,
    ) -> Result<Pinned, Error> {
        let lease = acquire(weight.0)?;
        let set = lease.set(weight.0)?;
        self.ours(set.name())?;
        match alias_of(set.base(), set.layout()) {
            None => Pinned::new(lease),
            // A target outlives its aliases: it can be gone only if the alias is gone, too.
            Some(target) => Pinned::new(acquire(target).map_err(|error| as_asked(error, weight))?),
        }
    }

    /// How many guards hold this weight right now. Of an alias: its target.
    ///
    /// Progress: lock-free.
    ///
    /// # Errors
    /// [`Error::StaleHandle`]: ask the [`Retirement`](crate::Retirement) that
    /// [`unregister`](Self::unregister) returned. [`Error::WrongRegistry`],
    /// [`Error::OtherNamespace`].
    pub fn pin_count(&self, weight: FlatHandle) -> Result<u64, Error> {
        self.registry().scope(|scope| {
            let view = scope.get(weight.0)?;
            self.ours(view.name())?;
            Ok(match alias_of(view.base(), view.layout()) {
                None => view.leases(),
                Some(target) => scope.get(target)?.leases(),
            })
        })
    }

    /// The set that has the bytes.
    pub(super) fn root(&self, weight: FlatHandle) -> Result<SetHandle, Error> {
        self.registry().scope(|scope| {
            let view = scope.get(weight.0)?;
            Ok(alias_of(view.base(), view.layout()).unwrap_or(weight.0))
        })
    }

    /// What is known of a weight, without holding its bytes.
    ///
    /// Progress: O(1) after the books have caught up, see [`FlatRegistry`]; waits at most for a commit.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::OtherNamespace`];
    /// [`Error::NoSuchTensor`] if somebody replaced it by what is no weight; [`Error::Forked`].
    pub fn entry(&self, weight: FlatHandle) -> Result<FlatEntry, Error> {
        self.registry().at_home()?;
        let books = self.books();
        let booked = self.own(&books, weight.0)?;
        let kind = booked.kind();
        let (holder, alias) = match kind {
            FlatKind::TiedAlias { target } => (target, true),
            FlatKind::Base | FlatKind::Lora => (weight, false),
        };
        self.registry().scope(|scope| {
            let view = scope.get(holder.0);
            let view = view.map_err(|error| as_asked(error, weight))?;
            let Some(info) = only(view.layout()) else {
                return Err(no_weight(view.name(), view.generation()));
            };
            let Some(dtype) = info.dtype() else {
                return Err(Error::UnreadableTensor {
                    set: view.name().clone(),
                    tensor: info.name().to_owned(),
                    dtype: info.dtype_name().to_owned(),
                });
            };
            Ok(FlatEntry {
                handle: weight,
                name: booked.name().clone(),
                adapter: booked.adapter().cloned(),
                kind,
                dtype,
                shape: info.shape().into(),
                bytes: if alias { 0 } else { info.byte_len() },
            })
        })
    }

    /// Bytes of all registered weights, dtype times shape, aliases not counted: they have none. Those that
    /// are evicted underneath count as if they were there.
    ///
    /// What the process spends on them, padding and the bytes of unregistered weights that somebody
    /// still holds included, is in [`WeightRegistry::ledger`](crate::WeightRegistry::ledger).
    ///
    /// Progress: O(1) while nobody commits but this registry. What others committed since the last call
    /// here is looked at first, see [`FlatRegistry`]. Waits at most for a commit.
    pub fn total_bytes(&self) -> u64 {
        let totals = self.totals();
        totals.base.bytes + totals.lora.bytes
    }

    /// Numbers and bytes by kind. Progress: as [`total_bytes`](Self::total_bytes).
    pub fn totals(&self) -> Totals {
        self.books().totals()
    }

    /// How many weights are registered. Aliases are not weights; [`Totals::aliases`] counts them.
    /// Progress: as [`total_bytes`](Self::total_bytes).
    pub fn len(&self) -> usize {
        let totals = self.totals();
        totals.base.weights + totals.lora.weights
    }

    /// None at all? Progress: as [`total_bytes`](Self::total_bytes).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The adapters that have slices here, by name. Progress: O(answer), otherwise as
    /// [`total_bytes`](Self::total_bytes).
    pub fn adapter_names(&self) -> Vec<Arc<str>> {
        self.books().adapter_names()
    }

    /// What is registered for an adapter, by tensor name. Progress: O(answer), otherwise as
    /// [`total_bytes`](Self::total_bytes).
    pub fn adapter_handles(&self, adapter: &str) -> Vec<FlatHandle> {
        let members = self.books().members(adapter);
        members.into_iter().map(FlatHandle).collect()
    }

    /// Bytes of what is registered for an adapter. Progress: O(log adapters), otherwise as
    /// [`total_bytes`](Self::total_bytes).
    pub fn adapter_bytes(&self, adapter: &str) -> u64 {
        self.books().adapter_bytes(adapter)
    }
}

/// A caller who asked for an alias hears of the alias.
fn as_asked(error: Error, weight: FlatHandle) -> Error {
    match error {
        Error::StaleHandle { .. } => Error::StaleHandle { handle: weight.0 },
        other => other,
    }
}
