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
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Queue {
            all: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn push(&mut self, ticket: u64, waiting: Waiting<T>) {
        self.all.insert(ticket, waiting);
    }

    pub(crate) fn take(&mut self, ticket: u64) -> Option<Waiting<T>> {
        self.all.remove(&ticket)
    }

    /// All of them, oldest first.
    pub(crate) fn take_all(&mut self) -> BTreeMap<u64, Waiting<T>> {
        std::mem::take(&mut self.all)
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
        let mut seen = BTreeSet::new();
        let away = self.all.values().filter(|one| one.weights.is_none());
        away.map(|one| one.wants)
            .filter(|wants| seen.insert(*wants))
            .collect()
    }

    /// Who waits for this without a lease, oldest first.
    pub(crate) fn waiting_for(&self, wants: Wants) -> Vec<(u64, Arc<str>)> {
        let mine = |one: &Waiting<T>| one.weights.is_none() && one.wants == wants;
        let all = self.all.iter().filter(|(_, one)| mine(one));
        all.map(|(&ticket, one)| (ticket, Arc::clone(&one.label)))
            .collect()
    }

    /// Gives a request its weights. They come back if it waits no more.
    pub(crate) fn give(&mut self, ticket: u64, weights: Weights) -> Result<(), Weights> {
        match self.all.get_mut(&ticket) {
            Some(one) => {
                one.weights = Some(weights);
                Ok(())
            }
            None => Err(weights),
        }
    }
}
