//! One answer for everybody who waits for the same thing.
//!
//! What lives here: an outcome that comes once, and whoever waits for it, as a task or as a thread. What
//! does not: who brings it, what it is about, how long anybody waits (`registry::loading`).
//!
//! Wakers are foreign code: they are cloned, woken and dropped while no lock of ours is held.

use std::task::Waker;

use super::panics;
use crate::sync::Mutex;

/// See the module documentation. It flies until somebody lands it.
#[derive(Debug)]
pub struct Flight<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Flying {
        waiting: Vec<(u64, Waker)>,
        /// The next place.
        next: u64,
    },
    Landed(T),
}

/// A waiter's place. It belongs to one flight, and to one waiter.
#[derive(Debug, Default)]
pub struct Place(Option<u64>);

impl<T: Clone> Flight<T> {
    /// Nobody waits yet.
    pub fn new() -> Self {
        Flight(Mutex::new(State::Flying {
            waiting: Vec::new(),
            next: 0,
        }))
    }

    /// The outcome is there: wakes whoever waits. What comes second comes back.
    pub fn land(&self, outcome: T) -> Result<(), T> {
        let waiting = {
            let mut state = self.0.lock(); // E75
            match &mut *state {
                State::Landed(_) => return Err(outcome),
                State::Flying { waiting, .. } => {
                    let waiting = std::mem::take(waiting);
                    *state = State::Landed(outcome);
                    waiting
                }
            }
        };
        for (_, waker) in waiting {
            // Each by itself: one that panics must not keep the others asleep.
            let _ = panics(|| waker.wake());
        }
        Ok(())
    }

    /// The outcome, or `waker` will be woken when it is there. One waiter has one `place`; the waker of
    /// its last call counts.
    pub fn poll(&self, place: &mut Place, waker: &Waker) -> Option<T> {
        let mine = waker.clone();
        // Dropped at the end, after the lock.
        let _before = {
            let mut state = self.0.lock(); // E75
            match &mut *state {
                State::Landed(outcome) => return Some(outcome.clone()),
                State::Flying { waiting, next } => {
                    let at = *place.0.get_or_insert_with(|| {
                        *next += 1;
                        *next
                    });
                    match waiting.iter_mut().find(|(place, _)| *place == at) {
                        Some((_, waker)) => Some(std::mem::replace(waker, mine)),
                        None => {
                            waiting.push((at, mine));
                            None
                        }
                    }
                }
            }
        };
        None
    }

    /// Who had this place does not wait any more. The others do.
    pub fn leave(&self, place: &mut Place) {
        let Some(at) = place.0.take() else { return };
        let _waker = {
            let mut state = self.0.lock(); // E75
            match &mut *state {
                State::Landed(_) => None,
                State::Flying { waiting, .. } => {
                    let found = waiting.iter().position(|(place, _)| *place == at);
                    found.map(|index| waiting.swap_remove(index))
                }
            }
        };
    }
}
