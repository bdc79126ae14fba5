//! The catalog and the statistics: what schedulers, routers and metrics look at.
//!
//! What lives here: [`Catalog`] and [`Stats`], pure metadata that holds no bytes however long it is
//! kept. What does not: when a new picture is taken (`core::picture`).

pub(super) mod entry;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use entry::CatalogEntry;

use super::WeightRegistry;
use super::generation::{Meta, generation};
use super::record::{Going, SetRecord};
use super::retirement::Retirement;
use crate::core::Picture;
use crate::handle::{Generation, SetHandle};
use crate::holdup::Holder;
use crate::ledger::LedgerSnapshot;
use crate::sync::atomic::{AtomicU64, Ordering};

impl CatalogEntry {
    pub(super) fn of(meta: &Meta, generation: Generation, resident: bool) -> Self {
        CatalogEntry {
            name: meta.record.name.clone(),
            handle: meta.handle,
            kind: meta.kind,
            generation,
            identity: meta.facts.identity.clone(),
            tensors: meta.facts.layout.len(),
            bytes: meta.bytes,
            resident,
            base: meta.facts.base,
        }
    }
}

/// An immutable picture of every set at one commit, by name.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let set = registry.publish("demo", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
///
/// let catalog = registry.catalog(); // as new as this call; holds no bytes
/// assert_eq!(catalog.get("demo").map(|entry| entry.handle), Some(set));
/// registry.retire(set)?;
/// for entry in catalog.entries() {
///     println!("{} generation {}: {} bytes", entry.name, entry.generation, entry.bytes); // as it was
/// }
/// assert!(registry.catalog().entries().is_empty());
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Catalog {
    #[serde(rename = "commit")]
    number: u64,
    #[serde(rename = "sets")]
    entries: Vec<CatalogEntry>,
}

impl Catalog {
    /// The commit it shows. Which sets were [resident](CatalogEntry::resident) is no part of that: who waits
    /// for a new number misses evictions and loads, which [events](WeightRegistry::events) tell.
    pub fn number(&self) -> Generation {
        Generation(self.number)
    }

    /// The picture as JSON, on one line; see [docs/JSON.md](crate::_documentation::json).
    pub fn to_json(&self) -> String {
        crate::json::document(self)
    }

    /// All sets, by name.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// One set.
    pub fn get<'n>(&self, name: impl Into<crate::names::NameRef<'n>>) -> Option<&CatalogEntry> {
        let name = name.into();
        let at = self
            .entries
            .binary_search_by(|entry| entry.name.as_ref().cmp(&name))
            .ok()?;
        self.entries.get(at)
    }

    /// The part of it that is one namespace. O(log(sets) + its sets).
    pub(super) fn of_namespace(&self, namespace: &str) -> Catalog {
        let before = |entry: &CatalogEntry| entry.name.namespace() < namespace;
        let from = self.entries.partition_point(before);
        let own = self.entries[from..].iter();
        let own = own.take_while(|entry| entry.name.namespace() == namespace);
        Catalog {
            number: self.number,
            entries: own.cloned().collect(),
        }
    }
}

/// Totals, each exact at the moment it was read.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().limit_bytes(1 << 20).build()?;
/// let set = registry.publish("demo", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
/// let lease = registry.acquire_as("request-42", set)?;
/// registry.retire(set)?;
///
/// let stats = registry.stats();
/// assert_eq!((stats.sets, stats.retired_generations), (0, 1));
/// assert_eq!(stats.ledger.total(), stats.ledger.retired); // held by whom?
/// assert_eq!(stats.oldest_lease.map(|holder| holder.label).as_deref(), Some("request-42"));
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Names that are taken: sets that are published, and publishes under way.
    pub sets: usize,
    /// Commits so far, which is the number of the newest one.
    pub commits: u64,
    /// The ledger.
    pub ledger: LedgerSnapshot,
    /// Generations that are no longer current and have not let go of their bytes yet, as in
    /// [`WeightRegistry::retired`]. One that was kept and is not any more is among them, and among the
    /// reclaimed ones already.
    pub retired_generations: usize,
    /// The labelled lease that has been held longest, of those that wait for no fence.
    pub oldest_lease: Option<Holder>,
    /// Some scope, or other look at the registry, has been open at least so long. It keeps the metadata
    /// of what was superseded meanwhile, never bytes. `None`: nothing is kept; a scope may be open, but
    /// it keeps nothing from going.
    #[serde(
        rename = "oldest_scope_at_least_seconds",
        serialize_with = "crate::json::maybe_seconds"
    )]
    pub oldest_scope_at_least: Option<Duration>,
    /// Superseded generations whose metadata is kept by that.
    pub metadata_waiting: usize,
    /// Leases that were labelled, or wait for a fence, and could not be named because the slab was
    /// full.
    pub unlabelled: u64,
    /// Leases that were given away and wait for their fences.
    pub pending_fences: u64,
    /// For how long the oldest of them has waited, of those that have an entry among the labels.
    #[serde(
        rename = "oldest_fence_seconds",
        serialize_with = "crate::json::maybe_seconds"
    )]
    pub oldest_fence: Option<Duration>,
    /// Fences that panicked, or whose destructors did.
    pub fence_panics: u64,
    /// Superseded generations whose bytes have come back so far, or are kept or had by others only.
    pub reclaimed_generations: u64,
    /// Bytes that came back with them. Each counts once, when the last generation that has it is gone.
    pub reclaimed_bytes: u64,
    /// Loads that requests have caused, and such as were asked for, since the registry was made.
    pub loads: u64,
    /// Sets that were evicted to make room for them.
    pub evictions: u64,
    /// Bytes of sets that are pinned and have their bytes: no request's load evicts them.
    pub pinned_bytes: u64,
    /// Requests that wait for room at this moment.
    pub waiting: usize,
    /// Streams that are open.
    pub streams: u64,
    /// Parts that streams have read so far, by whoever asked and ahead.
    pub part_reads: u64,
    /// Bytes of those.
    pub part_read_bytes: u64,
    /// Reads of parts that failed.
    pub part_failures: u64,
    /// Different layouts in use; sets with the same tensors share one.
    pub layouts: usize,
    /// Destructors that panicked on the reclaimer's thread.
    pub reclaimer_panics: u64,
    /// Calls of a `metrics` recorder or `tracing` subscriber that panicked.
    pub observer_panics: u64,
    /// Address space that the system refused to take back, see [`crate::arena::stranded_bytes`].
    pub stranded_bytes: u64,
}

pub(super) type Pictures = Picture<Arc<Catalog>>;

pub(super) fn first_picture() -> Pictures {
    Picture::new(Arc::new(Catalog {
        number: 0,
        entries: Vec::new(),
    }))
}

impl Stats {
    /// The totals as JSON, on one line; see [docs/JSON.md](crate::_documentation::json).
    pub fn to_json(&self) -> String {
        crate::json::document(self)
    }
}

impl WeightRegistry {
    /// A picture of every set that is at least as new as this call. Costs two loads when nothing was
    /// committed, evicted or loaded since the last one; otherwise the first caller takes it, O(sets), and others
    /// who ask meanwhile wait for it. The serving path never does.
    pub fn catalog(&self) -> Arc<Catalog> {
        let now = self.view().number();
        let shot = self.pictures.look(now, || {
            let view = self.view();
            let mut entries = Vec::new();
            view.for_each(|_, node| {
                if let Some(meta) = node.meta() {
                    let resident = !node.is_absent();
                    entries.push(CatalogEntry::of(meta, generation(node), resident));
                }
            });
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            let number = view.number();
            (number, Arc::new(Catalog { number, entries }))
        });
        Arc::clone(&shot.content)
    }

    /// Totals. Takes a few short locks; O(different layouts + pinned sets + generations on their way out + most
    /// leases that were ever labelled at one time), never O(sets) or O(tensors).
    pub fn stats(&self) -> Stats {
        // E17: statistics.
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let lingering = self.fading.look(|| self.spine.register());
        let pending_fences = self.shared.keeper.kept();
        let oldest_fence = match pending_fences {
            0 => None,
            _ => self.fences().first().map(|fence| fence.age),
        };
        let (loads, evictions, waiting) = self.room.counts();
        Stats {
            sets: self.names.len(),
            commits: self.view().number(),
            ledger: self.ledger(),
            retired_generations: self.retired().len(),
            oldest_lease: self.shared.oldest_lease(),
            oldest_scope_at_least: lingering.oldest,
            metadata_waiting: lingering.generations,
            unlabelled: count(&self.shared.unlabelled), // E64
            pending_fences,
            oldest_fence,
            fence_panics: self.shared.keeper.panics(),
            reclaimed_generations: count(&self.shared.reclaimed),
            reclaimed_bytes: self.shared.ledger.reclaimed(),
            loads,
            evictions,
            pinned_bytes: self.pinned_bytes(),
            waiting,
            streams: count(&self.shared.streaming.open),
            part_reads: count(&self.shared.streaming.reads),
            part_read_bytes: count(&self.shared.streaming.bytes),
            part_failures: count(&self.shared.streaming.failures),
            layouts: self.layouts.len(),
            reclaimer_panics: self.spine.reclaimer().panics(),
            observer_panics: count(&self.shared.observer_panics),
            stranded_bytes: crate::arena::stranded_bytes(),
        }
    }

    /// The byte accounts.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.shared.ledger.snapshot()
    }

    /// The generations that are no longer current and whose bytes are not back yet, those first that
    /// began to go first: what to look at when memory does not come back. A generation is among them when
    /// the call that superseded it has returned.
    ///
    /// Those that are only kept for a rollback are not among them (see [`kept`](WeightRegistry::kept))
    /// until their set lets go of them; then they are, although the [`Retirement`] that their replace gave
    /// may have ended long ago. So is, for a moment, the old number of a generation that a rollback made
    /// current again. Memory that a drained swap takes over is freed by its caller, and not among them.
    pub fn retired(&self) -> Vec<Retirement> {
        // Dropped after the lock: the last of a set can be a foreign error's end, which may ask us this.
        let _forgotten;
        let mut going = self.going.lock();
        _forgotten = going.sweep(Retirement::is_reclaimed);
        going.all().to_vec()
    }

    /// What one commit superseded, and kept generations that sets let go of: listed at one instant.
    pub(super) fn remember(&self, gone: Vec<Retirement>, let_go: Vec<(Arc<SetRecord>, Going)>) {
        if gone.is_empty() && let_go.is_empty() {
            return;
        }
        for vitals in gone.iter().filter_map(Retirement::vitals) {
            self.fading.add(Arc::clone(vitals));
        }
        // Dropped after the lock, as in `retired`.
        let mut forgotten = Vec::new();
        let mut going = self.going.lock();
        if !let_go.is_empty() {
            forgotten = going.sweep(Retirement::is_reclaimed);
        }
        for one in gone {
            forgotten.extend(going.add(one, Retirement::is_reclaimed));
        }
        if let_go.is_empty() {
            return;
        }
        let places = going.all().iter().enumerate();
        let listed: HashMap<(SetHandle, Generation), usize> = places
            .map(|(at, one)| ((one.set(), one.generation()), at))
            .collect();
        let mut others = Vec::new();
        for (record, one) in let_go {
            // Is its node still on its way, too? Then it is gone when both are.
            let listed = listed.get(&(record.handle, one.generation));
            match listed.and_then(|&at| going.get_mut(at)) {
                Some(listed) => listed.add(one),
                None => others.push(Retirement::new(record, vec![one], Arc::clone(&self.shared))),
            }
        }
        for one in others {
            forgotten.extend(going.add(one, Retirement::is_reclaimed));
        }
    }
}
