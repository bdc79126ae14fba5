//! Sets that stand on sets: who they are, and moving or retiring them together.
//!
//! What lives here: finding the living sets that are bound to another one, binding them anew, retiring
//! them along. What does not: that no set is superseded under them (`core::spine`), what they are bound
//! to (`bind`).

use std::collections::HashSet;
use std::sync::Arc;

use super::WeightRegistry;
use super::event::Operation;
use super::generation::Node;
use super::observe::itself;
use super::record::SetRecord;
use super::retirement::{Replaced, Retirement};
use super::step::{Act, Step};
use crate::core::Expect;
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::names::SetName;

/// A living set that is bound to another one.
pub(super) struct Dependant {
    pub(super) record: Arc<SetRecord>,
    /// By its tensors, not (only) as an adapter.
    pub(super) aliases: bool,
    /// As an adapter.
    pub(super) adapter: bool,
}

impl WeightRegistry {
    /// The living sets that are bound to `set`. Looks at every set: for writers that have been refused,
    /// or that ask.
    pub(super) fn dependants(&self, set: SetHandle) -> Vec<Dependant> {
        let mut found = Vec::new();
        self.view().for_each(|_, node| {
            let Some(meta) = node.meta() else { return };
            let own = meta.facts.aliases.as_deref();
            let aliases = own.is_some_and(|own| own.targets.0.iter().any(|one| one.set == set));
            let adapter = meta.facts.base == Some(set);
            if aliases || adapter {
                found.push(Dependant {
                    record: Arc::clone(&meta.record),
                    aliases,
                    adapter,
                });
            }
        });
        found.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        found
    }

    /// The living sets that are bound to a set, and not among `steps`.
    pub(super) fn standing_on(&self, record: &SetRecord, steps: &[Step]) -> Vec<Dependant> {
        let along: HashSet<SetHandle> = steps.iter().map(|step| step.record.handle).collect();
        let mut found = self.dependants(record.handle);
        found.retain(|one| !along.contains(&one.record.handle));
        found
    }

    /// No adapter stands on it, as far as can be seen without the commit lock.
    pub(super) fn check_adapters_on(&self, record: &SetRecord) -> Result<(), Error> {
        let set = record.handle;
        if self.spine.dependants(self.key(set)?) == 0 {
            return Ok(());
        }
        let mut standing = self.dependants(set);
        standing.retain(|one| one.adapter);
        if standing.is_empty() {
            return Ok(());
        }
        Err(blocked_by(record, &standing))
    }

    /// The living sets that are bound to `set`: adapters on it, and sets with aliases of its tensors,
    /// by name. O(sets).
    pub fn dependants_of(&self, set: SetHandle) -> Result<Vec<SetHandle>, Error> {
        self.record(set)?;
        let found = self.dependants(set);
        Ok(found.into_iter().map(|one| one.record.handle).collect())
    }

    /// Moves an adapter to `base` as it is: the same bytes under a new generation, bound to the base's
    /// current one. To move it together with a new generation of its base, use
    /// [`Transaction::rebind`](super::Transaction::rebind).
    ///
    /// Running requests keep the pairing that they leased. No byte is read, copied or charged.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::BaseNotCurrent`],
    /// [`Error::NotABase`], [`Error::AdapterMismatch`] if it does not fit, [`Error::KindMismatch`] if
    /// it is no adapter.
    pub fn rebind(&self, adapter: SetHandle, base: SetHandle) -> Result<Replaced, Error> {
        self.observe(Operation::Rebind, adapter, itself, || {
            self.shared.check_process()?;
            let record = self.check_rebind(adapter)?;
            let act = Act::Rebind(Some(base));
            let answer = self.commit_one(&record, Expect::Tenant(adapter.tag), act)?;
            self.committed(answer.0, 1);
            Ok(Replaced::of(answer))
        })
    }

    /// The record of an adapter.
    pub(super) fn check_rebind(&self, adapter: SetHandle) -> Result<Arc<SetRecord>, Error> {
        let view = self.view();
        let node = view.resolve(self.key(adapter)?);
        let meta = node
            .and_then(Node::meta)
            .ok_or(Error::StaleHandle { handle: adapter })?;
        match meta.kind {
            SetKind::Adapter => Ok(Arc::clone(&meta.record)),
            SetKind::Checkpoint => Err(Error::KindMismatch {
                set: meta.record.name.clone(),
                current: meta.kind,
                offered: SetKind::Adapter,
            }),
        }
    }

    /// Retires `set` together with every set that is bound to it, directly or not, at one instant.
    /// The set itself comes first.
    ///
    /// # Errors
    /// As [`retire`](Self::retire), without [`Error::Dependants`] and [`Error::AliasedBy`].
    pub fn retire_cascade(&self, set: SetHandle) -> Result<Vec<Retirement>, Error> {
        // One call, whoever came between and how often.
        let subject = format!("{set} and what stands on it");
        self.observe_whole(Operation::Transaction, subject, itself, || {
            loop {
                let mut all = self.transaction();
                all.retire_cascade(set)?;
                match all.commit() {
                    Ok(done) => return Ok(done.previous),
                    Err(failed) => match failed.error() {
                        // Another one was bound to it, or retired, since we looked.
                        Error::Dependants { .. } | Error::AliasedBy { .. } => {}
                        Error::StaleHandle { handle } if *handle != set => {}
                        _ => return Err(failed.into()),
                    },
                }
            }
        })
    }
}

impl Step {
    /// Of those that stand on this step's set: steps by which some come along by themselves, and those
    /// that do not.
    pub(super) fn followers(&self, standing: Vec<Dependant>) -> (Vec<Step>, Vec<Dependant>) {
        if !matches!(self.act, Act::Become(_) | Act::Restore(_) | Act::Rebind(_)) {
            return (Vec::new(), standing);
        }
        // An adapter was trained for its base: it is moved by whoever knows, not by itself.
        let alias = |one: &Dependant| one.aliases && !one.adapter;
        let (follow, stay): (Vec<_>, Vec<_>) = standing.into_iter().partition(alias);
        (
            follow.into_iter().map(|one| one.rebind(None)).collect(),
            stay,
        )
    }
}

/// Why a set cannot be superseded under `standing`.
#[cold]
pub(super) fn blocked_by(record: &SetRecord, standing: &[Dependant]) -> Error {
    let names = |which: fn(&Dependant) -> bool| -> Vec<SetName> {
        let which = standing.iter().filter(|one| which(one));
        which.map(|one| one.record.name.clone()).collect()
    };
    let set = record.name.clone();
    let aliases = names(|one| one.aliases);
    if aliases.is_empty() {
        let dependants = names(|one| one.adapter);
        Error::Dependants { set, dependants }
    } else {
        Error::AliasedBy { set, aliases }
    }
}

impl Dependant {
    /// Bound anew: to what becomes current with it, or is.
    pub(super) fn rebind(self, base: Option<SetHandle>) -> Step {
        Step {
            expect: Expect::Tenant(self.record.handle.tag),
            act: Act::Rebind(base),
            record: self.record,
        }
    }
}
