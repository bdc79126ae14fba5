//! Twins of std's primitives that ThreadSanitizer can see (`weighbridge_tsan`, see `.ci/tsan`).
//!
//! What lives here: locks by parking_lot, whose code is instrumented as ours is, where std's was compiled
//! without; and an atomic of operations that it knows, and that no other crate uses. What does not: any promise
//! that std's do not make.

use std::ops::Deref;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{self, Ordering};
use std::time::Instant;

pub use parking_lot::MutexGuard;

/// A mutex without poison.
#[derive(Debug, Default)]
pub struct Mutex<T>(parking_lot::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub fn new(value: T) -> Self {
        Mutex(parking_lot::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// The lock, if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }
}

// As std's, which poison themselves; what these guard is whole at every instant (`lock`).
impl<T> UnwindSafe for Mutex<T> {}
impl<T> RefUnwindSafe for Mutex<T> {}

/// A condition variable whose wait may have a deadline.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl UnwindSafe for Condvar {}
impl RefUnwindSafe for Condvar {}

impl Condvar {
    /// Wakes one of those who wait, if anybody does.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits for a wake-up or the deadline; says whether it was the deadline.
    pub fn wait_deadline<'g, T>(
        &self,
        mut guard: MutexGuard<'g, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'g, T>, bool) {
        let timed_out = match deadline {
            Some(deadline) => self.0.wait_until(&mut guard, deadline).timed_out(),
            None => {
                self.0.wait(&mut guard);
                false
            }
        };
        (guard, timed_out)
    }
}

/// std's, but for what ThreadSanitizer does not see.
#[derive(Debug)]
pub struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    /// As std's.
    pub fn new(value: u64) -> Self {
        AtomicU64(atomic::AtomicU64::new(value))
    }

    /// The same by an addition: ThreadSanitizer's `fetch_sub` is replaced in this build, so that it sees
    /// the last drop of an `Arc` (`tests/stress/wrap.rs`), and would hide an edge that we forgot.
    pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value.wrapping_neg(), order)
    }

    /// The same by exchanges: LLVM leaves a maximum as it is, without a word to ThreadSanitizer.
    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        let bigger = |there: u64| Some(there.max(value));
        match self.0.fetch_update(order, Ordering::Relaxed, bigger) {
            Ok(before) | Err(before) => before,
        }
    }
}

impl Deref for AtomicU64 {
    type Target = atomic::AtomicU64;

    fn deref(&self) -> &atomic::AtomicU64 {
        &self.0
    }
}
