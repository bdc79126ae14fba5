//! Receiving events.
//!
//! What lives here: [`Subscription`]. What does not: what the events say (`event`), the ring
//! (`events`).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::WeightRegistry;
use super::event::{Event, EventKind};
use crate::events::{Found, Ring};

/// What a [`Subscription`] has next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is looked at once and not kept in numbers"
)]
pub enum Next {
    /// An event.
    Event(Event),
    /// This subscriber was too slow: so many events are gone, it goes on with the oldest that is
    /// there. Whoever mirrors the registry takes a new [`catalog`](WeightRegistry::catalog) now and
    /// passes over events of commits that it shows already.
    Missed(u64),
    /// Nothing happened yet.
    Nothing,
    /// Nothing more will come, and everything was read: the registry is gone, or it was waited for in
    /// a child process after a `fork`.
    Closed,
}

/// A place in the stream of a registry's events.
///
/// It sees every event from the call of [`WeightRegistry::events`] on, in order, once; or is told
/// exactly how many it missed, because the stream holds a bounded number
/// ([`event_capacity`](super::Builder::event_capacity)) and a publisher never waits for a subscriber.
/// A clone goes on independently from the same place. It may outlive the registry.
///
/// To mirror a registry: subscribe, then take a catalog, then apply the events of commits that are
/// newer than [`Catalog::number`](super::Catalog::number). Events name sets by handle; a lookup by
/// name may be a moment behind or ahead of them.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, EventKind, Next, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let mut events = registry.events();
/// let set = registry.publish("one", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
/// let Next::Event(event) = events.try_next() else { panic!("nothing happened") };
/// assert!(matches!(event.kind, EventKind::Published { now, .. } if now.handle == set));
/// assert_eq!(events.try_next(), Next::Nothing);
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Clone)]
pub struct Subscription {
    ring: Arc<Ring<EventKind>>,
    cursor: u64,
    /// The registry's.
    process: u32,
}

impl WeightRegistry {
    /// The events from now on. Costs one load; holds nothing but the stream.
    pub fn events(&self) -> Subscription {
        let ring = Arc::clone(&self.shared.events);
        Subscription {
            cursor: ring.now(),
            ring,
            process: self.shared.process(),
        }
    }
}

impl Subscription {
    /// What is next. Takes no lock and never waits.
    ///
    /// An event is delivered after all events before it: while a writer is between its commit and
    /// the end of its call, what came after may wait for it here, until the stream has come round.
    pub fn try_next(&mut self) -> Next {
        self.ring.read(&mut self.cursor).into()
    }

    /// What is next, if something comes within `timeout`; then [`Next::Nothing`]. Blocks the calling
    /// thread only. In a child process after a `fork` nothing comes: this does not wait there.
    pub fn next_timeout(&mut self, timeout: Duration) -> Next {
        if std::process::id() != self.process {
            return match self.try_next() {
                Next::Nothing => Next::Closed,
                next => next,
            };
        }
        // A timeout beyond the clock's end is none.
        let deadline = Instant::now().checked_add(timeout);
        self.ring.wait(&mut self.cursor, deadline).into()
    }

    /// Everything that is there now: events and gaps, up to [`Next::Nothing`] or [`Next::Closed`],
    /// neither of which is among them.
    pub fn pending(&mut self) -> impl Iterator<Item = Next> {
        std::iter::from_fn(|| match self.try_next() {
            Next::Nothing | Next::Closed => None,
            next => Some(next),
        })
    }
}

impl From<Found<EventKind>> for Next {
    fn from(found: Found<EventKind>) -> Self {
        match found {
            Found::Event(sequence, kind) => Next::Event(Event::new(sequence, kind)),
            Found::Missed(missed) => Next::Missed(missed),
            Found::Nothing => Next::Nothing,
            Found::Closed => Next::Closed,
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("next", &self.cursor)
            .finish_non_exhaustive()
    }
}
