//! What one generation carries: metadata that a scope may read, bytes that only a lease may.
//!
//! What lives here: the two payload types of the core, and the set's record that all its
//! generations share. What does not: how generations are made (`publish`) and read (`lease`).

use std::sync::Arc;

use super::shared::Shared;
use crate::arena::Arena;
use crate::core::{Storage, Vitals};
use crate::handle::{Generation, SetHandle};
use crate::identity::Identity;
use crate::layout::{AdapterInfo, Extents, Layout, OrdinalTable};
use crate::ledger::Charge;
use crate::names::SetName;
use crate::plan::Plan;
use crate::sync::Mutex;
use crate::sync::swap::Swap;

/// What kind of set this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SetKind {
    /// Weights that stand on their own: a checkpoint, or tensors registered alone.
    Checkpoint,
    /// A LoRA adapter, bound to a base set.
    Adapter,
}

impl std::fmt::Display for SetKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SetKind::Checkpoint => "checkpoint",
            SetKind::Adapter => "adapter",
        })
    }
}

/// What all generations of a set share, from publish to retire.
pub(crate) struct SetRecord {
    pub(crate) name: SetName,
    pub(crate) handle: SetHandle,
    ordinals: Ordinals,
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

/// Name to ordinal, append-only. Readers need it for messages only, and never wait for a writer.
struct Ordinals {
    table: Swap<OrdinalTable>,
    writer: Mutex<()>,
}

impl SetRecord {
    /// Of a set whose first generation has the layout `first`.
    pub(crate) fn new(name: SetName, handle: SetHandle, first: Arc<Layout>) -> Self {
        SetRecord {
            name,
            handle,
            ordinals: Ordinals {
                table: Swap::new(Arc::new(OrdinalTable::new(first))),
                writer: Mutex::new(()),
            },
            going: Mutex::new(Vec::new()),
        }
    }

    /// The tensor an ordinal of this set stands for. For messages; takes no lock.
    pub(crate) fn tensor_name(&self, ordinal: u32) -> String {
        self.ordinals.table.with(|table| match table.name(ordinal) {
            Some(name) => name.to_owned(),
            None => format!("ordinal {ordinal}"),
        }) // E16
    }

    /// The layout of a generation that comes from `plan`, whose own layout is `own`. `None`: that.
    pub(crate) fn layout_for(&self, plan: &Plan, own: &Arc<Layout>) -> Option<Layout> {
        if self.ordinals.table.with(|table| table.is_first(own)) {
            return None; // E16: the first layout of a set never changes
        }
        let _writer = self.ordinals.writer.lock(); // E16: no name is given two ordinals
        let mut table = OrdinalTable::clone(&self.ordinals.table.load_full());
        let layout = Layout::follow(plan, &mut table);
        self.ordinals.table.store(Arc::new(table)); // E16
        Some(layout)
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
    pub(crate) bytes: u64,
    /// The account core: labels, ledger. One `Arc` per generation, none per lease.
    pub(crate) shared: Arc<Shared>,
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
        // The ledger is told only when the memory is really gone.
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
