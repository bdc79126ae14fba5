//! Locks for cold paths: they do not poison (a panic elsewhere must not take the registry down; what
//! they guard is whole at every instant), and waits have deadlines.

use std::sync::TryLockError;
#[cfg(not(weighbridge_shuttle))]
use std::time::Instant;

#[cfg(weighbridge_loom)]
use loom::sync as primitive;
#[cfg(weighbridge_shuttle)]
use shuttle::sync as primitive;
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
use std::sync as primitive;

pub use primitive::MutexGuard;

/// A mutex without poison.
#[derive(Debug, Default)]
pub struct Mutex<T>(primitive::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub fn new(value: T) -> Self {
        Mutex(primitive::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The lock, if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A condition variable whose wait may have a deadline.
#[cfg(not(weighbridge_shuttle))]
#[derive(Debug, Default)]
pub struct Condvar(primitive::Condvar);

#[cfg(not(weighbridge_shuttle))]
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
    #[cfg(not(weighbridge_loom))]
    pub fn wait_deadline<'g, T>(
        &self,
        guard: MutexGuard<'g, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'g, T>, bool) {
        let Some(deadline) = deadline else {
            let guard = self
                .0
                .wait(guard)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            return (guard, false);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let (guard, timeout) = self
            .0
            .wait_timeout(guard, left)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        (guard, timeout.timed_out())
    }

    /// The model checker has no clock: a deadline in the past has passed, any other never does.
    #[cfg(weighbridge_loom)]
    pub fn wait_deadline<'g, T>(
        &self,
        guard: MutexGuard<'g, T>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'g, T>, bool) {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return (guard, true);
        }
        let guard = self
            .0
            .wait(guard)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        (guard, false)
    }
}

#[cfg(weighbridge_shuttle)]
pub use stepped::Condvar;

#[cfg(weighbridge_shuttle)]
mod stepped {
    use std::panic::{RefUnwindSafe, UnwindSafe};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use shuttle::sync as primitive;
    use shuttle::sync::atomic::{AtomicU32, Ordering};
    use shuttle::thread;

    use super::MutexGuard;

    /// The scheduler has no clock. A deadline that is nearer than this may pass at any moment, any other
    /// never does: a wake-up that is lost is a deadlock then, not a late answer.
    const SOON: Duration = Duration::from_secs(60);

    const WAITING: u32 = 0;
    const PASSED: u32 = 1;
    const OVER: u32 = 2;

    /// A condition variable whose wait may have a deadline.
    #[derive(Debug, Default)]
    pub struct Condvar(Arc<primitive::Condvar>);

    // As std's.
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
            guard: MutexGuard<'g, T>,
            deadline: Option<Instant>,
        ) -> (MutexGuard<'g, T>, bool) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match left {
                Some(Duration::ZERO) => (guard, true),
                Some(left) if left < SOON => self.wait_clocked(guard),
                _ => (self.wait(guard), false),
            }
        }

        fn wait<'g, T>(&self, guard: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
            self.0
                .wait(guard)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        /// The clock is a thread like any other: the deadline passes when it has its turn.
        fn wait_clocked<'g, T>(&self, guard: MutexGuard<'g, T>) -> (MutexGuard<'g, T>, bool) {
            let clock = Arc::new(AtomicU32::new(WAITING));
            let (condvar, state) = (Arc::clone(&self.0), Arc::clone(&clock));
            let ticking = thread::spawn(move || {
                let waits =
                    |from| state.compare_exchange(from, PASSED, Ordering::SeqCst, Ordering::SeqCst);
                let mut seen = waits(WAITING);
                // It cannot hold the waiter's lock, so its call may come before the waiter sleeps.
                while seen != Err(OVER) {
                    condvar.notify_all();
                    thread::yield_now();
                    seen = waits(PASSED);
                }
            });
            let guard = self.wait(guard);
            let passed = clock.swap(OVER, Ordering::SeqCst) == PASSED;
            ticking.join().expect("a clock does not panic");
            (guard, passed)
        }
    }
}
