//! The writing side: staging, publishing, replacing, retiring.
//!
//! What lives here: how a source becomes a generation, and what each refusal of the core means to a
//! caller. What does not: the commit (`core::spine`), the bytes' way from disk (`source`), waiting
//! for the old generation (`retirement`).
//!
//! Everything slow happens before the commit: reading, hashing, allocation, names. A commit itself
//! is a few stores under one lock.

use std::fmt;
use std::sync::Arc;

use super::WeightRegistry;
use super::generation::{
    Bytes, Change, Going, Meta, Node, SetRecord, StagedNode, Writing, generation,
};
use super::retirement::Retirement;
use crate::arena::Arena;
use crate::core::{Bond, Expect, Key, Refusal};
use crate::error::Error;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::identity::{Identity, content_identity};
use crate::layout::{Extents, Layout, OrdinalTable};
use crate::names::{SetName, Taken};
use crate::plan::{AdapterPlan, Plan};
use crate::source::Source;

/// A set whose bytes are in memory, charged and identified, and which nobody can see yet.
///
/// Dropping it gives the bytes back and leaves no trace.
pub struct Staged {
    /// Whose ledger is charged.
    registry: u32,
    plan: Plan,
    /// As a first generation would have them: made here, so that a commit need not.
    layout: Arc<Layout>,
    extents: Extents,
    base: Option<SetHandle>,
    identity: Identity,
    bytes: Bytes,
}

impl Staged {
    /// What the bytes are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The tensors.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes that the ledger is charged for it.
    pub fn bytes(&self) -> u64 {
        self.bytes.charge.bytes()
    }

    fn kind(&self) -> SetKind {
        if self.base.is_some() {
            SetKind::Adapter
        } else {
            SetKind::Checkpoint
        }
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("origin", &self.plan.origin())
            .field("identity", &self.identity)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// A publish or replace that failed: why, and the staged set, if it got that far.
#[derive(Debug)]
pub struct PublishError(Box<(Error, Option<Staged>)>);

impl PublishError {
    fn new(error: Error, staged: Option<Staged>) -> Self {
        PublishError(Box::new((error, staged)))
    }

    /// Why it failed.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The staged set, to be published elsewhere or later; `None` if staging itself failed.
    pub fn into_staged(self) -> Option<Staged> {
        self.0.1
    }

    /// Both.
    pub fn into_parts(self) -> (Error, Option<Staged>) {
        *self.0
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source()
    }
}

impl From<PublishError> for Error {
    fn from(failed: PublishError) -> Self {
        failed.0.0
    }
}

impl From<Error> for PublishError {
    fn from(error: Error) -> Self {
        PublishError::new(error, None)
    }
}

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
        self.shared.check_process()?;
        let plan = source.plan().clone();
        let base = source.base();
        if let Some(base) = base {
            // Before any byte is reserved. Checked again when it is published: the base may change.
            let view = self.view();
            let node = view
                .resolve(self.key(base)?)
                .ok_or(Error::StaleHandle { handle: base })?;
            self.check_base(&plan, node)?;
        } else if plan.adapter().is_some() {
            return Err(Error::AdapterWithoutBase {
                origin: plan.origin().to_owned(),
            });
        }
        let bytes = Arena::charge_for(plan.arena_bytes())?;
        let charge = self.shared.ledger.reserve(bytes)?;
        let mut arena = Arena::allocate(plan.arena_bytes())?;
        source.read_into(arena.as_mut_slice())?;
        let identity = match source.declared() {
            Some(revision) => Identity::Declared(revision.into()),
            None => content_identity(&plan, arena.as_slice()),
        };
        let layout = self.layouts.intern(plan.layout());
        Ok(Staged {
            registry: self.id,
            extents: plan.extents(&layout),
            plan,
            layout,
            base,
            identity,
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
        name.validate()?;
        if let Some(handle) = self.names.lookup(name.as_ref())
            && let Some(error) = self.taken(&name, handle, source.plan().origin())
        {
            return Err(error.into());
        }
        let staged = self.stage(source)?;
        self.publish_staged(name, staged)
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
        if let Err(error) = self.check_staged(&staged).and_then(|()| name.validate()) {
            return Err(PublishError::new(error, Some(staged)));
        }
        let claim = match self.names.claim(&name) {
            Ok(claim) => claim,
            Err(taken) => {
                let error = match taken {
                    Taken::Live(handle) => self.taken(&name, handle, &staged.identity.to_string()),
                    Taken::Claimed => None,
                };
                return Err(PublishError::new(
                    error.unwrap_or(Error::NameBusy { name }),
                    Some(staged),
                ));
            }
        };
        let Some(key) = self.spine.allocate() else {
            return Err(PublishError::new(Error::Spent, Some(staged)));
        };
        let handle = SetHandle {
            registry: self.id,
            slot: key.slot,
            tag: key.tag,
        };
        let record = Arc::new(SetRecord::new(name, handle, Arc::clone(&staged.layout)));
        match self.commit(&record, Expect::Vacant, staged) {
            Ok(_) => {
                claim.settle(handle);
                // A retire that found the handle by a scope came before the name was settled, and
                // left the name to us.
                if self.view().resolve(key).is_none() {
                    self.unlink(&record);
                }
                Ok(handle)
            }
            Err(failed) => {
                self.spine.recycle(key);
                Err(failed)
            }
        }
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
        let record = match self.check_staged(&staged).and_then(|()| self.record(set)) {
            Ok((record, kind)) if kind == staged.kind() => record,
            Ok((record, kind)) => {
                let error = Error::KindMismatch {
                    set: record.name.clone(),
                    current: kind,
                    offered: staged.kind(),
                };
                return Err(PublishError::new(error, Some(staged)));
            }
            Err(error) => return Err(PublishError::new(error, Some(staged))),
        };
        let (number, previous) = self.commit(&record, expect, staged)?;
        match previous {
            Some(previous) => Ok(Replaced {
                generation: Generation(number),
                previous,
            }),
            // `expect` demands a living generation, so the commit superseded one.
            None => unreachable!("a replace superseded nothing"),
        }
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
        self.shared.check_process()?;
        let (record, _) = self.record(set)?;
        let node = StagedNode::tombstone(set.tag, Arc::clone(self.spine.reclaimer()));
        let mut changes = [Change::new(set.slot, expect, node)];
        let applied = self.apply(&mut record.write(), &mut changes, true);
        let previous = match applied {
            Ok((_, Some(previous))) => previous,
            Ok((_, None)) => unreachable!("a retire superseded nothing"),
            Err(refusal) => return Err(self.refused(refusal, &record, expect)),
        };
        self.unlink(&record);
        self.spine.recycle(Key {
            slot: set.slot,
            tag: set.tag,
        });
        Ok(previous)
    }

    fn unlink(&self, record: &SetRecord) {
        self.names
            .unlink(&record.name, |&handle| handle == record.handle);
    }

    /// The record and kind of a set that is current now.
    fn record(&self, set: SetHandle) -> Result<(Arc<SetRecord>, SetKind), Error> {
        let view = self.view();
        let node = view.resolve(self.key(set)?);
        let meta = node
            .and_then(Node::meta)
            .ok_or(Error::StaleHandle { handle: set })?;
        Ok((Arc::clone(&meta.record), meta.kind))
    }

    /// Turns a staged set into the next generation of `record`'s set.
    fn commit(
        &self,
        record: &Arc<SetRecord>,
        expect: Expect,
        mut staged: Staged,
    ) -> Result<(u64, Option<Retirement>), PublishError> {
        let mut writing = record.write();
        loop {
            let bond = match staged
                .base
                .map(|base| self.bond(&staged.plan, base))
                .transpose()
            {
                Ok(bond) => bond,
                Err(error) => return Err(PublishError::new(error, Some(staged))),
            };
            let own = Arc::clone(&staged.layout);
            let (node, plan, base, ordinals) = self.node(&writing, bond, staged);
            let mut changes = [Change::new(record.handle.slot, expect, node)];
            match self.apply(&mut writing, &mut changes, false) {
                Ok(done) => {
                    if let Some(ordinals) = ordinals {
                        writing.keep(ordinals);
                    }
                    return Ok(done);
                }
                Err(refusal) => {
                    let [change] = changes;
                    let parts = change.into_node().and_then(StagedNode::dismantle);
                    let Some((meta, bytes)) = parts else {
                        unreachable!("a refused change keeps its node")
                    };
                    bytes.charge.unsettle();
                    staged = Staged {
                        registry: self.id,
                        extents: if Arc::ptr_eq(&own, &meta.layout) {
                            meta.extents
                        } else {
                            plan.extents(&own)
                        },
                        plan,
                        layout: own,
                        base,
                        identity: meta.identity,
                        bytes,
                    };
                    if let Refusal::BaseGone { .. } = refusal {
                        // The base got a new generation since it was checked. Check against that
                        // one; if it is gone altogether, `bond` says so.
                        continue;
                    }
                    let error = self.refused(refusal, record, expect);
                    return Err(PublishError::new(error, Some(staged)));
                }
            }
        }
    }

    /// A staged node of the set that is being written, and the set's names if it brings new ones.
    fn node(
        &self,
        writing: &Writing<'_>,
        bond: Option<Bond>,
        staged: Staged,
    ) -> (StagedNode, Plan, Option<SetHandle>, Option<OrdinalTable>) {
        let record = writing.record;
        let kind = staged.kind();
        let Staged {
            registry: _,
            plan,
            mut layout,
            mut extents,
            base,
            identity,
            bytes,
        } = staged;
        let mut ordinals = None;
        if let Some((other, names)) = writing.layout_for(&plan, &layout) {
            layout = self.layouts.intern(other);
            extents = plan.extents(&layout);
            ordinals = Some(names);
        }
        let meta = Meta {
            handle: record.handle,
            kind,
            record: Arc::clone(record),
            extents,
            adapter: plan.adapter().map(AdapterPlan::info),
            layout,
            identity,
            base,
            bytes: bytes.charge.bytes(),
            shared: Arc::clone(&self.shared),
        };
        // Before the commit: afterwards somebody may already have superseded it.
        bytes.charge.settle();
        let reclaimer = Arc::clone(self.spine.reclaimer());
        (
            StagedNode::new(record.handle.tag, bond, meta, bytes, reclaimer),
            plan,
            base,
            ordinals,
        )
    }

    /// One set's change, committed: its number and what it superseded. `whole`: together with all
    /// earlier generations that are still held.
    fn apply(
        &self,
        writing: &mut Writing<'_>,
        changes: &mut [Change],
        whole: bool,
    ) -> Result<(u64, Option<Retirement>), Refusal> {
        let Writing { record, going } = writing;
        let mut superseded = None;
        let number = self.view().commit(changes, |_, node, bytes| {
            // Before the generation refuses leases: the taker may come at once after that.
            if let (Some(_), Some(bytes)) = (node.meta(), bytes) {
                bytes.charge.retire();
                superseded = Some(Going {
                    generation: generation(node),
                    bytes: bytes.charge.bytes(),
                    vitals: Arc::clone(node.vitals()),
                });
            }
        })?;
        let Some(superseded) = superseded else {
            return Ok((number, None));
        };
        // We have let go of the epoch: from here on the reclaimer can move it past the commit.
        self.spine.reclaimer().nudge();
        going.retain(|one| !one.vitals.is_reclaimed());
        going.push(superseded.clone());
        let parts = if whole {
            going.clone()
        } else {
            vec![superseded.clone()]
        };
        let retirement =
            |parts| Retirement::new(Arc::clone(record), parts, Arc::clone(&self.shared));
        self.remember(retirement(vec![superseded]));
        Ok((number, Some(retirement(parts))))
    }

    /// Binds an adapter to the generation of its base that is current now, if it fits.
    fn bond(&self, plan: &Plan, base: SetHandle) -> Result<Bond, Error> {
        let key = self.key(base)?;
        let view = self.view();
        let node = view.resolve(key).ok_or(Error::BaseNotCurrent { base })?;
        self.check_base(plan, node)?;
        Ok(Bond {
            base: key,
            birth: Some(node.birth()),
        })
    }

    fn check_base(&self, plan: &Plan, base: &Node) -> Result<(), Error> {
        let Some(base) = base.meta() else {
            return Ok(());
        };
        if base.kind == SetKind::Adapter {
            return Err(Error::NotABase {
                base: base.record.name.clone(),
            });
        }
        plan.adapter()
            .map_or(Ok(()), |adapter| adapter.check_against(&base.layout))
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

    #[cold]
    fn refused(&self, refusal: Refusal, record: &SetRecord, expect: Expect) -> Error {
        match refusal {
            Refusal::Dependants { count, .. } => Error::Dependants {
                set: record.name.clone(),
                count,
            },
            Refusal::BaseGone { bond, .. } => Error::BaseNotCurrent {
                base: SetHandle {
                    registry: self.id,
                    slot: bond.base.slot,
                    tag: bond.base.tag,
                },
            },
            Refusal::Changed {
                seen: Some(seen), ..
            } if !seen.retired && seen.tag == record.handle.tag => {
                let expected = match expect {
                    Expect::Exactly { birth, .. } => birth,
                    Expect::Tenant(_) | Expect::Vacant => 0,
                };
                Error::Conflict {
                    set: record.name.clone(),
                    expected: Generation(expected),
                    current: Generation(seen.birth),
                }
            }
            Refusal::Changed { .. } => Error::StaleHandle {
                handle: record.handle,
            },
            Refusal::Twice { .. } => unreachable!("a commit of one set names no slot twice"),
        }
    }
}
