//! The byte accounts.
//!
//! What lives here: reservations, charges, the limit, the high-water mark. What does not: what the
//! bytes are (`arena`), when they are freed (`core::reclaim`).
//!
//! Every byte is in exactly one state: reserved (a load is in flight, or a set is staged), resident
//! (current), retired (superseded and still held, or on its way back). The sum never passes the
//! limit at any instant: it is checked and taken under one lock. The lock is held for a few
//! additions, on cold paths only; no lease touches it.

use std::sync::Arc;

use serde::Serialize;

use crate::error::Error;
use crate::sync::Mutex;

/// The accounts of one registry. Clones share them.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Mutex<Accounts>>);

#[derive(Debug, Clone, Copy)]
struct Accounts {
    limit: u64,
    totals: [u64; 3],
    peak: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved = 0,
    Resident = 1,
    Retired = 2,
}

impl Accounts {
    fn in_use(&self) -> u64 {
        // Each is part of a sum that was checked against the limit, so this cannot overflow.
        self.totals.iter().sum()
    }
}

/// The accounts at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct LedgerSnapshot {
    /// The hard limit.
    #[serde(serialize_with = "crate::json::limit")]
    pub limit: u64,
    /// Loads in flight and staged sets.
    pub reserved: u64,
    /// Current sets, and sets that are being made current at this instant.
    pub resident: u64,
    /// Superseded sets whose bytes are not back yet.
    pub retired: u64,
    /// The highest total there ever was. It is kept inside the lock, so it cannot miss a peak.
    pub peak: u64,
}

impl LedgerSnapshot {
    /// All bytes that are accounted for.
    pub fn total(&self) -> u64 {
        self.reserved + self.resident + self.retired
    }
}

impl Ledger {
    /// Accounts with a hard limit in bytes.
    pub fn new(limit: u64) -> Self {
        Ledger(Arc::new(Mutex::new(Accounts {
            limit,
            totals: [0; 3],
            peak: 0,
        })))
    }

    /// Takes `bytes` before any of them is allocated. Dropping the charge gives them back.
    ///
    /// # Errors
    /// [`Error::OverLimit`] if they do not fit; nothing was taken then.
    pub fn reserve(&self, bytes: u64) -> Result<Charge, Error> {
        let mut accounts = self.0.lock(); // E14
        let in_use = accounts.in_use();
        if bytes > accounts.limit - in_use {
            return Err(Error::OverLimit {
                requested: bytes,
                in_use,
                limit: accounts.limit,
            });
        }
        accounts.totals[State::Reserved as usize] += bytes;
        accounts.peak = accounts.peak.max(in_use + bytes);
        drop(accounts);
        Ok(Charge {
            ledger: self.clone(),
            bytes,
            state: Mutex::new(State::Reserved),
        })
    }

    /// The accounts at one instant.
    pub fn snapshot(&self) -> LedgerSnapshot {
        let accounts = *self.0.lock(); // E14
        let [reserved, resident, retired] = accounts.totals;
        LedgerSnapshot {
            limit: accounts.limit,
            reserved,
            resident,
            retired,
            peak: accounts.peak,
        }
    }
}

/// Bytes that are accounted for. They are given back exactly once, when the charge is dropped,
/// whichever state it is in.
#[derive(Debug)]
pub struct Charge {
    ledger: Ledger,
    bytes: u64,
    state: Mutex<State>,
}

impl Charge {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The set became current.
    pub(crate) fn settle(&self) {
        self.turn(State::Resident);
    }

    /// The set is no longer current, its bytes are still there.
    pub(crate) fn retire(&self) {
        self.turn(State::Retired);
    }

    /// The set was not published after all.
    pub(crate) fn unsettle(&self) {
        self.turn(State::Reserved);
    }

    fn turn(&self, to: State) {
        let mut state = self.state.lock(); // E14: always before the accounts
        let mut accounts = self.ledger.0.lock(); // E14
        accounts.totals[*state as usize] -= self.bytes;
        accounts.totals[to as usize] += self.bytes;
        *state = to;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let state = *self.state.lock(); // E14
        self.ledger.0.lock().totals[state as usize] -= self.bytes; // E14
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_state_counts_and_the_end_is_exact() {
        let ledger = Ledger::new(100);
        let a = ledger.reserve(60).unwrap();
        assert!(matches!(
            ledger.reserve(41).unwrap_err(),
            Error::OverLimit {
                requested: 41,
                in_use: 60,
                limit: 100
            }
        ));
        a.settle();
        let b = ledger.reserve(40).unwrap();
        a.retire();
        let now = ledger.snapshot();
        assert_eq!(
            (now.reserved, now.resident, now.retired, now.peak),
            (40, 0, 60, 100)
        );
        assert!(
            ledger.reserve(1).is_err(),
            "retired bytes count until they are back"
        );
        drop(a);
        drop(b);
        let now = ledger.snapshot();
        assert_eq!((now.total(), now.peak), (0, 100));
    }

    #[test]
    fn a_reservation_near_the_end_of_u64_does_not_wrap() {
        let ledger = Ledger::new(u64::MAX);
        let _most = ledger.reserve(u64::MAX - 1).unwrap();
        assert!(ledger.reserve(2).is_err());
        assert!(ledger.reserve(1).is_ok());
    }

    #[test]
    fn racing_reservations_never_pass_the_limit() {
        let ledger = Ledger::new(10);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..2_000u64 {
                        if let Ok(charge) = ledger.reserve(1 + round % 7) {
                            charge.settle();
                            assert!(ledger.snapshot().total() <= 10);
                            charge.retire();
                        }
                    }
                });
            }
        });
        let end = ledger.snapshot();
        assert_eq!(end.total(), 0);
        assert!(end.peak <= 10 && end.peak > 0);
    }
}
