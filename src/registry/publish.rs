//! The writing side: staging, publishing, replacing, retiring.
//!
//! What lives here: what a caller does with one set at a time. What does not: the commit (`commit`),
//! several sets (`transaction`), the bytes' way from disk (`source`), waiting for the old generation
//! (`retirement`).
//!
//! Everything slow happens before the commit: reading, hashing, allocation, names. A commit itself
//! is a few stores under one lock. One exception holds up nobody but other writers of the same sets: what
//! a set's aliases are is hashed when they are bound, under the locks of the sets that change.

use std::collections::HashMap;
use std::sync::Arc;

use super::WeightRegistry;
use super::accounts::Terms;
use super::bind::{Footing, check_node};
use super::event::Operation;
use super::generation::{Meta, Node, generation};
use super::observe::itself;
use super::record::SetRecord;
use super::retirement::{Replaced, Retirement};
use super::staged::{Furnished, PublishError, Room, Staged, Vouched};
use super::step::Act;
use crate::core::Expect;
use crate::error::Error;
use crate::escape::Clean;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::layout::Layout;
use crate::ledger::Account;
use crate::memory::Memory;
use crate::modules::Fit;
use crate::names::SetName;
use crate::plan::Plan;
use crate::pool::Supply;
use crate::reading::fill;
use crate::source::Source;

impl WeightRegistry {
    /// Reads `source` into memory, without making it visible.
    ///
    /// The bytes are reserved in the ledger before any is allocated, from the plan that the headers
    /// gave; when this fails, nothing is left behind. They count in a namespace when the set is
    /// published there. Blocks for as long as reading and hashing take; readers and other writers are
    /// not affected.
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OutOfMemory`], anything that is wrong with the source
    /// ([`Error::InvalidMemory`] for what it [brings](Source::bring)), and,
    /// for an adapter, [`Error::StaleHandle`], or [`Error::NotABase`] or [`Error::AdapterMismatch`]
    /// if it does not fit its base, or [`Error::AdapterWithoutEffect`] if it changes nothing of it.
    pub fn stage(&self, source: impl Source) -> Result<Staged, Error> {
        self.stage_on(Terms::default(), source)
    }

    /// [`stage`](Self::stage), on these terms.
    pub(super) fn stage_on(&self, terms: Terms<'_>, source: impl Source) -> Result<Staged, Error> {
        self.stage_if(terms, source, |adapter, base| {
            self.fits_current(adapter, base)
        })
    }

    /// Does an adapter (where it comes from, its layout) fit the base that is current now?
    pub(super) fn fits_current(
        &self,
        adapter: (&str, &Layout),
        base: SetHandle,
    ) -> Result<Fit, Error> {
        let view = self.view();
        let node = view
            .resolve(self.key(base)?)
            .ok_or(Error::StaleHandle { handle: base })?;
        check_node(adapter, node)
    }

    /// [`stage_on`](Self::stage_on), with what `fits` says of an adapter and its base.
    pub(super) fn stage_if(
        &self,
        terms: Terms<'_>,
        mut source: impl Source,
        fits: impl FnOnce((&str, &Layout), SetHandle) -> Result<Fit, Error>,
    ) -> Result<Staged, Error> {
        let origin = Clean(source.plan().origin().to_owned());
        self.observe(Operation::Stage, origin, itself, || {
            Self::check_streamed(&source)?;
            let room = self.room(terms, source.plan().clone(), source.base(), fits)?;
            let brought = source.bring();
            let charged = room.charged(brought.as_ref())?;
            let taken = self.take_for(terms, &room, brought.as_ref(), charged)?;
            self.read(self.furnish(room, brought, taken)?, source)
        })
    }

    /// Can it be read in parts, again and again, if that is how it is to be read?
    ///
    /// # Errors
    /// [`Error::InvalidParts`].
    pub(super) fn check_streamed(source: &impl Source) -> Result<(), Error> {
        let plan = source.plan();
        if plan.parts().is_none() {
            return Ok(());
        }
        let pieces = source.pieces();
        let pieces = pieces.is_some_and(|pieces| pieces.are_of(plan));
        if pieces && plan.aliases().is_empty() && source.reload().is_some() {
            Ok(())
        } else {
            Err(not_streamed(plan))
        }
    }

    /// Fills the room from `source`, unless it brought what is in it.
    pub(super) fn read(
        &self,
        mut furnished: Furnished,
        source: impl Source,
    ) -> Result<Staged, Error> {
        let read = match furnished.body.memory.arena_mut() {
            Some(arena) => {
                let hashed = Vouched::by(&source).needs_digests();
                let stale = furnished.stale;
                fill(&source, arena.as_mut_slice(), stale, hashed, self.readers)
            }
            None => Ok(None),
        };
        // Nothing more is asked of one that could not be read: a panic would hide why.
        let known = read.map(|digests| (Vouched::by(&source), digests, furnished.again(&source)));
        // While the room is still ours: if this panics, its bytes come back. A value that is being
        // returned would be lost.
        drop(source);
        let (vouched, digests, again) = known?;
        let plan = &furnished.room.plan;
        if plan.parts().is_some() {
            let known = digests.is_some() || !vouched.needs_digests();
            if !known || again.is_none() {
                return Err(not_streamed(plan));
            }
        }
        furnished.protect()?;
        let mut staged = furnished.fill(vouched, digests);
        staged.content.facts.again = again;
        Ok(staged)
    }

    /// Takes what `room` is [charged](Room::charged): with memory of the pool's, if its source brought none and
    /// there is some of that size.
    pub(super) fn take_for(
        &self,
        terms: Terms<'_>,
        room: &Room,
        brought: Option<&Memory>,
        charged: u64,
    ) -> Result<Supply, Error> {
        let pool = &self.shared.pool;
        match brought {
            Some(_) => pool.take(terms.account, charged).map(Supply::from),
            None => pool.take_arena(terms.account, room.plan.arena_bytes()),
        }
    }

    pub(super) fn furnish(
        &self,
        room: Room,
        brought: Option<Memory>,
        taken: Supply,
    ) -> Result<Furnished, Error> {
        room.furnish(brought, taken, self.shared.pool.clone(), self.protect)
    }

    /// What a set that `plan` describes will be, checked before any byte is reserved.
    pub(super) fn room(
        &self,
        terms: Terms<'_>,
        plan: Plan,
        base: Option<SetHandle>,
        fits: impl FnOnce((&str, &Layout), SetHandle) -> Result<Fit, Error>,
    ) -> Result<Room, Error> {
        self.shared.check_process()?;
        if base.is_none() && plan.adapter().is_some() {
            return Err(Error::AdapterWithoutBase {
                origin: plan.origin().to_owned(),
            });
        }
        if base.is_some() && !plan.tensors().is_empty() && !plan.changes_its_base() {
            return Err(Error::AdapterWithoutEffect {
                origin: plan.origin().to_owned(),
                tensors: plan.tensors().len(),
            });
        }
        terms.allow(base, &plan)?;
        let (targets, layout) = self.targets(&plan)?;
        terms.allow_targets(&targets)?;
        if let Some(base) = base {
            // Checked again when it is published: the base may change.
            fits((plan.origin(), &layout), base)?;
        }
        let mut footing = Footing::default();
        if !targets.0.is_empty() {
            self.lend(&mut footing, &targets, &layout, None, &HashMap::new())?;
        }
        let layout = self.layouts.intern(layout);
        Ok(Room {
            registry: self.id,
            aliased: footing
                .aliases
                .map(|bound| bound.aliased)
                .unwrap_or_default(),
            extents: layout.share(plan.extents(&layout)),
            layout,
            plan,
            targets,
            base,
        })
    }

    /// Reads `source` and makes it current under a new name.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`publish_staged`](Self::publish_staged). A name that is
    /// already taken, and what its namespace has no room for, is refused before any byte is read.
    pub fn publish(
        &self,
        name: impl Into<SetName>,
        source: impl Source,
    ) -> Result<SetHandle, PublishError> {
        self.shared.check_process()?;
        let name = name.into();
        let account = Account::namespace(name.namespace());
        self.publish_on(Terms::charged(&account), name, source)
    }

    /// [`publish`](Self::publish), on these terms.
    pub(super) fn publish_on(
        &self,
        terms: Terms<'_>,
        name: SetName,
        source: impl Source,
    ) -> Result<SetHandle, PublishError> {
        self.check_free(&name, source.plan().origin())
            .inspect_err(|error| self.note_refusal(Operation::Publish, &name, error))?;
        let staged = self.stage_on(terms, source)?;
        self.publish_staged(name, staged)
    }

    /// Makes a staged set current under a new name.
    ///
    /// # Errors
    /// [`Error::AlreadyPublished`] with both identities, [`Error::NameBusy`] while another publish
    /// or retire of this name is under way, [`Error::BaseNotCurrent`] if an adapter's base is gone,
    /// [`Error::StagedElsewhere`], [`Error::Spent`]; if the name is in a namespace that has no room
    /// for it, [`Error::TooManySets`] or [`Error::OverAccountLimit`]. The error returns the staged set.
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

    /// Reads `source` and makes it the next generation of `set`. Running requests keep the one they
    /// leased, new ones get this one; both fit into memory together, or the replace is refused.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`replace_staged`](Self::replace_staged). What the set alone forbids
    /// (its kind, adapters on it) is said before anything is read.
    pub fn replace(&self, set: SetHandle, source: impl Source) -> Result<Replaced, PublishError> {
        let account = self.account_to_replace(set)?;
        self.replace_on(Terms::charged(&account), set, None, source)
    }

    /// [`replace`](Self::replace), provided that `expected` is still current.
    ///
    /// # Errors
    /// Also [`Error::Conflict`] with both generations. If it was another generation from the start,
    /// nothing is read; otherwise the error returns the staged set.
    pub fn replace_if(
        &self,
        set: SetHandle,
        expected: Generation,
        source: impl Source,
    ) -> Result<Replaced, PublishError> {
        let account = self.account_to_replace(set)?;
        self.replace_on(Terms::charged(&account), set, Some(expected), source)
    }

    /// [`replace`](Self::replace) or [`replace_if`](Self::replace_if), on these terms.
    pub(super) fn replace_on(
        &self,
        terms: Terms<'_>,
        set: SetHandle,
        expected: Option<Generation>,
        source: impl Source,
    ) -> Result<Replaced, PublishError> {
        self.may_follow(set, expected, source.base())
            .inspect_err(|error| self.note_refusal(Operation::Replace, set, error))?;
        let staged = self.stage_on(terms, source)?;
        match expected {
            None => self.replace_staged(set, staged),
            Some(expected) => self.replace_staged_if(set, expected, staged),
        }
    }

    /// What a replace would be refused for whatever its source has: asked before a byte is read, and
    /// again by the commit.
    fn may_follow(
        &self,
        set: SetHandle,
        expected: Option<Generation>,
        base: Option<SetHandle>,
    ) -> Result<(), Error> {
        self.shared.check_process()?;
        let record = {
            let view = self.view();
            let node = view.resolve(self.key(set)?);
            let stale = Error::StaleHandle { handle: set };
            let (node, meta) = node
                .and_then(|node| Some((node, node.meta()?)))
                .ok_or(stale)?;
            check_kind(meta, SetKind::of(base))?;
            let current = generation(node);
            if let Some(expected) = expected
                && expected != current
            {
                return Err(Error::Conflict {
                    set: meta.record.name.clone(),
                    expected,
                    current,
                });
            }
            Arc::clone(&meta.record)
        };
        self.check_adapters_on(&record)
    }

    /// Makes a staged set the next generation of `set`.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::KindMismatch`] if a checkpoint
    /// would follow an adapter or the other way round, [`Error::ShardMismatch`] if another part of a
    /// tensor would follow one part of it, [`Error::Dependants`] if adapters are bound to the set,
    /// [`Error::AliasMismatch`] if a tensor is another set's and would no longer be what it is there,
    /// [`Error::BaseNotCurrent`], [`Error::NotABase`], [`Error::StagedElsewhere`],
    /// [`Error::OverAccountLimit`] or [`Error::ChargedElsewhere`] for its namespace. The error returns
    /// the staged set.
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
            self.follow(set, expect, staged)
        })
    }

    /// Makes a staged set the next generation of `set`. Told to nobody but subscribers of the commit.
    pub(super) fn follow(
        &self,
        set: SetHandle,
        expect: Expect,
        staged: Staged,
    ) -> Result<Replaced, PublishError> {
        let record = match self.check_replace(set, &staged) {
            Ok(record) => record,
            Err(error) => return Err(PublishError::new(error, Some(staged))),
        };
        let act = Act::Become(Box::new(staged));
        let answer = self.commit_one(&record, expect, act)?;
        self.committed(answer.0, 1);
        Ok(Replaced::of(answer))
    }

    /// Unlinks `set` now: new requests get [`Error::StaleHandle`], running ones keep their lease,
    /// and the bytes come back with the last of them. Never waits for readers and never fails
    /// because of them; wait for them with [`Retirement::drained`] if you want to.
    ///
    /// # Errors
    /// [`Error::StaleHandle`] if it is retired already, [`Error::WrongRegistry`],
    /// [`Error::Dependants`] while adapters are bound to it, [`Error::AliasedBy`] while tensors of other
    /// sets are its own; [`retire_cascade`](Self::retire_cascade) retires those along.
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
            let record = self.record(set)?;
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

    /// The record of a set that `staged` may follow.
    pub(super) fn check_replace(
        &self,
        set: SetHandle,
        staged: &Staged,
    ) -> Result<Arc<SetRecord>, Error> {
        self.check_staged(staged)?;
        self.check_follow(set, staged.kind(), &staged.content.facts.layout)
    }

    /// The record of a set that may have a generation of this kind and layout next.
    pub(super) fn check_follow(
        &self,
        set: SetHandle,
        kind: SetKind,
        layout: &Layout,
    ) -> Result<Arc<SetRecord>, Error> {
        let view = self.view();
        let node = view.resolve(self.key(set)?);
        let current = node
            .and_then(Node::meta)
            .ok_or(Error::StaleHandle { handle: set })?;
        check_kind(current, kind)?;
        // Every generation has the parts of the one before, so it makes no difference if this one is
        // superseded meanwhile.
        if let Some((ours, theirs)) = current.facts.layout.other_shard(layout) {
            return Err(Error::ShardMismatch {
                set: current.record.name.clone(),
                tensor: ours.name().to_owned(),
                current: ours.shard(),
                offered: theirs.shard(),
            });
        }
        Ok(Arc::clone(&current.record))
    }

    /// The record of a set that is current now.
    pub(super) fn record(&self, set: SetHandle) -> Result<Arc<SetRecord>, Error> {
        let view = self.view();
        let node = view.resolve(self.key(set)?);
        let meta = node
            .and_then(Node::meta)
            .ok_or(Error::StaleHandle { handle: set })?;
        Ok(Arc::clone(&meta.record))
    }

    pub(super) fn check_staged(&self, staged: &Staged) -> Result<(), Error> {
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
}

/// A checkpoint follows a checkpoint, an adapter an adapter.
fn check_kind(current: &Meta, offered: SetKind) -> Result<(), Error> {
    if current.kind == offered {
        return Ok(());
    }
    Err(Error::KindMismatch {
        set: current.record.name.clone(),
        current: current.kind,
        offered,
    })
}

/// A source that says that it is streamed does not give what that takes.
fn not_streamed(plan: &Plan) -> Error {
    Error::InvalidParts {
        origin: plan.origin().to_owned(),
        reason: "its source has no pieces of it, or cannot be read more than once, or some of it is another set's: forward \
                 `pieces`, `reload`, `declared` and `unread` if you wrap one"
            .to_owned(),
    }
}
