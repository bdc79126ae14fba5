//! Who waits.
//!
//! What lives here: the requests between admission and the batch, with their leases or without. What does not: who
//! is next (`order`), how weights come (`loads`), locks (`scheduler`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weighbridge::Lease;

use crate::order::Candidate;
use crate::place::Key;
use crate::wants::Wants;

/// A request that waits.
pub(crate) struct Waiting<T> {
    pub(crate) payload: T,
    pub(crate) label: Arc<str>,
    pub(crate) wants: Wants,
    /// The last round that was over when it came.
    pub(crate) since: u64,
    /// `None`: they are away.
    pub(crate) weights: Option<Weights>,
}

/// What a request runs with. It is fixed from here on.
pub(crate) struct Weights {
    pub(crate) lease: Lease,
    pub(crate) key: Option<Key>,
}

/// All that wait, by ticket: oldest first.
pub(crate) struct Queue<T> {
    all: BTreeMap<u64, Waiting<T>>,
    /// Those of them that have no lease, by what they want. So that a round looks at each once, however many different
    /// adapters are away.
    away: BTreeMap<Wants, BTreeSet<u64>>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Queue {
            all: BTreeMap::new(),
            away: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn push(&mut self, ticket: u64, waiting: Waiting<T>) {
        if waiting.weights.is_none() {
            self.away.entry(waiting.wants).or_default().insert(ticket);
        }
        self.all.insert(ticket, waiting);
    }

    pub(crate) fn take(&mut self, ticket: u64) -> Option<Waiting<T>> {
        let taken = self.all.remove(&ticket)?;
        self.is_here(ticket, taken.wants);
        Some(taken)
    }

    /// All of them, oldest first.
    pub(crate) fn take_all(&mut self) -> BTreeMap<u64, Waiting<T>> {
        self.away.clear();
        std::mem::take(&mut self.all)
    }

    /// It does not wait without a lease any more.
    fn is_here(&mut self, ticket: u64, wants: Wants) {
        if let Some(tickets) = self.away.get_mut(&wants) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.away.remove(&wants);
            }
        }
    }

    /// Those that have their weights, oldest first.
    pub(crate) fn ready(&self) -> Vec<Candidate<Key>> {
        let ready = self.all.iter().filter_map(|(&ticket, one)| {
            let weights = one.weights.as_ref()?;
            Some(Candidate {
                ticket,
                adapter: weights.key,
                since: one.since,
            })
        });
        ready.collect()
    }

    /// What the others want, each once, by its oldest request.
    pub(crate) fn away(&self) -> Vec<Wants> {
        let mut away: Vec<_> = self.away.iter().collect();
        away.sort_by_key(|(_, tickets)| tickets.first());
        away.into_iter().map(|(&wants, _)| wants).collect()
    }

    /// Who waits for this without a lease, oldest first.
    pub(crate) fn waiting_for(&self, wants: Wants) -> Vec<(u64, Arc<str>)> {
        let tickets = self.away.get(&wants).into_iter().flatten();
        let labels =
            tickets.filter_map(|ticket| Some((*ticket, Arc::clone(&self.all.get(ticket)?.label))));
        labels.collect()
    }

    /// Gives a request its weights. They come back if it waits no more.
    pub(crate) fn give(&mut self, ticket: u64, weights: Weights) -> Result<(), Weights> {
        match self.all.get_mut(&ticket) {
            Some(one) => {
                one.weights = Some(weights);
                let wants = one.wants;
                self.is_here(ticket, wants);
                Ok(())
            }
            None => Err(weights),
        }
    }
}
