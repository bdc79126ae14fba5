//! The account core: what must outlive the registry as long as one lease or one wait does.
//!
//! What lives here: the labels of leases, the ledger, the events, the registry's process and clock. What does
//! not: anything that reaches a generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::EventKind;
use crate::error::Error;
use crate::events::Ring;
use crate::holdup::Holder;
use crate::labels::{LabelId, Labelled, Labels};
use crate::ledger::Ledger;
use crate::sync::atomic::{AtomicU64, Ordering};

/// See the module documentation.
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) labels: Labels,
    pub(crate) events: Arc<Ring<EventKind>>,
    /// Labelled leases that found the slab full and were granted without a label.
    pub(crate) unlabelled: AtomicU64,
    /// Superseded generations whose bytes are back, and how many bytes those were.
    pub(crate) reclaimed: [AtomicU64; 2],
    /// Calls of a recorder or subscriber that panicked.
    pub(crate) observer_panics: AtomicU64,
    started: Instant,
    process: u32,
}

impl Shared {
    /// With room for `events` events.
    pub(crate) fn new(ledger: Ledger, events: usize) -> Self {
        Shared {
            ledger,
            labels: Labels::new(),
            events: Arc::new(Ring::new(events)),
            unlabelled: AtomicU64::new(0),
            reclaimed: [0, 0].map(AtomicU64::new),
            observer_panics: AtomicU64::new(0),
            started: Instant::now(),
            process: std::process::id(),
        }
    }

    /// A child process has the parent's memory but not its reclaimer.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        let now = std::process::id();
        if now == self.process {
            Ok(())
        } else {
            Err(Error::Forked {
                made_in: self.process,
                now,
            })
        }
    }

    /// Enters a lease of one generation in the slab. `None`: the slab is full (counted).
    pub(crate) fn label(&self, label: &str, slot: u32, birth: u64) -> Option<LabelId> {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let id = self.labels.claim(label, slot, birth, now);
        self.note_full(id.is_none());
        id
    }

    /// The same label and start for a clone of a lease.
    pub(crate) fn label_again(&self, id: LabelId) -> Option<LabelId> {
        let id = self.labels.clone_label(id);
        self.note_full(id.is_none());
        id
    }

    fn note_full(&self, full: bool) {
        if full {
            // E64: a statistic; nothing is read through it.
            self.unlabelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The labelled leases of one generation, oldest first.
    pub(crate) fn holders(&self, slot: u32, birth: u64) -> Vec<Holder> {
        let now = self.started.elapsed();
        let entries = self.labels.holders(slot, birth).into_iter();
        let mut holders: Vec<Holder> = entries.map(|entry| holder(entry, now)).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.age));
        holders
    }

    /// The oldest labelled lease of all. Looks at every entry that the slab has.
    pub(crate) fn oldest_lease(&self) -> Option<Holder> {
        let now = self.started.elapsed();
        self.labels.oldest().map(|entry| holder(entry, now))
    }
}

fn holder(entry: Labelled, now: Duration) -> Holder {
    Holder {
        label: entry.label,
        age: now.saturating_sub(Duration::from_nanos(entry.since_ns)),
    }
}
