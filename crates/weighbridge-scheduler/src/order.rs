//! Who joins the batch next: the policy, and nothing else.
//!
//! What lives here: the order, what it remembers from round to round, and why nobody starves. It sees keys and
//! numbers only. What does not: requests, leases, locks (`queue`, `scheduler`), the counts (`batch`).
//!
//! # The order
//!
//! 1. Who is overdue, in the order in which they became so.
//! 2. Who needs no adapter place: the base, and generations that run. Oldest first.
//! 3. The other generations: most waiting requests first, then the one with the oldest request; oldest first
//!    within each.
//!
//! # What happens for an overdue request that finds no adapter place
//!
//! One generation that runs is told to *leave*: nobody behind that request joins it any more, so it ends when its
//! requests do, and the place is the first overdue request's. So many leave as generations are overdue and have no
//! place, oldest first: the n-th of these generations has the first n that leave working for it, and
//! whoever stands before it may still join those that come later in the list. As long as anybody is overdue
//! without an adapter place, no other generation is let in.
//!
//! Those behind may still join if it costs none of those before them anything that it waits for:
//! they must need no adapter place (the base, or a generation that runs and is not leaving for somebody before
//! them), and must leave a running place for each overdue request before them.
//!
//! # Why this is enough
//!
//! Take r, overdue as of some round. Let S be what ran before that round, and who is overdue before r. Then
//! r joins no later than in the first round before which all of S has ended:
//!
//! - Nobody gets in line before r later on.
//! - The generations that leave for r and those before it contain requests of S only: what ran, and
//!   overdue requests before r. Nobody else could join them after they were told to leave, and they are told so
//!   before anybody behind r is looked at. So they are gone when S has ended, their places go to
//!   the first of the line each time, and those before r are in S, too.
//! - Whoever passed r left it a running place, and one for each before it.
//!
//! The tests of this file draw arrivals, lengths, limits, and weights that come late, and check just this.

use std::collections::{BTreeMap, BTreeSet};

use crate::batch::Batch;

/// Somebody who waits and has his weights.
pub(crate) struct Candidate<K> {
    /// Its age: whoever came first has the smaller one.
    pub(crate) ticket: u64,
    /// `None`: the base alone.
    pub(crate) adapter: Option<K>,
    /// The last round that was over when it came.
    pub(crate) since: u64,
}

/// What is remembered from round to round.
pub(crate) struct Order<K> {
    patience: u64,
    /// Tickets, in the order in which they became overdue.
    overdue: Vec<u64>,
    /// Generations that run, and that nobody joins; told first, first.
    leaving: Vec<K>,
    /// How many became overdue so far.
    became_overdue: u64,
}

/// One round of it.
struct Pass<'a, K> {
    ready: &'a [Candidate<K>],
    batch: &'a mut Batch<K>,
    joined: Vec<Joined>,
    /// Overdue requests that were looked at and stay.
    held: usize,
    /// Generations of those among them that lack an adapter place.
    blocked: BTreeSet<K>,
}

/// Who joined.
pub(crate) struct Joined {
    /// Its place among the candidates.
    pub(crate) at: usize,
    /// Its generation was not in the batch.
    pub(crate) swap: bool,
}

impl<K: Copy + Ord> Order<K> {
    pub(crate) fn new(patience: u64) -> Self {
        Order {
            patience,
            overdue: Vec::new(),
            leaving: Vec::new(),
            became_overdue: 0,
        }
    }

    /// How many became overdue so far.
    pub(crate) fn became_overdue(&self) -> u64 {
        self.became_overdue
    }

    /// Lets join who joins in `round`. `ready` is sorted by ticket.
    ///
    /// O(n log n) in the number of candidates.
    pub(crate) fn choose(
        &mut self,
        round: u64,
        ready: &[Candidate<K>],
        batch: &mut Batch<K>,
    ) -> Vec<Joined> {
        let (line, rest) = self.divide(round, ready);
        self.leaving.retain(|&adapter| batch.has(Some(adapter)));
        let mut pass = Pass {
            ready,
            batch,
            joined: Vec::new(),
            held: 0,
            blocked: BTreeSet::new(),
        };
        self.overdue_first(&mut pass, &line);
        if pass.blocked.is_empty() {
            let others = pass.without_swap(&rest, &[]);
            pass.by_group(&others);
        } else {
            pass.without_swap(&rest, &self.leaving);
        }
        pass.joined
    }

    /// Places of those who are overdue, in their order, and of all others.
    fn divide(&mut self, round: u64, ready: &[Candidate<K>]) -> (Vec<usize>, Vec<usize>) {
        let mut late = vec![false; ready.len()];
        let mut line = Vec::with_capacity(self.overdue.len());
        for ticket in self.overdue.drain(..) {
            // Who is not there any more was cancelled.
            if let Ok(at) = ready.binary_search_by_key(&ticket, |one| one.ticket) {
                late[at] = true;
                line.push(at);
            }
        }
        let mut rest = Vec::new();
        for (at, one) in ready.iter().enumerate() {
            if late[at] {
                continue;
            }
            if round - one.since > self.patience {
                self.became_overdue += 1;
                line.push(at);
            } else {
                rest.push(at);
            }
        }
        (line, rest)
    }

    fn overdue_first(&mut self, pass: &mut Pass<'_, K>, line: &[usize]) {
        // Whom it would keep waiting to have a generation leave. Not looked at before somebody must.
        let mut wanted = None;
        for &at in line {
            let adapter = pass.ready[at].adapter;
            let closed = self.leaving.len().min(pass.blocked.len());
            let closed = adapter.is_some_and(|own| self.leaving[..closed].contains(&own));
            let place = pass.batch.has(adapter) && !closed
                || pass.blocked.is_empty() && pass.batch.has_adapter_place();
            if place && pass.free() {
                pass.join(at);
                continue;
            }
            pass.held += 1;
            self.overdue.push(pass.ready[at].ticket);
            if let Some(adapter) = adapter
                && !place
                && pass.blocked.insert(adapter)
            {
                let wanted = wanted.get_or_insert_with(|| pass.wanted());
                self.tell_to_leave(pass.blocked.len(), wanted, pass.batch);
            }
        }
        // Told last, let in again first: those that remain have been leaving for the longest.
        self.leaving.truncate(pass.blocked.len());
    }

    /// So many generations leave, if so many run.
    fn tell_to_leave(&mut self, most: usize, wanted: &BTreeMap<K, usize>, batch: &Batch<K>) {
        while self.leaving.len() < most {
            let running = batch.adapters().iter();
            let staying = running.filter(|(adapter, _)| !self.leaving.contains(adapter));
            // The one that fewest wait for, and among those the one that probably ends first.
            let next = staying.min_by_key(|(adapter, requests)| (wanted.get(*adapter), **requests));
            let Some((&next, _)) = next else {
                return;
            };
            self.leaving.push(next);
        }
    }
}

impl<K: Copy + Ord> Pass<'_, K> {
    /// Is there a running place for somebody, and one left for each who stays before him?
    fn free(&self) -> bool {
        self.batch.free() > self.held
    }

    fn join(&mut self, at: usize) {
        let swap = self.batch.join(self.ready[at].adapter);
        self.joined.push(Joined { at, swap });
    }

    /// How many wait for each generation.
    fn wanted(&self) -> BTreeMap<K, usize> {
        let mut wanted = BTreeMap::new();
        for adapter in self.ready.iter().filter_map(|one| one.adapter) {
            *wanted.entry(adapter).or_insert(0) += 1;
        }
        wanted
    }

    /// Lets join who needs no adapter place; the answer is who does.
    fn without_swap(&mut self, rest: &[usize], closed: &[K]) -> Vec<usize> {
        let mut others = Vec::new();
        for &at in rest {
            let adapter = self.ready[at].adapter;
            if !self.batch.has(adapter) {
                others.push(at);
            } else if self.free() && !adapter.is_some_and(|own| closed.contains(&own)) {
                self.join(at);
            }
        }
        others
    }

    /// Lets generations in, the one that most wait for first.
    fn by_group(&mut self, others: &[usize]) {
        let mut groups: BTreeMap<K, Vec<usize>> = BTreeMap::new();
        for &at in others {
            if let Some(adapter) = self.ready[at].adapter {
                groups.entry(adapter).or_default().push(at);
            }
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort_by_key(|group| (std::cmp::Reverse(group.len()), group[0]));
        for group in groups {
            if !self.batch.has_adapter_place() {
                return;
            }
            for at in group {
                if !self.free() {
                    return;
                }
                self.join(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
