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
#[cfg(all(test, not(weighbridge_loom)))]
use super::meanwhile::Meanwhile;
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
    /// So a generation is no key for an address: what is loaded again is in other memory, under the same
    /// number. An address is good for as long as the lease is held under which it was asked for.
    ///
    /// Only sets whose source can be read again are evicted: see [`Evictable`](crate::source::Evictable).
    ///
    /// # Errors
    /// [`Error::Leased`], with who holds it; [`Error::BytesShared`] if an alias has them, too, or an earlier
    /// number of the same bytes (before a rollback or a rebind) that somebody still leases or the reclaimer
    /// has not let go of; [`Error::NotEvictable`]; [`Error::StaleHandle`], [`Error::WrongRegistry`],
    /// [`Error::Forked`]. The set is as it was then. If an alias came to share its bytes while this was on
    /// its way, they had been taken and are put back: for that moment it was not resident for anybody, and a
    /// load that began then may have read them for nothing, or found no room.
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
                let alone = |bytes: &Bytes| {
                    let alone = bytes.own.is_sole();
                    #[cfg(all(test, not(weighbridge_loom)))]
                    tests::MEANWHILE.with(Meanwhile::happens);
                    alone
                };
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
                    #[cfg(all(test, not(weighbridge_loom)))]
                    tests::MEANWHILE.with(Meanwhile::happens);
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
    /// waits for it: that would wait for ever. Whoever waits goes on when that read has ended, and no sooner
    /// if a replace has given the set other bytes meanwhile.
    ///
    /// They are in other memory than before, although the generation is the same: addresses from earlier leases
    /// are not theirs.
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
        let mut failed = None;
        loop {
            let Some((now, facts)) = self.absent(set)? else {
                return Ok(0);
            };
            looked.push(facts);
            let facts = &looked[looked.len() - 1];
            match failed.take() {
                // It is still what could not be read.
                Some((then, error)) if then == now => return Err(error),
                _ => {}
            }
            let bytes = match self.read_again(&record, now, facts) {
                Ok(bytes) => bytes,
                // Somebody else may have brought it back, or an eviction that was refused after all: look
                // again.
                Err(error) => {
                    failed = Some((now, error));
                    continue;
                }
            };
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

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::sync::{Mutex, PoisonError};
    use std::thread;

    use super::*;
    use crate::Dtype;
    use crate::plan::Plan;
    use crate::source::{Evictable, InMemory, Reload};

    const SOON: Duration = Duration::from_secs(60);

    thread_local! {
        /// When an eviction has seen that nobody shares the bytes, and when it has them and somebody does.
        pub(super) static MEANWHILE: Meanwhile = const { Meanwhile::new() };
    }

    fn meanwhile(act: impl FnOnce() + 'static) {
        MEANWHILE.with(|meanwhile| meanwhile.add(act));
    }

    fn of_64() -> InMemory {
        let source = InMemory::new().tensor("w", Dtype::U8, [64], [7; 64]);
        source.unwrap()
    }

    /// Publishes an alias of `owner`'s bytes when an eviction has seen that nobody has them, too.
    fn somebody_shares(registry: &Arc<WeightRegistry>, owner: SetHandle) {
        let registry = Arc::clone(registry);
        meanwhile(move || {
            let lent = registry.weight_handle(owner, "w").unwrap();
            let user = InMemory::new().alias("lent", lent).unwrap();
            registry.publish("user", user).unwrap();
        });
    }

    fn is_resident(registry: &WeightRegistry, name: &str) -> bool {
        registry.catalog().get(name).unwrap().resident
    }

    /// An eviction that was refused after it had the bytes: they are there as before, and so everybody says
    /// who was told that they are away.
    #[test]
    fn bytes_that_somebody_came_to_share_are_put_back() {
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let owner = registry.publish("owner", Evictable::new(of_64())).unwrap();
        somebody_shares(&registry, owner);
        let looks = Arc::clone(&registry);
        meanwhile(move || {
            assert!(!is_resident(&looks, "owner"));
            let refused = looks.acquire(owner).unwrap_err();
            assert!(matches!(refused, Error::NotResident { handle } if handle == owner));
        });
        let refused = registry.evict(owner).unwrap_err();
        assert!(matches!(refused, Error::BytesShared { .. }), "{refused}");
        assert!(MEANWHILE.with(Meanwhile::is_over));
        assert!(is_resident(&registry, "owner"));
        let lease = registry.acquire(owner).unwrap();
        assert_eq!(lease.set(owner).unwrap().get("w").unwrap().bytes(), [7; 64]);
        assert_eq!(registry.ledger().resident, 64);
    }

    /// Is opened when it is told to, and then it cannot be.
    struct Hangs(Sender<()>, Mutex<Receiver<()>>);

    impl Reload for Hangs {
        fn reopen(&self, _: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
            // Nobody waits for the second time.
            let _ = self.0.send(());
            let go_on = self.1.lock().unwrap_or_else(PoisonError::into_inner);
            go_on.recv_timeout(SOON).unwrap();
            Err(of_64().tensor("w", Dtype::U8, [1], [1]).unwrap_err())
        }
    }

    struct Hanging(InMemory, Arc<dyn Reload>);

    impl Source for Hanging {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }

        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            self.0.read_into(arena)
        }

        fn reload(&self) -> Option<Arc<dyn Reload>> {
            Some(Arc::clone(&self.1))
        }
    }

    /// Whoever began to load while they were away need not succeed: the bytes are there.
    #[test]
    fn a_load_that_fails_when_the_bytes_are_back_has_not_failed() {
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let (is_read, reads) = mpsc::channel();
        let (goes_on, go_on) = mpsc::channel();
        let source = Hanging(of_64(), Arc::new(Hangs(is_read, Mutex::new(go_on))));
        let owner = registry.publish("owner", source).unwrap();
        somebody_shares(&registry, owner);
        let (to, loader) = mpsc::channel();
        let loads = Arc::clone(&registry);
        meanwhile(move || {
            to.send(thread::spawn(move || loads.load(owner))).unwrap();
            reads.recv_timeout(SOON).unwrap();
        });
        registry.evict(owner).unwrap_err();
        goes_on.send(()).unwrap();
        let loader = loader.recv_timeout(SOON).unwrap();
        assert_eq!(loader.join().unwrap().unwrap(), 0);
        // When they are really away it is told.
        let user = registry.lookup("user").unwrap();
        registry.retire(user).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.evict(owner).unwrap(), 64);
        goes_on.send(()).unwrap();
        assert!(registry.load(owner).unwrap_err().is_malformed());
        assert_eq!(registry.ledger().total(), 0);
    }
}
