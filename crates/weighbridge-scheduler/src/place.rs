//! Places in the batch: taken by who joins, given back when they are dropped.
//!
//! What lives here: the guard, and the batch that it belongs to. What does not: the counts (`batch`), who
//! gets a place (`order`).

use std::fmt;
use std::sync::{Arc, PoisonError};

use weighbridge::{Generation, SetHandle};

use crate::batch::Batch;
use crate::bell::Bell;
use crate::sync::{Mutex, MutexGuard};

/// An adapter's generation. (set, generation) is never used again for other weights.
pub(crate) type Key = (SetHandle, Generation);

/// The batch, for the guards and the scheduler.
pub(crate) struct Places {
    batch: Mutex<Batch<Key>>,
    pub(crate) bell: Arc<Bell>,
}

impl Places {
    pub(crate) fn new(batch: Batch<Key>, bell: Arc<Bell>) -> Arc<Self> {
        let batch = Mutex::new(batch);
        Arc::new(Places { batch, bell })
    }

    /// Nothing that could panic runs under it, but for the batch's own check, which comes before any change.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Batch<Key>> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guard for a place that was taken.
    pub(crate) fn guard(self: &Arc<Self>, adapter: Option<Key>) -> Place {
        Place {
            places: Arc::clone(self),
            adapter,
        }
    }
}

/// A request's place in the batch. Dropping it gives the place back, exactly once, on every path: return, `?`,
/// panic. There is nothing else to call, and no other way.
///
/// It outlives its scheduler harmlessly. One that is [forgotten](std::mem::forget) is never free again.
#[must_use = "dropping it gives the place back"]
pub struct Place {
    places: Arc<Places>,
    adapter: Option<Key>,
}

impl Place {
    /// Which generation of which adapter the request runs with; `None`: the base alone. Requests with equal
    /// answers can share what the engine makes of an adapter.
    pub fn adapter(&self) -> Option<(SetHandle, Generation)> {
        self.adapter
    }
}

/// Short: one lock, and whoever [waits](crate::Scheduler::wait) is woken.
impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().end(self.adapter);
        self.places.bell.ring();
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = f.debug_struct("Place");
        place
            .field("adapter", &self.adapter)
            .finish_non_exhaustive()
    }
}
