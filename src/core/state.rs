//! The state word of a generation: `DEAD | TAKEN | GRACE | lease count` in one atomic.
//!
//! What lives here: every transition of that word, and nothing else. What does not: what the taker
//! does with the bytes (`node`), who calls `kill` and when (`spine`), who waits (`vitals`).
//!
//! The states and the steps S2-S9 are drawn in docs/MEMORY_ORDERING.md. In short: a lease is one
//! unit of the count. `DEAD` refuses new leases. `{DEAD, 0}` is entered exactly once and is final;
//! whoever makes it is the taker and owns the bytes. `TAKEN` says the taker has finished with the
//! node, `GRACE` says the epoch has; whoever sets the second of the two frees the node.

use crate::sync::atomic::{AtomicU64, Ordering, acquire, fence};

const DEAD: u64 = 1 << 63;
const TAKEN: u64 = 1 << 62;
const GRACE: u64 = 1 << 61;
const COUNT: u64 = GRACE - 1;

/// The generation no longer takes leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead;

/// See the module documentation. Consists of one atomic, so a reference to it may outlive the
/// memory while a call returns (the rule that `Arc` relies on too).
#[derive(Debug)]
pub struct StateWord(AtomicU64);

impl Default for StateWord {
    fn default() -> Self {
        Self::new()
    }
}

impl StateWord {
    /// Alive, no lease.
    pub fn new() -> Self {
        StateWord(AtomicU64::new(0))
    }

    /// S2: takes one lease, unless the generation is dead.
    ///
    /// A CAS loop rather than `fetch_add`: there is never a transient count to undo, and so
    /// `{DEAD, 0}` cannot be left and entered twice. Lock-free: a failed CAS means that another
    /// acquire, clone, release or kill of this generation went through.
    #[inline]
    pub fn try_hold(&self) -> Result<(), Dead> {
        // E5: Relaxed is enough to hold a lease: the node was published to us by E1 and E2, and
        // nothing of the count's history is read through it.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen & DEAD != 0 {
                // E5: pairs with `kill`. Who sees DEAD sees the clock that moved before it.
                fence(Ordering::Acquire);
                return Err(Dead);
            }
            // E5: as above; a value seen by a failed exchange is tested for DEAD again.
            match self.0.compare_exchange_weak(
                seen,
                seen + 1,
                Ordering::Relaxed, // E5
                Ordering::Relaxed, // E5
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// S4: takes one more lease. The caller holds one already, so the count is at least one and
    /// `DEAD` does not matter: leases of a dead generation may be cloned.
    #[inline]
    pub fn hold_again(&self) {
        // E4: Relaxed, as in `Arc::clone`: the new lease is handed on by the one that exists.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// S5: gives one lease back. `true`: this was the last lease of a dead generation, the caller
    /// is the taker. `false`: the caller must touch neither the node nor this word again.
    ///
    /// Wait-free.
    #[inline]
    #[must_use]
    pub fn release(&self) -> bool {
        // E4: Release: every use of the bytes under this lease comes before the hand-off.
        let before = self.0.fetch_sub(1, Ordering::Release);
        if before & (DEAD | COUNT) != DEAD | 1 {
            return false;
        }
        // E4: Acquire: all earlier releases (one release sequence, every write is an RMW) and the
        // kill come before what the taker does.
        acquire(&self.0);
        true
    }

    /// S8: refuses new leases from here on. `true`: there was no lease, the caller is the taker.
    ///
    /// Called once per generation, after the clock has moved past it.
    #[must_use]
    pub fn kill(&self) -> bool {
        // E5: Release: who sees DEAD sees the moved clock. E4: Acquire: if the count is zero, all
        // releases come before the taker.
        let before = self.0.fetch_or(DEAD, Ordering::AcqRel);
        debug_assert_eq!(before & DEAD, 0, "a generation is superseded once");
        before & COUNT == 0
    }

    /// S7: the taker has finished with the node. `true`: the epoch has too, free the node.
    #[must_use]
    pub fn taken(&self) -> bool {
        // E6: both sides are AcqRel: the earlier one's last touch comes before the later one's free.
        self.0.fetch_or(TAKEN, Ordering::AcqRel) & GRACE != 0
    }

    /// S9: no reader can still reach the node. `true`: the taker has finished too, free the node.
    #[must_use]
    pub fn grace(&self) -> bool {
        // E6: see `taken`.
        self.0.fetch_or(GRACE, Ordering::AcqRel) & TAKEN != 0
    }

    /// Has the epoch let go of the node? If not, some reader may still look at its metadata.
    pub fn is_let_go(&self) -> bool {
        // E17: a statistic; nothing is read through it.
        self.0.load(Ordering::Relaxed) & GRACE != 0
    }

    /// Leases held right now. A number for people: it may be stale when it is printed.
    pub fn holds(&self) -> u64 {
        // E9: Acquire only so that a zero that is printed is as strong as `is_drained`.
        self.0.load(Ordering::Acquire) & COUNT
    }

    /// Superseded: no lease can be taken any more. Final. Turns true a moment after the commit that
    /// supersedes the generation. Wait-free, one load.
    #[inline]
    pub fn is_dead(&self) -> bool {
        // E5: pairs with `kill`: who sees DEAD sees the clock that moved before it.
        self.0.load(Ordering::Acquire) & DEAD != 0
    }

    /// Dead and unleased. Final: once true, always true, and no lease can ever be taken again.
    pub fn is_drained(&self) -> bool {
        // E9: pairs with `release` and `kill`: all uses of the bytes come before the answer.
        let seen = self.0.load(Ordering::Acquire);
        seen & DEAD != 0 && seen & COUNT == 0
    }
}
