//! Sources whose sets are larger than the memory that they get.
//!
//! What lives here: [`Streamed`]. What does not: which tensors are a part (`plan`), the window over the parts
//! (`core::window`), who uses it (`registry::stream`).

use std::sync::Arc;

use super::evictable::Kept;
use super::{Pieces, Reload, Source};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::plan::{Parts, Plan, WindowSize};

/// A source whose set is in memory in part: what every step needs all the time, and of the rest as much as its window
/// holds, in turn.
///
/// The set is published, replaced, leased and retired like any other. What the ledger is charged is what it takes
/// however long it is used: what stays, and the window. Its parts are read through a
/// [`Stream`](crate::Stream).
///
/// The source is kept, so its files stay open: what is renamed over them meanwhile is not read. It must have
/// [pieces](Source::pieces), as files do; adapters, and sets with tensors of other sets, are not streamed. As any set that can
/// be read again it is evicted, as a whole, when others need the room and nobody leases it;
/// [`pin`](crate::WeightRegistry::pin) keeps it. If nobody vouches for the contents
/// ([`Checkpoint::declared`](super::Checkpoint::declared)), all of it is read once when it is published, for its identity, and
/// each part is hashed whenever it is read.
///
/// Wrapped into an [`Evictable`](super::Evictable) that opens it anew, each part is read from what is there at that moment;
/// then it is up to you, or to the digests, that this is always the same.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use std::sync::Arc;
/// use weighbridge::source::{Checkpoint, Streamed};
/// use weighbridge::{Order, Parts, WeightRegistry, WindowSize};
///
/// let registry = Arc::new(WeightRegistry::builder().build()?);
/// let checkpoint = Checkpoint::open("fixtures/tiny-llama")?;
/// let streamed = Streamed::new(checkpoint, &Parts::layers(), WindowSize::Parts(2))?;
/// let set = registry.publish("tiny", streamed)?;
/// let up = registry.weight_handle(set, "model.layers.1.mlp.up_proj.weight")?;
///
/// let lease = registry.acquire(set)?; // this version, however long it takes
/// let mut stream = registry.stream(&lease, set, Order::forward())?;
/// for layer in 0..stream.len() {
///     let part = stream.part(layer, Duration::from_secs(5))?; // and the next are on their way
///     if layer == 1 {
///         assert!(!part.weight(up)?.bytes().is_empty());
///     }
/// }
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug)]
pub struct Streamed<S> {
    source: Arc<S>,
    plan: Plan,
}

impl<S: Source + Send + Sync + 'static> Streamed<S> {
    /// `source` in these parts, with a window of this size, and no larger than all of them.
    ///
    /// # Errors
    /// [`Error::InvalidParts`]: no tensor is of any part, a part is larger than the window, or this is no source that
    /// can be streamed.
    pub fn new(source: S, parts: &Parts, window: WindowSize) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::InvalidParts {
            origin: source.plan().origin().to_owned(),
            reason: reason.to_owned(),
        };
        if source.plan().adapter().is_some() {
            return Err(refuse("an adapter is used as a whole"));
        }
        if !source.plan().aliases().is_empty() {
            return Err(refuse("some of its tensors are another set's"));
        }
        let pieces = source.pieces();
        if !pieces.is_some_and(|pieces| pieces.are_of(source.plan())) {
            return Err(refuse(
                "it is read by pieces, and its source has none (Source::pieces)",
            ));
        }
        let plan = source.plan().clone().parted(parts, window)?;
        Ok(Streamed {
            source: Arc::new(source),
            plan,
        })
    }
}

impl<S: Source + Send + Sync + 'static> Source for Streamed<S> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    /// It is read by pieces.
    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::InvalidParts {
            origin: self.plan.origin().to_owned(),
            reason: "it is read by pieces: forward Source::pieces if you wrap it".to_owned(),
        })
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        let pieces = self.source.pieces()?;
        let same = pieces.are_of(self.source.plan());
        same.then(|| pieces.by(&self.plan))
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
        let same = Streamed {
            source: Arc::clone(&self.source),
            plan: self.plan.clone(),
        };
        Some(Arc::new(Kept(Arc::new(same))))
    }
}
