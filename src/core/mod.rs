//! The heart: which generation of which set is current, who leases it, and when it ends.
//!
//! Generic over what a generation carries (`M`, metadata that readers see) and what its bytes are
//! (`S`, storage that only leases see), so that the loom models drive this very code with payloads
//! of their own. Imports run one way: `commit` and `berth` over `view` over `spine`, that over
//! `slots` and `node`, those over `vitals` and `reclaim`, those over `state` and `queue`; `keeper`
//! over `queue` alone; `flight`, `line`, `park` and `window` stand by themselves.

mod berth;
mod commit;
mod flight;
mod holds;
mod keeper;
mod line;
mod node;
mod park;
mod picture;
mod queue;
mod reclaim;
mod share;
mod slots;
mod spine;
mod state;
mod view;
mod vitals;
pub mod window;

#[cfg(all(test, not(weighbridge_loom)))]
mod tests;

pub use flight::{Flight, Place};
pub use holds::Holds;
pub use keeper::{Bell, Keeper, Kept};
pub use line::{Line, Turn};
pub use node::{Hold, Node, StagedNode, Storage, clear_away, discard};
pub use park::wait;
pub use picture::Picture;
pub use reclaim::Reclaimer;
pub(crate) use reclaim::panics;
pub use slots::Bounds;
#[cfg(any(test, weighbridge_loom))]
pub use spine::Sight;
pub use spine::{Change, Expect, Refusal, Spine};
pub use state::Stays;
pub use view::{Miss, View};
pub use vitals::{TimedOut, Vitals};

/// A slot and the tag of one of its tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The slot's index.
    pub slot: u32,
    /// The tenant.
    pub tag: u32,
}

/// What a generation stands on: one generation of another set. For an adapter the one whose module
/// table it was checked against, for an alias the one whose bytes it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bond {
    /// The other set.
    pub base: Key,
    /// The commit that made that generation current; `None`: the very commit that makes this one
    /// current makes it current, too.
    pub birth: Option<u64>,
}
