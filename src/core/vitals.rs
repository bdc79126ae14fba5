//! What outlives a generation's node: its state word, the place where people wait for its end, and
//! the flag that asks its holders to let go.
//!
//! What lives here: the two waits, `drained` and `reclaimed`, and `revoke`. What does not: the
//! transitions of the state word (`state`) and who announces them (`reclaim` calls `announce` and
//! `set_reclaimed`).
//!
//! A waiter holds this block by `Arc` and never the node. Wake-ups come from the reclaimer's
//! thread, so a lease that ends on an inference thread neither locks nor wakes anyone here.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use super::state::StateWord;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Condvar, Mutex, OnceLock};

/// The wait ended because its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

/// What is to be said when the bytes are back.
pub type Farewell = Box<dyn Fn() + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// See the module documentation.
pub struct Vitals {
    /// A cache line of its own: leases write it, while readers only read the node beside it.
    state: CachePadded<StateWord>,
    revoked: AtomicU32,
    reclaimed: Mutex<bool>,
    farewell: OnceLock<Farewell>,
    changed: Condvar,
}

impl Vitals {
    /// Alive, unleased.
    pub fn new() -> Self {
        Self::with(StateWord::new())
    }

    /// The same, without bytes.
    pub fn absent() -> Self {
        Self::with(StateWord::absent())
    }

    fn with(state: StateWord) -> Self {
        Vitals {
            state: CachePadded::new(state),
            revoked: AtomicU32::new(0),
            reclaimed: Mutex::new(false),
            farewell: OnceLock::new(),
            changed: Condvar::default(),
        }
    }

    /// The state word.
    #[inline]
    pub fn state(&self) -> &StateWord {
        &self.state
    }

    /// Asks whoever holds a lease to end it. Changes nothing else.
    pub fn revoke(&self) {
        // E24: Release: who sees the flag sees what the revoker did before.
        self.revoked.store(1, Ordering::Release);
    }

    /// Were the holders asked to let go? Wait-free, one load.
    #[inline]
    pub fn is_revoked(&self) -> bool {
        // E24: Acquire: pairs with `revoke`.
        self.revoked.load(Ordering::Acquire) != 0
    }

    /// Wakes whoever waits for `drained`. Called by the reclaimer after `{DEAD, 0}` was made.
    pub(super) fn announce(&self) {
        // E10: a waiter looks at the state word while it holds this lock. Passing through the lock
        // after `{DEAD, 0}` means: it either saw it, or is already asleep and hears the call.
        drop(self.reclaimed.lock());
        self.changed.notify_all();
    }

    /// `farewell` is called once, when the bytes are back and before anybody is told; on the
    /// reclaimer's thread, so it must be short and must not call foreign code. To be set before the
    /// generation is killed: E4 and E7 bring it to the reclaimer.
    pub fn on_reclaimed(&self, farewell: Farewell) {
        let _ = self.farewell.set(farewell);
    }

    /// The bytes are back in the ledger. Wakes whoever waits for it.
    pub fn set_reclaimed(&self) {
        if let Some(farewell) = self.farewell.get() {
            farewell();
        }
        *self.reclaimed.lock() = true; // E10
        self.changed.notify_all();
    }

    /// Are the bytes back?
    pub fn is_reclaimed(&self) -> bool {
        *self.reclaimed.lock() // E10
    }

    /// Waits until no lease is left, or until `deadline` (`None`: as long as it takes).
    pub fn wait_drained(&self, deadline: Option<Instant>) -> Result<(), TimedOut> {
        self.wait(deadline, |vitals, _| vitals.state.is_drained())
    }

    /// Waits until the bytes are back in the ledger.
    pub fn wait_reclaimed(&self, deadline: Option<Instant>) -> Result<(), TimedOut> {
        self.wait(deadline, |_, reclaimed| reclaimed)
    }

    fn wait(
        &self,
        deadline: Option<Instant>,
        done: impl Fn(&Self, bool) -> bool,
    ) -> Result<(), TimedOut> {
        let mut reclaimed = self.reclaimed.lock(); // E10
        loop {
            if done(self, *reclaimed) {
                return Ok(());
            }
            let (guard, timed_out) = self.changed.wait_deadline(reclaimed, deadline);
            reclaimed = guard;
            if timed_out {
                return if done(self, *reclaimed) {
                    Ok(())
                } else {
                    Err(TimedOut)
                };
            }
        }
    }
}
