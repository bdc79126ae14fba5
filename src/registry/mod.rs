//! The public registry.
//!
//! What lives here: [`WeightRegistry`], its builder, its end. The reading side is in `read` and
//! `lease`, the writing side in `publish` and `retirement`, observers in `catalog`,
//! `subscription` and `observe`.

mod catalog;
mod commit;
mod event;
mod fading;
mod filling;
mod generation;
mod here;
mod lease;
mod observe;
mod posting;
mod publish;
mod read;
mod retirement;
mod shared;
mod staged;
mod subscription;
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

pub use catalog::{Catalog, CatalogEntry, Stats};
pub use event::{Cause, Event, EventKind, Former, Operation};
pub use filling::{Filling, TensorWriter};
pub use lease::{AdapterModule, AdapterView, Lease, LeasedSet, Weight};
pub use publish::Replaced;
pub use read::{Reader, Scope, SetView};
pub use retirement::Retirement;
pub use staged::{PublishError, Staged};
pub use subscription::{Next, Subscription};
pub use transaction::{Committed, Transaction, TransactionError};

use crate::core::Reclaimer;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::layout::Interner;
use crate::ledger::Ledger;
use crate::names::Index;
use crate::sync::Mutex;
use crate::sync::thread::{self, JoinHandle};
use generation::Spine;
use shared::Shared;

/// A lock-free, concurrent registry of model weights.
///
/// Share it by reference or in an `Arc`; every method takes `&self`. Reads (acquire, weight,
/// lookup, scope) take no lock; see the progress table in the design notes.
///
/// Dropping the registry gives back the bytes of every set that nobody leases, at once, and ends
/// the reclaimer's thread. Leases may outlive it; the last lease of each generation then frees its
/// bytes.
///
/// Not supported: use in a child process after `fork`. Whatever loads, changes or waits says so
/// ([`Error::Forked`]); reads do not look.
pub struct WeightRegistry {
    id: u32,
    // Dropped before everything that generations refer to; see `Drop`.
    spine: Spine,
    names: Index<SetHandle>,
    layouts: Interner,
    shared: Arc<Shared>,
    pictures: catalog::Pictures,
    going: Mutex<Vec<Retirement>>,
    fading: fading::Fading,
    /// Tells the threads' tables of participants that this registry is gone.
    alive: Arc<()>,
    reclaimer: Option<JoinHandle<()>>,
}

/// Options of a [`WeightRegistry`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    limit: u64,
    events: usize,
}

impl Builder {
    /// The hard limit of the ledger in bytes: at no instant do all weights together, loading,
    /// current, or retired but still held, take more. Without it there is no limit.
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// How many events the stream holds for subscribers that are slower than its publishers: rounded
    /// up to a power of two, at most 2^20. Without it, 1,024.
    pub fn event_capacity(mut self, events: usize) -> Self {
        self.events = events.min(1 << 20);
        self
    }

    /// Makes the registry and starts its reclaimer thread.
    ///
    /// # Errors
    /// [`Error::Io`] if the thread cannot be started, [`Error::Spent`] if this process has made
    /// four billion registries.
    pub fn build(self) -> Result<WeightRegistry, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // E13: Relaxed: only uniqueness matters.
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let id = NEXT
            .fetch_update(relaxed, relaxed, |id| id.checked_add(1))
            .map_err(|_| Error::Spent)?;
        let queue = Arc::new(Reclaimer::open());
        let worker = Arc::clone(&queue);
        let spine = Spine::new(queue);
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
        Ok(WeightRegistry {
            id,
            spine,
            names: Index::new(),
            layouts: Interner::default(),
            shared: Arc::new(Shared::new(Ledger::new(self.limit), self.events)),
            pictures: catalog::first_picture(),
            going: Mutex::new(Vec::new()),
            fading: fading::Fading::default(),
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
            events: 1024,
        }
    }
}

impl Drop for WeightRegistry {
    fn drop(&mut self) {
        self.spine.sweep();
        self.spine.reclaimer().close();
        if self.shared.check_process().is_err() {
            return;
        }
        if let Some(thread) = self.reclaimer.take()
            && thread.thread().id() != thread::current().id()
        {
            // What it is freeing right now is back when we return. It does not panic: errands are
            // caught. (A destructor of foreign bytes may drop the registry on that very thread.)
            let _ = thread.join();
        }
        // After what went just now.
        self.shared.events.close();
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
