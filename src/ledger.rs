//! The byte accounts.
//!
//! What lives here: reservations, charges, the limit, the high-water mark. What does not: what the
//! bytes are (`arena`), when they are freed (`core::reclaim`).
//!
//! Every byte is in exactly one state: reserved (a load is in flight, or a set is staged), resident
//! (of a current generation), kept (of an earlier one, for a rollback), retired (superseded and still
//! held, or on its way back). The sum never passes the limit at any instant: it is checked and taken
//! under one lock. The lock is held for a few additions, on cold paths only; no lease touches it.
//!
//! Bytes may belong to several generations of a set at once (a rollback and a rebind make no new
//! ones). They are charged once, and their state is the strongest of their uses.

use std::sync::Arc;

use crate::error::Error;
use crate::sync::Mutex;

/// The accounts of one registry. Clones share them.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Mutex<Accounts>>);

#[derive(Debug, Clone, Copy)]
struct Accounts {
    limit: u64,
    totals: [u64; 4],
    peak: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved = 0,
    Resident = 1,
    Kept = 2,
    Retired = 3,
}

impl Accounts {
    fn in_use(&self) -> u64 {
        // Each is part of a sum that was checked against the limit, so this cannot overflow.
        self.totals.iter().sum()
    }
}

/// The accounts at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LedgerSnapshot {
    /// The hard limit.
    pub limit: u64,
    /// Loads in flight and staged sets.
    pub reserved: u64,
    /// Current sets, and sets that are being made current at this instant.
    pub resident: u64,
    /// Earlier generations that are kept for a rollback.
    pub kept: u64,
    /// Superseded generations whose bytes are not back yet.
    pub retired: u64,
    /// The highest total there ever was. It is kept inside the lock, so it cannot miss a peak.
    pub peak: u64,
}

impl LedgerSnapshot {
    /// All bytes that are accounted for.
    pub fn total(&self) -> u64 {
        self.reserved + self.resident + self.kept + self.retired
    }
}

impl Ledger {
    /// Accounts with a hard limit in bytes.
    pub fn new(limit: u64) -> Self {
        Ledger(Arc::new(Mutex::new(Accounts {
            limit,
            totals: [0; 4],
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
        let standing = Standing {
            bytes,
            current: 0,
            kept: 0,
            superseded: false,
        };
        Ok(Charge {
            ledger: self.clone(),
            standing: Mutex::new(standing),
        })
    }

    /// The accounts at one instant.
    pub fn snapshot(&self) -> LedgerSnapshot {
        let accounts = *self.0.lock(); // E14
        let [reserved, resident, kept, retired] = accounts.totals;
        LedgerSnapshot {
            limit: accounts.limit,
            reserved,
            resident,
            kept,
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
    standing: Mutex<Standing>,
}

/// What the bytes are used for.
#[derive(Debug, Clone, Copy)]
struct Standing {
    bytes: u64,
    /// Current generations that have them.
    current: u32,
    /// Earlier generations that are kept and have them.
    kept: u32,
    /// A generation that had them was current, and is not any more.
    superseded: bool,
}

impl Standing {
    fn state(&self) -> State {
        match self {
            Standing { current: 1.., .. } => State::Resident,
            Standing { kept: 1.., .. } => State::Kept,
            Standing {
                superseded: true, ..
            } => State::Retired,
            _ => State::Reserved,
        }
    }
}

impl Charge {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.standing.lock().bytes // E14
    }

    /// A generation that has them becomes current.
    pub(crate) fn settle(&self) {
        self.turn(|now| now.current += 1);
    }

    /// It did not after all.
    pub(crate) fn unsettle(&self) {
        self.turn(|now| now.current -= 1);
    }

    /// A generation that has them is no longer current.
    pub(crate) fn retire(&self) {
        self.turn(|now| {
            now.current -= 1;
            now.superseded = true;
        });
    }

    /// An earlier generation that has them is kept.
    pub(crate) fn keep(&self) {
        self.turn(|now| now.kept += 1);
    }

    /// It is no longer.
    pub(crate) fn forget(&self) {
        self.turn(|now| now.kept -= 1);
    }

    /// The memory behind it was given back: from here on it is a reservation for something else,
    /// together with `more`. At no instant can anybody else have any of these bytes.
    pub(crate) fn reuse(self, more: Charge) -> Charge {
        let more = {
            let mut more = more.standing.lock(); // E14: nobody else has it
            // Not in the accounts for the moment, but still in their totals: added again below.
            std::mem::take(&mut more.bytes)
        };
        let mut standing = self.standing.lock(); // E14
        let before = *standing;
        *standing = Standing {
            bytes: before.bytes + more,
            current: 0,
            kept: 0,
            superseded: false,
        };
        let mut accounts = self.ledger.0.lock(); // E14
        accounts.totals[before.state() as usize] -= before.bytes;
        // `more` is in this total already: it is a reservation, too.
        accounts.totals[State::Reserved as usize] += before.bytes;
        drop(accounts);
        drop(standing);
        self
    }

    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        self.turn(|now| now.bytes = now.bytes.min(bytes));
    }

    fn turn(&self, change: impl FnOnce(&mut Standing)) {
        let mut standing = self.standing.lock(); // E14: always before the accounts
        let before = *standing;
        change(&mut standing);
        let mut accounts = self.ledger.0.lock(); // E14
        accounts.totals[before.state() as usize] -= before.bytes;
        accounts.totals[standing.state() as usize] += standing.bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let standing = *self.standing.lock(); // E14
        self.ledger.0.lock().totals[standing.state() as usize] -= standing.bytes; // E14
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
    fn the_state_is_the_strongest_of_the_uses() {
        let ledger = Ledger::new(100);
        let states = || {
            let now = ledger.snapshot();
            (now.reserved, now.resident, now.kept, now.retired)
        };
        let charge = ledger.reserve(10).unwrap();
        assert_eq!(states(), (10, 0, 0, 0));
        charge.settle();
        charge.unsettle();
        assert_eq!(states(), (10, 0, 0, 0), "refused: a reservation again");
        charge.settle();
        charge.keep();
        charge.retire();
        assert_eq!(states(), (0, 0, 10, 0));
        charge.settle();
        charge.forget();
        assert_eq!(states(), (0, 10, 0, 0), "rolled back to");
        charge.settle();
        charge.retire();
        assert_eq!(states(), (0, 10, 0, 0), "rebound: the new one has them");
        charge.retire();
        assert_eq!(states(), (0, 0, 0, 10));
        charge.settle();
        charge.unsettle();
        assert_eq!(states(), (0, 0, 0, 10), "refused: as it was");
        drop(charge);
        assert_eq!(states(), (0, 0, 0, 0));
    }

    #[test]
    fn a_charge_that_is_used_again_never_lets_go_of_its_bytes() {
        let ledger = Ledger::new(100);
        let old = ledger.reserve(60).unwrap();
        old.settle();
        old.retire();
        let more = ledger.reserve(30).unwrap();
        let both = old.reuse(more);
        let now = ledger.snapshot();
        assert_eq!((now.reserved, now.total(), both.bytes()), (90, 90, 90));
        both.shrink_to(70);
        assert_eq!(ledger.snapshot().total(), 70);
        both.shrink_to(80);
        assert_eq!(both.bytes(), 70, "it only shrinks");
        drop(both);
        assert_eq!((ledger.snapshot().total(), ledger.snapshot().peak), (0, 90));
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
