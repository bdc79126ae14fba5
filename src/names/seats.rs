//! Seats: how many names each namespace has taken, and how many it may.
//!
//! What lives here: counting, and the limit of each namespace. What does not: who owns a name
//! (`names`), bytes (`ledger`).
//!
//! A seat is taken after its name was claimed and given back after the name was freed. So a namespace
//! never has more names, claimed for good or live, than seats, and never more seats than its limit:
//! checked and taken under one lock.

use std::collections::BTreeMap;

use crate::sync::Mutex;

/// The seats of all namespaces.
#[derive(Debug, Default)]
pub struct Seats(Mutex<BTreeMap<Box<str>, Row>>);

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    taken: usize,
    limit: Option<usize>,
}

impl Row {
    fn free(&self) -> Result<(), Full> {
        match self.limit {
            Some(limit) if self.taken >= limit => Err(Full {
                taken: self.taken,
                limit,
            }),
            _ => Ok(()),
        }
    }
}

/// All seats of a namespace are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// How many are.
    pub taken: usize,
    /// How many there are.
    pub limit: usize,
}

impl Seats {
    /// A seat for a name in `namespace`.
    pub fn take(&self, namespace: &str) -> Result<Seat<'_>, Full> {
        let mut rows = self.0.lock(); // E31
        match rows.get_mut(namespace) {
            Some(row) => {
                row.free()?;
                row.taken += 1;
            }
            None => {
                let (taken, limit) = (1, None);
                rows.insert(namespace.into(), Row { taken, limit });
            }
        }
        Ok(Seat {
            seats: self,
            namespace: Some(namespace.into()),
        })
    }

    /// Is one free at this moment?
    pub fn look(&self, namespace: &str) -> Result<(), Full> {
        let rows = self.0.lock(); // E31
        rows.get(namespace).map_or(Ok(()), Row::free)
    }

    /// Gives back a seat that was [kept](Seat::keep): its name is free.
    pub fn give_back(&self, namespace: &str) {
        self.change(namespace, |row| row.taken -= 1);
    }

    /// From here on. A limit below what is taken refuses what comes.
    pub fn set_limit(&self, namespace: &str, limit: Option<usize>) {
        self.change(namespace, |row| row.limit = limit);
    }

    /// How many are taken, and how many there are.
    pub fn count(&self, namespace: &str) -> (usize, Option<usize>) {
        let rows = self.0.lock(); // E31
        let row = rows.get(namespace).copied().unwrap_or_default();
        (row.taken, row.limit)
    }

    /// A namespace that says nothing is forgotten: there may be as many as there are tenants.
    fn change(&self, namespace: &str, change: impl FnOnce(&mut Row)) {
        let mut rows = self.0.lock(); // E31
        let row = rows.entry(namespace.into()).or_default();
        change(row);
        if row.taken == 0 && row.limit.is_none() {
            rows.remove(namespace);
        }
    }
}

/// A seat. Given back when it is dropped, unless it was kept.
#[derive(Debug)]
pub struct Seat<'s> {
    seats: &'s Seats,
    namespace: Option<Box<str>>,
}

impl Seat<'_> {
    /// Its name is live: whoever frees that gives the seat back.
    pub fn keep(mut self) {
        self.namespace = None;
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(namespace) = self.namespace.take() {
            self.seats.give_back(&namespace);
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_by_namespace_and_come_back() {
        let seats = Seats::default();
        seats.set_limit("a", Some(1));
        let first = seats.take("a").unwrap();
        let full = Full { taken: 1, limit: 1 };
        assert_eq!(seats.take("a").unwrap_err(), full);
        assert_eq!(seats.look("a"), Err(full));
        assert!(seats.take("b").is_ok() && seats.take("").is_ok());
        drop(first);
        seats.take("a").unwrap().keep();
        assert_eq!(seats.count("a"), (1, Some(1)));
        seats.set_limit("a", Some(0));
        assert_eq!(seats.take("a").unwrap_err(), Full { taken: 1, limit: 0 });
        seats.set_limit("a", None);
        seats.give_back("a");
        assert!(seats.0.lock().is_empty(), "a namespace was not forgotten");
    }
}
