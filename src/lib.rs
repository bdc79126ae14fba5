//! A lock-free, concurrent registry of model weights, for inference servers to embed.
//!
//! **No stalls, no leaks, no mixed weights, exact bytes.**
//!
//! # In one page
//!
//! A *set* is a named group of tensors that is versioned as one: a checkpoint, a LoRA adapter. Each
//! version is a *generation*, immutable and numbered by the commit that made it current. A request
//! takes one *lease* of the sets it needs, all as of one instant, and reads every weight through it;
//! whatever is published, replaced or retired meanwhile, the lease's bytes stay what they are and
//! where they are. They come back to the *ledger* when the last lease of a superseded generation
//! ends.
//!
//! ```
//! use std::time::Duration;
//! use weighbridge::{Dtype, WeightRegistry, source::InMemory};
//!
//! let registry = WeightRegistry::builder().limit_bytes(1 << 20).build()?;
//! let version = |byte| InMemory::new().tensor("w", Dtype::U8, [4], [byte; 4]);
//! let set = registry.publish("demo", version(1)?)?;
//! let w = registry.weight_handle(set, "w")?; // once; good over every swap
//!
//! let request = registry.acquire_as("request-42", set)?;
//! let swap = registry.replace(set, version(2)?)?; // does not wait
//! assert_eq!(request.weight(w)?.bytes(), [1; 4]); // a running request keeps its version
//! assert_eq!(registry.acquire(set)?.weight(w)?.bytes(), [2; 4]); // a new one gets the next
//!
//! // Waiting is bounded, and names who is in the way.
//! let error = swap.previous.drained(Duration::ZERO).unwrap_err();
//! assert!(error.to_string().contains("request-42"));
//! drop(request);
//! swap.previous.reclaimed(Duration::from_secs(5))?;
//! # Ok::<(), weighbridge::Error>(())
//! ```
//!
//! # Where to go
//!
//! - [`WeightRegistry`]: publish, replace, retire; acquire; look up.
//! - [`source`]: checkpoints, PEFT adapters, tensors in memory, or a source of your own. [`memory`]:
//!   bytes that a device or another runtime has, in place of arenas.
//! - [`Lease`]: what a request holds. [`Retirement`]: what is left of a generation, and who is in the
//!   way. [`Catalog`], [`Stats`] and [`Subscription`]: for schedulers, routers and metrics; as JSON, see
//!   [`_documentation::json`].
//! - [`flat`]: weights one by one, for callers whose unit is the tensor.
//! - [`Namespace`]: one tenant's view, with limits of its own. [`Account`]: whose bytes they are.
//! - [`_documentation`]: the design, the orderings, the guarantees with their tests, what was
//!   verified and how.
//!
//! # Three ways to read
//!
//! The registry's own methods work from any thread. A [`Reader`] is a thread's registration in hand
//! and saves the look-up. A [`Scope`] is a view of the whole registry as of one commit: under it,
//! resolving any number of handles is an array access each. Only a lease gives bytes.

pub mod arena;
mod core;
mod error;
mod escape;
mod events;
pub mod fence;
pub mod flat;
mod handle;
mod holdup;
mod home;
pub mod identity;
mod json;
mod labels;
pub mod layout;
pub mod ledger;
pub mod memory;
pub mod modules;
mod names;
pub mod plan;
pub mod policy;
mod pool;
mod provenance;
mod reading;
mod registry;
mod slots;
pub mod source;
mod sync;
pub mod tensor;
mod turns;

pub use error::Error;
pub use fence::Fence;
pub use handle::{Generation, SetHandle, SetKind, WeightHandle};
pub use holdup::{FenceHolder, Holder, Holdup, Overdue};
pub use identity::{CacheKey, Identity};
pub use layout::Layout;
pub use ledger::{Account, LedgerSnapshot};
pub use names::{NameRef, SetName};
pub use plan::{Parts, Plan, WindowSize};
pub use provenance::{BaseProvenance, Provenance, SetProvenance};
pub use registry::{
    AcquireOrLoad, AdapterModule, AdapterReplacement, AdapterView, Builder, Catalog, CatalogEntry,
    Cause, Committed, Demand, Estimate, Event, EventKind, Filling, Former, KeptGeneration, Lease,
    LeasedSet, LoraRequestsInfo, Namespace, NamespaceLimits, NamespaceStats, NamespaceTransaction,
    Next, Operation, Order, Part, PartInWindow, PartSoon, PartState, Pin, PublishError, Reader,
    Replaced, Retirement, Scope, SealError, SetView, Staged, Stats, Stream, StreamTally,
    Subscription, TensorWriter, Transaction, TransactionError, Weight, WeightPlace, WeightRegistry,
};
pub use safetensors::Dtype;
pub use slots::{SlotCopy, Slots};
pub use tensor::{Shard, WeightKind};

/// Where the pages' labels lead in rustdoc. This comes before each page, and the first definition of a
/// label counts. In the repository there are only the page's own definitions, which lead to files.
macro_rules! links {
    () => {
        "\
[BENCHMARKS.md]: crate::_documentation::benchmarks
[FIELD_BUGS.md]: crate::_documentation::verification::field_bugs
[GUARANTEES.md]: crate::_documentation::guarantees
[MEMORY_ORDERING.md]: crate::_documentation::memory_ordering
[VERIFICATION.md]: crate::_documentation::verification
[design/modules.md]: crate::_documentation::design::modules
[design/names.md]: crate::_documentation::design::names
[design/sources.md]: crate::_documentation::design::sources
[ordering/events.md]: crate::_documentation::memory_ordering::events
[ordering/fences.md]: crate::_documentation::memory_ordering::fences
[ordering/labels.md]: crate::_documentation::memory_ordering::labels
[ordering/loading.md]: crate::_documentation::memory_ordering::loading
[ordering/names.md]: crate::_documentation::memory_ordering::names
[ordering/residency.md]: crate::_documentation::memory_ordering::residency
[ordering/streaming.md]: crate::_documentation::memory_ordering::streaming
[verification/faults.md]: crate::_documentation::verification::faults
[verification/histories.md]: crate::_documentation::verification::histories
[verification/lines.md]: crate::_documentation::verification::lines
[verification/logic.md]: crate::_documentation::verification::logic
[verification/mutants.md]: crate::_documentation::verification::mutants
[verification/orderings.md]: crate::_documentation::verification::orderings
[verification/sanitizers.md]: crate::_documentation::verification::sanitizers
[verification/schedules.md]: crate::_documentation::verification::schedules
[verification/soak.md]: crate::_documentation::verification::soak
[what the models found]: crate::_documentation::verification#what-the-models-found
"
    };
}

/// The pages of `docs/`, so that they are at hand and their examples stay true.
pub mod _documentation {
    #[doc = links!()]
    #[doc = include_str!("../docs/DESIGN.md")]
    pub mod design {
        #[doc = include_str!("../docs/design/modules.md")]
        pub mod modules {}
        #[doc = links!()]
        #[doc = include_str!("../docs/design/names.md")]
        pub mod names {}
        #[doc = include_str!("../docs/design/sources.md")]
        pub mod sources {}
    }
    #[doc = links!()]
    #[doc = include_str!("../docs/GUARANTEES.md")]
    pub mod guarantees {}
    #[doc = links!()]
    #[doc = include_str!("../docs/MEMORY_ORDERING.md")]
    pub mod memory_ordering {
        #[doc = links!()]
        #[doc = include_str!("../docs/ordering/names.md")]
        pub mod names {}
        #[doc = include_str!("../docs/ordering/labels.md")]
        pub mod labels {}
        #[doc = include_str!("../docs/ordering/fences.md")]
        pub mod fences {}
        #[doc = include_str!("../docs/ordering/events.md")]
        pub mod events {}
        #[doc = include_str!("../docs/ordering/residency.md")]
        pub mod residency {}
        #[doc = include_str!("../docs/ordering/loading.md")]
        pub mod loading {}
        #[doc = include_str!("../docs/ordering/streaming.md")]
        pub mod streaming {}
    }
    #[doc = links!()]
    #[doc = include_str!("../docs/BENCHMARKS.md")]
    pub mod benchmarks {}
    #[doc = include_str!("../docs/JSON.md")]
    pub mod json {}
    #[doc = links!()]
    #[doc = include_str!("../docs/VERIFICATION.md")]
    pub mod verification {
        #[doc = include_str!("../docs/verification/mutants.md")]
        pub mod mutants {}
        #[doc = links!()]
        #[doc = include_str!("../docs/verification/orderings.md")]
        pub mod orderings {}
        #[doc = include_str!("../docs/verification/lines.md")]
        pub mod lines {}
        #[doc = include_str!("../docs/verification/logic.md")]
        pub mod logic {}
        #[doc = include_str!("../docs/verification/histories.md")]
        pub mod histories {}
        #[doc = include_str!("../docs/verification/schedules.md")]
        pub mod schedules {}
        #[doc = include_str!("../docs/verification/sanitizers.md")]
        pub mod sanitizers {}
        #[doc = include_str!("../docs/verification/faults.md")]
        pub mod faults {}
        #[doc = include_str!("../docs/FIELD_BUGS.md")]
        pub mod field_bugs {}
        #[doc = include_str!("../docs/verification/soak.md")]
        pub mod soak {}
    }
    #[doc = include_str!("../docs/COMING_FROM_RLX.md")]
    pub mod coming_from_rlx {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
}

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What the schedules drive besides the interface. Not part of the interface.
#[cfg(weighbridge_shuttle)]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __shuttle {
    pub use crate::sync::contract;
}

/// The parts that the models drive. Not part of the interface.
#[cfg(weighbridge_loom)]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __loom {
    pub use crate::core::*;
    pub use crate::fence;
    pub mod events {
        pub use crate::events::*;
    }
    pub mod labels {
        pub use crate::labels::*;
    }
    pub mod names {
        pub use crate::names::*;
    }
    pub fn layout_of(plan: &crate::Plan) -> crate::Layout {
        plan.layout()
    }
    pub mod turns {
        pub use crate::turns::*;
    }
    pub mod sync {
        pub use crate::sync::{
            Condvar, Mutex, atomic, cell, contract, epoch, map, share, stop, swap, thread,
        };
    }
}
