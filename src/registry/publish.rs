//! The writing side: staging, publishing, replacing, retiring.
//!
//! What lives here: what a caller does with one set at a time. What does not: the commit (`commit`),
//! several sets (`transaction`), the bytes' way from disk (`source`), waiting for the old generation
//! (`retirement`).
//!
//! Everything slow happens before the commit: reading, hashing, allocation, names. A commit itself
//! is a few stores under one lock.

use std::sync::Arc;

use super::WeightRegistry;
use super::commit::{Act, check_node};
use super::event::Operation;
use super::generation::{Bytes, Node, SetRecord, generation};
use super::observe::itself;
use super::retirement::Retirement;
use super::staged::{PublishError, Room, Staged};
use crate::arena::Arena;
use crate::core::{Expect, Key};
use crate::error::Error;
use crate::escape::Clean;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::names::{Claim, SetName, Taken};
use crate::plan::Plan;
use crate::source::Source;

/// A replace that went through.
#[derive(Debug)]
pub struct Replaced {
    /// The generation that is current now.
    pub generation: Generation,
    /// The one that was: running requests keep it.
    pub previous: Retirement,
}

impl WeightRegistry {
    /// Reads `source` into memory, without making it visible.
    ///
    /// The bytes are reserved in the ledger before any is allocated, from the plan that the headers
    /// gave; when this fails, nothing is left behind. Blocks for as long as reading and hashing
    /// take; readers and other writers are not affected.
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OutOfMemory`], anything that is wrong with the source, and,
    /// for an adapter, [`Error::StaleHandle`], or [`Error::NotABase`] or [`Error::AdapterMismatch`]
    /// if it does not fit its base.
    pub fn stage(&self, source: impl Source) -> Result<Staged, Error> {
        self.stage_on(source, |plan, base| self.fits_current(plan, base))
    }

    /// Does it fit the base that is current now?
    pub(super) fn fits_current(&self, plan: &Plan, base: SetHandle) -> Result<(), Error> {
        let view = self.view();
        let node = view
            .resolve(self.key(base)?)
            .ok_or(Error::StaleHandle { handle: base })?;
        check_node(plan, node)
    }

    /// [`stage`](Self::stage), with what `fits` says of an adapter and its base.
    pub(super) fn stage_on(
        &self,
        source: impl Source,
        fits: impl FnOnce(&Plan, SetHandle) -> Result<(), Error>,
    ) -> Result<Staged, Error> {
        let origin = Clean(source.plan().origin());
        self.observe(Operation::Stage, origin, itself, || {
            let mut room = self.room(source.plan().clone(), source.base(), fits)?;
            source.read_into(room.bytes.arena.as_mut_slice())?;
            Ok(room.fill(source.declared()))
        })
    }

    /// Memory for what `plan` describes, reserved before it is allocated.
    pub(super) fn room(
        &self,
        plan: Plan,
        base: Option<SetHandle>,
        fits: impl FnOnce(&Plan, SetHandle) -> Result<(), Error>,
    ) -> Result<Room, Error> {
        self.shared.check_process()?;
        if let Some(base) = base {
            // Before any byte is reserved. Checked again when it is published: the base may change.
            fits(&plan, base)?;
        } else if plan.adapter().is_some() {
            return Err(Error::AdapterWithoutBase {
                origin: plan.origin().to_owned(),
            });
        }
        let bytes = Arena::charge_for(plan.arena_bytes())?;
        let charge = self.shared.ledger.reserve(bytes)?;
        let arena = Arena::allocate(plan.arena_bytes())?;
        Ok(Room {
            registry: self.id,
            layout: self.layouts.intern(plan.layout()),
            plan,
            base,
            bytes: Bytes { arena, charge },
        })
    }

    /// Reads `source` and makes it current under a new name.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`publish_staged`](Self::publish_staged). A name that is
    /// already taken is refused before any byte is read.
    pub fn publish(
        &self,
        name: impl Into<SetName>,
        source: impl Source,
    ) -> Result<SetHandle, PublishError> {
        let name = name.into();
        self.check_free(&name, source.plan().origin())
            .inspect_err(|error| self.note_refusal(Operation::Publish, &name, error))?;
        let staged = self.stage(source)?;
        self.publish_staged(name, staged)
    }

    /// Is it a legal name that nobody has?
    fn check_free(&self, name: &SetName, offered: &str) -> Result<(), Error> {
        name.validate()?;
        let there = self.names.lookup(name.as_ref());
        let taken = there.and_then(|handle| self.taken(name, handle, offered));
        taken.map_or(Ok(()), Err)
    }

    /// Makes a staged set current under a new name.
    ///
    /// # Errors
    /// [`Error::AlreadyPublished`] with both identities, [`Error::NameBusy`] while another publish
    /// or retire of this name is under way, [`Error::BaseNotCurrent`] if an adapter's base is gone,
    /// [`Error::StagedElsewhere`], [`Error::Spent`]. The error returns the staged set.
    pub fn publish_staged(
        &self,
        name: impl Into<SetName>,
        staged: Staged,
    ) -> Result<SetHandle, PublishError> {
        let name = name.into();
        let subject = name.clone();
        self.observe(Operation::Publish, subject, PublishError::error, || {
            let reserved = match self.reserve(name, &staged) {
                Ok(reserved) => reserved,
                Err(error) => return Err(PublishError::new(error, Some(staged))),
            };
            let act = Act::Become(Box::new(staged));
            let (number, _) = self.commit_one(&reserved.record, Expect::Vacant, act)?;
            let handle = self.settle([reserved])[0];
            self.committed(number, 1);
            Ok(handle)
        })
    }

    /// A name and a slot for a set that `staged` is to begin. Given back if they are dropped.
    pub(super) fn reserve(&self, name: SetName, staged: &Staged) -> Result<Reserved<'_>, Error> {
        self.check_staged(staged)?;
        name.validate()?;
        let claim = self.names.claim(&name).map_err(|taken| {
            let live = match taken {
                Taken::Live(handle) => self.taken(&name, handle, &staged.identity.to_string()),
                Taken::Claimed => None,
            };
            live.unwrap_or(Error::NameBusy { name: name.clone() })
        })?;
        let key = self.spine.allocate().ok_or(Error::Spent)?;
        let handle = SetHandle {
            registry: self.id,
            slot: key.slot,
            tag: key.tag,
        };
        Ok(Reserved {
            registry: self,
            record: Arc::new(SetRecord::new(name, handle, Arc::clone(&staged.layout))),
            key,
            claim: Some(claim),
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
                Some((reserved.claim.take()?, reserved.record.handle))
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

    /// Reads `source` and makes it the next generation of `set`. Running requests keep the one they
    /// leased, new ones get this one; both fit into memory together, or the replace is refused.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`replace_staged`](Self::replace_staged).
    pub fn replace(&self, set: SetHandle, source: impl Source) -> Result<Replaced, PublishError> {
        let staged = self.stage(source)?;
        self.replace_staged(set, staged)
    }

    /// [`replace`](Self::replace), provided that `expected` is still current.
    ///
    /// # Errors
    /// Also [`Error::Conflict`] with both generations; the error returns the staged set.
    pub fn replace_if(
        &self,
        set: SetHandle,
        expected: Generation,
        source: impl Source,
    ) -> Result<Replaced, PublishError> {
        let staged = self.stage(source)?;
        self.replace_staged_if(set, expected, staged)
    }

    /// Makes a staged set the next generation of `set`.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::KindMismatch`] if a checkpoint
    /// would follow an adapter or the other way round, [`Error::Dependants`] if adapters are bound
    /// to the set, [`Error::BaseNotCurrent`], [`Error::NotABase`], [`Error::StagedElsewhere`]. The
    /// error returns the staged set.
    pub fn replace_staged(&self, set: SetHandle, staged: Staged) -> Result<Replaced, PublishError> {
        self.replace_expecting(set, Expect::Tenant(set.tag), staged)
    }

    /// [`replace_staged`](Self::replace_staged), provided that `expected` is still current.
    ///
    /// # Errors
    /// Also [`Error::Conflict`].
    pub fn replace_staged_if(
        &self,
        set: SetHandle,
        expected: Generation,
        staged: Staged,
    ) -> Result<Replaced, PublishError> {
        self.replace_expecting(
            set,
            Expect::Exactly {
                tag: set.tag,
                birth: expected.0,
            },
            staged,
        )
    }

    fn replace_expecting(
        &self,
        set: SetHandle,
        expect: Expect,
        staged: Staged,
    ) -> Result<Replaced, PublishError> {
        self.observe(Operation::Replace, set, PublishError::error, || {
            let record = match self.check_replace(set, &staged) {
                Ok(record) => record,
                Err(error) => return Err(PublishError::new(error, Some(staged))),
            };
            let act = Act::Become(Box::new(staged));
            let (number, previous) = self.commit_one(&record, expect, act)?;
            self.committed(number, 1);
            match previous {
                Some(previous) => Ok(Replaced {
                    generation: Generation(number),
                    previous,
                }),
                // `expect` demands a living generation, so the commit superseded one.
                None => unreachable!("a replace superseded nothing"),
            }
        })
    }

    /// Unlinks `set` now: new requests get [`Error::StaleHandle`], running ones keep their lease,
    /// and the bytes come back with the last of them. Never waits for readers and never fails
    /// because of them; wait for them with [`Retirement::drained`] if you want to.
    ///
    /// # Errors
    /// [`Error::StaleHandle`] if it is retired already, [`Error::WrongRegistry`],
    /// [`Error::Dependants`] while adapters are bound to it.
    pub fn retire(&self, set: SetHandle) -> Result<Retirement, Error> {
        self.retire_expecting(set, Expect::Tenant(set.tag))
    }

    /// [`retire`](Self::retire), provided that `expected` is still current.
    ///
    /// # Errors
    /// Also [`Error::Conflict`].
    pub fn retire_if(&self, set: SetHandle, expected: Generation) -> Result<Retirement, Error> {
        self.retire_expecting(
            set,
            Expect::Exactly {
                tag: set.tag,
                birth: expected.0,
            },
        )
    }

    fn retire_expecting(&self, set: SetHandle, expect: Expect) -> Result<Retirement, Error> {
        self.observe(Operation::Retire, set, itself, || {
            self.shared.check_process()?;
            let (record, _) = self.record(set)?;
            let (number, previous) = match self.commit_one(&record, expect, Act::Retire) {
                Ok((number, Some(previous))) => (number, previous),
                Ok((_, None)) => unreachable!("a retire superseded nothing"),
                Err(failed) => return Err(failed.into()),
            };
            self.free_name(&record);
            self.committed(number, 1);
            Ok(previous)
        })
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
        self.names
            .unlink(&record.name, |&handle| handle == record.handle);
    }

    /// The record of a set that `staged` may follow.
    pub(super) fn check_replace(
        &self,
        set: SetHandle,
        staged: &Staged,
    ) -> Result<Arc<SetRecord>, Error> {
        self.check_staged(staged)?;
        let (record, kind) = self.record(set)?;
        if kind == staged.kind() {
            return Ok(record);
        }
        Err(Error::KindMismatch {
            set: record.name.clone(),
            current: kind,
            offered: staged.kind(),
        })
    }

    /// The record and kind of a set that is current now.
    pub(super) fn record(&self, set: SetHandle) -> Result<(Arc<SetRecord>, SetKind), Error> {
        let view = self.view();
        let node = view.resolve(self.key(set)?);
        let meta = node
            .and_then(Node::meta)
            .ok_or(Error::StaleHandle { handle: set })?;
        Ok((Arc::clone(&meta.record), meta.kind))
    }

    fn check_staged(&self, staged: &Staged) -> Result<(), Error> {
        self.shared.check_process()?;
        if staged.registry == self.id {
            Ok(())
        } else {
            Err(Error::StagedElsewhere {
                staged_in: staged.registry,
                registry: self.id,
            })
        }
    }

    /// The error for a name that is taken; `None` if its set is just going.
    fn taken(&self, name: &SetName, handle: SetHandle, offered: &str) -> Option<Error> {
        let view = self.view();
        let node = view.resolve(self.key(handle).ok()?)?;
        Some(Error::AlreadyPublished {
            name: name.clone(),
            current: generation(node),
            identity: node.meta()?.identity.to_string(),
            offered: offered.to_owned(),
        })
    }
}

/// A name and a slot for a set that is not there yet.
pub(super) struct Reserved<'r> {
    registry: &'r WeightRegistry,
    pub(super) record: Arc<SetRecord>,
    key: Key,
    claim: Option<Claim<'r, SetHandle>>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.claim.is_some() {
            self.registry.spine.recycle(self.key);
        }
    }
}
