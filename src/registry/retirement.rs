//! What is left of a generation that is no longer current: a handle to wait on, and who is in the
//! way.
//!
//! What lives here: [`Retirement`], its two waits, asking the holders to let go; [`Replaced`], which has
//! one. What does not: retiring (`publish`), fences (`fenced`), the waits' machinery (`core::vitals`).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::record::{Going, SetRecord};
use super::shared::Shared;
use crate::core::{TimedOut, Vitals};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::holdup::{FenceHolder, Holder, Holdup};
use crate::names::SetName;

/// A replace that went through.
#[derive(Debug)]
pub struct Replaced {
    /// The generation that is current now.
    pub generation: Generation,
    /// The one that was: running requests keep it.
    pub previous: Retirement,
}

impl Replaced {
    pub(super) fn of((number, previous): (u64, Option<Retirement>)) -> Self {
        match previous {
            Some(previous) => Replaced {
                generation: Generation(number),
                previous,
            },
            // `Expect::Tenant` and `Expect::Exactly` demand a living generation.
            None => unreachable!("a replace superseded nothing"),
        }
    }
}

/// What is no longer current: new requests do not get it, running ones keep it, its bytes come back
/// with the last lease.
///
/// From a replace this is the one generation that was superseded. From a retire it is the whole set:
/// its last generation, and every earlier one that somebody still holds.
///
/// Dropping a `Retirement` changes nothing: the bytes come back by themselves.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let set = registry.publish("demo", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
/// let lease = registry.acquire_as("request-42", set)?;
///
/// let going = registry.retire(set)?; // does not wait
/// assert_eq!((going.leases(), going.is_drained()), (1, false));
/// assert_eq!(going.holders()[0].label, "request-42"); // who is in the way
/// drop(lease);
/// going.reclaimed(Duration::from_secs(5))?;
/// assert_eq!(registry.ledger().total(), 0);
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Clone)]
pub struct Retirement {
    record: Arc<SetRecord>,
    /// Oldest first, at least one.
    going: Vec<Going>,
    shared: Arc<Shared>,
}

impl Retirement {
    pub(super) fn new(record: Arc<SetRecord>, going: Vec<Going>, shared: Arc<Shared>) -> Self {
        Retirement {
            record,
            going,
            shared,
        }
    }

    /// What the generation was kept for is over, too: it is gone when both are.
    pub(super) fn add(&mut self, kept: Going) {
        self.going.push(kept);
    }

    /// The set's name.
    pub fn name(&self) -> &SetName {
        &self.record.name
    }

    /// The set's handle. After a retire it is stale.
    pub fn set(&self) -> SetHandle {
        self.record.handle
    }

    /// The newest generation that is going.
    pub fn generation(&self) -> Generation {
        self.going
            .last()
            .map_or(Generation(0), |last| last.generation)
    }

    /// The newest generation's.
    pub(super) fn vitals(&self) -> Option<&Arc<Vitals>> {
        self.going.last().map(|last| &last.vitals)
    }

    /// Bytes that the ledger was charged for this, and gets back or already got. Bytes that several of its
    /// generations have count with each. Those that are kept for a rollback, or that another generation
    /// has, too, count here, and come back only when nothing has them any more: see
    /// [`reclaimed`](Self::reclaimed).
    pub fn bytes(&self) -> u64 {
        self.generations().map(|one| one.bytes).sum()
    }

    /// Leases that are in the way right now.
    pub fn leases(&self) -> u64 {
        self.going
            .iter()
            .map(|one| one.vitals.state().holds())
            .sum()
    }

    /// The labelled leases among them that somebody still has, oldest first.
    pub fn holders(&self) -> Vec<Holder> {
        self.in_the_way().0
    }

    /// The leases among them that wait for a fence, oldest first.
    pub fn fences(&self) -> Vec<FenceHolder> {
        self.in_the_way().1
    }

    /// Each generation once: of one that was kept, its node and its bytes go one after the other.
    fn generations(&self) -> impl Iterator<Item = &Going> {
        let mut seen = HashSet::new();
        self.going
            .iter()
            .filter(move |one| seen.insert(one.generation))
    }

    fn in_the_way(&self) -> (Vec<Holder>, Vec<FenceHolder>) {
        let slot = self.record.handle.slot;
        let (mut holders, mut fences) = (Vec::new(), Vec::new());
        for one in self.generations() {
            let found = self.shared.holders(slot, one.generation.0);
            holders.extend(found.0);
            fences.extend(found.1);
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.age));
        fences.sort_by_key(|fence| std::cmp::Reverse(fence.age));
        (holders, fences)
    }

    /// Asks whoever holds a lease of any of this to end it: [`Lease::is_revoked`] turns true there.
    ///
    /// A request, nothing more: it frees nothing and takes nothing away, a lease stays good until its
    /// holder drops it, and a fence stays in the way until it has passed. For weights that are to be
    /// used no longer than necessary, such as an adapter that was recalled. Cannot be undone.
    ///
    /// [`Lease::is_revoked`]: super::Lease::is_revoked
    pub fn revoke(&self) {
        self.going.iter().for_each(|one| one.vitals.revoke());
    }

    /// No lease is left. Once true it stays true: nobody can lease any of this again.
    pub fn is_drained(&self) -> bool {
        self.going.iter().all(|one| one.vitals.state().is_drained())
    }

    /// The bytes are back in the ledger, except those that are kept for a rollback, or that another
    /// generation has, too: see [`reclaimed`](Self::reclaimed).
    pub fn is_reclaimed(&self) -> bool {
        self.going.iter().all(|one| one.vitals.is_reclaimed())
    }

    /// Waits until no lease is left. Blocks the calling thread, nobody else.
    ///
    /// # Errors
    /// [`Error::NotDrained`] when `timeout` has passed: it counts the leases that are in the way
    /// and names the labelled ones and those that wait for fences. [`Error::Forked`].
    pub fn drained(&self, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, Vitals::wait_drained, Error::NotDrained)
    }

    /// Waits until the bytes are back in the ledger. Blocks the calling thread, nobody else.
    ///
    /// Bytes that another generation has too (after a rollback or a rebind, while they are kept for a
    /// rollback, or as an alias of another set, leased old generations of that set included) stay where
    /// they are, and are charged as they were: this does not wait for them. A set that
    /// [keeps](super::WeightRegistry::keep_previous) the generation that was replaced has its bytes in
    /// [`LedgerSnapshot::kept`](crate::LedgerSnapshot::kept) until it lets go of it, and no event tells of
    /// that. A retire lets go of what the set kept; its answer waits for that, too. A set that was evicted has
    /// no bytes to wait for; those that a request in the line for room is kept are in the ledger until it has
    /// its room, or gives up.
    ///
    /// # Errors
    /// [`Error::NotReclaimed`] when `timeout` has passed, with what is in the way.
    /// [`Error::Forked`].
    pub fn reclaimed(&self, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, Vitals::wait_reclaimed, Error::NotReclaimed)
    }

    fn wait(
        &self,
        timeout: Duration,
        until: impl Fn(&Vitals, Option<Instant>) -> Result<(), TimedOut>,
        late: impl FnOnce(Box<Holdup>) -> Error,
    ) -> Result<(), Error> {
        self.shared.check_process()?;
        let started = Instant::now();
        // A timeout beyond the clock's end is none.
        let deadline = started.checked_add(timeout);
        self.going
            .iter()
            .try_for_each(|one| until(&one.vitals, deadline))
            .map_err(|TimedOut| late(Box::new(self.holdup(started.elapsed()))))
    }

    /// The bytes are not back although every wait for them is over.
    pub(super) fn late(&self) -> Error {
        Error::NotReclaimed(Box::new(self.holdup(Duration::ZERO)))
    }

    fn holdup(&self, waited: Duration) -> Holdup {
        // Holders first: a lease that ends in between is then missing from the count, never
        // counted without having been there.
        let (holders, fences) = self.in_the_way();
        Holdup {
            set: self.record.name.clone(),
            generation: self.generation(),
            waited,
            leases: self.leases(),
            holders,
            fences,
        }
    }
}

impl fmt::Debug for Retirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retirement")
            .field("set", &self.record.name)
            .field("generation", &self.generation())
            .field("leases", &self.leases())
            .field("reclaimed", &self.is_reclaimed())
            .finish()
    }
}
