//! In which order sets are evicted to make room for others.
//!
//! What lives here: [`Policy`], what it is told ([`Candidate`]), the two that are there ([`Sieve`],
//! [`Lru`]). What does not: who may go at all, and how many must (`registry::room`): a policy only ranks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::handle::SetHandle;
use crate::names::SetName;

/// What is known of a set that is resident and could be read again.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Candidate {
    /// The set.
    pub set: SetHandle,
    /// Its name.
    pub name: SetName,
    /// Bytes that the ledger gets back if it goes.
    pub bytes: u64,
    /// Leases at this moment. What is leased stays, however it is ranked.
    pub leases: u64,
    /// Who [pinned](crate::WeightRegistry::pin) it. What is pinned stays, however it is ranked.
    pub pinned_by: Vec<Arc<str>>,
    /// Was it leased since the last time a policy was asked?
    pub used: bool,
    /// How long ago it was last seen to have been used, or was loaded: a sample, taken whenever room is
    /// looked for, and no time stamp. `None`: neither happened since it was published.
    pub idle: Option<Duration>,
    /// How long its last load took, from a source that was opened to bytes that can be leased. `None`: it
    /// has not been loaded again so far.
    pub reload: Option<Duration>,
}

/// Ranks what could be evicted.
///
/// It is asked when a load does not fit, under the lock that loads are admitted by: it should be quick, and
/// must neither [load](crate::WeightRegistry::load) nor [evict](crate::WeightRegistry::evict) anything itself
/// (that is [refused](crate::Error::LoadInsideLoad)). One that panics is counted
/// ([`Stats::observer_panics`](crate::Stats)), and the candidates go in the order in which their bytes came.
///
/// # Examples
/// The biggest first:
/// ```
/// use weighbridge::{WeightRegistry, SetHandle};
/// use weighbridge::policy::{Candidate, Policy};
///
/// struct Biggest;
///
/// impl Policy for Biggest {
///     fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
///         let mut order: Vec<_> = candidates.iter().collect();
///         order.sort_by_key(|one| std::cmp::Reverse(one.bytes));
///         order.into_iter().map(|one| one.set).collect()
///     }
/// }
///
/// let registry = WeightRegistry::builder().policy(Biggest).build()?;
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub trait Policy: Send + 'static {
    /// The sets in the order in which they should go, first to go first. `candidates` are in the order in
    /// which their bytes came, oldest first. What is left out is not evicted.
    fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle>;

    /// These went, each of which it has ranked before.
    fn went(&mut self, sets: &[SetHandle]) {
        let _ = sets;
    }
}

/// [SIEVE](https://www.usenix.org/conference/nsdi24/presentation/zhang-yazhuo): a hand goes round from the
/// oldest to the newest, spares once what was used since it came by, and evicts what was not.
///
/// Sets that are used once and never again go before those that are used often, whatever came last.
#[derive(Debug, Default)]
pub struct Sieve {
    /// Oldest first.
    order: Vec<Seat>,
    /// Where the hand is.
    hand: usize,
    /// The order in which it would go on: places in `order`.
    sweep: Vec<usize>,
}

#[derive(Debug)]
struct Seat {
    set: SetHandle,
    used: bool,
}

impl Sieve {
    /// With its hand at the oldest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the seats away that `stays` does not want. The hand stays before the same seat.
    fn retain(&mut self, stays: impl Fn(&Seat) -> bool) {
        let before = self.order[..self.hand].iter();
        let hand = before.filter(|seat| stays(seat)).count();
        self.order.retain(|seat| stays(seat));
        self.hand = if hand == self.order.len() { 0 } else { hand };
    }
}

impl Policy for Sieve {
    fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
        let now: HashMap<SetHandle, bool> =
            candidates.iter().map(|one| (one.set, one.used)).collect();
        self.retain(|seat| now.contains_key(&seat.set));
        for seat in &mut self.order {
            seat.used |= now[&seat.set];
        }
        let known: HashSet<SetHandle> = self.order.iter().map(|seat| seat.set).collect();
        let new = candidates.iter().filter(|one| !known.contains(&one.set));
        self.order.extend(new.map(|one| Seat {
            set: one.set,
            used: one.used,
        }));
        let round = (self.hand..self.order.len()).chain(0..self.hand);
        let (used, unused): (Vec<_>, Vec<_>) = round.partition(|&at| self.order[at].used);
        self.sweep = unused;
        // In its second round it finds these as it left them: spared once.
        self.sweep.extend(used);
        self.sweep.iter().map(|&at| self.order[at].set).collect()
    }

    fn went(&mut self, sets: &[SetHandle]) {
        let gone: HashSet<&SetHandle> = sets.iter().collect();
        let sweep = std::mem::take(&mut self.sweep);
        let Some(last) = sweep
            .iter()
            .rposition(|&at| gone.contains(&self.order[at].set))
        else {
            return;
        };
        let (hand, stop) = (self.hand, sweep[last]);
        // A used one among those that went: the hand has been everywhere once.
        let round_twice = self.order[stop].used;
        let passed = |at: usize| {
            let from_hand = |at: usize| (at + self.order.len() - hand) % self.order.len();
            round_twice || from_hand(at) <= from_hand(stop)
        };
        let spared: Vec<usize> = (0..self.order.len()).filter(|&at| passed(at)).collect();
        for at in spared {
            self.order[at].used = false;
        }
        self.hand = stop;
        self.retain(|seat| !gone.contains(&seat.set));
    }
}

/// Least recently used first, as far as samples tell: what was used since the policy was asked last counts
/// as used just now. The control that [`Sieve`] is compared with.
#[derive(Debug, Default)]
pub struct Lru(());

impl Lru {
    /// Keeps nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for Lru {
    fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
        let mut order: Vec<_> = candidates.iter().collect();
        // Stable: of those that are equally old, what came first goes first. What was never used is the
        // oldest.
        order.sort_by_key(|one| std::cmp::Reverse(one.idle.unwrap_or(Duration::MAX)));
        order.into_iter().map(|one| one.set).collect()
    }
}
