//! One set in a picture, and in the events that tell of changes to it.
//!
//! What lives here: plain data. What does not: the picture (`catalog`), events (`event`).

use serde::Serialize;

use crate::handle::{Generation, SetHandle, SetKind};
use crate::identity::Identity;
use crate::names::SetName;

/// One set in a [`Catalog`](super::Catalog).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CatalogEntry {
    /// Its name.
    #[serde(flatten)]
    pub name: SetName,
    /// Its handle.
    pub handle: SetHandle,
    /// Checkpoint or adapter.
    pub kind: SetKind,
    /// The generation that was current.
    pub generation: Generation,
    /// What it was.
    pub identity: Identity,
    /// How many tensors it has.
    pub tensors: usize,
    /// Bytes that the ledger is charged for it while it is resident: what it has, or what loading it
    /// takes. Zero if its bytes went for good.
    pub bytes: u64,
    /// Could it be leased? Not while it is [evicted](crate::WeightRegistry::evict), and not while, or after,
    /// a [`replace_drained`](crate::WeightRegistry::replace_drained) has taken its bytes and the next
    /// generation has not come.
    ///
    /// This is of the moment when the picture came by this set, and no part of its commit: bytes come and
    /// go without one. Pictures with one number may differ in it, and one picture may show two sets resident
    /// that never were at the same time.
    pub resident: bool,
    /// The base an adapter is bound to.
    pub base: Option<SetHandle>,
}
