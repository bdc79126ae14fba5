//! Sources: where a set's bytes come from.
//!
//! What lives here: the [`Source`] trait. The formats have rooms of their own: `checkpoint` with its
//! `index`, `peft`, `memory`. Below them: `header` (what a safetensors file has), `json`, `guard` and
//! `scan` (documents within bounds), `quantised` (what the configuration of a quantised checkpoint
//! tells), `folder` (which files may be opened), `file` (reads bytes and notices a file that changes),
//! `options` (what a caller may change).

mod checkpoint;
mod file;
mod folder;
mod guard;
mod header;
mod index;
mod json;
mod memory;
mod options;
mod peft;
mod quantised;
mod scan;

pub use checkpoint::Checkpoint;
pub use memory::InMemory;
pub(crate) use memory::lora_names;
pub use options::OpenOptions;
pub use peft::PeftAdapter;

use crate::error::Error;
use crate::handle::SetHandle;
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

    /// A revision that stands for the contents. With it the registry does not hash the bytes.
    fn declared(&self) -> Option<&str> {
        None
    }

    /// The base that an adapter is bound to.
    fn base(&self) -> Option<SetHandle> {
        None
    }
}
