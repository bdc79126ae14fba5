//! Weights one by one: every tensor registered alone, by name.
//!
//! What lives here: [`FlatRegistry`], for callers whose unit is the tensor and not the checkpoint:
//! register by name, look up, pin, unregister, totals, adapters, ties. It is built on the public
//! interface of [`WeightRegistry`](crate::WeightRegistry) and has no protocol of its own: a weight is
//! a set of one tensor, a pin is a lease, an alias is an empty set that stands on its target. What
//! does not: anything about bytes, names or readers, which is the registry's.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use weighbridge::flat::FlatRegistry;
//! use weighbridge::{Dtype, WeightRegistry};
//!
//! let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().limit_bytes(1 << 20).build()?));
//! let bias = flat.register("bias", Dtype::U8, [4], &[7; 4])?.handle();
//! flat.register(("pirate", "q_proj.A"), Dtype::U8, [2], &[1; 2])?; // a slice of an adapter
//! assert_eq!((flat.len(), flat.total_bytes()), (2, 6));
//!
//! let pinned = flat.get(bias)?; // the guard is the pin
//! let going = flat.unregister(bias)?; // does not wait for it
//! assert_eq!(pinned.bytes(), [7; 4]);
//! assert!(flat.get(bias).is_err());
//! drop(pinned);
//! going.reclaimed(Duration::from_secs(5))?;
//! # Ok::<(), weighbridge::Error>(())
//! ```
//!
//! - [`FlatRegistry`]: what registers, looks up, pins, counts and unregisters. An [`Address`] is a
//!   weight's name, a [`FlatHandle`] what it resolves to, [`Registered`] the answer to a registration.
//! - [`Pinned`]: one weight, held. [`FlatEntry`] and [`Totals`]: what is known without holding anything.
//! - [`LoraGroup`]: slices on their way to an adapter.
//! - [`WeightLoader`] and [`Loaded`]: whole files, by tensor name.
//!
//! For callers of rlx's registry there is a page, [coming from rlx](crate::_documentation::coming_from_rlx).

// `address` has the words, `registry` and `bulk` what writes, `read` what reads, `pinned` the guard,
// `group` LoRA slices on their way to an adapter, `loader` whole files, `index` the books,
// `books` how they follow what others do, `one` sources of one tensor, `offer` both sides of a conflict.
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
