//! A name, a seat and a slot for a set that is not there yet, and giving them back.
//!
//! What lives here: what a publish takes before its commit, settles after it, and a retire frees. What
//! does not: who owns a name (`names`), the commit (`commit`).

use std::sync::Arc;

use super::WeightRegistry;
use super::generation::generation;
use super::record::SetRecord;
use super::staged::Staged;
use crate::core::Key;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::names::{Claim, Full, Seat, SetName, Taken};

impl WeightRegistry {
    /// Is it a legal name that nobody has, and is there a seat for it?
    pub(super) fn check_free(&self, name: &SetName, offered: &str) -> Result<(), Error> {
        name.validate()?;
        let there = self.lookup(name.as_ref());
        if let Some(error) = there.and_then(|handle| self.taken(name, handle, offered)) {
            return Err(error);
        }
        let seats = self.seats.look(name.namespace());
        seats.map_err(|full| too_many_sets(name, full))
    }

    /// A name and a slot for a set that `staged` is to begin. Given back if they are dropped.
    pub(super) fn reserve(&self, name: SetName, staged: &Staged) -> Result<Reserved<'_>, Error> {
        self.check_staged(staged)?;
        name.validate()?;
        let claim = self.names.claim(&name).map_err(|taken| {
            let live = match taken {
                Taken::Live(packed) => {
                    let handle = SetHandle::unpacked(self.id, packed);
                    self.taken(&name, handle, &staged.identity().to_string())
                }
                Taken::Claimed => None,
            };
            live.unwrap_or(Error::NameBusy { name: name.clone() })
        })?;
        let seat = self.seats.take(name.namespace());
        let seat = seat.map_err(|full| too_many_sets(&name, full))?;
        let key = self.spine.allocate().ok_or(Error::Spent)?;
        let handle = SetHandle {
            registry: self.id,
            slot: key.slot,
            tag: key.tag,
        };
        Ok(Reserved {
            registry: self,
            record: Arc::new(SetRecord::new(
                name,
                handle,
                Arc::clone(&staged.content.facts.layout),
                self.keep,
            )),
            key,
            claim: Some(claim),
            seat: Some(seat),
        })
    }

    /// The sets that were reserved are current: their names mean them from here on.
    pub(super) fn settle<'r>(
        &'r self,
        reserved: impl IntoIterator<Item = Reserved<'r>>,
    ) -> Vec<SetHandle> {
        let mut records = Vec::new();
        let claims: Vec<_> = reserved
            .into_iter()
            .filter_map(|mut reserved| {
                records.push(Arc::clone(&reserved.record));
                if let Some(seat) = reserved.seat.take() {
                    seat.keep();
                }
                Some((reserved.claim.take()?, reserved.record.handle.packed()))
            })
            .collect();
        self.names.settle_many(claims);
        for record in &records {
            // A retire that found the handle by a scope came before the name was settled, and left
            // the name to us.
            let Key { slot, tag } = Key {
                slot: record.handle.slot,
                tag: record.handle.tag,
            };
            if self.view().resolve(Key { slot, tag }).is_none() {
                self.unlink(record);
            }
        }
        records.iter().map(|record| record.handle).collect()
    }

    /// The set is retired: its name and slot are free.
    pub(super) fn free_name(&self, record: &SetRecord) {
        self.unlink(record);
        self.spine.recycle(Key {
            slot: record.handle.slot,
            tag: record.handle.tag,
        });
    }

    fn unlink(&self, record: &SetRecord) {
        let name = &record.name;
        if self
            .names
            .unlink(name, |packed| packed == record.handle.packed())
        {
            self.seats.give_back(name.namespace());
        }
    }

    /// The error for a name that is taken; `None` if its set is just going.
    fn taken(&self, name: &SetName, handle: SetHandle, offered: &str) -> Option<Error> {
        let view = self.view();
        let node = view.resolve(self.key(handle).ok()?)?;
        Some(Error::AlreadyPublished {
            name: name.clone(),
            current: generation(node),
            identity: node.meta()?.facts.identity.to_string(),
            offered: offered.to_owned(),
        })
    }
}

/// A name and a slot for a set that is not there yet.
pub(super) struct Reserved<'r> {
    registry: &'r WeightRegistry,
    pub(super) record: Arc<SetRecord>,
    key: Key,
    // Dropped first: a seat is free only when its name is.
    claim: Option<Claim<'r>>,
    seat: Option<Seat<'r>>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.claim.is_some() {
            self.registry.spine.recycle(self.key);
        }
    }
}

#[cold]
fn too_many_sets(set: &SetName, full: Full) -> Error {
    Error::TooManySets {
        set: set.clone(),
        in_use: full.taken,
        limit: full.limit,
    }
}
