//! weighbridge: a lock-free, concurrent registry of model weights for inference servers.
//!
//! No stalls, no leaks, no mixed weights, exact bytes.

pub mod arena;
mod core;
mod error;
mod handle;
pub mod identity;
mod labels;
pub mod layout;
pub mod ledger;
mod names;
pub mod plan;
mod registry;
pub mod source;
mod sync;

pub use error::Error;
pub use handle::{Generation, SetHandle, WeightHandle};
pub use identity::{CacheKey, Identity};
pub use layout::Layout;
pub use ledger::LedgerSnapshot;
pub use names::{NameRef, SetName};
pub use plan::{Plan, WeightKind};
pub use registry::{
    AdapterModule, AdapterView, Builder, Catalog, CatalogEntry, Holder, Holdup, Lease, LeasedSet,
    PublishError, Reader, Replaced, Retirement, Scope, SetKind, SetView, Staged, Stats, Weight,
    WeightRegistry,
};
pub use safetensors::Dtype;

/// The parts that the models drive. Not part of the interface.
#[cfg(weighbridge_loom)]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __loom {
    pub use crate::core::*;
    pub mod labels {
        pub use crate::labels::*;
    }
    pub mod names {
        pub use crate::names::*;
    }
    pub mod sync {
        pub use crate::sync::{Condvar, Mutex, atomic, cell, epoch, map, swap, thread};
    }
}
