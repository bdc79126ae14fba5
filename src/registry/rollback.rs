//! Going back to an earlier generation.
//!
//! What lives here: how many earlier generations a set keeps, and making one of them current again.
//! What does not: where they are kept (`record`), the commit (`commit`).

use std::sync::Arc;

use super::WeightRegistry;
use super::event::Operation;
use super::observe::itself;
use super::record::{Bin, Kept};
use super::retirement::Replaced;
use super::step::Act;
use crate::core::Expect;
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::identity::Identity;

/// A generation that can become current again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptGeneration {
    /// Its number. Made current again it gets a new one: numbers are never reused.
    pub generation: Generation,
    /// What it is. It keeps that, unless tensors of it are another set's: those are what they are then.
    pub identity: Identity,
    /// Bytes that the ledger is charged for it while it is kept.
    pub bytes: u64,
}

impl WeightRegistry {
    /// Keeps the last `n` superseded generations of `set` from here on, so that
    /// [`rollback`](Self::rollback) needs no source and no memory. Their bytes count
    /// ([`LedgerSnapshot::kept`](crate::LedgerSnapshot)); `0` gives them back. Without this call it is
    /// what [`Builder::keep_previous`](super::Builder::keep_previous) says. The [`Retirement`] of a
    /// generation that is kept ends all the same: it is about the leases. One that is
    /// [evicted](Self::evict) when it is superseded has no bytes and is not kept.
    ///
    /// [`Retirement`]: super::Retirement
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::Forked`].
    pub fn keep_previous(&self, set: SetHandle, n: usize) -> Result<(), Error> {
        self.shared.check_process()?;
        let record = self.record(set)?;
        let mut writing = record.write();
        // Retired meanwhile: its history was closed under this lock.
        self.record(set)?;
        writing.history.keep = n;
        let mut bin = Bin::new(self.spine.reclaimer());
        writing.history.trim(&mut bin);
        let let_go = bin.gone.into_iter();
        let let_go = let_go.map(|one| (Arc::clone(&record), one)).collect();
        self.remember(Vec::new(), let_go);
        Ok(())
    }

    /// The generations of `set` that can become current again, oldest first.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`].
    pub fn kept(&self, set: SetHandle) -> Result<Vec<KeptGeneration>, Error> {
        let record = self.record(set)?;
        let writing = record.write();
        // Retired meanwhile: it keeps nothing then, and is not there.
        self.record(set)?;
        let one = |kept: &Kept| {
            let content = kept.content()?;
            Some(KeptGeneration {
                generation: kept.generation(),
                identity: content.facts.identity.clone(),
                bytes: content.bytes.own.charge.bytes(),
            })
        };
        Ok(writing.history.kept.iter().filter_map(one).collect())
    }

    /// Makes the latest kept generation of `set` current again: the same bytes and identity under a
    /// new number. The one that it supersedes is kept in its turn, unless it is [evicted](Self::evict), so a
    /// second rollback undoes the first. No byte is read, copied or charged.
    ///
    /// # Errors
    /// [`Error::NotKept`] if there is none, [`Error::StaleHandle`], [`Error::WrongRegistry`],
    /// [`Error::Dependants`]; for an adapter what its base's current generation has against it; where
    /// tensors are another set's, [`Error::AliasMismatch`] and [`Error::NotResident`].
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
    ///
    /// let registry = WeightRegistry::builder().keep_previous(1).build()?;
    /// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
    /// let set = registry.publish("demo", version(1)?)?;
    /// registry.replace(set, version(2)?)?;
    /// registry.rollback(set)?;
    /// assert_eq!(registry.acquire(set)?.set(set)?.get("w")?.bytes(), [1]);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn rollback(&self, set: SetHandle) -> Result<Replaced, Error> {
        self.restore(set, None)
    }

    /// [`rollback`](Self::rollback) to one of the [`kept`](Self::kept) generations.
    ///
    /// # Errors
    /// As [`rollback`](Self::rollback).
    pub fn rollback_to(&self, set: SetHandle, generation: Generation) -> Result<Replaced, Error> {
        self.restore(set, Some(generation))
    }

    /// The registry goes: leases may outlive it, what is kept for a rollback need not.
    pub(super) fn let_go_of_kept(&self) {
        let mut records = Vec::new();
        self.view().for_each(|_, node| {
            records.extend(node.meta().map(|meta| Arc::clone(&meta.record)));
        });
        for record in records {
            let mut bin = Bin::new(self.spine.reclaimer());
            record.write().history.clear(&mut bin);
        }
    }

    fn restore(&self, set: SetHandle, wanted: Option<Generation>) -> Result<Replaced, Error> {
        self.observe(Operation::Rollback, set, itself, || {
            self.shared.check_process()?;
            let record = self.record(set)?;
            let answer = self.commit_one(&record, Expect::Tenant(set.tag), Act::Restore(wanted))?;
            self.committed(answer.0, 1);
            Ok(Replaced::of(answer))
        })
    }
}
