//! Sources that are read more than once.
//!
//! What lives here: [`Evictable`]. What does not: evicting and loading (`registry::residency`), formats.

use std::fmt;
use std::sync::Arc;

use super::{Pieces, Reload, Source};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::memory::Memory;
use crate::plan::Plan;

/// A source whose set can be evicted, and loaded again when it is wanted.
///
/// The set stays what it is: name, handle, generation and identity do not change while its bytes are
/// away. What is read again must be what was read before; a source that has something else by then is
/// refused ([`Error::ReloadDiffers`]), and the set stays without bytes.
///
/// # Examples
/// ```
/// use weighbridge::{Error, WeightRegistry};
/// use weighbridge::source::{Checkpoint, Evictable};
///
/// let registry = WeightRegistry::builder().build()?;
/// let source = Evictable::opened_by(|| Checkpoint::open("fixtures/tiny-llama"))?;
/// let set = registry.publish("tiny", source)?;
///
/// registry.evict(set)?;
/// assert_eq!(registry.ledger().total(), 0);
/// assert!(matches!(registry.acquire(set), Err(Error::NotResident { .. })));
/// registry.load(set)?; // the same generation, with the same bytes
/// assert!(registry.acquire(set).is_ok());
/// # Ok::<(), Error>(())
/// ```
pub struct Evictable<S> {
    source: Arc<S>,
    /// How it is opened anew; `None`: it is kept.
    by: Option<Arc<dyn Reload>>,
}

impl<S: Source + Send + Sync + 'static> Evictable<S> {
    /// Keeps `source` itself. Its files stay open: what was renamed over them meanwhile is not read, and
    /// each of them is one of the descriptors that this process may have.
    ///
    /// A source that has its bytes in memory, as [`InMemory`](super::InMemory), keeps them there for as long as
    /// one of the set's generations may need it, and nothing is charged for that: evicting gives the ledger
    /// bytes back, and the process none of these. Have it [`opened_by`](Self::opened_by) what finds them
    /// elsewhere.
    pub fn new(source: S) -> Self {
        Evictable {
            source: Arc::new(source),
            by: None,
        }
    }

    /// Opens the source now, and anew whenever it is read again. Nothing of it is kept in between.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn opened_by(
        open: impl Fn() -> Result<S, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Ok(Evictable {
            source: Arc::new(open()?),
            by: Some(Arc::new(OpenedBy(open))),
        })
    }
}

impl<S: Source + Send + Sync + 'static> Source for Evictable<S> {
    fn plan(&self) -> &Plan {
        self.source.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.source.read_into(arena)
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        self.source.pieces()
    }

    /// Memory that is there already cannot be read again: such a set is not evicted.
    fn bring(&mut self) -> Option<Memory> {
        Arc::get_mut(&mut self.source)?.bring()
    }

    fn declared(&self) -> Option<&str> {
        self.source.declared()
    }

    fn unread(&self) -> Option<&str> {
        self.source.unread()
    }

    fn base(&self) -> Option<SetHandle> {
        self.source.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        let kept = || Arc::new(Kept(Arc::clone(&self.source))) as Arc<dyn Reload>;
        Some(self.by.clone().unwrap_or_else(kept))
    }
}

impl<S: fmt::Debug> fmt::Debug for Evictable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Evictable").field(&self.source).finish()
    }
}

/// A source that is kept, and read again itself.
pub(super) struct Kept<S>(pub(super) Arc<S>);

impl<S: Source + Send + Sync> Reload for Kept<S> {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        read(&*self.0)
    }
}

struct OpenedBy<F>(F);

impl<F, S> Reload for OpenedBy<F>
where
    F: Fn() -> Result<S, Error> + Send + Sync,
    S: Source,
{
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        read(&(self.0)()?)
    }
}
