//! What one generation carries: metadata that a scope may read, bytes that only a lease may.
//!
//! What lives here: the two payload types of the core, and the set's record that all its
//! generations share. What does not: how generations are made (`publish`) and read (`lease`).

use std::sync::Arc;

use super::shared::Shared;
use crate::arena::Arena;
use crate::core::{Storage, Vitals};
use crate::handle::{Generation, SetHandle, SetKind};
use crate::identity::Identity;
use crate::layout::{AdapterInfo, Extents, Layout, OrdinalTable};
use crate::ledger::Charge;
use crate::modules::Fit;
use crate::names::SetName;
use crate::plan::Plan;
use crate::sync::swap::Swap;
use crate::sync::{Mutex, MutexGuard};

/// What all generations of a set share, from publish to retire.
pub(crate) struct SetRecord {
    pub(crate) name: SetName,
    pub(crate) handle: SetHandle,
    /// Name to ordinal, append-only. Readers need it for messages only, and never wait for a writer.
    ordinals: Swap<OrdinalTable>,
    /// The generations that are no longer current and may still be held. Held by writers of this
    /// set while they commit, so that a retire knows all generations before its own.
    pub(crate) going: Mutex<Vec<Going>>,
}

/// A generation that is no longer current.
#[derive(Clone)]
pub(crate) struct Going {
    pub(crate) generation: Generation,
    pub(crate) bytes: u64,
    pub(crate) vitals: Arc<Vitals>,
}

/// The right to give a set its next generation. Other writers of this set wait; readers and other
/// sets do not care.
pub(crate) struct Writing<'r> {
    pub(crate) record: &'r Arc<SetRecord>,
    pub(crate) going: MutexGuard<'r, Vec<Going>>,
}

impl SetRecord {
    /// Of a set whose first generation has the layout `first`.
    pub(crate) fn new(name: SetName, handle: SetHandle, first: Arc<Layout>) -> Self {
        SetRecord {
            name,
            handle,
            ordinals: Swap::new(Arc::new(OrdinalTable::new(first))),
            going: Mutex::new(Vec::new()),
        }
    }

    /// The tensor an ordinal of this set stands for. For messages; takes no lock.
    pub(crate) fn tensor_name(&self, ordinal: u32) -> String {
        self.ordinals.with(|table| match table.name(ordinal) {
            Some(name) => name.to_owned(),
            None => format!("ordinal {ordinal}"),
        }) // E16
    }

    /// Waits for other writers of this set.
    pub(crate) fn write(self: &Arc<Self>) -> Writing<'_> {
        Writing {
            record: self,
            going: self.going.lock(), // E16
        }
    }
}

impl Writing<'_> {
    /// The layout of a generation that comes from `plan`, whose own layout is `own`, and the names
    /// with it. `None`: `own`, and no new name.
    pub(crate) fn layout_for(
        &self,
        plan: &Plan,
        own: &Arc<Layout>,
    ) -> Option<(Layout, OrdinalTable)> {
        let ordinals = self.record.ordinals.load_full(); // E16
        (!ordinals.is_first(own)).then(|| {
            let mut table = OrdinalTable::clone(&ordinals);
            (plan.layout_after(&mut table), table)
        })
    }

    /// The generation went through: its new names are the set's.
    pub(crate) fn keep(&self, ordinals: OrdinalTable) {
        self.record.ordinals.store(Arc::new(ordinals)); // E16
    }
}

/// The metadata of a generation (`M` of the core).
pub(crate) struct Meta {
    pub(crate) handle: SetHandle,
    pub(crate) kind: SetKind,
    pub(crate) record: Arc<SetRecord>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) extents: Extents,
    pub(crate) identity: Identity,
    pub(crate) adapter: Option<AdapterInfo>,
    /// The base an adapter is bound to.
    pub(crate) base: Option<SetHandle>,
    /// How it fits that, as of the generation it was bound to.
    pub(crate) fit: Fit,
    pub(crate) bytes: u64,
    /// The account core: labels, ledger. One `Arc` per generation, none per lease.
    pub(crate) shared: Arc<Shared>,
}

impl Meta {
    /// The modules of an adapter that were not checked against its base.
    pub(crate) fn unchecked_modules(&self) -> impl Iterator<Item = &str> {
        let modules = self.layout.modules();
        let unchecked = self.fit.unchecked().iter();
        unchecked.filter_map(|&position| Some(modules.get(position as usize)?.module()))
    }
}

/// The bytes of a generation (`S` of the core): the arena and what the ledger was charged for it.
pub(crate) struct Bytes {
    pub(crate) arena: Arena,
    pub(crate) charge: Charge,
}

/// Unmapping gigabytes in one go stalls other threads of the process too.
const UNMAP_STEP: usize = 64 << 20;

impl Storage for Bytes {
    fn dismantle(self, step: &mut dyn FnMut()) {
        let Bytes { arena, charge } = self;
        arena.free_in_steps(UNMAP_STEP, step);
        // The ledger is told only when the pages have gone back.
        drop(charge);
    }
}

pub(crate) type Node = crate::core::Node<Meta, Bytes>;
pub(crate) type Hold = crate::core::Hold<Meta, Bytes>;
pub(crate) type Holds = crate::core::Holds<Meta, Bytes>;
pub(crate) type Spine = crate::core::Spine<Meta, Bytes>;
pub(crate) type View<'s> = crate::core::View<'s, Meta, Bytes>;
pub(crate) type Change = crate::core::Change<Meta, Bytes>;
pub(crate) type StagedNode = crate::core::StagedNode<Meta, Bytes>;

/// The number of a node that was published.
pub(crate) fn generation(node: &Node) -> Generation {
    Generation(node.birth())
}
