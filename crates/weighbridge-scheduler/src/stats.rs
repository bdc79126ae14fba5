//! What a scheduler has done so far.

/// See [`Scheduler::stats`](crate::Scheduler::stats).
///
/// At every instant `admitted` is `joined + failed + cancelled + waiting`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Rounds.
    pub rounds: u64,
    /// Requests that were admitted.
    pub admitted: u64,
    /// Requests that were refused at admission, for whatever reason.
    pub refused: u64,
    /// Requests that joined the batch.
    pub joined: u64,
    /// Requests whose weights could not come.
    pub failed: u64,
    /// Requests that were taken out while they waited.
    pub cancelled: u64,
    /// Adapter generations that came into the batch and were not in it.
    pub swaps: u64,
    /// Requests that became overdue while their weights were there.
    pub overdue: u64,
    /// Loads that were asked for.
    pub loads: u64,
    /// Rounds in which no new lease was given out, because a load had waited for room for too long.
    pub pressed: u64,
    /// Requests that wait now.
    pub waiting: usize,
    /// Requests that run now.
    pub running: usize,
    /// Adapter generations that run now.
    pub adapters: usize,
}
