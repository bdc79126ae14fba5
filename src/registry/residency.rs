//! Residency: a set stays published while its bytes are away.
//!
//! What lives here: taking the bytes of an unleased set away, and reading them again. What does not: the
//! protocol with those who acquire (`core::berth`), what a drained swap does to a set's place (`swap`).
//!
//! Neither changes what is current: name, handle, generation, identity and whatever stands on the set stay
//! as they are. Both happen by who may write the set, so that its generation does not change meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::WeightRegistry;
use super::catalog::CatalogEntry;
use super::content::{Body, Bytes, Facts};
use super::event::{EventKind, Operation};
use super::generation::{Node, generation};
use super::observe::itself;
use super::record::SetRecord;
use super::staged::Vouched;
use crate::arena::Arena;
use crate::core::{Stays, Storage};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::holdup::Holdup;
use crate::ledger::Account;
use crate::memory::Memory;
use crate::source::Source;

impl WeightRegistry {
    /// Takes the bytes of a set away that nobody leases, and gives them back to the ledger; the answer is
    /// how many. Zero: it had none.
    ///
    /// The set stays published: name, handle, generation and identity are what they were, and adapters
    /// stay bound to it. Acquiring it says [`Error::NotResident`] until it is [loaded](Self::load) again. An
    /// acquire that runs at the same time comes first, and the bytes stay, or after it; none waits. The
    /// memory is freed on this thread.
    ///
    /// Only sets whose source can be read again are evicted: see [`Evictable`](crate::source::Evictable).
    ///
    /// # Errors
    /// [`Error::Leased`], with who holds it; [`Error::BytesShared`] if an alias has them, too, or an earlier
    /// number of the same bytes (before a rollback or a rebind) that somebody still leases or the reclaimer
    /// has not let go of; [`Error::NotEvictable`]; [`Error::StaleHandle`], [`Error::WrongRegistry`],
    /// [`Error::Forked`]. The set is as it was then.
    pub fn evict(&self, set: SetHandle) -> Result<u64, Error> {
        self.observe(Operation::Evict, set, itself, || self.take_away(set))
    }

    fn take_away(&self, set: SetHandle) -> Result<u64, Error> {
        self.shared.check_process()?;
        let key = self.key(set)?;
        let record = self.record(set)?;
        let writing = record.write();
        let (body, now) = {
            let view = self.view();
            let stale = Error::StaleHandle { handle: set };
            let Some((node, meta)) = view
                .resolve(key)
                .and_then(|node| Some((node, node.meta()?)))
            else {
                return Err(stale);
            };
            if node.is_absent() {
                return Ok(0);
            }
            let name = || record.name.clone();
            if meta.facts.again.is_none() {
                return Err(Error::NotEvictable { set: name() });
            }
            let Bytes { own, lent } = loop {
                let alone = |bytes: &Bytes| bytes.own.is_sole();
                // SAFETY: `writing` keeps everybody else from committing on, evicting and restoring this
                // set, and the view was opened after it was taken.
                match unsafe { view.evict(key, node.birth(), false, alone) } {
                    Ok(bytes) => break bytes,
                    Err(Stays::Absent) => return Ok(0),
                    Err(Stays::Dead) => return Err(stale),
                    Err(Stays::Shared) => return Err(Error::BytesShared { set: name() }),
                    Err(Stays::Leased | Stays::Visited) => {}
                }
                let holdup = self.holdup(&record, node);
                // It ended meanwhile: nobody would be in the way.
                if holdup.leases > 0 {
                    return Err(Error::Leased(holdup));
                }
            };
            let body = match own.sole() {
                Ok(body) => body,
                // An alias was bound to it since that look.
                Err(own) => {
                    // SAFETY: as above.
                    let back = unsafe { view.restore(key, node.birth(), Bytes { own, lent }) };
                    debug_assert!(back.is_ok(), "nobody else may write the set");
                    self.pictures.moved();
                    return Err(Error::BytesShared { set: name() });
                }
            };
            self.pictures.moved();
            (body, CatalogEntry::of(meta, generation(node), false))
        };
        let bytes = body.charge.bytes();
        body.charge.evict();
        drop(body.into_charge());
        // When they are back, so that whoever hears of it has the room; and before anybody can load it.
        self.shared.tell(EventKind::Evicted { now });
        drop(writing);
        Ok(bytes)
    }

    /// Reads the bytes of a set again that was [evicted](Self::evict); the answer is what the ledger is
    /// charged for them. Zero: they were there.
    ///
    /// The bytes are reserved before any is allocated, and must be what they were: the same contents where
    /// the registry had hashed them; the same revision where the caller vouches, or the same fingerprint where
    /// nobody does, and then it is their word that counts. Of several threads that
    /// want one set, one reads and the others wait for it; other sets are not affected, and nobody who
    /// acquires waits. While a set's source is read again, it must not load this very set, nor one that
    /// waits for it: that would wait for ever.
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OverAccountLimit`], [`Error::OutOfMemory`]; [`Error::ReloadDiffers`];
    /// whatever is wrong with the source; [`Error::NotResident`] if its bytes are not to come back (a
    /// [`replace_drained`](Self::replace_drained) has its place); [`Error::StaleHandle`],
    /// [`Error::WrongRegistry`], [`Error::Forked`]. The set stays without bytes then, and nothing is left
    /// behind.
    pub fn load(&self, set: SetHandle) -> Result<u64, Error> {
        self.observe(Operation::Load, set, itself, || self.bring_back(set))
    }

    fn bring_back(&self, set: SetHandle) -> Result<u64, Error> {
        self.shared.check_process()?;
        if self.absent(set)?.is_none() {
            return Ok(0);
        }
        let (key, record) = (self.key(set)?, self.record(set)?);
        // Dropped after the locks: with them goes what their sources left.
        let mut looked = Vec::new();
        let _loading = record.load();
        loop {
            let Some((now, facts)) = self.absent(set)? else {
                return Ok(0);
            };
            looked.push(facts);
            let facts = &looked[looked.len() - 1];
            let bytes = self.read_again(&record, now, facts)?;
            let charged = bytes.own.charge.bytes();
            let writing = record.write();
            // Before it can be leased: afterwards somebody may already have superseded it.
            bytes.own.charge.settle();
            let view = self.view();
            // SAFETY: `writing` keeps everybody else from committing on, evicting and restoring this set,
            // and the view was opened after it was taken.
            match unsafe { view.restore(key, now.0, bytes) } {
                Ok(()) => {
                    self.pictures.moved();
                    if let Some(meta) = view.resolve(key).and_then(Node::meta) {
                        let now = CatalogEntry::of(meta, now, true);
                        self.shared.tell(EventKind::Loaded { now });
                    }
                    return Ok(charged);
                }
                // It has another generation by now, or is gone: look again.
                Err(bytes) => {
                    drop(view);
                    drop(writing);
                    bytes.own.charge.unsettle();
                    bytes.dismantle(&mut || {});
                }
            }
        }
    }

    /// What a set is that has no bytes now. `None`: it has some.
    fn absent(&self, set: SetHandle) -> Result<Option<(Generation, Facts)>, Error> {
        let key = self.key(set)?;
        let view = self.view();
        let node = view.resolve(key);
        let node = node.ok_or(Error::StaleHandle { handle: set })?;
        let meta = node.meta().filter(|_| node.is_absent());
        Ok(meta.map(|meta| (generation(node), meta.facts.clone())))
    }

    /// Reads what `facts` describe once more.
    fn read_again(
        &self,
        record: &SetRecord,
        generation: Generation,
        facts: &Facts,
    ) -> Result<Bytes, Error> {
        let handle = record.handle;
        let again = facts.again.as_ref().ok_or(Error::NotResident { handle })?;
        let account = Account::namespace(record.name.namespace());
        let charge = self.shared.ledger.take(Some(&account), again.charged)?;
        let mut arena = Arena::allocate(again.arena_bytes)?;
        let differs = |now: String| Error::ReloadDiffers {
            set: record.name.clone(),
            generation,
            was: facts.identity.to_string(),
            now,
        };
        let nothing = || Err(differs("nothing".to_owned()));
        let (mut read, mut touched) = (nothing(), false);
        again.reopen(&mut |source: &dyn Source| {
            // Whatever was read before does not count any more.
            read = nothing();
            if std::mem::replace(&mut touched, true) {
                arena.as_mut_slice().fill(0);
            }
            let plan = source.plan();
            if !facts.describes(plan) {
                return Err(differs("other tensors".to_owned()));
            }
            source.read_into(arena.as_mut_slice())?;
            let now = Vouched::by(source).identify(plan, arena.as_slice());
            if now != facts.identity {
                return Err(differs(now.to_string()));
            }
            read = Ok(());
            Ok(())
        })?;
        read?;
        let memory = Memory::from(arena);
        Ok(Bytes::new(Body { memory, charge }))
    }

    /// Who holds the current generation of a set.
    #[cold]
    fn holdup(&self, record: &Arc<SetRecord>, node: &Node) -> Box<Holdup> {
        let (holders, fences) = self.shared.holders(record.handle.slot, node.birth());
        Box::new(Holdup {
            set: record.name.clone(),
            generation: generation(node),
            waited: Duration::ZERO,
            leases: node.vitals().state().holds(),
            holders,
            fences,
        })
    }
}
