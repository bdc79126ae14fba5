//! Residency: a set stays published while its bytes are away.
//!
//! What lives here: taking the bytes of an unleased set away because somebody says so. What does not: doing
//! so to make room (`room`), reading them again (`wanting`, `loading`), the protocol with those who acquire
//! (`core::berth`), what a drained swap does to a set's place (`swap`).
//!
//! It does not change what is current: name, handle, generation, identity and whatever stands on the set stay
//! as they are. It happens by who may write the set, so that its generation does not change meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::WeightRegistry;
use super::catalog::CatalogEntry;
use super::event::{EventKind, Operation};
use super::generation::{Node, generation};
use super::loading::Inside;
use super::observe::itself;
use super::record::SetRecord;
use crate::core::{Stays, Storage};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::holdup::Holdup;

impl WeightRegistry {
    /// Takes the bytes of a set away that nobody leases, and gives them back to the ledger; the answer is
    /// how many. Zero: it had none.
    ///
    /// The set stays published: name, handle, generation and identity are what they were, and adapters
    /// stay bound to it. Acquiring it says [`Error::NotResident`] until it is [loaded](Self::load) again. An
    /// acquire that runs at the same time comes first, and the bytes stay, or after it; none waits. The
    /// memory is freed on this thread, unless it is kept ([`Builder::pool_bytes`](crate::Builder::pool_bytes)).
    ///
    /// So a generation is no key for an address: what is loaded again is in other memory, under the same
    /// number. An address is good for as long as the lease is held under which it was asked for.
    ///
    /// Only sets whose source can be read again are evicted: see [`Evictable`](crate::source::Evictable).
    ///
    /// # Errors
    /// [`Error::Leased`], with who holds it; [`Error::BytesShared`] if an alias has them, too, or an earlier
    /// number of the same bytes (before a rollback or a rebind) that somebody still leases or the reclaimer
    /// has not let go of; [`Error::NotEvictable`]; [`Error::Pinned`]; [`Error::LoadInsideLoad`]; [`Error::StaleHandle`],
    /// [`Error::WrongRegistry`], [`Error::Forked`]. The set is as it was then. If an alias came to share its
    /// bytes while this was on its way, they had been taken and are put back: for that moment it was not
    /// resident for anybody.
    pub fn evict(&self, set: SetHandle) -> Result<u64, Error> {
        self.observe(Operation::Evict, set, itself, || self.take_away(set))
    }

    fn take_away(&self, set: SetHandle) -> Result<u64, Error> {
        self.shared.check_process()?;
        Inside::no_policy()?;
        self.key(set)?;
        let record = self.record(set)?;
        // Until it is clear whether they go: nobody begins to load a set that keeps its bytes after all.
        let admission = self.room.close(); // E74
        let writing = record.write();
        let (body, now) = {
            let view = self.view();
            let stale = Error::StaleHandle { handle: set };
            let Some((node, meta)) = view
                .resolve(self.key(set)?)
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
            let by = record.pinned_by();
            if !by.is_empty() {
                return Err(Error::Pinned { set: name(), by });
            }
            let body = loop {
                match self.part_with(&writing, generation(node)) {
                    Ok(body) => break body,
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
            (body, CatalogEntry::of(meta, generation(node), false))
        };
        drop(admission);
        let bytes = body.charge.bytes();
        body.charge.evict();
        body.dismantle(&mut || {});
        // When they are back, so that whoever hears of it has the room; and before anybody can load it.
        self.shared.tell(EventKind::Evicted { now });
        drop(writing);
        Ok(bytes)
    }

    /// Who holds the current generation of a set.
    #[cold]
    pub(super) fn holdup(&self, record: &Arc<SetRecord>, node: &Node) -> Box<Holdup> {
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
    use std::sync::mpsc;
    use std::thread;

    use super::super::meanwhile::Meanwhile;
    use super::super::room::MEANWHILE;
    use super::*;
    use crate::Dtype;
    use crate::source::{Evictable, InMemory};

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

    /// Whoever would load while they are away finds that they are not.
    #[test]
    fn nobody_loads_what_is_put_back() {
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let (is_opened, opened) = mpsc::channel();
        let open = move || {
            // Nobody listens any more at the end.
            let _ = is_opened.send(());
            Ok(of_64())
        };
        let source = Evictable::opened_by(open).unwrap();
        let owner = registry.publish("owner", source).unwrap();
        opened.recv().unwrap();
        somebody_shares(&registry, owner);
        let (to, loader) = mpsc::channel();
        let loads = Arc::clone(&registry);
        meanwhile(move || {
            let loader = thread::spawn(move || loads.load(owner));
            // One that did not wait would open it at once.
            let early = opened.recv_timeout(Duration::from_millis(50));
            to.send((loader, early, opened)).unwrap();
        });
        registry.evict(owner).unwrap_err();
        let (loader, early, opened) = loader.recv().unwrap();
        assert!(early.is_err(), "it is read while it is put back");
        assert_eq!(loader.join().unwrap().unwrap(), 0);
        assert!(opened.try_recv().is_err(), "it is read for nothing");
        assert_eq!(registry.ledger().total(), 64);
    }
}
