//! The public registry.
//!
//! What lives here: [`WeightRegistry`], its builder, its end. The reading side is in `read` and
//! `lease`, the writing side in `publish` and `retirement`, fences in `fenced`, observers in `catalog`,
//! `subscription` and `observe`, the view that is restricted to one tenant in `namespace`.

mod accounts;
mod adapter;
mod alias;
mod audit;
mod bind;
mod catalog;
mod commit;
mod confines;
mod content;
mod dependants;
mod entries;
mod event;
mod face;
mod fading;
mod fenced;
mod filling;
mod generation;
mod here;
mod lease;
mod loaders;
mod loading;
#[cfg(all(test, not(weighbridge_loom)))]
mod meanwhile;
mod namespace;
mod observe;
mod place;
mod posting;
mod prepare;
mod publish;
mod read;
mod record;
mod reserve;
mod residency;
mod retirement;
mod rollback;
mod room;
mod serving;
mod shared;
#[cfg(all(test, not(weighbridge_loom)))]
mod spent;
mod staged;
mod step;
mod stream;
mod subscription;
mod swap;
mod swept;
mod transaction;
mod wanting;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

pub use accounts::{NamespaceLimits, NamespaceStats};
pub use adapter::{AdapterModule, AdapterReplacement, AdapterView};
pub use catalog::{Catalog, CatalogEntry, Stats};
pub use event::{Cause, Event, EventKind, Former, Operation};
pub use filling::{Filling, SealError, TensorWriter};
pub use lease::{Lease, LeasedSet, Weight};
pub use namespace::{Namespace, NamespaceTransaction};
pub use place::WeightPlace;
pub use read::{Reader, Scope, SetView};
pub use retirement::{Replaced, Retirement};
pub use rollback::KeptGeneration;
pub use room::{Demand, Estimate, Pin};
pub use serving::LoraRequestsInfo;
pub use staged::{PublishError, Staged};
pub use stream::{Order, Part, PartInWindow, PartSoon, PartState, Stream, StreamTally};
pub use subscription::{Next, Subscription};
pub use transaction::{Committed, Transaction, TransactionError};
pub use wanting::AcquireOrLoad;

use crate::core::{Bounds, Reclaimer};
use crate::error::Error;
use crate::layout::Interner;
use crate::ledger::Ledger;
use crate::names::{Index, Seats};
use crate::policy::Policy;
use crate::sync::Mutex;
use crate::sync::thread::{self, JoinHandle};
use generation::Spine;
use shared::Shared;
use swept::Swept;

/// A lock-free, concurrent registry of model weights.
///
/// Share it by reference or in an `Arc`; every method takes `&self`. Reads (acquire, weight,
/// lookup, scope) take no lock; see the progress table in the design notes.
///
/// Dropping the registry gives back the bytes of every set that nobody leases, at once, and ends
/// the reclaimer's thread. Leases may outlive it; the last lease of each generation then frees its
/// bytes. A lease that waits for a fence is one of those: it ends when the fence has passed.
///
/// Not supported: use in a child process after `fork`. Whatever loads, changes or waits says so
/// ([`Error::Forked`]); reads do not look. Dropping the registry there frees nothing: its locks may be
/// held by threads that stayed in the parent.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().limit_bytes(1 << 20).build()?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [4], [byte; 4]);
/// let set = registry.publish("demo", version(1)?)?;
/// let w = registry.weight_handle(set, "w")?; // once; good over every swap
///
/// let request = || {
///     let lease = registry.acquire(set)?; // once per request
///     Ok(lease.weight(w)?.bytes()[0])
/// };
/// std::thread::scope(|threads| {
///     let answer = threads.spawn(request);
///     registry.replace(set, version(2)?)?; // waits for no request
///     let answer: Result<u8, weighbridge::Error> = answer.join().unwrap();
///     assert!([1, 2].contains(&answer?)); // the one version or the other
///     Ok::<(), weighbridge::Error>(())
/// })?;
/// registry.retire(set)?.reclaimed(Duration::from_secs(5))?;
/// assert_eq!(registry.ledger().total(), 0);
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct WeightRegistry {
    id: u32,
    // Dropped before everything that generations refer to; see `Drop`.
    spine: Spine,
    names: Index,
    seats: Seats,
    layouts: Interner,
    shared: Arc<Shared>,
    pictures: catalog::Pictures,
    going: Mutex<Swept<Retirement>>,
    fading: fading::Fading,
    /// Who is admitted to memory.
    room: room::Room,
    loaders: Arc<loaders::Loaders>,
    /// How many threads read one set.
    readers: usize,
    /// Arenas are protected when they are filled.
    protect: bool,
    /// How many superseded generations a new set keeps.
    keep: usize,
    /// Tells the threads' tables of participants that this registry is gone.
    alive: Arc<()>,
    reclaimer: Option<JoinHandle<()>>,
}

/// Options of a [`WeightRegistry`].
#[must_use]
pub struct Builder {
    limit: u64,
    soft_limit: u64,
    pool: u64,
    protect: bool,
    keep: usize,
    events: usize,
    loaders: usize,
    readers: usize,
    backoff: loading::Backoff,
    policy: Option<Box<dyn Policy>>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// The hard limit of the ledger in bytes: at no instant do all weights together, loading,
    /// current, or retired but still held, take more. Without it there is no limit.
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// What the total, without what is kept in the [pool](Self::pool_bytes), should stay below: loads on demand that
    /// pass it evict sets that nobody leases, in the
    /// [policy](Self::policy)'s order, as far as there are any. It refuses nothing, and nobody waits for it; what goes is freed by the reclaimer. It keeps
    /// room for what evicts nothing itself, such as a [`publish`](WeightRegistry::publish) or a
    /// [reservation](WeightRegistry::reserve_in). Without it, sets are evicted when the hard limit demands it.
    pub fn soft_limit_bytes(mut self, bytes: u64) -> Self {
        self.soft_limit = bytes;
        self
    }

    /// How many bytes of memory that nobody uses any more are kept for the next load, instead of going back to
    /// the system: arenas of 1 MiB and more of sets that were replaced, retired or evicted. A load that finds
    /// one of its size there, or one that is at most a third larger, does not wait for fresh pages, which take
    /// longer than reading a file that is in the page cache.
    ///
    /// They count in the total ([`LedgerSnapshot::pooled`](crate::LedgerSnapshot::pooled)), and in no
    /// namespace. They go back before anything is refused or evicted for lack of room, also if it is the system that
    /// has no more, and the oldest when newer ones come. Nothing of who was there before is in any slice of a set, nor
    /// between its tensors. A [`reclaimed`](crate::Retirement::reclaimed) or an [`evict`](WeightRegistry::evict) then
    /// means that the bytes are nobody's: in the total they may still be, as pooled. Without it nothing is kept.
    pub fn pool_bytes(mut self, bytes: u64) -> Self {
        self.pool = bytes;
        self
    }

    /// Whether the memory of sets is write-protected as soon as it is filled, so that a stray write, by other
    /// code of the process that got the address, ends the process where it happens instead of changing weights that
    /// are being served. Arenas of 1 MiB and more only: smaller ones share their pages with the allocator's; and none of sets
    /// that are [streamed](crate::source::Streamed), which are written again and again. Off, unless you say so: changing the protection of memory takes the process's lock of its memory map twice
    /// per load.
    pub fn write_protect(mut self, protect: bool) -> Self {
        self.protect = protect;
        self
    }

    /// How many superseded generations each new set keeps for a rollback, see
    /// [`WeightRegistry::keep_previous`]. None unless you say so.
    pub fn keep_previous(mut self, n: usize) -> Self {
        self.keep = n;
        self
    }

    /// How many events the stream holds for subscribers that are slower than its publishers: rounded
    /// up to a power of two, at most 2^20. Without it, 1,024.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.events = events.min(1 << 20);
        self
    }

    /// In which order sets are evicted when [`acquire_or_load`](WeightRegistry::acquire_or_load) needs room.
    /// Without it, [`Sieve`](crate::policy::Sieve).
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Some(Box::new(policy));
        self
    }

    /// How many threads at most read for
    /// [`acquire_or_load_async`](WeightRegistry::acquire_or_load_async), and for [streams](crate::Stream) ahead of their use; at
    /// least one. They are started when they are needed, one for each set that is read at a time, and end with the registry and its streams. A source that
    /// hangs is in the way of its own set only, until so many hang. Without it, 32.
    pub fn loaders(mut self, threads: usize) -> Self {
        self.loaders = threads;
        self
    }

    /// How many threads at most read one set, the one that asked for it among them, if its source can be
    /// read by several: files of 16 MiB and more. They hash what they read on the way. At least one;
    /// without it, as many as the process may use at once, up to four.
    pub fn readers(mut self, threads: usize) -> Self {
        self.readers = threads.max(1);
        self
    }

    /// For how long no request causes another load of a set whose load failed: `first` after one failure,
    /// twice as long after each that follows, at most `most`. Without it, 100 milliseconds and 30 seconds.
    pub fn load_backoff(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = loading::Backoff { first, most };
        self
    }

    /// Makes the registry and starts its reclaimer thread.
    ///
    /// # Errors
    /// [`Error::Io`] if the thread cannot be started, [`Error::Spent`] if this process has made
    /// four billion registries.
    pub fn build(self) -> Result<WeightRegistry, Error> {
        self.build_within(Bounds::FULL)
    }

    /// [`build`](Self::build), with as many sets as `bounds` says over its whole life.
    fn build_within(self, bounds: Bounds) -> Result<WeightRegistry, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // E13: Relaxed: only uniqueness matters.
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let id = NEXT
            .fetch_update(relaxed, relaxed, |id| id.checked_add(1))
            .map_err(|_| Error::Spent)?;
        let queue = Arc::new(Reclaimer::open());
        let worker = Arc::clone(&queue);
        let spine = Spine::within(bounds, queue);
        let epochs = spine.epochs();
        let life = move || {
            let participant = epochs.register();
            worker.run(|| {
                // Metadata that was superseded last would otherwise wait for other threads' pins.
                // Three of ours move the epoch past it, unless somebody reads at this moment; then
                // it waits for them, or for the next commit.
                (0..3).for_each(|_| participant.pin().flush());
                true
            });
        };
        let reclaimer =
            thread::spawn_named("weighbridge-reclaimer", life).map_err(|source| Error::Io {
                path: "the reclaimer's thread".into(),
                op: "start",
                source,
            })?;
        spine.reclaimer().staff(reclaimer.thread().clone());
        let ledger = Ledger::with_soft_limit(self.limit, self.soft_limit);
        let shared = Arc::new(Shared::new(ledger.clone(), self.events, self.pool));
        Ok(WeightRegistry {
            id,
            spine,
            names: Index::new(),
            seats: Seats::default(),
            layouts: Interner::default(),
            room: room::Room::new(ledger.clone(), self.policy, self.backoff),
            loaders: Arc::new(loaders::Loaders::new(self.loaders, Arc::clone(&shared))),
            readers: self.readers,
            protect: self.protect,
            shared,
            pictures: catalog::first_picture(),
            going: Mutex::new(Swept::new(16)),
            fading: fading::Fading::default(),
            keep: self.keep,
            alive: Arc::new(()),
            reclaimer: Some(reclaimer),
        })
    }
}

impl WeightRegistry {
    /// Options for a new registry.
    pub fn builder() -> Builder {
        Builder {
            limit: u64::MAX,
            soft_limit: u64::MAX,
            pool: 0,
            protect: false,
            keep: 0,
            events: 1024,
            loaders: 32,
            readers: std::thread::available_parallelism().map_or(1, |there| there.get().min(4)),
            backoff: loading::Backoff {
                first: Duration::from_millis(100),
                most: Duration::from_secs(30),
            },
            policy: None,
        }
    }
}

impl Drop for WeightRegistry {
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            return self.abandon();
        }
        self.let_go_of_kept();
        self.spine.sweep();
        self.spine.reclaimer().close();
        if let Some(thread) = self.reclaimer.take()
            && thread.thread().id() != thread::current().id()
        {
            // What it is freeing right now is back when we return. It does not panic: errands are
            // caught. (A destructor of foreign bytes may drop the registry on that very thread.)
            let _ = thread.join();
        }
        self.shared.pool.close();
        // After what went just now.
        self.shared.events.close();
    }
}

impl WeightRegistry {
    /// The end in a forked child, where a thread of the parent's may hold the ledger's lock for ever,
    /// and the reclaimer's id may by now be another thread's, which must not be detached.
    fn abandon(&mut self) {
        std::mem::forget(self.reclaimer.take());
        let ledger = self.shared.ledger.clone();
        let empty = room::Room::new(ledger, None, self.room.backoff());
        std::mem::forget(std::mem::replace(&mut self.room, empty));
        let empty = Spine::new(Arc::new(Reclaimer::open()));
        std::mem::forget(std::mem::replace(&mut self.spine, empty));
        std::mem::forget(self.shared.pool.clone());
    }
}

impl fmt::Debug for WeightRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightRegistry")
            .field("id", &self.id)
            .field("stats", &self.stats())
            .finish()
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::time::{Duration, Instant};

    use super::WeightRegistry;
    use crate::Dtype;
    use crate::source::InMemory;

    /// Nobody reads or writes any more, and still the last metadata goes.
    #[test]
    fn metadata_of_the_last_retired_set_does_not_wait_for_a_reader() {
        let registry = WeightRegistry::builder().build().unwrap();
        let tensor = InMemory::new().tensor("w", Dtype::U8, [1], [1]).unwrap();
        let set = registry.publish("s", tensor).unwrap();
        assert_eq!(registry.layouts.len(), 1);
        registry.retire(set).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // `retired` forgets what is back; it pins nothing.
        while !registry.retired().is_empty() || !registry.layouts.is_empty() {
            assert!(Instant::now() < deadline, "its layout is still there");
            std::thread::yield_now();
        }
    }
}
