//! The same policies as in the textbooks, without a registry, and the best that there is.
//!
//! What lives here: caches that are told of every request at once. What does not: the registry's own
//! policies, which see samples (`weighbridge::policy`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A cache of so many bytes. The answer: was it there?
pub trait Cache {
    fn wants(&mut self, set: usize, bytes: u64) -> bool;
}

/// Least recently used, exactly.
pub struct ExactLru {
    room: u64,
    clock: u64,
    last: HashMap<usize, (u64, u64)>,
    order: BTreeMap<u64, usize>,
}

impl ExactLru {
    pub fn of(room: u64) -> Self {
        ExactLru {
            room,
            clock: 0,
            last: HashMap::new(),
            order: BTreeMap::new(),
        }
    }
}

impl Cache for ExactLru {
    fn wants(&mut self, set: usize, bytes: u64) -> bool {
        self.clock += 1;
        let before = self.last.insert(set, (self.clock, bytes));
        match before {
            Some((at, _)) => {
                self.order.remove(&at);
            }
            None => {
                while self.room < bytes {
                    let (_, gone) = self.order.pop_first().expect("it fits when it is alone");
                    self.room += self.last.remove(&gone).expect("ordered").1;
                }
                self.room -= bytes;
            }
        }
        self.order.insert(self.clock, set);
        before.is_some()
    }
}

/// SIEVE as in the paper.
pub struct ExactSieve {
    room: u64,
    /// Oldest first: set, bytes, visited.
    order: Vec<(usize, u64, bool)>,
    hand: usize,
}

impl ExactSieve {
    pub fn of(room: u64) -> Self {
        ExactSieve {
            room,
            order: Vec::new(),
            hand: 0,
        }
    }
}

impl Cache for ExactSieve {
    fn wants(&mut self, set: usize, bytes: u64) -> bool {
        if let Some(there) = self.order.iter_mut().find(|one| one.0 == set) {
            there.2 = true;
            return true;
        }
        while self.room < bytes {
            if self.hand >= self.order.len() {
                self.hand = 0;
            }
            if std::mem::take(&mut self.order[self.hand].2) {
                self.hand += 1;
            } else {
                self.room += self.order.remove(self.hand).1;
                if self.hand == self.order.len() {
                    // Not at what comes next.
                    self.hand = 0;
                }
            }
        }
        self.room -= bytes;
        self.order.push((set, bytes, false));
        false
    }
}

/// Evicts what is wanted last, if ever (Belady). Nothing is better while all sets have the same size.
pub struct Best {
    room: u64,
    /// For each request, when its set is wanted next.
    next: Vec<usize>,
    at: usize,
    there: HashMap<usize, (usize, u64)>,
    order: BTreeSet<(usize, usize)>,
}

impl Best {
    pub fn of(room: u64, trace: &[usize]) -> Self {
        let mut next = vec![usize::MAX; trace.len()];
        let mut later = HashMap::new();
        for (at, set) in trace.iter().enumerate().rev() {
            next[at] = later.insert(set, at).unwrap_or(usize::MAX);
        }
        Best {
            room,
            next,
            at: 0,
            there: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl Cache for Best {
    fn wants(&mut self, set: usize, bytes: u64) -> bool {
        let next = self.next[self.at];
        self.at += 1;
        let before = self.there.insert(set, (next, bytes));
        match before {
            Some((now, _)) => {
                self.order.remove(&(now, set));
            }
            None => {
                while self.room < bytes {
                    let (_, gone) = self.order.pop_last().expect("it fits when it is alone");
                    self.room += self.there.remove(&gone).expect("ordered").1;
                }
                self.room -= bytes;
            }
        }
        self.order.insert((next, set));
        before.is_some()
    }
}
