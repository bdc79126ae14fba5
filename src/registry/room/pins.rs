//! Pins: sets that no request may have evicted.
//!
//! What lives here: [`Pin`], and who has one. What does not: what respects it (`room`, `residency`).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::super::WeightRegistry;
use super::super::record::SetRecord;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::sync::Mutex;

/// The sets that have a pin.
#[derive(Default)]
pub(super) struct Pinned(Mutex<HashSet<SetHandle>>);

/// The pins of one set.
#[derive(Default)]
pub(crate) struct Pins {
    next: u64,
    held: Vec<(u64, Arc<str>)>,
}

impl SetRecord {
    /// Who pinned it, first come first.
    pub(crate) fn pinned_by(&self) -> Vec<Arc<str>> {
        let pins = self.pins.lock(); // E77
        pins.held.iter().map(|(_, by)| Arc::clone(by)).collect()
    }
}

/// Keeps a set from being evicted, over all its generations, until it is dropped.
///
/// Requests whose loads need room find another set, and
/// [`evict`](WeightRegistry::evict) is refused ([`Error::Pinned`]). A pin holds no bytes and is in nobody's
/// way otherwise: a set that is pinned can be replaced and retired, and may be without bytes.
///
/// # Examples
/// ```
/// use weighbridge::{Error, WeightRegistry};
/// use weighbridge::source::{Checkpoint, Evictable};
///
/// let registry = WeightRegistry::builder().build()?;
/// let source = Evictable::opened_by(|| Checkpoint::open("fixtures/tiny-llama"))?;
/// let base = registry.publish("base", source)?;
/// let pin = registry.pin(base, "the operator: every request needs it")?;
/// assert!(matches!(registry.evict(base), Err(Error::Pinned { .. })));
/// drop(pin);
/// registry.evict(base)?;
/// # Ok::<(), Error>(())
/// ```
#[must_use = "the set is pinned until this is dropped"]
pub struct Pin {
    record: Arc<SetRecord>,
    pinned: Arc<Pinned>,
    place: u64,
    process: u32,
}

impl WeightRegistry {
    /// Keeps `set` from being evicted until the pin is dropped. `by` says who wants that: errors and
    /// policies name it.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::Forked`].
    pub fn pin(&self, set: SetHandle, by: &str) -> Result<Pin, Error> {
        self.shared.check_process()?;
        self.key(set)?;
        let record = self.record(set)?;
        let place = {
            // Whoever evicts it looks for pins while it may write the set: it comes before this, or not.
            let _writing = record.write();
            let mut pins = record.pins.lock(); // E77
            pins.next += 1;
            let place = pins.next;
            pins.held.push((place, by.into()));
            self.room.pinned.0.lock().insert(set); // E77
            place
        };
        let process = self.shared.process();
        Ok(Pin {
            record,
            pinned: Arc::clone(&self.room.pinned),
            place,
            process,
        })
    }

    /// Who has pinned `set`, first come first.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn pinned_by(&self, set: SetHandle) -> Result<Vec<Arc<str>>, Error> {
        self.shared.check_process()?;
        self.key(set)?;
        Ok(self.record(set)?.pinned_by())
    }

    /// Bytes of the sets that are pinned and have their bytes. O(pinned sets).
    pub(in super::super) fn pinned_bytes(&self) -> u64 {
        let pinned = self.room.pinned.0.lock(); // E77
        let view = self.view();
        let bytes = pinned.iter().filter_map(|&set| {
            let node = view.resolve(self.key(set).ok()?)?;
            (!node.is_absent()).then(|| node.meta().map_or(0, |meta| meta.bytes))
        });
        bytes.sum()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // In a forked child a thread that stayed in the parent may have the lock.
        if self.process != std::process::id() {
            return;
        }
        let mut pins = self.record.pins.lock(); // E77
        pins.held.retain(|(place, _)| *place != self.place);
        if pins.held.is_empty() {
            self.pinned.0.lock().remove(&self.record.handle); // E77
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pin").field(&self.record.handle).finish()
    }
}
