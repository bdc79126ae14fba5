//! What one generation carries: metadata that a scope may read, bytes that only a lease may.
//!
//! What lives here: the metadata, and the core's types with both payloads. What does not: the bytes and
//! what is known of them (`content`), what a set's generations share (`record`), how they are made
//! (`commit`) and read (`lease`).

use std::sync::Arc;

use super::content::{Bytes, Facts};
use super::face::Face;
use super::record::SetRecord;
use super::shared::Shared;
use crate::core::Key;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::modules::Fit;

/// The metadata of a generation (`M` of the core). What an acquire and a read look at comes first: an acquire
/// sees by the kind that there is metadata.
#[repr(C)]
pub(crate) struct Meta {
    /// What only leases look at.
    pub(super) face: Face,
    pub(crate) kind: SetKind,
    pub(crate) handle: SetHandle,
    pub(crate) record: Arc<SetRecord>,
    pub(crate) facts: Facts,
    /// How an adapter fits its base, as of the generation it was bound to.
    pub(crate) fit: Fit,
    /// What the ledger is charged for it while it is resident.
    pub(crate) bytes: u64,
    /// The account core: labels, ledger. One `Arc` per generation, none per lease.
    pub(crate) shared: Arc<Shared>,
}

impl Meta {
    /// The modules of an adapter that were not checked against its base.
    pub(crate) fn unchecked_modules(&self) -> impl Iterator<Item = &str> {
        let modules = self.facts.layout.modules();
        let unchecked = self.fit.unchecked().iter();
        unchecked.filter_map(|&position| Some(modules.get(position as usize)?.module()))
    }
}

pub(crate) type Node = crate::core::Node<Meta, Bytes>;
pub(crate) type Hold = crate::core::Hold<Meta, Bytes>;
pub(crate) type Holds = crate::core::Holds<Meta, Bytes>;
pub(crate) type Spine = crate::core::Spine<Meta, Bytes>;
pub(crate) type View<'s> = crate::core::View<'s, Meta, Bytes>;
pub(crate) type Change = crate::core::Change<Meta, Bytes>;
pub(crate) type StagedNode = crate::core::StagedNode<Meta, Bytes>;

/// [`View::restore`](crate::core::View::restore): bytes come back, and their generation's face shows them.
///
/// # Safety
/// As `View::restore`.
pub(super) unsafe fn restore(
    view: &View<'_>,
    key: Key,
    generation: Generation,
    bytes: Bytes,
) -> Result<Hold, Bytes> {
    let show = |meta: &Meta, bytes: &Bytes| {
        // SAFETY: it is absent: nobody has a lease, whoever had one has looked (E71), and whoever gets one
        // looks after this (E70). The caller keeps others from restoring it. Guarded by the models
        // `restore_acq` and `evict_restore`.
        unsafe { meta.face.look_at(bytes) }
    };
    // SAFETY: the caller's.
    unsafe { view.restore(key, generation.0, bytes, show) }
}

/// What the ledger is charged for a node at this moment.
pub(crate) fn charged(node: &Node) -> u64 {
    match node.meta() {
        Some(meta) if !node.is_absent() => meta.bytes,
        _ => 0,
    }
}

/// The number of a node that was published.
pub(crate) fn generation(node: &Node) -> Generation {
    Generation(node.birth())
}
