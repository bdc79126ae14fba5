//! The state word of a generation: `DEAD | TAKEN | GRACE | ABSENT | VISITED | lease count` in one
//! atomic.
//!
//! What lives here: every transition of that word, and nothing else. What does not: what the taker
//! does with the bytes (`node`), who calls `kill` and when (`spine`), who takes bytes away and brings
//! them back (`berth`), who waits (`vitals`).
//!
//! The states and the steps S2-S9, V1-V3 are drawn in docs/MEMORY_ORDERING.md. In short: a lease is one
//! unit of the count. `DEAD` refuses new leases. `{DEAD, 0}` is entered exactly once and is final;
//! whoever makes it is the taker and owns the bytes. `TAKEN` says the taker has finished with the
//! node, `GRACE` says the epoch has; whoever sets the second of the two frees the node. `ABSENT` says
//! that the generation is current and has no bytes now; it refuses leases, too, and comes and goes while
//! there are none. `VISITED` says that somebody took a lease since it was last cleared.

use crate::sync::atomic::{AtomicU64, Ordering, acquire, fence};

const DEAD: u64 = 1 << 63;
const TAKEN: u64 = 1 << 62;
const GRACE: u64 = 1 << 61;
const ABSENT: u64 = 1 << 60;
const VISITED: u64 = 1 << 59;
const COUNT: u64 = VISITED - 1;

/// Why a generation takes no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It was superseded.
    Dead,
    /// It has no bytes now.
    Absent,
}

/// Why a generation's bytes stay where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// Somebody has a lease.
    Leased,
    /// Somebody had one since the last look, and that was to be respected.
    Visited,
    /// They are not its own alone.
    Shared,
    /// There are none.
    Absent,
    /// It was superseded: its taker has them.
    Dead,
}

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

    /// Alive, without bytes.
    pub fn absent() -> Self {
        StateWord(AtomicU64::new(ABSENT))
    }

    /// S2: takes one lease, unless the generation is dead or has no bytes.
    ///
    /// A CAS loop rather than `fetch_add`: there is never a transient count to undo, and so
    /// `{DEAD, 0}` cannot be left and entered twice. Lock-free: a failed CAS means that another
    /// acquire, clone, release or kill of this generation went through.
    #[inline]
    pub fn try_hold(&self) -> Result<(), Closed> {
        // E70: Relaxed: what is read through a lease is ordered by the exchange below.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen & (DEAD | ABSENT) != 0 {
                return Err(Self::closed(seen));
            }
            // E70: Acquire: the bytes that `restore` brought. The node itself was published to us by E1
            // and E2. Relaxed on failure: the value is tested again.
            match self.0.compare_exchange_weak(
                seen,
                (seen + 1) | VISITED,
                Ordering::Acquire, // E70
                Ordering::Relaxed, // E70
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    #[cold]
    fn closed(seen: u64) -> Closed {
        if seen & DEAD == 0 {
            return Closed::Absent;
        }
        // E5: pairs with `kill`. Who sees DEAD sees the clock that moved before it.
        fence(Ordering::Acquire);
        Closed::Dead
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

    /// V1: closes an unleased generation, so that its bytes can be taken away. If they are only taken
    /// from who is `idle`, a lease since [`clear_visited`](Self::clear_visited) is a reason to stay.
    ///
    /// Called by who may write the set: nobody kills or restores it meanwhile. No acquire waits for this,
    /// and this waits for none.
    pub fn evict(&self, idle: bool) -> Result<(), Stays> {
        // E71: Relaxed: tested again by the exchange.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            match seen {
                _ if seen & DEAD != 0 => return Err(Stays::Dead),
                _ if seen & ABSENT != 0 => return Err(Stays::Absent),
                _ if seen & COUNT != 0 => return Err(Stays::Leased),
                _ if idle && seen & VISITED != 0 => return Err(Stays::Visited),
                // E71: Acquire: all releases, hence all uses of the bytes, come before they are taken
                // away (one release sequence, every write is an RMW).
                _ => match self.0.compare_exchange_weak(
                    seen,
                    ABSENT,
                    Ordering::Acquire, // E71
                    Ordering::Relaxed, // E71
                ) {
                    Ok(_) => return Ok(()),
                    Err(now) => seen = now,
                },
            }
        }
    }

    /// V2: the bytes are there again, and the caller has one lease of them: nobody can take them away
    /// before it has used them. Called by who may write the set, of a generation that is alive and has none.
    pub fn restore(&self) {
        // E70: Release: the bytes come before the first lease that somebody else takes. From {ABSENT, 0}
        // to {1} in one step.
        let before = self.0.fetch_sub(ABSENT - 1, Ordering::Release);
        debug_assert_eq!(
            before, ABSENT,
            "only what is absent and current is restored"
        );
    }

    /// V3: was it leased since the last time this was called?
    pub fn clear_visited(&self) -> bool {
        // E17: a hint for whoever chooses what to evict; nothing is read through it.
        self.0.fetch_and(!VISITED, Ordering::Relaxed) & VISITED != 0
    }

    /// No bytes at this moment? A leased generation has some for as long as it is leased.
    #[inline]
    pub fn is_absent(&self) -> bool {
        // E17: who wants to read takes a lease; this is an answer for people and choosers.
        self.0.load(Ordering::Relaxed) & ABSENT != 0
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
