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
//! One generation that runs is told to *leave*: nobody behind that request joins it any more, so it is gone when its
//! requests have ended, and the place is the request's. As long as somebody is overdue without an adapter place,
//! no other generation is let in.
//!
//! Those behind may still join if they need no adapter place: the base, and generations that run and are not
//! leaving. They take nothing that the first of the line waits for: the adapter place comes from the
//! generation that leaves, which they do not join, and with it comes the running place of its last request, which the
//! first of the line is offered before anybody else. (Without them another generation might have ended sooner, by
//! chance. Nobody counts on that.) Only one generation leaves at a time, however many are
//! overdue: if all left, the batch would run empty each time, and a server that has once fallen behind would
//! never catch up.
//!
//! # Why this is enough
//!
//! Call it a *turnover* when all have ended that ran right after some round. Let r be overdue as of some round, with
//! k overdue requests before it. Then r joins within k + 1 turnovers, counted one after the other from that
//! round; if no request runs for more than L rounds, within (k + 1) L rounds.
//!
//! - Nobody gets in line before r later on. So it is enough that the first of the line joins within one turnover.
//! - If it lacks a running place only, the first request that ends leaves it one.
//! - If it lacks an adapter place, some generation is leaving, and nobody joins that one: the only ones who might are
//!   those before it in the line, and there are none. So it is gone within a turnover, and nobody is let in
//!   before the first of the line.
//!
//! The tests of this file draw arrivals, lengths, limits, and weights that come late, and check just this.

use std::collections::BTreeMap;

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
    /// A generation that runs, and that nobody joins who stands behind the first without an adapter place.
    leaving: Option<K>,
    /// How many became overdue so far.
    became_overdue: u64,
}

/// One round of it.
struct Pass<'a, K> {
    ready: &'a [Candidate<K>],
    batch: &'a mut Batch<K>,
    joined: Vec<Joined>,
    /// Somebody who was looked at is overdue, and lacks an adapter place.
    blocked: bool,
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
            leaving: None,
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
        self.leaving.take_if(|adapter| !batch.has(Some(*adapter)));
        let mut pass = Pass {
            ready,
            batch,
            joined: Vec::new(),
            blocked: false,
        };
        self.overdue_first(&mut pass, &line);
        let others = pass.without_swap(&rest, self.leaving);
        pass.by_group(&others);
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
        for &at in line {
            let adapter = pass.ready[at].adapter;
            let place = if pass.batch.has(adapter) {
                // Whoever stands before all that lack a place may join what leaves for them.
                !(pass.blocked && adapter.is_some() && adapter == self.leaving)
            } else {
                // Behind somebody who lacked one there is none: nobody ends in the middle of a round.
                pass.batch.has_adapter_place()
            };
            if place && pass.batch.free() > 0 {
                pass.join(at);
                continue;
            }
            self.overdue.push(pass.ready[at].ticket);
            if !place && !pass.blocked {
                pass.blocked = true;
                if self.leaving.is_none() {
                    self.leaving = pass.least_wanted();
                }
            }
        }
        if !pass.blocked {
            // For nobody any more: whoever it left for has a place, or was cancelled.
            self.leaving = None;
        }
    }
}

impl<K: Copy + Ord> Pass<'_, K> {
    fn join(&mut self, at: usize) {
        let swap = self.batch.join(self.ready[at].adapter);
        self.joined.push(Joined { at, swap });
    }

    /// Of what runs: what fewest wait for, and of that what probably ends first.
    fn least_wanted(&self) -> Option<K> {
        let mut wanted: BTreeMap<K, usize> = BTreeMap::new();
        for adapter in self.ready.iter().filter_map(|one| one.adapter) {
            *wanted.entry(adapter).or_insert(0) += 1;
        }
        let running = self.batch.adapters().iter();
        let least = running.min_by_key(|(adapter, requests)| (wanted.get(*adapter), **requests));
        least.map(|(&adapter, _)| adapter)
    }

    /// Lets join who needs no adapter place; the answer is who does.
    fn without_swap(&mut self, rest: &[usize], leaving: Option<K>) -> Vec<usize> {
        let mut others = Vec::new();
        for &at in rest {
            let adapter = self.ready[at].adapter;
            if !self.batch.has(adapter) {
                others.push(at);
            } else if self.batch.free() > 0 && (adapter.is_none() || adapter != leaving) {
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
                if self.batch.free() == 0 {
                    return;
                }
                self.join(at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
