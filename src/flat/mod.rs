//! Weights one by one: every tensor registered alone, by name.
//!
//! What lives here: [`FlatRegistry`], for callers whose unit is the tensor and not the checkpoint:
//! register by name, look up, pin, unregister, totals, adapters, ties. It is built on the public
//! interface of [`WeightRegistry`](crate::WeightRegistry) and has no protocol of its own: a weight is
//! a set of one tensor, a pin is a lease, an alias is an empty set that stands on its target. What
//! does not: anything about bytes, names or readers, which is the registry's.
//!
//! `address` has the words, `registry` and `bulk` what writes, `read` what reads, `pinned` the guard,
//! `group` LoRA slices on their way to an adapter, `loader` whole files, `index` the books, `books` how
//! they follow what others do, `one` sources of one tensor, `offer` both sides of a conflict.

mod address;
mod books;
mod bulk;
mod group;
mod index;
mod loader;
mod offer;
mod one;
mod pinned;
mod read;
mod registry;

pub use address::{Address, FlatEntry, FlatHandle, FlatKind, Registered};
pub use group::{LoraGroup, Sealed};
pub use index::{Total, Totals};
pub use loader::{Loaded, WeightLoader};
pub use pinned::Pinned;
pub use registry::FlatRegistry;
