//! The public registry.
//!
//! What lives here: [`WeightRegistry`], its builder, its end. The reading side is in `read` and
//! `lease`, the writing side in `publish` and `retirement`, observers in `catalog`.

mod catalog;
mod generation;
mod here;
mod lease;
mod publish;
mod read;
mod retirement;
mod shared;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

pub use catalog::{Catalog, CatalogEntry, Stats};
pub use generation::SetKind;
pub use lease::{AdapterModule, AdapterView, Lease, LeasedSet, Weight};
pub use publish::{PublishError, Replaced, Staged};
pub use read::{Reader, Scope, SetView};
pub use retirement::{Holder, Holdup, Retirement};

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
/// Not supported: use in a child process after `fork` ([`Error::Forked`]).
pub struct WeightRegistry {
    id: u32,
    process: u32,
    // Dropped before everything that generations refer to; see `Drop`.
    spine: Spine,
    names: Index<SetHandle>,
    layouts: Interner,
    shared: Arc<Shared>,
    pictures: catalog::Pictures,
    going: Mutex<Vec<Retirement>>,
    /// Tells the threads' tables of participants that this registry is gone.
    alive: Arc<()>,
    reclaimer: Option<JoinHandle<()>>,
}

/// Options of a [`WeightRegistry`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    limit: u64,
}

impl Builder {
    /// The hard limit of the ledger in bytes: at no instant do all weights together, loading,
    /// current, or retired but still held, take more. Without it there is no limit.
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit = bytes;
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
        let reclaimer = thread::spawn_named("weighbridge-reclaimer", move || worker.run())
            .map_err(|source| Error::Io {
                path: "the reclaimer's thread".into(),
                op: "start",
                source,
            })?;
        queue.staff(reclaimer.thread().clone());
        Ok(WeightRegistry {
            id,
            process: std::process::id(),
            spine: Spine::new(queue),
            names: Index::new(),
            layouts: Interner::default(),
            shared: Arc::new(Shared::new(Ledger::new(self.limit))),
            pictures: catalog::first_picture(),
            going: Mutex::new(Vec::new()),
            alive: Arc::new(()),
            reclaimer: Some(reclaimer),
        })
    }
}

impl WeightRegistry {
    /// Options for a new registry.
    pub fn builder() -> Builder {
        Builder { limit: u64::MAX }
    }

    /// A child process has the parent's memory but not its reclaimer.
    fn check_process(&self) -> Result<(), Error> {
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
}

impl Drop for WeightRegistry {
    fn drop(&mut self) {
        self.spine.sweep();
        self.spine.reclaimer().close();
        if let Some(thread) = self.reclaimer.take()
            && thread.thread().id() != thread::current().id()
            && std::process::id() == self.process
        {
            // What it is freeing right now is back when we return. It does not panic: errands are
            // caught. (A destructor of foreign bytes may drop the registry on that very thread.)
            let _ = thread.join();
        }
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
