//! What all threads share under one short lock.
//!
//! What lives here: the state, and the lock. What does not: what is done with it (`admission`, `fetch`, `scheduler`).
//! Nothing under the lock is foreign code: no payload, no lease and no future is dropped there, and
//! the registry is not asked.

use std::sync::PoisonError;

use crate::limits::Limits;
use crate::order::Order;
use crate::place::Key;
use crate::queue::Queue;
use crate::refused::Why;
use crate::round::Failed;
use crate::stats::Stats;
use crate::sync::{Mutex, MutexGuard};
use crate::wants::Wants;

pub(crate) struct Desk<T> {
    pub(crate) queue: Queue<T>,
    /// Nobody is admitted any more.
    pub(crate) closed: bool,
    pub(crate) order: Order<Key>,
    /// For the next round to deliver.
    pub(crate) failed: Vec<Failed<T>>,
    /// The rounds that began.
    pub(crate) round: u64,
    /// How often the bell had rung when the last of them began.
    pub(crate) heard: u64,
    /// A load that has waited for room for too long: nobody is given a lease that could be in its way.
    pub(crate) pressed: Option<Wants>,
    pub(crate) counts: Stats,
}

impl<T> Desk<T> {
    /// May one more wait?
    pub(crate) fn has_room(&self, limits: &Limits) -> Result<(), Why> {
        let waiting = self.queue.len();
        if self.closed {
            Err(Why::Closed)
        } else if waiting >= limits.waiting {
            Err(Why::Full { waiting })
        } else {
            Ok(())
        }
    }
}

pub(crate) struct Locked<T>(Mutex<Desk<T>>);

impl<T> Locked<T> {
    pub(crate) fn new(patience: u64) -> Self {
        Locked(Mutex::new(Desk {
            queue: Queue::new(),
            closed: false,
            order: Order::new(patience),
            failed: Vec::new(),
            round: 0,
            heard: 0,
            pressed: None,
            counts: Stats::default(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Desk<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
