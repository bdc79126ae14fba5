//! Locks for cold paths: they do not poison (a panic elsewhere must not take the registry down; what
//! they guard is whole at every instant), and waits have deadlines.

use std::time::Instant;

#[cfg(weighbridge_loom)]
use loom::sync as primitive;
#[cfg(not(weighbridge_loom))]
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
}

/// A condition variable whose wait may have a deadline.
#[derive(Debug, Default)]
pub struct Condvar(primitive::Condvar);

impl Condvar {
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
