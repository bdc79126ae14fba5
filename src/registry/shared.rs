//! The account core: what must outlive the registry as long as one lease or one wait does.
//!
//! What lives here: the labels of leases, the keeper of leases that wait for fences, the ledger, the
//! events, the registry's process and clock. What does not: anything that reaches a generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::EventKind;
use crate::core::{Keeper, Kept};
use crate::error::Error;
use crate::events::Ring;
use crate::handle::Generation;
use crate::holdup::{FenceHolder, Holder};
use crate::home::Home;
use crate::labels::{LabelId, Labelled, Labels};
use crate::ledger::Ledger;
use crate::pool::Pool;
use crate::sync::atomic::{AtomicU64, Ordering};

/// An entry whose lease was given away until a fence has passed: a mark on its start. Nanoseconds
/// reach the lower mark after 146 years.
const FENCED: u64 = 1 << 63;
/// Its fence panicked.
const BROKEN: u64 = 1 << 62;

/// See the module documentation.
pub(crate) struct Shared {
    /// For looking: whoever takes bytes does so by the pool.
    pub(crate) ledger: Ledger,
    pub(crate) pool: Pool,
    /// Leases that wait for fences. They keep it, and us, by themselves.
    pub(crate) keeper: Arc<Keeper<Box<dyn Kept>>>,
    pub(crate) labels: Labels,
    pub(crate) events: Arc<Ring<EventKind>>,
    /// Labelled leases that found the slab full and were granted without a label.
    pub(crate) unlabelled: AtomicU64,
    /// Superseded generations whose bytes, or whose shares of them, are back.
    pub(crate) reclaimed: AtomicU64,
    /// Calls of a recorder or subscriber that panicked.
    pub(crate) observer_panics: AtomicU64,
    pub(crate) streaming: Streaming,
    started: Instant,
    home: Home,
}

/// What all streams did.
pub(crate) struct Streaming {
    /// Those that are open.
    pub(crate) open: AtomicU64,
    /// Parts that were read, their bytes, and reads that failed.
    pub(crate) reads: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) failures: AtomicU64,
}

impl Streaming {
    fn new() -> Self {
        Streaming {
            open: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub(crate) fn begun(&self) {
        // E17: a statistic, and so are the others.
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed); // E17
    }

    /// A part of so many bytes was read, or not.
    pub(crate) fn read(&self, bytes: u64, was_read: bool) {
        if was_read {
            self.reads.fetch_add(1, Ordering::Relaxed); // E17
            self.bytes.fetch_add(bytes, Ordering::Relaxed); // E17
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed); // E17
        }
    }
}

impl Shared {
    /// With room for `events` events, and a pool of `pooled` bytes.
    pub(crate) fn new(ledger: Ledger, events: usize, pooled: u64) -> Self {
        Shared {
            pool: Pool::new(ledger.clone(), pooled),
            ledger,
            keeper: Arc::new(Keeper::new()),
            labels: Labels::new(),
            events: Arc::new(Ring::new(events)),
            unlabelled: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            observer_panics: AtomicU64::new(0),
            streaming: Streaming::new(),
            started: Instant::now(),
            home: Home::here(),
        }
    }

    /// Where it was made.
    pub(crate) fn process(&self) -> u32 {
        self.home.process()
    }

    /// A child process has the parent's memory but not its reclaimer.
    pub(crate) fn check_process(&self) -> Result<(), Error> {
        self.home.check().map_err(|now| Error::Forked {
            made_in: self.home.process(),
            now,
        })
    }

    /// Enters a lease of one generation in the slab. `None`: the slab is full (counted).
    pub(crate) fn label(&self, label: &str, slot: u32, birth: u64) -> Option<LabelId> {
        self.enter(label, slot, birth, self.now())
    }

    /// Enters a lease that was given away until the fence `name` has passed.
    pub(crate) fn label_fence(&self, name: &str, slot: u32, birth: u64) -> Option<LabelId> {
        self.enter(name, slot, birth, self.now() | FENCED)
    }

    /// The entry of a fence that panicked, in place of its first one.
    pub(crate) fn label_broken(&self, fence: LabelId, slot: u32) -> Option<LabelId> {
        let known = self.labels.get(fence)?;
        let id = self.enter(&known.label, slot, known.birth, known.since_ns | BROKEN)?;
        self.labels.release(fence);
        Some(id)
    }

    fn now(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        now & !(FENCED | BROKEN)
    }

    fn enter(&self, label: &str, slot: u32, birth: u64, since: u64) -> Option<LabelId> {
        let id = self.labels.claim(label, slot, birth, since);
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

    /// The labelled leases of one generation that somebody has, and those that wait for fences.
    pub(crate) fn holders(&self, slot: u32, birth: u64) -> (Vec<Holder>, Vec<FenceHolder>) {
        let (fences, leases): (Vec<_>, Vec<_>) = self
            .labels
            .holders(slot, birth)
            .into_iter()
            .partition(|entry| entry.since_ns & FENCED != 0);
        let now = self.started.elapsed();
        (
            leases.into_iter().map(|entry| holder(entry, now)).collect(),
            fences
                .into_iter()
                .map(|entry| fence_holder(entry, now))
                .collect(),
        )
    }

    /// All leases that wait for fences, oldest first.
    pub(crate) fn fences(&self) -> Vec<FenceHolder> {
        let entries = self.labels.marked(FENCED);
        let now = self.started.elapsed();
        let fence = |entry| fence_holder(entry, now);
        let mut fences: Vec<_> = entries.into_iter().map(fence).collect();
        fences.sort_by_key(|fence| std::cmp::Reverse(fence.age));
        fences
    }

    /// The oldest labelled lease that waits for no fence. Looks at every entry that the slab has.
    pub(crate) fn oldest_lease(&self) -> Option<Holder> {
        let now = self.started.elapsed();
        // Those that wait are marked above every age, so they come last.
        let oldest = self.labels.oldest()?;
        (oldest.since_ns & FENCED == 0).then(|| holder(oldest, now))
    }
}

fn age(entry: &Labelled, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_nanos(entry.since_ns & !(FENCED | BROKEN)))
}

fn holder(entry: Labelled, now: Duration) -> Holder {
    Holder {
        age: age(&entry, now),
        label: entry.label,
    }
}

fn fence_holder(entry: Labelled, now: Duration) -> FenceHolder {
    FenceHolder {
        age: age(&entry, now),
        generation: Generation(entry.birth),
        broken: entry.since_ns & BROKEN != 0,
        name: entry.label,
    }
}
