//! Accounts: whose bytes they are, and the sums of each.
//!
//! What lives here: the names of accounts, and the book of one account. What does not: which books a
//! charge is written in, and the lock around them (`ledger`).

use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// Whose bytes they are.
///
/// A namespace's are a part of the registry's total and count against both limits. Foreign memory is
/// apart from the total: it counts against the limit of its own account only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Account {
    /// The sets of a namespace; empty: the default one.
    Namespace(Arc<str>),
    /// Memory that others own: a device, another runtime.
    Foreign(Arc<str>),
}

impl Account {
    /// The account of a namespace.
    pub fn namespace(name: &str) -> Self {
        Account::Namespace(name.into())
    }

    /// An account for memory that others own, such as `"gpu0"`.
    pub fn foreign(name: &str) -> Self {
        Account::Foreign(name.into())
    }

    /// Does it count in the registry's total?
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Account::Namespace(_))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Account::Namespace(name) | Account::Foreign(name) => name,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Namespace(name) if name.is_empty() => f.write_str("the default namespace"),
            Account::Namespace(name) => write!(f, "namespace {name:?}"),
            Account::Foreign(name) => write!(f, "foreign account {name:?}"),
        }
    }
}

/// The accounts of a registry, or one of them, at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct LedgerSnapshot {
    /// The hard limit; `u64::MAX`: none.
    #[serde(serialize_with = "crate::json::limit")]
    pub limit: u64,
    /// What loads on demand evict for ([`Builder::soft_limit_bytes`](crate::Builder::soft_limit_bytes));
    /// `u64::MAX`: none. Accounts have none of their own.
    #[serde(serialize_with = "crate::json::limit")]
    pub soft_limit: u64,
    /// Loads in flight and staged sets, and what was [reserved](crate::WeightRegistry::reserve_in) by hand.
    pub reserved: u64,
    /// Current sets, and sets that are being made current at this instant.
    pub resident: u64,
    /// Earlier generations that are kept for a rollback, or while a drained swap may go back to them.
    pub kept: u64,
    /// Superseded generations that are not kept and whose bytes are not back yet; what was evicted, and what the pool
    /// gives up, until that is back; and of what a load was granted, what it does not need.
    pub retired: u64,
    /// Memory that nobody uses, kept for the next load ([`Builder::pool_bytes`](crate::Builder::pool_bytes)).
    /// It is in nobody's way: it goes back before anything is refused. No account has any of it, only the total.
    pub pooled: u64,
    /// The highest total there ever was. It is kept inside the lock, so it cannot miss a peak.
    pub peak: u64,
}

impl LedgerSnapshot {
    /// All bytes that are accounted for.
    pub fn total(&self) -> u64 {
        self.reserved + self.resident + self.kept + self.retired + self.pooled
    }
}

/// What bytes are there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Reserved = 0,
    Resident = 1,
    Kept = 2,
    Retired = 3,
    Pooled = 4,
    /// Counts as retired. Given up for room, or by the pool, and on its way back.
    Going = 5,
}

/// The sums of one account.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) limit: u64,
    totals: [u64; 6],
    peak: u64,
    /// Charges that are written here, also those of no bytes.
    charges: usize,
}

impl Book {
    pub(super) fn new(limit: u64) -> Self {
        Book {
            limit,
            totals: [0; 6],
            peak: 0,
            charges: 0,
        }
    }

    pub(super) fn in_use(&self) -> u64 {
        // Each is part of a sum that was checked against a limit, so this cannot overflow.
        self.totals.iter().sum()
    }

    /// All that does not come back as soon as anybody wants it.
    pub(super) fn lasting(&self) -> u64 {
        let passing = self.totals[State::Pooled as usize] + self.totals[State::Going as usize];
        self.in_use() - passing
    }

    /// A limit that was lowered below what is in use refuses everything but nothing.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        bytes <= self.limit.saturating_sub(self.in_use())
    }

    /// A charge comes.
    pub(super) fn open(&mut self, state: State, bytes: u64) {
        self.charges += 1;
        self.totals[state as usize] += bytes;
        self.peak = self.peak.max(self.in_use());
    }

    /// A charge that is here changes; it never grows.
    pub(super) fn turn(&mut self, (from, before): (State, u64), (to, after): (State, u64)) {
        self.totals[from as usize] -= before;
        self.totals[to as usize] += after;
    }

    /// A charge goes.
    pub(super) fn close(&mut self, state: State, bytes: u64) {
        self.charges -= 1;
        self.totals[state as usize] -= bytes;
    }

    /// Nothing would be lost with it but its peak.
    pub(super) fn is_idle(&self) -> bool {
        self.charges == 0 && self.limit == u64::MAX
    }

    pub(super) fn snapshot(&self) -> LedgerSnapshot {
        let [reserved, resident, kept, retired, pooled, going] = self.totals;
        LedgerSnapshot {
            limit: self.limit,
            soft_limit: u64::MAX,
            reserved,
            resident,
            kept,
            retired: retired + going,
            pooled,
            peak: self.peak,
        }
    }
}
