//! What the engine's thread sleeps on.
//!
//! What lives here: a count of news, and waiting for the next. What does not: what is new.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard};

#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, u64> {
        // A number is right whoever panicked.
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is new.
    pub(crate) fn ring(&self) {
        *self.lock() += 1;
        self.changed.notify_all();
    }

    /// How often it rang so far. Whoever looks around after this misses nothing that rings later.
    pub(crate) fn heard(&self) -> u64 {
        *self.lock()
    }

    /// Waits until it has rung since `heard`. `false`: the time is over, and it has not.
    pub(crate) fn wait(&self, heard: u64, timeout: Duration) -> bool {
        // A timeout beyond the clock's end is none.
        let deadline = Instant::now().checked_add(timeout);
        let mut rung = self.lock();
        while *rung == heard {
            let left = match deadline {
                None => Duration::MAX,
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return false;
            }
            let answer = self.changed.wait_timeout(rung, left);
            rung = answer.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rang_before_the_wait_is_not_missed() {
        let bell = Bell::default();
        let heard = bell.heard();
        assert!(!bell.wait(heard, Duration::ZERO));
        bell.ring();
        assert!(bell.wait(heard, Duration::ZERO));
        assert!(!bell.wait(bell.heard(), Duration::ZERO));
    }

    #[test]
    fn whoever_sleeps_is_woken_also_without_a_deadline() {
        let bell = Bell::default();
        let heard = bell.heard();
        std::thread::scope(|threads| {
            let sleeper = threads.spawn(|| bell.wait(heard, Duration::MAX));
            bell.ring();
            assert!(sleeper.join().unwrap());
        });
    }
}
