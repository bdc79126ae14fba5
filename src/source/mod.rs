//! Sources: where a set's bytes come from.
//!
//! What lives here: the [`Source`] trait. The formats have rooms of their own: `checkpoint` with its
//! `index`, `peft`, `memory`, `foreign`, `mapped`; `evictable` is for what is read more than once, `streamed` for what is in memory in part, `pieces` for
//! what is read by several threads, `progress` tells how far reading is. Below them: `header` (what a safetensors file has),
//! `json`, `guard` and `scan` (documents within bounds), `quantised` (what the configuration of a
//! quantised checkpoint tells), `folder` (which files may be opened), `file` (reads bytes and notices a
//! file that changes), `options` (what a caller may change).

mod checkpoint;
mod evictable;
mod file;
mod folder;
mod foreign;
mod guard;
mod header;
mod index;
mod json;
#[cfg(unix)]
mod mapped;
mod memory;
mod options;
mod peft;
mod pieces;
mod progress;
mod quantised;
mod scan;
mod streamed;

pub use checkpoint::Checkpoint;
pub use evictable::Evictable;
pub use foreign::Foreign;
#[cfg(unix)]
pub use mapped::Mapped;
pub use memory::InMemory;
pub use options::OpenOptions;
pub use peft::PeftAdapter;
pub use pieces::{Pieces, ReadPieces};
pub use progress::{Progress, WithProgress};
pub use streamed::Streamed;

use std::sync::Arc;

use crate::error::Error;
use crate::handle::SetHandle;
use crate::memory::Memory;
use crate::plan::Plan;

/// Where a set's bytes come from.
///
/// A source knows from headers alone what it will be; its bytes are read later, once, into memory
/// that the registry has reserved and allocated for exactly that.
///
/// # Examples
/// A source of one's own:
/// ```
/// use weighbridge::{Dtype, Error, Plan, WeightRegistry, source::Source};
///
/// struct Ramp(Plan);
///
/// impl Source for Ramp {
///     fn plan(&self) -> &Plan {
///         &self.0
///     }
///
///     fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
///         for tensor in self.0.tensors() {
///             (0..).zip(&mut arena[tensor.range()]).for_each(|(at, byte)| *byte = at);
///         }
///         Ok(())
///     }
/// }
///
/// let registry = WeightRegistry::builder().build()?;
/// let ramp = Ramp(Plan::of("a ramp", [("w", Dtype::U8, vec![2, 2])])?);
/// let set = registry.publish("ramp", ramp)?;
/// assert_eq!(registry.acquire(set)?.set(set)?.get("w")?.bytes(), [0, 1, 2, 3]);
/// # Ok::<(), Error>(())
/// ```
pub trait Source {
    /// What the set will be.
    fn plan(&self) -> &Plan;

    /// Fills `arena` (zeroed, [`Plan::arena_bytes`] long): each tensor at its planned offset.
    ///
    /// # Errors
    /// Whatever is wrong with the source. The registry then drops the arena and gives its bytes
    /// back; nothing is left behind.
    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error>;

    /// The same bytes piece by piece, from several threads: the registry's sources of files have this, and
    /// whatever is to be [streamed](Streamed) must. Such sources are read by as many threads as it has ([`Builder::readers`](crate::Builder::readers)), and hashed on the way. If you
    /// wrap one of them, forward it; what you do to its bytes in [`read_into`](Self::read_into) is passed by
    /// then.
    fn pieces(&self) -> Option<Pieces<'_>> {
        None
    }

    /// Memory that has the bytes already, each tensor at its planned offset. If there is some, nothing
    /// is allocated and [`read_into`](Self::read_into) is not called. Asked once, when everything has
    /// been checked that can be without it; what fails after that ends the memory.
    fn bring(&mut self) -> Option<Memory> {
        None
    }

    /// A revision that stands for the contents. With it the registry does not hash the bytes.
    fn declared(&self) -> Option<&str> {
        None
    }

    /// A fingerprint of where the contents come from, if nobody vouches for them and they are not to be
    /// hashed: the set is then [`Identity::Unread`](crate::Identity::Unread).
    fn unread(&self) -> Option<&str> {
        None
    }

    /// The base that an adapter is bound to.
    fn base(&self) -> Option<SetHandle> {
        None
    }

    /// What the registry keeps in order to read the same bytes once more. A set that has this can be
    /// [evicted](crate::WeightRegistry::evict) and [loaded](crate::WeightRegistry::load) again. Asked once, or
    /// twice if the set is [streamed](Streamed), and not if the source [brings](Self::bring) its memory. See [`Evictable`].
    fn reload(&self) -> Option<Arc<dyn Reload>> {
        None
    }
}

/// Where a set's bytes can be read again.
///
/// Kept for as long as one of the set's generations may need it, so it should hold a path rather than
/// what was in the file, and no `Arc` of the registry, which would then keep itself. It is called on the thread
/// that [loads](crate::WeightRegistry::load).
///
/// # Where it ends
/// On any thread, mostly on the reclaimer's, which serves nobody. A panic there is caught. A destructor that
/// takes long delays what that thread does for the same registry: giving back memory, and waking those who
/// wait with [`drained`](crate::Retirement::drained) or [`reclaimed`](crate::Retirement::reclaimed). So it must
/// not wait for the registry itself, nor load: whoever loads the same set may be waiting for that thread. It
/// may use the registry otherwise, and drop leases.
pub trait Reload: Send + Sync {
    /// Calls `read` once with a source of the very set that was published: the same tensors, the same
    /// contents. The registry compares with what it read before, and takes nothing else.
    ///
    /// # Errors
    /// What stands in the way of opening it, or what `read` returns.
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error>;
}

/// Asked to fill an arena, a source says that its memory is there already.
fn not_to_be_read(origin: &str) -> Error {
    Error::InvalidMemory {
        origin: origin.to_owned(),
        reason:
            "it is not read into an arena, it is brought: forward `bring` if you wrap its source"
                .to_owned(),
    }
}
