//! The scheduler: one round, and waiting for the next.
//!
//! What lives here: what the engine's thread calls, and what can be asked. What does not: admission (`admission`),
//! weights that have to come (`fetch`), the order (`order`).

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use weighbridge::WeightRegistry;

use crate::batch::Batch;
use crate::bell::Bell;
use crate::desk::Locked;
use crate::limits::{LimitError, Limits};
use crate::loads::Loads;
use crate::place::Places;
use crate::queue::Waiting;
use crate::round::{Round, Ticket, Turn};
use crate::stats::Stats;
use crate::sync::Mutex;

/// Decides which requests run together when each wants an adapter. See the [crate](crate).
///
/// `Send + Sync` if the payload is `Send`: threads that serve clients admit, one that runs the model schedules.
/// Dropping it ends whoever waits: payloads are dropped, leases end. Places and leases that were given out stay
/// good.
///
/// ```
/// fn shared<T: Send + Sync>() {}
/// shared::<weighbridge_scheduler::Scheduler<std::cell::Cell<u8>>>(); // `Send`, not `Sync`
/// ```
pub struct Scheduler<T> {
    pub(crate) registry: Arc<WeightRegistry>,
    pub(crate) limits: Limits,
    pub(crate) desk: Locked<T>,
    pub(crate) bell: Arc<Bell>,
    places: Arc<Places>,
    /// Whoever has it does a round. Taken before the desk's lock, which is taken before that of the places.
    rounds: Mutex<Loads>,
}

impl<T> Scheduler<T> {
    /// A scheduler for sets of `registry`.
    ///
    /// # Errors
    /// [`LimitError`] if one of [`running`](Limits::running), [`adapters`](Limits::adapters),
    /// [`waiting`](Limits::waiting) and [`ahead`](Limits::ahead) is zero.
    pub fn new(registry: Arc<WeightRegistry>, limits: Limits) -> Result<Self, LimitError> {
        limits.check()?;
        let bell = Arc::new(Bell::default());
        let batch = Batch::new(limits.running, limits.adapters);
        Ok(Scheduler {
            registry,
            limits,
            desk: Locked::new(limits.patience),
            places: Places::new(batch, Arc::clone(&bell)),
            rounds: Mutex::new(Loads::new(Arc::clone(&bell))),
            bell,
        })
    }

    /// One round: who joins the batch now, and whose weights could not come. Call it between two steps of the
    /// model.
    ///
    /// The order, what happens when somebody is overdue, and how long anybody waits at most are told in the
    /// [crate's documentation](crate#the-order).
    ///
    /// Progress: it waits for no load and reads no file. It is O(n log n) in the number of requests that
    /// wait, and asks the registry once for each adapter that is away; the lock that admission takes is held while the queue is
    /// gone through, and for none of the registry's answers. Rounds of several threads come one after the other.
    ///
    /// # Panics
    /// If a [policy](weighbridge::policy::Policy) of the registry panics while it is asked. Nobody is lost: the
    /// next round goes on.
    pub fn schedule(&self) -> Round<T> {
        let mut loads = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let number = {
            let mut desk = self.desk.lock();
            desk.round += 1;
            // First: what rings from here on is news for the next wait.
            desk.heard = self.bell.heard();
            desk.round
        };
        self.fetch(&mut loads, number);
        let mut desk = self.desk.lock();
        let ready = desk.queue.ready();
        let chosen = {
            let mut batch = self.places.lock();
            desk.order.choose(number, &ready, &mut batch)
        };
        let mut joined = Vec::with_capacity(chosen.len());
        for one in chosen {
            desk.counts.swaps += u64::from(one.swap);
            let candidate = &ready[one.at];
            // Made first: whatever happens, the place comes back.
            let place = self.places.guard(candidate.adapter);
            if let Some(Waiting {
                payload,
                weights: Some(weights),
                ..
            }) = desk.queue.take(candidate.ticket)
            {
                joined.push(Turn {
                    ticket: Ticket(candidate.ticket),
                    payload,
                    lease: weights.lease,
                    place,
                });
            }
        }
        desk.counts.joined += joined.len() as u64;
        let failed = std::mem::take(&mut desk.failed);
        Round {
            number,
            joined,
            failed,
        }
    }

    /// Sleeps until there is a reason for another round: since the last one began somebody was admitted or
    /// cancelled, a place was given back, or a load came to its end. `false`: `timeout` is over, and there is none.
    pub fn wait(&self, timeout: Duration) -> bool {
        let heard = self.desk.lock().heard;
        self.bell.wait(heard, timeout)
    }

    /// Wakes whoever [waits](Self::wait), for reasons of your own: to stop, for example.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.desk.lock().queue.len()
    }

    /// How many requests run: places that were given out and are not back.
    pub fn running(&self) -> usize {
        self.places.lock().requests()
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts since it was made, and what is now, all as of one instant.
    pub fn stats(&self) -> Stats {
        let desk = self.desk.lock();
        let batch = self.places.lock();
        Stats {
            rounds: desk.round,
            overdue: desk.order.became_overdue(),
            waiting: desk.queue.len(),
            running: batch.requests(),
            adapters: batch.adapters().len(),
            ..desk.counts
        }
    }
}

impl<T> fmt::Debug for Scheduler<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("limits", &self.limits)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
