//! Sets that could go: looking at them, taking their bytes, putting them back.
//!
//! What lives here: the acts. What does not: when and which (`admit`), the protocol with those who acquire
//! (`core::berth`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::super::WeightRegistry;
use super::super::catalog::CatalogEntry;
use super::super::content::{Body, Bytes};
use super::super::event::EventKind;
use super::super::generation::{generation, restore};
#[cfg(all(test, not(weighbridge_loom)))]
use super::super::meanwhile::Meanwhile;
use super::super::record::{SetRecord, Writing};
use super::choice::Offer;
use crate::core::{Key, Stays, Storage};
use crate::handle::{Generation, SetHandle};
use crate::ledger::Account;
use crate::policy::Candidate;

#[cfg(all(test, not(weighbridge_loom)))]
thread_local! {
    /// When an eviction has seen that nobody shares the bytes, and when it has them and somebody does.
    pub(in super::super) static MEANWHILE: Meanwhile = const { Meanwhile::new() };
}

/// A resident set that could be read again.
pub(super) struct Resident {
    pub(super) record: Arc<SetRecord>,
    pub(super) generation: Generation,
    pub(super) offer: Offer,
    /// For the policy.
    pub(super) candidate: Candidate,
}

impl Resident {
    pub(super) fn is_pinned(&self) -> bool {
        !self.candidate.pinned_by.is_empty()
    }

    /// Could it go at this moment?
    pub(super) fn is_idle(&self) -> bool {
        self.candidate.leases == 0 && !self.is_pinned()
    }
}

/// What is resident at one commit.
#[derive(Default)]
pub(super) struct Scene {
    /// Those that could be read again, those first whose bytes came first.
    pub(super) residents: Vec<Resident>,
    /// Bytes of the others.
    pub(super) fixed: BTreeMap<Account, u64>,
}

/// Bytes that were taken from an idle set, and are still in memory.
pub(super) struct Spare {
    pub(super) record: Arc<SetRecord>,
    generation: Generation,
    pub(super) body: Body,
    entry: CatalogEntry,
    told: bool,
}

impl Spare {
    pub(super) fn offer(&self) -> Offer {
        Offer {
            account: Account::namespace(self.record.name.namespace()),
            bytes: self.body.charge.bytes(),
        }
    }
}

fn key(record: &SetRecord) -> Key {
    Key {
        slot: record.handle.slot,
        tag: record.handle.tag,
    }
}

impl WeightRegistry {
    /// Every set that is resident. O(sets).
    pub(super) fn scene(&self) -> Scene {
        let now = Instant::now();
        let mut all = Vec::new();
        let mut fixed = BTreeMap::new();
        self.view().for_each(|_, node| {
            let Some(meta) = node.meta() else { return };
            let state = node.vitals().state();
            if state.is_absent() {
                return;
            }
            let account = Account::namespace(meta.record.name.namespace());
            if meta.facts.again.is_none() {
                *fixed.entry(account).or_default() += meta.bytes;
                return;
            }
            let record = &meta.record;
            // Sampled: what was used until now was used before this.
            let (used, idle) = record.mark.lock().sample(state.clear_visited(), now); // E77
            let (reload, came) = record.last_load();
            let resident = Resident {
                record: Arc::clone(record),
                generation: generation(node),
                offer: Offer {
                    account,
                    bytes: meta.bytes,
                },
                candidate: Candidate {
                    set: meta.handle,
                    name: record.name.clone(),
                    bytes: meta.bytes,
                    leases: state.holds(),
                    pinned_by: record.pinned_by(),
                    used,
                    idle,
                    reload,
                },
            };
            all.push((came.max(node.birth()), resident));
        });
        all.sort_by_key(|(came, resident)| (*came, resident.record.handle));
        Scene {
            residents: all.into_iter().map(|(_, resident)| resident).collect(),
            fixed,
        }
    }

    /// Takes the bytes of a generation that nobody leases, and that nobody else has.
    pub(in super::super) fn part_with(
        &self,
        writing: &Writing<'_>,
        generation: Generation,
    ) -> Result<Body, Stays> {
        let key = key(writing.record);
        let view = self.view();
        let alone = |bytes: &Bytes| {
            let alone = bytes.own.is_sole();
            #[cfg(all(test, not(weighbridge_loom)))]
            MEANWHILE.with(Meanwhile::happens);
            alone
        };
        // SAFETY: `writing` keeps everybody else from committing on, evicting and restoring this set, and
        // the view was opened after it was taken.
        let Bytes { own, lent } = unsafe { view.evict(key, generation.0, false, alone) }?;
        let body = own.sole().map_err(|own| {
            // An alias was bound to it since that look.
            #[cfg(all(test, not(weighbridge_loom)))]
            MEANWHILE.with(Meanwhile::happens);
            // SAFETY: as above.
            let back = unsafe { restore(&view, key, generation, Bytes { own, lent }) };
            debug_assert!(back.is_ok(), "nobody else may write the set");
            Stays::Shared
        });
        self.pictures.moved();
        body
    }

    /// Takes the bytes of all of `idle` that can go at this moment. If some cannot, because they are leased or
    /// pinned since that look, written at this moment, or shared, their sets are the second answer; with
    /// `all_or_none` nothing is taken then.
    pub(super) fn take(
        &self,
        idle: &[&Resident],
        all_or_none: bool,
    ) -> (Vec<Spare>, Vec<SetHandle>) {
        let (mut ready, mut busy) = (Vec::new(), Vec::new());
        for one in idle {
            match self.ready(one) {
                Some((writing, entry)) => ready.push((*one, writing, entry)),
                None => busy.push(one.record.handle),
            }
        }
        if all_or_none && !busy.is_empty() {
            return (Vec::new(), busy);
        }
        let mut taken = Vec::new();
        for (one, writing, entry) in ready {
            // Whoever leased it since then was faster.
            match self.part_with(&writing, one.generation) {
                Ok(body) => taken.push(Spare {
                    record: Arc::clone(&one.record),
                    generation: one.generation,
                    body,
                    entry,
                    told: false,
                }),
                Err(_) => busy.push(one.record.handle),
            }
        }
        (taken, busy)
    }

    /// The right to take its bytes, if it is likely that this succeeds, and what it will be then.
    fn ready<'r>(&self, idle: &'r Resident) -> Option<(Writing<'r>, CatalogEntry)> {
        let record = &idle.record;
        let writing = record.try_write()?;
        if !record.pinned_by().is_empty() {
            return None;
        }
        let (key, birth) = (key(record), idle.generation.0);
        let view = self.view();
        let node = view.resolve(key).filter(|node| node.birth() == birth)?;
        if node.vitals().state().holds() > 0 {
            return None;
        }
        // SAFETY: `writing` keeps everybody else from committing on, evicting and restoring this set, and
        // the view was opened after it was taken.
        let alone = unsafe { view.look_at(key, birth, |bytes| bytes.own.is_sole()) };
        let entry = CatalogEntry::of(node.meta()?, idle.generation, false);
        alone?.then_some((writing, entry))
    }

    /// They went: whoever watches is told.
    pub(super) fn tell_evicted(&self, spare: &mut Spare) {
        if !std::mem::replace(&mut spare.told, true) {
            spare.body.charge.evict();
            let now = spare.entry.clone();
            self.shared.tell(EventKind::Evicted { now });
        }
    }

    /// They were not wanted after all.
    pub(super) fn put_back(&self, spare: Spare) {
        let Spare {
            record,
            generation,
            body,
            mut entry,
            told,
        } = spare;
        let bytes = Bytes::new(body);
        let late = {
            let _writing = record.write();
            if told {
                bytes.own.charge.put_back();
            }
            let view = self.view();
            // SAFETY: as in `part_with`.
            match unsafe { restore(&view, key(&record), generation, bytes) } {
                Ok(_hold) => {
                    self.pictures.moved();
                    if told {
                        entry.resident = true;
                        self.shared.tell(EventKind::Loaded { now: entry });
                    }
                    None
                }
                Err(bytes) => Some(bytes),
            }
        };
        if let Some(bytes) = late {
            // The set has another generation, or is gone: nobody wants these.
            bytes.own.charge.evict();
            bytes.dismantle(&mut || {});
        }
    }
}
