//! What one round says: who joins, and whose weights could not come.
//!
//! What lives here: the values that the engine is given. What does not: how they come about (`order`, `loads`).

use std::fmt;
use std::sync::Arc;

use weighbridge::Lease;

use crate::place::Place;

/// Names one request of this process. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(crate) u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// One round of [`Scheduler::schedule`](crate::Scheduler::schedule).
///
/// Dropped as it is, it gives every place and every lease back.
#[must_use = "whoever joined loses the place when this is dropped"]
#[non_exhaustive]
pub struct Round<T> {
    /// Its number; the first is 1.
    pub number: u64,
    /// Who joins the batch now, in the order in which they were let in.
    pub joined: Vec<Turn<T>>,
    /// Whose weights could not come.
    pub failed: Vec<Failed<T>>,
}

impl<T> Round<T> {
    /// Nobody joined, and nobody failed.
    pub fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.failed.is_empty()
    }
}

impl<T> fmt::Debug for Round<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut round = f.debug_struct("Round");
        round.field("number", &self.number);
        round.field("joined", &self.joined);
        round.field("failed", &self.failed).finish()
    }
}

/// A request that runs. Keep it whole, or take it apart; the lease and the place are for as long as it runs.
///
/// Dropped whole, the lease ends before the place is given back: whoever is woken by the place finds the
/// weights free.
#[non_exhaustive]
#[must_use = "dropping it ends the request"]
pub struct Turn<T> {
    /// What its admission was answered with.
    pub ticket: Ticket,
    /// What it brought.
    pub payload: T,
    /// Its base and adapter, both as of one instant, under its label.
    pub lease: Lease,
    /// Its place in the batch.
    pub place: Place,
}

impl<T> fmt::Debug for Turn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut turn = f.debug_struct("Turn");
        turn.field("ticket", &self.ticket);
        turn.field("lease", &self.lease).finish_non_exhaustive()
    }
}

/// A request that ends without having run.
#[non_exhaustive]
pub struct Failed<T> {
    /// What its admission was answered with.
    pub ticket: Ticket,
    /// What it brought.
    pub payload: T,
    /// Why; the same for all who waited for the same load. [`StaleHandle`](weighbridge::Error::StaleHandle): a
    /// set was retired while this waited without a lease.
    pub error: Arc<weighbridge::Error>,
}

impl<T> fmt::Debug for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut failed = f.debug_struct("Failed");
        failed.field("ticket", &self.ticket);
        failed.field("error", &self.error).finish_non_exhaustive()
    }
}
