//! Drain, then swap: for a set whose old and new generation do not fit into memory together.
//!
//! What lives here: vacating a set, waiting for its leases, giving its memory to the next generation,
//! and the way back if somebody keeps the old one. What does not: an ordinary replace (`publish`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::WeightRegistry;
use super::accounts::Terms;
use super::content::Facts;
use super::dependants::blocked_by;
use super::event::Operation;
use super::generation::{Node, charged, generation};
#[cfg(all(test, not(weighbridge_loom)))]
use super::meanwhile::Meanwhile;
use super::record::SetRecord;
use super::retirement::{Replaced, Retirement};
use super::staged::{PublishError, Room, Staged};
use super::step::{Act, Step, Undone};
use crate::core::Expect;
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::ledger::Charge;
use crate::modules::check_fit;
use crate::pool::Supply;
use crate::source::Source;

impl WeightRegistry {
    /// Makes `source` the next generation of `set`, also if both do not fit into memory together.
    ///
    /// If they do, this is [`replace`](Self::replace). If not: the set stays published but has no bytes
    /// ([`Error::NotResident`] for new requests), running requests finish within `timeout`, the old
    /// memory is given back and its charge taken over (at no instant can another load have it), the
    /// source is read, and the set is resident again. Adapters on the set stay bound to it.
    ///
    /// # Errors
    /// Nothing is changed with [`Error::OverLimit`] or [`Error::OverAccountLimit`] (it would not fit even
    /// then), [`Error::AliasedBy`] (other sets hold its memory), [`Error::NotResident`] (another drained
    /// swap of it is under way), and with whatever [`stage`](Self::stage) finds wrong before it reads.
    /// [`Error::NotDrained`], [`Error::NotReclaimed`]: the old generation is current again, under a new
    /// number. [`Error::Emptied`], with the cause: what failed after that (reading the source; an adapter
    /// that was published meanwhile, on what the set was, and does not fit what it becomes), leaves the
    /// set without bytes. Fill it by this call, which takes the adapters along, or retire it.
    /// [`Error::Conflict`] if somebody else gave it a generation meanwhile, [`Error::StaleHandle`] if it was
    /// retired: before it was vacated nothing is changed, afterwards the error returns what was staged.
    pub fn replace_drained(
        &self,
        set: SetHandle,
        source: impl Source,
        timeout: Duration,
    ) -> Result<Replaced, PublishError> {
        let account = self.account_to_replace(set)?;
        self.replace_drained_on(Terms::charged(&account), set, source, timeout)
    }

    /// [`replace_drained`](Self::replace_drained), on these terms.
    pub(super) fn replace_drained_on(
        &self,
        terms: Terms<'_>,
        set: SetHandle,
        source: impl Source,
        timeout: Duration,
    ) -> Result<Replaced, PublishError> {
        self.observe(Operation::Replace, set, PublishError::error, || {
            self.drain_and_swap(terms, set, source, timeout)
        })
    }

    fn drain_and_swap(
        &self,
        terms: Terms<'_>,
        set: SetHandle,
        mut source: impl Source,
        timeout: Duration,
    ) -> Result<Replaced, PublishError> {
        let started = Instant::now();
        let room = self.room(
            terms,
            source.plan().clone(),
            source.base(),
            |adapter, base| self.fits_current(adapter, base),
        )?;
        Self::check_streamed(&source)?;
        let brought = source.bring();
        let needed = room.charged(brought.as_ref())?;
        let (record, previous, more) = loop {
            match self.take_for(terms, &room, brought.as_ref(), needed) {
                // Enough for both.
                Ok(taken) => {
                    let staged = self.read(self.furnish(room, brought, taken)?, source)?;
                    return self.follow_or_fill(set, staged);
                }
                Err(Error::OverLimit { .. } | Error::OverAccountLimit { .. }) => {}
                Err(other) => return Err(other.into()),
            }
            let (record, birth, more) = self.can_follow(terms, set, &room, needed)?;
            #[cfg(all(test, not(weighbridge_loom)))]
            tests::MEANWHILE.with(Meanwhile::happens);
            let tag = set.tag;
            // Exactly the one whose bytes were counted on.
            let expect = Expect::Exactly { tag, birth };
            match self.commit_with_adapters(&record, expect, Act::Vacate) {
                Ok((_, previous)) => break (record, previous, more),
                // Evicted since then, so there is more room now; or there was, if it is back already. It
                // ends: each round needs an eviction, and what is away is followed or does not fit. Not of an
                // adapter that comes along, which may be without what it needs for ever.
                Err(failed) if matches!(failed.error(), Error::NotResident { handle } if *handle == set) =>
                {
                    #[cfg(all(test, not(weighbridge_loom)))]
                    tests::MEANWHILE.with(Meanwhile::happens);
                    if self.empty_place(set).is_some() {
                        return Err(failed);
                    }
                }
                Err(failed) => return Err(failed),
            }
        };
        let mut taken = self.take_over(&record, &previous, |previous| {
            let left = || timeout.saturating_sub(started.elapsed());
            previous.drained(left())?;
            previous.reclaimed(left())
        })?;
        let len = room.plan.arena_bytes();
        let same = taken.arena.take().filter(|_| brought.is_none());
        taken.arena = same.and_then(|arena| arena.reuse(len).ok());
        taken.charge = taken.charge.reuse(more);
        taken.charge.shrink_to(needed);
        let furnished = self.furnish(room, brought, taken);
        let (number, _) = furnished
            .and_then(|furnished| self.read(furnished, source))
            .map_err(PublishError::from)
            .and_then(|staged| self.fill_place(&record, previous.generation(), staged))
            .map_err(|failed| self.emptied(&record, failed))?;
        self.committed(number, 1);
        Ok(Replaced {
            generation: Generation(number),
            previous,
        })
    }

    /// Makes `staged` current: a replace like any other, or, if a drained swap failed and left the set
    /// empty, together with the adapters on it, which cannot be leased with it before.
    fn follow_or_fill(&self, set: SetHandle, staged: Staged) -> Result<Replaced, PublishError> {
        let Some(before) = self.empty_place(set) else {
            return self.follow(set, Expect::Tenant(set.tag), staged);
        };
        let record = match self.check_replace(set, &staged) {
            Ok(record) => record,
            Err(error) => return Err(PublishError::new(error, Some(staged))),
        };
        let (number, previous) = self.fill_place(&record, before, staged)?;
        self.committed(number, 1);
        Ok(Replaced {
            generation: Generation(number),
            previous,
        })
    }

    /// The generation that says that a set has no bytes and waits for the next one, if that is current. One
    /// that was evicted is not such a place: its bytes may come back.
    fn empty_place(&self, set: SetHandle) -> Option<Generation> {
        let view = self.view();
        let node = view.resolve(self.key(set).ok()?)?;
        let comes_again = node.meta()?.facts.again.is_some();
        (node.is_absent() && !comes_again).then(|| generation(node))
    }

    /// There is no next generation. If nobody else has made one either, the set has no bytes now.
    #[cold]
    fn emptied(&self, record: &SetRecord, failed: PublishError) -> PublishError {
        if self.empty_place(record.handle).is_none() {
            return failed;
        }
        let (cause, staged) = failed.into_parts();
        let error = Error::Emptied {
            set: record.name.clone(),
            cause: Box::new(cause),
        };
        PublishError::new(error, staged)
    }

    /// Can this follow the set's current generation in the same memory? With what it needs beyond that,
    /// reserved.
    fn can_follow(
        &self,
        terms: Terms<'_>,
        set: SetHandle,
        room: &Room,
        needed: u64,
    ) -> Result<(Arc<SetRecord>, u64, Charge), Error> {
        let record = self.check_follow(set, room.kind(), &room.layout)?;
        let standing = self.dependants(set);
        if standing.iter().any(|one| one.aliases) {
            return Err(blocked_by(&record, &standing));
        }
        for one in standing {
            let view = self.view();
            let adapter = view.resolve(self.key(one.record.handle)?);
            if let Some(Facts { origin, layout, .. }) =
                adapter.and_then(Node::meta).map(|meta| &meta.facts)
            {
                check_fit(origin, layout, &room.layout)?;
            }
        }
        let (birth, has) = {
            let view = self.view();
            let node = view.resolve(self.key(set)?);
            let node = node.ok_or(Error::StaleHandle { handle: set })?;
            (node.birth(), charged(node))
        };
        let more = needed.saturating_sub(has);
        let more = self.shared.pool.take(terms.account, more);
        let more = more.map_err(|error| instead_of(has, needed, error))?;
        Ok((record, birth, more))
    }

    /// Makes `staged` current in a place that is still empty. The generation without bytes may have
    /// been bound anew meanwhile: its base got a new generation.
    fn fill_place(
        &self,
        record: &Arc<SetRecord>,
        before: Generation,
        mut staged: Staged,
    ) -> Result<(u64, Retirement), PublishError> {
        loop {
            let Some(Generation(birth)) = self.empty_place(record.handle) else {
                let error = self.moved_on(record, before);
                return Err(PublishError::new(error, Some(staged)));
            };
            let tag = record.handle.tag;
            let (expect, act) = (
                Expect::Exactly { tag, birth },
                Act::Become(Box::new(staged)),
            );
            let failed = match self.commit_with_adapters(record, expect, act) {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            staged = match failed.into_parts() {
                (Error::Conflict { .. }, Some(staged)) => staged,
                (error, staged) => return Err(PublishError::new(error, staged)),
            };
        }
    }

    /// Waits for whoever has the old generation, and takes its memory.
    fn take_over(
        &self,
        record: &Arc<SetRecord>,
        previous: &Retirement,
        wait: impl FnOnce(&Retirement) -> Result<(), Error>,
    ) -> Result<Supply, Error> {
        let old = previous.generation();
        let waited = wait(previous);
        let mut writing = record.write();
        let vacated = &mut writing.history.vacated;
        let Some(kept) = vacated.take_if(|kept| kept.generation() == old) else {
            drop(writing);
            return Err(self.moved_on(record, old));
        };
        let taken = match waited {
            Ok(()) => kept.into_body().map_err(|kept| (previous.late(), kept)),
            Err(error) => Err((error, kept)),
        };
        match taken {
            Ok((body, _facts)) => {
                drop(writing);
                Ok(body.into_supply())
            }
            Err((error, kept)) => {
                *vacated = Some(kept);
                drop(writing);
                let (expect, act) = (Expect::Tenant(record.handle.tag), Act::Restore(Some(old)));
                match self.commit_with_adapters(record, expect, act) {
                    Ok(_) => Err(error),
                    Err(_) if self.empty_place(record.handle).is_some() => Err(Error::Emptied {
                        set: record.name.clone(),
                        cause: Box::new(error),
                    }),
                    // Somebody else has given it a generation, or retired it, before we came back.
                    Err(_) => Err(self.moved_on(record, old)),
                }
            }
        }
    }

    #[cold]
    fn moved_on(&self, record: &SetRecord, expected: Generation) -> Error {
        let handle = record.handle;
        let current = self.key(handle).ok().and_then(|key| {
            let view = self.view();
            view.resolve(key).map(generation)
        });
        match current {
            Some(current) => Error::Conflict {
                set: record.name.clone(),
                expected,
                current,
            },
            None => Error::StaleHandle { handle },
        }
    }

    /// A commit of one set, with which the adapters on it move along.
    fn commit_with_adapters(
        &self,
        record: &Arc<SetRecord>,
        expect: Expect,
        mut act: Act,
    ) -> Result<(u64, Retirement), PublishError> {
        loop {
            let mut steps = vec![Step {
                record: Arc::clone(record),
                expect,
                act,
            }];
            let adapters = self.dependants(record.handle);
            steps.extend(adapters.into_iter().map(|adapter| adapter.rebind(None)));
            let Undone {
                error,
                index,
                mut steps,
            } = match self.commit(steps) {
                Ok(mut done) => {
                    let Some(previous) = done.previous.swap_remove(0) else {
                        unreachable!("`expect` demands a living generation")
                    };
                    return Ok((done.number, previous));
                }
                Err(undone) => *undone,
            };
            let first = steps.swap_remove(0);
            act = match (&error, index) {
                // Adapters came or went since we looked.
                (Error::Dependants { .. }, 0) | (Error::StaleHandle { .. }, 1..) => first.act,
                _ => return Err(PublishError::new(error, first.into_staged())),
            };
        }
    }
}

/// A refusal of what is needed beyond `has` bytes, as one of all that is `needed` in their place.
fn instead_of(has: u64, needed: u64, mut refused: Error) -> Error {
    if let Error::OverLimit {
        requested, in_use, ..
    }
    | Error::OverAccountLimit {
        requested, in_use, ..
    } = &mut refused
    {
        *requested = needed;
        *in_use = in_use.saturating_sub(has);
    }
    refused
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::source::{Evictable, InMemory};

    thread_local! {
        /// When a drained swap has counted on what its set has, and when it was told that the set has nothing.
        pub(super) static MEANWHILE: Meanwhile = const { Meanwhile::new() };
    }

    fn meanwhile(act: impl FnOnce() + 'static) {
        MEANWHILE.with(|meanwhile| meanwhile.add(act));
    }

    const SOON: Duration = Duration::from_secs(60);

    /// Cannot be read.
    struct Broken(InMemory);

    impl Source for Broken {
        fn plan(&self) -> &crate::Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(of_64(1).tensor("w", Dtype::U8, [1], [1]).unwrap_err())
        }
        fn base(&self) -> Option<SetHandle> {
            self.0.base()
        }
    }

    fn of_64(fill: u8) -> InMemory {
        let source = InMemory::new().tensor("w", Dtype::U8, [64], [fill; 64]);
        source.unwrap()
    }

    /// Has room for one generation of a set of 64 bytes, which it has.
    fn tight() -> (Arc<WeightRegistry>, SetHandle) {
        let registry = WeightRegistry::builder().limit_bytes(96).build();
        let registry = Arc::new(registry.unwrap());
        let set = registry.publish("s", Evictable::new(of_64(1))).unwrap();
        (registry, set)
    }

    fn fill(registry: &WeightRegistry, set: SetHandle) -> u8 {
        let lease = registry.acquire(set).unwrap();
        lease.set(set).unwrap().get("w").unwrap().bytes()[0]
    }

    /// Evicted when the swap is about to vacate it, and loaded again before it looks what that was.
    #[test]
    fn a_set_that_comes_back_is_drained_like_any_other() {
        let (registry, set) = tight();
        let [evicts, loads] = [(); 2].map(|()| Arc::clone(&registry));
        meanwhile(move || assert_eq!(evicts.evict(set).unwrap(), 64));
        meanwhile(move || assert_eq!(loads.load(set).unwrap(), 64));
        registry.replace_drained(set, of_64(2), SOON).unwrap();
        assert!(MEANWHILE.with(Meanwhile::is_over));
        assert_eq!(fill(&registry, set), 2);
        assert_eq!(registry.ledger().total(), 64);
    }

    /// The same without the load: then it is a replace.
    #[test]
    fn a_set_that_goes_before_it_is_drained_is_replaced() {
        let (registry, set) = tight();
        let evicts = Arc::clone(&registry);
        meanwhile(move || assert_eq!(evicts.evict(set).unwrap(), 64));
        registry.replace_drained(set, of_64(2), SOON).unwrap();
        assert_eq!(fill(&registry, set), 2);
        assert_eq!(registry.ledger().total(), 64);
    }

    /// Another drained swap comes first: its place is not ours.
    #[test]
    fn a_set_that_somebody_else_vacates_is_theirs() {
        let (registry, set) = tight();
        let theirs = Arc::clone(&registry);
        meanwhile(move || {
            let record = theirs.record(set).unwrap();
            let step = theirs.commit_one(&record, Expect::Tenant(set.tag), Act::Vacate);
            step.unwrap();
        });
        let refused = registry.replace_drained(set, of_64(2), SOON).unwrap_err();
        assert!(
            matches!(refused.error(), Error::NotResident { handle } if *handle == set),
            "{refused}"
        );
    }

    /// An adapter that comes along needs bytes that are away: that is told, not tried for ever.
    #[test]
    fn what_an_adapter_lacks_is_no_reason_to_start_again() {
        let registry = WeightRegistry::builder().limit_bytes(192).build().unwrap();
        let base = registry.publish("base", of_64(1)).unwrap();
        let lender = InMemory::new().tensor("x", Dtype::U8, [1], [1]).unwrap();
        let lender = registry.publish("lender", Evictable::new(lender)).unwrap();
        let lent = registry.weight_handle(lender, "x").unwrap();
        let adapter = || {
            let source = InMemory::new().replacement("more", Dtype::U8, [1], [1]);
            source.unwrap().alias("lent", lent).unwrap().on(base)
        };
        let set = registry.publish("adapter", adapter()).unwrap();
        let emptied = registry.replace_drained(set, Broken(adapter()), SOON);
        let emptied = emptied.unwrap_err();
        assert!(
            matches!(emptied.error(), Error::Emptied { .. }),
            "{emptied}"
        );
        registry.evict(lender).unwrap();
        // The room is somebody else's.
        let rest = InMemory::new().tensor("w", Dtype::U8, [128], [1; 128]);
        registry.publish("rest", rest.unwrap()).unwrap();
        meanwhile(|| ());
        meanwhile(|| panic!("it starts again"));
        let refused = registry.replace_drained(base, of_64(2), SOON).unwrap_err();
        assert!(
            matches!(refused.error(), Error::NotResident { handle } if *handle == lender),
            "{refused}"
        );
    }

    /// Two drained swaps at once: the second one must not lose what the first may have to go back to.
    #[test]
    fn an_empty_place_is_not_emptied_again() {
        let registry = WeightRegistry::builder().build().unwrap();
        let tensor = InMemory::new().tensor("w", Dtype::U8, [1], [7]).unwrap();
        let set = registry.publish("s", tensor).unwrap();
        let record = registry.record(set).unwrap();
        let step = |act| registry.commit_one(&record, Expect::Tenant(set.tag), act);
        let (_, previous) = step(Act::Vacate).unwrap();
        let refused = step(Act::Vacate).unwrap_err();
        assert!(matches!(refused.error(), Error::NotResident { .. }));
        let old = previous.unwrap().generation();
        step(Act::Restore(Some(old))).unwrap();
        let lease = registry.acquire(set).unwrap();
        assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [7]);
    }
}
